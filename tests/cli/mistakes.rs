//! Mistakes that people make with policies: what `explain` says of each, and that the change it suggests allows the flow
//! and nothing else.
//!
//! Each folder of `tests/mistakes` has a cluster, a question, and the answer: its exit status, the code of its cause or
//! note, whether a change is suggested, and a part of the text. docs/explain.md shows all answers;
//! `TOWPATH_UPDATE_README=1 cargo test --test cli` writes them there.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde_json::Value;
use towpath::{
    k8s::{
        manifest::{Options, load_text},
        yaml::{
            node::{self, YamlNode},
            scalar::ScalarKind,
        },
    },
    model::{Cluster, Endpoint, Family, Flow, Transport},
    policy::{Reachability, evaluate, known_transports},
};

use crate::{
    program::{Finished, run},
    repository::root,
};

/// One mistake.
struct Mistake {
    name: String,
    folder: PathBuf,
}

impl Mistake {
    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file))
            .unwrap_or_else(|error| panic!("{}/{file}: {error}", self.name))
    }

    fn ask(&self, more: &[&str]) -> Finished {
        let cluster = format!("tests/mistakes/{}/cluster.yaml", self.name);
        let question = self.text("question");
        let arguments =
            [&["explain", "-f", &cluster], &question.split_whitespace().collect::<Vec<_>>()[..], more];
        run(&arguments.concat())
    }

    /// The answer as JSON, whatever the verdict.
    fn json(&self) -> Value {
        serde_json::from_str(&self.ask(&["-o", "json"]).stdout).unwrap()
    }
}

fn mistakes() -> Vec<Mistake> {
    let folders = fs::read_dir(root().join("tests/mistakes")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<Mistake> = folders
        .map(|folder| Mistake { name: folder.file_name().unwrap().to_string_lossy().into_owned(), folder })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(found.len() >= 20, "only {} mistakes", found.len());
    found
}

/// The suggested change, of the answer or of one of its notes.
fn suggested(answer: &Value) -> Option<&Value> {
    let of_notes = answer["notes"].as_array().into_iter().flatten().find_map(|note| note.get("fix"));
    answer.get("fix").or(of_notes)
}

#[test]
fn each_mistake_is_named_with_its_cause() {
    for mistake in mistakes() {
        let name = &mistake.name;
        let expected = mistake.text("answer");
        let [status, code, fix, text] = expected.lines().collect::<Vec<_>>()[..] else { panic!("{name}") };
        let finished = mistake.ask(&[]);
        assert_eq!(status, format!("status {}", finished.status), "{name}");
        // Sentences may be broken into lines.
        let words: Vec<&str> = finished.stdout.split_whitespace().collect();
        assert!(words.join(" ").contains(text), "{name}: {}", finished.stdout);
        assert_eq!(finished.stderr, "", "{name}");

        let answer = mistake.json();
        let notes = answer["notes"].as_array().into_iter().flatten().map(|note| &note["code"]);
        let codes: Vec<&str> =
            [&answer["cause"]["code"]].into_iter().chain(notes).filter_map(Value::as_str).collect();
        assert!(codes.contains(&code.strip_prefix("code ").unwrap()), "{name}: {codes:?}");
        let kind = match suggested(&answer).map(|fix| &fix["steps"][0]) {
            None => "none",
            Some(step) if step.get("patch").is_some() => "patch",
            Some(_) => "create",
        };
        assert_eq!(fix, format!("fix {kind}"), "{name}");
    }
}

/// A YAML value as JSON: what the tools that take patches see.
fn to_json(node: &YamlNode<'_>) -> Value {
    match &node.value {
        node::Value::List(items) => items.iter().map(to_json).collect(),
        node::Value::Map(entries) => {
            entries.iter().map(|entry| (entry.key.to_string(), to_json(&entry.value))).collect()
        }
        node::Value::Scalar(text, ScalarKind::String) => Value::from(text.to_string()),
        node::Value::Scalar(text, _) => serde_json::from_str(text).unwrap_or(Value::Null),
    }
}

fn load(documents: &[Value]) -> Cluster {
    let text: Vec<String> = documents.iter().map(ToString::to_string).collect();
    let loaded =
        load_text(Path::new("f"), &text.join("\n---\n"), Options { workloads: true, ..Options::default() });
    assert!(!loaded.has_errors(), "{:?}", loaded.faults);
    loaded.cluster()
}

/// Applies one operation of a JSON patch: `add` at the end of a list, or `replace`.
fn patch(document: &mut Value, operation: &Value) {
    let (path, value) = (operation["path"].as_str().unwrap(), operation["value"].clone());
    let known = |document: &mut Value, path: &str| document.pointer(path).is_some();
    match (operation["op"].as_str().unwrap(), path.strip_suffix("/-")) {
        ("add", Some(list)) => document.pointer_mut(list).unwrap().as_array_mut().unwrap().push(value),
        ("replace", None) if known(document, path) => *document.pointer_mut(path).unwrap() = value,
        (other, _) => panic!("{other} at {path}"),
    }
}

/// The documents with a suggested change applied to them, as the API server would.
fn changed(mut documents: Vec<Value>, fix: &Value) -> Vec<Value> {
    for step in fix["steps"].as_array().unwrap() {
        let (namespace, name) = step["policy"].as_str().unwrap().split_once('/').unwrap();
        let is_it = |document: &Value| {
            document["kind"] == "NetworkPolicy"
                && document["metadata"]["name"] == name
                && document["metadata"]["namespace"] == namespace
        };
        match (step.get("patch"), step.get("manifest")) {
            (Some(operations), None) => {
                let document = documents.iter_mut().find(|document| is_it(document)).unwrap();
                operations.as_array().unwrap().iter().for_each(|operation| patch(document, operation));
            }
            (None, Some(manifest)) => {
                assert!(!documents.iter().any(is_it), "{name} exists");
                documents.push(manifest.clone());
            }
            other => panic!("{other:?}"),
        }
    }
    documents
}

fn endpoint(text: &str) -> Endpoint {
    match text.strip_prefix("ip:") {
        Some(address) => Endpoint::Address(address.parse().unwrap()),
        None => Endpoint::Pod(text.parse().unwrap()),
    }
}

/// Every flow between two ends that is allowed in a family.
fn allowed(cluster: &Cluster, transports: &[Transport]) -> BTreeSet<(Endpoint, Endpoint, Transport, Family)> {
    let outside: [IpAddr; 2] = ["203.0.113.77".parse().unwrap(), "192.0.2.1".parse().unwrap()];
    let reachability = Reachability::new(cluster, &outside, transports);
    let flows = reachability.flows().flat_map(|(from, to, transport, reach)| {
        let families = Family::BOTH.into_iter().filter(move |family| reach.allowed(Some(*family)));
        families.map(move |family| (from.clone(), to.clone(), transport, family))
    });
    flows.collect()
}

#[test]
fn each_suggested_change_allows_the_flow_and_nothing_else() {
    let mut tried = 0;
    for mistake in mistakes() {
        let name = &mistake.name;
        let answer = mistake.json();
        let Some(fix) = suggested(&answer) else { continue };
        let text = mistake.text("cluster.yaml");
        let (parsed, error) = node::parse(&text);
        assert!(error.is_none(), "{name}");
        let documents: Vec<Value> =
            parsed.iter().filter_map(|document| document.root.as_ref()).map(to_json).collect();
        let (before, after) = (load(&documents), load(&changed(documents, fix)));

        // The flow of the question, or for a note about DNS those to the server.
        let (from, to, transports) = if answer["verdict"] == "deny" || answer.get("fix").is_some() {
            let port = u16::try_from(answer["port"].as_u64().unwrap()).unwrap();
            let transport = Transport::Port(answer["protocol"].as_str().unwrap().parse().unwrap(), port);
            (
                endpoint(answer["from"].as_str().unwrap()),
                endpoint(answer["to"].as_str().unwrap()),
                vec![transport],
            )
        } else {
            let both = ["53/UDP", "53/TCP"].map(|transport| transport.parse().unwrap());
            (endpoint("shop/web"), endpoint("kube-system/coredns"), both.to_vec())
        };
        let of_node: BTreeSet<Endpoint> = match before_pod(&before, &from) {
            Some(addresses) => addresses.into_iter().map(Endpoint::Address).chain([from.clone()]).collect(),
            None => BTreeSet::from([from.clone()]),
        };
        for transport in &transports {
            for family in [None, Some(Family::V4), Some(Family::V6)] {
                let flow = Flow { from: from.clone(), to: to.clone(), transport: *transport, family };
                let is_possible =
                    family.is_none() || !towpath::policy::evaluate_families(&before, &flow).is_empty();
                assert!(!is_possible || evaluate(&after, &flow).allowed(), "{name}: {flow:?}");
            }
        }
        let mut asked = known_transports(&before);
        asked.extend(&transports);
        asked.extend(["1".parse::<Transport>().unwrap(), "53/UDP".parse().unwrap(), Transport::Other(1)]);
        let (was, is) = (allowed(&before, &asked), allowed(&after, &asked));
        assert!(was.is_subset(&is), "{name} closes something");
        for (a, b, transport, family) in is.difference(&was) {
            let is_meant = of_node.contains(a) && *b == to && transports.contains(transport);
            assert!(is_meant, "{name} opens {a} to {b}, {transport} over {family}");
        }
        assert_ne!(was, is, "{name} opens nothing");
        tried += 1;
    }
    assert!(tried >= 19, "only {tried} changes were tried");
}

/// The addresses that are the node of a pod on its network.
fn before_pod(cluster: &Cluster, end: &Endpoint) -> Option<Vec<IpAddr>> {
    let Endpoint::Pod(key) = end else { return None };
    cluster.pod(key).filter(|pod| pod.host_network).map(|pod| pod.node_addresses.clone())
}

#[test]
fn the_commands_are_those_of_the_fix_output() {
    for mistake in mistakes() {
        let answer = mistake.json();
        let commands = answer["fix"]["steps"].as_array().into_iter().flatten();
        let commands: String = commands.map(|step| step["command"].as_str().unwrap()).collect();
        assert_eq!(mistake.ask(&["-o", "fix"]).stdout, commands, "{}", mistake.name);
    }
}

#[test]
fn docs_explain_shows_every_mistake() {
    let page = fs::read_to_string(root().join("docs/explain.md")).unwrap();
    for mistake in mistakes() {
        let command = format!(
            "$ towpath explain -f tests/mistakes/{}/cluster.yaml {}",
            mistake.name,
            mistake.text("question")
        );
        assert!(page.contains(command.trim_end()), "docs/explain.md lacks {}", mistake.name);
    }
}
