//! How much memory policies take, and which namespaces' rules are dropped because they take too much.
//!
//! Every node holds the policies of the whole cluster, since any pod may be scheduled to it. So a tenant who may write
//! policies in one namespace could take the memory of every node, with policies that select none of its pods. The rules
//! of a namespace whose policies take too much are dropped: its policies isolate, and allow nothing. Which namespaces
//! these are depends on the size of all policies. Dropped rules that fit again need a relist.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::kinds::Key;
use crate::model::{MemoryExcess, NetworkPolicy};

/// How much memory policies may take, in bytes, by the estimate of [`NetworkPolicy::bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    /// For one namespace.
    pub namespace: u64,
    /// For all namespaces together.
    pub all: u64,
}

impl Default for MemoryLimits {
    /// Fits, with everything else that a node needs, in the 512 MiB of the manifest. During a list, the policies from
    /// before it are in memory as well.
    fn default() -> Self {
        Self { namespace: 32 << 20, all: 64 << 20 }
    }
}

/// The memory use of a cluster's policies.
#[derive(Debug)]
pub(super) struct Memory {
    limits: MemoryLimits,
    policies: HashMap<Key, PolicyMemory>,
    namespaces: BTreeMap<Arc<str>, Usage>,
    /// The namespaces whose rules are dropped.
    closed: BTreeMap<Arc<str>, MemoryExcess>,
    /// Those of them that were closed since [`Self::take_new`] was last called.
    new: Vec<Arc<str>>,
    /// The memory use of the policies of all other namespaces.
    open: u64,
    /// How many policies lack their rules.
    without_rules: usize,
    /// During a list, a closed namespace stays closed: its total is not known yet.
    is_listing: bool,
}

/// A policy.
#[derive(Clone, Copy, Debug)]
struct PolicyMemory {
    /// Including its rules, whether or not they were dropped.
    bytes: u64,
    has_rules: bool,
}

/// The memory use of one namespace's policies.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    bytes: u64,
    policies: usize,
    without_rules: usize,
}

impl Memory {
    pub(super) fn new(limits: MemoryLimits) -> Self {
        Self {
            limits,
            policies: HashMap::new(),
            namespaces: BTreeMap::new(),
            closed: BTreeMap::new(),
            new: Vec::new(),
            open: 0,
            without_rules: 0,
            is_listing: false,
        }
    }

    /// The state for a list that begins. What is closed now is closed from the first object on.
    pub(super) fn for_list(&self) -> Self {
        Self { closed: self.closed.clone(), is_listing: true, ..Self::new(self.limits) }
    }

    /// The list is complete: what is closed depends on what it has. Returns the namespaces that were not closed
    /// `before`, and those of which the model may still hold rules, because it keeps a version from before the list.
    pub(super) fn end_list(&mut self, before: &Self) -> Vec<(Arc<str>, MemoryExcess)> {
        self.is_listing = false;
        self.decide();
        self.new.clear();
        let closed = self.closed.iter().map(|(namespace, excess)| (namespace.clone(), *excess));
        let closed: Vec<_> = closed
            .filter(|(namespace, _)| {
                let has_rules = |usage: &Usage| usage.without_rules < usage.policies;
                !before.closed.contains_key(namespace)
                    || self.namespaces.get(namespace).is_some_and(has_rules)
            })
            .collect();
        for (namespace, _) in &closed {
            self.drop_all(namespace);
        }
        closed
    }

    /// Adds a policy, and returns what is kept of it.
    pub(super) fn set(&mut self, key: &Key, policy: NetworkPolicy) -> NetworkPolicy {
        self.replace(key, Some(PolicyMemory { bytes: policy.bytes(), has_rules: true }));
        let Some(excess) = self.closed.get(&policy.key.namespace).copied() else { return policy };
        self.drop_rules(key);
        policy.without_rules(excess)
    }

    /// The model keeps the version of a policy that `before` knows. If its rules were dropped then, no list brings them
    /// back, so they do not count as missing.
    pub(super) fn keep(&mut self, key: &Key, before: &Self) {
        let Some(PolicyMemory { bytes, .. }) = before.policies.get(key) else { return };
        if !self.policies.contains_key(key) {
            self.replace(key, Some(PolicyMemory { bytes: *bytes, has_rules: true }));
        }
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.replace(key, None);
    }

    /// Why a namespace is closed, if it is.
    pub(super) fn excess(&self, namespace: &str) -> Option<MemoryExcess> {
        self.closed.get(namespace).copied()
    }

    /// Whether a policy has its rules; `None` if it is not known.
    pub(super) fn has_rules(&self, key: &Key) -> Option<bool> {
        self.policies.get(key).map(|entry| entry.has_rules)
    }

    /// The namespaces that were closed since the last call. The caller must drop the rules of their policies.
    pub(super) fn take_new(&mut self) -> Vec<(Arc<str>, MemoryExcess)> {
        let new = std::mem::take(&mut self.new);
        for namespace in &new {
            self.drop_all(namespace);
        }
        let excess = |name: Arc<str>| self.closed.get(&name).map(|excess| (name.clone(), *excess));
        new.into_iter().filter_map(excess).collect()
    }

    /// Whether only policies of closed namespaces lack their rules.
    pub(super) fn is_settled(&self) -> bool {
        let lacks = |(namespace, usage): (&Arc<str>, &Usage)| {
            usage.without_rules > 0 && !self.closed.contains_key(namespace)
        };
        self.without_rules == 0 || !self.namespaces.iter().any(lacks)
    }

    /// Replaces the entry of a policy, or removes it.
    fn replace(&mut self, key: &Key, entry: Option<PolicyMemory>) {
        // Every policy has a namespace.
        let Some(namespace) = &key.0 else { return };
        let before = match entry {
            Some(entry) => self.policies.insert(key.clone(), entry),
            None => self.policies.remove(key),
        };
        let usage = self.namespaces.entry(namespace.clone()).or_default();
        let is_closed = self.closed.contains_key(namespace);
        if let Some(PolicyMemory { bytes, has_rules }) = before {
            usage.bytes -= bytes;
            usage.policies -= 1;
            usage.without_rules -= usize::from(!has_rules);
            self.without_rules -= usize::from(!has_rules);
            self.open -= if is_closed { 0 } else { bytes };
        }
        if let Some(PolicyMemory { bytes, has_rules }) = entry {
            usage.bytes += bytes;
            usage.policies += 1;
            usage.without_rules += usize::from(!has_rules);
            self.without_rules += usize::from(!has_rules);
            self.open += if is_closed { 0 } else { bytes };
        }
        let is_over = !is_closed && usage.bytes > self.limits.namespace || self.open > self.limits.all;
        if usage.policies == 0 {
            self.namespaces.remove(namespace);
        }
        // Any change may reopen a closed namespace, but not during a list.
        if is_over || !self.is_listing && !self.closed.is_empty() {
            self.decide();
        }
    }

    fn drop_rules(&mut self, key: &Key) {
        let Some(entry) = self.policies.get_mut(key).filter(|entry| entry.has_rules) else { return };
        entry.has_rules = false;
        self.without_rules += 1;
        if let Some(usage) = key.0.as_ref().and_then(|namespace| self.namespaces.get_mut(namespace)) {
            usage.without_rules += 1;
        }
    }

    fn drop_all(&mut self, namespace: &Arc<str>) {
        let of_namespace = |key: &&Key| key.0.as_ref() == Some(namespace);
        let keys: Vec<Key> = self.policies.keys().filter(of_namespace).cloned().collect();
        for key in keys {
            self.drop_rules(&key);
        }
    }

    /// Decides which namespaces are closed: those over their own limit; and if the others together are over the limit
    /// of all, the largest of them, and of two equally large ones the first by name.
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
        self.open = open;
        self.new.retain(|namespace| closed.contains_key(namespace) || self.is_listing);
        self.new.extend(closed.keys().filter(|name| !self.closed.contains_key(*name)).cloned());
        if self.is_listing {
            self.closed.extend(closed);
        } else {
            self.closed = closed;
        }
    }
}

#[cfg(test)]
mod tests;
