//! The known objects, and the effect of a change of one of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{Labels, MemoryExcess, NetworkPolicy, ObjectKey, Pod};

/// The part of a namespace that matters to policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels, `kubernetes.io/metadata.name` included.
    pub labels: Labels,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, the same as in `spec.nodeName` of its pods.
    pub name: Arc<str>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// The networks of its pods' addresses, as far as Kubernetes assigns them.
    pub pod_cidrs: Vec<IpNet>,
}

/// One change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds or replaces a pod.
    SetPod(Pod),
    /// Removes a pod.
    RemovePod(ObjectKey),
    /// Adds or replaces a namespace.
    SetNamespace(Namespace),
    /// Removes a namespace. The pods and policies in it have their own removals.
    RemoveNamespace(Arc<str>),
    /// Adds or replaces a policy.
    SetPolicy(NetworkPolicy),
    /// Removes a policy.
    RemovePolicy(ObjectKey),
    /// Drops the rules of all policies of a namespace, which take too much memory: they isolate.
    DropRules(Arc<str>, MemoryExcess),
    /// Adds or replaces a node.
    SetNode(Node),
    /// Removes a node.
    RemoveNode(Arc<str>),
}

/// The effect of a [`Change`]: the object before and after.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// A pod, and the addresses whose claimants changed.
    Pod {
        /// The pod before.
        before: Option<Arc<Pod>>,
        /// The pod now.
        after: Option<Arc<Pod>>,
        /// Addresses that the pod claims and did not claim before, or vice versa.
        handovers: Vec<Handover>,
    },
    /// A namespace.
    Namespace {
        /// The namespace before.
        before: Option<Arc<Namespace>>,
        /// The namespace now.
        after: Option<Arc<Namespace>>,
    },
    /// A policy.
    Policy {
        /// The policy before.
        before: Option<Arc<NetworkPolicy>>,
        /// The policy now.
        after: Option<Arc<NetworkPolicy>>,
    },
    /// A node.
    Node {
        /// The node before.
        before: Option<Arc<Node>>,
        /// The node now.
        after: Option<Arc<Node>>,
    },
}

/// An address whose set of claimants changed.
///
/// The address of `api-0`, which has finished, goes to `job-3`. Sets hold addresses, so those that selected `api-0`
/// must lose this one, and those that select `job-3` get it:
///
/// ```
/// use towpath::model::{Change, Cluster, Delta, ObjectKey, Phase, Pod};
///
/// let pod = |name: &str, phase: Phase| {
///     let addresses = vec!["10.244.1.7".parse().unwrap()];
///     Change::SetPod(Pod { addresses, phase, ..Pod::new(ObjectKey::new("shop", name)) })
/// };
/// let mut cluster = Cluster::new();
/// cluster.apply(pod("api-0", Phase::Running));
/// cluster.apply(pod("api-0", Phase::Succeeded));
/// let Some(Delta::Pod { handovers, .. }) = cluster.apply(pod("job-3", Phase::Running)) else { panic!() };
/// assert_eq!(handovers[0].before, []);
/// assert_eq!(handovers[0].after, [ObjectKey::new("shop", "job-3")]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The address.
    pub address: IpAddr,
    /// The selectable pods that reported it before, by name.
    pub before: Vec<ObjectKey>,
    /// Those that report it now, by name.
    pub after: Vec<ObjectKey>,
}

/// All known objects.
///
/// The content depends on the objects alone, not on the order of their changes.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    namespaces: BTreeMap<Arc<str>, Arc<Namespace>>,
    pods: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Arc<Pod>>>,
    policies: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Arc<NetworkPolicy>>>,
    claims: HashMap<IpAddr, Claims>,
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    /// The nodes with each address, and how many objects report it: pods, or the node itself.
    node_addresses: BTreeMap<IpAddr, BTreeMap<Arc<str>, usize>>,
}

/// How many pods with one address [`Cluster::part_at`] has at most.
pub const CLAIMANTS_OF_A_PART: usize = 16;

/// The selectable pods that report one address, by name. Nearly always one: only a second one needs an allocation.
#[derive(Clone, Debug)]
enum Claims {
    One(Arc<Pod>),
    Many(Vec<Arc<Pod>>),
}

impl Cluster {
    /// An empty cluster.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies one change; `None` if nothing differs afterwards. An equal object keeps its allocation: a relist must
    /// not bring a second copy of each object, and other code compares objects by identity.
    pub fn apply(&mut self, change: Change) -> Option<Delta> {
        match change {
            Change::SetPod(pod) => self.replace_pod(&pod.key.clone(), Some(Arc::new(pod))),
            Change::RemovePod(key) => self.replace_pod(&key, None),
            Change::SetNamespace(namespace) => {
                if self.namespace(&namespace.name).is_some_and(|before| **before == namespace) {
                    return None;
                }
                let after = Arc::new(namespace);
                let before = self.namespaces.insert(after.name.clone(), after.clone());
                Some(Delta::Namespace { before, after: Some(after) })
            }
            Change::RemoveNamespace(name) => {
                let before = self.namespaces.remove(&name)?;
                Some(Delta::Namespace { before: Some(before), after: None })
            }
            Change::SetPolicy(policy) => {
                if self.policy(&policy.key).is_some_and(|before| **before == policy) {
                    return None;
                }
                let after = Arc::new(policy);
                let before = insert(&mut self.policies, &after.key, after.clone());
                Some(Delta::Policy { before, after: Some(after) })
            }
            Change::RemovePolicy(key) => {
                let before = remove(&mut self.policies, &key)?;
                Some(Delta::Policy { before: Some(before), after: None })
            }
            // Not one change but many: see `without_rules`.
            Change::DropRules(..) => None,
            Change::SetNode(node) => self.replace_node(&node.name.clone(), Some(Arc::new(node))),
            Change::RemoveNode(name) => self.replace_node(&name, None),
        }
    }

    /// The namespace of this name, if its object is known.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&Arc<Namespace>> {
        self.namespaces.get(name)
    }

    /// Every known namespace, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.namespaces.values()
    }

    /// The pod with this key, if it is known.
    #[must_use]
    pub fn pod(&self, key: &ObjectKey) -> Option<&Arc<Pod>> {
        self.pods.get(&key.namespace)?.get(&key.name)
    }

    /// Every pod, by namespace and name.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values().flat_map(BTreeMap::values)
    }

    /// The pods of one namespace, by name.
    pub fn pods_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    /// The policy with this key, if it is known.
    #[must_use]
    pub fn policy(&self, key: &ObjectKey) -> Option<&Arc<NetworkPolicy>> {
        self.policies.get(&key.namespace)?.get(&key.name)
    }

    /// Every policy, by namespace and name.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<NetworkPolicy>> {
        self.policies.values().flat_map(BTreeMap::values)
    }

    /// The policies of one namespace, by name.
    pub fn policies_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<NetworkPolicy>> {
        self.policies.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    /// The pods that report `address`, by name: packets from and to it may belong to any of them.
    ///
    /// Only pods that policy selects count: not finished ones, whose address may have a new owner, nor those on their
    /// node's network. Usually there is one. There are several while one pod terminates and another already has its
    /// address; a packet does not show which of them sent it.
    #[must_use]
    pub fn claimants(&self, address: IpAddr) -> &[Arc<Pod>] {
        match self.claims.get(&address) {
            None => &[],
            Some(Claims::One(pod)) => std::slice::from_ref(pod),
            Some(Claims::Many(pods)) => pods,
        }
    }

    /// The node of this name, if its object is known.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// The nodes that have `address`, according to them and to the `status.hostIPs` of pods.
    pub fn nodes_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<str>> {
        self.node_addresses.get(&address).into_iter().flat_map(BTreeMap::keys)
    }

    /// Every node address that nodes and the `status.hostIPs` of pods report, ascending.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.node_addresses.keys().copied()
    }

    /// The changes that drop the rules of all policies of a namespace.
    #[must_use]
    pub fn without_rules(&self, namespace: &str, excess: MemoryExcess) -> Vec<Change> {
        let policies = self.policies_in(namespace);
        policies.map(|policy| Change::SetPolicy(policy.without_rules(excess))).collect()
    }

    /// The part of it that says who has these addresses: the pods that report them, the namespaces of these, and the
    /// nodes. The objects are shared, so that making it takes as long however large they are; of more than
    /// [`CLAIMANTS_OF_A_PART`] pods with one address it has the first ones.
    #[must_use]
    pub fn part_at(&self, addresses: &BTreeSet<IpAddr>) -> Self {
        let mut part = Self::new();
        for address in addresses {
            for pod in self.claimants(*address).iter().take(CLAIMANTS_OF_A_PART) {
                if insert(&mut part.pods, &pod.key, pod.clone()).is_none() {
                    part.learn(pod);
                    let namespace = self.namespace(&pod.key.namespace).cloned();
                    part.namespaces.extend(namespace.map(|namespace| (namespace.name.clone(), namespace)));
                }
            }
            for name in self.nodes_at(*address).take(CLAIMANTS_OF_A_PART) {
                part.learn_node(name, &[*address]);
            }
        }
        part
    }

    /// The same with these policies, which it shares.
    #[must_use]
    pub fn with_policies(mut self, policies: impl IntoIterator<Item = Arc<NetworkPolicy>>) -> Self {
        for policy in policies {
            let key = policy.key.clone();
            insert(&mut self.policies, &key, policy);
        }
        self
    }

    fn replace_node(&mut self, name: &Arc<str>, after: Option<Arc<Node>>) -> Option<Delta> {
        if after.is_some() && self.nodes.get(name) == after.as_ref() {
            return None;
        }
        let before = match &after {
            Some(node) => self.nodes.insert(name.clone(), node.clone()),
            None => Some(self.nodes.remove(name)?),
        };
        if let Some(node) = &before {
            self.forget_node(name, &node.addresses);
        }
        if let Some(node) = &after {
            self.learn_node(name, &node.addresses);
        }
        Some(Delta::Node { before, after })
    }

    fn learn_node(&mut self, name: &Arc<str>, addresses: &[IpAddr]) {
        for address in distinct(addresses) {
            *self.node_addresses.entry(address).or_default().entry(name.clone()).or_default() += 1;
        }
    }

    fn forget_node(&mut self, name: &Arc<str>, addresses: &[IpAddr]) {
        for address in distinct(addresses) {
            let Some(names) = self.node_addresses.get_mut(&address) else { continue };
            if let Some(count) = names.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    names.remove(name);
                }
            }
            if names.is_empty() {
                self.node_addresses.remove(&address);
            }
        }
    }

    fn replace_pod(&mut self, key: &ObjectKey, after: Option<Arc<Pod>>) -> Option<Delta> {
        if after.is_some() && self.pod(key) == after.as_ref() {
            return None;
        }
        let before = match &after {
            Some(pod) => insert(&mut self.pods, key, pod.clone()),
            None => Some(remove(&mut self.pods, key)?),
        };
        let touched: BTreeSet<IpAddr> =
            [&before, &after].into_iter().flatten().flat_map(|pod| pod.addresses.iter().copied()).collect();
        if let Some(pod) = &before {
            self.forget(pod);
        }
        if let Some(pod) = &after {
            self.learn(pod);
        }
        let claims = |pod: &Option<Arc<Pod>>, address: &IpAddr| {
            pod.as_ref().is_some_and(|pod| pod.is_selectable() && pod.addresses.contains(address))
        };
        let handovers = touched
            .into_iter()
            .filter(|address| claims(&before, address) != claims(&after, address))
            .map(|address| {
                let now: Vec<ObjectKey> = self.claimants(address).iter().map(|pod| pod.key.clone()).collect();
                let mut then: Vec<ObjectKey> = now.iter().filter(|other| *other != key).cloned().collect();
                if claims(&before, &address) {
                    then.push(key.clone());
                    then.sort();
                }
                Handover { address, before: then, after: now }
            })
            .collect();
        Some(Delta::Pod { before, after, handovers })
    }

    fn learn(&mut self, pod: &Arc<Pod>) {
        if pod.is_selectable() {
            for address in distinct(&pod.addresses) {
                let claims = match self.claims.remove(&address) {
                    None => Claims::One(pod.clone()),
                    Some(Claims::One(other)) => Claims::many(vec![other, pod.clone()]),
                    Some(Claims::Many(mut pods)) => {
                        pods.push(pod.clone());
                        Claims::many(pods)
                    }
                };
                self.claims.insert(address, claims);
            }
        }
        if let Some(node) = &pod.node {
            self.learn_node(node, &pod.node_addresses);
        }
    }

    fn forget(&mut self, pod: &Arc<Pod>) {
        if pod.is_selectable() {
            for address in distinct(&pod.addresses) {
                let Some(Claims::Many(mut pods)) = self.claims.remove(&address) else { continue };
                pods.retain(|other| other.key != pod.key);
                let rest = match <[Arc<Pod>; 1]>::try_from(pods) {
                    Ok([one]) => Claims::One(one),
                    Err(pods) => Claims::many(pods),
                };
                self.claims.insert(address, rest);
            }
        }
        if let Some(node) = &pod.node {
            self.forget_node(node, &pod.node_addresses);
        }
    }
}

impl Claims {
    fn many(mut pods: Vec<Arc<Pod>>) -> Self {
        pods.sort_by(|a, b| a.key.cmp(&b.key));
        Self::Many(pods)
    }
}

fn distinct(addresses: &[IpAddr]) -> BTreeSet<IpAddr> {
    addresses.iter().copied().collect()
}

type ByKey<T> = BTreeMap<Arc<str>, BTreeMap<Arc<str>, Arc<T>>>;

fn insert<T>(objects: &mut ByKey<T>, key: &ObjectKey, object: Arc<T>) -> Option<Arc<T>> {
    objects.entry(key.namespace.clone()).or_default().insert(key.name.clone(), object)
}

fn remove<T>(objects: &mut ByKey<T>, key: &ObjectKey) -> Option<Arc<T>> {
    let of_namespace = objects.get_mut(&key.namespace)?;
    let object = of_namespace.remove(&key.name)?;
    if of_namespace.is_empty() {
        objects.remove(&key.namespace);
    }
    Some(object)
}

#[cfg(test)]
mod tests;
