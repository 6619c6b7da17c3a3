//! The API server as the source of objects: what `towpath run` watches in a cluster.
//!
//! Each [`Kind`] has a task of its own that lists and then watches, for as long as the process runs. What it receives
//! becomes [`Change`]s at once and is not kept: the `inventory` only remembers which objects there are, so that a new
//! list tells which have vanished. In the order of the data:
//!
//! | from | to | in |
//! |---|---|---|
//! | a kubeconfig or a service account | a client | [`access`] |
//! | requests | objects and the version that they are of | `follow` |
//! | the text of an object | a slim value, or why it cannot be read | `received` |
//! | values | changes of the model, and refusals | `inventory`, [`kinds`] |
//! | policies | the same without rules, if they take too much memory | `memory` |
//! | errors | what an operator has to do | [`trouble`] |
//! | one list of each kind | a cluster, for a question | [`snapshot`](snapshot()) |
//!
//! Nothing that was learnt is forgotten because the API server cannot be reached, however long. A list is never older
//! than what was told before: it is asked for as of now, not as of whenever the server's cache was last fresh.

pub mod access;
mod follow;
mod inventory;
pub mod kinds;
mod memory;
mod received;
mod snapshot;
#[cfg(test)]
mod tests;
pub mod trouble;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::task::JoinSet;

pub use access::{Access, AccessError};
pub use follow::SILENCE;
pub use inventory::Refusal;
pub use kinds::Kind;
pub use memory::MemoryLimits;
pub use snapshot::snapshot;
pub use trouble::{Cause, Trouble};

use self::follow::Follower;
use super::types;
use crate::model::Change;

/// What the source tells.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// Objects that are new, other or gone. Those of one list come as one.
    Changes {
        /// When the first of them was received.
        received: Instant,
        /// The changes.
        changes: Vec<Change>,
    },
    /// The objects of a kind that cannot be enforced as they are, now; empty when all is well again.
    Refused(Kind, Vec<Refusal>),
    /// The first lists of all kinds have been told.
    Synced,
    /// The API server was heard: an event, or a sign that there was none.
    Heard(Kind),
    /// A watch ended, or could not begin; it is begun again.
    Ended(Kind, Trouble),
    /// A watch that ended for other reasons than routine runs again.
    Mended(Kind),
    /// The API server has no node of this name.
    NoSuchNode(Arc<str>),
}

/// Where events are delivered. It is called from several tasks, and must not wait.
pub type Deliver = Arc<dyn Fn(WatchEvent) + Send + Sync>;

/// Watches of all kinds. They end when this is dropped.
#[derive(Debug)]
pub struct ApiSource {
    _watches: JoinSet<()>,
}

impl ApiSource {
    /// Watches everything that decides about the pods of `node`, within the current tokio runtime.
    ///
    /// [`WatchEvent::Synced`] waits for the object of the node itself: with a name that is not the node's, no pod would
    /// be one of this node, and all rules would be taken down.
    pub fn start(access: Access, node: Arc<str>, limits: MemoryLimits, deliver: Deliver) -> Self {
        let shared =
            Arc::new(Shared { access, node, limits, deliver, missing: Mutex::new(Kind::ALL.to_vec()) });
        let mut watches = JoinSet::new();
        watches.spawn(Follower::<types::Namespace>::new(shared.clone()).run());
        watches.spawn(Follower::<types::Node>::new(shared.clone()).run());
        watches.spawn(Follower::<types::Pod>::new(shared.clone()).run());
        watches.spawn(Follower::<types::NetworkPolicy>::new(shared).run());
        Self { _watches: watches }
    }
}

/// What the watches have in common.
struct Shared {
    access: Access,
    node: Arc<str>,
    limits: MemoryLimits,
    deliver: Deliver,
    /// The kinds that have not been listed yet.
    missing: Mutex<Vec<Kind>>,
}

impl Shared {
    fn tell(&self, event: WatchEvent) {
        (self.deliver)(event);
    }

    /// All objects of this kind have been told. The last kind's word completes the source.
    fn listed(&self, kind: Kind) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = missing.len();
        missing.retain(|other| *other != kind);
        if missing.is_empty() && before > 0 {
            self.tell(WatchEvent::Synced);
        }
    }
}
