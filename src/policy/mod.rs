//! What it means: the standard, said twice.
//!
//! [`resolve`] is the enforcer's way: it keeps, for one node, which policies bind its pods and which addresses they
//! mean, and cuts that into [`program`]s to compile.

pub mod cidr;
pub mod ports;
pub mod program;
pub mod resolve;
