//! `explain` as people ask it: with workloads, Services, names without a namespace, ports by name or none; from files and
//! from an API server.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    thread,
};

use serde_json::{Value, json};

use crate::program::{Finished, run, run_with_input};

/// Two Deployments, a database and a Service for the first, with a default deny and one policy.
const OBJECTS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}, {name: metrics, containerPort: 9090}]}]}
---
{apiVersion: v1, kind: Service, metadata: {name: front, namespace: shop},
 spec: {clusterIP: 10.96.0.7, selector: {app: web}, ports: [{name: web, port: 80, targetPort: http}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: shop, labels: {app: client}}, spec: {containers: [{name: c}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: default, labels: {app: client}}, spec: {containers: [{name: c}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: http}]}]
";

fn ask(arguments: &[&str]) -> Finished {
    run_with_input(&[&["explain", "-f", "-", "--width", "400"], arguments].concat(), OBJECTS)
}

#[track_caller]
fn assert_answer(arguments: &[&str], status: i32, lines: &[&str]) {
    let finished = ask(arguments);
    assert_eq!(finished.status, status, "{finished:?}");
    for line in lines {
        assert!(finished.stdout.lines().any(|one| one == *line), "no {line:?} in {}", finished.stdout);
    }
    assert_eq!(finished.stderr, "");
}

#[test]
fn question_about_a_service_is_one_about_the_port_of_its_pods() {
    let title = "shop/service/front is shop/web";
    for to in ["svc/front", "shop/svc/front", "front", "10.96.0.7"] {
        let lines = ["allowed: shop/client to shop/web, 8080/TCP", title];
        assert_answer(&["--from", "shop/client", "--to", to, "--port", "80"], 0, &lines);
    }
    let wrong = ask(&["--from", "shop/client", "--to", "svc/front", "--port", "8080"]);
    assert_eq!((wrong.status, wrong.stdout.as_str()), (2, ""));
    assert!(
        wrong.stderr.contains("the Service shop/front has no such port; its ports are web (80/TCP)"),
        "{wrong:?}"
    );
}

#[test]
fn port_of_a_service_asked_of_its_pod_is_answered_with_a_note() {
    let note = "note: Port 80 of the Service shop/front is 8080 at the pod, and shop/web declares no port 80: ask with \
                --port 8080.";
    assert_answer(&["--from", "shop/client", "--to", "shop/web", "--port", "80"], 1, &[note]);
}

#[test]
fn without_a_port_each_declared_one_has_a_short_answer() {
    let lines = [
        "without --port, the ports that shop/web declares are asked about",
        "allowed: shop/client to shop/web, 8080/TCP",
        "denied: shop/client to shop/web, 9090/TCP",
        "  ingress of shop/web is denied: shop/web rule 0 allows shop/client, but 9090 is not among http (8080).",
    ];
    assert_answer(&["--from", "shop/client", "--to", "shop/web"], 1, &lines);
    let several = ask(&["--from", "shop/client", "--to", "shop/web"]).stdout;
    assert!(several.starts_with("denied: 1 of 2 flows\n"), "{several}");
    let lines = [
        "allowed: shop/web to shop/client, 80/TCP",
        "shop/client declares no port, so 80/TCP is asked about",
    ];
    assert_answer(&["--from", "deploy/web", "--to", "shop/client"], 0, &lines);
}

#[test]
fn address_of_a_family_that_the_pod_lacks_is_said_to_be_one() {
    let objects = OBJECTS.replace(
        "labels: {app: client}}, spec: {containers: [{name: c}]}}\n---\n{apiVersion: v1, kind: Pod",
        "labels: {app: client}}, spec: {containers: [{name: c}]}, status: {podIPs: [{ip: 10.0.0.9}]}}\n---\n{apiVersion: v1, \
         kind: Pod",
    );
    let policy = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: out, namespace: shop}\nspec:\n  \
                  podSelector: {matchLabels: {app: client}}\n  policyTypes: [Egress]\n  egress: [{to: [{ipBlock: {cidr: \
                  10.0.0.0/8}}]}]\n";
    let to = ["explain", "-f", "-", "--width", "400", "--from", "shop/client", "--to", "2001:db8::1"];
    let finished = run_with_input(&to, &format!("{objects}{policy}"));
    assert!(finished.stdout.contains("; shop/client has no IPv6 address"), "{finished:?}");
    assert!(!finished.stdout.contains("2001:db8::1 has no address"), "{finished:?}");
}

#[test]
fn node_is_said_to_be_an_address_and_not_a_pod_on_its_node() {
    let agent = "---\n{apiVersion: v1, kind: Pod, metadata: {name: agent, namespace: default}, spec: {nodeName: n1, \
                 hostNetwork: true, containers: [{name: c}]}, status: {hostIP: 192.168.0.1, podIPs: [{ip: 192.168.0.1}]}}\n";
    let ask = |from: &str| {
        let arguments =
            ["explain", "-f", "-", "--width", "400", "--to", "shop/web", "--port", "8080", "--from", from];
        run_with_input(&arguments, &format!("{OBJECTS}{agent}")).stdout
    };
    let (node, agent) = (ask("node/n1"), ask("default/agent"));
    assert!(node.contains("To policies a node is an address, which only an ipBlock allows."), "{node}");
    assert!(agent.contains("To policies it is the address of its node"), "{agent}");
}

#[test]
fn json_of_several_answers_is_that_of_the_first_denied_one_with_all_of_them() {
    let finished = ask(&["--from", "shop/client", "--to", "shop/web", "-o", "json"]);
    assert_eq!(finished.status, 1);
    let answer: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!((&answer["verdict"], &answer["port"]), (&json!("deny"), &json!(9090)));
    let answers = answer["answers"].as_array().unwrap().iter();
    let answers: Vec<(&Value, &Value)> = answers.map(|one| (&one["port"], &one["verdict"])).collect();
    assert_eq!(answers, [(&json!(8080), &json!("allow")), (&json!(9090), &json!("deny"))]);
    assert_eq!(answer["cause"]["code"], "port");
}

#[test]
fn names_without_a_namespace_are_those_of_the_flag_or_the_only_ones() {
    assert_answer(
        &["-n", "shop", "--from", "client", "--to", "web", "--port", "http"],
        0,
        &["allowed: shop/client to shop/web, 8080/TCP"],
    );
    let unclear = ask(&["--from", "client", "--to", "web", "--port", "http"]);
    assert_eq!((unclear.status, unclear.stdout.as_str()), (2, ""));
    let message = "towpath: \"client\" may be default/client or shop/client: name one of them\n";
    assert_eq!(unclear.stderr, message);
    let typo = ask(&["--from", "shop/cleint", "--to", "web", "--port", "http"]);
    assert_eq!(typo.stderr, "towpath: there is no pod shop/cleint among the objects: did you mean client?\n");
    let port = ask(&["--from", "shop/client", "--to", "web", "--port", "metrcis"]);
    assert!(port.stderr.contains("has no port named metrcis: did you mean metrics?"), "{port:?}");
}

#[test]
fn fix_output_is_a_script_and_empty_if_the_flow_is_allowed() {
    let question = ["--from", "default/client", "--to", "shop/web", "--port", "http", "-o", "fix"];
    let finished = ask(&question);
    assert_eq!(finished.status, 1);
    assert!(
        finished.stdout.starts_with("kubectl patch networkpolicy web --namespace shop --type json"),
        "{finished:?}"
    );
    let allowed = ask(&["--from", "shop/client", "--to", "shop/web", "--port", "http", "-o", "fix"]);
    assert_eq!((allowed.status, allowed.stdout.as_str()), (0, ""));
}

#[test]
fn fix_script_is_accepted_by_a_shell() {
    let deny = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, namespace: shop}, \
                spec: {policyTypes: [Egress]}}\n";
    let question = ["explain", "-f", "-", "--from", "shop/client", "--to", "default/client", "-o", "fix"];
    let script = run_with_input(&question, &format!("{OBJECTS}{deny}")).stdout;
    let kubectl = "kubectl() { echo \"kubectl $*\"; cat; }\n";
    let shell =
        std::process::Command::new("sh").args(["-c", &format!("{kubectl}{script}")]).output().unwrap();
    let printed = String::from_utf8(shell.stdout).unwrap();
    assert!(printed.starts_with("kubectl create -f -\napiVersion: networking.k8s.io/v1\n"), "{printed}");
    assert!(printed.contains("kubernetes.io/metadata.name: default"), "{printed}");
}

fn metadata(namespace: &str, name: &str) -> Value {
    json!({"name": name, "namespace": namespace, "uid": name, "resourceVersion": "1"})
}

fn pod(namespace: &str, name: &str, port: u16) -> Value {
    let mut metadata = metadata(namespace, name);
    metadata["labels"] = json!({"app": name});
    let container = json!({"name": "c", "ports": [{"containerPort": port}]});
    json!({
        "metadata": metadata,
        "spec": {"nodeName": "n", "containers": [container]},
        "status": {"phase": "Running"},
    })
}

/// An API server that has these objects, and refuses to list Services if they are not among them. It serves in the
/// background until the test's process ends.
fn serve(services: Option<Value>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let pods = json!([pod("shop", "web", 8080), pod("shop", "db", 5432), pod("bank", "db", 5432)]);
    let namespace =
        |name: &str| json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}});
    let policy =
        json!({"metadata": metadata("shop", "db"), "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let request = lines.next().and_then(Result::ok).unwrap_or_default();
            for line in lines {
                if line.is_ok_and(|line| line.is_empty()) {
                    break;
                }
            }
            let path = request.split([' ', '?']).nth(1).unwrap_or_default();
            let items = match path {
                "/api/v1/namespaces" => Some(json!([namespace("shop"), namespace("bank")])),
                "/api/v1/pods" => Some(pods.clone()),
                "/apis/networking.k8s.io/v1/networkpolicies" => Some(json!([policy])),
                "/api/v1/services" => services.clone(),
                _ => None,
            };
            let (status, body) = match items {
                Some(items) => {
                    ("200 OK", json!({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items}))
                }
                None => (
                    "403 Forbidden",
                    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 403,
                           "reason": "Forbidden", "message": "services is forbidden: no such right"}),
                ),
            };
            let body = body.to_string();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    format!("http://{address}")
}

/// Asks an API server, with a kubeconfig whose context has the namespace `shop`.
fn ask_server(server: &str, arguments: &[&str]) -> Finished {
    run_on_server(server, "explain", arguments)
}

fn run_on_server(server: &str, command: &str, arguments: &[&str]) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
        "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
    });
    fs::write(&kubeconfig, text.to_string()).unwrap();
    run(&[&[command, "--kubeconfig", kubeconfig.to_str().unwrap()], arguments].concat())
}

#[test]
fn without_the_right_to_list_services_the_question_is_answered_without_them() {
    let server = serve(None);
    let finished = ask_server(&server, &["--from", "web", "--to", "db"]);
    assert!(finished.stdout.starts_with("denied: shop/web to shop/db, 5432/TCP\n"), "{finished:?}");
    assert_eq!(finished.status, 1);
    assert!(
        finished.stderr.starts_with("note: answered without Services, which cannot be listed: ")
            && finished.stderr.contains("services is forbidden"),
        "{finished:?}"
    );
    let lint = run_on_server(&server, "lint", &[]);
    assert!(
        lint.stderr.starts_with("note: checked without Services, which cannot be listed: ")
            && lint.stderr.contains("services is forbidden"),
        "{lint:?}"
    );
    let finished = ask_server(&server, &["-n", "bank", "--from", "shop/web", "--to", "db"]);
    assert!(finished.stdout.starts_with("allowed: shop/web to bank/db, 5432/TCP\n"), "{finished:?}");
}

#[test]
fn services_of_the_api_server_are_resolved() {
    let service = json!({"metadata": {"name": "store", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.9", "selector": {"app": "db"}, "ports": [{"port": 80, "targetPort": 5432}]}});
    let server = serve(Some(json!([service])));
    for to in ["svc/store", "10.96.0.9"] {
        let finished = ask_server(&server, &["--from", "web", "--to", to]);
        assert!(finished.stdout.starts_with("denied: shop/web to shop/db, 5432/TCP\n"), "{finished:?}");
        assert_eq!((finished.status, finished.stderr.as_str()), (1, ""));
    }
}
