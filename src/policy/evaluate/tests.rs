//! The cases that implementations get wrong, one sentence each.

use super::*;
use crate::model::{
    Change, ContainerPort, Endpoint, IpBlock, LabelSelector, Namespace, Operator, Phase, Pod, PodPeer,
    PortRange, Protocol, Requirement,
};
use crate::policy::Reachability;

fn key(text: &str) -> ObjectKey {
    text.parse().unwrap()
}

/// `ns/name` with the label `app: name`, and with these addresses.
fn mk_pod(name: &str, addresses: &[&str]) -> Pod {
    let key = key(name);
    let labels = [("app", key.name.clone())].into_iter().collect();
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Pod { labels, addresses, ..Pod::new(key) }
}

fn on_node(node: &str, address: &str, pod: Pod) -> Pod {
    Pod { node: Some(node.into()), node_addresses: vec![address.parse().unwrap()], ..pod }
}

fn with_port(name: &str, protocol: Protocol, number: u16, mut pod: Pod) -> Pod {
    pod.ports.push(ContainerPort { name: Some(name.into()), protocol, number });
    pod
}

/// A policy that selects the pods with `app: subject` in its namespace.
fn mk_policy(
    name: &str,
    subject: &str,
    ingress: Option<Vec<PolicyRule>>,
    egress: Option<Vec<PolicyRule>>,
) -> NetworkPolicy {
    NetworkPolicy { key: key(name), subject: app(subject), ingress, egress, standing: Standing::Accepted }
}

fn app(name: &str) -> LabelSelector {
    LabelSelector::new([Requirement::equals("app", name)])
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    let except = except.iter().map(|except| except.parse().unwrap());
    Peer::Block(IpBlock::new(cidr.parse().unwrap(), except).unwrap())
}

fn pods(scope: Scope, pods: LabelSelector) -> Peer {
    Peer::Pods(PodPeer { scope, pods })
}

fn own(selector: LabelSelector) -> Peer {
    pods(Scope::Own("shop".into()), selector)
}

fn from_peers(peers: impl Into<Vec<Peer>>) -> PolicyRule {
    PolicyRule { peers: Peers::Of(peers.into()), ports: Ports::Any }
}

fn to_ports(ports: impl Into<Vec<Port>>) -> PolicyRule {
    PolicyRule { peers: Peers::Any, ports: Ports::Of(ports.into()) }
}

fn named(name: &str) -> Port {
    Port::Named(Protocol::Tcp, name.into())
}

/// The pods and policies, and an object for the namespace `shop`.
fn mk_cluster(
    pods: impl IntoIterator<Item = Pod>,
    policies: impl IntoIterator<Item = NetworkPolicy>,
) -> Cluster {
    let mut cluster = Cluster::new();
    let labels = [("kubernetes.io/metadata.name", "shop")].into_iter().collect();
    cluster.apply(Change::SetNamespace(Namespace { name: "shop".into(), labels }));
    for pod in pods {
        cluster.apply(Change::SetPod(pod));
    }
    for policy in policies {
        cluster.apply(Change::SetPolicy(policy));
    }
    cluster
}

fn endpoint(text: &str) -> Endpoint {
    text.parse().map_or_else(|_| Endpoint::Pod(key(text)), Endpoint::Address)
}

fn flow(from: &str, to: &str, transport: &str) -> Flow {
    let transport = match transport.strip_prefix("protocol ") {
        Some(number) => Transport::Other(number.parse().unwrap()),
        None => transport.parse().unwrap(),
    };
    Flow { from: endpoint(from), to: endpoint(to), transport, family: None }
}

fn evaluated(cluster: &Cluster, from: &str, to: &str, transport: &str) -> Verdict {
    evaluate(cluster, &flow(from, to, transport))
}

fn passes(cluster: &Cluster, from: &str, to: &str, transport: &str) -> bool {
    evaluated(cluster, from, to, transport).allowed()
}

#[test]
fn pod_without_a_policy_is_not_isolated_and_the_reason_says_so() {
    let cluster = mk_cluster([mk_pod("shop/web", &[]), mk_pod("shop/db", &[])], []);
    let verdict = evaluated(&cluster, "shop/web", "shop/db", "80");
    assert!(verdict.allowed());
    assert!(!verdict.ingress.isolated());
    assert_eq!(verdict.ingress.reason.to_string(), "no policy selects shop/db for ingress");
}

#[test]
fn verdict_names_isolating_policies_and_allowing_rules() {
    let rules = vec![from_peers([own(app("api"))]), from_peers([own(app("web"))]), to_ports([])];
    let open = PolicyRule { peers: Peers::Any, ports: Ports::Any };
    let cluster = mk_cluster(
        [mk_pod("shop/web", &[]), mk_pod("shop/db", &[])],
        [
            mk_policy("shop/a", "db", Some(vec![]), None),
            mk_policy("shop/b", "db", Some(rules), None),
            mk_policy("shop/c", "db", Some(vec![open.clone()]), None),
            mk_policy("shop/other", "web", Some(vec![open.clone()]), None),
            mk_policy("shop/egress", "db", None, Some(vec![open])),
        ],
    );
    let ingress = evaluated(&cluster, "shop/web", "shop/db", "80").ingress;
    assert_eq!(ingress.isolated_by, [key("shop/a"), key("shop/b"), key("shop/c")]);
    let rule = |policy, rule| RuleRef { policy: key(policy), rule };
    assert_eq!(ingress.allowed_by, [rule("shop/b", 1), rule("shop/c", 0)]);
}

#[test]
fn not_in_and_does_not_exist_match_pods_without_the_key() {
    let not_in = Requirement { key: "tier".into(), operator: Operator::NotIn(["guest".into()].into()) };
    let absent = Requirement { key: "tier".into(), operator: Operator::DoesNotExist };
    let guest = Pod { labels: [("tier", "guest")].into_iter().collect(), ..mk_pod("shop/guest", &[]) };
    for requirement in [not_in, absent] {
        let rule = from_peers([own(LabelSelector::new([requirement]))]);
        let cluster = mk_cluster(
            [mk_pod("shop/web", &[]), guest.clone(), mk_pod("shop/db", &[])],
            [mk_policy("shop/p", "db", Some(vec![rule]), None)],
        );
        assert!(passes(&cluster, "shop/web", "shop/db", "80"));
        assert!(!passes(&cluster, "shop/guest", "shop/db", "80"));
    }
}

#[test]
fn named_ingress_port_is_each_selected_pods_number() {
    let selecting_all = NetworkPolicy {
        subject: LabelSelector::everything(),
        ..mk_policy("shop/p", "", Some(vec![to_ports([named("http")])]), None)
    };
    // The sender has the name too, with another number, which must not count.
    let web = with_port("http", Protocol::Tcp, 9000, mk_pod("shop/web", &[]));
    let a = with_port("http", Protocol::Tcp, 80, mk_pod("shop/a", &[]));
    let b = with_port("http", Protocol::Tcp, 8080, mk_pod("shop/b", &[]));
    let cluster = mk_cluster([web, a, b, mk_pod("shop/nameless", &[])], [selecting_all]);
    let reached: Vec<_> = [("a", 80), ("a", 8080), ("b", 80), ("b", 8080), ("a", 9000), ("nameless", 80)]
        .into_iter()
        .filter(|(to, port)| passes(&cluster, "shop/web", &format!("shop/{to}"), &port.to_string()))
        .collect();
    assert_eq!(reached, [("a", 80), ("b", 8080)]);
}

#[test]
fn named_egress_port_is_each_receiving_pods_number_and_nothing_outside() {
    let host = Pod { host_network: true, ..mk_pod("shop/host", &["192.168.0.1"]) };
    let cluster = mk_cluster(
        [
            with_port("http", Protocol::Tcp, 9000, mk_pod("shop/web", &["10.0.0.1"])),
            with_port("http", Protocol::Tcp, 80, mk_pod("shop/a", &["10.0.0.2"])),
            with_port("http", Protocol::Tcp, 8080, mk_pod("bank/b", &["10.0.0.3"])),
            with_port("http", Protocol::Udp, 80, mk_pod("shop/udp", &["10.0.0.4"])),
            with_port("http", Protocol::Tcp, 80, host),
        ],
        [mk_policy("shop/p", "web", None, Some(vec![to_ports([named("http")])]))],
    );
    let reached: Vec<_> = ["shop/a", "bank/b", "shop/udp", "shop/host", "172.17.0.9"]
        .into_iter()
        .flat_map(|to| [(to, 80), (to, 8080), (to, 9000)])
        .filter(|(to, port)| passes(&cluster, "shop/web", to, &port.to_string()))
        .collect();
    assert_eq!(reached, [("shop/a", 80), ("bank/b", 8080)]);
}

#[test]
fn named_port_with_a_block_matches_pods_in_the_block_with_that_name() {
    let rule = PolicyRule {
        peers: Peers::Of(vec![block("10.0.0.0/24", &[])]),
        ports: Ports::Of(vec![named("http")]),
    };
    let cluster = mk_cluster(
        [
            mk_pod("shop/web", &["10.0.0.1"]),
            with_port("http", Protocol::Tcp, 80, mk_pod("shop/in", &["10.0.0.2"])),
            with_port("http", Protocol::Tcp, 80, mk_pod("shop/out", &["10.0.1.2"])),
            mk_pod("shop/nameless", &["10.0.0.3"]),
        ],
        [mk_policy("shop/p", "web", None, Some(vec![rule]))],
    );
    let reached: Vec<_> = ["shop/in", "shop/out", "shop/nameless", "10.0.0.9"]
        .into_iter()
        .filter(|to| passes(&cluster, "shop/web", to, "80"))
        .collect();
    assert_eq!(reached, ["shop/in"]);
}

#[test]
fn port_name_used_twice_by_a_pod_means_both_numbers() {
    let twice = with_port("http", Protocol::Tcp, 80, mk_pod("shop/a", &[]));
    let twice = with_port("http", Protocol::Tcp, 81, twice);
    let cluster = mk_cluster(
        [mk_pod("shop/web", &[]), twice],
        [mk_policy("shop/p", "a", Some(vec![to_ports([named("http")])]), None)],
    );
    assert!(passes(&cluster, "shop/web", "shop/a", "80"));
    assert!(passes(&cluster, "shop/web", "shop/a", "81"));
    assert!(!passes(&cluster, "shop/web", "shop/a", "82"));
}

#[test]
fn port_range_includes_both_ends_and_only_its_protocol() {
    let range = Port::Range(Protocol::Tcp, PortRange::new(8000, 8002).unwrap());
    let cluster = mk_cluster(
        [mk_pod("shop/web", &[]), mk_pod("shop/a", &[])],
        [mk_policy("shop/p", "a", Some(vec![to_ports([range])]), None)],
    );
    let open: Vec<_> = ["7999", "8000", "8001", "8002", "8003", "8001/UDP"]
        .into_iter()
        .filter(|port| passes(&cluster, "shop/web", "shop/a", port))
        .collect();
    assert_eq!(open, ["8000", "8001", "8002"]);
}

#[test]
fn protocol_without_ports_matches_only_rules_without_ports() {
    let pod_list = || [mk_pod("shop/web", &[]), mk_pod("shop/a", &[])];
    let every_port: Vec<Port> = Protocol::ALL.into_iter().map(Port::All).collect();
    for (rule, expected) in [(to_ports(every_port), false), (from_peers([own(app("web"))]), true)] {
        let cluster = mk_cluster(pod_list(), [mk_policy("shop/p", "a", Some(vec![rule]), None)]);
        assert!(passes(&cluster, "shop/web", "shop/a", "80/SCTP"));
        for protocol in ["protocol 1", "protocol 47", "protocol 58"] {
            assert_eq!(passes(&cluster, "shop/web", "shop/a", protocol), expected, "{protocol}");
        }
    }
}

#[test]
fn except_does_not_deny_what_a_sibling_block_covers() {
    let rule = from_peers([
        block("172.17.0.0/16", &["172.17.1.0/24", "172.17.2.0/24"]),
        block("172.17.1.0/25", &["172.17.1.5/32"]),
    ]);
    let cluster =
        mk_cluster([mk_pod("shop/db", &["10.0.0.1"])], [mk_policy("shop/p", "db", Some(vec![rule]), None)]);
    let reaching: Vec<_> =
        ["172.17.9.9", "172.17.1.4", "172.17.1.5", "172.17.1.200", "172.17.2.1", "172.18.0.1"]
            .into_iter()
            .filter(|from| passes(&cluster, from, "shop/db", "80"))
            .collect();
    assert_eq!(reaching, ["172.17.9.9", "172.17.1.4"]);
}

#[test]
fn block_of_one_family_allows_nothing_in_the_other() {
    let rule = from_peers([block("0.0.0.0/0", &[])]);
    let cluster = mk_cluster(
        [mk_pod("shop/web", &["fd00::1", "10.0.0.1"]), mk_pod("shop/db", &["10.0.0.2", "fd00::2"])],
        [mk_policy("shop/p", "db", Some(vec![rule]), None)],
    );
    let by_family: Vec<_> = evaluate_families(&cluster, &flow("shop/web", "shop/db", "80"))
        .into_iter()
        .map(|(family, verdict)| (family, verdict.allowed()))
        .collect();
    // The receiver's first family comes first, and is used if the flow names none.
    assert_eq!(by_family, [(Family::V4, true), (Family::V6, false)]);
    assert!(passes(&cluster, "shop/web", "shop/db", "80"));
    let over_v6 = Flow { family: Some(Family::V6), ..flow("shop/web", "shop/db", "80") };
    assert!(!evaluate(&cluster, &over_v6).allowed());
    assert!(!passes(&cluster, "fd00::1", "shop/db", "80"));
}

#[test]
fn flow_uses_the_receivers_first_family_that_the_sender_has() {
    let rule = from_peers([block("10.0.0.0/8", &[])]);
    let cluster = mk_cluster(
        [mk_pod("shop/v4", &["10.0.0.1"]), mk_pod("shop/db", &["fd00::2", "10.0.0.2"])],
        [mk_policy("shop/p", "db", Some(vec![rule]), None)],
    );
    assert!(passes(&cluster, "shop/v4", "shop/db", "80"));
    let without_common = Flow { family: Some(Family::V6), ..flow("shop/v4", "shop/db", "80") };
    assert!(evaluate_families(&cluster, &without_common).is_empty());
    assert!(!evaluate(&cluster, &without_common).allowed());
}

#[test]
fn host_network_pod_is_matched_only_by_its_nodes_address() {
    let host = Pod { host_network: true, ..mk_pod("shop/host", &["192.168.0.7"]) };
    let host = on_node("n2", "192.168.0.7", host);
    let db = on_node("n1", "192.168.0.1", mk_pod("shop/db", &["10.0.0.1"]));
    let by_labels = from_peers([own(LabelSelector::everything())]);
    let by_address = from_peers([block("192.168.0.7/32", &[])]);
    for (rule, expected) in [(by_labels, false), (by_address, true)] {
        let everyone = NetworkPolicy {
            subject: LabelSelector::everything(),
            ..mk_policy("shop/p", "", Some(vec![rule]), Some(vec![]))
        };
        let cluster = mk_cluster([host.clone(), db.clone()], [everyone]);
        for from in ["shop/host", "192.168.0.7"] {
            assert_eq!(passes(&cluster, from, "shop/db", "80"), expected, "{from}");
        }
        let back = evaluated(&cluster, "shop/db", "shop/host", "80");
        assert!(!back.egress.allowed());
        assert_eq!(back.ingress.reason, Reason::HostNetwork(key("shop/host")));
    }
}

#[test]
fn node_and_its_own_pods_reach_each_other_despite_isolation() {
    let host = Pod { host_network: true, ..mk_pod("kube-system/proxy", &["192.168.0.1"]) };
    let cluster = mk_cluster(
        [
            on_node("n1", "192.168.0.1", mk_pod("shop/here", &["10.0.0.1"])),
            on_node("n2", "192.168.0.2", mk_pod("shop/there", &["10.0.1.1"])),
            on_node("n1", "192.168.0.1", host),
        ],
        [NetworkPolicy {
            subject: LabelSelector::everything(),
            ..mk_policy("shop/closed", "", Some(vec![]), Some(vec![]))
        }],
    );
    for node in ["192.168.0.1", "kube-system/proxy"] {
        let probe = evaluated(&cluster, node, "shop/here", "80").ingress;
        assert_eq!(probe.reason, Reason::FromOwnNode(key("shop/here"), "n1".into()));
        assert!(probe.isolated() && probe.allowed());
        let up = evaluated(&cluster, "shop/here", node, "6443").egress;
        assert_eq!(up.reason, Reason::ToOwnNode(key("shop/here"), "n1".into()));
        assert!(!passes(&cluster, node, "shop/there", "80"), "another node is an address like any other");
        assert!(!passes(&cluster, "shop/there", node, "6443"));
    }
}

#[test]
fn pod_reaches_itself_by_name_and_by_address() {
    let cluster = mk_cluster(
        [mk_pod("shop/web", &["10.0.0.1"])],
        [mk_policy("shop/closed", "web", Some(vec![]), Some(vec![]))],
    );
    assert!(passes(&cluster, "shop/web", "shop/web", "80"));
    assert!(passes(&cluster, "shop/web", "10.0.0.1", "80"));
    assert_eq!(
        evaluated(&cluster, "10.0.0.1", "shop/web", "80").ingress.reason,
        Reason::Itself(key("shop/web"))
    );
}

#[test]
fn address_means_the_pod_that_owns_it() {
    let cluster = mk_cluster(
        [mk_pod("shop/web", &["10.0.0.1"]), mk_pod("shop/db", &["10.0.0.2"])],
        [mk_policy("shop/p", "db", Some(vec![from_peers([own(app("web"))])]), None)],
    );
    assert!(passes(&cluster, "10.0.0.1", "10.0.0.2", "80"));
    assert!(!passes(&cluster, "10.0.0.3", "10.0.0.2", "80"));
}

#[test]
fn address_of_a_finished_pod_has_no_owner() {
    let done = Pod { phase: Phase::Succeeded, ..mk_pod("shop/web", &["10.0.0.1"]) };
    let closed_done = Pod { phase: Phase::Failed, ..mk_pod("shop/db", &["10.0.0.2"]) };
    let rules = vec![from_peers([own(app("web"))])];
    let cluster = mk_cluster(
        [done, closed_done, mk_pod("shop/api", &["10.0.0.3"])],
        [
            mk_policy("shop/p", "db", Some(vec![]), Some(vec![])),
            mk_policy("shop/q", "api", Some(rules), None),
        ],
    );
    assert!(!passes(&cluster, "shop/web", "shop/api", "80"));
    assert!(!passes(&cluster, "10.0.0.1", "shop/api", "80"));
    let to_finished = evaluated(&cluster, "shop/api", "shop/db", "80").ingress;
    assert_eq!(to_finished.reason, Reason::Finished(key("shop/db")));
    assert!(!to_finished.isolated());
}

#[test]
fn terminating_pod_is_still_subject_and_peer() {
    let terminating = |pod| Pod { terminating: true, ..pod };
    let cluster = mk_cluster(
        [terminating(mk_pod("shop/web", &["10.0.0.1"])), terminating(mk_pod("shop/db", &["10.0.0.2"]))],
        [mk_policy("shop/p", "db", Some(vec![from_peers([own(app("web"))])]), None)],
    );
    assert!(passes(&cluster, "shop/web", "shop/db", "80"));
    assert!(!passes(&cluster, "172.17.0.9", "shop/db", "80"));
}

#[test]
fn pod_without_an_address_is_matched_by_labels_and_by_no_block() {
    let rules =
        vec![from_peers([own(app("web"))]), from_peers([block("0.0.0.0/0", &[]), block("::/0", &[])])];
    let cluster = mk_cluster(
        [mk_pod("shop/web", &[]), mk_pod("shop/api", &[]), mk_pod("shop/db", &[])],
        [mk_policy("shop/p", "db", Some(rules), None)],
    );
    assert!(passes(&cluster, "shop/web", "shop/db", "80"));
    assert!(!passes(&cluster, "shop/api", "shop/db", "80"));
    assert!(
        passes(&cluster, "172.17.0.9", "shop/db", "80"),
        "the receiver will have an address in this family"
    );
}

#[test]
fn flows_from_a_shared_address_need_permission_for_both_pods() {
    let old = Pod { terminating: true, ..mk_pod("shop/web", &["10.0.0.1"]) };
    let cluster = mk_cluster(
        [old, mk_pod("shop/other", &["10.0.0.1"]), mk_pod("shop/db", &["10.0.0.2"])],
        [
            mk_policy("shop/p", "db", Some(vec![from_peers([own(app("web"))])]), None),
            mk_policy("shop/q", "other", Some(vec![]), None),
        ],
    );
    for sender in ["10.0.0.1", "shop/web", "shop/other"] {
        assert!(!passes(&cluster, sender, "shop/db", "80"), "{sender}: the sender may be shop/other");
        assert!(
            !passes(&cluster, "shop/db", sender, "80"),
            "{sender}: the policy of shop/other admits nothing"
        );
    }
    assert_eq!(
        evaluated(&cluster, "10.0.0.1", "shop/db", "80").ingress.reason.to_string(),
        "shop/p isolates shop/db for ingress, and none of its rules allows this; \
         shop/other and shop/web report 10.0.0.1, and all of them must be allowed"
    );
    assert_eq!(
        evaluated(&cluster, "shop/db", "shop/web", "80").ingress.reason.to_string(),
        "shop/q isolates shop/other for ingress, and none of its rules allows this; \
         shop/other and shop/web report 10.0.0.1, and all of them must be allowed"
    );
}

#[test]
fn flows_that_each_pod_of_a_shared_address_may_send_pass() {
    let both = |name| Pod { labels: [("app", "web")].into_iter().collect(), ..mk_pod(name, &["10.0.0.1"]) };
    let cluster = mk_cluster(
        [both("shop/old"), both("shop/new"), mk_pod("shop/db", &["10.0.0.2"])],
        [mk_policy("shop/p", "db", Some(vec![from_peers([own(app("web"))])]), None)],
    );
    assert!(passes(&cluster, "10.0.0.1", "shop/db", "80"));
    assert!(passes(&cluster, "shop/new", "shop/db", "80"));
}

#[test]
fn selectors_for_one_pod_each_do_not_match_their_shared_address() {
    let rules = vec![from_peers([own(app("web")), own(app("api"))])];
    let cluster = mk_cluster(
        [
            mk_pod("shop/web", &["10.0.0.1"]),
            mk_pod("shop/api", &["10.0.0.1"]),
            mk_pod("shop/db", &["10.0.0.2"]),
        ],
        [mk_policy("shop/p", "db", Some(rules), None)],
    );
    assert!(!passes(&cluster, "10.0.0.1", "shop/db", "80"));
}

#[test]
fn named_port_of_a_shared_address_is_common_to_all_its_pods() {
    let web = || mk_pod("shop/web", &["10.0.0.2"]);
    let pod = |name, number| with_port("http", Protocol::Tcp, number, mk_pod(name, &["10.0.0.1"]));
    let policies = || [mk_policy("shop/p", "web", None, Some(vec![to_ports([named("http")])]))];
    let differing = mk_cluster([web(), pod("shop/a", 80), pod("shop/b", 81)], policies());
    assert!(!passes(&differing, "shop/web", "10.0.0.1", "80"));
    assert!(!passes(&differing, "shop/web", "10.0.0.1", "81"));
    let alike = mk_cluster([web(), pod("shop/a", 80), pod("shop/b", 80)], policies());
    assert!(passes(&alike, "shop/web", "10.0.0.1", "80"));
}

#[test]
fn pod_reaches_itself_but_not_another_pod_with_its_address() {
    let alone = mk_pod("shop/web", &["10.0.0.1"]);
    let policy = || mk_policy("shop/p", "web", Some(vec![]), None);
    assert!(passes(&mk_cluster([alone.clone()], [policy()]), "10.0.0.1", "10.0.0.1", "80"));
    let shared = mk_cluster([alone, mk_pod("shop/other", &["10.0.0.1"])], [policy()]);
    assert!(!passes(&shared, "10.0.0.1", "10.0.0.1", "80"));
}

#[test]
fn flow_by_name_ignores_policies_of_another_pod_with_the_same_address() {
    let here = on_node("n1", "192.168.0.1", mk_pod("shop/web", &["10.0.0.1"]));
    let there = on_node("n2", "192.168.0.2", mk_pod("shop/stale", &["10.0.0.1"]));
    let cluster = mk_cluster(
        [here, there, mk_pod("shop/db", &["10.0.0.2"])],
        [
            mk_policy("shop/q", "stale", Some(vec![]), Some(vec![])),
            mk_policy("shop/p", "db", Some(vec![from_peers([own(app("web"))])]), None),
        ],
    );
    assert!(passes(&cluster, "shop/db", "shop/web", "80"), "a node evaluates only policies of its own pods");
    assert!(!passes(&cluster, "shop/db", "10.0.0.1", "80"), "an address may be either pod");
    assert!(!passes(&cluster, "shop/web", "shop/db", "80"), "a sender is identified only by its address");
}

#[test]
fn pods_on_one_node_need_both_egress_and_ingress() {
    let pod = |name, address| on_node("n1", "192.168.0.1", mk_pod(name, &[address]));
    let cluster = mk_cluster(
        [pod("shop/web", "10.0.0.1"), pod("shop/db", "10.0.0.2")],
        [
            mk_policy("shop/out", "web", None, Some(vec![from_peers([own(app("db"))])])),
            mk_policy("shop/in", "db", Some(vec![]), None),
        ],
    );
    let verdict = evaluated(&cluster, "shop/web", "shop/db", "80");
    assert!(verdict.egress.allowed());
    assert!(!verdict.ingress.allowed());
    assert!(!verdict.allowed());
}

#[test]
fn namespace_selector_does_not_match_an_unknown_namespace() {
    let anywhere = pods(Scope::Matching(LabelSelector::everything()), app("web"));
    let here = Peer::Pods(PodPeer { scope: Scope::Own("late".into()), pods: app("web") });
    for (peer, expected) in [(anywhere, false), (here, true)] {
        let cluster = mk_cluster(
            [mk_pod("late/web", &[]), mk_pod("late/db", &[])],
            [mk_policy("late/p", "db", Some(vec![from_peers([peer])]), None)],
        );
        assert_eq!(passes(&cluster, "late/web", "late/db", "80"), expected);
    }
}

#[test]
fn selector_without_matching_pods_allows_no_pod() {
    let cluster = mk_cluster(
        [mk_pod("shop/web", &[]), mk_pod("shop/db", &[])],
        [
            mk_policy("shop/p", "db", Some(vec![from_peers([own(app("none"))])]), None),
            mk_policy("shop/q", "web", Some(vec![from_peers([])]), None),
        ],
    );
    assert!(!passes(&cluster, "shop/web", "shop/db", "80"));
    assert!(!passes(&cluster, "shop/db", "shop/web", "80"));
}

#[test]
fn refused_policy_isolates_and_is_named_as_unreadable() {
    let open = vec![PolicyRule { peers: Peers::Any, ports: Ports::Any }];
    let refused =
        NetworkPolicy { standing: Standing::Refused, ..mk_policy("shop/broken", "db", Some(open), None) };
    let cluster = mk_cluster([mk_pod("shop/web", &[]), mk_pod("shop/db", &[])], [refused]);
    let ingress = evaluated(&cluster, "shop/web", "shop/db", "80").ingress;
    assert!(!ingress.allowed());
    let Reason::DeniedBy { refused, .. } = &ingress.reason else {
        panic!("denied, not {:?}", ingress.reason)
    };
    assert_eq!(*refused, [key("shop/broken")]);
}

#[test]
fn unknown_pod_name_is_selected_by_no_policy() {
    let cluster = mk_cluster(
        [mk_pod("shop/db", &[])],
        [NetworkPolicy {
            subject: LabelSelector::everything(),
            ..mk_policy("shop/p", "", Some(vec![]), None)
        }],
    );
    let verdict = evaluated(&cluster, "shop/db", "shop/ghost", "80");
    assert_eq!(verdict.ingress.reason, Reason::UnknownPod(key("shop/ghost")));
}

#[test]
fn table_agrees_with_evaluate_on_every_flow() {
    let rules = vec![
        PolicyRule {
            peers: Peers::Of(vec![own(app("web")), block("172.17.0.0/16", &["172.17.1.0/24"])]),
            ports: Ports::Of(vec![named("http"), Port::All(Protocol::Udp)]),
        },
        from_peers([block("fd00::/16", &[])]),
    ];
    let cluster = mk_cluster(
        [
            on_node("n1", "192.168.0.1", mk_pod("shop/web", &["10.0.0.1", "fd00::1"])),
            with_port("http", Protocol::Tcp, 80, mk_pod("shop/db", &["10.0.0.2", "fd00::2"])),
            mk_pod("shop/waiting", &[]),
        ],
        [
            mk_policy("shop/p", "db", Some(rules), None),
            mk_policy("shop/q", "web", Some(vec![]), Some(vec![from_peers([own(app("db"))])])),
        ],
    );
    let external: Vec<_> =
        ["172.17.0.9", "172.17.1.9", "192.168.0.1", "fd00::9"].map(|a| a.parse().unwrap()).into();
    let transports = ["80", "53/UDP", "81"].map(|port| port.parse().unwrap());
    let table = Reachability::new(&cluster, &external, &transports);
    let mut verdicts = std::collections::BTreeSet::new();
    for (from, to, transport, reach) in table.flows() {
        let flow = Flow { from: from.clone(), to: to.clone(), transport, family: None };
        assert_eq!(reach.allowed(None), evaluate(&cluster, &flow).allowed(), "{from} to {to} {transport}");
        for (family, verdict) in evaluate_families(&cluster, &flow) {
            assert_eq!(reach.allowed(Some(family)), verdict.allowed(), "{from} to {to} {transport} {family}");
        }
        verdicts.insert(format!("{reach:?}"));
    }
    assert_eq!(table.flows().count(), 7 * 6 * 3);
    assert!(verdicts.len() > 2, "allowed, denied and by family all occur: {verdicts:?}");
}
