//! Runs `scripts/*.txt`: each is one behaviour of transactions, named as a sentence.
//!
//! Timestamps are plain numbers, `50ms` for those of a millisecond, `max`. A mutation is `put:key:value`, `insert:key:value`,
//! `del:key`, `lock:key` or `check:key`, with `:exist` or `:not_exist` behind it as a claim. `v*300` is 300 times `v`.

mod raw_support;
mod txn_support;

#[path = "txn_support/script.rs"]
mod script;
#[path = "txn_support/show.rs"]
mod show;

#[test]
fn scripts() {
    script_runner::run_folder::<script::World>(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts"), 120);
}
