//! The bytes of a journal and of an image.
//!
//! A record begins at a multiple of 4096 bytes with this header, little-endian; its payload follows and may run over
//! several blocks.
//!
//! ```text
//!  0 magic "BPDJ"            4 version:u16 = 2   6 zero:u16
//!  8 journal:u64            number of the file
//! 16 incarnation:u64        random, new with each file
//! 24 sequence:u64           of this record; records count on over files
//! 32 durable:u64            the highest sequence known durable when this one was written
//! 40 length:u32             of the payload
//! 44 previous:u32           CRC-32C of the record in front, 0 for the first
//! 48 crc:u32                CRC-32C of the header (this field as zero) and the payload
//! 52 zeros to 64
//! ```
//!
//! A file's first record has no payload. Other records without one are seals: they note, when the journal goes idle,
//! that all before them were acknowledged.
//!
//! Files of version 1 differ in what the payloads mean; they are read and never written.

use bytes::{Buf, Bytes};

/// Records begin at multiples of this.
pub(super) const BLOCK: usize = 4096;
/// Bytes in front of the payload.
pub(super) const HEADER: usize = 64;
const MAGIC: &[u8; 4] = b"BPDJ";
/// What is written.
pub(super) const VERSION: u16 = 2;
/// What is read besides.
pub(super) const FIRST_VERSION: u16 = 1;
const CRC_AT: usize = 48;

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) journal: u64,
    pub(super) incarnation: u64,
    pub(super) sequence: u64,
    pub(super) durable: u64,
    pub(super) previous: u32,
}

/// A record as it was read.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) header: Header,
    pub(super) payload: Bytes,
    pub(super) crc: u32,
    pub(super) version: u16,
}

/// Bytes that a record with `len` bytes of payload takes.
pub(super) fn record_len(len: usize) -> usize {
    (HEADER + len).next_multiple_of(BLOCK)
}

/// Writes a record to the front of `out`, which is zeroed and at least [`record_len`] long; returns its CRC.
pub(super) fn encode(header: Header, payload: &[u8], out: &mut [u8]) -> u32 {
    out[..4].copy_from_slice(MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[8..16].copy_from_slice(&header.journal.to_le_bytes());
    out[16..24].copy_from_slice(&header.incarnation.to_le_bytes());
    out[24..32].copy_from_slice(&header.sequence.to_le_bytes());
    out[32..40].copy_from_slice(&header.durable.to_le_bytes());
    let len = u32::try_from(payload.len()).expect("records are bounded far below 4 GiB");
    out[40..44].copy_from_slice(&len.to_le_bytes());
    out[44..48].copy_from_slice(&header.previous.to_le_bytes());
    out[HEADER..HEADER + payload.len()].copy_from_slice(payload);
    let crc = crc32c::crc32c(&out[..HEADER + payload.len()]);
    out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Reads the record at the front of `block`; `None` if there is no whole one.
pub(super) fn decode(block: &[u8]) -> Option<Read> {
    let (head, mut fields) = (block.get(..HEADER)?, block.get(4..HEADER)?);
    if !head.starts_with(MAGIC) {
        return None;
    }
    let version = fields.get_u16_le();
    if (FIRST_VERSION..=VERSION).contains(&version) && fields.get_u16_le() == 0 {
        let header = Header {
            journal: fields.get_u64_le(),
            incarnation: fields.get_u64_le(),
            sequence: fields.get_u64_le(),
            durable: fields.get_u64_le(),
            previous: 0,
        };
        let len = fields.get_u32_le() as usize;
        let header = Header { previous: fields.get_u32_le(), ..header };
        let crc = fields.get_u32_le();
        let payload = block.get(HEADER..HEADER.checked_add(len)?)?;
        return (record_crc(head, payload) == crc).then(|| Read {
            header,
            payload: Bytes::copy_from_slice(payload),
            crc,
            version,
        });
    }
    None
}

/// Whether `block` begins like a record of a journal, of whatever version.
pub(super) fn is_like_a_record(block: &[u8]) -> bool {
    block.starts_with(MAGIC)
}

fn record_crc(head: &[u8], payload: &[u8]) -> u32 {
    let mut head: [u8; HEADER] = head.try_into().expect("the caller cut it to size");
    head[CRC_AT..CRC_AT + 4].fill(0);
    crc32c::crc32c_append(crc32c::crc32c(&head), payload)
}

/// The last byte is the version.
const IMAGE_MAGIC: &[u8; 7] = b"BPDIMG\0";
const IMAGE_HEADER: usize = 40;

/// An image of everything up to `sequence`; the journals from number `journal` on go on from there.
///
/// ```text
///  0 magic "BPDIMG" 0 2     8 sequence:u64     16 journal:u64     24 length:u64
/// 32 crc:u32 of the header (this field as zero) and the payload      36 zero:u32      40 payload
/// ```
pub(super) fn encode_image(sequence: u64, journal: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(IMAGE_HEADER + payload.len());
    out.extend_from_slice(IMAGE_MAGIC);
    out.push(VERSION as u8);
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&journal.to_le_bytes());
    out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(payload);
    let crc = crc32c::crc32c(&out);
    out[32..36].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Reads an image: version, sequence, first journal, payload. `None` if it is not whole.
pub(super) fn decode_image(image: Bytes) -> Option<(u16, u64, u64, Bytes)> {
    let head = image.get(..IMAGE_HEADER)?;
    let mut fields = head.strip_prefix(IMAGE_MAGIC)?;
    let version = u16::from(fields.get_u8());
    if !(FIRST_VERSION..=VERSION).contains(&version) {
        return None;
    }
    let (sequence, journal, len) = (fields.get_u64_le(), fields.get_u64_le(), fields.get_u64_le());
    let crc = fields.get_u32_le();
    let mut zeroed: [u8; IMAGE_HEADER] = head.try_into().expect("just cut to size");
    zeroed[32..36].fill(0);
    let payload = image.slice(IMAGE_HEADER..);
    let whole = payload.len() as u64 == len && crc32c::crc32c_append(crc32c::crc32c(&zeroed), &payload) == crc;
    whole.then_some((version, sequence, journal, payload))
}
