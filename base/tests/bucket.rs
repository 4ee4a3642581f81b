//! The token bucket: `scripts/*.txt`, each a sentence about it, and its bound over random takers.
//!
//! `bucket RATE BURST` makes one, `take MILLISECONDS BYTES` prints the wait.

use std::fmt::Write;

use base::{Instant, Prng, TokenBucket};

struct World(TokenBucket);

impl Default for World {
    fn default() -> World {
        World(TokenBucket::unbounded())
    }
}

impl script_runner::World for World {
    fn command(&mut self, line: &str, out: &mut String) {
        let number = |word: &str| word.parse::<u64>().expect("a number");
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["bucket", rate, burst] => self.0 = TokenBucket::new(number(rate), number(burst)),
            ["take", millis, bytes] => {
                let wait = self.0.take(Instant(number(millis) * 1_000_000), number(bytes));
                let _ = writeln!(out, "{wait:?}");
            }
            _ => panic!("no such command: {line}"),
        }
    }
}

#[test]
fn scripts() {
    script_runner::run_folder::<World>(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts"), 6);
}

/// Random takers wait as long as a naive bucket of tokens says, which may go into debt; and in no time does more come true
/// than the rate, and the burst or one take, allow.
#[test]
fn takers_wait_as_a_naive_bucket_says_and_no_window_has_more_than_its_share() {
    for seed in 0..200 {
        let mut prng = Prng::new(seed);
        let (rate, burst) = (prng.range(1, 2000), prng.below(5000));
        let bucket = TokenBucket::new(rate, burst);
        let mut now = prng.below(1 << 40);
        // In billionths of a byte.
        let full = i128::from(burst) * 1_000_000_000;
        let mut tokens = full;
        let mut takes: Vec<(u64, u64)> = Vec::new();
        for _ in 0..200 {
            let pause = prng.below(3_000_000_000);
            now += pause;
            let bytes = prng.below(3000);
            let wait = bucket.take(Instant(now), bytes).as_nanos() as u64;
            tokens = (tokens + i128::from(pause) * i128::from(rate)).min(full) - i128::from(bytes) * 1_000_000_000;
            let expected = (-tokens).max(0) / i128::from(rate);
            // A nanosecond of rounding for each take.
            assert!((i128::from(wait) - expected).abs() <= 201, "seed {seed}: {wait} instead of {expected}");
            takes.push((now + wait, bytes));
        }
        assert!(takes.windows(2).all(|pair| pair[0].0 <= pair[1].0), "seed {seed}: a later taker came true first");
        let most = takes.iter().map(|take| take.1).max().unwrap_or(0).max(burst);
        for first in 0..takes.len() {
            let mut sum = 0;
            for &(at, bytes) in &takes[first..] {
                sum += bytes;
                let share = (at - takes[first].0) * rate / 1_000_000_000;
                assert!(sum <= share + most + 1, "seed {seed}: {sum} bytes, {share} allowed");
            }
        }
    }
}
