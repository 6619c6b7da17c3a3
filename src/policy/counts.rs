//! How many addresses the selections of a node have, counted incrementally.
//!
//! Members of selections are looked up only for namespaces within their budgets. To know which these are, members are
//! counted for all namespaces that are within every other budget.

pub(super) mod index;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    budget::{Budgets, Closed, OverBudget, Resource, Scale, count},
    program::{Chosen, PortOwners, Selection},
    tenant::largest,
};
use crate::model::{Cluster, Namespace, Pod, PodPeer, Scope};
use index::Index;

/// How many addresses each selection has that is used or would be: those of selectable pods that match, no matter who
/// else reports them. It is updated with every change, also for closed namespaces, so that these open again as soon as
/// they are within their budget.
#[derive(Debug, Default)]
pub(super) struct Counts {
    by_selection: BTreeMap<Arc<Selection>, u64>,
    /// The index of the peers of these selections, until the selections change.
    index: Option<Arc<Index>>,
    /// The addresses of all selectable pods.
    pub(super) addresses: u64,
    /// The selections of each namespace that is within all other budgets.
    namespaces: BTreeMap<Arc<str>, Vec<Arc<Selection>>>,
    /// Those of them that are closed for their members.
    closed: BTreeSet<Arc<str>>,
    /// How many comparisons with each pod a namespace takes, for those that take many.
    comparisons: BTreeMap<Arc<str>, u64>,
    /// Those of them that are closed for their comparisons.
    closed_for_comparisons: BTreeSet<Arc<str>>,
    changed: bool,
}

impl Counts {
    pub(super) fn of(&self, selection: &Arc<Selection>) -> u64 {
        self.by_selection.get(selection).copied().unwrap_or(0)
    }

    /// Counts new selections, and drops those that are gone.
    pub(super) fn keep<'a>(&mut self, cluster: &Cluster, used: impl Iterator<Item = &'a Arc<Selection>>) {
        let used: BTreeSet<&Arc<Selection>> = used.collect();
        let before = self.by_selection.len();
        self.by_selection.retain(|selection, _| used.contains(selection));
        let is_new = |selection: &&Arc<Selection>| !self.by_selection.contains_key(*selection);
        let new: Vec<Arc<Selection>> = used.into_iter().filter(is_new).cloned().collect();
        if before != self.by_selection.len() || !new.is_empty() {
            self.index = None;
        }
        self.by_selection.extend(counted(cluster, new));
    }

    /// The index of the peers of all counted selections.
    pub(super) fn index(&mut self) -> Arc<Index> {
        let selections = &self.by_selection;
        self.index.get_or_insert_with(|| Arc::new(Index::new(selections.keys().cloned().collect()))).clone()
    }

    /// Which namespaces take too many comparisons, by themselves or for all namespaces together.
    pub(super) fn over_comparisons(
        &mut self,
        comparisons: BTreeMap<Arc<str>, u64>,
        budgets: &Budgets,
    ) -> Vec<OverBudget> {
        let over = over_comparisons(&comparisons, self.addresses, budgets);
        self.closed_for_comparisons = over.iter().map(|over| over.namespace().clone()).collect();
        self.comparisons = comparisons;
        over
    }

    pub(super) fn remember(
        &mut self,
        by_namespace: &BTreeMap<&Arc<str>, BTreeSet<&Arc<Selection>>>,
        closed: &BTreeSet<Arc<str>>,
    ) {
        self.namespaces = by_namespace
            .iter()
            .map(|(namespace, selections)| {
                ((*namespace).clone(), selections.iter().map(|selection| (*selection).clone()).collect())
            })
            .collect();
        self.closed = closed.iter().filter(|name| self.namespaces.contains_key(*name)).cloned().collect();
        self.changed = false;
    }

    /// Whether the set of namespaces to close for their members or comparisons has changed.
    pub(super) fn crossed(&mut self, budgets: &Budgets) -> bool {
        if !std::mem::take(&mut self.changed) {
            return false;
        }
        let over = over_comparisons(&self.comparisons, self.addresses, budgets);
        if over.len() != self.closed_for_comparisons.len()
            || over.iter().any(|over| !self.closed_for_comparisons.contains(over.namespace()))
        {
            return true;
        }
        let of =
            |selections: &Vec<Arc<Selection>>| selections.iter().map(|selection| self.of(selection)).sum();
        let members: BTreeMap<&Arc<str>, u64> =
            self.namespaces.iter().map(|(name, selections)| (name, of(selections))).collect();
        let budget = budgets.namespace_members(self.addresses);
        let (over, within): (BTreeMap<_, _>, BTreeMap<_, _>) =
            members.into_iter().partition(|(_, count)| *count > budget);
        let node = largest(within, budgets.node_members(self.addresses));
        let now: BTreeSet<&Arc<str>> =
            over.into_keys().chain(node.into_iter().map(|(name, _)| name)).collect();
        now.len() != self.closed.len() || now.into_iter().any(|name| !self.closed.contains(name))
    }

    /// Applies a change of a pod. `cluster` is the state after the change; namespaces have not changed.
    pub(super) fn pod(&mut self, cluster: &Cluster, before: Option<&Arc<Pod>>, after: Option<&Arc<Pod>>) {
        let index = self.index();
        for (pod, comes) in [(before, false), (after, true)] {
            let Some(pod) = pod.filter(|pod| pod.is_selectable() && !pod.addresses.is_empty()) else {
                continue;
            };
            shift(&mut self.addresses, count(pod.addresses.len()), comes);
            // Budgets grow with the cluster.
            self.changed |= !self.comparisons.is_empty();
            for (selection, members) in of_pod(&index, cluster, pod) {
                let selection = index.selections().get(selection);
                if let Some(total) = selection.and_then(|selection| self.by_selection.get_mut(selection)) {
                    shift(total, members, comes);
                    self.changed = true;
                }
            }
        }
    }

    /// Applies a change of a namespace's labels.
    pub(super) fn namespace(
        &mut self,
        cluster: &Cluster,
        name: &str,
        before: Option<&Namespace>,
        after: Option<&Namespace>,
    ) {
        let chooses = |namespace: Option<&Namespace>, peer: &PodPeer| match &peer.scope {
            Scope::Own(_) => false,
            Scope::Matching(selector) => namespace.is_some_and(|object| selector.matches(&object.labels)),
        };
        if cluster.pods_in(name).next().is_none() {
            return;
        }
        let differs = |peer: &PodPeer| chooses(before, peer) != chooses(after, peer);
        let moved = self.by_selection.keys().filter(|selection| selection.pod_peers().iter().any(differs));
        let moved: Vec<Arc<Selection>> = moved.cloned().collect();
        if !moved.is_empty() {
            self.by_selection.extend(counted(cluster, moved));
            self.changed = true;
        }
    }
}

fn shift(total: &mut u64, by: u64, up: bool) {
    *total = if up { total.saturating_add(by) } else { total.saturating_sub(by) };
}

/// Which namespaces take more comparisons than the budget of a namespace, or of the node, allows.
fn over_comparisons(
    comparisons: &BTreeMap<Arc<str>, u64>,
    addresses: u64,
    budgets: &Budgets,
) -> Vec<OverBudget> {
    let resource = Resource::Comparisons;
    let over = |scale, namespace: &Arc<str>, cost, budget| {
        let closed = Closed::Namespace(namespace.clone());
        OverBudget { closed, scale, resource, cost, budget }
    };
    let cost = |(namespace, of_pod): (_, &u64)| (namespace, of_pod.saturating_mul(addresses));
    let budget = budgets.namespace_comparisons(addresses);
    let (large, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        comparisons.iter().map(cost).partition(|(_, cost)| *cost > budget);
    let large = large.into_iter().map(|(namespace, cost)| over(Scale::Namespace, namespace, cost, budget));
    let budget = budgets.node_comparisons(addresses);
    let of_node = largest(others, budget).into_iter();
    large.chain(of_node.map(|(namespace, cost)| over(Scale::Node, namespace, cost, budget))).collect()
}

/// How many members each selection has for `pod`, if it were the only owner of its addresses; only those with any.
fn of_pod<'a>(
    index: &'a Index,
    cluster: &Cluster,
    pod: &'a Arc<Pod>,
) -> impl Iterator<Item = (usize, u64)> + 'a {
    let by_labels = index.chosen(cluster, std::slice::from_ref(pod));
    let others = index.everywhere().iter().copied();
    let others: Vec<usize> = others.filter(|one| by_labels.binary_search(one).is_err()).collect();
    let all = by_labels.into_iter().map(|one| (one, true)).chain(others.into_iter().map(|one| (one, false)));
    let members = all.filter_map(|(one, by_labels)| {
        Some((one, of_selection(index.selections().get(one)?, pod, by_labels)))
    });
    members.filter(|(_, members)| *members != 0)
}

/// How many members `selection` has for `pod`; `by_labels` is whether one of its peers selects the pod.
fn of_selection(selection: &Selection, pod: &Pod, by_labels: bool) -> u64 {
    match &selection.chosen {
        // These are selected by labels only.
        Chosen::Pods(_) => count(pod.addresses.len()),
        Chosen::NamedPort { protocol, name, of } => {
            let numbers = count(pod.named_port(name, *protocol).len());
            if numbers == 0 {
                return 0;
            }
            let chosen = match of {
                PortOwners::Any => pod.addresses.len(),
                PortOwners::Of { .. } if by_labels => pod.addresses.len(),
                PortOwners::Of { blocks, .. } => {
                    let within = |address: &&IpAddr| blocks.iter().any(|block| block.contains(**address));
                    pod.addresses.iter().filter(within).count()
                }
            };
            count(chosen).saturating_mul(numbers)
        }
    }
}

/// How many members each of `selections` has in total, counted in one pass over the pods.
fn counted(cluster: &Cluster, selections: Vec<Arc<Selection>>) -> Vec<(Arc<Selection>, u64)> {
    if selections.is_empty() {
        return Vec::new();
    }
    let index = Index::new(selections);
    let mut totals: Vec<(Arc<Selection>, u64)> =
        index.selections().iter().map(|selection| (selection.clone(), 0)).collect();
    for pod in index.reach(cluster).into_iter().filter(|pod| pod.is_selectable()) {
        for (selection, members) in of_pod(&index, cluster, pod) {
            if let Some((_, total)) = totals.get_mut(selection) {
                shift(total, members, true);
            }
        }
    }
    totals
}

#[cfg(test)]
mod tests;
