//! The fake does what the kernel does, so that results on the fake are valid on a node.

use std::collections::BTreeSet;

use towpath::{
    dataplane::{ApplyError, CheckDepth, Dataplane, fake::Fake},
    model::{Family, PortRange, Protocol},
    ruleset::{
        BuiltIn, Field, Match, Member, Object, Rule, SetKind, Target,
        observed::Observed,
        plan::{ChainBatch, HookEdit, SetEdit, Step, plan},
    },
};

use crate::fixtures::{chain, every_kind, for_both_variants, in_set, kernel, names_only, not_in_set, set};

/// The result of a step, without its texts.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Refused(BTreeSet<Object>),
    Failed,
}

fn outcome(dataplane: &mut impl Dataplane, step: &Step) -> Outcome {
    match dataplane.apply(step) {
        Ok(()) => Outcome::Done,
        Err(ApplyError::Refused(refusals)) => {
            Outcome::Refused(refusals.into_iter().map(|refusal| refusal.object).collect())
        }
        Err(ApplyError::Failed(_)) => Outcome::Failed,
    }
}

fn rules(rules: impl IntoIterator<Item = Rule>) -> ChainBatch {
    ChainBatch {
        write: vec![(chain("TP-GI-newnewnewnewnewn"), rules.into_iter().collect())],
        ..ChainBatch::default()
    }
}

fn rule(matches: impl Into<Vec<Match>>) -> ChainBatch {
    rules([Rule::new(matches, Target::Return)])
}

/// Steps that start from [`every_kind`], most of which the kernel refuses.
fn steps() -> Vec<Step> {
    let address = |text: &str| Member::Address(text.parse().unwrap());
    let network = |text: &str| Member::Network(text.parse().unwrap());
    let network_port = |text: &str| Member::NetworkEndpoint(text.parse().unwrap(), Protocol::Sctp, 80);
    let pods = || set("tp4-pods-xxxxxxxxxxxxxxxx");
    let mut steps: Vec<Step> = [
        SetEdit::Create(pods(), SetKind::Addresses),
        SetEdit::Create(pods(), SetKind::Networks),
        SetEdit::Create(pods(), SetKind::CountedAddresses),
        SetEdit::Add(set("tp4-pods-missingmissingmi"), address("10.0.0.1")),
        SetEdit::Remove(set("tp4-pods-missingmissingmi"), address("10.0.0.1")),
        SetEdit::Destroy(set("tp4-pods-missingmissingmi")),
        SetEdit::Destroy(pods()),
        SetEdit::Add(pods(), address("10.0.0.1")),
        SetEdit::Add(pods(), address("0.0.0.0")),
        SetEdit::Add(pods(), address("fd00::1")),
        SetEdit::Remove(pods(), address("10.9.9.9")),
        SetEdit::Add(set("tp6-pods-xxxxxxxxxxxxxxxx"), address("10.0.0.1")),
        SetEdit::Add(set("tp4-nets-xxxxxxxxxxxxxxxx"), network("0.0.0.0/0")),
        SetEdit::Add(set("tp4-nets-xxxxxxxxxxxxxxxx"), network("10.7.7.7/16")),
        SetEdit::Add(set("tp4-nets-xxxxxxxxxxxxxxxx"), network("fd00::/64")),
        SetEdit::Add(set("tp4-nets-xxxxxxxxxxxxxxxx"), network("0.0.0.0/32")),
        SetEdit::Add(set("tp4-except-xxxxxxxxxxxxxxxx"), network("0.0.0.0/1")),
        SetEdit::Add(set("tp6-except-xxxxxxxxxxxxxxxx"), network("::/128")),
        SetEdit::Add(set("tp4-netports-xxxxxxxxxxxxxxxx"), network_port("0.0.0.0/0")),
        SetEdit::Add(set("tp4-netports-xxxxxxxxxxxxxxxx"), network_port("128.0.0.0/1")),
        SetEdit::Add(set("tp4-netports-xxxxxxxxxxxxxxxx"), network_port("0.0.0.0/32")),
        SetEdit::Add(set("tp4-netports-xxxxxxxxxxxxxxxx"), network_port("fd00::/64")),
        SetEdit::Add(set("tp6-netports-xxxxxxxxxxxxxxxx"), network_port("::/0")),
        SetEdit::Add(set("tp6-netports-xxxxxxxxxxxxxxxx"), network_port("fd00::/64")),
        SetEdit::Add(set("tp4-ports-xxxxxxxxxxxxxxxx"), Member::Port(0)),
        SetEdit::Add(set("tp4-named-xxxxxxxxxxxxxxxx"), address("10.0.0.1")),
        SetEdit::Add(
            set("tp6-named-xxxxxxxxxxxxxxxx"),
            Member::Endpoint("fd00::1".parse().unwrap(), Protocol::Udp, 53),
        ),
    ]
    .map(|edit| Step::Sets(vec![edit]))
    .into();
    let port = |port| Match::Ports(Protocol::Tcp, vec![PortRange::single(port)]);
    let net = |text: &str| text.parse().unwrap();
    let log = |length| Target::Log { group: 1, prefix: "x".repeat(length).into() };
    let hook = |remove: &[&str], now: Option<&str>| ChainBatch {
        hooks: vec![HookEdit {
            at: BuiltIn::Forward,
            remove: remove.iter().map(|name| chain(name)).collect(),
            now: now.map(chain),
        }],
        ..ChainBatch::default()
    };
    let to_new = ChainBatch {
        write: vec![(
            chain("TOWPATH-INGRESS"),
            [Rule::new([], Target::Goto(chain("TP-GI-newnewnewnewnewn")))].into_iter().collect(),
        )],
        ..ChainBatch::default()
    };
    let mut looped = rules([Rule::new([], Target::Jump(chain("TOWPATH-FORWARD")))]);
    looped.write.extend(to_new.write.clone());
    let remove = |name: &str| ChainBatch { remove: vec![chain(name)], ..ChainBatch::default() };
    steps.extend(
        [
            rule([port(80), Match::Source(net("10.0.0.0/8"))]),
            rule([port(80), Match::Protocol(6)]),
            rule([Match::Source(net("10.0.0.0/8")), Match::Source(net("10.0.0.0/9"))]),
            rule([Match::Source(net("fd00::/8"))]),
            rule([Match::Icmpv6Type(135)]),
            rule([in_set("tp4-pods-missingmissingmi", Field::Source)]),
            rule([in_set("tp6-pods-xxxxxxxxxxxxxxxx", Field::Source)]),
            rule([not_in_set("tp4-pods-missingmissingmi", Field::Source)]),
            rule([not_in_set("tp6-except-xxxxxxxxxxxxxxxx", Field::Source)]),
            rule([
                not_in_set("tp4-except-xxxxxxxxxxxxxxxx", Field::Source),
                in_set("tp4-nets-xxxxxxxxxxxxxxxx", Field::Source),
            ]),
            rule([in_set("tp4-netports-xxxxxxxxxxxxxxxx", Field::SourceWithPort)]),
            rule([Match::Limit { per_second: 10_000 }]),
            rule([Match::Limit { per_second: 20_000 }]),
            rule([Match::Comment("x".repeat(255).into())]),
            rules([Rule::new([], log(63))]),
            to_new,
            looped,
            hook(&["TOWPATH-INPUT"], None),
            hook(&["TOWPATH-FORWARD"], Some("TP-GI-missingmissingmi")),
            hook(&["TOWPATH-FORWARD"], Some("TOWPATH-INGRESS")),
            remove("TOWPATH-INGRESS"),
            remove("TP-GI-missingmissingmi"),
        ]
        .map(|batch| Step::Chains(Family::V4, batch)),
    );
    steps
}

#[test]
fn fake_accepts_and_refuses_the_same_steps_as_the_kernel() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        let mut fake = Fake::default();
        let mut refused = 0;
        for step in steps() {
            // Each step starts from the same state.
            for step in plan(&kernel.observe().unwrap(), &every_kind(), &[]) {
                kernel.apply(&step).unwrap();
            }
            for step in plan(&fake.observe().unwrap(), &every_kind(), &[]) {
                fake.apply(&step).unwrap();
            }
            let outcome_of_kernel = outcome(&mut kernel, &step);
            assert_eq!(outcome(&mut fake, &step), outcome_of_kernel, "{step:?}");
            assert_eq!(fake.observe().unwrap(), kernel.observe().unwrap(), "{step:?}");
            refused += u32::from(outcome_of_kernel != Outcome::Done);
        }
        assert!(refused > 20, "{refused}");
    });
}

#[test]
fn next_process_converges_after_a_death_at_any_effect() {
    let steps = plan(&Observed::default(), &every_kind(), &[]);
    let mut whole = Fake::default();
    for step in &steps {
        whole.apply(step).unwrap();
    }
    assert_eq!(whole.ruleset(), &every_kind());
    for count in 0..whole.effects() {
        let mut fake = Fake::default();
        fake.die_after(count);
        let failed = steps.iter().find_map(|step| fake.apply(step).err());
        assert!(matches!(failed, Some(ApplyError::Failed(_))));
        assert!(fake.observe().is_err(), "a dead fake cannot be observed");
        assert_eq!(fake.effects(), count);
        fake.revive();
        for step in plan(&fake.observe().unwrap(), &every_kind(), &[]) {
            fake.apply(&step).unwrap();
        }
        assert_eq!(fake.ruleset(), &every_kind());
        assert_eq!(fake.observe().unwrap(), names_only(&every_kind()));
    }
}

#[test]
fn fake_refuses_objects_on_demand_and_reports_drift() {
    let mut fake = Fake::default();
    let broken = Object::Set(set("tp4-pods-xxxxxxxxxxxxxxxx"));
    fake.refuse(broken.clone());
    let steps = plan(&Observed::default(), &every_kind(), &[]);
    assert_eq!(outcome(&mut fake, &steps[0]), Outcome::Refused([broken.clone()].into()));
    assert_eq!(fake.ruleset().v4.sets.len(), every_kind().v4.sets.len() - 1);
    fake.refuse_nothing();
    for step in plan(&fake.observe().unwrap(), &every_kind(), &[]) {
        fake.apply(&step).unwrap();
    }
    let expected = Observed::holding(&every_kind());
    assert!(fake.check(&expected, CheckDepth::Members).unwrap().findings.is_empty());
    fake.displace(Family::V4, BuiltIn::Forward);
    fake.ruleset_mut().v6.sets.clear();
    assert_eq!(
        fake.check(&expected, CheckDepth::Members).unwrap().findings.len(),
        1 + every_kind().v6.sets.len()
    );
}
