//! Everything that the raw API offers, asked through the third-party crate `tikv-client` while regions change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use basalt_wire::probe::client;
use basalt_wire::process::wait_for;
use tikv_client::{Key, KvPair, RawClient, Value};

/// Twelve hundred keys are some ninety regions.
pub(crate) const SMALL_REGIONS: &str = "[coprocessor]\nregion-max-keys = 20\nregion-split-keys = 10\n\
                                        [raftstore]\nregion-split-check-diff = \"256B\"\n";
pub(crate) const KEYS: u32 = 1200;
pub(crate) const REGIONS: u64 = 50;

pub(crate) fn key(i: u32) -> Vec<u8> {
    format!("key-{i:06}").into_bytes()
}

pub(crate) fn value(i: u32, round: u32) -> Vec<u8> {
    format!("value-{i}-{round}").into_bytes()
}

/// Keys are put in rounds, which makes regions split and move, while other tasks read what was put.
///
/// `regions` asks how many regions the placement driver knows.
pub(crate) async fn use_everything(pd: &str, keys: u32, regions: impl Fn() -> u64) {
    let client = Arc::new(client(pd).await.with_atomic_for_cas());
    let plain = Arc::new(self::client(pd).await);
    let done = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (plain, done) = (plain.clone(), done.clone());
        async move {
            let mut reads = 0u32;
            while !done.load(Ordering::Relaxed) {
                let i = reads.wrapping_mul(7919) % keys;
                let found = plain.get(key(i)).await.expect("a get");
                assert!(found.is_none_or(|found| found.starts_with(format!("value-{i}-").as_bytes())));
                reads += 1;
            }
            reads
        }
    });
    let mut writers = Vec::new();
    for part in 0..8 {
        let plain = plain.clone();
        writers.push(tokio::spawn(async move {
            for i in (0..keys).filter(|i| i % 8 == part) {
                plain.put(key(i), value(i, 1)).await.expect("a put");
                assert_eq!(plain.get(key(i)).await.expect("a get"), Some(value(i, 1)), "one's own write");
            }
        }));
    }
    for writer in writers {
        writer.await.expect("a writer");
    }
    // The last of them are split, and the placement driver hears of it, in a moment.
    wait_for("fifty regions", || regions() >= REGIONS);
    done.store(true, Ordering::Relaxed);
    assert!(reader.await.expect("the reader") > 0);

    batches(&plain, keys).await;
    scans(&plain, keys).await;
    deletes(&plain, keys).await;
    swaps(&client).await;
}

async fn batches(client: &RawClient, keys: u32) {
    let pairs: Vec<KvPair> = (0..keys).map(|i| KvPair(key(i).into(), value(i, 2))).collect();
    client.batch_put(pairs).await.expect("a batch put over many regions");
    let asked: Vec<Key> = (0..keys).chain(keys * 2..keys * 2 + 5).map(|i| key(i).into()).collect();
    let mut found = client.batch_get(asked).await.expect("a batch get over many regions");
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let expected: Vec<KvPair> = (0..keys).map(|i| KvPair(key(i).into(), value(i, 2))).collect();
    assert!(found == expected, "absent keys are left out, all others are there");
}

async fn scans(client: &RawClient, keys: u32) {
    // The crate does not stop at the last region, so a scan asks for no more keys than there are.
    let found = client.scan(key(0)..key(keys), keys).await.expect("a scan");
    let names: Vec<Vec<u8>> = found.iter().map(|pair| pair.0.clone().into()).collect();
    assert!(names == (0..keys).map(key).collect::<Vec<_>>(), "a scan finds every key in order");
    assert_eq!(found[5].1, value(5, 2));
    let some = client.scan(key(10)..key(20), 5).await.expect("a scan with a limit");
    assert_eq!(some.len(), 5);
    let keys_only = client.scan_keys(key(10)..key(20), 100).await.expect("keys only");
    assert_eq!(keys_only.len(), 10);
    let ranges = vec![key(0)..key(3), key(100)..key(103)];
    let batch = client.batch_scan(ranges, 2).await.expect("a batch scan");
    let names: Vec<Vec<u8>> = batch.iter().map(|pair| pair.0.clone().into()).collect();
    // The crate asks every region of a range for so many, and regions are being split.
    let mut total = 0;
    for range in [0..3, 100..103] {
        let inside = |name: &&Vec<u8>| key(range.start) <= **name && **name < key(range.end);
        let part: Vec<Vec<u8>> = names.iter().filter(inside).cloned().collect();
        assert!(part.len() >= 2, "{part:?}");
        assert_eq!(part, range.take(part.len()).map(key).collect::<Vec<_>>());
        total += part.len();
    }
    assert_eq!(names.len(), total);
}

async fn deletes(client: &RawClient, keys: u32) {
    client.delete(key(1)).await.expect("a delete");
    assert_eq!(client.get(key(1)).await.expect("a get"), None);
    client.batch_delete(vec![key(2), key(3)]).await.expect("a batch delete");
    client.delete_range(key(10)..key(keys / 2)).await.expect("a delete over many regions");
    let expected: Vec<Vec<u8>> =
        (0..keys).filter(|i| !(1..=3).contains(i) && !(10..keys / 2).contains(i)).map(key).collect();
    let left = client.scan_keys(key(0)..key(keys), expected.len() as u32).await.expect("a scan");
    let left: Vec<Vec<u8>> = left.into_iter().map(Into::into).collect();
    assert!(left == expected, "{} keys are left, {} should be", left.len(), expected.len());
}

async fn swaps(client: &RawClient) {
    let k = b"swap".to_vec();
    let v = |text: &str| -> Value { text.as_bytes().to_vec() };
    assert_eq!(client.compare_and_swap(k.clone(), None, v("a")).await.expect("a swap"), (None, true));
    assert_eq!(client.compare_and_swap(k.clone(), None, v("b")).await.expect("a swap"), (Some(v("a")), false));
    assert_eq!(client.compare_and_swap(k.clone(), v("a"), v("b")).await.expect("a swap"), (Some(v("a")), true));
    assert_eq!(client.get(k).await.expect("a get"), Some(v("b")));
}
