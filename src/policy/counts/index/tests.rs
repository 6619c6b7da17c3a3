//! The index selects the same pods as comparing each peer with each pod.

use proptest::prelude::*;

use super::*;
use crate::model::{Change, Namespace, ObjectKey, Requirement};

fn requirement() -> impl Strategy<Value = Requirement> {
    let values = || proptest::collection::vec("[a-c]", 0..3);
    let operator = prop_oneof![
        4 => values().prop_map(|values| Operator::In(values.into_iter().map(Into::into).collect())),
        1 => values().prop_map(|values| Operator::NotIn(values.into_iter().map(Into::into).collect())),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
        // More values than are indexed one by one.
        1 => Just(Operator::In((0..=FEW_VALUES).map(|n| n.to_string().into()).chain(["a".into()]).collect())),
    ];
    ("[k-m]", operator).prop_map(|(key, operator)| Requirement { key: key.into(), operator })
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    proptest::collection::vec(requirement(), 0..4).prop_map(LabelSelector::new)
}

fn peer() -> impl Strategy<Value = PodPeer> {
    let scope =
        prop_oneof!["[x-z]".prop_map(|name| Scope::Own(name.into())), selector().prop_map(Scope::Matching)];
    (scope, selector()).prop_map(|(scope, pods)| PodPeer { scope, pods })
}

fn labels() -> impl Strategy<Value = Labels> {
    proptest::collection::vec(("[k-m]", "[a-c]"), 0..4).prop_map(|pairs| pairs.into_iter().collect())
}

fn selection(peers: BTreeSet<PodPeer>) -> Arc<Selection> {
    Arc::new(Selection::new(Chosen::Pods(peers.into_iter().collect())))
}

proptest! {
    #[test]
    fn index_selects_the_same_pods_as_comparing_all(
        peers in proptest::collection::vec(proptest::collection::btree_set(peer(), 0..12), 1..5),
        namespaces in proptest::collection::vec(labels(), 2),
        pods in proptest::collection::vec(("[x-z]", labels()), 1..8),
    ) {
        let mut cluster = Cluster::new();
        // The third one has pods but no object.
        for (name, labels) in ["x", "y"].into_iter().zip(namespaces) {
            cluster.apply(Change::SetNamespace(Namespace { name: name.into(), labels }));
        }
        for (at, (namespace, labels)) in pods.into_iter().enumerate() {
            let key = ObjectKey::new(namespace, format!("p{at}"));
            cluster.apply(Change::SetPod(Pod { labels, ..Pod::new(key) }));
        }
        let index = Index::new(peers.into_iter().map(selection).collect());
        let pods: Vec<Arc<Pod>> = cluster.pods().cloned().collect();
        let reach: BTreeSet<ObjectKey> =
            index.reach(&cluster).into_iter().map(|pod| pod.key.clone()).collect();
        // One pod, and two that report the same address.
        for together in pods.windows(1).chain(pods.windows(2)) {
            let by_all = |peer: &PodPeer| together.iter().all(|pod| selects(&cluster, peer, pod));
            let linear: Vec<usize> = index.selections().iter().enumerate()
                .filter(|(_, selection)| selection.pod_peers().iter().any(by_all))
                .map(|(at, _)| at)
                .collect();
            prop_assert_eq!(index.chosen(&cluster, together), linear.clone());
            if !linear.is_empty() {
                prop_assert!(together.iter().all(|pod| reach.contains(&pod.key)));
            }
        }
    }
}

/// `count` peers, each with the requirements that `requirements` returns for it.
fn many(count: usize, requirements: impl Fn(usize) -> Vec<Requirement>) -> [Arc<Selection>; 1] {
    let everywhere = || Scope::Matching(LabelSelector::everything());
    let peers =
        (0..count).map(|at| PodPeer { scope: everywhere(), pods: LabelSelector::new(requirements(at)) });
    [selection(peers.collect())]
}

#[test]
fn only_peers_without_a_distinct_label_are_compared_with_all_pods() {
    let absent = |at: usize| Requirement { key: format!("k{at}").into(), operator: Operator::DoesNotExist };
    let own = |at: usize| Requirement::equals("team", format!("g{at}"));
    let common = || Requirement::equals("app", "web");
    assert_eq!(comparisons(&many(4_000, |at| vec![common(), own(at)])), 0);
    assert_eq!(comparisons(&many(4_000, |at| vec![absent(at)])), 4_000);
    assert_eq!(comparisons(&many(4_000, |at| vec![common(), absent(at)])), 4_000);
    // A few of them count as zero, whether few without a label or few with the same one.
    assert_eq!([64, 65].map(|count| comparisons(&many(count, |at| vec![absent(at)]))), [0, 65]);
    let same = |count| comparisons(&many(count, |at| vec![common(), absent(at)]));
    assert_eq!([256, 257].map(same), [0, 257]);
    // Sixteen values cost as much as one more peer.
    let values = |at: usize| {
        let operator = Operator::NotIn((0..32).map(|n| n.to_string().into()).collect());
        Requirement { key: format!("k{at}").into(), operator }
    };
    assert_eq!(comparisons(&many(100, |at| vec![values(at)])), 300);
    // A few values that no other peer requires are indexed; a larger number is indexed by the key alone.
    let one_of = |at: usize, values: usize| {
        let operator = Operator::In((0..values).map(|n| format!("v{at}-{n}").into()).collect());
        Requirement { key: "k".into(), operator }
    };
    let of_values = |values| comparisons(&many(300, |at| vec![one_of(at, values)]));
    assert_eq!([FEW_VALUES, FEW_VALUES + 1].map(of_values), [0, 600]);
    // A peer that requires one of no values matches nothing, and is indexed by its other requirements.
    assert_eq!(comparisons(&many(100, |at| vec![one_of(at, 0), own(at)])), 0);
}

/// Prints the cost of peers that match nothing: `cargo test --release --lib -- --ignored --nocapture peers_that_match_no_pod`.
#[test]
#[ignore = "measures, and asserts nothing about time"]
fn cost_of_peers_that_match_no_pod() {
    use std::time::Instant;

    use crate::{
        model::{NetworkPolicy, Peer, Peers, PolicyRule, Ports, Standing},
        policy::resolve::Resolver,
    };
    let policy = |name: usize, from: usize| {
        let [selection] = many(4_000, |at| vec![Requirement::equals("team", format!("g{}", from + at))]);
        let peers = selection.pod_peers().iter().cloned().map(Peer::Pods).collect();
        Change::SetPolicy(NetworkPolicy {
            key: ObjectKey::new("ns0", format!("policy{name}")),
            subject: LabelSelector::everything(),
            ingress: Some(vec![PolicyRule { peers: Peers::Of(peers), ports: Ports::Any }]),
            egress: None,
            standing: Standing::Accepted,
        })
    };
    let pod = |at: u16, app: &str| {
        let labels = [("app", app), ("team", "web"), ("pod-template-hash", "abc")].into_iter().collect();
        let [high, low] = at.to_be_bytes();
        let key = ObjectKey::new(format!("ns{}", at % 100), format!("p{at}"));
        let node = Some(if at == 0 { "n1" } else { "n2" }.into());
        Change::SetPod(Pod { labels, node, addresses: vec![[10, 9, high, low].into()], ..Pod::new(key) })
    };
    let mut cluster = Cluster::new();
    for at in 0..100 {
        let name: Arc<str> = format!("ns{at}").into();
        let labels = [("kubernetes.io/metadata.name", name.clone())].into_iter().collect();
        cluster.apply(Change::SetNamespace(Namespace { name, labels }));
    }
    for at in 0..10_000 {
        cluster.apply(pod(at, "web"));
    }
    for at in 0..4 {
        cluster.apply(policy(at, 4_000 * at));
    }
    let mut resolver = Resolver::of("n1", &cluster);
    let mut step = |what: &str, changes: Vec<Change>| {
        let start = Instant::now();
        for change in changes {
            if let Some(delta) = cluster.apply(change) {
                resolver.update(&cluster, &delta);
            }
        }
        let over = resolver.resolve(&cluster).over_budget.len();
        println!("{what}: {:?}, {over} over budget", start.elapsed());
    };
    step("first sync", vec![]);
    step("after an edit", vec![policy(0, 1_000_000)]);
    step("100 other pods", (1..101).map(|at| pod(at, "other")).collect());
}
