//! The commands of `tikvpb.Tikv` as functions: what they read comes from a view, what they write is a
//! [`Plan`](super::Plan). Whoever runs one holds the latches of its keys from before the view is taken until the plan is
//! applied, so that nothing comes in between.

mod check_secondary_locks;
mod check_txn_status;
mod commit;
mod delete_range;
mod heart_beat;
mod mvcc_info;
mod pessimistic_lock;
mod pessimistic_rollback;
mod prewrite;
mod resolve_lock;
mod rollback;

pub use check_secondary_locks::check_secondary_locks;
pub use check_txn_status::{check_txn_status, check_txn_status_reads_at};
pub use commit::commit;
pub use delete_range::delete_range;
pub use heart_beat::heart_beat;
pub use mvcc_info::{StartTsSearch, mvcc_by_key};
pub use pessimistic_lock::{pessimistic_lock, pessimistic_lock_reads_at};
pub use pessimistic_rollback::pessimistic_rollback;
pub use prewrite::{Prewritten, prewrite, prewrite_reads_at};
pub use resolve_lock::{Decisions, decisions, resolve_found, resolve_keys};
pub use rollback::{batch_rollback, cleanup};
