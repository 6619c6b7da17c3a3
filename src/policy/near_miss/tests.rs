//! Each part of a rule that may fail, in words, and which of several rules is the nearest.

use super::*;
use crate::{
    model::{
        Change, Endpoint, LabelSelector, Labels, Namespace, Operator, Peer, Peers, Pod, PolicyRule,
        PortRange, Ports, Protocol, Scope,
    },
    policy::evaluate,
};

fn key(text: &str) -> ObjectKey {
    text.parse().unwrap()
}

fn equals(pairs: &[(&str, &str)]) -> LabelSelector {
    LabelSelector::new(pairs.iter().map(|(key, value)| Requirement::equals(*key, *value)))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().copied().collect()
}

fn own(pairs: &[(&str, &str)]) -> Peer {
    Peer::Pods(PodPeer { scope: Scope::Own("shop".into()), pods: equals(pairs) })
}

fn in_namespaces(namespaces: &[(&str, &str)], pods: &[(&str, &str)]) -> Peer {
    Peer::Pods(PodPeer { scope: Scope::Matching(equals(namespaces)), pods: equals(pods) })
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    let except = except.iter().map(|except| except.parse().unwrap());
    Peer::Block(IpBlock::new(cidr.parse().unwrap(), except).unwrap())
}

fn tcp(port: u16) -> Port {
    Port::Range(Protocol::Tcp, PortRange::single(port))
}

fn rule(peers: impl Into<Vec<Peer>>, ports: impl Into<Vec<Port>>) -> PolicyRule {
    PolicyRule { peers: Peers::Of(peers.into()), ports: Ports::Of(ports.into()) }
}

fn on_any_port(peers: impl Into<Vec<Peer>>) -> PolicyRule {
    PolicyRule { peers: Peers::Of(peers.into()), ports: Ports::Any }
}

/// A policy for the ingress of `app: db` in `shop`.
fn ingress(name: &str, rules: impl Into<Vec<PolicyRule>>) -> NetworkPolicy {
    NetworkPolicy {
        key: ObjectKey::new("shop", name),
        subject: equals(&[("app", "db")]),
        ingress: Some(rules.into()),
        egress: None,
        standing: Standing::Accepted,
    }
}

fn port(name: Option<&str>, protocol: Protocol, number: u16) -> ContainerPort {
    ContainerPort { name: name.map(Into::into), protocol, number }
}

/// `shop/web`, `shop/db` with ports, `bank/web`, and `shop/agent` on the network of node n1.
fn cluster(policies: impl IntoIterator<Item = NetworkPolicy>) -> Cluster {
    let mut cluster = Cluster::new();
    for (name, team) in [("shop", Some("b")), ("bank", None)] {
        let labels = team.map(|team| ("team", team)).into_iter().collect();
        cluster.apply(Change::SetNamespace(Namespace { name: name.into(), labels }));
    }
    let web = Pod {
        labels: labels(&[("app", "web"), ("tier", "front")]),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        ..Pod::new(key("shop/web"))
    };
    let db = Pod {
        labels: labels(&[("app", "db")]),
        addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        ports: vec![port(Some("web"), Protocol::Tcp, 8080), port(None, Protocol::Udp, 53)],
        ..Pod::new(key("shop/db"))
    };
    let other = Pod { addresses: vec!["10.0.0.3".parse().unwrap()], ..web.clone() };
    let agent = Pod {
        host_network: true,
        node: Some("n1".into()),
        node_addresses: vec!["192.168.0.1".parse().unwrap()],
        ..Pod::new(key("shop/agent"))
    };
    for pod in [web, db, Pod { key: key("bank/web"), ..other }, agent] {
        cluster.apply(Change::SetPod(pod));
    }
    for policy in policies {
        cluster.apply(Change::SetPolicy(policy));
    }
    cluster
}

fn flow(from: &str, to: &str, transport: &str) -> Flow {
    let end = |text: &str| text.parse().map_or_else(|_| Endpoint::Pod(key(text)), Endpoint::Address);
    let transport = transport
        .strip_prefix("protocol ")
        .map_or_else(|| transport.parse().unwrap(), |number| Transport::Other(number.parse().unwrap()));
    Flow { from: end(from), to: end(to), transport, family: None }
}

/// The near miss of a flow from `from` to `shop/db`, which is denied.
fn found(policies: impl IntoIterator<Item = NetworkPolicy>, from: &str, transport: &str) -> NearMiss {
    let cluster = cluster(policies);
    let flow = flow(from, "shop/db", transport);
    assert!(!evaluate(&cluster, &flow).ingress.allowed());
    near_miss(&cluster, &flow, Direction::Ingress).unwrap()
}

fn words(policies: impl IntoIterator<Item = NetworkPolicy>, from: &str, transport: &str) -> String {
    found(policies, from, transport).to_string()
}

fn words_of(rule: PolicyRule, from: &str, transport: &str) -> String {
    words([ingress("p", [rule])], from, transport)
}

#[test]
fn labels_that_do_not_match_are_named_with_their_values() {
    assert_eq!(
        words_of(on_any_port([own(&[("app", "api")])]), "shop/web", "80"),
        "shop/p rule 0 allows from app=api in shop; shop/web has app=web"
    );
    assert_eq!(
        words_of(on_any_port([own(&[("role", "api"), ("tier", "back")])]), "shop/web", "80"),
        "shop/p rule 0 allows from role=api,tier=back in shop; shop/web has no label role and tier=front"
    );
}

#[test]
fn namespaces_that_do_not_match_are_named_with_their_labels() {
    let of_team = |pods: &[(&str, &str)]| on_any_port([in_namespaces(&[("team", "a")], pods)]);
    assert_eq!(
        words_of(of_team(&[]), "shop/web", "80"),
        "shop/p rule 0 allows from all pods in namespaces team=a; shop has team=b"
    );
    assert_eq!(
        words_of(of_team(&[("app", "api")]), "bank/web", "80"),
        "shop/p rule 0 allows from app=api in namespaces team=a; bank/web has app=web, and bank has no label team"
    );
    assert_eq!(
        words_of(on_any_port([own(&[("app", "web")])]), "bank/web", "80"),
        "shop/p rule 0 allows from app=web in shop; bank/web is in bank"
    );
    assert_eq!(
        words_of(on_any_port([own(&[("app", "api")])]), "bank/web", "80"),
        "shop/p rule 0 allows from app=api in shop; bank/web has app=web, and is in bank"
    );
}

#[test]
fn ports_that_do_not_match_are_listed() {
    let from_web = |ports: &[Port]| rule([own(&[("app", "web")])], ports);
    assert_eq!(
        words_of(from_web(&[tcp(80), tcp(443)]), "shop/web", "8080"),
        "shop/p rule 0 allows shop/web, but 8080 is not among 80, 443"
    );
    let udp = Port::Range(Protocol::Udp, PortRange::single(53));
    assert_eq!(
        words_of(from_web(&[tcp(80), udp]), "shop/web", "53"),
        "shop/p rule 0 allows shop/web, but 53/UDP is allowed, not 53/TCP"
    );
    let range = Port::Range(Protocol::Udp, PortRange::new(8000, 8010).unwrap());
    assert_eq!(
        words_of(from_web(&[range, Port::All(Protocol::Sctp)]), "shop/web", "8011/UDP"),
        "shop/p rule 0 allows shop/web, but 8011/UDP is not among 8000-8010/UDP, every SCTP port"
    );
    assert_eq!(
        words_of(from_web(&(1..=20).map(tcp).collect::<Vec<_>>()), "shop/web", "30"),
        "shop/p rule 0 allows shop/web, but 30 is not among 1, 2, 3, 4, 5, 6, 7, 8 and 12 more"
    );
    assert_eq!(
        words_of(from_web(&[tcp(80)]), "shop/web", "protocol 1"),
        "shop/p rule 0 allows shop/web, but only a rule without ports allows protocol 1"
    );
}

#[test]
fn port_name_that_the_pod_does_not_have_is_shown_with_those_that_it_has() {
    let http = Port::Named(Protocol::Tcp, "http".into());
    assert_eq!(
        words_of(rule([own(&[("app", "web")])], [http.clone()]), "shop/web", "8080"),
        "shop/p rule 0 allows shop/web, but shop/db has no port named http; its ports are web (8080), 53/UDP"
    );
    let web = Port::Named(Protocol::Tcp, "web".into());
    assert_eq!(
        words_of(rule([own(&[("app", "web")])], [web]), "shop/web", "8081"),
        "shop/p rule 0 allows shop/web, but 8081 is not among web (8080)"
    );
    let egress = NetworkPolicy {
        ingress: None,
        egress: Some(vec![rule([block("10.0.0.0/8", &[])], [http])]),
        ..ingress("p", [])
    };
    let miss = near_miss(&cluster([egress]), &flow("shop/db", "10.9.9.9", "80"), Direction::Egress).unwrap();
    assert_eq!(
        miss.to_string(),
        "shop/p rule 0 allows 10.9.9.9, but the name http of a port means nothing outside of pods"
    );
}

#[test]
fn peer_and_port_may_both_fail() {
    assert_eq!(
        words_of(rule([own(&[("app", "api")])], [tcp(80)]), "shop/web", "81"),
        "shop/p rule 0 allows from app=api in shop; shop/web has app=web; and 81 is not among 80"
    );
}

#[test]
fn blocks_are_shown_with_the_address_or_the_except_that_decides() {
    let of = |peer: Peer, from: &str| words_of(on_any_port([peer]), from, "80");
    assert_eq!(
        of(block("10.1.0.0/16", &[]), "shop/web"),
        "shop/p rule 0 allows from 10.1.0.0/16; shop/web has 10.0.0.1"
    );
    assert_eq!(
        of(block("10.0.0.0/8", &["10.0.0.0/24", "10.0.0.0/30"]), "shop/web"),
        "shop/p rule 0 allows from 10.0.0.0/8 except 10.0.0.0/30, which contains 10.0.0.1 of shop/web"
    );
    assert_eq!(
        of(block("10.0.0.0/8", &["10.9.0.0/24"]), "10.9.0.7"),
        "shop/p rule 0 allows from 10.0.0.0/8 except 10.9.0.0/24, which contains 10.9.0.7"
    );
    assert_eq!(
        of(block("10.0.0.0/8", &[]), "203.0.113.9"),
        "shop/p rule 0 allows from 10.0.0.0/8; 203.0.113.9 is not in it"
    );
    assert_eq!(
        of(block("fd00::/8", &[]), "shop/web"),
        "shop/p rule 0 allows from fd00::/8; this is a flow over IPv4"
    );
}

#[test]
fn what_no_selector_can_select_is_said_to_be_so() {
    let from = |from: &str| words_of(on_any_port([own(&[])]), from, "80");
    assert_eq!(
        from("shop/agent"),
        "shop/p rule 0 allows from all pods in shop; shop/agent is on its node's network, where no selector selects it"
    );
    assert_eq!(
        from("192.168.0.1"),
        "shop/p rule 0 allows from all pods in shop; 192.168.0.1 is node n1, and not a pod"
    );
    assert_eq!(from("203.0.113.9"), "shop/p rule 0 allows from all pods in shop; 203.0.113.9 is not a pod");
}

#[test]
fn policies_that_allow_nothing_are_named_if_nothing_else_comes_near() {
    assert_eq!(
        words([ingress("b", []), ingress("a", [])], "shop/web", "80"),
        "shop/a has no rule, and allows nothing"
    );
    let with = |standing| NetworkPolicy { standing, ..ingress("z", []) };
    assert_eq!(
        words([ingress("a", []), with(Standing::Refused)], "shop/web", "80"),
        "shop/z could not be read, and allows nothing"
    );
    let excess = MemoryExcess { bytes: 2, budget: 1, is_of_all: false };
    assert_eq!(
        words([ingress("a", []), with(Standing::TooLarge(excess))], "shop/web", "80"),
        "shop/z is too large to be kept, and allows nothing"
    );
    let near = on_any_port([own(&[("app", "api")])]);
    let far = rule([own(&[("app", "api")])], [tcp(81)]);
    let nearest = |rule| found([ingress("a", [rule]), with(Standing::Refused)], "shop/web", "80").policy;
    assert_eq!(nearest(near), key("shop/a"));
    assert_eq!(nearest(far), key("shop/z"));
    assert_eq!(
        words_of(PolicyRule { peers: Peers::Of(vec![]), ports: Ports::Any }, "shop/web", "80"),
        "shop/p rule 0 allows from nobody"
    );
}

#[test]
fn rule_with_the_fewest_failing_parts_is_the_nearest() {
    let both = rule([own(&[("app", "api")])], [tcp(81)]);
    let port = rule([own(&[("app", "web")])], [tcp(81)]);
    let labels = on_any_port([own(&[("app", "api"), ("tier", "back")])]);
    let nearest = |rules: &[&PolicyRule]| {
        let rules: Vec<PolicyRule> = rules.iter().map(|rule| (*rule).clone()).collect();
        match found([ingress("p", rules)], "shop/web", "80").miss {
            Miss::Rule(rule) => rule.rule,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(nearest(&[&both, &port]), 1);
    assert_eq!(nearest(&[&labels, &both, &port]), 2, "fewer requirements fail");
    assert_eq!(nearest(&[&port, &port]), 0);
    let typo = on_any_port([own(&[("app", "wbe")])]);
    assert_eq!(nearest(&[&port, &typo]), 1);
    // Within a rule, too.
    let peers = on_any_port([block("10.7.0.0/16", &[]), own(&[("app", "api")]), own(&[("app", "wbe")])]);
    let miss = found([ingress("p", [peers])], "shop/web", "80").miss;
    let Miss::Rule(rule) = miss else { panic!("{miss:?}") };
    let RuleMiss { peer: Some(PeerMiss::Pods { item, .. }), .. } = *rule else { panic!("another peer") };
    assert_eq!(item, 2);
}

#[test]
fn labels_that_look_like_typos_are_recognised_by_key_and_by_value() {
    let meant = |wanted: (&str, &str)| {
        let miss = found([ingress("p", [on_any_port([own(&[wanted])])])], "shop/web", "80").miss;
        let Miss::Rule(rule) = miss else { panic!("{miss:?}") };
        let RuleMiss { peer: Some(PeerMiss::Pods { fault, .. }), .. } = *rule else { panic!("another peer") };
        let SelectorFault::Labels { labels, .. } = fault else { panic!("{fault:?}") };
        let [LabelMiss { meant, .. }] = &labels[..] else { panic!("{labels:?}") };
        meant.as_ref().map(|(key, value)| format!("{key}={value}"))
    };
    assert_eq!(meant(("app", "wbe")).as_deref(), Some("app=web"));
    assert_eq!(meant(("tier", "frnot")).as_deref(), Some("tier=front"));
    assert_eq!(meant(("aps", "web")).as_deref(), Some("app=web"));
    assert_eq!(meant(("x.io/app", "web")).as_deref(), Some("app=web"));
    assert_eq!(meant(("app", "api")), None);
    assert_eq!(meant(("team", "web")), None);
}

#[test]
fn allowed_direction_has_no_near_miss() {
    let open = PolicyRule { peers: Peers::Any, ports: Ports::Any };
    let cluster = cluster([ingress("a", []), ingress("p", [on_any_port([own(&[("app", "api")])]), open])]);
    for direction in Direction::BOTH {
        assert_eq!(near_miss(&cluster, &flow("shop/web", "shop/db", "80"), direction), None);
    }
}

#[test]
fn large_policy_is_looked_at_in_part_and_does_not_hide_the_others() {
    let many: Vec<PolicyRule> =
        (0..33_000).map(|number| on_any_port([own(&[("app", &format!("other-{number}"))])])).collect();
    let miss = found([ingress("a", many)], "shop/web", "80");
    assert!(!miss.complete);
    assert!(miss.to_string().ends_with("(of the rules that were looked at)"), "{miss}");

    let values = (0..5000).map(|number| format!("other-{number}").into()).collect();
    let wide = Requirement { key: "app".into(), operator: Operator::In(values) };
    let scope = Scope::Own("shop".into());
    let wide = || Peer::Pods(PodPeer { scope: scope.clone(), pods: LabelSelector::new([wide.clone()]) });
    let miss = found([ingress("a", [on_any_port([wide()])])], "shop/web", "80");
    assert_eq!((miss.miss.clone(), miss.complete), (Miss::NotRead, false));
    assert!(miss.to_string().len() < 200, "{miss}");

    let typo = on_any_port([own(&[("app", "wbe")])]);
    let miss = found([ingress("a", [on_any_port([wide()])]), ingress("b", [typo])], "shop/web", "80");
    assert_eq!(miss.policy, key("shop/b"));
}

#[test]
fn except_is_found_among_ten_thousand() {
    let excepts: Vec<String> = (0..10_000).map(|n| format!("10.{}.{}.0/24", n / 250 + 1, n % 250)).collect();
    let excepts: Vec<&str> = excepts.iter().map(String::as_str).collect();
    let words = words_of(on_any_port([block("10.0.0.0/8", &excepts)]), "10.20.30.40", "80");
    assert_eq!(
        words,
        "shop/p rule 0 allows from 10.0.0.0/8 except 10.20.30.0/24, which contains 10.20.30.40"
    );
    let words = words_of(on_any_port([block("10.0.0.0/8", &excepts)]), "192.0.2.1", "80");
    assert!(words.len() < 400, "{words}");
}

#[test]
fn control_characters_are_escaped_and_long_selectors_are_cut() {
    let words =
        words_of(on_any_port([own(&[("app", "\u{1b}[31m"), ("x", &"y".repeat(1000))])]), "shop/web", "80");
    assert!(!words.contains('\u{1b}') && words.contains("\\u{1b}[31m"), "{words}");
    assert!(words.len() < 500 && words.contains("..."), "{words}");
}
