//! The drop log: which packets were dropped, between whom, and why.
//!
//! The kernel copies the first bytes of dropped packets to this process, some of each sender. Here they become records:
//!
//! ```text
//! copy ──▶ Collector ──▶ explain ──▶ Record ──▶ DropLog ──▶ log lines, /drops, towpath drops
//!          same flow:    who, which             the last ones,
//!          counted       policies, why          followed by readers
//! ```
//!
//! Everything on the way is bounded, and shared fairly: who sends packets that are dropped is often the attacker, and
//! must not be able to hide what happens to others. What was not told is counted.

pub mod collector;
pub mod explain;
pub mod log;
pub mod record;
pub mod tally;

pub use collector::{Collector, Dropped, Packet};
pub use log::{DropLog, Filter, Page};
pub use record::{End, Record};
