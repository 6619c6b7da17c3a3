//! A change of policies as kubectl takes it: patches, and manifests of new policies.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    model::{
        Direction, LabelSelector, NetworkPolicy, Operator, Peer, Peers, PodPeer, PolicyRule, Port, Ports,
        Scope,
    },
    policy::{
        fix::{Edit, Fix, Step},
        near_miss::Short,
    },
};

/// A [`Fix`] in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FixExplanation {
    /// Whether it opens nothing but the flow, for all pods of its two workloads.
    pub exact: bool,
    /// Its steps, all of which are needed.
    pub steps: Vec<StepExplanation>,
}

/// One step of a [`FixExplanation`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepExplanation {
    /// What it does, in words.
    pub summary: String,
    /// The policy: `ns/name`.
    pub policy: String,
    /// A JSON patch of the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<Value>,
    /// A policy to create.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Value>,
    /// How to do it with kubectl.
    pub command: String,
}

/// The change as JSON has it.
#[must_use]
pub fn explanation(fix: &Fix) -> FixExplanation {
    let step = |step: &Step| StepExplanation {
        summary: summary(step),
        policy: step.policy.key.to_string(),
        patch: patch(step),
        manifest: matches!(step.edit, Edit::Create).then(|| manifest(&step.policy)),
        command: command(step),
    };
    FixExplanation {
        exact: fix.steps.iter().all(|step| step.exact),
        steps: fix.steps.iter().map(step).collect(),
    }
}

/// The change as commands for a shell.
#[must_use]
pub fn script(fix: &Fix) -> String {
    fix.steps.iter().map(command).collect()
}

/// What a step does, in words, without a full stop.
#[must_use]
pub fn summary(step: &Step) -> String {
    let policy = Short(&step.policy.key);
    let field = match step.direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let corrected = if step.exact { "" } else { ", with whatever else the rule allows" };
    match &step.edit {
        Edit::Create if step.exact => format!("create the policy {policy}, which allows only this"),
        Edit::Create => {
            format!("create the policy {policy}, which allows this and, as labels cannot tell it apart, more")
        }
        Edit::AddPeer(rule, _) => format!("add a peer to `{field}` of rule {rule} in {policy}{corrected}"),
        Edit::ReplacePeer(rule, item, _) => {
            format!("correct {field}[{item}] of rule {rule} in {policy}{corrected}")
        }
        Edit::AddPort(rule, port) => {
            format!("add the port {} to rule {rule} in {policy}{corrected}", PortText(port))
        }
        Edit::ReplacePort(rule, item, port) => {
            format!("correct ports[{item}] of rule {rule} in {policy} to {}{corrected}", PortText(port))
        }
    }
}

struct PortText<'p>(&'p Port);

impl std::fmt::Display for PortText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Port::All(protocol) => write!(f, "{protocol}"),
            Port::Range(protocol, range) => write!(f, "{range}/{protocol}"),
            Port::Named(_, name) => write!(f, "{}", Short(name)),
        }
    }
}

/// The JSON patch of a step; `None` if it creates a policy.
#[must_use]
pub fn patch(step: &Step) -> Option<Value> {
    let (list, field) = match step.direction {
        Direction::Ingress => ("ingress", "from"),
        Direction::Egress => ("egress", "to"),
    };
    let operation = |op: &str, path: String, value: Value| json!([{"op": op, "path": path, "value": value}]);
    let of_rule = |rule: &usize| format!("/spec/{list}/{rule}");
    Some(match &step.edit {
        Edit::Create => return None,
        Edit::AddPeer(rule, peer) => operation("add", format!("{}/{field}/-", of_rule(rule)), of_peer(peer)),
        Edit::ReplacePeer(rule, item, peer) => {
            operation("replace", format!("{}/{field}/{item}", of_rule(rule)), of_peer(peer))
        }
        Edit::AddPort(rule, port) => operation("add", format!("{}/ports/-", of_rule(rule)), of_port(port)),
        Edit::ReplacePort(rule, item, port) => {
            operation("replace", format!("{}/ports/{item}", of_rule(rule)), of_port(port))
        }
    })
}

/// How to carry out a step with kubectl: one command, with a line feed at its end.
fn command(step: &Step) -> String {
    let key = &step.policy.key;
    match patch(step) {
        Some(patch) => format!(
            "kubectl patch networkpolicy {} --namespace {} --type json --patch {}\n",
            quoted(&key.name),
            quoted(&key.namespace),
            quoted(&patch.to_string())
        ),
        None => format!("kubectl create -f - <<'EOF'\n{}EOF\n", yaml(&manifest(&step.policy))),
    }
}

/// A word for a shell.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The manifest of a policy.
#[must_use]
pub fn manifest(policy: &NetworkPolicy) -> Value {
    let mut spec = json!({"podSelector": of_selector(&policy.subject)});
    let mut types = Vec::new();
    let of_both = [(Direction::Ingress, "ingress", "Ingress"), (Direction::Egress, "egress", "Egress")];
    for (direction, field, name) in of_both {
        if let Some(rules) = policy.rules(direction) {
            types.push(name);
            let rules = rules.iter().map(|rule| of_rule(rule, direction)).collect();
            if let Value::Object(spec) = &mut spec {
                spec.insert(field.to_owned(), Value::Array(rules));
            }
        }
    }
    if let Value::Object(spec) = &mut spec {
        spec.insert("policyTypes".to_owned(), json!(types));
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": *policy.key.name, "namespace": *policy.key.namespace},
        "spec": spec,
    })
}

fn of_rule(rule: &PolicyRule, direction: Direction) -> Value {
    let mut value = serde_json::Map::new();
    let field = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    if let Peers::Of(peers) = &rule.peers {
        value.insert(field.to_owned(), peers.iter().map(of_peer).collect());
    }
    if let Ports::Of(ports) = &rule.ports {
        value.insert("ports".to_owned(), ports.iter().map(of_port).collect());
    }
    Value::Object(value)
}

fn of_peer(peer: &Peer) -> Value {
    match peer {
        Peer::Block(block) if block.except().is_empty() => {
            json!({"ipBlock": {"cidr": block.cidr().to_string()}})
        }
        Peer::Block(block) => {
            let except: Vec<String> = block.except().iter().map(ToString::to_string).collect();
            json!({"ipBlock": {"cidr": block.cidr().to_string(), "except": except}})
        }
        Peer::Pods(PodPeer { scope: Scope::Own(_), pods }) => json!({"podSelector": of_selector(pods)}),
        Peer::Pods(PodPeer { scope: Scope::Matching(namespaces), pods }) if pods.is_everything() => {
            json!({"namespaceSelector": of_selector(namespaces)})
        }
        Peer::Pods(PodPeer { scope: Scope::Matching(namespaces), pods }) => {
            json!({"namespaceSelector": of_selector(namespaces), "podSelector": of_selector(pods)})
        }
    }
}

fn of_port(port: &Port) -> Value {
    match port {
        Port::All(protocol) => json!({"protocol": protocol.name()}),
        Port::Named(protocol, name) => json!({"port": **name, "protocol": protocol.name()}),
        Port::Range(protocol, range) if range.first() == range.last() => {
            json!({"port": range.first(), "protocol": protocol.name()})
        }
        Port::Range(protocol, range) => {
            json!({"port": range.first(), "endPort": range.last(), "protocol": protocol.name()})
        }
    }
}

fn of_selector(selector: &LabelSelector) -> Value {
    let mut labels = serde_json::Map::new();
    let mut expressions = Vec::new();
    for requirement in selector.requirements() {
        let key = &*requirement.key;
        let values = |values: &[std::sync::Arc<str>]| -> Vec<String> {
            values.iter().map(ToString::to_string).collect()
        };
        match &requirement.operator {
            Operator::In(wanted) if wanted.len() == 1 && !labels.contains_key(key) => {
                labels.insert(key.to_owned(), json!(values(wanted).concat()));
            }
            Operator::In(wanted) => {
                expressions.push(json!({"key": key, "operator": "In", "values": values(wanted)}));
            }
            Operator::NotIn(wanted) => {
                expressions.push(json!({"key": key, "operator": "NotIn", "values": values(wanted)}));
            }
            Operator::Exists => expressions.push(json!({"key": key, "operator": "Exists"})),
            Operator::DoesNotExist => expressions.push(json!({"key": key, "operator": "DoesNotExist"})),
        }
    }
    let mut value = serde_json::Map::new();
    if !labels.is_empty() {
        value.insert("matchLabels".to_owned(), Value::Object(labels));
    }
    if !expressions.is_empty() {
        value.insert("matchExpressions".to_owned(), Value::Array(expressions));
    }
    Value::Object(value)
}

/// A value as YAML in block style, with a line feed at its end.
#[must_use]
pub fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write_yaml(&mut text, value, 0);
    text
}

fn write_yaml(text: &mut String, value: &Value, indent: usize) {
    // Writing to a String cannot fail.
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                let _ = write!(text, "{:indent$}{}:", "", scalar(key));
                write_nested(text, value, indent + 2);
            }
        }
        Value::Array(items) => {
            for item in items {
                let mut nested = String::new();
                if is_inline(item) {
                    let _ = writeln!(nested, "{:1$}{2}", "", indent + 2, inline(item));
                } else {
                    write_yaml(&mut nested, item, indent + 2);
                }
                // The first line begins behind the dash.
                let first = nested.get(indent + 2..).unwrap_or_default();
                let _ = write!(text, "{:indent$}- {first}", "");
            }
        }
        other => {
            let _ = writeln!(text, "{:indent$}{}", "", inline(other));
        }
    }
}

fn write_nested(text: &mut String, value: &Value, indent: usize) {
    if is_inline(value) {
        let _ = writeln!(text, " {}", inline(value));
    } else {
        text.push('\n');
        write_yaml(text, value, indent);
    }
}

/// Whether a value stands on one line.
fn is_inline(value: &Value) -> bool {
    match value {
        Value::Object(entries) => entries.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    }
}

/// A value on one line: every JSON text is YAML.
fn inline(value: &Value) -> String {
    match value {
        Value::String(string) => scalar(string),
        other => other.to_string(),
    }
}

/// A string, in quotes unless everybody reads it as a string without.
fn scalar(text: &str) -> String {
    const OTHER: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._/".contains(c))
        && !OTHER.contains(&text.to_ascii_lowercase().as_str());
    if is_plain { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        k8s::manifest::{Options, load_text},
        model::Change,
    };

    const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  podSelector: {matchLabels: {app: 'yes', v: '1.5'}, matchExpressions: [{key: a, operator: In, values: [b, c]}]}
  policyTypes: [Ingress, Egress]
  ingress:
    - {}
    - from:
        - podSelector: {}
        - namespaceSelector: {}
        - namespaceSelector: {matchLabels: {team: a}}
          podSelector: {matchExpressions: [{key: x, operator: Exists}, {key: 'y', operator: DoesNotExist}]}
        - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
      ports: [{port: 80}, {port: web, protocol: UDP}, {port: 1, endPort: 9}, {protocol: SCTP}]
  egress:
    - to: [{ipBlock: {cidr: 'fd00::/8'}}, {podSelector: {matchExpressions: [{key: z, operator: NotIn, values: ['']}]}}]
";

    fn policy(text: &str) -> NetworkPolicy {
        let loaded = load_text(Path::new("f"), text, Options::default());
        assert!(!loaded.has_errors(), "{:?}", loaded.faults);
        let policies = loaded.changes.into_iter().filter_map(|change| match change {
            Change::SetPolicy(policy) => Some(policy),
            _ => None,
        });
        policies.last().unwrap()
    }

    #[test]
    fn manifest_reads_as_the_policy_that_it_was_made_of() {
        let read = policy(POLICY);
        let written = yaml(&manifest(&read));
        assert_eq!(policy(&written), read, "{written}");
        assert_eq!(policy(&manifest(&read).to_string()), read);
    }

    #[test]
    fn strings_that_look_like_something_else_are_quoted() {
        for text in ["yes", "1.5", "", "a b", "10.0.0.0/8", "-", "Null", "a: b", "é"] {
            assert_eq!(scalar(text), format!("{text:?}"));
        }
        assert_eq!(scalar("app.kubernetes.io/name"), "app.kubernetes.io/name");
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("a-b.c"), "a-b.c");
        assert_eq!(quoted("it's; $(x)"), r"'it'\''s; $(x)'");
        assert_eq!(quoted(""), "''");
    }
}
