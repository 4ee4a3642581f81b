//! Blocks: what one write of the log is made of, and how they are found again in a segment's bytes.
//!
//! A block begins at a multiple of [`UNIT`] and takes whole units. Its first word is [`MAGIC`]; no later unit of any
//! block begins with it, since such a word of the payload is escaped. So bytes that a client wrote are never taken
//! for a block, also when the block around them was torn.

use base::ShardId;
use bytes::Bytes;

/// The unit of writing, in bytes.
pub(crate) const UNIT: usize = 4096;
/// Bytes of a block before its payload.
pub(crate) const HEADER: usize = 96;
/// First bytes of a block. As a little-endian number it is above any unit number.
pub(crate) const MAGIC: [u8; 4] = *b"BRLG";
/// Version of the format that this code writes, and the newest that it reads.
pub(crate) const VERSION: u16 = 1;

/// What a block is for; information only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(pub(crate) u16);

impl Flags {
    pub(crate) const DATA: Flags = Flags(0);
    pub(crate) const OPEN: Flags = Flags(1);
    pub(crate) const SEAL: Flags = Flags(2);
    pub(crate) const MARK: Flags = Flags(4);
}

/// A block's header. See docs/formats.md for the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: Flags,
    /// CRC-32C over header and payload, without this field.
    pub(crate) crc: u32,
    /// Length of the records in bytes.
    pub(crate) length: u32,
    pub(crate) shard: u32,
    /// CRC of the block before this one in the log.
    pub(crate) previous: u32,
    pub(crate) segment: u64,
    /// Place in the segment, in units.
    pub(crate) unit: u32,
    pub(crate) records: u32,
    pub(crate) incarnation: u64,
    pub(crate) sequence: u64,
    /// Every block up to this sequence was durable when this one was written.
    pub(crate) durable: u64,
    /// Segments below this one hold nothing that is needed.
    pub(crate) oldest: u64,
    /// Highest lifecycle event up to the end of this block.
    pub(crate) event: u64,
    /// Number of escaped words.
    pub(crate) escapes: u32,
}

impl Header {
    /// Units that the block takes.
    pub(crate) fn units(&self) -> u32 {
        units_of(body_len(self.length, self.escapes))
    }
}

fn body_len(length: u32, escapes: u32) -> usize {
    (length as usize).next_multiple_of(4) + 4 * escapes as usize
}

fn units_of(body: usize) -> u32 {
    u32::try_from((HEADER + body).div_ceil(UNIT)).expect("a block is far below 16 TiB")
}

/// The most units that a block with `length` bytes of records can take, escapes included.
pub(crate) fn units_bound(length: usize) -> u32 {
    let body = length.next_multiple_of(4);
    units_of(body + 4 * units_of(body) as usize)
}

/// Turns records into a payload: pads it, and escapes each word at the start of a later unit that looks like
/// [`MAGIC`]. Returns the number of escapes.
pub(crate) fn escape(records: &mut Vec<u8>) -> u32 {
    records.resize(records.len().next_multiple_of(4), 0);
    let mut escaped: Vec<u32> = Vec::new();
    for (unit, at) in (1u32..).zip((UNIT - HEADER..records.len()).step_by(UNIT)) {
        let word = &mut records[at..at + 4];
        if word == MAGIC {
            word.fill(0);
            escaped.push(unit);
        }
    }
    escaped.iter().for_each(|unit| records.extend_from_slice(&unit.to_le_bytes()));
    escaped.len() as u32
}

/// The records in a payload that [`escape`] made; `None` if the escapes are none that it makes.
pub(crate) fn unescape(payload: Bytes, length: u32, escapes: u32) -> Option<Bytes> {
    let end = length as usize;
    if escapes == 0 {
        return (payload.len() >= end).then(|| payload.slice(..end));
    }
    let trailer = payload.get(end.next_multiple_of(4)..body_len(length, escapes))?;
    let mut records = payload[..end].to_vec();
    for unit in trailer.chunks_exact(4) {
        let unit = u32::from_le_bytes(unit.try_into().ok()?) as usize;
        let at = unit.checked_mul(UNIT)?.checked_sub(HEADER)?;
        records.get_mut(at..at + 4)?.copy_from_slice(&MAGIC);
    }
    Some(Bytes::from(records))
}

/// Writes the block to the front of `out`, which is zero beyond it, and sets `header.crc`.
pub(crate) fn write(header: &mut Header, payload: &[u8], out: &mut [u8]) {
    debug_assert_eq!(payload.len(), body_len(header.length, header.escapes));
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&MAGIC);
    put(&VERSION.to_le_bytes());
    put(&header.flags.0.to_le_bytes());
    put(&[0; 4]);
    put(&header.length.to_le_bytes());
    put(&header.shard.to_le_bytes());
    put(&header.previous.to_le_bytes());
    put(&header.segment.to_le_bytes());
    put(&header.unit.to_le_bytes());
    put(&header.records.to_le_bytes());
    put(&header.incarnation.to_le_bytes());
    put(&header.sequence.to_le_bytes());
    put(&header.durable.to_le_bytes());
    put(&header.oldest.to_le_bytes());
    put(&header.event.to_le_bytes());
    put(&header.escapes.to_le_bytes());
    put(&[0; 12]);
    debug_assert_eq!(at, HEADER);
    out[HEADER..HEADER + payload.len()].copy_from_slice(payload);
    header.crc = checksum(&out[..HEADER + payload.len()]);
    out[8..12].copy_from_slice(&header.crc.to_le_bytes());
}

fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..8]), &block[12..])
}

/// What stands at a unit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// No block of this shard at this place, or one that is not whole.
    Nothing,
    /// A whole block.
    Block(Header),
    /// A whole block of a format that this code does not know.
    Newer(u16),
}

/// Reads the block that begins at the front of `bytes`, which stand at `unit` of a segment.
pub(crate) fn parse(shard: ShardId, unit: u32, bytes: &[u8]) -> Parsed {
    if bytes.len() < UNIT || bytes[..4] != MAGIC {
        return Parsed::Nothing;
    }
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let header = Header {
        flags: Flags(u16_at(6)),
        crc: u32_at(8),
        length: u32_at(12),
        shard: u32_at(16),
        previous: u32_at(20),
        segment: u64_at(24),
        unit: u32_at(32),
        records: u32_at(36),
        incarnation: u64_at(40),
        sequence: u64_at(48),
        durable: u64_at(56),
        oldest: u64_at(64),
        event: u64_at(72),
        escapes: u32_at(80),
    };
    // 64 bits hold any sum of the two, so a garbage header cannot wrap around.
    let end = HEADER as u64 + u64::from(header.length).next_multiple_of(4) + 4 * u64::from(header.escapes);
    if end > bytes.len() as u64 || header.crc != checksum(&bytes[..end as usize]) {
        return Parsed::Nothing;
    }
    if u16_at(4) != VERSION {
        return Parsed::Newer(u16_at(4));
    }
    if header.shard != shard.0 || header.unit != unit {
        return Parsed::Nothing;
    }
    Parsed::Block(header)
}

/// The records of a block that [`parse`] found at the front of `bytes`, as a copy; `None` if its escapes are none that
/// [`escape`] makes.
pub(crate) fn records(header: &Header, bytes: &[u8]) -> Option<Bytes> {
    let payload = bytes.get(HEADER..HEADER + body_len(header.length, header.escapes))?;
    unescape(Bytes::copy_from_slice(payload), header.length, header.escapes)
}

/// Calls `found` with each whole block in `bytes`, which are all of a segment.
///
/// # Errors
/// The version of a block that this code is too old for.
pub(crate) fn scan(shard: ShardId, bytes: &[u8], mut found: impl FnMut(Header)) -> Result<(), u16> {
    let mut unit = 0;
    while let Some(rest) = bytes.get(unit as usize * UNIT..).filter(|rest| !rest.is_empty()) {
        match parse(shard, unit, rest) {
            Parsed::Nothing => unit += 1,
            Parsed::Newer(version) => return Err(version),
            Parsed::Block(header) => {
                found(header);
                unit += header.units();
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Prng;

    fn header(length: usize, escapes: u32) -> Header {
        Header {
            flags: Flags::SEAL,
            crc: 0,
            length: length as u32,
            shard: 3,
            previous: 0xDEAD_BEEF,
            segment: 1 << 33,
            unit: 2,
            records: 1,
            incarnation: 9,
            sequence: 1 << 40,
            durable: 77,
            oldest: 4,
            event: 5,
            escapes,
        }
    }

    /// A block at unit 2 of its segment.
    fn block(mut records: Vec<u8>) -> (Header, Vec<u8>) {
        let length = records.len();
        let escapes = escape(&mut records);
        let mut header = header(length, escapes);
        assert!(header.units() <= units_bound(length));
        let mut out = vec![0; header.units() as usize * UNIT];
        write(&mut header, &records, &mut out);
        (header, out)
    }

    /// Blocks found in `bytes`, which stand at `first_unit` of a segment, with their records.
    fn found(shard: u32, first_unit: usize, bytes: &[u8]) -> Vec<(Header, Option<Bytes>)> {
        let mut segment = vec![0; first_unit * UNIT];
        segment.extend_from_slice(bytes);
        let mut all = Vec::new();
        let found = |header: Header| all.push((header, records(&header, &segment[header.unit as usize * UNIT..])));
        scan(ShardId(shard), &segment, found).expect("known version");
        all
    }

    #[test]
    fn blocks_of_all_sizes_are_found_whole_and_only_in_their_place() {
        for size in [0, 1, 100, UNIT - HEADER, UNIT - HEADER + 1, 3 * UNIT, 70_001] {
            let records: Vec<u8> = (0..size).map(|i| i as u8).collect();
            let (header, bytes) = block(records.clone());
            let [one] = &found(3, 2, &bytes)[..] else {
                panic!("one block of {size}");
            };
            assert_eq!(one.0, header);
            assert_eq!(one.1.as_deref(), Some(&records[..]));
            assert!(found(3, 1, &bytes).is_empty(), "another place");
            assert!(found(2, 2, &bytes).is_empty(), "another shard");
        }
    }

    #[test]
    fn a_changed_bit_or_a_missing_sector_makes_the_block_invalid() {
        let (_, bytes) = block(vec![7; 9000]);
        let mut prng = Prng::new(1);
        for _ in 0..2000 {
            let mut bytes = bytes.clone();
            let bit = prng.below((HEADER as u64 + 9000) * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(found(3, 2, &bytes).is_empty(), "bit {bit}");
        }
        for sector in 0..(HEADER + 9000).div_ceil(512) {
            let mut bytes = bytes.clone();
            bytes[sector * 512..(sector + 1) * 512].fill(0);
            assert!(found(3, 2, &bytes).is_empty(), "sector {sector}");
        }
    }

    #[test]
    fn a_block_image_inside_a_payload_is_never_found() {
        // An entry's data that is, unit by unit, a valid block of this very segment.
        let mut records = vec![0; UNIT - HEADER];
        let mut inner = header(0, 0);
        for unit in 3..20 {
            let mut image = vec![0; UNIT];
            inner.unit = unit;
            write(&mut inner, &[], &mut image);
            records.extend_from_slice(&image);
        }
        records.extend_from_slice(&MAGIC[..3]);
        let (outer, bytes) = block(records.clone());
        assert_eq!(outer.escapes, 17);
        let [whole] = &found(3, 2, &bytes)[..] else {
            panic!("the outer block alone");
        };
        assert_eq!(whole.1.as_deref(), Some(&records[..]));
        let mut torn = bytes;
        torn[..UNIT].fill(0);
        assert!(found(3, 2, &torn).is_empty());
    }

    #[test]
    fn a_newer_version_is_named_and_garbage_is_not() {
        let (_, mut bytes) = block(vec![1; 10]);
        bytes[4..6].copy_from_slice(&2u16.to_le_bytes());
        assert_eq!(parse(ShardId(3), 2, &bytes), Parsed::Nothing);
        let crc = checksum(&bytes[..HEADER + 12]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(parse(ShardId(3), 2, &bytes), Parsed::Newer(2));
        assert_eq!(parse(ShardId(3), 2, &[0xFF; UNIT]), Parsed::Nothing);
        bytes[12..16].fill(0xFF);
        bytes[80..84].fill(0xFF);
        assert_eq!(parse(ShardId(3), 2, &bytes), Parsed::Nothing);
    }
}
