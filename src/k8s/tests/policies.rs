//! What a NetworkPolicy means, and which are refused.

use super::{faults, loaded, policy_of, policy_text};
use crate::model::{NetworkPolicy, Peer, Peers, Port, PortRange, Ports, Protocol, Scope, Standing};

/// The policy with this spec, which must have no fault.
fn accepted(spec: &str) -> NetworkPolicy {
    let text = policy_text(spec);
    assert_eq!(faults(&text), [""; 0], "{spec}");
    let policy = policy_of(&text).unwrap();
    assert_eq!(policy.standing, Standing::Accepted);
    policy
}

/// What is wrong with a policy of this spec: `(field path)` and text of its only error.
fn error(spec: &str) -> String {
    let loaded = loaded(&policy_text(spec));
    let errors: Vec<_> = loaded.faults.iter().filter(|fault| fault.is_error()).collect();
    let [error] = errors[..] else { panic!("{spec}: {:?}", loaded.faults) };
    assert!(policy_of(&policy_text(spec)).is_none_or(|policy| policy.standing == Standing::Refused));
    format!("{}: {}", error.path, error.text)
}

fn refused(spec: &str, path: &str, text: &str) {
    let error = error(spec);
    assert!(error.starts_with(&format!("spec.{path}: ")) && error.contains(text), "{spec}: {error}");
}

fn ingress(spec: &str) -> (Peers, Ports) {
    let rule = accepted(spec).ingress.unwrap().remove(0);
    (rule.peers, rule.ports)
}

#[test]
fn policy_types_default_to_ingress_and_to_egress_with_egress_rules() {
    let isolates = |spec: &str| {
        let policy = accepted(spec);
        (policy.ingress.is_some(), policy.egress.is_some())
    };
    for spec in
        ["{}", "{policyTypes: []}", "{policyTypes: null}", "{egress: []}", "{egress: null}", "{ingress: []}"]
    {
        assert_eq!(isolates(spec), (true, false), "{spec}");
    }
    assert_eq!(isolates("{egress: [{}]}"), (true, true));
    assert_eq!(isolates("{policyTypes: [Egress]}"), (false, true));
    assert_eq!(isolates("{policyTypes: [Ingress, Ingress]}"), (true, false));
    assert_eq!(isolates("{policyTypes: [Ingress, Egress]}"), (true, true));
}

#[test]
fn policy_without_spec_denies_all_ingress_of_its_namespace() {
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n";
    for text in
        [text.to_owned(), text.to_owned() + "spec:\n", text.to_owned() + "spec: {podSelector: null}\n"]
    {
        let policy = policy_of(&text).unwrap();
        assert!(policy.subject.is_everything());
        assert_eq!((policy.ingress, policy.egress), (Some(Vec::new()), None));
    }
}

#[test]
fn absent_null_and_empty_lists_of_peers_and_ports_mean_any() {
    for spec in ["[{}]", "[{from: null, ports: null}]", "[{from: [], ports: []}]"] {
        assert_eq!(ingress(&format!("{{ingress: {spec}}}")), (Peers::Any, Ports::Any), "{spec}");
    }
}

#[test]
fn empty_port_is_all_of_tcp_and_empty_peer_is_refused() {
    assert_eq!(ingress("{ingress: [{ports: [{}]}]}").1, Ports::Of(vec![Port::All(Protocol::Tcp)]));
    refused("{ingress: [{from: [{}]}]}", "ingress[0].from[0]", "is empty");
    refused("{egress: [{to: [{}]}]}", "egress[0].to[0]", "is empty");
    refused("{ingress: [{from: [null]}]}", "ingress[0].from[0]", "is empty");
    refused("{ingress: [null]}", "ingress[0]", "write {}");
}

#[test]
fn rules_without_their_policy_type_are_ignored_with_a_warning() {
    let text = policy_text("{policyTypes: [Egress], ingress: [{}]}");
    assert_eq!(policy_of(&text).unwrap().ingress, None);
    let [fault] = &loaded(&text).faults[..] else { panic!() };
    assert!(!fault.is_error() && fault.text.contains("have no effect"), "{fault}");
    assert_eq!(loaded(&policy_text("{policyTypes: [Ingress], egress: [{}]}")).faults[0].path, "spec.egress");
    assert_eq!(faults(&policy_text("{policyTypes: [Ingress], egress: []}")), [""; 0]);
}

#[test]
fn policy_types_are_at_most_two_and_spelled_exactly() {
    refused("{policyTypes: [ingress]}", "policyTypes[0]", "no policy type");
    refused("{policyTypes: [Ingress, Egress, Ingress]}", "policyTypes", "more than two");
}

#[test]
fn absent_and_empty_peer_selectors_differ() {
    let scope = |peer: &str| match ingress(&format!("{{ingress: [{{from: [{peer}]}}]}}")).0 {
        Peers::Of(peers) => match peers.into_iter().next() {
            Some(Peer::Pods(peer)) => peer,
            other => panic!("{other:?}"),
        },
        Peers::Any => panic!("any"),
    };
    assert_eq!(scope("{podSelector: {}}").scope, Scope::Own("default".into()));
    assert_eq!(scope("{podSelector: {}, namespaceSelector: null}").scope, Scope::Own("default".into()));
    let Scope::Matching(everything) = scope("{namespaceSelector: {}}").scope else { panic!() };
    assert!(everything.is_everything());
    let both = scope("{namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchLabels: {c: d}}}");
    assert_eq!(both.pods.to_string(), "c=d");
}

#[test]
fn ip_block_cannot_be_combined_with_selectors() {
    for other in ["podSelector: {}", "namespaceSelector: {}"] {
        let spec = format!("{{ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.0/8}}, {other}}}]}}]}}");
        refused(&spec, "ingress[0].from[0].ipBlock", "must stand alone");
    }
}

#[test]
fn ip_block_needs_a_cidr_that_contains_its_excepts() {
    let block = |block: &str| format!("{{egress: [{{to: [{{ipBlock: {block}}}]}}]}}");
    let at = "egress[0].to[0].ipBlock";
    let good = accepted(&block("{cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16]}"));
    let Peers::Of(peers) = &good.egress.unwrap()[0].peers else { panic!() };
    let [Peer::Block(good)] = &peers[..] else { panic!("{peers:?}") };
    assert_eq!(good.to_string(), "10.0.0.0/8 except 10.1.0.0/16, 10.2.0.0/16");
    refused(&block("{}"), &format!("{at}.cidr"), "is missing");
    refused(&block("{cidr: 10.0.0.1}"), &format!("{at}.cidr"), "write 10.0.0.1/32");
    refused(&block("{cidr: 010.0.0.0/8}"), &format!("{at}.cidr"), "leading zeros");
    refused(&block("{cidr: '::ffff:1.2.3.4/120'}"), &format!("{at}.cidr"), "written as IPv6");
    for except in ["10.0.0.0/8", "0.0.0.0/0", "11.0.0.0/16", "'fd00::/64'"] {
        let spec = block(&format!("{{cidr: 10.0.0.0/8, except: [10.9.0.0/16, {except}]}}"));
        refused(&spec, &format!("{at}.except[1]"), "strict subset");
    }
    refused(&block("{cidr: 10.0.0.0/8, except: ['']}"), &format!("{at}.except[0]"), "is no CIDR");
}

#[test]
fn host_bits_are_cleared_with_a_warning() {
    let text = policy_text("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.5/24, except: [10.0.0.9/30]}}]}]}");
    let loaded = loaded(&text);
    assert!(!loaded.has_errors());
    let paths: Vec<&str> = loaded.faults.iter().map(|fault| fault.path.as_str()).collect();
    assert_eq!(paths, ["spec.ingress[0].from[0].ipBlock.cidr", "spec.ingress[0].from[0].ipBlock.except[0]"]);
    assert!(loaded.faults[0].text.contains("means 10.0.0.0/24"), "{}", loaded.faults[0]);
}

#[test]
fn ports_are_numbers_ranges_or_names() {
    let ports = "[{port: 80}, {port: 53, protocol: UDP}, {port: 1, endPort: 1}, {port: 9, endPort: 65535}, {port: dns}]";
    let Ports::Of(ports) = ingress(&format!("{{ingress: [{{ports: {ports}}}]}}")).1 else { panic!() };
    let range = |first, last| PortRange::new(first, last).unwrap();
    let expected = [
        Port::Range(Protocol::Tcp, range(80, 80)),
        Port::Range(Protocol::Udp, range(53, 53)),
        Port::Range(Protocol::Tcp, range(1, 1)),
        Port::Range(Protocol::Tcp, range(9, 65535)),
        Port::Named(Protocol::Tcp, "dns".into()),
    ];
    assert_eq!(ports, expected);
}

#[test]
fn invalid_port_is_refused() {
    for (port, field, text) in [
        ("{port: 0}", ".port", "1 to 65535"),
        ("{port: 65536}", ".port", "1 to 65535"),
        ("{port: -1}", ".port", "1 to 65535"),
        ("{port: '80'}", ".port", "without quotes"),
        ("{port: HTTP}", ".port", "lower case"),
        ("{port: yes}", ".port", "a number or a name"),
        ("{port: 80.5}", ".port", "a number or a name"),
        ("{port: 99999999999}", ".port", "32-bit"),
        ("{endPort: 80}", ".endPort", "needs a port"),
        ("{port: dns, endPort: 80}", ".endPort", "not a name"),
        ("{port: 80, endPort: 79}", ".endPort", "less than port"),
        ("{port: 80, endPort: 65536}", ".endPort", "1 to 65535"),
        ("{protocol: tcp}", ".protocol", "unsupported protocol"),
        ("{protocol: ICMP}", ".protocol", "unsupported protocol"),
        ("{protocol: ''}", ".protocol", "unsupported protocol"),
        ("80", "", "must be a mapping"),
    ] {
        refused(&format!("{{ingress: [{{ports: [{port}]}}]}}"), &format!("ingress[0].ports[0]{field}"), text);
    }
}

#[test]
fn selectors_are_validated_in_every_field() {
    for (selector, field, text) in [
        ("{matchLabels: {a b: c}}", ".matchLabels[a b]", "no label key"),
        ("{matchLabels: {a: '-'}}", ".matchLabels.a", "no label value"),
        ("{matchLabels: {a: 1}}", ".matchLabels.a", "write \"1\""),
        ("{matchLabels: {a: on}}", ".matchLabels.a", "write \"on\""),
        ("{matchLabels: {a: }}", ".matchLabels.a", "write \"\""),
        ("{matchLabels: [a]}", ".matchLabels", "must be a mapping"),
        (
            "{matchExpressions: [{key: a, operator: in, values: [b]}]}",
            ".matchExpressions[0].operator",
            "no operator",
        ),
        (
            "{matchExpressions: [{key: a, operator: Gt, values: ['1']}]}",
            ".matchExpressions[0].operator",
            "no operator",
        ),
        ("{matchExpressions: [{key: a, operator: In}]}", ".matchExpressions[0].values", "at least one"),
        (
            "{matchExpressions: [{key: a, operator: NotIn, values: []}]}",
            ".matchExpressions[0].values",
            "at least one",
        ),
        (
            "{matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
            ".matchExpressions[0].values",
            "take none",
        ),
        (
            "{matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}",
            ".matchExpressions[0].values",
            "take none",
        ),
        ("{matchExpressions: [{operator: Exists}]}", ".matchExpressions[0].key", "has no name"),
        (
            "{matchExpressions: [{key: a, operator: In, values: [b c]}]}",
            ".matchExpressions[0].values[0]",
            "no label value",
        ),
    ] {
        refused(&format!("{{podSelector: {selector}}}"), &format!("podSelector{field}"), text);
        for peer in ["podSelector", "namespaceSelector"] {
            let spec = format!("{{ingress: [{{from: [{{{peer}: {selector}}}]}}]}}");
            refused(&spec, &format!("ingress[0].from[0].{peer}{field}"), text);
        }
    }
    let selector = "{matchLabels: {a: ''}, matchExpressions: [{key: b, operator: NotIn, values: [c, d]}]}";
    assert_eq!(accepted(&format!("{{podSelector: {selector}}}")).subject.to_string(), "a=,b notin (c,d)");
}

#[test]
fn refused_policy_isolates_the_pods_that_it_selects() {
    let stand_in = |spec: &str| {
        let policy = policy_of(&policy_text(spec))?;
        assert_eq!(policy.standing, Standing::Refused, "{spec}");
        assert!(policy.ingress.iter().chain(&policy.egress).all(Vec::is_empty), "{spec}");
        Some((policy.subject.to_string(), policy.ingress.is_some(), policy.egress.is_some()))
    };
    let app = |ingress, egress| Some(("a=b".to_owned(), ingress, egress));
    let of = |rest: &str| stand_in(&format!("{{podSelector: {{matchLabels: {{a: b}}}}, {rest}}}"));
    assert_eq!(of("ingress: [{from: [{}]}]"), app(true, false));
    assert_eq!(of("ingress: [{from: [{podSelectr: {}}]}]"), app(true, false));
    assert_eq!(of("ingress: [80]"), app(true, false));
    assert_eq!(of("egress: [{to: [{}]}]"), app(true, true));
    assert_eq!(of("egress: {to: []}"), app(true, true));
    assert_eq!(of("policyTypes: [Egress], egress: {to: []}"), app(false, true));
    // It is not known which directions were meant.
    assert_eq!(of("policyTypes: [egress]"), app(true, true));
    assert_eq!(of("policyTypes: Egress"), app(true, true));
    assert_eq!(of("policytypes: [Egress]"), app(true, true));
    assert_eq!(of("egres: [{}]"), app(true, true));
    // It is not known which pods were meant.
    assert_eq!(stand_in("{podSelector: {matchLabels: {a: 1}}}"), None);
    assert_eq!(stand_in("{podSelector: , matchLabels: {a: b}}"), None);
    assert_eq!(stand_in("{podselector: {matchLabels: {a: b}}}"), None);
    assert_eq!(stand_in("{podSelector: {app: b}}"), None);
    assert_eq!(stand_in("[]"), None);
}

#[test]
fn error_in_a_field_with_a_warning_refuses_the_policy() {
    let block = "{cidr: 10.244.0.0/16, except: [10.0.0.8/0]}";
    refused(
        &format!("{{ingress: [{{from: [{{ipBlock: {block}}}]}}]}}"),
        "ingress[0].from[0].ipBlock.except[0]",
        "",
    );
}
