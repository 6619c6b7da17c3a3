//! towpath enforces Kubernetes NetworkPolicy where the network itself does not.
//!
//! ```text
//!   files ──▶ k8s ──▶ model ──▶ policy ──▶ ruleset ──▶ dataplane ──▶ kernel
//!            input     what is   what it    how it is    output       iptables,
//!                                means      enforced                  ipset, nft
//!                         └───────── agent ─────────┘
//!                      change, resolve, compile, plan, apply, retry
//! ```
//!
//! The modules, in the order of the data. Each uses only modules above it, which `tests/architecture.rs` checks:
//!
//! - [`model`]: the objects. Pods, namespaces, policies and flows as plain values.
//! - [`policy`]: what it means. Evaluates one flow with reasons; resolves selectors into programs and members.
//! - [`ruleset`]: how it is enforced. Chains, rules and sets as data; compile, plan, render, trace.
//! - [`k8s`]: the input. Reads manifests strictly, converts API objects, watches files.
//! - [`dataplane`]: the output. Observes and changes the kernel; has a fake that can fail on demand.
//! - [`metrics`]: every name, help text and bucket.
//! - [`agent`]: the loop that keeps the kernel in the desired state. Knows neither Kubernetes nor HTTP.
//! - [`web`]: `/metrics`, `/status`, `/livez`, `/readyz`.
//! - [`lab`]: the test lab. Random and sized clusters, and whole networks of namespaces with real packets.
//! - [`cli`]: arguments, and the commands; `run` connects all parts.
//!
//! The first three are the core: they do no I/O, use no clock and log nothing. docs/ARCHITECTURE.md follows one change
//! through all modules.

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
