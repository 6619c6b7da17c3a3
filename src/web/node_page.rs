//! The objects of a daemon, for its page: as its loop knows them, read now and then.

use std::{
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::Mutex;

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
        // Held while the loop is asked, so that it is asked once.
        let mut known = self.known.lock().await;
        let now = Instant::now();
        if let Some(known) = known.as_mut().filter(|known| known.asked.elapsed() < EVERY) {
            known.seen = now;
            return Ok(known.snapshot.clone());
        }
        let revision = known.as_ref().map_or(0, |known| known.snapshot.version);
        let (reply, answer) = mpsc::sync_channel(1);
        let sent = self.inputs.send(Input::Snapshot(revision, reply));
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
        self.forget_later();
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
        let known = self.known.clone();
        tokio::spawn(async move {
            tokio::time::sleep(IDLE).await;
            let mut known = known.lock().await;
            if known.as_ref().is_some_and(|known| known.seen.elapsed() >= IDLE) {
                *known = None;
            }
        });
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
