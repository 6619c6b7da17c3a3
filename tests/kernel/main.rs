//! Random clusters with real packets: pods are network namespaces with listeners, and `towpath run` runs on each of two
//! nodes. Every pair is probed with TCP, UDP, SCTP and ICMP, and the results must match the evaluator; then the objects
//! change several times.
//!
//! On a bridge, point to point and over VXLAN; IPv4, IPv6 and dual stack; iptables on `nf_tables` and legacy; together
//! with flannel's and kube-proxy's rules and with a FORWARD policy of DROP.
//!
//! Needs root. `TOWPATH_CLUSTERS` sets the number of clusters of each kind, `TOWPATH_SEED` the first one
//! (`make soak-flows`).

#![cfg(test)]

#[path = "../support/daemon_command.rs"]
mod daemon_command;
#[path = "../support/env.rs"]
mod env;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/model_objects.rs"]
mod model_objects;
#[path = "../support/ready.rs"]
mod ready;
#[path = "../support/root.rs"]
mod root;
mod world;

use env::number;
use root::has_root;
use towpath::{
    lab::{
        Topology, Variant,
        random::{Generator, NODES, Shape, Stack},
    },
    model::{Change, Cluster},
    policy::resolve::Resolver,
    ruleset::{
        Match, SetKind, Table,
        compile::{Options, compile},
    },
};
use world::{Setting, World};

/// How often the objects of a cluster change.
const ROUNDS: usize = 4;

fn random_clusters(topology: Topology, variant: Variant) {
    if !has_root() {
        return;
    }
    let (first, count) = (number("TOWPATH_SEED", 1), number("TOWPATH_CLUSTERS", 1));
    for seed in first..first + count {
        for stack in [Stack::V4, Stack::V6, Stack::Dual] {
            let shape = Shape { stack, namespaces: 3, pods: 3, policies: 6, oddities: false };
            let mut generator = Generator::new(seed, shape);
            let mut world = World::new(Setting { topology, variant, stack });
            let context = format!("{topology:?}, {variant:?}, {stack:?}, seed {seed}");
            world.change(generator.cluster());
            world.assert_agrees(&context);
            for round in 1..=ROUNDS {
                let changes = (0..4).map(|_| generator.change()).collect();
                world.change(changes);
                world.assert_agrees(&format!("{context}, round {round}"));
            }
            println!("{context}: {} verdicts by packets agree", world.verdicts);
            world.end();
        }
    }
}

/// Policies with very many excepts or ports are compiled to other kinds of sets: of excepts, and of networks with
/// ports.
fn hostile_policies(variant: Variant) {
    if !has_root() {
        return;
    }
    let (topology, stack) = (Topology::PointToPoint, Stack::Dual);
    let (first, count) = (number("TOWPATH_SEED", 1), number("TOWPATH_CLUSTERS", 1));
    for seed in first..first + count {
        let shape = Shape { stack, namespaces: 2, pods: 3, policies: 2, oddities: false };
        let mut generator = Generator::new(seed, shape);
        let mut world = World::new(Setting { topology, variant, stack });
        let context = format!("{variant:?}, seed {seed}");
        world.change(generator.cluster());
        let (mut excepts, mut ports) = (0, 0);
        for round in 0..ROUNDS * 2 {
            let namespace = ["x", "y"][round % 2];
            // The last one of a namespace replaces the one before it.
            let policy = generator.hostile_policy(namespace, 20);
            world.change(vec![Change::SetPolicy(policy)]);
            world.assert_agrees(&format!("{context}, round {round}"));
            for table in NODES.iter().flat_map(|node| tables(&world.cluster, node)) {
                let rules = table.chains.values().flat_map(|chain| &*chain.rules);
                let matches = || rules.clone().flat_map(|rule| &rule.matches);
                excepts += matches().filter(|m| matches!(m, Match::NotInSet { .. })).count();
                let kinds = matches().filter_map(Match::set).map(|set| table.sets[set].kind);
                ports += kinds.filter(|kind| *kind == SetKind::NetworkEndpoints).count();
            }
        }
        println!("{context}: {} verdicts by packets agree; {excepts} and {ports} such rules", world.verdicts);
        assert!(excepts > 0 && ports > 0, "{context}: each kind of set must occur");
        world.end();
    }
}

fn tables(cluster: &Cluster, node: &str) -> [Table; 2] {
    let ruleset = compile(&Resolver::of(node, cluster).resolve(cluster), &Options::default());
    [ruleset.v4, ruleset.v6]
}

#[test]
fn packets_match_the_evaluator_with_hostile_policies_with_nft() {
    hostile_policies(Variant::Nft);
}

#[test]
fn packets_match_the_evaluator_with_hostile_policies_with_legacy() {
    hostile_policies(Variant::Legacy);
}

#[test]
fn packets_match_the_evaluator_on_a_bridge_with_nft() {
    random_clusters(Topology::Bridge, Variant::Nft);
}

#[test]
fn packets_match_the_evaluator_on_a_bridge_with_legacy() {
    random_clusters(Topology::Bridge, Variant::Legacy);
}

#[test]
fn packets_match_the_evaluator_point_to_point_with_nft() {
    random_clusters(Topology::PointToPoint, Variant::Nft);
}

#[test]
fn packets_match_the_evaluator_point_to_point_with_legacy() {
    random_clusters(Topology::PointToPoint, Variant::Legacy);
}

#[test]
fn packets_match_the_evaluator_over_vxlan_with_nft() {
    random_clusters(Topology::Vxlan, Variant::Nft);
}

#[test]
fn packets_match_the_evaluator_over_vxlan_with_legacy() {
    random_clusters(Topology::Vxlan, Variant::Legacy);
}
