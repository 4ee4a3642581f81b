//! Which raw values have expired, for the engine's compactions.
//!
//! Reads decide for themselves; this only gives the space back. It must never touch a key that is not raw data.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::keys;

/// How raw values carry their expiry (`kvrpcpb.APIVersion` and `storage.enable-ttl`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawFormat {
    /// The value alone: nothing expires.
    V1,
    /// The value, then the expiry in unix seconds as 8 bytes big-endian; 0 means never.
    V1Ttl,
    /// The value, perhaps the 8 bytes of the expiry, then a byte of flags. Only keys of the raw keyspace (`r`).
    V2,
}

/// What a compaction does with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leaves it.
    Keep,
    /// Drops it.
    Remove,
    /// Replaces its value by [`TOMBSTONE_V2`].
    Bury,
}

/// A deleted value of API version 2: flags alone, with the bit for deletion.
pub(crate) const TOMBSTONE_V2: &[u8] = &[FLAG_DELETED];
const FLAG_EXPIRES: u8 = 0b01;
const FLAG_DELETED: u8 = 0b10;

/// The rule by which compactions of family `default` drop expired raw values.
#[derive(Clone, Debug)]
pub struct TtlFilter {
    format: RawFormat,
    unix_seconds: Arc<AtomicU64>,
}

impl TtlFilter {
    /// A filter for `format`. The caller keeps `unix_seconds` at the current time; while it is 0 nothing expires.
    pub fn new(format: RawFormat, unix_seconds: Arc<AtomicU64>) -> TtlFilter {
        TtlFilter { format, unix_seconds }
    }

    /// True if some values could expire at all.
    pub fn is_needed(&self) -> bool {
        self.format != RawFormat::V1
    }

    /// What to do with the entry of engine key `key`.
    ///
    /// In version 2 the versions of a key stand behind one another, so dropping the newest would lay the one before
    /// it bare: an expired version becomes a deleted one instead.
    pub fn judge(&self, key: &[u8], value: &[u8]) -> Verdict {
        let now = self.unix_seconds.load(Ordering::Relaxed);
        let Some(key) = keys::origin_key(key) else {
            return Verdict::Keep;
        };
        let (expiry, verdict) = match self.format {
            RawFormat::V1 => return Verdict::Keep,
            RawFormat::V1Ttl => (value.last_chunk::<8>(), Verdict::Remove),
            RawFormat::V2 => match value.split_last() {
                Some((flags, rest)) if key.first() == Some(&b'r') && flags & FLAG_EXPIRES != 0 => {
                    (rest.last_chunk::<8>(), Verdict::Bury)
                }
                _ => return Verdict::Keep,
            },
        };
        match expiry.map(|bytes| u64::from_be_bytes(*bytes)) {
            Some(expiry) if expiry != 0 && expiry <= now => verdict,
            _ => Verdict::Keep,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(expiry: u64, tail: &[u8]) -> Vec<u8> {
        [b"value".as_slice(), &expiry.to_be_bytes(), tail].concat()
    }

    #[test]
    fn a_value_expires_at_its_second_and_only_in_the_raw_data() {
        let now = Arc::new(AtomicU64::new(1000));
        let v1 = TtlFilter::new(RawFormat::V1Ttl, now.clone());
        assert_eq!(v1.judge(b"zk", &value(1000, b"")), Verdict::Remove);
        assert_eq!(v1.judge(b"zk", &value(1001, b"")), Verdict::Keep);
        assert_eq!(v1.judge(b"zk", &value(0, b"")), Verdict::Keep);
        assert_eq!(v1.judge(b"zk", b"short"), Verdict::Keep);
        assert_eq!(v1.judge(b"\x01\x01", &value(1, b"")), Verdict::Keep);
        let v2 = TtlFilter::new(RawFormat::V2, now.clone());
        assert_eq!(v2.judge(b"zrk", &value(1000, &[1])), Verdict::Bury);
        assert_eq!(v2.judge(b"zrk", &value(1000, &[0])), Verdict::Keep);
        assert_eq!(v2.judge(b"zxk", &value(1000, &[1])), Verdict::Keep);
        assert_eq!(v2.judge(b"zrk", &[1]), Verdict::Keep);
        assert_eq!(v2.judge(b"zrk", b""), Verdict::Keep);
        assert!(!TtlFilter::new(RawFormat::V1, now.clone()).is_needed());
        now.store(0, Ordering::Relaxed);
        assert_eq!(v1.judge(b"zk", &value(1000, b"")), Verdict::Keep);
    }
}
