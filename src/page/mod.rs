//! The page: who may talk to whom, in a browser, and an editor for policies.
//!
//! | from | to | in |
//! |---|---|---|
//! | a folder, a kubeconfig or the daemon | a [`Snapshot`] of the objects | [`folder`], [`cluster`], or whoever implements [`Objects`] |
//! | a cluster | workloads and who may talk to whom | [`graph`] |
//! | a text that is being written | its faults, and what it would change | [`draft`] |
//! | a request | its answer as JSON | [`api`] |
//! | what is computed for requests | one thing at a time, and kept | `work` |
//! | any request | whether it may be answered at all | [`guard`] |
//!
//! What the browser runs is built from `ui/` and embedded by [`assets`].

pub mod api;
pub mod assets;
pub mod cluster;
pub mod draft;
pub mod folder;
pub mod graph;
pub mod guard;
mod work;

use std::{collections::BTreeMap, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use serde::{Deserialize, Serialize};

use crate::model::{Cluster, Flow, ObjectKey};

/// Explains a flow: for scripts as JSON, and for people as text. The command line has the words for both.
#[derive(Clone, Copy, Debug)]
pub struct Explainer {
    /// The explanation as `towpath explain -o json` prints it.
    pub json: fn(&Cluster, &Flow) -> serde_json::Value,
    /// The explanation as `towpath explain` prints it.
    pub text: fn(&Cluster, &Flow) -> String,
}

/// Where the page's objects come from.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// `folder`, `cluster` or `node`.
    pub mode: &'static str,
    /// The folder, the address of the API server or the name of the node.
    pub title: String,
    /// Whether policies may be written.
    pub writable: bool,
    /// The program's version.
    pub program: &'static str,
}

/// All objects at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Differs whenever the objects do.
    pub version: u64,
    /// The objects.
    pub cluster: Cluster,
    /// What is wrong with single objects, as text.
    pub faults: Vec<String>,
    /// Where each policy stands: `file:line`. Empty unless they come from files.
    pub places: BTreeMap<ObjectKey, String>,
    /// Why the objects may be out of date, if they may be.
    pub stale: Option<String>,
}

/// A policy as it is stored, to be edited.
#[derive(Clone, Debug, Serialize)]
pub struct StoredPolicy {
    /// Its text, if it is stored as text.
    pub text: Option<String>,
    /// The object, if it is stored as an object.
    pub object: Option<serde_json::Value>,
    /// Identifies this version of it.
    pub revision: String,
    /// Where it is: `file:line`, or the API server.
    pub place: String,
}

/// A change that a person asks for.
#[derive(Clone, Debug, Deserialize)]
pub struct Edit {
    /// The policy that is replaced or deleted; `None` to create one.
    pub replaces: Option<String>,
    /// The version of it that was edited, from [`StoredPolicy::revision`].
    pub revision: Option<String>,
    /// The new manifest; `None` to delete.
    pub text: Option<String>,
    /// The file for a new policy, within the folder; chosen by name if it is not given.
    pub file: Option<String>,
}

/// Why a request could not be served.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// The HTTP status.
    #[serde(skip)]
    pub status: u16,
    /// What was being done, why it failed and what to do.
    pub error: String,
    /// The stored version, if somebody else changed it meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<Box<StoredPolicy>>,
}

impl Failure {
    /// A failure with this HTTP status.
    #[must_use]
    pub fn new(status: u16, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), current: None }
    }
}

/// The node of a daemon, as far as the page shows it.
#[derive(Clone, Debug, Serialize)]
pub struct NodeHealth {
    /// Its name.
    pub node: String,
    /// The daemon's pod; empty if the daemon itself answers.
    pub pod: String,
    /// Whether it enforces what it should.
    pub ready: bool,
    /// Why not, or what else is wrong.
    pub reason: String,
    /// Since when, if it is known.
    pub since: String,
}

/// The objects behind the page, and what may be done with them.
pub trait Objects: Send + Sync + 'static {
    /// What they are.
    fn about(&self) -> About;

    /// The objects now.
    fn snapshot(&self) -> BoxFuture<'_, Result<Arc<Snapshot>, Failure>>;

    /// One policy as it is stored.
    fn policy(&self, _key: ObjectKey) -> BoxFuture<'_, Result<StoredPolicy, Failure>> {
        async { Err(read_only()) }.boxed()
    }

    /// Carries out a change; returns how to edit the result further, or `None` if the policy is deleted.
    fn apply(&self, _edit: Edit) -> BoxFuture<'_, Result<Option<StoredPolicy>, Failure>> {
        async { Err(read_only()) }.boxed()
    }

    /// The health of the nodes' daemons; `None` if it is not known.
    fn nodes(&self) -> BoxFuture<'_, Result<Option<Vec<NodeHealth>>, Failure>> {
        async { Ok(None) }.boxed()
    }

    /// What was denied recently, as the daemon reports it; `None` if it is not known.
    fn drops(&self) -> BoxFuture<'_, Result<Option<serde_json::Value>, Failure>> {
        async { Ok(None) }.boxed()
    }
}

fn read_only() -> Failure {
    Failure::new(
        403,
        "this page is read-only: run towpath ui with a kubeconfig or a folder to change policies",
    )
}

/// Reads `namespace/name`.
fn key_of(text: &str) -> Result<ObjectKey, Failure> {
    text.parse().map_err(|_| Failure::new(400, format!("{text:?} is not NAMESPACE/NAME")))
}
