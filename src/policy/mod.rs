//! What it means: the standard, said twice.
//!
//! [`evaluate()`] is written straight from the standard, one flow at a time, and gives reasons. [`resolve`] is the
//! enforcer's way: it keeps, for one node, which policies bind its pods and which addresses they mean, and makes
//! [`program`]s of them to compile. The two share nothing but the model. That is on purpose: tests ask both and let
//! them disagree.

pub mod budget;
pub mod cidr;
mod counts;
pub mod evaluate;
pub mod members;
mod party;
pub mod ports;
pub mod program;
pub mod reach;
pub mod resolve;
mod tenant;
pub mod verdict;

pub use crate::model::digest;

pub use evaluate::{evaluate, evaluate_families};
pub use reach::{Difference, FlowChange, Reach, Reachability, difference, known_transports};
pub use verdict::{DirectionVerdict, Reason, RuleRef, Verdict};
