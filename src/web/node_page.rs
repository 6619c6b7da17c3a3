//! The objects of a daemon, for its page: as its loop knows them, read now and then.

use std::{
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{Report, Web};
use crate::{
    agent::Input,
    drops::Filter,
    page::{About, Failure, NodeHealth, Objects, Snapshot},
};

/// The loop is asked no more often than this, however many pages are open.
const EVERY: Duration = Duration::from_secs(5);

/// How long the loop may take to answer: it may be in a sync.
const PATIENCE: Duration = Duration::from_secs(5);

/// Objects that nobody has looked at for this long are not kept.
const IDLE: Duration = Duration::from_mins(1);

/// What the daemon of this node knows. Only to look at: a daemon has no right to change policies.
#[derive(Clone, Debug)]
pub struct NodeObjects {
    web: Web,
    inputs: Sender<Input>,
    known: Arc<Mutex<Option<Known>>>,
}

/// The objects as the loop last sent them.
#[derive(Debug)]
struct Known {
    snapshot: Arc<Snapshot>,
    asked: Instant,
    seen: Instant,
}

impl NodeObjects {
    /// The objects of the loop that receives these inputs.
    #[must_use]
    pub fn new(web: Web, inputs: Sender<Input>) -> Self {
        Self { web, inputs, known: Arc::default() }
    }

    async fn read(&self) -> Result<Arc<Snapshot>, Failure> {
        let mut known = self.known.clone().lock_owned().await;
        if let Some(known) = known.as_mut().filter(|known| known.asked.elapsed() < EVERY) {
            known.seen = Instant::now();
            return Ok(known.snapshot.clone());
        }
        // In a task of its own: if the client goes away, the answer is for the next one, and the loop is not asked again.
        let this = self.clone();
        let asking = tokio::spawn(async move { this.ask(known).await });
        asking
            .await
            .unwrap_or_else(|_| Err(Failure::new(500, "reading the objects failed: please report it")))
    }

    /// Asks the loop, with the lock held, so that it is asked once.
    async fn ask(&self, mut known: OwnedMutexGuard<Option<Known>>) -> Result<Arc<Snapshot>, Failure> {
        let (now, is_first) = (Instant::now(), known.is_none());
        let revision = known.as_ref().map_or(0, |known| known.snapshot.version);
        let (reply, answer) = mpsc::sync_channel(1);
        let sent = self.inputs.send(Input::Snapshot(revision, now + PATIENCE, reply));
        let answer = tokio::task::spawn_blocking(move || answer.recv_timeout(PATIENCE).ok()).await;
        let answer = answer.ok().flatten().filter(|_| sent.is_ok());
        let snapshot = match (answer, known.take()) {
            (Some(answer), before) => match (answer.cluster, before) {
                (Some(cluster), _) => Arc::new(self.snapshot_of(answer.revision, cluster)),
                (None, Some(before)) if before.snapshot.stale.is_none() => before.snapshot,
                (None, Some(before)) => Arc::new(Snapshot { stale: None, ..(*before.snapshot).clone() }),
                (None, None) => return Err(Failure::new(503, "this daemon has no objects yet")),
            },
            (None, Some(before)) => {
                let stale = Some("the sync loop is busy".to_owned());
                Arc::new(Snapshot { stale, ..(*before.snapshot).clone() })
            }
            (None, None) => return Err(Failure::new(503, "the sync loop is busy: try again")),
        };
        *known = Some(Known { snapshot: snapshot.clone(), asked: now, seen: now });
        if is_first {
            self.forget_later();
        }
        Ok(snapshot)
    }

    fn snapshot_of(&self, version: u64, cluster: crate::model::Cluster) -> Snapshot {
        let view = self.web.status.view();
        let refused = view.refused.iter().flat_map(|refused| refused.iter());
        let faults = refused.map(|refused| refused.reason.clone()).collect();
        Snapshot { version, cluster, faults, ..Snapshot::default() }
    }

    /// Drops the objects once nobody looks at them any more.
    fn forget_later(&self) {
        tokio::spawn(forget(self.known.clone(), IDLE));
    }

    fn health(&self) -> NodeHealth {
        let report = Report::of(&self.web);
        NodeHealth {
            node: report.node,
            pod: String::new(),
            ready: report.ready,
            reason: report.reasons.join("; "),
            since: report.since,
        }
    }
}

/// Waits until nobody has looked at the objects for this long, and drops them.
async fn forget(known: Arc<Mutex<Option<Known>>>, idle: Duration) {
    let mut wait = idle;
    loop {
        tokio::time::sleep(wait).await;
        let mut known = known.lock().await;
        wait = idle.saturating_sub(known.as_ref().map_or(idle, |known| known.seen.elapsed()));
        if wait.is_zero() {
            *known = None;
            return;
        }
    }
}

impl Objects for NodeObjects {
    fn about(&self) -> About {
        About {
            mode: "node",
            title: format!("node {}", self.web.about.node),
            writable: false,
            program: env!("CARGO_PKG_VERSION"),
        }
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Arc<Snapshot>, Failure>> {
        self.read().boxed()
    }

    fn nodes(&self) -> BoxFuture<'_, Result<Option<Vec<NodeHealth>>, Failure>> {
        let health = self.health();
        async move { Ok(Some(vec![health])) }.boxed()
    }

    fn drops(&self) -> BoxFuture<'_, Result<Option<serde_json::Value>, Failure>> {
        let page = self.web.drops.page(&self.web.about.node, &Filter::default());
        let drops = serde_json::to_value(page).map_err(|error| Failure::new(500, error.to_string()));
        async move { drops.map(Some) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn objects_are_dropped_after_the_last_look_and_not_after_the_first() {
        let now = Instant::now();
        let looked_at = Known { snapshot: Arc::default(), asked: now, seen: now };
        let known = Arc::new(Mutex::new(Some(looked_at)));
        let idle = Duration::from_millis(400);
        let forgetting = tokio::spawn(forget(known.clone(), idle));
        tokio::time::sleep(idle / 2).await;
        if let Some(known) = known.lock().await.as_mut() {
            known.seen = Instant::now();
        }
        forgetting.await.unwrap();
        assert!(now.elapsed() >= idle + idle / 2, "{:?}", now.elapsed());
        assert!(known.lock().await.is_none());
    }
}
