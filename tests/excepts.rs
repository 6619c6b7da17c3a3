//! A set of excepts closes part of a rule that allows: an address in it must not pass after any edit.

#![cfg(test)]

use std::net::IpAddr;

use ipnet::IpNet;
use towpath::{
    dataplane::{Dataplane, fake::Fake},
    lab::random::cluster_of,
    model::{
        Change, Family, IpBlock, LabelSelector, NetworkPolicy, ObjectKey, Peer, Peers, Pod, PolicyRule,
        Ports, Protocol, Standing, Transport,
    },
    policy::resolve::Resolver,
    ruleset::{
        IpSet, Member, Ruleset, SetName,
        compile::{Compiler, Options, compile},
        observed::Observed,
        plan::{Step, plan},
        trace::{Packet, trace},
    },
};

const POD: [u8; 4] = [10, 244, 1, 1];
const EXCEPTED: u8 = 12;

fn excepted(n: u8) -> IpAddr {
    IpAddr::from([n * 16 + 3, 1, 2, 3])
}

/// Everything except `excepts`.
fn everything_but(excepts: impl IntoIterator<Item = u8>) -> Peer {
    let excepts = excepts.into_iter().map(|n| IpNet::from(excepted(n)));
    Peer::Block(IpBlock::new("0.0.0.0/0".parse().unwrap(), excepts).unwrap())
}

/// The ruleset of a node whose only pod may send to these peers.
fn allowing(peers: Vec<Peer>) -> Ruleset {
    let pod =
        Pod { node: Some("n".into()), addresses: vec![POD.into()], ..Pod::new(ObjectKey::new("x", "a")) };
    let policy = NetworkPolicy {
        key: ObjectKey::new("x", "p"),
        subject: LabelSelector::everything(),
        ingress: None,
        egress: Some(vec![PolicyRule { peers: Peers::Of(peers), ports: Ports::Any }]),
        standing: Standing::Accepted,
    };
    let cluster = cluster_of([Change::SetPod(pod), Change::SetPolicy(policy)]);
    compile(&Resolver::of("n", &cluster).resolve(&cluster), &Options::default())
}

fn passes(ruleset: &Ruleset, to: IpAddr) -> bool {
    let packet = Packet::new(POD.into(), to, Transport::Port(Protocol::Tcp, 80));
    trace(&ruleset.v4, &packet).passed
}

fn set_of_excepts(ruleset: &Ruleset) -> SetName {
    let mut names = ruleset.v4.sets.keys().filter(|name| name.as_str().starts_with("tp4-except-"));
    let name = names.next().expect("a set of excepts").clone();
    assert!(names.next().is_none());
    name
}

/// The effects of a plan, one by one.
fn effects(steps: &[Step]) -> Vec<Step> {
    steps
        .iter()
        .flat_map(|step| match step {
            Step::Chains(..) => vec![step.clone()],
            Step::Sets(edits) => edits.iter().map(|edit| Step::Sets(vec![edit.clone()])).collect(),
            Step::Gc(edits) => edits.iter().map(|edit| Step::Gc(vec![edit.clone()])).collect(),
        })
        .collect()
}

/// Carries out the plan to `ruleset` and checks after each effect; at most `most` effects.
fn carry_out(fake: &mut Fake, ruleset: &Ruleset, most: usize, holds: impl Fn(&Ruleset) -> bool) -> usize {
    let steps = plan(&fake.observe().unwrap(), ruleset, &[]);
    let effects = effects(&steps);
    for effect in effects.iter().take(most) {
        fake.apply(effect).unwrap();
        assert!(holds(fake.ruleset()), "after {effect:?}");
    }
    effects.len()
}

#[test]
fn no_edit_opens_an_except_wherever_a_process_dies() {
    let closed = allowing(Vec::new());
    let open = allowing(vec![everything_but(0..EXCEPTED)]);
    set_of_excepts(&open);
    let is_closed = |ruleset: &Ruleset| (0..EXCEPTED).all(|n| !passes(ruleset, excepted(n)));
    let begin = || Fake::holding(closed.clone());
    let total = carry_out(&mut begin(), &open, usize::MAX, is_closed);
    assert!(total > usize::from(EXCEPTED));
    for dies_at in 0..=total {
        let mut fake = begin();
        carry_out(&mut fake, &open, dies_at, is_closed);
        carry_out(&mut fake, &open, usize::MAX, is_closed);
        assert_eq!(fake.ruleset(), &open);
        assert!(passes(fake.ruleset(), [192, 0, 2, 1].into()));
        carry_out(&mut fake, &closed, usize::MAX, is_closed);
    }
}

#[test]
fn changed_excepts_use_another_set_and_shared_excepts_stay_closed() {
    let (before, after) =
        (allowing(vec![everything_but(0..EXCEPTED)]), allowing(vec![everything_but(1..=EXCEPTED)]));
    assert_ne!(set_of_excepts(&before), set_of_excepts(&after));
    let mut fake = Fake::holding(before);
    carry_out(&mut fake, &after, usize::MAX, |ruleset| (1..EXCEPTED).all(|n| !passes(ruleset, excepted(n))));
    assert!(passes(fake.ruleset(), excepted(0)) && !passes(fake.ruleset(), excepted(EXCEPTED)));
}

#[test]
fn except_removed_by_another_program_is_restored_first() {
    let open = allowing(vec![everything_but(0..EXCEPTED)]);
    let mut fake = Fake::holding(open.clone());
    let name = set_of_excepts(&open);
    let IpSet { members, .. } = fake.ruleset_mut().v4.sets.get_mut(&name).unwrap();
    members.remove(&Member::Network(excepted(5).into()));
    // And chains that must be written as well.
    fake.ruleset_mut().v6.chains.clear();
    fake.ruleset_mut().v6.hooks.clear();
    assert!(passes(fake.ruleset(), excepted(5)));
    carry_out(&mut fake, &open, usize::MAX, |ruleset| !passes(ruleset, excepted(5)));
    assert_eq!(fake.ruleset(), &open);
}

#[test]
fn noted_members_share_memory_with_equal_desired_ones() {
    let open = allowing(vec![everything_but(0..EXCEPTED)]);
    let mut observed = Observed::default();
    for step in plan(&Observed::default(), &open, &[]) {
        observed.note(&step);
    }
    let name = set_of_excepts(&open);
    let is_shared =
        |observed: &Observed| observed.v4.sets[&name].members.ptr_eq(&open.v4.sets[&name].members);
    assert!(!is_shared(&observed));
    observed.share(&open);
    assert!(is_shared(&observed));
    assert_eq!(observed, Observed::holding(&open));
    // A set that differs stays unchanged.
    let members = &mut observed.v4.sets.get_mut(&name).unwrap().members;
    members.remove(&Member::Network(excepted(5).into()));
    observed.share(&open);
    assert!(!plan(&observed, &open, &[]).is_empty());
}

#[test]
fn change_of_one_pod_reuses_the_chains_and_sets_of_unchanged_programs() {
    let pod = |name: &str, address: [u8; 4]| {
        let addresses = vec![address.into(), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(address[3])])];
        Change::SetPod(Pod { node: Some("n".into()), addresses, ..Pod::new(ObjectKey::new("x", name)) })
    };
    let policy = Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new("x", "p"),
        subject: LabelSelector::everything(),
        ingress: None,
        egress: Some(vec![PolicyRule {
            peers: Peers::Of(vec![everything_but(0..EXCEPTED)]),
            ports: Ports::Any,
        }]),
        standing: Standing::Accepted,
    });
    let mut cluster = cluster_of([pod("a", POD), policy]);
    let mut resolver = Resolver::of("n", &cluster);
    let mut compiler = Compiler::new(Options::default());
    let before = compiler.compile(&resolver.resolve(&cluster));
    let delta = cluster.apply(pod("b", [10, 244, 1, 2])).expect("a change");
    resolver.update(&cluster, &delta);
    let there = resolver.resolve(&cluster);
    let after = compiler.compile(&there);
    assert_ne!(before, after);
    assert_eq!(after, compile(&there, &Options::default()));
    let name = set_of_excepts(&after);
    assert!(before.v4.sets[&name].members.ptr_eq(&after.v4.sets[&name].members));
    let mut groups = 0;
    for family in Family::BOTH {
        for (name, chain) in &before.table(family).chains {
            if name.as_str().starts_with("TP-GE-") {
                let same = &after.table(family).chains[name];
                assert!(std::sync::Arc::ptr_eq(&chain.rules, &same.rules));
                groups += 1;
            }
        }
    }
    assert_eq!(groups, 2);
}
