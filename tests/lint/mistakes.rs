//! Cases beside those of the page: where a finding must not be, and what it says.

use std::{fs, path::Path, time::Instant};

use towpath::{
    lab::{self, sized::Size},
    model::Cluster,
    policy::findings::{Code, Findings, Knowledge, find},
};

use crate::{codes, lines};

/// A namespace with three pods and a default deny; `rest` follows.
fn shop(rest: &str) -> String {
    let pod = |name: &str, port: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\nspec: \
             {{containers: [{{name: main, ports: [{port}]}}]}}\n---\n"
        )
    };
    let objects = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n".to_owned()
        + &pod("web", "{containerPort: 80}")
        + &pod("api", "{containerPort: 8080, name: http}")
        + &pod("db", "{containerPort: 5432}");
    objects + &policy("default-deny", "{podSelector: {}, policyTypes: [Ingress]}") + rest
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

/// A policy for the ingress of the api.
fn api(rules: &str) -> String {
    shop(&policy(
        "api",
        &format!(
            "{{podSelector: {{matchLabels: {{app: api}}}}, policyTypes: [Ingress], ingress: [{rules}]}}"
        ),
    ))
}

#[track_caller]
fn clean(text: &str) {
    assert_eq!(lines(text), [""; 0]);
}

#[track_caller]
fn says(text: &str, part: &str) {
    let lines = lines(text);
    assert!(lines.iter().any(|line| line.contains(part)), "{part:?} is not in {lines:#?}");
}

#[test]
fn usual_policies_have_no_finding() {
    clean(&shop(""));
    clean(&api("{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}"));
    clean(&api("{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}"));
    clean(&api("{ports: [{port: 8080}]}, {from: [{podSelector: {}}]}"));
    clean(&api("{from: [{namespaceSelector: {}}]}"));
    clean(&api("{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}]}"));
    clean(&api("{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}"));
    let dns = "{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: \
               {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: 53}]}";
    let web = |egress: &str| {
        let spec = format!(
            "{{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{egress}]}}"
        );
        policy("web", &spec)
    };
    let api = "{podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}";
    let both =
        format!("{dns}, {{to: [{{podSelector: {{matchLabels: {{app: api}}}}}}], ports: [{{port: 8080}}]}}");
    clean(&shop(&(policy("api", api) + &web(&both))));
    // Everything that leaves is denied on purpose.
    clean(&shop(&web("")));
}

#[test]
fn policies_alone_have_no_finding_about_pods() {
    let text = policy(
        "api",
        "{podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}]}",
    );
    assert_eq!(codes(&text), [Code::UndeclaredNamespace].into());
}

#[test]
fn hint_names_the_label_that_has_the_value() {
    let text = api("{from: [{podSelector: {matchLabels: {app.kubernetes.io/name: web}}}]}");
    says(&text, "no pod has the label app.kubernetes.io/name: did you mean app=web? [TP102]");
    says(&api("{from: [{podSelector: {matchLabels: {ap: web2}}}]}"), "did you mean app? [TP102]");
    says(
        &api("{from: [{podSelector: {matchLabels: {app: cache}}}]}"),
        "no pod has app=cache; there is api, db, web",
    );
}

#[test]
fn contradictions_are_found_by_key() {
    let peer = |expressions: &str| {
        api(&format!("{{from: [{{podSelector: {{matchExpressions: [{expressions}]}}}}]}}"))
    };
    for expressions in [
        "{key: app, operator: In, values: [web]}, {key: app, operator: In, values: [db]}",
        "{key: app, operator: In, values: [web]}, {key: app, operator: NotIn, values: [db, web]}",
        "{key: app, operator: Exists}, {key: app, operator: DoesNotExist}",
        "{key: app, operator: In, values: [web]}, {key: app, operator: DoesNotExist}",
    ] {
        assert_eq!(codes(&peer(expressions)), [Code::Contradiction].into(), "{expressions}");
    }
    for expressions in [
        "{key: app, operator: In, values: [web, db]}, {key: app, operator: NotIn, values: [db]}",
        "{key: app, operator: Exists}, {key: app, operator: NotIn, values: [db]}",
        "{key: app, operator: In, values: [web]}, {key: old, operator: DoesNotExist}",
    ] {
        clean(&peer(expressions));
    }
}

#[test]
fn labels_of_namespaces_are_not_those_of_pods() {
    let text = api("{from: [{podSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}]}");
    assert_eq!(codes(&text), [Code::NameLabel].into());
}

#[test]
fn rule_with_every_peer_shadows_others_and_ports_are_compared() {
    assert_eq!(codes(&api("{}, {ports: [{port: 8080}]}")), [Code::Shadowed].into());
    assert_eq!(
        codes(&api(
            "{ports: [{port: 8000, endPort: 9000}]}, {ports: [{port: 8080}], from: [{podSelector: {}}]}"
        )),
        [Code::Shadowed].into()
    );
    let wider_in_one_port =
        "{ports: [{port: 8080}]}, {ports: [{port: 8080}, {port: 9090}], from: [{podSelector: {}}]}";
    assert_eq!(codes(&api(wider_in_one_port)), [Code::UndeclaredPort].into());
    assert_eq!(codes(&api("{ports: [{port: 8080}]}, {ports: [{port: 8080}]}")), [Code::Duplicate].into());
    let all = policy("open", "{podSelector: {}, ingress: [{}]}");
    let text = shop(&all);
    assert!(codes(&text).contains(&Code::Shadowed));
    says(&text, "it has no effect: shop/open allows everything for the same pods");
}

#[test]
fn deny_by_name_that_denies_has_no_finding() {
    let spec = "{podSelector: {}, policyTypes: [Ingress], ingress: []}";
    for name in ["deny-all", "block-everything", "deny"] {
        let text =
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n".to_owned() + &policy(name, spec);
        clean(&text);
        let text = text.replace("ingress: []", "ingress: [{}]");
        assert_eq!(codes(&text), [Code::DenyAllows].into(), "{name}");
    }
}

#[test]
fn empty_lists_are_found_only_where_they_are_written() {
    assert_eq!(codes(&api("{from: []}")), [Code::EmptyList].into());
    assert_eq!(codes(&api("{from: , ports: [{port: 8080}]}")), [Code::EmptyList].into());
    assert_eq!(codes(&api("{ports: []}")), [Code::EmptyList].into());
    clean(&api("{}"));
}

#[test]
fn missing_section_is_found_only_beside_rules() {
    let spec = |types: &str, rest: &str| {
        shop(&policy("api", &format!("{{podSelector: {{matchLabels: {{app: api}}}}, {types}{rest}}}")))
    };
    clean(&spec("policyTypes: [Ingress, Egress]", ""));
    assert_eq!(
        codes(&spec("policyTypes: [Ingress, Egress], ", "ingress: [{}]")),
        [Code::TypeWithoutRules].into()
    );
    assert_eq!(codes(&spec("", "egress: [{}]")), [Code::TypeWithoutRules].into());
    clean(&spec("policyTypes: [Egress], ", "egress: [{}]"));
    clean(&spec("policyTypes: [Ingress, Egress], ", "ingress: [{}], egress: []"));
}

#[test]
fn block_of_everything_is_a_note_and_excepts_are_respected() {
    let text = api("{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}")
        .replace("kind: Pod\n", "kind: Pod\nstatus: {podIPs: [{ip: 10.244.0.9}]}\n");
    says(&text, ": note: it covers pods as well");
    clean(&text.replace("cidr: 0.0.0.0/0", "cidr: 0.0.0.0/0, except: [10.0.0.0/8]"));
}

#[test]
fn pod_cidr_is_a_block_of_pods() {
    let text = api("{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}");
    clean(&text);
    let found = towpath::cli::lint::codes_of_text("f".as_ref(), &text, &["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(found.into_iter().map(|(code, _)| code).collect::<Vec<_>>(), [Code::BlockCoversPods]);
}

#[test]
fn findings_of_one_policy_are_limited() {
    let rules: Vec<String> = (0..500)
        .map(|n| format!("{{from: [{{podSelector: {{matchLabels: {{app: none-{n}}}}}}}]}}"))
        .collect();
    assert_eq!(lines(&api(&rules.join(", "))).len(), 100);
}

#[test]
fn findings_say_the_line_of_their_field_also_in_a_list() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a, namespace: default, labels: {app: a}}\n\
                - apiVersion: networking.k8s.io/v1\n  kind: NetworkPolicy\n  metadata:\n    name: p\n  spec:\n    podSelector:\n      \
                matchLabels:\n        app: b\n";
    says(text, "f.yaml:12:5: warning: it selects no pod of default");
    says(text, "[TP101] (items[1].spec.podSelector)");
}

/// The mistakes that `explain` recognises in a flow, and what is found of them without one. Two cannot be seen in the
/// objects: that a default deny is meant to have an exception, and that a pod has no address yet.
#[test]
fn mistakes_behind_denied_flows_are_found_without_the_flow() {
    let expected = [
        ("block-of-pod-addresses", Code::BlockCoversPods),
        ("both-selectors-in-one-peer", Code::AndForOr),
        ("client-on-the-host-network", Code::HostNetworkPeer),
        ("dns-forgotten", Code::NoDns),
        ("egress-forgotten", Code::ClientEgress),
        ("empty-list-of-rules", Code::AllowDenies),
        ("empty-pod-selector", Code::EmptySubject),
        ("end-port", Code::UndeclaredPort),
        ("except-with-the-client", Code::BlockCoversPods),
        ("label-typo", Code::PeerMatchesNothing),
        ("namespace-name-as-a-label", Code::NameLabel),
        ("namespace-selector-missing", Code::PeerMatchesNothing),
        ("not-in-without-the-label", Code::ExcludesNothing),
        ("one-family", Code::OneFamily),
        ("policy-types-without-the-section", Code::TypeWithoutRules),
        ("port-name-typo", Code::NoSuchPort),
        ("port-of-the-service", Code::ServicePort),
        ("two-peers-meant-as-one", Code::OrForAnd),
        ("udp-for-tcp", Code::WrongProtocol),
        ("wrong-namespace", Code::SelectsNothing),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mistakes");
    for (name, code) in expected {
        let text = fs::read_to_string(folder.join(name).join("cluster.yaml")).unwrap();
        assert!(codes(&text).contains(&code), "{name}: {:#?}", lines(&text));
    }
}

#[test]
fn findings_of_a_service_and_of_another_namespace_say_what_was_found_there() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mistakes");
    let text = |name: &str| fs::read_to_string(folder.join(name).join("cluster.yaml")).unwrap();
    says(&text("port-of-the-service"), "policy sees the port of its pods, which is 8080 (http) [TP302]");
    says(
        &text("namespace-selector-missing"),
        " matches, but is in another namespace: without a namespaceSelector",
    );
}

/// The time for ten thousand pods and a thousand policies is printed, not asserted:
/// `cargo test --release --test lint cost -- --nocapture`.
#[test]
fn cost_of_a_large_cluster_is_bounded() {
    let size = Size { name: "large", pods: 10_000, policies: 1_000, local: 0 };
    let mut cluster = Cluster::new();
    for change in lab::sized::cluster(size) {
        cluster.apply(change);
    }
    let start = Instant::now();
    let Findings { found, omitted } = find(&cluster, &Knowledge::default());
    println!(
        "{} pods, {} policies: {} findings in {:?}",
        size.pods,
        size.policies,
        found.len(),
        start.elapsed()
    );
    assert!(found.len() + omitted <= 100 * size.policies, "{}", found.len());
}
