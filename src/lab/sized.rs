//! Clusters of a given size that resemble real ones: many small namespaces, with a few policies in each.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{
    Change, ContainerPort, IpBlock, LabelSelector, Namespace, NetworkPolicy, ObjectKey, Peer, Peers, Pod,
    PodPeer, PolicyRule, Port, PortRange, Ports, Protocol, Requirement, Scope, Standing,
};

/// The size of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Its name.
    pub name: &'static str,
    /// The total number of pods.
    pub pods: usize,
    /// The total number of policies, ten in each namespace.
    pub policies: usize,
    /// The number of pods on the measured node.
    pub local: usize,
}

/// The sizes that benches use. The middle one is an everyday size.
pub const SIZES: [Size; 3] = [
    Size { name: "1k pods, 100 policies, 50 local", pods: 1_000, policies: 100, local: 50 },
    Size { name: "5k pods, 500 policies, 200 local", pods: 5_000, policies: 500, local: 200 },
    Size { name: "100k pods, 10k policies, 250 local", pods: 100_000, policies: 10_000, local: 250 },
];

/// The measured node.
pub const NODE: &str = "node-0";

const POLICIES_PER_NAMESPACE: usize = 10;
const APPS: usize = 10;
const TEAMS: usize = 20;

/// All objects of a cluster of this size, as the changes that create it.
#[must_use]
pub fn cluster(size: Size) -> Vec<Change> {
    let namespaces = (size.policies / POLICIES_PER_NAMESPACE).max(1);
    let mut changes: Vec<Change> = (0..namespaces).map(namespace).collect();
    changes.extend((0..size.pods).map(|index| pod(size, index)));
    changes.extend((0..size.policies).map(|index| Change::SetPolicy(policy(size, index))));
    changes
}

/// Pod number `index`; the first [`Size::local`] ones run on [`NODE`], spread over the namespaces.
#[must_use]
pub fn pod(size: Size, index: usize) -> Change {
    labelled_pod(size, index, index / namespaces(size) % APPS)
}

/// Pod number `index` with the labels of another app.
#[must_use]
pub fn labelled_pod(size: Size, index: usize, app: usize) -> Change {
    let node = if index < size.local { 0 } else { 1 + (index - size.local) / 110 };
    let address = u32::try_from(index).unwrap_or(0) + 10;
    let labels =
        [("app".to_owned(), format!("app-{app}")), ("release".to_owned(), format!("r{}", index % 3))];
    let host = u8::try_from(node % 250).unwrap_or(0) + 1;
    Change::SetPod(Pod {
        labels: labels.into_iter().collect(),
        node: Some(format!("node-{node}").into()),
        addresses: vec![IpAddr::from((10_u32 << 24 | address).to_be_bytes())],
        node_addresses: vec![IpAddr::from([192, 168, u8::try_from(node / 250).unwrap_or(0), host])],
        ports: vec![ContainerPort { name: Some("http".into()), protocol: Protocol::Tcp, number: 8080 }],
        ..Pod::new(ObjectKey::new(namespace_name(index % namespaces(size)), format!("pod-{index}")))
    })
}

fn namespaces(size: Size) -> usize {
    (size.policies / POLICIES_PER_NAMESPACE).max(1)
}

fn namespace_name(index: usize) -> String {
    format!("ns-{index}")
}

fn namespace(index: usize) -> Change {
    let name = namespace_name(index);
    let team = format!("team-{}", index % TEAMS);
    let labels = [("kubernetes.io/metadata.name", &name), ("team", &team)];
    let labels = labels.into_iter().map(|(key, value)| (key, value.as_str())).collect();
    Change::SetNamespace(Namespace { name: name.into(), labels })
}

/// Policy number `index`.
#[must_use]
pub fn policy(size: Size, index: usize) -> NetworkPolicy {
    let namespace_index = index % namespaces(size);
    let namespace = namespace_name(namespace_index);
    let turn = index / namespaces(size) % POLICIES_PER_NAMESPACE;
    let app = |app: usize| LabelSelector::new([Requirement::equals("app", format!("app-{}", app % APPS))]);
    let team = LabelSelector::new([Requirement::equals("team", format!("team-{}", namespace_index % TEAMS))]);
    let own = |pods| Peer::Pods(PodPeer { scope: Scope::Own(namespace.as_str().into()), pods });
    let tcp = |port| Ports::Of(vec![Port::Range(Protocol::Tcp, PortRange::single(port))]);
    let net = |octets: [u8; 4], prefix| IpNet::new_assert(IpAddr::from(octets), prefix);
    let office = IpBlock::new(net([172, 16, 0, 0], 12), [net([172, 17, 1, 0], 24)]);
    let office = office.into_iter().map(Peer::Block);
    let dns = Ports::Of(vec![
        Port::Range(Protocol::Udp, PortRange::single(53)),
        Port::Range(Protocol::Tcp, PortRange::single(53)),
    ]);
    let ingress = vec![
        PolicyRule { peers: Peers::Of(vec![own(app(turn + 1)), own(app(turn + 2))]), ports: tcp(8080) },
        PolicyRule {
            peers: Peers::Of(vec![Peer::Pods(PodPeer { scope: Scope::Matching(team), pods: app(turn) })]),
            ports: Ports::Of(vec![Port::Named(Protocol::Tcp, "http".into())]),
        },
        PolicyRule { peers: Peers::Of(office.collect()), ports: tcp(443) },
    ];
    let egress = vec![
        PolicyRule { peers: Peers::Any, ports: dns },
        PolicyRule { peers: Peers::Of(vec![own(app(turn + 3))]), ports: Ports::Any },
    ];
    NetworkPolicy {
        key: ObjectKey::new(namespace.as_str(), format!("policy-{index}")),
        subject: app(turn),
        ingress: Some(ingress),
        egress: turn.is_multiple_of(2).then_some(egress),
        standing: Standing::Accepted,
    }
}
