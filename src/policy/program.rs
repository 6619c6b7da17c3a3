//! The verdict program of a pod: what its policies allow in one direction, merged.
//!
//! A program has ordered tiers of rules with actions, then a default. NetworkPolicy is one tier of Allow rules with
//! the default Deny. Pods with the same policies and the same numbers for named ports have equal programs and share
//! one chain.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use super::{
    cidr::CidrSet,
    digest::digest,
    ports::{PortMatch, PortSet},
};
use crate::model::{
    Cluster, Direction, Family, IpBlock, NetworkPolicy, Peer, Peers, Pod, PodPeer, Port, PortRange, Ports,
    Protocol, Scope,
};

/// The action for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It passes in this direction.
    Allow,
    /// It is dropped.
    Deny,
}

/// The verdict program of one direction.
///
/// Two policies for `web`, one that admits everything to port 80, one that admits a block to every port, are one
/// program with two rules. What neither allows is denied:
///
/// ```
/// # use std::sync::Arc;
/// use towpath::{
///     model::{
///         Direction, IpBlock, LabelSelector, NetworkPolicy, ObjectKey, Peer, Peers, Pod, PolicyRule, Port,
///         PortRange, Ports, Protocol, Standing,
///     },
///     policy::program::{Action, Program},
/// };
///
/// let policy = |name: &str, rule: PolicyRule| {
///     Arc::new(NetworkPolicy {
///         key: ObjectKey::new("shop", name),
///         subject: LabelSelector::everything(),
///         ingress: Some(vec![rule]),
///         egress: None,
///         standing: Standing::Accepted,
///     })
/// };
/// let port_80 = Ports::Of(vec![Port::Range(Protocol::Tcp, PortRange::new(80, 80).unwrap())]);
/// let block = Peer::Block(IpBlock::new("192.0.2.0/24".parse().unwrap(), []).unwrap());
/// let policies = [
///     policy("everything-to-80", PolicyRule { peers: Peers::Any, ports: port_80 }),
///     policy("a-block-to-all", PolicyRule { peers: Peers::Of(vec![block]), ports: Ports::Any }),
/// ];
/// let web = Pod::new(ObjectKey::new("shop", "web"));
/// let program = Program::of_policies(Direction::Ingress, &policies, &web);
/// assert_eq!(program.tiers[0].rules.len(), 2);
/// assert_eq!(program.default, Action::Deny);
///
/// // Another pod with the same policies has an equal program, and shares its chain.
/// let db = Pod::new(ObjectKey::new("shop", "db"));
/// assert_eq!(Program::of_policies(Direction::Ingress, &policies, &db).digest, program.digest);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Evaluated in order; the first rule that matches decides.
    pub tiers: Vec<Tier>,
    /// The action for a packet that no rule matches.
    pub default: Action,
    /// Identifies the program, also across processes.
    pub digest: String,
}

/// Rules of one priority.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tier {
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// One rule of a program: peers and ports must both match.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The other end.
    pub peers: PeerMatch,
    /// Protocol and destination port.
    pub ports: PortMatch,
    /// The action if both match.
    pub action: Action,
}

/// What a rule requires of the other end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerMatch {
    /// Nothing.
    Any,
    /// That it is one of these pods, or lies in one of these blocks.
    Of {
        /// The pods, if any are selected by labels.
        pods: Option<Arc<Selection>>,
        /// The blocks, sorted.
        blocks: Vec<IpBlock>,
    },
    /// That the packet goes to a named port of one of these pods. The ports of such a rule are `Any`.
    NamedPorts(Arc<Selection>),
}

/// Pods, or named ports of pods, that policies select: the meaning of one set of addresses.
///
/// Compared by digest alone, like the names of the sets in the kernel: `chosen` may be thousands of blocks long. The
/// selection `app: api` in namespace `shop` is one set for each family, whichever policies and rules use it:
///
/// ```
/// use towpath::{
///     model::{Family, LabelSelector, PodPeer, Requirement, Scope},
///     policy::program::{Chosen, Selection},
///     ruleset::names,
/// };
///
/// let api = LabelSelector::new([Requirement::equals("app", "api")]);
/// let peer = PodPeer { scope: Scope::Own("shop".into()), pods: api };
/// let selection = Selection::new(Chosen::Pods(vec![peer]));
/// let set = names::pods(Family::V4, &selection.digest);
/// assert_eq!(set.as_str(), format!("tp4-pods-{}", selection.digest));
/// ```
#[derive(Clone, Debug)]
pub struct Selection {
    /// Identifies the selection, also across processes.
    pub digest: String,
    /// What is selected.
    pub chosen: Chosen,
    /// The addresses of the blocks of [`PortOwners::Of`], by family: checked for every pod of a cluster.
    addresses: [CidrSet; 2],
}

impl PartialEq for Selection {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Selection {}

impl PartialOrd for Selection {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Selection {
    fn cmp(&self, other: &Self) -> Ordering {
        self.digest.cmp(&other.digest)
    }
}

/// Input of the digests of programs, so it covers everything.
impl Hash for Selection {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
        self.chosen.hash(state);
    }
}

/// What a [`Selection`] selects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chosen {
    /// The addresses of the pods that match at least one of these; sorted, without repetition.
    Pods(Vec<PodPeer>),
    /// For pods that declare a port of this name and protocol: their addresses with its number.
    NamedPort {
        /// The protocol.
        protocol: Protocol,
        /// The name.
        name: Arc<str>,
        /// The owners of the ports.
        of: PortOwners,
    },
}

/// The pods whose named ports are selected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortOwners {
    /// All pods.
    Any,
    /// The pods that match one of `pods`, or whose address lies in one of `blocks`; both sorted.
    Of {
        /// Pods by labels.
        pods: Vec<PodPeer>,
        /// Pods by address.
        blocks: Vec<IpBlock>,
    },
}

impl Selection {
    /// A selection for `chosen`.
    #[must_use]
    pub fn new(chosen: Chosen) -> Self {
        let blocks = match &chosen {
            Chosen::NamedPort { of: PortOwners::Of { blocks, .. }, .. } => blocks.as_slice(),
            Chosen::Pods(_) | Chosen::NamedPort { of: PortOwners::Any, .. } => &[],
        };
        let addresses = Family::BOTH.map(|family| CidrSet::union(family, blocks));
        Self { digest: digest(&chosen), chosen, addresses }
    }

    /// Whether `address` lies in one of the blocks of [`PortOwners::Of`].
    #[must_use]
    pub fn has_in_blocks(&self, address: IpAddr) -> bool {
        let [v4, v6] = &self.addresses;
        let addresses = if address.is_ipv4() { v4 } else { v6 };
        addresses.covers(address.into())
    }

    /// Its peers by label.
    #[must_use]
    pub fn pod_peers(&self) -> &[PodPeer] {
        match &self.chosen {
            Chosen::Pods(pods) | Chosen::NamedPort { of: PortOwners::Of { pods, .. }, .. } => pods,
            Chosen::NamedPort { of: PortOwners::Any, .. } => &[],
        }
    }
}

/// Whether a peer of a policy matches this pod, with its labels and those of its namespace in `cluster`.
///
/// A namespace whose object is not known has no labels to match: a namespaceSelector, even an empty one, does not
/// select its pods.
#[must_use]
pub fn selects(cluster: &Cluster, peer: &PodPeer, pod: &Pod) -> bool {
    let in_scope = match &peer.scope {
        Scope::Own(namespace) => *namespace == pod.key.namespace,
        Scope::Matching(selector) => {
            cluster.namespace(&pod.key.namespace).is_some_and(|namespace| selector.matches(&namespace.labels))
        }
    };
    in_scope && peer.pods.matches(&pod.labels)
}

/// The peers of rules while they are being merged; `None` is every peer.
type MergedPeers = Option<(BTreeSet<PodPeer>, BTreeSet<IpBlock>)>;

/// Ports by number while rules are being merged; `None` is every port of every protocol.
type MergedPorts = Option<Vec<(Protocol, PortRange)>>;

impl Program {
    /// What `policies` together allow in `direction`, for a pod that resolves named ports as `subject` does.
    ///
    /// "The set of allowed connections from/to a pod is the union of what the applicable policies allow": the order
    /// of policies and of their rules does not matter, so rules may be merged. Rules with the same peers become one
    /// with the union of their ports, and rules with the same ports one with the union of their peers: the number of
    /// rules that a packet passes grows with the distinct ports, not with the policies.
    #[must_use]
    pub fn of_policies<'a>(
        direction: Direction,
        policies: impl IntoIterator<Item = &'a Arc<NetworkPolicy>>,
        subject: &Pod,
    ) -> Self {
        // Collected first and sorted once: rules with the same peers may have tens of thousands of ports.
        let mut by_peers: BTreeMap<MergedPeers, MergedPorts> = BTreeMap::new();
        let mut named: BTreeMap<(Protocol, Arc<str>), MergedPeers> = BTreeMap::new();
        for rule in policies.into_iter().flat_map(|policy| policy.rules(direction).unwrap_or_default()) {
            let who = who(&rule.peers);
            let (numbered, by_name) = ports(&rule.ports, direction, subject);
            for name in by_name {
                match named.entry(name) {
                    std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(who.clone())),
                    std::collections::btree_map::Entry::Occupied(mut entry) => {
                        join(entry.get_mut(), who.clone());
                    }
                }
            }
            if numbered.as_ref().is_none_or(|ranges| !ranges.is_empty()) {
                let all = by_peers.entry(who).or_insert_with(|| Some(Vec::new()));
                match (all.as_mut(), numbered) {
                    (Some(all), Some(ranges)) => all.extend(ranges),
                    _ => *all = None,
                }
            }
        }
        let by_peers = by_peers.into_iter().map(|(who, numbers)| {
            (who, numbers.map_or(PortMatch::Any, |ranges| PortMatch::Of(ranges.into_iter().collect())))
        });
        let rules = merge(by_peers.collect()).into_iter().map(|(ports, who)| rule(who, ports));
        let named = named.into_iter().map(|((protocol, name), who)| named_rule(protocol, name, who));
        Self::new(vec![Tier { rules: rules.chain(named).collect() }], Action::Deny)
    }

    fn new(tiers: Vec<Tier>, default: Action) -> Self {
        let digest = digest(&(&tiers, default));
        Self { tiers, default, digest }
    }

    /// Whether it allows everything, so that no rule needs to be evaluated.
    #[must_use]
    pub fn allows_everything(&self) -> bool {
        let first = self.tiers.iter().flat_map(|tier| &tier.rules).next();
        match first {
            Some(Rule { peers: PeerMatch::Any, ports: PortMatch::Any, action }) => *action == Action::Allow,
            Some(_) => false,
            None => self.default == Action::Allow,
        }
    }

    /// Every selection that it needs.
    pub fn selections(&self) -> impl Iterator<Item = &Arc<Selection>> {
        self.tiers.iter().flat_map(|tier| &tier.rules).filter_map(|rule| match &rule.peers {
            PeerMatch::Any => None,
            PeerMatch::Of { pods, .. } => pods.as_ref(),
            PeerMatch::NamedPorts(selection) => Some(selection),
        })
    }
}

/// Ports that a rule for every peer allows are not removed from another rule if that would cut it into more pieces than
/// this: thousands of ports that are open to all, removed from thousands of rules for all ports, would make millions.
const MOST_CUTS: usize = 15;

/// Drops what a rule for every peer allows anyway, and joins rules with equal ports.
fn merge(mut by_peers: BTreeMap<MergedPeers, PortMatch>) -> BTreeMap<PortMatch, MergedPeers> {
    let for_all = by_peers.remove(&None);
    let mut by_ports: BTreeMap<PortMatch, MergedPeers> = BTreeMap::new();
    for (who, ports) in by_peers {
        let ports = match (ports, &for_all) {
            (_, Some(PortMatch::Any)) => continue,
            (PortMatch::Of(ports), Some(PortMatch::Of(open))) if ports.cuts(open) <= MOST_CUTS => {
                PortMatch::Of(ports.minus(open))
            }
            (ports, _) => ports,
        };
        if ports == PortMatch::Of(PortSet::new()) {
            continue;
        }
        match by_ports.entry(ports) {
            std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(who)),
            std::collections::btree_map::Entry::Occupied(mut entry) => join(entry.get_mut(), who),
        }
    }
    if let Some(open) = for_all {
        by_ports.insert(open, None);
    }
    by_ports
}

/// The peers of a rule, sorted. An empty list stays empty: it must never become every peer.
fn who(peers: &Peers) -> MergedPeers {
    let Peers::Of(list) = peers else { return None };
    let mut pods = BTreeSet::new();
    let mut blocks = BTreeSet::new();
    for peer in list {
        match peer {
            Peer::Pods(peer) => drop(pods.insert(peer.clone())),
            Peer::Block(block) => drop(blocks.insert(block.clone())),
        }
    }
    Some((pods, blocks))
}

fn join(who: &mut MergedPeers, other: MergedPeers) {
    match (who.as_mut(), other) {
        (Some((pods, blocks)), Some((more_pods, more_blocks))) => {
            pods.extend(more_pods);
            blocks.extend(more_blocks);
        }
        _ => *who = None,
    }
}

/// The ports of a rule by number, and those by name that only the receiver can resolve.
///
/// A named port of an ingress rule means the subject's own; one of an egress rule means each receiver's own.
fn ports(ports: &Ports, direction: Direction, subject: &Pod) -> (MergedPorts, Vec<(Protocol, Arc<str>)>) {
    let Ports::Of(list) = ports else { return (None, Vec::new()) };
    let mut ranges = Vec::new();
    let mut names = Vec::new();
    for port in list {
        match (port, direction) {
            (Port::All(protocol), _) => ranges.push((*protocol, PortSet::all_of())),
            (Port::Range(protocol, range), _) => ranges.push((*protocol, *range)),
            (Port::Named(protocol, name), Direction::Ingress) => {
                let numbers = subject.named_port(name, *protocol);
                ranges.extend(numbers.into_iter().map(|n| (*protocol, PortRange::single(n))));
            }
            (Port::Named(protocol, name), Direction::Egress) => names.push((*protocol, name.clone())),
        }
    }
    (Some(ranges), names)
}

fn rule(who: MergedPeers, ports: PortMatch) -> Rule {
    let peers = match who {
        None => PeerMatch::Any,
        Some((pods, blocks)) => PeerMatch::Of {
            pods: (!pods.is_empty())
                .then(|| Arc::new(Selection::new(Chosen::Pods(pods.into_iter().collect())))),
            blocks: blocks.into_iter().collect(),
        },
    };
    Rule { peers, ports, action: Action::Allow }
}

fn named_rule(protocol: Protocol, name: Arc<str>, who: MergedPeers) -> Rule {
    let of = match who {
        None => PortOwners::Any,
        Some((pods, blocks)) => {
            PortOwners::Of { pods: pods.into_iter().collect(), blocks: blocks.into_iter().collect() }
        }
    };
    let selection = Selection::new(Chosen::NamedPort { protocol, name, of });
    let peers = PeerMatch::NamedPorts(Arc::new(selection));
    Rule { peers, ports: PortMatch::Any, action: Action::Allow }
}

#[cfg(test)]
mod tests;
