//! towpath enforces Kubernetes NetworkPolicy where the network itself does not.

pub mod cli;
pub mod lab;
pub mod model;
