//! What a node enforces is a function of the objects, whatever the order in which they arrived.
//!
//! Random sequences of changes are applied one by one with a sync after each, all at once, shuffled, reversed and
//! twice: the rulesets must be identical to the byte.

#![cfg(test)]

use towpath::{
    lab::random::{Generator, NODES, Random, Shape, Stack},
    model::{Change, Cluster, Family},
    policy::{budget::Budgets, resolve::Resolver},
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

/// Applies `changes` on one node, with a sync after each if `every_change`.
fn run(node: &str, changes: &[Change], every_change: bool) -> (Cluster, Ruleset) {
    let (cluster, ruleset, _) = run_within(Budgets::default(), node, changes, every_change);
    (cluster, ruleset)
}

/// The same with these budgets; and what exceeds them, in words.
fn run_within(
    budgets: Budgets,
    node: &str,
    changes: &[Change],
    every_change: bool,
) -> (Cluster, Ruleset, Vec<String>) {
    let (mut cluster, mut resolver) = (Cluster::new(), Resolver::new(node).with_budgets(budgets));
    let mut compiler = Compiler::new(Options::default());
    for change in changes {
        if let Some(delta) = cluster.apply(change.clone()) {
            resolver.update(&cluster, &delta);
        }
        if every_change {
            compiler.compile(&resolver.resolve(&cluster));
        }
    }
    let now = resolver.resolve(&cluster);
    let over = now.over_budget.iter().map(ToString::to_string).collect();
    (cluster, compiler.compile(&now), over)
}

/// The objects of a cluster, as the changes that create it.
fn objects(cluster: &Cluster) -> Vec<Change> {
    let pods = cluster.pods().map(|pod| Change::SetPod((**pod).clone()));
    let namespaces = cluster.namespaces().map(|namespace| Change::SetNamespace((**namespace).clone()));
    let policies = cluster.policies().map(|policy| Change::SetPolicy((**policy).clone()));
    pods.chain(namespaces).chain(policies).collect()
}

#[test]
fn order_duplication_and_squashing_of_changes_do_not_alter_the_ruleset() {
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
            for (how, changes, every_change) in [
                ("squashed", &changes, false),
                ("each change twice", &twice, true),
                ("only the last state", &objects, false),
                ("shuffled", &shuffled, true),
                ("reversed", &reversed, true),
            ] {
                let (_, ruleset) = run(node, changes, every_change);
                assert_eq!(bytes(&ruleset), expected, "seed {seed}, node {node}, {how}");
            }
            let fresh = compile(&Resolver::of(node, &cluster).resolve(&cluster), &Options::default());
            assert_eq!(bytes(&fresh), expected, "seed {seed}, node {node}, a new resolver");
        }
    }
    assert!(rules > 1000, "the rulesets are not empty");
}

/// Budgets so small that ordinary clusters exceed each of them now and then.
fn tiny(seed: u64) -> Budgets {
    let unlimited = Budgets::UNLIMITED;
    match seed % 6 {
        0 => Budgets { policy: 80, ..unlimited },
        1 => Budgets { namespace: 300, ..unlimited },
        2 => Budgets { node: 400, ..unlimited },
        3 => Budgets { namespace_sets: 6, ..unlimited },
        4 => Budgets { node_sets: 10, ..unlimited },
        _ => {
            Budgets { policy: 150, namespace: 400, node: 600, namespace_sets: 12, node_sets: 16, ..unlimited }
        }
    }
}

#[test]
fn order_of_changes_does_not_alter_what_is_over_budget() {
    let mut closed = [0; 6];
    for seed in 0..90 {
        let shape = Shape { stack: Stack::Dual, namespaces: 3, pods: 4, policies: 6, oddities: true };
        let mut generator = Generator::new(seed, shape);
        let mut changes = generator.cluster();
        changes.extend((0..20).map(|_| generator.change()));
        let budgets = tiny(seed);
        for node in NODES {
            let (cluster, ruleset, over) = run_within(budgets, node, &changes, true);
            closed[usize::try_from(seed % 6).unwrap()] += over.len();
            let expected = (bytes(&ruleset), over);
            let objects = objects(&cluster);
            let reversed: Vec<Change> = objects.iter().rev().cloned().collect();
            for (how, changes) in [("only the last state", &objects), ("reversed", &reversed)] {
                let (_, ruleset, over) = run_within(budgets, node, changes, true);
                assert_eq!((bytes(&ruleset), over), expected, "seed {seed}, node {node}, {how}");
            }
            let resolved = Resolver::of(node, &cluster).with_budgets(budgets).resolve(&cluster);
            let fresh = bytes(&compile(&resolved, &Options::default()));
            assert_eq!(fresh, expected.0, "seed {seed}, node {node}, a new resolver");
        }
    }
    assert!(closed.iter().all(|count| *count > 0), "{closed:?} closed, by budget");
}
