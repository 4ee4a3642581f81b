//! Certificates in use, and how new ones come into use.

use super::config::{Settings, TlsConfig, TlsError};
use executor::Class;
use rustls::{ClientConfig, ServerConfig};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often new connections may look at the files.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// TLS with the certificates of a [`TlsConfig`]. Cheap to clone; clones are the same and may be used on all cores.
///
/// Files that change are read again without anybody's doing: the first connection of each second that is accepted or
/// made has a helper look at them. [`Tls::reload_if_changed`] does it at once.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    config: TlsConfig,
    /// Held for two clones of an `Arc` per handshake, and to swap.
    current: Mutex<Settings>,
    /// Held while the files are looked at.
    watch: Mutex<Watch>,
    /// When the next connection may look at the files, by `executor::now`.
    next_look: AtomicU64,
    swapped_total: AtomicU64,
    unusable_total: AtomicU64,
}

/// How often changed files were read again since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReloadCounts {
    /// Times that new certificates came into use.
    pub swapped: u64,
    /// Times that what was in the files was of no use, so that the old ones stayed.
    pub refused: u64,
}

/// What was last seen of the files.
struct Watch {
    loaded: Stamps,
    /// The state of the files that was found to be of no use, so that it is tried and told of once.
    broken: Option<Stamps>,
}

/// What a look at the files has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// They are as they were at the last look.
    Unchanged,
    /// They have changed, and new connections use what is in them.
    Swapped,
    /// They have changed, and are of no use: the old certificates stay. The log has the reason.
    Refused,
}

type Stamps = [Option<Stamp>; 3];

/// What tells one state of a file from another: times of its content and of its inode (seconds, nanoseconds), inode,
/// length. More than the time of the content, which `cp -p` and mounted secrets may set back.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    changed: (i64, i64),
    inode: u64,
    len: u64,
}

impl Stamp {
    /// `None` if there is no such file, or it cannot be seen.
    fn of(path: &Path) -> Option<Stamp> {
        let seen = std::fs::metadata(path).ok()?;
        Some(Stamp {
            modified: (seen.mtime(), seen.mtime_nsec()),
            changed: (seen.ctime(), seen.ctime_nsec()),
            inode: seen.ino(),
            len: seen.len(),
        })
    }
}

impl Tls {
    pub(super) fn load(config: TlsConfig) -> Result<Tls, TlsError> {
        // Looked at before they are read: a change between the two is seen at the next look.
        let loaded = config.paths().map(Stamp::of);
        let current = Mutex::new(config.settings()?);
        let watch = Mutex::new(Watch { loaded, broken: None });
        let shared = Shared {
            config,
            current,
            watch,
            next_look: AtomicU64::new(0),
            swapped_total: AtomicU64::new(0),
            unusable_total: AtomicU64::new(0),
        };
        Ok(Tls(Arc::new(shared)))
    }

    /// How often the files were read again, for metrics.
    pub fn reloads(&self) -> ReloadCounts {
        ReloadCounts {
            swapped: self.0.swapped_total.load(Ordering::Relaxed),
            refused: self.0.unusable_total.load(Ordering::Relaxed),
        }
    }

    /// Looks at the files, and if one has changed, reads all and uses them for new connections. Files of no use (one is
    /// written and the other not yet, say) change nothing; they are told of once and tried again when they change.
    ///
    /// Blocks on the files: for helpers, or threads that are no cores. Servers and channels call it by themselves.
    pub fn reload_if_changed(&self) -> Reload {
        let mut watch = lock(&self.0.watch);
        let seen = self.0.config.paths().map(Stamp::of);
        if seen == watch.loaded {
            watch.broken = None;
            return Reload::Unchanged;
        }
        if watch.broken == Some(seen) {
            return Reload::Unchanged;
        }
        match self.0.config.settings() {
            Ok(settings) => {
                *lock(&self.0.current) = settings;
                *watch = Watch { loaded: seen, broken: None };
                self.0.swapped_total.fetch_add(1, Ordering::Relaxed);
                tracing::info!(certificate = %self.0.config.cert_path.display(), "new certificates are in use");
                Reload::Swapped
            }
            Err(error) => {
                watch.broken = Some(seen);
                self.0.unusable_total.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "new certificates are of no use, the old ones stay");
                Reload::Refused
            }
        }
    }

    /// Has a helper look at the files, unless somebody did so within the last second. For each new connection, before
    /// its handshake.
    pub(crate) async fn refresh(&self) {
        let now = executor::now();
        let next = self.0.next_look.load(Ordering::Relaxed);
        let claim = (now + LOOK_INTERVAL).0;
        let is_due = now.0 >= next;
        if is_due && self.0.next_look.compare_exchange(next, claim, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let tls = self.clone();
            executor::blocking(Class::Foreground, move || tls.reload_if_changed()).await;
        }
    }

    /// For a handshake as server.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&lock(&self.0.current).server)
    }

    /// For a handshake as client.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&lock(&self.0.current).client)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.config).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::Authority;

    #[test]
    fn changed_files_are_swapped_in_and_broken_ones_are_tried_once() {
        let authority = Authority::new();
        let node = authority.node("node");
        let tls = node.tls();
        let first = tls.server();
        assert_eq!(tls.reload_if_changed(), Reload::Unchanged);

        std::fs::write(node.path().join("key.pem"), "half").expect("a file");
        assert_eq!(tls.reload_if_changed(), Reload::Refused);
        assert_eq!(tls.reload_if_changed(), Reload::Unchanged, "told of once");
        std::fs::remove_file(node.path().join("cert.pem")).expect("it was there");
        assert_eq!(tls.reload_if_changed(), Reload::Refused, "broken in another way");
        assert!(Arc::ptr_eq(&first, &tls.server()), "the old certificates stay");

        authority.write(&node, "node");
        assert_eq!(tls.clone().reload_if_changed(), Reload::Swapped);
        assert!(!Arc::ptr_eq(&first, &tls.server()), "clones are the same");
        assert_eq!(tls.reload_if_changed(), Reload::Unchanged);
        assert_eq!(tls.reloads(), ReloadCounts { swapped: 1, refused: 2 });
    }

    #[test]
    fn one_connection_a_second_looks_at_the_files() {
        executor::run_one(executor::IoChoice::Epoll, || async {
            let authority = Authority::new();
            let node = authority.node("node");
            let tls = node.tls();
            let first = tls.server();
            tls.refresh().await;
            authority.write(&node, "node");
            tls.refresh().await;
            assert!(Arc::ptr_eq(&first, &tls.server()), "too early for another look");
            executor::sleep(LOOK_INTERVAL).await;
            tls.refresh().await;
            assert!(!Arc::ptr_eq(&first, &tls.server()), "the second is over");
        });
    }

    #[test]
    fn what_is_printed_has_paths_and_no_key() {
        let node = Authority::new().node("node");
        let text = format!("{:?}", node.tls());
        assert!(text.contains("key.pem") && !text.contains("PRIVATE"), "{text}");
    }
}
