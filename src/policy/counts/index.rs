//! Finds the selections that select a pod, without comparing each of their peers with it.
//!
//! The authors of policies decide how many peers there are, and a cluster has many pods: comparing each with each takes
//! more time than the sync loop has. A peer that requires a label is compared only with the pods that have it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    model::{Cluster, LabelSelector, Labels, Operator, Pod, PodPeer, Scope},
    policy::{
        budget::count,
        program::{Chosen, PortOwners, Selection, selects},
    },
};

/// A requirement with more values than this is indexed by its key alone.
const FEW_VALUES: usize = 16;

/// Up to this many peers are compared with each pod: looking up its labels would take longer.
const FEW_PEERS: usize = 8;

/// This many values cost as much as one more peer.
const VALUES: usize = 16;

/// Up to this many peers may require one label before they count as comparisons with every pod.
const CROWDED: u64 = 256;

/// Up to this many comparisons with every pod count as zero: many namespaces have a few.
const COMMON: u64 = 64;

/// Up to this many pairs of a scope and a namespace are compared to skip namespaces that no scope matches.
const PAIRS: usize = 1_000_000;

/// The peers of some selections, by a label that each of them requires.
#[derive(Debug, Default)]
pub(in crate::policy) struct Index {
    selections: Vec<Arc<Selection>>,
    peers: Vec<Indexed>,
    buckets: Buckets,
    /// Peers that require no label.
    rest: Vec<usize>,
    /// The selections that can select a pod of any namespace, by its address or without condition.
    everywhere: Vec<usize>,
}

/// A peer, and the selections that have it.
#[derive(Debug)]
struct Indexed {
    peer: PodPeer,
    of: Vec<usize>,
}

#[derive(Debug, Default)]
struct Buckets {
    pods: ByLabel,
    namespaces: ByLabel,
    own: HashMap<Arc<str>, Vec<usize>>,
}

/// Peers by a key, with any value or with one value.
#[derive(Debug, Default)]
struct ByLabel(HashMap<Arc<str>, OfKey>);

#[derive(Debug, Default)]
struct OfKey {
    any: Vec<usize>,
    values: HashMap<Arc<str>, Vec<usize>>,
}

/// Where a peer can be found: every pod that it selects has one of these.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum IndexKey<'a> {
    Pod(&'a Arc<str>, Option<&'a Arc<str>>),
    Namespace(&'a Arc<str>, Option<&'a Arc<str>>),
    Own(&'a Arc<str>),
}

impl Index {
    pub(in crate::policy) fn new(selections: Vec<Arc<Selection>>) -> Self {
        let mut index = Self::default();
        let mut known: HashMap<&PodPeer, usize> = HashMap::new();
        for (at, selection) in selections.iter().enumerate() {
            for peer in selection.pod_peers() {
                let next = index.peers.len();
                let number = *known.entry(peer).or_insert(next);
                match index.peers.get_mut(number) {
                    Some(indexed) => indexed.of.push(at),
                    None => index.peers.push(Indexed { peer: peer.clone(), of: vec![at] }),
                }
            }
            let anywhere = match &selection.chosen {
                Chosen::Pods(_) => false,
                Chosen::NamedPort { of: PortOwners::Any, .. } => true,
                Chosen::NamedPort { of: PortOwners::Of { blocks, .. }, .. } => !blocks.is_empty(),
            };
            if anywhere {
                index.everywhere.push(at);
            }
        }
        drop(known);
        let peers = index.peers.iter().map(|indexed| &indexed.peer);
        if index.peers.len() <= FEW_PEERS {
            index.rest = (0..index.peers.len()).collect();
        } else {
            for (number, places) in places(peers).into_iter().enumerate() {
                if places.is_empty() {
                    index.rest.push(number);
                }
                for place in places {
                    index.buckets.of(place).push(number);
                }
            }
        }
        index.selections = selections;
        index
    }

    pub(in crate::policy) fn selections(&self) -> &[Arc<Selection>] {
        &self.selections
    }

    /// The selections that can select a pod by its address or without condition, as numbers.
    pub(in crate::policy) fn everywhere(&self) -> &[usize] {
        &self.everywhere
    }

    /// The selections that have a peer that selects each of `pods`, as numbers, ascending.
    pub(in crate::policy) fn chosen(&self, cluster: &Cluster, pods: &[Arc<Pod>]) -> Vec<usize> {
        let Some(first) = pods.first() else { return Vec::new() };
        let namespace = cluster.namespace(&first.key.namespace);
        let candidates = [Some(&self.rest), self.buckets.own.get(&first.key.namespace)]
            .into_iter()
            .flatten()
            .chain(self.buckets.pods.at(&first.labels))
            .chain(namespace.into_iter().flat_map(|namespace| self.buckets.namespaces.at(&namespace.labels)));
        let peers = candidates.flatten().filter_map(|number| self.peers.get(*number));
        let all = peers.filter(|Indexed { peer, .. }| pods.iter().all(|pod| selects(cluster, peer, pod)));
        let mut selections: Vec<usize> = all.flat_map(|indexed| indexed.of.iter().copied()).collect();
        selections.sort_unstable();
        selections.dedup();
        selections
    }

    /// The same as [`Self::chosen`], as selections.
    pub(in crate::policy) fn chosen_selections(
        &self,
        cluster: &Cluster,
        pods: &[Arc<Pod>],
    ) -> BTreeSet<&Arc<Selection>> {
        let numbers = self.chosen(cluster, pods);
        numbers.into_iter().filter_map(|number| self.selections.get(number)).collect()
    }

    /// The pods that any of the selections can select, judged by their namespaces only.
    pub(in crate::policy) fn reach<'a>(&self, cluster: &'a Cluster) -> Vec<&'a Arc<Pod>> {
        let scopes: BTreeSet<&Scope> = self.peers.iter().map(|indexed| &indexed.peer.scope).collect();
        let all = |scope: &&Scope| matches!(scope, Scope::Matching(selector) if selector.is_everything());
        let pairs = scopes.len().saturating_mul(cluster.namespaces().count());
        if !self.everywhere.is_empty() || pairs > PAIRS || scopes.iter().any(all) {
            return cluster.pods().collect();
        }
        let mut namespaces: BTreeSet<&str> = BTreeSet::new();
        for scope in &scopes {
            match scope {
                Scope::Own(namespace) => drop(namespaces.insert(namespace)),
                Scope::Matching(selector) => {
                    let matching = cluster.namespaces().filter(|object| selector.matches(&object.labels));
                    namespaces.extend(matching.map(|object| &*object.name));
                }
            }
        }
        namespaces.into_iter().flat_map(|namespace| cluster.pods_in(namespace)).collect()
    }
}

impl Buckets {
    fn of(&mut self, place: IndexKey<'_>) -> &mut Vec<usize> {
        let (labels, key, value) = match place {
            IndexKey::Own(namespace) => return self.own.entry(namespace.clone()).or_default(),
            IndexKey::Pod(key, value) => (&mut self.pods, key, value),
            IndexKey::Namespace(key, value) => (&mut self.namespaces, key, value),
        };
        let OfKey { any, values } = labels.0.entry(key.clone()).or_default();
        match value {
            None => any,
            Some(value) => values.entry(value.clone()).or_default(),
        }
    }
}

impl ByLabel {
    /// The peers that require one of these labels.
    fn at<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a Vec<usize>> {
        labels
            .iter()
            .filter_map(|(key, value)| Some((self.0.get(key)?, value)))
            .flat_map(|(OfKey { any, values }, value)| [Some(any), values.get(value)].into_iter().flatten())
    }
}

/// How many comparisons with each pod of the cluster the peers of `selections` take; zero if these are few. It depends
/// on the selections alone.
pub(in crate::policy) fn comparisons<'a>(selections: impl IntoIterator<Item = &'a Arc<Selection>>) -> u64 {
    let peers = selections.into_iter().flat_map(|selection| selection.pod_peers());
    let peers: Vec<&PodPeer> = peers.collect::<BTreeSet<_>>().into_iter().collect();
    let mut total = 0_u64;
    let mut of_places: HashMap<IndexKey<'_>, u64> = HashMap::new();
    for (places, peer) in places(peers.iter().copied()).into_iter().zip(&peers) {
        let weight = weight(peer);
        if places.is_empty() {
            total = total.saturating_add(weight);
        }
        for place in places {
            let of_place = of_places.entry(place).or_default();
            *of_place = of_place.saturating_add(weight);
        }
    }
    let crowded = of_places.into_values().filter(|weight| *weight > CROWDED);
    total = crowded.fold(total, u64::saturating_add);
    if total > COMMON { total } else { 0 }
}

/// What a comparison with a peer costs: one, and more if its requirements have many values.
fn weight(peer: &PodPeer) -> u64 {
    let scope = match &peer.scope {
        Scope::Own(_) => None,
        Scope::Matching(selector) => Some(selector),
    };
    let requirements = scope.into_iter().chain([&peer.pods]).flat_map(LabelSelector::requirements);
    let values = |operator: &Operator| match operator {
        Operator::In(values) | Operator::NotIn(values) => values.len(),
        Operator::Exists | Operator::DoesNotExist => 0,
    };
    1 + count(requirements.map(|one| values(&one.operator)).sum::<usize>() / VALUES)
}

/// The places of each peer: by the requirement that it shares with the fewest others.
fn places<'a>(peers: impl Iterator<Item = &'a PodPeer>) -> Vec<Vec<IndexKey<'a>>> {
    let choices: Vec<Vec<Vec<IndexKey<'_>>>> = peers.map(choices).collect();
    let mut shared: HashMap<IndexKey<'_>, usize> = HashMap::new();
    for place in choices.iter().flatten().flatten() {
        *shared.entry(*place).or_default() += 1;
    }
    let most =
        |places: &Vec<IndexKey<'_>>| places.iter().filter_map(|place| shared.get(place)).max().copied();
    choices.into_iter().map(|choices| choices.into_iter().min_by_key(most).unwrap_or_default()).collect()
}

/// Where a peer can be found; each choice alone is enough. An `In` without values matches nothing and is no place.
fn choices(peer: &PodPeer) -> Vec<Vec<IndexKey<'_>>> {
    fn of<'a>(
        selector: &'a LabelSelector,
        place: impl Fn(&'a Arc<str>, Option<&'a Arc<str>>) -> IndexKey<'a>,
    ) -> Vec<Vec<IndexKey<'a>>> {
        let requirements = selector.requirements().iter();
        let choices = requirements.filter_map(|one| match &one.operator {
            Operator::In(values) if values.is_empty() => None,
            Operator::In(values) if values.len() <= FEW_VALUES => {
                Some(values.iter().map(|value| place(&one.key, Some(value))).collect())
            }
            Operator::In(_) | Operator::Exists => Some(vec![place(&one.key, None)]),
            Operator::NotIn(_) | Operator::DoesNotExist => None,
        });
        choices.collect()
    }
    let mut choices = of(&peer.pods, IndexKey::Pod);
    match &peer.scope {
        Scope::Own(namespace) => choices.push(vec![IndexKey::Own(namespace)]),
        Scope::Matching(selector) => choices.extend(of(selector, IndexKey::Namespace)),
    }
    choices
}

#[cfg(test)]
mod tests;
