//! The API server as the source of objects: what `towpath run` watches in a cluster.
//!
//! Each [`Kind`] has its own task that lists and then watches, for as long as the process runs. What it receives
//! becomes [`Change`]s at once and is not kept: the `inventory` only remembers which objects exist, so that a new list
//! shows which have disappeared. In the order of the data:
//!
//! | from | to | in |
//! |---|---|---|
//! | a kubeconfig or a service account | a client | [`access`], `exec_plugin` |
//! | requests | objects and the version that they are of | `follow` |
//! | the text of an object | a slim value, or why it cannot be read | `received` |
//! | values | changes of the model, and refusals | `inventory`, [`kinds`] |
//! | policies | the same without rules, if they take too much memory | `memory` |
//! | errors | what an operator has to do | [`error`] |
//! | one list of each kind | a cluster, for a question | [`snapshot`](snapshot()) |
//! | the Services | what they lead to, for a question | [`services`](services()) |
//!
//! Known objects are kept while the API server cannot be reached, however long. A list is never older than what was
//! delivered before: it is asked for as of now, not as of whenever the server's cache was last fresh.

pub mod access;
pub mod error;
mod exec_plugin;
mod follow;
#[cfg(feature = "lab")]
pub mod fuzzing;
mod inventory;
pub mod kinds;
mod memory;
mod received;
mod services;
mod snapshot;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::task::JoinSet;

pub use access::{Access, AccessError, Connection};
pub use error::{Cause, WatchError};
pub use follow::SILENCE;
pub use inventory::Rejection;
pub use kinds::Kind;
pub use memory::MemoryLimits;
pub use services::services;
pub use snapshot::{pod, snapshot};

use self::follow::Follower;
use super::types;
use crate::model::Change;

/// What receives the changes, and how the watches fare. It is called from several tasks, and must not block.
pub trait Sink: Send + Sync {
    /// Objects were added, changed or removed; those of one list come as one. The first of them was received at
    /// `received`.
    fn changes(&self, received: Instant, changes: Vec<Change>);

    /// The objects of a kind that cannot currently be enforced as they are; empty once there are none.
    fn rejected(&self, kind: Kind, rejections: Vec<Rejection>);

    /// The first lists of all kinds have been delivered.
    fn synced(&self);

    /// The API server sent something: an event, or a sign that there was none.
    fn alive(&self, kind: Kind);

    /// A watch ended, or could not start; it is restarted.
    fn ended(&self, kind: Kind, error: WatchError);

    /// A watch that ended for a non-routine reason runs again.
    fn recovered(&self, kind: Kind);

    /// The API server has no node of this name.
    fn no_such_node(&self, node: &str);
}

/// Watches of all kinds. They stop when this is dropped.
#[derive(Debug)]
pub struct ApiSource {
    _watches: JoinSet<()>,
}

impl ApiSource {
    /// Watches everything that affects the pods of `node`, within the current tokio runtime.
    ///
    /// [`Sink::synced`] waits for the object of the node itself: with a wrong node name, no pod would belong to
    /// this node, and all rules would be removed.
    pub fn start(access: Access, node: Arc<str>, limits: MemoryLimits, sink: Arc<dyn Sink>) -> Self {
        let shared = Arc::new(Shared { access, node, limits, sink, missing: Mutex::new(Kind::ALL.to_vec()) });
        let mut watches = JoinSet::new();
        watches.spawn(Follower::<types::Namespace>::new(shared.clone()).run());
        watches.spawn(Follower::<types::Node>::new(shared.clone()).run());
        watches.spawn(Follower::<types::Pod>::new(shared.clone()).run());
        watches.spawn(Follower::<types::NetworkPolicy>::new(shared).run());
        Self { _watches: watches }
    }

    /// Watches every namespace, pod and policy, and no node, within the current tokio runtime: what a person asks about.
    pub fn of_cluster(access: Access, limits: MemoryLimits, sink: Arc<dyn Sink>) -> Self {
        let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Node);
        let missing = Mutex::new(kinds.collect());
        let shared = Arc::new(Shared { access, node: "".into(), limits, sink, missing });
        let mut watches = JoinSet::new();
        watches.spawn(Follower::<types::Namespace>::new(shared.clone()).run());
        watches.spawn(Follower::<types::Pod>::new(shared.clone()).run());
        watches.spawn(Follower::<types::NetworkPolicy>::new(shared).run());
        Self { _watches: watches }
    }
}

/// What the watches share.
struct Shared {
    access: Access,
    node: Arc<str>,
    limits: MemoryLimits,
    sink: Arc<dyn Sink>,
    /// The kinds that have not been listed yet.
    missing: Mutex<Vec<Kind>>,
}

impl Shared {
    /// All objects of this kind have been delivered. The last kind completes the source.
    fn listed(&self, kind: Kind) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = missing.len();
        missing.retain(|other| *other != kind);
        if missing.is_empty() && before > 0 {
            self.sink.synced();
        }
    }
}
