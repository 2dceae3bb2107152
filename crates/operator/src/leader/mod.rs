//! Who may write: one process at a time, and only while it holds the lease.

pub mod clock;
pub mod fence;
pub mod lead;
pub mod lease;
