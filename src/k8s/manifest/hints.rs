//! What the author of a field that does not exist probably meant.

use super::deserialize::Unknown;
use crate::k8s::{
    fault::Problem,
    yaml::{
        node::{Value, YamlNode},
        path::{FieldPath, PathSegment},
    },
};

/// Reports an unknown field, and what to do.
#[must_use]
pub fn explain(unknown: &Unknown, root: &YamlNode<'_>) -> Problem {
    let Some((parent, name)) = unknown.path.split_key() else {
        return Problem::error(unknown.path.clone(), "unknown field");
    };
    let text = match hint(name, &parent, unknown.known, root) {
        Some(hint) => format!("unknown field {name:?}: {hint}"),
        None => format!("unknown field {name:?}"),
    };
    Problem::error(unknown.path.clone(), text)
}

fn hint(name: &str, parent: &FieldPath, known: &[&str], root: &YamlNode<'_>) -> Option<String> {
    if let Some(field) = known.iter().find(|field| field.eq_ignore_ascii_case(name)) {
        return Some(format!("did you mean `{field}`?"));
    }
    if let Some(home) = home(name, parent, known, root) {
        return Some(home);
    }
    nearest(name, known).map(|field| format!("did you mean `{field}`?"))
}

/// Where a misplaced field belongs: nearly always a matter of indentation.
fn home(name: &str, parent: &FieldPath, known: &[&str], root: &YamlNode<'_>) -> Option<String> {
    let inside = |field: &str| Some(format!("it belongs inside {field}: indent it"));
    let beside = |field: &str| root.nearest(parent).get(field).is_some();
    let place = MappingKind::of(parent);
    match (name, place) {
        (
            "matchLabels" | "matchExpressions",
            MappingKind::Object
            | MappingKind::Metadata
            | MappingKind::Spec
            | MappingKind::Rule(_)
            | MappingKind::Peer,
        ) => {
            let selector =
                ["podSelector", "namespaceSelector", "selector"].into_iter().find(|field| beside(field));
            match selector {
                Some(selector) => inside(selector),
                None => Some("it belongs inside a podSelector or a namespaceSelector".to_owned()),
            }
        }
        (_, MappingKind::Selector) if nearest(name, known).is_none() => {
            Some(format!("labels to match stand inside matchLabels: `matchLabels: {{{name}: ...}}`"))
        }
        ("cidr" | "except", _) => inside("ipBlock"),
        ("port" | "protocol" | "endPort", MappingKind::Rule(_) | MappingKind::Spec | MappingKind::Peer) => {
            Some("it belongs to an item of ports: `ports: [{protocol: TCP, port: 80}]`".to_owned())
        }
        (
            "ingress" | "egress" | "podSelector" | "policyTypes" | "template" | "containers",
            MappingKind::Object,
        ) => inside("spec"),
        (
            "ingress" | "egress" | "policyTypes",
            MappingKind::Metadata | MappingKind::Rule(_) | MappingKind::Peer,
        )
        | ("podSelector", MappingKind::Metadata) => Some("it belongs directly inside spec".to_owned()),
        ("spec", MappingKind::Metadata) => Some("it belongs beside metadata: indent it less".to_owned()),
        ("podSelector" | "namespaceSelector" | "ipBlock", MappingKind::Rule(list)) => {
            Some(format!("it belongs to an item of {list}: `{list}: [{{{name}: ...}}]`"))
        }
        ("namespaceSelector" | "ipBlock", MappingKind::Spec) => {
            Some("it belongs to an item of from or to, in a rule of ingress or egress".to_owned())
        }
        ("from", MappingKind::Spec) => {
            Some("it belongs to an item of ingress: `ingress: [{from: [...]}]`".to_owned())
        }
        ("to", MappingKind::Spec) => {
            Some("it belongs to an item of egress: `egress: [{to: [...]}]`".to_owned())
        }
        ("from", MappingKind::Rule("to")) => Some("a rule of egress has `to`".to_owned()),
        ("to", MappingKind::Rule("from")) => Some("a rule of ingress has `from`".to_owned()),
        ("ports", MappingKind::Spec) => Some("it belongs to an item of ingress or egress".to_owned()),
        ("ports" | "from" | "to", MappingKind::Peer) => {
            Some("it belongs to the rule, beside from or to: indent it less".to_owned())
        }
        ("labels" | "annotations" | "name" | "namespace", MappingKind::Object | MappingKind::Spec) => {
            inside("metadata")
        }
        _ => None,
    }
}

/// The kind of mapping that a field is in.
#[derive(Clone, Copy)]
enum MappingKind {
    Object,
    Metadata,
    Spec,
    /// An item of ingress or egress, and what its list of peers is called.
    Rule(&'static str),
    Peer,
    Selector,
    Elsewhere,
}

impl MappingKind {
    fn of(path: &FieldPath) -> Self {
        let keys: Vec<&str> = path
            .steps()
            .iter()
            .filter_map(|step| if let PathSegment::Key(key) = step { Some(&**key) } else { None })
            .collect();
        match keys[..] {
            [] => Self::Object,
            ["metadata"] => Self::Metadata,
            ["spec"] => Self::Spec,
            ["spec", "ingress"] => Self::Rule("from"),
            ["spec", "egress"] => Self::Rule("to"),
            ["spec", "ingress", "from"] | ["spec", "egress", "to"] => Self::Peer,
            [.., "podSelector" | "namespaceSelector"] => Self::Selector,
            _ => Self::Elsewhere,
        }
    }
}

/// The name among `known` of which `name` is a typo: two letters off at most, and not most of the word.
#[must_use]
pub fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let length = name.chars().count();
    let within = length.div_ceil(3).min(2);
    known
        .iter()
        // A name may be as long as its author likes: the time of a comparison grows with the length.
        .filter(|field| field.chars().count().abs_diff(length) <= within)
        .map(|field| (strsim::osa_distance(name, field), *field))
        .filter(|(distance, _)| *distance <= within)
        .min()
        .map(|(_, field)| field)
}

/// What is wrong with the top-level fields of an object that has no `kind` or no `apiVersion`.
#[must_use]
pub fn missing(field: &str, root: &YamlNode<'_>) -> Problem {
    let Value::Map(entries) = &root.value else {
        return Problem::error(
            FieldPath::root(),
            "is not a Kubernetes object: it must be a mapping with apiVersion and kind",
        );
    };
    let names: Vec<&str> = entries.iter().map(|entry| &*entry.key).collect();
    let slip = names
        .iter()
        .find(|name| name.eq_ignore_ascii_case(field))
        .copied()
        .or_else(|| nearest(field, &names).filter(|name| !["kind", "spec", "metadata"].contains(name)));
    match slip {
        Some(slip) => {
            let text = format!("unknown field {slip:?}: did you mean `{field}`?");
            Problem::error(FieldPath::of(&[slip]), text)
        }
        None => {
            Problem::error(FieldPath::root(), format!("{field} is missing: every Kubernetes object has one"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typo_has_at_most_two_wrong_letters() {
        let known = ["podSelector", "policyTypes", "ingress", "egress", "to"];
        assert_eq!(nearest("podSelectors", &known), Some("podSelector"));
        assert_eq!(nearest("plocyTypes", &known), Some("policyTypes"));
        assert_eq!(nearest("ingres", &known), Some("ingress"));
        assert_eq!(nearest("egerss", &known), Some("egress"));
        assert_eq!(nearest("podSel", &known), None);
        assert_eq!(nearest("from", &known), None);
        assert_eq!(nearest("x", &known), None);
    }
}
