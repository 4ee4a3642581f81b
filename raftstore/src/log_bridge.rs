//! raft-rs logs through slog; this hands its records to `tracing`.

use slog::{Drain, KV, Key, Level, Never, OwnedKVList, Record, Serializer};
use std::fmt::{Arguments, Write};

/// A logger for raft-rs whose records come out as `tracing` events of target `raft`.
///
/// One level lower for what raft-rs calls information, since it says ten lines for each election of each region.
pub(crate) fn logger() -> slog::Logger {
    slog::Logger::root(Bridge, slog::o!())
}

struct Bridge;

impl Drain for Bridge {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error => {
                tracing::error!(target: "raft", "{}", text(record, values))
            }
            Level::Warning => tracing::warn!(target: "raft", "{}", text(record, values)),
            Level::Info => tracing::debug!(target: "raft", "{}", text(record, values)),
            Level::Debug | Level::Trace => {
                tracing::trace!(target: "raft", "{}", text(record, values))
            }
        }
        Ok(())
    }
}

/// Message and pairs in one line. Called only when the event is wanted.
fn text(record: &Record<'_>, values: &OwnedKVList) -> String {
    let mut line = Line(record.msg().to_string());
    // Writing into a String does not fail.
    let _ = record.kv().serialize(record, &mut line);
    let _ = values.serialize(record, &mut line);
    line.0
}

struct Line(String);

impl Serializer for Line {
    fn emit_arguments(&mut self, key: Key, value: &Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    struct Keep(Arc<Mutex<String>>);

    impl Drain for Keep {
        type Ok = ();
        type Err = Never;

        fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
            *self.0.lock().expect("one thread") = text(record, values);
            Ok(())
        }
    }

    #[test]
    fn a_record_becomes_one_line_with_its_pairs() {
        let kept = Arc::new(Mutex::new(String::new()));
        let logger = slog::Logger::root(Keep(kept.clone()), slog::o!("raft_id" => 7));
        slog::warn!(logger, "stepped down from {}", "lead"; "term" => 9);
        assert_eq!(*kept.lock().expect("one thread"), "stepped down from lead term=9 raft_id=7");
    }
}
