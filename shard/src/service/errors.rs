//! The one place where our errors become `errorpb.Error`, with every field that clients look at.

use proto::errorpb;

use crate::core::RegionError;

/// `error` as clients are told. The texts are TiKV's where a client matches them (`compat/4-store.md`, 4.4).
pub(crate) fn region_error(error: RegionError) -> errorpb::Error {
    let mut out = errorpb::Error { message: error.to_string(), ..Default::default() };
    match error {
        RegionError::StoreNotMatch { request, actual } => {
            out.store_not_match =
                Some(errorpb::StoreNotMatch { request_store_id: request.0, actual_store_id: actual.0 });
        }
        RegionError::RegionNotFound(region) | RegionError::Moving(region) => {
            out.message = format!("region {region} is not found");
            out.region_not_found = Some(errorpb::RegionNotFound { region_id: region.0 });
        }
        RegionError::MismatchPeerId { request, actual, .. } => {
            out.mismatch_peer_id =
                Some(errorpb::MismatchPeerId { request_peer_id: request.0, store_peer_id: actual.0 });
        }
        RegionError::NotLeader { region, leader } => {
            out.not_leader = Some(errorpb::NotLeader { region_id: region.0, leader });
        }
        RegionError::DataIsNotReady { region, peer } => {
            out.data_is_not_ready = Some(errorpb::DataIsNotReady { region_id: region.0, peer_id: peer.0, safe_ts: 0 });
        }
        RegionError::StaleCommand => out.stale_command = Some(errorpb::StaleCommand {}),
        RegionError::EpochNotMatch { current, .. } => {
            out.epoch_not_match = Some(errorpb::EpochNotMatch { current_regions: current });
        }
        RegionError::KeyNotInRegion { key, region } => {
            out.key_not_in_region = Some(errorpb::KeyNotInRegion {
                key: key.into(),
                region_id: region.id,
                start_key: region.start_key.clone(),
                end_key: region.end_key.clone(),
            });
        }
        RegionError::ServerIsBusy { reason, backoff_ms } => {
            out.server_is_busy = Some(errorpb::ServerIsBusy { reason, backoff_ms, ..Default::default() });
        }
        RegionError::DeadlineExceeded => {
            out.message = "Deadline is exceeded".into();
            out.server_is_busy =
                Some(errorpb::ServerIsBusy { reason: "deadline is exceeded".into(), ..Default::default() });
        }
        RegionError::EntryTooLarge { region, entry_bytes } => {
            out.raft_entry_too_large =
                Some(errorpb::RaftEntryTooLarge { region_id: region.0, entry_size: entry_bytes });
        }
        RegionError::DiskFull { stores } => {
            let store_id = stores.iter().map(|store| store.0).collect();
            out.disk_full = Some(errorpb::DiskFull { store_id, reason: "the disk is full or nearly so".into() });
        }
        RegionError::Merging(region) => {
            out.proposal_in_merging_mode = Some(errorpb::ProposalInMergingMode { region_id: region.0 });
        }
        RegionError::Undetermined => {
            // Release 8.5 has no word for it; clients take this one as "perhaps done".
            out.stale_command = Some(errorpb::StaleCommand {});
        }
        RegionError::MaxTimestampNotSynced(_) => {
            out.max_timestamp_not_synced = Some(errorpb::MaxTimestampNotSynced {});
        }
        RegionError::Damaged(_) | RegionError::Diverged(_) | RegionError::InvalidMaxTs(_) | RegionError::Closing => {}
    }
    out
}
