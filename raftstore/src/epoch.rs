//! Which command looks at which half of a region's epoch, and which half it changes.

use proto::metapb::{Region, RegionEpoch};
use proto::raft_cmdpb::AdminCmdType;

/// A command, as far as epochs are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandKind {
    /// A read or a write of data.
    Data,
    /// A change of the region itself.
    Admin(AdminCmdType),
}

/// What a kind of command checks and changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochRule {
    /// The command's version must be the region's.
    pub check_version: bool,
    /// The command's `conf_ver` must be the region's.
    pub check_conf_ver: bool,
    /// The command raises the version.
    pub changes_version: bool,
    /// The command raises the `conf_ver`.
    pub changes_conf_ver: bool,
}

/// The command was made for another state of the region.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("epoch {request:?} of the command is not that of region {}: {:?}", current.id, current.region_epoch)]
pub struct EpochMismatch {
    /// The command's epoch.
    pub request: RegionEpoch,
    /// The region as it is.
    pub current: Box<Region>,
}

/// The rule for a kind of command.
///
/// Source: TiKV 8.5, `admin_cmd_epoch_lookup`; a command on data checks the version only.
pub fn rule(kind: CommandKind) -> EpochRule {
    use AdminCmdType::*;
    let of = |check_version, check_conf_ver, changes_version, changes_conf_ver| EpochRule {
        check_version,
        check_conf_ver,
        changes_version,
        changes_conf_ver,
    };
    let CommandKind::Admin(kind) = kind else {
        return of(true, false, false, false);
    };
    #[allow(deprecated, reason = "old logs hold the single Split")]
    match kind {
        Split | BatchSplit => of(true, true, true, false),
        PrepareMerge => of(true, true, true, true),
        CommitMerge | RollbackMerge => of(true, true, true, false),
        ChangePeer | ChangePeerV2 | BatchSwitchWitness => of(false, true, false, true),
        PrepareFlashback | FinishFlashback => of(true, true, false, false),
        InvalidAdmin | CompactLog | TransferLeader | ComputeHash | VerifyHash | UpdateGcPeer => EpochRule::default(),
    }
}

/// Compares a command's epoch with the region's, by equality, as far as its kind asks for it.
///
/// Called when a command is proposed, and again when it is applied, where every replica must come to the same answer.
///
/// # Errors
/// [`EpochMismatch`] with the region as it is.
pub fn check_epoch(request: &RegionEpoch, region: &Region, kind: CommandKind) -> Result<(), EpochMismatch> {
    let rule = rule(kind);
    let current = epoch_of(region);
    let stale = (rule.check_version && request.version != current.version)
        || (rule.check_conf_ver && request.conf_ver != current.conf_ver);
    if stale {
        return Err(EpochMismatch { request: *request, current: Box::new(region.clone()) });
    }
    Ok(())
}

/// The epoch of a region; zeros if it has none yet.
pub fn epoch_of(region: &Region) -> RegionEpoch {
    region.region_epoch.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_compares_its_halves() {
        let region =
            Region { id: 1, region_epoch: Some(RegionEpoch { conf_ver: 3, version: 7 }), ..Default::default() };
        let passes = |conf_ver, version, kind| check_epoch(&RegionEpoch { conf_ver, version }, &region, kind).is_ok();
        let admin = CommandKind::Admin;
        assert!(passes(1, 7, CommandKind::Data));
        assert!(!passes(3, 6, CommandKind::Data));
        assert!(!passes(3, 8, CommandKind::Data), "ahead is as wrong as behind");
        assert!(passes(3, 1, admin(AdminCmdType::ChangePeerV2)));
        assert!(!passes(2, 7, admin(AdminCmdType::ChangePeerV2)));
        assert!(!passes(2, 7, admin(AdminCmdType::BatchSplit)));
        assert!(!passes(3, 6, admin(AdminCmdType::BatchSplit)));
        assert!(passes(3, 7, admin(AdminCmdType::BatchSplit)));
        assert!(passes(0, 0, admin(AdminCmdType::CompactLog)));
    }
}
