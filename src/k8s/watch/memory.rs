//! How much memory policies take, and whose rules are not kept because they take too much.
//!
//! Every node holds the policies of the whole cluster, since any pod may come to it. So whoever may write policies in one
//! namespace could take the memory of every node, with policies that select none of its pods. The rules of a namespace
//! whose policies take too much are not kept: its policies isolate, and allow nothing. Which namespaces these are follows
//! from what all policies take. When that changes, the policies are listed again, because what was dropped is not there
//! to be taken up again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::kinds::Key;
use crate::model::{MemoryExcess, NetworkPolicy};

/// How much memory policies may take, in bytes, by the estimate of [`NetworkPolicy::bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Those of one namespace.
    pub namespace: u64,
    /// Those of all namespaces together.
    pub all: u64,
}

impl Default for MemoryLimits {
    /// Together with what else a node needs within the 512 MiB of the manifest.
    fn default() -> Self {
        Self { namespace: 32 << 20, all: 96 << 20 }
    }
}

/// What the policies of a cluster take.
#[derive(Debug)]
pub(super) struct Memory {
    limits: MemoryLimits,
    policies: HashMap<Key, Entry>,
    namespaces: BTreeMap<Arc<str>, Usage>,
    total: u64,
    /// The namespaces whose rules are not kept.
    closed: BTreeMap<Arc<str>, MemoryExcess>,
    /// Those of them that were closed since this was last asked for, while a list comes.
    new: Vec<Arc<str>>,
    /// While a list comes, a namespace that was closed stays so: what it will take in all is not known yet.
    is_listing: bool,
}

/// A policy.
#[derive(Clone, Copy, Debug)]
struct Entry {
    bytes: u64,
    /// Whether its rules were kept.
    has_rules: bool,
}

/// What the policies of one namespace take.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    /// With their rules, whether or not these are kept.
    bytes: u64,
    /// Policies with their rules, and without them.
    with_rules: usize,
    without_rules: usize,
}

impl Memory {
    pub(super) fn new(limits: MemoryLimits) -> Self {
        Self {
            limits,
            policies: HashMap::new(),
            namespaces: BTreeMap::new(),
            total: 0,
            closed: BTreeMap::new(),
            new: Vec::new(),
            is_listing: false,
        }
    }

    /// One for a list that begins. What is closed now is closed from the first object on.
    pub(super) fn for_list(&self) -> Self {
        Self { closed: self.closed.clone(), is_listing: true, ..Self::new(self.limits) }
    }

    /// The list is complete: what is closed follows from what it has.
    pub(super) fn end_list(mut self) -> Self {
        self.is_listing = false;
        self.decide();
        self
    }

    /// Takes in a policy, and returns what is kept of it.
    pub(super) fn set(&mut self, key: &Key, policy: NetworkPolicy) -> NetworkPolicy {
        let namespace = policy.key.namespace.clone();
        self.replace(key, Some(Entry { bytes: policy.bytes(), has_rules: true }));
        let Some(excess) = self.closed.get(&namespace).copied() else { return policy };
        self.drop_rules(key, &namespace);
        policy.without_rules(excess)
    }

    /// Takes over what `before` has of a policy, which stays as it was. Listing it again would not change that, so it
    /// counts as it has to be.
    pub(super) fn keep(&mut self, key: &Key, before: &Self) {
        let Some(Entry { bytes, .. }) = before.policies.get(key) else { return };
        let is_closed = key.0.as_ref().is_some_and(|namespace| self.closed.contains_key(namespace));
        self.replace(key, Some(Entry { bytes: *bytes, has_rules: !is_closed }));
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.replace(key, None);
    }

    /// The namespaces that were closed while a list comes. The rules of all their policies so far have to be dropped.
    pub(super) fn take_new(&mut self) -> Vec<(Arc<str>, MemoryExcess)> {
        let new = std::mem::take(&mut self.new);
        for namespace in &new {
            let of_namespace = |key: &&Key| key.0.as_ref() == Some(namespace);
            let keys: Vec<Key> = self.policies.keys().filter(of_namespace).cloned().collect();
            for key in keys {
                self.drop_rules(&key, namespace);
            }
        }
        new.into_iter()
            .filter_map(|name| self.closed.get(&name).map(|excess| (name.clone(), *excess)))
            .collect()
    }

    /// Whether exactly those policies are without their rules that have to be.
    pub(super) fn is_settled(&self) -> bool {
        self.namespaces.iter().all(|(namespace, usage)| {
            if self.closed.contains_key(namespace) { usage.with_rules == 0 } else { usage.without_rules == 0 }
        })
    }

    fn replace(&mut self, key: &Key, entry: Option<Entry>) {
        // Every policy has a namespace.
        let Some(namespace) = &key.0 else { return };
        let before = match entry {
            Some(entry) => self.policies.insert(key.clone(), entry),
            None => self.policies.remove(key),
        };
        let usage = self.namespaces.entry(namespace.clone()).or_default();
        if let Some(before) = before {
            self.total -= before.bytes;
            usage.bytes -= before.bytes;
            *usage.count(before.has_rules) -= 1;
        }
        if let Some(entry) = entry {
            self.total += entry.bytes;
            usage.bytes += entry.bytes;
            *usage.count(entry.has_rules) += 1;
        }
        let is_within = usage.bytes <= self.limits.namespace && self.total <= self.limits.all;
        if usage.with_rules + usage.without_rules == 0 {
            self.namespaces.remove(namespace);
        }
        if !is_within || !self.closed.is_empty() {
            self.decide();
        }
    }

    fn drop_rules(&mut self, key: &Key, namespace: &Arc<str>) {
        let Some(entry) = self.policies.get_mut(key).filter(|entry| entry.has_rules) else { return };
        entry.has_rules = false;
        if let Some(usage) = self.namespaces.get_mut(namespace) {
            usage.with_rules -= 1;
            usage.without_rules += 1;
        }
    }

    /// Decides which namespaces are closed: those over their own limit; and if the others together are over the limit
    /// of all, the largest of them, of two of one size the one that comes first by name.
    fn decide(&mut self) {
        let MemoryLimits { namespace: limit, all } = self.limits;
        let mut closed = BTreeMap::new();
        let mut rest: Vec<(u64, &Arc<str>)> = Vec::new();
        for (namespace, usage) in &self.namespaces {
            if usage.bytes > limit {
                let excess = MemoryExcess { bytes: usage.bytes, budget: limit, is_of_all: false };
                closed.insert(namespace.clone(), excess);
            } else if !self.is_listing || !self.closed.contains_key(namespace) {
                rest.push((usage.bytes, namespace));
            }
        }
        let mut open: u64 = rest.iter().map(|(bytes, _)| bytes).sum();
        if open > all {
            rest.sort_by(|(a, x), (b, y)| b.cmp(a).then(x.cmp(y)));
            for (bytes, namespace) in rest {
                if open <= all {
                    break;
                }
                open -= bytes;
                closed.insert(namespace.clone(), MemoryExcess { bytes, budget: all, is_of_all: true });
            }
        }
        if self.is_listing {
            for (namespace, excess) in closed {
                if self.closed.insert(namespace.clone(), excess).is_none() {
                    self.new.push(namespace);
                }
            }
        } else {
            self.closed = closed;
        }
    }
}

impl Usage {
    fn count(&mut self, has_rules: bool) -> &mut usize {
        if has_rules { &mut self.with_rules } else { &mut self.without_rules }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        k8s::{
            types,
            watch::{
                inventory::{Inventory, Told},
                received::Received,
            },
        },
        model::{Change, Standing},
    };

    type Policies = Inventory<types::NetworkPolicy>;

    /// A policy whose rules take about so many KiB.
    fn policy(key: &str, kib: usize) -> Received<types::NetworkPolicy> {
        let (namespace, name) = key.split_once('/').unwrap();
        let except: Vec<Value> =
            (0..kib * 54).map(|at| json!(format!("10.{}.{}.0/24", at / 256, at % 256))).collect();
        let peer = json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": except } });
        let spec = json!({ "podSelector": {}, "ingress": [{ "from": [peer] }] });
        let object = json!({ "metadata": { "namespace": namespace, "name": name }, "spec": spec });
        serde_json::from_str(&object.to_string()).unwrap()
    }

    /// 100 KiB for a namespace, 250 KiB for all.
    fn policies() -> Policies {
        Inventory::bounded(MemoryLimits { namespace: 100 << 10, all: 250 << 10 })
    }

    fn list(policies: &mut Policies, all: &[(&str, usize)]) -> Told {
        policies.begin_list();
        for (key, kib) in all {
            policies.set(&policy(key, *kib));
        }
        policies.end_list()
    }

    /// The policies of which only the isolation is kept, and whether the limit is that of all namespaces.
    fn without_rules(told: &Told) -> Vec<(String, bool)> {
        let policies = told.changes.iter().filter_map(|change| match change {
            Change::SetPolicy(policy) => Some(policy),
            _ => None,
        });
        let closed = policies.filter_map(|policy| {
            let Standing::TooLarge(excess) = policy.standing else {
                assert_eq!(policy.ingress.as_ref().unwrap().len(), 1);
                return None;
            };
            assert_eq!((policy.ingress.as_deref(), policy.egress.as_deref()), (Some(&[][..]), None));
            Some((policy.key.to_string(), excess.is_of_all))
        });
        closed.collect()
    }

    fn closed(keys: &[&str], is_of_all: bool) -> Vec<(String, bool)> {
        keys.iter().map(|key| ((*key).to_owned(), is_of_all)).collect()
    }

    #[test]
    fn of_a_namespace_over_its_limit_no_rules_are_kept_in_whatever_order_its_policies_come() {
        let all = [("evil/a", 40), ("shop/a", 40), ("evil/b", 40), ("evil/c", 40)];
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
            let told = list(&mut policies(), &order.map(|at| all[at]));
            let mut found = without_rules(&told);
            found.sort();
            assert_eq!(found, closed(&["evil/a", "evil/b", "evil/c"], false), "{order:?}");
            assert!(!told.relist);
        }
    }

    #[test]
    fn of_namespaces_that_take_too_much_together_the_largest_close() {
        let all = [("a/p", 90), ("b/p", 80), ("c/p", 95), ("d/p", 1)];
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
            let mut policies = policies();
            let mut told = list(&mut policies, &order.map(|at| all[at]));
            // While the list came, another one may have been the largest: the next list settles it.
            if told.relist {
                told = list(&mut policies, &order.map(|at| all[at]));
            }
            assert_eq!(without_rules(&told), closed(&["c/p"], true), "{order:?}");
            assert!(!told.relist, "{order:?}");
        }
    }

    #[test]
    fn what_exceeds_the_limit_is_dropped_at_once_and_the_rest_by_another_list() {
        let mut policies = policies();
        list(&mut policies, &[("evil/a", 40), ("evil/b", 40)]);
        let told = policies.set(&policy("evil/c", 40));
        assert_eq!(without_rules(&told), closed(&["evil/c"], false));
        assert!(told.relist, "the rules of the others are still there");
        let told = list(&mut policies, &[("evil/a", 40), ("evil/b", 40), ("evil/c", 40)]);
        assert_eq!(without_rules(&told), closed(&["evil/a", "evil/b", "evil/c"], false));
        assert!(!told.relist);
    }

    #[test]
    fn a_namespace_that_is_within_its_limit_again_gets_its_rules_by_another_list() {
        let mut policies = policies();
        list(&mut policies, &[("evil/a", 60), ("evil/b", 60)]);
        let told = policies.set(&policy("evil/b", 10));
        assert_eq!(without_rules(&told), []);
        assert!(told.relist, "those of the other one are not there");
        let told = list(&mut policies, &[("evil/a", 60), ("evil/b", 10)]);
        assert_eq!((without_rules(&told), told.relist), (Vec::new(), false));
        list(&mut policies, &[("evil/a", 60), ("evil/b", 60)]);
        assert!(policies.remove(&policy("evil/a", 0)).relist);
    }

    #[test]
    fn what_is_kept_in_place_of_an_unreadable_version_asks_for_no_further_list() {
        let mut policies = policies();
        list(&mut policies, &[("evil/a", 40)]);
        let bad = json!({ "metadata": { "namespace": "evil", "name": "a" }, "spec": { "podSelector": {},
            "ingress": [{ "from": [{ "ipBlock": { "cidr": "10.0.0.0/33" } }] }] } });
        let bad: Received<types::NetworkPolicy> = serde_json::from_str(&bad.to_string()).unwrap();
        policies.begin_list();
        policies.set(&bad);
        policies.set(&policy("evil/b", 80));
        let told = policies.end_list();
        assert_eq!(without_rules(&told), closed(&["evil/b"], false));
        assert!(!told.relist);
    }

    #[test]
    fn without_limits_everything_is_kept() {
        let mut policies = Policies::new();
        let told = list(&mut policies, &[("evil/a", 400), ("evil/b", 400)]);
        assert_eq!((without_rules(&told), told.relist), (Vec::new(), false));
    }
}
