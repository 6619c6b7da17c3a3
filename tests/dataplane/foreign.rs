//! State of other programs is not changed, and their changes of our state are detected.

use std::{sync::Arc, time::Duration};

use towpath::{
    dataplane::{
        ApplyError, CheckDepth, Dataplane, Drift,
        command::Commands,
        kernel::{
            Backend, Kernel, Variant,
            cleanup::{Removed, cleanup},
            survey::survey,
        },
    },
    model::Family,
    ruleset::{
        Chain, ChainName, Match, Member, Object, Rule, Ruleset, Target,
        observed::Observed,
        plan::{ChainBatch, SetEdit, Step},
    },
};

use crate::fixtures::{
    apply_all, chain, every_kind, for_both_variants, in_namespace, kernel, names_only, set, sh, sh_with, tool,
};

#[test]
fn set_in_use_is_reported_and_unused_sets_are_destroyed() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        sh(
            "ipset create tp4-pods-usedusedusedused hash:ip && ipset create tp4-pods-unusedunusedunus hash:ip && ipset create tp4-pods-heldheldheldheld hash:ip",
        );
        let main = tool(variant, Family::V4, "");
        sh(&format!(
            "{main} -A OUTPUT -m set --match-set tp4-pods-usedusedusedused dst && {main} -A OUTPUT -m set --match-set tp4-pods-heldheldheldheld dst"
        ));
        // In the nft variant the kernel releases the set a moment after the rule.
        sh(&format!("{main} -D OUTPUT -m set --match-set tp4-pods-heldheldheldheld dst"));
        let edits = ["tp4-pods-usedusedusedused", "tp4-pods-unusedunusedunus", "tp4-pods-heldheldheldheld"]
            .map(|name| SetEdit::Destroy(set(name)))
            .to_vec();
        let error = kernel.apply(&Step::Gc(edits)).unwrap_err();
        let ApplyError::Refused(refusals) = error else { panic!("{error}") };
        let objects: Vec<Object> = refusals.into_iter().map(|refusal| refusal.object).collect();
        assert_eq!(objects, [Object::Set(set("tp4-pods-usedusedusedused"))]);
        assert_eq!(sh("ipset list -n"), "tp4-pods-usedusedusedused\n");
    });
}

#[test]
fn chain_used_by_a_foreign_rule_is_emptied_and_the_others_are_removed() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        apply_all(&mut kernel, &every_kind());
        let main = tool(variant, Family::V4, "");
        sh(&format!("{main} -A OUTPUT -p udp -j TOWPATH-INGRESS"));
        apply_all(&mut kernel, &Ruleset::default());
        let left = kernel.observe().unwrap();
        assert_eq!(left.v4.chains.keys().map(ChainName::as_str).collect::<Vec<_>>(), ["TOWPATH-INGRESS"]);
        assert!(left.v4.hooks.is_empty() && left.v4.sets.is_empty());
        assert_eq!(sh(&format!("{main} -S TOWPATH-INGRESS")), "-N TOWPATH-INGRESS\n");
    });
}

/// Other programs' chains, hooks, rules and sets in the kernel, some with names that resemble ours.
fn populate(variant: Variant) {
    for family in Family::BOTH {
        let (network, set_family) = match family {
            Family::V4 => ("10.9.0.0/16", "inet"),
            Family::V6 => ("fd09::/16", "inet6"),
        };
        let foreign = format!("foreign{}", set_family.len());
        sh(&format!("ipset create {foreign} hash:net family {set_family} && ipset add {foreign} {network}"));
        // Names like ours.
        let number = if family == Family::V4 { 4 } else { 6 };
        sh(&format!(
            "for name in mine pods-x nodes-old; do ipset create tp$0-$name hash:ip family {set_family}; done"
        )
        .replace("$0", &number.to_string()));
        sh_with(
            &format!("{} --noflush", tool(variant, family, "-restore")),
            &format!(
                "*filter\n:FORWARD DROP [0:0]\n:KUBE-FORWARD - [0:0]\n:MY-TOWPATH-X - [0:0]\n:TPX - [0:0]\n\
                 :TP-LINK - [0:0]\n:Towpath-mine - [0:0]\n:TP-GI-x - [0:0]\n\
                 -A FORWARD -j TP-LINK\n-A INPUT -j Towpath-mine\n-A TP-LINK -s {network} -j DROP\n\
                 -A Towpath-mine -d {network} -j TP-GI-x\n-A TP-GI-x -p tcp -j RETURN\n\
                 -A FORWARD -m comment --comment \"a \\\"quoted\\\" word\" -j KUBE-FORWARD\n\
                 -A FORWARD -s {network} -j MY-TOWPATH-X\n\
                 -A KUBE-FORWARD -m set --match-set {foreign} src -j ACCEPT\n\
                 -A TPX -m comment --comment \"-j TOWPATH-FORWARD\" -j DROP\n\
                 -A INPUT -p tcp -m tcp --dport 22 -j TPX\n\
                 COMMIT\n*nat\n:TOWPATH-NAT - [0:0]\n-A POSTROUTING -s {network} -j MASQUERADE\nCOMMIT\n"
            ),
        );
    }
}

/// All tables and sets as text, without counters.
fn all_state() -> String {
    let mut text = sh("ipset save | sort");
    for variant in Variant::BOTH {
        for family in Family::BOTH {
            let save = tool(variant, family, "-save");
            text += &sh(&format!("{save} | grep -v '^#' | sed 's/ \\[[0-9]*:[0-9]*\\]$//'"));
        }
    }
    text
}

#[test]
fn cleanup_leaves_the_state_of_other_programs_unchanged() {
    for_both_variants(|variant| {
        populate(variant);
        let before = all_state();
        apply_all(&mut kernel(variant), &every_kind());
        // A second hook, as after a restore of saved rules.
        sh(&format!("{} -A FORWARD -j TOWPATH-FORWARD", tool(variant, Family::V4, "")));
        assert_ne!(all_state(), before);
        let commands = Commands::default();
        let removed = cleanup(&commands).unwrap();
        assert_eq!(removed, Removed { hooks: 5, chains: 8, sets: 16, tables: 0, left: vec![] });
        assert_eq!(all_state(), before);
        assert_eq!(cleanup(&commands).unwrap(), Removed::default());
    });
}

#[test]
fn state_of_a_previous_version_is_removed() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        let main = tool(variant, Family::V4, "");
        let leave = || {
            sh(&format!(
                "ipset create tp4-ingress-isolated hash:ip && ipset create tp6-nets-aaaabbbbccccdddd hash:net family inet6 && \
                 {main} -N TOWPATH-MIDSTREAM && {main} -N TP-GE-aaaabbbbccccdddd && \
                 {main} -A TOWPATH-MIDSTREAM -m set --match-set tp4-ingress-isolated dst -j TP-GE-aaaabbbbccccdddd && \
                 {main} -I FORWARD 1 -j TOWPATH-MIDSTREAM"
            ));
        };
        leave();
        apply_all(&mut kernel, &every_kind());
        assert_eq!(kernel.observe().unwrap(), names_only(&every_kind()), "the next version replaces it");
        apply_all(&mut kernel, &Ruleset::default());
        leave();
        let removed = cleanup(&Commands::default()).unwrap();
        assert_eq!(removed, Removed { hooks: 1, chains: 2, sets: 2, tables: 0, left: vec![] });
    });
}

/// What a version might leave that this one does not know: other hooks, kinds of chains, roles and types of sets.
fn leave_another_version(variant: Variant) {
    for (family, number, set_family) in [(Family::V4, 4, "inet"), (Family::V6, 6, "inet6")] {
        sh(&format!(
            "ipset create tp{number}-newthing-aaaabbbbccccdddd hash:net,iface family {set_family}; \
             ipset create tp{number}-drops hash:ip family {set_family} comment; \
             ipset create tp{number}-local-pods hash:net family {set_family}; \
             ipset create tp{number}-pods-xxxxxxxxxxxxxxxx hash:net family {set_family}; \
             ipset create tp{number}-all-pods hash:ip family {set_family} timeout 60"
        ));
        sh_with(
            &format!("{} --noflush", tool(variant, family, "-restore")),
            &format!(
                "*filter\n:TOWPATH-F - [0:0]\n:TOWPATH-OUT7 - [0:0]\n:TP-XYZ-aaaabbbbccccdddd - [0:0]\n\
                 -A TOWPATH-F -m set --match-set tp{number}-local-pods src -g TP-XYZ-aaaabbbbccccdddd\n\
                 -A TOWPATH-F -m set --match-set tp{number}-newthing-aaaabbbbccccdddd src,src -j DROP\n\
                 -A TP-XYZ-aaaabbbbccccdddd -m set ! --match-set tp{number}-all-pods dst -j DROP\n\
                 -I FORWARD 1 -j TOWPATH-F\n-I OUTPUT 1 -j TOWPATH-OUT7\nCOMMIT\n"
            ),
        );
    }
}

#[test]
fn whatever_another_version_left_is_replaced_and_removed() {
    for_both_variants(|variant| {
        populate(variant);
        let foreign = all_state();
        leave_another_version(variant);
        let mut kernel = kernel(variant);
        let write = |kernel: &mut Kernel| {
            let wanted = every_kind().beside(&kernel.observe().unwrap());
            for set in [set("tp4-drops"), set("tp4-pods-xxxxxxxxxxxxxxxx")] {
                assert!(!wanted.v4.sets.contains_key(&set), "{set}: the other one is still in use");
            }
            apply_all(kernel, &wanted);
            assert_eq!(kernel.observe().unwrap(), names_only(&wanted));
            wanted
        };
        let wanted = write(&mut kernel);
        assert_eq!(every_kind().beside(&kernel.observe().unwrap()), every_kind(), "the names are free again");
        assert_eq!(kernel.check(&Observed::holding(&wanted), CheckDepth::Members).unwrap(), Drift::default());
        apply_all(&mut kernel, &every_kind());
        assert_eq!(kernel.observe().unwrap(), names_only(&every_kind()));
        cleanup(&Commands::default()).unwrap();
        assert_eq!(all_state(), foreign);

        leave_another_version(variant);
        let removed = cleanup(&Commands::default()).unwrap();
        assert_eq!(removed, Removed { hooks: 4, chains: 6, sets: 10, tables: 0, left: vec![] });
        assert_eq!(all_state(), foreign);
    });
}

#[test]
fn cleanup_reports_what_it_could_not_remove() {
    for_both_variants(|variant| {
        apply_all(&mut kernel(variant), &every_kind());
        let main = tool(variant, Family::V4, "");
        sh(&format!(
            "{main} -A OUTPUT -m set --match-set tp4-drops src -j DROP && {main} -A OUTPUT -p udp -j TOWPATH-INPUT"
        ));
        let removed = cleanup(&Commands::default()).unwrap();
        assert_eq!((removed.hooks, removed.chains, removed.sets), (4, 7, 15));
        assert_eq!(removed.left.len(), 2, "{:?}", removed.left);
        assert!(removed.left[0].contains("TOWPATH-INPUT"), "{:?}", removed.left);
        assert!(removed.left[1].contains("tp4-drops"), "{:?}", removed.left);
    });
}

#[test]
fn rules_left_in_the_other_variant_are_removed() {
    for_both_variants(|variant| {
        populate(variant.other());
        let foreign = all_state();
        apply_all(&mut kernel(variant.other()), &every_kind());
        let mut kernel = kernel(variant);
        apply_all(&mut kernel, &every_kind());
        let removed = kernel.remove_other_variant();
        assert_eq!(removed, Removed { hooks: 4, chains: 8, sets: 0, tables: 0, left: vec![] });
        assert_eq!(
            kernel.check(&Observed::holding(&every_kind()), CheckDepth::Members).unwrap(),
            Drift::default()
        );
        assert_eq!(kernel.remove_other_variant(), Removed::default());
        cleanup(&Commands::default()).unwrap();
        let left: Vec<String> = all_state().lines().map(str::to_owned).collect();
        let lost: Vec<&str> =
            foreign.lines().filter(|line| !left.iter().any(|there| there == line)).collect();
        assert!(lost.is_empty(), "{lost:?}");
    });
}

#[test]
fn rules_in_the_other_variant_are_removed_once_everything_is_written() {
    for_both_variants(|variant| {
        let mut other = kernel(variant.other());
        apply_all(&mut other, &every_kind());
        let mut kernel = kernel(variant);
        apply_all(&mut kernel, &every_kind());
        kernel.settled();
        let chains = other.observe().unwrap();
        assert!(Family::BOTH.iter().all(|family| chains.table(*family).chains.is_empty()));
    });
}

#[test]
fn survey_shows_the_rules_in_use_and_creates_no_tables() {
    in_namespace(|| {
        let rules = |variant: Variant| {
            let name = format!("iptables-{variant}-filter.txt");
            let sheets = survey(&Commands::default());
            sheets.into_iter().find(|sheet| sheet.name == name).unwrap().found.unwrap()
        };
        apply_all(&mut kernel(Variant::Nft), &every_kind());
        assert!(rules(Variant::Nft).contains("-A TOWPATH-FORWARD"));
        assert_eq!(rules(Variant::Legacy), "this table is not in use\n");
        apply_all(&mut kernel(Variant::Legacy), &every_kind());
        assert!(rules(Variant::Legacy).contains("-A TOWPATH-FORWARD"));
    });
}

#[test]
fn cleanup_removes_chains_without_a_jump() {
    for_both_variants(|variant| {
        sh(&format!("{} -N TOWPATH-FORWARD", tool(variant, Family::V4, "")));
        let removed = cleanup(&Commands::default()).unwrap();
        assert_eq!(removed, Removed { chains: 1, ..Removed::default() });
    });
}

#[test]
fn check_finds_foreign_changes_of_rules_and_set_sizes() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        apply_all(&mut kernel, &every_kind());
        let expected = Observed::holding(&every_kind());
        let main = tool(variant, Family::V4, "");
        assert!(kernel.quick_check(&expected).unwrap().findings.is_empty());
        sh(&format!("{main} -I FORWARD 1 -j ACCEPT"));
        let finding = "the IPv4 chain FORWARD has a foreign rule in front of the jump to TOWPATH-FORWARD";
        assert_eq!(kernel.check(&expected, CheckDepth::Counts).unwrap().findings, [finding]);
        assert_eq!(kernel.quick_check(&expected).unwrap().findings.len(), 1);
        sh(&format!(
            "{main} -D FORWARD 1 && {main} -D TOWPATH-INGRESS 1 && ipset flush tp6-pods-xxxxxxxxxxxxxxxx && ipset add tp4-nets-xxxxxxxxxxxxxxxx 10.9.9.9"
        ));
        let findings = kernel.check(&expected, CheckDepth::Counts).unwrap().findings;
        let expected_findings = [
            "the IPv4 chain TOWPATH-INGRESS has 1 rules instead of 2",
            "the set tp4-nets-xxxxxxxxxxxxxxxx has 3 members instead of 2",
            "the set tp6-pods-xxxxxxxxxxxxxxxx has 0 members instead of 1",
        ];
        assert_eq!(findings, expected_findings);
        sh(&format!("{main} -F"));
        assert_eq!(kernel.quick_check(&expected).unwrap().findings.len(), 1);
        assert!(kernel.check(&expected, CheckDepth::Counts).unwrap().findings.len() > 4);
        apply_all(&mut kernel, &every_kind());
        assert_eq!(kernel.check(&expected, CheckDepth::Counts).unwrap(), Drift::default());
    });
}

#[test]
fn check_finds_a_replaced_rule_and_writes_nothing() {
    for_both_variants(|variant| {
        populate(variant);
        let commands = Arc::new(Commands::default());
        let mut kernel = Kernel::new(commands.clone(), Backend::Only(variant)).unwrap();
        apply_all(&mut kernel, &every_kind());
        let expected = Observed::holding(&every_kind());
        let whole = all_state();
        let mut check = || {
            let before = commands.started();
            let findings = kernel.check(&expected, CheckDepth::Counts).unwrap().findings;
            (findings, commands.started() - before)
        };
        let (findings, first) = check();
        assert!(findings.is_empty(), "{findings:?}");
        let (findings, then) = check();
        assert!(findings.is_empty(), "{findings:?}");
        println!("{variant}: the first check ran {first} commands, the next {then}");
        assert_eq!(then, 3, "one command for each table and one for the sets");
        assert_eq!(all_state(), whole, "a check changes nothing");

        let main = tool(variant, Family::V4, "");
        for (rule, instead) in [
            ("-R TP-GI-aaaaaaaaaaaaaaaa 2 -j ACCEPT", "\"-j ACCEPT\" instead of \"-p udp -m multiport"),
            (
                "-R TP-GI-aaaaaaaaaaaaaaaa 1 -p tcp --dport 81 -m set --match-set tp4-pods-xxxxxxxxxxxxxxxx src -j RETURN",
                "81",
            ),
        ] {
            sh(&format!("{main} {rule}"));
            let (findings, _) = check();
            assert_eq!(findings.len(), 1, "{findings:?}");
            assert!(findings[0].contains("IPv4 chain TP-GI-aaaaaaaaaaaaaaaa is"), "{findings:?}");
            assert!(findings[0].contains(instead), "{findings:?}");
            let (again, _) = check();
            assert_eq!(again, findings, "a second check finds it again");
            apply_all(&mut self::kernel(variant), &every_kind());
            assert_eq!(all_state(), whole);
        }
    });
}

#[test]
fn exchanged_member_is_found_by_the_check_of_members() {
    for_both_variants(|variant| {
        populate(variant);
        let mut kernel = kernel(variant);
        apply_all(&mut kernel, &every_kind());
        let expected = Observed::holding(&every_kind());
        let whole = all_state();
        assert_eq!(kernel.check(&expected, CheckDepth::Members).unwrap(), Drift::default());
        let member = expected.v4.sets[&set("tp4-pods-xxxxxxxxxxxxxxxx")].members.iter().next().unwrap();
        let Member::Address(address) = member else { panic!("{member:?}") };
        sh(&format!(
            "ipset del tp4-pods-xxxxxxxxxxxxxxxx {address} && ipset add tp4-pods-xxxxxxxxxxxxxxxx 10.99.99.99"
        ));
        assert_eq!(
            kernel.check(&expected, CheckDepth::Counts).unwrap(),
            Drift::default(),
            "the number of members is right"
        );
        let findings = kernel.check(&expected, CheckDepth::Members).unwrap().findings;
        assert_eq!(findings, ["the set tp4-pods-xxxxxxxxxxxxxxxx lacks 1 members and has 1 others"]);
        apply_all(&mut kernel, &every_kind());
        assert_eq!(kernel.check(&expected, CheckDepth::Members).unwrap(), Drift::default());
        assert_eq!(all_state(), whole);
    });
}

#[test]
fn foreign_changes_are_announced_and_our_own_are_not() {
    in_namespace(|| {
        let mut kernel = kernel(Variant::Nft);
        let (sender, changes) = std::sync::mpsc::channel();
        let watch = kernel.watch(move || sender.send(()).unwrap()).unwrap();
        let quiet = || changes.recv_timeout(Duration::from_millis(200)).is_err();
        let announced = || changes.recv_timeout(Duration::from_secs(5)).is_ok();
        apply_all(&mut kernel, &every_kind());
        apply_all(&mut kernel, &every_kind());
        assert!(quiet(), "our own changes");
        sh("iptables-nft -t nat -N OTHER && iptables-nft -N KUBE-X && iptables-nft -A OUTPUT -j KUBE-X");
        assert!(quiet(), "changes that do not affect our rules");
        sh("iptables-nft -I FORWARD 1 -j ACCEPT");
        assert!(announced() && quiet(), "a rule in front of our hook");
        sh("ip6tables-nft -D TOWPATH-INGRESS 1");
        assert!(announced() && quiet(), "a deleted rule of ours");
        sh("nft flush ruleset");
        assert!(announced(), "everything is deleted");
        drop(watch);
    });
}

#[test]
fn own_changes_are_recognised_after_a_netlink_overrun() {
    in_namespace(|| {
        let mut kernel = kernel(Variant::Nft);
        let (sender, changes) = std::sync::mpsc::channel();
        let _watch = kernel.watch(move || sender.send(()).unwrap()).unwrap();
        let rules = |count: u32| -> Chain {
            (0..count).map(|n| Rule::new([Match::Comment(n.to_string().into())], Target::Return)).collect()
        };
        let batch = ChainBatch {
            write: vec![(chain("TP-GI-longlonglonglong"), rules(20_000))],
            ..ChainBatch::default()
        };
        kernel.apply(&Step::Chains(Family::V4, batch)).unwrap();
        assert!(changes.recv_timeout(Duration::from_millis(500)).is_err());
        sh("iptables-nft -F TP-GI-longlonglonglong");
        assert!(changes.recv_timeout(Duration::from_secs(5)).is_ok());
    });
}

#[test]
fn foreign_changes_with_legacy_are_detected_by_the_xtables_lock() {
    in_namespace(|| {
        let mut kernel = kernel(Variant::Legacy);
        let (sender, changes) = std::sync::mpsc::channel();
        let _watch = kernel.watch(move || sender.send(()).unwrap()).unwrap();
        apply_all(&mut kernel, &every_kind());
        let expected = Observed::holding(&every_kind());
        for _ in 0..20 {
            assert!(kernel.quick_check(&expected).unwrap().findings.is_empty());
        }
        assert!(changes.recv_timeout(Duration::from_millis(300)).is_err(), "our own changes and checks");
        for _ in 0..3 {
            sh("iptables-legacy -F");
            assert!(changes.recv_timeout(Duration::from_secs(5)).is_ok());
            assert_eq!(kernel.quick_check(&expected).unwrap().findings.len(), 1);
            apply_all(&mut kernel, &every_kind());
            assert!(changes.recv_timeout(Duration::from_millis(300)).is_err());
        }
    });
}
