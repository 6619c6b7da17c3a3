//! The loop: change, dirty, resolve, compile, plan, apply, publish, retry.
//!
//! It runs on a thread of its own, gets its inputs from a channel, and knows neither where they come from nor who
//! looks at its [`Status`]. It writes nothing before every source has delivered its first list.

mod drift;
mod status;
mod waiting;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant, SystemTime},
};

use tracing::{debug, error, info, warn};

use drift::Lookout;
pub use status::{Readiness, Refused, Status, View};
use waiting::Waiting;

use crate::{
    dataplane::{ApplyError, Dataplane, DataplaneError, Reason},
    metrics::Metrics,
    model::{Change, Cluster, Delta, Direction, Family, ObjectKey, Pod},
    policy::{
        members::Move,
        resolve::{Resolved, Resolver},
    },
    ruleset::{
        Object, Ruleset,
        compile::{Compiler, Options},
        names,
        observed::Observed,
        plan::{SetEdit, Step, plan},
    },
};

/// What the loop is told.
#[derive(Debug)]
pub enum Input {
    /// Objects changed.
    Changes {
        /// When the source heard of it.
        received: Instant,
        /// What changed, in its order. It is one state: no round parts it.
        changes: Vec<Change>,
    },
    /// Every source has delivered its first list.
    Synced,
    /// Somebody else may have changed what is ours.
    Suspicion,
    /// End; what is in the kernel stays.
    Stop,
}

impl Input {
    /// Objects that changed just now.
    #[must_use]
    pub fn changes(changes: Vec<Change>) -> Self {
        Self::Changes { received: Instant::now(), changes }
    }
}

/// The loop's own times.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// After a round, the next one waits until so long after its start: changes gather meanwhile.
    pub debounce: Duration,
    /// The first wait after a failure; it doubles with every further one.
    pub retry_first: Duration,
    /// The longest wait after a failure.
    pub retry_most: Duration,
    /// How often to look whether the kernel still holds what was written.
    pub check: Duration,
    /// Sets that went out of use are destroyed so long after the round that freed them.
    pub tidy: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            debounce: Duration::from_millis(50),
            retry_first: Duration::from_millis(100),
            retry_most: Duration::from_secs(30),
            check: Duration::from_mins(1),
            tidy: Duration::from_secs(1),
        }
    }
}

/// The loop shows itself at least so often.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What policy wants of the kernel, once it is written: told to whoever cuts connections that it denies.
#[derive(Debug, Clone)]
pub struct Applied {
    /// What the kernel ought to hold. What single objects it refused is closed there, but no connection is cut for it.
    pub ruleset: Ruleset,
    /// Whether something may be denied that was allowed before.
    pub narrowed: bool,
}

/// The loop and all that it owns.
#[derive(Debug)]
pub struct Agent<D> {
    node: Arc<str>,
    dataplane: D,
    compiler: Compiler,
    pace: Pace,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    applied: Option<Sender<Applied>>,
    cluster: Cluster,
    resolver: Resolver,
    kernel: Option<Observed>,
    broken: BTreeSet<Object>,
    moves: Vec<Move>,
    synced: bool,
    /// Whether a round has succeeded.
    settled: bool,
    /// Whether something changed since the last round.
    dirty: bool,
    /// Of which kind all changes since the last round are.
    kind: Option<Kind>,
    /// How many more rounds changes of another kind may bring about before the batch is through.
    splits_left: usize,
    /// Changes that are not enforced yet.
    waiting: Waiting,
    not_before: Instant,
    /// When to try again what failed.
    retry_at: Option<Instant>,
    lookout: Lookout,
    tidy_at: Option<Instant>,
    failures: u32,
}

/// What a change can change in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Only members of sets.
    Members,
    /// Chains as well.
    Chains,
}

/// At most so many rounds are put in because changes of both kinds arrived together.
const SPLITS: usize = 4;

/// Why a round ended early.
enum Stopped {
    Refused,
    Failed(DataplaneError),
}

impl<D: Dataplane> Agent<D> {
    /// A loop for the pods of `node`. Whoever listens on `applied` hears of every round that wrote.
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
            cluster: Cluster::new(),
            resolver: Resolver::new(node),
            kernel: None,
            broken: BTreeSet::new(),
            moves: Vec::new(),
            synced: false,
            settled: false,
            dirty: false,
            kind: None,
            splits_left: 0,
            waiting: Waiting::default(),
            not_before: now,
            retry_at: None,
            lookout: Lookout::new(now, pace),
            tidy_at: None,
            failures: 0,
        }
    }

    /// Runs until it is told to stop, or nobody is left who could tell it anything.
    pub fn run(mut self, inbox: &Receiver<Input>) {
        loop {
            self.status.beat();
            match inbox.recv_timeout(self.deadline().saturating_duration_since(Instant::now())) {
                Ok(input) => {
                    self.splits_left = SPLITS;
                    // Whatever else has arrived goes into the same round.
                    for input in std::iter::once(input).chain(inbox.try_iter()) {
                        if !self.take(input) {
                            return;
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.act(Instant::now());
        }
    }

    /// When there is next something to do without being told.
    fn deadline(&self) -> Instant {
        let heartbeat = Instant::now() + HEARTBEAT;
        if !self.synced {
            return heartbeat;
        }
        let round = self.dirty.then_some(self.not_before);
        [round, self.retry_at, self.tidy_at, Some(self.lookout.next())]
            .into_iter()
            .flatten()
            .fold(heartbeat, Instant::min)
    }

    /// `false` if it is told to stop.
    fn take(&mut self, input: Input) -> bool {
        match input {
            Input::Changes { received, changes } => {
                self.split(&changes);
                let (together, before) = (changes.len() > 1, self.resolver.moves());
                for change in changes {
                    self.change(change, received);
                }
                if together {
                    self.resolver.join_moves(before);
                }
            }
            Input::Synced => {
                self.synced = true;
                self.dirty = true;
            }
            Input::Suspicion => self.lookout.suspect(),
            Input::Stop => return false,
        }
        true
    }

    fn change(&mut self, change: Change, received: Instant) {
        let Some(delta) = self.cluster.apply(change) else { return };
        self.resolver.update(&self.cluster, &delta);
        self.count(&delta);
        if let Delta::Pod { after: Some(pod), .. } = &delta {
            for address in &pod.addresses {
                if let [owner, others @ ..] = &*self.cluster.claimants(*address)
                    && !others.is_empty()
                {
                    let others: Vec<String> = others.iter().map(|pod| pod.key.to_string()).collect();
                    warn!(%address, owner = %owner.key, others = others.join(", "), "several pods report one address");
                }
            }
        }
        // What was there before the first round did not change: how long a start takes is another matter.
        if self.synced {
            self.waiting.add(kind_of_object(&delta), received);
        }
        self.dirty = true;
    }

    /// Puts in a round between inputs of different kinds. A round that only moves members, and one that only changes
    /// chains, neither opens nor closes anything on the way; one that does both may refuse for a moment what both
    /// states allow. What came as one input is one state, and is never parted.
    fn split(&mut self, changes: &[Change]) {
        let chains = changes.iter().any(|change| self.kind_of(change) == Kind::Chains);
        let kind = if chains { Kind::Chains } else { Kind::Members };
        if self.synced
            && self.dirty
            && self.splits_left > 0
            && self.retry_at.is_none()
            && self.kind.is_some_and(|before| before != kind)
        {
            self.splits_left -= 1;
            self.round(false);
        }
        self.kind = Some(kind);
    }

    fn kind_of(&self, change: &Change) -> Kind {
        let is_local = |pod: &Pod| pod.node.as_deref() == Some(&*self.node);
        let was_local = |key: &ObjectKey| self.cluster.pod(key).is_some_and(|pod| is_local(pod));
        let chains = match change {
            Change::SetPolicy(_) | Change::RemovePolicy(_) => true,
            Change::SetNamespace(_)
            | Change::RemoveNamespace(_)
            | Change::SetNode(_)
            | Change::RemoveNode(_) => false,
            Change::SetPod(pod) => is_local(pod) || was_local(&pod.key),
            Change::RemovePod(key) => was_local(key),
        };
        if chains { Kind::Chains } else { Kind::Members }
    }

    fn act(&mut self, now: Instant) {
        if !self.synced {
            return;
        }
        self.look(now);
        let is_due = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        let tidy = is_due(self.tidy_at);
        if is_due(self.retry_at) {
            // What was refused gets another chance.
            self.retry_at = None;
            self.broken.clear();
            self.round(tidy);
        } else if self.dirty && now >= self.not_before || tidy {
            self.round(tidy);
        }
    }

    /// One round. Only one for tidiness destroys sets.
    fn round(&mut self, tidy: bool) {
        let start = Instant::now();
        self.not_before = start + self.pace.debounce;
        self.dirty = false;
        self.kind = None;
        if tidy {
            self.tidy_at = None;
        }
        let result = self.sync(tidy);
        self.metrics.sync_duration.with_label_values(&["total"]).observe(start.elapsed().as_secs_f64());
        match result {
            Ok(()) => self.succeeded(),
            Err(error) => self.failed(&error),
        }
    }

    fn succeeded(&mut self) {
        self.metrics.syncs.with_label_values(&["success"]).inc();
        if !std::mem::replace(&mut self.settled, true) {
            self.dataplane.settled();
        }
        self.waiting.enforced(&self.metrics.enforcement_latency, Instant::now());
        self.metrics.broken_objects.set(i64::try_from(self.broken.len()).unwrap_or(i64::MAX));
        if self.broken.is_empty() {
            if self.failures > 0 {
                info!(after = self.failures, "the kernel is as it ought to be again");
            }
            self.failures = 0;
            self.retry_at = None;
            let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.metrics.last_success.set(since_1970.as_secs_f64());
            self.status.set(Readiness::Ready);
        } else {
            // All else is enforced, and what these would allow is closed: ready, but not done.
            let broken: Vec<String> = self.broken.iter().map(ToString::to_string).collect();
            self.status.set(Readiness::Degraded(format!("the kernel refused {}", broken.join(", "))));
            self.retry_later();
        }
    }

    fn failed(&mut self, error: &DataplaneError) {
        error!(%error, "could not write to the kernel; what it held before stays enforced");
        self.metrics.syncs.with_label_values(&["failure"]).inc();
        self.status.set(Readiness::Failing(error.to_string()));
        self.kernel = None;
        // Not explained any more, they close first, which is always safe; kept, they would only become more.
        self.moves.clear();
        self.retry_later();
        self.not_before = self.retry_at.unwrap_or(self.not_before);
    }

    fn retry_later(&mut self) {
        if self.retry_at.is_some() {
            return;
        }
        let wait = self.pace.retry_first.saturating_mul(1 << self.failures.min(16)).min(self.pace.retry_most);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(Instant::now() + wait);
    }

    fn sync(&mut self, tidy: bool) -> Result<(), DataplaneError> {
        let resolved = self.timed("resolve", |agent| agent.resolver.resolve(&agent.cluster));
        let whole = self.timed("compile", |agent| agent.compiler.compile(&resolved));
        self.moves.extend(self.resolver.take_moves());
        loop {
            let desired = whole.clone().without(&self.broken);
            let observed = match self.kernel.take() {
                Some(observed) => observed,
                None => self.timed("observe", |agent| agent.dataplane.observe()).inspect_err(|error| {
                    self.metrics.failed("observe", error.reason().label());
                })?,
            };
            let steps = self.timed("plan", |agent| plan(&observed, &desired, &agent.moves));
            match self.carry_out(observed, &steps, tidy) {
                Ok(()) => {
                    self.moves.clear();
                    self.publish(&resolved, &desired, whole, &steps);
                    return Ok(());
                }
                Err(Stopped::Refused) => {}
                Err(Stopped::Failed(error)) => return Err(error),
            }
        }
    }

    /// Carries out the steps. On success the kernel's state is known; otherwise it must be observed again.
    fn carry_out(&mut self, mut observed: Observed, steps: &[Step], tidy: bool) -> Result<(), Stopped> {
        for step in steps {
            if matches!(step, Step::Tidy(_)) && !tidy {
                self.tidy_at.get_or_insert_with(|| Instant::now() + self.pace.tidy);
                continue;
            }
            let stage = match step {
                Step::Sets(_) | Step::Tidy(_) => "sets",
                Step::Chains(Family::V4, _) => "chains_v4",
                Step::Chains(Family::V6, _) => "chains_v6",
            };
            match self.timed(stage, |agent| agent.dataplane.apply(step)) {
                Ok(()) => observed.note(step),
                Err(ApplyError::Refused(refusals)) => {
                    if let Step::Tidy(edits) = step {
                        debug!(sets = refusals.len(), "sets are still in use; trying again later");
                        let is_left = |edit: &SetEdit| {
                            refusals.iter().any(|refusal| refusal.object == Object::Set(edit.set().clone()))
                        };
                        edits.iter().filter(|edit| !is_left(edit)).for_each(|edit| observed.note_edit(edit));
                        self.tidy_at = Some(Instant::now() + 2 * self.pace.tidy);
                        continue;
                    }
                    let lost = refusals.iter().find(|refusal| match &refusal.object {
                        Object::Set(name) => !names::may_break(name),
                        Object::Chain(..) => false,
                    });
                    if let Some(refusal) = lost {
                        // Going on without it would open what it closes: rather all stays as it was.
                        self.metrics.failed(stage, Reason::Refused.label());
                        let doing =
                            format!("writing {}, without which nothing may be written", refusal.object);
                        let source = std::io::Error::other(refusal.reason.clone());
                        return Err(Stopped::Failed(DataplaneError::System { doing, source }));
                    }
                    let known = self.broken.len();
                    for refusal in refusals {
                        error!(object = %refusal.object, reason = refusal.reason, "refused; what it would allow stays closed");
                        self.metrics.failed(stage, Reason::Refused.label());
                        self.broken.insert(refusal.object);
                    }
                    if self.broken.len() == known {
                        // Closing it did not help: nothing is gained by another try at once.
                        let doing = format!("closing what the kernel refuses in step {stage}");
                        let source = std::io::Error::other("it is refused all the same");
                        return Err(Stopped::Failed(DataplaneError::System { doing, source }));
                    }
                    return Err(Stopped::Refused);
                }
                Err(ApplyError::Failed(error)) => {
                    self.metrics.failed(stage, error.reason().label());
                    return Err(Stopped::Failed(error));
                }
            }
        }
        self.kernel = Some(observed);
        Ok(())
    }

    /// `written` is in the kernel; `meant` is what ought to be, without the loss of what the kernel refused.
    fn publish(&self, resolved: &Resolved, written: &Ruleset, meant: Ruleset, steps: &[Step]) {
        let set = |gauge: &prometheus::IntGaugeVec, label: &str, value: usize| {
            gauge.with_label_values(&[label]).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        for family in Family::BOTH {
            let table = written.table(family);
            let label = family.to_string();
            set(&self.metrics.chains, &label, table.chains.len());
            set(&self.metrics.rules, &label, table.chains.values().map(|chain| chain.rules.len()).sum());
            set(&self.metrics.sets, &label, table.sets.len());
            set(&self.metrics.set_entries, &label, table.sets.values().map(|set| set.members.len()).sum());
        }
        for direction in Direction::BOTH {
            let policies: BTreeSet<&ObjectKey> = resolved
                .pods
                .iter()
                .flat_map(|pod| &pod.policies)
                .filter(|policy| policy.rules(direction).is_some())
                .map(|policy| &policy.key)
                .collect();
            set(&self.metrics.policies, &direction.to_string(), policies.len());
            let isolated = resolved.pods.iter().filter(|pod| pod.program(direction).is_some()).count();
            set(&self.metrics.isolated_pods, &direction.to_string(), isolated);
        }
        self.status.show(resolved.pods.clone());
        if let Some(applied) = &self.applied
            && !steps.is_empty()
        {
            // Whoever listened is gone only when the process ends.
            let _ = applied.send(Applied { narrowed: steps.iter().any(may_deny), ruleset: meant });
        }
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

    fn timed<T>(&mut self, stage: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        let start = Instant::now();
        let result = work(self);
        self.metrics.sync_duration.with_label_values(&[stage]).observe(start.elapsed().as_secs_f64());
        result
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

/// Whether a step can deny what was allowed before it. New sets, longer ones and unused ones cannot.
fn may_deny(step: &Step) -> bool {
    match step {
        Step::Chains(..) => true,
        Step::Tidy(_) => false,
        Step::Sets(edits) => edits.iter().any(|edit| match edit {
            SetEdit::Remove(set, _) => !names::grows_early(set),
            SetEdit::Add(set, _) => !names::may_break(set),
            SetEdit::Create(..) | SetEdit::Destroy(_) => false,
        }),
    }
}
