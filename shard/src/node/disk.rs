//! Core 0's eye on the disk: how full it is, for all cores and PD, and the reserve file.
//!
//! The reserve file takes an eighth of the reserve, or what a start needs if that is more, while there is room. When the disk is exhausted it is removed, at the
//! latest at the next start: so flushes and compactions, which free more, have room though others filled the disk, and a
//! node starts with zero bytes free.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::core_zero::CoreZero;
use super::{EngineSource, Node, NodeConfig};
use crate::core::DiskUsage;

/// Time between two looks. Half of the default reserve takes a fast disk longer to fill.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What a start may need of the reserve file for each shard: RocksDB allocates 4 MiB for a manifest.
const START_BYTES: u64 = 8 << 20;
/// The default reserve, unless that is more than a twentieth of the disk.
const RESERVE_BYTES: u64 = 5 << 30;

/// How much of the disk a node takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskConfig {
    /// The most that the store holds, in bytes (`raftstore.capacity`); 0 is all that the disk has.
    pub capacity_bytes: u64,
    /// What stays free, in bytes (`storage.reserve-space`): below it clients may write nothing that takes room. By
    /// default 5 GiB or a twentieth of the capacity, whichever is less; 0 switches it off.
    pub reserve_bytes: Option<u64>,
}

/// A disk at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) capacity: u64,
    pub(super) available: u64,
}

impl DiskConfig {
    /// What is the store's of a disk on which it holds `used` bytes.
    fn share(&self, disk: Space, used: u64) -> Space {
        if self.capacity_bytes == 0 {
            return disk;
        }
        let capacity = disk.capacity.min(self.capacity_bytes);
        Space { capacity, available: disk.available.min(capacity.saturating_sub(used)) }
    }

    fn reserve(&self, capacity: u64) -> u64 {
        self.reserve_bytes.unwrap_or(RESERVE_BYTES.min(capacity / 20))
    }
}

fn reserve_file(config: &NodeConfig) -> PathBuf {
    config.data_dir.join("reserve")
}

/// What the disk of the data folder has; `None` if it does not say.
async fn look(config: &NodeConfig) -> Option<Space> {
    match executor::fs::disk_space(&config.data_dir).await {
        Ok((capacity, available)) => Some(Space { capacity, available }),
        Err(error) => {
            tracing::warn!(%error, "the disk does not say what is free");
            None
        }
    }
}

/// Gives up the reserve file if the disk is too full to open the shards.
pub(super) async fn make_room_to_start(config: &NodeConfig) {
    let Some(disk) = look(config).await else { return };
    if disk.available < config.disk.reserve(disk.capacity) / 8 {
        give_up_reserve(config).await;
    }
}

async fn give_up_reserve(config: &NodeConfig) {
    match executor::fs::remove_file(reserve_file(config)).await {
        Ok(()) => tracing::warn!("the disk is exhausted: the reserve file is given up"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, "the reserve file cannot be removed"),
    }
}

/// Makes the reserve file if it is not there; answers whether that need not be tried again for now.
async fn take_reserve(config: &NodeConfig, bytes: u64) -> bool {
    match executor::fs::allocate(reserve_file(config), bytes).await {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => true,
        Err(error) => {
            tracing::warn!(%error, "no reserve file: a full disk may keep this node from starting");
            error.kind() == std::io::ErrorKind::Unsupported
        }
    }
}

/// The store's share of its disk, for PD.
pub(super) async fn space<S: EngineSource>(node: &Node<S>, zero: &CoreZero<S::Engine>) -> Space {
    let used = zero.directory.borrow().total_bytes();
    look(&node.config).await.map_or(Space::default(), |disk| node.config.disk.share(disk, used))
}

/// Looks again and again, and tells all cores and PD of what has changed.
pub(super) async fn watch<S: EngineSource>(node: Arc<Node<S>>, zero: Rc<CoreZero<S::Engine>>) {
    let Ok(host) = zero.host() else { return };
    let (gauge, config) = (&host.node.disk, &node.config);
    let mut has_reserve = false;
    loop {
        let space = space(&node, &zero).await;
        let (reserve, before) = (config.disk.reserve(space.capacity), gauge.usage());
        if space.capacity > 0 && reserve > 0 {
            let usage = DiskUsage::of(space.available, reserve, before);
            gauge.set(usage);
            if usage != before {
                let (available, capacity) = (space.available, space.capacity);
                tracing::warn!(?usage, ?before, available, capacity, reserve, "how full the disk is has changed");
                zero.wake_store_heartbeat.notify();
            }
            if usage == DiskUsage::Exhausted && before != usage {
                give_up_reserve(config).await;
                has_reserve = false;
            }
            // With room for it besides the reserve.
            if !has_reserve && usage == DiskUsage::Normal && space.available > reserve + reserve / 4 {
                let bytes = (reserve / 8).max(START_BYTES * host.node.mail.len() as u64);
                has_reserve = take_reserve(config, bytes).await;
            }
        }
        executor::sleep(LOOK_EVERY).await;
    }
}
