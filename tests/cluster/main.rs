//! Packets and a real API server: `towpath run` on the nodes of a cluster whose control plane is etcd and
//! kube-apiserver, with TLS, RBAC and the manifests of deploy/. Needs root, and the programs that
//! `scripts/control-plane` builds.

#![expect(clippy::unwrap_used, reason = "where the ground cannot be laid, the test shall fail")]
#![expect(clippy::expect_used, reason = "as above")]
#![expect(clippy::panic, reason = "as above")]

mod clock;
mod events;
mod harness;
mod kill;
mod manifests;
mod outages;
mod packets;
mod rights;
mod scale;
mod stored;
mod tenants;
mod tokens;
