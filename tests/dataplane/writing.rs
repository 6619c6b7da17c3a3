//! Writing, reading back, and refusals.

use std::{
    thread,
    time::{Duration, Instant},
};

use towpath::{
    dataplane::{
        ApplyError, CheckDepth, Dataplane, Drift,
        command::Commands,
        kernel::{Variant, sysctl::Bridge},
    },
    model::Family,
    ruleset::{
        BuiltIn, Chain, Field, Member, Object, Rule, Ruleset, SetKind, Target,
        observed::Observed,
        plan::{ChainBatch, SetEdit, Step},
    },
};

use crate::fixtures::{
    apply_all, chain, every_kind, for_both_variants, in_namespace, in_set, kernel, names_only, set, sh, tool,
};

#[test]
fn applied_ruleset_is_observed_and_checks_clean() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        assert_eq!(kernel.variant(), variant);
        assert!(kernel.observe().unwrap().is_empty());
        let ruleset = every_kind();
        apply_all(&mut kernel, &ruleset);
        assert_eq!(kernel.observe().unwrap(), names_only(&ruleset));
        assert_eq!(
            kernel.check(&Observed::holding(&ruleset), CheckDepth::Members).unwrap(),
            Drift::default()
        );
    });
}

#[test]
fn new_ruleset_replaces_the_old_one_and_an_empty_one_removes_everything() {
    for_both_variants(|variant| {
        apply_all(&mut kernel(variant), &every_kind());
        let mut other = every_kind();
        for family in Family::BOTH {
            let table = other.table_mut(family);
            table.chains.remove(&chain("TP-GI-aaaaaaaaaaaaaaaa"));
            table
                .chains
                .insert(chain("TOWPATH-INGRESS"), [Rule::new([], Target::Drop)].into_iter().collect());
            table.hooks.remove(&BuiltIn::Input);
            table.chains.remove(&chain("TOWPATH-INPUT"));
            table.sets.retain(|name, _| name.as_str().ends_with("isolated"));
        }
        let mut successor = kernel(variant);
        apply_all(&mut successor, &other);
        assert_eq!(successor.observe().unwrap(), names_only(&other));
        apply_all(&mut successor, &Ruleset::default());
        assert!(successor.observe().unwrap().is_empty());
    });
}

#[test]
fn refused_chains_are_named_and_their_batch_is_not_written() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        let drop_all = || -> Chain { [Rule::new([], Target::Drop)].into_iter().collect() };
        let needs_set: Chain =
            [Rule::new([in_set("tp4-pods-missingmissingmi", Field::Source)], Target::Return)]
                .into_iter()
                .collect();
        let to_missing_chain: Chain =
            [Rule::new([], Target::Goto(chain("TP-GI-missingmissingmi")))].into_iter().collect();
        let good = [
            "TP-GI-aaaaaaaaaaaaaaaa",
            "TP-GI-bbbbbbbbbbbbbbbb",
            "TP-GI-cccccccccccccccc",
            "TP-GI-dddddddddddddddd",
        ]
        .map(|name| (chain(name), drop_all()));
        let write = good
            .into_iter()
            .chain([
                (chain("TP-GI-badbadbadbadbadb"), needs_set),
                (chain("TP-GI-worseworseworsew"), to_missing_chain),
            ])
            .collect();
        let batch = ChainBatch { write, ..ChainBatch::default() };
        let error = kernel.apply(&Step::Chains(Family::V4, batch)).unwrap_err();
        let ApplyError::Refused(mut refusals) = error else { panic!("{error}") };
        refusals.sort_by_key(|refusal| refusal.object.clone());
        let objects: Vec<Object> = refusals.iter().map(|refusal| refusal.object.clone()).collect();
        let bad = |name: &str| Object::Chain(Family::V4, chain(name));
        assert_eq!(objects, [bad("TP-GI-badbadbadbadbadb"), bad("TP-GI-worseworseworsew")]);
        assert!(refusals[0].reason.contains("tp4-pods-missingmissingmi"), "{}", refusals[0].reason);
        assert!(refusals[1].reason.contains("TP-GI-missingmissingmi"), "{}", refusals[1].reason);
        assert!(kernel.observe().unwrap().is_empty());
    });
}

#[test]
fn chain_in_use_keeps_its_rules_when_new_ones_are_refused() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        apply_all(&mut kernel, &every_kind());
        let save =
            format!("{} -t filter | grep -v '^#' | sed 's/\\[.*//'", tool(variant, Family::V4, "-save"));
        let before = sh(&save);
        let bad: Chain = [Rule::new([in_set("tp4-pods-missingmissingmi", Field::Source)], Target::Return)]
            .into_iter()
            .collect();
        let batch = ChainBatch { write: vec![(chain("TOWPATH-INGRESS"), bad)], ..ChainBatch::default() };
        assert!(matches!(kernel.apply(&Step::Chains(Family::V4, batch)), Err(ApplyError::Refused(_))));
        assert_eq!(sh(&save), before);
    });
}

#[test]
fn refused_entries_and_sets_do_not_affect_others() {
    in_namespace(|| {
        let mut kernel = kernel(Variant::Nft);
        sh("ipset create tp4-pods-takentakentakent bitmap:ip range 10.0.0.0/24");
        let address = |text: &str| Member::Address(text.parse().unwrap());
        let (good, mixed, taken) = (
            set("tp4-pods-goodgoodgoodgood"),
            set("tp4-pods-mixedmixedmixedm"),
            set("tp4-pods-takentakentakent"),
        );
        let edits = vec![
            SetEdit::Create(mixed.clone(), SetKind::Addresses),
            SetEdit::Add(mixed.clone(), address("10.0.0.1")),
            // An address of the other family, and one that the kernel reserves.
            SetEdit::Add(mixed.clone(), address("fd00::1")),
            SetEdit::Add(mixed.clone(), address("0.0.0.0")),
            SetEdit::Add(mixed.clone(), address("10.0.0.2")),
            SetEdit::Create(taken.clone(), SetKind::Addresses),
            SetEdit::Add(taken.clone(), address("10.0.0.9")),
            SetEdit::Create(good.clone(), SetKind::Addresses),
            SetEdit::Add(good.clone(), address("10.0.0.3")),
        ];
        let error = kernel.apply(&Step::Sets(edits)).unwrap_err();
        let ApplyError::Refused(refusals) = error else { panic!("{error}") };
        let objects: Vec<Object> = refusals.iter().map(|refusal| refusal.object.clone()).collect();
        assert_eq!(objects, [Object::Set(mixed.clone()), Object::Set(taken)]);
        assert!(refusals[0].reason.contains("fd00::1"), "{}", refusals[0].reason);
        assert!(refusals[0].reason.contains("0.0.0.0"), "{}", refusals[0].reason);
        let sets = kernel.observe().unwrap().v4.sets;
        assert_eq!(
            sets[&mixed].members.iter().copied().collect::<Vec<_>>(),
            [address("10.0.0.1"), address("10.0.0.2")]
        );
        assert_eq!(sets[&good].members.iter().copied().collect::<Vec<_>>(), [address("10.0.0.3")]);
        assert_eq!(sets.len(), 2);
    });
}

#[test]
fn hundred_thousand_members_are_added_in_one_step() {
    in_namespace(|| {
        let mut kernel = kernel(Variant::Nft);
        let name = set("tp4-pods-manymanymanymany");
        let member = |n: u32| Member::Address(std::net::Ipv4Addr::from(0x0a00_0001 + n).into());
        let create = SetEdit::Create(name.clone(), SetKind::Addresses);
        let adds = (0..100_000).map(|n| SetEdit::Add(name.clone(), member(n)));
        let edits: Vec<SetEdit> = std::iter::once(create).chain(adds).collect();
        kernel.apply(&Step::Sets(edits)).unwrap();
        assert_eq!(kernel.observe().unwrap().v4.sets[&name].members.len(), 100_000);
    });
}

#[test]
fn held_xtables_lock_delays_a_write_without_failing_it() {
    in_namespace(|| {
        let mut kernel = kernel(Variant::Legacy);
        let file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open("/run/xtables.lock")
            .unwrap();
        file.lock().unwrap();
        let holder = thread::spawn(move || {
            thread::sleep(Duration::from_millis(2500));
            drop(file);
        });
        let since = Instant::now();
        let batch = ChainBatch {
            write: vec![(chain("TOWPATH-FORWARD"), [].into_iter().collect())],
            ..ChainBatch::default()
        };
        kernel.apply(&Step::Chains(Family::V4, batch)).unwrap();
        assert!(since.elapsed() >= Duration::from_secs(2), "{:?}", since.elapsed());
        holder.join().unwrap();
        assert_eq!(kernel.observe().unwrap().v4.chains.len(), 1);
    });
}

#[test]
fn bridge_netfilter_switches_of_the_namespace_are_set() {
    in_namespace(|| {
        let (bridge, commands) = (Bridge::default(), Commands::default());
        bridge.ensure(&commands).unwrap();
        sh("echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables");
        assert_eq!(bridge.check(), ["net.bridge.bridge-nf-call-iptables is 0 instead of 1"]);
        assert_eq!(bridge.ensure(&commands).unwrap(), ["set net.bridge.bridge-nf-call-iptables to 1"]);
        assert!(bridge.check().is_empty());
    });
}

#[test]
fn goto_a_chain_of_the_same_batch_is_no_fault() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        let goes = |to: &str| -> Chain { [Rule::new([], Target::Goto(chain(to)))].into_iter().collect() };
        let returns = || -> Chain { [Rule::new([], Target::Return)].into_iter().collect() };
        let named = |letter: &str| format!("TP-GI-{}", letter.repeat(16));
        let (old, kept, new) = (named("a"), named("b"), named("c"));
        let there = [old.as_str(), kept.as_str()].map(|name| (chain(name), returns()));
        let batch = ChainBatch { write: there.to_vec(), ..ChainBatch::default() };
        kernel.apply(&Step::Chains(Family::V4, batch)).unwrap();
        let missing: Chain =
            [Rule::new([in_set("tp4-pods-missingmissingmi", Field::Source)], Target::Return)]
                .into_iter()
                .collect();
        let write = vec![
            (chain(&new), returns()),
            (chain(&named("d")), goes(&new)),
            (chain(&named("e")), goes(&kept)),
            (chain(&named("f")), goes(&old)),
            (chain(&named("g")), goes(&named("h"))),
            (chain(&named("i")), missing),
        ];
        let batch = ChainBatch { write, remove: vec![chain(&old)], ..ChainBatch::default() };
        let refused = match kernel.apply(&Step::Chains(Family::V4, batch)) {
            Err(ApplyError::Refused(refusals)) => refusals,
            other => panic!("{other:?}"),
        };
        let mut refused: Vec<Object> = refused.into_iter().map(|refusal| refusal.object).collect();
        refused.sort();
        let wanted = ["f", "g", "i"].map(|letter| Object::Chain(Family::V4, chain(&named(letter))));
        assert_eq!(refused, wanted);
    });
}

#[test]
fn whether_the_kernel_takes_a_rule_is_tried_without_a_trace() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        assert!(kernel.takes(&Rule::new([], Target::Drop)).unwrap());
        let needs_set = Rule::new([in_set("tp4-pods-missingmissingmi", Field::Source)], Target::Return);
        assert!(!kernel.takes(&needs_set).unwrap());
        assert!(kernel.observe().unwrap().is_empty());
    });
}
