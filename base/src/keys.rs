//! Keys as they stand in the engine: data behind `z`, the node's own records behind `0x01`.
//!
//! Raft commands and region metas carry keys without the `z`.

use crate::RegionId;

/// First byte of every data key.
pub const DATA_PREFIX: u8 = b'z';
/// Lower bound of all data keys, inclusive.
pub const DATA_MIN: &[u8] = b"z";
/// Upper bound of all data keys, exclusive.
pub const DATA_MAX: &[u8] = b"{";
/// Key of the shard's identity (`raft_serverpb.StoreIdent`).
pub const STORE_IDENT: &[u8] = &[0x01, 0x01];

/// The engine's key for `key`.
pub fn data_key(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 1);
    out.push(DATA_PREFIX);
    out.extend_from_slice(key);
    out
}

/// The engine's exclusive upper bound for a region that ends at `end`, where empty means infinity.
pub fn data_end_key(end: &[u8]) -> Vec<u8> {
    if end.is_empty() { DATA_MAX.to_vec() } else { data_key(end) }
}

/// The key without its `z`; `None` if it is not a data key.
pub fn origin_key(key: &[u8]) -> Option<&[u8]> {
    key.split_first().filter(|(first, _)| **first == DATA_PREFIX).map(|(_, rest)| rest)
}

fn local(kind: u8, region: RegionId, suffix: u8) -> [u8; 11] {
    let mut out = [0; 11];
    out[0] = 0x01;
    out[1] = kind;
    out[2..10].copy_from_slice(&region.0.to_be_bytes());
    out[10] = suffix;
    out
}

/// Key of a peer's `raft_serverpb.RaftApplyState`, in family `raft`.
pub fn apply_state(region: RegionId) -> [u8; 11] {
    local(0x02, region, 0x03)
}

/// Key of a peer's `raft_serverpb.RegionLocalState`, in family `raft`.
pub fn region_state(region: RegionId) -> [u8; 11] {
    local(0x03, region, 0x01)
}

/// The region of a key that [`region_state`] made; `None` for any other key.
pub fn decode_region_state(key: &[u8]) -> Option<RegionId> {
    match key {
        [0x01, 0x03, id @ .., 0x01] => Some(RegionId(u64::from_be_bytes(id.try_into().ok()?))),
        _ => None,
    }
}

/// True if `key` lies in `[start, end)`, where an empty `end` means infinity.
pub fn contains(start: &[u8], end: &[u8], key: &[u8]) -> bool {
    key >= start && (end.is_empty() || key < end)
}

/// True if `[a_start, a_end)` and `[b_start, b_end)` share a key; empty ends mean infinity.
pub fn overlaps(a_start: &[u8], a_end: &[u8], b_start: &[u8], b_end: &[u8]) -> bool {
    (a_end.is_empty() || b_start < a_end) && (b_end.is_empty() || a_start < b_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_keys_agree_with_the_known_vectors() {
        assert_eq!(region_state(RegionId(1)), [1, 3, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(apply_state(RegionId(1)), [1, 2, 0, 0, 0, 0, 0, 0, 0, 1, 3]);
        assert_eq!(decode_region_state(&region_state(RegionId(9))), Some(RegionId(9)));
        assert_eq!(decode_region_state(&apply_state(RegionId(9))), None);
    }

    #[test]
    fn an_empty_end_is_infinity() {
        assert_eq!(data_end_key(b""), DATA_MAX);
        assert!(contains(b"a", b"", b"zzz"));
        assert!(!contains(b"a", b"b", b"b"));
        assert!(overlaps(b"a", b"c", b"b", b""));
        assert!(!overlaps(b"a", b"b", b"b", b"c"));
    }
}
