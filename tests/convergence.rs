//! What a node enforces is a function of the objects, whatever the order in which they came.
//!
//! Random sequences of changes are taken in one by one with a round after each, all at once, shuffled, reversed and
//! twice over: the rulesets must be the same to the byte.

#![cfg(test)]

use towpath::{
    lab::random::{Generator, NODES, Random, Shape, Stack},
    model::{Change, Cluster, Family},
    policy::resolve::Resolver,
    ruleset::{
        Ruleset,
        compile::{Compiler, Options, compile},
        render,
    },
};

const SEQUENCES: u64 = 300;
const CHANGES: usize = 60;

/// The text that goes to the kernel, both families and all sets.
fn bytes(ruleset: &Ruleset) -> String {
    let chains = Family::BOTH.map(|family| render::all_chains(family, ruleset.table(family)));
    format!("{}{}", render::all_sets(ruleset), chains.concat())
}

/// Takes in `changes` on one node, with a round after each if `every_round`.
fn run(node: &str, changes: &[Change], every_round: bool) -> (Cluster, Ruleset) {
    let (mut cluster, mut resolver) = (Cluster::new(), Resolver::new(node));
    let mut compiler = Compiler::new(Options::default());
    for change in changes {
        if let Some(delta) = cluster.apply(change.clone()) {
            resolver.update(&cluster, &delta);
        }
        if every_round {
            compiler.compile(&resolver.resolve(&cluster));
        }
    }
    let ruleset = compiler.compile(&resolver.resolve(&cluster));
    (cluster, ruleset)
}

/// The objects of a cluster, as the changes that make it.
fn objects(cluster: &Cluster) -> Vec<Change> {
    let pods = cluster.pods().map(|pod| Change::SetPod((**pod).clone()));
    let namespaces = cluster.namespaces().map(|namespace| Change::SetNamespace((**namespace).clone()));
    let policies = cluster.policies().map(|policy| Change::SetPolicy((**policy).clone()));
    pods.chain(namespaces).chain(policies).collect()
}

#[test]
fn any_order_duplication_or_squashing_of_changes_gives_the_same_bytes() {
    let mut rules = 0;
    for seed in 0..SEQUENCES {
        let stack = [Stack::V4, Stack::V6, Stack::Dual][usize::try_from(seed % 3).unwrap()];
        let shape = Shape { stack, namespaces: 3, pods: 4, policies: 6, oddities: true };
        let mut generator = Generator::new(seed, shape);
        let mut changes = generator.cluster();
        changes.extend((0..CHANGES).map(|_| generator.change()));
        if seed % 20 == 0 {
            // In between, so that some are replaced by others, and some stay.
            for at in [10, 30, 50] {
                let policy = generator.hostile_policy(if at == 30 { "y" } else { "x" }, 1);
                changes.insert(at, Change::SetPolicy(policy));
            }
        }
        for node in NODES {
            let (cluster, one_by_one) = run(node, &changes, true);
            rules += one_by_one.v4.chains.len() + one_by_one.v6.chains.len();
            let expected = bytes(&one_by_one);
            let objects = objects(&cluster);
            let shuffled = Random::new(seed).shuffled(objects.clone());
            let reversed: Vec<Change> = objects.iter().rev().cloned().collect();
            let twice: Vec<Change> =
                changes.iter().flat_map(|change| [change.clone(), change.clone()]).collect();
            for (how, changes, every_round) in [
                ("squashed", &changes, false),
                ("twice over", &twice, true),
                ("only the last state", &objects, false),
                ("shuffled", &shuffled, true),
                ("reversed", &reversed, true),
            ] {
                let (_, ruleset) = run(node, changes, every_round);
                assert_eq!(bytes(&ruleset), expected, "seed {seed}, node {node}, {how}");
            }
            let fresh = compile(&Resolver::of(node, &cluster).resolve(&cluster), &Options::default());
            assert_eq!(bytes(&fresh), expected, "seed {seed}, node {node}, a new resolver");
        }
    }
    assert!(rules > 1000, "the rulesets are not empty");
}
