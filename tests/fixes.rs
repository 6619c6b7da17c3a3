//! What `explain` suggests for a denied flow is right in random clusters too: the flow is allowed afterwards, and nothing
//! is closed; what is said to be exact opens nothing else.
//!
//! `TOWPATH_SEED` sets the first seed, `TOWPATH_CLUSTERS` the number of clusters.

#![cfg(test)]

use std::{collections::BTreeSet, net::IpAddr};

use towpath::{
    lab::random::{Generator, Shape, Stack, cluster_of, externals, transports},
    model::{Change, Cluster, Direction, Endpoint, Family, Flow, Pod, Transport},
    policy::{
        Reachability,
        cause::{causes, notes},
        evaluate,
        fix::{Edit, fix},
        near_miss,
    },
};

#[path = "support/env.rs"]
mod env;

use env::number;

type Allowed = BTreeSet<(Endpoint, Endpoint, Transport, Family)>;

/// Every flow between two ends that is allowed in a family.
fn allowed(cluster: &Cluster, outside: &[IpAddr], transports: &[Transport]) -> Allowed {
    let reachability = Reachability::new(cluster, outside, transports);
    let flows = reachability.flows().flat_map(|(from, to, transport, reach)| {
        let families = Family::BOTH.into_iter().filter(move |family| reach.allowed(Some(*family)));
        families.map(move |family| (from.clone(), to.clone(), transport, family))
    });
    flows.collect()
}

/// Whether two ends are the same, or pods of the same workload or with the same address.
fn is_alike(cluster: &Cluster, a: &Endpoint, b: &Endpoint) -> bool {
    let pods = |end: &Endpoint| -> Vec<Pod> {
        match end {
            Endpoint::Pod(key) => cluster.pod(key).map(|pod| (**pod).clone()).into_iter().collect(),
            Endpoint::Address(address) => {
                let nodes: Vec<_> = cluster.nodes_at(*address).cloned().collect();
                let on_host = cluster.pods().filter(|pod| {
                    pod.host_network && pod.node.as_ref().is_some_and(|node| nodes.contains(node))
                });
                cluster.claimants(*address).iter().chain(on_host).map(|pod| (**pod).clone()).collect()
            }
        }
    };
    let addresses = |end: &Endpoint| match end {
        Endpoint::Address(address) => vec![*address],
        Endpoint::Pod(key) => {
            let pod = cluster.pod(key).unwrap();
            pod.addresses
                .iter()
                .chain(pod.host_network.then_some(&pod.node_addresses).into_iter().flatten())
                .copied()
                .collect()
        }
    };
    let same_workload = |a: &Pod, b: &Pod| {
        a.key == b.key
            || (a.key.namespace == b.key.namespace && a.workload.is_some() && a.workload == b.workload)
    };
    a == b
        || pods(a).iter().any(|one| pods(b).iter().any(|other| same_workload(one, other)))
        || addresses(a).iter().any(|address| addresses(b).contains(address))
}

#[test]
fn suggested_changes_allow_the_flow_close_nothing_and_are_as_exact_as_they_say() {
    let (first_seed, clusters) = (number("TOWPATH_SEED", 1), number("TOWPATH_CLUSTERS", 60));
    let (mut denied, mut fixed, mut exact, mut patches) = (0, 0, 0, 0);
    for seed in first_seed..first_seed + clusters {
        let stack = [Stack::V4, Stack::V6, Stack::Dual][seed % 3];
        let shape = Shape { stack, namespaces: 3, pods: 4, policies: 5, oddities: seed % 2 == 0 };
        let mut generator = Generator::new(u64::try_from(seed).unwrap(), shape);
        let cluster = cluster_of(generator.cluster());
        let (outside, transports) = (externals(stack), transports());
        let before = allowed(&cluster, &outside, &transports);
        let ends: Vec<Endpoint> = cluster
            .pods()
            .filter(|pod| !pod.is_finished())
            .map(|pod| Endpoint::Pod(pod.key.clone()))
            .chain(outside.iter().copied().map(Endpoint::Address))
            .collect();
        let all = ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to)));
        let flows = all.flat_map(|(from, to)| transports.iter().map(move |transport| (from, to, *transport)));
        // A sample: each takes two tables.
        for (from, to, transport) in flows.skip(seed % 11).step_by(11) {
            let flow = Flow { from: from.clone(), to: to.clone(), transport, family: None };
            let verdict = evaluate(&cluster, &flow);
            for direction in Direction::BOTH {
                let is_denied = !verdict.of(direction).allowed();
                assert_eq!(
                    near_miss(&cluster, &flow, direction).is_some(),
                    is_denied,
                    "seed {seed}: {flow:?}"
                );
            }
            // That these do not fail, and have a text.
            let told = notes(&cluster, &flow, &verdict);
            assert!(told.iter().all(|note| note.text.ends_with(['.', '?'])), "{told:?}");
            if verdict.allowed() {
                continue;
            }
            denied += 1;
            assert!(!causes(&cluster, &flow, &verdict).is_empty(), "seed {seed}: {flow:?}");
            let Ok(fix) = fix(&cluster, &flow) else { continue };
            fixed += 1;
            let mut after = cluster.clone();
            for step in &fix.steps {
                after.apply(Change::SetPolicy(step.policy.clone()));
                patches += usize::from(step.edit != Edit::Create);
            }
            assert!(evaluate(&after, &flow).allowed(), "seed {seed}: {flow:?} with {fix:?}");
            let now = allowed(&after, &outside, &transports);
            let closed: Vec<_> = before.difference(&now).collect();
            assert!(closed.is_empty(), "seed {seed}: {fix:?} closes {closed:?}");
            if fix.steps.iter().any(|step| !step.exact) {
                continue;
            }
            exact += 1;
            for (a, b, one, family) in now.difference(&before) {
                let is_meant = is_alike(&cluster, a, from) && is_alike(&cluster, b, to) && *one == transport;
                assert!(is_meant, "seed {seed}: {fix:?} for {flow:?} opens {a} to {b}, {one} over {family}");
            }
        }
    }
    println!("{denied} denied flows, {fixed} changes with {patches} patches, {exact} of them exact");
    assert!(denied > 500 && fixed * 2 > denied && exact * 4 > fixed && patches > 0);
}
