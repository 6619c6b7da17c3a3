//! Flows that differ in the same way, merged.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, FlowChange, Group, Kind};
use crate::{model::Family, policy::port_classes::TransportSet};

/// Flows that differ in the same way: from every end in one list to every other end in the other one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// How they differ.
    pub kind: Kind,
    /// The receivers, as indices of [`Difference::ends`](super::Difference::ends).
    pub to: Vec<usize>,
    /// The senders, likewise.
    pub from: Vec<usize>,
    /// The family in which they differ; `None` if in each that both ends have.
    pub family: Option<Family>,
    /// The ports and protocols.
    pub ports: TransportSet,
}

/// Which end of the flows a row has few of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Receiver,
    Sender,
}

/// The fewest rows that one pass finds: by receiver or by sender, and without or with the ends themselves. "From every
/// pod to `db`" and "from every pod to `cache`" become one row only if `db` counts as one that may send to `db`.
pub(super) fn merged(flows: &[FlowChange], groups: &[Group]) -> Vec<Row> {
    let mut by_change: BTreeMap<&Change, Vec<(usize, usize)>> = BTreeMap::new();
    for flow in flows {
        by_change.entry(&flow.change).or_default().push((flow.from, flow.to));
    }
    let mut rows = Vec::new();
    for (change, pairs) in by_change {
        let candidates =
            [(By::Receiver, false), (By::Sender, false), (By::Receiver, true), (By::Sender, true)];
        let candidates = candidates.map(|(by, with_itself)| rectangles(&pairs, by, with_itself, groups));
        let Some(fewest) = candidates.into_iter().min_by_key(Vec::len) else { continue };
        rows.extend(fewest.into_iter().map(|(from, to)| {
            let units = |of: &BTreeSet<usize>| -> Vec<usize> {
                let groups = of.iter().filter_map(|group| groups.get(*group));
                let mut units: Vec<usize> = groups.flat_map(|group| group.units.iter().copied()).collect();
                units.sort_unstable();
                units
            };
            Row {
                kind: change.kind,
                family: change.family,
                ports: change.ports.clone(),
                from: units(&from),
                to: units(&to),
            }
        }));
    }
    rows.sort();
    rows
}

/// The pairs as products of two sets: those with the same partners.
fn rectangles(
    pairs: &[(usize, usize)],
    by: By,
    with_itself: bool,
    groups: &[Group],
) -> Vec<(BTreeSet<usize>, BTreeSet<usize>)> {
    let mut partners: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (from, to) in pairs {
        let (one, partner) = if by == By::Receiver { (to, from) } else { (from, to) };
        partners.entry(*one).or_default().insert(*partner);
    }
    let mut rows: BTreeMap<BTreeSet<usize>, BTreeSet<usize>> = BTreeMap::new();
    for (one, mut partners) in partners {
        // A single end has no flow to itself that could differ, or that a row could wrongly add.
        if with_itself && groups.get(one).is_some_and(|group| group.units.len() == 1) {
            partners.insert(one);
        }
        rows.entry(partners).or_default().insert(one);
    }
    let sides = |(partners, ones)| if by == By::Receiver { (partners, ones) } else { (ones, partners) };
    rows.into_iter().map(sides).collect()
}
