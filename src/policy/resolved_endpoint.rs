//! What the two ends of a flow are.

use std::{net::IpAddr, sync::Arc};

use crate::model::{Cluster, Direction, Endpoint, Family, Labels, NetworkPolicy, ObjectKey, Pod};

/// One end of a flow, with everything that its verdicts need.
pub(super) struct ResolvedEndpoint<'a> {
    pub(super) who: Who<'a>,
    /// The addresses that it may use; of several in one family the first is used.
    addresses: Vec<IpAddr>,
    /// The nodes that this end is: those of its address, or the one whose network it shares.
    nodes: Vec<&'a Arc<str>>,
    /// The pods that policy can select here: first the pod in question, then those that also report one of its
    /// addresses. Empty if the end is not a pod.
    pods: Vec<Claimant<'a>>,
    /// Which of them may own the packets.
    place: Origin<'a>,
}

/// Where the packets of an end come from.
enum Origin<'a> {
    /// The end was given by its address, which says nothing about a node.
    Anywhere,
    /// The node of the given pod, if it has one yet.
    Node(Option<&'a Arc<str>>),
}

/// What an end is. Only a [`Who::Pod`] is ever selected, as a subject or as a peer.
pub(super) enum Who<'a> {
    /// A pod with its own network; of several that report the address in question, the first by name.
    Pod(&'a Pod),
    /// A pod on its node's network: to others it is only its node's address.
    HostNetwork(&'a Pod),
    /// A pod that has finished. It has no traffic; if evaluated anyway, it is an address without an owner.
    Finished(&'a Pod),
    /// A name that no pod has.
    Unknown(ObjectKey),
    /// An address of a node, or outside of the cluster.
    Address(IpAddr),
}

/// A pod that may be the owner of an address.
pub(super) struct Claimant<'a> {
    pub(super) pod: &'a Pod,
    pub(super) namespace_labels: Option<&'a Labels>,
    /// The policies that select it for egress, and for ingress, by name.
    egress: Vec<&'a NetworkPolicy>,
    ingress: Vec<&'a NetworkPolicy>,
}

impl<'a> Claimant<'a> {
    fn new(cluster: &'a Cluster, pod: &'a Pod) -> Self {
        let selecting = |direction| -> Vec<&'a NetworkPolicy> {
            cluster
                .policies_in(&pod.key.namespace)
                .map(|policy| &**policy)
                .filter(|policy| policy.rules(direction).is_some() && policy.subject.matches(&pod.labels))
                .collect()
        };
        let namespace_labels = cluster.namespace(&pod.key.namespace).map(|namespace| &namespace.labels);
        let (egress, ingress) = (selecting(Direction::Egress), selecting(Direction::Ingress));
        Self { pod, namespace_labels, egress, ingress }
    }

    /// The policies that isolate it in this direction.
    pub(super) fn isolated_by(&self, direction: Direction) -> &[&'a NetworkPolicy] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

impl<'a> ResolvedEndpoint<'a> {
    pub(super) fn new(cluster: &'a Cluster, endpoint: &Endpoint) -> Self {
        match endpoint {
            Endpoint::Pod(key) => match cluster.pod(key) {
                Some(pod) => Self::named(cluster, pod),
                None => Self::outside(Who::Unknown(key.clone()), Vec::new(), Vec::new()),
            },
            Endpoint::Address(address) => {
                let addresses = vec![*address];
                if let [first, ..] = cluster.claimants(*address) {
                    return Self { addresses, place: Origin::Anywhere, ..Self::selectable(cluster, first) };
                }
                Self::outside(Who::Address(*address), addresses, cluster.nodes_at(*address).collect())
            }
        }
    }

    fn named(cluster: &'a Cluster, pod: &'a Pod) -> Self {
        if pod.is_finished() {
            Self::outside(Who::Finished(pod), pod.addresses.clone(), Vec::new())
        } else if pod.host_network {
            let addresses = if pod.addresses.is_empty() { &pod.node_addresses } else { &pod.addresses };
            Self::outside(Who::HostNetwork(pod), addresses.clone(), pod.node.iter().collect())
        } else {
            Self::selectable(cluster, pod)
        }
    }

    fn selectable(cluster: &'a Cluster, pod: &'a Pod) -> Self {
        let mut pods = vec![Claimant::new(cluster, pod)];
        for other in pod.addresses.iter().flat_map(|address| cluster.claimants(*address)) {
            if pods.iter().all(|known| known.pod.key != other.key) {
                pods.push(Claimant::new(cluster, other));
            }
        }
        Self {
            who: Who::Pod(pod),
            addresses: pod.addresses.clone(),
            nodes: Vec::new(),
            pods,
            place: Origin::Node(pod.node.as_ref()),
        }
    }

    fn outside(who: Who<'a>, addresses: Vec<IpAddr>, nodes: Vec<&'a Arc<str>>) -> Self {
        Self { who, addresses, nodes, pods: Vec::new(), place: Origin::Anywhere }
    }

    /// The pods that may own its address of `family`: to others it is any of them.
    pub(super) fn pods(&self, family: Option<Family>) -> impl Iterator<Item = &Claimant<'a>> {
        let address = self.address(family);
        let claims = move |(at, known): &(usize, &Claimant<'a>)| match address {
            Some(address) => known.pod.addresses.contains(&address),
            None => *at == 0,
        };
        self.pods.iter().enumerate().filter(claims).map(|(_, known)| known)
    }

    /// Those of [`Self::pods`] whose policies apply to its packets. A pod's packets pass through its own node, so if it
    /// is given by name, pods of other nodes are excluded.
    pub(super) fn subjects(&self, family: Option<Family>) -> impl Iterator<Item = &Claimant<'a>> {
        self.pods(family).filter(|known| match self.place {
            Origin::Anywhere => true,
            Origin::Node(node) => known.pod.node.as_ref() == node,
        })
    }

    /// Its address of `family`, without which no ipBlock matches it.
    pub(super) fn address(&self, family: Option<Family>) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Some(Family::of(*address)) == family)
    }

    /// Its addresses, of all families.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied()
    }

    /// The node that this end is, if it is one; the first by name of several with its address.
    pub(super) fn node(&self) -> Option<&'a Arc<str>> {
        self.nodes.first().copied()
    }

    /// Every pod that may own one of its addresses, the pod in question first. Empty if the end is not a pod.
    pub(super) fn claimants(&self) -> &[Claimant<'a>] {
        &self.pods
    }

    /// Whether it is a pod that was given by one of its addresses.
    pub(super) fn given_by_address(&self) -> bool {
        matches!(self.place, Origin::Anywhere) && !self.pods.is_empty()
    }

    /// The nodes that this end is.
    pub(super) fn nodes(&self) -> &[&'a Arc<str>] {
        &self.nodes
    }

    /// The node of the pod, if the end is a pod that was given by name.
    pub(super) fn home(&self) -> Option<&'a Arc<str>> {
        match self.place {
            Origin::Anywhere => None,
            Origin::Node(node) => node,
        }
    }

    /// The node on which `pod` runs, if this end is that node.
    pub(super) fn node_of(&self, pod: &'a Pod) -> Option<&'a Arc<str>> {
        pod.node.as_ref().filter(|node| self.nodes.contains(node))
    }

    /// The families of its addresses, that of the first one first.
    pub(super) fn families(&self) -> Vec<Family> {
        let mut families: Vec<Family> = Vec::new();
        for address in &self.addresses {
            let family = Family::of(*address);
            if !families.contains(&family) {
                families.push(family);
            }
        }
        families
    }
}

/// The families in which packets can go from `from` to `to`, in the receiver's order.
///
/// An end without an address is matched by its labels; it is assumed to get the families of the other one.
pub(super) fn families(from: &ResolvedEndpoint<'_>, to: &ResolvedEndpoint<'_>) -> Vec<Family> {
    let (senders, mut receivers) = (from.families(), to.families());
    if receivers.is_empty() {
        return senders;
    }
    if !senders.is_empty() {
        receivers.retain(|family| senders.contains(family));
    }
    receivers
}
