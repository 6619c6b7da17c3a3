//! Random clusters: small, so that their objects affect each other often.
//!
//! Labels, ports, blocks and addresses come from pools so small that selectors match now and then, blocks overlap,
//! excepts hit pods, and addresses collide. The same seed gives the same cluster on every machine.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::model::{
    Change, Cluster, ContainerPort, Family, IpBlock, LabelSelector, Labels, Namespace, NetworkPolicy,
    ObjectKey, Operator, Peer, Peers, Phase, Pod, PodPeer, PolicyRule, Port, PortRange, Ports, Protocol,
    Requirement, Scope, Standing, Transport,
};

/// The nodes of a random cluster.
pub const NODES: [&str; 2] = ["n1", "n2"];

/// A source of random numbers: the same seed gives the same numbers on every machine, with one version of `fastrand`.
#[derive(Clone, Debug)]
pub struct Random(fastrand::Rng);

impl Random {
    /// The numbers that follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0.usize(..bound.max(1))
    }

    /// True with a probability of `percent` in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`, which must not be empty.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// `choices` in another order.
    pub fn shuffled<T>(&mut self, mut choices: Vec<T>) -> Vec<T> {
        self.0.shuffle(&mut choices);
        choices
    }
}

/// The address families of a random cluster's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// Only IPv4.
    V4,
    /// Only IPv6.
    V6,
    /// Both; single pods may have only one of them.
    Dual,
}

/// The parameters of a random cluster.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Families of the pods' addresses.
    pub stack: Stack,
    /// The maximum number of namespaces, 1 to 4.
    pub namespaces: usize,
    /// The maximum number of pods in each namespace.
    pub pods: usize,
    /// The maximum number of policies.
    pub policies: usize,
    /// Whether there are pods that exist only briefly or not at all in a real cluster: finished ones, ones on the host
    /// network, ones without address, and ones that share an address.
    pub oddities: bool,
}

/// External addresses worth testing: some policies' blocks contain them, and some of their excepts do.
#[must_use]
pub fn externals(stack: Stack) -> Vec<IpAddr> {
    let v4 =
        [[172, 17, 0, 9], [172, 17, 1, 9], [203, 0, 113, 5]].map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
    let v6 =
        ["fd00:17::9", "fd00:17:0:1::9", "2001:db8::5"].map(|text| text.parse::<Ipv6Addr>().map(IpAddr::V6));
    let v6 = v6.into_iter().flatten();
    match stack {
        Stack::V4 => v4.to_vec(),
        Stack::V6 => v6.collect(),
        Stack::Dual => v4.into_iter().chain(v6).collect(),
    }
}

/// The transports worth testing in a random cluster.
#[must_use]
pub fn transports() -> Vec<Transport> {
    vec![
        Transport::Port(Protocol::Tcp, 80),
        Transport::Port(Protocol::Tcp, 81),
        Transport::Port(Protocol::Tcp, 8080),
        Transport::Port(Protocol::Udp, 53),
        Transport::Port(Protocol::Udp, 80),
        Transport::Port(Protocol::Sctp, 80),
        Transport::Other(1),
        Transport::Other(47),
    ]
}

/// Creates random objects of one shape.
#[derive(Clone, Debug)]
pub struct Generator {
    random: Random,
    shape: Shape,
}

impl Generator {
    /// The objects that follow from `seed`.
    #[must_use]
    pub fn new(seed: u64, shape: Shape) -> Self {
        Self { random: Random::new(seed), shape }
    }

    /// A whole cluster, as the changes that create it.
    pub fn cluster(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let namespaces = 1 + self.random.below(self.shape.namespaces);
        for name in NAMESPACES.iter().take(namespaces) {
            if !self.shape.oddities || self.random.chance(95) {
                changes.push(Change::SetNamespace(self.namespace(name)));
            }
            for index in 0..=self.random.below(self.shape.pods) {
                changes.push(Change::SetPod(self.pod(name, index)));
            }
        }
        for index in 0..self.random.below(self.shape.policies + 1) {
            let namespace = *self.random.pick(&NAMESPACES[..namespaces]);
            changes.push(Change::SetPolicy(self.policy(namespace, index)));
        }
        changes
    }

    /// One change of a cluster like those of [`Self::cluster`].
    pub fn change(&mut self) -> Change {
        let namespace = *self.random.pick(&NAMESPACES[..self.shape.namespaces.clamp(1, NAMESPACES.len())]);
        let pod = self.random.below(self.shape.pods);
        let policy = self.random.below(self.shape.policies);
        match self.random.below(10) {
            0..4 => Change::SetPod(self.pod(namespace, pod)),
            4 => Change::RemovePod(ObjectKey::new(namespace, POD_NAMES[pod % POD_NAMES.len()])),
            5 => Change::SetNamespace(self.namespace(namespace)),
            6 if self.shape.oddities => Change::RemoveNamespace(namespace.into()),
            7 => Change::RemovePolicy(ObjectKey::new(namespace, policy_name(policy))),
            _ => Change::SetPolicy(self.policy(namespace, policy)),
        }
    }

    /// Its random numbers, for other choices of the same test.
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    fn namespace(&mut self, name: &str) -> Namespace {
        let mut labels = self.labels();
        labels.push(("kubernetes.io/metadata.name".to_owned(), name.to_owned()));
        Namespace { name: name.into(), labels: labels.into_iter().collect() }
    }

    fn labels(&mut self) -> Vec<(String, String)> {
        let mut labels = Vec::new();
        for key in KEYS {
            if self.random.chance(60) {
                labels.push((key.to_owned(), (*self.random.pick(&VALUES)).to_owned()));
            }
        }
        labels
    }

    fn pod(&mut self, namespace: &str, index: usize) -> Pod {
        let key = ObjectKey::new(namespace, POD_NAMES[index % POD_NAMES.len()]);
        let node = self.random.below(NODES.len());
        let odd =
            |generator: &mut Self, percent| generator.shape.oddities && generator.random.chance(percent);
        let host_network = odd(self, 5);
        let addresses = if host_network {
            node_addresses(self.shape.stack, node)
        } else if odd(self, 5) {
            Vec::new()
        } else {
            // Every pod has its own address on each node, except some that report one of another pod: of their
            // neighbour, of some pod in another namespace, or of one on the other node.
            let slot = NAMESPACES.iter().position(|n| *n == namespace).unwrap_or(0) * POD_NAMES.len() + index;
            let luck = if self.shape.oddities { self.random.below(20) } else { 20 };
            let (subnet, slot) = match luck {
                0..4 => (node, slot + 1),
                4 => (node, self.random.below(2) * POD_NAMES.len()),
                5 => (self.random.below(NODES.len()), slot),
                _ => (node, slot),
            };
            let both = pod_addresses(self.shape.stack, subnet, slot);
            match both.as_slice() {
                [v4, _] if odd(self, 8) => vec![*v4],
                [_, v6] if odd(self, 8) => vec![*v6],
                _ => both,
            }
        };
        let phase = if odd(self, 5) {
            *self.random.pick(&[Phase::Succeeded, Phase::Failed])
        } else if self.random.chance(10) {
            Phase::Pending
        } else {
            Phase::Running
        };
        let labels = self.labels();
        let terminating = self.random.chance(5);
        // Drawn for a removed field, so that a seed without oddities still gives the same cluster as before.
        if self.random.chance(50) {
            self.random.number();
        }
        Pod {
            labels: labels.into_iter().collect::<Labels>(),
            node: Some(NODES[node].into()),
            addresses,
            node_addresses: node_addresses(self.shape.stack, node),
            host_network,
            phase,
            terminating,
            ports: self.container_ports(),
            ..Pod::new(key)
        }
    }

    fn container_ports(&mut self) -> Vec<ContainerPort> {
        let mut ports = Vec::new();
        for (name, protocol, numbers) in NAMED {
            if self.random.chance(70) {
                let number = *self.random.pick(&numbers);
                ports.push(ContainerPort { name: Some(name.into()), protocol, number });
            }
        }
        ports
    }

    /// A policy named after `index`.
    pub fn policy(&mut self, namespace: &str, index: usize) -> NetworkPolicy {
        let key = ObjectKey::new(namespace, policy_name(index));
        let subject = self.selector(50);
        let directions = self.random.below(4);
        let mut rules =
            |wanted: bool| wanted.then(|| (0..self.random.below(4)).map(|_| self.rule(namespace)).collect());
        let (ingress, egress) = (rules(directions != 1), rules(directions == 1 || directions == 2));
        NetworkPolicy { key, subject, ingress, egress, standing: Standing::Accepted }
    }

    /// A policy named after `index` that no person would write: blocks within blocks with many excepts, or many rules
    /// of one block and a port each.
    pub fn hostile_policy(&mut self, namespace: &str, index: usize) -> NetworkPolicy {
        let blocks = self.random.chance(50);
        let rules = |generator: &mut Self| -> Vec<PolicyRule> {
            if blocks {
                (0..=generator.random.below(2)).map(|_| generator.rule_of_excepts(namespace)).collect()
            } else {
                let count = 24 + generator.random.below(24);
                (0..count).map(|turn| generator.rule_of_one_port(namespace, turn)).collect()
            }
        };
        let (ingress, egress) = (rules(self), rules(self));
        let directions = self.random.below(3);
        NetworkPolicy {
            key: ObjectKey::new(namespace, policy_name(index)),
            subject: self.selector(70),
            ingress: (directions != 1).then_some(ingress),
            egress: (directions != 2).then_some(egress),
            standing: Standing::Accepted,
        }
    }

    fn rule_of_excepts(&mut self, namespace: &str) -> PolicyRule {
        let mut peers: Vec<Peer> =
            (0..=self.random.below(4)).filter_map(|_| self.block_of_excepts()).map(Peer::Block).collect();
        if self.random.chance(20) {
            peers.push(self.peer(namespace));
        }
        let ports =
            if self.random.chance(50) { Ports::Any } else { Ports::Of(vec![self.port(), self.port()]) };
        PolicyRule { peers: Peers::Of(peers), ports }
    }

    /// `turn` makes its ports differ from those of its neighbour rules, with which it would be merged.
    fn rule_of_one_port(&mut self, namespace: &str, turn: usize) -> PolicyRule {
        let own = 2000 + u16::try_from(turn).unwrap_or(0);
        let mut ports = vec![Port::Range(Protocol::Tcp, PortRange::single(own))];
        if self.random.chance(70) {
            ports.push(self.port());
        }
        let peer = match self.random.chance(90).then(|| self.small_block()).flatten() {
            Some(block) => Peer::Block(block),
            None => self.peer(namespace),
        };
        PolicyRule { peers: Peers::Of(vec![peer]), ports: Ports::Of(ports) }
    }

    /// A pod's address or an external one, or a few around it.
    fn small_block(&mut self) -> Option<IpBlock> {
        let mut known = externals(self.shape.stack);
        known.extend(pod_slots(self.shape.stack));
        let address = *self.random.pick(&known);
        let bits = Family::of(address).bits();
        let around = u8::try_from(self.random.below(6)).unwrap_or(0);
        IpBlock::new(IpNet::new(address, bits - around).ok()?, []).ok()
    }

    /// A block whose excepts are mostly single addresses, now and then those of pods.
    fn block_of_excepts(&mut self) -> Option<IpBlock> {
        let family = match self.shape.stack {
            Stack::V4 => Family::V4,
            Stack::V6 => Family::V6,
            Stack::Dual => *self.random.pick(&Family::BOTH),
        };
        let cidrs: Vec<IpNet> = WIDE
            .iter()
            .filter_map(|cidr| cidr.parse().ok())
            .filter(|cidr| Family::of_net(*cidr) == family)
            .collect();
        let cidr = *self.random.pick(&cidrs);
        let mut known = externals(self.shape.stack);
        known.extend(pod_slots(self.shape.stack));
        known.retain(|address| cidr.contains(address));
        let count = if self.random.chance(3) { 1100 } else { 1 + self.random.below(40) };
        let excepts: Vec<IpNet> = (0..count)
            .filter_map(|_| {
                let is_known = !known.is_empty() && self.random.chance(30);
                let address = if is_known { *self.random.pick(&known) } else { self.within(cidr) };
                let longer = usize::from(family.bits() - cidr.prefix_len());
                let shorter = if self.random.chance(75) { 0 } else { self.random.below(longer) };
                IpNet::new(address, family.bits() - u8::try_from(shorter).ok()?).ok()
            })
            .collect();
        IpBlock::new(cidr, excepts).ok()
    }

    /// An address in `cidr`.
    fn within(&mut self, cidr: IpNet) -> IpAddr {
        let number = u128::from(self.random.number()) << 64 | u128::from(self.random.number());
        match (cidr.network(), cidr.hostmask()) {
            (IpAddr::V4(network), IpAddr::V4(mask)) => {
                let number = u32::try_from(number >> 96).unwrap_or(0);
                Ipv4Addr::from(u32::from(network) | number & u32::from(mask)).into()
            }
            (IpAddr::V6(network), IpAddr::V6(mask)) => {
                Ipv6Addr::from(u128::from(network) | number & u128::from(mask)).into()
            }
            (network, _) => network,
        }
    }

    fn rule(&mut self, namespace: &str) -> PolicyRule {
        let peers = if self.random.chance(15) {
            Peers::Any
        } else {
            Peers::Of((0..=self.random.below(3)).map(|_| self.peer(namespace)).collect())
        };
        let ports = if self.random.chance(35) {
            Ports::Any
        } else {
            Ports::Of((0..=self.random.below(3)).map(|_| self.port()).collect())
        };
        PolicyRule { peers, ports }
    }

    fn peer(&mut self, namespace: &str) -> Peer {
        match self.random.below(3) {
            0 => Peer::Block(self.block()),
            own => {
                let scope =
                    if own == 1 { Scope::Own(namespace.into()) } else { Scope::Matching(self.selector(30)) };
                Peer::Pods(PodPeer { scope, pods: self.selector(40) })
            }
        }
    }

    fn selector(&mut self, everything_percent: usize) -> LabelSelector {
        if self.random.chance(everything_percent) {
            return LabelSelector::everything();
        }
        LabelSelector::new((0..=self.random.below(2)).map(|_| {
            let key: Arc<str> = (*self.random.pick(&KEYS)).into();
            let values: Arc<[Arc<str>]> =
                (0..=self.random.below(2)).map(|_| Arc::from(*self.random.pick(&VALUES))).collect();
            let operator = match self.random.below(6) {
                0 => Operator::NotIn(values),
                1 => Operator::Exists,
                2 => Operator::DoesNotExist,
                _ => Operator::In(values),
            };
            Requirement { key, operator }
        }))
    }

    #[expect(
        clippy::expect_used,
        reason = "the pool is below, and every test that makes a cluster would show it"
    )]
    fn block(&mut self) -> IpBlock {
        let blocks: Vec<(IpNet, Vec<IpNet>)> = BLOCKS
            .iter()
            .filter_map(|(cidr, excepts)| {
                Some((cidr.parse().ok()?, excepts.iter().filter_map(|except| except.parse().ok()).collect()))
            })
            .collect();
        let family = match self.shape.stack {
            Stack::V4 => Some(Family::V4),
            Stack::V6 => Some(Family::V6),
            Stack::Dual => None,
        };
        let fitting: Vec<_> = blocks
            .into_iter()
            .filter(|(cidr, _)| family.is_none_or(|f| f == Family::of_net(*cidr)))
            .collect();
        let (cidr, excepts) = self.random.pick(&fitting).clone();
        let excepts: BTreeSet<IpNet> = excepts.into_iter().filter(|_| self.random.chance(50)).collect();
        IpBlock::new(cidr, excepts).expect("the excepts of the pool lie within their blocks")
    }

    fn port(&mut self) -> Port {
        let protocol = *self.random.pick(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
        match self.random.below(6) {
            0 => Port::All(protocol),
            1 | 2 => {
                let (name, own, _) = *self.random.pick(&NAMED);
                Port::Named(if self.random.chance(80) { own } else { protocol }, name.into())
            }
            3 => Port::Range(
                protocol,
                PortRange::new(79, 80 + u16::from(self.random.chance(50))).unwrap_or(PORT_80),
            ),
            4 => Port::Range(protocol, PortRange::single(53)),
            _ => Port::Range(protocol, PORT_80),
        }
    }
}

/// The cluster that `changes` create.
#[must_use]
pub fn cluster_of(changes: impl IntoIterator<Item = Change>) -> Cluster {
    let mut cluster = Cluster::new();
    for change in changes {
        cluster.apply(change);
    }
    cluster
}

/// The addresses of pod number `slot` on a node: `10.244.<node>.<slot>` and `fd00:10:244:<node>::<slot>`.
#[must_use]
pub fn pod_addresses(stack: Stack, node: usize, slot: usize) -> Vec<IpAddr> {
    let subnet = u8::try_from(node + 1).unwrap_or(u8::MAX);
    let host = u16::try_from(slot + 10).unwrap_or(u16::MAX);
    let [high, low] = host.to_be_bytes();
    let v4 = IpAddr::from([10, 244, subnet.wrapping_add(high), low]);
    let v6 = IpAddr::from([0xfd00, 0x10, 0x244, u16::from(subnet), 0, 0, 0, host]);
    by_stack(stack, v4, v6)
}

/// The addresses of all possible pods.
fn pod_slots(stack: Stack) -> impl Iterator<Item = IpAddr> {
    let slots = 0..NAMESPACES.len() * POD_NAMES.len();
    (0..NODES.len())
        .flat_map(move |node| slots.clone().flat_map(move |slot| pod_addresses(stack, node, slot)))
}

/// The addresses of a node: `192.168.77.<node>` and `fd00:77::<node>`.
#[must_use]
pub fn node_addresses(stack: Stack, node: usize) -> Vec<IpAddr> {
    let host = u8::try_from(node + 1).unwrap_or(u8::MAX);
    let v4 = IpAddr::from([192, 168, 77, host]);
    let v6 = IpAddr::from([0xfd00, 0x77, 0, 0, 0, 0, 0, u16::from(host)]);
    by_stack(stack, v4, v6)
}

fn by_stack(stack: Stack, v4: IpAddr, v6: IpAddr) -> Vec<IpAddr> {
    match stack {
        Stack::V4 => vec![v4],
        Stack::V6 => vec![v6],
        Stack::Dual => vec![v4, v6],
    }
}

fn policy_name(index: usize) -> String {
    format!("p{index}")
}

const PORT_80: PortRange = PortRange::single(80);
const NAMESPACES: [&str; 4] = ["x", "y", "z", "w"];
const POD_NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const KEYS: [&str; 2] = ["app", "tier"];
const VALUES: [&str; 3] = ["a", "b", ""];
const NAMED: [(&str, Protocol, [u16; 3]); 3] = [
    ("http", Protocol::Tcp, [80, 8080, 81]),
    ("dns", Protocol::Udp, [53, 53, 80]),
    ("assoc", Protocol::Sctp, [80, 80, 81]),
];

/// Networks that contain each other, and pods and external addresses.
const WIDE: [&str; 10] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.244.0.0/16",
    "10.244.1.0/24",
    "172.16.0.0/12",
    "::/0",
    "fd00::/8",
    "fd00:10:244::/48",
    "fd00:10:244:1::/64",
    "fd00:17::/32",
];

/// Blocks and excepts that overlap each other, the pods, the nodes and the external addresses.
const BLOCKS: [(&str, &[&str]); 16] = [
    ("0.0.0.0/0", &["10.0.0.0/8", "172.17.1.0/24", "203.0.113.5/32"]),
    ("10.244.0.0/16", &["10.244.1.0/24", "10.244.2.12/32"]),
    ("10.244.1.0/24", &["10.244.1.12/30", "10.244.1.16/28"]),
    ("10.244.2.10/31", &[]),
    ("10.244.1.11/32", &[]),
    ("172.17.0.0/16", &["172.17.1.0/24", "172.17.0.8/29"]),
    ("192.168.77.0/24", &["192.168.77.2/32"]),
    ("128.0.0.0/1", &["172.16.0.0/12"]),
    ("::/0", &["fd00:10::/32", "fd00:17:0:1::/64", "2001:db8::5/128"]),
    ("fd00:10:244::/48", &["fd00:10:244:1::/64", "fd00:10:244:2::c/127"]),
    ("fd00:10:244:1::/64", &["fd00:10:244:1::c/126", "fd00:10:244:1::10/124"]),
    ("fd00:10:244:2::a/127", &[]),
    ("fd00:10:244:1::b/128", &[]),
    ("fd00:17::/32", &["fd00:17:0:1::/64", "fd00:17::8/125"]),
    ("fd00:77::/64", &["fd00:77::2/128"]),
    ("8000::/1", &["fd00::/8"]),
];
