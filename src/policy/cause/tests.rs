//! Notes and hints that the mistakes of `tests/mistakes` do not show.

use super::*;
use crate::{
    model::{
        Change, Endpoint, Labels, Namespace, ObjectKey, Operator, Peer, Peers, Pod, PolicyRule, Ports,
        Requirement, Standing,
    },
    policy::evaluate,
};

fn equals(key: &str, value: &str) -> LabelSelector {
    LabelSelector::new([Requirement::equals(key, value)])
}

fn policy(key: &str, subject: LabelSelector, ingress: Vec<PolicyRule>) -> NetworkPolicy {
    let (ingress, egress) = (Some(ingress), None);
    NetworkPolicy { key: key.parse().unwrap(), subject, ingress, egress, standing: Standing::Accepted }
}

fn from(pods: LabelSelector) -> PolicyRule {
    let scope = Scope::Own("shop".into());
    PolicyRule { peers: Peers::Of(vec![Peer::Pods(PodPeer { scope, pods })]), ports: Ports::Any }
}

/// `shop/web` and `shop/db`, without addresses, and the namespaces `shop` and `bank`.
fn cluster(policies: impl IntoIterator<Item = NetworkPolicy>) -> Cluster {
    let mut cluster = Cluster::new();
    for name in ["shop", "bank"] {
        cluster.apply(Change::SetNamespace(Namespace { name: name.into(), labels: Labels::default() }));
    }
    for name in ["web", "db"] {
        let labels = [("app", name)].into_iter().collect();
        cluster.apply(Change::SetPod(Pod { labels, ..Pod::new(ObjectKey::new("shop", name)) }));
    }
    for policy in policies {
        cluster.apply(Change::SetPolicy(policy));
    }
    cluster
}

/// The codes and the texts of the causes and the notes of `shop/web` to `shop/db`.
fn told(policies: impl IntoIterator<Item = NetworkPolicy>) -> Vec<(&'static str, String)> {
    let cluster = cluster(policies);
    let end = |name| Endpoint::Pod(ObjectKey::new("shop", name));
    let flow = Flow { from: end("web"), to: end("db"), transport: "80".parse().unwrap(), family: None };
    let verdict = evaluate(&cluster, &flow);
    let causes = causes(&cluster, &flow, &verdict);
    let causes = causes.iter().map(|cause| (cause.code.name(), cause.to_string()));
    causes
        .chain(notes(&cluster, &flow, &verdict).into_iter().map(|note| (note.code.name(), note.text)))
        .collect()
}

#[track_caller]
fn assert_told(policies: impl IntoIterator<Item = NetworkPolicy>, code: &str, text: &str) {
    let told = told(policies);
    assert!(told.iter().any(|(one, words)| *one == code && words.contains(text)), "{told:?}");
}

#[test]
fn allowed_flow_without_policies_has_nothing_to_tell() {
    assert_eq!(told([]), []);
}

#[test]
fn podselector_with_a_typo_is_told_of_the_pod_that_it_does_not_isolate() {
    assert_told(
        [policy("shop/db", equals("aap", "db"), vec![])],
        "pod_selector_typo",
        "shop/db does not apply to shop/db, nor to any other pod: its podSelector is aap=db. Did you mean app=db?",
    );
    // One that selects another pod is what its author wanted.
    assert_eq!(told([policy("shop/web", equals("app", "web"), vec![])]), []);
}

#[test]
fn policy_in_another_namespace_is_told_of_the_pod_that_it_does_not_isolate() {
    assert_told(
        [policy("bank/db", equals("app", "db"), vec![])],
        "wrong_namespace",
        "bank/db would apply to shop/db, but it is in another namespace",
    );
    assert_eq!(told([policy("bank/all", LabelSelector::everything(), vec![])]), []);
}

#[test]
fn empty_rule_and_missing_label_explain_why_a_flow_is_allowed() {
    let open = PolicyRule { peers: Peers::Any, ports: Ports::Any };
    assert_told(
        [policy("shop/db", equals("app", "db"), vec![open])],
        "empty_rule",
        "shop/db rule 0 is empty (`ingress: [{}]`), and so allows everything.",
    );
    let not_guest = Requirement { key: "tier".into(), operator: Operator::NotIn(["guest".into()].into()) };
    assert_told(
        [policy("shop/db", equals("app", "db"), vec![from(LabelSelector::new([not_guest]))])],
        "missing_label",
        "tier notin (guest) also selects pods that have no label tier, such as shop/web: from[0] of shop/db rule 0.",
    );
}

#[test]
fn refused_policy_is_a_cause_of_its_own() {
    let refused =
        NetworkPolicy { standing: Standing::Refused, ..policy("shop/db", equals("app", "db"), vec![]) };
    assert_told([refused], "refused", "shop/db could not be read, and allows nothing. Correct it");
}

#[test]
fn two_pods_with_one_address_must_both_be_allowed() {
    let mut cluster = cluster([policy("shop/db", equals("app", "db"), vec![from(equals("app", "web"))])]);
    for name in ["web", "job"] {
        let labels = [("app", name)].into_iter().collect();
        let addresses = vec!["10.0.0.1".parse().unwrap()];
        cluster.apply(Change::SetPod(Pod { labels, addresses, ..Pod::new(ObjectKey::new("shop", name)) }));
    }
    let end = |name| Endpoint::Pod(ObjectKey::new("shop", name));
    let flow = Flow { from: end("web"), to: end("db"), transport: "80".parse().unwrap(), family: None };
    let verdict = evaluate(&cluster, &flow);
    let causes = causes(&cluster, &flow, &verdict);
    assert_eq!(causes[0].code, CauseCode::SharedAddress);
    assert!(causes[0].to_string().contains("shop/job has app=job"), "{}", causes[0]);
}

#[test]
fn codes_are_words_that_differ() {
    use CauseCode as C;
    let codes = [
        C::DefaultDeny,
        C::EgressForgotten,
        C::Dns,
        C::PodLabels,
        C::LabelTypo,
        C::NamespaceLabels,
        C::NamespaceName,
        C::OtherNamespace,
        C::BothSelectors,
        C::Port,
        C::PortRange,
        C::ServicePort,
        C::Protocol,
        C::PortName,
        C::AddressBlock,
        C::Except,
        C::Family,
        C::HostNetwork,
        C::NotAPod,
        C::NoAddress,
        C::PeerAndPort,
        C::NotCompared,
        C::Refused,
        C::TooLarge,
        C::SharedAddress,
    ];
    let names: std::collections::BTreeSet<&str> = codes.iter().map(|code| code.name()).collect();
    assert_eq!(names.len(), codes.len());
}
