//! The clock that leases go by.

use base::Instant;

/// Time that also passes while the machine sleeps: a leader that wakes up must not take its lease for a fresh one.
pub(crate) fn lease_now() -> Instant {
    executor::clocks().boottime
}
