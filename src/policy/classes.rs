//! Ends that behave alike: the verdicts of a large cluster without evaluating every pair of pods.
//!
//! Two ends are of one [class](Classes) if no policy can tell them apart: the same policies and peers select them, the
//! same blocks contain their addresses, and the port names that policies use mean the same numbers in both. A verdict
//! is then a matter of two classes, and a [`ClassTable`] evaluates each pair of classes once. Expanded to all pairs of
//! ends it is exactly [`Reachability`](super::Reachability).
//!
//! One relation is not a matter of classes: a node and the pods that run on it always reach each other. Classes do not
//! distinguish nodes, as each workload would fall apart into its pods on each node; [`Classes::is_own_node`] tells.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use crate::model::{
    Cluster, Direction, Endpoint, Family, IpBlock, LabelSelector, Namespace, NetworkPolicy, Peer, Peers, Pod,
    PodPeer, PolicyRule, Port, Ports, Protocol, Scope, Standing, Transport,
};

use super::{
    partition::Partition,
    reach::{Reach, between, distinct, endpoints},
    resolved_endpoint::{ResolvedEndpoint, families},
};

/// The ends of a cluster by what they may reach, and who may reach them.
pub struct Classes<'a> {
    endpoints: Vec<Endpoint>,
    ends: Vec<ResolvedEndpoint<'a>>,
    /// The class of each end.
    class_of: Vec<usize>,
    /// The ends of each class, ascending.
    members: Vec<Vec<usize>>,
}

impl<'a> Classes<'a> {
    /// The classes of all pods that have not finished, and of the addresses in `external`: the ends that
    /// [`Reachability::new`](super::Reachability::new) has, in the same order.
    ///
    /// The cost is that of matching every distinct selector with every distinct set of those labels that selectors
    /// look at, and every distinct block with the addresses in it.
    #[must_use]
    pub fn new(cluster: &'a Cluster, external: &[IpAddr]) -> Self {
        let endpoints = endpoints(cluster, external);
        let ends: Vec<ResolvedEndpoint<'a>> =
            endpoints.iter().map(|endpoint| ResolvedEndpoint::new(cluster, endpoint)).collect();
        let looked_at = LookedAt::by(cluster);
        let mut partition = Partition::new(ends.len());
        partition.split_by(selected_alike(cluster, &ends, &looked_at));
        let singular = Singular::among(&ends);
        partition.split_by(ends.iter().enumerate().map(|(at, end)| singular.key(at, end)));
        partition.split_by(ends.iter().map(|end| (end.families(), looked_at.ports_of(end))));
        split_by_blocks(&mut partition, &ends, &looked_at.blocks);
        let (class_of, members) = partition.finish();
        Self { endpoints, ends, class_of, members }
    }

    /// The ends, pods first.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The class of each end, in the order of [`Self::endpoints`]. Classes are numbered from 0, by their first end.
    #[must_use]
    pub fn class_of(&self) -> &[usize] {
        &self.class_of
    }

    /// The ends of each class, ascending.
    #[must_use]
    pub fn members(&self) -> &[Vec<usize>] {
        &self.members
    }

    /// Whether one of these two ends is the node on which the other one, a pod, runs: every flow between them passes,
    /// whatever the table of their classes says.
    #[must_use]
    pub fn is_own_node(&self, one: usize, other: usize) -> bool {
        let (Some(one), Some(other)) = (self.ends.get(one), self.ends.get(other)) else { return false };
        is_own_node(one, other)
    }

    /// Whether an end is a node: its address, or a pod on its network.
    #[must_use]
    pub fn is_node(&self, end: usize) -> bool {
        self.ends.get(end).is_some_and(|end| !end.nodes().is_empty())
    }

    /// The families in which packets can go from one end to another; empty if no address of them is known.
    #[must_use]
    pub fn families(&self, from: usize, to: usize) -> Vec<Family> {
        let (Some(from), Some(to)) = (self.ends.get(from), self.ends.get(to)) else { return Vec::new() };
        families(from, to)
    }

    /// Two different ends of these classes that show how the classes behave: of the first one, and of the second one.
    /// `None` if there are none, or all of them are pods and their own nodes.
    fn example(&self, from: usize, to: usize) -> Option<(&ResolvedEndpoint<'a>, &ResolvedEndpoint<'a>)> {
        let (senders, receivers) = (self.members.get(from)?, self.members.get(to)?);
        let pairs = senders.iter().flat_map(|from| receivers.iter().map(move |to| (*from, *to)));
        let (from, to) = pairs.into_iter().find(|(from, to)| from != to && !self.is_own_node(*from, *to))?;
        Some((self.ends.get(from)?, self.ends.get(to)?))
    }
}

fn is_own_node(one: &ResolvedEndpoint<'_>, other: &ResolvedEndpoint<'_>) -> bool {
    let runs_on = |pod: &ResolvedEndpoint<'_>, node: &ResolvedEndpoint<'_>| {
        !pod.claimants().is_empty() && pod.home().is_some_and(|home| node.nodes().contains(&home))
    };
    runs_on(one, other) || runs_on(other, one)
}

/// Whether a policy isolates a pod that may be this end.
fn is_isolated(end: &ResolvedEndpoint<'_>, direction: Direction) -> bool {
    end.claimants().iter().any(|known| !known.isolated_by(direction).is_empty())
}

/// The verdicts between classes.
#[derive(Clone, Debug)]
pub struct ClassTable {
    transports: Vec<Transport>,
    classes: usize,
    /// By sender and receiver: the index of the verdicts of all transports. Most pairs have the same few.
    cells: Vec<u32>,
    verdicts: Vec<Arc<[Reach]>>,
}

impl ClassTable {
    /// Evaluates each ordered pair of classes once, for all of `transports`.
    #[must_use]
    pub fn new(classes: &Classes<'_>, transports: &[Transport]) -> Self {
        let transports = distinct(transports);
        let count = classes.members.len();
        let mut known: HashMap<Arc<[Reach]>, u32> = HashMap::new();
        let mut verdicts: Vec<Arc<[Reach]>> = Vec::new();
        let mut cells = Vec::with_capacity(count * count);
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
            let verdict = match classes.example(from, to) {
                Some((from, to))
                    if is_isolated(from, Direction::Egress) || is_isolated(to, Direction::Ingress) =>
                {
                    between(from, to, &transports)
                }
                // Nothing isolates the two. Or nothing asks: there is no such pair, or it is a pod and its own node.
                _ => vec![Reach::Allowed; transports.len()],
            };
            let index = known.get(verdict.as_slice()).copied().unwrap_or_else(|| {
                let (index, verdict) = (number(verdicts.len()), Arc::<[Reach]>::from(verdict));
                verdicts.push(verdict.clone());
                known.insert(verdict, index);
                index
            });
            cells.push(index);
        }
        Self { transports, classes: count, cells, verdicts }
    }

    /// The transports, in the order in which they were given.
    #[must_use]
    pub fn transports(&self) -> &[Transport] {
        &self.transports
    }

    /// The verdict of each transport from an end of class `from` to another end of class `to`, unless
    /// [one is the node of the other](Classes::is_own_node). Empty if there is no such class.
    #[must_use]
    pub fn verdicts(&self, from: usize, to: usize) -> &[Reach] {
        self.cell(from, to).and_then(|cell| self.of_cell(cell)).unwrap_or_default()
    }

    /// A number for these verdicts: pairs of classes with the same verdicts have the same.
    #[must_use]
    pub fn cell(&self, from: usize, to: usize) -> Option<u32> {
        let is_within = from < self.classes && to < self.classes;
        is_within.then(|| self.cells.get(from * self.classes + to).copied()).flatten()
    }

    /// All verdicts that have a number, by that.
    pub fn cells(&self) -> impl Iterator<Item = &[Reach]> {
        self.verdicts.iter().map(|verdicts| &**verdicts)
    }

    /// The verdicts with this number.
    #[must_use]
    pub fn of_cell(&self, cell: u32) -> Option<&[Reach]> {
        self.verdicts.get(usize::try_from(cell).ok()?).map(|verdicts| &**verdicts)
    }

    /// Whether the `from`th end may reach the `to`th end with the `transport`th transport: what
    /// [`Reachability::reach`](super::Reachability::reach) answers.
    #[must_use]
    pub fn reach(&self, classes: &Classes<'_>, from: usize, to: usize, transport: usize) -> Option<Reach> {
        let (sender, receiver) = (*classes.class_of.get(from)?, *classes.class_of.get(to)?);
        let verdict = *self.verdicts(sender, receiver).get(transport)?;
        Some(match () {
            () if from == to => Reach::Itself,
            () if classes.is_own_node(from, to) => Reach::Allowed,
            () => verdict,
        })
    }
}

/// There are no more verdicts than pairs of classes, whose table would not fit into memory first.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// What policies look at, each once.
#[derive(Default)]
struct LookedAt<'a> {
    /// The keys of labels of pods.
    keys: HashSet<&'a str>,
    /// podSelectors with the namespaces of their policies.
    subjects: HashSet<(&'a Arc<str>, &'a LabelSelector)>,
    peers: HashSet<&'a PodPeer>,
    blocks: HashSet<&'a IpBlock>,
    port_names: HashSet<(Protocol, &'a str)>,
}

impl<'a> LookedAt<'a> {
    fn by(cluster: &'a Cluster) -> Self {
        let mut looked_at = Self::default();
        for policy in cluster.policies() {
            looked_at.add(policy);
        }
        looked_at
    }

    fn add(&mut self, policy: &'a NetworkPolicy) {
        self.add_keys(&policy.subject);
        self.subjects.insert((&policy.key.namespace, &policy.subject));
        if policy.standing != Standing::Accepted {
            return;
        }
        for rule in Direction::BOTH.into_iter().filter_map(|direction| policy.rules(direction)).flatten() {
            self.add_rule(rule);
        }
    }

    fn add_rule(&mut self, rule: &'a PolicyRule) {
        if let Peers::Of(peers) = &rule.peers {
            for peer in peers {
                match peer {
                    Peer::Block(block) => {
                        self.blocks.insert(block);
                    }
                    Peer::Pods(peer) => {
                        self.add_keys(&peer.pods);
                        self.peers.insert(peer);
                    }
                }
            }
        }
        if let Ports::Of(ports) = &rule.ports {
            self.port_names.extend(ports.iter().filter_map(|port| match port {
                Port::Named(protocol, name) => Some((*protocol, &**name)),
                Port::All(_) | Port::Range(..) => None,
            }));
        }
    }

    fn add_keys(&mut self, selector: &'a LabelSelector) {
        self.keys.extend(selector.requirements().iter().map(|requirement| &*requirement.key));
    }

    /// The ports of a pod whose names are used.
    fn ports_of(&self, end: &ResolvedEndpoint<'a>) -> BTreeSet<(Protocol, &'a str, u16)> {
        let pod = end.claimants().first().map(|known| known.pod);
        let ports = pod.into_iter().flat_map(|pod| &pod.ports);
        let named = ports.filter_map(|port| Some((port.protocol, port.name.as_deref()?, port.number)));
        named.filter(|(protocol, name, _)| self.port_names.contains(&(*protocol, name))).collect()
    }
}

/// A namespace, and those labels of a pod that selectors look at.
type Kind<'a> = (&'a str, Vec<(&'a str, &'a str)>);

/// For each end a number: two pods have the same if the same selectors select them. `None` for other ends.
fn selected_alike<'a>(
    cluster: &'a Cluster,
    ends: &[ResolvedEndpoint<'a>],
    looked_at: &LookedAt<'a>,
) -> Vec<Option<usize>> {
    // Pods in one namespace that differ only in labels that nobody looks at are matched once.
    let mut kinds: Vec<&'a Pod> = Vec::new();
    let mut in_namespace: BTreeMap<&'a str, Vec<usize>> = BTreeMap::new();
    let mut known: HashMap<Kind<'a>, usize> = HashMap::new();
    let kind_of: Vec<Option<usize>> = ends
        .iter()
        .map(|end| {
            let pod = end.claimants().first()?.pod;
            let labels = pod.labels.iter().filter(|(key, _)| looked_at.keys.contains(key)).collect();
            let namespace = &*pod.key.namespace;
            Some(*known.entry((namespace, labels)).or_insert_with(|| {
                in_namespace.entry(namespace).or_default().push(kinds.len());
                kinds.push(pod);
                kinds.len() - 1
            }))
        })
        .collect();
    let of_namespace = |namespace: &str| in_namespace.get(namespace).into_iter().flatten().copied();
    let matching = |namespace: &str, selector: &LabelSelector| -> Vec<usize> {
        let matches = |kind: &usize| kinds.get(*kind).is_some_and(|pod| selector.matches(&pod.labels));
        of_namespace(namespace).filter(matches).collect()
    };
    let mut partition = Partition::new(kinds.len());
    for (namespace, subject) in &looked_at.subjects {
        partition.split(matching(namespace, subject));
    }
    let mut scopes: HashMap<&LabelSelector, Vec<&Arc<Namespace>>> = HashMap::new();
    for peer in &looked_at.peers {
        match &peer.scope {
            Scope::Own(namespace) => partition.split(matching(namespace, &peer.pods)),
            Scope::Matching(selector) => {
                let namespaces = scopes.entry(selector).or_insert_with(|| {
                    cluster.namespaces().filter(|namespace| selector.matches(&namespace.labels)).collect()
                });
                let selected = namespaces.iter().flat_map(|namespace| matching(&namespace.name, &peer.pods));
                partition.split(selected);
            }
        }
    }
    kind_of.into_iter().map(|kind| partition.class_of(kind?)).collect()
}

/// Ends that have a class of their own, since packets from or to their addresses may be of others.
struct Singular<'a> {
    /// Addresses that several ends have, pods or addresses that were asked for.
    shared: HashSet<IpAddr>,
    /// The nodes of pods that were asked for by an address.
    nodes: HashSet<&'a Arc<str>>,
}

impl<'a> Singular<'a> {
    fn among(ends: &[ResolvedEndpoint<'a>]) -> Self {
        let mut singular = Self { shared: HashSet::new(), nodes: HashSet::new() };
        for end in ends {
            let claimants = end.claimants();
            let by_address = end.given_by_address();
            if by_address {
                singular.nodes.extend(claimants.iter().filter_map(|known| known.pod.node.as_ref()));
            }
            if by_address || claimants.len() > 1 {
                singular.shared.extend(claimants.iter().flat_map(|known| &known.pod.addresses));
            }
        }
        singular
    }

    /// Its own index, if it is alone; and which of the nodes that matter it is.
    fn key(&self, at: usize, end: &ResolvedEndpoint<'a>) -> (Option<usize>, Vec<&'a Arc<str>>) {
        let has_shared = |pod: &Pod| pod.addresses.iter().any(|address| self.shared.contains(address));
        let is_alone = end.claimants().iter().any(|known| has_shared(known.pod));
        let nodes = end.nodes().iter().copied().filter(|node| self.nodes.contains(node));
        (is_alone.then_some(at), nodes.collect())
    }
}

/// Splits by the blocks that contain the addresses of the ends.
fn split_by_blocks(partition: &mut Partition, ends: &[ResolvedEndpoint<'_>], blocks: &HashSet<&IpBlock>) {
    for family in Family::BOTH {
        let addresses =
            ends.iter().enumerate().filter_map(|(at, end)| Some((end.address(Some(family))?, at)));
        let mut addresses: Vec<(IpAddr, usize)> = addresses.collect();
        addresses.sort_unstable();
        for block in blocks.iter().filter(|block| Family::of_net(block.cidr()) == family) {
            let cidr = block.cidr();
            let first = addresses.partition_point(|(address, _)| *address < cidr.network());
            let within = addresses.iter().skip(first).take_while(|(address, _)| *address <= cidr.broadcast());
            partition.split(within.filter(|(address, _)| block.contains(*address)).map(|(_, at)| *at));
        }
    }
}
