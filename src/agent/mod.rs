//! The sync loop: change, resolve, compile, plan, apply, publish; retry and check.
//!
//! It runs on its own thread, receives its inputs from a channel, and knows neither where they come from nor who reads
//! its [`Status`]. It writes nothing before every source has delivered its first list.
//!
//! ```text
//! sync       one sync, and how its outcome is handled
//! attachments   pods that are attached to the network, and the gate's questions
//! deferred   large new sets: filled in pieces, between inputs
//! schedule   when to sync, retry and collect unused sets
//! drift      when to check whether the kernel still holds what was written
//! waiting    changes that are not enforced yet, and since when
//! status     the state of the loop that others can read
//! ```

mod attachments;
mod deferred;
mod drift;
mod schedule;
mod status;
mod sync;
mod waiting;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tracing::warn;

pub use attachments::{Answer, Attached, AttachmentRecord, PodRules};
use deferred::Deferred;
use drift::DriftChecker;
use schedule::Schedule;
pub use status::{GuardState, LAG_LIMIT, Readiness, Refused, Status, View};
use waiting::Waiting;

use crate::{
    dataplane::Dataplane,
    metrics::Metrics,
    model::{AttachmentId, Change, Cluster, Delta, NodePods, Pod},
    policy::{
        budget::{Budgets, OverBudget},
        members::Members,
        moves::{Batch, ChangeScope, Move},
        resolve::{LocalPod, Resolver},
    },
    ruleset::{
        Object, Ruleset,
        compile::{Compiler, Options, Tunnels},
        observed::Observed,
    },
};

/// An input of the loop.
#[derive(Debug)]
pub enum Input {
    /// Objects changed.
    Changes {
        /// When the source received them.
        received: Instant,
        /// What changed, in order. It is one state: no sync splits it.
        changes: Vec<Change>,
    },
    /// Every source has delivered its first list.
    Synced,
    /// Another program may have changed our rules or sets.
    Recheck,
    /// The tunnels that end on this node.
    Tunnels(Tunnels),
    /// A pod was attached to the network.
    Attached(Box<Attached>),
    /// Attachments are gone. Sent to once what this means is in the kernel.
    Detached(Vec<AttachmentId>, SyncSender<()>),
    /// Who has these addresses, as far as the objects say. Sent to at once; nothing else happens.
    Identify(BTreeSet<IpAddr>, SyncSender<Identified>),
    /// Somebody wants to see all objects, unless they still are those of this revision. That costs the loop a copy of
    /// the references to all of them: whoever asks must not ask often. After the given moment nobody waits for the answer
    /// any more, and there is none.
    Snapshot(u64, Instant, SyncSender<Snapshot>),
    /// Stop; what is in the kernel stays.
    Stop,
}

/// Who has some addresses.
#[derive(Clone, Debug, Default)]
pub struct Identified {
    /// The part of the cluster with their owners, without policies.
    pub owners: Cluster,
    /// The addresses of all pods of the cluster.
    pub all_pods: Members,
}

/// The answer to [`Input::Snapshot`].
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Increases with every change of an object.
    pub revision: u64,
    /// The objects; `None` if the revision is the one that is known.
    pub cluster: Option<Cluster>,
}

impl Input {
    /// Objects that changed just now.
    #[must_use]
    pub fn changes(changes: Vec<Change>) -> Self {
        Self::Changes { received: Instant::now(), changes }
    }
}

/// What the agent sends to the interface guard.
#[derive(Debug)]
pub enum GuardInput {
    /// The owners of addresses have changed.
    Owners(AddressOwners),
    /// To be given once what was sent before is in the kernel.
    Answers(Vec<Answer>),
}

/// The loop's intervals.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The next sync starts no sooner than this after the start of the last one: changes gather meanwhile.
    pub debounce: Duration,
    /// The first wait after a failure; it doubles with every further one.
    pub retry_first: Duration,
    /// The longest wait after a failure.
    pub retry_most: Duration,
    /// How often to check whether the kernel still holds what was written.
    pub check: Duration,
    /// Unused sets are destroyed this long after the sync that freed them.
    pub gc: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            debounce: Duration::from_millis(50),
            retry_first: Duration::from_millis(100),
            retry_most: Duration::from_secs(30),
            check: Duration::from_mins(1),
            gc: Duration::from_secs(1),
        }
    }
}

/// How long inputs are taken in before a sync, if they keep arriving.
const TAKING: Duration = Duration::from_millis(100);

/// The loop sends a heartbeat at least this often.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The rules that policy wants, once they are written: sent to the conntrack cleaner of the connections that they deny.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The desired rules. What the kernel refused is closed in the kernel, but no connection is cut for it.
    pub ruleset: Ruleset,
    /// Whether something may be denied that was allowed before.
    pub narrowed: bool,
}

/// What the interface guard must know: which addresses belong to the pods of this node, and which to others.
#[derive(Debug)]
pub struct AddressOwners {
    /// The pods of this node that have an address, with whether policy isolates them.
    pub pods: Arc<[LocalPod]>,
    /// The addresses of all pods of the cluster.
    pub all_pods: Members,
    /// The addresses of all nodes.
    pub nodes: Members,
    /// The blocks from which pods of this node get their addresses, as far as they are known.
    pub pod_cidrs: Arc<[IpNet]>,
    /// Sent to once the guard is in the kernel; `None` unless the agent waits for it.
    pub done: Option<SyncSender<()>>,
}

/// The loop and everything that it owns.
#[derive(Debug)]
pub struct Agent<D> {
    node: Arc<str>,
    dataplane: D,
    compiler: Compiler,
    pace: Pace,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    applied: Option<Sender<Applied>>,
    guard: Option<Sender<GuardInput>>,
    /// What was last sent to the guard.
    guarded: Option<(Arc<[LocalPod]>, Members, Members)>,
    /// The pods of this node, before they are in the cluster.
    node_pods: NodePods,
    /// Where the attachments are remembered.
    records: Option<Sender<AttachmentRecord>>,
    /// Attached pods whose rules are not written yet.
    attaching: Vec<(AttachmentId, SyncSender<PodRules>)>,
    /// Attachments that are gone, not written yet.
    detaching: Vec<SyncSender<()>>,
    cluster: Cluster,
    /// How many changes the cluster has seen.
    revision: u64,
    resolver: Resolver,
    kernel: Option<Observed>,
    broken: BTreeSet<Object>,
    /// New sets that are too large for one sync.
    deferred: Deferred,
    /// What was last found to be over its budget.
    over_budget: Arc<[OverBudget]>,
    /// The moves since the last successful sync.
    moves: Vec<Move>,
    /// Whether a sync has succeeded and all sets that it deferred are filled.
    settled: bool,
    schedule: Schedule,
    /// The inputs since the last sync.
    batch: Batch,
    /// Changes that are not enforced yet.
    waiting: Waiting,
    drift_checker: DriftChecker,
}

impl<D: Dataplane> Agent<D> {
    /// A loop for the pods of `node`. Every sync that wrote something is sent to `applied`.
    #[must_use]
    pub fn new(
        node: &str,
        dataplane: D,
        options: Options,
        pace: Pace,
        metrics: Arc<Metrics>,
        status: Arc<Status>,
        applied: Option<Sender<Applied>>,
    ) -> Self {
        let now = Instant::now();
        Self {
            node: node.into(),
            dataplane,
            compiler: Compiler::new(options),
            pace,
            metrics,
            status,
            applied,
            guard: None,
            guarded: None,
            node_pods: NodePods::new(node),
            records: None,
            attaching: Vec::new(),
            detaching: Vec::new(),
            cluster: Cluster::new(),
            revision: 0,
            resolver: Resolver::new(node),
            kernel: None,
            broken: BTreeSet::new(),
            deferred: Deferred::default(),
            over_budget: Arc::default(),
            moves: Vec::new(),
            settled: false,
            schedule: Schedule::new(pace, now),
            batch: Batch::default(),
            waiting: Waiting::default(),
            drift_checker: DriftChecker::new(now, pace),
        }
    }

    /// The same loop, which sends the owner of each address to the interface guard before it writes rules for it.
    #[must_use]
    pub fn with_guard(self, guard: Option<Sender<GuardInput>>) -> Self {
        Self { guard, ..self }
    }

    /// The same on a node with these tunnels.
    #[must_use]
    pub fn with_tunnels(mut self, tunnels: Option<Tunnels>) -> Self {
        if let Some(tunnels) = tunnels {
            self.compiler.set_tunnels(tunnels);
        }
        self
    }

    /// The same on a node whose pods have addresses of these blocks, whatever the node's object says.
    #[must_use]
    pub fn with_pod_cidrs(mut self, blocks: &[IpNet]) -> Self {
        self.resolver = self.resolver.with_pod_cidrs(blocks.into());
        self
    }

    /// The same with other budgets.
    #[must_use]
    pub fn with_budgets(mut self, budgets: Budgets) -> Self {
        self.resolver = self.resolver.with_budgets(budgets);
        self
    }

    /// Runs until it is stopped, or every sender is gone.
    pub fn run(mut self, inbox: &Receiver<Input>) {
        loop {
            self.status.beat();
            match inbox.recv_timeout(self.deadline().saturating_duration_since(Instant::now())) {
                Ok(input) => {
                    if !self.take_all(input, inbox, Instant::now() + TAKING) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.act(Instant::now());
        }
    }

    /// Takes in an input and everything else that has arrived: it goes into the same sync. But if it never ends, the
    /// sync comes first, at `until`: an endless sender must not delay the others. Returns `false` on a stop request.
    fn take_all(&mut self, first: Input, inbox: &Receiver<Input>, until: Instant) -> bool {
        self.batch.begin();
        for input in std::iter::once(first).chain(inbox.try_iter()) {
            if !self.take(input) {
                return false;
            }
            if self.schedule.is_synced() && Instant::now() >= until {
                break;
            }
        }
        true
    }

    /// When there is next something to do without an input.
    fn deadline(&self) -> Instant {
        let now = Instant::now();
        let heartbeat = now + HEARTBEAT;
        if !self.schedule.is_synced() {
            return heartbeat;
        }
        if self.can_fill() {
            return now;
        }
        heartbeat.min(self.drift_checker.next()).min(self.schedule.next().unwrap_or(heartbeat))
    }

    /// Returns `false` on a stop request.
    fn take(&mut self, input: Input) -> bool {
        match input {
            Input::Changes { received, changes } => {
                let mut translated = Vec::with_capacity(changes.len());
                for change in changes {
                    self.node_pods.translate(change, &mut translated);
                }
                self.take_changes(translated, received);
                self.status.taken(self.oldest());
            }
            Input::Attached(attached) => self.attached(*attached),
            Input::Detached(ids, written) => self.detached(&ids, written),
            Input::Synced => {
                self.status.wait_for("the first sync has not finished");
                self.schedule.lists_complete();
            }
            Input::Recheck => self.drift_checker.recheck(),
            Input::Tunnels(tunnels) => {
                self.compiler.set_tunnels(tunnels);
                self.schedule.changed();
            }
            Input::Identify(addresses, answer) => {
                let owners = self.cluster.part_at(&addresses);
                // The asker may have stopped waiting.
                let _ = answer.try_send(Identified { owners, all_pods: self.resolver.all_pods().clone() });
            }
            Input::Snapshot(known, until, reply) => {
                if Instant::now() < until {
                    let cluster = (known != self.revision).then(|| self.cluster.clone());
                    // Whoever asked may have gone.
                    let _ = reply.try_send(Snapshot { revision: self.revision, cluster });
                }
            }
            Input::Stop => return false,
        }
        true
    }

    /// Takes in changes that are one state.
    fn take_changes(&mut self, changes: Vec<Change>, received: Instant) {
        self.split(&changes);
        let (together, before) = (changes.len() > 1, self.resolver.moves());
        for change in changes {
            match change {
                Change::DropRules(namespace, excess) => {
                    for change in self.cluster.without_rules(&namespace, excess) {
                        self.change(change, received);
                    }
                }
                change => self.change(change, received),
            }
        }
        if together {
            self.resolver.join_moves(before);
        }
        self.record();
    }

    /// When the oldest change was received that was taken in and is not in the kernel yet.
    fn oldest(&self) -> Option<Instant> {
        self.waiting.oldest().into_iter().chain(self.deferred.oldest()).min()
    }

    /// Publishes since when the oldest of these changes has been pending.
    fn publish_age(&self) {
        self.status.waits_since(self.oldest());
    }

    fn change(&mut self, change: Change, received: Instant) {
        let Some(delta) = self.cluster.apply(change) else { return };
        self.revision += 1;
        self.resolver.update(&self.cluster, &delta);
        self.count(&delta);
        if let Delta::Pod { after: Some(pod), .. } = &delta {
            for address in &pod.addresses {
                let pods = self.cluster.claimants(*address);
                if pods.len() > 1 {
                    let name = |pod: &Arc<Pod>| {
                        let ending = if pod.terminating { " (terminating)" } else { "" };
                        format!("{}{ending}", pod.key)
                    };
                    let pods: Vec<String> = pods.iter().map(name).collect();
                    warn!(%address, pods = pods.join(", "), "several pods report the same address");
                }
            }
        }
        // What existed before the first sync did not change: how long a start takes is another matter.
        if self.schedule.is_synced() {
            self.waiting.add(kind_of_object(&delta), received);
        }
        self.schedule.changed();
    }

    /// Runs a sync before these changes if they and those before them differ in scope. A sync that only moves members,
    /// and one that only changes chains, neither opens nor closes anything on the way; one that does both may deny for
    /// a moment what both states allow.
    fn split(&mut self, changes: &[Change]) {
        let scope = ChangeScope::of(changes, &self.node, &self.cluster);
        if self.schedule.may_split() && self.batch.splits_before(scope) {
            self.sync(false);
        }
        self.batch.add(scope);
    }

    fn act(&mut self, now: Instant) {
        if !self.schedule.is_synced() {
            return;
        }
        self.check_drift(now);
        if let Some(due) = self.schedule.due(now) {
            if due.retry {
                self.broken.clear();
            }
            self.sync(due.gc);
        }
        self.fill();
    }

    fn count(&self, delta: &Delta) {
        let change = match delta {
            Delta::Pod { before, after, .. } => present(after.as_ref()) - present(before.as_ref()),
            Delta::Namespace { before, after } => present(after.as_ref()) - present(before.as_ref()),
            Delta::Policy { before, after } => present(after.as_ref()) - present(before.as_ref()),
            Delta::Node { before, after } => present(after.as_ref()) - present(before.as_ref()),
        };
        self.metrics.objects.with_label_values(&[kind_of_object(delta)]).add(change);
    }
}

/// The kind of the object that changed, as Kubernetes writes it.
fn kind_of_object(delta: &Delta) -> &'static str {
    match delta {
        Delta::Pod { .. } => "Pod",
        Delta::Namespace { .. } => "Namespace",
        Delta::Policy { .. } => "NetworkPolicy",
        Delta::Node { .. } => "Node",
    }
}

fn present<T>(object: Option<&T>) -> i64 {
    i64::from(object.is_some())
}
