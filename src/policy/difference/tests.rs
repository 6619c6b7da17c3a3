use super::*;
use crate::model::{
    Change, LabelSelector, NetworkPolicy, Peer, Peers, PodPeer, PolicyRule, Port, PortRange, Ports, Protocol,
    Requirement, Scope, Standing,
};

/// A pod with the label `app`, of a Deployment of that name.
fn pod(name: &str, app: &str) -> Change {
    let workload = Workload { kind: "Deployment".into(), name: app.into() };
    Change::SetPod(Pod {
        labels: [("app", app)].into_iter().collect(),
        workload: Some(workload.into()),
        ..Pod::new(ObjectKey::new("shop", name))
    })
}

/// Lets only these apps reach `app`, on 80/TCP.
fn policy(app: &str, from: &[&str]) -> Change {
    let selector = |app: &str| LabelSelector::new([Requirement::equals("app", app)]);
    let peer = |app: &&str| Peer::Pods(PodPeer { scope: Scope::Own("shop".into()), pods: selector(app) });
    let ports = Ports::Of(vec![Port::Range(Protocol::Tcp, PortRange::single(80))]);
    Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new("shop", format!("to-{app}")),
        subject: selector(app),
        ingress: Some(vec![PolicyRule { peers: Peers::Of(from.iter().map(peer).collect()), ports }]),
        egress: None,
        standing: Standing::Accepted,
    })
}

fn cluster(changes: impl IntoIterator<Item = Change>) -> Cluster {
    let mut cluster = Cluster::new();
    for change in changes {
        cluster.apply(change);
    }
    cluster
}

fn rows(before: &Cluster, after: &Cluster) -> Vec<String> {
    let difference = Difference::between(before, after, Limits::default()).unwrap();
    let names = |ends: &[usize]| {
        let name = |at: &usize| match (difference.ends[*at].pod(), difference.ends[*at].network) {
            (Some(key), _) => key.name.to_string(),
            (None, network) => network.unwrap().to_string(),
        };
        ends.iter().map(name).collect::<Vec<_>>().join("+")
    };
    let text = |row: &Row| format!("{:?} {} > {} {}", row.kind, names(&row.from), names(&row.to), row.ports);
    difference.rows.iter().map(text).collect()
}

#[test]
fn pods_with_other_names_are_the_same_if_their_workload_is() {
    let before = cluster([pod("web-1", "web"), pod("web-2", "web"), pod("db-1", "db"), policy("db", &[])]);
    let after = cluster([pod("web-3", "web"), pod("db-2", "db"), pod("db-3", "db"), policy("db", &["web"])]);
    assert_eq!(rows(&before, &after), ["Opened web-3+web-3 > db-2+db-3 80/TCP"]);
    assert!(rows(&before, &before).is_empty());
    let scaled = cluster([pod("web-1", "web"), pod("db-1", "db"), pod("db-2", "db"), policy("db", &[])]);
    assert!(rows(&before, &scaled).is_empty(), "{:?}", rows(&before, &scaled));
}

#[test]
fn isolation_of_two_workloads_is_one_row_although_neither_reaches_itself() {
    let pods = || [pod("web", "web"), pod("db", "db"), pod("cache", "cache")];
    let isolated = cluster(pods().into_iter().chain([policy("db", &[]), policy("cache", &[])]));
    let everyone = "cache+db+web+0.0.0.0/0+::/0";
    assert_eq!(rows(&cluster(pods()), &isolated), [format!("Closed {everyone} > cache+db all traffic")]);
}

#[test]
fn flows_of_a_pod_that_only_one_side_has_are_new_or_removed() {
    let before = cluster([pod("web", "web"), pod("db", "db"), policy("db", &["web", "job"])]);
    let after =
        cluster([pod("web", "web"), pod("db", "db"), policy("db", &["web", "job"]), pod("job", "job")]);
    let new: Vec<String> = rows(&before, &after).into_iter().filter(|row| row.contains("job > db")).collect();
    assert_eq!(new, ["New job > db 80/TCP"]);
    assert!(rows(&before, &after).iter().all(|row| row.starts_with("New")));
    assert!(rows(&after, &before).iter().all(|row| row.starts_with("Removed")));
    let difference = Difference::between(&before, &after, Limits::default()).unwrap();
    assert_eq!(difference.only_in(Kind::New).count(), 1);
    assert_eq!(difference.only_in(Kind::Removed).count(), 0);
}

#[test]
fn more_classes_than_the_limit_are_refused() {
    let cluster = cluster([pod("web", "web"), pod("db", "db"), policy("db", &["web"])]);
    let limits = Limits { classes: 2, ..Limits::default() };
    let refused = Difference::between(&cluster, &cluster, limits).unwrap_err();
    assert_eq!(refused, TooManyClasses { classes: 4, limit: 2 });
}
