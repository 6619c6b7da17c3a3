//! Syncs of the agent, observed at the dataplane.

#![cfg(test)]

mod large_sets;
#[path = "../support/other_version.rs"]
mod other_version;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use towpath::{
    agent::{Agent, Input, Pace, Readiness, Status},
    dataplane::{ApplyError, CheckDepth, Dataplane, DataplaneError, Drift, fake::Fake},
    lab::random::{Generator, NODES, Shape, Stack, cluster_of},
    metrics::Metrics,
    model::{
        Change, IpBlock, LabelSelector, Labels, Namespace, NetworkPolicy, ObjectKey, Peer, Peers, Pod,
        PodPeer, PolicyRule, Port, PortRange, Ports, Protocol, Requirement, Scope, Standing, Transport,
    },
    policy::resolve::Resolver,
    ruleset::{
        Member, Object, Rule, Ruleset, SetKind, SetName, Target,
        compile::{Options, compile},
        observed::Observed,
        plan::Step,
        trace::{Packet, trace},
    },
};

/// A fake that records the calls, and whose state a test can inspect.
#[derive(Clone, Default)]
struct Recorded {
    fake: Arc<Mutex<Fake>>,
    calls: Arc<Mutex<Vec<&'static str>>>,
    /// Whether its checks fail.
    checks_fail: Arc<AtomicBool>,
}

impl Recorded {
    fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }

    fn ruleset(&self) -> Ruleset {
        self.fake.lock().unwrap().ruleset().clone()
    }
}

impl Dataplane for Recorded {
    fn observe(&mut self) -> Result<Observed, DataplaneError> {
        self.calls.lock().unwrap().push("observe");
        self.fake.lock().unwrap().observe()
    }

    fn apply(&mut self, step: &Step) -> Result<(), ApplyError> {
        self.calls.lock().unwrap().push(match step {
            Step::Sets(_) => "sets",
            Step::Chains(..) => "chains",
            Step::Gc(_) => "gc",
        });
        self.fake.lock().unwrap().apply(step)
    }

    fn check(&mut self, expected: &Observed, depth: CheckDepth) -> Result<Drift, DataplaneError> {
        self.calls.lock().unwrap().push("check");
        if self.checks_fail.load(Ordering::Relaxed) {
            return Err(DataplaneError::Locked { command: "iptables-save".to_owned() });
        }
        self.fake.lock().unwrap().check(expected, depth)
    }
}

/// A running loop.
struct Loop {
    inputs: Sender<Input>,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    thread: Option<JoinHandle<()>>,
}

impl Loop {
    fn start(dataplane: impl Dataplane + Send + 'static) -> Self {
        Self::start_retrying(dataplane, Duration::from_mins(1))
    }

    fn start_retrying(dataplane: impl Dataplane + Send + 'static, retry: Duration) -> Self {
        Self::start_with(dataplane, Pace { retry_first: retry, retry_most: retry, ..Pace::default() })
    }

    fn start_with(dataplane: impl Dataplane + Send + 'static, pace: Pace) -> Self {
        let (inputs, inbox) = mpsc::channel();
        let status = Arc::new(Status::starting("the objects"));
        let metrics = Arc::new(Metrics::new().unwrap());
        let (agent_metrics, agent_status) = (metrics.clone(), status.clone());
        let pace = Pace { debounce: Duration::from_millis(1), gc: Duration::from_millis(1), ..pace };
        let work = move || {
            Agent::new(NODES[0], dataplane, Options::default(), pace, agent_metrics, agent_status, None)
                .run(&inbox);
        };
        Self { inputs, status, metrics, thread: Some(thread::spawn(work)) }
    }

    fn send(&self, input: Input) {
        self.inputs.send(input).unwrap();
    }

    /// Stops it once it has handled all inputs.
    fn end(mut self) {
        thread::sleep(Duration::from_millis(50));
        self.send(Input::Stop);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn changes() -> Vec<Change> {
    let shape = Shape { stack: Stack::V4, namespaces: 2, pods: 4, policies: 6, oddities: false };
    Generator::new(7, shape).cluster()
}

#[track_caller]
fn wait_for(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: timed out");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn kernel_is_not_touched_before_all_sources_are_synced() {
    let dataplane = Recorded::default();
    let running = Loop::start(dataplane.clone());
    running.send(Input::changes(changes()));
    running.send(Input::Recheck);
    thread::sleep(Duration::from_millis(100));
    assert!(dataplane.calls().is_empty(), "{:?}", dataplane.calls());
    assert_eq!(running.status.readiness(), Readiness::Starting("the objects".to_owned()));
    running.send(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    assert!(dataplane.calls().contains(&"chains"));
    running.end();
}

#[test]
fn unchanged_objects_run_no_command() {
    let dataplane = Recorded::default();
    let running = Loop::start(dataplane.clone());
    running.send(Input::changes(changes()));
    running.send(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    let settled = dataplane.calls();
    running.send(Input::changes(changes()));
    running.end();
    assert_eq!(dataplane.calls(), settled);

    // A new process observes once. It takes over sets as they are, and rewrites chains, since it never reads rules.
    let held = dataplane.ruleset();
    let successor = Recorded { fake: dataplane.fake.clone(), ..Recorded::default() };
    let running = Loop::start(successor.clone());
    running.send(Input::changes(changes()));
    running.send(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    running.end();
    assert_eq!(successor.calls(), ["observe", "chains", "chains"]);
    assert_eq!(dataplane.ruleset(), held);
}

#[test]
fn refused_set_is_closed_and_the_rest_is_enforced() {
    let enforced = |refused: Option<Object>| {
        let dataplane = Recorded::default();
        if let Some(object) = refused {
            dataplane.fake.lock().unwrap().refuse(object);
        }
        let running = Loop::start(dataplane.clone());
        running.send(Input::changes(changes()));
        running.send(Input::Synced);
        wait_for("a sync", || !matches!(running.status.readiness(), Readiness::Starting(_)));
        let readiness = running.status.readiness();
        running.end();
        (dataplane.ruleset(), readiness)
    };
    let (whole, readiness) = enforced(None);
    assert_eq!(readiness, Readiness::Ready);
    let allows = |name: &&SetName| name.as_str().starts_with("tp4-pods-");
    let set = Object::Set(whole.v4.sets.keys().find(allows).unwrap().clone());
    let (closed, readiness) = enforced(Some(set.clone()));
    assert_eq!(readiness, Readiness::Degraded(format!("the kernel refused {set}")));
    assert_ne!(closed, whole);
    assert_eq!(closed, whole.without(&BTreeSet::from([set])));
}

#[test]
fn rule_with_a_refused_set_of_excepts_allows_nothing_and_other_rules_stay() {
    let pod = [10, 244, 1, 1];
    let node = Some(NODES[0].into());
    let pod = Pod { node, addresses: vec![pod.into()], ..Pod::new(ObjectKey::new("x", "a")) };
    // Far too many for a cover, and none adjacent to the next.
    let excepts = (0..200_u8).map(|n| IpAddr::from([172, 16, n, n]).into());
    let block = IpBlock::new("0.0.0.0/0".parse().unwrap(), excepts).unwrap();
    let other = IpBlock::new("192.0.2.0/24".parse().unwrap(), []).unwrap();
    let tcp = |port| Ports::Of(vec![Port::Range(Protocol::Tcp, PortRange::single(port))]);
    let rule = |block, ports| PolicyRule { peers: Peers::Of(vec![Peer::Block(block)]), ports };
    let policy = NetworkPolicy {
        key: ObjectKey::new("x", "p"),
        subject: LabelSelector::everything(),
        ingress: None,
        egress: Some(vec![rule(block, tcp(80)), rule(other, tcp(443))]),
        standing: Standing::Accepted,
    };
    let objects = vec![Change::SetPod(pod), Change::SetPolicy(policy)];
    let set = ruleset_of(&objects)
        .v4
        .sets
        .into_keys()
        .find(|name| name.as_str().starts_with("tp4-except-"))
        .expect("a set of excepts");
    let dataplane = Recorded::default();
    let passes = |to: [u8; 4], port| {
        let transport = Transport::Port(Protocol::Tcp, port);
        let packet = Packet::new([10, 244, 1, 1].into(), to.into(), transport);
        trace(&dataplane.ruleset().v4, &packet).passed
    };
    dataplane.fake.lock().unwrap().refuse(Object::Set(set.clone()));
    let running = Loop::start_retrying(dataplane.clone(), Duration::from_millis(200));
    running.send(Input::changes(objects));
    running.send(Input::Synced);
    wait_for("a sync", || !matches!(running.status.readiness(), Readiness::Starting(_)));
    let refused = format!("the kernel refused {}", Object::Set(set));
    assert_eq!(running.status.readiness(), Readiness::Degraded(refused));
    assert!(!passes([192, 0, 2, 1], 80) && !passes([172, 16, 7, 7], 80));
    assert!(passes([192, 0, 2, 1], 443));
    dataplane.fake.lock().unwrap().refuse_nothing();
    wait_for("a retry", || running.status.readiness() == Readiness::Ready);
    assert!(passes([192, 0, 2, 1], 80) && !passes([172, 16, 7, 7], 80));
    running.end();
}

/// The ruleset of the first node for these objects.
fn ruleset_of(changes: &[Change]) -> Ruleset {
    let cluster = cluster_of(changes.to_vec());
    compile(&Resolver::of(NODES[0], &cluster).resolve(&cluster), &Options::default())
}

/// A policy that isolates every pod of a namespace.
fn deny_all(name: &str, namespace: &str) -> Change {
    Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new(namespace, name),
        subject: LabelSelector::everything(),
        ingress: Some(Vec::new()),
        egress: None,
        standing: Standing::Accepted,
    })
}

#[test]
fn refused_set_of_isolated_pods_leaves_the_chains_unchanged() {
    let dataplane = Recorded::default();
    let running = Loop::start(dataplane.clone());
    let mut objects = changes();
    running.send(Input::changes(objects.clone()));
    running.send(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    let before = dataplane.ruleset();

    objects.extend([deny_all("all", "x"), deny_all("all", "y")]);
    let wanted = ruleset_of(&objects);
    let is_new =
        |name: &&SetName| name.as_str().contains("ingress-isolated") && !before.v4.sets.contains_key(*name);
    let set = wanted.v4.sets.keys().find(is_new).expect("more pods are isolated").clone();
    dataplane.fake.lock().unwrap().refuse(Object::Set(set));
    running.send(Input::changes(objects));
    wait_for("the failure", || matches!(running.status.readiness(), Readiness::Failing(_)));
    running.end();
    assert_eq!(dataplane.ruleset().v4.chains, before.v4.chains);
}

#[test]
fn unused_sets_are_destroyed_while_changes_keep_coming() {
    let dataplane = Recorded::default();
    let running = Loop::start(dataplane.clone());
    running.send(Input::changes(changes()));
    running.send(Input::Synced);
    for turn in 0..200 {
        let namespace = if turn % 2 == 0 { "x" } else { "y" };
        running.send(Input::changes(vec![deny_all("all", namespace)]));
        thread::sleep(Duration::from_millis(2));
        running.send(Input::changes(vec![Change::RemovePolicy(ObjectKey::new(namespace, "all"))]));
        thread::sleep(Duration::from_millis(2));
    }
    assert!(dataplane.calls().contains(&"gc"));
    let sets = dataplane.ruleset().v4.sets.len();
    assert!(sets < ruleset_of(&changes()).v4.sets.len() + 40, "{sets} sets");
    running.end();
}

#[test]
fn refused_set_is_retried_while_changes_keep_coming() {
    let whole = ruleset_of(&changes());
    let allows = |name: &&SetName| name.as_str().starts_with("tp4-pods-");
    let set = Object::Set(whole.v4.sets.keys().find(allows).unwrap().clone());
    let dataplane = Recorded::default();
    dataplane.fake.lock().unwrap().refuse(set);
    let running = Loop::start_retrying(dataplane.clone(), Duration::from_millis(200));
    running.send(Input::changes(changes()));
    running.send(Input::Synced);
    wait_for("degradation", || matches!(running.status.readiness(), Readiness::Degraded(_)));
    dataplane.fake.lock().unwrap().refuse_nothing();
    let mut turn = 0;
    wait_for("the retry", || {
        turn += 1;
        let name: Arc<str> = "bystander".into();
        let labels = [("turn", turn.to_string())].into_iter().collect();
        running.send(Input::changes(vec![Change::SetNamespace(Namespace { name, labels })]));
        thread::sleep(Duration::from_millis(20));
        running.status.readiness() == Readiness::Ready
    });
    running.end();
}

#[test]
fn latency_of_a_failed_change_is_measured_once_when_it_is_written() {
    let dataplane = Recorded::default();
    let running = Loop::start_retrying(dataplane.clone(), Duration::from_millis(50));
    running.send(Input::changes(changes()));
    running.send(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    let observed = |kind: &str| {
        let histogram = running.metrics.enforcement_latency.with_label_values(&[kind]);
        (histogram.get_sample_count(), histogram.get_sample_sum())
    };
    assert_eq!(observed("NetworkPolicy").0, 0, "existing objects are no changes");

    dataplane.fake.lock().unwrap().die_after(0);
    // A source received it an hour ago: the latency counts from then, not from when the agent received it.
    let received = Instant::now().checked_sub(Duration::from_hours(1)).unwrap();
    let both = vec![deny_all("all", "x"), deny_all("all", "y")];
    running.send(Input::Changes { received, changes: both.clone() });
    wait_for("the failure", || matches!(running.status.readiness(), Readiness::Failing(_)));
    assert_eq!(observed("NetworkPolicy").0, 0);
    dataplane.fake.lock().unwrap().revive();
    wait_for("the retry", || running.status.readiness() == Readiness::Ready);
    let (count, seconds) = observed("NetworkPolicy");
    assert_eq!(count, 2);
    assert!(seconds > 7200.0, "{seconds}");
    let text = running.metrics.text();
    assert!(text.contains("towpath_failures_total{reason=\"system\","), "{text}");

    // Sent again, nothing differs, and nothing is observed.
    running.send(Input::changes(both));
    thread::sleep(Duration::from_millis(50));
    assert_eq!(observed("NetworkPolicy").0, 2);
    assert_eq!(observed("Pod").0, 0);
    running.end();
}

/// A loop that checks every few milliseconds and is ready.
fn checking_often(dataplane: &Recorded) -> Loop {
    let pace = Pace { check: Duration::from_millis(20), ..Pace::default() };
    let running = Loop::start_with(dataplane.clone(), pace);
    running.send(Input::changes(changes()));
    running.send(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    running
}

#[test]
fn exchanged_member_is_repaired_by_the_next_check() {
    let dataplane = Recorded::default();
    let running = checking_often(&dataplane);
    let before = dataplane.ruleset();
    let exchanged = {
        let mut fake = dataplane.fake.lock().unwrap();
        let sets = &mut fake.ruleset_mut().v4.sets;
        let set =
            sets.values_mut().find(|set| set.kind == SetKind::Addresses && !set.members.is_empty()).unwrap();
        let member = *set.members.iter().next().unwrap();
        set.members.remove(&member);
        set.members.insert(Member::Address([10, 99, 99, 99].into()));
        fake.ruleset().clone()
    };
    assert_ne!(exchanged, before);
    wait_for("the repair", || dataplane.ruleset() == before);
    wait_for("the count", || running.metrics.drift_repairs.get() == 1);
    running.end();
}

#[test]
fn replaced_rule_is_repaired_when_a_recheck_is_requested() {
    let dataplane = Recorded::default();
    let running = Loop::start(dataplane.clone());
    running.send(Input::changes(changes()));
    running.send(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    let before = dataplane.ruleset();
    let replace = || {
        let mut fake = dataplane.fake.lock().unwrap();
        let chain = fake.ruleset_mut().v4.chains.values_mut().find(|chain| !chain.rules.is_empty()).unwrap();
        *chain = chain.rules.iter().map(|_| Rule::new([], Target::Return)).collect();
    };
    // Repeated changes are repaired every time.
    for _ in 0..5 {
        replace();
        assert_ne!(dataplane.ruleset(), before);
        running.send(Input::Recheck);
        wait_for("the repair", || dataplane.ruleset() == before);
    }
    running.end();
}

#[test]
fn three_failed_checks_in_a_row_make_the_daemon_unready() {
    let dataplane = Recorded::default();
    let running = checking_often(&dataplane);
    dataplane.checks_fail.store(true, Ordering::Relaxed);
    wait_for("the condition", || match running.status.readiness() {
        Readiness::Failing(reason) => reason.contains("iptables-save") && reason.contains(" times in a row"),
        _ => false,
    });
    assert!(running.metrics.failures.with_label_values(&["check", "lock"]).get() >= 3);
    // Pending changes are still written.
    let denied = vec![deny_all("all", "x"), deny_all("all", "y")];
    let wanted = ruleset_of(&[changes(), denied.clone()].concat());
    assert_ne!(wanted.v4.chains, dataplane.ruleset().v4.chains);
    running.send(Input::changes(denied));
    wait_for("the change", || dataplane.ruleset().v4.chains == wanted.v4.chains);
    dataplane.checks_fail.store(false, Ordering::Relaxed);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    running.end();
}

#[test]
fn changes_of_one_input_are_enforced_as_one_state() {
    // One input changes the pod's label from b to a, and the policy that admitted a admits z: neither the state before
    // nor the one after admits the pod, but a state with only one of the changes would.
    let label = |app: &str| -> Labels { [("app", app)].into_iter().collect() };
    let pod = |name: &str, app: &str, node: usize, address: [u8; 4]| {
        let (node, addresses) = (Some(NODES[node].into()), vec![IpAddr::from(address)]);
        Change::SetPod(Pod { labels: label(app), node, addresses, ..Pod::new(ObjectKey::new("x", name)) })
    };
    let policy = |app: &str| {
        let pods = LabelSelector::new([Requirement::equals("app", app)]);
        let peer = Peer::Pods(PodPeer { scope: Scope::Own("x".into()), pods });
        Change::SetPolicy(NetworkPolicy {
            key: ObjectKey::new("x", "db"),
            subject: LabelSelector::new([Requirement::equals("app", "db")]),
            ingress: Some(vec![PolicyRule { peers: Peers::Of(vec![peer]), ports: Ports::Any }]),
            egress: None,
            standing: Standing::Accepted,
        })
    };
    let (client, server) = ([10, 244, 2, 1], [10, 244, 1, 1]);
    let dataplane = Recorded::default();
    let written = Arc::new(Mutex::new(Vec::new()));
    let packet = Packet::new(IpAddr::from(client), IpAddr::from(server), Transport::Port(Protocol::Tcp, 80));
    let traced = Traced { inner: dataplane.clone(), packet, passed: written.clone() };
    let running = Loop::start(traced);
    let objects = vec![pod("db", "db", 0, server), pod("client", "b", 1, client), policy("a")];
    running.send(Input::changes(objects));
    running.send(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    written.lock().unwrap().clear();
    running.send(Input::changes(vec![pod("client", "a", 1, client), policy("z")]));
    wait_for("the change", || !written.lock().unwrap().is_empty());
    running.end();
    assert!(written.lock().unwrap().iter().all(|passed| !passed), "{:?}", written.lock().unwrap());
}

/// A fake that checks after every step whether a packet passes.
#[derive(Clone)]
struct Traced {
    inner: Recorded,
    packet: Packet,
    passed: Arc<Mutex<Vec<bool>>>,
}

impl Dataplane for Traced {
    fn observe(&mut self) -> Result<Observed, DataplaneError> {
        self.inner.observe()
    }

    fn apply(&mut self, step: &Step) -> Result<(), ApplyError> {
        let result = self.inner.apply(step);
        self.passed.lock().unwrap().push(trace(&self.inner.ruleset().v4, &self.packet).passed);
        result
    }

    fn check(&mut self, expected: &Observed, depth: CheckDepth) -> Result<Drift, DataplaneError> {
        self.inner.check(expected, depth)
    }
}
