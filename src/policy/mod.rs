//! The meaning of policies: the standard, implemented twice.
//!
//! [`evaluate()`] follows the standard directly, one flow at a time, and gives reasons. [`resolve`] is for
//! enforcement: it tracks, for one node, which policies select its pods and which addresses they match, and turns
//! them into [`program`]s to compile. The two share nothing but the model. That is on purpose: tests compare their
//! results.

pub mod budget;
pub mod cause;
pub mod cidr;
pub mod classes;
mod counts;
pub mod difference;
pub mod evaluate;
pub mod findings;
pub mod fix;
pub mod groups;
pub mod members;
pub mod moves;
pub mod near_miss;
pub mod outside;
mod partition;
pub mod port_classes;
pub mod ports;
pub mod program;
pub mod reach;
pub mod resolve;
mod resolved_endpoint;
mod tenant;
pub mod verdict;

pub use crate::model::digest;

pub use evaluate::{evaluate, evaluate_families};
pub use near_miss::{NearMiss, near_miss};
pub use reach::{Reach, Reachability, known_transports};
pub use verdict::{DirectionVerdict, Reason, RuleRef, Verdict};
