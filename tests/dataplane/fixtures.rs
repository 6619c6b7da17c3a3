//! What the tests share: a namespace of their own, commands, and a ruleset with everything in it.

use std::{
    io::Write as _,
    process::{self, Stdio},
    sync::Arc,
};

use nix::sched::CloneFlags;
use towpath::{
    dataplane::{
        Dataplane,
        command::Commands,
        kernel::{Backend, Kernel, Variant},
    },
    model::{Family, PortRange, Protocol},
    ruleset::{
        BuiltIn, ChainName, Field, IpSet, Match, Member, Rule, Ruleset, SetKind, SetName, Table, Target,
        observed::{Content, Observed},
        plan::plan,
    },
};

use crate::{isolated::isolated, root::has_root};

/// Runs `test` on a thread that has its own network namespace and `/run`, and so its own xtables lock; its child
/// processes run there too.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if has_root() {
        isolated(CloneFlags::CLONE_NEWNET, test);
    }
}

/// Runs `test` for both variants, each in its own namespace.
pub(crate) fn for_both_variants(test: impl Fn(Variant) + Send + Clone + 'static) {
    for variant in Variant::BOTH {
        let test = test.clone();
        in_namespace(move || test(variant));
    }
}

/// The program of one variant: `tool(Legacy, V6, "-save")` is `ip6tables-legacy-save`.
pub(crate) fn tool(variant: Variant, family: Family, suffix: &str) -> String {
    let program = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    format!("{program}-{variant}{suffix}")
}

pub(crate) fn kernel(variant: Variant) -> Kernel {
    Kernel::new(Arc::new(Commands::default()), Backend::Only(variant)).unwrap()
}

/// Runs a shell command in this thread's namespace.
pub(crate) fn sh(command: &str) -> String {
    sh_with(command, "")
}

pub(crate) fn sh_with(command: &str, input: &str) -> String {
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

pub(crate) fn chain(name: &str) -> ChainName {
    ChainName::new(name).unwrap()
}

pub(crate) fn set(name: &str) -> SetName {
    SetName::new(name).unwrap()
}

pub(crate) fn in_set(name: &str, field: Field) -> Match {
    Match::Set { set: set(name), field }
}

pub(crate) fn not_in_set(name: &str, field: Field) -> Match {
    Match::NotInSet { set: set(name), field }
}

/// A ruleset with every kind of match, target, set and member, in both families.
pub(crate) fn every_kind() -> Ruleset {
    Ruleset {
        v4: every_table("tp4-", "10.0.0.0/8", "192.0.2.7/32"),
        v6: every_table("tp6-", "fd00::/8", "2001:db8::7/128"),
    }
}

#[expect(clippy::too_many_lines, reason = "a line or two for each kind of match and set")]
pub(crate) fn every_table(prefix: &str, network: &str, single: &str) -> Table {
    let named = |name: &str| format!("{prefix}{name}");
    let network: ipnet::IpNet = network.parse().unwrap();
    let single: ipnet::IpNet = single.parse().unwrap();
    let is_v6 = prefix == "tp6-";
    let ports = |ranges: &[(u16, u16)]| {
        ranges.iter().map(|(a, b)| PortRange::new(*a, *b).unwrap()).collect::<Vec<_>>()
    };
    let mut group = vec![
        Rule::new(
            [
                Match::Ports(Protocol::Tcp, ports(&[(80, 80)])),
                in_set(&named("pods-xxxxxxxxxxxxxxxx"), Field::Source),
            ],
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
        Rule::new([in_set(&named("named-xxxxxxxxxxxxxxxx"), Field::DestinationEndpoint)], Target::Return),
        Rule::new(
            [Match::Protocol(6), in_set(&named("ports-xxxxxxxxxxxxxxxx"), Field::DestinationPort)],
            Target::Return,
        ),
        Rule::new([in_set(&named("nets-xxxxxxxxxxxxxxxx"), Field::Destination)], Target::Return),
        Rule::new([Match::Protocol(47), Match::Source(network), Match::Destination(single)], Target::Return),
        Rule::new([Match::Protocol(4)], Target::Drop),
        Rule::new(
            [Match::Limit { per_second: 10 }, Match::Comment("a \"b\" \\ 'c' $d `e` é; -j x".into())],
            Target::Log { group: 7, prefix: "towpath: ingress x".into() },
        ),
        Rule::new(
            [Match::LimitEach { per_second: 10, field: Field::Source }],
            Target::Log { group: 7, prefix: "towpath from".into() },
        ),
        Rule::new(
            [Match::LimitEach { per_second: 10, field: Field::Destination }],
            Target::Log { group: 7, prefix: "towpath to".into() },
        ),
        Rule::new([in_set(&named("drops"), Field::Source), Match::Protocol(6)], Target::Reject),
        Rule::new([], Target::Reject),
        Rule::new([], Target::Drop),
    ];
    group.splice(7..7, many_excepts_and_ports(prefix, network));
    if is_v6 {
        group.insert(0, Rule::new([Match::Icmpv6Type(135)], Target::Return));
        let on_link = [Match::Icmpv6Type(136), Match::HopLimit(255), Match::LengthAtMost(104)];
        group.insert(0, Rule::new(on_link, Target::Return));
    }
    let forward = vec![
        Rule::new([Match::Established], Target::Return),
        Rule::new([Match::Protocol(1), Match::Related], Target::Return),
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
            ("pods-xxxxxxxxxxxxxxxx", of(SetKind::Addresses, vec![Member::Address(address)])),
            ("ingress-isolated", of(SetKind::Addresses, vec![Member::Address(address)])),
            ("drops", of(SetKind::CountedAddresses, vec![Member::Address(address)])),
            (
                "nets-xxxxxxxxxxxxxxxx",
                of(SetKind::Networks, vec![Member::Network(network), Member::Network(single)]),
            ),
            (
                "named-xxxxxxxxxxxxxxxx",
                of(
                    SetKind::Endpoints,
                    Protocol::ALL.map(|protocol| Member::Endpoint(address, protocol, 8080)).to_vec(),
                ),
            ),
            (
                "except-xxxxxxxxxxxxxxxx",
                of(SetKind::Networks, vec![Member::Network(network), Member::Network(single)]),
            ),
            (
                "netports-xxxxxxxxxxxxxxxx",
                of(
                    SetKind::NetworkEndpoints,
                    Protocol::ALL
                        .into_iter()
                        .flat_map(|p| [(network, p, 1), (single, p, 65_535)])
                        .map(|(network, p, port)| Member::NetworkEndpoint(network, p, port))
                        .collect(),
                ),
            ),
            (
                "ports-xxxxxxxxxxxxxxxx",
                of(SetKind::Ports, (1..100).chain([65535]).map(Member::Port).collect()),
            ),
        ]
        .into_iter()
        .map(|(name, of)| (set(&named(name)), of))
        .collect(),
        hooks: [(BuiltIn::Forward, chain("TOWPATH-FORWARD")), (BuiltIn::Input, chain("TOWPATH-INPUT"))]
            .into(),
    }
}

/// Rules with many excepts and many networks with ports.
fn many_excepts_and_ports(prefix: &str, network: ipnet::IpNet) -> Vec<Rule> {
    let named = |name: &str| format!("{prefix}{name}");
    let excepts = |field| Match::NotInSet { set: set(&named("except-xxxxxxxxxxxxxxxx")), field };
    let http = Match::Ports(Protocol::Tcp, vec![PortRange::single(80)]);
    [
        vec![in_set(&named("netports-xxxxxxxxxxxxxxxx"), Field::DestinationEndpoint)],
        vec![in_set(&named("netports-xxxxxxxxxxxxxxxx"), Field::SourceWithPort)],
        vec![http, Match::Destination(network), excepts(Field::Destination)],
        vec![in_set(&named("nets-xxxxxxxxxxxxxxxx"), Field::Source), excepts(Field::Source)],
        vec![excepts(Field::Destination)],
    ]
    .map(|matches| Rule::new(matches, Target::Return))
    .into()
}

/// `ruleset` as observed when only names and headers are read.
pub(crate) fn names_only(ruleset: &Ruleset) -> Observed {
    let mut observed = Observed::holding(ruleset);
    for family in Family::BOTH {
        observed.table_mut(family).chains.values_mut().for_each(|content| *content = Content::Unknown);
    }
    observed
}

pub(crate) fn apply_all(kernel: &mut Kernel, desired: &Ruleset) {
    let observed = kernel.observe().unwrap();
    for step in plan(&observed, desired, &[]) {
        kernel.apply(&step).unwrap();
    }
}
