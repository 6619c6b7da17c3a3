//! A process that is killed after any edit, and its successor: no edit opens anything, and the successor converges.
//!
//! The plans between random states are carried out edit by edit on the fake kernel. After each edit, every flow that
//! passes must be one that some state of the objects in between allowed; and a new process that finds the state of the
//! dead one must converge to the same rules, under the same conditions.

#![cfg(test)]

use std::{collections::BTreeSet, net::IpAddr};

use towpath::{
    dataplane::{Dataplane, fake::Fake},
    lab::random::{Generator, NODES, Shape, Stack, externals, transports},
    model::{Change, Cluster, Family, Protocol, Transport},
    policy::{moves::Move, resolve::Resolver},
    ruleset::{
        BuiltIn, IpSet, Ruleset, SetName, Table,
        compile::{Compiler, Options},
        observed::Observed,
        plan::{SetEdit, Step, plan},
        trace::{Packet, trace},
    },
};

use other_version::of_another_version;

#[path = "support/env.rs"]
mod env;
#[path = "support/other_version.rs"]
mod other_version;

const CLUSTERS: u64 = 12;
const ROUNDS: usize = 8;

/// Every flow that could distinguish the states.
struct Flows(Vec<Packet>);

impl Flows {
    fn of(cluster: &Cluster, stack: Stack) -> Self {
        let mut ends: BTreeSet<IpAddr> =
            cluster.pods().flat_map(|pod| pod.addresses.iter().copied()).collect();
        ends.extend(externals(stack));
        let ports = [transports()[0], transports()[3], Transport::Port(Protocol::Sctp, 80)];
        let pairs = ends.iter().flat_map(|from| ends.iter().map(move |to| (*from, *to)));
        let same_family = pairs.filter(|(from, to)| Family::of(*from) == Family::of(*to) && from != to);
        Self(same_family.flat_map(|(from, to)| ports.map(|port| Packet::new(from, to, port))).collect())
    }

    fn passing(&self, ruleset: &Ruleset) -> Vec<bool> {
        let table = |packet: &Packet| -> &Table { ruleset.table(Family::of(packet.source)) };
        self.0.iter().map(|packet| trace(table(packet), packet).passed).collect()
    }
}

/// The single effects of a step.
fn effects(step: &Step) -> Vec<Step> {
    match step {
        Step::Chains(..) => vec![step.clone()],
        Step::Sets(edits) => edits.iter().map(|edit| Step::Sets(vec![edit.clone()])).collect(),
        Step::Gc(edits) => edits.iter().map(|edit| Step::Gc(vec![edit.clone()])).collect(),
    }
}

/// Whether a plan moves members of existing sets, and changes chains as well: the one case that may deny for a moment
/// what both states allow.
fn is_mixed(observed: &Observed, steps: &[Step]) -> bool {
    let stays = |edit: &SetEdit| {
        let set = edit.set();
        !matches!(edit, SetEdit::Destroy(_)) && observed.table(set.family()).sets.contains_key(set)
    };
    let moves = steps.iter().any(|step| matches!(step, Step::Sets(edits) if edits.iter().any(stays)));
    moves && steps.iter().any(|step| matches!(step, Step::Chains(..)))
}

/// Carries out `steps` one effect after the other; after each, compares every flow with `states`, the verdicts of all
/// states that the objects went through. Stops after `stop_after` effects.
fn carry_out(
    fake: &mut Fake,
    steps: &[Step],
    flows: &Flows,
    states: &[Vec<bool>],
    may_drop: bool,
    stop_after: usize,
    context: &str,
) -> usize {
    let mut done = 0;
    for effect in steps.iter().flat_map(effects) {
        if done == stop_after {
            break;
        }
        fake.apply(&effect).unwrap_or_else(|error| panic!("{context}: {effect:?}: {error}"));
        done += 1;
        for (index, passes) in flows.passing(fake.ruleset()).into_iter().enumerate() {
            let packet = &flows.0[index];
            let allowed = states.iter().any(|state| state[index]);
            assert!(allowed || !passes, "{context}: {packet:?} passes after {effect:?}");
            let always = states.iter().all(|state| state[index]);
            assert!(passes || !always || may_drop, "{context}: {packet:?} is dropped after {effect:?}");
        }
    }
    done
}

#[test]
fn no_edit_opens_anything_and_a_new_process_converges() {
    let (mut checked, mut restarts) = (0, 0);
    let clusters = env::number("TOWPATH_CLUSTERS", CLUSTERS);
    for seed in 0..clusters {
        let stack = [Stack::V4, Stack::V6, Stack::Dual][usize::try_from(seed % 3).unwrap()];
        let shape = Shape { stack, namespaces: 2, pods: 3, policies: 5, oddities: seed % 2 == 0 };
        let mut generator = Generator::new(seed, shape);
        let mut cluster = Cluster::new();
        let mut resolvers = NODES.map(Resolver::new);
        let mut compilers = NODES.map(|_| Compiler::new(Options::default()));
        let mut fakes = NODES.map(|_| Fake::default());
        for round in 0..ROUNDS {
            let batch: Vec<Change> = if round == 0 {
                generator.cluster()
            } else {
                let mut batch: Vec<Change> =
                    (0..=generator.random().below(3)).map(|_| generator.change()).collect();
                if generator.random().chance(10) {
                    // Excepts and ports in sets that close, or that are shared.
                    let namespace = *generator.random().pick(&["x", "y"]);
                    batch.push(Change::SetPolicy(generator.hostile_policy(namespace, 0)));
                }
                batch
            };
            let mut states = NODES.map(|_| Vec::new());
            let mut last = NODES.map(|_| Ruleset::default());
            if round > 0 {
                for (node, fake) in fakes.iter().enumerate() {
                    states[node].push(fake.ruleset().clone());
                }
            }
            let first = round == 0;
            let mut before = cluster.clone();
            for change in batch {
                if let Some(delta) = cluster.apply(change) {
                    for (node, resolver) in resolvers.iter_mut().enumerate() {
                        resolver.update(&cluster, &delta);
                        if !first {
                            states[node].push(compilers[node].compile(&resolver.resolve(&cluster)));
                        }
                    }
                }
                if !first {
                    before = cluster.clone();
                }
            }
            let mut flows = Flows::of(&cluster, stack);
            flows.0.extend(Flows::of(&before, stack).0);
            for node in 0..NODES.len() {
                last[node] = compilers[node].compile(&resolvers[node].resolve(&cluster));
                let moves: Vec<Move> = resolvers[node].take_moves();
                let context = format!("seed {seed}, round {round}, node {}", NODES[node]);
                let observed = if first {
                    fakes[node].observe().unwrap()
                } else {
                    Observed::holding(fakes[node].ruleset())
                };
                states[node].push(last[node].clone());
                if first {
                    // Before the first start everything passes.
                    states[node].push(Ruleset::default());
                }
                let verdicts: Vec<Vec<bool>> =
                    states[node].iter().map(|state| flows.passing(state)).collect();
                let steps = plan(&observed, &last[node], &moves);
                let may_drop = is_mixed(&observed, &steps) || moves.iter().any(|step| step.close_first);
                let total: usize = steps.iter().map(|step| effects(step).len()).sum();
                let dies_at = generator.random().below(total + 1);

                let mut dying = fakes[node].clone();
                carry_out(&mut dying, &steps, &flows, &verdicts, may_drop, dies_at, &context);
                let found = dying.observe().unwrap();
                let rest = plan(&found, &last[node], &[]);
                let context_again = format!("{context}, again from effect {dies_at}");
                carry_out(&mut dying, &rest, &flows, &verdicts, true, usize::MAX, &context_again);
                assert_eq!(dying.ruleset(), &last[node], "{context_again}");
                restarts += 1;

                checked +=
                    carry_out(&mut fakes[node], &steps, &flows, &verdicts, may_drop, usize::MAX, &context);
                assert_eq!(fakes[node].ruleset(), &last[node], "{context}");
                let settled = Observed::holding(fakes[node].ruleset());
                assert_eq!(plan(&settled, &last[node], &[]), [], "{context}: a plan without differences");
            }
        }
    }
    println!("{checked} edits checked, {restarts} restarts");
    assert!(checked > 1000);
}

#[test]
fn no_edit_of_an_upgrade_or_a_roll_back_opens_or_closes_anything() {
    let (mut checked, clusters) = (0, env::number("TOWPATH_CLUSTERS", CLUSTERS));
    for seed in 0..clusters {
        let stack = [Stack::V4, Stack::V6, Stack::Dual][usize::try_from(seed % 3).unwrap()];
        let mut generator =
            Generator::new(seed, Shape { stack, namespaces: 2, pods: 3, policies: 5, oddities: true });
        let (mut cluster, mut resolver) = (Cluster::new(), Resolver::new(NODES[0]));
        for change in generator.cluster() {
            if let Some(delta) = cluster.apply(change) {
                resolver.update(&cluster, &delta);
            }
        }
        let this = Compiler::new(Options::default()).compile(&resolver.resolve(&cluster));
        let other = of_another_version(&this);
        let flows = Flows::of(&cluster, stack);
        let verdicts = [flows.passing(&this)];
        assert_eq!(flows.passing(&other), verdicts[0], "the versions mean the same");
        for (name, from, to) in [("upgrade", &this, &other), ("roll-back", &other, &this)] {
            let context = format!("seed {seed}, {name}");
            let planned = |fake: &mut Fake| {
                let mut found = fake.observe().unwrap();
                for family in Family::BOTH {
                    let (there, to) = (found.table_mut(family), to.table(family));
                    // As a process of the version that writes `to` sees them.
                    let differs = |name: &SetName, set: &IpSet| {
                        to.sets.get(name).is_some_and(|wanted| wanted.kind != set.kind)
                    };
                    let others = there.sets.extract_if(.., |name, set| differs(name, set));
                    there.others.extend(others.map(|(name, _)| name));
                    for (name, set) in &fake.ruleset().table(family).sets {
                        if to.sets.get(name).is_some_and(|wanted| wanted.kind == set.kind) {
                            there.others.remove(name);
                            there.sets.insert(name.clone(), set.clone());
                        }
                    }
                }
                plan(&found, &to.clone().beside(&found), &[])
            };
            let mut fake = Fake::holding(from.clone());
            let steps = planned(&mut fake);
            let total: usize = steps.iter().map(|step| effects(step).len()).sum();
            let mut dying = fake.clone();
            let dies_at = generator.random().below(total + 1);
            carry_out(&mut dying, &steps, &flows, &verdicts, false, dies_at, &context);
            for fake in [&mut fake, &mut dying] {
                // The second time, names that were taken are free.
                for _ in 0..2 {
                    let steps = planned(fake);
                    checked += carry_out(fake, &steps, &flows, &verdicts, false, usize::MAX, &context);
                }
            }
            assert_eq!((fake.ruleset(), dying.ruleset()), (to, to), "{context}");
        }
    }
    println!("{checked} edits checked");
    assert!(checked > 1000);
}

#[test]
fn displaced_hooks_are_moved_back_to_first_place() {
    let mut fake = Fake::default();
    let cluster = Cluster::new();
    let ruleset = Compiler::new(Options::default()).compile(&Resolver::new("n1").resolve(&cluster));
    for step in plan(&fake.observe().unwrap(), &ruleset, &[]) {
        fake.apply(&step).unwrap();
    }
    fake.displace(Family::V4, BuiltIn::Forward);
    let steps = plan(&fake.observe().unwrap(), &ruleset, &[]);
    assert!(
        steps.iter().any(|step| matches!(step, Step::Chains(Family::V4, batch) if batch.hooks.len() == 1))
    );
    for step in steps {
        fake.apply(&step).unwrap();
    }
    assert!(fake.observe().unwrap().v4.hooks.values().all(|hook| hook.first));
}
