//! Transactions and raw key-value semantics over a read view: pure, synchronous, without a clock.

mod cf;
mod modify;
pub mod raw;
mod view;

pub use cf::Cf;
pub use modify::Modify;
pub use view::{Cursor, ReadError, ReadView};
