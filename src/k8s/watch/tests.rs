//! The results of single events and lists, without a server.

use serde_json::json;

use super::{
    inventory::{Inventory, Update},
    kinds::Watched,
    received::{Page, Received},
};
use crate::{
    k8s::types,
    model::{Change, ObjectKey, Operator, Standing},
};

fn received<S: Watched>(object: &serde_json::Value) -> Received<S> {
    serde_json::from_str(&object.to_string()).expect("one object")
}

fn policy(name: &str, spec: &serde_json::Value) -> Received<types::NetworkPolicy> {
    received(&json!({"metadata": {"namespace": "shop", "name": name, "resourceVersion": "7"}, "spec": spec}))
}

fn pod(name: &str, more: &serde_json::Value) -> Received<types::Pod> {
    let mut object = json!({"metadata": {"namespace": "shop", "name": name, "labels": {"app": name}}});
    object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    received(&object)
}

fn removed(update: &Update) -> Vec<String> {
    let removed = update.changes.iter().filter_map(|change| match change {
        Change::RemovePod(key) | Change::RemovePolicy(key) => Some(key.to_string()),
        _ => None,
    });
    let mut removed: Vec<String> = removed.collect();
    removed.sort();
    removed
}

fn standing(update: &Update) -> Option<Standing> {
    match &*update.changes {
        [Change::SetPolicy(policy)] => Some(policy.standing),
        [] => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn objects_missing_from_a_new_list_are_removed_in_the_same_update() {
    let mut pods = Inventory::<types::Pod>::new();
    pods.begin_list();
    for name in ["a", "b", "c"] {
        assert!(
            pods.set(&pod(name, &json!({}))).changes.is_empty(),
            "changes of a list are reported when it is complete"
        );
    }
    assert_eq!(pods.end_list().changes.len(), 3);
    pods.begin_list();
    pods.set(&pod("b", &json!({})));
    let update = pods.end_list();
    assert_eq!(removed(&update), ["shop/a", "shop/c"]);
    assert_eq!(update.changes.len(), 3);
}

#[test]
fn list_reports_how_many_objects_came_or_went() {
    let mut pods = Inventory::<types::Pod>::new();
    for (names, came_or_went) in [(&["a", "b"][..], 2), (&["a", "b"], 0), (&["b", "c", "d"], 3)] {
        pods.begin_list();
        for name in names {
            pods.set(&pod(name, &json!({})));
        }
        assert_eq!(pods.end_list().came_or_went, came_or_went, "{names:?}");
    }
}

#[test]
fn interrupted_list_changes_nothing() {
    let mut pods = Inventory::<types::Pod>::new();
    pods.begin_list();
    pods.set(&pod("a", &json!({})));
    assert_eq!(pods.end_list().changes.len(), 1);
    // The first one breaks off before its first object.
    pods.begin_list();
    pods.begin_list();
    pods.set(&pod("a", &json!({})));
    assert_eq!(removed(&pods.end_list()), Vec::<String>::new());
}

#[test]
fn object_deleted_during_a_list_is_removed_at_its_end() {
    let mut pods = Inventory::<types::Pod>::new();
    pods.begin_list();
    pods.set(&pod("a", &json!({})));
    pods.remove(&pod("a", &json!({})));
    let update = pods.end_list();
    assert!(matches!(&*update.changes, [Change::RemovePod(_)]), "{update:?}");
    assert!(pods.is_empty());
}

#[test]
fn refused_policy_keeps_its_last_good_version_or_else_isolates() {
    let bad = json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}]});
    let good = json!({"podSelector": {}, "ingress": [{}]});
    let mut policies = Inventory::<types::NetworkPolicy>::new();

    let update = policies.set(&policy("p", &bad));
    assert_eq!(standing(&update), Some(Standing::Refused));
    let rejected = update.rejected.expect("a refusal");
    assert!(rejected[0].to_string().starts_with("NetworkPolicy shop/p: error: "), "{}", rejected[0]);
    assert!(rejected[0].to_string().ends_with("(spec.ingress[0].from[0].ipBlock.cidr)"), "{}", rejected[0]);

    let update = policies.set(&policy("p", &good));
    assert_eq!(standing(&update), Some(Standing::Accepted));
    assert_eq!(update.rejected, Some(Vec::new()));

    let update = policies.set(&policy("p", &bad));
    assert_eq!(standing(&update), None, "the good version stays");
    assert_eq!(update.rejected.map(|rejected| rejected.len()), Some(1));

    assert_eq!(policies.set(&policy("p", &bad)).rejected, None, "an equal refusal is not reported again");
    let update = policies.remove(&policy("p", &bad));
    assert_eq!((removed(&update), update.rejected), (vec!["shop/p".to_owned()], Some(Vec::new())));
}

#[test]
fn refused_policy_keeps_its_last_good_version_across_a_relist() {
    let bad = json!({"podSelector": {}, "policyTypes": ["Sideways"]});
    let mut policies = Inventory::<types::NetworkPolicy>::new();
    policies.set(&policy("p", &json!({"podSelector": {}})));
    policies.begin_list();
    policies.set(&policy("p", &bad));
    let update = policies.end_list();
    assert!(update.changes.is_empty(), "{update:?}");
    assert_eq!(update.rejected.map(|rejected| rejected.len()), Some(1));
}

#[test]
fn refused_policy_forgets_a_good_version_removed_during_a_list() {
    let (good, bad) =
        (json!({"podSelector": {}}), json!({"podSelector": {}, "policyTypes": ["Ingress", "Up"]}));
    let mut policies = Inventory::<types::NetworkPolicy>::new();
    policies.set(&policy("p", &good));
    policies.begin_list();
    policies.remove(&policy("p", &good));
    policies.set(&policy("p", &bad));
    let update = policies.end_list();
    let Some(Change::SetPolicy(last)) = update.changes.last() else { panic!("nothing isolates: {update:?}") };
    assert_eq!(last.standing, Standing::Refused);
}

#[test]
fn good_version_in_a_list_survives_a_later_refused_one() {
    let (good, bad) =
        (json!({"podSelector": {}}), json!({"podSelector": {}, "policyTypes": ["Ingress", "Up"]}));
    let mut policies = Inventory::<types::NetworkPolicy>::new();
    policies.begin_list();
    policies.set(&policy("p", &good));
    policies.set(&policy("p", &bad));
    let update = policies.end_list();
    assert_eq!(standing(&update), Some(Standing::Accepted));
    assert_eq!(update.rejected.map(|rejected| rejected.len()), Some(1));
}

#[test]
fn malformed_object_is_refused_by_name_and_others_are_read() {
    let page = json!({
        "metadata": {"resourceVersion": "9"},
        "items": [
            {"metadata": {"namespace": "shop", "name": "odd"}, "spec": {"podSelector": {}, "ingress": 5}},
            {"metadata": {"namespace": "shop", "name": "fine"}, "spec": {"podSelector": {}}},
        ],
    });
    let mut page: Page = serde_json::from_str(&page.to_string()).unwrap();
    assert_eq!((&*page.metadata.resource_version, &*page.metadata.next), ("9", ""));
    let mut policies = Inventory::<types::NetworkPolicy>::new();
    policies.begin_list();
    let items: Vec<Received<types::NetworkPolicy>> = page.objects().collect();
    for item in &items {
        policies.set(item);
    }
    let update = policies.end_list();
    let standings: Vec<(String, Standing)> = update
        .changes
        .iter()
        .filter_map(|change| match change {
            Change::SetPolicy(policy) => Some((policy.key.to_string(), policy.standing)),
            _ => None,
        })
        .collect();
    assert_eq!(
        standings,
        [("shop/odd".to_owned(), Standing::Refused), ("shop/fine".to_owned(), Standing::Accepted)]
    );
    let rejected = update.rejected.expect("a refusal");
    assert_eq!(rejected.len(), 1);
    assert_eq!(
        rejected[0].object.as_ref().map(ToString::to_string).as_deref(),
        Some("NetworkPolicy shop/odd")
    );

    // A malformed object can be removed.
    assert_eq!(removed(&policies.remove(&items[0])), ["shop/odd"]);
}

#[test]
fn invalid_label_value_in_a_stored_selector_is_accepted() {
    let spec = json!({"podSelector": {"matchExpressions": [
        {"key": "app", "operator": "NotIn", "values": ["not a value!"]},
    ]}});
    let mut policies = Inventory::<types::NetworkPolicy>::new();
    let update = policies.set(&policy("old", &spec));
    let [Change::SetPolicy(policy)] = &*update.changes else { panic!("{update:?}") };
    assert_eq!((policy.standing, update.rejected.as_deref()), (Standing::Accepted, None));
    let [requirement] = policy.subject.requirements() else { panic!("one requirement") };
    assert!(matches!(&requirement.operator, Operator::NotIn(values) if &*values[0] == "not a value!"));
}

#[test]
fn valid_fields_of_a_partly_invalid_pod_are_used() {
    let mut pods = Inventory::<types::Pod>::new();
    let invalid = json!({
        "spec": {"nodeName": "n1", "containers": [{"ports": [{"containerPort": 99999}, {"containerPort": 80}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "what"}]},
    });
    let update = pods.set(&pod("a", &invalid));
    let [Change::SetPod(pod)] = &*update.changes else { panic!("{update:?}") };
    assert_eq!((pod.addresses.len(), pod.ports.len(), pod.node.as_deref()), (1, 1, Some("n1")));
    assert_eq!(update.rejected.map(|rejected| rejected.len()), Some(2));
}

#[test]
fn only_node_addresses_of_host_network_pods_are_kept() {
    let host = |phase: &str| {
        json!({
            "spec": {"nodeName": "n1", "hostNetwork": true, "containers": [{"ports": [{"containerPort": 80}]}]},
            "status": {"phase": phase, "podIPs": [{"ip": "192.168.0.1"}], "hostIPs": [{"ip": "192.168.0.1"}]},
        })
    };
    let mut pods = Inventory::<types::Pod>::new();
    let update = pods.set(&pod("a", &host("Running")));
    let [Change::SetPod(kept)] = &*update.changes else { panic!("{update:?}") };
    assert_eq!(kept.key, ObjectKey::new("shop", "a"));
    assert!(kept.addresses.is_empty() && kept.ports.is_empty() && kept.labels.iter().next().is_none());
    assert_eq!(kept.node_addresses.len(), 1);
    assert_eq!(
        pods.set(&pod("a", &host("Pending"))).changes,
        update.changes,
        "other changes of it are ignored"
    );
}

#[test]
fn ten_errors_of_an_object_and_the_number_of_others_are_reported() {
    let blocks: Vec<_> = (0..5000).map(|_| json!({"ipBlock": {"cidr": "010.0.0.0/8"}})).collect();
    let mut policies = Inventory::<types::NetworkPolicy>::new();
    policies.begin_list();
    policies.end_list();
    let update = policies.set(&policy("odd", &json!({"podSelector": {}, "ingress": [{"from": blocks}]})));
    assert_eq!(standing(&update), Some(Standing::Refused));
    let texts: Vec<String> = update.rejected.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 11);
    assert!(texts[9].contains("ingress[0].from[9]"), "{texts:?}");
    assert!(texts[10].contains("and 4990 more errors"), "{texts:?}");
}

#[test]
fn many_rejected_objects_of_one_namespace_do_not_hide_those_of_another() {
    let bad = json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "010.0.0.0/8"}}]}]});
    let policy = |namespace: &str, name: &str| -> Received<types::NetworkPolicy> {
        received(&json!({"metadata": {"namespace": namespace, "name": name}, "spec": bad}))
    };
    let mut policies = Inventory::<types::NetworkPolicy>::new();
    policies.begin_list();
    for at in 0..500 {
        policies.set(&policy("evil", &format!("odd-{at}")));
    }
    let listed = policies.end_list();
    assert_eq!((listed.changes.len(), listed.rejected.map(|rejected| rejected.len())), (500, Some(20)));
    let rejected = policies.set(&policy("shop", "mistake")).rejected.expect("it is new");
    assert_eq!(rejected.len(), 21);
    assert!(
        rejected.iter().any(|one| one.to_string().starts_with("NetworkPolicy shop/mistake: ")),
        "{rejected:?}"
    );
}
