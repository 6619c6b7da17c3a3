use super::*;
use crate::model::Phase;

fn pod(name: &str, address: &str) -> Pod {
    Pod { addresses: vec![address.parse().unwrap()], ..Pod::new(ObjectKey::new("ns", name)) }
}

fn claimants(cluster: &Cluster, address: &str) -> Vec<String> {
    cluster.claimants(address.parse().unwrap()).iter().map(|pod| pod.key.to_string()).collect()
}

#[test]
fn setting_an_equal_object_changes_nothing() {
    let mut cluster = Cluster::new();
    assert!(cluster.apply(Change::SetPod(pod("a", "10.0.0.1"))).is_some());
    assert_eq!(cluster.apply(Change::SetPod(pod("a", "10.0.0.1"))), None);
    assert_eq!(cluster.apply(Change::RemovePod(ObjectKey::new("ns", "b"))), None);
}

#[test]
fn setting_an_equal_object_keeps_the_allocation() {
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
fn policies_without_their_rules_still_isolate() {
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
fn every_pod_that_can_send_claims_its_address_in_any_order() {
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
fn finished_and_host_network_pods_claim_no_address() {
    let mut cluster = Cluster::new();
    cluster.apply(Change::SetPod(Pod { phase: Phase::Failed, ..pod("done", "10.0.0.1") }));
    cluster.apply(Change::SetPod(Pod { host_network: true, ..pod("host", "192.168.0.1") }));
    assert!(claimants(&cluster, "10.0.0.1").is_empty());
    assert!(claimants(&cluster, "192.168.0.1").is_empty());
}

#[test]
fn handover_names_previous_and_new_claimants() {
    let mut cluster = Cluster::new();
    let handover = |cluster: &mut Cluster, change| {
        let Some(Delta::Pod { handovers, .. }) = cluster.apply(change) else { panic!("the pod changed") };
        let names = |keys: Vec<ObjectKey>| keys.iter().map(|key| key.name.to_string()).collect::<Vec<_>>();
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
fn node_addresses_are_known_from_existing_pods() {
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

#[test]
fn part_at_addresses_has_their_owners_and_nothing_else() {
    let mut cluster = Cluster::new();
    for namespace in ["shop", "blog"] {
        let labels = [("team", namespace)].into_iter().collect();
        cluster.apply(Change::SetNamespace(Namespace { name: namespace.into(), labels }));
    }
    let pod = |namespace: &str, name: &str, address: &str| {
        let key = ObjectKey::new(namespace, name);
        Change::SetPod(Pod { addresses: vec![address.parse().unwrap()], ..Pod::new(key) })
    };
    cluster.apply(pod("shop", "web", "10.244.1.7"));
    cluster.apply(pod("blog", "web", "10.244.1.8"));
    let addresses = vec!["192.0.2.2".parse().unwrap()];
    cluster.apply(Change::SetNode(Node { name: "n2".into(), addresses, pod_cidrs: Vec::new() }));
    let part = cluster.part_at(&["10.244.1.7".parse().unwrap(), "192.0.2.2".parse().unwrap()].into());
    let pods: Vec<String> = part.pods().map(|pod| pod.key.to_string()).collect();
    assert_eq!(pods, ["shop/web"]);
    assert!(Arc::ptr_eq(&part.claimants("10.244.1.7".parse().unwrap())[0], cluster.pods().last().unwrap()));
    assert_eq!(part.namespaces().map(|namespace| namespace.name.to_string()).collect::<Vec<_>>(), ["shop"]);
    assert_eq!(part.nodes_at("192.0.2.2".parse().unwrap()).map(|name| &**name).collect::<Vec<_>>(), ["n2"]);
}
