//! Files, kinds, fields and names.

use std::{fs, path::Path};

use super::{ALL, faults, loaded, pod_of, policy_of, policy_text};
use crate::{
    k8s::{
        fault::Severity,
        manifest::{Options, load, load_text, object::KINDS},
    },
    model::{ContainerPort, Labels, ObjectKey, Phase, Pod, Protocol, Standing},
};

#[test]
fn names_and_namespaces_are_dns_names() {
    for (kind, meta, path) in [
        ("NetworkPolicy", "{}", "metadata.name"),
        ("NetworkPolicy", "{name: A}", "metadata.name"),
        ("NetworkPolicy", "{name: a, namespace: b.c}", "metadata.namespace"),
        ("Pod", "{generateName: a-}", "metadata.name"),
        ("Pod", "{name: a_b}", "metadata.name"),
        ("Pod", "{name: a, labels: {-: b}}", "metadata.labels.-"),
        ("Namespace", "{name: a.b}", "metadata.name"),
        ("Namespace", "{name: a, namespace: b}", "metadata.namespace"),
        ("Namespace", "{name: a, labels: {b: c d}}", "metadata.labels.b"),
    ] {
        let api = if kind == "NetworkPolicy" { "networking.k8s.io/v1" } else { "v1" };
        let loaded = loaded(&format!("apiVersion: {api}\nkind: {kind}\nmetadata: {meta}\n"));
        let errors: Vec<&str> =
            loaded.faults.iter().filter(|f| f.is_error()).map(|f| f.path.as_str()).collect();
        assert_eq!(errors, [path], "{kind} {meta}: {:?}", loaded.faults);
    }
    assert!(policy_of(&policy_text("{}").replace("name: p", "name: p, namespace: ''")).is_some());
}

#[test]
fn misplaced_or_miscased_field_gets_a_hint() {
    let hint = |text: &str, path: &str, hint: &str| {
        let loaded = loaded(text);
        let fault = loaded.faults.iter().find(|fault| fault.path == path && fault.is_error());
        let fault = fault.unwrap_or_else(|| panic!("{text}: {:?}", loaded.faults));
        assert!(fault.text.contains(hint), "{fault}");
    };
    let spec = |spec: &str, path: &str, text: &str| hint(&policy_text(spec), &format!("spec.{path}"), text);
    spec("{podSelector: , matchLabels: {a: b}}", "matchLabels", "belongs inside podSelector");
    spec(
        "{ingress: [{from: [{namespaceSelector: , matchLabels: {}}]}]}",
        "ingress[0].from[0].matchLabels",
        "namespaceSelector",
    );
    spec("{ingress: [{from: [{ipBlock: , cidr: 10.0.0.0/8}]}]}", "ingress[0].from[0].cidr", "inside ipBlock");
    spec("{ingress: [{ports: , port: 80}]}", "ingress[0].port", "item of ports");
    spec("{ingress: [{podSelector: {}}]}", "ingress[0].podSelector", "item of from");
    spec("{egress: [{podSelector: {}}]}", "egress[0].podSelector", "item of to");
    spec("{egress: [{from: []}]}", "egress[0].from", "a rule of egress has `to`");
    spec("{ingress: [{to: []}]}", "ingress[0].to", "a rule of ingress has `from`");
    spec("{from: []}", "from", "item of ingress");
    spec("{podSelector: {app: web}}", "podSelector.app", "inside matchLabels");
    spec("{podSelector: {matchLabel: {}}}", "podSelector.matchLabel", "did you mean `matchLabels`");
    spec("{Ingress: []}", "Ingress", "did you mean `ingress`");
    spec("{labels: {}}", "labels", "inside metadata");
    let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n";
    hint(&format!("{head}ingress: []\n"), "ingress", "inside spec");
    hint(&format!("{head}podSelector: {{}}\n"), "podSelector", "inside spec");
    hint(&head.replace("kind", "Kind"), "Kind", "did you mean `kind`");
    hint(&head.replace("metadata", "Metadata"), "Metadata", "did you mean `metadata`");
    hint(&head.replace("apiVersion", "apiversion"), "apiversion", "did you mean `apiVersion`");
    hint(&head.replace("name: p", "name: p, lables: {}"), "metadata.lables", "did you mean `labels`");
    hint(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{port: []}]}\n",
        "spec.containers[0].port",
        "did you mean `ports`",
    );
}

#[test]
fn every_error_has_its_position() {
    let text = "# a comment\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: p\nspec:\n  \
                podSelector:\n  matchLabels:\n    a: b\n  ingress:\n  - ports:\n    - port: 70000\n";
    assert_eq!(
        faults(text),
        [
            "f.yaml:9:3: error: unknown field \"matchLabels\": it belongs inside podSelector: indent it (spec.matchLabels)",
            "f.yaml:13:13: error: 70000 is no port: ports go from 1 to 65535 (spec.ingress[0].ports[0].port)",
        ]
    );
    assert_eq!(faults("a: b\n---\na: [\n").len(), 2);
    assert!(faults("a:\n\tb: 1\n")[0].starts_with("f.yaml:2:"), "{:?}", faults("a:\n\tb: 1\n"));
}

#[test]
fn repeated_key_is_an_error_with_both_positions() {
    let text = policy_text("\n  podSelector: {}\n  ingress: []\n  podSelector: {matchLabels: {a: b}}");
    assert_eq!(
        faults(&text),
        ["f.yaml:7:3: error: the key \"podSelector\" stands twice here: first at 5:3 (spec.podSelector)"]
    );
    assert_eq!(policy_of(&text), None);
}

#[test]
fn other_kinds_are_skipped_and_typos_of_known_kinds_are_errors() {
    let one =
        |api: &str, kind: &str| loaded(&format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: a}}\n"));
    for (api, kind) in [
        ("v1", "Service"),
        ("v1", "Node"),
        ("v1", "NodeList"),
        ("apps/v1", "ControllerRevision"),
        ("networking.k8s.io/v1", "Ingress"),
        ("crd.projectcalico.org/v1", "NetworkPolicy"),
        ("projectcalico.org/v3", "NetworkPolicy"),
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
        ("acme.example/v1", "Pod"),
    ] {
        let loaded = one(api, kind);
        assert_eq!(loaded.faults, [], "{api} {kind}");
        assert_eq!(loaded.skipped.get(&format!("{api}/{kind}")), Some(&1), "{:?}", loaded.skipped);
    }
    for (api, kind, text) in [
        ("extensions/v1beta1", "NetworkPolicy", "write networking.k8s.io/v1"),
        ("v1", "NetworkPolicy", "write networking.k8s.io/v1"),
        ("networking.k8s.io/v1beta1", "NetworkPolicy", "write networking.k8s.io/v1"),
        ("networking.k8.io/v1", "NetworkPolicy", "write networking.k8s.io/v1"),
        ("apps/v1beta1", "Deployment", "write apps/v1"),
        ("v2", "Pod", "write v1"),
        ("networking.k8s.io/v1", "Networkpolicy", "did you mean NetworkPolicy"),
        ("networking.k8s.io/v1", "NetworkPolicies", "did you mean NetworkPolicy"),
        ("v1", "pod", "did you mean Pod"),
        ("v1", "Namspace", "did you mean Namespace"),
    ] {
        let faults = one(api, kind).faults;
        assert!(faults[0].is_error() && faults[0].text.contains(text), "{api} {kind}: {faults:?}");
    }
    assert!(faults("metadata: {name: a}\n")[0].contains("kind is missing"));
    assert!(faults("kind: Pod\n")[0].contains("apiVersion is missing"));
    assert!(faults("- a\n")[0].contains("not a Kubernetes object"));
    assert_eq!(faults("# nothing\n---\n"), [""; 0]);
}

#[test]
fn lists_are_parsed_item_by_item() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n- {apiVersion: v1, \
                kind: Service, metadata: {name: s}}\n";
    let loaded = loaded(list);
    assert_eq!((loaded.cluster().pods().count(), loaded.skipped.len(), &loaded.faults[..]), (1, 1, &[][..]));
    let pods = "apiVersion: v1\nkind: PodList\nmetadata: {resourceVersion: '1'}\nitems:\n- metadata: {name: a}\n- metadata: {nam: b}\n";
    let faults = faults(pods);
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults.iter().any(|fault| fault.ends_with("(items[1].metadata.nam)")), "{faults:?}");
    assert!(super::faults("apiVersion: v1\nkind: List\n")[0].contains("a list without items"));
}

#[test]
fn pod_belongs_to_the_workload_that_controls_it() {
    let workload = |labels: &str, owners: &str| {
        let meta = format!("{{name: a, labels: {{{labels}}}, ownerReferences: [{owners}]}}");
        let pod = pod_of(&format!("apiVersion: v1\nkind: Pod\nmetadata: {meta}\n"));
        pod.workload.map(|workload| workload.to_string())
    };
    let owner = |kind: &str, name: &str, controller: bool| {
        let group = "apiVersion: apps/v1, uid: u";
        format!("{{{group}, kind: {kind:?}, name: {name:?}, controller: {controller}}}")
    };
    let replica_set = owner("ReplicaSet", "web-5d8f", true);
    assert_eq!(workload("", ""), None);
    assert_eq!(workload("", &owner("StatefulSet", "db", true)).as_deref(), Some("StatefulSet db"));
    assert_eq!(workload("", &owner("StatefulSet", "db", false)), None);
    assert_eq!(workload("pod-template-hash: 5d8f", &replica_set).as_deref(), Some("Deployment web"));
    assert_eq!(workload("pod-template-hash: '7777'", &replica_set).as_deref(), Some("ReplicaSet web-5d8f"));
    assert_eq!(workload("pod-template-hash: web-5d8f", &replica_set).as_deref(), Some("ReplicaSet web-5d8f"));
    // The API server takes any text.
    assert_eq!(workload("", &owner("A B", "db", true)), None);
    assert_eq!(workload("", &owner("StatefulSet", "a b", true)), None);
    let deployment =
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {selector: {}, template: {}}\n";
    assert_eq!(
        pod_of(deployment).workload.map(|workload| workload.to_string()).as_deref(),
        Some("Deployment web")
    );
}

#[test]
fn pod_is_parsed_with_all_addresses_and_ports() {
    let pod = pod_of(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  namespace: kube-system\n  labels: {app: web}\n  \
         creationTimestamp: 2024-01-02T03:04:05Z\n  deletionTimestamp: 2024-01-02T03:04:06Z\nspec:\n  nodeName: node\n  \
         hostNetwork: true\n  containers:\n  - ports: [{containerPort: 80, name: http}, {containerPort: 53, protocol: UDP}]\n  \
         initContainers:\n  - restartPolicy: Always\n    ports: [{containerPort: 90, name: side}]\n  - ports: [{containerPort: 91}]\n\
         status:\n  phase: Succeeded\n  podIP: 10.0.0.1\n  podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]\n  hostIP: 192.168.0.1\n",
    );
    let port =
        |name: Option<&str>, protocol, number| ContainerPort { name: name.map(Into::into), protocol, number };
    let expected = Pod {
        labels: [("app", "web")].into_iter().collect(),
        node: Some("node".into()),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        node_addresses: vec!["192.168.0.1".parse().unwrap()],
        host_network: true,
        phase: Phase::Succeeded,
        terminating: true,
        ports: vec![
            port(Some("http"), Protocol::Tcp, 80),
            port(None, Protocol::Udp, 53),
            port(Some("side"), Protocol::Tcp, 90),
            port(None, Protocol::Tcp, 91),
        ],
        ..Pod::new(ObjectKey::new("kube-system", "a"))
    };
    assert_eq!(pod, expected);
}

#[test]
fn pod_fields_are_optional_but_must_be_valid() {
    let text = |rest: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\n{rest}\n");
    assert_eq!(pod_of(&text("")).phase, Phase::Pending);
    for (rest, path) in [
        ("status: {podIP: 10.0.0.256}", "status.podIP"),
        ("status: {podIPs: [{ip: a}]}", "status.podIPs[0].ip"),
        ("status: {hostIPs: [{ip: 10.0.0.0/8}]}", "status.hostIPs[0].ip"),
        ("status: {phase: running}", "status.phase"),
        ("spec: {containers: [{ports: [{containerPort: 0}]}]}", "spec.containers[0].ports[0].containerPort"),
        ("spec: {containers: [{ports: [{}]}]}", "spec.containers[0].ports[0]"),
        (
            "spec: {initContainers: [{ports: [{containerPort: 1, name: A}]}]}",
            "spec.initContainers[0].ports[0].name",
        ),
        (
            "spec: {containers: [{ports: [{containerPort: 1, protocol: x}]}]}",
            "spec.containers[0].ports[0].protocol",
        ),
        ("spec: {hostNetwork: 'true'}", "spec.hostNetwork"),
        ("spec: {nodename: n}", "spec.nodename"),
    ] {
        let loaded = loaded(&text(rest));
        let paths: Vec<&str> = loaded.faults.iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(paths, [path], "{rest}: {:?}", loaded.faults);
        assert_eq!(loaded.cluster().pods().count(), 0);
    }
}

#[test]
fn workload_is_one_running_pod_of_its_template() {
    for (api, kind) in [
        ("apps/v1", "Deployment"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("apps/v1", "ReplicaSet"),
        ("batch/v1", "Job"),
        ("batch/v1", "CronJob"),
    ] {
        let template = "{template: {metadata: {labels: {app: web}}, spec: {containers: [{ports: [{containerPort: 80}]}]}}}";
        let spec = if kind == "CronJob" {
            format!("{{jobTemplate: {{spec: {template}}}}}")
        } else {
            template.to_owned()
        };
        let text = format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: w}}\nspec: {spec}\n");
        let pod = pod_of(&text);
        assert_eq!(
            (&*pod.key.name, pod.phase, pod.node.is_none(), pod.addresses.len()),
            ("w", Phase::Running, true, 0)
        );
        assert_eq!((pod.labels.get("app"), pod.ports.len()), (Some("web"), 1), "{kind}");
        let skipping = load_text(Path::new("f"), &text, Options::default());
        assert_eq!(skipping.skipped.get(&format!("{api}/{kind}")), Some(&1));
        assert_eq!(skipping.cluster().pods().count(), 0);
        let wrong = text.replace("app: web", "app: yes");
        assert!(faults(&wrong)[0].contains("template.metadata.labels.app"), "{:?}", faults(&wrong));
    }
}

#[test]
fn workloads_of_the_same_name_are_separate_pods() {
    let one = |kind: &str| {
        format!("---\napiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: w}}\nspec: {{template: {{}}}}\n")
    };
    let text =
        one("Deployment") + &one("StatefulSet") + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: w}\n";
    let loaded = loaded(&text);
    let names: Vec<String> = loaded.cluster().pods().map(|pod| pod.key.name.to_string()).collect();
    assert_eq!(names, ["deployment.w", "statefulset.w", "w"]);
    assert!(
        loaded.faults.iter().all(|fault| !fault.is_error()) && loaded.faults.len() == 2,
        "{:?}",
        loaded.faults
    );
}

#[test]
fn duplicate_object_is_an_error_with_both_positions() {
    let text = policy_text("{}") + "---\n" + &policy_text("{ingress: [{}]}");
    let [fault] = &loaded(&text).faults[..] else { panic!() };
    assert_eq!(fault.line, 8);
    assert!(fault.text.contains("NetworkPolicy default/p is already defined at f.yaml:3:18"), "{fault}");
    assert_eq!(policy_of(&text).unwrap().standing, Standing::Refused);
}

#[test]
fn namespaces_have_their_name_label_and_default_ones_exist() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a}}\n";
    let cluster = loaded(text).cluster();
    let labels: Labels = [("team", "a"), ("kubernetes.io/metadata.name", "shop")].into_iter().collect();
    assert_eq!(cluster.namespace("shop").unwrap().labels, labels);
    let names: Vec<&str> = cluster.namespaces().map(|namespace| &*namespace.name).collect();
    assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system", "shop"]);
    let same = text.replace("team: a", "kubernetes.io/metadata.name: shop");
    assert_eq!(faults(&same), [""; 0]);
    let other = text.replace("team: a", "kubernetes.io/metadata.name: other");
    assert!(
        faults(&other)[0].contains("remove it (metadata.labels[kubernetes.io/metadata.name])"),
        "{:?}",
        faults(&other)
    );
}

#[test]
fn undeclared_namespace_exists_with_its_name_and_a_note() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\n---\napiVersion: v1\nkind: Pod\nmetadata: \
                {name: b, namespace: shop}\n";
    let loaded = loaded(text);
    let [fault] = &loaded.faults[..] else { panic!("{:?}", loaded.faults) };
    assert_eq!((fault.severity, fault.line, fault.path.as_str()), (Severity::Note, 3, "metadata.namespace"));
    let labels: Labels = [("kubernetes.io/metadata.name", "shop")].into_iter().collect();
    assert_eq!(loaded.cluster().namespace("shop").unwrap().labels, labels);
    assert_eq!(loaded.cluster().pods().count(), 2);
}

#[test]
fn namespace_with_an_invalid_name_is_not_taken_to_exist() {
    let loaded = loaded("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: S.hop}\n");
    assert_eq!((loaded.undeclared.len(), loaded.faults.len()), (0, 1), "{:?}", loaded.faults);
    assert!(loaded.cluster().namespace("S.hop").is_none());
}

#[test]
fn empty_status_is_accepted_for_every_kind() {
    for (api, kind) in KINDS.iter().filter(|(_, kind, _)| *kind != "List").map(|(api, kind, _)| (api, kind)) {
        let spec = match *kind {
            "CronJob" => "spec: {jobTemplate: {spec: {template: {}}}}\n",
            "Namespace" | "Pod" | "NetworkPolicy" => "",
            _ => "spec: {template: {}}\n",
        };
        for status in ["{}", ""] {
            let text =
                format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: a}}\n{spec}status: {status}\n");
            assert_eq!(faults(&text), [""; 0], "{kind}");
        }
    }
    assert!(faults(&(policy_text("{}") + "status: {phase: a}\n"))[0].contains("unknown field \"status\""));
}

#[test]
fn json_bom_and_crlf_are_parsed() {
    let json = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"},
	"spec": {"ingress": [{"ports": [{"port": 80}]}]}}"#;
    assert!(policy_of(json).is_some());
    assert!(policy_of(&format!("\u{feff}{}", policy_text("{}"))).is_some());
    assert!(
        policy_of(&policy_text("\n  podSelector:\n    matchLabels:\n      a: b").replace('\n', "\r\n"))
            .is_some()
    );
}

#[test]
fn folder_is_read_recursively_and_a_missing_path_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let pod = |name: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n");
    fs::create_dir_all(folder.path().join("x/.git")).unwrap();
    for (file, name) in [
        ("a.yaml", "a"),
        ("x/b.yml", "b"),
        ("x/c.json", "c"),
        ("x/d.txt", "d"),
        ("x/.git/e.yaml", "e"),
        (".f.yaml", "f"),
    ] {
        fs::write(folder.path().join(file), pod(name)).unwrap();
    }
    let loaded = load(&[folder.path().to_owned(), folder.path().join("a.yaml")], ALL).unwrap();
    let names: Vec<String> = loaded.cluster().pods().map(|pod| pod.key.name.to_string()).collect();
    assert_eq!((names.join(" "), &loaded.faults[..]), ("a b c".to_owned(), &[][..]));
    let missing = load(&[folder.path().join("nothing")], ALL).unwrap_err().to_string();
    assert!(missing.contains("nothing"), "{missing}");
}

#[test]
fn mirror_of_a_static_pod_has_the_uid_of_that() {
    let uid = |meta: &str| pod_of(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a{meta}}}\n")).uid;
    assert_eq!(uid(""), None);
    assert_eq!(uid(", uid: 8f7c").as_deref(), Some("8f7c"));
    let mirror = ", uid: 8f7c, annotations: {kubernetes.io/config.mirror: 0aa1, other: x}";
    assert_eq!(uid(mirror).as_deref(), Some("0aa1"));
}
