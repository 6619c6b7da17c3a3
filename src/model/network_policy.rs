//! A NetworkPolicy, with its defaults applied and its values checked.

use std::sync::Arc;

use super::{Direction, IpBlock, LabelSelector, ObjectKey, PortRange, Protocol};

/// A NetworkPolicy.
///
/// For each direction, `None` is "does not isolate in this direction" (the direction is not among its policyTypes),
/// and `Some` with no rules is "isolates, and allows nothing".
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
    /// Whether it says what its author wrote.
    pub standing: Standing,
}

/// Whether an object could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Standing {
    /// It was read whole.
    #[default]
    Accepted,
    /// It was refused: this stands in for it, isolates the pods of its podSelector, and allows nothing.
    Refused,
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
    /// Everybody, pods and addresses alike.
    Any,
    /// Who matches one of these; nobody when there is none.
    Of(Vec<Peer>),
}

/// One item of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods chosen by podSelector, namespaceSelector or both.
    Pods(PodPeer),
    /// Addresses.
    Block(IpBlock),
}

/// Pods chosen by labels: those that match `pods` in the namespaces of `scope`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodPeer {
    /// In which namespaces.
    pub scope: Scope,
    /// Which pods there.
    pub pods: LabelSelector,
}

/// The namespaces in which a [`PodPeer`] looks for pods.
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
    /// Every port, and every protocol, also those without ports.
    Any,
    /// What matches one of these; nothing when there is none.
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
}
