//! towpath enforces Kubernetes NetworkPolicy where the network itself does not.
//!
//! ```text
//!   API server ──▶ k8s ──▶ model ──▶ policy ──▶ ruleset ──▶ dataplane ──▶ kernel
//!   or files      input    what is   what it    how it is    output       iptables,
//!                                    means      enforced                  ipset, nft
//!                             └───────── agent ─────────┘
//!                          change, resolve, compile, plan, apply, retry
//! ```
//!
//! The modules, in the order of the data. Each uses only modules above it, which `tests/architecture.rs` checks:
//!
//! - [`model`]: the objects. Pods, namespaces, policies and flows as plain values.
//! - [`policy`]: what it means. Evaluates one flow with reasons; resolves selectors into programs and members.
//! - [`ruleset`]: how it is enforced. Chains, rules and sets as data; compile, plan, render, trace.
//! - [`k8s`]: the input. Watches the API server or files, converts their objects, writes Events.
//! - [`dataplane`]: the output. Observes and changes the kernel; has a fake that can fail on demand.
//! - [`gate`]: the gate for new pods. The socket on which the CNI plugin asks, what is remembered of its reports, and the
//!   plugin's installation on the node.
//! - [`metrics`]: every name, help text and bucket.
//! - [`agent`]: the loop that keeps the kernel in the desired state. Knows neither Kubernetes nor HTTP.
//! - [`drops`]: the drop log. What was dropped, between whom, and why.
//! - [`page`]: the page: who may talk to whom, in a browser, and an editor for policies.
//! - [`web`]: `/metrics`, `/status`, `/drops`, `/livez`, `/readyz`, the page of a daemon.
//! - [`daemon`]: starts and connects all parts.
//! - `lab` (with the feature of that name): the test lab. Random and sized clusters, and whole networks of namespaces
//!   with real packets.
//! - [`cli`]: arguments, and the commands.
//!
//! # Glossary
//!
//! Kubernetes' and netfilter's own words (policy, peer, isolated, chain, set) have their usual meaning. Others:
//!
//! - **selection** ([`policy::program::Selection`]): the pods that one list of peers selects, whatever policy it is
//!   in. Its members are one set for each family in the kernel.
//! - **program** ([`policy::program::Program`]): all that the policies of one pod allow in one direction. The rules of
//!   `web-from-api` and `web-from-monitoring` for the ingress of `web-0` are one program with two rules; what no rule
//!   allows is dropped. Pods with equal programs share one **group** chain.
//! - **closed**: isolated, with nothing allowed. A policy or namespace **over budget** is closed on this node.
//! - **deferred set** (`agent/deferred.rs`): a new set too large for one sync. It is filled in pieces, and the rules
//!   that use it are written afterwards.
//! - **handover** ([`model::Handover`]): an address that passes from one pod to another. If `10.244.1.7` belonged to
//!   `api-0` and now belongs to `job-3`, it leaves every set that `api-0` was in before it enters those of `job-3`.
//! - **move** ([`policy::moves::Move`]): the addresses that one change takes out of sets and puts into others.
//! - **observed** ([`ruleset::observed::Observed`]): our objects that the kernel holds, as opposed to the desired
//!   [`ruleset::Ruleset`]. A **plan** ([`ruleset::plan`]) is the ordered list of steps from one to the other, each
//!   prefix of which is safe.
//! - **sync**: one pass of the agent: resolve, compile, plan, apply.
//! - **binding** ([`ruleset::guard`]): which interface of the node belongs to which pod.
//!
//! # The core
//!
//! The first three modules are the core: they do no I/O, use no clock and log nothing. docs/ARCHITECTURE.md follows one
//! change through all modules.

pub mod agent;
pub mod cli;
pub mod daemon;
pub mod dataplane;
pub mod drops;
pub mod gate;
pub mod k8s;
#[cfg(feature = "lab")]
pub mod lab;
pub mod metrics;
pub mod model;
pub mod page;
pub mod policy;
pub mod ruleset;
pub mod web;
