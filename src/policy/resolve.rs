//! Which policies select the pods of this node, and which addresses their selectors match, tracked incrementally.
//!
//! A [`Resolver`] receives every [`Delta`] of the cluster. Its cost is that of the change: a remote pod is compared
//! with the selections that this node's programs use, and only its own addresses move. Policies that select no pod
//! of this node cost nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    budget::{Budgets, OverBudget},
    counts::{Counts, index::Index},
    members::{Member, Members},
    moves::{Move, Moves},
    program::{Chosen, PortOwners, Program, Selection},
    tenant::{Costs, Subject, Tenant, close},
};
use crate::model::{
    Cluster, Delta, Direction, Family, Handover, Namespace, NetworkPolicy, ObjectKey, Pod, PodPeer, Sandbox,
    Scope,
};

/// What this node must enforce: everything that the compiler needs.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// The pods of this node that have an address, by namespace and name. While this is the same allocation, only
    /// members of selections and nodes have changed.
    pub pods: Arc<[LocalPod]>,
    /// Every selection of their programs, with its members.
    pub selections: BTreeMap<Arc<Selection>, Members>,
    /// The addresses of all known nodes.
    pub nodes: Members,
    /// The addresses that pods own, in the whole cluster.
    pub all_pods: Members,
    /// The blocks of this node's pod addresses, as far as the node's object says.
    pub pod_cidrs: Arc<[IpNet]>,
    /// What is closed for being over budget; sorted.
    pub over_budget: Arc<[OverBudget]>,
}

/// A pod of this node.
#[derive(Clone, Debug)]
pub struct LocalPod {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// The addresses that it reports. While another pod of this node also reports one of them, both have it here: only
    /// traffic that both allow passes then.
    pub addresses: Vec<IpAddr>,
    /// Those of them that another pod, on any node, also reports: packets to them may go to that pod.
    pub shared: Vec<IpAddr>,
    /// The allowed ingress; `None` if no policy restricts it.
    pub ingress: Option<Arc<Program>>,
    /// The allowed egress; `None` if no policy restricts it.
    pub egress: Option<Arc<Program>>,
    /// The policies whose podSelector selects it, by name. Programs have their combined meaning; these are for people.
    pub policies: Arc<[Arc<NetworkPolicy>]>,
    /// Its sandbox, if its network plugin reported it.
    pub sandbox: Option<Arc<Sandbox>>,
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

/// Tracks what one node must enforce while the cluster changes.
#[derive(Debug)]
pub struct Resolver {
    node: Arc<str>,
    budgets: Budgets,
    /// The blocks of this node's pod addresses, instead of those of the node's object.
    pod_cidrs: Option<Arc<[IpNet]>>,
    subjects: BTreeMap<ObjectKey, Subject>,
    selections: BTreeMap<Arc<Selection>, Members>,
    /// The state of each namespace with pods of this node. A change in one of them recomputes only its own.
    tenants: BTreeMap<Arc<str>, Tenant>,
    /// Namespaces of which a pod of this node, or a policy that selects one, changed since the last sync.
    stale: BTreeSet<Arc<str>>,
    costs: Costs,
    counts: Counts,
    nodes: Members,
    all_pods: Members,
    /// The result of the last sync, until a pod of this node or a policy that selects one changes.
    pods: Option<Arc<[LocalPod]>>,
    over_budget: Arc<[OverBudget]>,
    moves: Moves,
}

impl Resolver {
    /// The addresses that pods own, in the whole cluster.
    #[must_use]
    pub const fn all_pods(&self) -> &Members {
        &self.all_pods
    }

    /// A resolver for the pods of `node`, before any object is known.
    #[must_use]
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        Self {
            node: node.into(),
            budgets: Budgets::default(),
            pod_cidrs: None,
            subjects: BTreeMap::new(),
            selections: BTreeMap::new(),
            tenants: BTreeMap::new(),
            stale: BTreeSet::new(),
            costs: Costs::default(),
            counts: Counts::default(),
            nodes: Members::default(),
            all_pods: Members::default(),
            pods: None,
            over_budget: Arc::default(),
            moves: Moves::default(),
        }
    }

    /// A resolver that knows all of `cluster`.
    #[must_use]
    pub fn of(node: impl Into<Arc<str>>, cluster: &Cluster) -> Self {
        let mut resolver = Self::new(node);
        for pod in cluster.pods() {
            resolver.counts.pod(cluster, None, Some(pod));
            resolver.place(pod);
            resolver.pod_addresses(cluster, pod.addresses.iter().copied());
        }
        resolver.node_addresses(cluster, cluster.node_addresses());
        resolver
    }

    /// The same resolver with other budgets.
    #[must_use]
    pub fn with_budgets(mut self, budgets: Budgets) -> Self {
        self.budgets = budgets;
        self.pods = None;
        self
    }

    /// The same resolver on a node whose pods have addresses of these blocks, whatever the node's object says.
    #[must_use]
    pub fn with_pod_cidrs(mut self, blocks: Arc<[IpNet]>) -> Self {
        self.pod_cidrs = Some(blocks);
        self
    }

    /// Applies a change. `cluster` is the state after the change.
    pub fn update(&mut self, cluster: &Cluster, delta: &Delta) {
        match delta {
            Delta::Pod { before, after, handovers } => {
                self.pod(cluster, before.as_ref(), after.as_ref(), handovers);
            }
            Delta::Namespace { before, after } => {
                self.namespace(cluster, before.as_deref(), after.as_deref());
            }
            Delta::Policy { before, after } => self.policy(before.as_deref(), after.as_ref()),
            Delta::Node { before, after } => {
                let nodes = [before, after].into_iter().flatten();
                self.node_addresses(cluster, nodes.flat_map(|node| node.addresses.iter().copied()));
            }
        }
    }

    /// What this node must enforce now.
    pub fn resolve(&mut self, cluster: &Cluster) -> Resolved {
        // The members of a selection can change without any change of a pod of this node.
        if self.counts.crossed(&self.budgets) {
            self.pods = None;
        }
        let pods = match &self.pods {
            Some(pods) => pods.clone(),
            None => self.local_pods(cluster),
        };
        self.pods = Some(pods.clone());
        Resolved {
            pods,
            selections: self.selections.clone(),
            nodes: self.nodes.clone(),
            all_pods: self.all_pods.clone(),
            pod_cidrs: self.pod_cidrs.clone().unwrap_or_else(|| {
                let of_object = cluster.node(&self.node).map(|node| node.pod_cidrs.iter().copied().collect());
                of_object.unwrap_or_default()
            }),
            over_budget: self.over_budget.clone(),
        }
    }

    /// Computes the programs of every pod of this node, and drops what none of them needs.
    fn local_pods(&mut self, cluster: &Cluster) -> Arc<[LocalPod]> {
        for namespace in std::mem::take(&mut self.stale) {
            let before = self.tenants.remove(&namespace);
            let first = ObjectKey::new(namespace.clone(), "");
            let subjects = self.subjects.range_mut(first..);
            let own = subjects.take_while(|(key, _)| key.namespace == namespace);
            let tenant = Tenant::new(cluster, own, before, &mut self.costs, &self.budgets);
            if !tenant.is_empty() {
                self.tenants.insert(namespace, tenant);
            }
        }
        self.costs.keep_used(&self.tenants);
        let (over_budget, closed) = close(cluster, &self.tenants, &mut self.counts, &self.budgets);
        self.over_budget = over_budget.into();
        let pods: Arc<[LocalPod]> = self
            .tenants
            .iter()
            .flat_map(|(namespace, tenant)| tenant.local_pods(closed.contains(namespace)))
            .collect();
        self.keep_used_selections(cluster, &pods);
        pods
    }

    /// The moves of members since the last call.
    pub fn take_moves(&mut self) -> Vec<Move> {
        self.moves.take()
    }

    /// Joins the moves of several changes that came as one. `before` is how many moves there were when the first of
    /// them was applied.
    pub fn join_moves(&mut self, before: usize) {
        self.moves.join(before);
    }

    /// How many moves were not taken yet.
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
        let claimants = handovers.iter().flat_map(|handover| &handover.after);
        let keys: Vec<&ObjectKey> =
            [before, after].into_iter().flatten().map(|pod| &pod.key).chain(claimants).collect();
        self.concerns(keys.iter().copied());
        if let Some(pod) = before {
            self.subjects.remove(&pod.key);
        }
        if let Some(pod) = after {
            self.place(pod);
        }
        self.concerns(keys.into_iter());
        self.counts.pod(cluster, before, after);
        let addresses: BTreeSet<IpAddr> =
            [before, after].into_iter().flatten().flat_map(|pod| pod.addresses.iter().copied()).collect();
        // Every selection of a program is counted, so the index has it.
        let index = self.counts.index();
        for address in &addresses {
            let pods = cluster.claimants(*address);
            let by_labels = index.chosen_selections(cluster, pods);
            for (selection, members) in &mut self.selections {
                let now = chosen(selection, pods, *address, by_labels.contains(selection));
                members.replace(*address, &now);
            }
        }
        self.pod_addresses(cluster, addresses.iter().copied());
        let pods = [before, after].into_iter().flatten();
        self.node_addresses(cluster, pods.flat_map(|pod| pod.node_addresses.iter().copied()));
        if self.pods.is_some() || !self.selections.is_empty() {
            let is_shared = |address: &IpAddr| {
                let pods = cluster.claimants(*address);
                let had_several =
                    |handover: &Handover| handover.address == *address && handover.before.len() > 1;
                (pods.len() > 1 || handovers.iter().any(had_several))
                    && pods
                        .iter()
                        .chain(before)
                        .chain(after)
                        .any(|pod| pod.node.as_deref() == Some(&*self.node))
            };
            let is_shared = addresses.iter().any(is_shared);
            self.moves.of_pod(addresses.into_iter().collect(), is_shared);
        }
    }

    fn namespace(&mut self, cluster: &Cluster, before: Option<&Namespace>, after: Option<&Namespace>) {
        let Some(name) = before.or(after).map(|namespace| &namespace.name) else { return };
        self.counts.namespace(cluster, name, before, after);
        let chooses = |namespace: Option<&Namespace>, peer: &PodPeer| match &peer.scope {
            Scope::Own(_) => false,
            Scope::Matching(selector) => {
                namespace.is_some_and(|namespace| selector.matches(&namespace.labels))
            }
        };
        let addresses: Vec<IpAddr> =
            cluster.pods_in(name).flat_map(|pod| pod.addresses.iter().copied()).collect();
        let differs = |peer: &PodPeer| chooses(before, peer) != chooses(after, peer);
        let mut selections: Vec<(&Arc<Selection>, &mut Members)> = self
            .selections
            .iter_mut()
            .filter(|(selection, _)| selection.pod_peers().iter().any(differs))
            .collect();
        let moved = !selections.is_empty();
        if moved {
            let index = self.counts.index();
            for address in &addresses {
                let pods = cluster.claimants(*address);
                let by_labels = index.chosen_selections(cluster, pods);
                for (selection, members) in &mut selections {
                    let now = chosen(selection, pods, *address, by_labels.contains(*selection));
                    members.replace(*address, &now);
                }
            }
        }
        if moved {
            self.moves.of_namespace(addresses);
        }
    }

    fn policy(&mut self, before: Option<&NetworkPolicy>, after: Option<&Arc<NetworkPolicy>>) {
        let Some(key) = before.map(|policy| &policy.key).or(after.map(|policy| &policy.key)) else { return };
        let mut concerns = false;
        for (_, subject) in self
            .subjects
            .range_mut(ObjectKey::new(key.namespace.clone(), "")..)
            .take_while(|(subject, _)| subject.namespace == key.namespace)
        {
            concerns |= subject.policy(&key.name, after);
        }
        if concerns {
            self.stale.insert(key.namespace.clone());
            self.pods = None;
        }
    }

    /// Marks the programs of these pods, if they are of this node, to be recomputed.
    fn concerns<'a>(&mut self, keys: impl Iterator<Item = &'a ObjectKey>) {
        for key in keys {
            if self.subjects.contains_key(key) {
                self.stale.insert(key.namespace.clone());
                self.pods = None;
            }
        }
    }

    /// Adds a pod to the subjects if policies can isolate it, and it is on this node.
    fn place(&mut self, pod: &Arc<Pod>) {
        if pod.is_subject() && pod.node.as_ref() == Some(&self.node) {
            self.stale.insert(pod.key.namespace.clone());
            self.subjects.insert(pod.key.clone(), Subject::new(pod.clone()));
        }
    }

    /// Recomputes which of `addresses` are node addresses.
    fn node_addresses(&mut self, cluster: &Cluster, addresses: impl Iterator<Item = IpAddr>) {
        for address in addresses {
            let is_node = cluster.nodes_at(address).next().is_some();
            let now: &[Member] = if is_node { &[Member::Address(address)] } else { &[] };
            self.nodes.replace(address, now);
        }
    }

    /// Recomputes which of `addresses` are owned by pods.
    fn pod_addresses(&mut self, cluster: &Cluster, addresses: impl Iterator<Item = IpAddr>) {
        for address in addresses {
            let now: &[Member] =
                if cluster.claimants(address).is_empty() { &[] } else { &[Member::Address(address)] };
            self.all_pods.replace(address, now);
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
        let is_new = |selection: &&Arc<Selection>| !self.selections.contains_key(*selection);
        let new: Vec<Arc<Selection>> = used.into_iter().filter(is_new).cloned().collect();
        self.selections.extend(members(cluster, new));
    }
}

/// The members that `selection` has for `address`, which `pods` report: if there are several, only those that it has
/// for each of them. `by_labels` is whether a single peer selects them all.
fn chosen(selection: &Selection, pods: &[Arc<Pod>], address: IpAddr, by_labels: bool) -> Vec<Member> {
    let is_chosen = by_labels
        || match &selection.chosen {
            Chosen::Pods(_) => false,
            Chosen::NamedPort { of: PortOwners::Any, .. } => true,
            Chosen::NamedPort { of: PortOwners::Of { .. }, .. } => selection.has_in_blocks(address),
        };
    if is_chosen { taken(selection, pods, address) } else { Vec::new() }
}

/// The members that `selection` has for an address whose pods it selects: for a named port, the numbers that it has
/// in each of them.
fn taken(selection: &Selection, pods: &[Arc<Pod>], address: IpAddr) -> Vec<Member> {
    match (&selection.chosen, pods) {
        (_, []) => Vec::new(),
        (Chosen::Pods(_), _) => vec![Member::Address(address)],
        (Chosen::NamedPort { protocol, name, .. }, [first, others @ ..]) => {
            let in_all =
                |number: &u16| others.iter().all(|pod| pod.named_port(name, *protocol).contains(number));
            let numbers = first.named_port(name, *protocol).into_iter().filter(in_all);
            numbers.map(|number| Member::Endpoint(address, *protocol, number)).collect()
        }
    }
}

/// The members of all `selections`, found in one pass over the pods.
fn members(cluster: &Cluster, selections: Vec<Arc<Selection>>) -> Vec<(Arc<Selection>, Members)> {
    if selections.is_empty() {
        return Vec::new();
    }
    let index = Index::new(selections);
    let mut all: Vec<(Arc<Selection>, Members)> =
        index.selections().iter().map(|selection| (selection.clone(), Members::default())).collect();
    for pod in index.reach(cluster) {
        for address in &pod.addresses {
            let pods = cluster.claimants(*address);
            // Once for each address: a selection selects the first of several pods if it selects them all.
            if pods.first().is_none_or(|first| first.key != pod.key) {
                continue;
            }
            let by_labels = index.chosen(cluster, pods);
            let others = index.everywhere().iter().filter(|one| by_labels.binary_search(one).is_err());
            for (one, by_labels) in
                by_labels.iter().map(|one| (one, true)).chain(others.map(|one| (one, false)))
            {
                if let Some((selection, members)) = all.get_mut(*one) {
                    let now = chosen(selection, pods, *address, by_labels);
                    members.of_mut(Family::of(*address)).extend(now);
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests;
