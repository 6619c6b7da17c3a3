//! towpath enforces Kubernetes NetworkPolicy where the network itself does not.

pub mod k8s;
pub mod model;
