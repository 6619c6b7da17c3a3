//! What a cluster would be after `kubectl apply` of some objects.

use std::sync::Arc;

use crate::model::{Change, Cluster, Labels, Namespace, Pod};

/// Labels that controllers give to each pod, beside those of its template.
const OF_CONTROLLERS: [&str; 9] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "job-name",
    "controller-uid",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/controller-uid",
];

/// `base` with the objects of `applied`: one with the same kind, namespace and name replaces, others stay.
///
/// A template replaces that of the pods which the workload has: they keep their names, nodes and addresses. Labels of a
/// namespace stay unless they get another value, as others set them, too.
pub(super) fn overlay(base: &Cluster, applied: &Cluster) -> Cluster {
    let mut result = base.clone();
    for namespace in applied.namespaces() {
        result.apply(Change::SetNamespace(match base.namespace(&namespace.name) {
            Some(before) => Namespace {
                name: namespace.name.clone(),
                labels: before.labels.iter().chain(namespace.labels.iter()).collect(),
            },
            None => (**namespace).clone(),
        }));
    }
    for pod in applied.pods() {
        let same = |other: &&Arc<Pod>| pod.workload.is_some() && other.workload == pod.workload;
        let mut existing: Vec<&Arc<Pod>> = base.pods_in(&pod.key.namespace).filter(same).collect();
        existing
            .extend(base.pod(&pod.key).filter(|other| other.workload == pod.workload && existing.is_empty()));
        if existing.is_empty() {
            result.apply(Change::SetPod((**pod).clone()));
        }
        for before in existing {
            result.apply(Change::SetPod(updated(before, pod)));
        }
    }
    for policy in applied.policies() {
        result.apply(Change::SetPolicy((**policy).clone()));
    }
    result
}

/// An existing pod with what `applied` says of it, and with what only a cluster knows.
fn updated(before: &Pod, applied: &Pod) -> Pod {
    let of_controllers = before.labels.iter().filter(|(key, _)| OF_CONTROLLERS.contains(key));
    let of_controllers = of_controllers.filter(|_| applied.workload.is_some());
    let labels: Labels = of_controllers.chain(applied.labels.iter()).collect();
    Pod {
        labels,
        ports: applied.ports.clone(),
        host_network: applied.host_network,
        // A pod that moves to its node's network, or away from it, gets another address.
        addresses: match () {
            () if !applied.addresses.is_empty() => applied.addresses.clone(),
            () if applied.host_network == before.host_network => before.addresses.clone(),
            () => Vec::new(),
        },
        node: applied.node.clone().or_else(|| before.node.clone()),
        ..before.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ContainerPort, LabelSelector, NetworkPolicy, ObjectKey, Protocol, Standing, Workload,
    };

    fn cluster(changes: impl IntoIterator<Item = Change>) -> Cluster {
        let mut cluster = Cluster::new();
        for change in changes {
            cluster.apply(change);
        }
        cluster
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().copied().collect()
    }

    fn of_web(name: &str, pairs: &[(&str, &str)]) -> Pod {
        let workload = Workload { kind: "Deployment".into(), name: "web".into() };
        let key = ObjectKey::new("shop", name);
        Pod { labels: labels(pairs), workload: Some(workload.into()), ..Pod::new(key) }
    }

    #[test]
    fn template_replaces_that_of_all_pods_of_its_workload() {
        let running = |name: &str, address: &str| Pod {
            addresses: vec![address.parse().unwrap()],
            node: Some("n1".into()),
            ..of_web(name, &[("app", "web"), ("old", "1"), ("pod-template-hash", "abc")])
        };
        let base = cluster([
            Change::SetPod(running("web-abc-1", "10.0.0.1")),
            Change::SetPod(running("web-abc-2", "10.0.0.2")),
        ]);
        let ports = vec![ContainerPort { name: None, protocol: Protocol::Tcp, number: 80 }];
        let template = Pod { ports: ports.clone(), ..of_web("web", &[("app", "web"), ("new", "1")]) };
        let after = overlay(&base, &cluster([Change::SetPod(template)]));
        let pods: Vec<&Arc<Pod>> = after.pods().collect();
        assert_eq!(pods.len(), 2);
        for (pod, address) in pods.iter().zip(["10.0.0.1", "10.0.0.2"]) {
            assert_eq!(pod.labels, labels(&[("app", "web"), ("new", "1"), ("pod-template-hash", "abc")]));
            assert_eq!((&pod.ports, pod.addresses[0].to_string().as_str()), (&ports, address));
            assert_eq!(pod.node.as_deref(), Some("n1"));
        }
    }

    #[test]
    fn workload_that_does_not_exist_yet_is_added_with_one_pod() {
        let base = cluster([Change::SetPod(Pod::new(ObjectKey::new("shop", "db")))]);
        let after = overlay(&base, &cluster([Change::SetPod(of_web("web", &[]))]));
        assert_eq!(after.pods().map(|pod| pod.key.to_string()).collect::<Vec<_>>(), ["shop/db", "shop/web"]);
    }

    #[test]
    fn policy_with_the_same_name_is_replaced_and_others_stay() {
        let policy = |name: &str, ingress| {
            Change::SetPolicy(NetworkPolicy {
                key: ObjectKey::new("shop", name),
                subject: LabelSelector::everything(),
                ingress,
                egress: None,
                standing: Standing::Accepted,
            })
        };
        let base = cluster([policy("a", Some(Vec::new())), policy("b", Some(Vec::new()))]);
        let after = overlay(&base, &cluster([policy("b", None), policy("c", None)]));
        let isolates: Vec<_> =
            after.policies().map(|policy| (policy.key.name.to_string(), policy.ingress.is_some())).collect();
        assert_eq!(isolates, [("a".to_owned(), true), ("b".to_owned(), false), ("c".to_owned(), false)]);
    }

    #[test]
    fn labels_that_others_gave_to_a_namespace_stay() {
        let namespace = |pairs: &[(&str, &str)]| {
            cluster([Change::SetNamespace(Namespace { name: "shop".into(), labels: labels(pairs) })])
        };
        let after = overlay(&namespace(&[("team", "a"), ("tier", "1")]), &namespace(&[("team", "b")]));
        assert_eq!(after.namespace("shop").unwrap().labels, labels(&[("team", "b"), ("tier", "1")]));
    }
}
