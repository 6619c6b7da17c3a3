//! Packets decide: random clusters, with pods as network namespaces, real listeners, and one `towpath run` on each of
//! two nodes. Every pair is probed with TCP, UDP, SCTP and ICMP, and what passes is what the standard says; then the
//! objects change in place, and again.
//!
//! On a bridge, point to point and over VXLAN; IPv4, IPv6 and dual stack; iptables on `nf_tables` and legacy; beside
//! flannel's and kube-proxy's rules and with a FORWARD policy of DROP.
//!
//! It needs root. `TOWPATH_CLUSTERS` tries more clusters of each kind, `TOWPATH_SEED` others (`make soak`).

#![cfg(test)]

mod manifests;
mod world;

use towpath::lab::{
    Topology, Variant,
    random::{Generator, Shape, Stack},
};
use world::{Setting, World};

/// How often the objects of a cluster change.
const ROUNDS: usize = 4;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect(variable))
}

/// Whether the tests can run here; in CI they must.
fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "these tests need root, and in CI nothing is skipped");
    if !root {
        println!("skipped: needs root, to make network namespaces");
    }
    root
}

fn random_clusters(topology: Topology, variant: Variant) {
    if !can_run() {
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
            world.agrees(&context);
            for round in 1..=ROUNDS {
                let changes = (0..4).map(|_| generator.change()).collect();
                world.change(changes);
                world.agrees(&format!("{context}, round {round}"));
            }
            println!("{context}: {} verdicts by packets agree", world.verdicts);
            world.end();
        }
    }
}

#[test]
fn on_a_bridge_with_nft_packets_do_what_the_standard_says() {
    random_clusters(Topology::Bridge, Variant::Nft);
}

#[test]
fn on_a_bridge_with_legacy_packets_do_what_the_standard_says() {
    random_clusters(Topology::Bridge, Variant::Legacy);
}

#[test]
fn point_to_point_with_nft_packets_do_what_the_standard_says() {
    random_clusters(Topology::PointToPoint, Variant::Nft);
}

#[test]
fn point_to_point_with_legacy_packets_do_what_the_standard_says() {
    random_clusters(Topology::PointToPoint, Variant::Legacy);
}

#[test]
fn over_vxlan_with_nft_packets_do_what_the_standard_says() {
    random_clusters(Topology::Vxlan, Variant::Nft);
}

#[test]
fn over_vxlan_with_legacy_packets_do_what_the_standard_says() {
    random_clusters(Topology::Vxlan, Variant::Legacy);
}
