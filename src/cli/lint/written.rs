//! What a policy's text says and its meaning does not show: sections that are missing, and lists that are empty.

use crate::{
    k8s::{
        fault::{Fault, Problem},
        manifest::source::Source,
        yaml::{
            node::{Value, YamlNode},
            path::FieldPath,
        },
    },
    policy::findings::Code,
};

/// A direction, as a policy writes it: its type, its section, and the list of peers in its rules.
const DIRECTIONS: [(&str, &str, &str); 2] = [("Ingress", "ingress", "from"), ("Egress", "egress", "to")];

/// What is found in the text of one policy.
pub(super) fn findings(source: &Source) -> Vec<(Code, Fault)> {
    let mut found = Vec::new();
    let mut add = |code, path: FieldPath, text: String| {
        found.push((code, source.fault(&Problem::warning(path, text))));
    };
    let spec = || FieldPath::of(&["spec"]);
    let section = |name: &str| source.written.value(&["spec", name]);
    let types: Vec<&str> =
        items(source.written.value(&["spec", "policyTypes"])).iter().filter_map(YamlNode::as_str).collect();
    let has_rules = |name: &str| !items(section(name)).is_empty();
    for (at, (kind, name, peers)) in DIRECTIONS.into_iter().enumerate() {
        let (_, other, _) = DIRECTIONS[1 - at];
        let isolates = types.contains(&kind) || types.is_empty() && (kind == "Ingress" || has_rules(name));
        if isolates && section(name).is_none() && has_rules(other) {
            let (path, text) = if types.is_empty() {
                let text = format!(
                    "without policyTypes the policy isolates for {name} as well, and without rules nothing is allowed \
                     there: write policyTypes: [Egress] if only {other} is meant"
                );
                (spec().key(other), text)
            } else {
                let text = format!(
                    "it names {kind}, but there is no {name}: nothing is allowed there. If that is meant, write `{name}: []`"
                );
                (spec().key("policyTypes"), text)
            };
            add(Code::TypeWithoutRules, path, text);
        }
        if !isolates
            && matches!(section(name).map(|list| &list.value), Some(Value::List(rules)) if rules.is_empty())
        {
            let text = format!("it has no effect: to deny all {name}, add {kind} to policyTypes");
            add(Code::EmptyEgress, spec().key(name), text);
        }
        for (rule, node) in items(section(name)).iter().enumerate() {
            for (list, meaning) in [(peers, "every peer"), ("ports", "every port")] {
                if node.get(list).is_some_and(is_empty) {
                    let text = format!(
                        "an empty list matches {meaning}, as if it were left out. To allow nothing, remove the rule"
                    );
                    add(Code::EmptyList, spec().key(name).index(rule).key(list), text);
                }
            }
        }
    }
    found
}

fn items<'n>(list: Option<&'n YamlNode<'static>>) -> &'n [YamlNode<'static>] {
    match list.map(|list| &list.value) {
        Some(Value::List(items)) => items,
        _ => &[],
    }
}

fn is_empty(node: &YamlNode<'_>) -> bool {
    node.is_null() || matches!(&node.value, Value::List(items) if items.is_empty())
}
