//! The smallest change of the policies that lets a denied flow pass.
//!
//! Policies only add up, so there is always a way that closes nothing: one more peer, one more port, or one more policy.
//! What is suggested is tried on a copy of the cluster before it is returned, and it opens nothing but the flow in
//! question, for all pods of its two workloads. The exception is the correction of what is obviously a typo, which opens
//! what the rule was written for; [`Step::exact`] says so.

mod selector;
#[cfg(test)]
mod tests;

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use self::selector::{Chosen, is_same_workload, selector_of};
use super::{
    evaluate,
    near_miss::{
        LabelMiss, Miss, NamespaceFault, NearMiss, PeerMiss, PeerName, PortFault, PortMiss, RuleMiss,
        SelectorFault, Short, near_miss,
    },
};
use crate::model::{
    Change, Cluster, Direction, Family, Flow, IpBlock, LabelSelector, NetworkPolicy, ObjectKey, Operator,
    Peer, Peers, Pod, PodPeer, PolicyRule, Port, PortRange, Ports, Protocol, Requirement, Scope, Standing,
    Transport,
};

/// The label that every namespace of a cluster has; its value is the namespace's name.
pub(super) const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// How many changes a flow may need: two directions, and a few pods that report the same address.
const STEPS: usize = 4;

/// What lets a denied flow pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fix {
    /// The changes, all of which are needed: at most one for each direction and pod.
    pub steps: Vec<Step>,
}

/// One change of one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The change.
    pub edit: Edit,
    /// The direction in which it allows the flow.
    pub direction: Direction,
    /// The policy after the change.
    pub policy: NetworkPolicy,
    /// Whether it opens nothing but the flow, for all pods of its two workloads.
    pub exact: bool,
}

/// A change of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// One more policy.
    Create,
    /// One more peer of this rule.
    AddPeer(usize, Peer),
    /// Another peer for the one at this index of this rule.
    ReplacePeer(usize, usize, Peer),
    /// One more port of this rule.
    AddPort(usize, Port),
    /// Another port for the one at this index of this rule.
    ReplacePort(usize, usize, Port),
}

/// Why no change of policies is suggested. Displays as a sentence without its full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoFix {
    /// The flow is allowed.
    Allowed,
    /// This policy could not be read: it has to be corrected.
    Refused(ObjectKey),
    /// The policies of this policy's namespace take too much memory.
    TooLarge(ObjectKey),
    /// This pod has no label by which a policy could select it.
    NoLabels(ObjectKey),
    /// The labels of this namespace are not known, so that no namespaceSelector selects it.
    UnknownNamespace(ObjectKey),
    /// This end has no address, and is nothing that labels select.
    NoAddress(ObjectKey),
    /// No single change is enough.
    NotFound,
}

impl fmt::Display for NoFix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed => f.write_str("the flow is allowed"),
            Self::Refused(policy) => {
                write!(f, "correct {} first: see what `towpath lint` says of it", Short(policy))
            }
            Self::TooLarge(policy) => write!(f, "make the policies of {} smaller", Short(&policy.namespace)),
            Self::NoLabels(pod) => write!(f, "give {} a label by which a policy can select it", Short(pod)),
            Self::UnknownNamespace(pod) => {
                let namespace = Short(&pod.namespace);
                write!(
                    f,
                    "the namespace {namespace} is not among the objects, so no selector selects it: add it"
                )
            }
            Self::NoAddress(pod) => write!(f, "{} has no address that a policy could allow", Short(pod)),
            Self::NotFound => f.write_str("no single change of a policy is enough"),
        }
    }
}

/// The smallest change that lets `flow` pass. It costs a few evaluations of the flow, and comparisons of selectors with
/// all pods.
///
/// # Errors
/// Why there is none.
pub fn fix(cluster: &Cluster, flow: &Flow) -> Result<Fix, NoFix> {
    fix_all(cluster, std::slice::from_ref(flow))
}

/// The smallest change that lets all of `flows` pass.
///
/// # Errors
/// Why there is none.
pub fn fix_all(cluster: &Cluster, flows: &[Flow]) -> Result<Fix, NoFix> {
    let mut after = cluster.clone();
    let mut steps: Vec<Step> = Vec::new();
    for flow in flows {
        let mut left = STEPS;
        loop {
            let verdict = evaluate(&after, flow);
            let denied = Direction::BOTH.into_iter().find(|one| !verdict.of(*one).allowed());
            let Some(direction) = denied else { break };
            let miss = near_miss(&after, flow, direction).ok_or(NoFix::NotFound)?;
            left = left.checked_sub(1).ok_or(NoFix::NotFound)?;
            let step = Fixer::new(&after, flow, &miss)?.step()?;
            after.apply(Change::SetPolicy(step.policy.clone()));
            // A policy that a step before creates can have this as well.
            let is_created =
                |before: &&mut Step| before.edit == Edit::Create && before.policy.key == step.policy.key;
            match steps.iter_mut().find(is_created) {
                Some(before) => {
                    *before = Step { edit: Edit::Create, exact: before.exact && step.exact, ..step }
                }
                None => steps.push(step),
            }
        }
    }
    if steps.is_empty() { Err(NoFix::Allowed) } else { Ok(Fix { steps }) }
}

/// The other end of the flow, as a policy can name it.
enum Other<'a> {
    Pod(&'a Pod),
    Addresses(Vec<IpAddr>),
}

/// Looks for the change that lets a flow pass in one direction.
struct Fixer<'a> {
    cluster: &'a Cluster,
    miss: &'a NearMiss,
    /// The pod whose policies deny.
    subject: &'a Pod,
    other: Other<'a>,
    /// The port to allow; `None` for a protocol without ports.
    port: Option<Port>,
}

impl<'a> Fixer<'a> {
    fn new(cluster: &'a Cluster, flow: &Flow, miss: &'a NearMiss) -> Result<Self, NoFix> {
        let pod = |key: &ObjectKey| cluster.pod(key).map(|pod| &**pod).ok_or(NoFix::NotFound);
        let family = flow.family;
        let of_family = |addresses: &[IpAddr]| -> Vec<IpAddr> {
            let wanted = addresses.iter().copied();
            wanted.filter(|address| family.is_none_or(|family| family == Family::of(*address))).collect()
        };
        let other = match &miss.peer {
            PeerName::Pod(key) => Other::Pod(pod(key)?),
            PeerName::HostNetwork(key, _) | PeerName::Finished(key) => {
                let pod = pod(key)?;
                let addresses = if pod.addresses.is_empty() { &pod.node_addresses } else { &pod.addresses };
                Other::Addresses(of_family(addresses))
            }
            PeerName::Unknown(_) => return Err(NoFix::NotFound),
            PeerName::Node(address, _) | PeerName::Address(address) => Other::Addresses(vec![*address]),
        };
        if let (Other::Addresses(addresses), PeerName::HostNetwork(key, _) | PeerName::Finished(key)) =
            (&other, &miss.peer)
            && addresses.is_empty()
        {
            return Err(NoFix::NoAddress(key.clone()));
        }
        let port = match miss.transport {
            Transport::Port(protocol, number) => Some(Port::Range(protocol, PortRange::single(number))),
            Transport::Other(_) => None,
        };
        Ok(Self { cluster, miss, subject: pod(&miss.pod)?, other, port })
    }

    fn step(&self) -> Result<Step, NoFix> {
        let policy = self.cluster.policy(&self.miss.policy).ok_or(NoFix::NotFound)?;
        match &self.miss.miss {
            Miss::Refused => return Err(NoFix::Refused(policy.key.clone())),
            Miss::TooLarge(_) => return Err(NoFix::TooLarge(policy.key.clone())),
            Miss::Rule(rule) => {
                if let Some(step) = self.correction(policy, rule).or_else(|| self.addition(policy, rule)) {
                    return Ok(step);
                }
            }
            Miss::NoRule | Miss::NotRead => {}
        }
        self.another_policy(policy)
    }

    fn rule<'p>(&self, policy: &'p NetworkPolicy, at: usize) -> Option<&'p PolicyRule> {
        policy.rules(self.miss.direction)?.get(at)
    }

    /// What corrects an obvious mistake in the only part of a rule that fails.
    fn correction(&self, policy: &NetworkPolicy, miss: &RuleMiss) -> Option<Step> {
        let RuleMiss { rule: at, peer, port } = miss;
        let rule = self.rule(policy, *at)?;
        match (peer, port) {
            (Some(PeerMiss::Pods { item, allowed, fault }), None) => {
                let corrected = corrected(allowed, fault)?;
                // A rule that still selects somebody must not lose this.
                let selects = self.selected(allowed).next().is_some();
                let exact = self.is_subject_of(policy) && self.is_port_of(rule) && self.is_other(&corrected);
                let peer = Peer::Pods(corrected);
                let edit =
                    if selects { Edit::AddPeer(*at, peer) } else { Edit::ReplacePeer(*at, *item, peer) };
                self.edited(policy, edit, exact)
            }
            (None, Some(PortMiss { fault: PortFault::NoSuchName(_, name, declared), .. })) => {
                let Transport::Port(sent, number) = self.miss.transport else { return None };
                let declared = declared.iter().find(|port| port.number == number && port.protocol == sent)?;
                let meant = declared.name.as_ref()?;
                let Ports::Of(ports) = &rule.ports else { return None };
                let is_it = |port: &Port| matches!(port, Port::Named(_, other) if other == name);
                let item = ports.iter().position(is_it)?;
                let protocol = ports.get(item).map(protocol_of)?;
                let subjects = self.cluster.pods_in(&policy.key.namespace);
                let is_used = match self.miss.direction {
                    Direction::Ingress => subjects
                        .filter(|pod| policy.subject.matches(&pod.labels))
                        .any(|pod| !pod.named_port(name, protocol).is_empty()),
                    Direction::Egress => {
                        self.cluster.pods().any(|pod| !pod.named_port(name, protocol).is_empty())
                    }
                };
                let port = Port::Named(sent, meant.clone());
                let edit =
                    if is_used { Edit::AddPort(*at, port) } else { Edit::ReplacePort(*at, item, port) };
                let exact = self.is_subject_of(policy) && self.are_peers_other(rule);
                self.edited(policy, edit, exact)
            }
            _ => None,
        }
    }

    /// One more peer or port of a rule, if this opens nothing else.
    fn addition(&self, policy: &NetworkPolicy, miss: &RuleMiss) -> Option<Step> {
        let rule = self.rule(policy, miss.rule)?;
        let (edit, exact) = match (&miss.peer, &miss.port) {
            (Some(PeerMiss::Pods { .. } | PeerMiss::Block { .. }), None) => {
                let (peer, exact) = self.peers(&policy.key.namespace).ok()?;
                let [peer] = &peer[..] else { return None };
                (Edit::AddPeer(miss.rule, peer.clone()), exact && self.is_port_of(rule))
            }
            (None, Some(_)) => (Edit::AddPort(miss.rule, self.port.clone()?), self.are_peers_other(rule)),
            _ => return None,
        };
        (exact && self.is_subject_of(policy)).then(|| self.edited(policy, edit, true)).flatten()
    }

    fn edited(&self, policy: &NetworkPolicy, edit: Edit, exact: bool) -> Option<Step> {
        let direction = self.miss.direction;
        let mut policy = policy.clone();
        let rules = match direction {
            Direction::Ingress => &mut policy.ingress,
            Direction::Egress => &mut policy.egress,
        };
        let rules = rules.as_mut()?;
        match &edit {
            Edit::Create => return None,
            Edit::AddPeer(rule, peer) => {
                let Peers::Of(peers) = &mut rules.get_mut(*rule)?.peers else { return None };
                peers.push(peer.clone());
            }
            Edit::ReplacePeer(rule, item, peer) => {
                let Peers::Of(peers) = &mut rules.get_mut(*rule)?.peers else { return None };
                *peers.get_mut(*item)? = peer.clone();
            }
            Edit::AddPort(rule, port) => {
                let Ports::Of(ports) = &mut rules.get_mut(*rule)?.ports else { return None };
                ports.push(port.clone());
            }
            Edit::ReplacePort(rule, item, port) => {
                let Ports::Of(ports) = &mut rules.get_mut(*rule)?.ports else { return None };
                *ports.get_mut(*item)? = port.clone();
            }
        }
        Some(Step { edit, direction, policy, exact })
    }

    /// One more policy that allows the flow and nothing else.
    fn another_policy(&self, nearest: &NetworkPolicy) -> Result<Step, NoFix> {
        let direction = self.miss.direction;
        let namespace = &self.subject.key.namespace;
        let is_everything = nearest.subject.is_everything();
        // What its author wrote is known to the reader, unless it selects other pods as well.
        let (subject, of_subject) = if !is_everything && self.is_subject_of(nearest) {
            (nearest.subject.clone(), true)
        } else {
            let Chosen { selector, exact } = selector_of(self.cluster, self.subject)
                .ok_or_else(|| NoFix::NoLabels(self.subject.key.clone()))?;
            (selector, exact)
        };
        // A pod that no policy isolates yet must not become isolated.
        let mut selected = self.cluster.pods_in(namespace).filter(|pod| subject.matches(&pod.labels));
        if !selected.all(|pod| is_isolated(self.cluster, pod, direction)) {
            return Err(NoFix::NotFound);
        }
        let (peers, of_peers) = self.peers(namespace)?;
        let ports = self.port.clone().map_or(Ports::Any, |port| Ports::Of(vec![port]));
        let rules = Some(vec![PolicyRule { peers: Peers::Of(peers), ports }]);
        let (ingress, egress) = match direction {
            Direction::Ingress => (rules, None),
            Direction::Egress => (None, rules),
        };
        let key = self.free_name();
        let policy = NetworkPolicy { key, subject, ingress, egress, standing: Standing::Accepted };
        // A protocol without ports is only allowed together with all others.
        let exact = of_subject && of_peers && self.port.is_some();
        Ok(Step { edit: Edit::Create, direction, policy, exact })
    }

    /// The other end as peers in a policy of this namespace, and whether they select nothing else.
    fn peers(&self, namespace: &str) -> Result<(Vec<Peer>, bool), NoFix> {
        let pod = match &self.other {
            Other::Addresses(addresses) => {
                let block = |address: &IpAddr| IpBlock::new(IpNet::from(*address), []).ok().map(Peer::Block);
                return Ok((addresses.iter().filter_map(block).collect(), true));
            }
            Other::Pod(pod) => *pod,
        };
        let Chosen { selector, exact } =
            selector_of(self.cluster, pod).ok_or_else(|| NoFix::NoLabels(pod.key.clone()))?;
        let of_pod = &pod.key.namespace;
        let scope = if **of_pod == *namespace {
            Scope::Own(of_pod.clone())
        } else {
            let known = self.cluster.namespace(of_pod).and_then(|known| known.labels.get(NAME_LABEL));
            if known != Some(&**of_pod) {
                return Err(NoFix::UnknownNamespace(pod.key.clone()));
            }
            Scope::Matching(LabelSelector::new([Requirement::equals(NAME_LABEL, of_pod.clone())]))
        };
        Ok((vec![Peer::Pods(PodPeer { scope, pods: selector })], exact))
    }

    /// A name for a new policy, such as `db-from-web`, that no policy of the namespace has.
    fn free_name(&self) -> ObjectKey {
        let of_pod = |pod: &Pod| match &pod.workload {
            Some(workload) => workload.name.clone(),
            None => pod.key.name.clone(),
        };
        let other = match &self.other {
            Other::Pod(pod) => of_pod(pod).to_string(),
            Other::Addresses(addresses) => addresses.first().map(ToString::to_string).unwrap_or_default(),
        };
        let word = match self.miss.direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        // A name has 253 characters at most.
        let part = |text: &str| -> String {
            let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
            text.chars().take(100).map(legal).collect::<String>().trim_matches('-').to_owned()
        };
        let namespace = &self.subject.key.namespace;
        let name = format!("{}-{word}-{}", part(&of_pod(self.subject)), part(&other));
        let taken = |key: &ObjectKey| self.cluster.policy(key).is_some();
        let first = ObjectKey::new(namespace.clone(), name.clone());
        let numbered = (2..).map(|number| ObjectKey::new(namespace.clone(), format!("{name}-{number}")));
        std::iter::once(first.clone()).chain(numbered).find(|key| !taken(key)).unwrap_or(first)
    }

    /// Whether the policy selects no pod of another workload than that of the subject.
    fn is_subject_of(&self, policy: &NetworkPolicy) -> bool {
        let mut pods = self.cluster.pods_in(&policy.key.namespace);
        pods.all(|pod| is_same_workload(pod, self.subject) || !policy.subject.matches(&pod.labels))
    }

    /// Whether the rule allows the flow's port and no other.
    fn is_port_of(&self, rule: &PolicyRule) -> bool {
        match (&rule.ports, &self.port) {
            (Ports::Of(ports), Some(port)) => {
                ports.iter().all(|other| other == port || self.is_name_of_port(other))
            }
            (Ports::Any, _) | (Ports::Of(_), None) => false,
        }
    }

    /// Whether this is the flow's port by its name, at each pod of the receiver's workload.
    fn is_name_of_port(&self, port: &Port) -> bool {
        let (Port::Named(protocol, name), Transport::Port(sent, number)) = (port, self.miss.transport) else {
            return false;
        };
        let receiver = match (self.miss.direction, &self.other) {
            (Direction::Ingress, _) => self.subject,
            (Direction::Egress, Other::Pod(other)) => other,
            (Direction::Egress, Other::Addresses(_)) => return false,
        };
        let mut pods = self.cluster.pods_in(&receiver.key.namespace);
        *protocol == sent
            && pods.all(|pod| !is_same_workload(pod, receiver) || pod.named_port(name, sent) == [number])
    }

    /// Whether the peers of the rule select nothing but the other end.
    fn are_peers_other(&self, rule: &PolicyRule) -> bool {
        let Peers::Of(peers) = &rule.peers else { return false };
        peers.iter().all(|peer| match (peer, &self.other) {
            (Peer::Pods(peer), _) => self.is_other(peer),
            (Peer::Block(block), Other::Addresses(addresses)) => {
                addresses.iter().any(|address| IpNet::from(*address) == block.cidr())
            }
            (Peer::Block(_), Other::Pod(_)) => false,
        })
    }

    /// Whether a peer selects no pod of another workload than the other end's.
    fn is_other(&self, peer: &PodPeer) -> bool {
        self.selected(peer).all(|pod| match &self.other {
            Other::Pod(other) => is_same_workload(pod, other),
            Other::Addresses(_) => false,
        })
    }

    /// The pods that a peer selects.
    fn selected<'p>(&'p self, peer: &'p PodPeer) -> impl Iterator<Item = &'p Pod> {
        self.cluster.pods().map(|pod| &**pod).filter(move |pod| {
            let in_scope = match &peer.scope {
                Scope::Own(namespace) => *namespace == pod.key.namespace,
                Scope::Matching(selector) => {
                    let namespace = self.cluster.namespace(&pod.key.namespace);
                    namespace.is_some_and(|namespace| selector.matches(&namespace.labels))
                }
            };
            in_scope && peer.pods.matches(&pod.labels)
        })
    }
}

fn is_isolated(cluster: &Cluster, pod: &Pod, direction: Direction) -> bool {
    let mut policies = cluster.policies_in(&pod.key.namespace);
    policies.any(|policy| policy.rules(direction).is_some() && policy.subject.matches(&pod.labels))
}

pub(super) const fn protocol_of(port: &Port) -> Protocol {
    match port {
        Port::All(protocol) | Port::Range(protocol, _) | Port::Named(protocol, _) => *protocol,
    }
}

/// The peer that was probably meant: with the labels of which its own are a typo, and with the name of a namespace where
/// the label for it was meant. `None` if something else is wrong as well.
fn corrected(allowed: &PodPeer, fault: &SelectorFault) -> Option<PodPeer> {
    let SelectorFault::Labels { pod, labels, namespace } = fault else { return None };
    let pods = without_typos(&allowed.pods, labels)?;
    let scope = match (&allowed.scope, namespace) {
        (scope, None) => scope.clone(),
        (Scope::Matching(selector), Some(NamespaceFault::Labels(misses))) => {
            Scope::Matching(match by_name(misses, &pod.namespace) {
                Some(wrong) => replaced(selector, wrong, NAME_LABEL, &pod.namespace),
                None => without_typos(selector, misses)?,
            })
        }
        _ => return None,
    };
    Some(PodPeer { scope, pods })
}

/// The requirement that means a namespace's name by a label that is not its name, if this is all that is wrong.
pub(super) fn by_name<'m>(misses: &'m [LabelMiss], namespace: &str) -> Option<&'m Requirement> {
    let [LabelMiss { requirement, value: None, .. }] = misses else { return None };
    match &requirement.operator {
        Operator::In(values) if values.iter().any(|value| &**value == namespace) => Some(requirement),
        _ => None,
    }
}

fn without_typos(selector: &LabelSelector, misses: &[LabelMiss]) -> Option<LabelSelector> {
    misses.iter().try_fold(selector.clone(), |selector, miss| {
        let (key, value) = miss.meant.as_ref()?;
        Some(replaced(&selector, &miss.requirement, key, value))
    })
}

fn replaced(selector: &LabelSelector, wrong: &Requirement, key: &str, value: &str) -> LabelSelector {
    LabelSelector::new(selector.requirements().iter().map(|requirement| {
        if requirement == wrong { Requirement::equals(key, value) } else { requirement.clone() }
    }))
}
