//! towpath enforces Kubernetes NetworkPolicy where the network itself does not.

pub mod cli;
pub mod k8s;
pub mod model;
pub mod policy;
