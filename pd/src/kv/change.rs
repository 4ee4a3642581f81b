//! What a command changed, as the journal carries it.
//!
//! A journal record is a run of changes, a snapshot is one too: replaying either rebuilds the state. Integers are
//! little-endian, byte strings have a 32-bit length in front.
//!
//! ```text
//! 1 put         key value create_revision:i64 mod_revision:i64 version:i64 lease:i64
//! 2 delete      key revision:i64
//! 3 put region  id:u64 metapb.Region
//! 4 drop region id:u64
//! 5 put lease   id:i64 ttl_seconds:i64
//! 6 drop lease  id:i64
//! 7 revision    revision:i64                  (snapshots only: the newest revision may have deleted its key)
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A key's value with what etcd tells about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The value.
    pub value: Bytes,
    /// The revision that created the key.
    pub create_revision: i64,
    /// The revision that last changed it.
    pub mod_revision: i64,
    /// Changes since it was created, the creation included.
    pub version: i64,
    /// The lease that the key ends with; 0 for none.
    pub lease: i64,
}

/// One change of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A key has a new value.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value and counters.
        record: Record,
    },
    /// A key is gone.
    Delete {
        /// The key.
        key: Bytes,
        /// The revision that removed it.
        revision: i64,
    },
    /// A region's newest description, `metapb.Region` encoded.
    PutRegion {
        /// The region's id.
        id: u64,
        /// The description.
        meta: Bytes,
    },
    /// A region was merged away or overlapped by newer ones.
    DropRegion {
        /// The region's id.
        id: u64,
    },
    /// A lease exists.
    PutLease {
        /// The lease's id.
        id: i64,
        /// Its time to live, in seconds.
        ttl: i64,
    },
    /// A lease has ended.
    DropLease {
        /// The lease's id.
        id: i64,
    },
    /// The newest revision.
    Revision(i64),
}

/// A run of changes that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed change {tag} at byte {offset}")]
pub struct MalformedChange {
    /// The kind of change.
    pub tag: u8,
    /// Where it begins.
    pub offset: usize,
}

impl Change {
    /// Appends the change's bytes to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Change::Put { key, record } => {
                out.put_u8(1);
                put_bytes(out, key);
                put_bytes(out, &record.value);
                out.put_i64_le(record.create_revision);
                out.put_i64_le(record.mod_revision);
                out.put_i64_le(record.version);
                out.put_i64_le(record.lease);
            }
            Change::Delete { key, revision } => {
                out.put_u8(2);
                put_bytes(out, key);
                out.put_i64_le(*revision);
            }
            Change::PutRegion { id, meta } => {
                out.put_u8(3);
                out.put_u64_le(*id);
                put_bytes(out, meta);
            }
            Change::DropRegion { id } => {
                out.put_u8(4);
                out.put_u64_le(*id);
            }
            Change::PutLease { id, ttl } => {
                out.put_u8(5);
                out.put_i64_le(*id);
                out.put_i64_le(*ttl);
            }
            Change::DropLease { id } => {
                out.put_u8(6);
                out.put_i64_le(*id);
            }
            Change::Revision(revision) => {
                out.put_u8(7);
                out.put_i64_le(*revision);
            }
        }
    }

    /// Reads a run of changes to its end.
    ///
    /// # Errors
    /// [`MalformedChange`] for bytes that [`Change::encode`] does not write.
    pub fn decode_all(run: &Bytes) -> Result<Vec<Change>, MalformedChange> {
        let mut rest = run.clone();
        let mut changes = Vec::new();
        while rest.has_remaining() {
            let offset = run.len() - rest.len();
            let tag = rest.get_u8();
            changes.push(decode_one(tag, &mut rest).ok_or(MalformedChange { tag, offset })?);
        }
        Ok(changes)
    }
}

fn decode_one(tag: u8, rest: &mut Bytes) -> Option<Change> {
    Some(match tag {
        1 => {
            let (key, value) = (take_bytes(rest)?, take_bytes(rest)?);
            let record = Record {
                value,
                create_revision: take_i64(rest)?,
                mod_revision: take_i64(rest)?,
                version: take_i64(rest)?,
                lease: take_i64(rest)?,
            };
            Change::Put { key, record }
        }
        2 => Change::Delete { key: take_bytes(rest)?, revision: take_i64(rest)? },
        3 => Change::PutRegion { id: take_u64(rest)?, meta: take_bytes(rest)? },
        4 => Change::DropRegion { id: take_u64(rest)? },
        5 => Change::PutLease { id: take_i64(rest)?, ttl: take_i64(rest)? },
        6 => Change::DropLease { id: take_i64(rest)? },
        7 => Change::Revision(take_i64(rest)?),
        _ => return None,
    })
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).expect("commands are bounded far below 4 GiB"));
    out.extend_from_slice(bytes);
}

fn take_bytes(rest: &mut Bytes) -> Option<Bytes> {
    let len = rest.try_get_u32_le().ok()? as usize;
    (rest.len() >= len).then(|| rest.split_to(len))
}

fn take_u64(rest: &mut Bytes) -> Option<u64> {
    rest.try_get_u64_le().ok()
}

fn take_i64(rest: &mut Bytes) -> Option<i64> {
    rest.try_get_i64_le().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Change> {
        let record =
            Record { value: Bytes::from_static(b"v"), create_revision: 2, mod_revision: 9, version: 3, lease: -7 };
        vec![
            Change::Put { key: Bytes::from_static(b"k"), record },
            Change::Delete { key: Bytes::new(), revision: 10 },
            Change::PutRegion { id: 4, meta: Bytes::from_static(b"meta") },
            Change::DropRegion { id: 4 },
            Change::PutLease { id: 1, ttl: 60 },
            Change::DropLease { id: 1 },
            Change::Revision(11),
        ]
    }

    #[test]
    fn what_was_encoded_comes_back() {
        let mut run = BytesMut::new();
        samples().iter().for_each(|change| change.encode(&mut run));
        assert_eq!(Change::decode_all(&run.freeze()), Ok(samples()));
    }

    #[test]
    fn a_cut_run_is_refused_at_every_length() {
        for sample in samples() {
            let mut run = BytesMut::new();
            sample.encode(&mut run);
            let run = run.freeze();
            for len in 1..run.len() {
                assert!(Change::decode_all(&run.slice(..len)).is_err(), "{sample:?} cut to {len}");
            }
        }
        assert!(Change::decode_all(&Bytes::from_static(&[99])).is_err());
    }
}
