//! towpath enforces Kubernetes NetworkPolicy where the network itself does not.

pub mod dataplane;
pub mod lab;
pub mod model;
pub mod policy;
pub mod ruleset;
