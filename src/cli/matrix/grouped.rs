//! A matrix of groups: pods that behave alike are shown as one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    filter::{Filter, Selection},
    pods::MatrixGroup,
};
use crate::{
    cli::{
        names::{NamedEnd, Names},
        terminal::Printable,
    },
    model::{Cluster, Endpoint, Family, Pod, Transport},
    policy::{
        Reach,
        classes::{ClassTable, Classes},
        groups::Groups,
    },
};

/// Labels by which people know workloads, the most telling first.
const TELLING_LABELS: [&str; 5] =
    ["app.kubernetes.io/name", "app", "k8s-app", "app.kubernetes.io/component", "tier"];

/// Up to this many workloads are named in the title of a group.
const NAMED: usize = 2;

/// A matrix of groups.
pub(super) struct Grouped<'c> {
    classes: Classes<'c>,
    table: ClassTable,
    groups: Groups,
    pub(super) names: Names,
    filter: &'c Filter,
    titles: Vec<String>,
    /// How the filter selects each group.
    selected: Vec<Selection>,
}

/// Who may reach one group, or some: or who may not, if only denied flows are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Receiver {
    /// The groups.
    pub(super) groups: Vec<usize>,
    /// By port.
    pub(super) pins: Vec<Pin>,
}

/// Ports that the same groups may reach.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pin {
    /// The transports, as indices.
    pub(super) transports: Vec<usize>,
    /// The family in which this is so; `None` if in each.
    pub(super) family: Option<Family>,
    /// The senders.
    pub(super) from: BTreeSet<usize>,
}

impl<'c> Grouped<'c> {
    /// The matrix of these objects. With `single`, every end is a group.
    pub(super) fn new(
        cluster: &'c Cluster,
        external: &[IpAddr],
        transports: &[Transport],
        filter: &'c Filter,
        single: bool,
    ) -> Self {
        let classes = Classes::new(cluster, external);
        let table = ClassTable::new(&classes, transports);
        let ends = classes.endpoints();
        let key = |at: usize| {
            let end = ends.get(at);
            let namespace = end.and_then(namespace_of).cloned();
            // Addresses are not merged: who asks for one wants to see it.
            let alone = (single || namespace.is_none()).then_some(at);
            (namespace.is_none(), namespace, end.map(|end| filter.of(end)), alone)
        };
        let groups = Groups::of(&classes, &table, key);
        let pod = |end: &Endpoint| match end {
            Endpoint::Pod(key) => cluster.pod(key),
            Endpoint::Address(_) => None,
        };
        let listed = ends.iter().map(|end| match end {
            Endpoint::Pod(key) => NamedEnd::Pod(key.clone(), pod(end).and_then(|pod| pod.workload.clone())),
            Endpoint::Address(address) => NamedEnd::Address(*address),
        });
        let names = Names::new(listed.collect());
        let pods: Vec<Option<&Arc<Pod>>> = ends.iter().map(pod).collect();
        let titles = (0..groups.len()).map(|group| title(&names, &pods, groups.members(group))).collect();
        let selection = |group: usize| {
            let end = groups.members(group).first().and_then(|end| ends.get(*end));
            end.map_or_else(Selection::default, |end| filter.of(end))
        };
        let selected = (0..groups.len()).map(selection).collect();
        Self { classes, table, groups, names, filter, titles, selected }
    }

    /// The groups, for scripts.
    pub(super) fn list(&self) -> Vec<MatrixGroup> {
        let member = |end: &usize| self.classes.endpoints().get(*end).map(ToString::to_string);
        let group = |group: usize| MatrixGroup {
            name: self.title(group).to_owned(),
            members: self.members(group).iter().filter_map(member).collect(),
        };
        (0..self.len()).map(group).collect()
    }

    /// What to say instead of an empty matrix.
    pub(super) fn what_is_missing(&self) -> Option<&'static str> {
        if self.groups.is_empty() {
            return Some("There is no pod and no address to ask about.\n");
        }
        let none = "No pod declares a port and no policy names one: say which to ask about with --port.\n";
        self.table.transports().is_empty().then_some(none)
    }

    /// How many groups there are.
    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// The ports that are asked about.
    pub(super) fn transports(&self) -> &[Transport] {
        self.table.transports()
    }

    /// What a group is called.
    pub(super) fn title(&self, group: usize) -> &str {
        self.titles.get(group).map_or("", String::as_str)
    }

    /// The same, without its namespace, which each name in it begins with.
    pub(super) fn own_title(&self, group: usize) -> String {
        let title = self.title(group);
        let Some(namespace) = self.namespace(group) else { return title.to_owned() };
        let names = title.split(", ").map(|name| {
            name.strip_prefix(namespace).and_then(|own| own.strip_prefix(['/', ' '])).unwrap_or(name)
        });
        names.collect::<Vec<_>>().join(", ")
    }

    /// The ends of a group.
    pub(super) fn members(&self, group: usize) -> &[usize] {
        self.groups.members(group)
    }

    /// The ends of some groups.
    pub(super) fn ends(&self, groups: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let mut ends: Vec<usize> =
            groups.into_iter().flat_map(|group| self.members(group).iter().copied()).collect();
        ends.sort_unstable();
        ends
    }

    /// The namespace of a group of pods.
    pub(super) fn namespace(&self, group: usize) -> Option<&str> {
        self.members(group)
            .first()
            .and_then(|end| self.classes.endpoints().get(*end))
            .and_then(namespace_of)
            .map(|name| &**name)
    }

    /// The groups of each namespace, and of the addresses, in order.
    pub(super) fn by_namespace(&self) -> Vec<(Option<&str>, Vec<usize>)> {
        let mut namespaces: Vec<(Option<&str>, Vec<usize>)> = Vec::new();
        for group in 0..self.len() {
            let namespace = self.namespace(group);
            match namespaces.last_mut() {
                Some((last, groups)) if *last == namespace => groups.push(group),
                _ => namespaces.push((namespace, vec![group])),
            }
        }
        namespaces
    }

    /// Whether a filter leaves out some flows.
    pub(super) fn is_filtered(&self) -> bool {
        self.filter.is_active()
    }

    /// Whether only flows that do not pass are shown.
    pub(super) fn is_of_denied(&self) -> bool {
        self.filter.is_of_denied()
    }

    /// Whether flows between two groups are shown, whatever their verdicts.
    pub(super) fn is_shown(&self, from: usize, to: usize) -> bool {
        let (sender, receiver) = (self.selected.get(from), self.selected.get(to));
        sender.zip(receiver).is_some_and(|(sender, receiver)| Filter::shows_selected(*sender, *receiver))
    }

    /// The verdict from one group to another or to itself; `None` if there is no flow, or it is not shown.
    pub(super) fn reach(&self, from: usize, to: usize, transport: usize) -> Option<Reach> {
        self.any_reach(from, to, transport).filter(|reach| self.filter.shows_verdict(*reach))
    }

    /// The same, of flows whose verdicts are not shown as well.
    pub(super) fn any_reach(&self, from: usize, to: usize, transport: usize) -> Option<Reach> {
        if !self.is_shown(from, to) {
            return None;
        }
        self.groups.verdicts(&self.table, from, to)?.get(transport).copied()
    }

    /// Whether there are pods that reach their own node although the matrix says that others may not.
    pub(super) fn has_own_nodes(&self) -> bool {
        let nodes = (0..self.len())
            .filter(|group| self.members(*group).first().is_some_and(|end| self.classes.is_node(*end)));
        let denies = |node: usize| {
            (0..self.len()).any(|group| {
                let both = [(node, group), (group, node)];
                both.iter().any(|(from, to)| {
                    (0..self.transports().len())
                        .any(|at| self.reach(*from, *to, at).is_some_and(|reach| reach != Reach::Allowed))
                })
            })
        };
        nodes.into_iter().any(denies)
    }

    /// The transports with the same verdicts in all of these rows and columns, together.
    pub(super) fn blocks(&self, rows: &[usize], columns: &[usize]) -> Vec<Vec<usize>> {
        let mut blocks: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
        let pairs = || rows.iter().flat_map(|from| columns.iter().map(move |to| (*from, *to)));
        for at in 0..self.transports().len() {
            let cell = |(from, to)| match self.any_reach(from, to, at) {
                None => 0,
                Some(Reach::Itself) => 1,
                Some(Reach::Allowed) => 2,
                Some(Reach::Denied) => 3,
                Some(Reach::Only(Family::V4, _)) => 4,
                Some(Reach::Only(Family::V6, _)) => 5,
            };
            blocks.entry(pairs().map(cell).collect()).or_default().push(at);
        }
        let mut blocks: Vec<Vec<usize>> = blocks.into_values().collect();
        blocks.sort();
        blocks
    }

    /// Transports in words.
    pub(super) fn ports(&self, transports: &[usize]) -> String {
        if transports.len() > 1 && transports.len() == self.transports().len() {
            return "every port".to_owned();
        }
        let texts = transports.iter().filter_map(|at| self.transports().get(*at)).map(ToString::to_string);
        texts.collect::<Vec<_>>().join(", ")
    }

    /// Who may reach each group; those with the same answer are merged within one namespace, or in all of them.
    ///
    /// A group of one end counts as one that may reach itself if anybody may: otherwise no two of them would have the
    /// same answer.
    pub(super) fn receivers(&self, across_namespaces: bool) -> Vec<Receiver> {
        let mut receivers: Vec<Receiver> = Vec::new();
        for to in 0..self.len() {
            if (0..self.len()).all(|from| !self.is_shown(from, to)) {
                continue;
            }
            let pins = self.pins(to);
            let same = receivers.iter_mut().find(|known| {
                let first = known.groups.first().copied();
                let is_near = across_namespaces
                    || first.is_some_and(|first| self.namespace(first) == self.namespace(to));
                is_near && known.pins == pins
            });
            match same {
                Some(known) => known.groups.push(to),
                None => receivers.push(Receiver { groups: vec![to], pins }),
            }
        }
        receivers
    }

    fn pins(&self, to: usize) -> Vec<Pin> {
        let mut pins: BTreeMap<(Option<Family>, BTreeSet<usize>), Vec<usize>> = BTreeMap::new();
        for at in 0..self.transports().len() {
            let mut senders: BTreeMap<Option<Family>, BTreeSet<usize>> = BTreeMap::new();
            for from in 0..self.len() {
                let family = match self.reach(from, to, at) {
                    None | Some(Reach::Itself) => continue,
                    Some(Reach::Denied) if !self.is_of_denied() => continue,
                    Some(Reach::Allowed | Reach::Denied) => None,
                    Some(Reach::Only(family, _)) if !self.is_of_denied() => Some(family),
                    Some(Reach::Only(Family::V4, _)) => Some(Family::V6),
                    Some(Reach::Only(Family::V6, _)) => Some(Family::V4),
                };
                senders.entry(family).or_default().insert(from);
            }
            for (family, mut from) in senders {
                if self.members(to).len() == 1 && self.is_shown(to, to) {
                    from.insert(to);
                }
                pins.entry((family, from)).or_default().push(at);
            }
        }
        let pin = |((family, from), transports)| Pin { transports, family, from };
        let mut pins: Vec<Pin> = pins.into_iter().map(pin).collect();
        pins.sort();
        pins
    }

    /// Whether these senders are all that are shown for this receiver.
    pub(super) fn is_everyone(&self, from: &BTreeSet<usize>, to: usize) -> bool {
        let other = |group: &usize| *group != to || self.members(to).len() > 1;
        let mut shown = (0..self.len()).filter(|group| self.is_shown(*group, to)).filter(other).peekable();
        shown.peek().is_some() && shown.all(|group| from.contains(&group))
    }
}

fn namespace_of(end: &Endpoint) -> Option<&Arc<str>> {
    match end {
        Endpoint::Pod(key) => Some(&key.namespace),
        Endpoint::Address(_) => None,
    }
}

/// What a group is called: by its workload, its namespace, a label that its pods have and no other pod of the namespace
/// has, or by some of its members.
fn title(names: &Names, pods: &[Option<&Arc<Pod>>], members: &[usize]) -> String {
    if let Some(title) = names.short(members) {
        return title;
    }
    let of = |at: &usize| pods.get(*at).copied().flatten();
    let Some(first) = members.first().and_then(of) else { return String::new() };
    let others = || {
        let elsewhere = |(at, pod): &(usize, &Arc<Pod>)| {
            !members.contains(at) && pod.key.namespace == first.key.namespace
        };
        pods.iter()
            .enumerate()
            .filter_map(|(at, pod)| Some((at, (*pod)?)))
            .filter(elsewhere)
            .map(|(_, pod)| pod)
    };
    let is_telling = |key: &str, value: &str| {
        members.iter().filter_map(of).all(|pod| pod.labels.get(key) == Some(value))
            && others().all(|pod| pod.labels.get(key) != Some(value))
    };
    let rank = |key: &str| TELLING_LABELS.iter().position(|known| *known == key).unwrap_or(usize::MAX);
    let telling = first.labels.iter().filter(|(key, value)| is_telling(key, value));
    let namespace = &first.key.namespace;
    if let Some((key, value)) = telling.min_by_key(|(key, _)| rank(key)) {
        let label = format!("{namespace} {key}={value}");
        return format!("{} ({} pods)", Printable(&label), members.len());
    }
    let parts = names.describe(members, &[]);
    let more = match parts.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" +{more}"),
    };
    format!("{}{more}", parts.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", "))
}
