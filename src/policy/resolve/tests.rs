//! State that a resolver keeps, drops and reports while the cluster changes.

use super::*;
use crate::model::{
    Change, LabelSelector, Node, Peer, Peers, PolicyRule, Ports, Requirement, Sandbox, SandboxState, Standing,
};

const HERE: &str = "n1";

struct World {
    cluster: Cluster,
    resolver: Resolver,
}

impl World {
    fn new() -> Self {
        Self { cluster: Cluster::new(), resolver: Resolver::new(HERE) }
    }

    fn apply(&mut self, change: Change) {
        if let Some(delta) = self.cluster.apply(change) {
            self.resolver.update(&self.cluster, &delta);
        }
    }

    fn resolve(&mut self) -> Resolved {
        self.resolver.resolve(&self.cluster)
    }

    /// What moved, and whether it closes first.
    fn moves(&mut self) -> Vec<(Vec<IpAddr>, bool)> {
        let moves = self.resolver.take_moves();
        moves.into_iter().map(|step| (step.addresses, step.close_first)).collect()
    }
}

fn address(last: u8) -> IpAddr {
    [10, 244, 1, last].into()
}

fn pod(node: &str, name: &str, last: u8) -> Change {
    let labels = [("app", name)].into_iter().collect();
    let addresses = vec![address(last)];
    Change::SetPod(Pod { labels, node: Some(node.into()), addresses, ..Pod::new(ObjectKey::new("a", name)) })
}

/// Every pod accepts ingress only from the pods that are called `friend`.
fn policy() -> Change {
    policy_for("friend")
}

fn policy_for(friend: &str) -> Change {
    let pods = LabelSelector::new([Requirement::equals("app", friend)]);
    let peers = Peers::Of(vec![Peer::Pods(PodPeer { scope: Scope::Own("a".into()), pods })]);
    Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new("a", friend),
        subject: LabelSelector::everything(),
        ingress: Some(vec![PolicyRule { peers, ports: Ports::Any }]),
        egress: None,
        standing: Standing::Accepted,
    })
}

#[test]
fn moves_are_recorded_from_the_first_resolution_on() {
    let mut world = World::new();
    world.apply(policy());
    world.apply(pod(HERE, "web", 1));
    world.apply(pod("n2", "friend", 2));
    assert_eq!(world.moves(), []);
    world.resolve();
    world.apply(pod("n2", "friend", 3));
    assert_eq!(world.moves(), [(vec![address(2), address(3)], false)]);
    // A pod of this node must be recomputed; moves of others until then are still reported.
    world.apply(pod(HERE, "db", 4));
    world.apply(pod("n2", "friend", 5));
    assert_eq!(world.moves(), [(vec![address(4)], false), (vec![address(3), address(5)], false)]);
}

#[test]
fn pod_move_is_recorded_without_selections() {
    let mut world = World::new();
    world.apply(pod(HERE, "web", 1));
    assert!(world.resolve().selections.is_empty());
    world.apply(pod("n2", "friend", 2));
    assert_eq!(world.moves(), [(vec![address(2)], false)]);
}

#[test]
fn changes_of_one_input_are_one_move_that_closes_first() {
    let mut world = World::new();
    world.resolve();
    world.apply(pod("n2", "friend", 1));
    let before = world.resolver.moves();
    assert_eq!(before, 1);
    world.resolver.join_moves(before);
    assert_eq!(world.resolver.moves(), 1, "no change, so no move");
    world.apply(pod("n2", "friend", 2));
    world.apply(pod("n2", "other", 1));
    world.resolver.join_moves(before);
    let joined = vec![address(1), address(2), address(1)];
    assert_eq!(world.moves(), [(vec![address(1)], false), (joined, true)]);
}

#[test]
fn node_addresses_are_those_of_node_objects_and_pods() {
    let node = |last: Option<u8>| {
        let addresses = last.map(|last| [192, 168, 0, last].into()).into_iter().collect();
        Change::SetNode(Node { name: "n2".into(), addresses, pod_cidrs: Vec::new() })
    };
    let expected = |lasts: &[u8]| {
        lasts.iter().map(|last| Member::Address([192, 168, 0, *last].into())).collect::<Vec<_>>()
    };
    let mut world = World::new();
    let mut nodes = |change: Change| {
        world.apply(change);
        let now: Vec<Member> = world.resolve().nodes.v4.iter().copied().collect();
        let from_scratch = Resolver::of(HERE, &world.cluster).resolve(&world.cluster).nodes;
        assert_eq!(from_scratch.v4.into_iter().collect::<Vec<_>>(), now);
        now
    };
    assert_eq!(nodes(node(Some(2))), expected(&[2]));
    let node_addresses = vec![[192, 168, 0, 3].into()];
    let elsewhere = Pod { node: Some("n3".into()), node_addresses, ..Pod::new(ObjectKey::new("a", "far")) };
    assert_eq!(nodes(Change::SetPod(elsewhere)), expected(&[2, 3]));
    assert_eq!(nodes(node(Some(4))), expected(&[3, 4]));
    assert_eq!(nodes(Change::RemovePod(ObjectKey::new("a", "far"))), expected(&[4]));
    assert_eq!(nodes(node(None)), []);
}

#[test]
fn namespace_without_pods_of_this_node_is_dropped() {
    let mut world = World::new();
    world.apply(policy());
    world.apply(pod(HERE, "web", 1));
    world.resolve();
    assert_eq!(world.resolver.tenants.len(), 1);
    world.apply(Change::RemovePod(ObjectKey::new("a", "web")));
    world.resolve();
    assert!(world.resolver.tenants.is_empty());
}

#[test]
fn later_selection_receives_later_pods() {
    let mut world = World::new();
    world.apply(pod(HERE, "web", 1));
    for (friend, last) in [("friend", 2), ("other", 3)] {
        world.apply(policy_for(friend));
        world.resolve();
        world.apply(pod("n2", friend, last));
        let now = world.resolve().selections;
        assert_eq!(now, Resolver::of(HERE, &world.cluster).resolve(&world.cluster).selections);
        assert!(now.values().any(|members| members.v4.contains(&Member::Address(address(last)))), "{friend}");
    }
}

#[test]
fn address_shared_with_a_pod_of_this_node_closes_first() {
    let mut world = World::new();
    world.apply(policy());
    world.apply(pod(HERE, "web", 9));
    world.resolve();
    for (node, closes_first) in [(HERE, true), ("n2", false)] {
        world.apply(pod(node, "one", 1));
        world.apply(pod(node, "two", 1));
        world.apply(Change::RemovePod(ObjectKey::new("a", "two")));
        world.apply(pod(node, "one", 2));
        world.apply(Change::RemovePod(ObjectKey::new("a", "one")));
        let expected = [
            (vec![address(1)], false),
            (vec![address(1)], closes_first),
            (vec![address(1)], closes_first),
            (vec![address(1), address(2)], false),
            (vec![address(2)], false),
        ];
        assert_eq!(world.moves(), expected, "{node}");
    }
}

/// A pod of this node in a sandbox, whose object is in this state.
fn in_sandbox(name: &str, last: u8, state: SandboxState) -> Change {
    let Change::SetPod(pod) = pod(HERE, name, last) else { unreachable!("a pod") };
    let sandbox = Sandbox { attachments: Vec::new(), state };
    Change::SetPod(Pod { sandbox: Some(Arc::new(sandbox)), ..pod })
}

#[test]
fn pod_in_a_sandbox_is_isolated_without_its_object_and_is_nobodys_peer() {
    let mut world = World::new();
    world.apply(policy());
    world.apply(pod(HERE, "web", 9));
    for (state, peers) in [(SandboxState::Current, 1), (SandboxState::Detached, 0)] {
        world.apply(in_sandbox("friend", 1, state));
        let resolved = world.resolve();
        let friend = resolved.pods.iter().find(|pod| &*pod.key.name == "friend").unwrap();
        assert!(friend.ingress.is_some() && friend.egress.is_none(), "{state:?}");
        let members: usize = resolved.selections.values().map(|members| members.v4.len()).sum();
        assert_eq!((members, resolved.all_pods.v4.len()), (peers, 1 + peers), "{state:?}");
    }
}

#[test]
fn pod_of_which_nothing_is_known_is_allowed_nothing() {
    let mut world = World::new();
    world.apply(pod(HERE, "web", 9));
    world.apply(in_sandbox("unknown", 1, SandboxState::Unknown));
    let resolved = world.resolve();
    let unknown = resolved.pods.iter().find(|pod| &*pod.key.name == "unknown").unwrap();
    let rules = |direction| {
        unknown
            .program(direction)
            .map(|program| program.tiers.iter().map(|tier| tier.rules.len()).sum::<usize>())
    };
    assert_eq!((rules(Direction::Ingress), rules(Direction::Egress)), (Some(0), Some(0)));
    assert!(resolved.pods.iter().all(|pod| &*pod.key.name != "web" || pod.ingress.is_none()));
}
