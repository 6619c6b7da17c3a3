//! May this flow pass? Written straight from the standard, one flow at a time, naive on purpose.
//!
//! Where the standard leaves something open, or says it without saying how to tell, this is how it is read here:
//!
//! - An address stands for the pod that owns it, else for the node that has it, else for the world outside.
//! - A pod on its node's network is its node: only an ipBlock matches it, and it has no named ports.
//! - A node is recognised by its addresses and by its pods on the host network; node to own pod and pod to own node
//!   always pass, and so does a pod's traffic to itself.
//! - A finished pod is an address that nobody owns. A terminating pod is a pod.
//! - A pod without an address takes part by its labels; no ipBlock matches it.
//! - A pod that lost its address to another, asked by name, is the pod with its labels and the address it reports.
//! - While a namespace's object is unknown no namespaceSelector matches it, not even the empty one.

use crate::model::{
    Cluster, Direction, Family, Flow, NetworkPolicy, ObjectKey, Peer, Peers, Pod, PolicyRule, Port, Ports,
    Scope, Standing, Transport,
};

use super::{
    party::{Party, Who, families},
    verdict::{DirectionVerdict, Reason, RuleRef, Verdict},
};

/// Whether `flow` may pass, and why.
///
/// The cost is that of reading every policy in the namespaces of the two pods. For many flows at once see
/// [`Reachability`](super::Reachability).
#[must_use]
pub fn evaluate(cluster: &Cluster, flow: &Flow) -> Verdict {
    let (from, to) = (Party::new(cluster, &flow.from), Party::new(cluster, &flow.to));
    let family = flow.family.or_else(|| families(&from, &to).first().copied());
    Pair { from: &from, to: &to, family }.verdict(flow.transport)
}

/// The verdict of `flow` in each family in which it can travel, that of [`evaluate`] first.
///
/// With two families they may differ, since an ipBlock of one family allows nothing in the other.
#[must_use]
pub fn evaluate_families(cluster: &Cluster, flow: &Flow) -> Vec<(Family, Verdict)> {
    let (from, to) = (Party::new(cluster, &flow.from), Party::new(cluster, &flow.to));
    families(&from, &to)
        .into_iter()
        .filter(|family| flow.family.is_none_or(|wanted| wanted == *family))
        .map(|family| (family, Pair { from: &from, to: &to, family: Some(family) }.verdict(flow.transport)))
        .collect()
}

/// What decides about one direction.
enum Decider<'a> {
    /// What the ends are: the flow passes, whatever any rule says.
    Nature(Reason),
    /// The rules of the policies that isolate this pod.
    Rules(&'a Pod),
}

/// Two ends, and the family of the packets between them.
pub(super) struct Pair<'a> {
    pub(super) from: &'a Party<'a>,
    pub(super) to: &'a Party<'a>,
    pub(super) family: Option<Family>,
}

impl<'a> Pair<'a> {
    fn verdict(&self, transport: Transport) -> Verdict {
        Verdict {
            egress: self.direction(Direction::Egress, transport),
            ingress: self.direction(Direction::Ingress, transport),
        }
    }

    fn direction(&self, direction: Direction, transport: Transport) -> DirectionVerdict {
        let policies = self.ends(direction).0.isolated_by(direction);
        let isolated_by: Vec<ObjectKey> = policies.iter().map(|policy| policy.key.clone()).collect();
        let allowed_by: Vec<RuleRef> = self
            .rules(direction)
            .filter(|(.., rule)| self.ports_match(&rule.ports, transport))
            .map(|(policy, rule, _)| RuleRef { policy: policy.key.clone(), rule })
            .collect();
        let reason = match self.decider(direction) {
            Decider::Nature(reason) => reason,
            Decider::Rules(_) if !allowed_by.is_empty() => Reason::AllowedBy(allowed_by.clone()),
            Decider::Rules(pod) => {
                let refused = policies.iter().filter(|policy| policy.standing == Standing::Refused);
                Reason::DeniedBy {
                    pod: pod.key.clone(),
                    direction,
                    policies: isolated_by.clone(),
                    refused: refused.map(|policy| policy.key.clone()).collect(),
                }
            }
        };
        DirectionVerdict { isolated_by, allowed_by, reason }
    }

    /// Which of `transports` pass: what [`evaluate`] says of each, without the reasons, for many at once.
    pub(super) fn passing(&self, transports: &[Transport]) -> Vec<bool> {
        let mut passing = vec![true; transports.len()];
        for direction in Direction::BOTH {
            if let Decider::Rules(_) = self.decider(direction) {
                let rules: Vec<&PolicyRule> = self.rules(direction).map(|(.., rule)| rule).collect();
                for (passes, transport) in passing.iter_mut().zip(transports) {
                    *passes = *passes && rules.iter().any(|rule| self.ports_match(&rule.ports, *transport));
                }
            }
        }
        passing
    }

    /// Whose policies are asked in `direction`, and who is on the other side.
    fn ends(&self, direction: Direction) -> (&'a Party<'a>, &'a Party<'a>) {
        match direction {
            Direction::Egress => (self.from, self.to),
            Direction::Ingress => (self.to, self.from),
        }
    }

    fn decider(&self, direction: Direction) -> Decider<'a> {
        let (subject, peer) = self.ends(direction);
        let pod = match &subject.who {
            Who::Pod { pod, .. } => *pod,
            Who::HostNetwork(pod) => return Decider::Nature(Reason::HostNetwork(pod.key.clone())),
            Who::Finished(pod) => return Decider::Nature(Reason::Finished(pod.key.clone())),
            Who::Unknown(key) => return Decider::Nature(Reason::UnknownPod(key.clone())),
            Who::Address(address) => return Decider::Nature(Reason::NotAPod(*address)),
        };
        if subject.isolated_by(direction).is_empty() {
            return Decider::Nature(Reason::NotIsolated(pod.key.clone(), direction));
        }
        if peer.pod().is_some_and(|peer| peer.key == pod.key) {
            return Decider::Nature(Reason::Itself(pod.key.clone()));
        }
        match (peer.node_of(pod), direction) {
            (None, _) => Decider::Rules(pod),
            (Some(node), Direction::Egress) => {
                Decider::Nature(Reason::ToOwnNode(pod.key.clone(), node.clone()))
            }
            (Some(node), Direction::Ingress) => {
                Decider::Nature(Reason::FromOwnNode(pod.key.clone(), node.clone()))
            }
        }
    }

    /// The rules for `direction` whose peers match, of every policy that isolates, each with its index.
    fn rules(
        &self,
        direction: Direction,
    ) -> impl Iterator<Item = (&'a NetworkPolicy, usize, &'a PolicyRule)> + use<'a> {
        let (subject, peer) = self.ends(direction);
        let family = self.family;
        let all = subject.isolated_by(direction).iter().flat_map(move |policy| {
            // What could not be read allows nothing, whatever came with it.
            let read = policy.standing == Standing::Accepted;
            let rules = if read { policy.rules(direction) } else { None };
            rules.unwrap_or_default().iter().enumerate().map(|(at, rule)| (*policy, at, rule))
        });
        all.filter(move |(.., rule)| peers_match(&rule.peers, peer, family))
    }

    /// A protocol without ports is matched by no entry of `ports`, only by their absence. A name is looked up at the
    /// receiving pod, on whichever side the policy is; what is no pod has no names.
    fn ports_match(&self, ports: &Ports, transport: Transport) -> bool {
        let Ports::Of(ports) = ports else { return true };
        let Transport::Port(sent, number) = transport else { return false };
        ports.iter().any(|port| match port {
            Port::All(protocol) => *protocol == sent,
            Port::Range(protocol, range) => *protocol == sent && range.contains(number),
            Port::Named(protocol, name) => {
                let resolve = |pod: &Pod| pod.named_port(name, *protocol).contains(&number);
                *protocol == sent && self.to.pod().is_some_and(resolve)
            }
        })
    }
}

fn peers_match(peers: &Peers, party: &Party<'_>, family: Option<Family>) -> bool {
    let Peers::Of(peers) = peers else { return true };
    peers.iter().any(|peer| match peer {
        Peer::Block(block) => party.address(family).is_some_and(|address| block.contains(address)),
        Peer::Pods(peer) => {
            let Who::Pod { pod, namespace_labels } = &party.who else { return false };
            let in_scope = match &peer.scope {
                Scope::Own(namespace) => *namespace == pod.key.namespace,
                Scope::Matching(selector) => namespace_labels.is_some_and(|labels| selector.matches(labels)),
            };
            in_scope && peer.pods.matches(&pod.labels)
        }
    })
}

#[cfg(test)]
mod tests;
