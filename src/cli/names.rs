//! What people call a set of pods and addresses: by workload, by namespace, or all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::terminal::Printable;
use crate::model::{Family, ObjectKey, Workload};

/// Up to this many pods of a workload are named, if not all of it is meant.
const FEW_PODS: usize = 3;

/// Workloads with one name in at least this many namespaces are named together.
const MANY_NAMESPACES: usize = 3;

/// An end, as far as its name goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NamedEnd {
    /// A pod.
    Pod(ObjectKey, Option<Arc<Workload>>),
    /// The addresses outside of the cluster that are in this network and in no smaller one that a policy names.
    Network(IpNet),
    /// One address.
    Address(IpAddr),
}

/// A pod without a workload, or all pods of one.
type Owner = (Arc<str>, Arc<str>, Option<Arc<str>>);

/// The names of many ends.
pub(super) struct Names {
    ends: Vec<NamedEnd>,
    owners: BTreeMap<Owner, BTreeSet<usize>>,
    namespaces: BTreeMap<Arc<str>, BTreeSet<usize>>,
    pods: BTreeSet<usize>,
    outside: BTreeSet<usize>,
}

impl Names {
    /// For these ends, which are called by their index.
    pub(super) fn new(ends: Vec<NamedEnd>) -> Self {
        let mut names = Self {
            ends: Vec::new(),
            owners: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            pods: BTreeSet::new(),
            outside: BTreeSet::new(),
        };
        for (at, end) in ends.iter().enumerate() {
            match end {
                NamedEnd::Pod(key, workload) => {
                    names.owners.entry(owner(key, workload.as_deref())).or_default().insert(at);
                    names.namespaces.entry(key.namespace.clone()).or_default().insert(at);
                    names.pods.insert(at);
                }
                NamedEnd::Network(_) | NamedEnd::Address(_) => {
                    names.outside.insert(at);
                }
            }
        }
        names.ends = ends;
        names
    }

    /// How many workloads there are, and pods without one.
    pub(super) fn workloads(&self) -> usize {
        self.owners.len()
    }

    /// How many pods there are.
    pub(super) fn pods(&self) -> usize {
        self.count(&self.pods)
    }

    /// How many namespaces have pods.
    pub(super) fn namespaces(&self) -> usize {
        self.namespaces.len()
    }

    /// What these ends are called, as one side of flows whose other side is `others`. An end has no flow to itself: if
    /// `others` is a single one, it is not named, and "every pod" is all but that.
    pub(super) fn describe(&self, ends: &[usize], others: &[usize]) -> Vec<String> {
        let (mut left, itself) = without_itself(ends, others);
        let mut parts = Vec::new();
        if let Some(every) = self.every(&self.pods, &left, itself) {
            parts.push(format!("{every} pod"));
            left.retain(|at| !self.pods.contains(at));
        }
        let mut whole: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (namespace, pods) in &self.namespaces {
            if let Some(every) = self.every(pods, &left, itself) {
                whole.entry(every).or_default().push(namespace);
                left.retain(|at| !pods.contains(at));
            }
        }
        parts
            .extend(whole.iter().map(|(every, namespaces)| format!("{every} pod in {}", listed(namespaces))));
        let mut same: BTreeMap<(&str, Option<&str>), Vec<&Owner>> = BTreeMap::new();
        for (owner @ (_, name, kind), pods) in &self.owners {
            let present: BTreeSet<usize> = pods.intersection(&left).copied().collect();
            if present.len() == pods.len() {
                same.entry((name, kind.as_deref())).or_default().push(owner);
            } else if (1..=FEW_PODS).contains(&present.len()) {
                parts.extend(self.single(&present));
            } else if !present.is_empty() {
                parts.push(format!("{} of {} pods of {}", present.len(), pods.len(), self.title(owner)));
            }
        }
        for ((name, _), owners) in same {
            if owners.len() >= MANY_NAMESPACES {
                let namespaces: Vec<&str> = owners.iter().map(|(namespace, ..)| &**namespace).collect();
                parts.push(format!("{} in {}", Printable(name), listed(&namespaces)));
            } else {
                parts.extend(owners.into_iter().map(|owner| self.title(owner)));
            }
        }
        parts.extend(self.describe_outside(&left));
        parts
    }

    /// One name for all of these ends, if there is one.
    pub(super) fn short(&self, ends: &[usize]) -> Option<String> {
        let of: BTreeSet<usize> = ends.iter().copied().collect();
        if let [only] = ends {
            return self.short_single(*only);
        }
        let NamedEnd::Pod(key, workload) = self.ends.get(*ends.first()?)? else { return None };
        let owner = owner(key, workload.as_deref());
        let pods = self.owners.get(&owner)?;
        if of.is_subset(pods) {
            let of = if of.len() == pods.len() { String::new() } else { format!("{} of ", of.len()) };
            return Some(format!("{} ({of}{} pods)", self.title(&owner), pods.len()));
        }
        let is_namespace = self.namespaces.get(&key.namespace) == Some(&of);
        is_namespace.then(|| format!("{}/* ({} pods)", Printable(&key.namespace), of.len()))
    }

    /// The workload, if a pod is all of it; its own name else.
    fn short_single(&self, at: usize) -> Option<String> {
        if let NamedEnd::Pod(key, workload) = self.ends.get(at)? {
            let owner = owner(key, workload.as_deref());
            if self.owners.get(&owner).is_some_and(|pods| pods.len() == 1) {
                return Some(self.title(&owner));
            }
        }
        self.name(at)
    }

    /// What [`Self::describe`] says by workload, pod and network, for scripts: complete, and without counts.
    pub(super) fn list(&self, ends: &[usize], others: &[usize]) -> Vec<String> {
        let (left, _) = without_itself(ends, others);
        let mut parts = Vec::new();
        for (owner, pods) in &self.owners {
            let present: BTreeSet<usize> = pods.intersection(&left).copied().collect();
            if present.len() == pods.len() {
                parts.push(self.title(owner));
            } else {
                parts.extend(self.single(&present));
            }
        }
        parts.extend(self.outside.intersection(&left).filter_map(|at| self.name(*at)));
        parts
    }

    /// The pods of each workload, and those without one, by the name that [`Self::list`] uses.
    pub(super) fn by_workload(&self) -> BTreeMap<String, Vec<String>> {
        self.owners.iter().map(|(owner, pods)| (self.title(owner), self.single(pods))).collect()
    }

    /// The name of one end.
    pub(super) fn name(&self, at: usize) -> Option<String> {
        Some(match self.ends.get(at)? {
            NamedEnd::Pod(key, _) => Printable(&key.to_string()).to_string(),
            NamedEnd::Network(network) => format!("ip:{network}"),
            NamedEnd::Address(address) => format!("ip:{address}"),
        })
    }

    fn describe_outside(&self, left: &BTreeSet<usize>) -> Vec<String> {
        let present: Vec<&NamedEnd> =
            self.outside.intersection(left).filter_map(|at| self.ends.get(*at)).collect();
        let internet = |family: Family| {
            present.iter().any(|end| {
                matches!(end, NamedEnd::Network(net) if net.prefix_len() == 0 && Family::of_net(*net) == family)
            })
        };
        let others: Vec<String> = present
            .iter()
            .filter_map(|end| match end {
                NamedEnd::Network(network) => (network.prefix_len() > 0).then(|| network.to_string()),
                NamedEnd::Address(address) => Some(format!("ip:{address}")),
                NamedEnd::Pod(..) => None,
            })
            .collect();
        if present.len() == self.outside.len()
            && others.len() > 1
            && (internet(Family::V4) || internet(Family::V6))
        {
            return vec!["every address outside".to_owned()];
        }
        let has_both = {
            let is = |family: Family| {
                self.ends.iter().any(
                    |end| matches!(end, NamedEnd::Network(net) if net.prefix_len() == 0 && Family::of_net(*net) == family),
                )
            };
            is(Family::V4) && is(Family::V6)
        };
        let internet = match (internet(Family::V4), internet(Family::V6)) {
            (true, true) => Some("internet".to_owned()),
            (false, false) => None,
            (is_v4, _) if has_both => {
                Some(format!("internet ({})", if is_v4 { Family::V4 } else { Family::V6 }))
            }
            _ => Some("internet".to_owned()),
        };
        internet.into_iter().chain(others).collect()
    }

    /// Pods may be counted twice: a pod that stands for several of the other side.
    fn count(&self, pods: &BTreeSet<usize>) -> usize {
        self.single(pods).len()
    }

    fn single(&self, pods: &BTreeSet<usize>) -> Vec<String> {
        let names: BTreeSet<String> = pods.iter().filter_map(|at| self.name(*at)).collect();
        names.into_iter().collect()
    }

    /// `every`, or `every other` if only the end itself is missing, if `left` has all of these pods, and of more than
    /// one workload.
    fn every(
        &self,
        pods: &BTreeSet<usize>,
        left: &BTreeSet<usize>,
        itself: Option<usize>,
    ) -> Option<&'static str> {
        let missing: Vec<usize> = pods.difference(left).copied().collect();
        let mut owners = pods.intersection(left).filter_map(|at| match self.ends.get(*at)? {
            NamedEnd::Pod(key, workload) => Some(owner(key, workload.as_deref())),
            NamedEnd::Network(_) | NamedEnd::Address(_) => None,
        });
        let first = owners.next()?;
        if !owners.any(|owner| owner != first) {
            return None;
        }
        match (missing.as_slice(), itself) {
            ([], _) => Some("every"),
            ([missing], Some(itself)) if *missing == itself => Some("every other"),
            _ => None,
        }
    }

    /// `ns/name`; with the kind, if something else has the same name.
    fn title(&self, owner: &Owner) -> String {
        let (namespace, name, kind) = owner;
        let first = (namespace.clone(), name.clone(), None);
        let same =
            self.owners.range(first..).take_while(|((of, known, _), _)| of == namespace && known == name);
        let text = format!("{namespace}/{name}");
        let text = match kind {
            Some(kind) if same.take(2).count() > 1 => format!("{text} ({kind})"),
            _ => text,
        };
        Printable(&text).to_string()
    }
}

/// `a`, `a and b`, `a, b and c`.
fn listed(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| Printable(name).to_string()).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

fn owner(key: &ObjectKey, workload: Option<&Workload>) -> Owner {
    match workload {
        Some(workload) => (key.namespace.clone(), workload.name.clone(), Some(workload.kind.clone())),
        None => (key.namespace.clone(), key.name.clone(), None),
    }
}

/// The ends, without that of a single one on the other side; and which that is.
fn without_itself(ends: &[usize], others: &[usize]) -> (BTreeSet<usize>, Option<usize>) {
    let mut ends: BTreeSet<usize> = ends.iter().copied().collect();
    match others {
        [itself] => {
            ends.remove(itself);
            (ends, Some(*itself))
        }
        _ => (ends, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, workload: Option<&str>) -> NamedEnd {
        let workload = workload.map(|name| Workload { kind: "Deployment".into(), name: name.into() });
        NamedEnd::Pod(name.parse().unwrap(), workload.map(Arc::new))
    }

    fn names() -> Names {
        Names::new(vec![
            pod("blog/front", None),
            pod("shop/api", None),
            pod("shop/web-1", Some("web")),
            pod("shop/web-2", Some("web")),
            NamedEnd::Network("0.0.0.0/0".parse().unwrap()),
            NamedEnd::Network("10.0.0.0/8".parse().unwrap()),
            NamedEnd::Network("::/0".parse().unwrap()),
        ])
    }

    #[test]
    fn largest_names_that_fit_are_used() {
        let describe = |ends: &[usize], others: &[usize]| names().describe(ends, others).join(", ");
        assert_eq!(describe(&[0, 1, 2, 3, 4, 6], &[]), "every pod, internet");
        assert_eq!(describe(&[1, 2, 3], &[]), "every pod in shop");
        assert_eq!(describe(&[2, 3], &[]), "shop/web");
        assert_eq!(describe(&[0, 3], &[]), "shop/web-2, blog/front");
        assert_eq!(describe(&[4, 5], &[]), "internet (IPv4), 10.0.0.0/8");
    }

    #[test]
    fn single_end_on_the_other_side_is_not_named() {
        let describe = |ends: &[usize], others: &[usize]| names().describe(ends, others).join(", ");
        assert_eq!(describe(&[0, 2, 3], &[1]), "every other pod");
        assert_eq!(describe(&[0, 1, 2, 3], &[1]), "every other pod");
        assert_eq!(describe(&[2, 3], &[1]), "shop/web");
        assert_eq!(describe(&[1, 3], &[2]), "every other pod in shop");
        assert_eq!(describe(&[0, 1], &[1]), "blog/front");
        assert_eq!(names().list(&[0, 1, 2, 3, 4], &[1]), ["blog/front", "shop/web", "ip:0.0.0.0/0"]);
    }

    #[test]
    fn workloads_of_one_name_in_many_namespaces_are_named_together() {
        let pods = ["a/web", "a/db", "b/web", "b/db", "c/web", "c/db", "d/web"];
        let names = Names::new(pods.map(|name| pod(name, None)).into());
        assert_eq!(names.describe(&[0, 2, 4], &[]), ["web in a, b and c"]);
        assert_eq!(names.describe(&[0, 2, 3], &[]), ["every pod in b", "a/web"]);
        assert_eq!(names.describe(&[0, 1, 2, 3, 6], &[]), ["every pod in a and b", "d/web"]);
    }

    #[test]
    fn one_name_for_all_ends_is_that_of_their_workload_or_namespace() {
        let short = |ends: &[usize]| names().short(ends);
        assert_eq!(short(&[2, 3]).as_deref(), Some("shop/web (2 pods)"));
        assert_eq!(short(&[2]).as_deref(), Some("shop/web-1"));
        assert_eq!(short(&[0]).as_deref(), Some("blog/front"));
        assert_eq!(short(&[1, 2, 3]).as_deref(), Some("shop/* (3 pods)"));
        assert_eq!(short(&[1, 2]), None);
        assert_eq!(short(&[5]).as_deref(), Some("ip:10.0.0.0/8"));
    }

    #[test]
    fn two_workloads_with_one_name_are_told_apart() {
        let names = Names::new(vec![pod("shop/web", None), pod("shop/web-1", Some("web"))]);
        assert_eq!(names.list(&[0, 1], &[]), ["shop/web", "shop/web (Deployment)"]);
    }
}
