//! What else is worth knowing of a flow: why it is allowed although it should not be, and what may stop it although it
//! is.

use std::sync::Arc;

use super::Short;
use crate::{
    model::{
        Change, Cluster, Direction, Endpoint, Flow, LabelSelector, NetworkPolicy, ObjectKey, Operator, Peer,
        Peers, Phase, Pod, PodPeer, PolicyRule, Ports, Protocol, Requirement, Scope, Standing, Transport,
    },
    policy::{
        evaluate,
        near_miss::meant,
        verdict::{Reason, RuleRef, Verdict},
    },
};

/// Something that is worth knowing of a flow. Displays as sentences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The kind of note.
    pub code: NoteCode,
    /// The sentences, with their full stops.
    pub text: String,
    /// Other flows that the note is about, and that are denied.
    pub flows: Vec<Flow>,
}

/// The kinds of notes. The names are for scripts, and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoteCode {
    /// The sender cannot resolve names.
    Dns,
    /// A policy of another namespace would allow it.
    WrongNamespace,
    /// A policy selects no pod, since its podSelector has a typo.
    PodSelectorTypo,
    /// A requirement matches a pod because it does not have the label.
    MissingLabel,
    /// One of several peers of a rule is enough.
    Alternatives,
    /// The rule allows everything.
    EmptyRule,
    /// The receiver or the sender cannot have traffic.
    NoAddress,
    /// The pod is on its node's network, so that no policy applies to it.
    HostNetwork,
}

impl NoteCode {
    /// As JSON has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::WrongNamespace => "wrong_namespace",
            Self::PodSelectorTypo => "pod_selector_typo",
            Self::MissingLabel => "missing_label",
            Self::Alternatives => "alternatives",
            Self::EmptyRule => "empty_rule",
            Self::NoAddress => "no_address",
            Self::HostNetwork => "host_network",
        }
    }
}

/// How many policies of other namespaces are tried.
const TRIED: usize = 50;

/// What is worth knowing of `flow`, of which `verdict` is the verdict.
#[must_use]
pub fn notes(cluster: &Cluster, flow: &Flow, verdict: &Verdict) -> Vec<Note> {
    let mut notes = Vec::new();
    for direction in Direction::BOTH {
        match &verdict.of(direction).reason {
            Reason::DeniedBy { pod, policies, .. } => {
                let pod = cluster.pod(pod);
                let policies = policies.iter().filter_map(|key| cluster.policy(key));
                notes.extend(policies.filter_map(|policy| selected_without_label(policy, pod?)));
                notes.extend(pod.and_then(|pod| in_wrong_namespace(cluster, flow, direction, pod)));
            }
            Reason::NotIsolated(pod, _) => {
                let pod = cluster.pod(pod);
                notes.extend(pod.and_then(|pod| not_selecting(cluster, direction, pod)));
            }
            Reason::AllowedBy(rules) => {
                notes.extend(
                    rules.iter().take(TRIED).find_map(|rule| of_rule(cluster, flow, direction, rule)),
                );
            }
            _ => {}
        }
    }
    notes.extend(dns(cluster, flow, verdict));
    notes.extend([&flow.from, &flow.to].into_iter().filter_map(|end| of_end(cluster, end)));
    notes
}

fn note(code: NoteCode, text: String) -> Note {
    Note { code, text, flows: Vec::new() }
}

/// A podSelector that selects the pod because it lacks a label.
fn selected_without_label(policy: &NetworkPolicy, pod: &Pod) -> Option<Note> {
    let requirement = lacking(&policy.subject, pod)?;
    let wanted = LabelSelector::new([requirement.clone()]);
    let text = format!(
        "The podSelector {} of {} also selects pods that have no label {}, such as {}.",
        Short(&wanted),
        Short(&policy.key),
        Short(&requirement.key),
        Short(&pod.key)
    );
    Some(note(NoteCode::MissingLabel, text))
}

/// The `NotIn` that `pod` meets because it has no such label.
fn lacking<'s>(selector: &'s LabelSelector, pod: &Pod) -> Option<&'s Requirement> {
    let mut requirements = selector.requirements().iter();
    requirements.find(|one| matches!(one.operator, Operator::NotIn(_)) && pod.labels.get(&one.key).is_none())
}

/// A policy of another namespace that would allow the flow if it were in the pod's.
fn in_wrong_namespace(cluster: &Cluster, flow: &Flow, direction: Direction, pod: &Pod) -> Option<Note> {
    let namespace = &pod.key.namespace;
    let allows = |policy: &&NetworkPolicy| {
        let key = ObjectKey::new(namespace.clone(), policy.key.name.clone());
        let mut moved = cluster.clone();
        moved.apply(Change::SetPolicy(NetworkPolicy { key, ..in_namespace(policy, namespace) }));
        evaluate(&moved, flow).of(direction).allowed()
    };
    let policy = misplaced(cluster, direction, pod).take(TRIED).find(allows)?;
    let text = format!(
        "{} would allow it, but it is in another namespace: a policy applies to pods of its own namespace only, and \
         {} is in {}.",
        Short(&policy.key),
        Short(&pod.key),
        Short(namespace)
    );
    Some(note(NoteCode::WrongNamespace, text))
}

/// Policies of other namespaces that select no pod there, and would select this one.
fn misplaced<'c>(
    cluster: &'c Cluster,
    direction: Direction,
    pod: &'c Pod,
) -> impl Iterator<Item = &'c NetworkPolicy> {
    cluster
        .policies()
        .map(|policy| &**policy)
        .filter(|policy| policy.key.namespace != pod.key.namespace && policy.standing == Standing::Accepted)
        // One that selects every pod was hardly meant for this one.
        .filter(|policy| !policy.subject.is_everything() && policy.subject.matches(&pod.labels))
        .filter(move |policy| policy.rules(direction).is_some())
        .filter(|policy| !selects_any(cluster, policy))
}

fn selects_any(cluster: &Cluster, policy: &NetworkPolicy) -> bool {
    cluster.pods_in(&policy.key.namespace).any(|pod| policy.subject.matches(&pod.labels))
}

/// A policy that was probably meant to isolate the pod, and does not.
fn not_selecting(cluster: &Cluster, direction: Direction, pod: &Pod) -> Option<Note> {
    let (name, namespace) = (Short(&pod.key), Short(&pod.key.namespace));
    let mistyped = cluster
        .policies_in(&pod.key.namespace)
        .filter(|policy| policy.rules(direction).is_some() && !policy.subject.matches(&pod.labels))
        .filter(|policy| !selects_any(cluster, policy))
        .find_map(|policy| Some((policy, meant(&policy.subject, &pod.labels)?)));
    if let Some((policy, meant)) = mistyped {
        let text = format!(
            "{} does not apply to {name}, nor to any other pod: its podSelector is {}. Did you mean {}?",
            Short(&policy.key),
            Short(&policy.subject),
            Short(&meant)
        );
        return Some(note(NoteCode::PodSelectorTypo, text));
    }
    let policy = misplaced(cluster, direction, pod).next()?;
    let text = format!(
        "{} would apply to {name}, but it is in another namespace: a policy applies to pods of its own namespace only, \
         and {name} is in {namespace}.",
        Short(&policy.key)
    );
    Some(note(NoteCode::WrongNamespace, text))
}

/// The policy with what means its own namespace meaning another one.
fn in_namespace(policy: &NetworkPolicy, namespace: &Arc<str>) -> NetworkPolicy {
    let peer = |peer: &Peer| match peer {
        Peer::Pods(PodPeer { scope: Scope::Own(_), pods }) => {
            Peer::Pods(PodPeer { scope: Scope::Own(namespace.clone()), pods: pods.clone() })
        }
        other => other.clone(),
    };
    let rule = |rule: &PolicyRule| PolicyRule {
        peers: match &rule.peers {
            Peers::Any => Peers::Any,
            Peers::Of(peers) => Peers::Of(peers.iter().map(peer).collect()),
        },
        ports: rule.ports.clone(),
    };
    let rules = |rules: &Option<Vec<PolicyRule>>| Some(rules.as_ref()?.iter().map(rule).collect());
    NetworkPolicy { ingress: rules(&policy.ingress), egress: rules(&policy.egress), ..policy.clone() }
}

/// Why a rule allows more than it seems to.
fn of_rule(cluster: &Cluster, flow: &Flow, direction: Direction, rule: &RuleRef) -> Option<Note> {
    let policy = cluster.policy(&rule.policy)?;
    let peers = match policy.rules(direction)?.get(rule.rule)? {
        PolicyRule { peers: Peers::Any, ports: Ports::Any } => {
            let text = format!(
                "{rule} is empty (`{direction}: [{{}}]`), and so allows everything.",
                rule = Short(rule)
            );
            return Some(note(NoteCode::EmptyRule, text));
        }
        PolicyRule { peers: Peers::Any, .. } => return None,
        PolicyRule { peers: Peers::Of(peers), .. } => peers,
    };
    let end = match direction {
        Direction::Ingress => &flow.from,
        Direction::Egress => &flow.to,
    };
    let pod = pod_of(cluster, end)?;
    let namespace = cluster.namespace(&pod.key.namespace).map(|known| &known.labels);
    let selects = |peer: &PodPeer| {
        let in_scope = match &peer.scope {
            Scope::Own(own) => *own == pod.key.namespace,
            Scope::Matching(selector) => namespace.is_some_and(|labels| selector.matches(labels)),
        };
        (in_scope, peer.pods.matches(&pod.labels))
    };
    let pods = peers.iter().take(TRIED).enumerate().filter_map(|(at, peer)| match peer {
        Peer::Pods(peer) => Some((at, peer, selects(peer))),
        Peer::Block(_) => None,
    });
    let pods: Vec<(usize, &PodPeer, (bool, bool))> = pods.collect();
    let (at, matching, _) = *pods.iter().find(|(.., selected)| *selected == (true, true))?;
    let field = if direction == Direction::Ingress { "from" } else { "to" };
    if let Some(requirement) = lacking(&matching.pods, pod) {
        let wanted = LabelSelector::new([requirement.clone()]);
        let text = format!(
            "{} also selects pods that have no label {}, such as {}: {field}[{at}] of {}.",
            Short(&wanted),
            Short(&requirement.key),
            Short(&pod.key),
            Short(rule)
        );
        return Some(note(NoteCode::MissingLabel, text));
    }
    // One peer with a namespaceSelector alone and one with a podSelector alone, of which one selects the pod.
    let is_namespace = |peer: &PodPeer| matches!(peer.scope, Scope::Matching(_)) && peer.pods.is_everything();
    let is_pods = |peer: &PodPeer| matches!(peer.scope, Scope::Own(_)) && !peer.pods.is_everything();
    let other = pods.iter().find(|(_, peer, selected)| {
        *selected != (true, true)
            && ((is_namespace(matching) && is_pods(peer)) || (is_pods(matching) && is_namespace(peer)))
    });
    other.map(|(other, ..)| {
        let text = format!(
            "{field}[{at}] of {} alone allows it, and {field}[{other}] does not have to match: peers are alternatives. \
             To require both, put both selectors into one peer.",
            Short(rule)
        );
        note(NoteCode::Alternatives, text)
    })
}

fn pod_of<'c>(cluster: &'c Cluster, end: &Endpoint) -> Option<&'c Pod> {
    match end {
        Endpoint::Pod(key) => cluster.pod(key).map(|pod| &**pod),
        Endpoint::Address(address) => cluster.claimants(*address).first().map(|pod| &**pod),
    }
}

/// The ports on which a pod serves DNS to the cluster; none if it does not.
pub(super) fn dns_ports(pod: &Pod) -> Vec<Transport> {
    if pod.key.namespace.as_ref() != "kube-system" || pod.labels.get("k8s-app") != Some("kube-dns") {
        return Vec::new();
    }
    let named = |protocol, name: &str| {
        let number = pod.named_port(name, protocol).first().copied().unwrap_or(53);
        Transport::Port(protocol, number)
    };
    vec![named(Protocol::Udp, "dns"), named(Protocol::Tcp, "dns-tcp")]
}

/// Whether the sender's egress policies keep it from resolving names.
fn dns(cluster: &Cluster, flow: &Flow, verdict: &Verdict) -> Option<Note> {
    if !verdict.egress.isolated() {
        return None;
    }
    let sender = pod_of(cluster, &flow.from)?;
    let server =
        cluster.pods_in("kube-system").find(|pod| !dns_ports(pod).is_empty() && pod.is_selectable())?;
    if server.key == sender.key || pod_of(cluster, &flow.to).is_some_and(|to| !dns_ports(to).is_empty()) {
        return None;
    }
    let to_dns = |transport| Flow {
        from: flow.from.clone(),
        to: Endpoint::Pod(server.key.clone()),
        transport,
        family: flow.family,
    };
    let flows: Vec<Flow> = dns_ports(server).into_iter().map(to_dns).collect();
    // Without TCP, only long answers are missing.
    if evaluate(cluster, flows.first()?).egress.allowed() {
        return None;
    }
    let text = format!(
        "{} cannot resolve names: its egress to {}, which serves DNS, is denied.",
        Short(&sender.key),
        Short(&server.key)
    );
    Some(Note { code: NoteCode::Dns, text, flows })
}

/// Why an end has no traffic, or no policies.
fn of_end(cluster: &Cluster, end: &Endpoint) -> Option<Note> {
    let Endpoint::Pod(key) = end else { return None };
    let pod = cluster.pod(key)?;
    let name = Short(key);
    if pod.is_finished() {
        return Some(note(NoteCode::NoAddress, format!("{name} has finished: nothing reaches it.")));
    }
    if pod.host_network {
        let node = pod.node.as_ref().map_or_else(String::new, |node| format!(" {}", Short(node)));
        let text = format!("{name} is on the network of its node{node}: policies do not apply to it.");
        return Some(note(NoteCode::HostNetwork, text));
    }
    // Objects of files often have no addresses at all.
    let is_live = cluster.pods().any(|other| !other.addresses.is_empty());
    if pod.addresses.is_empty() && is_live {
        let phase = if pod.phase == Phase::Pending { " and is pending" } else { "" };
        let text = format!("{name} has no address{phase}: until it has one, nothing reaches it.");
        return Some(note(NoteCode::NoAddress, text));
    }
    None
}
