//! A NetworkPolicy, with its defaults applied and its values checked.

use std::sync::Arc;

use super::{Direction, IpBlock, LabelSelector, ObjectKey, Operator, PortRange, Protocol, Requirement};

/// A NetworkPolicy.
///
/// For each direction, `None` means "does not isolate in this direction" (the direction is not among its
/// policyTypes), and `Some` with no rules means "isolates, and allows nothing".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// `spec.podSelector`: the pods of its namespace to which it applies; an absent one selects all of them.
    pub subject: LabelSelector,
    /// `spec.ingress`, if it isolates for ingress.
    pub ingress: Option<Vec<PolicyRule>>,
    /// `spec.egress`, if it isolates for egress.
    pub egress: Option<Vec<PolicyRule>>,
    /// Whether it is what its author wrote.
    pub standing: Standing,
}

/// Whether a policy is what its author wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Standing {
    /// It was read completely.
    #[default]
    Accepted,
    /// It was refused: this is its stand-in, which isolates the pods of its podSelector, and allows nothing.
    Refused,
    /// Its rules were dropped, since the policies of its namespace take too much memory: it isolates the pods of its
    /// podSelector, and allows nothing.
    TooLarge(MemoryExcess),
}

/// The memory that the policies of a namespace take, and the budget that it exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryExcess {
    /// The memory of all policies of the namespace, in bytes.
    pub bytes: u64,
    /// The budget for them, or for those of all namespaces together, in bytes.
    pub budget: u64,
    /// Whether the budget is that of all namespaces together.
    pub is_of_all: bool,
}

/// One entry of `spec.ingress` or `spec.egress`: allows what matches both its peers and its ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyRule {
    /// `from` or `to`.
    pub peers: Peers,
    /// `ports`.
    pub ports: Ports,
}

/// `from` or `to`: "If this field is empty or missing, this rule matches all sources (traffic not restricted by
/// source). If this field is present and contains at least one item, this rule allows traffic only if the traffic
/// matches at least one item in the from list."
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Every peer, pods and addresses alike.
    Any,
    /// Peers that match one of these; no peer if there are none.
    Of(Vec<Peer>),
}

/// One item of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods selected by podSelector, namespaceSelector or both.
    Pods(PodPeer),
    /// Addresses.
    Block(IpBlock),
}

/// Pods selected by labels: those that match `pods` in the namespaces of `scope`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodPeer {
    /// The namespaces of the pods.
    pub scope: Scope,
    /// The labels of the pods there.
    pub pods: LabelSelector,
}

/// The namespaces in which a [`PodPeer`] selects pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// No namespaceSelector: the policy's own namespace, named here.
    Own(Arc<str>),
    /// The namespaces whose labels match; an empty selector matches every one, the policy's own included.
    Matching(LabelSelector),
}

/// `ports`: "If this field is empty or missing, this rule matches all ports (traffic not restricted by port)."
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Every port and every protocol, including those without ports.
    Any,
    /// Traffic that matches one of these; none if the list is empty.
    Of(Vec<Port>),
}

/// One item of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// No `port`: all ports of the protocol.
    All(Protocol),
    /// `port`, or `port` to `endPort`.
    Range(Protocol, PortRange),
    /// A named port, which each destination pod resolves for itself.
    Named(Protocol, Arc<str>),
}

impl NetworkPolicy {
    /// Its rules for `direction`; `None` if it does not isolate in that direction.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> Option<&[PolicyRule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// The memory that it takes, in bytes, by estimate: the same for equal policies. Memory that it shares with other
    /// objects counts as its own.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let rules = Direction::BOTH.into_iter().filter_map(|direction| self.rules(direction)).flatten();
        let rules = rules.map(PolicyRule::bytes).sum::<usize>();
        let names = text(&self.key.namespace) + text(&self.key.name);
        let bytes = size_of::<Self>() + names + self.subject.bytes() + rules;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// The same policy without its rules: it isolates the same pods in the same directions, and allows nothing. If its
    /// podSelector is large as well, it isolates all pods of its namespace.
    #[must_use]
    pub fn without_rules(&self, excess: MemoryExcess) -> Self {
        let nothing = |rules: &Option<Vec<PolicyRule>>| rules.as_ref().map(|_| Vec::new());
        let is_large = self.subject.bytes() > LARGE_SELECTOR;
        let subject = if is_large { LabelSelector::everything() } else { self.subject.clone() };
        Self {
            key: self.key.clone(),
            subject,
            ingress: nothing(&self.ingress),
            egress: nothing(&self.egress),
            standing: Standing::TooLarge(excess),
        }
    }
}

/// A podSelector that takes more bytes than this is dropped with the rules.
const LARGE_SELECTOR: usize = 2048;

/// The overhead of an allocation: the allocator's own data, and the counts of an [`Arc`].
const ALLOCATION: usize = 32;

fn text(text: &Arc<str>) -> usize {
    text.len() + ALLOCATION
}

impl PolicyRule {
    fn bytes(&self) -> usize {
        let peer = |peer: &Peer| {
            size_of::<Peer>()
                + match peer {
                    Peer::Pods(PodPeer { scope: Scope::Matching(namespaces), pods }) => {
                        namespaces.bytes() + pods.bytes()
                    }
                    Peer::Pods(PodPeer { scope: Scope::Own(_), pods }) => pods.bytes(),
                    Peer::Block(block) if block.except().is_empty() => 0,
                    Peer::Block(block) => 2 * ALLOCATION + size_of_val(block.except()),
                }
        };
        let port = |port: &Port| {
            size_of::<Port>()
                + match port {
                    Port::Named(_, name) => text(name),
                    Port::All(_) | Port::Range(..) => 0,
                }
        };
        let peers = match &self.peers {
            Peers::Any => 0,
            Peers::Of(peers) => ALLOCATION + peers.iter().map(peer).sum::<usize>(),
        };
        let ports = match &self.ports {
            Ports::Any => 0,
            Ports::Of(ports) => ALLOCATION + ports.iter().map(port).sum::<usize>(),
        };
        size_of::<Self>() + peers + ports
    }
}

impl LabelSelector {
    fn bytes(&self) -> usize {
        let requirement = |requirement: &Requirement| {
            size_of::<Requirement>()
                + text(&requirement.key)
                + match &requirement.operator {
                    Operator::In(values) | Operator::NotIn(values) => {
                        let values = values.iter().map(|value| size_of::<Arc<str>>() + text(value));
                        ALLOCATION + values.sum::<usize>()
                    }
                    Operator::Exists | Operator::DoesNotExist => 0,
                }
        };
        ALLOCATION + self.requirements().iter().map(requirement).sum::<usize>()
    }
}
