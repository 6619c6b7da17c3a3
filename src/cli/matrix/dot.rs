//! The matrix as a graph, for Graphviz: what passes, from whom to whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::grouped::{Grouped, Pin, Receiver};
use crate::model::Family;

/// The graph. Namespaces are clusters; an edge from or to all groups of a namespace begins or ends at its border, and one
/// from everyone at a node of its own.
pub(super) fn dot(grouped: &Grouped<'_>) -> String {
    let namespaces = grouped.by_namespace();
    let mut text = String::from(HEAD);
    for (cluster, (namespace, groups)) in namespaces.iter().enumerate() {
        let indent = if namespace.is_some() { "    " } else { "  " };
        if let Some(namespace) = namespace {
            let _ = writeln!(text, "  subgraph cluster_{cluster} {{\n    label={};", quoted(namespace));
        }
        for group in groups {
            let title = grouped.own_title(*group);
            let shape = if namespace.is_some() { "" } else { ", shape=ellipse" };
            let _ = writeln!(text, "{indent}g{group} [label={}{shape}];", quoted(&title));
        }
        if namespace.is_some() {
            text.push_str("  }\n");
        }
    }
    let mut edges: BTreeMap<Edge, BTreeMap<Option<Family>, BTreeSet<usize>>> = BTreeMap::new();
    let mut has_everyone = false;
    for receiver in grouped.receivers(false) {
        for pin in &receiver.pins {
            let is_everyone = receiver.groups.iter().all(|to| grouped.is_everyone(&pin.from, *to));
            has_everyone |= is_everyone;
            let places = if is_everyone {
                let to = places(&receiver.groups.iter().copied().collect(), &namespaces);
                to.into_iter().map(|to| Edge { from: Place::Everyone, to }).collect()
            } else {
                edges_of(grouped, &receiver, pin, &namespaces)
            };
            for edge in places {
                let ports = edges.entry(edge).or_default().entry(pin.family).or_default();
                ports.extend(pin.transports.iter().copied());
            }
        }
    }
    if has_everyone {
        text.push_str("  everyone [shape=ellipse, style=dashed];\n");
    }
    for (edge, labels) in &edges {
        let labels: Vec<String> =
            labels.iter().map(|(family, ports)| label(grouped, *family, ports)).collect();
        edge.write(&mut text, &labels.join("\n"), grouped.is_of_denied());
    }
    text.push_str("}\n");
    text
}

const HEAD: &str = "\
digraph towpath {
  compound=true;
  newrank=true;
  rankdir=LR;
  ranksep=1.2;
  node [shape=box, style=rounded, fontname=\"sans-serif\", fontsize=11];
  edge [fontname=\"sans-serif\", fontsize=9];
  graph [fontname=\"sans-serif\", fontsize=12, style=rounded, color=gray];
";

/// One end of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Everyone,
    /// All groups of a namespace: its cluster, and a group in it.
    Cluster(usize, usize),
    Group(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    from: Place,
    to: Place,
}

impl Edge {
    fn write(self, text: &mut String, label: &str, is_denied: bool) {
        let node = |place: Place| match place {
            Place::Everyone => "everyone".to_owned(),
            Place::Cluster(_, group) | Place::Group(group) => format!("g{group}"),
        };
        let mut attributes = vec![format!("label={}", quoted(label))];
        if let Place::Cluster(cluster, _) = self.from {
            attributes.push(format!("ltail=cluster_{cluster}"));
        }
        if let Place::Cluster(cluster, _) = self.to {
            attributes.push(format!("lhead=cluster_{cluster}"));
        }
        if is_denied {
            attributes.push("style=dashed, color=red".to_owned());
        }
        let _ = writeln!(text, "  {} -> {} [{}];", node(self.from), node(self.to), attributes.join(", "));
    }
}

/// The edges of a pin. Within a namespace they are between single groups, as an edge cannot lead from a cluster into it.
fn edges_of(
    grouped: &Grouped<'_>,
    receiver: &Receiver,
    pin: &Pin,
    namespaces: &[(Option<&str>, Vec<usize>)],
) -> Vec<Edge> {
    let own = receiver.groups.first().and_then(|group| grouped.namespace(*group));
    let (near, far): (BTreeSet<usize>, BTreeSet<usize>) =
        pin.from.iter().copied().partition(|group| own.is_some() && grouped.namespace(*group) == own);
    let pairs = near.iter().flat_map(|from| receiver.groups.iter().map(move |to| (*from, *to)));
    let has_flow = |(from, to): &(usize, usize)| from != to || grouped.members(*to).len() > 1;
    let pairs = pairs.filter(has_flow);
    let mut edges: Vec<Edge> =
        pairs.map(|(from, to)| Edge { from: Place::Group(from), to: Place::Group(to) }).collect();
    let to = places(&receiver.groups.iter().copied().collect(), namespaces);
    for from in places(&far, namespaces) {
        edges.extend(to.iter().map(|to| Edge { from, to: *to }));
    }
    edges
}

/// These groups, with those that are all of a namespace as its cluster.
fn places(groups: &BTreeSet<usize>, namespaces: &[(Option<&str>, Vec<usize>)]) -> Vec<Place> {
    let mut places = Vec::new();
    for (cluster, (namespace, of_namespace)) in namespaces.iter().enumerate() {
        let present: Vec<usize> =
            of_namespace.iter().copied().filter(|group| groups.contains(group)).collect();
        let is_whole = namespace.is_some() && present.len() == of_namespace.len();
        match present.as_slice() {
            [first, _, ..] if is_whole => places.push(Place::Cluster(cluster, *first)),
            _ => places.extend(present.into_iter().map(Place::Group)),
        }
    }
    places
}

fn label(grouped: &Grouped<'_>, family: Option<Family>, ports: &BTreeSet<usize>) -> String {
    let over = family.map_or_else(String::new, |family| format!(" (only {family})"));
    format!("{}{over}", grouped.ports(&ports.iter().copied().collect::<Vec<_>>()))
}

/// A string as Graphviz reads it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"b\\c\nd"), r#""a\"b\\c\nd""#);
    }
}
