//! Which policies bind the pods of this node, and which addresses their selectors mean, kept incrementally.
//!
//! A [`Resolver`] is told every [`Delta`] of the cluster. The cost of one is that of the change: a remote pod is
//! held against the selections that this node's programs use, and only its own addresses move. Policies that bind
//! no pod of this node cost nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{
    members::{Member, Members, Move},
    program::{Chosen, Owners, Program, Selection, selects},
};
use crate::model::{
    Cluster, Delta, Direction, Family, Handover, LabelSelector, Namespace, NetworkPolicy, ObjectKey, Pod,
    PodPeer, Port, Ports, Scope,
};

/// What this node has to enforce: everything that the compiler needs.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// The pods of this node that have an address, by namespace and name. While this is the same allocation, only
    /// members of selections and nodes have changed.
    pub pods: Arc<[LocalPod]>,
    /// Every selection of their programs, with its members.
    pub selections: BTreeMap<Arc<Selection>, Members>,
    /// The addresses of all nodes that are known.
    pub nodes: Members,
}

/// A pod of this node.
#[derive(Clone, Debug)]
pub struct LocalPod {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// The addresses that it owns.
    pub addresses: Vec<IpAddr>,
    /// What may come in; `None` if no policy restricts it.
    pub ingress: Option<Arc<Program>>,
    /// What may go out; `None` if no policy restricts it.
    pub egress: Option<Arc<Program>>,
    /// The policies whose podSelector selects it, by name. Programs say what they mean together; these are for people.
    pub policies: Vec<Arc<NetworkPolicy>>,
}

impl LocalPod {
    /// Its program for `direction`.
    #[must_use]
    pub fn program(&self, direction: Direction) -> Option<&Arc<Program>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

/// Keeps what one node has to enforce while the cluster changes.
#[derive(Debug)]
pub struct Resolver {
    node: Arc<str>,
    subjects: BTreeMap<ObjectKey, Subject>,
    selections: BTreeMap<Arc<Selection>, Members>,
    programs: HashMap<ProgramKey, Arc<Program>>,
    nodes: Members,
    /// The outcome of the last round, until a pod of this node or a policy that binds one changes.
    pods: Option<Arc<[LocalPod]>>,
    /// What moved members since the moves were last taken, in the order of the events.
    moves: Vec<Move>,
    /// The owners, when the moves were last taken, of addresses that have changed hands since.
    owners: BTreeMap<IpAddr, Option<ObjectKey>>,
}

/// A pod of this node, and the policies whose podSelector selects it, by name.
#[derive(Debug)]
struct Subject {
    pod: Arc<Pod>,
    policies: BTreeMap<Arc<str>, Arc<NetworkPolicy>>,
}

/// What a program is a function of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ProgramKey {
    direction: Direction,
    /// By identity: a policy that changed is another value.
    policies: Vec<Identity>,
    /// What the policies' named ports mean for the pod, in their order; empty for egress.
    named: Vec<Vec<u16>>,
}

/// A policy, compared by identity. Holding it keeps its address from being given to another.
#[derive(Debug, Clone)]
struct Identity(Arc<NetworkPolicy>);

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Identity {}

impl std::hash::Hash for Identity {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl Resolver {
    /// A resolver for the pods of `node`, before any object is known.
    #[must_use]
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        Self {
            node: node.into(),
            subjects: BTreeMap::new(),
            selections: BTreeMap::new(),
            programs: HashMap::new(),
            nodes: Members::default(),
            pods: None,
            moves: Vec::new(),
            owners: BTreeMap::new(),
        }
    }

    /// A resolver that knows all of `cluster`.
    #[must_use]
    pub fn of(node: impl Into<Arc<str>>, cluster: &Cluster) -> Self {
        let mut resolver = Self::new(node);
        for pod in cluster.pods() {
            resolver.place(cluster, pod);
        }
        resolver.node_addresses(cluster, cluster.node_addresses());
        resolver
    }

    /// Takes in a change. `cluster` is as it is after the change.
    pub fn update(&mut self, cluster: &Cluster, delta: &Delta) {
        match delta {
            Delta::Pod { before, after, handovers } => {
                self.pod(cluster, before.as_ref(), after.as_ref(), handovers);
            }
            Delta::Namespace { before, after } => {
                self.namespace(cluster, before.as_deref(), after.as_deref());
            }
            Delta::Policy { before, after } => self.policy(cluster, before.as_deref(), after.as_ref()),
            Delta::Node { before, after } => {
                let nodes = [before, after].into_iter().flatten();
                self.node_addresses(cluster, nodes.flat_map(|node| node.addresses.iter().copied()));
            }
        }
    }

    /// What this node has to enforce now.
    pub fn resolve(&mut self, cluster: &Cluster) -> Resolved {
        let pods = match &self.pods {
            Some(pods) => pods.clone(),
            None => self.local_pods(cluster),
        };
        self.pods = Some(pods.clone());
        Resolved { pods, selections: self.selections.clone(), nodes: self.nodes.clone() }
    }

    /// Gives every pod of this node its programs, and forgets what none of them needs.
    fn local_pods(&mut self, cluster: &Cluster) -> Arc<[LocalPod]> {
        let mut programs = HashMap::new();
        let mut pods = Vec::new();
        for (key, subject) in &self.subjects {
            // A stale pod of another node may own the address as a peer: the packets on this node are this pod's.
            let is_own = |address: &&IpAddr| {
                let owner = cluster.owner(**address);
                owner.is_some_and(|owner| owner.key == *key || owner.node.as_ref() != Some(&self.node))
            };
            let addresses: Vec<IpAddr> = subject.pod.addresses.iter().filter(is_own).copied().collect();
            if addresses.is_empty() {
                continue;
            }
            let mut program = |direction| {
                let key = subject.program_key(direction)?;
                if let Some(program) = programs.get(&key) {
                    return Some(Arc::clone(program));
                }
                let program = self.programs.get(&key).cloned().unwrap_or_else(|| {
                    let policies = key.policies.iter().map(|identity| &identity.0);
                    Arc::new(Program::of_policies(direction, policies, &subject.pod))
                });
                programs.insert(key, program.clone());
                Some(program)
            };
            let restricting = |program: Option<Arc<Program>>| program.filter(|p| !p.allows_everything());
            let (ingress, egress) = (program(Direction::Ingress), program(Direction::Egress));
            pods.push(LocalPod {
                key: key.clone(),
                addresses,
                ingress: restricting(ingress),
                egress: restricting(egress),
                policies: subject.policies.values().cloned().collect(),
            });
        }
        self.programs = programs;
        self.keep_used_selections(cluster, &pods);
        pods.into()
    }

    /// What moved members since this was last asked.
    pub fn take_moves(&mut self) -> Vec<Move> {
        let owners = std::mem::take(&mut self.owners);
        let mut moves = std::mem::take(&mut self.moves);
        for step in &mut moves {
            step.close_first |= step.addresses.iter().any(|address| owners.contains_key(address));
        }
        moves
    }

    /// Several changes that came as one: no state between them was ever real, so all that they moved closes first.
    /// `before` is how many moves there were when the first of them was taken in.
    pub fn join_moves(&mut self, before: usize) {
        let joined: Vec<Move> = self.moves.drain(before.min(self.moves.len())..).collect();
        let addresses: Vec<IpAddr> = joined.into_iter().flat_map(|step| step.addresses).collect();
        if !addresses.is_empty() {
            self.moves.push(Move { addresses, close_first: true });
        }
    }

    /// How many moves there are that were not taken yet.
    #[must_use]
    pub fn moves(&self) -> usize {
        self.moves.len()
    }

    fn pod(
        &mut self,
        cluster: &Cluster,
        before: Option<&Arc<Pod>>,
        after: Option<&Arc<Pod>>,
        handovers: &[Handover],
    ) {
        let owners = handovers.iter().flat_map(|handover| [&handover.before, &handover.after]).flatten();
        let keys: Vec<&ObjectKey> =
            [before, after].into_iter().flatten().map(|pod| &pod.key).chain(owners).collect();
        let mut concerns_local = keys.iter().any(|key| self.subjects.contains_key(*key));
        if let Some(pod) = before {
            self.subjects.remove(&pod.key);
        }
        if let Some(pod) = after {
            self.place(cluster, pod);
        }
        concerns_local |= keys.iter().any(|key| self.subjects.contains_key(*key));
        if concerns_local {
            self.pods = None;
        }
        let addresses: BTreeSet<IpAddr> =
            [before, after].into_iter().flatten().flat_map(|pod| pod.addresses.iter().copied()).collect();
        for (selection, members) in &mut self.selections {
            for address in &addresses {
                members.replace(*address, &chosen(cluster, selection, *address));
            }
        }
        let pods = [before, after].into_iter().flatten();
        self.node_addresses(cluster, pods.flat_map(|pod| pod.node_addresses.iter().copied()));
        for Handover { address, before, after } in handovers {
            // Of several handovers only the first owner and the last one count: back where it was is no handover.
            let first = self.owners.entry(*address).or_insert_with(|| before.clone());
            if first == after {
                self.owners.remove(address);
            }
        }
        if self.pods.is_some() || !self.selections.is_empty() {
            self.moves.push(Move { addresses: addresses.into_iter().collect(), close_first: false });
        }
    }

    fn namespace(&mut self, cluster: &Cluster, before: Option<&Namespace>, after: Option<&Namespace>) {
        let Some(name) = before.or(after).map(|namespace| &namespace.name) else { return };
        let chooses = |namespace: Option<&Namespace>, peer: &PodPeer| match &peer.scope {
            Scope::Own(_) => false,
            Scope::Matching(selector) => {
                namespace.is_some_and(|namespace| selector.matches(&namespace.labels))
            }
        };
        let addresses: Vec<IpAddr> =
            cluster.pods_in(name).flat_map(|pod| pod.addresses.iter().copied()).collect();
        let mut moved = false;
        for (selection, members) in &mut self.selections {
            let differs = |peer: &PodPeer| chooses(before, peer) != chooses(after, peer);
            if !selection.pod_peers().iter().any(differs) {
                continue;
            }
            moved = true;
            for address in &addresses {
                members.replace(*address, &chosen(cluster, selection, *address));
            }
        }
        if moved {
            // All its pods move at once, and no order among them was ever real.
            self.moves.push(Move { addresses, close_first: true });
        }
    }

    fn policy(
        &mut self,
        cluster: &Cluster,
        before: Option<&NetworkPolicy>,
        after: Option<&Arc<NetworkPolicy>>,
    ) {
        let Some(key) = before.map(|policy| &policy.key).or(after.map(|policy| &policy.key)) else { return };
        for pod in cluster.pods_in(&key.namespace) {
            let Some(subject) = self.subjects.get_mut(&pod.key) else { continue };
            let now = after.filter(|policy| policy.subject.matches(&pod.labels));
            let was = match now {
                Some(policy) => subject.policies.insert(key.name.clone(), policy.clone()),
                None => subject.policies.remove(&key.name),
            };
            if now.is_some() || was.is_some() {
                self.pods = None;
            }
        }
    }

    /// Makes a pod a subject if it is one of this node.
    fn place(&mut self, cluster: &Cluster, pod: &Arc<Pod>) {
        if !pod.is_selectable() || pod.node.as_ref() != Some(&self.node) {
            return;
        }
        let policies = cluster
            .policies_in(&pod.key.namespace)
            .filter(|policy| policy.subject.matches(&pod.labels))
            .map(|policy| (policy.key.name.clone(), policy.clone()))
            .collect();
        self.subjects.insert(pod.key.clone(), Subject { pod: pod.clone(), policies });
    }

    /// Looks up anew which of `addresses` are those of nodes.
    fn node_addresses(&mut self, cluster: &Cluster, addresses: impl Iterator<Item = IpAddr>) {
        for address in addresses {
            let is_node = cluster.nodes_at(address).next().is_some();
            let now: &[Member] = if is_node { &[Member::Address(address)] } else { &[] };
            self.nodes.replace(address, now);
        }
    }

    /// Drops selections that no program uses any more, and looks up the members of new ones.
    fn keep_used_selections(&mut self, cluster: &Cluster, pods: &[LocalPod]) {
        let used: BTreeSet<&Arc<Selection>> = pods
            .iter()
            .flat_map(|pod| [&pod.ingress, &pod.egress])
            .flatten()
            .map(|program| (Arc::as_ptr(program), program))
            .collect::<HashMap<_, _>>()
            .into_values()
            .flat_map(|program| program.selections())
            .collect();
        self.selections.retain(|selection, _| used.contains(selection));
        for selection in used {
            if !self.selections.contains_key(selection) {
                self.selections.insert(selection.clone(), members(cluster, selection));
            }
        }
    }
}

impl Subject {
    /// `None` if no policy isolates the pod in this direction.
    fn program_key(&self, direction: Direction) -> Option<ProgramKey> {
        let policies: Vec<&Arc<NetworkPolicy>> =
            self.policies.values().filter(|policy| policy.rules(direction).is_some()).collect();
        if policies.is_empty() {
            return None;
        }
        let named = match direction {
            Direction::Egress => Vec::new(),
            Direction::Ingress => policies
                .iter()
                .flat_map(|policy| policy.rules(direction).unwrap_or_default())
                .flat_map(|rule| match &rule.ports {
                    Ports::Any => &[],
                    Ports::Of(ports) => ports.as_slice(),
                })
                .filter_map(|port| match port {
                    Port::Named(protocol, name) => Some(self.pod.named_port(name, *protocol)),
                    Port::All(_) | Port::Range(..) => None,
                })
                .collect(),
        };
        let policies = policies.into_iter().cloned().map(Identity).collect();
        Some(ProgramKey { direction, policies, named })
    }
}

/// The members that `selection` takes from the owner of `address`.
fn chosen(cluster: &Cluster, selection: &Selection, address: IpAddr) -> Vec<Member> {
    let Some(pod) = cluster.owner(address) else { return Vec::new() };
    let by_labels = |peers: &[PodPeer]| peers.iter().any(|peer| selects(cluster, peer, pod));
    let is_chosen = match &selection.chosen {
        Chosen::Pods(peers) => by_labels(peers),
        Chosen::NamedPort { of: Owners::Any, .. } => true,
        Chosen::NamedPort { of: Owners::Of { pods, .. }, .. } => {
            by_labels(pods) || selection.has_in_blocks(address)
        }
    };
    if is_chosen { taken(selection, pod, address) } else { Vec::new() }
}

/// The members that `selection` takes from a pod that it chooses.
fn taken(selection: &Selection, pod: &Pod, address: IpAddr) -> Vec<Member> {
    match &selection.chosen {
        Chosen::Pods(_) => vec![Member::Address(address)],
        Chosen::NamedPort { protocol, name, .. } => {
            let numbers = pod.named_port(name, *protocol).into_iter();
            numbers.map(|number| Member::Endpoint(address, *protocol, number)).collect()
        }
    }
}

/// All members of a selection, looked for only where there can be any: a namespace is asked once, not for each of
/// its pods.
fn members(cluster: &Cluster, selection: &Selection) -> Members {
    let mut wanted: BTreeMap<&str, Vec<&LabelSelector>> = BTreeMap::new();
    for peer in selection.pod_peers() {
        match &peer.scope {
            Scope::Own(namespace) => wanted.entry(namespace).or_default().push(&peer.pods),
            Scope::Matching(selector) => {
                for namespace in cluster.namespaces().filter(|object| selector.matches(&object.labels)) {
                    wanted.entry(&namespace.name).or_default().push(&peer.pods);
                }
            }
        }
    }
    let mut members = Members::default();
    let mut add = |pod: &Pod, address: IpAddr| {
        if cluster.owner(address).is_some_and(|owner| owner.key == pod.key) {
            members.of_mut(Family::of(address)).extend(taken(selection, pod, address));
        }
    };
    for (namespace, selectors) in &wanted {
        for pod in cluster.pods_in(namespace) {
            if selectors.iter().any(|selector| selector.matches(&pod.labels)) {
                pod.addresses.iter().for_each(|address| add(pod, *address));
            }
        }
    }
    // Owners by address, and owners without condition, can be in any namespace.
    let of = match &selection.chosen {
        Chosen::Pods(_) => return members,
        Chosen::NamedPort { of, .. } => of,
    };
    let by_address = |address: IpAddr| match of {
        Owners::Any => true,
        Owners::Of { .. } => selection.has_in_blocks(address),
    };
    if !matches!(of, Owners::Of { blocks, .. } if blocks.is_empty()) {
        for pod in cluster.pods() {
            pod.addresses
                .iter()
                .filter(|address| by_address(**address))
                .for_each(|address| add(pod, *address));
        }
    }
    members
}
