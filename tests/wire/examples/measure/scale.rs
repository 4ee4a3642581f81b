//! Many regions on three nodes: memory for each, messages between nodes, CPU at rest, and what a restart takes.

use std::time::{Duration, Instant};

use basalt_wire::fleet::Fleet;
use basalt_wire::probe::client;
use basalt_wire::process::resident_bytes;
use tikv_client::KvPair;

/// Regions of four keys; heartbeats to the placement driver at their usual pace.
const CONFIG: &str = "[coprocessor]\nregion-max-keys = 6\nregion-split-keys = 4\n\
                      [raftstore]\nregion-split-check-diff = \"1B\"\n";
const KEYS_PER_REGION: u32 = 4;
/// What is measured at rest, for so long.
const REST: Duration = Duration::from_secs(10);
/// Splits that are behind come in time, or not at all.
const PATIENCE: Duration = Duration::from_secs(600);

/// CPU that a process has taken.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    // User and system time, in hundredths of a second.
    let ticks: u64 = [11, 12].into_iter().map(|at: usize| fields[at].parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}

fn sum(fleet: &Fleet, name: &str) -> u64 {
    (0..3).map(|number| fleet.metric(number, name)).sum()
}

/// Prints what three nodes of `regions` regions take at rest.
fn rest(fleet: &Fleet, empty_bytes: u64) {
    let regions = fleet.regions().len() as u64;
    let resident: u64 = (0..3).map(|number| resident_bytes(fleet.pid(number))).sum();
    let busy = || (0..3).map(|number| cpu(fleet.pid(number))).sum::<Duration>();
    let sent = "basalt_shard_raft_sent_total";
    let (messages, cpu) = (sum(fleet, sent), busy());
    std::thread::sleep(REST);
    println!(
        "{regions} regions: {} MiB resident in all, {} KiB for each replica; {} raft messages a second between nodes; {} % \
         of a CPU for all three",
        resident >> 20,
        (resident.saturating_sub(empty_bytes) / (3 * regions)) >> 10,
        (sum(fleet, sent) - messages) / REST.as_secs(),
        (busy() - cpu).as_millis() / (REST.as_millis() / 100),
    );
}

/// Writes `keys` again and again: a region that was cut into ten is looked at again when it is written to.
fn grow(fleet: &Fleet, keys: std::ops::Range<u32>, regions: usize) {
    let all: Vec<u32> = keys.collect();
    let begun = Instant::now();
    loop {
        super::on_a_runtime(async {
            let raw = client(&fleet.pd).await;
            for some in all.chunks(200) {
                let pairs: Vec<KvPair> =
                    some.iter().map(|i| KvPair(format!("key-{i:08}").into_bytes().into(), b"value".to_vec())).collect();
                raw.batch_put(pairs).await.expect("a batch put");
            }
        });
        std::thread::sleep(Duration::from_secs(1));
        let found = fleet.regions().len();
        if found >= regions {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{found} of {regions} regions");
    }
}

pub(crate) fn run(regions: u32) {
    let mut fleet = Fleet::replicated(3, 1, CONFIG);
    let empty: u64 = (0..3).map(|number| resident_bytes(fleet.pid(number))).sum();
    println!("1 region: {} MiB resident in all", empty >> 20);
    let mut made = 0;
    for part in [5, 2, 1] {
        let wanted = regions / part;
        // A piece may keep a key more than it must.
        grow(&fleet, made..wanted * (KEYS_PER_REGION + 1), wanted as usize);
        made = wanted * (KEYS_PER_REGION + 1);
        std::thread::sleep(Duration::from_secs(20));
        rest(&fleet, empty);
    }
    let begun = Instant::now();
    fleet.kill(1);
    fleet.launch(1);
    println!("killed and ready again after {:?}", begun.elapsed());
    fleet.wait_for_replicas(3);
    println!("no replica is behind, as their leaders report, after {:?}", begun.elapsed());
}
