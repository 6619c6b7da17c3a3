//! The state of the loop that others can read.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem::discriminant,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use crate::{
    metrics::Metrics,
    model::ObjectKey,
    policy::{budget::OverBudget, resolve::LocalPod},
};

/// Whether this node enforces what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet: the reason says what it waits for.
    Starting(String),
    /// The kernel holds the desired state.
    Ready,
    /// Everything but single objects is enforced; what those would allow is closed.
    Degraded(String),
    /// Something does not work; what the kernel held before stays enforced.
    Failing(String),
}

impl Readiness {
    /// Whether `/readyz` is 200.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready | Self::Degraded(_))
    }
}

/// The loop's state, readable at any time.
#[derive(Debug)]
pub struct Status(Mutex<Fields>);

#[derive(Debug)]
struct Fields {
    readiness: Readiness,
    /// What keeps the rules from working although they are written, by the part of the daemon that reports it.
    conditions: BTreeMap<&'static str, String>,
    /// What each source could not read.
    refused: BTreeMap<&'static str, Arc<[Refused]>>,
    /// The pods of this node, as the last successful sync wrote them.
    pods: Arc<[LocalPod]>,
    /// The state of the interface guard.
    guard: GuardState,
    /// What is closed for being over budget, as of the same sync.
    over_budget: Arc<[OverBudget]>,
    /// When the changes were received that sources have sent and the loop has not taken in, in order.
    sent: VecDeque<Instant>,
    /// When the oldest change was received that the loop has taken in and that is not in the kernel.
    waits_since: Option<Instant>,
    /// A change that is pending for longer than this makes the node not ready.
    lag_limit: Duration,
    /// When the daemon started.
    started: SystemTime,
    /// Since when it has been in its present state of readiness.
    since: SystemTime,
    /// The loop's last heartbeat; `None` before the first one.
    beat: Option<Instant>,
}

/// The state of the interface guard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardState {
    /// Why it is off; `None` while it is on.
    pub off: Option<String>,
    /// The interfaces that it guards.
    pub interfaces: usize,
    /// Those of them without a known pod. They may use the addresses that they have, and no others.
    pub unknown: usize,
    /// The pods of this node without a known interface, each with the reason.
    pub unbound: Vec<(ObjectKey, String)>,
    /// The interface of each pod.
    pub pods: BTreeMap<ObjectKey, String>,
}

/// An object that a source could not read. Its last good version stays enforced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    /// Its kind, namespace (empty for a kind that has none) and name; `None` if not even these are known.
    pub object: Option<[String; 3]>,
    /// Where, if it has a position, and what is wrong with it.
    pub reason: String,
}

/// A [`Status`] at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// Whether this node enforces what it should.
    pub readiness: Readiness,
    /// The current problems, one by one; empty if there are none.
    pub reasons: Vec<String>,
    /// When the daemon started.
    pub started: SystemTime,
    /// Since when it has been in its present state of readiness.
    pub since: SystemTime,
    /// What could not be read, source by source.
    pub refused: Vec<Arc<[Refused]>>,
    /// The pods of this node, as the last successful sync wrote them.
    pub pods: Arc<[LocalPod]>,
    /// The state of the interface guard.
    pub guard: GuardState,
    /// What is closed for being over budget.
    pub over_budget: Arc<[OverBudget]>,
    /// The age of the oldest change that is not in the kernel yet.
    pub waiting: Duration,
}

/// How long a change may be pending before the node is not ready, unless a flag says otherwise.
pub const LAG_LIMIT: Duration = Duration::from_secs(10);

impl Status {
    /// The state before the first sync; `waiting_for` says what has to come first.
    #[must_use]
    pub fn starting(waiting_for: &str) -> Self {
        let readiness = Readiness::Starting(waiting_for.to_owned());
        let now = SystemTime::now();
        Self(Mutex::new(Fields {
            readiness,
            conditions: BTreeMap::new(),
            refused: BTreeMap::new(),
            pods: [].into(),
            guard: GuardState::default(),
            over_budget: [].into(),
            sent: VecDeque::new(),
            waits_since: None,
            lag_limit: LAG_LIMIT,
            started: now,
            since: now,
            beat: None,
        }))
    }

    /// Whether this node enforces what it should, taking all conditions into account.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.state().effective()
    }

    /// Everything that it knows. Copies what is small and shares the rest, so that the loop hardly waits.
    #[must_use]
    pub fn view(&self) -> View {
        let state = self.state();
        let lag = state.lag();
        let own = match &state.readiness {
            Readiness::Ready => None,
            Readiness::Starting(reason) | Readiness::Degraded(reason) | Readiness::Failing(reason) => {
                Some(reason)
            }
        };
        View {
            readiness: state.effective(),
            reasons: own
                .into_iter()
                .chain(state.conditions.values())
                .chain(&lag)
                .chain(&state.unbound())
                .cloned()
                .collect(),
            started: state.started,
            since: state.since,
            refused: state.refused.values().cloned().collect(),
            pods: state.pods.clone(),
            guard: state.guard.clone(),
            over_budget: state.over_budget.clone(),
            waiting: state.age(),
        }
    }

    /// What is closed for being over budget.
    #[must_use]
    pub fn over_budget(&self) -> Arc<[OverBudget]> {
        self.state().over_budget.clone()
    }

    /// The pods of this node, as the last successful sync wrote them.
    #[must_use]
    pub fn pods(&self) -> Arc<[LocalPod]> {
        self.state().pods.clone()
    }

    /// A message if pods are closed because their interface is not known.
    #[must_use]
    pub fn unbound(&self) -> Option<String> {
        self.state().unbound()
    }

    /// The age of the oldest change that a source received and that is not in the kernel. It also grows while the loop
    /// is busy with one thing.
    #[must_use]
    pub fn waiting(&self) -> Duration {
        self.state().age()
    }

    /// Sets how long a change may be pending before the node is not ready.
    pub fn set_lag_limit(&self, limit: Duration) {
        self.state().lag_limit = limit;
    }

    /// How long a change may be pending before the node is not ready.
    #[must_use]
    pub fn lag_limit(&self) -> Duration {
        self.state().lag_limit
    }

    /// A source is about to send changes to the loop, which it received at `received`.
    pub fn sent(&self, received: Instant) {
        self.state().sent.push_back(received);
    }

    /// The loop has taken in the changes that were sent first. `since`: when the oldest change was received that it has
    /// taken in and not written.
    pub(super) fn taken(&self, since: Option<Instant>) {
        let mut state = self.state();
        state.sent.pop_front();
        state.waits_since = since;
    }

    /// Sets when the oldest change was received that the loop has taken in and not written.
    pub(super) fn waits_since(&self, since: Option<Instant>) {
        self.state().waits_since = since;
    }

    /// The time since the loop's last heartbeat; zero before the first one.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.state().beat.map_or(Duration::ZERO, |beat| beat.elapsed())
    }

    /// Sets the outcome of the last sync.
    pub fn set(&self, readiness: Readiness) {
        self.change(|state| state.readiness = readiness);
    }

    /// Publishes the pods of this node, as they are enforced now, and what is closed for being over budget.
    pub fn show(&self, pods: Arc<[LocalPod]>, over_budget: Arc<[OverBudget]>) {
        let mut state = self.state();
        state.pods = pods;
        state.over_budget = over_budget;
    }

    /// Publishes the state of the interface guard.
    pub fn set_guard(&self, guard: GuardState) {
        self.state().guard = guard;
    }

    /// Before the first sync: sets what is being waited for now.
    pub fn wait_for(&self, what: &str) {
        self.change(|state| {
            if matches!(state.readiness, Readiness::Starting(_)) {
                state.readiness = Readiness::Starting(what.to_owned());
            }
        });
    }

    /// A part of the daemon reports what keeps the rules from working, or `None` once it knows of nothing any more.
    /// Parts are independent: what one clears, another may still report.
    pub fn set_condition(&self, part: &'static str, condition: Option<String>) {
        self.change(|state| {
            match condition {
                Some(condition) => state.conditions.insert(part, condition),
                None => state.conditions.remove(part),
            };
        });
    }

    /// A source reports everything that it currently cannot read, and `metrics` shows it together with other sources.
    pub fn set_refused(&self, source: &'static str, refused: Vec<Refused>, metrics: &Metrics) {
        let mut state = self.state();
        state.refused.insert(source, refused.into());
        let all = state.refused.values().flat_map(|refused| refused.iter());
        let named: BTreeSet<[String; 3]> = all.clone().filter_map(|refused| refused.object.clone()).collect();
        // Under the lock, so that of two sources the later one wins.
        metrics.set_refused(all.count(), &named);
    }

    /// Records a heartbeat of the loop.
    pub fn beat(&self) {
        self.state().beat = Some(Instant::now());
    }

    /// Makes a change that may affect readiness, and records since when that is what it is.
    fn change(&self, what: impl FnOnce(&mut Fields)) {
        let mut state = self.state();
        let before = discriminant(&state.effective());
        what(&mut state);
        if discriminant(&state.effective()) != before {
            state.since = SystemTime::now();
        }
    }

    fn state(&self) -> MutexGuard<'_, Fields> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fields {
    /// The age of the oldest change that is not in the kernel.
    fn age(&self) -> Duration {
        let oldest = self.sent.front().into_iter().chain(&self.waits_since).min();
        oldest.map_or(Duration::ZERO, Instant::elapsed)
    }

    /// A message if changes have been pending for too long. What exists before the first sync is not late.
    fn lag(&self) -> Option<String> {
        let age = self.age();
        let late = age > self.lag_limit && !matches!(self.readiness, Readiness::Starting(_));
        late.then(|| format!("changes have been pending for {} s", age.as_secs()))
    }

    /// A message if pods are closed because their interface is not known. Their names are only for clients that may
    /// read the whole status.
    fn unbound(&self) -> Option<String> {
        match self.guard.unbound.len() {
            0 => None,
            1 => Some("1 pod of this node is closed: no interface is known to be its own".to_owned()),
            pods => Some(format!("{pods} pods of this node are closed: no interface is known to be theirs")),
        }
    }

    /// The loop's own state, combined with what other parts report.
    fn effective(&self) -> Readiness {
        let lag = self.lag();
        if self.conditions.is_empty() && lag.is_none() {
            return self.readiness.clone();
        }
        let joined = |reason: Option<&String>| {
            let others = self.conditions.values().chain(&lag);
            let reasons: Vec<&str> = reason.into_iter().chain(others).map(String::as_str).collect();
            reasons.join("; ")
        };
        match &self.readiness {
            Readiness::Starting(reason) => Readiness::Starting(joined(Some(reason))),
            Readiness::Ready => Readiness::Failing(joined(None)),
            Readiness::Degraded(reason) | Readiness::Failing(reason) => {
                Readiness::Failing(joined(Some(reason)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ago(seconds: u64) -> Instant {
        Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap()
    }

    #[test]
    fn change_is_pending_from_its_receipt_on() {
        let status = Status::starting("the objects");
        status.set(Readiness::Ready);
        status.sent(ago(5));
        status.sent(ago(1));
        assert!(status.waiting() >= Duration::from_secs(5));
        assert_eq!(status.readiness(), Readiness::Ready);
        status.set_lag_limit(Duration::from_secs(4));
        assert!(matches!(status.readiness(), Readiness::Failing(reason) if reason.contains("for 5 s")));
        status.taken(Some(ago(30)));
        assert!(status.waiting() >= Duration::from_secs(30));
        status.taken(None);
        assert_eq!((status.waiting(), status.readiness()), (Duration::ZERO, Readiness::Ready));
    }

    #[test]
    fn objects_before_the_first_sync_are_not_late() {
        let status = Status::starting("the objects");
        status.sent(ago(3600));
        assert_eq!(status.readiness(), Readiness::Starting("the objects".to_owned()));
    }

    #[test]
    fn ineffective_rules_are_not_ready_despite_successful_syncs() {
        let status = Status::starting("the objects");
        status.set(Readiness::Ready);
        status.set_condition("bridge", Some("bridged packets pass by".to_owned()));
        assert_eq!(status.readiness(), Readiness::Failing("bridged packets pass by".to_owned()));
        status.set_condition("bridge", None);
        assert_eq!(status.readiness(), Readiness::Ready);
    }

    #[test]
    fn pods_without_a_known_interface_are_reported_and_the_node_stays_ready() {
        let status = Status::starting("the objects");
        status.set(Readiness::Ready);
        assert_eq!(status.unbound(), None);
        let unbound = vec![(ObjectKey::new("shop", "db"), "no interface".to_owned())];
        status.set_guard(GuardState { unbound, ..GuardState::default() });
        assert_eq!(status.readiness(), Readiness::Ready);
        let text = status.unbound().unwrap();
        assert!(text.starts_with("1 pod of this node is closed") && !text.contains("db"), "{text}");
        assert_eq!(status.view().reasons, [text]);
    }

    #[test]
    fn each_component_withdraws_only_its_own_reports() {
        let status = Status::starting("the objects");
        status.set_condition("watch", Some("no answer".to_owned()));
        assert_eq!(status.readiness(), Readiness::Starting("the objects; no answer".to_owned()));
        status.set_condition("bridge", Some("passed by".to_owned()));
        status.set(Readiness::Degraded("a set is refused".to_owned()));
        let all = "a set is refused; passed by; no answer";
        assert_eq!(status.readiness(), Readiness::Failing(all.to_owned()));
        status.set_condition("bridge", None);
        status.set(Readiness::Ready);
        assert_eq!(status.readiness(), Readiness::Failing("no answer".to_owned()));
    }
    #[test]
    fn status_shows_the_last_report() {
        let status = Status::starting("the objects");
        let before = status.view();
        assert_eq!((status.lag_limit(), status.silence()), (LAG_LIMIT, Duration::ZERO));
        status.set_lag_limit(Duration::from_secs(4));
        assert_eq!(status.lag_limit(), Duration::from_secs(4));
        // What waits for no time at all is not late, however short the limit.
        status.set_lag_limit(Duration::ZERO);
        status.set(Readiness::Ready);
        assert_eq!(status.readiness(), Readiness::Ready);
        status.beat();
        status.state().beat = Some(ago(7));
        assert!(status.silence() >= Duration::from_secs(7));
        status.beat();
        assert!(status.silence() < Duration::from_secs(7));

        let key = ObjectKey::new("shop", "web");
        let pod = LocalPod {
            key,
            addresses: Vec::new(),
            shared: Vec::new(),
            ingress: None,
            egress: None,
            policies: [].into(),
            sandbox: None,
        };
        status.show([pod].into(), [].into());
        let view = status.view();
        assert_eq!((view.pods.len(), view.started), (1, before.started));
        assert!(view.reasons.is_empty() && before.reasons == ["the objects"]);
    }

    #[test]
    fn status_shows_refused_objects_and_the_guard() {
        let (status, metrics) = (Status::starting("the objects"), Metrics::new().unwrap());
        let refused = |name: &str| Refused {
            object: Some(["Pod".to_owned(), "shop".to_owned(), name.to_owned()]),
            reason: "no address".to_owned(),
        };
        status.set_refused("files", vec![refused("a"), refused("b")], &metrics);
        status.set_refused("watch", vec![refused("c")], &metrics);
        status.set_refused("files", vec![refused("d")], &metrics);
        let shown = status.view().refused.concat();
        assert_eq!(shown, [refused("d"), refused("c")]);
        assert!(metrics.text().contains("towpath_refused_objects 2\n"));
        let guard = GuardState { interfaces: 3, unknown: 1, ..GuardState::default() };
        status.set_guard(guard.clone());
        assert_eq!(status.view().guard, guard);
    }

    #[test]
    fn time_of_a_state_is_its_beginning() {
        let status = Status::starting("the objects");
        let long_ago = SystemTime::UNIX_EPOCH;
        status.state().since = long_ago;
        status.wait_for("the first sync");
        assert_eq!(
            (status.view().since, status.readiness()),
            (long_ago, Readiness::Starting("the first sync".to_owned()))
        );
        status.set(Readiness::Ready);
        assert!(status.view().since > long_ago);
        status.state().since = long_ago;
        status.set(Readiness::Ready);
        status.wait_for("nothing");
        assert_eq!((status.view().since, status.readiness()), (long_ago, Readiness::Ready));
        status.set_condition("bridge", Some("passed by".to_owned()));
        assert!(status.view().since > long_ago);
    }
}
