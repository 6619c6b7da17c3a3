//! Why a flow is denied or allowed, beyond the rules: the mistake that is probably behind it.

mod notes;
#[cfg(test)]
mod tests;

use std::fmt;

pub use notes::{Note, NoteCode, notes};

use super::{
    fix::{by_name, protocol_of},
    near_miss::{
        BlockFault, LabelMiss, Miss, NamespaceFault, NearMiss, PeerMiss, PeerName, PortFault, PortMiss,
        RuleMiss, SelectorFault, Short, near_miss,
    },
    verdict::{Reason, Verdict},
};
use crate::model::{
    Cluster, Direction, Flow, LabelSelector, Labels, NetworkPolicy, PodPeer, Port, Protocol, Scope, Transport,
};

/// Why one direction of a flow is denied. Displays as one or more sentences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The kind of cause.
    pub code: CauseCode,
    /// The rule or policy that comes nearest to allowing the flow.
    pub miss: NearMiss,
    /// What is behind it, as sentences with their full stops; may be empty.
    pub hint: String,
}

/// The kinds of causes. The names are for scripts, and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CauseCode {
    /// The policies have no rule that comes near: a default deny.
    DefaultDeny,
    /// The receiver allows the flow, and the sender's own egress policies do not.
    EgressForgotten,
    /// DNS is not allowed.
    Dns,
    /// The pod's labels are not those that the rule allows.
    PodLabels,
    /// The labels that the rule allows look like a typo of those of the pod or its namespace.
    LabelTypo,
    /// The labels of the pod's namespace are not those that the rule allows.
    NamespaceLabels,
    /// A namespace is meant by its name, with a label that it does not have.
    NamespaceName,
    /// The rule has no namespaceSelector, and the pod is in another namespace.
    OtherNamespace,
    /// The rule has one peer with both selectors, of which only one matches.
    BothSelectors,
    /// The rule allows other ports.
    Port,
    /// The rule's range of ports ends before the port.
    PortRange,
    /// The rule allows the port of a Service, which is another one at its pods.
    ServicePort,
    /// The rule allows the port with another protocol.
    Protocol,
    /// The rule allows a port by a name that the pod does not have.
    PortName,
    /// The rule allows a block of addresses, where the pod's is not in it.
    AddressBlock,
    /// An except takes the address out of the rule's block.
    Except,
    /// The rule allows only addresses of the other family.
    Family,
    /// The other end is on its node's network, or the node itself.
    HostNetwork,
    /// The rule allows pods, and the other end is none.
    NotAPod,
    /// The other end has no address yet.
    NoAddress,
    /// Peer and port of the nearest rule do not match.
    PeerAndPort,
    /// The policy has more rules than are compared with the flow.
    NotCompared,
    /// The policy could not be read.
    Refused,
    /// The policies of the namespace are too large.
    TooLarge,
    /// Several pods report the same address, and one of them is not allowed.
    SharedAddress,
}

impl CauseCode {
    /// As JSON has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DefaultDeny => "default_deny",
            Self::EgressForgotten => "egress_forgotten",
            Self::Dns => "dns",
            Self::PodLabels => "pod_labels",
            Self::LabelTypo => "label_typo",
            Self::NamespaceLabels => "namespace_labels",
            Self::NamespaceName => "namespace_name",
            Self::OtherNamespace => "other_namespace",
            Self::BothSelectors => "both_selectors",
            Self::Port => "port",
            Self::PortRange => "port_range",
            Self::ServicePort => "service_port",
            Self::Protocol => "protocol",
            Self::PortName => "port_name",
            Self::AddressBlock => "address_block",
            Self::Except => "except",
            Self::Family => "family",
            Self::HostNetwork => "host_network",
            Self::NotAPod => "not_a_pod",
            Self::NoAddress => "no_address",
            Self::PeerAndPort => "peer_and_port",
            Self::NotCompared => "not_compared",
            Self::Refused => "refused",
            Self::TooLarge => "too_large",
            Self::SharedAddress => "shared_address",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { miss, hint, .. } = self;
        write!(f, "{} of {} is denied: {miss}.", miss.direction, Short(&miss.pod))?;
        if hint.is_empty() { Ok(()) } else { write!(f, " {hint}") }
    }
}

/// The cause of each direction that denies `flow`, of which `verdict` is the verdict.
#[must_use]
pub fn causes(cluster: &Cluster, flow: &Flow, verdict: &Verdict) -> Vec<Cause> {
    let denied = Direction::BOTH.into_iter().filter(|direction| !verdict.of(*direction).allowed());
    denied.filter_map(|direction| cause(cluster, flow, verdict, direction)).collect()
}

fn cause(cluster: &Cluster, flow: &Flow, verdict: &Verdict, direction: Direction) -> Option<Cause> {
    let miss = near_miss(cluster, flow, direction)?;
    let policy = cluster.policy(&miss.policy)?;
    let (code, hint) = match &miss.miss {
        Miss::Refused => (CauseCode::Refused, "Correct it: see what `towpath lint` says of it.".to_owned()),
        Miss::TooLarge(_) => (CauseCode::TooLarge, String::new()),
        Miss::NotRead => (CauseCode::NotCompared, String::new()),
        Miss::NoRule => (CauseCode::DefaultDeny, default_deny(policy, direction)),
        Miss::Rule(rule) => of_rule(cluster, policy, &miss, rule),
    };
    let (mut code, mut hint) = (code, hint);
    let mut add = |text: String| {
        if !hint.is_empty() {
            hint.push(' ');
        }
        hint.push_str(&text);
    };
    if matches!(miss.miss, Miss::Rule(_)) && policy.subject.is_everything() && code == CauseCode::PodLabels {
        add(format!("This policy applies here since {}", selects_all(policy)));
    }
    let ingress = verdict.of(Direction::Ingress);
    let is_far = matches!(
        code,
        CauseCode::DefaultDeny | CauseCode::PodLabels | CauseCode::PeerAndPort | CauseCode::OtherNamespace
    );
    if direction == Direction::Egress && is_far && is_dns(cluster, &miss.peer, flow.transport) {
        code = CauseCode::Dns;
        let pod = Short(&miss.pod);
        add(format!("Without DNS {pod} reaches nothing by its name: allow port 53 over UDP and TCP."));
    } else if direction == Direction::Egress && is_far && ingress.allowed() && ingress.isolated() {
        code = CauseCode::EgressForgotten;
        let (pod, peer) = (Short(&miss.pod), &miss.peer);
        add(format!("The policies of {peer} allow it: what is missing is a rule for the egress of {pod}."));
    }
    if let Reason::DeniedBy { shared, .. } = &verdict.of(direction).reason
        && !shared.is_empty()
    {
        code = CauseCode::SharedAddress;
        add("Several pods report this address, and it must be allowed for each of them.".to_owned());
    }
    Some(Cause { code, miss, hint })
}

/// Whether the other end serves DNS, and this is its port.
fn is_dns(cluster: &Cluster, peer: &PeerName, transport: Transport) -> bool {
    let PeerName::Pod(key) = peer else { return false };
    cluster.pod(key).is_some_and(|pod| notes::dns_ports(pod).contains(&transport))
}

fn default_deny(policy: &NetworkPolicy, direction: Direction) -> String {
    if policy.subject.is_everything() {
        return format!("It denies by default: {}", selects_all(policy));
    }
    format!(
        "An absent `{direction}` and `{direction}: []` allow nothing, `{direction}: [{{}}]` allows everything."
    )
}

/// What an empty podSelector means.
fn selects_all(policy: &NetworkPolicy) -> String {
    format!("its podSelector is empty, and so selects every pod of {}.", Short(&policy.key.namespace))
}

fn of_rule(
    cluster: &Cluster,
    policy: &NetworkPolicy,
    miss: &NearMiss,
    rule: &RuleMiss,
) -> (CauseCode, String) {
    match (&rule.peer, &rule.port) {
        (Some(_), Some(_)) => (CauseCode::PeerAndPort, String::new()),
        (Some(peer), None) => of_peer(cluster, policy, miss, peer),
        (None, Some(port)) => of_port(miss, port),
        (None, None) => (CauseCode::DefaultDeny, String::new()),
    }
}

fn of_peer(
    cluster: &Cluster,
    policy: &NetworkPolicy,
    miss: &NearMiss,
    peer: &PeerMiss,
) -> (CauseCode, String) {
    let none = String::new;
    match peer {
        PeerMiss::Nobody => (CauseCode::DefaultDeny, none()),
        PeerMiss::Block { fault, .. } => match fault {
            BlockFault::Outside(_) if matches!(miss.peer, PeerName::Pod(_)) => {
                let hint = "A pod has another address each time it starts: select it by its labels.";
                (CauseCode::AddressBlock, hint.to_owned())
            }
            BlockFault::Outside(_) => (CauseCode::AddressBlock, none()),
            BlockFault::Except(..) => {
                let hint =
                    "An except only takes addresses out of its own block: another peer may allow them.";
                (CauseCode::Except, hint.to_owned())
            }
            BlockFault::OtherFamily(_) => {
                let hint = "A block allows addresses of its own family only, and a policy isolates in both.";
                (CauseCode::Family, hint.to_owned())
            }
            BlockFault::NoAddress | BlockFault::NoSharedFamily(_) => (CauseCode::NoAddress, none()),
        },
        PeerMiss::Pods { fault: SelectorFault::NoPod, .. } => match &miss.peer {
            PeerName::Node(..) => {
                let hint = "To policies a node is an address, which only an ipBlock allows.";
                (CauseCode::HostNetwork, hint.to_owned())
            }
            PeerName::HostNetwork(..) => {
                let hint = "To policies it is the address of its node, which only an ipBlock allows.";
                (CauseCode::HostNetwork, hint.to_owned())
            }
            _ => (CauseCode::NotAPod, "Only an ipBlock allows addresses outside of the cluster.".to_owned()),
        },
        PeerMiss::Pods { allowed, fault: SelectorFault::Labels { pod, labels, namespace }, .. } => {
            let is_typo =
                |misses: &[LabelMiss]| !misses.is_empty() && misses.iter().all(|miss| miss.meant.is_some());
            let of_namespace = match namespace {
                Some(NamespaceFault::Labels(misses)) => &misses[..],
                _ => &[],
            };
            let namespace_is_fine = namespace.is_none();
            if let Some(requirement) = by_name(of_namespace, &pod.namespace)
                && labels.is_empty()
            {
                let (name, key) = (Short(&pod.namespace), Short(&requirement.key));
                let hint = format!(
                    "A namespaceSelector compares labels, and {name} has no label {key}: its name is in the label \
                     kubernetes.io/metadata.name, which every namespace has."
                );
                return (CauseCode::NamespaceName, hint);
            }
            if (is_typo(labels) && (namespace_is_fine || is_typo(of_namespace)))
                || (labels.is_empty() && is_typo(of_namespace))
            {
                return (CauseCode::LabelTypo, typo(cluster, labels.iter().chain(of_namespace)));
            }
            match (labels.is_empty(), namespace) {
                (true, Some(NamespaceFault::Other)) => {
                    let own = Short(&policy.key.namespace);
                    let hint = format!(
                        "A podSelector without a namespaceSelector selects only pods of the policy's own namespace, \
                         {own}."
                    );
                    (CauseCode::OtherNamespace, hint)
                }
                (_, fault) if is_both(allowed) && labels.is_empty() != fault.is_none() => {
                    let hint = "The namespaceSelector and the podSelector stand in one peer, so both must match; as \
                                two peers, each with its own `-`, either would do.";
                    (CauseCode::BothSelectors, hint.to_owned())
                }
                (true, Some(_)) => (CauseCode::NamespaceLabels, none()),
                _ => (CauseCode::PodLabels, none()),
            }
        }
    }
}

/// Whether a peer has both selectors, and each requires something.
fn is_both(peer: &PodPeer) -> bool {
    matches!(&peer.scope, Scope::Matching(selector) if !selector.is_everything())
        && !peer.pods.is_everything()
}

fn typo<'m>(cluster: &Cluster, misses: impl Iterator<Item = &'m LabelMiss>) -> String {
    let hint = |miss: &LabelMiss| {
        let (key, value) = miss.meant.as_ref()?;
        let meant = format!("Did you mean {}={}?", Short(key), Short(value));
        let has = |labels: &Labels| miss.requirement.matches(labels);
        let is_used = cluster.pods().any(|pod| has(&pod.labels))
            || cluster.namespaces().any(|namespace| has(&namespace.labels));
        if is_used {
            return Some(meant);
        }
        Some(format!("{meant} Nothing has {}.", Short(LabelSelector::new([miss.requirement.clone()]))))
    };
    misses.filter_map(hint).collect::<Vec<String>>().join(" ")
}

fn of_port(miss: &NearMiss, port: &PortMiss) -> (CauseCode, String) {
    let none = String::new;
    match &port.fault {
        PortFault::Number => {
            let number = match miss.transport {
                Transport::Port(_, number) => number,
                Transport::Other(_) => 0,
            };
            let below = port.allowed.iter().find_map(|port| match port {
                Port::Range(_, range) if range.first() < range.last() && range.last() < number => Some(range),
                _ => None,
            });
            match below {
                Some(range) => {
                    let last = range.last();
                    (CauseCode::PortRange, format!("endPort {last} is the last port that the rule allows."))
                }
                None => (CauseCode::Port, none()),
            }
        }
        PortFault::Protocol(protocol) => {
            let hint = match protocol {
                Protocol::Tcp => "A port without `protocol` is a TCP port.",
                _ => "",
            };
            (CauseCode::Protocol, hint.to_owned())
        }
        PortFault::NoSuchName(_, _, declared) => {
            let Transport::Port(sent, number) = miss.transport else { return (CauseCode::PortName, none()) };
            let meant = declared.iter().find(|port| port.number == number && port.protocol == sent);
            let hint = meant.and_then(|port| port.name.as_ref());
            let hint = hint.map_or_else(none, |name| format!("Did you mean {}?", Short(name)));
            (CauseCode::PortName, hint)
        }
        PortFault::NoNames(_) => (CauseCode::PortName, none()),
        PortFault::WithoutPorts => (CauseCode::Port, none()),
    }
}

/// Whether a rule's ports, as far as they are listed, contain this one: for [`CauseCode::ServicePort`].
#[must_use]
pub fn names_port(miss: &PortMiss, transport: Transport) -> bool {
    let Transport::Port(sent, number) = transport else { return false };
    miss.allowed.iter().any(|port| match port {
        Port::Range(_, range) => protocol_of(port) == sent && range.contains(number),
        Port::All(_) | Port::Named(..) => false,
    })
}
