//! Large new sets: what is written before they are complete, and what is not held up.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use towpath::{
    agent::{Input, Readiness},
    dataplane::{ApplyError, CheckDepth, Dataplane, DataplaneError, Drift},
    lab::random::NODES,
    model::{
        Change, IpBlock, LabelSelector, NetworkPolicy, ObjectKey, Peer, Peers, Pod, PolicyRule, Port,
        PortRange, Ports, Protocol, Standing, Transport,
    },
    ruleset::{
        Object, Ruleset, SetName,
        observed::Observed,
        plan::Step,
        trace::{Packet, trace},
    },
};

use crate::{Loop, Recorded, deny_all, other_version::of_another_version, ruleset_of, wait_for};

/// Policies in one namespace that each admit `entries` addresses of their own to each pod of the node, on their own
/// port: `sets` policies make as many sets.
fn large(namespace: &str, sets: u16, entries: u32) -> Vec<Change> {
    let policy = |set: u16| {
        let block = |at: u32| {
            let [_, a, b, c] = (u32::from(set) * entries * 2 + 2 * at).to_be_bytes();
            let net = format!("{}.{b}.{c}.1/32", 20 + a).parse().unwrap();
            Peer::Block(IpBlock::new(net, []).unwrap())
        };
        let ports = Ports::Of(vec![Port::Range(Protocol::Tcp, PortRange::single(1000 + set))]);
        let peers = Peers::Of((0..entries).map(block).collect());
        Change::SetPolicy(NetworkPolicy {
            key: ObjectKey::new(namespace, format!("large-{set}")),
            subject: LabelSelector::everything(),
            ingress: Some(vec![PolicyRule { peers, ports }]),
            egress: None,
            standing: Standing::Accepted,
        })
    };
    (0..sets).map(policy).collect()
}

/// A pod of the first node.
fn local(namespace: &str, name: &str, last: u8) -> Change {
    let (node, addresses) = (Some(NODES[0].into()), vec![IpAddr::from([10, 244, 1, last])]);
    Change::SetPod(Pod { node, addresses, ..Pod::new(ObjectKey::new(namespace, name)) })
}

/// A fake that counts edits of sets, and records its state after each step.
#[derive(Clone, Default)]
struct Slow {
    inner: Recorded,
    steps: Arc<Mutex<Vec<(usize, Ruleset)>>>,
    /// How long each step of sets takes.
    pause: Duration,
}

impl Dataplane for Slow {
    fn observe(&mut self) -> Result<Observed, DataplaneError> {
        self.inner.observe()
    }

    fn apply(&mut self, step: &Step) -> Result<(), ApplyError> {
        let edits = match step {
            Step::Sets(edits) => edits.len(),
            Step::Chains(..) | Step::Gc(_) => 0,
        };
        if edits > 0 {
            thread::sleep(self.pause);
        }
        let result = self.inner.apply(step);
        self.steps.lock().unwrap().push((edits, self.inner.ruleset()));
        result
    }

    fn check(&mut self, expected: &Observed, depth: CheckDepth) -> Result<Drift, DataplaneError> {
        self.inner.check(expected, depth)
    }
}

/// Two isolated pods, one of them with large sets.
fn objects() -> Vec<Change> {
    let mut objects = vec![local("x", "db", 1), local("y", "web", 2), deny_all("all", "y")];
    objects.extend(large("x", 4, 12_000));
    objects
}

#[test]
fn isolation_is_written_first_and_rules_of_large_sets_last() {
    let dataplane = Slow::default();
    let running = Loop::start(dataplane.clone());
    running.send(Input::changes(objects()));
    running.send(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    running.end();
    let steps = dataplane.steps.lock().unwrap().clone();
    assert!(steps.iter().all(|(edits, _)| *edits <= 20_000 + 100), "{:?}", steps.iter().map(|s| s.0));
    let isolated = |ruleset: &Ruleset, last: u8| {
        let source = IpAddr::from([192, 0, 2, 1]);
        let to = IpAddr::from([10, 244, 1, last]);
        !trace(&ruleset.v4, &Packet::new(source, to, Transport::Port(Protocol::Tcp, 80))).passed
    };
    let first = steps.iter().position(|(_, ruleset)| isolated(ruleset, 1)).unwrap();
    assert!(isolated(&steps[first].1, 2));
    let written: usize = steps[..=first].iter().map(|(edits, _)| edits).sum();
    assert!(written < 21_000, "{written} edits came before isolation");
    // After each step, only allowed packets pass, and no rule refers to an incomplete set.
    let whole = ruleset_of(&objects());
    for (_, ruleset) in &steps[first..] {
        assert!(isolated(ruleset, 1) && isolated(ruleset, 2));
        for rule in ruleset.v4.chains.values().flat_map(|chain| chain.rules.iter()) {
            for m in &rule.matches {
                if let Some(set) = m.set() {
                    let wanted = whole.v4.sets.get(set).map(|set| set.members.len());
                    let there = ruleset.v4.sets[set].members.len();
                    assert!(wanted.is_none_or(|wanted| wanted == there), "{set} has {there} of {wanted:?}");
                }
            }
        }
    }
    assert_eq!(steps.last().unwrap().1, whole);
}

#[test]
fn rules_of_another_version_stay_until_large_sets_are_filled() {
    let dataplane = Slow::default();
    *dataplane.inner.fake.lock().unwrap().ruleset_mut() = of_another_version(&ruleset_of(&objects()));
    let running = Loop::start(dataplane.clone());
    running.send(Input::changes(objects()));
    running.send(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    wait_for("the other version's sets to be gone", || dataplane.inner.ruleset() == ruleset_of(&objects()));
    running.end();
    let steps = dataplane.steps.lock().unwrap().clone();
    assert!(steps.len() > 4, "the sets are filled in pieces");
    let passes = |ruleset: &Ruleset, from: [u8; 4], last: u8, port: u16| {
        let to = IpAddr::from([10, 244, 1, last]);
        trace(&ruleset.v4, &Packet::new(from.into(), to, Transport::Port(Protocol::Tcp, port))).passed
    };
    for (_, ruleset) in &steps {
        for set in 0..4 {
            let [_, a, b, c] = (u32::from(set) * 24_000).to_be_bytes();
            assert!(passes(ruleset, [20 + a, b, c, 1], 1, 1000 + set), "always allowed: {set}");
            assert!(!passes(ruleset, [20 + a, b, c, 1], 1, 999), "never allowed: {set}");
        }
        assert!(!passes(ruleset, [192, 0, 2, 1], 2, 80));
    }
}

#[test]
fn change_in_another_namespace_does_not_wait_for_large_sets() {
    let dataplane = Slow { pause: Duration::from_millis(200), ..Slow::default() };
    let running = Loop::start(dataplane.clone());
    running.send(Input::changes(vec![local("x", "db", 1), local("y", "web", 2)]));
    running.send(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    dataplane.steps.lock().unwrap().clear();
    running.send(Input::changes(large("x", 6, 12_000)));
    let deferred = || running.metrics.deferred_sets.get();
    wait_for("deferral", || deferred() > 0);
    let written_before = dataplane.steps.lock().unwrap().len();
    running.send(Input::changes(vec![deny_all("all", "y")]));
    let to = IpAddr::from([10, 244, 1, 2]);
    let packet = Packet::new(IpAddr::from([192, 0, 2, 1]), to, Transport::Port(Protocol::Tcp, 80));
    let denied = |ruleset: &Ruleset| !trace(&ruleset.v4, &packet).passed;
    wait_for("the deny", || {
        dataplane.steps.lock().unwrap().last().is_some_and(|(_, ruleset)| denied(ruleset))
    });
    // The piece that is being written when it arrives, and what one sync writes: in entries, which the kernel takes at
    // a steady rate, so that the bound holds on any machine.
    let ahead: usize = {
        let steps = dataplane.steps.lock().unwrap();
        let first = steps.iter().position(|(_, ruleset)| denied(ruleset)).unwrap();
        steps[written_before..=first].iter().map(|(edits, _)| edits).sum()
    };
    assert!(ahead <= 10_000 + 20_000 + 100, "{ahead} entries were written first");
    assert!(deferred() > 0 || running.status.waiting() > Duration::ZERO, "large sets still wait");
    assert!(running.status.waiting() > Duration::ZERO, "their changes still wait");
    wait_for("the deferred sets", || deferred() == 0);
    let mut objects = vec![local("x", "db", 1), local("y", "web", 2), deny_all("all", "y")];
    objects.extend(large("x", 6, 12_000));
    wait_for("all sets", || dataplane.inner.ruleset() == ruleset_of(&objects));
    assert_eq!(running.status.waiting(), Duration::ZERO);
    running.end();
}

#[test]
fn set_that_a_dead_process_left_incomplete_is_completed() {
    let mut objects = vec![local("x", "db", 1)];
    objects.extend(large("x", 4, 12_000));
    let whole = ruleset_of(&objects);
    for dies_after in [1, 20_001, 30_000, 45_000] {
        let dataplane = Slow::default();
        dataplane.inner.fake.lock().unwrap().die_after(dies_after);
        let dying = Loop::start(dataplane.clone());
        dying.send(Input::changes(objects.clone()));
        dying.send(Input::Synced);
        wait_for("the failure", || matches!(dying.status.readiness(), Readiness::Failing(_)));
        dying.end();
        dataplane.inner.fake.lock().unwrap().revive();
        let successor = Loop::start(dataplane.clone());
        successor.send(Input::changes(objects.clone()));
        successor.send(Input::Synced);
        wait_for("readiness", || successor.status.readiness() == Readiness::Ready);
        wait_for("the complete ruleset", || dataplane.inner.ruleset() == whole);
        successor.end();
    }
}

#[test]
fn refused_deferred_set_closes_its_rules_and_the_others_are_written() {
    let mut objects = vec![local("x", "db", 1)];
    objects.extend(large("x", 4, 12_000));
    let whole = ruleset_of(&objects);
    let is_large = |(_, set): &(&SetName, &towpath::ruleset::IpSet)| set.members.len() == 12_000;
    let refused = Object::Set(whole.v4.sets.iter().filter(is_large).nth(3).unwrap().0.clone());
    let dataplane = Slow::default();
    dataplane.inner.fake.lock().unwrap().refuse(refused.clone());
    let running = Loop::start(dataplane.clone());
    running.send(Input::changes(objects));
    running.send(Input::Synced);
    wait_for("degradation", || matches!(running.status.readiness(), Readiness::Degraded(_)));
    let closed = whole.without(&BTreeSet::from([refused]));
    wait_for("the other sets", || dataplane.inner.ruleset() == closed);
    running.end();
}
