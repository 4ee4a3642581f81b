//! What a member keeps on disk: the items of a record, and of an image.
//!
//! A record's payload is a run of items, an image's is one too. Integers are little-endian.
//!
//! ```text
//! 1 hard state   term:u64 vote:u64 commit:u64                       the newest one counts
//! 2 entry        length:u32 eraftpb.Entry                           voids what stood at its index and behind
//! 3 member       id:u64 length:u32 name                             (images only) one for each member of the group
//! 4 place        own id:u64 truncated index:u64 term:u64 applied index:u64 term:u64    (images only)
//! 5 state        changes up to the applied index, to the payload's end                 (images only)
//! ```
//!
//! In folders of the first version records and images are runs of changes, without raft around them. Such a folder
//! becomes that of a group of one, whose log begins behind that state.

use super::log::Log;
use crate::state::{LoadError, State};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use raftstore::eraftpb::{Entry, HardState};
use raftstore::{LogPosition, RAFT_INIT_LOG_INDEX, RAFT_INIT_LOG_TERM, first_hard_state};

/// What a member starts from.
#[derive(Debug)]
pub struct Stored {
    pub(super) hard_state: HardState,
    /// The members' ids and names.
    pub members: Vec<(u64, String)>,
    /// The member whose folder it is.
    pub own_id: u64,
    pub(super) log: Log,
    pub(super) applied: LogPosition,
    /// The state as of the applied index.
    pub state: State,
}

/// Why a folder's content cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// Bytes that are no items.
    #[error("item {tag} of the journal cannot be read")]
    Malformed {
        /// The kind of item.
        tag: u8,
    },
    /// There are records, but no image that says what they continue.
    #[error("the journal has records but no image")]
    NoImage,
    /// The log has a hole.
    #[error("the journal's log has a hole in front of entry {0}")]
    Hole(u64),
    /// The state makes no sense.
    #[error(transparent)]
    State(#[from] LoadError),
}

/// One item, as it was read.
enum Item {
    HardState(HardState),
    Entry(Entry),
    Member(u64, String),
    Place { own_id: u64, truncated: LogPosition, applied: LogPosition },
    State(Bytes),
}

impl Stored {
    /// A group that begins with `state`, on the disk of its member `own_id`.
    pub fn first(state: State, own_id: u64, members: Vec<(u64, String)>) -> Stored {
        let start = LogPosition { index: RAFT_INIT_LOG_INDEX, term: RAFT_INIT_LOG_TERM };
        Stored { hard_state: first_hard_state(), members, own_id, log: Log::new(start), applied: start, state }
    }

    /// What an image and the records behind it say.
    ///
    /// # Errors
    /// [`StoredError`] for what no member writes.
    pub fn read(image: Option<&Bytes>, records: &[Bytes]) -> Result<Stored, StoredError> {
        let mut stored = Stored::first(State::blank(), 0, Vec::new());
        let mut has_place = false;
        for payload in image.into_iter().chain(records) {
            let mut rest = payload.clone();
            while rest.has_remaining() {
                let tag = rest.get_u8();
                match take(tag, &mut rest).ok_or(StoredError::Malformed { tag })? {
                    Item::HardState(hard_state) => stored.hard_state = hard_state,
                    Item::Entry(entry) => {
                        let index = entry.index;
                        if !stored.log.append(entry) {
                            return Err(StoredError::Hole(index));
                        }
                    }
                    Item::Member(id, name) => stored.members.push((id, name)),
                    Item::Place { own_id, truncated, applied } => {
                        has_place = true;
                        stored.own_id = own_id;
                        stored.log = Log::new(truncated);
                        stored.applied = applied;
                    }
                    Item::State(changes) => stored.state = from_image(&changes)?,
                }
            }
            if !has_place {
                return Err(StoredError::NoImage);
            }
        }
        Ok(stored)
    }

    /// The image.
    pub(super) fn image(
        hard_state: HardState,
        members: &[(u64, String)],
        own_id: u64,
        log: &Log,
        applied: LogPosition,
        state: &State,
    ) -> Bytes {
        let state = state.image();
        let mut out = BytesMut::with_capacity(state.len() + 4096);
        put_hard_state(&mut out, hard_state);
        for (id, name) in members {
            out.put_u8(3);
            out.put_u64_le(*id);
            put_bytes(&mut out, name.as_bytes());
        }
        out.put_u8(4);
        out.put_u64_le(own_id);
        for position in [log.truncated(), applied] {
            out.put_u64_le(position.index);
            out.put_u64_le(position.term);
        }
        log.entries().for_each(|entry| put_entry(&mut out, entry));
        out.put_u8(5);
        out.extend_from_slice(&state);
        out.freeze()
    }
}

/// The state that an image holds. Its history begins there.
pub(super) fn from_image(changes: &Bytes) -> Result<State, LoadError> {
    let mut state = State::blank();
    state.replay(changes)?;
    state.compact(state.space().revision());
    Ok(state)
}

pub(super) fn put_hard_state(out: &mut BytesMut, hard_state: HardState) {
    out.put_u8(1);
    out.put_u64_le(hard_state.term);
    out.put_u64_le(hard_state.vote);
    out.put_u64_le(hard_state.commit);
}

pub(super) fn put_entry(out: &mut BytesMut, entry: &Entry) {
    out.put_u8(2);
    out.put_u32_le(u32::try_from(entry.encoded_len()).expect("entries are bounded far below 4 GiB"));
    entry.encode(out).expect("the buffer grows");
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).expect("names are short"));
    out.extend_from_slice(bytes);
}

fn take(tag: u8, rest: &mut Bytes) -> Option<Item> {
    Some(match tag {
        1 => {
            let (term, vote, commit) = (take_u64(rest)?, take_u64(rest)?, take_u64(rest)?);
            Item::HardState(HardState { term, vote, commit })
        }
        2 => Item::Entry(Entry::decode(take_bytes(rest)?).ok()?),
        3 => Item::Member(take_u64(rest)?, String::from_utf8(take_bytes(rest)?.to_vec()).ok()?),
        4 => Item::Place {
            own_id: take_u64(rest)?,
            truncated: LogPosition { index: take_u64(rest)?, term: take_u64(rest)? },
            applied: LogPosition { index: take_u64(rest)?, term: take_u64(rest)? },
        },
        5 => Item::State(rest.split_to(rest.len())),
        _ => return None,
    })
}

fn take_bytes(rest: &mut Bytes) -> Option<Bytes> {
    let len = rest.try_get_u32_le().ok()? as usize;
    (rest.len() >= len).then(|| rest.split_to(len))
}

fn take_u64(rest: &mut Bytes) -> Option<u64> {
    rest.try_get_u64_le().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ClusterId;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: format!("entry {index}").into(), ..Entry::default() }
    }

    fn image() -> Bytes {
        let mut log = Log::new(LogPosition { index: 5, term: 5 });
        assert!(log.append(entry(6, 7)) && log.append(entry(7, 7)));
        let hard_state = HardState { term: 7, vote: 3, commit: 6 };
        let members = [(3, "a".to_owned()), (4, "b".to_owned())];
        let applied = LogPosition { index: 6, term: 7 };
        Stored::image(hard_state, &members, 4, &log, applied, &State::create(ClusterId(9)))
    }

    #[test]
    fn an_image_and_records_behind_it_come_back() {
        let mut record = BytesMut::new();
        put_entry(&mut record, &entry(7, 8));
        put_hard_state(&mut record, HardState { term: 8, vote: 4, commit: 6 });
        let stored = Stored::read(Some(&image()), &[record.freeze()]).expect("whole");
        assert_eq!(stored.hard_state, HardState { term: 8, vote: 4, commit: 6 });
        assert_eq!((stored.own_id, stored.applied), (4, LogPosition { index: 6, term: 7 }));
        assert_eq!(stored.members, [(3, "a".to_owned()), (4, "b".to_owned())]);
        assert_eq!((stored.log.last_index(), stored.log.term(6), stored.log.term(7)), (7, Some(7), Some(8)));
        assert_eq!(stored.state.cluster_id(), ClusterId(9));
    }

    #[test]
    fn what_no_member_writes_is_refused() {
        let mut record = BytesMut::new();
        put_entry(&mut record, &entry(9, 8));
        let record = record.freeze();
        assert!(matches!(Stored::read(Some(&image()), std::slice::from_ref(&record)), Err(StoredError::Hole(9))));
        assert!(Stored::read(None, std::slice::from_ref(&record)).is_err());
        for len in 1..record.len() {
            assert!(Stored::read(Some(&image()), &[record.slice(..len)]).is_err(), "cut to {len}");
        }
        let strange = Bytes::from_static(&[77]);
        assert!(matches!(Stored::read(Some(&strange), &[]), Err(StoredError::Malformed { tag: 77 })));
    }
}
