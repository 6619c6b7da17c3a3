//! `towpath matrix` for people: groups, lists, graphs and pictures.

use std::{collections::BTreeSet, fmt::Write as _};

use serde_json::{Value, json};

use crate::program::{Finished, run, run_with_input};

/// A cluster with a monitor that reads every pod's metrics, and tenants with `pods` pods each, of two Deployments.
fn cluster(tenants: usize, pods: usize) -> String {
    let mut text = String::new();
    let mut pod = |namespace: &str, app: &str, at: usize| {
        let _ = write!(
            text,
            "---
apiVersion: v1
kind: Pod
metadata:
  name: {app}-abc-{at}
  namespace: {namespace}
  labels: {{app: {app}, pod-template-hash: abc}}
  ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: {app}-abc, uid: u, controller: true}}]
spec:
  containers: [{{name: c, ports: [{{containerPort: 8080}}, {{name: metrics, containerPort: 9100}}]}}]
"
        );
    };
    pod("monitoring", "prometheus", 0);
    for tenant in 0..tenants {
        let namespace = format!("tenant-{tenant:02}");
        for at in 0..pods {
            pod(&namespace, if at % 3 == 0 { "db" } else { "web" }, at);
        }
    }
    for tenant in 0..tenants {
        let _ = write!(
            text,
            "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: metrics, namespace: tenant-{tenant:02}}}
spec:
  podSelector: {{}}
  ingress:
    - from: [{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: monitoring}}}}}}]
      ports: [{{port: metrics}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: db, namespace: tenant-{tenant:02}}}
spec:
  podSelector: {{matchLabels: {{app: db}}}}
  ingress:
    - from: [{{podSelector: {{matchLabels: {{app: web}}}}}}]
      ports: [{{port: 8080}}]
"
        );
    }
    text
}

fn ask(manifests: &str, arguments: &[&str]) -> Finished {
    let finished = run_with_input(&[&["matrix", "-f", "-"], arguments].concat(), manifests);
    assert_eq!(finished.status, 0, "{finished:?}");
    finished
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim_end).collect()
}

#[test]
fn pods_that_behave_alike_are_one_row_named_by_their_workload() {
    let table = ask(&cluster(1, 9), &[]).stdout;
    let expected = "\
8080/TCP                 monitoring/prometheus  tenant-00/db (3 pods)  tenant-00/web (6 pods)
monitoring/prometheus    -                      X                      X
tenant-00/db (3 pods)    .                      X                      X
tenant-00/web (6 pods)   .                      .                      X

9100/TCP                 monitoring/prometheus  tenant-00/db (3 pods)  tenant-00/web (6 pods)
monitoring/prometheus    -                      .                      .
tenant-00/db (3 pods)    .                      X                      X
tenant-00/web (6 pods)   .                      X                      X

- itself   . allowed   X denied
";
    let words = |text: &str| {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(words(&table), words(expected), "{table}");
    let single = ask(&cluster(1, 9), &["--pods"]).stdout;
    assert!(single.contains("tenant-00/web-abc-8"), "{single}");
}

#[test]
fn ports_with_the_same_table_are_one_block_and_those_without_difference_are_only_named() {
    let table = ask(&cluster(1, 3), &["--port", "1,2,8080,9100"]).stdout;
    assert_eq!(
        table.lines().filter(|line| line.contains("monitoring/prometheus  ")).count(),
        3 * 2,
        "{table}"
    );
    assert!(table.starts_with("1/TCP, 2/TCP  ") || table.starts_with("1/TCP, 2/TCP\n"), "{table}");
    let named = ask(&cluster(1, 3), &["--port", "1,9100", "--to", "tenant-00"]).stdout;
    assert!(named.contains("\n\nDenied between all: 1/TCP\n"), "{named}");
}

#[test]
fn three_hundred_pods_are_a_list_that_fits() {
    let manifests = cluster(30, 10);
    let list = ask(&manifests, &[]).stdout;
    assert!(list.starts_with("Who may reach whom, on 8080/TCP, 9100/TCP:\n"), "{list}");
    assert!(list.lines().count() < 200, "{} lines", list.lines().count());
    assert!(lines(&list).contains(&"  8080/TCP from tenant-07/web"), "{list}");
    for width in [60, 80, 120] {
        let list = ask(&manifests, &["--width", &width.to_string()]).stdout;
        // A word that is longer has a line of its own; there is none here.
        assert!(list.lines().all(|line| line.chars().count() <= width), "{width}: {list}");
    }
    let table = ask(&cluster(8, 6), &[]).stdout;
    assert!(table.lines().all(|line| line.chars().count() <= 120), "{table}");
}

#[test]
fn filters_leave_out_flows_and_name_what_selects_nothing() {
    let manifests = cluster(4, 6);
    let flows = |arguments: &[&str]| -> Vec<Value> {
        let json = ask(&manifests, &[arguments, &["-o", "json", "--port", "8080"]].concat()).json();
        json["flows"].as_array().unwrap().clone()
    };
    let has = |flow: &Value, side: &str, text: &str| flow[side].as_str().unwrap().starts_with(text);
    let all = flows(&[]);
    assert_eq!(all.len(), 25 * 24);
    let check = |arguments: &[&str], expected: &dyn Fn(&Value) -> bool| {
        let expected: Vec<Value> = all.iter().filter(|flow| expected(flow)).cloned().collect();
        assert!(!expected.is_empty(), "{arguments:?}");
        assert_eq!(flows(arguments), expected, "{arguments:?}");
    };
    check(&["--denied"], &|flow| flow["verdict"] == "deny");
    check(&["--allowed"], &|flow| flow["verdict"] == "allow");
    check(&["--from", "tenant-01"], &|flow| has(flow, "from", "tenant-01/"));
    check(&["--to", "tenant-01/db"], &|flow| has(flow, "to", "tenant-01/db-"));
    check(&["--to", "tenant-01/db-abc-3,monitoring"], &|flow| {
        has(flow, "to", "tenant-01/db-abc-3") || has(flow, "to", "monitoring/")
    });
    check(&["-n", "tenant-02"], &|flow| has(flow, "from", "tenant-02/") || has(flow, "to", "tenant-02/"));
    check(&["--workload", "tenant-02/web", "--allowed"], &|flow| {
        (has(flow, "from", "tenant-02/web-") || has(flow, "to", "tenant-02/web-"))
            && flow["verdict"] == "allow"
    });

    let to_db = ask(&manifests, &["--to", "tenant-01/db", "--allowed", "--port", "8080"]).stdout;
    assert_eq!(
        lines(&to_db)[..2],
        ["8080/TCP                tenant-01/db (2 pods)", "tenant-01/web (4 pods)  ."],
        "{to_db}"
    );
    let refused = |arguments: &[&str], says: &str| {
        let finished = run_with_input(&[&["matrix", "-f", "-"], arguments].concat(), &manifests);
        assert_eq!((finished.status, finished.stdout.as_str()), (2, ""), "{finished:?}");
        assert!(finished.stderr.contains(says), "{finished:?}");
    };
    refused(&["--from", "no-such"], "there is no pod in the namespace \"no-such\"");
    refused(&["--to", "tenant-01/cache"], "there is no pod or workload \"tenant-01/cache\"");
    refused(&["--to", "192.0.2.1"], "among those of --external");
    refused(&["--workload", "web"], "not of the form NAMESPACE/NAME");
    refused(&["--allowed", "--denied"], "cannot be used with");
}

#[test]
fn json_has_the_groups_of_the_table() {
    let json = ask(&cluster(1, 6), &["-o", "json"]).json();
    let group =
        json!({"name": "tenant-00/db (2 pods)", "members": ["tenant-00/db-abc-0", "tenant-00/db-abc-3"]});
    assert_eq!(json["groups"][1], group);
    let members: BTreeSet<&str> = json["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["members"].as_array().unwrap())
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(members.len(), 7);
}

#[test]
fn graph_has_namespaces_as_clusters_and_ports_on_edges() {
    let graph = ask(&cluster(2, 6), &["-o", "dot"]).stdout;
    assert!(graph.starts_with("digraph towpath {\n") && graph.ends_with("}\n"), "{graph}");
    assert_eq!(graph.matches("subgraph cluster_").count(), 3, "{graph}");
    assert!(
        graph.contains(
            "    label=\"tenant-00\";\n    g1 [label=\"db (2 pods)\"];\n    g2 [label=\"web (4 pods)\"];\n"
        ),
        "{graph}"
    );
    assert!(graph.contains("  g2 -> g1 [label=\"8080/TCP\"];\n"), "{graph}");
    assert!(graph.contains("  g0 -> g1 [label=\"9100/TCP\"];\n"), "{graph}");
    assert!(graph.contains("  everyone -> g0 [label=\"every port\"];\n"), "{graph}");
}

#[test]
fn picture_has_a_line_for_each_flow_between_groups_that_is_not_open_to_everyone() {
    let picture = ask(&cluster(2, 6), &["-o", "svg"]).stdout;
    assert!(
        picture.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" ") && picture.ends_with("</svg>\n")
    );
    for title in [
        "<title>tenant-00/web (4 pods) to tenant-00/db (2 pods): 8080/TCP</title>",
        "<title>monitoring/prometheus to tenant-01/web (4 pods): 9100/TCP</title>",
    ] {
        assert!(picture.contains(title), "{picture}");
    }
    assert_eq!(picture.matches("class=\"flow\"").count(), 6, "{picture}");
    assert!(picture.contains(">every port from everyone<"), "{picture}");
    // A sender that reaches into many namespaces would hide all else.
    let many = ask(&cluster(30, 10), &["-o", "svg"]).stdout;
    assert!(many.contains(">9100/TCP from monitoring/prometheus<"));
    assert_eq!(many.matches("class=\"flow\"").count(), 30, "web to db in each namespace");
}

#[test]
fn note_below_a_picture_fits_into_it() {
    let number = |text: &str, before: &str| -> usize {
        let (_, rest) = text.split_once(before).unwrap();
        rest.split_once('"').unwrap().0.parse().unwrap()
    };
    for (tenants, pods) in [(1, 1), (2, 6)] {
        let picture = ask(&cluster(tenants, pods), &["-o", "svg"]).stdout;
        let (width, height) = (number(&picture, "width=\""), number(&picture, "height=\""));
        let notes: Vec<&str> =
            picture.lines().filter(|line| line.starts_with("<text class=\"note\" x=\"14\"")).collect();
        assert!(notes.last().is_some_and(|note| note.ends_with("pods.</text>")), "{picture}");
        for note in notes {
            let words = note.split_once('>').unwrap().1.trim_end_matches("</text>");
            assert!(14 + words.len() * 73 / 10 <= width, "{width}: {note}");
            assert!(number(note, " y=\"") < height, "{height}: {note}");
        }
    }
}

#[test]
fn graph_and_picture_of_nothing_are_empty_and_the_reason_is_on_standard_error() {
    let nothing = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    let no_port = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";
    for (objects, why) in [(nothing, "note: There is no pod"), (no_port, "note: No pod declares a port")] {
        let graph = ask(objects, &["-o", "dot"]);
        assert!(graph.stdout.starts_with("digraph ") && graph.stdout.ends_with("}\n"), "{graph:?}");
        let picture = ask(objects, &["-o", "svg"]);
        assert!(picture.stdout.starts_with("<svg ") && picture.stdout.ends_with("</svg>\n"), "{picture:?}");
        assert!(!picture.stdout.contains("reached by nobody"), "{picture:?}");
        for finished in [graph, picture] {
            assert!(finished.stderr.contains(why) && !finished.stdout.contains(&why[6..]), "{finished:?}");
        }
    }
}

#[test]
fn joined_groups_are_named_without_their_namespace() {
    let pod = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\nspec: \
             {{containers: [{{name: c, ports: [{{containerPort: 80}}]}}]}}\n"
        )
    };
    let policy = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db, namespace: shop}\nspec:\n  \
                  podSelector: {matchLabels: {app: db}}\n  policyTypes: [Ingress]\n";
    let objects = [pod("api"), pod("db"), pod("web"), policy.to_owned()].concat();
    for output in ["svg", "dot"] {
        let graph = ask(&objects, &["-o", output]).stdout;
        assert!(graph.contains("api, web") && !graph.contains("api, shop/web"), "{graph}");
    }
}

#[test]
fn colour_is_on_demand() {
    let arguments = ["matrix", "-f", "examples/shop", "--port", "80"];
    assert!(!run(&arguments).stdout.contains('\u{1b}'));
    let coloured = run(&[&arguments[..], &["--color=always"]].concat()).stdout;
    assert!(coloured.contains("\u{1b}[31mX\u{1b}[0m"), "{coloured:?}");
}
