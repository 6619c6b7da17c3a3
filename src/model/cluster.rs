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

    /// The namespaces that hold a pod, whether or not their own object is known.
    pub fn namespaces_with_pods(&self) -> impl Iterator<Item = &Arc<str>> {
        self.pods.keys()
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

    /// Every node whose object is known, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
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
mod tests {
    use super::*;
    use crate::model::Phase;

    fn pod(name: &str, address: &str) -> Pod {
        Pod { addresses: vec![address.parse().unwrap()], ..Pod::new(ObjectKey::new("ns", name)) }
    }

    fn claimants(cluster: &Cluster, address: &str) -> Vec<String> {
        cluster.claimants(address.parse().unwrap()).iter().map(|pod| pod.key.to_string()).collect()
    }

    #[test]
    fn setting_an_object_to_what_it_is_changes_nothing() {
        let mut cluster = Cluster::new();
        assert!(cluster.apply(Change::SetPod(pod("a", "10.0.0.1"))).is_some());
        assert_eq!(cluster.apply(Change::SetPod(pod("a", "10.0.0.1"))), None);
        assert_eq!(cluster.apply(Change::RemovePod(ObjectKey::new("ns", "b"))), None);
    }

    #[test]
    fn what_is_set_to_what_it_is_stays_the_same_allocation() {
        let policy = || NetworkPolicy {
            key: ObjectKey::new("ns", "p"),
            subject: crate::model::LabelSelector::everything(),
            ingress: Some(Vec::new()),
            egress: None,
            standing: crate::model::Standing::Accepted,
        };
        let namespace = || Namespace { name: "ns".into(), labels: Labels::default() };
        let node = || Node { name: "n1".into(), addresses: Vec::new(), pod_cidrs: Vec::new() };
        let mut cluster = Cluster::new();
        let mut all = || {
            for change in [
                Change::SetPod(pod("a", "10.0.0.1")),
                Change::SetPolicy(policy()),
                Change::SetNamespace(namespace()),
                Change::SetNode(node()),
            ] {
                cluster.apply(change);
            }
            cluster.clone()
        };
        let (before, after) = (all(), all());
        let key = ObjectKey::new("ns", "a");
        assert!(Arc::ptr_eq(before.pod(&key).unwrap(), after.pod(&key).unwrap()));
        assert!(Arc::ptr_eq(before.pod(&key).unwrap(), &after.claimants("10.0.0.1".parse().unwrap())[0]));
        let key = ObjectKey::new("ns", "p");
        assert!(Arc::ptr_eq(before.policy(&key).unwrap(), after.policy(&key).unwrap()));
        assert!(Arc::ptr_eq(before.namespace("ns").unwrap(), after.namespace("ns").unwrap()));
        assert!(Arc::ptr_eq(before.node("n1").unwrap(), after.node("n1").unwrap()));
    }

    #[test]
    fn the_policies_of_a_namespace_without_their_rules_isolate_as_before() {
        let rule =
            || crate::model::PolicyRule { peers: crate::model::Peers::Any, ports: crate::model::Ports::Any };
        let policy = |namespace: &str, egress: bool| NetworkPolicy {
            key: ObjectKey::new(namespace, "p"),
            subject: crate::model::LabelSelector::everything(),
            ingress: Some(vec![rule()]),
            egress: egress.then(|| vec![rule()]),
            standing: crate::model::Standing::Accepted,
        };
        let mut cluster = Cluster::new();
        cluster.apply(Change::SetPolicy(policy("evil", true)));
        cluster.apply(Change::SetPolicy(policy("shop", false)));
        let excess = MemoryExcess { bytes: 2, budget: 1, is_of_all: false };
        for change in cluster.without_rules("evil", excess) {
            assert!(cluster.apply(change).is_some());
        }
        let found: Vec<(&str, usize, Option<usize>)> = cluster
            .policies()
            .map(|policy| {
                let count = |rules: &Option<Vec<_>>| rules.as_ref().map(Vec::len);
                (&*policy.key.namespace, count(&policy.ingress).unwrap(), count(&policy.egress))
            })
            .collect();
        assert_eq!(found, [("evil", 0, Some(0)), ("shop", 1, None)]);
    }

    #[test]
    fn every_pod_that_may_still_send_claims_its_address_in_any_order() {
        let leaving = Pod { terminating: true, ..pod("z-leaving", "10.0.0.1") };
        let starting = Pod { phase: Phase::Pending, ..pod("a-starting", "10.0.0.1") };
        for order in [[&leaving, &starting], [&starting, &leaving]] {
            let mut cluster = Cluster::new();
            for pod in order {
                cluster.apply(Change::SetPod(pod.clone()));
            }
            assert_eq!(claimants(&cluster, "10.0.0.1"), ["ns/a-starting", "ns/z-leaving"]);
        }
    }

    #[test]
    fn a_finished_pod_and_one_on_the_host_network_claim_no_address() {
        let mut cluster = Cluster::new();
        cluster.apply(Change::SetPod(Pod { phase: Phase::Failed, ..pod("done", "10.0.0.1") }));
        cluster.apply(Change::SetPod(Pod { host_network: true, ..pod("host", "192.168.0.1") }));
        assert!(claimants(&cluster, "10.0.0.1").is_empty());
        assert!(claimants(&cluster, "192.168.0.1").is_empty());
    }

    #[test]
    fn a_handover_names_who_claimed_the_address_before_and_who_does_now() {
        let mut cluster = Cluster::new();
        let handover = |cluster: &mut Cluster, change| {
            let Some(Delta::Pod { handovers, .. }) = cluster.apply(change) else { panic!("the pod changed") };
            let names =
                |keys: Vec<ObjectKey>| keys.iter().map(|key| key.name.to_string()).collect::<Vec<_>>();
            handovers.into_iter().map(|h| (names(h.before), names(h.after))).collect::<Vec<_>>()
        };
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let steps = [
            (Change::SetPod(pod("b", "10.0.0.1")), vec![(names(&[]), names(&["b"]))]),
            (Change::SetPod(pod("a", "10.0.0.1")), vec![(names(&["b"]), names(&["a", "b"]))]),
            (Change::SetPod(Pod { terminating: true, ..pod("b", "10.0.0.1") }), vec![]),
            (
                Change::SetPod(Pod { phase: Phase::Succeeded, ..pod("b", "10.0.0.1") }),
                vec![(names(&["a", "b"]), names(&["a"]))],
            ),
            (Change::RemovePod(ObjectKey::new("ns", "b")), vec![]),
            (Change::RemovePod(ObjectKey::new("ns", "a")), vec![(names(&["a"]), names(&[]))]),
        ];
        for (change, expected) in steps {
            assert_eq!(handover(&mut cluster, change.clone()), expected, "{change:?}");
        }
        assert!(claimants(&cluster, "10.0.0.1").is_empty());
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
