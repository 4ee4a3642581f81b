//! Whether a history of one key is linearizable: whether there is an order of all its calls, each at one moment between
//! its beginning and its end, in which every answer is the one that a single register would have given.
//!
//! The search is that of Wing and Gong (1993) with the memory of Lowe (2017): a set of calls that were put in order, and
//! the value after them, is tried once. Two shortcuts make it nearly linear for what a store does: a read that fits is
//! taken at once, since it changes nothing; and a write of unknown fate whose value nobody ever saw is left out, since an
//! order with it is also one without it.

use std::collections::BTreeSet;

/// What the register holds: the number of the write that it comes from, nothing while it is absent. Each write of a
/// history has a number of its own.
pub(super) type Value = Option<u64>;

/// One call and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// A read returned this.
    Read(Value),
    /// A put, or a delete.
    Write(Value),
    /// A compare-and-swap found `expected` and wrote `value`, if its fate is known; else it did so if it found it.
    Swap { expected: Value, value: Value },
}

/// A call of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// When it began; any clock that all calls share.
    pub(super) start: u64,
    /// When its answer was there; nothing if its fate is unknown: it may take effect at any later time, or never.
    pub(super) end: Option<u64>,
    pub(super) action: Action,
}

/// What a history is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Linearizable,
    /// No order explains it; the calls that the longest one could not go on with.
    Broken(Vec<Call>),
    /// The search would have taken too long.
    Undecided,
}

/// Judges the calls of one key, which began absent, with at most `steps` steps.
pub(super) fn check(calls: &[Call], steps: usize) -> Verdict {
    let mut calls: Vec<Call> =
        calls.iter().filter(|call| call.end.is_some() || is_seen(call, calls)).copied().collect();
    calls.sort_by_key(|call| (call.start, call.end));
    let left = calls.iter().filter(|call| call.end.is_some()).count();
    let words = calls.len().div_ceil(64);
    let search = Search { calls, ordered: vec![0; words], value: None, left, seen: BTreeSet::new() };
    search.run(steps)
}

/// Whether anybody may have seen what a call of unknown fate wrote.
fn is_seen(call: &Call, calls: &[Call]) -> bool {
    let wrote = match call.action {
        Action::Read(_) => return false,
        Action::Write(value) | Action::Swap { value, .. } => value,
    };
    let sees = |other: &Call| match other.action {
        Action::Read(value) => value == wrote,
        Action::Swap { expected, .. } => expected == wrote,
        Action::Write(_) => false,
    };
    calls.iter().any(sees)
}

struct Search {
    calls: Vec<Call>,
    /// A bit for each call that has its place.
    ordered: Vec<u64>,
    value: Value,
    /// Calls with an end that have no place yet.
    left: usize,
    seen: BTreeSet<(Vec<u64>, Value)>,
}

/// A call that was given the next place, and how to go back.
struct Placed {
    call: usize,
    before: Value,
    /// It fits at once and changes nothing: if it leads nowhere, no other one does.
    is_forced: bool,
}

impl Search {
    fn run(mut self, steps: usize) -> Verdict {
        let mut path: Vec<Placed> = Vec::new();
        let (mut fewest, mut stuck) = (usize::MAX, Vec::new());
        let mut from = 0;
        for _ in 0..steps {
            if self.left == 0 {
                return Verdict::Linearizable;
            }
            let ready = self.ready(from);
            match ready {
                Some((call, after, is_forced)) => {
                    self.place(call, true);
                    if self.seen.insert((self.ordered.clone(), after)) {
                        path.push(Placed { call, before: self.value, is_forced });
                        self.value = after;
                        from = 0;
                        continue;
                    }
                    self.place(call, false);
                    from = if is_forced { self.calls.len() } else { call + 1 };
                }
                None => {
                    if self.left < fewest {
                        fewest = self.left;
                        stuck = self.frontier().into_iter().map(|call| self.calls[call]).collect();
                    }
                    let Some(placed) = path.pop() else { return Verdict::Broken(stuck) };
                    self.place(placed.call, false);
                    self.value = placed.before;
                    from = if placed.is_forced { self.calls.len() } else { placed.call + 1 };
                }
            }
        }
        Verdict::Undecided
    }

    fn is_placed(&self, call: usize) -> bool {
        self.ordered[call / 64] >> (call % 64) & 1 == 1
    }

    fn place(&mut self, call: usize, is_placed: bool) {
        self.ordered[call / 64] ^= 1 << (call % 64);
        if self.calls[call].end.is_some() {
            self.left = if is_placed { self.left - 1 } else { self.left + 1 };
        }
    }

    /// The calls that may come next: none without a place ended before they began.
    fn frontier(&self) -> Vec<usize> {
        let mut first_end = u64::MAX;
        let mut found = Vec::new();
        let full = self.ordered.iter().take_while(|word| **word == u64::MAX).count();
        for call in (full * 64..self.calls.len()).filter(|call| !self.is_placed(*call)) {
            if self.calls[call].start > first_end {
                break;
            }
            first_end = first_end.min(self.calls[call].end.unwrap_or(u64::MAX));
            found.push(call);
        }
        found.retain(|call| self.calls[*call].start <= first_end);
        found
    }

    /// The first call from `from` on that may come next with its answer, the value after it, and whether it is forced.
    fn ready(&self, from: usize) -> Option<(usize, Value, bool)> {
        if from >= self.calls.len() {
            return None;
        }
        let frontier = self.frontier();
        let fits = |call: usize| match self.calls[call].action {
            Action::Read(value) => (value == self.value).then_some(value),
            Action::Write(value) => Some(value),
            Action::Swap { expected, value } => (expected == self.value).then_some(value),
        };
        if from == 0 {
            let is_read = |call: &&usize| matches!(self.calls[**call].action, Action::Read(_));
            let read = frontier.iter().filter(is_read).find(|call| fits(**call).is_some());
            if let Some(read) = read {
                return Some((*read, self.value, true));
            }
        }
        frontier.into_iter().filter(|call| *call >= from).find_map(|call| fits(call).map(|after| (call, after, false)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: usize = 100_000;

    /// A history as a text, a line a call: `start end action…`, `?` as the end of a call of unknown fate, `-` for absent.
    fn judge(script: &str) -> Verdict {
        let value = |word: &str| if word == "-" { None } else { Some(word.parse().expect("a number")) };
        let call = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let action = match words[2..] {
                ["read", found] => Action::Read(value(found)),
                ["write", wrote] => Action::Write(value(wrote)),
                ["swap", expected, wrote] => Action::Swap { expected: value(expected), value: value(wrote) },
                _ => panic!("{line}"),
            };
            let end = (words[1] != "?").then(|| words[1].parse().expect("a time"));
            Call { start: words[0].parse().expect("a time"), end, action }
        };
        let lines = script.lines().map(str::trim).filter(|line| !line.is_empty());
        check(&lines.map(call).collect::<Vec<_>>(), STEPS)
    }

    fn is_broken(script: &str) -> bool {
        matches!(judge(script), Verdict::Broken(_))
    }

    #[test]
    fn one_after_another() {
        assert_eq!(judge(""), Verdict::Linearizable);
        assert_eq!(judge("1 2 read -\n 3 4 write 7\n 5 6 read 7\n 7 8 write -\n 9 10 read -"), Verdict::Linearizable);
        assert!(is_broken("1 2 read 7"), "what nobody wrote");
        assert!(is_broken("1 2 read 7\n 3 4 write 7"), "what was not written yet");
    }

    #[test]
    fn a_stale_read() {
        assert!(is_broken("1 2 write 1\n 3 4 write 2\n 5 6 read 1"));
        assert!(
            is_broken("1 2 write 1\n 3 9 write 2\n 4 5 read 2\n 6 7 read 1"),
            "the write was seen by another reader"
        );
        assert_eq!(judge("1 2 write 1\n 3 9 write 2\n 4 5 read 1\n 6 7 read 2"), Verdict::Linearizable);
        assert_eq!(judge("1 2 write 1\n 3 9 write 2\n 4 8 read 1\n 6 7 read 2"), Verdict::Linearizable);
    }

    #[test]
    fn a_lost_write() {
        assert!(is_broken("1 2 write 1\n 3 4 read -"));
        assert!(is_broken("1 2 write 1\n 3 4 write 2\n 5 6 write -\n 7 8 read 2"));
    }

    #[test]
    fn writes_at_the_same_time_take_either_order() {
        for last in ["1", "2"] {
            assert_eq!(judge(&format!("1 5 write 1\n 2 4 write 2\n 6 7 read {last}")), Verdict::Linearizable);
        }
        assert!(is_broken("1 5 write 1\n 2 4 write 2\n 6 7 read 1\n 8 9 read 2"), "but one of them");
        assert!(is_broken("1 5 write 1\n 2 4 write 2\n 6 7 read -"));
    }

    #[test]
    fn a_write_of_unknown_fate() {
        assert_eq!(judge("1 ? write 1\n 3 4 read -\n 5 6 read 1"), Verdict::Linearizable, "late");
        assert_eq!(judge("1 ? write 1\n 3 4 read -\n 5 6 read -"), Verdict::Linearizable, "never");
        assert!(is_broken("1 ? write 1\n 3 4 read 1\n 5 6 read -"), "it does not go away again");
        assert!(is_broken("1 2 read 1\n 3 ? write 1"), "not before it began");
        assert!(is_broken("1 ? write 1\n 2 3 write 2\n 4 5 read 1\n 6 7 read 2"), "once only");
        assert_eq!(judge("1 2 write 1\n 3 ? write -\n 5 6 read 1\n 7 8 read -"), Verdict::Linearizable);
    }

    #[test]
    fn compare_and_swap() {
        assert_eq!(judge("1 2 swap - 1\n 3 4 swap 1 2\n 5 6 read 2"), Verdict::Linearizable);
        assert!(is_broken("1 4 swap - 1\n 2 5 swap - 2"), "two that found the same");
        assert!(is_broken("1 2 write 1\n 3 6 swap 1 2\n 4 7 swap 1 3"));
        assert_eq!(judge("1 2 write 1\n 3 ? swap 1 2\n 4 7 swap 1 3\n 8 9 read 3"), Verdict::Linearizable);
        assert!(
            is_broken("1 2 write 1\n 3 ? swap 1 2\n 4 7 swap 1 3\n 8 9 read 2"),
            "one in doubt found what was gone"
        );
        assert_eq!(judge("1 2 write 1\n 3 ? swap 1 2\n 4 5 read 2\n 6 7 swap 2 3"), Verdict::Linearizable);
    }

    #[test]
    fn what_is_broken_is_named() {
        let Verdict::Broken(stuck) = judge("1 2 write 1\n 3 4 write 2\n 5 6 read 1") else { panic!("it is broken") };
        assert_eq!(stuck, [Call { start: 5, end: Some(6), action: Action::Read(Some(1)) }]);
    }

    /// Against every order of the calls.
    #[test]
    fn it_agrees_with_trying_everything() {
        fn any_order(left: &[Call], value: Value) -> bool {
            if left.iter().all(|call| call.end.is_none()) {
                return true;
            }
            (0..left.len()).any(|at| {
                let mut rest = left.to_vec();
                let call = rest.remove(at);
                let after = match call.action {
                    Action::Read(found) => (found == value).then_some(value),
                    Action::Write(wrote) => Some(wrote),
                    Action::Swap { expected, value: wrote } => (expected == value).then_some(wrote),
                };
                let is_first = rest.iter().all(|other| other.end.is_none_or(|end| end >= call.start));
                is_first && after.is_some_and(|after| any_order(&rest, after))
            })
        }
        let mut prng = base::Prng::new(7);
        let (mut legal, mut broken) = (0, 0);
        for _ in 0..3000 {
            let calls: Vec<Call> = (0..prng.range(1, 7))
                .map(|number| {
                    let start = prng.below(12);
                    let mut value = || Some(prng.below(4)).filter(|value| *value > 0);
                    let (expected, found) = (value(), value());
                    let action = match prng.below(4) {
                        0 => Action::Write(Some(number + 1)),
                        1 => Action::Swap { expected, value: Some(number + 1) },
                        _ => Action::Read(found),
                    };
                    let is_known = matches!(action, Action::Read(_)) || prng.below(3) > 0;
                    Call { start, end: is_known.then(|| start + prng.range(1, 9)), action }
                })
                .collect();
            let expected = any_order(&calls, None);
            assert_eq!(check(&calls, STEPS) == Verdict::Linearizable, expected, "{calls:?}");
            if expected { legal += 1 } else { broken += 1 }
        }
        assert!(legal > 300 && broken > 300, "{legal} legal, {broken} broken");
    }

    #[test]
    fn a_search_that_would_not_end_is_given_up() {
        let write = |number| Call { start: 1, end: None, action: Action::Write(Some(number)) };
        let mut calls: Vec<Call> = (1..=20).map(write).collect();
        calls.extend((1..=20).map(|number| Call {
            start: 100 - number,
            end: Some(200),
            action: Action::Swap { expected: Some(number), value: Some(number + 100) },
        }));
        calls.push(Call { start: 300, end: Some(301), action: Action::Read(Some(999)) });
        assert_eq!(check(&calls, 1000), Verdict::Undecided);
    }
}
