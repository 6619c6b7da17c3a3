//! The cost of one tenant's worst policies for the core: a first sync, and a later change of one local pod.
//!
//! `make bench` runs it; docs/benchmarks.md contains results and the machine that they are from. One shape in its own
//! process (`--test` and its name) shows how much memory it needs.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use towpath::{
    lab::{
        hostile::{self, NODE, SHAPES},
        random::cluster_of,
    },
    model::{Change, Cluster},
    policy::resolve::Resolver,
    ruleset::{
        Ruleset,
        compile::{Compiler, Options},
        observed::Observed,
        plan::plan,
    },
};

/// A node that has enforced everything and waits for the next change.
struct Settled {
    cluster: Cluster,
    resolver: Resolver,
    compiler: Compiler,
    observed: Observed,
    ruleset: Ruleset,
}

impl Settled {
    /// The first sync: from the objects to the steps that write everything.
    fn new(objects: Vec<Change>) -> Self {
        let cluster = cluster_of(objects);
        let mut resolver = Resolver::of(NODE, &cluster);
        let mut compiler = Compiler::new(Options::default());
        let ruleset = compiler.compile(&resolver.resolve(&cluster));
        let mut observed = Observed::default();
        for step in plan(&observed.clone(), &ruleset, &resolver.take_moves()) {
            observed.note(&step);
        }
        observed.share(&ruleset);
        Self { cluster, resolver, compiler, observed, ruleset }
    }

    /// Everything between a change and the steps that enforce it.
    fn take(&mut self, change: Change) -> usize {
        if let Some(delta) = self.cluster.apply(change) {
            self.resolver.update(&self.cluster, &delta);
        }
        self.ruleset = self.compiler.compile(&self.resolver.resolve(&self.cluster));
        let steps = plan(&self.observed, &self.ruleset, &self.resolver.take_moves());
        for step in &steps {
            self.observed.note(step);
        }
        self.observed.share(&self.ruleset);
        steps.len()
    }
}

/// The size of what is written: rules and set entries of both families.
fn size(ruleset: &Ruleset) -> (usize, usize) {
    let tables = [&ruleset.v4, &ruleset.v6];
    let rules = tables.iter().flat_map(|table| table.chains.values()).map(|chain| chain.rules.len());
    let entries = tables.iter().flat_map(|table| table.sets.values()).map(|set| set.members.len());
    (rules.sum(), entries.sum())
}

fn hostile(criterion: &mut Criterion) {
    for (name, shape) in SHAPES {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10);
        let mut is_told = false;
        group.bench_function("first round", |bencher| {
            let mut last = None;
            let objects = || hostile::cluster(shape);
            bencher.iter_batched(
                objects,
                |objects| last = Some(Settled::new(objects)),
                BatchSize::PerIteration,
            );
            let (rules, entries) = last.map(|settled| size(&settled.ruleset)).unwrap_or_default();
            if !std::mem::replace(&mut is_told, true) {
                println!("{name}: {rules} rules, {entries} set entries");
            }
        });
        group.bench_function("change of a local pod", |bencher| {
            let mut settled = Settled::new(hostile::cluster(shape));
            let mut turn = 0;
            bencher.iter(|| {
                turn += 1;
                // Its address comes and goes, so that chains change.
                settled.take(if turn % 2 == 1 { hostile::no_pod(3) } else { hostile::pod(3) })
            });
        });
        group.finish();
    }
}

criterion_group!(benches, hostile);
criterion_main!(benches);
