//! Packets and a real API server: `towpath run` on the nodes of a cluster whose control plane is etcd and
//! kube-apiserver, with TLS, RBAC and the manifests of deploy/. Needs root, and the programs that
//! `scripts/control-plane` builds.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails shall fail")]
#![expect(clippy::expect_used, reason = "as above")]
#![expect(clippy::panic, reason = "as above")]

#[path = "../support/browser.rs"]
mod browser;
#[path = "../support/churn_flows.rs"]
mod churn_flows;
mod clock;
#[path = "../support/cni.rs"]
mod cni;
mod events;
mod gate;
mod harness;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/isolated.rs"]
mod isolated;
#[path = "../support/json_objects.rs"]
mod json_objects;
mod kill;
#[path = "../support/log.rs"]
mod log;
mod manifests;
#[path = "../support/metrics.rs"]
mod metrics;
#[path = "../support/our_sets.rs"]
mod our_sets;
mod outages;
mod packets;
mod page;
#[path = "../support/reach.rs"]
mod reach;
#[path = "../support/ready.rs"]
mod ready;
#[path = "../support/repository.rs"]
mod repository;
mod rights;
#[path = "../support/root.rs"]
mod root;
mod scale;
mod stored;
mod tenants;
mod tokens;
#[path = "../support/traffic.rs"]
mod traffic;
#[path = "../support/wait.rs"]
mod wait;
