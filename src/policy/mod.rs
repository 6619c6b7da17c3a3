//! What it means: verdicts, and the reasons for them.
//!
//! [`evaluate()`] is written straight from the standard, one flow at a time, and shares nothing with the compiler. That
//! is on purpose: tests ask both and let them disagree.

pub mod evaluate;
mod party;
pub mod reach;
pub mod verdict;

pub use evaluate::{evaluate, evaluate_families};
pub use reach::{Difference, FlowChange, Reach, Reachability, difference, known_transports};
pub use verdict::{DirectionVerdict, Reason, RuleRef, Verdict};
