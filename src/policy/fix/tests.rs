//! Which labels are chosen, when a rule is patched and when a policy is added, and what cannot be fixed.

use std::sync::Arc;

use super::*;
use crate::model::{Endpoint, Labels, Namespace, Workload};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

fn equals(pairs: &[(&str, &str)]) -> LabelSelector {
    LabelSelector::new(pairs.iter().map(|(key, value)| Requirement::equals(*key, *value)))
}

fn pod(key: &str, workload: &str, pairs: &[(&str, &str)]) -> Pod {
    let workload = (!workload.is_empty())
        .then(|| Arc::new(Workload { kind: "Deployment".into(), name: workload.into() }));
    Pod { labels: labels(pairs), workload, ..Pod::new(key.parse().unwrap()) }
}

fn from(pairs: &[(&str, &str)]) -> Peer {
    Peer::Pods(PodPeer { scope: Scope::Own("shop".into()), pods: equals(pairs) })
}

fn tcp(port: u16) -> Port {
    Port::Range(Protocol::Tcp, PortRange::single(port))
}

fn policy(subject: &[(&str, &str)], rules: Vec<PolicyRule>) -> NetworkPolicy {
    NetworkPolicy {
        key: ObjectKey::new("shop", "p"),
        subject: equals(subject),
        ingress: Some(rules),
        egress: None,
        standing: Standing::Accepted,
    }
}

fn rule(peers: Vec<Peer>, ports: Vec<Port>) -> PolicyRule {
    PolicyRule { peers: Peers::Of(peers), ports: Ports::Of(ports) }
}

fn cluster(
    pods: impl IntoIterator<Item = Pod>,
    policies: impl IntoIterator<Item = NetworkPolicy>,
) -> Cluster {
    let mut cluster = Cluster::new();
    let labels = [(NAME_LABEL, "shop")].into_iter().collect();
    cluster.apply(Change::SetNamespace(Namespace { name: "shop".into(), labels }));
    for pod in pods {
        cluster.apply(Change::SetPod(pod));
    }
    for policy in policies {
        cluster.apply(Change::SetPolicy(policy));
    }
    cluster
}

fn flow(from: &str, to: &str) -> Flow {
    let end =
        |text: &str| text.parse().map_or_else(|_| Endpoint::Pod(text.parse().unwrap()), Endpoint::Address);
    Flow { from: end(from), to: end(to), transport: "80".parse().unwrap(), family: None }
}

fn step_for(cluster: &Cluster, from: &str) -> Step {
    let fix = fix(cluster, &flow(from, "shop/db")).unwrap();
    let [step] = &fix.steps[..] else { panic!("{fix:?}") };
    step.clone()
}

fn web() -> Pod {
    pod("shop/web", "", &[("app", "web")])
}

fn db() -> Pod {
    pod("shop/db", "", &[("app", "db")])
}

#[test]
fn labels_of_a_workload_are_the_fewest_usual_ones_that_no_other_has() {
    let hash = ("pod-template-hash", "5d");
    let chosen = |pods: &[Pod]| {
        let Chosen { selector, exact } = selector_of(&cluster(pods.to_vec(), []), &pods[0]).unwrap();
        (selector.to_string(), exact)
    };
    let web = |name: &str, more: &[(&str, &str)]| {
        pod(name, "web", &[&[hash, ("a", "b"), ("app", "web"), ("version", "1")], more].concat())
    };
    assert_eq!(chosen(&[web("shop/web-1", &[]), web("shop/web-2", &[])]), ("app=web".to_owned(), true));
    let other = pod("shop/x", "x", &[("app", "web")]);
    assert_eq!(chosen(&[web("shop/web-1", &[]), other.clone()]), ("a=b".to_owned(), true));
    let both = pod("shop/y", "y", &[("a", "b"), ("version", "1")]);
    assert_eq!(
        chosen(&[web("shop/web-1", &[]), other, both.clone()]),
        ("a=b,app=web".to_owned(), true),
        "no single label is enough"
    );
    let same = pod("shop/z", "z", &[hash, ("a", "b"), ("app", "web"), ("version", "1")]);
    assert!(!chosen(&[web("shop/web-1", &[]), same]).1, "the hash of a template does not last");
    let of_another_namespace = pod("bank/z", "z", &[("app", "web")]);
    assert_eq!(chosen(&[web("shop/web-1", &[]), of_another_namespace]).0, "app=web");
    assert!(selector_of(&cluster([], []), &pod("shop/bare", "", &[hash])).is_none());
}

#[test]
fn rule_is_patched_only_if_that_opens_nothing_else() {
    let api = || from(&[("app", "api")]);
    let exact = policy(&[("app", "db")], vec![rule(vec![api()], vec![tcp(80)])]);
    let step = step_for(&cluster([web(), db()], [exact]), "shop/web");
    assert_eq!((step.edit, step.exact), (Edit::AddPeer(0, from(&[("app", "web")])), true));

    let other_ports = policy(&[("app", "db")], vec![rule(vec![api()], vec![tcp(80), tcp(81)])]);
    let other_subjects = policy(&[], vec![rule(vec![api()], vec![tcp(80)])]);
    for wide in [other_ports, other_subjects] {
        let step = step_for(&cluster([web(), db()], [wide]), "shop/web");
        assert_eq!((&step.edit, step.exact), (&Edit::Create, true));
        assert_eq!(step.policy.key.to_string(), "shop/db-from-web");
        assert_eq!(step.policy.subject, equals(&[("app", "db")]));
        assert_eq!(step.policy.ingress.unwrap(), [rule(vec![from(&[("app", "web")])], vec![tcp(80)])]);
    }

    let from_web = policy(&[("app", "db")], vec![rule(vec![from(&[("app", "web")])], vec![tcp(81)])]);
    let step = step_for(&cluster([web(), db()], [from_web]), "shop/web");
    assert_eq!(step.edit, Edit::AddPort(0, tcp(80)));
    let from_all = policy(&[("app", "db")], vec![rule(vec![from(&[])], vec![tcp(81)])]);
    let step = step_for(&cluster([web(), db()], [from_all]), "shop/web");
    assert_eq!(step.edit, Edit::Create, "the port would be open to all of them");
}

#[test]
fn typo_is_corrected_with_all_that_the_rule_allows() {
    let typo = policy(&[("app", "db")], vec![rule(vec![from(&[("app", "wbe")])], vec![tcp(80), tcp(81)])]);
    let step = step_for(&cluster([web(), db()], [typo.clone()]), "shop/web");
    assert_eq!((step.edit, step.exact), (Edit::ReplacePeer(0, 0, from(&[("app", "web")])), false));
    // If somebody has the label, it is no mere typo: that pod must not lose what it has.
    let wbe = pod("shop/wbe", "", &[("app", "wbe")]);
    let step = step_for(&cluster([web(), db(), wbe], [typo]), "shop/web");
    assert_eq!(step.edit, Edit::AddPeer(0, from(&[("app", "web")])));
}

#[test]
fn new_policy_has_a_free_name_and_isolates_no_pod_that_was_open() {
    let deny = policy(&[], vec![]);
    let taken =
        NetworkPolicy { key: ObjectKey::new("shop", "db-from-web"), ..policy(&[("app", "x")], vec![]) };
    let step = step_for(&cluster([web(), db()], [deny, taken]), "shop/web");
    assert_eq!(step.policy.key.to_string(), "shop/db-from-web-2");

    // Only `tier: back` is isolated, and `app: db` would isolate another pod.
    let back = policy(&[("app", "db"), ("tier", "back")], vec![]);
    let (db, front) = (
        pod("shop/db", "db", &[("app", "db"), ("tier", "back")]),
        pod("shop/front", "db", &[("app", "db"), ("tier", "front")]),
    );
    let step = step_for(&cluster([web(), db, front], [back.clone()]), "shop/web");
    assert_eq!(step.policy.subject, back.subject);
}

#[test]
fn both_directions_may_need_a_change() {
    let egress = NetworkPolicy {
        key: ObjectKey::new("shop", "e"),
        ingress: None,
        egress: Some(vec![]),
        ..policy(&[], vec![])
    };
    let cluster = cluster([web(), db()], [policy(&[], vec![]), egress]);
    let fix = fix(&cluster, &flow("shop/web", "shop/db")).unwrap();
    let names: Vec<String> = fix.steps.iter().map(|step| step.policy.key.to_string()).collect();
    assert_eq!(names, ["shop/web-to-db", "shop/db-from-web"]);
}

#[test]
fn what_no_policy_can_allow_is_said() {
    let none = |cluster: &Cluster, from: &str| fix(cluster, &flow(from, "shop/db")).unwrap_err().to_string();
    let deny = || policy(&[], vec![]);
    let bare = pod("shop/web", "", &[]);
    assert_eq!(
        none(&cluster([bare, db()], [deny()]), "shop/web"),
        "give shop/web a label by which a policy can select it"
    );
    let elsewhere = pod("bank/web", "", &[("app", "web")]);
    assert!(
        none(&cluster([elsewhere, db()], [deny()]), "bank/web").contains("the namespace bank is not among")
    );
    let refused = NetworkPolicy { standing: Standing::Refused, ..deny() };
    assert!(none(&cluster([web(), db()], [refused]), "shop/web").starts_with("correct shop/p first"));
    assert_eq!(none(&cluster([web(), db()], []), "shop/web"), "the flow is allowed");
    let host = Pod { host_network: true, ..web() };
    assert!(none(&cluster([host, db()], [deny()]), "shop/web").contains("has no address"));
}
