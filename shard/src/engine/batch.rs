//! A batch of changes, encoded as it is made.
//!
//! The bytes are RocksDB's own form of a write batch (`db/write_batch.cc`): sequence (8 bytes, zero here), count
//! (4 bytes, little-endian), then per change a tag, the family's number, and the key and value with varint lengths. So
//! handing it to RocksDB costs one copy of the bytes and no call per change, and a refused batch is still ours, which
//! the binding's own batch is not (it is consumed by the attempt). [`super::rocks`] checks the numbers and the form
//! against the binding's encoder each time it opens a database.

use base::keys;
use mvcc::Cf;

use super::WriteBatch;

const HEADER: usize = 12;
const TAG_DELETION: u8 = 0x0;
const TAG_VALUE: u8 = 0x1;
const TAG_FAMILY_DELETION: u8 = 0x4;
const TAG_FAMILY_VALUE: u8 = 0x5;
const TAG_FAMILY_RANGE_DELETION: u8 = 0xE;
const TAG_RANGE_DELETION: u8 = 0xF;

/// The batch of both engines: the bytes that RocksDB takes.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedBatch {
    bytes: Vec<u8>,
    count: u32,
    data_bytes: usize,
}

/// A place in a batch to which it can be cut back.
#[derive(Clone, Copy, Debug)]
pub struct BatchMark {
    bytes: usize,
    count: u32,
    data_bytes: usize,
}

/// One change of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchOp<'a> {
    /// Sets a key.
    Put(Cf, &'a [u8], &'a [u8]),
    /// Removes a key.
    Delete(Cf, &'a [u8]),
    /// Removes the keys in `[start, end)`.
    DeleteRange(Cf, &'a [u8], &'a [u8]),
}

impl std::fmt::Debug for EncodedBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the data: it is a client's, and long.
        f.debug_struct("EncodedBatch").field("count", &self.count).field("data_bytes", &self.data_bytes).finish()
    }
}

impl Default for EncodedBatch {
    fn default() -> EncodedBatch {
        EncodedBatch::new()
    }
}

impl EncodedBatch {
    /// An empty batch.
    pub fn new() -> EncodedBatch {
        EncodedBatch::with_capacity(256)
    }

    /// An empty batch with room for `bytes` of changes.
    pub fn with_capacity(bytes: usize) -> EncodedBatch {
        let mut buffer = Vec::with_capacity(HEADER + bytes);
        buffer.resize(HEADER, 0);
        EncodedBatch { bytes: buffer, count: 0, data_bytes: 0 }
    }

    /// Adds all changes of `other` behind those of this batch.
    pub fn append(&mut self, other: &EncodedBatch) {
        self.bytes.extend_from_slice(&other.bytes[HEADER..]);
        self.data_bytes += other.data_bytes;
        self.set_count(self.count + other.count);
    }

    /// The batch in the engine's form.
    pub fn encoded(&self) -> &[u8] {
        &self.bytes
    }

    /// The place behind the last change.
    pub fn mark(&self) -> BatchMark {
        BatchMark { bytes: self.bytes.len(), count: self.count, data_bytes: self.data_bytes }
    }

    /// Removes the changes behind `mark`, which this batch gave and which no `clear` came after.
    pub fn truncate(&mut self, mark: BatchMark) {
        assert!(mark.bytes <= self.bytes.len() && mark.count <= self.count);
        self.bytes.truncate(mark.bytes);
        self.data_bytes = mark.data_bytes;
        self.set_count(mark.count);
    }

    /// The changes in their order.
    pub fn ops(&self) -> impl Iterator<Item = BatchOp<'_>> {
        let mut rest = &self.bytes[HEADER..];
        (0..self.count).map(move |_| take_op(&mut rest).expect("this batch encoded itself"))
    }

    fn record(&mut self, default_tag: u8, family_tag: u8, cf: Cf) {
        self.set_count(self.count + 1);
        if cf == Cf::Default {
            self.bytes.push(default_tag);
        } else {
            // The family's number, a varint below 128.
            self.bytes.extend_from_slice(&[family_tag, cf as u8]);
        }
    }

    fn string(&mut self, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.data_bytes += len;
        let mut left = u32::try_from(len).expect("keys and values are far below 4 GiB");
        while left >= 0x80 {
            self.bytes.push(left as u8 | 0x80);
            left >>= 7;
        }
        self.bytes.push(left as u8);
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
    }

    fn set_count(&mut self, count: u32) {
        self.count = count;
        self.bytes[8..HEADER].copy_from_slice(&count.to_le_bytes());
    }
}

impl WriteBatch for EncodedBatch {
    fn put(&mut self, cf: Cf, key: &[u8], value: &[u8]) {
        self.record(TAG_VALUE, TAG_FAMILY_VALUE, cf);
        self.string(&[key]);
        self.string(&[value]);
    }

    fn delete(&mut self, cf: Cf, key: &[u8]) {
        self.record(TAG_DELETION, TAG_FAMILY_DELETION, cf);
        self.string(&[key]);
    }

    fn delete_range(&mut self, cf: Cf, start: &[u8], end: &[u8]) {
        if start < end {
            self.record(TAG_RANGE_DELETION, TAG_FAMILY_RANGE_DELETION, cf);
            self.string(&[start]);
            self.string(&[end]);
        }
    }

    fn put_data(&mut self, cf: Cf, key: &[u8], value: &[u8]) {
        self.record(TAG_VALUE, TAG_FAMILY_VALUE, cf);
        self.string(&[keys::DATA_MIN, key]);
        self.string(&[value]);
    }

    fn delete_data(&mut self, cf: Cf, key: &[u8]) {
        self.record(TAG_DELETION, TAG_FAMILY_DELETION, cf);
        self.string(&[keys::DATA_MIN, key]);
    }

    fn count(&self) -> usize {
        self.count as usize
    }

    fn data_bytes(&self) -> usize {
        self.data_bytes
    }

    fn clear(&mut self) {
        self.bytes.truncate(HEADER);
        self.data_bytes = 0;
        self.set_count(0);
    }
}

fn take_op<'a>(rest: &mut &'a [u8]) -> Option<BatchOp<'a>> {
    let tag = take(rest, 1)?[0];
    let cf = match tag {
        TAG_DELETION | TAG_VALUE | TAG_RANGE_DELETION => Cf::Default,
        _ => *Cf::ALL.get(usize::from(take(rest, 1)?[0]))?,
    };
    Some(match tag {
        TAG_VALUE | TAG_FAMILY_VALUE => BatchOp::Put(cf, take_string(rest)?, take_string(rest)?),
        TAG_DELETION | TAG_FAMILY_DELETION => BatchOp::Delete(cf, take_string(rest)?),
        TAG_RANGE_DELETION | TAG_FAMILY_RANGE_DELETION => {
            BatchOp::DeleteRange(cf, take_string(rest)?, take_string(rest)?)
        }
        _ => return None,
    })
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut len = 0u32;
    for shift in (0..35).step_by(7) {
        let byte = take(rest, 1)?[0];
        len |= u32::from(byte & 0x7F).checked_shl(shift)?;
        if byte < 0x80 {
            return take(rest, len as usize);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use mvcc::Modify;

    #[test]
    fn changes_come_back_in_their_order() {
        let long = vec![7; 300];
        let mut batch = EncodedBatch::new();
        batch.put(Cf::Default, b"k", b"v");
        batch.put(Cf::Lock, b"", &long);
        batch.delete(Cf::Write, b"d");
        batch.delete_range(Cf::Raft, b"a", b"b");
        batch.delete_range(Cf::Raft, b"b", b"b");
        let expected = vec![
            BatchOp::Put(Cf::Default, b"k", b"v"),
            BatchOp::Put(Cf::Lock, b"", &long),
            BatchOp::Delete(Cf::Write, b"d"),
            BatchOp::DeleteRange(Cf::Raft, b"a", b"b"),
        ];
        assert_eq!(batch.ops().collect::<Vec<_>>(), expected);
        assert_eq!(batch.count(), 4);
        assert_eq!(batch.data_bytes(), 2 + 300 + 1 + 2);
    }

    #[test]
    fn a_batch_is_cut_back_to_its_mark() {
        let mut batch = EncodedBatch::new();
        batch.put(Cf::Default, b"a", b"1");
        let before = batch.clone();
        let mark = batch.mark();
        batch.delete(Cf::Lock, b"b");
        batch.truncate(mark);
        assert_eq!(batch, before);
        let mut twice = before.clone();
        twice.append(&before);
        assert_eq!(twice.count(), 2);
        assert_eq!(twice.ops().nth(1), before.ops().next());
        twice.clear();
        assert_eq!(twice, EncodedBatch::new());
    }

    #[test]
    fn changes_of_a_region_gain_their_prefix_and_stop_at_its_end() {
        let mut batch = EncodedBatch::new();
        let all = Modify::DeleteRange { cf: Cf::Default, start: Bytes::from_static(b"b"), end: Bytes::new() };
        batch.modify(&all, b"m");
        batch.modify(&all, b"");
        batch.modify(&Modify::Delete { cf: Cf::Lock, key: Bytes::from_static(b"k") }, b"");
        assert_eq!(
            batch.ops().collect::<Vec<_>>(),
            vec![
                BatchOp::DeleteRange(Cf::Default, b"zb", b"zm"),
                BatchOp::DeleteRange(Cf::Default, b"zb", b"{"),
                BatchOp::Delete(Cf::Lock, b"zk"),
            ]
        );
    }
}
