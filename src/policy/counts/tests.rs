//! Namespaces that close and open again because of pods elsewhere.

use super::*;
use crate::{
    model::{
        Change, Delta, IpBlock, LabelSelector, NetworkPolicy, ObjectKey, Operator, Peer, Peers, PolicyRule,
        Port, PortRange, Ports, Protocol, Requirement, Standing,
    },
    policy::resolve::{LocalPod, Resolved, Resolver},
};

const HERE: &str = "n1";

/// A cluster that is resolved both from scratch and incrementally; the results must be equal.
struct World {
    cluster: Cluster,
    resolver: Resolver,
    budgets: Budgets,
    pods: Option<Arc<[LocalPod]>>,
}

/// What is over its budget: the namespace, whose budget, the resource, and the cost.
type Over = Vec<(String, Scale, Resource, u64)>;

impl World {
    /// A pod of this node in each of `namespaces`.
    fn new(budgets: Budgets, namespaces: &[&str]) -> Self {
        let resolver = Resolver::new(HERE).with_budgets(budgets);
        let mut world = Self { cluster: Cluster::new(), resolver, budgets, pods: None };
        for (namespace, last) in namespaces.iter().zip(1..) {
            world.apply(pod(HERE, namespace, "web", &[last]));
        }
        world
    }

    fn apply(&mut self, change: Change) {
        if let Some(delta) = self.cluster.apply(change) {
            self.resolver.update(&self.cluster, &delta);
        }
    }

    /// What is over its budget now, and whether the pods had to be recomputed.
    fn over(&mut self) -> (Over, bool) {
        let Resolved { pods, over_budget, selections, .. } = self.resolver.resolve(&self.cluster);
        let from_scratch =
            Resolver::of(HERE, &self.cluster).with_budgets(self.budgets).resolve(&self.cluster);
        let closed =
            |over: &[OverBudget]| -> Vec<Closed> { over.iter().map(|one| one.closed.clone()).collect() };
        assert_eq!(closed(&over_budget), closed(&from_scratch.over_budget));
        assert_eq!(selections, from_scratch.selections);
        let is_new = !self.pods.as_ref().is_some_and(|before| Arc::ptr_eq(before, &pods));
        self.pods = Some(pods);
        let describe = |one: &OverBudget| (one.namespace().to_string(), one.scale, one.resource, one.cost);
        (over_budget.iter().map(describe).collect(), is_new)
    }

    #[track_caller]
    fn expect(&mut self, change: Change, over: &[(&str, Scale, Resource, u64)], is_new: bool) {
        self.apply(change);
        let (now, was_new) = self.over();
        let now: Vec<_> = now.iter().map(|(name, scale, of, cost)| (&**name, *scale, *of, *cost)).collect();
        assert_eq!(now, over);
        assert_eq!(was_new, is_new, "whether pods were resolved again");
    }
}

fn pod(node: &str, namespace: &str, name: &str, lasts: &[u8]) -> Change {
    let labels = [("app", name)].into_iter().collect();
    let second = if node == HERE { 1 } else { 2 };
    let addresses = lasts.iter().map(|last| [10, 244, second, *last].into()).collect();
    let pod = Pod::new(ObjectKey::new(namespace, name));
    Change::SetPod(Pod { labels, node: Some(node.into()), addresses, ..pod })
}

/// A pod of another node that no policy isolates here.
fn far(name: &str, lasts: &[u8]) -> Change {
    pod("n2", "far", name, lasts)
}

fn removal(name: &str) -> Change {
    Change::RemovePod(ObjectKey::new("far", name))
}

/// A policy of `namespace` with a rule for each of these peers, each with its own port so that they are not merged.
fn policy(namespace: &str, peers: impl IntoIterator<Item = PodPeer>) -> Change {
    let rule = |(peer, port): (PodPeer, u16)| PolicyRule {
        peers: Peers::Of(vec![Peer::Pods(peer)]),
        ports: Ports::Of(vec![Port::Range(Protocol::Tcp, PortRange::single(port))]),
    };
    Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new(namespace, "p"),
        subject: LabelSelector::everything(),
        ingress: Some(peers.into_iter().zip(1..).map(rule).collect()),
        egress: None,
        standing: Standing::Accepted,
    })
}

/// `count` distinct peers: pods of the namespace `far` that meet `requirement`, and lack a label that none has.
fn peers(count: usize, requirement: Option<&Requirement>) -> impl Iterator<Item = PodPeer> {
    (0..count).map(move |at| {
        let operator = Operator::NotIn([at.to_string().into()].into());
        let differs = Requirement { key: "none".into(), operator };
        let pods = LabelSelector::new([differs].into_iter().chain(requirement.cloned()));
        PodPeer { scope: Scope::Own("far".into()), pods }
    })
}

/// The same in every namespace, so that no label finds them; in one rule, so that they are one set.
fn compared_with_all(namespace: &str, count: usize) -> Change {
    let everywhere = |peer: PodPeer| PodPeer { scope: Scope::Matching(LabelSelector::everything()), ..peer };
    let peers = peers(count, None).map(everywhere).map(Peer::Pods).collect();
    let rules = vec![PolicyRule { peers: Peers::Of(peers), ports: Ports::Any }];
    Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new(namespace, "p"),
        subject: LabelSelector::everything(),
        ingress: Some(rules),
        egress: None,
        standing: Standing::Accepted,
    })
}

#[test]
fn too_many_remote_members_close_a_namespace_until_pods_are_removed() {
    let mut world = World::new(Budgets { namespace_members: 40, ..Budgets::UNLIMITED }, &["a"]);
    world.expect(policy("a", peers(20, None)), &[], true);
    world.expect(far("p1", &[1]), &[], false);
    world.expect(far("p2", &[2]), &[], false);
    world.expect(far("p3", &[3]), &[("a", Scale::Namespace, Resource::Members, 60)], true);
    // The reported cost is that at the moment of closing.
    world.expect(far("p4", &[4]), &[("a", Scale::Namespace, Resource::Members, 60)], false);
    world.expect(removal("p4"), &[("a", Scale::Namespace, Resource::Members, 60)], false);
    world.expect(removal("p1"), &[], true);
    // Two addresses count as two.
    world.expect(far("p3", &[3, 5]), &[("a", Scale::Namespace, Resource::Members, 60)], true);
}

#[test]
fn too_many_remote_members_of_a_node_close_its_largest_namespace() {
    let mut world = World::new(Budgets { node_members: 72, ..Budgets::UNLIMITED }, &["a", "b"]);
    world.apply(policy("a", peers(12, None)));
    world.expect(policy("b", peers(12, None)), &[], true);
    // Sixteen for each address of the cluster are exactly 96 by now.
    world.expect(far("p1", &[1, 2, 3, 4]), &[], false);
    world.expect(far("p2", &[5]), &[("a", Scale::Node, Resource::Members, 60)], true);
    world.expect(removal("p2"), &[], true);
}

#[test]
fn namespace_that_becomes_the_largest_is_closed_instead() {
    let mut world = World::new(Budgets { node_members: 70, ..Budgets::UNLIMITED }, &["a", "b"]);
    let named = |name: &str| Requirement::equals("app", name);
    world.apply(policy("a", peers(40, Some(&named("x")))));
    world.expect(policy("b", peers(40, Some(&named("y")))), &[], true);
    world.apply(far("y", &[1]));
    world.expect(far("x", &[2, 3]), &[("a", Scale::Node, Resource::Members, 80)], true);
    world.expect(far("y", &[1, 4, 5]), &[("b", Scale::Node, Resource::Members, 120)], true);
}

#[test]
fn too_many_comparisons_with_remote_pods_close_a_namespace() {
    let mut world = World::new(Budgets { namespace_members: 10, ..Budgets::UNLIMITED }, &["a"]);
    world.expect(compared_with_all("a", 400), &[], true);
    world.expect(far("p1", &[1]), &[], false);
    world.expect(far("p2", &[2]), &[("a", Scale::Namespace, Resource::Comparisons, 1200)], true);
    world.expect(far("p3", &[3]), &[("a", Scale::Namespace, Resource::Comparisons, 1200)], false);
    world.apply(removal("p3"));
    world.expect(removal("p1"), &[], true);
}

#[test]
fn too_many_comparisons_of_a_node_close_the_first_of_two_namespaces() {
    let mut world = World::new(Budgets { node_members: 15, ..Budgets::UNLIMITED }, &["a", "b"]);
    world.apply(compared_with_all("b", 300));
    world.expect(compared_with_all("a", 300), &[], true);
    world.expect(far("p1", &[1]), &[("a", Scale::Node, Resource::Comparisons, 900)], true);
    world.expect(removal("p1"), &[], true);
}

#[test]
fn pods_without_address_or_finished_are_not_counted() {
    let mut world = World::new(Budgets { namespace_members: 40, ..Budgets::UNLIMITED }, &["a"]);
    world.expect(policy("a", peers(20, None)), &[], true);
    world.expect(far("p1", &[1, 2]), &[], false);
    world.expect(far("p2", &[]), &[], false);
    let finished = |name: &str| Pod {
        addresses: vec![[10, 244, 2, 9].into()],
        phase: crate::model::Phase::Succeeded,
        ..Pod::new(ObjectKey::new("far", name))
    };
    world.expect(Change::SetPod(finished("p3")), &[], false);
    world.expect(far("p3", &[9]), &[("a", Scale::Namespace, Resource::Members, 60)], true);
    world.expect(Change::SetPod(finished("p3")), &[], true);
}

#[test]
fn index_is_reused_while_the_selections_are_the_same() {
    let selection = |name: &str| {
        let [peer] =
            peers(1, Some(&Requirement::equals("app", name))).collect::<Vec<_>>().try_into().unwrap();
        Arc::new(Selection::new(Chosen::Pods(vec![peer])))
    };
    let (cluster, mut counts) = (Cluster::new(), Counts::default());
    let (one, other) = (selection("x"), selection("y"));
    let mut index = |used: &[&Arc<Selection>]| {
        counts.keep(&cluster, used.iter().copied());
        counts.index()
    };
    let first = index(&[&one]);
    assert!(Arc::ptr_eq(&first, &index(&[&one])));
    assert_eq!(index(&[&one, &other]).selections().len(), 2);
    assert_eq!(index(&[&other]).selections(), std::slice::from_ref(&other));
    // As many as before, but another one.
    assert_eq!(index(&[&one]).selections(), [one]);
}

#[test]
fn label_of_a_namespace_counts_all_its_pods() {
    let labelled = |labels: &[(&str, &str)]| {
        let labels = labels.iter().copied().collect();
        Change::SetNamespace(Namespace { name: "far".into(), labels })
    };
    let of_team = LabelSelector::new([Requirement::equals("team", "x")]);
    let of_team = |peer: PodPeer| PodPeer { scope: Scope::Matching(of_team.clone()), ..peer };
    let mut world = World::new(Budgets { namespace_members: 40, ..Budgets::UNLIMITED }, &["a"]);
    world.apply(labelled(&[]));
    world.apply(far("p1", &[1, 2, 3]));
    world.expect(policy("a", peers(20, None).map(of_team)), &[], true);
    let over = [("a", Scale::Namespace, Resource::Members, 60)];
    world.expect(labelled(&[("team", "x")]), &over, true);
    world.expect(labelled(&[("team", "x"), ("more", "y")]), &over, false);
    world.expect(labelled(&[("team", "y")]), &[], true);
    world.expect(labelled(&[("team", "x")]), &over, true);
    world.expect(Change::RemoveNamespace("far".into()), &[], true);
}

#[test]
fn named_port_counts_each_number_at_each_matching_address() {
    use crate::model::ContainerPort;
    let with_ports = |change: Change, numbers: &[u16]| {
        let Change::SetPod(pod) = change else { panic!("{change:?}") };
        let port = |number: &u16| ContainerPort {
            name: Some("http".into()),
            protocol: Protocol::Tcp,
            number: *number,
        };
        Change::SetPod(Pod { ports: numbers.iter().map(port).collect(), ..pod })
    };
    let of = |of: PortOwners| {
        let chosen = Chosen::NamedPort { protocol: Protocol::Tcp, name: "http".into(), of };
        Arc::new(Selection::new(chosen))
    };
    let called = |name: &str| peers(1, Some(&Requirement::equals("app", name))).collect::<Vec<_>>();
    let block = vec![IpBlock::new("10.244.2.0/30".parse().unwrap(), []).unwrap()];
    let selections = [
        of(PortOwners::Any),
        of(PortOwners::Of { pods: called("x"), blocks: Vec::new() }),
        of(PortOwners::Of { pods: Vec::new(), blocks: block.clone() }),
        of(PortOwners::Of { pods: called("y"), blocks: block }),
    ];
    let changes = [
        with_ports(far("x", &[1]), &[80, 8080]),
        // One of its addresses is in the block.
        with_ports(far("y", &[2, 200]), &[80]),
        far("z", &[3]),
    ];
    let (mut cluster, mut changing) = (Cluster::new(), Counts::default());
    changing.keep(&cluster, selections.iter());
    for change in changes {
        let Some(Delta::Pod { before, after, .. }) = cluster.apply(change) else {
            panic!("no change of a pod")
        };
        changing.pod(&cluster, before.as_ref(), after.as_ref());
    }
    let mut from_scratch = Counts::default();
    from_scratch.keep(&cluster, selections.iter());
    for counts in [changing, from_scratch] {
        assert_eq!(selections.each_ref().map(|selection| counts.of(selection)), [4, 2, 3, 4]);
    }
}
