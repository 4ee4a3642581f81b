//! What the transactional API offers, asked through the third-party crate `tikv-client` while regions change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use basalt_wire::certificates::secured;
use base::Prng;
use tikv_client::{CheckLevel, Config, Key, KvPair, RetryOptions, Transaction, TransactionClient, TransactionOptions};

/// Accounts of the bank.
pub(crate) const ACCOUNTS: u32 = 100;
const OPENING_BALANCE: i64 = 1000;

/// A client of the cluster whose placement driver is at `pd`.
pub(crate) async fn client(pd: &str) -> TransactionClient {
    let config = secured(Config::default().with_timeout(Duration::from_secs(10)));
    TransactionClient::new_with_config(vec![pd.to_string()], config).await.expect("a client")
}

/// Optimistic, in two phases; one that is dropped says nothing.
pub(crate) fn optimistic() -> TransactionOptions {
    TransactionOptions::new_optimistic().drop_check(CheckLevel::None)
}

/// With locks from the start; one that is dropped says nothing.
pub(crate) fn pessimistic() -> TransactionOptions {
    TransactionOptions::new_pessimistic().drop_check(CheckLevel::None)
}

/// One of the ways in which a transaction commits, by number.
fn style(number: u64) -> TransactionOptions {
    match number % 4 {
        0 => optimistic(),
        1 => optimistic().use_async_commit(),
        2 => optimistic().try_one_pc(),
        _ => optimistic().use_async_commit().try_one_pc(),
    }
}

pub(crate) fn account(i: u32) -> Vec<u8> {
    format!("account-{i:04}").into_bytes()
}

fn balance(value: &[u8]) -> i64 {
    std::str::from_utf8(value).expect("text").parse().expect("a number")
}

pub(crate) fn pairs(found: impl Iterator<Item = KvPair>) -> Vec<(Vec<u8>, Vec<u8>)> {
    found.map(|pair| (pair.0.into(), pair.1)).collect()
}

/// Opens all accounts in transactions of ten.
pub(crate) async fn open_bank(client: &TransactionClient) {
    for first in (0..ACCOUNTS).step_by(10) {
        let mut txn = client.begin_with_options(style(u64::from(first))).await.expect("a transaction");
        for i in first..first + 10 {
            txn.put(account(i), OPENING_BALANCE.to_string()).await.expect("buffered");
        }
        txn.commit().await.expect("nobody else is here");
    }
}

/// Moves money between two accounts; an error says that perhaps nothing was done.
async fn transfer(client: &TransactionClient, prng: &mut Prng) -> tikv_client::Result<()> {
    let (from, to) = (prng.below(u64::from(ACCOUNTS)) as u32, prng.below(u64::from(ACCOUNTS)) as u32);
    if from == to {
        return Ok(());
    }
    let amount = prng.below(50) as i64;
    let mut txn = client.begin_with_options(style(prng.next_u64())).await?;
    let moved = move_money(&mut txn, from, to, amount).await;
    if moved.is_err() {
        // What a commit left open is resolved by whoever meets it.
        let _ = txn.rollback().await;
    }
    moved
}

async fn move_money(txn: &mut Transaction, from: u32, to: u32, amount: i64) -> tikv_client::Result<()> {
    let source = balance(&txn.get(account(from)).await?.expect("an open account"));
    let target = balance(&txn.get(account(to)).await?.expect("an open account"));
    txn.put(account(from), (source - amount).to_string()).await?;
    txn.put(account(to), (target + amount).to_string()).await?;
    txn.commit().await.map(drop)
}

/// The sum of all accounts in one snapshot; `None` if it could not be read.
async fn total(client: &TransactionClient, reverse: bool) -> Option<i64> {
    let now = client.current_timestamp().await.ok()?;
    let mut snapshot = client.snapshot(now, optimistic().read_only());
    let range = account(0)..account(ACCOUNTS);
    let all = match reverse {
        false => pairs(snapshot.scan(range, ACCOUNTS + 10).await.ok()?),
        true => pairs(snapshot.scan_reverse(range, ACCOUNTS + 10).await.ok()?),
    };
    assert_eq!(all.len(), ACCOUNTS as usize, "no account is lost");
    Some(all.iter().map(|(_, value)| balance(value)).sum())
}

/// Clients move money for a while, others look at the whole bank: in every snapshot nothing is lost and nothing is made.
/// Answers how many transfers were done and how many snapshots were seen.
pub(crate) async fn run_bank(pd: &str, lasts: Duration) -> (u64, u64) {
    let client = Arc::new(client(pd).await);
    open_bank(&client).await;
    let expected = i64::from(ACCOUNTS) * OPENING_BALANCE;
    let done = Arc::new(AtomicBool::new(false));
    let (transfers, looks) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = Vec::new();
    for seed in 0..6 {
        let (client, done, transfers) = (client.clone(), done.clone(), transfers.clone());
        tasks.push(tokio::spawn(async move {
            let mut prng = Prng::new(seed);
            while !done.load(Ordering::Relaxed) {
                if transfer(&client, &mut prng).await.is_ok() {
                    transfers.fetch_add(1, Ordering::Relaxed);
                }
            }
        }));
    }
    for reverse in [false, true] {
        let (client, done, looks) = (client.clone(), done.clone(), looks.clone());
        tasks.push(tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                if let Some(sum) = total(&client, reverse).await {
                    assert_eq!(sum, expected, "money was lost or made");
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            }
        }));
    }
    tokio::time::sleep(lasts).await;
    done.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("a client of the bank");
    }
    for reverse in [false, true] {
        assert_eq!(total(&client, reverse).await.expect("a snapshot"), expected);
    }
    (transfers.load(Ordering::Relaxed), looks.load(Ordering::Relaxed))
}

/// Fails at once where another transaction is in the way.
pub(crate) fn impatient() -> TransactionOptions {
    optimistic().retry_options(RetryOptions::none())
}

/// A key as the client's functions take it.
pub(crate) fn name(key: &str) -> Key {
    key.to_owned().into()
}
