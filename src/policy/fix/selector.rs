//! The labels by which a policy selects the pods of one workload.

use crate::model::{Cluster, LabelSelector, Pod, Requirement};

/// Labels that people select by, the most telling first.
const USUAL: [&str; 8] = [
    "app.kubernetes.io/name",
    "app",
    "k8s-app",
    "name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "component",
    "role",
];

/// Labels that change from one release to the next, or say nothing of what a pod is.
const PASSING: [&str; 6] = [
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "chart",
    "helm.sh/chart",
    "heritage",
    "version",
];

/// Labels that controllers give to single pods, or to those of one version of a template.
const OF_CONTROLLERS: [&str; 10] = [
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];

/// How many labels of a pod are considered.
const LABELS: usize = 32;

/// A selector for the pods of a workload.
pub(super) struct Chosen {
    pub(super) selector: LabelSelector,
    /// Whether it selects no other pod of the namespace.
    pub(super) exact: bool,
}

/// Whether two pods are of the same workload.
pub(super) fn is_same_workload(a: &Pod, b: &Pod) -> bool {
    a.key == b.key || (a.key.namespace == b.key.namespace && a.workload.is_some() && a.workload == b.workload)
}

/// The fewest labels of `pod` that select no pod of another workload in its namespace, as far as its labels can tell
/// them apart; `None` if it has no label to select by.
pub(super) fn selector_of(cluster: &Cluster, pod: &Pod) -> Option<Chosen> {
    let of_people = pod.labels.iter().filter(|(key, _)| !OF_CONTROLLERS.contains(key)).take(LABELS);
    let mut labels: Vec<(&str, &str)> = of_people.collect();
    labels.sort_by_key(|(key, _)| {
        let usual = USUAL.iter().position(|usual| usual == key).unwrap_or(USUAL.len());
        (PASSING.contains(key), usual)
    });
    let others: Vec<&Pod> = cluster
        .pods_in(&pod.key.namespace)
        .map(|other| &**other)
        .filter(|other| !is_same_workload(other, pod))
        .collect();
    let has = |other: &Pod, (key, value): (&str, &str)| other.labels.get(key) == Some(value);
    let chosen = |labels: &[(&str, &str)], exact| Chosen {
        selector: LabelSelector::new(labels.iter().map(|(key, value)| Requirement::equals(*key, *value))),
        exact,
    };
    let first = labels.first()?;
    if let Some(single) = labels.iter().find(|label| !others.iter().any(|other| has(other, **label))) {
        return Some(chosen(&[*single], true));
    }
    // Each label that tells apart pods which those before it do not.
    let mut picked = vec![*first];
    let mut left: Vec<&Pod> = others.into_iter().filter(|other| has(other, *first)).collect();
    for label in labels.iter().skip(1) {
        let still: Vec<&Pod> = left.iter().copied().filter(|other| has(other, *label)).collect();
        if still.len() < left.len() {
            picked.push(*label);
            left = still;
        }
    }
    Some(chosen(&picked, left.is_empty()))
}
