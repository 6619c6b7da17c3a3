//! The cost of the core: resolve, compile, plan and evaluate at three sizes, and one change at each.
//!
//! `make bench` runs it; docs/benchmarks.md contains results and the machine that they are from.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use towpath::{
    lab::{
        random::cluster_of,
        sized::{self, NODE, SIZES, Size},
    },
    model::{Change, Cluster, Endpoint, Flow, Protocol, Transport},
    policy::{
        classes::{ClassTable, Classes},
        difference::{Difference, Limits},
        evaluate, known_transports,
        resolve::Resolver,
    },
    ruleset::{
        compile::{Compiler, Options, compile},
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
}

impl Settled {
    fn new(size: Size) -> Self {
        let cluster = cluster_of(sized::cluster(size));
        let mut resolver = Resolver::of(NODE, &cluster);
        let mut compiler = Compiler::new(Options::default());
        let observed = Observed::holding(&compiler.compile(&resolver.resolve(&cluster)));
        Self { cluster, resolver, compiler, observed }
    }

    /// Everything between a change and the steps that enforce it.
    fn take(&mut self, change: Change) -> usize {
        if let Some(delta) = self.cluster.apply(change) {
            self.resolver.update(&self.cluster, &delta);
        }
        let ruleset = self.compiler.compile(&self.resolver.resolve(&self.cluster));
        let steps = plan(&self.observed, &ruleset, &self.resolver.take_moves());
        for step in &steps {
            self.observed.note(step);
        }
        steps.len()
    }
}

/// The size of a large cluster that is compared as a whole.
const COMPARED: Size = Size { name: "10k pods, 1k policies", pods: 10_000, policies: 1_000, local: 250 };

/// Questions about all pairs of pods.
fn pairs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group(COMPARED.name);
    group.sample_size(10);
    let before = cluster_of(sized::cluster(COMPARED));
    let mut after = before.clone();
    after.apply(Change::RemovePolicy(sized::policy(COMPARED, 8).key));
    group.bench_function("classes", |bencher| bencher.iter(|| Classes::new(black_box(&before), &[])));
    let (classes, transports) = (Classes::new(&before, &[]), known_transports(&before));
    group.bench_function("table of classes", |bencher| {
        bencher.iter(|| ClassTable::new(black_box(&classes), &transports));
    });
    group.bench_function("difference", |bencher| {
        bencher.iter(|| Difference::between(black_box(&before), &after, Limits::default()));
    });
    println!("{} ends in {} classes", classes.endpoints().len(), classes.members().len());
    group.finish();
}

fn whole(criterion: &mut Criterion) {
    for size in SIZES {
        let mut group = criterion.benchmark_group(size.name);
        group.sample_size(10);
        let changes = sized::cluster(size);
        group.bench_function("cluster from objects", |bencher| {
            bencher.iter_batched(|| changes.clone(), cluster_of, BatchSize::PerIteration);
        });
        let cluster = cluster_of(changes);
        group.bench_function("resolve", |bencher| {
            bencher.iter(|| Resolver::of(NODE, black_box(&cluster)).resolve(&cluster));
        });
        let resolved = Resolver::of(NODE, &cluster).resolve(&cluster);
        group.bench_function("compile", |bencher| {
            bencher.iter(|| compile(black_box(&resolved), &Options::default()));
        });
        let ruleset = compile(&resolved, &Options::default());
        group.bench_function("plan from nothing", |bencher| {
            bencher.iter(|| plan(&Observed::default(), black_box(&ruleset), &[]));
        });
        let flow = Flow {
            from: Endpoint::Address([10, 0, 0, 20].into()),
            to: Endpoint::Address([10, 0, 0, 10].into()),
            transport: Transport::Port(Protocol::Tcp, 8080),
            family: None,
        };
        group.bench_function("evaluate", |bencher| bencher.iter(|| evaluate(black_box(&cluster), &flow)));
        group.finish();
    }
}

fn one_change(criterion: &mut Criterion) {
    for size in SIZES {
        let mut group = criterion.benchmark_group(size.name);
        group.sample_size(20);
        let mut settled = Settled::new(size);
        let mut turn = 0;
        group.bench_function("change of a remote pod's label", |bencher| {
            bencher.iter(|| {
                turn += 1;
                settled.take(sized::labelled_pod(size, size.local + 7, turn % 2))
            });
        });
        group.bench_function("change of a local pod's label", |bencher| {
            bencher.iter(|| {
                turn += 1;
                settled.take(sized::labelled_pod(size, 7, turn % 2))
            });
        });
        group.bench_function("change of a policy that binds local pods", |bencher| {
            bencher.iter(|| {
                turn += 1;
                let mut policy = sized::policy(size, 3);
                policy.egress = (turn % 2 == 0).then(Vec::new);
                settled.take(Change::SetPolicy(policy))
            });
        });
        group.finish();
    }
}

criterion_group!(benches, pairs, whole, one_change);
criterion_main!(benches);
