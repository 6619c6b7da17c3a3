//! The state after a sync: due times, what other threads receive, and the published status.

use std::sync::mpsc::channel;

use super::*;
use crate::{
    agent::{Pace, Status},
    dataplane::{CheckDepth, Drift, Refusal, fake::Fake},
    metrics::Metrics,
    model::{
        Change, LabelSelector, NetworkPolicy, Peer, Peers, Pod, PodPeer, PolicyRule, Ports, Requirement,
        Scope, Standing,
    },
    policy::budget::Budgets,
    ruleset::{IpSet, Member, SetKind, SetName, compile::Options, plan::ChainBatch},
};

/// A fake that counts the calls of `settled`, and can report one set as in use.
#[derive(Default)]
struct Counting {
    fake: Fake,
    settled: usize,
    in_use: Option<SetName>,
    /// Every edit of a set that was carried out.
    edits: Vec<SetEdit>,
}

impl Dataplane for Counting {
    fn observe(&mut self) -> Result<Observed, DataplaneError> {
        self.fake.observe()
    }

    fn apply(&mut self, step: &Step) -> Result<(), ApplyError> {
        if let Step::Sets(edits) = step {
            self.edits.extend(edits.iter().cloned());
        }
        let (Step::Gc(edits), Some(in_use)) = (step, &self.in_use) else { return self.fake.apply(step) };
        let others = edits.iter().filter(|edit| edit.set() != in_use).cloned().collect();
        self.fake.apply(&Step::Gc(others))?;
        let refusal = Refusal { object: Object::Set(in_use.clone()), reason: "in use".to_owned() };
        Err(ApplyError::Refused(vec![refusal]))
    }

    fn settled(&mut self) {
        self.settled += 1;
    }

    fn check(&mut self, expected: &Observed, depth: CheckDepth) -> Result<Drift, DataplaneError> {
        self.fake.check(expected, depth)
    }
}

const HOUR: Duration = Duration::from_hours(1);

fn agent() -> Agent<Counting> {
    let pace = Pace { debounce: HOUR, retry_first: HOUR, retry_most: 10 * HOUR, gc: HOUR, ..Pace::default() };
    let (metrics, status) = (Arc::new(Metrics::new().unwrap()), Arc::new(Status::starting("the objects")));
    let mut agent = Agent::new("n1", Counting::default(), Options::default(), pace, metrics, status, None);
    agent.schedule.lists_complete();
    agent
}

fn apply(agent: &mut Agent<Counting>, change: Change) {
    agent.change(change, Instant::now());
}

fn pod(name: &str, last: u8) -> Change {
    let pod = Pod::new(ObjectKey::new("shop", name));
    Change::SetPod(Pod { node: Some("n1".into()), addresses: vec![[10, 244, 1, last].into()], ..pod })
}

fn deny_all() -> Change {
    Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new("shop", "deny"),
        subject: LabelSelector::everything(),
        ingress: Some(Vec::new()),
        egress: None,
        standing: Standing::Accepted,
    })
}

fn failure() -> DataplaneError {
    DataplaneError::Locked { command: "iptables-restore".to_owned() }
}

#[test]
fn changes_after_a_sync_wait_for_the_debounce() {
    let mut agent = agent();
    let before = Instant::now();
    agent.sync(false);
    assert_eq!(agent.schedule.next(), None);
    agent.schedule.changed();
    assert!(agent.schedule.next().unwrap() >= before + HOUR);
}

#[test]
fn dataplane_is_notified_once_when_the_initial_state_is_complete() {
    let mut agent = agent();
    apply(&mut agent, pod("web", 1));
    agent.sync(false);
    assert_eq!(agent.dataplane.settled, 1);
    apply(&mut agent, deny_all());
    agent.sync(false);
    assert_eq!(agent.dataplane.settled, 1);

    let mut agent = self::agent();
    let members = (0..30_000_u32).map(|at| Member::Address(at.to_be_bytes().into())).collect();
    let large = (names::pods(Family::V4, "aaaaaaaaaaaaaaaa"), IpSet { kind: SetKind::Addresses, members });
    let (whole, since) = (Ruleset { v4: table(large), ..Ruleset::default() }, Instant::now());
    agent.deferred.choose(&Observed::default(), &whole, &Resolved::default(), &BTreeSet::new(), since);
    assert!(agent.deferred.is_starting());
    agent.succeeded();
    assert_eq!(agent.dataplane.settled, 0);
    assert!(matches!(agent.status.readiness(), Readiness::Starting(_)));
    agent.deferred = super::super::Deferred::default();
    agent.succeeded();
    assert_eq!(agent.dataplane.settled, 1);
    assert_eq!(agent.status.readiness(), Readiness::Ready);
}

fn table((name, set): (SetName, IpSet)) -> crate::ruleset::Table {
    crate::ruleset::Table { sets: [(name, set)].into(), ..crate::ruleset::Table::default() }
}

#[test]
fn failed_sync_is_retried_with_a_backoff_that_success_resets() {
    let mut agent = agent();
    for hours in [1, 2] {
        let before = Instant::now();
        agent.failed(&failure());
        let at = agent.schedule.next().unwrap();
        assert!(before + hours * HOUR <= at && at <= Instant::now() + hours * HOUR);
        let due = agent.schedule.due(at).unwrap();
        assert!(due.retry && !due.gc);
    }
    agent.sync(false);
    assert_eq!(agent.schedule.next(), None);
    agent.failed(&failure());
    assert!(agent.schedule.next().unwrap() <= Instant::now() + HOUR);
}

#[test]
fn guard_receives_changed_owners_and_delays_only_the_first_sync() {
    let (sender, received) = channel();
    let mut agent = agent().with_guard(Some(sender));
    apply(&mut agent, pod("web", 1));
    let owners = |input: GuardInput| match input {
        GuardInput::Owners(owners) => owners,
        GuardInput::Answers(answers) => panic!("nobody asked: {answers:?}"),
    };
    let guard = std::thread::spawn(move || {
        let first = owners(received.recv_timeout(GUARD_PATIENCE).unwrap());
        first.done.as_ref().unwrap().send(()).unwrap();
        (first.pods.len(), received)
    });
    agent.sync(false);
    let (pods, received) = guard.join().unwrap();
    assert_eq!(pods, 1);
    agent.sync(false);
    assert!(received.try_recv().is_err(), "nothing changed");
    apply(&mut agent, pod("db", 2));
    agent.sync(false);
    let next = owners(received.try_recv().unwrap());
    assert_eq!((next.pods.len(), next.done.is_none()), (2, true));
    // A pod elsewhere, and a node.
    let elsewhere = Pod { node: Some("n2".into()), ..Pod::new(ObjectKey::new("shop", "far")) };
    apply(&mut agent, Change::SetPod(Pod { addresses: vec![[10, 244, 2, 1].into()], ..elsewhere.clone() }));
    agent.sync(false);
    assert_eq!(owners(received.try_recv().unwrap()).all_pods.v4.len(), 3);
    apply(&mut agent, Change::SetPod(Pod { node_addresses: vec![[192, 168, 0, 2].into()], ..elsewhere }));
    agent.sync(false);
    assert_eq!(owners(received.try_recv().unwrap()).nodes.v4.len(), 1);
}

#[test]
fn only_edits_that_can_deny_cut_connections() {
    let (address, some) = (Member::Address([10, 244, 1, 1].into()), "aaaaaaaaaaaaaaaa");
    let add = |set: SetName| may_deny(&Step::Sets(vec![SetEdit::Add(set, address)]));
    let remove = |set: SetName| may_deny(&Step::Sets(vec![SetEdit::Remove(set, address)]));
    let isolated = || names::isolated(Family::V4, Direction::Ingress, &[address].into_iter().collect());
    let pods = || names::pods(Family::V4, some);
    // More isolated pods and fewer allowed ones deny; the reverse allows.
    assert!(add(isolated()) && !remove(isolated()));
    assert!(remove(pods()) && !add(pods()));
    // Sets for tunnel packets do not affect connections.
    for set in [names::all_pods(Family::V4), names::tunnel_ends(Family::V4)] {
        assert!(!add(set.clone()) && !remove(set));
    }
    assert!(!may_deny(&Step::Sets(vec![SetEdit::Create(pods(), SetKind::Addresses)])));
    assert!(!may_deny(&Step::Sets(vec![SetEdit::Destroy(pods())])));
    assert!(!may_deny(&Step::Gc(vec![SetEdit::Destroy(pods())])));
    assert!(may_deny(&Step::Chains(Family::V4, ChainBatch::default())));
}

#[test]
fn at_most_ten_objects_are_named() {
    let objects = |count: u32| -> BTreeSet<Object> {
        (0..count)
            .map(|at| Object::Set(names::pods(Family::V4, &crate::policy::digest::digest(&at))))
            .collect()
    };
    assert_eq!(named(&objects(1)), objects(1).first().unwrap().to_string());
    let ten = named(&objects(10));
    assert_eq!((ten.matches("tp4-pods-").count(), ten.contains("more")), (10, false));
    let more = named(&objects(13));
    assert_eq!(more.matches("tp4-pods-").count(), 10);
    assert!(more.ends_with(" and 3 more"), "{more}");
}

#[test]
fn metrics_count_written_objects_and_isolated_pods() {
    let mut agent = agent();
    let metrics = agent.metrics.clone();
    apply(&mut agent, pod("web", 1));
    apply(&mut agent, deny_all());
    agent.sync(false);
    let of = |gauge: &prometheus::IntGaugeVec, label: &str| gauge.with_label_values(&[label]).get();
    let written = agent.dataplane.fake.ruleset().v4.clone();
    let size = |length: usize| i64::try_from(length).unwrap();
    assert_eq!(of(&metrics.chains, "IPv4"), size(written.chains.len()));
    assert_eq!(
        of(&metrics.rules, "IPv4"),
        size(written.chains.values().map(|chain| chain.rules.len()).sum())
    );
    assert_eq!(of(&metrics.sets, "IPv4"), size(written.sets.len()));
    assert_eq!(
        of(&metrics.set_entries, "IPv4"),
        size(written.sets.values().map(|set| set.members.len()).sum())
    );
    for (direction, count) in [("ingress", 1), ("egress", 0)] {
        assert_eq!(of(&metrics.policies, direction), count, "{direction}");
        assert_eq!(of(&metrics.isolated_pods, direction), count, "{direction}");
    }
    assert_eq!(metrics.broken_objects.get(), 0);
}

#[test]
fn conntrack_cleaner_receives_only_syncs_that_wrote() {
    let (sender, received) = channel();
    let mut agent = agent();
    agent.applied = Some(sender);
    apply(&mut agent, pod("web", 1));
    agent.sync(false);
    assert!(received.try_recv().is_ok());
    agent.sync(false);
    assert!(received.try_recv().is_err(), "nothing was written");
    apply(&mut agent, deny_all());
    agent.sync(false);
    let applied = received.try_recv().unwrap();
    assert!(applied.narrowed);
    assert_eq!(applied.ruleset.v4.chains, agent.dataplane.fake.ruleset().v4.chains);
}

#[test]
fn unused_sets_are_destroyed_later_and_refused_ones_retried() {
    let mut agent = agent();
    apply(&mut agent, pod("web", 1));
    agent.sync(false);
    let isolated = |agent: &Agent<Counting>| -> BTreeSet<SetName> {
        let sets = agent.dataplane.fake.ruleset().v4.sets.keys().cloned();
        sets.filter(|set| matches!(set.role(), SetRole::Isolated(_))).collect()
    };
    let old: Vec<SetName> = isolated(&agent).into_iter().collect();
    let [kept, destroyed] = &old[..] else { panic!("{old:?}") };
    let Change::SetPolicy(policy) = deny_all() else { panic!("a policy") };
    apply(&mut agent, Change::SetPolicy(NetworkPolicy { egress: Some(Vec::new()), ..policy }));
    let before = Instant::now();
    agent.sync(false);
    let at = agent.schedule.next().unwrap();
    assert!(before + HOUR <= at && at <= Instant::now() + HOUR);
    assert_eq!(isolated(&agent).len(), 4);
    agent.sync(false);
    assert_eq!(agent.schedule.next(), Some(at), "as long after the sync that freed them, however many come");

    agent.dataplane.in_use = Some(kept.clone());
    let before = Instant::now();
    agent.sync(true);
    let at = agent.schedule.next().unwrap();
    assert!(before + 2 * HOUR <= at && at <= Instant::now() + 2 * HOUR);
    assert_eq!(agent.status.readiness(), Readiness::Ready, "a set in use is no failure");
    let remaining = isolated(&agent);
    assert!(remaining.contains(kept) && !remaining.contains(destroyed));
    let observed = agent.kernel.as_ref().unwrap();
    assert!(observed.v4.sets.contains_key(kept) && !observed.v4.sets.contains_key(destroyed));

    agent.dataplane.in_use = None;
    agent.sync(true);
    assert_eq!((isolated(&agent).len(), agent.schedule.next()), (2, None));
}

#[test]
fn written_and_desired_members_share_memory() {
    let mut agent = agent();
    apply(&mut agent, pod("web", 1));
    agent.sync(false);
    apply(&mut agent, pod("db", 2));
    agent.sync(false);
    let (wanted, set) = (agent.resolver.resolve(&agent.cluster), names::all_pods(Family::V4));
    let written = &agent.kernel.as_ref().unwrap().v4.sets[&set].members;
    assert_eq!(written.len(), 2);
    assert!(written.ptr_eq(wanted.all_pods.of(Family::V4)));
}

#[test]
fn metrics_count_policies_over_budget_by_namespace() {
    let mut agent = agent().with_budgets(Budgets { policy: 0, ..Budgets::default() });
    let metrics = agent.metrics.clone();
    let shows = |count: usize| {
        let text = metrics.text();
        text.contains(&format!("towpath_over_budget {count}\n"))
            && text.contains(&format!("towpath_over_budget_namespace{{namespace=\"shop\"}} {count}\n"))
    };
    apply(&mut agent, pod("web", 1));
    let Change::SetPolicy(policy) = deny_all() else { panic!("a policy") };
    let also = ObjectKey::new("shop", "also");
    apply(&mut agent, deny_all());
    apply(&mut agent, Change::SetPolicy(NetworkPolicy { key: also.clone(), ..policy }));
    agent.sync(false);
    assert!(shows(2));
    apply(&mut agent, Change::RemovePolicy(also));
    agent.sync(false);
    assert!(shows(1));
}

/// A pod of another node, with a role.
fn far(name: &str, last: u8, role: &str) -> Change {
    let labels = [("role", role)].into_iter().collect();
    let pod = Pod::new(ObjectKey::new("shop", name));
    Change::SetPod(Pod { labels, node: Some("n2".into()), addresses: vec![[10, 244, 2, last].into()], ..pod })
}

/// After a failed sync it is not known in which order the addresses moved that it should have moved. One that opens
/// before another closes could let a packet between them pass that no state allows. All chains are written again then.
#[test]
fn after_a_failed_sync_all_members_close_before_any_opens() {
    let role = |name: &str| {
        let pods = LabelSelector::new([Requirement::equals("role", name)]);
        let peers = Peers::Of(vec![Peer::Pods(PodPeer { scope: Scope::Own("shop".into()), pods })]);
        PolicyRule { peers, ports: Ports::Any }
    };
    let Change::SetPolicy(policy) = deny_all() else { panic!("a policy") };
    let edits_of_retry = |is_known: bool| {
        let mut agent = agent();
        apply(&mut agent, pod("web", 1));
        let rules = |rule| Some(vec![rule]);
        let policy =
            NetworkPolicy { ingress: rules(role("round")), egress: rules(role("red")), ..policy.clone() };
        apply(&mut agent, Change::SetPolicy(policy));
        apply(&mut agent, far("a", 1, "round"));
        apply(&mut agent, far("b", 2, "square"));
        agent.sync(false);
        apply(&mut agent, far("a", 1, "square"));
        apply(&mut agent, far("b", 2, "red"));
        if !is_known {
            // The sync that should have moved both has taken their moves, and fails.
            agent.moves = agent.resolver.take_moves();
            agent.failed(&failure());
            apply(&mut agent, far("a", 1, "green"));
        }
        agent.dataplane.edits.clear();
        agent.sync(false);
        let edits = agent.dataplane.edits.iter().filter(|edit| edit.set().role() == SetRole::Pods);
        edits.map(|edit| matches!(edit, SetEdit::Remove(..))).collect::<Vec<_>>()
    };
    assert_eq!(edits_of_retry(true), [true, false], "a leaves, then b enters, in the order of the events");
    assert_eq!(edits_of_retry(false), [true, false], "the same although that of b is not known");
}
