//! The objects that are known, and what a change of one of them changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{Labels, NetworkPolicy, ObjectKey, Phase, Pod};

/// A namespace, as far as policy cares.
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
    /// Its name, as `spec.nodeName` of its pods says it.
    pub name: Arc<str>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// The networks that its pods get their addresses from, as far as Kubernetes hands them out.
    pub pod_cidrs: Vec<IpNet>,
}

/// One change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The pod exists, and is this.
    SetPod(Pod),
    /// The pod is gone.
    RemovePod(ObjectKey),
    /// The namespace exists, and is this.
    SetNamespace(Namespace),
    /// The namespace is gone. The pods and policies in it have removals of their own.
    RemoveNamespace(Arc<str>),
    /// The policy exists, and is this.
    SetPolicy(NetworkPolicy),
    /// The policy is gone.
    RemovePolicy(ObjectKey),
    /// The node exists, and is this.
    SetNode(Node),
    /// The node is gone.
    RemoveNode(Arc<str>),
}

/// What a [`Change`] changed: the object before and after.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// A pod, and the addresses whose owner this changed.
    Pod {
        /// The pod before.
        before: Option<Arc<Pod>>,
        /// The pod now.
        after: Option<Arc<Pod>>,
        /// Addresses that passed from one owner to another, or to or from nobody.
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

/// An address that changed hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The address.
    pub address: IpAddr,
    /// Its owner before.
    pub before: Option<ObjectKey>,
    /// Its owner now.
    pub after: Option<ObjectKey>,
}

/// Every object that is known.
///
/// What it holds is a function of the objects alone, whatever the order in which their changes came.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    namespaces: BTreeMap<Arc<str>, Arc<Namespace>>,
    pods: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Arc<Pod>>>,
    policies: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Arc<NetworkPolicy>>>,
    claims: HashMap<IpAddr, Claims>,
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    /// Who says so: how many pods, or the node itself.
    node_addresses: BTreeMap<IpAddr, BTreeMap<Arc<str>, usize>>,
}

/// The selectable pods that report one address. Nearly always one: the second is worth an allocation then.
#[derive(Clone, Debug)]
enum Claims {
    One(Arc<Pod>),
    Many(Vec<Arc<Pod>>),
}

impl Cluster {
    /// A cluster without any object.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in one change; `None` if nothing differs afterwards.
    pub fn apply(&mut self, change: Change) -> Option<Delta> {
        match change {
            Change::SetPod(pod) => self.replace_pod(&pod.key.clone(), Some(Arc::new(pod))),
            Change::RemovePod(key) => self.replace_pod(&key, None),
            Change::SetNamespace(namespace) => {
                let after = Arc::new(namespace);
                let before = self.namespaces.insert(after.name.clone(), after.clone());
                (before.as_ref() != Some(&after)).then_some(Delta::Namespace { before, after: Some(after) })
            }
            Change::RemoveNamespace(name) => {
                let before = self.namespaces.remove(&name)?;
                Some(Delta::Namespace { before: Some(before), after: None })
            }
            Change::SetPolicy(policy) => {
                let after = Arc::new(policy);
                let before = insert(&mut self.policies, &after.key, after.clone());
                (before.as_ref() != Some(&after)).then_some(Delta::Policy { before, after: Some(after) })
            }
            Change::RemovePolicy(key) => {
                let before = remove(&mut self.policies, &key)?;
                Some(Delta::Policy { before: Some(before), after: None })
            }
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

    /// One pod.
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

    /// The namespaces that hold a pod, whether or not their own object is known.
    pub fn namespaces_with_pods(&self) -> impl Iterator<Item = &Arc<str>> {
        self.pods.keys()
    }

    /// One policy.
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

    /// The pod that packets from and to `address` belong to.
    ///
    /// Only pods that policy selects own addresses: not finished ones, whose address may have a new owner, nor those
    /// on their node's network. Of several claimants one that stays wins over one that was told to stop, a running one
    /// over one that is not, and then the younger one; names decide the rest.
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.claims.get(&address).map(Claims::winner)
    }

    /// The pods that claim `address`, its owner first.
    #[must_use]
    pub fn claimants(&self, address: IpAddr) -> Vec<&Arc<Pod>> {
        let mut pods: Vec<&Arc<Pod>> = match self.claims.get(&address) {
            None => Vec::new(),
            Some(Claims::One(pod)) => vec![pod],
            Some(Claims::Many(pods)) => pods.iter().collect(),
        };
        pods.sort_by(|a, b| precedence(b).cmp(&precedence(a)));
        pods
    }

    /// One node, if its object is known.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// Every node whose object is known, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// The nodes that have `address`, as far as they and the `status.hostIPs` of pods tell.
    pub fn nodes_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<str>> {
        self.node_addresses.get(&address).into_iter().flat_map(BTreeMap::keys)
    }

    /// Every address of a node that nodes and the `status.hostIPs` of pods tell, ascending.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.node_addresses.keys().copied()
    }

    fn replace_node(&mut self, name: &Arc<str>, after: Option<Arc<Node>>) -> Option<Delta> {
        let before = match &after {
            Some(node) => self.nodes.insert(name.clone(), node.clone()),
            None => Some(self.nodes.remove(name)?),
        };
        if before == after {
            return None;
        }
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
        let before = match &after {
            Some(pod) => insert(&mut self.pods, key, pod.clone()),
            None => Some(remove(&mut self.pods, key)?),
        };
        if before == after {
            return None;
        }
        let touched: BTreeSet<IpAddr> =
            [&before, &after].into_iter().flatten().flat_map(|pod| pod.addresses.iter().copied()).collect();
        let owner = |cluster: &Self, address| cluster.owner(address).map(|pod| pod.key.clone());
        let owners: Vec<_> = touched.iter().map(|address| owner(self, *address)).collect();
        if let Some(pod) = &before {
            self.forget(pod);
        }
        if let Some(pod) = &after {
            self.learn(pod);
        }
        let handovers = touched
            .into_iter()
            .zip(owners)
            .map(|(address, before)| Handover { address, before, after: owner(self, address) })
            .filter(|handover| handover.before != handover.after)
            .collect();
        Some(Delta::Pod { before, after, handovers })
    }

    fn learn(&mut self, pod: &Arc<Pod>) {
        if pod.is_selectable() {
            for address in distinct(&pod.addresses) {
                let claims = match self.claims.remove(&address) {
                    None => Claims::One(pod.clone()),
                    Some(Claims::One(other)) => Claims::Many(vec![other, pod.clone()]),
                    Some(Claims::Many(mut pods)) => {
                        pods.push(pod.clone());
                        Claims::Many(pods)
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
                    Err(pods) => Claims::Many(pods),
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
    fn winner(&self) -> &Arc<Pod> {
        match self {
            Self::One(pod) => pod,
            // `Many` holds two or more, so that the slice cannot be empty.
            Self::Many(pods) => {
                let mut best = &pods[0];
                for pod in pods {
                    if precedence(pod) > precedence(best) {
                        best = pod;
                    }
                }
                best
            }
        }
    }
}

/// Orders the claimants of one address: the greatest owns it.
fn precedence(pod: &Pod) -> (bool, bool, Option<i64>, &ObjectKey) {
    (!pod.terminating, pod.phase == Phase::Running, pod.created, &pod.key)
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
mod tests {
    use super::*;

    fn pod(name: &str, address: &str) -> Pod {
        Pod { addresses: vec![address.parse().unwrap()], ..Pod::new(ObjectKey::new("ns", name)) }
    }

    fn owner(cluster: &Cluster, address: &str) -> Option<String> {
        cluster.owner(address.parse().unwrap()).map(|pod| pod.key.to_string())
    }

    #[test]
    fn setting_an_object_to_what_it_is_changes_nothing() {
        let mut cluster = Cluster::new();
        assert!(cluster.apply(Change::SetPod(pod("a", "10.0.0.1"))).is_some());
        assert_eq!(cluster.apply(Change::SetPod(pod("a", "10.0.0.1"))), None);
        assert_eq!(cluster.apply(Change::RemovePod(ObjectKey::new("ns", "b"))), None);
    }

    #[test]
    fn of_two_pods_with_one_address_the_running_one_owns_it_in_any_order() {
        let old = Pod { phase: Phase::Pending, ..pod("z-old", "10.0.0.1") };
        let new = pod("a-new", "10.0.0.1");
        for order in [[&old, &new], [&new, &old]] {
            let mut cluster = Cluster::new();
            for pod in order {
                cluster.apply(Change::SetPod(pod.clone()));
            }
            assert_eq!(owner(&cluster, "10.0.0.1").as_deref(), Some("ns/a-new"));
            assert_eq!(cluster.claimants("10.0.0.1".parse().unwrap()).len(), 2);
        }
    }

    #[test]
    fn a_pod_that_was_told_to_stop_gives_its_address_up_to_one_that_only_starts() {
        let mut cluster = Cluster::new();
        cluster.apply(Change::SetPod(Pod { terminating: true, ..pod("old", "10.0.0.1") }));
        cluster.apply(Change::SetPod(Pod { phase: Phase::Pending, ..pod("new", "10.0.0.1") }));
        assert_eq!(owner(&cluster, "10.0.0.1").as_deref(), Some("ns/new"));
    }

    #[test]
    fn a_finished_pod_and_one_on_the_host_network_own_no_address() {
        let mut cluster = Cluster::new();
        cluster.apply(Change::SetPod(Pod { phase: Phase::Failed, ..pod("done", "10.0.0.1") }));
        cluster.apply(Change::SetPod(Pod { host_network: true, ..pod("host", "192.168.0.1") }));
        assert_eq!(owner(&cluster, "10.0.0.1"), None);
        assert_eq!(owner(&cluster, "192.168.0.1"), None);
    }

    #[test]
    fn an_address_goes_over_when_its_owner_ends_or_is_deleted() {
        let mut cluster = Cluster::new();
        cluster.apply(Change::SetPod(pod("b", "10.0.0.1")));
        cluster.apply(Change::SetPod(pod("a", "10.0.0.1")));
        let finished = Pod { phase: Phase::Succeeded, ..pod("b", "10.0.0.1") };
        let Some(Delta::Pod { handovers, .. }) = cluster.apply(Change::SetPod(finished)) else {
            panic!("the pod changed")
        };
        assert_eq!(handovers.len(), 1);
        assert_eq!(owner(&cluster, "10.0.0.1").as_deref(), Some("ns/a"));
        cluster.apply(Change::RemovePod(ObjectKey::new("ns", "a")));
        assert_eq!(owner(&cluster, "10.0.0.1"), None);
    }

    #[test]
    fn the_addresses_of_nodes_are_known_from_their_pods_while_they_have_any() {
        let node_address: IpAddr = "192.168.0.7".parse().unwrap();
        let mut cluster = Cluster::new();
        for name in ["a", "b"] {
            let node_addresses = vec![node_address];
            let node = Some("n1".into());
            cluster.apply(Change::SetPod(Pod { node, node_addresses, ..pod(name, "10.0.0.1") }));
        }
        cluster.apply(Change::RemovePod(ObjectKey::new("ns", "a")));
        assert_eq!(cluster.nodes_at(node_address).count(), 1);
        cluster.apply(Change::RemovePod(ObjectKey::new("ns", "b")));
        assert_eq!(cluster.node_addresses().count(), 0);
    }
}
