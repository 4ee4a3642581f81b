//! What the log holds: records, and their bytes. A record lies in one block, whole.
//!
//! Layout in docs/formats.md, "Raft log". Integers are LEB128 unless said otherwise.

use base::codec::{DecodeError, decode_varint, encode_varint};
use base::{PeerId, RegionId};
use bytes::Bytes;

/// Raft's durable state of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term that the peer has seen.
    pub term: u64,
    /// Peer id that got its vote in that term; 0 is nobody.
    pub vote: u64,
    /// Highest index known committed.
    pub commit: u64,
}

/// An entry's place in raft's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Index of the entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

/// A raft entry; its index follows from where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Term of the entry.
    pub term: u64,
    /// The encoded `eraftpb.Entry`.
    pub data: Bytes,
}

/// What is appended to the log. A record of a peer whose id is below the region's newest one is refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// The peer's new hard state.
    HardState {
        /// The region.
        region: RegionId,
        /// Its replica here.
        peer: PeerId,
        /// The state.
        state: HardState,
    },
    /// Entries from `first_index` on, in place of whatever stood at or above it.
    Entries {
        /// The region.
        region: RegionId,
        /// Its replica here.
        peer: PeerId,
        /// Index of the first entry.
        first_index: u64,
        /// The entries, consecutive.
        entries: Vec<LogEntry>,
    },
    /// Entries up to and including `at` are no longer needed.
    Truncated {
        /// The region.
        region: RegionId,
        /// Its replica here.
        peer: PeerId,
        /// The last entry that is gone.
        at: Position,
    },
    /// The peer lost durable records (`true`), or an operator accepted it as it is (`false`).
    Damaged {
        /// The region.
        region: RegionId,
        /// Its replica here.
        peer: PeerId,
        /// Whether it is damaged from here on.
        damaged: bool,
    },
    /// An event in the life of peers.
    Lifecycle(Lifecycle),
}

/// An event that creates, re-ranges, moves or ends peers, or changes data outside of raft. It stays in the log until
/// a flush covers it ([`RaftLog::flushed`](super::RaftLog::flushed)).
#[derive(Clone, Debug, PartialEq)]
pub struct Lifecycle {
    /// Number of the event, rising within the shard.
    pub event: u64,
    /// What happened.
    pub kind: LifecycleKind,
    /// The region it is about; 0 if it is about the shard.
    pub region: RegionId,
    /// Its replica here; 0 if it is about the shard.
    pub peer: PeerId,
    /// The region at the event.
    pub scope: Scope,
    /// What it does to the raft logs of peers, in order.
    pub effects: Vec<LogEffect>,
    /// The rest, in the core's own format.
    pub payload: Bytes,
}

/// A region as it was at an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// `metapb.RegionEpoch.conf_ver`.
    pub conf_ver: u64,
    /// `metapb.RegionEpoch.version`.
    pub version: u64,
    /// First key, inclusive, without the data prefix.
    pub start: Bytes,
    /// Last key, exclusive; empty is infinity.
    pub end: Bytes,
    /// Entries up to this index were applied before the event.
    pub applied: u64,
    /// Number of the move between shards; 0 if there was none.
    pub move_number: u64,
}

/// What a lifecycle record does to a peer's raft log.
#[derive(Clone, Debug, PartialEq)]
pub enum LogEffect {
    /// The peer's log begins anew. The hard state of the same peer never goes backwards by this.
    Start {
        /// The region.
        region: RegionId,
        /// Its replica here.
        peer: PeerId,
        /// The hard state to begin with.
        hard_state: HardState,
        /// The entry before the first one.
        truncated: Position,
        /// Entries from `truncated.index + 1` on.
        entries: Vec<LogEntry>,
    },
    /// The peer's log ends: hard state and entries are gone, also those of peers with lower ids.
    End {
        /// The region.
        region: RegionId,
        /// The replica that ended.
        peer: PeerId,
    },
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal),+ $(,)?) => {
        /// What a lifecycle record is about. The numbers are on disk.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum LifecycleKind { $($(#[$doc])* $name = $code),+ }

        impl LifecycleKind {
            /// All kinds.
            pub const ALL: &'static [LifecycleKind] = &[$(LifecycleKind::$name),+];

            fn from_code(code: u8) -> Option<LifecycleKind> {
                match code { $($code => Some(LifecycleKind::$name),)+ _ => None }
            }
        }
    };
}

kinds! {
    /// A peer was created (bootstrap, or the first message of a new replica).
    Created = 1,
    /// A region was split; the children start here.
    Split = 2,
    /// A peer came from another shard.
    Home = 3,
    /// A peer went to another shard.
    MovedAway = 4,
    /// A peer was removed, or its region was merged into another.
    Destroyed = 5,
    /// A raft snapshot is about to be applied.
    Applying = 6,
    /// It was applied.
    Applied = 7,
    /// Data of a range was removed outside of raft.
    DestroyRange = 8,
    /// The shard's identity.
    Ident = 9,
    /// A region prepared to merge into a neighbour.
    PrepareMerge = 10,
    /// A region took its neighbour in.
    CommitMerge = 11,
    /// A prepared merge was given up.
    RollbackMerge = 12,
}

const HARD_STATE: u8 = 1;
const ENTRIES: u8 = 2;
const TRUNCATED: u8 = 3;
const DAMAGED: u8 = 4;
const LIFECYCLE: u8 = 5;
/// Set in the kind byte of a record that was copied from an older segment: it only says again what still holds.
const COPIED: u8 = 0x80;
const EFFECT_START: u8 = 1;
const EFFECT_END: u8 = 2;

/// Appends the bytes of `record` to `out`.
pub(crate) fn encode(record: &Record, copied: bool, out: &mut Vec<u8>) {
    let mut body = Vec::with_capacity(64);
    let kind = match record {
        Record::HardState { region, peer, state } => {
            varints(&mut body, &[region.0, peer.0]);
            encode_hard_state(state, &mut body);
            HARD_STATE
        }
        Record::Entries { region, peer, first_index, entries } => {
            varints(&mut body, &[region.0, peer.0, *first_index]);
            encode_entries(entries, &mut body);
            ENTRIES
        }
        Record::Truncated { region, peer, at } => {
            varints(&mut body, &[region.0, peer.0, at.index, at.term]);
            TRUNCATED
        }
        Record::Damaged { region, peer, damaged } => {
            varints(&mut body, &[region.0, peer.0, u64::from(*damaged)]);
            DAMAGED
        }
        Record::Lifecycle(lifecycle) => {
            encode_lifecycle(lifecycle, &mut body);
            LIFECYCLE
        }
    };
    out.push(kind | if copied { COPIED } else { 0 });
    encode_varint(body.len() as u64, out);
    out.extend_from_slice(&body);
}

fn varints(out: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|&value| encode_varint(value, out));
}

fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn encode_hard_state(state: &HardState, out: &mut Vec<u8>) {
    varints(out, &[state.term, state.vote, state.commit]);
}

fn encode_entries(entries: &[LogEntry], out: &mut Vec<u8>) {
    out.reserve(entries.iter().map(|entry| entry.data.len() + 12).sum());
    encode_varint(entries.len() as u64, out);
    for entry in entries {
        encode_varint(entry.term, out);
        bytes(out, &entry.data);
    }
}

fn encode_lifecycle(lifecycle: &Lifecycle, out: &mut Vec<u8>) {
    let Lifecycle { event, kind, region, peer, scope, effects, payload } = lifecycle;
    encode_varint(*event, out);
    out.push(*kind as u8);
    varints(out, &[region.0, peer.0]);
    varints(out, &[scope.conf_ver, scope.version, scope.applied, scope.move_number]);
    bytes(out, &scope.start);
    bytes(out, &scope.end);
    encode_varint(effects.len() as u64, out);
    for effect in effects {
        match effect {
            LogEffect::Start { region, peer, hard_state, truncated, entries } => {
                out.push(EFFECT_START);
                varints(out, &[region.0, peer.0]);
                encode_hard_state(hard_state, out);
                varints(out, &[truncated.index, truncated.term]);
                encode_entries(entries, out);
            }
            LogEffect::End { region, peer } => {
                out.push(EFFECT_END);
                varints(out, &[region.0, peer.0]);
            }
        }
    }
    bytes(out, payload);
}

/// A record as it lies in a block, with the number of bytes it takes there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Framed {
    pub(crate) record: Record,
    pub(crate) copied: bool,
    pub(crate) len: usize,
}

/// The records of a block. Bytes of entries are slices of `records`.
pub(crate) fn decode_all(mut records: Bytes) -> impl Iterator<Item = Result<Framed, DecodeError>> {
    let mut failed = false;
    std::iter::from_fn(move || {
        if records.is_empty() || failed {
            return None;
        }
        let framed = decode(&mut records);
        failed = framed.is_err();
        Some(framed)
    })
}

fn decode(records: &mut Bytes) -> Result<Framed, DecodeError> {
    let whole = records.len();
    let kind = Reader(records).byte()?;
    let body = Reader(records).bytes()?;
    let len = whole - records.len();
    let mut body = body;
    let mut reader = Reader(&mut body);
    let record = decode_body(kind & !COPIED, &mut reader)?;
    if !body.is_empty() {
        return Err(DecodeError::Malformed);
    }
    Ok(Framed { record, copied: kind & COPIED != 0, len })
}

fn decode_body(kind: u8, reader: &mut Reader<'_>) -> Result<Record, DecodeError> {
    if kind == LIFECYCLE {
        return Ok(Record::Lifecycle(decode_lifecycle(reader)?));
    }
    let (region, peer) = reader.ids()?;
    Ok(match kind {
        HARD_STATE => Record::HardState { region, peer, state: reader.hard_state()? },
        ENTRIES => Record::Entries { region, peer, first_index: reader.int()?, entries: reader.entries()? },
        TRUNCATED => Record::Truncated { region, peer, at: reader.position()? },
        DAMAGED => Record::Damaged {
            region,
            peer,
            damaged: match reader.int()? {
                0 => false,
                1 => true,
                _ => return Err(DecodeError::Malformed),
            },
        },
        _ => return Err(DecodeError::Malformed),
    })
}

fn decode_lifecycle(reader: &mut Reader<'_>) -> Result<Lifecycle, DecodeError> {
    let event = reader.int()?;
    let kind = LifecycleKind::from_code(reader.byte()?).ok_or(DecodeError::Malformed)?;
    let (region, peer) = reader.ids()?;
    let scope = Scope {
        conf_ver: reader.int()?,
        version: reader.int()?,
        applied: reader.int()?,
        move_number: reader.int()?,
        start: reader.bytes()?,
        end: reader.bytes()?,
    };
    let count = reader.int()?;
    let mut effects = Vec::new();
    for _ in 0..count {
        let code = reader.byte()?;
        let (region, peer) = reader.ids()?;
        effects.push(match code {
            EFFECT_START => LogEffect::Start {
                region,
                peer,
                hard_state: reader.hard_state()?,
                truncated: reader.position()?,
                entries: reader.entries()?,
            },
            EFFECT_END => LogEffect::End { region, peer },
            _ => return Err(DecodeError::Malformed),
        });
    }
    Ok(Lifecycle { event, kind, region, peer, scope, effects, payload: reader.bytes()? })
}

/// Takes values from the front of some bytes.
struct Reader<'a>(&'a mut Bytes);

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let byte = *self.0.first().ok_or(DecodeError::Truncated)?;
        bytes::Buf::advance(self.0, 1);
        Ok(byte)
    }

    fn int(&mut self) -> Result<u64, DecodeError> {
        let mut rest: &[u8] = self.0;
        let value = decode_varint(&mut rest)?;
        let taken = self.0.len() - rest.len();
        bytes::Buf::advance(self.0, taken);
        Ok(value)
    }

    fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let len = usize::try_from(self.int()?).map_err(|_| DecodeError::Truncated)?;
        if len > self.0.len() {
            return Err(DecodeError::Truncated);
        }
        Ok(self.0.split_to(len))
    }

    fn ids(&mut self) -> Result<(RegionId, PeerId), DecodeError> {
        Ok((RegionId(self.int()?), PeerId(self.int()?)))
    }

    fn position(&mut self) -> Result<Position, DecodeError> {
        Ok(Position { index: self.int()?, term: self.int()? })
    }

    fn hard_state(&mut self) -> Result<HardState, DecodeError> {
        Ok(HardState { term: self.int()?, vote: self.int()?, commit: self.int()? })
    }

    fn entries(&mut self) -> Result<Vec<LogEntry>, DecodeError> {
        let count = self.int()?;
        // Each entry takes two bytes at least, so a length that no encoder wrote cannot reserve much.
        let bound = usize::try_from(count).map_or(usize::MAX, |count| count.min(self.0.len() / 2));
        let mut entries = Vec::with_capacity(bound);
        for _ in 0..count {
            entries.push(LogEntry { term: self.int()?, data: self.bytes()? });
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(record: Record) {
        for copied in [false, true] {
            let mut out = Vec::new();
            encode(&record, copied, &mut out);
            for cut in 0..out.len() {
                let cut = Bytes::copy_from_slice(&out[..cut]);
                assert!(decode_all(cut).all(|framed| framed.is_err()));
            }
            let len = out.len();
            let decoded: Vec<_> = decode_all(Bytes::from(out)).collect();
            let record = record.clone();
            assert_eq!(decoded, [Ok(Framed { record, copied, len })]);
        }
    }

    fn entry(term: u64, data: &'static [u8]) -> LogEntry {
        LogEntry { term, data: Bytes::from_static(data) }
    }

    #[test]
    fn every_record_round_trips_and_no_part_of_it_decodes() {
        let (region, peer) = (RegionId(300), PeerId(u64::MAX));
        let hard_state = HardState { term: 5, vote: 2, commit: u64::MAX };
        let at = Position { index: 9, term: 5 };
        let entries = vec![entry(1, b""), entry(2, b"abc")];
        round_trip(Record::HardState { region, peer, state: hard_state });
        round_trip(Record::Truncated { region, peer, at });
        for damaged in [true, false] {
            round_trip(Record::Damaged { region, peer, damaged });
        }
        for entries in [entries.clone(), Vec::new()] {
            round_trip(Record::Entries { region, peer, first_index: 7, entries });
        }
        for &kind in LifecycleKind::ALL {
            round_trip(Record::Lifecycle(Lifecycle {
                event: 1 << 40,
                kind,
                region,
                peer,
                scope: Scope {
                    conf_ver: 1,
                    version: 2,
                    start: Bytes::from_static(b"a"),
                    end: Bytes::new(),
                    applied: 3,
                    move_number: 4,
                },
                effects: vec![
                    LogEffect::End { region, peer },
                    LogEffect::Start { region, peer, hard_state, truncated: at, entries: entries.clone() },
                ],
                payload: Bytes::from_static(b"payload"),
            }));
        }
    }

    #[test]
    fn the_bytes_of_a_record_are_the_documented_ones() {
        let mut out = Vec::new();
        let (region, peer) = (RegionId(2), PeerId(3));
        encode(&Record::Entries { region, peer, first_index: 128, entries: vec![entry(6, b"xy")] }, false, &mut out);
        assert_eq!(out, [2, 9, 2, 3, 0x80, 1, 1, 6, 2, b'x', b'y'][..].to_vec());
        out.clear();
        let state = HardState { term: 6, vote: 3, commit: 1 };
        encode(&Record::HardState { region, peer, state }, true, &mut out);
        assert_eq!(out, [0x81, 5, 2, 3, 6, 3, 1]);
    }

    #[test]
    fn bytes_that_no_encoder_writes_are_refused() {
        let cases: &[&[u8]] = &[
            &[9, 2, 1, 1],                                                              // unknown kind
            &[4, 3, 1, 1, 2],                 // a flag that is neither 0 nor 1
            &[3, 5, 1, 1, 1, 1, 1],           // bytes behind the body
            &[5, 8, 1, 99, 1, 1, 0, 0, 0, 0], // unknown lifecycle kind
            &[2, 13, 1, 1, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1], // count
        ];
        for case in cases {
            let mut decoded = decode_all(Bytes::copy_from_slice(case));
            assert!(decoded.next().expect("one item").is_err(), "{case:?}");
            assert!(decoded.next().is_none());
        }
    }
}
