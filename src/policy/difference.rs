//! The difference between two clusters: which flows one has that the other has not.
//!
//! Every port, every protocol, every pod and every address that a policy names is compared, without evaluating each:
//! ends that behave alike on both sides are compared once ([`Classes`]), as are ports that no policy tells apart
//! ([`PortClasses`]), and one address stands for a network ([`Outside`]).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use crate::model::{Cluster, Endpoint, Family, ObjectKey, Pod, Workload};

use super::{
    classes::{ClassTable, Classes},
    outside::Outside,
    port_classes::{PortClasses, TransportSet},
    reach::Reach,
};

mod rows;

pub use rows::Row;

/// How much is compared.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most classes of ends that each side may have: the work and the memory are those of all pairs of them.
    pub classes: usize,
    /// The most networks outside of the cluster; the largest ones are compared.
    pub networks: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { classes: 6000, networks: 1000 }
    }
}

/// There are more classes of ends than [`Limits::classes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the policies tell {classes} kinds of pods and addresses apart; comparing more than {limit} takes too much memory"
)]
pub struct TooManyClasses {
    /// How many there are.
    pub classes: usize,
    /// The limit.
    pub limit: usize,
}

/// The difference between two clusters.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The ends that were compared: pods by namespace and name, then addresses.
    pub ends: Vec<ComparedEnd>,
    /// The flows that differ: each from every end of one list to every other end of the other one.
    pub rows: Vec<Row>,
    /// How many networks were not compared.
    pub omitted_networks: usize,
    /// How many classes of ports were not compared.
    pub omitted_ports: usize,
}

/// An end, before and after.
///
/// A pod with the same name on both sides is the same one. Of the others, those of the same workload are: the pods of a
/// Deployment have other names after each roll-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComparedEnd {
    /// What it is before; `None` if it is new.
    pub before: Option<Endpoint>,
    /// What it is after; `None` if it is removed.
    pub after: Option<Endpoint>,
    /// The workload of a pod.
    pub workload: Option<Arc<Workload>>,
    /// The network for which an address stands.
    pub network: Option<IpNet>,
}

impl ComparedEnd {
    /// Its present name, or its former one.
    #[must_use]
    pub fn pod(&self) -> Option<&ObjectKey> {
        match self.after.as_ref().or(self.before.as_ref()) {
            Some(Endpoint::Pod(key)) => Some(key),
            Some(Endpoint::Address(_)) | None => None,
        }
    }
}

/// How a flow differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It was denied and passes now.
    Opened,
    /// It passed and is denied now.
    Closed,
    /// It passes, and an end is new.
    New,
    /// It passed, and an end is removed.
    Removed,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Opened, Self::Closed, Self::New, Self::Removed];
}

impl Difference {
    /// Compares two clusters.
    ///
    /// # Errors
    /// If there are too many classes of ends to compare them all.
    pub fn between(before: &Cluster, after: &Cluster, limits: Limits) -> Result<Self, TooManyClasses> {
        let clusters = [before, after];
        let outside = Outside::of(&clusters, limits.networks);
        let addresses: Vec<IpAddr> = outside.addresses.iter().map(|known| known.address).collect();
        let networks: BTreeMap<IpAddr, IpNet> =
            outside.addresses.iter().map(|known| (known.address, known.network)).collect();
        let ports = PortClasses::of(&clusters);
        let [once, now] = clusters.map(|cluster| Classes::new(cluster, &addresses));
        let classes = once.members().len().max(now.members().len());
        if classes > limits.classes {
            return Err(TooManyClasses { classes, limit: limits.classes });
        }
        let units = units(clusters, [&once, &now]);
        let comparison = Comparison {
            tables: [&once, &now].map(|classes| ClassTable::new(classes, &ports.transports())),
            classes: [&once, &now],
            groups: Group::all(&units, &once, &now),
            units: &units,
        };
        let flows = comparison.flows(&ports);
        let rows = rows::merged(&flows, &comparison.groups);
        let end = |unit: &Unit| compared(unit, clusters, [&once, &now], &networks);
        Ok(Self {
            ends: units.iter().map(end).collect(),
            rows,
            omitted_networks: outside.omitted,
            omitted_ports: ports.omitted(),
        })
    }

    /// Whether there are flows that differ in this way.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        self.rows.iter().any(|row| row.kind == kind)
    }

    /// The pods that only one side has: new ones, or removed ones.
    pub fn only_in(&self, kind: Kind) -> impl Iterator<Item = &ComparedEnd> {
        self.ends.iter().filter(move |end| match kind {
            Kind::New => end.before.is_none(),
            Kind::Removed => end.after.is_none(),
            Kind::Opened | Kind::Closed => false,
        })
    }
}

/// An end before and after, by its index there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unit {
    before: Option<usize>,
    after: Option<usize>,
}

fn compared(
    unit: &Unit,
    [before, after]: [&Cluster; 2],
    [once, now]: [&Classes<'_>; 2],
    networks: &BTreeMap<IpAddr, IpNet>,
) -> ComparedEnd {
    let endpoint = |classes: &Classes<'_>, at: Option<usize>| classes.endpoints().get(at?).cloned();
    let ends = [endpoint(once, unit.before), endpoint(now, unit.after)];
    let workload =
        |cluster: &Cluster, end: &Option<Endpoint>| pod_of(cluster, end.as_ref()?)?.workload.clone();
    let network = ends.iter().flatten().find_map(|end| match end {
        Endpoint::Address(address) => networks.get(address).copied(),
        Endpoint::Pod(_) => None,
    });
    let workload = workload(after, &ends[1]).or_else(|| workload(before, &ends[0]));
    let [before, after] = ends;
    ComparedEnd { before, after, workload, network }
}

fn pod_of<'a>(cluster: &'a Cluster, end: &Endpoint) -> Option<&'a Arc<Pod>> {
    match end {
        Endpoint::Pod(key) => cluster.pod(key),
        Endpoint::Address(_) => None,
    }
}

/// A workload in its namespace.
type Owner<'a> = (&'a Arc<str>, &'a Workload);

/// Matches the ends of both sides.
fn units([before, after]: [&Cluster; 2], [once, now]: [&Classes<'_>; 2]) -> Vec<Unit> {
    let known: HashMap<&Endpoint, usize> = positions(once);
    let mut units: Vec<Unit> = Vec::new();
    let (mut left, mut unmatched) = (vec![true; once.endpoints().len()], Vec::new());
    for (at, end) in now.endpoints().iter().enumerate() {
        let Some(same) = known.get(end) else {
            unmatched.push(at);
            continue;
        };
        left[*same] = false;
        units.push(Unit { before: Some(*same), after: Some(at) });
    }
    let removed: Vec<usize> = (0..left.len()).filter(|at| left[*at]).collect();
    let (mut olds, news) = (by_owner(before, once, &removed), by_owner(after, now, &unmatched));
    let everyone = |classes: &Classes<'_>| (0..classes.endpoints().len()).collect::<Vec<_>>();
    let (all_before, all_after) =
        (by_owner(before, once, &everyone(once)), by_owner(after, now, &everyone(now)));
    for (owner, pods) in news {
        let old = owner.and_then(|owner| olds.remove(&Some(owner))).unwrap_or_default();
        let substitute = owner.and_then(|owner| all_before.get(&Some(owner))?.first().copied());
        for (turn, pod) in pods.iter().enumerate() {
            units.push(Unit { before: old.get(turn).copied().or(substitute), after: Some(*pod) });
        }
        for pod in old.iter().skip(pods.len()) {
            units.push(Unit { before: Some(*pod), after: pods.first().copied() });
        }
    }
    for (owner, pods) in olds {
        let substitute = owner.and_then(|owner| all_after.get(&Some(owner))?.first().copied());
        units.extend(pods.into_iter().map(|pod| Unit { before: Some(pod), after: substitute }));
    }
    let name = |unit: &Unit| {
        let end = |classes: &Classes<'_>, at: Option<usize>| classes.endpoints().get(at?).cloned();
        end(now, unit.after).or_else(|| end(once, unit.before))
    };
    units.sort_by_cached_key(|unit| (name(unit), unit.before));
    units
}

fn positions<'a>(classes: &'a Classes<'_>) -> HashMap<&'a Endpoint, usize> {
    classes.endpoints().iter().enumerate().map(|(at, end)| (end, at)).collect()
}

/// These ends by their workload; `None` has those that have none.
fn by_owner<'a>(
    cluster: &'a Cluster,
    classes: &Classes<'_>,
    ends: &[usize],
) -> BTreeMap<Option<Owner<'a>>, Vec<usize>> {
    let mut owners: BTreeMap<Option<Owner<'a>>, Vec<usize>> = BTreeMap::new();
    for at in ends {
        let pod = classes.endpoints().get(*at).and_then(|end| pod_of(cluster, end));
        let owner = pod.and_then(|pod| Some((&pod.key.namespace, pod.workload.as_deref()?)));
        owners.entry(owner).or_default().push(*at);
    }
    owners
}

/// Units that behave alike on both sides.
struct Group {
    before: Option<usize>,
    after: Option<usize>,
    units: Vec<usize>,
}

impl Group {
    fn all(units: &[Unit], once: &Classes<'_>, now: &Classes<'_>) -> Vec<Self> {
        let class = |classes: &Classes<'_>, at: Option<usize>| classes.class_of().get(at?).copied();
        let is_address = |unit: &Unit| {
            let end = unit.after.and_then(|at| now.endpoints().get(at));
            matches!(end, Some(Endpoint::Address(_)))
        };
        let mut groups: BTreeMap<(bool, Option<usize>, Option<usize>), Vec<usize>> = BTreeMap::new();
        for (at, unit) in units.iter().enumerate() {
            let key = (is_address(unit), class(once, unit.before), class(now, unit.after));
            groups.entry(key).or_default().push(at);
        }
        let group = |((_, before, after), units)| Self { before, after, units };
        groups.into_iter().map(group).collect()
    }
}

/// A flow between two groups that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FlowChange {
    from: usize,
    to: usize,
    /// What differs, as an index into the known ones.
    change: Arc<Change>,
}

/// What differs in a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Change {
    kind: Kind,
    /// The family in which it differs; `None` if in each that both ends have.
    family: Option<Family>,
    ports: TransportSet,
}

/// Everything that differs in a flow.
type Changes = Vec<Arc<Change>>;

/// The families in which a flow is possible on both sides. Empty if that is not known of any.
type Shared = Vec<Family>;

/// The verdicts of a flow on each side, as cells of the two tables.
type Cells = [Option<u32>; 2];

struct Comparison<'c, 'a> {
    tables: [ClassTable; 2],
    classes: [&'c Classes<'a>; 2],
    groups: Vec<Group>,
    units: &'c [Unit],
}

impl Comparison<'_, '_> {
    fn flows(&self, ports: &PortClasses) -> Vec<FlowChange> {
        let mut known: HashMap<(Cells, Shared), Changes> = HashMap::new();
        let equal = self.equal_cells();
        let mut flows = Vec::new();
        for (from, sender) in self.groups.iter().enumerate() {
            for (to, receiver) in self.groups.iter().enumerate() {
                let cell = |side: usize, from: Option<usize>, to: Option<usize>| {
                    self.tables.get(side)?.cell(from?, to?)
                };
                let cells = [cell(0, sender.before, receiver.before), cell(1, sender.after, receiver.after)];
                if cells == [None, None] || equal.contains(&cells) {
                    continue;
                }
                let Some((one, other)) = self.example(sender, receiver) else { continue };
                let Some(shared) = self.shared(one, other) else { continue };
                let changes = known.entry((cells, shared.clone())).or_insert_with(|| {
                    self.changes(cells, &shared, ports).into_iter().map(Arc::new).collect()
                });
                flows.extend(changes.iter().map(|change| FlowChange { from, to, change: change.clone() }));
            }
        }
        flows
    }

    /// The pairs of cells of the two tables with the same verdicts.
    fn equal_cells(&self) -> HashSet<Cells> {
        let [once, now] = &self.tables;
        let cells: HashMap<&[Reach], u32> =
            (0..).zip(once.cells()).map(|(cell, reach)| (reach, cell)).collect();
        let equal =
            (0..).zip(now.cells()).filter_map(|(cell, reach)| Some([Some(*cells.get(reach)?), Some(cell)]));
        equal.collect()
    }

    /// Two units of these groups that are different ends on each side, and neither of which is the node of the other:
    /// those flows always pass.
    fn example(&self, sender: &Group, receiver: &Group) -> Option<(&Unit, &Unit)> {
        let differ =
            |one: Option<usize>, other: Option<usize>| one.is_none() || other.is_none() || one != other;
        let is_own_node = |side: usize, one: Option<usize>, other: Option<usize>| {
            let classes = self.classes.get(side);
            classes.zip(one).zip(other).is_some_and(|((classes, one), other)| classes.is_own_node(one, other))
        };
        let units = |group: &Group| -> Vec<&Unit> {
            group.units.iter().filter_map(|at| self.units.get(*at)).collect()
        };
        let (senders, receivers) = (units(sender), units(receiver));
        senders.iter().flat_map(|one| receivers.iter().map(move |other| (*one, *other))).find(
            |(one, other)| {
                differ(one.before, other.before)
                    && differ(one.after, other.after)
                    && !is_own_node(0, one.before, other.before)
                    && !is_own_node(1, one.after, other.after)
            },
        )
    }

    /// The families to compare: those in which the flow is possible on both sides. `None` if there are none.
    fn shared(&self, one: &Unit, other: &Unit) -> Option<Shared> {
        let of_side = |side: usize, one: Option<usize>, other: Option<usize>| {
            Some(self.classes.get(side)?.families(one?, other?))
        };
        let sides = [of_side(0, one.before, other.before), of_side(1, one.after, other.after)];
        let mut sides = sides.into_iter().flatten().filter(|families| !families.is_empty());
        let Some(mut shared) = sides.next() else { return Some(Shared::new()) };
        if let Some(other) = sides.next() {
            shared.retain(|family| other.contains(family));
        }
        shared.sort_unstable();
        (!shared.is_empty()).then_some(shared)
    }

    /// What differs between the verdicts of two cells, in these families.
    fn changes(&self, cells: Cells, shared: &Shared, ports: &PortClasses) -> Vec<Change> {
        let verdicts = |side: usize| self.tables.get(side)?.of_cell(cells.get(side).copied().flatten()?);
        let (once, now) = (verdicts(0), verdicts(1));
        let kinds: &[Kind] = match (once, now) {
            (Some(_), Some(_)) => &[Kind::Opened, Kind::Closed],
            (None, _) => &[Kind::New],
            (_, None) => &[Kind::Removed],
        };
        let families: &[Family] = if shared.is_empty() { &Family::BOTH } else { shared };
        let mut changes: BTreeMap<(Kind, Option<Family>), Vec<usize>> = BTreeMap::new();
        for at in 0..once.or(now).map_or(0, <[Reach]>::len) {
            let passes = |side: Option<&[Reach]>, family: Family| {
                side.and_then(|reach| reach.get(at)).is_some_and(|reach| reach.allowed(Some(family)))
            };
            for kind in kinds {
                let differs = |family: &&Family| {
                    let (once, now) = (passes(once, **family), passes(now, **family));
                    match kind {
                        Kind::Opened | Kind::New => now && !once,
                        Kind::Closed | Kind::Removed => once && !now,
                    }
                };
                let differing: Vec<&Family> = families.iter().filter(differs).collect();
                let family = match differing.as_slice() {
                    [] => continue,
                    [family] if families.len() > 1 => Some(**family),
                    _ => None,
                };
                changes.entry((*kind, family)).or_default().push(at);
            }
        }
        let change = |((kind, family), at)| Change { kind, family, ports: ports.union(at) };
        changes.into_iter().map(change).collect()
    }
}

#[cfg(test)]
mod tests;
