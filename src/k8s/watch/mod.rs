//! The API server as the source of objects: what `towpath run` watches in a cluster.
//!
//! Each [`Kind`] has its own task that lists and then watches, for as long as the process runs. What it receives
//! becomes [`Change`]s at once and is not kept: the `inventory` only remembers which objects exist, so that a new list
//! shows which have disappeared. In the order of the data:
//!
//! | from | to | in |
//! |---|---|---|
//! | a kubeconfig or a service account | a client | [`access`] |
//! | requests | objects and the version that they are of | `follow` |
//! | the text of an object | a slim value, or why it cannot be read | `received` |
//! | values | changes of the model, and refusals | `inventory`, [`kinds`] |
//! | policies | the same without rules, if they take too much memory | `memory` |
//! | errors | what an operator has to do | [`error`] |
//! | one list of each kind | a cluster, for a question | [`snapshot`](snapshot()) |
//!
//! Known objects are kept while the API server cannot be reached, however long. A list is never older than what was
//! delivered before: it is asked for as of now, not as of whenever the server's cache was last fresh.

pub mod access;
pub mod error;
mod follow;
mod inventory;
pub mod kinds;
mod memory;
mod received;
mod snapshot;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::task::JoinSet;

pub use access::{Access, AccessError};
pub use error::{Cause, WatchError};
pub use follow::SILENCE;
pub use inventory::Rejection;
pub use kinds::Kind;
pub use memory::MemoryLimits;
pub use snapshot::snapshot;

use self::follow::Follower;
use super::types;
use crate::model::Change;

/// An event of the source.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// Objects that were added, changed or removed. Those of one list come as one.
    Changes {
        /// When the first of them was received.
        received: Instant,
        /// The changes.
        changes: Vec<Change>,
    },
    /// The objects of a kind that cannot currently be enforced as they are; empty once there are none.
    Refused(Kind, Vec<Rejection>),
    /// The first lists of all kinds have been delivered.
    Synced,
    /// The API server sent something: an event, or a sign that there was none.
    Alive(Kind),
    /// A watch ended, or could not start; it is restarted.
    Ended(Kind, WatchError),
    /// A watch that ended for a non-routine reason runs again.
    Recovered(Kind),
    /// The API server has no node of this name.
    NoSuchNode(Arc<str>),
}

/// The receiver of events. It is called from several tasks, and must not block.
pub type Deliver = Arc<dyn Fn(WatchEvent) + Send + Sync>;

/// Watches of all kinds. They stop when this is dropped.
#[derive(Debug)]
pub struct ApiSource {
    _watches: JoinSet<()>,
}

impl ApiSource {
    /// Watches everything that affects the pods of `node`, within the current tokio runtime.
    ///
    /// [`WatchEvent::Synced`] waits for the object of the node itself: with a wrong node name, no pod would belong to
    /// this node, and all rules would be removed.
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

/// What the watches share.
struct Shared {
    access: Access,
    node: Arc<str>,
    limits: MemoryLimits,
    deliver: Deliver,
    /// The kinds that have not been listed yet.
    missing: Mutex<Vec<Kind>>,
}

impl Shared {
    fn send(&self, event: WatchEvent) {
        (self.deliver)(event);
    }

    /// All objects of this kind have been delivered. The last kind completes the source.
    fn listed(&self, kind: Kind) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = missing.len();
        missing.retain(|other| *other != kind);
        if missing.is_empty() && before > 0 {
            self.send(WatchEvent::Synced);
        }
    }
}
