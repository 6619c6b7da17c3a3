//! towpath enforces Kubernetes NetworkPolicy where the network itself does not.

pub mod cli;
pub mod model;
pub mod policy;
