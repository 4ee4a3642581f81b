//! The view alone, without raft-rs.

use super::*;

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: vec![b'x'; 10].into(), ..Default::default() }
}

fn view(entries: impl IntoIterator<Item = (u64, u64)>) -> LogView {
    LogView::new(
        HardState::default(),
        ConfState::default(),
        vec![TermRun { first: 5, term: 5 }],
        5,
        entries.into_iter().map(|(index, term)| entry(index, term)).collect(),
    )
}

fn read(view: &LogView, low: u64, high: u64) -> Vec<(u64, u64)> {
    view.entries(low, high, None, GetEntriesContext::empty(true))
        .expect("in memory")
        .into_iter()
        .map(|entry| (entry.index, entry.term))
        .collect()
}

#[test]
fn an_append_in_the_middle_voids_what_followed() {
    let mut view = view([(6, 6), (7, 6), (8, 7)]);
    view.append(vec![entry(7, 8)]);
    assert_eq!(view.last_index(), Ok(7));
    assert_eq!(read(&view, 6, 8), [(6, 6), (7, 8)]);
    assert_eq!(view.term(5), Ok(5));
    assert_eq!(view.term(6), Ok(6));
    assert_eq!(view.term(7), Ok(8));
    assert_eq!(view.term(8), Err(Error::Store(StorageError::Unavailable)));
    assert_eq!(view.cached_bytes(), 2 * entry(6, 6).encoded_len());
}

#[test]
fn terms_stay_known_when_bytes_are_gone() {
    let mut view = view([(6, 6), (7, 7), (8, 7)]);
    view.evict(7, 0);
    assert_eq!(read(&view, 8, 9), [(8, 7)]);
    assert_eq!(view.term(6), Ok(6));
    view.truncate(7);
    assert_eq!(view.term(7), Ok(7));
    assert_eq!(view.term(6), Err(Error::Store(StorageError::Compacted)));
    assert_eq!(view.first_index(), Ok(8));
    view.truncate(8);
    assert_eq!((view.first_index(), view.last_index()), (Ok(9), Ok(8)));
    view.append(vec![entry(9, 7)]);
    assert_eq!(view.runs, [TermRun { first: 8, term: 7 }]);
}

#[test]
fn an_evicted_range_is_asked_for_once_and_served_when_it_came() {
    let mut view = view([(6, 6), (7, 6), (8, 7)]);
    view.evict(7, 0);
    for _ in 0..2 {
        assert_eq!(
            view.entries(6, 9, 100, GetEntriesContext::empty(true)),
            Err(Error::Store(StorageError::LogTemporarilyUnavailable))
        );
    }
    assert_eq!(view.take_wanted(), [Range { low: 6, high: 8, max_bytes: 100 }]);
    assert!(view.take_wanted().is_empty());
    let waiters = view.fetched(6, vec![entry(6, 6), entry(7, 5)]);
    assert_eq!(waiters.len(), 2);
    assert_eq!(read(&view, 6, 9), [(6, 6)], "an entry of another term is not ours any more");
    view.drop_fetched();
    assert!(view.entries(6, 9, None, GetEntriesContext::empty(false)).is_err());
}

#[test]
fn a_size_limit_gives_at_least_one_entry() {
    let view = view([(6, 6), (7, 6), (8, 7)]);
    let count = |max: u64| view.entries(6, 9, max, GetEntriesContext::empty(true)).expect("in memory").len();
    let size = entry(6, 6).encoded_len() as u64;
    assert_eq!([count(0), count(size), count(2 * size), count(u64::MAX)], [1, 1, 2, 3]);
}
