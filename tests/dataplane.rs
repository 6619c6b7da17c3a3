//! The kernel dataplane against a real kernel, in network namespaces of the tests' own. Needs root.

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::{self, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use towpath::{
    dataplane::{
        ApplyError, Dataplane, Drift,
        command::Commands,
        kernel::{
            Backend, Kernel, Variant,
            cleanup::{Removed, cleanup},
            sysctl::Bridge,
        },
    },
    model::{Family, PortRange, Protocol},
    ruleset::{
        BuiltIn, Chain, ChainName, Field, IpSet, Match, Member, Object, Rule, Ruleset, SetKind, SetName,
        Table, Target,
        observed::{Content, Observed},
        plan::{ChainBatch, SetEdit, Step, plan},
    },
};

/// Runs `test` on a thread that has a network namespace of its own; its child processes run there too.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI runs the kernel tests as root");
        println!("skipped: needs root");
        return;
    }
    let run = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        test();
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `test` for both variants, each in a namespace of its own.
fn for_both_variants(test: impl Fn(Variant) + Send + Clone + 'static) {
    for variant in Variant::BOTH {
        let test = test.clone();
        in_namespace(move || test(variant));
    }
}

/// The program of one variant: `tool(Legacy, V6, "-save")` is `ip6tables-legacy-save`.
fn tool(variant: Variant, family: Family, suffix: &str) -> String {
    let program = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    format!("{program}-{variant}{suffix}")
}

fn kernel(variant: Variant) -> Kernel {
    Kernel::new(Arc::new(Commands::default()), Backend::Only(variant)).unwrap()
}

/// Runs a command of the shell in this thread's namespace.
fn sh(command: &str) -> String {
    sh_with(command, "")
}

fn sh_with(command: &str, input: &str) -> String {
    let mut child = process::Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command}: {:?}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn chain(name: &str) -> ChainName {
    ChainName::new(name).unwrap()
}

fn set(name: &str) -> SetName {
    SetName::new(name).unwrap()
}

fn in_set(name: &str, field: Field) -> Match {
    Match::Set { set: set(name), field }
}

/// A ruleset with every kind of match, target, set and member, in both families.
fn everything() -> Ruleset {
    Ruleset {
        v4: every_table("tp4-", "10.0.0.0/8", "192.0.2.7/32"),
        v6: every_table("tp6-", "fd00::/8", "2001:db8::7/128"),
    }
}

fn every_table(prefix: &str, network: &str, single: &str) -> Table {
    let named = |name: &str| format!("{prefix}{name}");
    let network: ipnet::IpNet = network.parse().unwrap();
    let single: ipnet::IpNet = single.parse().unwrap();
    let is_v6 = prefix == "tp6-";
    let ports = |ranges: &[(u16, u16)]| {
        ranges.iter().map(|(a, b)| PortRange::new(*a, *b).unwrap()).collect::<Vec<_>>()
    };
    let mut group = vec![
        Rule::new(
            [Match::Ports(Protocol::Tcp, ports(&[(80, 80)])), in_set(&named("pods-x"), Field::Source)],
            Target::Return,
        ),
        Rule::new([Match::Ports(Protocol::Udp, ports(&[(53, 53), (1000, 2000)]))], Target::Return),
        Rule::new([Match::Ports(Protocol::Sctp, ports(&[(9, 10)]))], Target::Return),
        Rule::new(
            [Match::Ports(
                Protocol::Sctp,
                ports(&[(1, 2), (4, 5), (7, 8), (10, 11), (13, 14), (16, 17), (19, 20), (22, 22)]),
            )],
            Target::Return,
        ),
        Rule::new([in_set(&named("named-x"), Field::DestinationEndpoint)], Target::Return),
        Rule::new([Match::Protocol(6), in_set(&named("ports-x"), Field::DestinationPort)], Target::Return),
        Rule::new([in_set(&named("nets-x"), Field::Destination)], Target::Return),
        Rule::new([Match::Protocol(47), Match::Source(network), Match::Destination(single)], Target::Return),
        Rule::new([Match::Protocol(4)], Target::Drop),
        Rule::new(
            [Match::Limit { per_second: 10 }, Match::Comment("a \"b\" \\ 'c' $d `e` é; -j x".into())],
            Target::Log { group: 7, prefix: "towpath: ingress x".into() },
        ),
        Rule::new([in_set(&named("drops"), Field::Source), Match::Protocol(6)], Target::Reject),
        Rule::new([], Target::Reject),
        Rule::new([], Target::Drop),
    ];
    if is_v6 {
        group.insert(0, Rule::new([Match::Icmpv6Type(135)], Target::Return));
    }
    let forward = vec![
        Rule::new([Match::Established], Target::Return),
        Rule::new(
            [in_set(&named("ingress-isolated"), Field::Destination)],
            Target::Jump(chain("TOWPATH-INGRESS")),
        ),
    ];
    let ingress = vec![
        Rule::new([Match::Destination(single)], Target::Goto(chain("TP-GI-aaaaaaaaaaaaaaaa"))),
        Rule::new([], Target::Drop),
    ];
    let of = |kind, members: Vec<Member>| IpSet { kind, members: members.into_iter().collect() };
    let address = single.addr();
    Table {
        chains: [
            ("TOWPATH-FORWARD", forward),
            ("TOWPATH-INPUT", vec![Rule::new([Match::Established], Target::Return)]),
            ("TOWPATH-INGRESS", ingress),
            ("TP-GI-aaaaaaaaaaaaaaaa", group),
        ]
        .into_iter()
        .map(|(name, rules)| (chain(name), rules.into_iter().collect()))
        .collect(),
        sets: [
            ("pods-x", of(SetKind::Addresses, vec![Member::Address(address)])),
            ("ingress-isolated", of(SetKind::Addresses, vec![Member::Address(address)])),
            ("drops", of(SetKind::CountedAddresses, vec![Member::Address(address)])),
            ("nets-x", of(SetKind::Networks, vec![Member::Network(network), Member::Network(single)])),
            (
                "named-x",
                of(
                    SetKind::Endpoints,
                    Protocol::ALL.map(|protocol| Member::Endpoint(address, protocol, 8080)).to_vec(),
                ),
            ),
            ("ports-x", of(SetKind::Ports, (1..100).chain([65535]).map(Member::Port).collect())),
        ]
        .into_iter()
        .map(|(name, of)| (set(&named(name)), of))
        .collect(),
        hooks: [(BuiltIn::Forward, chain("TOWPATH-FORWARD")), (BuiltIn::Input, chain("TOWPATH-INPUT"))]
            .into(),
    }
}

/// What `ruleset` looks like to one who reads names and headers.
fn seen(ruleset: &Ruleset) -> Observed {
    let mut observed = Observed::holding(ruleset);
    for family in Family::BOTH {
        observed.table_mut(family).chains.values_mut().for_each(|content| *content = Content::Unknown);
    }
    observed
}

fn apply_all(kernel: &mut Kernel, desired: &Ruleset) {
    let observed = kernel.observe().unwrap();
    for step in plan(&observed, desired, &[]) {
        kernel.apply(&step).unwrap();
    }
}

#[test]
fn what_was_applied_is_observed_and_checked() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        assert_eq!(kernel.variant(), variant);
        assert!(kernel.observe().unwrap().is_empty());
        let ruleset = everything();
        apply_all(&mut kernel, &ruleset);
        assert_eq!(kernel.observe().unwrap(), seen(&ruleset));
        assert_eq!(kernel.check(&Observed::holding(&ruleset)).unwrap(), Drift::default());
    });
}

#[test]
fn another_ruleset_takes_over_and_an_empty_one_leaves_nothing() {
    for_both_variants(|variant| {
        apply_all(&mut kernel(variant), &everything());
        let mut other = everything();
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
        assert_eq!(successor.observe().unwrap(), seen(&other));
        apply_all(&mut successor, &Ruleset::default());
        assert!(successor.observe().unwrap().is_empty());
    });
}

#[test]
fn refused_chains_are_named_and_nothing_of_their_batch_is_written() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        let drop_all = || -> Chain { [Rule::new([], Target::Drop)].into_iter().collect() };
        let needs_set: Chain =
            [Rule::new([in_set("tp4-missing", Field::Source)], Target::Return)].into_iter().collect();
        let leads_nowhere: Chain =
            [Rule::new([], Target::Goto(chain("TP-GI-missing")))].into_iter().collect();
        let good = ["TP-GI-a", "TP-GI-b", "TP-GI-c", "TP-GI-d"].map(|name| (chain(name), drop_all()));
        let write = good
            .into_iter()
            .chain([(chain("TP-GI-bad"), needs_set), (chain("TP-GI-worse"), leads_nowhere)])
            .collect();
        let batch = ChainBatch { write, ..ChainBatch::default() };
        let error = kernel.apply(&Step::Chains(Family::V4, batch)).unwrap_err();
        let ApplyError::Refused(mut refusals) = error else { panic!("{error}") };
        refusals.sort_by_key(|refusal| refusal.object.clone());
        let objects: Vec<Object> = refusals.iter().map(|refusal| refusal.object.clone()).collect();
        let bad = |name: &str| Object::Chain(Family::V4, chain(name));
        assert_eq!(objects, [bad("TP-GI-bad"), bad("TP-GI-worse")]);
        assert!(refusals[0].reason.contains("tp4-missing"), "{}", refusals[0].reason);
        assert!(refusals[1].reason.contains("TP-GI-missing"), "{}", refusals[1].reason);
        assert!(kernel.observe().unwrap().is_empty());
    });
}

#[test]
fn a_chain_that_is_in_use_keeps_its_rules_when_its_successor_is_refused() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        apply_all(&mut kernel, &everything());
        let save =
            format!("{} -t filter | grep -v '^#' | sed 's/\\[.*//'", tool(variant, Family::V4, "-save"));
        let before = sh(&save);
        let bad: Chain =
            [Rule::new([in_set("tp4-missing", Field::Source)], Target::Return)].into_iter().collect();
        let batch = ChainBatch { write: vec![(chain("TOWPATH-INGRESS"), bad)], ..ChainBatch::default() };
        assert!(matches!(kernel.apply(&Step::Chains(Family::V4, batch)), Err(ApplyError::Refused(_))));
        assert_eq!(sh(&save), before);
    });
}

#[test]
fn one_bad_entry_or_set_costs_the_others_nothing() {
    in_namespace(|| {
        let mut kernel = kernel(Variant::Nft);
        sh("ipset create tp4-taken bitmap:ip range 10.0.0.0/24");
        let address = |text: &str| Member::Address(text.parse().unwrap());
        let (good, mixed, taken) = (set("tp4-pods-good"), set("tp4-pods-mixed"), set("tp4-taken"));
        let edits = vec![
            SetEdit::Create(mixed.clone(), SetKind::Addresses),
            SetEdit::Add(mixed.clone(), address("10.0.0.1")),
            // An address of the other family, and one that the kernel keeps for itself.
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
fn a_hundred_thousand_members_go_in_at_once() {
    in_namespace(|| {
        let mut kernel = kernel(Variant::Nft);
        let name = set("tp4-pods-many");
        let member = |n: u32| Member::Address(std::net::Ipv4Addr::from(0x0a00_0001 + n).into());
        let create = SetEdit::Create(name.clone(), SetKind::Addresses);
        let adds = (0..100_000).map(|n| SetEdit::Add(name.clone(), member(n)));
        let edits: Vec<SetEdit> = std::iter::once(create).chain(adds).collect();
        kernel.apply(&Step::Sets(edits)).unwrap();
        assert_eq!(kernel.observe().unwrap().v4.sets[&name].members.len(), 100_000);
    });
}

#[test]
fn a_set_in_use_is_named_and_the_unused_ones_are_destroyed() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        sh(
            "ipset create tp4-used hash:ip && ipset create tp4-unused hash:ip && ipset create tp4-held hash:ip",
        );
        let main = tool(variant, Family::V4, "");
        sh(&format!(
            "{main} -A OUTPUT -m set --match-set tp4-used dst && {main} -A OUTPUT -m set --match-set tp4-held dst"
        ));
        // In the nft variant the kernel lets go of the set a moment after the rule.
        sh(&format!("{main} -D OUTPUT -m set --match-set tp4-held dst"));
        let edits = ["tp4-used", "tp4-unused", "tp4-held"].map(|name| SetEdit::Destroy(set(name))).to_vec();
        let error = kernel.apply(&Step::Tidy(edits)).unwrap_err();
        let ApplyError::Refused(refusals) = error else { panic!("{error}") };
        let objects: Vec<Object> = refusals.into_iter().map(|refusal| refusal.object).collect();
        assert_eq!(objects, [Object::Set(set("tp4-used"))]);
        assert_eq!(sh("ipset list -n"), "tp4-used\n");
    });
}

#[test]
fn a_chain_that_a_foreign_rule_uses_is_emptied_and_the_rest_of_the_batch_carried_out() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        apply_all(&mut kernel, &everything());
        let main = tool(variant, Family::V4, "");
        sh(&format!("{main} -A OUTPUT -p udp -j TOWPATH-INGRESS"));
        apply_all(&mut kernel, &Ruleset::default());
        let left = kernel.observe().unwrap();
        assert_eq!(left.v4.chains.keys().map(ChainName::as_str).collect::<Vec<_>>(), ["TOWPATH-INGRESS"]);
        assert!(left.v4.hooks.is_empty() && left.v4.sets.is_empty());
        assert_eq!(sh(&format!("{main} -S TOWPATH-INGRESS")), "-N TOWPATH-INGRESS\n");
    });
}

/// What others have in the kernel: chains, hooks, rules and sets, some with names that resemble ours.
fn populate(variant: Variant) {
    for family in Family::BOTH {
        let (network, set_family) = match family {
            Family::V4 => ("10.9.0.0/16", "inet"),
            Family::V6 => ("fd09::/16", "inet6"),
        };
        let foreign = format!("foreign{}", set_family.len());
        sh(&format!("ipset create {foreign} hash:net family {set_family} && ipset add {foreign} {network}"));
        sh_with(
            &format!("{} --noflush", tool(variant, family, "-restore")),
            &format!(
                "*filter\n:FORWARD DROP [0:0]\n:KUBE-FORWARD - [0:0]\n:MY-TOWPATH-X - [0:0]\n:TPX - [0:0]\n\
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
fn everything_there() -> String {
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
fn cleanup_leaves_everything_of_others_as_it_was() {
    for_both_variants(|variant| {
        populate(variant);
        let before = everything_there();
        apply_all(&mut kernel(variant), &everything());
        // A hook twice, as after a clumsy restore of saved rules.
        sh(&format!("{} -A FORWARD -j TOWPATH-FORWARD", tool(variant, Family::V4, "")));
        assert_ne!(everything_there(), before);
        let commands = Commands::default();
        let removed = cleanup(&commands).unwrap();
        assert_eq!(removed, Removed { hooks: 5, chains: 8, sets: 12, left: vec![] });
        assert_eq!(everything_there(), before);
        assert_eq!(cleanup(&commands).unwrap(), Removed::default());
    });
}

#[test]
fn cleanup_says_what_it_had_to_leave() {
    for_both_variants(|variant| {
        apply_all(&mut kernel(variant), &everything());
        let main = tool(variant, Family::V4, "");
        sh(&format!(
            "{main} -A OUTPUT -m set --match-set tp4-drops src -j DROP && {main} -A OUTPUT -p udp -j TOWPATH-INPUT"
        ));
        let removed = cleanup(&Commands::default()).unwrap();
        assert_eq!((removed.hooks, removed.chains, removed.sets), (4, 7, 11));
        assert_eq!(removed.left.len(), 2, "{:?}", removed.left);
        assert!(removed.left[0].contains("TOWPATH-INPUT"), "{:?}", removed.left);
        assert!(removed.left[1].contains("tp4-drops"), "{:?}", removed.left);
    });
}

#[test]
fn what_a_former_run_left_in_the_other_variant_is_removed() {
    for_both_variants(|variant| {
        populate(variant.other());
        let foreign = everything_there();
        apply_all(&mut kernel(variant.other()), &everything());
        let mut kernel = kernel(variant);
        apply_all(&mut kernel, &everything());
        let removed = kernel.remove_other_variant();
        assert_eq!(removed, Removed { hooks: 4, chains: 8, sets: 0, left: vec![] });
        assert_eq!(kernel.check(&Observed::holding(&everything())).unwrap(), Drift::default());
        assert_eq!(kernel.remove_other_variant(), Removed::default());
        cleanup(&Commands::default()).unwrap();
        let left: Vec<String> = everything_there().lines().map(str::to_owned).collect();
        let lost: Vec<&str> =
            foreign.lines().filter(|line| !left.iter().any(|there| there == line)).collect();
        assert!(lost.is_empty(), "{lost:?}");
    });
}

#[test]
fn what_others_did_to_our_rules_is_noticed() {
    for_both_variants(|variant| {
        let mut kernel = kernel(variant);
        apply_all(&mut kernel, &everything());
        let expected = Observed::holding(&everything());
        let main = tool(variant, Family::V4, "");
        assert!(kernel.quick_check(&expected).unwrap().findings.is_empty());
        sh(&format!("{main} -I FORWARD 1 -j ACCEPT"));
        let finding = "the IPv4 chain FORWARD has a foreign rule in front of the jump to TOWPATH-FORWARD";
        assert_eq!(kernel.check(&expected).unwrap().findings, [finding]);
        assert_eq!(kernel.quick_check(&expected).unwrap().findings.len(), 1);
        sh(&format!(
            "{main} -D FORWARD 1 && {main} -D TOWPATH-INGRESS 1 && ipset flush tp6-pods-x && ipset add tp4-nets-x 10.9.9.9"
        ));
        let findings = kernel.check(&expected).unwrap().findings;
        let told = [
            "the IPv4 chain TOWPATH-INGRESS has 1 rules instead of 2",
            "the set tp4-nets-x has 3 members instead of 2",
            "the set tp6-pods-x has 0 members instead of 1",
        ];
        assert_eq!(findings, told);
        sh(&format!("{main} -F"));
        assert_eq!(kernel.quick_check(&expected).unwrap().findings.len(), 2);
        assert!(kernel.check(&expected).unwrap().findings.len() > 4);
        apply_all(&mut kernel, &everything());
        assert_eq!(kernel.check(&expected).unwrap(), Drift::default());
    });
}

#[test]
fn foreign_changes_are_heard_of_and_our_own_are_not() {
    in_namespace(|| {
        let mut kernel = kernel(Variant::Nft);
        let (heard, changes) = std::sync::mpsc::channel();
        let watch = kernel.watch(move || heard.send(()).unwrap()).unwrap();
        let quiet = || changes.recv_timeout(Duration::from_millis(200)).is_err();
        let told = || changes.recv_timeout(Duration::from_secs(5)).is_ok();
        apply_all(&mut kernel, &everything());
        apply_all(&mut kernel, &everything());
        assert!(quiet(), "our own writing");
        sh("iptables-nft -t nat -N OTHER && iptables-nft -N KUBE-X && iptables-nft -A OUTPUT -j KUBE-X");
        assert!(quiet(), "what does not concern us");
        sh("iptables-nft -I FORWARD 1 -j ACCEPT");
        assert!(told() && quiet(), "a rule in front of our hook");
        sh("ip6tables-nft -D TOWPATH-INGRESS 1");
        assert!(told() && quiet(), "a rule of ours that is gone");
        sh("nft flush ruleset");
        assert!(told(), "everything gone");
        drop(watch);
    });
}

#[test]
fn more_announcements_than_the_kernel_keeps_are_still_told_apart() {
    in_namespace(|| {
        let mut kernel = kernel(Variant::Nft);
        let (heard, changes) = std::sync::mpsc::channel();
        let _watch = kernel.watch(move || heard.send(()).unwrap()).unwrap();
        let rules = |count: u32| -> Chain {
            (0..count).map(|n| Rule::new([Match::Comment(n.to_string().into())], Target::Return)).collect()
        };
        let batch = ChainBatch { write: vec![(chain("TP-GI-long"), rules(20_000))], ..ChainBatch::default() };
        kernel.apply(&Step::Chains(Family::V4, batch)).unwrap();
        assert!(changes.recv_timeout(Duration::from_millis(500)).is_err());
        sh("iptables-nft -F TP-GI-long");
        assert!(changes.recv_timeout(Duration::from_secs(5)).is_ok());
    });
}

#[test]
fn a_held_xtables_lock_delays_a_write_but_does_not_fail_it() {
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
        assert!(since.elapsed() >= Duration::from_millis(2000), "{:?}", since.elapsed());
        holder.join().unwrap();
        assert_eq!(kernel.observe().unwrap().v4.chains.len(), 1);
    });
}

/// A folder with links to `programs`, to be the only one that is searched.
fn only(programs: &[&str]) -> (tempfile::TempDir, Arc<Commands>) {
    let folder = tempfile::tempdir().unwrap();
    for program in programs {
        std::os::unix::fs::symlink(format!("/usr/sbin/{program}"), folder.path().join(program)).unwrap();
    }
    let commands = Arc::new(Commands::new(folder.path().into()));
    (folder, commands)
}

#[test]
fn what_is_not_installed_is_named_with_its_package() {
    in_namespace(|| {
        let error = |programs: &[&str], backend| {
            let (_folder, commands) = only(programs);
            Kernel::new(commands, backend).unwrap_err().to_string()
        };
        assert_eq!(error(&[], Backend::Auto), "ipset was not found: install the package ipset");
        assert_eq!(error(&["ipset"], Backend::Auto), "iptables was not found: install the package iptables");
        let nft = ["ipset", "iptables-nft", "iptables-nft-save", "iptables-nft-restore"];
        assert_eq!(
            error(&nft, Backend::Only(Variant::Legacy)),
            "iptables-legacy-restore was not found: install the package iptables"
        );
    });
}

#[test]
fn the_only_installed_variant_is_used_and_without_ip6tables_only_ipv4() {
    in_namespace(|| {
        for variant in Variant::BOTH {
            let programs = ["", "-save", "-restore"].map(|suffix| tool(variant, Family::V4, suffix));
            let programs: Vec<&str> = programs.iter().map(String::as_str).chain(["ipset"]).collect();
            let (_folder, commands) = only(&programs);
            let mut kernel = Kernel::new(commands, Backend::Auto).unwrap();
            assert_eq!(kernel.variant(), variant);
            assert_eq!(kernel.families(), [Family::V4]);
            apply_all(&mut kernel, &everything());
            let found = kernel.observe().unwrap();
            assert_eq!(found.v4, seen(&everything()).v4);
            assert!(found.v6.chains.is_empty());
            apply_all(&mut kernel, &Ruleset::default());
        }
        let (_folder, commands) = only(&["ipset", "iptables", "iptables-save", "iptables-restore"]);
        let is_nft = sh("iptables --version").contains("nf_tables");
        let variant = if is_nft { Variant::Nft } else { Variant::Legacy };
        assert_eq!(Kernel::new(commands, Backend::Auto).unwrap().variant(), variant);
    });
}

#[test]
fn the_variant_is_the_one_that_kubelet_uses_or_else_the_one_with_more_rules() {
    let chosen = || Kernel::new(Arc::new(Commands::default()), Backend::Auto).unwrap().variant();
    for_both_variants(move |variant| {
        let (this, other) = (tool(variant, Family::V4, ""), tool(variant.other(), Family::V4, ""));
        sh(&format!("{this} -A INPUT -j ACCEPT"));
        assert_eq!(chosen(), variant, "one rule against none");
        apply_all(&mut kernel(variant.other()), &everything());
        assert_eq!(chosen(), variant, "rules of ours do not count");
        sh(&format!("{other} -A INPUT -j ACCEPT && {other} -A INPUT -j ACCEPT"));
        assert_eq!(chosen(), variant.other(), "two rules against one");
        sh(&format!("{} -t mangle -N KUBE-KUBELET-CANARY", tool(variant, Family::V6, "")));
        assert_eq!(chosen(), variant, "kubelet's mark");
    });
}

#[test]
fn the_bridge_switches_of_the_namespace_are_set() {
    in_namespace(|| {
        let (bridge, commands) = (Bridge::default(), Commands::default());
        bridge.ensure(&commands).unwrap();
        sh("echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables");
        assert_eq!(bridge.check(), ["net.bridge.bridge-nf-call-iptables is 0 instead of 1"]);
        assert_eq!(bridge.ensure(&commands).unwrap(), ["set net.bridge.bridge-nf-call-iptables to 1"]);
        assert!(bridge.check().is_empty());
    });
}
