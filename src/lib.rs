//! towpath enforces Kubernetes NetworkPolicy where the network itself does not.

pub mod agent;
pub mod cli;
pub mod dataplane;
pub mod lab;
pub mod metrics;
pub mod model;
pub mod policy;
pub mod ruleset;
pub mod web;
