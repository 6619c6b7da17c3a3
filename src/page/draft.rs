//! A policy that is being written: its faults, the pods that it selects, and what it would change.

use std::path::Path;

use k8s_openapi::api::networking::v1;
use serde::Serialize;

use super::{Edit, Failure, Snapshot, graph, key_of};
use crate::{
    k8s::{
        fault::{Fault, Severity},
        manifest::{Options, deserialize::ObjectReader, load_text},
        yaml::{node, path::FieldPath},
    },
    model::{Change, Cluster, Direction, NetworkPolicy, ObjectKey, Standing},
    policy::findings::{self, About, Knowledge, Level, Part, Place},
};

/// What is known about a text while it is written.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Validation {
    /// What is wrong with it, by position.
    pub faults: Vec<FaultAt>,
    /// The policy that it is: `namespace/name`.
    pub policy: Option<String>,
    /// The pods that it selects.
    pub pods: Vec<String>,
    /// Whether it could be stored as it is.
    pub valid: bool,
}

/// A fault in the text.
#[derive(Clone, Debug, Serialize)]
pub struct FaultAt {
    /// The line, counted from 1.
    pub line: u32,
    /// The column in characters, counted from 1.
    pub column: u32,
    /// `error` or `warning`.
    pub severity: String,
    /// What is wrong, and what to do.
    pub text: String,
    /// The field.
    pub path: String,
}

impl FaultAt {
    fn of(fault: &Fault) -> Self {
        let (severity, text, path) = (fault.severity.to_string(), fault.text.clone(), fault.path.clone());
        Self { line: fault.line, column: fault.column, severity, text, path }
    }

    fn at_start(severity: Severity, text: impl Into<String>) -> Self {
        let (severity, text) = (severity.to_string(), text.into());
        Self { line: 1, column: 1, severity, text, path: String::new() }
    }
}

/// The one policy of a text, and every fault.
fn read(text: &str, cluster: &Cluster) -> (Option<NetworkPolicy>, Vec<FaultAt>) {
    let loaded = load_text(Path::new("the policy"), text, Options::default());
    let mut policies: Vec<NetworkPolicy> = Vec::new();
    let mut others = loaded.skipped.values().sum::<usize>();
    for change in loaded.changes {
        match change {
            Change::SetPolicy(policy) => policies.push(policy),
            Change::SetPod(_) => others += 1,
            // The namespaces that every cluster has are always among them.
            _ => {}
        }
    }
    let is_known = |name: &str| cluster.namespace(name).is_some() || cluster.pods_in(name).next().is_some();
    let named_in = |policy: &NetworkPolicy| is_known(&policy.key.namespace);
    // A text alone never declares the namespace that it is in: the cluster does.
    let mut faults: Vec<FaultAt> = loaded
        .faults
        .iter()
        .filter(|fault| fault.is_error() || fault.path != "metadata.namespace")
        .map(FaultAt::of)
        .collect();
    let error = |text: &str| FaultAt::at_start(Severity::Error, text);
    if policies.len() > 1 || others > 0 {
        faults.push(error("more than one object: write one NetworkPolicy here"));
        return (None, faults);
    }
    let policy = policies.pop();
    match &policy {
        None if faults.is_empty() => faults.push(error("no NetworkPolicy: write one here")),
        Some(policy) if !named_in(policy) => {
            let text = format!("there is no namespace {}: this policy selects no pod", policy.key.namespace);
            faults.push(FaultAt::at_start(Severity::Warning, text));
        }
        _ => {}
    }
    (policy, faults)
}

/// Checks a text.
#[must_use]
pub fn validate(text: &str, snapshot: &Snapshot) -> Validation {
    let (policy, mut faults) = read(text, &snapshot.cluster);
    let accepted = policy.as_ref().is_some_and(|policy| policy.standing == Standing::Accepted);
    let pods: Vec<String> = policy.iter().flat_map(|one| selected(&snapshot.cluster, one)).collect();
    if let Some(policy) = policy.as_ref().filter(|_| accepted) {
        let found = lint(text, policy, &snapshot.cluster);
        if pods.is_empty() && faults.is_empty() && found.is_empty() {
            let text = format!("no pod in {} matches podSelector {}", policy.key.namespace, policy.subject);
            faults.push(FaultAt::at_start(Severity::Warning, text));
        }
        faults.extend(found);
    }
    let valid = accepted && !faults.iter().any(|fault| fault.severity == "error");
    Validation { policy: policy.map(|policy| policy.key.to_string()), faults, pods, valid }
}

/// What the policy probably does not mean, as `towpath lint` finds it, beside the policies of its namespace.
fn lint(text: &str, policy: &NetworkPolicy, cluster: &Cluster) -> Vec<FaultAt> {
    let mut beside = Cluster::new();
    for namespace in cluster.namespaces() {
        beside.apply(Change::SetNamespace((**namespace).clone()));
    }
    for pod in cluster.pods() {
        beside.apply(Change::SetPod((**pod).clone()));
    }
    for other in cluster.policies_in(&policy.key.namespace) {
        beside.apply(Change::SetPolicy((**other).clone()));
    }
    beside.apply(Change::SetPolicy(policy.clone()));
    let of_pods = cluster.pods().map(|pod| pod.key.namespace.clone());
    let undeclared = of_pods.filter(|name| cluster.namespace(name).is_none()).collect();
    let knowledge = Knowledge { undeclared, ..Knowledge::default() };
    let (documents, _) = node::parse(text);
    let Some(root) = documents.iter().find_map(|document| document.root.as_ref()) else { return Vec::new() };
    let found = findings::find(&beside, &knowledge).found.into_iter();
    found
        .filter(|finding| finding.about == About::Policy(policy.key.clone()))
        .map(|finding| {
            let path = path_of(finding.place);
            let at = root.position(&path);
            let severity = if finding.level == Level::Note { Severity::Note } else { Severity::Warning };
            let (severity, path) = (severity.to_string(), path.to_string());
            FaultAt { line: at.line, column: at.column, severity, text: finding.text, path }
        })
        .collect()
}

/// The field of a policy that a finding is about.
fn path_of(place: Place) -> FieldPath {
    let rules = |direction: Direction| {
        FieldPath::of(&["spec", if direction == Direction::Ingress { "ingress" } else { "egress" }])
    };
    match place {
        Place::Name => FieldPath::of(&["metadata", "name"]),
        Place::Namespace => FieldPath::of(&["metadata", "namespace"]),
        Place::Subject => FieldPath::of(&["spec", "podSelector"]),
        Place::Rules(direction) => rules(direction),
        Place::Rule(direction, rule) => rules(direction).index(rule),
        Place::Port(direction, rule, port) => rules(direction).index(rule).key("ports").index(port),
        Place::Peer(direction, rule, peer, part) => {
            let list = if direction == Direction::Ingress { "from" } else { "to" };
            let peer = rules(direction).index(rule).key(list).index(peer);
            match part {
                Part::Whole => peer,
                Part::Pods => peer.key("podSelector"),
                Part::Namespaces => peer.key("namespaceSelector"),
                Part::Block => peer.key("ipBlock").key("cidr"),
                Part::Excepts => peer.key("ipBlock").key("except"),
            }
        }
    }
}

/// The pods that a policy selects, by name.
#[must_use]
pub fn selected(cluster: &Cluster, policy: &NetworkPolicy) -> Vec<String> {
    let pods = cluster.pods_in(&policy.key.namespace);
    let pods = pods.filter(|pod| pod.is_subject() && policy.subject.matches(&pod.labels));
    pods.map(|pod| pod.key.to_string()).collect()
}

/// The graph after an edit, and what it opens and closes.
///
/// # Errors
/// If the text is not one valid policy.
pub fn compare(edit: &Edit, snapshot: &Snapshot) -> Result<graph::Comparison, Failure> {
    let mut after = snapshot.cluster.clone();
    if let Some(replaced) = &edit.replaces {
        after.apply(Change::RemovePolicy(key_of(replaced)?));
    }
    if let Some(text) = &edit.text {
        after.apply(Change::SetPolicy(accepted(text, &snapshot.cluster)?));
    }
    Ok(graph::compare(&snapshot.cluster, &after))
}

/// The policy of a text without errors.
pub(super) fn accepted(text: &str, cluster: &Cluster) -> Result<NetworkPolicy, Failure> {
    let (policy, faults) = read(text, cluster);
    let fault = faults.iter().find(|fault| fault.severity == "error");
    match (policy, fault) {
        (Some(policy), None) => Ok(policy),
        (_, Some(FaultAt { line, column, text, path, .. })) => {
            let path = if path.is_empty() { String::new() } else { format!(" ({path})") };
            Err(Failure::new(422, format!("line {line}, column {column}: {text}{path}")))
        }
        (None, None) => Err(Failure::new(422, "there is no NetworkPolicy in this text")),
    }
}

/// Which policy a text is.
///
/// # Errors
/// If the text is not one valid policy.
pub(super) fn key(text: &str) -> Result<ObjectKey, Failure> {
    Ok(accepted(text, &Cluster::new())?.key)
}

/// The object of a text, with every field that the API knows.
///
/// # Errors
/// If the text is not one valid policy.
pub(super) fn object(text: &str) -> Result<v1::NetworkPolicy, Failure> {
    let key = key(text)?;
    let (documents, _) = node::parse(text);
    let root = documents.iter().find_map(|document| document.root.as_ref());
    let object: Option<v1::NetworkPolicy> = root.and_then(|root| ObjectReader::new(root).read());
    let mut object = object.ok_or_else(|| Failure::new(422, "there is no NetworkPolicy in this text"))?;
    object.metadata.namespace = Some(key.namespace.to_string());
    // These are the API server's: a person who copied them from another version does not mean them.
    object.metadata.managed_fields = None;
    object.metadata.resource_version = None;
    object.metadata.uid = None;
    object.metadata.creation_timestamp = None;
    object.metadata.generation = None;
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pod;

    const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                          metadata: {name: p, namespace: shop, labels: {team: a}}\nspec: {podSelector: {}}\n";

    /// A pod in the namespace `shop`.
    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.cluster.apply(Change::SetPod(Pod::new(ObjectKey::new("shop", "web"))));
        snapshot
    }

    fn faults(text: &str) -> (bool, Vec<String>) {
        let Validation { faults, valid, .. } = validate(text, &snapshot());
        let texts =
            faults.into_iter().map(|fault| format!("{} {}: {}", fault.severity, fault.line, fault.text));
        (valid, texts.collect())
    }

    #[test]
    fn valid_policy_has_its_pods_and_no_fault() {
        let validation = validate(POLICY, &snapshot());
        assert!(
            validation.valid && !validation.faults.iter().any(|fault| fault.severity == "error"),
            "{validation:?}"
        );
        assert_eq!(
            (validation.policy.as_deref(), &*validation.pods),
            (Some("shop/p"), &["shop/web".to_owned()][..])
        );
    }

    #[test]
    fn policy_that_selects_nothing_is_valid_with_a_warning() {
        let (valid, texts) =
            faults(&POLICY.replace("podSelector: {}", "podSelector: {matchLabels: {app: nobody}}"));
        assert!(valid && texts.iter().any(|text| text.starts_with("warning ")), "{texts:?}");
        let (valid, texts) = faults(&POLICY.replace("shop", "nowhere"));
        assert!(
            valid && texts == ["warning 1: there is no namespace nowhere: this policy selects no pod"],
            "{texts:?}"
        );
    }

    #[test]
    fn text_must_be_exactly_one_policy() {
        let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}\n";
        let other = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: a}\n";
        let second = format!("---\n{}", POLICY.replace("name: p", "name: q"));
        for more in [pod, other, &second] {
            let (valid, texts) = faults(&[POLICY, more].concat());
            assert!(
                !valid && texts.iter().any(|text| text.contains("more than one object")),
                "{more}: {texts:?}"
            );
        }
        for text in ["", "# nothing\n", "kind: [", "a: b\n"] {
            let (valid, texts) = faults(text);
            assert!(!valid && texts.iter().any(|text| text.starts_with("error")), "{text:?}: {texts:?}");
        }
    }

    #[test]
    fn object_for_the_api_server_has_every_field_but_those_that_the_server_sets() {
        let text = POLICY.replace("labels:", "resourceVersion: '7', uid: u, labels:");
        let object = object(&text).unwrap();
        assert_eq!((object.metadata.resource_version, object.metadata.uid), (None, None));
        assert_eq!(object.metadata.labels.unwrap()["team"], "a");
        assert!(object.spec.unwrap().pod_selector.is_some());
    }
}
