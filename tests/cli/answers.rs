//! The output of the commands, as scripts rely on it.

use std::{collections::BTreeSet, fs};

use serde_json::{Value, json};

use crate::{
    program::{finish, run, run_with_input, towpath},
    repository::{root, text},
};

const SHOP: &str = "examples/shop";

fn flow<'a>(matrix: &'a Value, from: &str, to: &str, port: u16) -> &'a Value {
    let flows = matrix["flows"].as_array().unwrap();
    let found: Vec<&Value> = flows
        .iter()
        .filter(|flow| flow["from"] == from && flow["to"] == to && flow["port"] == port)
        .collect();
    assert_eq!(found.len(), 1, "{from} to {to}, {port}");
    found[0]
}

#[test]
fn json_matrix_has_every_ordered_pair_and_every_port() {
    let matrix = run(&[
        "matrix",
        "-f",
        SHOP,
        "--port",
        "5432",
        "--port",
        "53/UDP",
        "--external",
        "203.0.113.9",
        "-o",
        "json",
    ])
    .json();
    // Four pods and an address, each with each other, for two ports.
    assert_eq!(matrix["flows"].as_array().unwrap().len(), 5 * 4 * 2);
    let expected = json!({
        "from": "shop/api", "to": "shop/db", "port": 5432, "protocol": "TCP", "verdict": "allow",
    });
    assert_eq!(*flow(&matrix, "shop/api", "shop/db", 5432), expected);
    assert_eq!(flow(&matrix, "shop/web", "shop/db", 5432)["verdict"], "deny");
    let outside = flow(&matrix, "shop/db", "ip:203.0.113.9", 53);
    assert_eq!((&outside["protocol"], &outside["verdict"]), (&json!("UDP"), &json!("deny")));
    assert_eq!(flow(&matrix, "shop/web", "ip:203.0.113.9", 53)["verdict"], "allow");
}

#[test]
fn matrix_uses_declared_and_named_ports_by_default() {
    let matrix = run(&["matrix", "-f", SHOP, "-o", "json"]).json();
    let ports: BTreeSet<u64> =
        matrix["flows"].as_array().unwrap().iter().filter_map(|flow| flow["port"].as_u64()).collect();
    assert_eq!(ports, BTreeSet::from([80, 443, 5432, 8080, 9090, 9187]));
}

#[test]
fn json_explanation_names_the_policies_and_rules_of_each_direction() {
    let arguments =
        ["explain", "-f", SHOP, "--from", "shop/api", "--to", "shop/db", "--port", "5432/TCP", "-o", "json"];
    let mut answer = run(&arguments).json();
    for direction in ["egress", "ingress"] {
        let reason = answer[direction].as_object_mut().unwrap().remove("reason").unwrap();
        assert!(reason.is_string(), "{reason}");
    }
    let expected = json!({
        "verdict": "allow", "from": "shop/api", "to": "shop/db", "port": 5432, "protocol": "TCP",
        "egress": {"isolated": false, "verdict": "allow", "isolated_by": [], "allowed_by": []},
        "ingress": {
            "isolated": true,
            "verdict": "allow",
            "isolated_by": ["shop/db", "shop/default-deny", "shop/metrics-from-monitoring"],
            "allowed_by": [{"policy": "shop/db", "rule": 0}],
        },
    });
    assert_eq!(answer, expected);
}

#[test]
fn denied_flow_exits_with_1() {
    let finished =
        run(&["explain", "-f", SHOP, "--from", "shop/web", "--to", "10.244.2.12", "--port", "5432"]);
    assert_eq!(finished.status, 1, "{finished:?}");
    assert!(
        finished.stdout.starts_with("denied: shop/web to ip:10.244.2.12, 5432/TCP\n"),
        "{}",
        finished.stdout
    );
    assert_eq!(finished.stderr, "");
}

#[test]
fn protocol_of_a_number_defaults_to_tcp() {
    let explain = |more: &[&str]| {
        let arguments = ["explain", "-f", SHOP, "--from", "198.51.100.7", "--to", "shop/web"];
        run(&[&arguments, more].concat()).stdout.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(explain(&["--port", "80"]), "allowed: ip:198.51.100.7 to shop/web, 80/TCP");
    assert_eq!(explain(&["--port", "443"]), "denied: ip:198.51.100.7 to shop/web, 443/TCP");
    assert_eq!(explain(&["--port", "80/UDP"]), "denied: ip:198.51.100.7 to shop/web, 80/UDP");
}

/// All manifests of the shop, as one text.
fn stream() -> String {
    ["namespaces", "pods", "policies"].map(|name| text(&format!("{SHOP}/{name}.yaml"))).join("---\n")
}

#[test]
fn dash_reads_standard_input_with_the_same_result() {
    for arguments in [vec!["matrix", "-o", "json"], vec!["matrix"], vec!["compile", "--node-name", "node-1"]]
    {
        let from = |path| [&arguments[..], &["-f", path]].concat();
        let piped = run_with_input(&from("-"), &stream());
        assert_eq!(piped.status, 0, "{piped:?}");
        assert_eq!(piped.stdout, run(&from(SHOP)).stdout, "{arguments:?}");
    }
    assert_eq!(run_with_input(&["lint", "-"], &stream()).status, 0);
}

#[test]
fn files_can_be_named_one_by_one() {
    let files = ["namespaces", "pods", "policies"].map(|name| format!("{SHOP}/{name}.yaml"));
    let [namespaces, pods, policies] = &files;
    let named = run(&["matrix", "-f", policies, "--file", pods, "-f", namespaces]);
    assert_eq!(named.stdout, run(&["matrix", "-f", SHOP]).stdout);
}

#[test]
fn environment_variables_work_like_flags() {
    let output = run(&["matrix", "-f", SHOP, "--port", "53/UDP", "--external", "203.0.113.9", "-o", "json"]);
    let mut command = towpath(&["matrix"]);
    command.env("TOWPATH_FILE", SHOP).env("TOWPATH_PORT", "53/UDP");
    command.env("TOWPATH_EXTERNAL", "203.0.113.9").env("TOWPATH_OUTPUT", "json");
    assert_eq!(finish(&mut command).stdout, output.stdout);

    let output = run(&[
        "compile",
        "-f",
        SHOP,
        "--node-name",
        "node-2",
        "--deny-action",
        "reject",
        "--nflog-group",
        "7",
    ]);
    let mut command = towpath(&["compile"]);
    command.env("TOWPATH_FILE", SHOP).env("TOWPATH_NODE_NAME", "node-2");
    command.env("TOWPATH_DENY_ACTION", "reject").env("TOWPATH_NFLOG_GROUP", "7");
    assert_eq!(finish(&mut command).stdout, output.stdout);
    assert!(output.stdout.contains("-j REJECT --reject-with tcp-reset"), "{}", output.stdout);
    assert!(output.stdout.contains("--nflog-group 7 "), "{}", output.stdout);

    let mut command = towpath(&["matrix", "--port", "5432"]);
    command.env("TOWPATH_FILE", SHOP).env("TOWPATH_PORT", "53/UDP");
    assert!(finish(&mut command).stdout.starts_with("5432/TCP"), "a flag overrides its variable");
}

#[test]
fn workloads_stand_for_pods_in_queries_but_not_in_the_ruleset() {
    let manifest = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: front, namespace: default}
spec:
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front}}
    spec:
      containers: [{name: front, ports: [{containerPort: 80}]}]
";
    let matrix = run_with_input(&["matrix", "-f", "-", "--external", "192.0.2.9"], manifest);
    assert!(matrix.stdout.contains("default/front"), "{matrix:?}");
    let compiled = run_with_input(&["compile", "-f", "-", "--node-name", "n", "-v"], manifest);
    assert!(compiled.stderr.contains("skipped 1 of kind apps/v1/Deployment\n"), "{}", compiled.stderr);
    let compiled = run_with_input(&["compile", "-", "--node-name", "n"], manifest);
    assert!(compiled.stderr.starts_with("note: left out 1 Deployment: "), "{}", compiled.stderr);
}

#[test]
fn paths_need_no_flag_and_override_the_environment() {
    let flag = run(&["matrix", "-f", SHOP, "--port", "5432"]).stdout;
    assert_eq!(run(&["matrix", SHOP, "--port", "5432"]).stdout, flag);
    let mut command = towpath(&["matrix", SHOP, "--port", "5432"]);
    assert_eq!(finish(command.env("TOWPATH_FILE", "examples/none")).stdout, flag);
    let explain = ["--from", "shop/web", "--to", "shop/db", "--port", "5432"];
    let asked = run(&[&["explain"][..], &explain, &[SHOP]].concat());
    assert_eq!(asked.stdout, run(&[&["explain", "-f", SHOP][..], &explain].concat()).stdout);
    let compiled = run(&["compile", SHOP, "--node-name", "node-2"]);
    assert_eq!(compiled.stdout, run(&["compile", "-f", SHOP, "--node-name", "node-2"]).stdout);
    let both =
        run(&["matrix", "examples/shop/namespaces.yaml", "-f", "examples/shop/pods.yaml", "--port", "80"]);
    assert!(both.stdout.contains("shop/* (3 pods)"), "{both:?}");
}

#[test]
fn files_of_other_programs_are_left_out_with_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    fs::write(folder.path().join("package.json"), "{\"name\": \"shop\"}").unwrap();
    let alone = run(&["matrix", path]);
    assert_eq!((alone.status, alone.stdout.as_str()), (3, ""), "{alone:?}");
    assert!(alone.stderr.contains("towpath: there is no object"), "{alone:?}");
    fs::write(folder.path().join("objects.yaml"), stream()).unwrap();
    let note = format!("{path}/package.json:1:1: note: left out: it is not a Kubernetes object\n");
    for arguments in [
        &["matrix", path][..],
        &["explain", path, "--from", "shop/api", "--to", "shop/db", "--port", "5432"],
        &["compile", path, "--node-name", "node-1"],
    ] {
        let finished = run(arguments);
        assert_eq!((finished.status, &finished.stderr), (0, &note), "{arguments:?}");
        assert!(!finished.stdout.is_empty());
    }
    let lint = run(&["lint", path]);
    assert_eq!(lint.status, 1, "{lint:?}");
    assert!(lint.stdout.contains("package.json:1:1: error: kind is missing"), "{lint:?}");
}

#[test]
fn undeclared_namespaces_are_named_once_where_a_selector_may_select_them() {
    let declared = format!("{SHOP}/namespaces.yaml");
    let [pods, policies] = ["pods", "policies"].map(|name| format!("{SHOP}/{name}.yaml"));
    let note = "note: not declared in these files, and taken to exist with no label but their name: monitoring, shop\n";
    let without = run(&["matrix", &pods, &policies, "--port", "9187"]);
    assert_eq!(without.stderr, note);
    let with = run(&["matrix", &pods, &policies, &declared, "--port", "9187"]);
    assert_eq!(with.stderr, "");
    assert_ne!(without.stdout, with.stdout, "a policy asks for a label that only the declaration has");
    assert_eq!(
        run(&["matrix", &pods, "--port", "9187"]).stderr,
        "",
        "no policy asks for labels of namespaces"
    );
}

#[test]
fn compile_names_the_nodes_if_none_has_the_given_name() {
    let compiled = run(&["compile", SHOP, "--node-name", "node1"]);
    let note = "note: no pod is on the node node1; there are pods on node-1, node-2 (did you mean node-1?)\n";
    assert_eq!((compiled.status, compiled.stderr.as_str()), (0, note));
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {nodeName: a}\n";
    let compiled = run_with_input(&["compile", "-", "--node-name", "a"], pod);
    let note = "note: left out default/a: without status.podIPs there is nothing to write rules for\n";
    assert_eq!(compiled.stderr, note);
}

#[test]
fn lint_names_file_line_column_and_field() {
    let clean = run(&["lint", SHOP]);
    assert_eq!((clean.status, clean.stdout.as_str(), clean.stderr.as_str()), (0, "", ""));

    let faulty = run(&["lint", "examples/faulty"]);
    assert_eq!((faulty.status, faulty.stderr.as_str()), (1, ""), "{faulty:?}");
    for line in faulty.stdout.lines() {
        let [file, row, column, severity, _] = *line.splitn(5, ':').collect::<Vec<_>>() else {
            panic!("{line}")
        };
        assert_eq!(file, "examples/faulty/policy.yaml");
        assert!(row.parse::<usize>().is_ok() && column.parse::<usize>().is_ok(), "{line}");
        assert!([" error", " warning", " note"].contains(&severity), "{line}");
        assert!(line.ends_with(')') && line.contains(" ("), "{line}");
    }
    let host_bits = ":13:19: warning: \"198.51.100.7/24\" has host bits set";
    assert!(faulty.stdout.contains(host_bits), "{}", faulty.stdout);
}

#[test]
fn warnings_alone_exit_with_success() {
    let manifest = text("examples/faulty/policy.yaml");
    let end = manifest.find("            except").unwrap();
    let finished = run_with_input(&["lint", "-"], &manifest[..end]);
    assert_eq!(finished.status, 0, "{finished:?}");
    assert!(finished.stdout.contains("warning"), "{finished:?}");
}

#[test]
fn compile_output_is_deterministic_as_text_and_json() {
    let arguments = ["compile", "-f", SHOP, "--node-name", "node-2"];
    let text = run(&arguments).stdout;
    assert_eq!(text, run(&arguments).stdout);
    let json = run(&[&arguments[..], &["-o", "json"]].concat()).json();
    for tool in ["ipset", "iptables", "ip6tables"] {
        let input = json[tool].as_str().unwrap();
        assert!(text.contains(input), "the text lacks the input of {tool}");
    }
    assert_eq!(json["legend"].as_array().unwrap().len(), 4, "two chains for each direction of shop/db");
    for backend in ["nft", "legacy"] {
        assert_eq!(text, run(&[&arguments[..], &["--backend", backend]].concat()).stdout);
    }
}

#[test]
fn compile_names_only_chains_of_the_selected_family() {
    let text = run(&["compile", "-f", SHOP, "--node-name", "node-2"]).stdout;
    let (v4, v6) = text.split_once("# ip6tables-restore").unwrap();
    assert!(v4.contains("# TP-PI-") && v4.contains(": ingress of shop/db\n"), "{v4}");
    assert!(!v6.contains("shop/db"), "shop/db has no IPv6 address:\n{v6}");
}

#[test]
fn closed_output_pipe_is_no_failure() {
    let finished = crate::program::shell(
        "set -o pipefail; towpath compile -f examples/shop --node-name node-1 | head -1",
        root(),
    );
    assert_eq!((finished.status, finished.stderr.as_str()), (0, ""), "{finished:?}");
}
