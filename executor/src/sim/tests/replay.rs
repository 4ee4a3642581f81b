use super::*;
use crate::sim::{SimListener, SimLogFile, SimStream, blocking, fs, shutdown_signal, spawn_local, with_rng};
use crate::{AlignedBuf, Class, LocalFuture, LogSync};
use base::{CoreId, Prng};
use std::io;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Set for the child process: the seed whose hash it is to print.
const SEED: &str = "EXECUTOR_SIM_SEED";
const PEERS: u8 = 3;

/// A node that writes what it hears to its disk, and tells its peers.
fn busy_main(core: CoreId) -> LocalFuture<()> {
    Box::pin(async move {
        if core == CoreId(0) {
            drop(spawn_local(Class::Foreground, listen()));
        }
        drop(spawn_local(Class::Raft, talk()));
        drop(spawn_local(Class::Scan, think()));
        shutdown_signal().await;
    })
}

async fn listen() -> io::Result<()> {
    fs::create_dir_all(Path::new("/data")).await?;
    let path = Path::new("/data/log");
    let file = match SimLogFile::open(path, LogSync::Fdatasync).await {
        Ok(file) => file,
        Err(_) => SimLogFile::create(path, 1 << 20, LogSync::Fdatasync).await?,
    };
    let file = Rc::new(file);
    let listener = SimListener::bind(address("0.0.0.0:5000")).await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        let file = file.clone();
        drop(spawn_local(Class::Foreground, async move {
            let mut buf = [0; 64];
            while let Ok(len @ 1..) = stream.read(&mut buf).await {
                let mut page = AlignedBuf::zeroed(4096);
                page.as_mut_slice()[..len].copy_from_slice(&buf[..len]);
                let place = with_rng(|prng| prng.below(256)) * 4096;
                file.write_at(place, page).await?;
                file.sync().await?;
                stream.write_all(&buf[..len]).await?;
            }
            Ok::<(), io::Error>(())
        }));
    }
}

async fn talk() {
    loop {
        let peer = with_rng(|prng| prng.range(1, u64::from(PEERS) + 1)) as u8;
        if let Ok(mut stream) = SimStream::connect(([10, 0, 0, peer], 5000).into()).await {
            for _ in 0..with_rng(|prng| prng.below(20)) {
                let mut message = vec![0; with_rng(|prng| prng.range(1, 300)) as usize];
                with_rng(|prng| prng.fill(&mut message));
                let answered = async {
                    stream.write_all(&message).await?;
                    stream.read_exact(&mut message).await
                };
                if answered.await.is_err() {
                    break;
                }
            }
        }
        sleep(millis(with_rng(|prng| prng.below(20)))).await;
    }
}

async fn think() {
    loop {
        let value = blocking(Class::Scan, || with_rng(Prng::next_u64)).await;
        let _ = fs::write_atomic(Path::new("/data/thought"), &value.to_le_bytes()).await;
        sleep(millis(7)).await;
    }
}

/// Ten virtual seconds of three nodes with every kind of fault.
fn run(seed: u64) -> u64 {
    let mut prng = Prng::new(seed ^ 0xFA);
    let (sim, nodes) = world(seed, SimConfig::arbitrary(&mut prng), PEERS);
    nodes.iter().for_each(|node| sim.start(*node, 2, busy_main));
    for _ in 0..100 {
        sim.run_for(millis(prng.below(200)));
        let node = nodes[prng.below(3) as usize];
        let other = nodes[(prng.below(2) as usize + nodes.iter().position(|it| *it == node).expect("known") + 1) % 3];
        match prng.below(10) {
            0 if sim.running(node) => sim.kill(node),
            1 if sim.running(node) => sim.kill_process(node),
            0..=2 if !sim.running(node) => sim.start(node, 2, busy_main),
            3 => sim.partition(node, other),
            4 => sim.partition_one_way(node, other),
            5 => sim.heal_all(),
            6 => sim.pause(node, millis(prng.below(500))),
            7 => sim.step_clock(node, prng.below(1 << 32) as i64 - (1 << 31)),
            8 => sim.stop(node),
            _ => sim.set_clock_drift(node, prng.below(2000) as i64 - 1000),
        }
    }
    assert!(sim.steps() > 1000, "something happens");
    sim.event_hash()
}

#[test]
fn the_same_seed_replays_and_others_differ() {
    let mut hashes: Vec<u64> = (0..12)
        .map(|seed| {
            let first = run(seed);
            assert_eq!(first, run(seed), "seed {seed}");
            first
        })
        .collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 12);
}

#[test]
fn a_trace_tells_of_every_event() {
    let trace = |seed| {
        let lines = Rc::new(std::cell::RefCell::new(Vec::new()));
        let (sim, nodes) = world(seed, SimConfig::default(), 1);
        let sink = lines.clone();
        sim.trace(move |line| sink.borrow_mut().push(line.to_owned()));
        sim.start(nodes[0], 1, busy_main);
        sim.run_for(millis(100));
        drop(sim);
        lines.take()
    };
    let lines = trace(5);
    assert!(lines.len() > 100);
    for kind in ["Start", "Spawn", "Poll", "Timer", "Disk", "Blocking", "Bind"] {
        assert!(lines.iter().any(|line| line.contains(kind)), "{kind}");
    }
    assert_eq!(lines, trace(5));
    assert_ne!(lines, trace(6));
}

#[test]
fn the_same_seed_replays_in_another_process() {
    if let Ok(seed) = std::env::var(SEED) {
        println!("\nhash {:016x}", run(seed.parse().expect("a seed")));
        return;
    }
    let child = |seed: u64| {
        let output = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["sim::tests::replay::the_same_seed_replays_in_another_process", "--exact", "--nocapture"])
            .env(SEED, seed.to_string())
            .output()
            .expect("the child runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("hash "));
        u64::from_str_radix(line.expect("the child prints its hash"), 16).expect("hexadecimal")
    };
    for seed in [3, 77] {
        assert_eq!(child(seed), run(seed), "seed {seed}");
    }
}

/// `cargo test --release -p executor sim_speed -- --nocapture` prints what a poll costs; the bound is loose, for
/// slow and shared machines.
#[test]
fn sim_speed() {
    let (sim, nodes) = world(1, SimConfig::default(), 3);
    let config = 200;
    for node in &nodes {
        for _ in 0..config {
            sim.spawn_on(*node, async {
                loop {
                    sleep(Duration::from_micros(with_rng(|prng| prng.below(100)))).await;
                    crate::sim::yield_now().await;
                }
            });
        }
    }
    let begin = std::time::Instant::now();
    while sim.steps() < 1_000_000 {
        sim.run_for(millis(1));
    }
    let rate = sim.steps() as f64 / begin.elapsed().as_secs_f64();
    println!("{rate:.0} polls and events per second");
    assert!(rate > 20_000.0);
}
