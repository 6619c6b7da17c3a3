//! The base of the cluster tests and the cluster bench: a real control plane, and nodes that it knows.
//!
//! ```text
//!   etcd  kube-apiserver         each box a network namespace; nothing in the machine's own
//!       control plane ---- cable ---- node 1 of a lab: pods, `towpath run`
//!                    \---- cable ---- node 2
//! ```
//!
//! A [`ControlPlane`] is started once for each thread that runs tests, and reused: [`control_plane::lease`] returns one
//! without objects of a previous test. A [`World`] is a lab whose nodes and pods are objects there. There is no
//! kubelet, scheduler or controller: what those would write, [`objects`] and [`Api`] write.

pub(crate) mod api;
pub(crate) mod control_plane;
pub(crate) mod objects;
mod pki;
pub(crate) mod process;
mod world;

pub(crate) use api::Api;
pub(crate) use control_plane::{ControlPlane, Lease};
pub(crate) use world::{Daemon, READY, SOON, World, with_control_plane};
