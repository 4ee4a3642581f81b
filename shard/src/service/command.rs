//! The commands that this release serves: their gRPC names and their numbers.

use proto::shallow::tag;

/// Commands that are never in a batch have numbers of ours, above all numbers of the protocol.
const OWN: u32 = 1000;
/// `RawGetKeyTTL`.
pub(crate) const RAW_GET_KEY_TTL: u32 = OWN;
/// `RawCompareAndSwap`.
pub(crate) const RAW_COMPARE_AND_SWAP: u32 = OWN + 1;
/// `RawChecksum`.
pub(crate) const RAW_CHECKSUM: u32 = OWN + 2;
/// `SplitRegion`.
pub(crate) const SPLIT_REGION: u32 = OWN + 3;
/// `ReadIndex`.
pub(crate) const READ_INDEX: u32 = OWN + 4;

/// `MvccGetByKey`.
pub(crate) const MVCC_GET_BY_KEY: u32 = OWN + 5;
/// `MvccGetByStartTs`.
pub(crate) const MVCC_GET_BY_START_TS: u32 = OWN + 6;

/// Names and numbers of the unary commands that go to a region.
const COMMANDS: [(&str, u32); 32] = [
    ("RawGet", tag::RAW_GET),
    ("RawBatchGet", tag::RAW_BATCH_GET),
    ("RawPut", tag::RAW_PUT),
    ("RawBatchPut", tag::RAW_BATCH_PUT),
    ("RawDelete", tag::RAW_DELETE),
    ("RawBatchDelete", tag::RAW_BATCH_DELETE),
    ("RawScan", tag::RAW_SCAN),
    ("RawBatchScan", tag::RAW_BATCH_SCAN),
    ("RawDeleteRange", tag::RAW_DELETE_RANGE),
    ("RawCoprocessor", tag::RAW_COPROCESSOR),
    ("RawGetKeyTTL", RAW_GET_KEY_TTL),
    ("RawCompareAndSwap", RAW_COMPARE_AND_SWAP),
    ("RawChecksum", RAW_CHECKSUM),
    ("SplitRegion", SPLIT_REGION),
    ("ReadIndex", READ_INDEX),
    ("KvGet", tag::GET),
    ("KvBatchGet", tag::BATCH_GET),
    ("KvScan", tag::SCAN),
    ("KvScanLock", tag::SCAN_LOCK),
    ("KvPrewrite", tag::PREWRITE),
    ("KvCommit", tag::COMMIT),
    ("KvCleanup", tag::CLEANUP),
    ("KvBatchRollback", tag::BATCH_ROLLBACK),
    ("KvResolveLock", tag::RESOLVE_LOCK),
    ("KvCheckTxnStatus", tag::CHECK_TXN_STATUS),
    ("KvTxnHeartBeat", tag::TXN_HEART_BEAT),
    ("KvCheckSecondaryLocks", tag::CHECK_SECONDARY_LOCKS),
    ("KvPessimisticLock", tag::PESSIMISTIC_LOCK),
    ("KVPessimisticRollback", tag::PESSIMISTIC_ROLLBACK),
    ("KvDeleteRange", tag::DELETE_RANGE),
    ("MvccGetByKey", MVCC_GET_BY_KEY),
    ("MvccGetByStartTs", MVCC_GET_BY_START_TS),
];

/// How many kinds of command there are, for tables with a row each.
pub(crate) const KINDS: usize = COMMANDS.len();

/// The number of a method.
pub(crate) fn by_name(method: &str) -> Option<u32> {
    COMMANDS.iter().find(|(name, _)| *name == method).map(|(_, tag)| *tag)
}

/// The row of a command in tables of [`KINDS`] rows.
pub(crate) fn row(tag: u32) -> Option<usize> {
    COMMANDS.iter().position(|(_, number)| *number == tag)
}

/// The names, by row.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|(name, _)| *name)
}

/// True for commands of which a batch may bear the number and which this release serves.
pub(crate) fn is_served(tag: u32) -> bool {
    row(tag).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_method_of_the_protocol() {
        use proto::rpc::Service as _;
        struct Nothing;
        impl proto::tikvpb::Tikv for Nothing {}
        let tikv = proto::tikvpb::TikvService::new(std::rc::Rc::new(Nothing));
        for name in names() {
            assert_eq!(tikv.shape(name), Some(proto::rpc::Shape::Unary), "{name}");
        }
    }
}
