//! Classes of ends that behave alike: expanded, their table is the table of all pairs.

#![cfg(test)]

use std::net::IpAddr;

use towpath::{
    lab::random::{Generator, Shape, Stack, cluster_of, externals, transports},
    model::{Change, Cluster},
    policy::{
        Reachability,
        classes::{ClassTable, Classes},
    },
};

#[path = "support/env.rs"]
mod env;

use env::number;

const CLUSTERS: usize = 3_000;

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
    let (mut flows, mut ends, mut classes_in_all, mut own_nodes) = (0, 0, 0, 0);
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
        ends += count;
        classes_in_all += classes.members().len();
    }
    println!(
        "{flows} flows of {ends} ends in {classes_in_all} classes; {own_nodes} pairs of a pod and its node"
    );
    assert!(classes_in_all * 10 < ends * 9, "{ends} ends are in {classes_in_all} classes");
    assert!(own_nodes > 1000, "{own_nodes}");
}
