//! Snapshots between real processes: all of them together keep to the node's bandwidth, and writes do not wait for them.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use basalt_wire::certificates::secured;
use basalt_wire::fleet::{Fleet, Plan, are_whole, settings};
use common::on_a_runtime;
use tikv_client::{Config, RawClient};

const MIB: u64 = 1 << 20;
/// Bytes per second of the node's snapshots, and what the node holds.
const RATE: u64 = 4 * MIB;
const VALUES: u64 = 64;
const VALUE_BYTES: u64 = 256 << 10;
/// What is granted at once: a tenth of a second, or a piece that one snapshot reads.
const BURST: u64 = RATE / 10 + 2 * VALUE_BYTES;
/// Writes wait for no snapshot. A busy machine, and elections as members come, get this much.
const WRITE_MAX: Duration = Duration::from_secs(3);

const CONFIG: &str = "[server]\nsnap-io-max-bytes-per-sec = \"4MiB\"\n\
                      [raftstore]\npd-heartbeat-tick-interval = \"1s\"\npd-store-heartbeat-tick-interval = \"1s\"\n";
const READ_BYTES: &str = "basalt_shard_snapshot_read_bytes_total";

/// Puts small values until it is told to stop; the longest that one took.
async fn write(client: RawClient, stop: Arc<AtomicBool>) -> Duration {
    let mut longest = Duration::ZERO;
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        client.put(format!("small-{}", number % 100), number.to_string()).await.expect("a put");
        longest = longest.max(begun.elapsed());
        number += 1;
    }
    assert!(number > 100, "{number} writes");
    longest
}

#[test]
fn copies_for_new_nodes_share_the_bandwidth_and_writes_go_on() {
    let mut fleet = Fleet::start(Plan { nodes: 1, config: CONFIG.into(), ..Plan::default() });
    fleet.post("/pd/api/v1/config", &settings());
    on_a_runtime(async {
        let client = RawClient::new_with_config(vec![fleet.pd.clone()], secured(Config::default())).await;
        let client = client.expect("a client");
        for number in 0..VALUES {
            client.put(format!("large-{number:03}"), vec![7; VALUE_BYTES as usize]).await.expect("a put");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let writes = tokio::spawn(write(client, stop.clone()));
        for number in 1..3 {
            let folder = fleet.members[0].data_dir.with_file_name(format!("node-{number}"));
            fleet.add(folder, "127.0.0.1:0");
        }
        // What was read for snapshots, at some time in between.
        let look = |fleet: &Fleet| {
            let before = Instant::now();
            let bytes = fleet.metric(0, READ_BYTES);
            (before, bytes, Instant::now())
        };
        let mut seen = vec![look(&fleet)];
        let limit = Instant::now() + Duration::from_secs(120);
        while !are_whole(&fleet.get("/pd/api/v1/regions"), 3) {
            assert!(Instant::now() < limit, "no three replicas; {:?} bytes were read", seen.last());
            seen.push(look(&fleet));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stop.store(true, Ordering::Relaxed);
        let longest = writes.await.expect("the writes go on");
        seen.push(look(&fleet));

        let total = seen[seen.len() - 1].1;
        assert!(total >= 2 * VALUES * VALUE_BYTES, "two copies: {total} bytes");
        for (i, (begun, before, _)) in seen.iter().enumerate() {
            for (_, after, ended) in &seen[i..] {
                let time = *ended - *begun;
                let share = (time.as_secs_f64() * RATE as f64) as u64;
                assert!(after - before <= share + BURST, "{} bytes in {time:?}", after - before);
            }
        }
        println!("{total} bytes in {:?}, longest write {longest:?}", seen[seen.len() - 1].2 - seen[0].0);
        assert!(longest < WRITE_MAX, "a write took {longest:?}");
    });
}
