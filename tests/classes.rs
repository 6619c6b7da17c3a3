//! Classes of ends that behave alike: expanded, their table is the table of all pairs, and the difference of two clusters
//! is that of all their flows.

#![cfg(test)]

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use towpath::{
    lab::random::{Generator, Shape, Stack, cluster_of, externals, transports},
    model::{Change, Cluster, Endpoint, Family, Transport},
    policy::{
        Reach, Reachability,
        classes::{ClassTable, Classes},
        difference::{Difference, Kind, Limits, Row},
        groups::Groups,
    },
};

#[path = "support/env.rs"]
mod env;

use env::number;

const CLUSTERS: usize = 1_500;

/// Addresses of nodes and pods among the external ones: each means the node or the pod that has it.
fn addresses(generator: &mut Generator, cluster: &Cluster, stack: Stack) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for address in externals(stack).into_iter().chain(cluster.node_addresses()) {
        if generator.random().chance(60) {
            addresses.push(address);
        }
    }
    for address in cluster.pods().flat_map(|pod| pod.addresses.clone()) {
        if generator.random().chance(5) {
            addresses.push(address);
        }
    }
    addresses
}

#[test]
fn table_of_classes_expanded_is_the_table_of_all_pairs() {
    let (first_seed, wanted) = (number("TOWPATH_SEED", 1), number("TOWPATH_CLUSTERS", CLUSTERS));
    let (mut flows, mut ends, mut classes_in_all, mut groups_in_all, mut own_nodes) = (0, 0, 0, 0, 0);
    for seed in first_seed..first_seed + wanted {
        let stack = [Stack::V4, Stack::V6, Stack::Dual][seed % 3];
        let shape =
            Shape { stack, namespaces: 4, pods: 6, policies: [3, 8][seed / 3 % 2], oddities: seed % 4 != 0 };
        let mut generator = Generator::new(u64::try_from(seed).unwrap(), shape);
        let mut cluster = cluster_of(generator.cluster());
        if seed % 5 == 0 {
            let namespace = cluster.pods().next().unwrap().key.namespace.clone();
            cluster.apply(Change::SetPolicy(generator.hostile_policy(&namespace, 20)));
        }
        let external = addresses(&mut generator, &cluster, stack);
        let table = Reachability::new(&cluster, &external, &transports());
        let classes = Classes::new(&cluster, &external);
        let by_class = ClassTable::new(&classes, &transports());
        assert_eq!(classes.endpoints(), table.endpoints());
        assert_eq!(by_class.transports(), table.transports());
        let count = table.endpoints().len();
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
            own_nodes += usize::from(classes.is_own_node(from, to));
            for transport in 0..table.transports().len() {
                flows += 1;
                assert_eq!(
                    by_class.reach(&classes, from, to, transport),
                    table.reach(from, to, transport),
                    "seed {seed}: {} -> {} {}, classes {:?}\n{:#?}",
                    table.endpoints()[from],
                    table.endpoints()[to],
                    table.transports()[transport],
                    classes.members(),
                    cluster.policies().collect::<Vec<_>>(),
                );
            }
        }
        let groups = Groups::of(&classes, &by_class, |end| match &table.endpoints()[end] {
            Endpoint::Pod(key) => Some(key.namespace.clone()),
            Endpoint::Address(_) => None,
        });
        let all: usize = (0..groups.len()).map(|group| groups.members(group).len()).sum();
        assert_eq!(all, count);
        for (one, other) in (0..groups.len()).flat_map(|one| (0..groups.len()).map(move |other| (one, other)))
        {
            let verdicts = groups.verdicts(&by_class, one, other);
            for (from, to) in groups
                .members(one)
                .iter()
                .flat_map(|from| groups.members(other).iter().map(move |to| (*from, *to)))
            {
                if from == to || classes.is_own_node(from, to) {
                    continue;
                }
                let expected: Vec<Reach> =
                    (0..table.transports().len()).filter_map(|at| table.reach(from, to, at)).collect();
                assert_eq!(verdicts, Some(expected.as_slice()), "seed {seed}: groups {one} and {other}");
            }
        }
        groups_in_all += groups.len();
        ends += count;
        classes_in_all += classes.members().len();
    }
    println!(
        "{flows} flows of {ends} ends in {classes_in_all} classes and {groups_in_all} groups; {own_nodes} pairs of a pod and its node"
    );
    assert!(classes_in_all * 10 < ends * 9, "{ends} ends are in {classes_in_all} classes");
    assert!(groups_in_all * 10 < ends * 9, "{ends} ends are in {groups_in_all} groups");
    assert!(own_nodes > 1000, "{own_nodes}");
}

/// The families of a flow, or one that stands for both if neither end has an address.
fn possible(before: &[Family], after: &[Family]) -> Vec<Family> {
    match (before, after) {
        ([], []) => vec![Family::V4],
        ([], only) | (only, []) => only.to_vec(),
        _ => before.iter().copied().filter(|family| after.contains(family)).collect(),
    }
}

#[test]
fn difference_has_exactly_the_flows_whose_verdicts_differ() {
    let (first_seed, wanted) = (number("TOWPATH_SEED", 1), number("TOWPATH_CLUSTERS", CLUSTERS / 2));
    let (mut flows, mut differing) = (0, BTreeMap::<(Kind, bool), usize>::new());
    for seed in first_seed..first_seed + wanted {
        let stack = [Stack::V4, Stack::V6, Stack::Dual][seed % 3];
        let shape = Shape { stack, namespaces: 3, pods: 4, policies: 5, oddities: seed % 4 != 0 };
        let mut generator = Generator::new(u64::try_from(seed).unwrap(), shape);
        let before = cluster_of(generator.cluster());
        let mut after = before.clone();
        for _ in 0..=seed % 4 {
            after.apply(generator.change());
        }
        let difference = Difference::between(&before, &after, Limits::default()).unwrap();
        let external: Vec<IpAddr> = difference
            .ends
            .iter()
            .filter_map(|end| match end.after {
                Some(Endpoint::Address(address)) => Some(address),
                _ => None,
            })
            .collect();
        let sides = [&before, &after];
        let classes = sides.map(|cluster| Classes::new(cluster, &external));
        let tables = sides.map(|cluster| Reachability::new(cluster, &external, &transports()));
        let at = |side: usize, end: &Option<Endpoint>| {
            tables[side].endpoints().iter().position(|known| Some(known) == end.as_ref())
        };
        let mut rows: HashMap<(usize, usize), Vec<&Row>> = HashMap::new();
        for row in &difference.rows {
            for (from, to) in row.from.iter().flat_map(|from| row.to.iter().map(move |to| (*from, *to))) {
                rows.entry((from, to)).or_default().push(row);
            }
        }
        let ends = || difference.ends.iter().enumerate();
        for ((row, from), (column, to)) in ends().flat_map(|from| ends().map(move |to| (from, to))) {
            if row == column {
                continue;
            }
            let pairs = [(at(0, &from.before), at(0, &to.before)), (at(1, &from.after), at(1, &to.after))];
            let pairs = pairs.map(|(from, to)| Some((from?, to?)));
            let own = |side: usize| pairs[side].is_some_and(|(a, b)| classes[side].is_own_node(a, b));
            if own(0) || own(1) {
                continue;
            }
            let families = |side: usize| pairs[side].map(|(a, b)| classes[side].families(a, b));
            let possible = match (families(0), families(1)) {
                (Some(before), Some(after)) => possible(&before, &after),
                (Some(only), None) | (None, Some(only)) => possible(&only, &[]),
                (None, None) => continue,
            };
            for (index, transport) in transports().into_iter().enumerate() {
                for family in &possible {
                    flows += 1;
                    let passes = |side: usize| {
                        let (from, to) = pairs[side]?;
                        Some(tables[side].reach(from, to, index)?.allowed(Some(*family)))
                    };
                    let expected = match (passes(0), passes(1)) {
                        (Some(false), Some(true)) => Some(Kind::Opened),
                        (Some(true), Some(false)) => Some(Kind::Closed),
                        (None, Some(true)) => Some(Kind::New),
                        (Some(true), None) => Some(Kind::Removed),
                        _ => None,
                    };
                    let told: Vec<&&Row> = rows.get(&(row, column)).into_iter().flatten().collect();
                    let told: Vec<_> = told
                        .into_iter()
                        .filter(|row| row.family.is_none_or(|of| of == *family))
                        .filter(|row| match transport {
                            Transport::Port(protocol, port) => row.ports.contains(protocol, port),
                            Transport::Other(_) => row.ports.without_ports,
                        })
                        .collect();
                    assert_eq!(
                        told.iter().map(|row| row.kind).collect::<Vec<_>>(),
                        expected.into_iter().collect::<Vec<_>>(),
                        "seed {seed}: {from:?} -> {to:?} {transport} {family}: {told:?}",
                    );
                    for row in told {
                        *differing.entry((row.kind, row.family.is_some())).or_default() += 1;
                    }
                }
            }
        }
    }
    println!("{flows} flows: {differing:?}");
    for kind in Kind::ALL {
        assert!(differing[&(kind, false)] > 1000 && differing[&(kind, true)] > 5, "{differing:?}");
    }
}
