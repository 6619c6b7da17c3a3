//! What the cluster tests and the cluster bench stand on: a real control plane, and nodes that it knows.
//!
//! ```text
//!   etcd  kube-apiserver         each box a network namespace; nothing in the machine's own
//!       control plane ---- cable ---- node 1 of a lab: pods, `towpath run`
//!                    \---- cable ---- node 2
//! ```
//!
//! A [`ControlPlane`] is started once for each thread that runs tests, and handed on: [`control_plane::lease`] gives one without
//! anything of a former test in it. A [`World`] is a lab whose nodes and pods are objects there. There is neither a
//! kubelet, nor a scheduler, nor a controller: what those would write, [`objects`] and [`Api`] write.

mod api;
pub(crate) mod control_plane;
pub(crate) mod objects;
mod pki;
mod process;
mod world;

pub(crate) use api::Api;
pub(crate) use control_plane::{ControlPlane, Lease};
pub(crate) use world::{Daemon, READY, SOON, TIMEOUT, World, apart, wait_until};
