//! Transactions and raw key-value semantics over a read view: pure, synchronous, without a clock.

mod cf;
mod modify;
pub mod raw;
pub mod txn;
mod view;

pub use cf::Cf;
pub use modify::Modify;
pub use view::{Cursor, ReadError, ReadView};
