//! Which inputs go into one sync, when there is one, and what is counted.

use std::{
    net::IpAddr,
    sync::mpsc::{channel, sync_channel},
};

use super::*;
use crate::{
    dataplane::fake::Fake,
    model::{
        Attachment, KnownAttachment, LabelSelector, Labels, Namespace, NetworkPolicy, Node, ObjectKey, Peer,
        Peers, PodPeer, PolicyRule, Ports, Scope, Standing,
    },
    ruleset::SetRole,
};

const HOUR: Duration = Duration::from_hours(1);

/// An agent that has written the rules of no objects, and whose next sync is due in an hour.
fn agent() -> Agent<Fake> {
    let mut agent = starting();
    agent.take(Input::Synced);
    agent.act(Instant::now());
    assert_eq!(syncs(&agent), 1);
    agent
}

/// An agent whose sources have not delivered their first lists yet.
fn starting() -> Agent<Fake> {
    let pace = Pace { debounce: HOUR, retry_first: HOUR, retry_most: HOUR, gc: HOUR, check: HOUR };
    let (metrics, status) = (Arc::new(Metrics::new().unwrap()), Arc::new(Status::starting("the objects")));
    Agent::new("n1", Fake::default(), Options::default(), pace, metrics, status, None)
}

/// How many syncs succeeded.
fn syncs(agent: &Agent<Fake>) -> u64 {
    agent.metrics.syncs.with_label_values(&["success"]).get()
}

fn input(changes: impl IntoIterator<Item = Change>) -> Input {
    Input::changes(changes.into_iter().collect())
}

/// Takes in one change by itself.
fn take(agent: &mut Agent<Fake>, change: Change) {
    assert!(agent.take(input([change])));
}

/// A pod of a node; the address is different for each `last`.
fn pod_on(node: &str, name: &str, last: u8) -> Change {
    let (node, addresses) = (Some(node.into()), vec![IpAddr::from([10, 244, 1, last])]);
    Change::SetPod(Pod { node, addresses, ..Pod::new(ObjectKey::new("shop", name)) })
}

/// A change that only moves members of sets: a new pod of another node.
fn member(last: u8) -> Change {
    pod_on("n2", &format!("far-{last}"), last)
}

/// A change of chains: a policy.
fn policy(name: &str) -> Change {
    Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new("shop", name),
        subject: LabelSelector::everything(),
        ingress: Some(Vec::new()),
        egress: None,
        standing: Standing::Accepted,
    })
}

#[test]
fn inputs_that_have_arrived_are_taken_in_together_until_the_deadline() {
    let (sender, inbox) = channel();
    let mut agent = starting();
    let send = |last: u8| sender.send(input([member(last)])).unwrap();
    let pods = |agent: &Agent<Fake>| agent.cluster.pods().count();
    // Before the first lists are complete there is no sync to wait for.
    (2..4).for_each(send);
    assert!(agent.take_all(input([member(1)]), &inbox, Instant::now()));
    assert_eq!(pods(&agent), 3);
    agent.take(Input::Synced);
    (5..7).for_each(send);
    assert!(agent.take_all(input([member(4)]), &inbox, Instant::now() + HOUR));
    assert_eq!(pods(&agent), 6);
    (8..10).for_each(send);
    assert!(agent.take_all(input([member(7)]), &inbox, Instant::now()));
    assert_eq!(pods(&agent), 7, "the others come after the sync");
    sender.send(Input::Stop).unwrap();
    assert!(!agent.take_all(input([member(10)]), &inbox, Instant::now() + HOUR));
}

#[test]
fn loop_sleeps_until_the_heartbeat_or_the_next_due_time() {
    let mut agent = agent();
    let rest = |agent: &Agent<Fake>| {
        let before = Instant::now();
        let at = agent.deadline();
        (at - before, at - Instant::now().min(at))
    };
    let is_heartbeat = |(most, least): (Duration, Duration)| least <= HEARTBEAT && HEARTBEAT <= most;
    assert!(is_heartbeat(rest(&agent)));
    take(&mut agent, policy("p"));
    assert!(is_heartbeat(rest(&agent)), "the sync is not due yet");
    let now = Instant::now();
    let soon = now + Duration::from_secs(1);
    agent.schedule.starts(soon.checked_sub(HOUR).unwrap(), false);
    assert!(is_heartbeat(rest(&agent)), "there is nothing to write");
    agent.schedule.changed();
    assert_eq!(agent.deadline(), soon);
    assert!(is_heartbeat(rest(&starting())));
}

#[test]
fn changes_of_one_input_close_first_and_a_single_change_does_not() {
    let addresses = |moves: &[Move]| -> Vec<(usize, bool)> {
        moves.iter().map(|step| (step.addresses.len(), step.close_first)).collect()
    };
    // All pods of the namespace may reach the pod of this node.
    let Change::SetPolicy(denying) = policy("p") else { unreachable!() };
    let peer = PodPeer { scope: Scope::Own("shop".into()), pods: LabelSelector::everything() };
    let rule = PolicyRule { peers: Peers::Of(vec![Peer::Pods(peer)]), ports: Ports::Any };
    let mut agent = agent();
    take(&mut agent, pod_on("n1", "web", 100));
    take(&mut agent, Change::SetPolicy(NetworkPolicy { ingress: Some(vec![rule]), ..denying }));
    agent.sync(false);
    take(&mut agent, member(1));
    take(&mut agent, member(2));
    assert_eq!(addresses(&agent.resolver.take_moves()), [(1, false), (1, false)]);
    take(&mut agent, member(3));
    agent.take(input([member(4), member(5)]));
    assert_eq!(addresses(&agent.resolver.take_moves()), [(1, false), (2, true)]);
}

#[test]
fn sync_separates_member_moves_from_chain_changes() {
    let mut agent = agent();
    agent.batch.begin();
    take(&mut agent, member(1));
    take(&mut agent, member(2));
    assert_eq!(syncs(&agent), 1, "both only move members");
    take(&mut agent, policy("a"));
    assert_eq!(syncs(&agent), 2);
    assert_eq!(agent.dataplane.ruleset().v4.sets.values().map(|set| set.members.len()).max(), Some(2));
    take(&mut agent, policy("b"));
    assert_eq!(syncs(&agent), 2, "both change chains");
    take(&mut agent, member(3));
    assert_eq!(syncs(&agent), 3);
    agent.take(input([member(4), policy("c")]));
    assert_eq!(syncs(&agent), 4, "one that also changes chains is a change of chains");
    agent.take(input([policy("d"), member(5)]));
    assert_eq!(syncs(&agent), 4, "and is never split");
}

#[test]
fn batch_is_split_at_most_four_times() {
    let (sender, inbox) = channel();
    let mut agent = agent();
    for turn in 1..10 {
        sender.send(input([policy(&format!("p{turn}"))])).unwrap();
        sender.send(input([member(turn)])).unwrap();
    }
    assert!(agent.take_all(input([member(0)]), &inbox, Instant::now() + HOUR));
    assert_eq!(syncs(&agent), 1 + 4);
    assert!(agent.schedule.may_split(), "the rest is one sync");
}

#[test]
fn no_sync_splits_a_batch_before_the_initial_lists_while_a_retry_waits_or_when_nothing_is_pending() {
    let mut agent = starting();
    agent.batch.begin();
    take(&mut agent, member(1));
    take(&mut agent, policy("a"));
    assert_eq!(syncs(&agent), 0, "nothing is written before everything is read");

    let mut agent = self::agent();
    agent.batch.begin();
    agent.schedule.refused(Instant::now());
    take(&mut agent, member(1));
    take(&mut agent, policy("a"));
    assert_eq!(syncs(&agent), 1, "what failed is retried when it is due, and not before");

    let mut agent = self::agent();
    agent.batch.begin();
    take(&mut agent, Change::RemovePod(ObjectKey::new("shop", "unknown")));
    take(&mut agent, policy("a"));
    assert_eq!(syncs(&agent), 1, "nothing was waiting to be written");
}

fn namespace(name: &str) -> Change {
    Change::SetNamespace(Namespace { name: name.into(), labels: Labels::default() })
}

#[test]
fn sync_runs_when_due_and_something_is_pending() {
    let mut agent = agent();
    let early = Instant::now();
    let late = early + HOUR;
    agent.act(late);
    assert_eq!(syncs(&agent), 1, "nothing changed");
    take(&mut agent, policy("a"));
    agent.act(early);
    assert_eq!(syncs(&agent), 1, "changes gather meanwhile");
    agent.act(late);
    assert_eq!(syncs(&agent), 2);
    let now = Instant::now();
    agent.schedule.sets_unused(now);
    agent.act(now);
    assert_eq!(syncs(&agent), 2);
    agent.act(now + HOUR);
    assert_eq!(
        syncs(&agent),
        3,
        "unused sets are destroyed when that is due, whether or not anything is pending"
    );
}

#[test]
fn metrics_count_the_objects_of_each_kind() {
    let mut agent = starting();
    let node = |name: &str| {
        Change::SetNode(Node { name: name.into(), addresses: Vec::new(), pod_cidrs: Vec::new() })
    };
    let cases = [
        ("Pod", [member(1), member(2)], Change::RemovePod(ObjectKey::new("shop", "far-1"))),
        ("NetworkPolicy", [policy("a"), policy("b")], Change::RemovePolicy(ObjectKey::new("shop", "a"))),
        ("Node", [node("n1"), node("n2")], Change::RemoveNode("n1".into())),
        ("Namespace", [namespace("shop"), namespace("bank")], Change::RemoveNamespace("shop".into())),
    ];
    for (kind, set, remove) in cases {
        let metrics = agent.metrics.clone();
        let count = || metrics.objects.with_label_values(&[kind]).get();
        for change in set {
            take(&mut agent, change);
        }
        assert_eq!(count(), 2, "{kind}");
        take(&mut agent, remove);
        assert_eq!(count(), 1, "{kind}");
    }
    // A change of an object leaves the number of objects as it is.
    take(&mut agent, pod_on("n3", "far-2", 2));
    assert_eq!(agent.metrics.objects.with_label_values(&["Pod"]).get(), 1);
}

/// The attachment of a pod of this node, and what its plugin hears.
fn attached(name: &str, last: u8) -> (Input, Receiver<PodRules>) {
    let (input, _, answer) = attachment(name, last);
    (input, answer)
}

/// The same with what the gate learns at once: whether the pod's address is closed.
fn attachment(name: &str, last: u8) -> (Input, Receiver<bool>, Receiver<PodRules>) {
    let (learned, is_closed) = sync_channel(1);
    let (written, answer) = sync_channel(1);
    let attachment = Attachment {
        id: AttachmentId { container: format!("c-{last}").into(), interface: "eth0".into() },
        pod: ObjectKey::new("shop", name),
        uid: None,
        host_interfaces: Vec::new(),
        mac: None,
        addresses: vec![IpAddr::from([10, 244, 1, last])],
    };
    let known = KnownAttachment { attachment, object: None };
    (Input::Attached(Box::new(Attached { known, taken: learned, written })), is_closed, answer)
}

/// A pod of this node that reports no address.
fn pending(name: &str) -> Change {
    let Change::SetPod(pod) = pod_on("n1", name, 0) else { unreachable!("a pod") };
    Change::SetPod(Pod { addresses: Vec::new(), ..pod })
}

/// The addresses of this node's pods in the kernel.
fn local_pods(agent: &Agent<Fake>) -> usize {
    let held = agent.dataplane.ruleset();
    let set = held.v4.sets.iter().find(|(name, _)| name.role() == SetRole::LocalPods);
    set.map_or(0, |(_, set)| set.members.len())
}

#[test]
fn plugin_is_answered_once_the_pod_is_in_the_kernel_without_the_debounce() {
    let mut agent = agent();
    take(&mut agent, pending("web"));
    let (input, answer) = attached("web", 7);
    agent.take(input);
    assert!(answer.try_recv().is_err());
    agent.act(Instant::now());
    assert_eq!((answer.try_recv(), local_pods(&agent)), (Ok(PodRules::Policies), 1));
    let (written, done) = sync_channel(1);
    let id = AttachmentId { container: "c-7".into(), interface: "eth0".into() };
    agent.take(Input::Detached(vec![id], written));
    assert!(done.try_recv().is_err());
    agent.act(Instant::now());
    assert_eq!((done.try_recv(), local_pods(&agent)), (Ok(()), 0));
}

#[test]
fn gate_learns_whether_the_rules_in_the_kernel_close_the_address_of_a_new_pod() {
    let closes = |options: Options, block: &str, before: &[Change]| {
        let pace = Pace { debounce: HOUR, retry_first: HOUR, retry_most: HOUR, gc: HOUR, check: HOUR };
        let (metrics, status) =
            (Arc::new(Metrics::new().unwrap()), Arc::new(Status::starting("the objects")));
        let mut agent = Agent::new("n1", Fake::default(), options, pace, metrics, status, None)
            .with_pod_cidrs(&[block.parse().unwrap()]);
        agent.take(input(before.iter().cloned()));
        let ask = |agent: &mut Agent<Fake>| {
            let (input, is_closed, _) = attachment("web", 7);
            agent.take(input);
            is_closed.try_recv().unwrap()
        };
        assert!(!ask(&mut agent), "nothing is written yet");
        agent.take(Input::Detached(
            vec![AttachmentId { container: "c-7".into(), interface: "eth0".into() }],
            sync_channel(1).0,
        ));
        agent.take(Input::Synced);
        agent.act(Instant::now());
        ask(&mut agent)
    };
    let closing = || Options { close_unknown_pods: true, ..Options::default() };
    assert!(closes(closing(), "10.244.1.0/24", &[]));
    assert!(!closes(closing(), "10.244.2.0/24", &[]), "it is in no block of this node");
    assert!(!closes(Options::default(), "10.244.1.0/24", &[]), "unknown pods are open");
    assert!(!closes(closing(), "10.244.1.0/24", &[pod_on("n1", "former", 7)]), "another pod holds it");
}

#[test]
fn sync_that_comes_before_an_attachment_does_not_answer_for_it() {
    let mut agent = agent();
    take(&mut agent, pending("web"));
    agent.act(Instant::now() + 2 * HOUR);
    agent.batch.begin();
    take(&mut agent, member(9));
    let before = syncs(&agent);
    let (input, answer) = attached("web", 7);
    agent.take(input);
    assert_eq!(syncs(&agent), before + 1, "members and chains are two syncs");
    assert!(answer.try_recv().is_err(), "the pod is not in the kernel");
    agent.act(Instant::now());
    assert_eq!(answer.try_recv(), Ok(PodRules::Policies));
}

#[test]
fn plugin_is_not_answered_before_the_initial_lists_nor_after_a_failure() {
    let mut agent = starting();
    let (input, answer) = attached("web", 7);
    agent.take(input);
    agent.act(Instant::now());
    assert!(answer.try_recv().is_err());
    agent.dataplane.die_after(0);
    agent.take(Input::Synced);
    agent.act(Instant::now());
    assert!(answer.try_recv().is_err(), "the sync failed");
    agent.dataplane.revive();
    agent.act(Instant::now() + 2 * HOUR);
    assert_eq!(answer.try_recv(), Ok(PodRules::Closed), "nothing is known of the pod");
}

#[test]
fn answers_follow_the_owners_to_the_interface_guard() {
    let (sender, guard) = channel();
    let mut agent = agent().with_guard(Some(sender));
    let (input, answer) = attached("web", 7);
    agent.take(input);
    agent.act(Instant::now());
    assert!(answer.try_recv().is_err(), "the guard answers");
    let GuardInput::Owners(owners) = guard.try_recv().unwrap() else { panic!("owners come first") };
    assert_eq!(owners.pods.len(), 1);
    let GuardInput::Answers(answers) = guard.try_recv().unwrap() else { panic!("then the answer") };
    answers.into_iter().for_each(Answer::give);
    assert_eq!(answer.try_recv(), Ok(PodRules::Closed));
}

#[test]
fn changed_attachments_are_recorded() {
    let (sender, records) = channel();
    let mut agent = agent().with_attachments(Vec::new(), Some(sender));
    let (input, _answer) = attached("web", 7);
    agent.take(input);
    take(&mut agent, pending("web"));
    take(&mut agent, Change::RemovePod(ObjectKey::new("shop", "web")));
    let (written, _done) = sync_channel(1);
    agent.take(Input::Detached(
        vec![AttachmentId { container: "c-7".into(), interface: "eth0".into() }],
        written,
    ));
    let seen: Vec<Option<bool>> = records
        .try_iter()
        .map(|record| match record {
            AttachmentRecord::Keep(known) => Some(known.object.is_some()),
            AttachmentRecord::Forget(_) => None,
        })
        .collect();
    assert_eq!(seen, [Some(false), Some(true), None]);
}

#[test]
fn objects_are_handed_over_only_while_somebody_waits_for_them() {
    let mut agent = agent();
    let mut ask = |until: Instant| {
        let (reply, answer) = sync_channel(1);
        assert!(agent.take(Input::Snapshot(u64::MAX, until, reply)));
        answer.try_recv().is_ok()
    };
    assert!(ask(Instant::now() + HOUR));
    assert!(!ask(Instant::now()));
}
