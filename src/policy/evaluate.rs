//! May this flow pass? Written directly from the standard, one flow at a time, naive on purpose.
//!
//! Where the standard leaves something open, or does not say how to detect it, this is the interpretation here:
//!
//! - An address means the pod that reports it, else the node that has it, else the outside world.
//! - While several pods report the same address, their packets cannot be told apart: a flow passes only if the policies
//!   of each of them allow it, and a selector selects the address as a peer only if it selects each of them.
//! - A pod on its node's network is its node: only an ipBlock matches it, and it has no named ports.
//! - A node is recognised by its addresses and by its pods on the host network; node to own pod and pod to own node
//!   always pass, and so does a pod's traffic to itself.
//! - A finished pod is an address without an owner. A terminating pod is a pod.
//! - A pod without an address is matched by its labels; no ipBlock matches it.
//! - The node of a pod that is given by name is known: of several pods with its address, only those of the same node
//!   can be confused with it there. As a peer it is any of them.
//! - While a namespace's object is unknown no namespaceSelector matches it, not even the empty one.

use std::net::IpAddr;

use crate::model::{
    Cluster, Direction, Family, Flow, NetworkPolicy, ObjectKey, Peer, Peers, PolicyRule, Port, Ports, Scope,
    Standing, Transport,
};

use super::{
    resolved_endpoint::{Claimant, ResolvedEndpoint, Who, families},
    verdict::{DirectionVerdict, Reason, RuleRef, Verdict},
};

/// Whether `flow` may pass, and why.
///
/// The cost is that of reading every policy in the namespaces of the two pods. For many flows at once see
/// [`Reachability`](super::Reachability).
#[must_use]
pub fn evaluate(cluster: &Cluster, flow: &Flow) -> Verdict {
    let (from, to) = (ResolvedEndpoint::new(cluster, &flow.from), ResolvedEndpoint::new(cluster, &flow.to));
    let family = flow.family.or_else(|| families(&from, &to).first().copied());
    Pair { from: &from, to: &to, family }.verdict(flow.transport)
}

/// The verdict of `flow` in each family in which it is possible, that of [`evaluate`] first.
///
/// With two families the verdicts may differ, since an ipBlock of one family allows nothing in the other.
#[must_use]
pub fn evaluate_families(cluster: &Cluster, flow: &Flow) -> Vec<(Family, Verdict)> {
    let (from, to) = (ResolvedEndpoint::new(cluster, &flow.from), ResolvedEndpoint::new(cluster, &flow.to));
    families(&from, &to)
        .into_iter()
        .filter(|family| flow.family.is_none_or(|wanted| wanted == *family))
        .map(|family| (family, Pair { from: &from, to: &to, family: Some(family) }.verdict(flow.transport)))
        .collect()
}

/// What decides for one pod in one direction.
pub(super) enum Decider {
    /// The kind of the ends: the flow passes, regardless of any rule.
    Nature(Reason),
    /// The rules of the policies that isolate the pod.
    Rules,
}

/// Two ends, and the family of the packets between them.
pub(super) struct Pair<'a> {
    pub(super) from: &'a ResolvedEndpoint<'a>,
    pub(super) to: &'a ResolvedEndpoint<'a>,
    pub(super) family: Option<Family>,
}

impl<'a> Pair<'a> {
    fn verdict(&self, transport: Transport) -> Verdict {
        Verdict {
            egress: self.direction(Direction::Egress, transport),
            ingress: self.direction(Direction::Ingress, transport),
        }
    }

    /// The combined verdict of every pod that may be this end.
    fn direction(&self, direction: Direction, transport: Transport) -> DirectionVerdict {
        let (subject, _) = self.ends(direction);
        let of_each = subject.subjects(self.family).map(|pod| self.of_pod(direction, pod, transport));
        of_each.reduce(DirectionVerdict::and).unwrap_or_else(|| DirectionVerdict {
            isolated_by: Vec::new(),
            allowed_by: Vec::new(),
            reason: match &subject.who {
                Who::Pod(pod) => Reason::NotIsolated(pod.key.clone(), direction),
                Who::HostNetwork(pod) => Reason::HostNetwork(pod.key.clone()),
                Who::Finished(pod) => Reason::Finished(pod.key.clone()),
                Who::Unknown(key) => Reason::UnknownPod(key.clone()),
                Who::Address(address) => Reason::NotAPod(*address),
            },
        })
    }

    fn of_pod(&self, direction: Direction, subject: &Claimant<'a>, transport: Transport) -> DirectionVerdict {
        let policies = subject.isolated_by(direction);
        let isolated_by: Vec<ObjectKey> = policies.iter().map(|policy| policy.key.clone()).collect();
        let allowed_by: Vec<RuleRef> = self
            .rules(direction, subject)
            .filter(|(.., rule)| self.ports_match(&rule.ports, direction, subject, transport))
            .map(|(policy, rule, _)| RuleRef { policy: policy.key.clone(), rule })
            .collect();
        let reason = match self.decider(direction, subject) {
            Decider::Nature(reason) => reason,
            Decider::Rules if !allowed_by.is_empty() => Reason::AllowedBy(allowed_by.clone()),
            Decider::Rules => {
                let refused = policies.iter().filter(|policy| policy.standing == Standing::Refused);
                Reason::DeniedBy {
                    pod: subject.pod.key.clone(),
                    direction,
                    policies: isolated_by.clone(),
                    refused: refused.map(|policy| policy.key.clone()).collect(),
                    shared: self.shared(direction),
                }
            }
        };
        DirectionVerdict { isolated_by, allowed_by, reason }
    }

    /// The addresses of the two ends that several pods report, with these pods: the subject's first.
    fn shared(&self, direction: Direction) -> Vec<(IpAddr, Vec<ObjectKey>)> {
        let (subject, peer) = self.ends(direction);
        let keys = |pods: &mut dyn Iterator<Item = &Claimant<'a>>| -> Vec<ObjectKey> {
            let mut keys: Vec<ObjectKey> = pods.map(|known| known.pod.key.clone()).collect();
            keys.sort();
            keys
        };
        [
            (subject.address(self.family), keys(&mut subject.subjects(self.family))),
            (peer.address(self.family), keys(&mut peer.pods(self.family))),
        ]
        .into_iter()
        .filter_map(|(address, pods)| Some((address?, pods)).filter(|(_, pods)| pods.len() > 1))
        .collect()
    }

    /// Which of `transports` pass: the result of [`evaluate`] for each, without the reasons, for many at once.
    pub(super) fn passing(&self, transports: &[Transport]) -> Vec<bool> {
        let mut passing = vec![true; transports.len()];
        for direction in Direction::BOTH {
            for subject in self.ends(direction).0.subjects(self.family) {
                if let Decider::Nature(_) = self.decider(direction, subject) {
                    continue;
                }
                let rules: Vec<&PolicyRule> = self.rules(direction, subject).map(|(.., rule)| rule).collect();
                for (passes, transport) in passing.iter_mut().zip(transports) {
                    let allows =
                        |rule: &&PolicyRule| self.ports_match(&rule.ports, direction, subject, *transport);
                    *passes = *passes && rules.iter().any(allows);
                }
            }
        }
        passing
    }

    /// The end whose policies apply in `direction`, and the other end.
    pub(super) fn ends(&self, direction: Direction) -> (&'a ResolvedEndpoint<'a>, &'a ResolvedEndpoint<'a>) {
        match direction {
            Direction::Egress => (self.from, self.to),
            Direction::Ingress => (self.to, self.from),
        }
    }

    pub(super) fn decider(&self, direction: Direction, subject: &Claimant<'a>) -> Decider {
        let (_, peer) = self.ends(direction);
        let pod = subject.pod;
        if subject.isolated_by(direction).is_empty() {
            return Decider::Nature(Reason::NotIsolated(pod.key.clone(), direction));
        }
        let mut others = peer.pods(self.family).peekable();
        if others.peek().is_some() && others.all(|other| other.pod.key == pod.key) {
            return Decider::Nature(Reason::Itself(pod.key.clone()));
        }
        match (peer.node_of(pod), direction) {
            (None, _) => Decider::Rules,
            (Some(node), Direction::Egress) => {
                Decider::Nature(Reason::ToOwnNode(pod.key.clone(), node.clone()))
            }
            (Some(node), Direction::Ingress) => {
                Decider::Nature(Reason::FromOwnNode(pod.key.clone(), node.clone()))
            }
        }
    }

    /// The rules for `direction` whose peers match, of every policy that isolates `subject`, each with its index.
    fn rules(
        &self,
        direction: Direction,
        subject: &Claimant<'a>,
    ) -> impl Iterator<Item = (&'a NetworkPolicy, usize, &'a PolicyRule)> {
        let (_, peer) = self.ends(direction);
        let family = self.family;
        let all = subject.isolated_by(direction).iter().flat_map(move |policy| {
            // A policy that could not be read allows nothing, even if it has rules.
            let read = policy.standing == Standing::Accepted;
            let rules = if read { policy.rules(direction) } else { None };
            rules.unwrap_or_default().iter().enumerate().map(|(at, rule)| (*policy, at, rule))
        });
        all.filter(move |(.., rule)| peers_match(&rule.peers, peer, family))
    }

    /// No entry of `ports` matches a protocol without ports, only their absence does. A name is looked up in the
    /// receiving pod, whichever side the policy is on; an end that is not a pod has no names.
    fn ports_match(
        &self,
        ports: &Ports,
        direction: Direction,
        subject: &Claimant<'a>,
        transport: Transport,
    ) -> bool {
        let Ports::Of(ports) = ports else { return true };
        let Transport::Port(sent, number) = transport else { return false };
        ports.iter().any(|port| match port {
            Port::All(protocol) => *protocol == sent,
            Port::Range(protocol, range) => *protocol == sent && range.contains(number),
            Port::Named(protocol, name) => {
                let resolve =
                    |receiver: &Claimant<'_>| receiver.pod.named_port(name, *protocol).contains(&number);
                *protocol == sent
                    && match direction {
                        Direction::Ingress => resolve(subject),
                        Direction::Egress => each(self.to.pods(self.family), resolve),
                    }
            }
        })
    }
}

fn peers_match(peers: &Peers, endpoint: &ResolvedEndpoint<'_>, family: Option<Family>) -> bool {
    let Peers::Of(peers) = peers else { return true };
    peers.iter().any(|peer| match peer {
        Peer::Block(block) => endpoint.address(family).is_some_and(|address| block.contains(address)),
        Peer::Pods(peer) => each(endpoint.pods(family), |known| {
            let in_scope = match &peer.scope {
                Scope::Own(namespace) => *namespace == known.pod.key.namespace,
                Scope::Matching(selector) => {
                    known.namespace_labels.is_some_and(|labels| selector.matches(labels))
                }
            };
            in_scope && peer.pods.matches(&known.pod.labels)
        }),
    })
}

/// Whether there is a pod, and `is_so` holds for each.
fn each<'c, 'a: 'c>(
    pods: impl Iterator<Item = &'c Claimant<'a>>,
    is_so: impl Fn(&Claimant<'a>) -> bool,
) -> bool {
    let mut pods = pods.peekable();
    pods.peek().is_some() && pods.all(is_so)
}

#[cfg(test)]
mod tests;
