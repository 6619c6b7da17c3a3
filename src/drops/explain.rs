//! Who the ends of a dropped packet are, and why it was dropped: in the words of the objects.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::{
    collector::{Packet, Waiting},
    log::in_words,
    record::{End, Record},
};
use crate::{
    model::{Cluster, Direction, Endpoint, Family, Flow, ObjectKey, Protocol, Transport},
    policy::{
        budget::{Closed, OverBudget},
        evaluate::evaluate,
        near_miss::near_miss,
        resolve::LocalPod,
        verdict::Reason,
    },
    ruleset::log_prefix::LogPrefix,
};

/// How many policies of a pod are compared with a packet: the first ones, by name.
const COMPARED: usize = 1000;

/// How many policies a record names.
const NAMED: usize = 10;

/// What is known at the time at which a packet is explained.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The node that dropped it.
    pub node: &'a str,
    /// The owners of its addresses, in the whole cluster.
    pub owners: &'a Cluster,
    /// The pods of the node, as their rules were last written.
    pub local: &'a LocalPods,
    /// What is closed for being over budget.
    pub over_budget: &'a [OverBudget],
}

/// The pods of a node, by address.
#[derive(Clone, Debug, Default)]
pub struct LocalPods {
    pods: Arc<[LocalPod]>,
    by_address: HashMap<IpAddr, Vec<usize>>,
}

impl LocalPods {
    /// These pods.
    #[must_use]
    pub fn new(pods: Arc<[LocalPod]>) -> Self {
        let mut by_address: HashMap<IpAddr, Vec<usize>> = HashMap::new();
        for (at, pod) in pods.iter().enumerate() {
            for address in &pod.addresses {
                by_address.entry(*address).or_default().push(at);
            }
        }
        Self { pods, by_address }
    }

    /// Whether these are the same pods, without comparing each one.
    #[must_use]
    pub fn are(&self, pods: &Arc<[LocalPod]>) -> bool {
        Arc::ptr_eq(&self.pods, pods)
    }

    /// The pods that have an address.
    fn at(&self, address: IpAddr) -> impl Iterator<Item = &LocalPod> {
        self.by_address.get(&address).into_iter().flatten().filter_map(|at| self.pods.get(*at))
    }
}

/// The record of a flow. Its position in the log is not set.
#[must_use]
pub fn explain(waiting: &Waiting, scene: &Scene<'_>) -> Record {
    let (dropped, packet) = (&waiting.dropped, waiting.dropped.packet);
    let ends = packet.map(|packet| [packet.source, packet.destination].map(|address| scene.end(address)));
    let [from, to] = ends.unwrap_or_default();
    let mut policies = Vec::new();
    let reason = match &dropped.prefix {
        LogPrefix::Policy(direction, digest) => {
            let (words, names) = scene.policies(packet, *direction, digest);
            policies = names;
            words
        }
        LogPrefix::NoChain(direction) => {
            let subject = named(if *direction == Direction::Egress { &from } else { &to });
            format!("denied by {direction} of {subject}: it is isolated, and its rules are not written yet")
        }
        LogPrefix::UnknownPod => {
            let is_known = |address: IpAddr| scene.local.at(address).next().is_some();
            let unknown = packet.map(|packet| {
                if !is_known(packet.source) && is_known(packet.destination) {
                    packet.source
                } else if !is_known(packet.destination) && is_known(packet.source) {
                    packet.destination
                } else {
                    // Neither is of this node; the sender's rule comes first.
                    packet.source
                }
            });
            let which =
                unknown.map_or_else(|| "one of the addresses".to_owned(), |address| address.to_string());
            format!("no pod of this node is known to have {which}, which is among its pods' addresses")
        }
        LogPrefix::Tunnel => {
            "tunnel packet: pods may send these to pods only, and this node accepts them only \
                              from the hosts that it has tunnels with"
                .to_owned()
        }
        LogPrefix::Link => {
            "multicast, broadcast and link-local addresses belong to no pod, and a pod of this node is \
                            isolated"
                .to_owned()
        }
    };
    Record {
        cursor: 0,
        id: 0,
        node: scene.node.to_owned(),
        first: in_words(waiting.seen.0),
        last: in_words(waiting.seen.1),
        count: waiting.count,
        complete: false,
        kind: dropped.prefix.kind().to_owned(),
        direction: dropped.prefix.direction().map(|direction| direction.to_string()),
        from,
        to,
        protocol: packet.map(protocol),
        port: packet.and_then(|packet| packet.port),
        source_port: waiting.source_port,
        policies,
        reason,
        note: packet.and_then(note),
    }
}

/// As the record names the protocol.
fn protocol(packet: Packet) -> String {
    let Some(number) = packet.protocol else { return "ARP".to_owned() };
    match number {
        1 => "ICMP".to_owned(),
        58 => "ICMPv6".to_owned(),
        number => Protocol::ALL
            .into_iter()
            .find(|protocol| protocol.number() == number)
            .map_or_else(|| number.to_string(), |protocol| protocol.to_string()),
    }
}

/// What the packet says about itself.
fn note(packet: Packet) -> Option<String> {
    if packet.is_mid_connection {
        let text = "not the first packet of its connection, which was cut or is not known to this node";
        return Some(text.to_owned());
    }
    if packet.is_later_fragment {
        return Some("a later fragment, which has no ports".to_owned());
    }
    let (kind, code) = packet.icmp?;
    let is_ping = matches!((packet.protocol, kind), (Some(1), 8) | (Some(58), 128));
    Some(if is_ping { "a ping".to_owned() } else { format!("type {kind}, code {code}") })
}

/// A pod's name as its owner knows it: without what tells a pod without an object from another one of its name.
fn shown(pod: &ObjectKey) -> String {
    let name = pod.name.split('@').next().unwrap_or_default();
    format!("{}/{name}", pod.namespace)
}

fn named(end: &End) -> String {
    end.pod.clone().or_else(|| end.address.clone()).unwrap_or_else(|| "an unknown pod".to_owned())
}

impl Scene<'_> {
    /// Who has an address.
    fn end(&self, address: IpAddr) -> End {
        let mut end = End { address: Some(address.to_string()), ..End::default() };
        let claimants = self.owners.claimants(address);
        if let Some(local) = self.local.at(address).next() {
            let object = claimants.iter().find(|pod| pod.key == local.key);
            end.workload = object.and_then(|pod| pod.workload.as_ref()).map(ToString::to_string);
            end.uid = object.and_then(|pod| pod.uid.clone());
            end.pod = Some(shown(&local.key));
            end.node = Some(self.node.to_owned());
        } else if let Some(pod) = claimants.first() {
            end.workload = pod.workload.as_ref().map(ToString::to_string);
            end.pod = Some(shown(&pod.key));
            end.node = pod.node.as_ref().map(ToString::to_string);
        } else {
            end.node = self.owners.nodes_at(address).next().map(ToString::to_string);
        }
        end
    }

    /// Why policies denied a packet, and which they are.
    fn policies(&self, packet: Option<Packet>, direction: Direction, digest: &str) -> (String, Vec<String>) {
        let Some(packet) = packet else {
            return (format!("denied by {direction}; the packet could not be read"), Vec::new());
        };
        let address = match direction {
            Direction::Egress => packet.source,
            Direction::Ingress => packet.destination,
        };
        let pods: Vec<&LocalPod> = self.local.at(address).collect();
        // Of several pods with this address, the one whose rules denied it.
        let denying =
            pods.iter().find(|pod| pod.program(direction).is_some_and(|program| program.digest == digest));
        let Some(pod) = denying.or_else(|| pods.first()) else {
            return (
                format!("denied by {direction} of {address}, which no pod of this node has any more"),
                Vec::new(),
            );
        };
        let selecting = || pod.policies.iter().filter(|policy| policy.rules(direction).is_some());
        let count = selecting().count();
        let mut names: Vec<String> = selecting().take(NAMED).map(|policy| policy.key.to_string()).collect();
        if count > NAMED {
            names.push(format!("and {} more", count - NAMED));
        }
        let why = if denying.is_none() {
            "its rules have changed since".to_owned()
        } else if let Some(over) = self.over_budget(pod) {
            over.to_string()
        } else {
            let cluster = self.owners.clone().with_policies(selecting().take(COMPARED).cloned());
            why(&cluster, pod, packet, direction)
        };
        (format!("denied by {direction} of {}: {why}", shown(&pod.key)), names)
    }

    /// What is over budget and therefore closes a pod.
    fn over_budget(&self, pod: &LocalPod) -> Option<&OverBudget> {
        self.over_budget.iter().find(|over| match &over.closed {
            Closed::Policy(key) => pod.policies.iter().any(|policy| policy.key == *key),
            Closed::Namespace(namespace) => *namespace == pod.key.namespace,
        })
    }
}

/// Why the policies of a pod do not allow a packet.
fn why(cluster: &Cluster, pod: &LocalPod, packet: Packet, direction: Direction) -> String {
    let of_protocol = |number: u8| Protocol::ALL.into_iter().find(|protocol| protocol.number() == number);
    let number = packet.protocol.unwrap_or_default();
    let transport = match (of_protocol(number), packet.port) {
        (Some(protocol), Some(port)) => Transport::Port(protocol, port),
        _ => Transport::Other(number),
    };
    let own = if cluster.pod(&pod.key).is_some() {
        Endpoint::Pod(pod.key.clone())
    } else {
        Endpoint::Address(if direction == Direction::Egress { packet.source } else { packet.destination })
    };
    let (from, to) = match direction {
        Direction::Egress => (own, Endpoint::Address(packet.destination)),
        Direction::Ingress => (Endpoint::Address(packet.source), own),
    };
    let flow = Flow { from, to, transport, family: Some(Family::of(packet.source)) };
    if let Some(miss) = near_miss(cluster, &flow, direction) {
        return miss.to_string();
    }
    match &evaluate(cluster, &flow).of(direction).reason {
        // The object is gone, or has not arrived.
        Reason::NotAPod(_) | Reason::UnknownPod(_) | Reason::DeniedBy { .. } => {
            "none of its policies allows this".to_owned()
        }
        allowed => format!("not any more, since policies or labels have changed: {allowed}"),
    }
}

#[cfg(test)]
mod tests;
