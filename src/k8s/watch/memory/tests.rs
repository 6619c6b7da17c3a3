use serde_json::{Value, json};

use super::*;
use crate::{
    k8s::{
        types,
        watch::{
            inventory::{Inventory, Update},
            received::Received,
        },
    },
    model::{Change, Standing},
};

/// The node of the daemon.
const NODE: &str = "n1";

type Policies = Inventory<types::NetworkPolicy>;

/// A policy whose rules take about this many KiB.
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
    Inventory::bounded(MemoryLimits { namespace: 100 << 10, all: 250 << 10 }, NODE.into())
}

fn list(policies: &mut Policies, all: &[(&str, usize)]) -> Update {
    policies.begin_list();
    for (key, kib) in all {
        policies.set(&policy(key, *kib));
    }
    policies.end_list()
}

/// The policies of which only the isolation is kept, and whether the limit is that of all namespaces.
fn without_rules(update: &Update) -> Vec<(String, bool)> {
    let policies = update.changes.iter().filter_map(|change| match change {
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
fn namespace_over_its_limit_keeps_no_rules_in_any_order() {
    let all = [("evil/a", 40), ("shop/a", 40), ("evil/b", 40), ("evil/c", 40)];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let update = list(&mut policies(), &order.map(|at| all[at]));
        let mut found = without_rules(&update);
        found.sort();
        assert_eq!(found, closed(&["evil/a", "evil/b", "evil/c"], false), "{order:?}");
        assert!(!update.relist);
    }
}

#[test]
fn largest_namespaces_close_over_the_cluster_limit() {
    let all = [("a/p", 90), ("b/p", 80), ("c/p", 95), ("d/p", 1)];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let mut policies = policies();
        let mut update = list(&mut policies, &order.map(|at| all[at]));
        // During the list, another one may have been the largest: the next list settles it.
        if update.relist {
            update = list(&mut policies, &order.map(|at| all[at]));
        }
        assert_eq!(without_rules(&update), closed(&["c/p"], true), "{order:?}");
        assert!(!update.relist, "{order:?}");
    }
}

/// The namespaces of which the model drops all rules.
fn dropped(update: &Update) -> Vec<&str> {
    let dropped = update.changes.iter().filter_map(|change| match change {
        Change::DropRules(namespace, _) => Some(&**namespace),
        _ => None,
    });
    dropped.collect()
}

#[test]
fn namespace_that_exceeds_its_limit_loses_its_rules_immediately() {
    let mut policies = policies();
    list(&mut policies, &[("evil/a", 40), ("evil/b", 40)]);
    let update = policies.set(&policy("evil/c", 40));
    assert_eq!((without_rules(&update), dropped(&update)), (closed(&["evil/c"], false), vec!["evil"]));
    assert!(!update.relist);
    let update = policies.set(&policy("evil/d", 1));
    assert_eq!((without_rules(&update), dropped(&update)), (closed(&["evil/d"], false), vec![]), "only once");
}

#[test]
fn largest_namespace_loses_its_rules_immediately_over_the_cluster_limit() {
    let mut policies = policies();
    list(&mut policies, &[("a/p", 97), ("b/p", 80)]);
    assert_eq!(dropped(&policies.set(&policy("c/p", 60))), Vec::<&str>::new());
    let update = policies.set(&policy("c/q", 30));
    assert_eq!((without_rules(&update), dropped(&update)), (Vec::new(), vec!["a"]));
    assert!(!update.relist);
    // Another namespace is the largest now, so one that lost its rules before opens.
    let update = policies.set(&policy("b/q", 20));
    assert_eq!((without_rules(&update), dropped(&update)), (closed(&["b/q"], true), vec!["b"]));
    assert!(update.relist);
}

#[test]
fn size_equal_to_a_limit_is_within_it() {
    let size = |key: &str, kib: usize| {
        let update = Policies::new().set(&policy(key, kib));
        let [Change::SetPolicy(policy)] = &*update.changes else { panic!("{update:?}") };
        policy.bytes()
    };
    let (one, two) = (size("a/p", 10), size("b/p", 10));
    let limits = MemoryLimits { namespace: one, all: one + two };
    for (limits, expected) in [
        (limits, Vec::new()),
        (MemoryLimits { namespace: one - 1, ..limits }, closed(&["a/p", "b/p"], false)),
        (MemoryLimits { all: one + two - 1, ..limits }, closed(&["a/p"], true)),
    ] {
        let update = list(&mut Inventory::bounded(limits, NODE.into()), &[("a/p", 10), ("b/p", 10)]);
        assert_eq!(without_rules(&update), expected);
    }
}

/// A version of a policy that cannot be read.
fn rejected(key: &str) -> Received<types::NetworkPolicy> {
    let (namespace, name) = key.split_once('/').unwrap();
    let peer = json!({ "ipBlock": { "cidr": "10.0.0.0/33" } });
    let spec = json!({ "podSelector": {}, "ingress": [{ "from": [peer] }] });
    let object = json!({ "metadata": { "namespace": namespace, "name": name }, "spec": spec });
    serde_json::from_str(&object.to_string()).unwrap()
}

#[test]
fn last_good_version_loses_its_rules_with_its_namespace() {
    let mut policies = policies();
    list(&mut policies, &[("evil/a", 40)]);
    policies.begin_list();
    policies.set(&rejected("evil/a"));
    policies.set(&policy("evil/b", 80));
    let update = policies.end_list();
    assert_eq!(without_rules(&update), closed(&["evil/b"], false));
    assert_eq!(dropped(&update), ["evil"], "the model has the rules of a");
    assert!(!update.relist);
}

#[test]
fn refused_version_replaces_a_version_without_rules() {
    let mut policies = policies();
    list(&mut policies, &[("evil/a", 60), ("evil/b", 60)]);
    let update = policies.set(&rejected("evil/a"));
    let [Change::SetPolicy(stand_in)] = &*update.changes else { panic!("{update:?}") };
    assert_eq!(stand_in.standing, Standing::Refused);
    assert!(update.relist, "the other policy fits now");
    let mut policies = self::policies();
    list(&mut policies, &[("evil/a", 60), ("evil/b", 60)]);
    let mut list_again = || {
        policies.begin_list();
        policies.set(&rejected("evil/a"));
        policies.set(&policy("evil/b", 60));
        policies.end_list()
    };
    assert!(list_again().relist);
    let update = list_again();
    assert!(!update.relist);
    let standings: Vec<Standing> = update
        .changes
        .iter()
        .map(|change| match change {
            Change::SetPolicy(policy) => policy.standing,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(standings, [Standing::Refused, Standing::Accepted]);
}

#[test]
fn listed_version_counts_although_a_later_one_is_refused() {
    let mut policies = policies();
    list(&mut policies, &[("evil/a", 1), ("evil/b", 60)]);
    policies.begin_list();
    policies.set(&policy("evil/a", 60));
    policies.set(&rejected("evil/a"));
    policies.set(&policy("evil/b", 60));
    assert_eq!(without_rules(&policies.end_list()), closed(&["evil/a", "evil/b"], false));
    // One list shows that they fit again, the next one has the rules.
    for expected in [(closed(&["evil/b"], false), true), (Vec::new(), false)] {
        policies.begin_list();
        policies.set(&policy("evil/b", 60));
        policies.remove(&policy("evil/a", 0));
        let update = policies.end_list();
        assert_eq!((without_rules(&update), update.relist), expected);
    }
}

#[test]
fn policy_with_a_too_large_pod_selector_isolates_the_namespace() {
    let values: Vec<String> = (0..5000).map(|at| format!("v{at}")).collect();
    let selector = json!({ "matchExpressions": [{ "key": "x", "operator": "NotIn", "values": values }] });
    let object =
        json!({ "metadata": { "namespace": "evil", "name": "a" }, "spec": { "podSelector": selector } });
    let large: Received<types::NetworkPolicy> = serde_json::from_str(&object.to_string()).unwrap();
    let update = policies().set(&large);
    let policy = update.changes.iter().find_map(|change| match change {
        Change::SetPolicy(policy) => Some(policy),
        _ => None,
    });
    let policy = policy.unwrap();
    assert!(policy.subject.is_everything() && policy.bytes() < 1000, "{policy:?}");
    assert_eq!(policy.ingress.as_deref(), Some(&[][..]));
}

#[test]
fn labels_and_ports_of_a_pod_are_kept_only_with_an_address_or_on_this_node() {
    let pod = |node: &str, address: Option<&str>| -> Received<types::Pod> {
        let ports = json!([{ "name": "http", "containerPort": 80 }, { "containerPort": 81 }]);
        let ips: Vec<Value> = address.iter().map(|ip| json!({ "ip": ip })).collect();
        let object = json!({
            "metadata": { "namespace": "shop", "name": "web", "uid": "u", "labels": { "app": "web" } },
            "spec": { "nodeName": node, "containers": [{ "name": "main", "image": "x", "ports": ports }] },
            "status": { "phase": "Running", "podIPs": ips },
        });
        serde_json::from_str(&object.to_string()).unwrap()
    };
    let mut pods = Inventory::<types::Pod>::bounded(MemoryLimits::default(), NODE.into());
    let some = Some("10.244.1.7");
    for (node, address, [labels, ports, uids]) in [
        ("n2", None, [0, 0, 0]),
        ("n2", some, [1, 1, 0]),
        ("n2", None, [0, 0, 0]),
        (NODE, None, [1, 1, 1]),
        (NODE, some, [1, 1, 1]),
    ] {
        let update = pods.set(&pod(node, address));
        let [Change::SetPod(pod)] = &*update.changes else { panic!("{update:?}") };
        let kept = [pod.labels.iter().count(), pod.ports.len(), pod.uid.iter().count()];
        assert_eq!(kept, [labels, ports, uids], "{node} {address:?}");
    }
}

#[test]
fn namespace_within_its_limit_again_gets_its_rules_by_a_relist() {
    let mut policies = policies();
    list(&mut policies, &[("evil/a", 60), ("evil/b", 60)]);
    let update = policies.set(&policy("evil/b", 10));
    assert_eq!(without_rules(&update), []);
    assert!(update.relist, "the rules of the other policy are missing");
    let update = list(&mut policies, &[("evil/a", 60), ("evil/b", 10)]);
    assert_eq!((without_rules(&update), update.relist), (Vec::new(), false));
    list(&mut policies, &[("evil/a", 60), ("evil/b", 60)]);
    assert!(policies.remove(&policy("evil/a", 0)).relist);
}

#[test]
fn all_rules_are_kept_without_limits() {
    let mut policies = Policies::new();
    let update = list(&mut policies, &[("evil/a", 400), ("evil/b", 400)]);
    assert_eq!((without_rules(&update), update.relist), (Vec::new(), false));
}
