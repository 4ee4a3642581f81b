//! Every acknowledged write has a durable write of the raft log behind it, by the kernel's count. A kill test cannot
//! find a missing sync, since what was written survives the process; this one finds it, as planted faults prove.

mod common;
#[path = "common/syncs.rs"]
mod syncs;

use std::time::{Duration, Instant};

use common::{Node, bytes, on_a_runtime, start};
use proto::kvrpcpb::{self as kv, Context};
use syncs::Syncs;

/// Puts that are looked at while their sync is held back.
const HELD: u64 = 8;
/// How long a held sync is looked at: an acknowledgement that does not wait for it comes in far less.
const LOOK: Duration = Duration::from_millis(100);
/// Puts one after the other.
const SEQUENTIAL: u64 = 100;
/// Puts with many in flight.
const CONCURRENT: u64 = 2000;
const IN_FLIGHT: u64 = 64;
const DURABLE: &str = "basalt_core_log_durable_total";

async fn put(node: &Node, context: &Context, key: String) {
    let request = kv::RawPutRequest {
        context: Some(context.clone()),
        key: bytes(key),
        value: bytes([7; 100]),
        ..Default::default()
    };
    let answer: kv::RawPutResponse = node.tikv.tikv("RawPut", &request).await;
    assert_eq!(answer, kv::RawPutResponse::default());
}

/// Runs a node and looks; `Err` says what was acknowledged without being durable.
fn check(
    io: &str,
    log_sync: &str,
    planted: &str,
    look: impl AsyncFnOnce(&Node, &Context, &Syncs) -> Result<(), String>,
) -> Result<(), String> {
    let config = format!("[basalt]\nlog-sync = \"{log_sync}\"\n");
    let (cluster, dir) = start(1, io, &config, &["--plant", planted]);
    let syncs = Syncs::follow(cluster.node_pid);
    let result = on_a_runtime(async {
        let node = Node::connect(cluster, dir).await;
        let context = node.context(b"").await;
        let result = look(&node, &context, &syncs).await;
        syncs.release();
        let Node { cluster, .. } = node;
        cluster.stop();
        result
    });
    syncs.end();
    result
}

/// Each put has a durable write of its own, or shares one with others that are in flight.
async fn counted(node: &Node, context: &Context, syncs: &Syncs) -> Result<(), String> {
    let (before, counted_before) = (syncs.done(), node.cluster.metric(DURABLE));
    for i in 0..SEQUENTIAL {
        let done = syncs.done();
        put(node, context, format!("sequential-{i}")).await;
        if syncs.done() == done {
            return Err(format!("put {i} was acknowledged without a durable write"));
        }
    }
    let counted = node.cluster.metric(DURABLE) - counted_before;
    if counted < SEQUENTIAL {
        return Err(format!("the node counts {counted} durable writes for {SEQUENTIAL} puts, one after the other"));
    }
    // The node counts a write when it begins.
    let started = Instant::now();
    while syncs.done() - before < counted {
        if started.elapsed() > Duration::from_secs(30) {
            return Err(format!("the node counts {counted} durable writes, the kernel {}", syncs.done() - before));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = syncs.done();
    let one = |lane: u64| async move {
        for i in (0..CONCURRENT).filter(|i| i % IN_FLIGHT == lane) {
            put(node, context, format!("concurrent-{i}")).await;
        }
    };
    all((0..IN_FLIGHT).map(one)).await;
    let durable = syncs.done() - before;
    println!("{CONCURRENT} puts, {IN_FLIGHT} in flight: {durable} durable writes");
    match durable {
        0 => Err("many puts without a durable write".into()),
        1..CONCURRENT => Ok(()),
        _ => Err(format!("{durable} durable writes for {CONCURRENT} puts: writes in flight do not share theirs")),
    }
}

/// While the sync of a put is held back, the put is not acknowledged.
async fn held(node: &Node, context: &Context, syncs: &Syncs) -> Result<(), String> {
    for i in 0..HELD {
        // Whatever the log writes when it goes idle is over.
        tokio::time::sleep(Duration::from_millis(50)).await;
        syncs.hold();
        let mut acknowledged = std::pin::pin!(put(node, context, format!("held-{i}")));
        let mut looked = Duration::ZERO;
        while looked < LOOK {
            let was_holding = syncs.is_holding();
            if tokio::time::timeout(Duration::from_millis(5), &mut acknowledged).await.is_ok() {
                return Err(format!("put {i} was acknowledged, and its sync had not happened"));
            }
            if was_holding {
                looked += Duration::from_millis(5);
            }
        }
        syncs.release();
        acknowledged.await;
    }
    Ok(())
}

/// Polls all of them to their end.
async fn all(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut open: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        open.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if open.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[test]
fn every_acknowledged_put_is_durable_by_the_kernels_count() {
    for (io, log_sync) in [("auto", "fdatasync"), ("auto", "dsync"), ("epoll", "fdatasync"), ("epoll", "dsync")] {
        let look = async |node: &Node, context: &Context, syncs: &Syncs| {
            held(node, context, syncs).await?;
            counted(node, context, syncs).await
        };
        check(io, log_sync, "none", look).unwrap_or_else(|why| panic!("{io}, {log_sync}: {why}"));
    }
}

#[test]
fn a_node_that_does_not_sync_is_caught() {
    for log_sync in ["fdatasync", "dsync"] {
        // By either way to look, though the node's own counter says that all is well.
        let why = check("auto", log_sync, "no-sync", counted).expect_err("nothing is synced");
        assert!(why.contains("without a durable write"), "{log_sync}: {why}");
        let why = check("auto", log_sync, "no-sync", held).expect_err("nothing is synced");
        assert!(why.contains("its sync had not happened"), "{log_sync}: {why}");
    }
}

#[test]
fn a_node_that_acknowledges_before_its_sync_is_caught() {
    for log_sync in ["fdatasync", "dsync"] {
        let why = check("auto", log_sync, "late-sync", held).expect_err("the sync comes after the acknowledgement");
        assert!(why.contains("its sync had not happened"), "{log_sync}: {why}");
    }
}
