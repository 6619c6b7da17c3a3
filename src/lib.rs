//! towpath enforces Kubernetes NetworkPolicy where the network itself does not.
//!
//! ```text
//!   files ──▶ k8s ──▶ model ──▶ policy ──▶ ruleset ──▶ dataplane ──▶ kernel
//!            edge in   what is   what it    how it is    edge out     iptables,
//!                                means      enforced                  ipset, nft
//!                         └───────── agent ─────────┘
//!                      change, resolve, compile, plan, apply, retry
//! ```
//!
//! The rooms, in the order of the data. Each names only rooms above it, which `tests/architecture.rs` checks:
//!
//! - [`model`]: what is. Pods, namespaces, policies and flows as plain values.
//! - [`policy`]: what it means. Evaluates one flow with reasons; resolves selectors into programs and members.
//! - [`ruleset`]: how it is enforced. Chains, rules and sets as data; compile, plan, render, trace.
//! - [`k8s`]: the edge in. Reads manifests strictly, converts API objects, watches files.
//! - [`dataplane`]: the edge out. Observes and changes the kernel; a fake beside it that can fail on demand.
//! - [`metrics`]: every name, help text and bucket.
//! - [`agent`]: the loop that keeps the kernel as the objects want it. Knows neither Kubernetes nor HTTP.
//! - [`web`]: `/metrics`, `/livez`, `/readyz`.
//! - [`lab`]: the proving ground. Random and sized clusters, and whole networks of namespaces with real packets.
//! - [`cli`]: arguments, and the commands; `run` joins the ends.
//!
//! The first three are the core: they do no I/O, know no clock and log nothing. docs/ARCHITECTURE.md tells the life
//! of one change.

pub mod agent;
pub mod cli;
pub mod dataplane;
pub mod k8s;
pub mod lab;
pub mod metrics;
pub mod model;
pub mod policy;
pub mod ruleset;
pub mod web;
