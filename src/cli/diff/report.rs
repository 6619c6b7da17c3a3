//! A difference with the names that people use, and as JSON.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use crate::{
    cli::names::{NamedEnd, Names},
    model::{Cluster, Endpoint, Family, ObjectKey},
    policy::difference::{ComparedEnd, Difference, Kind, Row},
};

/// A difference, named.
pub(super) struct Report<'d> {
    pub(super) difference: &'d Difference,
    pub(super) names: Names,
    pub(super) policies: Policies,
}

/// The policies that differ.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Policies {
    pub(super) added: Vec<String>,
    pub(super) changed: Vec<String>,
    pub(super) removed: Vec<String>,
}

impl Policies {
    fn between(before: &Cluster, after: &Cluster) -> Self {
        let mut policies = Self::default();
        for policy in after.policies() {
            match before.policy(&policy.key) {
                None => policies.added.push(policy.key.to_string()),
                Some(known) if known != policy => policies.changed.push(policy.key.to_string()),
                Some(_) => {}
            }
        }
        let removed = before.policies().filter(|policy| after.policy(&policy.key).is_none());
        policies.removed.extend(removed.map(|policy| policy.key.to_string()));
        policies
    }

    /// The lists that are not empty, each with what happened to its policies.
    pub(super) fn lists(&self) -> impl Iterator<Item = (&'static str, &[String])> {
        let lists = [("added", &self.added), ("changed", &self.changed), ("removed", &self.removed)];
        lists.into_iter().map(|(word, list)| (word, list.as_slice())).filter(|(_, list)| !list.is_empty())
    }
}

/// A row of the report, in words.
pub(super) struct Line {
    pub(super) from: Vec<String>,
    pub(super) to: Vec<String>,
    pub(super) ports: Vec<String>,
    pub(super) family: Option<Family>,
}

impl Line {
    /// What two lines have in common that differ only in the family of the internet, or of the flow.
    fn without_family(&self) -> [Vec<String>; 3] {
        let names = |names: &[String]| {
            let name = |name: &String| match name.as_str() {
                "internet (IPv4)" | "internet (IPv6)" => "internet".to_owned(),
                _ => name.clone(),
            };
            names.iter().map(name).collect()
        };
        [names(&self.from), names(&self.to), self.ports.clone()]
    }

    /// Whether this line and `other` are about the same flows, each in a family of its own.
    fn is_other_half(&self, other: &Self) -> bool {
        let has_other_names = self.from != other.from || self.to != other.to;
        let is_of_families = self.family.is_some() && other.family.is_some();
        self.without_family() == other.without_family()
            && if has_other_names {
                is_of_families || self.family == other.family
            } else {
                is_of_families && self.family != other.family
            }
    }
}

/// The lines, with two that differ only in their family as one without it.
fn joined(lines: impl Iterator<Item = Line>) -> Vec<Line> {
    let mut joined: Vec<Line> = Vec::new();
    let mut known: BTreeMap<[Vec<String>; 3], usize> = BTreeMap::new();
    for line in lines {
        let at = *known.entry(line.without_family()).or_insert(joined.len());
        match joined.get_mut(at) {
            Some(half) if half.is_other_half(&line) => {
                let [from, to, ports] = half.without_family();
                let family = if half.family == line.family { half.family } else { None };
                *half = Line { from, to, ports, family };
            }
            _ => joined.push(line),
        }
    }
    joined
}

impl<'d> Report<'d> {
    pub(super) fn new(before: &Cluster, after: &Cluster, difference: &'d Difference) -> Self {
        let names = Names::new(difference.ends.iter().filter_map(named).collect());
        Self { difference, names, policies: Policies::between(before, after) }
    }

    /// The rows of one kind, in words.
    pub(super) fn lines(&self, kind: Kind) -> Vec<Line> {
        let rows = self.difference.rows.iter().filter(|row| row.kind == kind);
        let lines = rows.map(|row| Line {
            from: self.names.describe(&row.from, &row.to),
            to: self.names.describe(&row.to, &row.from),
            ports: row.ports.parts(),
            family: row.family,
        });
        joined(lines)
    }

    /// The workloads whose pods are new, or removed, and pods without one.
    pub(super) fn only_in(&self, kind: Kind) -> Vec<String> {
        let ends = self.difference.ends.iter().enumerate();
        let ends = ends.filter(|(_, end)| match kind {
            Kind::New => end.before.is_none(),
            Kind::Removed => end.after.is_none(),
            Kind::Opened | Kind::Closed => false,
        });
        self.names.describe(&ends.map(|(at, _)| at).collect::<Vec<_>>(), &[])
    }

    /// What was compared, and what was not.
    pub(super) fn scope(&self) -> String {
        let count = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
        let networks =
            self.difference.ends.iter().filter(|end| end.network.is_some_and(|net| net.prefix_len() > 0));
        let mut text = format!(
            "Compared {} of {} in {}, {} and the internet, on every port.",
            count(self.names.pods(), "pod"),
            count(self.names.workloads(), "workload"),
            count(self.names.namespaces(), "namespace"),
            count(networks.count(), "network"),
        );
        let Difference { omitted_networks, omitted_ports, .. } = self.difference;
        if *omitted_networks > 0 {
            let networks = count(*omitted_networks, "network");
            // Writing to a String cannot fail, here and below.
            let _ = write!(text, " Not compared: {networks}, the smallest of those that policies name.");
        }
        if *omitted_ports > 0 {
            let ranges = count(*omitted_ports, "range");
            let _ = write!(text, " Not compared: {ranges} of ports that policies tell apart.");
        }
        text
    }

    /// For scripts.
    pub(super) fn json(&self) -> Json<'_> {
        let flows = |kind: Kind| -> Vec<JsonFlow> {
            self.difference.rows.iter().filter(|row| row.kind == kind).map(|row| self.flow(row)).collect()
        };
        let pods = |kind: Kind| -> Vec<String> {
            let mut pods: Vec<&ObjectKey> =
                self.difference.only_in(kind).filter_map(ComparedEnd::pod).collect();
            pods.dedup();
            pods.iter().map(ToString::to_string).collect()
        };
        let only = |kind: Kind| OneSided { pods: pods(kind), flows: flows(kind) };
        Json {
            opened: flows(Kind::Opened),
            closed: flows(Kind::Closed),
            new: only(Kind::New),
            removed: only(Kind::Removed),
            policies: &self.policies,
            workloads: self.names.by_workload(),
            not_compared: NotCompared {
                networks: self.difference.omitted_networks,
                port_ranges: self.difference.omitted_ports,
            },
        }
    }

    fn flow(&self, row: &Row) -> JsonFlow {
        JsonFlow {
            from: self.names.list(&row.from, &row.to),
            to: self.names.list(&row.to, &row.from),
            ports: row.ports.entries(),
            families: row.family.map(|family| vec![family.to_string()]),
        }
    }
}

/// What `-o json` prints.
#[derive(Serialize)]
pub(super) struct Json<'r> {
    /// Flows that were denied and pass now.
    opened: Vec<JsonFlow>,
    /// Flows that passed and are denied now.
    closed: Vec<JsonFlow>,
    /// Pods that are new, and the flows from and to them that pass.
    new: OneSided,
    /// Pods that are removed, and the flows from and to them that passed.
    removed: OneSided,
    /// The policies that differ.
    policies: &'r Policies,
    /// The pods of each name in `from` and `to`.
    workloads: BTreeMap<String, Vec<String>>,
    not_compared: NotCompared,
}

#[derive(Serialize)]
struct OneSided {
    pods: Vec<String>,
    flows: Vec<JsonFlow>,
}

/// Flows from each of `from` to each other of `to`.
#[derive(Serialize)]
struct JsonFlow {
    /// Workloads, pods without one or of one of which not all pods are meant, and networks as `ip:CIDR`.
    from: Vec<String>,
    to: Vec<String>,
    /// `80/TCP`, `8000-8009/TCP`; `other` means the protocols without ports.
    ports: Vec<String>,
    /// The families in which the flow differs, if not in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    families: Option<Vec<String>>,
}

#[derive(Serialize)]
struct NotCompared {
    networks: usize,
    port_ranges: usize,
}

fn named(end: &ComparedEnd) -> Option<NamedEnd> {
    Some(match (end.after.as_ref().or(end.before.as_ref())?, end.network) {
        (Endpoint::Pod(key), _) => NamedEnd::Pod(key.clone(), end.workload.clone()),
        (Endpoint::Address(_), Some(network)) => NamedEnd::Network(network),
        (Endpoint::Address(address), None) => NamedEnd::Address(*address),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(from: &str, family: Option<Family>) -> Line {
        let list = |text: &str| vec![text.to_owned()];
        Line { from: list(from), to: list("shop/web"), ports: list("80/TCP"), family }
    }

    fn joined_of(lines: [Line; 2]) -> Vec<(String, Option<Family>)> {
        joined(lines.into_iter()).into_iter().map(|line| (line.from.join(", "), line.family)).collect()
    }

    #[test]
    fn two_lines_that_differ_only_in_their_family_are_one() {
        let of_names = joined_of([line("internet (IPv4)", None), line("internet (IPv6)", None)]);
        assert_eq!(of_names, [("internet".to_owned(), None)]);
        let of_flows = joined_of([line("shop/api", Some(Family::V4)), line("shop/api", Some(Family::V6))]);
        assert_eq!(of_flows, [("shop/api".to_owned(), None)]);
        let different = joined_of([line("internet (IPv4)", None), line("shop/api", Some(Family::V6))]);
        assert_eq!(different.len(), 2);
        let same = joined_of([line("shop/api", Some(Family::V4)), line("shop/api", None)]);
        assert_eq!(same.len(), 2);
    }
}
