//! Clusters whose policies are the worst that an API server admits: for benches and for tests of their cost.
//!
//! The same shape gives the same objects on every machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::random::Random;
use crate::model::{
    Change, IpBlock, LabelSelector, Namespace, NetworkPolicy, ObjectKey, Peer, Peers, Pod, PolicyRule, Port,
    PortRange, Ports, Protocol, Standing,
};

/// The measured node; it is also the one of [`sized`](super::sized).
pub const NODE: &str = "node-0";

/// Pods of the node, all in the namespace of the policies.
const LOCAL: usize = 20;

const NAMESPACE: &str = "hostile";

/// What the policies of a cluster look like. All select every pod of the namespace, for egress.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Policies, each with its own port and `0.0.0.0/0` except a number of random addresses.
    ExceptsV4 {
        /// How many policies.
        policies: usize,
        /// How many excepts each.
        excepts: usize,
    },
    /// One policy with `2000::/3` except a number of random addresses.
    ExceptsV6 {
        /// How many excepts.
        excepts: usize,
    },
    /// Policies of rules with one random address and one random TCP port each.
    Rules {
        /// How many policies.
        policies: usize,
        /// How many rules each.
        rules: usize,
    },
}

/// The shapes that benches use, with their names.
pub const SHAPES: [(&str, Shape); 4] = [
    ("20 policies x 10,000 excepts", Shape::ExceptsV4 { policies: 20, excepts: 10_000 }),
    ("2000::/3 except 30,000", Shape::ExceptsV6 { excepts: 30_000 }),
    ("0.0.0.0/0 except 5,000", Shape::ExceptsV4 { policies: 1, excepts: 5_000 }),
    ("1,000 policies x 20 rules", Shape::Rules { policies: 1_000, rules: 20 }),
];

/// All objects of a cluster of this shape, as the changes that create it.
#[must_use]
pub fn cluster(shape: Shape) -> Vec<Change> {
    let labels = [("kubernetes.io/metadata.name", NAMESPACE)].into_iter().collect();
    let mut changes = vec![Change::SetNamespace(Namespace { name: NAMESPACE.into(), labels })];
    changes.extend((0..LOCAL).map(pod));
    changes.extend(policies(shape).into_iter().map(Change::SetPolicy));
    changes
}

/// Removes local pod number `index`.
#[must_use]
pub fn no_pod(index: usize) -> Change {
    Change::RemovePod(key(index))
}

fn key(index: usize) -> ObjectKey {
    ObjectKey::new(NAMESPACE, format!("pod-{index}"))
}

/// Local pod number `index`.
#[must_use]
pub fn pod(index: usize) -> Change {
    let host = u16::try_from(index + 10).unwrap_or(u16::MAX);
    let [high, low] = host.to_be_bytes();
    Change::SetPod(Pod {
        node: Some(NODE.into()),
        addresses: vec![
            IpAddr::from([10, 244, high, low]),
            IpAddr::from([0xfd00, 0x10, 0x244, 0, 0, 0, 0, host]),
        ],
        node_addresses: vec![IpAddr::from([192, 168, 77, 1])],
        ..Pod::new(key(index))
    })
}

/// The policies of a cluster of this shape.
#[must_use]
pub fn policies(shape: Shape) -> Vec<NetworkPolicy> {
    let mut random = Random::new(1);
    match shape {
        Shape::ExceptsV4 { policies, excepts } => (0..policies)
            .map(|index| {
                let all = IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0);
                let port = 1000 + u16::try_from(index).unwrap_or(0);
                policy(index, vec![rule(block(all, excepts, || address_v4(&mut random)), port)])
            })
            .collect(),
        Shape::ExceptsV6 { excepts } => {
            let all = IpNet::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0).into(), 3);
            vec![policy(0, vec![rule(block(all, excepts, || address_v6(&mut random)), 443)])]
        }
        Shape::Rules { policies, rules } => (0..policies)
            .map(|index| {
                let mut rule = || {
                    let address = address_v4(&mut random);
                    let port = 1 + u16::try_from(random.below(65_535)).unwrap_or(0);
                    rule(IpBlock::new(address, []).ok(), port)
                };
                policy(index, (0..rules).map(|_| rule()).collect())
            })
            .collect(),
    }
}

fn block(cidr: IpNet, excepts: usize, mut except: impl FnMut() -> IpNet) -> Option<IpBlock> {
    IpBlock::new(cidr, (0..excepts).map(|_| except())).ok()
}

fn address_v4(random: &mut Random) -> IpNet {
    let number = u32::try_from(random.number() >> 32).unwrap_or(0).max(1);
    IpNet::from(IpAddr::from(Ipv4Addr::from(number)))
}

/// A random address of `2000::/3`.
fn address_v6(random: &mut Random) -> IpNet {
    let number = u128::from(random.number()) << 64 | u128::from(random.number());
    IpNet::from(IpAddr::from(Ipv6Addr::from(number >> 3 | 1 << 125)))
}

fn rule(block: Option<IpBlock>, port: u16) -> PolicyRule {
    PolicyRule {
        peers: Peers::Of(block.into_iter().map(Peer::Block).collect()),
        ports: Ports::Of(vec![Port::Range(Protocol::Tcp, PortRange::single(port))]),
    }
}

fn policy(index: usize, egress: Vec<PolicyRule>) -> NetworkPolicy {
    NetworkPolicy {
        key: ObjectKey::new(NAMESPACE, format!("policy-{index}")),
        subject: LabelSelector::everything(),
        ingress: None,
        egress: Some(egress),
        standing: Standing::Accepted,
    }
}
