//! Ports that the pods do not have.

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use super::{Code, Place, Search, Target, hints::nearest};
use crate::model::{
    ContainerPort, Direction, LabelSelector, NetworkPolicy, Peer, Peers, Pod, PodPeer, Port, PortRange,
    Ports, Protocol, Scope,
};

/// How many declared ports a text lists.
const LISTED: usize = 5;

/// How many items of `ports` are checked in one rule.
const CHECKED: usize = 100;

/// Whether a pod is one of those that a policy is for.
type Condition<'a> = &'a dyn Fn(&Pod) -> bool;

/// The pods to which the traffic of a rule goes.
type Destinations = Vec<(Scope, LabelSelector)>;

impl Search<'_> {
    /// The ports in the rules of a policy.
    pub(super) fn ports(&mut self, policy: &NetworkPolicy) {
        let own = || (Scope::Own(policy.key.namespace.clone()), policy.subject.clone());
        self.every_pod(policy);
        for direction in Direction::BOTH {
            for (rule, one) in policy.rules(direction).unwrap_or_default().iter().enumerate() {
                let Ports::Of(ports) = &one.ports else { continue };
                let addresses_only = match &one.peers {
                    Peers::Any => false,
                    Peers::Of(peers) => peers.iter().all(|peer| matches!(peer, Peer::Block(_))),
                };
                // Numbers need no declaration, and what is outside declares nothing.
                let (named, numbers) = match (direction, &one.peers) {
                    (Direction::Ingress, _) => (vec![own()], vec![own()]),
                    (Direction::Egress, Peers::Any) => {
                        let all = (Scope::Matching(LabelSelector::everything()), LabelSelector::everything());
                        (vec![all], Vec::new())
                    }
                    (Direction::Egress, Peers::Of(peers)) => {
                        let pods = destinations(peers);
                        let numbers = if pods.len() == peers.len() { pods.clone() } else { Vec::new() };
                        (pods, numbers)
                    }
                };
                for (at, port) in ports.iter().enumerate().take(CHECKED) {
                    let place = Place::Port(direction, rule, at);
                    match port {
                        // A block may cover pods, whose ports have names.
                        Port::Named(protocol, name)
                            if direction == Direction::Egress
                                && self.in_blocks(&one.peers, |pod| {
                                    !pod.named_port(name, *protocol).is_empty()
                                }) => {}
                        Port::Named(_, name) if direction == Direction::Egress && addresses_only => {
                            let text = format!(
                                "addresses have no port {name}: it matches nothing here, write the number"
                            );
                            self.add(policy, place, Code::NameForAddresses, text);
                        }
                        Port::Named(protocol, name) => self.named(policy, place, &named, *protocol, name),
                        Port::Range(protocol, range) => {
                            self.number(policy, place, &numbers, *protocol, *range);
                        }
                        Port::All(_) => {}
                    }
                }
            }
        }
    }

    /// Whether a pod with an address in one of the blocks among these peers may fulfil a condition.
    fn in_blocks(&self, peers: &Peers, condition: impl Fn(&Pod) -> bool) -> bool {
        let Peers::Of(peers) = peers else { return false };
        peers.iter().any(|peer| match peer {
            Peer::Block(block) => self.addresses.may_have(block, &condition),
            Peer::Pods(_) => false,
        })
    }

    /// Whether any pod there fulfils a condition.
    fn any_of(&self, pods: &Destinations, condition: impl Fn(&Pod) -> bool) -> bool {
        pods.iter().any(|(scope, pods)| self.index.any(scope, pods, &condition))
    }

    fn named(
        &mut self,
        policy: &NetworkPolicy,
        place: Place,
        pods: &Destinations,
        protocol: Protocol,
        name: &str,
    ) {
        let has = |port: &ContainerPort| port.name.as_deref() == Some(name);
        if !self.any_of(pods, |_| true)
            || self.any_of(pods, |pod| pod.ports.iter().any(|port| has(port) && port.protocol == protocol))
        {
            return;
        }
        let declared = self.declared(pods);
        if let Some(port) = declared.iter().find(|port| has(port)) {
            let text = format!("the port {name} of these pods is {}, not {protocol}", port.protocol);
            return self.add(policy, place, Code::WrongProtocol, text);
        }
        let names = declared.iter().filter_map(|port| port.name.as_deref());
        let text = match nearest(name, names) {
            Some(meant) => format!("none of these pods has a port called {name}: did you mean {meant}?"),
            None => {
                format!("none of these pods has a port called {name}; they declare {}", listed(&declared))
            }
        };
        self.add(policy, place, Code::NoSuchPort, text);
    }

    fn number(
        &mut self,
        policy: &NetworkPolicy,
        place: Place,
        pods: &Destinations,
        protocol: Protocol,
        range: PortRange,
    ) {
        let within = |port: &ContainerPort| range.contains(port.number);
        let is_declared = |pod: &Pod| pod.ports.iter().any(|port| within(port) && port.protocol == protocol);
        if !self.any_of(pods, |_| true) || self.any_of(pods, is_declared) {
            return;
        }
        let silent = self.any_of(pods, |pod| pod.ports.is_empty());
        if let Some((service, target)) = self.service(pods, protocol, range) {
            let text = format!(
                "{range} is the port of the Service {service}: policy sees the port of its pods, which is {target}"
            );
            return self.add(policy, place, Code::ServicePort, text);
        }
        let declared = self.declared(pods);
        if let Some(port) = declared.iter().find(|port| within(port)) {
            let text =
                format!("these pods declare {} for {}, not for {protocol}", port.number, port.protocol);
            return self.add(policy, place, Code::WrongProtocol, text);
        }
        if silent {
            return;
        }
        let text = format!(
            "none of these pods declares {range}/{protocol}; they declare {}. A Service's port is not seen by policy: \
             write the port of the pods",
            listed(&declared)
        );
        self.add(policy, place, Code::UndeclaredPort, text);
    }

    /// The Service that has this port for pods of these, which have another one.
    fn service(&self, pods: &Destinations, protocol: Protocol, range: PortRange) -> Option<(String, String)> {
        for service in &self.knowledge.services {
            for port in service.ports.iter().filter(|port| port.protocol == protocol) {
                let (target, differs) = match &port.target {
                    Target::Number(number) => (number.to_string(), !range.contains(*number)),
                    Target::Name(name) => (name.to_string(), true),
                };
                let is_behind = |pod: &Pod| {
                    pod.key.namespace == service.key.namespace && service.pods.matches(&pod.labels)
                };
                if range.contains(port.port) && differs && self.any_of(pods, is_behind) {
                    let number = self.declared(pods).into_iter().find(|declared| {
                        declared.protocol == protocol && declared.name.as_deref() == Some(&*target)
                    });
                    let target = match number {
                        Some(declared) => format!("{} ({target})", declared.number),
                        None => target,
                    };
                    return Some((service.key.to_string(), target));
                }
            }
        }
        None
    }

    /// A policy that selects every pod of its namespace, and is probably for some of them: its name begins like theirs, or
    /// it allows a port that only they declare. With a default deny the others are isolated anyway.
    fn every_pod(&mut self, policy: &NetworkPolicy) {
        let namespace = &policy.key.namespace;
        let isolates_all = |other: &Arc<NetworkPolicy>| {
            other.key != policy.key && other.subject.is_everything() && other.ingress.is_some()
        };
        let rules = policy.rules(Direction::Ingress).unwrap_or_default();
        if !policy.subject.is_everything()
            || rules.is_empty()
            || self.cluster.policies_in(namespace).any(isolates_all)
        {
            return;
        }
        let ports = rules.iter().filter_map(|rule| match &rule.ports {
            Ports::Any => None,
            Ports::Of(ports) => Some(ports),
        });
        let ranges: Vec<(Protocol, PortRange)> = ports
            .flatten()
            .filter_map(|port| match port {
                Port::Range(protocol, range) => Some((*protocol, *range)),
                Port::All(_) | Port::Named(..) => None,
            })
            .take(CHECKED)
            .collect();
        let word = policy.key.name.split(['-', '.']).next().unwrap_or_default();
        let is_named =
            |pod: &Pod| pod.labels.iter().any(|(_, value)| value == word) || *pod.key.name == *word;
        let has_port = |pod: &Pod| {
            let declares = |(protocol, range): &(Protocol, PortRange)| {
                pod.ports.iter().any(|port| port.protocol == *protocol && range.contains(port.number))
            };
            ranges.iter().any(declares)
        };
        let conditions: [(Condition<'_>, &str); 2] =
            [(&is_named, "are what it is named after"), (&has_port, "declare a port that it allows")];
        for (condition, what) in conditions {
            let (mut with, mut without) = (None, None);
            for class in self.index.classes_in(namespace).filter(|class| !class.pod.host_network) {
                let found = if condition(&class.pod) { &mut with } else { &mut without };
                found.get_or_insert_with(|| class.pod.key.clone());
            }
            if let (Some(with), Some(without)) = (with, without) {
                let text = format!(
                    "it isolates every pod of {namespace}, {without} among them, but only some, such as {with}, {what}: should \
                     it select these?"
                );
                return self.add(policy, Place::Subject, Code::EmptySubject, text);
            }
        }
    }

    /// The ports that pods declare.
    fn declared(&self, pods: &Destinations) -> BTreeSet<ContainerPort> {
        let mut declared = BTreeSet::new();
        for (scope, pods) in pods {
            self.index.visit(scope, pods, |class| {
                declared.extend(class.pod.ports.iter().take(LISTED * 4).cloned());
                if declared.len() < 1000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
        }
        declared
    }
}

fn destinations(peers: &[Peer]) -> Destinations {
    let pods = |peer: &Peer| match peer {
        Peer::Pods(PodPeer { scope, pods }) => Some((scope.clone(), pods.clone())),
        Peer::Block(_) => None,
    };
    peers.iter().filter_map(pods).collect()
}

fn listed(ports: &BTreeSet<ContainerPort>) -> String {
    if ports.is_empty() {
        return "no port".to_owned();
    }
    let text = |port: &ContainerPort| {
        let name = port.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        format!("{}/{}{name}", port.number, port.protocol)
    };
    let first: Vec<String> = ports.iter().take(LISTED).map(text).collect();
    format!("{}{}", first.join(", "), if ports.len() > LISTED { ", ..." } else { "" })
}
