//! Rulesets and steps as input of `iptables-restore` and `ipset restore`.

use std::fmt::Write as _;

use super::{
    Chain, ChainName, Field, Match, Member, PORT_SLOTS, Rule, Ruleset, SetKind, Table, Target,
    plan::{ChainBatch, SetEdit},
};
use crate::model::{Family, PortRange, Protocol};

/// The most members that a set may have. The kernel grows a hash as it fills; this is only its limit, for which the
/// kernel's default of 65,536 is too low.
const MAX_MEMBERS: u32 = 4_194_304;

/// One batch of chain changes, for `iptables-restore --noflush` (or `ip6tables-restore`).
#[must_use]
pub fn chains(family: Family, batch: &ChainBatch) -> String {
    let mut text = String::from("*filter\n");
    // Declaring a chain creates it, or flushes it if it exists, so that it has only the rules that follow.
    for name in batch.write.iter().map(|(name, _)| name).chain(&batch.remove) {
        line(&mut text, format_args!(":{name} - [0:0]"));
    }
    for edit in &batch.hooks {
        for target in &edit.remove {
            line(&mut text, format_args!("-D {} -j {target}", edit.at.name()));
        }
    }
    for (name, chain) in &batch.write {
        rules(&mut text, family, name, chain);
    }
    for edit in &batch.hooks {
        if let Some(target) = &edit.now {
            line(&mut text, format_args!("-I {} 1 -j {target}", edit.at.name()));
        }
    }
    for name in &batch.remove {
        line(&mut text, format_args!("-X {name}"));
    }
    text.push_str("COMMIT\n");
    text
}

/// Edits of sets, for `ipset restore -exist`; one line each, in their order.
#[must_use]
pub fn sets(edits: &[SetEdit]) -> String {
    let mut text = String::new();
    for edit in edits {
        match edit {
            SetEdit::Create(name, kind) => {
                line(&mut text, format_args!("create {name} {}", header(name.family(), *kind)));
            }
            SetEdit::Add(name, member) => line(&mut text, format_args!("add {name} {}", entry(*member))),
            SetEdit::Remove(name, member) => line(&mut text, format_args!("del {name} {}", entry(*member))),
            SetEdit::Destroy(name) => line(&mut text, format_args!("destroy {name}")),
        }
    }
    text
}

/// All sets of a ruleset, for `ipset restore`.
#[must_use]
pub fn all_sets(ruleset: &Ruleset) -> String {
    let edits: Vec<SetEdit> = Family::BOTH
        .into_iter()
        .flat_map(|family| &ruleset.table(family).sets)
        .flat_map(|(name, set)| {
            let create = SetEdit::Create(name.clone(), set.kind);
            let add = |member: &Member| SetEdit::Add(name.clone(), *member);
            std::iter::once(create).chain(set.members.iter().map(add))
        })
        .collect();
    sets(&edits)
}

/// All chains and hooks of one family, for `iptables-restore --noflush`.
#[must_use]
pub fn all_chains(family: Family, table: &Table) -> String {
    let hook = |(at, to): (&_, &ChainName)| super::plan::HookEdit {
        at: *at,
        remove: Vec::new(),
        now: Some(to.clone()),
    };
    let batch = ChainBatch {
        write: table.chains.iter().map(|(name, chain)| (name.clone(), chain.clone())).collect(),
        remove: Vec::new(),
        hooks: table.hooks.iter().map(hook).collect(),
    };
    chains(family, &batch)
}

fn rules(text: &mut String, family: Family, name: &ChainName, chain: &Chain) {
    for one in &*chain.rules {
        line(text, format_args!("-A {name} {}", rule(family, one)));
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{arguments}");
}

/// One rule: the arguments after `-A` and the chain's name.
#[must_use]
pub fn rule(family: Family, rule: &Rule) -> String {
    let mut text = String::new();
    for m in &rule.matches {
        text.push_str(&match_arguments(m));
        text.push(' ');
    }
    text.push_str(&target_arguments(family, &rule.target, &rule.matches));
    text
}

fn match_arguments(m: &Match) -> String {
    match m {
        Match::Established => "-m conntrack --ctstate ESTABLISHED".to_owned(),
        Match::Related => "-m conntrack --ctstate RELATED".to_owned(),
        Match::Protocol(number) => format!("-p {}", protocol_name(*number)),
        Match::Ports(protocol, ranges) => ports(*protocol, ranges),
        Match::Icmpv6Type(number) => format!("-p ipv6-icmp -m icmp6 --icmpv6-type {number}"),
        Match::Broadcast => "-m addrtype --dst-type BROADCAST".to_owned(),
        Match::Source(network) => format!("-s {network}"),
        Match::Destination(network) => format!("-d {network}"),
        Match::Set { set, field } => format!("-m set --match-set {set} {}", directions(*field)),
        Match::NotInSet { set, field } => format!("-m set ! --match-set {set} {}", directions(*field)),
        Match::HopLimit(number) => format!("-m hl --hl-eq {number}"),
        Match::LengthAtMost(bytes) => format!("-m length --length 0:{bytes}"),
        Match::Limit { per_second } => {
            format!("-m limit --limit {per_second}/sec --limit-burst {per_second}")
        }
        Match::LimitEach { per_second, field } => {
            let (mode, name) = match field {
                Field::Source | Field::SourceWithPort => ("srcip", "towpath-from"),
                Field::Destination | Field::DestinationPort | Field::DestinationEndpoint => {
                    ("dstip", "towpath-to")
                }
            };
            format!(
                "-m hashlimit --hashlimit-upto {per_second}/sec --hashlimit-burst {per_second} --hashlimit-mode {mode} \
                 --hashlimit-name {name}"
            )
        }
        Match::Comment(text) => format!("-m comment --comment {}", quoted(text)),
    }
}

/// The ends of a packet from which the parts of a set's entry are taken.
const fn directions(field: Field) -> &'static str {
    match field {
        Field::Source => "src",
        Field::Destination | Field::DestinationPort => "dst",
        Field::DestinationEndpoint => "dst,dst",
        Field::SourceWithPort => "src,dst",
    }
}

fn ports(protocol: Protocol, ranges: &[PortRange]) -> String {
    debug_assert!(
        ranges.iter().map(|r| if r.first() == r.last() { 1 } else { 2 }).sum::<usize>() <= PORT_SLOTS
    );
    let name = protocol_name(protocol.number());
    let text: Vec<String> = ranges
        .iter()
        .map(|range| {
            if range.first() == range.last() {
                range.first().to_string()
            } else {
                format!("{}:{}", range.first(), range.last())
            }
        })
        .collect();
    match &*text {
        [one] => format!("-p {name} -m {name} --dport {one}"),
        several => format!("-p {name} -m multiport --dports {}", several.join(",")),
    }
}

fn target_arguments(family: Family, target: &Target, matches: &[Match]) -> String {
    match target {
        Target::Return => "-j RETURN".to_owned(),
        Target::Drop => "-j DROP".to_owned(),
        Target::Reject => {
            let is_tcp = matches.contains(&Match::Protocol(Protocol::Tcp.number()));
            let how = match (is_tcp, family) {
                (true, _) => "tcp-reset",
                (false, Family::V4) => "icmp-port-unreachable",
                (false, Family::V6) => "icmp6-port-unreachable",
            };
            format!("-j REJECT --reject-with {how}")
        }
        Target::Jump(to) => format!("-j {to}"),
        Target::Goto(to) => format!("-g {to}"),
        Target::Log { group, prefix } => {
            format!("-j NFLOG --nflog-group {group} --nflog-prefix {}", quoted(prefix))
        }
    }
}

/// Quotes text as the restore parser expects it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(if character.is_control() { ' ' } else { character });
    }
    quoted.push('"');
    quoted
}

fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        4 => "ipencap".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// The arguments of `ipset create` after the name.
fn header(family: Family, kind: SetKind) -> String {
    let family = match family {
        Family::V4 => "inet",
        Family::V6 => "inet6",
    };
    match kind {
        SetKind::Addresses => format!("hash:ip family {family} maxelem {MAX_MEMBERS}"),
        SetKind::CountedAddresses => format!("hash:ip family {family} maxelem {MAX_MEMBERS} counters"),
        SetKind::Networks => format!("hash:net family {family} maxelem {MAX_MEMBERS}"),
        SetKind::Endpoints => format!("hash:ip,port family {family} maxelem {MAX_MEMBERS}"),
        SetKind::Ports => "bitmap:port range 0-65535".to_owned(),
        SetKind::NetworkEndpoints => format!("hash:net,port family {family} maxelem {MAX_MEMBERS}"),
    }
}

fn entry(member: Member) -> String {
    match member {
        Member::Address(address) => address.to_string(),
        Member::Network(network) => network.to_string(),
        Member::Endpoint(address, protocol, port) => {
            format!("{address},{}:{port}", protocol_name(protocol.number()))
        }
        Member::Port(port) => port.to_string(),
        Member::NetworkEndpoint(network, protocol, port) => {
            format!("{network},{}:{port}", protocol_name(protocol.number()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::{BuiltIn, IpSet, SetName, plan::HookEdit};

    #[test]
    fn batch_writes_chains_and_moves_the_hook_in_one_transaction() {
        let name = ChainName::new("TP-GI-xxxxxxxxxxxxxxxx").unwrap();
        let set = SetName::new("tp4-pods-xxxxxxxxxxxxxxxx").unwrap();
        let allow = Rule::new(
            [
                Match::Ports(Protocol::Tcp, vec![PortRange::single(80), PortRange::new(90, 99).unwrap()]),
                Match::Set { set, field: Field::Source },
            ],
            Target::Return,
        );
        let batch = ChainBatch {
            write: vec![(name, [allow, Rule::new([], Target::Drop)].into_iter().collect())],
            remove: vec![ChainName::new("TP-GI-yyyyyyyyyyyyyyyy").unwrap()],
            hooks: vec![HookEdit {
                at: BuiltIn::Forward,
                remove: vec![ChainName::new("TOWPATH-FORWARD").unwrap()],
                now: ChainName::new("TOWPATH-FORWARD"),
            }],
        };
        let text = "*filter\n\
            :TP-GI-xxxxxxxxxxxxxxxx - [0:0]\n\
            :TP-GI-yyyyyyyyyyyyyyyy - [0:0]\n\
            -D FORWARD -j TOWPATH-FORWARD\n\
            -A TP-GI-xxxxxxxxxxxxxxxx -p tcp -m multiport --dports 80,90:99 -m set --match-set tp4-pods-xxxxxxxxxxxxxxxx src -j RETURN\n\
            -A TP-GI-xxxxxxxxxxxxxxxx -j DROP\n\
            -I FORWARD 1 -j TOWPATH-FORWARD\n\
            -X TP-GI-yyyyyyyyyyyyyyyy\n\
            COMMIT\n";
        assert_eq!(chains(Family::V4, &batch), text);
    }

    #[test]
    fn comment_cannot_break_out_of_its_quotes() {
        assert_eq!(quoted("a\"b\\c\nd"), "\"a\\\"b\\\\c d\"");
    }

    #[test]
    fn every_kind_of_set_is_created_with_its_type_and_family_and_room_for_many_members() {
        let created = |family, kind| {
            let name = SetName::new("tp4-pods-xxxxxxxxxxxxxxxx").unwrap();
            let name =
                if family == Family::V4 { name } else { SetName::new("tp6-pods-xxxxxxxxxxxxxxxx").unwrap() };
            sets(&[SetEdit::Create(name, kind)])
        };
        for (kind, header) in [
            (SetKind::Addresses, "hash:ip family inet maxelem 4194304"),
            (SetKind::CountedAddresses, "hash:ip family inet maxelem 4194304 counters"),
            (SetKind::Networks, "hash:net family inet maxelem 4194304"),
            (SetKind::Endpoints, "hash:ip,port family inet maxelem 4194304"),
            (SetKind::Ports, "bitmap:port range 0-65535"),
            (SetKind::NetworkEndpoints, "hash:net,port family inet maxelem 4194304"),
        ] {
            assert_eq!(created(Family::V4, kind), format!("create tp4-pods-xxxxxxxxxxxxxxxx {header}\n"));
        }
        assert_eq!(
            created(Family::V6, SetKind::Addresses),
            "create tp6-pods-xxxxxxxxxxxxxxxx hash:ip family inet6 maxelem 4194304\n"
        );
    }

    #[test]
    fn whole_ruleset_renders_sets_chains_and_hooks() {
        let set = SetName::new("tp4-pods-xxxxxxxxxxxxxxxx").unwrap();
        let group = ChainName::new("TP-GI-xxxxxxxxxxxxxxxx").unwrap();
        let forward = ChainName::new("TOWPATH-FORWARD").unwrap();
        let members = [Member::Address([10, 0, 0, 1].into()), Member::Address([10, 0, 0, 2].into())];
        let rules: Chain = [
            Rule::new([Match::Set { set: set.clone(), field: Field::Source }], Target::Return),
            Rule::new([], Target::Drop),
        ]
        .into_iter()
        .collect();
        let text_of_rules = "-A TP-GI-xxxxxxxxxxxxxxxx -m set --match-set tp4-pods-xxxxxxxxxxxxxxxx src -j RETURN\n\
            -A TP-GI-xxxxxxxxxxxxxxxx -j DROP\n";
        let v4 = Table {
            chains: [
                (forward.clone(), [Rule::new([], Target::Goto(group.clone()))].into_iter().collect()),
                (group, rules),
            ]
            .into(),
            sets: [(set, IpSet { kind: SetKind::Addresses, members: members.into_iter().collect() })].into(),
            hooks: [(BuiltIn::Forward, forward)].into(),
        };
        let ruleset = Ruleset { v4, ..Ruleset::default() };
        assert_eq!(
            all_sets(&ruleset),
            "create tp4-pods-xxxxxxxxxxxxxxxx hash:ip family inet maxelem 4194304\n\
             add tp4-pods-xxxxxxxxxxxxxxxx 10.0.0.1\n\
             add tp4-pods-xxxxxxxxxxxxxxxx 10.0.0.2\n"
        );
        assert_eq!(
            all_chains(Family::V4, &ruleset.v4),
            format!(
                "*filter\n\
                 :TOWPATH-FORWARD - [0:0]\n\
                 :TP-GI-xxxxxxxxxxxxxxxx - [0:0]\n\
                 -A TOWPATH-FORWARD -g TP-GI-xxxxxxxxxxxxxxxx\n\
                 {text_of_rules}\
                 -I FORWARD 1 -j TOWPATH-FORWARD\n\
                 COMMIT\n"
            )
        );
        assert_eq!(all_chains(Family::V6, &ruleset.v6), "*filter\nCOMMIT\n");
    }
}
