//! Which start of a store was the last one: what finds out a stale copy of a data folder.
//!
//! A node counts its starts in its folder and says the count when it registers, with a number that it drew for this
//! start. A folder that was copied, or restored from a backup, before the last start comes with a count that was used
//! already, and is refused: its raft logs lack votes and entries that others rely on. A copy made after the last start,
//! whose original never starts again, cannot be told from the original, and is as good.

use super::State;
use super::cluster::ClusterError;
use crate::kv::Op;
use proto::metapb;

/// Metadata of `PutStore` that carries a [`StoreStart`]. Stores that send none are not checked.
pub const STORE_START: &str = "basalt-store-start";

/// One start of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreStart {
    /// How many there have been, this one included.
    pub count: u64,
    /// Drawn at this start, so that a repeated call is not taken for another start.
    pub nonce: u64,
}

impl StoreStart {
    /// Reads `COUNT-NONCE`, decimal and hexadecimal.
    pub fn parse(text: &str) -> Option<StoreStart> {
        let (count, nonce) = text.split_once('-')?;
        Some(StoreStart { count: count.parse().ok()?, nonce: u64::from_str_radix(nonce, 16).ok()? })
    }
}

impl std::fmt::Display for StoreStart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{:016x}", self.count, self.nonce)
    }
}

impl State {
    /// The last start of a store that was accepted.
    pub fn store_start(&self, id: u64) -> Option<StoreStart> {
        StoreStart::parse(std::str::from_utf8(self.space.value(&self.keys.store_start(id))?).ok()?)
    }

    /// As [`State::put_store`], by a process that says which start of the store it is.
    ///
    /// # Errors
    /// As there, and [`ClusterError::Refused`] for a start that is not newer than the last one.
    pub fn put_store_of(&mut self, store: &metapb::Store, start: Option<StoreStart>) -> Result<(), ClusterError> {
        if let (Some(start), Some(last)) = (start, self.store_start(store.id))
            && start != last
            && start.count <= last.count
        {
            return Err(ClusterError::Refused(format!(
                "store {} was started {} times, and this data folder knows of {} before: it is a stale copy",
                store.id,
                last.count,
                start.count.saturating_sub(1)
            )));
        }
        self.put_store(store)?;
        if let Some(start) = start {
            self.commit(vec![Op::put(self.keys.store_start(store.id), start.to_string().into_bytes())]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{ClusterId, UnixTime};

    #[test]
    fn a_start_that_was_used_is_a_stale_copy() {
        let mut state = State::create(ClusterId(7));
        let store =
            metapb::Store { id: 1, address: "10.0.0.1:1".into(), version: "8.1.0".into(), ..Default::default() };
        let peer = metapb::Peer { id: 3, store_id: 1, ..Default::default() };
        let region = metapb::Region { id: 2, peers: vec![peer], ..Default::default() };
        state.bootstrap(Some(&store), Some(&region), 3, UnixTime(1)).expect("a first store");
        let mut put = |count, nonce| state.put_store_of(&store, Some(StoreStart { count, nonce }));
        assert_eq!(put(1, 10), Ok(()));
        assert_eq!(put(1, 10), Ok(()), "the call is repeated");
        assert_eq!(put(4, 11), Ok(()), "starts in between never got here");
        for (count, nonce) in [(4, 12), (3, 13), (1, 10)] {
            let refused = put(count, nonce).expect_err("stale").to_string();
            assert!(refused.contains("stale copy"), "{refused}");
        }
        assert_eq!(put(5, 14), Ok(()));
        assert_eq!(state.put_store_of(&store, None), Ok(()), "who does not count is not checked");
        assert_eq!(state.store_start(1), Some(StoreStart { count: 5, nonce: 14 }));
    }

    #[test]
    fn starts_are_read_as_they_are_written() {
        let start = StoreStart { count: 12, nonce: u64::MAX - 1 };
        assert_eq!(StoreStart::parse(&start.to_string()), Some(start));
        for bad in ["", "12", "x-1", "12-", "-1", "12-1g"] {
            assert_eq!(StoreStart::parse(bad), None, "{bad}");
        }
    }
}
