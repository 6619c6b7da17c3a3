use std::time::SystemTime;

use super::*;
use crate::{
    drops::collector::Dropped,
    model::{Change, LabelSelector, Labels, Namespace, NetworkPolicy, Node, Pod, Requirement, Workload},
    policy::{
        budget::{Resource, Scale},
        resolve::Resolver,
    },
};

/// `shop/web` and `shop/db` on this node, `blog/far` on another. `shop/db` admits nothing.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    for name in ["shop", "blog"] {
        cluster.apply(Change::SetNamespace(Namespace { name: name.into(), labels: Labels::default() }));
    }
    for (key, address, node) in [
        (ObjectKey::new("shop", "web"), "10.244.1.7", "n1"),
        (ObjectKey::new("shop", "db"), "10.244.1.9", "n1"),
        (ObjectKey::new("blog", "far"), "10.244.2.3", "n2"),
    ] {
        let workload = Workload { kind: "Deployment".into(), name: key.name.clone() };
        cluster.apply(Change::SetPod(Pod {
            labels: [("app", key.name.to_string())].into_iter().collect(),
            addresses: vec![address.parse().unwrap()],
            node: Some(node.into()),
            workload: Some(Arc::new(workload)),
            ..Pod::new(key)
        }));
    }
    let addresses = vec!["192.0.2.2".parse().unwrap()];
    cluster.apply(Change::SetNode(Node { name: "n2".into(), addresses, pod_cidrs: Vec::new() }));
    let subject = LabelSelector::new([Requirement::equals("app", "db")]);
    cluster.apply(Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new("shop", "db-closed"),
        subject,
        ingress: Some(Vec::new()),
        egress: Some(Vec::new()),
        standing: crate::model::Standing::Accepted,
    }));
    cluster
}

fn packet(from: &str, to: &str) -> Packet {
    Packet {
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
        protocol: Some(6),
        port: Some(5432),
        icmp: None,
        is_mid_connection: false,
        is_later_fragment: false,
    }
}

struct World {
    cluster: Cluster,
    local: LocalPods,
    over_budget: Vec<OverBudget>,
}

impl World {
    fn new() -> Self {
        let cluster = cluster();
        let local = LocalPods::new(Resolver::of("n1", &cluster).resolve(&cluster).pods);
        Self { cluster, local, over_budget: Vec::new() }
    }

    /// The prefix of what the policies of `pod` drop.
    fn prefix(&self, pod: &str, direction: Direction) -> LogPrefix {
        let pod = self.local.pods.iter().find(|known| known.key.to_string() == pod).unwrap();
        LogPrefix::Policy(direction, pod.program(direction).unwrap().digest.clone().into())
    }

    fn record(&self, prefix: LogPrefix, packet: Packet) -> Record {
        let dropped = Dropped { prefix, packet: Some(packet) };
        let now = SystemTime::now();
        let waiting = Waiting { dropped, count: 1, seen: (now, now), source_port: Some(40_000) };
        let owners = self.cluster.part_at(&[packet.source, packet.destination].into());
        let scene = Scene { node: "n1", owners: &owners, local: &self.local, over_budget: &self.over_budget };
        explain(&waiting, &scene)
    }
}

#[test]
fn denied_packet_names_both_ends_the_policies_and_the_reason() {
    let world = World::new();
    let record =
        world.record(world.prefix("shop/db", Direction::Ingress), packet("10.244.2.3", "10.244.1.9"));
    assert_eq!(record.flow(), "blog/far (Deployment far) -> shop/db:5432/TCP (Deployment db)");
    assert_eq!((record.from.node.as_deref(), record.to.node.as_deref()), (Some("n2"), Some("n1")));
    assert_eq!(record.policies, ["shop/db-closed"]);
    assert_eq!((record.kind.as_str(), record.direction.as_deref()), ("policy", Some("ingress")));
    let reason = "denied by ingress of shop/db: shop/db-closed has no rule, and allows nothing";
    assert_eq!(record.reason, reason);
    assert_eq!(record.source_port, Some(40_000));
    assert_eq!(record.note, None);
}

#[test]
fn egress_names_the_sender_as_the_one_that_is_isolated() {
    let world = World::new();
    let prefix = world.prefix("shop/db", Direction::Egress);
    let record = world.record(prefix.clone(), packet("10.244.1.9", "203.0.113.9"));
    assert_eq!(record.flow(), "shop/db (Deployment db) -> 203.0.113.9:5432/TCP");
    assert!(record.reason.starts_with("denied by egress of shop/db: "), "{}", record.reason);
    let record = world.record(prefix, packet("10.244.1.9", "192.0.2.2"));
    assert_eq!(record.flow(), "shop/db (Deployment db) -> node n2 (192.0.2.2):5432/TCP");
}

#[test]
fn rules_that_are_no_longer_the_pods_are_told_as_such() {
    let world = World::new();
    let old = LogPrefix::Policy(Direction::Ingress, "aaaaaaaaaaaaaaaa".into());
    let record = world.record(old.clone(), packet("10.244.1.7", "10.244.1.9"));
    assert_eq!(record.reason, "denied by ingress of shop/db: its rules have changed since");
    let record = world.record(old, packet("10.244.1.7", "10.244.1.99"));
    assert!(record.reason.contains("no pod of this node has any more"), "{}", record.reason);
}

#[test]
fn budget_is_named_when_it_closes_the_pod() {
    let mut world = World::new();
    let closed = Closed::Policy(ObjectKey::new("shop", "db-closed"));
    world.over_budget.push(OverBudget {
        closed,
        scale: Scale::Policy,
        resource: Resource::Units,
        cost: 9_000,
        budget: 100,
    });
    let record =
        world.record(world.prefix("shop/db", Direction::Ingress), packet("10.244.1.7", "10.244.1.9"));
    assert!(record.reason.contains("9000") || record.reason.contains("9,000"), "{}", record.reason);
}

#[test]
fn drops_that_no_policy_made_are_told_apart() {
    let world = World::new();
    let to_unknown = packet("10.244.1.7", "10.244.1.200");
    let reason = |prefix| world.record(prefix, to_unknown).reason;
    assert!(reason(LogPrefix::UnknownPod).starts_with("no pod of this node is known to have 10.244.1.200"));
    assert!(reason(LogPrefix::NoChain(Direction::Egress)).contains("shop/web: it is isolated"));
    assert!(reason(LogPrefix::Tunnel).starts_with("tunnel packet"));
    assert!(reason(LogPrefix::Link).starts_with("multicast"));
}

#[test]
fn packet_that_starts_nothing_has_a_note() {
    let world = World::new();
    let prefix = world.prefix("shop/db", Direction::Ingress);
    let cut = Packet { is_mid_connection: true, ..packet("10.244.1.7", "10.244.1.9") };
    assert!(world.record(prefix.clone(), cut).note.unwrap().contains("not the first packet"));
    let ping =
        Packet { protocol: Some(1), port: None, icmp: Some((8, 0)), ..packet("10.244.1.7", "10.244.1.9") };
    let record = world.record(prefix, ping);
    assert_eq!((record.protocol.as_deref(), record.note.as_deref()), (Some("ICMP"), Some("a ping")));
}
