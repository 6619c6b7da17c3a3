//! The parts of a rule: its peers and its ports, compared with a flow.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    BlockFault, Budget, Context, Distance, LISTED, LabelMiss, NamespaceFault, PODS, PeerMiss, PeerName,
    PortFault, PortMiss, RuleMiss, SelectorFault,
};
use crate::{
    model::{
        ContainerPort, Direction, Family, IpBlock, LabelSelector, Labels, Operator, Peer, Peers, PodPeer,
        PolicyRule, Port, Ports, Protocol, Requirement, Scope, Transport,
    },
    policy::resolved_endpoint::{Claimant, ResolvedEndpoint, Who},
};

/// The result of looking at a rule.
pub(super) enum Looked {
    /// It allows the flow.
    Matches,
    /// It does not: how near it is, and what fails.
    Misses(Distance, Box<RuleMiss>),
    /// There was too much to look at.
    TooMuch,
}

/// The distances between a part and what it is compared with: how many parts fail, how unlikely this is what was
/// meant, and the failing requirements.
const LIKELY: usize = 0;
const POSSIBLE: usize = 1;
const UNLIKELY: usize = 2;

fn sum(a: Distance, b: Distance) -> Distance {
    (a.0 + b.0, a.1 + b.1, a.2 + b.2)
}

impl Context<'_, '_> {
    /// Compares one rule with the flow.
    pub(super) fn rule(&self, at: usize, rule: &PolicyRule, budget: &mut Budget) -> Looked {
        if !budget.take(1) {
            return Looked::TooMuch;
        }
        // Before the peers, which may use up what is left.
        let port = match self.ports(&rule.ports, budget) {
            Part::Matches => None,
            Part::Misses(distance, miss) => Some((distance, miss)),
            Part::TooMuch => return Looked::TooMuch,
        };
        let peer = match self.peers(&rule.peers, budget) {
            Part::Matches => None,
            Part::Misses(distance, miss) => Some((distance, miss)),
            Part::TooMuch => return Looked::TooMuch,
        };
        let nothing = (0, 0, 0);
        let distance =
            sum(peer.as_ref().map_or(nothing, |one| one.0), port.as_ref().map_or(nothing, |one| one.0));
        match (peer, port) {
            (None, None) => Looked::Matches,
            (peer, port) => {
                let (peer, port) = (peer.map(|(_, miss)| miss), port.map(|(_, miss)| miss));
                Looked::Misses(distance, Box::new(RuleMiss { rule: at, peer, port }))
            }
        }
    }

    fn peers(&self, peers: &Peers, budget: &mut Budget) -> Part<PeerMiss> {
        let Peers::Of(peers) = peers else { return Part::Matches };
        let (_, end) = self.pair.ends(self.direction);
        let mut nearest: Option<(Distance, PeerMiss)> = None;
        for (item, peer) in peers.iter().enumerate() {
            if !budget.take(cost(peer)) {
                return nearest.map_or(Part::TooMuch, |(distance, miss)| Part::Misses(distance, miss));
            }
            let miss = match peer {
                Peer::Block(block) => of_block(block, end, self.pair.family).map(|(distance, fault)| {
                    (distance, PeerMiss::Block { item, block: block.clone(), fault })
                }),
                Peer::Pods(allowed) => of_pods(allowed, end, self.pair.family).map(|(distance, fault)| {
                    (distance, PeerMiss::Pods { item, allowed: allowed.clone(), fault })
                }),
            };
            let Some((distance, miss)) = miss else { return Part::Matches };
            if nearest.as_ref().is_none_or(|(best, _)| distance < *best) {
                nearest = Some((distance, miss));
            }
        }
        let (distance, miss) = nearest.unwrap_or(((1, UNLIKELY, 0), PeerMiss::Nobody));
        Part::Misses(distance, miss)
    }

    fn ports(&self, ports: &Ports, budget: &mut Budget) -> Part<PortMiss> {
        let Ports::Of(ports) = ports else { return Part::Matches };
        let receivers: Vec<&Claimant<'_>> = match self.direction {
            Direction::Ingress => vec![self.subject],
            Direction::Egress => self.pair.to.pods(self.pair.family).take(PODS).collect(),
        };
        let miss = |distance, fault, looked: usize| {
            let allowed: Vec<Port> = ports.iter().take(LISTED).cloned().collect();
            let more = looked.saturating_sub(allowed.len());
            let number = |port: &Port| {
                let Port::Named(protocol, name) = port else { return None };
                let numbers = receivers.first()?.pod.named_port(name, *protocol);
                Some((name.clone(), *numbers.first()?))
            };
            let numbers = allowed.iter().filter_map(number).collect();
            Part::Misses(distance, PortMiss { allowed, more, numbers, fault })
        };
        let Transport::Port(sent, number) = self.transport else {
            return miss((1, POSSIBLE, 1), PortFault::WithoutPorts, ports.len());
        };
        let mut fault: Option<(Distance, PortFault)> = None;
        let mut looked = ports.len();
        let names = receivers.iter().map(|receiver| receiver.pod.ports.len()).sum::<usize>();
        for (at, port) in ports.iter().enumerate() {
            if !budget.take(if matches!(port, Port::Named(..)) { 1 + names } else { 1 }) {
                looked = at;
                break;
            }
            let found = match port {
                Port::All(protocol) if *protocol == sent => return Part::Matches,
                Port::Range(protocol, range) if range.contains(number) => {
                    if *protocol == sent {
                        return Part::Matches;
                    }
                    ((1, LIKELY, 1), PortFault::Protocol(*protocol))
                }
                Port::Named(protocol, name) => match named(&receivers, *protocol, name, (sent, number)) {
                    None => return Part::Matches,
                    Some(found) => found,
                },
                Port::All(_) | Port::Range(..) => ((1, POSSIBLE, 1), PortFault::Number),
            };
            if fault.as_ref().is_none_or(|(best, _)| found.0 < *best) {
                fault = Some(found);
            }
        }
        match fault {
            Some((distance, fault)) => miss(distance, fault, looked),
            None if ports.is_empty() => miss((1, UNLIKELY, 1), PortFault::Number, 0),
            None => Part::TooMuch,
        }
    }
}

/// Why a named port does not match; `None` if it does.
fn named(
    receivers: &[&Claimant<'_>],
    protocol: Protocol,
    name: &Arc<str>,
    (sent, number): (Protocol, u16),
) -> Option<(Distance, PortFault)> {
    let has = |receiver: &&&Claimant<'_>, protocol| receiver.pod.named_port(name, protocol);
    let Some(first) = receivers.first() else {
        return Some(((1, UNLIKELY, 1), PortFault::NoNames(name.clone())));
    };
    let missing = receivers.iter().find(|one| protocol != sent || !has(one, protocol).contains(&number));
    let receiver = missing?;
    if protocol != sent && [sent, protocol].iter().any(|one| has(&first, *one).contains(&number)) {
        return Some(((1, LIKELY, 1), PortFault::Protocol(protocol)));
    }
    if !has(&receiver, protocol).is_empty() {
        return Some(((1, POSSIBLE, 1), PortFault::Number));
    }
    let mut declared: Vec<ContainerPort> = receiver.pod.ports.clone();
    // Those that were probably meant first, in case there are many.
    declared.sort_by_key(|port| (port.number != number || port.protocol != sent, port.number));
    declared.dedup();
    declared.truncate(LISTED);
    let is_meant = declared.iter().any(|port| port.number == number && port.protocol == sent);
    let likely = if is_meant { LIKELY } else { POSSIBLE };
    Some(((1, likely, 1), PortFault::NoSuchName(receiver.pod.key.clone(), name.clone(), declared)))
}

/// The result of looking at the peers or ports of a rule.
enum Part<M> {
    Matches,
    Misses(Distance, M),
    TooMuch,
}

/// What a peer takes of the budget.
fn cost(peer: &Peer) -> usize {
    let selector = |selector: &LabelSelector| -> usize {
        let values = |requirement: &Requirement| match &requirement.operator {
            Operator::In(values) | Operator::NotIn(values) => values.len(),
            Operator::Exists | Operator::DoesNotExist => 1,
        };
        selector.requirements().iter().map(values).sum()
    };
    match peer {
        Peer::Block(_) => 1,
        Peer::Pods(PodPeer { scope: Scope::Own(_), pods }) => 1 + selector(pods),
        Peer::Pods(PodPeer { scope: Scope::Matching(namespaces), pods }) => {
            1 + selector(pods) + selector(namespaces)
        }
    }
}

/// How the other end is named.
pub(super) fn peer_name(end: &ResolvedEndpoint<'_>) -> PeerName {
    match &end.who {
        Who::Pod(pod) => PeerName::Pod(pod.key.clone()),
        Who::HostNetwork(pod) => PeerName::HostNetwork(pod.key.clone(), pod.node.clone()),
        Who::Finished(pod) => PeerName::Finished(pod.key.clone()),
        Who::Unknown(key) => PeerName::Unknown(key.clone()),
        Who::Address(address) => match end.node() {
            Some(node) => PeerName::Node(*address, node.clone()),
            None => PeerName::Address(*address),
        },
    }
}

fn of_block(
    block: &IpBlock,
    end: &ResolvedEndpoint<'_>,
    family: Option<Family>,
) -> Option<(Distance, BlockFault)> {
    // For a pod, a selector was more likely meant.
    let outside = if matches!(end.who, Who::Pod(_)) { UNLIKELY } else { POSSIBLE };
    let Some(address) = end.address(family) else {
        let fault = match (family, end.addresses().next()) {
            (None, Some(address)) => BlockFault::NoSharedFamily(Family::of(address)),
            _ => BlockFault::NoAddress,
        };
        return Some(((1, UNLIKELY, 1), fault));
    };
    if block.contains(address) {
        return None;
    }
    let family = Family::of(address);
    Some(if Family::of_net(block.cidr()) != family {
        let likely = if end.addresses().any(|other| block.contains(other)) { LIKELY } else { UNLIKELY };
        ((1, likely, 1), BlockFault::OtherFamily(family))
    } else if let Some(except) = except_with(block, address) {
        ((1, LIKELY, 1), BlockFault::Except(address, except))
    } else {
        ((1, outside, 1), BlockFault::Outside(address))
    })
}

/// The longest except that contains `address`. They are sorted: there may be tens of thousands.
fn except_with(block: &IpBlock, address: IpAddr) -> Option<IpNet> {
    let prefixes = block.cidr().prefix_len()..=block.cidr().max_prefix_len();
    let nets = prefixes.rev().filter_map(|prefix| IpNet::new(address, prefix).ok());
    nets.map(|net| net.trunc()).find(|net| block.except().binary_search(net).is_ok())
}

/// Why `allowed` does not select the pods of `end`; `None` if it does.
fn of_pods(
    allowed: &PodPeer,
    end: &ResolvedEndpoint<'_>,
    family: Option<Family>,
) -> Option<(Distance, SelectorFault)> {
    let mut pods = end.pods(family).take(PODS).peekable();
    if pods.peek().is_none() {
        return Some(((2, UNLIKELY, 1), SelectorFault::NoPod));
    }
    pods.find_map(|known| {
        let (of_labels, labels) = misses(&allowed.pods, &known.pod.labels);
        let (of_namespace, namespace) = match (&allowed.scope, known.namespace_labels) {
            (Scope::Own(own), _) if *own == known.pod.key.namespace => ((0, 0, 0), None),
            (Scope::Own(_), _) => ((1, POSSIBLE, 1), Some(NamespaceFault::Other)),
            (Scope::Matching(_), None) => ((1, POSSIBLE, 1), Some(NamespaceFault::Unknown)),
            (Scope::Matching(selector), Some(labels)) => {
                let (distance, misses) = misses(selector, labels);
                (distance, Some(misses).filter(|misses| !misses.is_empty()).map(NamespaceFault::Labels))
            }
        };
        let pod = known.pod.key.clone();
        let distance = sum(of_labels, of_namespace);
        (distance.0 > 0).then_some((distance, SelectorFault::Labels { pod, labels, namespace }))
    })
}

fn misses(selector: &LabelSelector, labels: &Labels) -> (Distance, Vec<LabelMiss>) {
    let failing = selector.requirements().iter().filter(|requirement| !requirement.matches(labels));
    let misses: Vec<LabelMiss> = failing.map(|requirement| label_miss(requirement, labels)).collect();
    let likely = if misses.iter().all(|miss| miss.meant.is_some()) { LIKELY } else { POSSIBLE };
    ((usize::from(!misses.is_empty()), likely, misses.len()), misses)
}

/// The selector that was probably meant, if all that keeps `selector` from matching looks like typos.
pub(in crate::policy) fn meant(selector: &LabelSelector, labels: &Labels) -> Option<LabelSelector> {
    let (_, misses) = misses(selector, labels);
    let corrected = selector.requirements().iter().map(|requirement| {
        let miss = misses.iter().find(|miss| miss.requirement == *requirement);
        let Some(miss) = miss else { return Some(requirement.clone()) };
        miss.meant.as_ref().map(|(key, value)| Requirement::equals(key.clone(), value.clone()))
    });
    let corrected: Option<Vec<Requirement>> = corrected.collect();
    corrected.map(LabelSelector::new)
}

/// How many labels of one object are compared with a key that it does not have.
const SIMILAR_LABELS: usize = 32;

fn label_miss(requirement: &Requirement, labels: &Labels) -> LabelMiss {
    let Requirement { key, operator } = requirement;
    let value = labels.get(key);
    let meant = match (operator, value) {
        (Operator::In(values), Some(value)) => {
            values.iter().any(|wanted| is_typo(wanted, value)).then(|| (key.clone(), value.into()))
        }
        (Operator::In(values), None) => labels
            .iter()
            .take(SIMILAR_LABELS)
            .find(|(name, value)| {
                values.iter().any(|wanted| &**wanted == *value) && is_same_or_typo(last(key), last(name))
            })
            .map(|(name, value)| (name.into(), value.into())),
        _ => None,
    };
    LabelMiss { requirement: requirement.clone(), value: value.map(Into::into), meant }
}

/// The part of a label's key after its prefix: `name` in `app.kubernetes.io/name`.
fn last(key: &str) -> &str {
    key.rsplit_once('/').map_or(key, |(_, name)| name)
}

fn is_same_or_typo(text: &str, meant: &str) -> bool {
    text == meant || is_typo(text, meant)
}

/// The longest key or value that the API accepts.
const LONGEST: usize = 63;

/// Whether `text` is probably a typo of `meant`: two letters off at most, and not most of the word.
fn is_typo(text: &str, meant: &str) -> bool {
    if text.len() > LONGEST || meant.len() > LONGEST {
        return false;
    }
    let length = text.chars().count().min(meant.chars().count());
    // `a` is no typo of `b`, nor `web` of `db`.
    let within = (length / 3).min(2);
    text != meant && within > 0 && strsim::osa_distance(text, meant) <= within
}
