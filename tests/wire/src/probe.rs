//! Writers that never stop, one for each of a few keys: how long each key could not be written, and whether anything that
//! was acknowledged is gone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tikv_client::{Config, RawClient};
use tokio::task::JoinHandle;

use crate::certificates::secured;

/// How long a key may be unwritable before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two writes of a key.
const PAUSE: Duration = Duration::from_millis(10);

/// What is known of one key, which one task writes.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// The highest value that was acknowledged, and that was sent.
    sure: u64,
    sent: u64,
    /// When the put that was acknowledged last had begun, and when it was acknowledged.
    last: Option<(Instant, Instant)>,
    /// The longest that a put took from when the one before it was acknowledged.
    longest: Duration,
}

#[derive(Default)]
struct Books {
    keys: Mutex<BTreeMap<Vec<u8>, Known>>,
    acknowledged: AtomicU64,
    done: AtomicBool,
}

impl Books {
    fn keys(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Known>> {
        self.keys.lock().expect("no panic while locked")
    }

    fn note<T>(&self, key: &[u8], note: impl FnOnce(&mut Known) -> T) -> T {
        note(self.keys().entry(key.to_vec()).or_default())
    }
}

/// See the module.
pub struct Probes {
    books: Arc<Books>,
    tasks: Vec<JoinHandle<()>>,
    pd: String,
}

/// A client of the cluster whose placement driver is at `pd`.
///
/// # Panics
/// If there is no cluster.
pub async fn client(pd: &str) -> RawClient {
    let config = secured(Config::default().with_timeout(Duration::from_secs(10)));
    RawClient::new_with_config(vec![pd.to_string()], config).await.expect("a client")
}

/// Puts rising numbers until the end, whatever becomes of each.
async fn probe(client: RawClient, key: Vec<u8>, books: Arc<Books>) {
    while !books.done.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let next = books.note(&key, |known| {
            known.sent += 1;
            known.sent
        });
        if client.put(key.clone(), next.to_string().into_bytes()).await.is_ok() {
            books.acknowledged.fetch_add(1, Ordering::Relaxed);
            books.note(&key, |known| {
                let now = Instant::now();
                let before = known.last.map_or(begun, |(_, acknowledged)| acknowledged);
                (known.sure, known.last) = (next, Some((begun, now)));
                known.longest = known.longest.max(now - before);
            });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Probes {
    /// Starts to write `keys` through one client.
    pub async fn start(pd: &str, keys: impl IntoIterator<Item = Vec<u8>>) -> Probes {
        let (client, books) = (client(pd).await, Arc::<Books>::default());
        let tasks = keys.into_iter().map(|key| tokio::spawn(probe(client.clone(), key, books.clone())));
        Probes { tasks: tasks.collect(), books, pd: pd.to_string() }
    }

    /// Writes that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.books.acknowledged.load(Ordering::Relaxed)
    }

    /// How long each key could not be written after `since`, sorted: until the first acknowledgement of a put that began
    /// later.
    ///
    /// # Panics
    /// If a key cannot be written for a minute.
    pub async fn gaps(&self, since: Instant) -> Vec<Duration> {
        let mut gaps = BTreeMap::new();
        let limit = Instant::now() + PATIENCE;
        while gaps.len() < self.tasks.len() {
            assert!(Instant::now() < limit, "only {} of {} keys can be written", gaps.len(), self.tasks.len());
            for (key, known) in self.books.keys().iter() {
                if let Some((_, acknowledged)) = known.last.filter(|(begun, _)| *begun > since) {
                    gaps.entry(key.clone()).or_insert(acknowledged - since);
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut gaps: Vec<Duration> = gaps.into_values().collect();
        gaps.sort_unstable();
        gaps
    }

    /// The longest time from one acknowledgement to the next of each key since this was asked last, sorted.
    pub fn longest(&self) -> Vec<Duration> {
        let mut keys = self.books.keys();
        let mut longest: Vec<Duration> = keys.values_mut().map(|known| std::mem::take(&mut known.longest)).collect();
        longest.sort_unstable();
        longest
    }

    /// Reads all keys through a new client: what was acknowledged before the read must be seen, and nothing that was not
    /// sent after it.
    ///
    /// # Panics
    /// If it is not so.
    pub async fn check(&self) {
        let client = client(&self.pd).await;
        let keys: Vec<Vec<u8>> = self.books.keys().keys().cloned().collect();
        for key in keys {
            let sure = self.books.note(&key, |known| known.sure);
            let found = client.get(key.clone()).await.expect("a get");
            let found = found.map_or(0, |value| String::from_utf8(value).expect("text").parse().expect("a number"));
            let sent = self.books.note(&key, |known| known.sent);
            let name = String::from_utf8_lossy(&key);
            assert!((sure..=sent).contains(&found), "{name} holds {found}, acknowledged was {sure}, sent {sent}");
        }
    }

    /// Ends the writers, and checks once more.
    ///
    /// # Panics
    /// As [`Probes::check`].
    pub async fn finish(mut self) {
        self.books.done.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            task.await.expect("a probe");
        }
        self.check().await;
    }
}

/// p50, p90, p99 and the greatest of sorted times, in words.
pub fn quantiles(sorted: &[Duration]) -> String {
    let at = |percent: usize| sorted[(sorted.len() - 1) * percent / 100];
    format!("p50 {:?}, p90 {:?}, p99 {:?}, at most {:?}", at(50), at(90), at(99), at(100))
}
