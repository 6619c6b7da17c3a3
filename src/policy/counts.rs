//! How many addresses the selections of a node have, counted change by change.
//!
//! Members of selections are looked up only for namespaces that are within their budgets; to know which these are, they
//! are counted for all that are within every other budget.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    budget::{Budgets, count},
    program::{Chosen, Owners, Selection, selects},
    tenant::largest,
};
use crate::model::{Cluster, Namespace, Pod, PodPeer, Scope};

/// How many addresses each selection has that is used or would be: of selectable pods that match, whoever owns the
/// addresses. It is kept up to date change by change, also for namespaces that are closed, so that these open again as
/// soon as they are within their budget.
#[derive(Debug, Default)]
pub(super) struct Counts {
    by_selection: BTreeMap<Arc<Selection>, u64>,
    /// The addresses of all selectable pods.
    pub(super) addresses: u64,
    /// The selections of each namespace that is within all other budgets.
    namespaces: BTreeMap<Arc<str>, Vec<Arc<Selection>>>,
    /// Which of these are closed for their members.
    closed: BTreeSet<Arc<str>>,
    changed: bool,
}

impl Counts {
    pub(super) fn of(&self, selection: &Arc<Selection>) -> u64 {
        self.by_selection.get(selection).copied().unwrap_or(0)
    }

    /// Counts selections that are new, and forgets those that are gone.
    pub(super) fn keep<'a>(&mut self, cluster: &Cluster, used: impl Iterator<Item = &'a Arc<Selection>>) {
        let mut before = std::mem::take(&mut self.by_selection);
        for selection in used {
            if !self.by_selection.contains_key(selection) {
                let count = before.remove(selection).unwrap_or_else(|| counted(cluster, selection));
                self.by_selection.insert(selection.clone(), count);
            }
        }
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

    /// Whether other namespaces have to be closed for their members than those that are.
    pub(super) fn crossed(&mut self, budgets: &Budgets) -> bool {
        if !std::mem::take(&mut self.changed) {
            return false;
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

    /// Takes in that a pod changed. `cluster` is as it is after the change; namespaces have not changed.
    pub(super) fn pod(&mut self, cluster: &Cluster, before: Option<&Pod>, after: Option<&Pod>) {
        for (pod, comes) in [(before, false), (after, true)] {
            let Some(pod) = pod.filter(|pod| pod.is_selectable() && !pod.addresses.is_empty()) else {
                continue;
            };
            shift(&mut self.addresses, count(pod.addresses.len()), comes);
            for (selection, total) in &mut self.by_selection {
                let members = of_pod(cluster, selection, pod);
                if members > 0 {
                    shift(total, members, comes);
                    self.changed = true;
                }
            }
        }
    }

    /// Takes in that the labels of a namespace changed.
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
        for (selection, total) in &mut self.by_selection {
            let differs = |peer: &PodPeer| chooses(before, peer) != chooses(after, peer);
            if selection.pod_peers().iter().any(differs) && cluster.pods_in(name).next().is_some() {
                *total = counted(cluster, selection);
                self.changed = true;
            }
        }
    }
}

fn shift(total: &mut u64, by: u64, up: bool) {
    *total = if up { total.saturating_add(by) } else { total.saturating_sub(by) };
}

/// How many members `selection` takes from `pod`, were it the owner of all its addresses.
fn of_pod(cluster: &Cluster, selection: &Selection, pod: &Pod) -> u64 {
    let by_labels = |peers: &[PodPeer]| peers.iter().any(|peer| selects(cluster, peer, pod));
    match &selection.chosen {
        Chosen::Pods(peers) if by_labels(peers) => count(pod.addresses.len()),
        Chosen::Pods(_) => 0,
        Chosen::NamedPort { protocol, name, of } => {
            let numbers = count(pod.named_port(name, *protocol).len());
            if numbers == 0 {
                return 0;
            }
            let chosen = match of {
                Owners::Any => pod.addresses.len(),
                Owners::Of { pods, .. } if by_labels(pods) => pod.addresses.len(),
                Owners::Of { blocks, .. } => {
                    let within = |address: &&IpAddr| blocks.iter().any(|block| block.contains(**address));
                    pod.addresses.iter().filter(within).count()
                }
            };
            count(chosen).saturating_mul(numbers)
        }
    }
}

/// How many members a selection takes from all pods, looked for only where there can be any.
fn counted(cluster: &Cluster, selection: &Selection) -> u64 {
    let everywhere = match &selection.chosen {
        Chosen::Pods(_) => false,
        Chosen::NamedPort { of: Owners::Any, .. } => true,
        Chosen::NamedPort { of: Owners::Of { blocks, .. }, .. } => !blocks.is_empty(),
    };
    let of = |pod: &Arc<Pod>| if pod.is_selectable() { of_pod(cluster, selection, pod) } else { 0 };
    if everywhere {
        return cluster.pods().map(of).sum();
    }
    let mut namespaces: BTreeSet<&str> = BTreeSet::new();
    for peer in selection.pod_peers() {
        match &peer.scope {
            Scope::Own(namespace) => drop(namespaces.insert(namespace)),
            Scope::Matching(selector) => {
                let matching = cluster.namespaces().filter(|object| selector.matches(&object.labels));
                namespaces.extend(matching.map(|object| &*object.name));
            }
        }
    }
    namespaces.into_iter().flat_map(|namespace| cluster.pods_in(namespace)).map(of).sum()
}
