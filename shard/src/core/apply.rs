//! Applying committed entries: each one becomes changes in a batch, or an error that every replica would meet too.

use base::{RegionId, StoreId};
use mvcc::Cf;
use proto::metapb;
use proto::raft_cmdpb::{AdminCmdType, AdminRequest};
use proto::raft_serverpb::MergeState;
use raftstore::command::{Admin, CfName, Command, Header, WriteOp};
use raftstore::epoch::{CommandKind, check_epoch};
use raftstore::eraftpb::{ConfChangeV2, Entry};

use super::chain::Effects;
use super::error::RegionError;
use super::membership::changes_of;
use super::meta::PeerMeta;
use crate::engine::{WriteBatch, data_range};

/// What an entry did.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// Its changes are in the batch, or there was nothing to change.
    Done,
    /// It changed nothing, on every replica alike.
    Refused(RegionError),
    /// It prepared the region to merge, or took that back.
    Merging {
        /// The region with its new epoch.
        region: metapb::Region,
        /// What it merges into; `None` if it does not any more.
        merge: Option<MergeState>,
    },
    /// It split the region; all resulting regions in key order, the applying one with its new range among them.
    Split(Vec<metapb::Region>),
    /// All replicas hash the data as they are now.
    Hash,
    /// It changed the members.
    Members {
        /// What raft does.
        change: ConfChangeV2,
        /// The region with its new members.
        region: metapb::Region,
    },
}

/// The effect of one entry: its outcome, and what it wrote.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    pub(crate) outcome: Outcome,
    pub(crate) bytes: u64,
    pub(crate) keys: u64,
    /// Hash of what it wrote, for the chain.
    sum: u64,
}

impl Applied {
    fn nothing(outcome: Outcome) -> Applied {
        Applied { outcome, bytes: 0, keys: 0, sum: 0 }
    }
}

/// Applies `entry` to `meta`, changes going into `batch`.
///
/// The caller writes the batch, and makes the peers of the children of a split.
///
/// # Panics
/// If the entry is not the one after `meta.applied_index`, or is no command: then the log is not what was proposed,
/// and to go on would make replicas differ.
pub(crate) fn apply_entry(meta: &mut PeerMeta, entry: &Entry, batch: &mut impl WriteBatch) -> Applied {
    assert_eq!(entry.index, meta.applied_index + 1, "entries of {:?} are applied in order", meta.region_id());
    let command = Command::decode(entry).expect("a committed entry is a command that a peer proposed");
    meta.applied_index = entry.index;
    meta.applied_term = entry.term;
    let applied = match command {
        Command::Empty => Applied::nothing(Outcome::Done),
        Command::Write(write) => match check_write(meta, &write.header, &write.ops) {
            Err(refused) => Applied::nothing(Outcome::Refused(refused)),
            Ok(()) => write_ops(&write.ops, batch, meta),
        },
        Command::Admin(admin) => apply_admin(meta, *admin),
    };
    meta.chain.link(entry.index, &applied.outcome, applied.sum);
    applied
}

/// As [`apply_entry`], and a planted fault: nobody asks whether a write is still for this region.
pub(crate) fn apply_unchecked(meta: &mut PeerMeta, entry: &Entry, batch: &mut impl WriteBatch) -> Applied {
    match Command::decode(entry) {
        Ok(Command::Write(write)) => {
            meta.applied_index = entry.index;
            meta.applied_term = entry.term;
            write_ops(&write.ops, batch, meta)
        }
        _ => apply_entry(meta, entry, batch),
    }
}

/// Whether `entry` splits its region.
///
/// # Panics
/// As [`apply_entry`].
pub(crate) fn is_split(entry: &Entry) -> bool {
    is_admin(entry, AdminCmdType::BatchSplit)
}

/// Whether `entry` merges a neighbour into its region.
///
/// # Panics
/// As [`apply_entry`].
pub(crate) fn is_commit_merge(entry: &Entry) -> bool {
    is_admin(entry, AdminCmdType::CommitMerge)
}

fn is_admin(entry: &Entry, kind: AdminCmdType) -> bool {
    match Command::decode(entry).expect("a committed entry is a command that a peer proposed") {
        Command::Admin(admin) => admin.request.cmd_type() == kind,
        Command::Empty | Command::Write(_) => false,
    }
}

fn check_write(meta: &PeerMeta, header: &Header, ops: &[WriteOp]) -> Result<(), RegionError> {
    if meta.merge.is_some() {
        return Err(RegionError::Merging(meta.region_id()));
    }
    if check_epoch(&header.epoch, &meta.region, CommandKind::Data).is_err() {
        return Err(epoch_not_match(meta, vec![(*meta.region).clone()]));
    }
    for op in ops {
        let (first, last) = match op {
            WriteOp::Put { key, .. } | WriteOp::Delete { key, .. } => (key, None),
            WriteOp::DeleteRange { start, end, .. } => (start, Some(end)),
        };
        let region = &meta.region;
        let inside = base::keys::contains(&region.start_key, &region.end_key, first)
            && last.is_none_or(|end| region.end_key.is_empty() || (!end.is_empty() && *end <= region.end_key));
        if !inside {
            return Err(RegionError::KeyNotInRegion { key: first.to_vec(), region: Box::new((**region).clone()) });
        }
    }
    Ok(())
}

fn write_ops(ops: &[WriteOp], batch: &mut impl WriteBatch, meta: &PeerMeta) -> Applied {
    let mut applied = Applied::nothing(Outcome::Done);
    let mut batch = Effects::new(batch);
    for op in ops {
        match op {
            WriteOp::Put { cf, key, value } => {
                batch.put_data(family(*cf), key, value);
                applied.bytes += (key.len() + value.len()) as u64;
                applied.keys += 1;
            }
            WriteOp::Delete { cf, key } => {
                batch.delete_data(family(*cf), key);
                applied.keys += 1;
            }
            WriteOp::DeleteRange { notify_only: true, .. } => {}
            WriteOp::DeleteRange { cf, start, end, .. } => {
                let end = if end.is_empty() { &meta.region.end_key } else { end };
                let (start, end) = data_range(start, end);
                batch.delete_range(family(*cf), &start, &end);
            }
        }
    }
    Applied { sum: batch.sum, ..applied }
}

fn family(name: CfName) -> Cf {
    match name {
        CfName::Default => Cf::Default,
        CfName::Lock => Cf::Lock,
        CfName::Write => Cf::Write,
    }
}

fn apply_admin(meta: &PeerMeta, admin: Admin) -> Applied {
    let kind = CommandKind::Admin(admin.request.cmd_type());
    if check_epoch(&admin.header.epoch, &meta.region, kind).is_err() {
        return Applied::nothing(Outcome::Refused(epoch_not_match(meta, vec![(*meta.region).clone()])));
    }
    if let Some(outcome) = merge_step(meta, &admin.request) {
        return Applied::nothing(outcome);
    }
    if admin.request.cmd_type() == proto::raft_cmdpb::AdminCmdType::ComputeHash {
        return Applied::nothing(Outcome::Hash);
    }
    if let (Some(changes), Some(change)) = (changes_of(&admin.request), admin.conf_change) {
        let next = raftstore::membership::change_peers(&meta.region, &changes);
        return Applied::nothing(match next {
            Ok(region) => Outcome::Members { change, region },
            Err(_) => Outcome::Refused(RegionError::StaleCommand),
        });
    }
    let split = admin.request.splits.as_ref().map(|splits| raftstore::split::split_region(&meta.region, splits));
    match split {
        Some(Ok(regions)) => Applied::nothing(Outcome::Split(regions)),
        // Every replica meets the same error.
        _ => Applied::nothing(Outcome::Refused(RegionError::StaleCommand)),
    }
}

/// The outcome of a command that prepares a merge or takes one back; a region that is to merge takes no other one.
fn merge_step(meta: &PeerMeta, request: &AdminRequest) -> Option<Outcome> {
    let refused = Some(Outcome::Refused(RegionError::StaleCommand));
    match (&meta.merge, request.cmd_type()) {
        (None, AdminCmdType::PrepareMerge) => {
            let prepare = request.prepare_merge.clone().unwrap_or_default();
            if prepare.min_index != meta.applied_index {
                // All members have the log before `min_index`, and nothing may come between that and this entry.
                return refused;
            }
            let merge = MergeState { min_index: prepare.min_index, target: prepare.target, commit: meta.applied_index };
            Some(Outcome::Merging { region: raftstore::merge::prepare(&meta.region), merge: Some(merge) })
        }
        (Some(merge), AdminCmdType::RollbackMerge) => {
            let commit = request.rollback_merge.as_ref().map_or(0, |rollback| rollback.commit);
            if commit != merge.commit {
                return refused;
            }
            Some(Outcome::Merging { region: raftstore::merge::rollback(&meta.region), merge: None })
        }
        (Some(_), _) | (None, AdminCmdType::RollbackMerge) => refused,
        (None, _) => None,
    }
}

/// The error for a request with another epoch than `meta`'s; `current` are the regions to tell the client of.
pub(crate) fn epoch_not_match(meta: &PeerMeta, current: Vec<metapb::Region>) -> RegionError {
    RegionError::EpochNotMatch { region: meta.region_id(), version: meta.version(), conf_ver: meta.conf_ver(), current }
}

/// Puts the results of a split into `batch`: `meta` takes its new range, and the children's first states follow.
/// Returns the children that have a peer on `store`.
pub(crate) fn apply_split(
    meta: &mut PeerMeta,
    regions: Vec<metapb::Region>,
    store: StoreId,
    batch: &mut impl WriteBatch,
) -> Vec<PeerMeta> {
    let pieces = regions.len().max(1) as u64;
    let (bytes, keys) = (meta.approximate_bytes / pieces, meta.approximate_keys / pieces);
    let mut children = Vec::new();
    for region in regions {
        if RegionId(region.id) == meta.region_id() {
            meta.region = std::sync::Arc::new(region);
            meta.approximate_bytes = bytes;
            meta.approximate_keys = keys;
            meta.put_all(batch);
        } else if let Some(mut child) = PeerMeta::first(region, store) {
            child.approximate_bytes = bytes;
            child.approximate_keys = keys;
            child.put_all(batch);
            children.push(child);
        }
    }
    children
}
