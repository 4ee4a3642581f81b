//! What a member keeps on disk: the items of a record, and of an image.
//!
//! A record's payload is a run of items, an image's is one too. Integers are little-endian.
//!
//! ```text
//! 1 hard state   term:u64 vote:u64 commit:u64                       the newest one counts
//! 2 entry        length:u32 eraftpb.Entry                           voids what stood at its index and behind
//! 3 member       id:u64 length:u32 name                             (read only) as images had it before members changed
//! 4 place        own id:u64 truncated index:u64 term:u64 applied index:u64 term:u64    (images only)
//! 5 state        changes up to the applied index, to the payload's end                 (images only)
//! 6 group        number:u64                                         (images only) the same over the group's whole life
//! 7 member       id:u64 role:u8 length:u32 name length:u32 URL      (images only) one for each member of the group
//! 8 removed      id:u64                                             (images only) one for each that was a member
//! 9 out                                                             (images only) this member itself was removed for good
//! 10 ready                                                          (images only) a first member that has promised nothing yet
//! ```
//!
//! 6 to 8 are the roster as of the applied index. A folder with 9 is of no use any more, for 10 see [`Stage`].
//!
//! In folders of the first version records and images are runs of changes, without raft around them. Such a folder
//! becomes that of a group of one, whose log begins behind that state.

use super::log::Log;
use super::roster::{MemberRecord, MemberRole, Roster};
use crate::state::{LoadError, State};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use raftstore::eraftpb::{Entry, HardState};
use raftstore::{LogPosition, RAFT_INIT_LOG_INDEX, RAFT_INIT_LOG_TERM, first_hard_state};

/// How far a member has come. Only one that has begun votes, acknowledges or campaigns.
///
/// The first members of a group begin together, so that whoever comes with an empty folder later is known to have lost it.
/// A member is ready, on its disk, once it has heard from each of the others that it has not begun. It begins once each of
/// the others is ready, or any of them has begun. So if anyone has begun, all were ready once, and a member that is asking
/// and hears of that was ready, and may have voted and acknowledged since. One that hears it of nobody has promised nothing
/// to anybody: those that have not begun take no messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A first member with an empty folder.
    Asking,
    /// A first member whose folder says that it was here.
    Ready,
    /// It takes part.
    Begun,
    /// It was removed, and the others know it for good.
    Out,
}

/// What a member starts from.
#[derive(Debug)]
pub struct Stored {
    pub(super) hard_state: HardState,
    /// The members. Its group is 0 in a folder of before members could change.
    pub roster: Roster,
    /// The member whose folder it is.
    pub own_id: u64,
    pub(super) log: Log,
    pub(super) applied: LogPosition,
    /// The state as of the applied index.
    pub state: State,
    /// How far it has come.
    pub stage: Stage,
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
    Member(MemberRecord),
    Group(u64),
    Removed(u64),
    Stage(Stage),
    Place { own_id: u64, truncated: LogPosition, applied: LogPosition },
    State(Bytes),
}

impl Stored {
    /// One of several first members, on an empty disk: nothing happens before [`super::Node::begin`].
    pub fn founding(own_id: u64, roster: Roster) -> Stored {
        Stored { stage: Stage::Asking, ..Stored::first(State::blank(), own_id, roster) }
    }

    /// A group that begins with `state`, on the disk of its member `own_id`.
    pub fn first(state: State, own_id: u64, roster: Roster) -> Stored {
        let start = LogPosition { index: RAFT_INIT_LOG_INDEX, term: RAFT_INIT_LOG_TERM };
        Stored {
            hard_state: first_hard_state(),
            roster,
            own_id,
            log: Log::new(start),
            applied: start,
            state,
            stage: Stage::Begun,
        }
    }

    /// What a member begins with that was added to a running group. It has nothing, not even what a first member's log is
    /// said to have had, so that its leader sends it a snapshot.
    pub fn joining(own_id: u64, roster: Roster) -> Stored {
        let nowhere = LogPosition { index: 0, term: 0 };
        Stored {
            hard_state: HardState::default(),
            roster,
            own_id,
            log: Log::new(nowhere),
            applied: nowhere,
            state: State::blank(),
            stage: Stage::Begun,
        }
    }

    /// What an image and the records behind it say.
    ///
    /// # Errors
    /// [`StoredError`] for what no member writes.
    pub fn read(image: Option<&Bytes>, records: &[Bytes]) -> Result<Stored, StoredError> {
        let mut stored = Stored::first(State::blank(), 0, Roster::new(0, Vec::new(), Vec::new()));
        let (mut group, mut members, mut removed) = (0, Vec::new(), Vec::new());
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
                    Item::Member(member) => members.push(member),
                    Item::Group(number) => group = number,
                    Item::Removed(id) => removed.push(id),
                    Item::Stage(stage) => stored.stage = stage,
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
        stored.roster = Roster::new(group, members, removed);
        Ok(stored)
    }

    /// The image.
    pub(super) fn image(
        hard_state: HardState,
        roster: &Roster,
        own_id: u64,
        log: &Log,
        applied: LogPosition,
        state: &State,
        stage: Stage,
    ) -> Bytes {
        let state = state.image();
        let mut out = BytesMut::with_capacity(state.len() + 4096);
        put_hard_state(&mut out, hard_state);
        out.put_u8(6);
        out.put_u64_le(roster.group);
        for member in roster.members() {
            out.put_u8(7);
            member.encode(&mut out);
        }
        for id in roster.removed() {
            out.put_u8(8);
            out.put_u64_le(*id);
        }
        match stage {
            Stage::Out => out.put_u8(9),
            Stage::Ready | Stage::Asking => out.put_u8(10),
            Stage::Begun => {}
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

fn take(tag: u8, rest: &mut Bytes) -> Option<Item> {
    Some(match tag {
        1 => {
            let (term, vote, commit) = (take_u64(rest)?, take_u64(rest)?, take_u64(rest)?);
            Item::HardState(HardState { term, vote, commit })
        }
        2 => Item::Entry(Entry::decode(take_bytes(rest)?).ok()?),
        3 => {
            let (id, name) = (take_u64(rest)?, String::from_utf8(take_bytes(rest)?.to_vec()).ok()?);
            Item::Member(MemberRecord { id, role: MemberRole::Voter, name, url: String::new() })
        }
        4 => Item::Place {
            own_id: take_u64(rest)?,
            truncated: LogPosition { index: take_u64(rest)?, term: take_u64(rest)? },
            applied: LogPosition { index: take_u64(rest)?, term: take_u64(rest)? },
        },
        5 => Item::State(rest.split_to(rest.len())),
        6 => Item::Group(take_u64(rest)?),
        7 => Item::Member(MemberRecord::decode(rest)?),
        8 => Item::Removed(take_u64(rest)?),
        9 => Item::Stage(Stage::Out),
        10 => Item::Stage(Stage::Ready),
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

    fn roster() -> Roster {
        let member =
            |id, role, name: &str| MemberRecord { id, role, name: name.into(), url: format!("http://{name}:1") };
        let members = vec![member(3, MemberRole::Voter, "a"), member(4, MemberRole::Joining, "b")];
        Roster::new(77, members, vec![1, 2])
    }

    fn image() -> Bytes {
        let mut log = Log::new(LogPosition { index: 5, term: 5 });
        assert!(log.append(entry(6, 7)) && log.append(entry(7, 7)));
        let hard_state = HardState { term: 7, vote: 3, commit: 6 };
        let applied = LogPosition { index: 6, term: 7 };
        Stored::image(hard_state, &roster(), 4, &log, applied, &State::create(ClusterId(9)), Stage::Out)
    }

    #[test]
    fn an_image_and_records_behind_it_come_back() {
        let mut record = BytesMut::new();
        put_entry(&mut record, &entry(7, 8));
        put_hard_state(&mut record, HardState { term: 8, vote: 4, commit: 6 });
        let stored = Stored::read(Some(&image()), &[record.freeze()]).expect("whole");
        assert_eq!(stored.hard_state, HardState { term: 8, vote: 4, commit: 6 });
        assert_eq!((stored.own_id, stored.applied), (4, LogPosition { index: 6, term: 7 }));
        assert_eq!((stored.stage, &stored.roster), (Stage::Out, &roster()));
        assert_eq!((stored.log.last_index(), stored.log.term(6), stored.log.term(7)), (7, Some(7), Some(8)));
        assert_eq!(stored.state.cluster_id(), ClusterId(9));
    }

    #[test]
    fn members_of_a_folder_from_before_they_could_change_are_voters() {
        let mut image = BytesMut::new();
        for (id, name) in [(4u64, "b"), (3, "a")] {
            image.put_u8(3);
            image.put_u64_le(id);
            image.put_u32_le(1);
            image.extend_from_slice(name.as_bytes());
        }
        image.put_u8(4);
        [4u64, 5, 5, 5, 5].iter().for_each(|number| image.put_u64_le(*number));
        let stored = Stored::read(Some(&image.freeze()), &[]).expect("whole");
        assert_eq!((stored.own_id, stored.roster.group), (4, 0));
        assert_eq!(stored.roster.voters().collect::<Vec<_>>(), [3, 4]);
        assert_eq!(stored.roster.members()[1].name, "b");
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
