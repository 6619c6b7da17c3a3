//! How rules of a program become chains and sets.

use std::net::IpAddr;

use super::*;
use crate::{
    model::Transport,
    policy::program::{Chosen, PortOwners, Tier},
    ruleset::{
        BuiltIn, Table,
        trace::{Packet, trace},
    },
};

/// The rules and sets of a program with one rule for every peer.
fn group(ranges: &[(u16, u16)]) -> Arc<Group> {
    let range = |(first, last): &(u16, u16)| (Protocol::Tcp, PortRange::new(*first, *last).unwrap());
    let ports = PortMatch::Of(ranges.iter().map(range).collect());
    let rule = program::Rule { peers: PeerMatch::Any, ports, action: Action::Allow };
    let tiers = vec![Tier { rules: vec![rule] }];
    let program = Program { tiers, default: Action::Deny, digest: digest(&"x") };
    Cache::new().group(Family::V4, &Options::default(), Direction::Egress, &program)
}

fn ports_of(group: &Group) -> Vec<Vec<PortRange>> {
    let ports = |m: &Match| match m {
        Match::Ports(Protocol::Tcp, ranges) => Some(ranges.clone()),
        _ => None,
    };
    group.chain.rules.iter().flat_map(|rule| &rule.matches).filter_map(ports).collect()
}

#[test]
fn many_ports_become_a_set_and_wide_ranges_several_rules() {
    let single: Vec<_> = (0..20).map(|n| (10 * n, 10 * n)).collect();
    let of_single = group(&single);
    assert_eq!(of_single.sets.len(), 1);
    assert_eq!(of_single.sets[0].1.members.len(), 20);
    assert!(ports_of(&of_single).is_empty());

    // 8 ranges of two slots each are one too many for one rule, and 24,008 numbers too many for a set.
    let wide: Vec<_> = (0..8).map(|n| (5000 * n, 5000 * n + 3000)).collect();
    let of_wide = group(&wide);
    assert!(of_wide.sets.is_empty());
    let parts = ports_of(&of_wide);
    assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [7, 1]);
    let together: Vec<_> = parts.concat().iter().map(|range| (range.first(), range.last())).collect();
    assert_eq!(together, wide);

    // Even the largest number of ranges has few enough ports per rule for a set.
    let every_second: Vec<_> = (0..16_000).map(|n| (4 * n, 4 * n + 1)).collect();
    let of_all = group(&every_second);
    assert_eq!((of_all.sets.len(), of_all.sets[0].1.members.len()), (1, 32_000));
}

#[test]
fn no_part_exceeds_the_slots_of_a_rule() {
    let ranges: Vec<PortRange> =
        (0..100_u16).map(|n| PortRange::new(10 * n, 10 * n + n % 3).unwrap()).collect();
    let parts = slotted(&ranges);
    let slots = |part: &[PortRange]| -> usize {
        part.iter().map(|range| if range.first() == range.last() { 1 } else { 2 }).sum()
    };
    assert!(parts.iter().all(|part| (1..=PORT_SLOTS).contains(&slots(part))));
    assert_eq!(parts.concat(), ranges);
}

fn tcp(ports: impl IntoIterator<Item = u16>) -> PortMatch {
    PortMatch::Of(ports.into_iter().map(|port| (Protocol::Tcp, PortRange::single(port))).collect())
}

/// A rule for these blocks.
fn rule(action: Action, blocks: &[&str], ports: PortMatch) -> program::Rule {
    let block = |text: &&str| IpBlock::new(text.parse().unwrap(), []).unwrap();
    let peers = PeerMatch::Of { pods: None, blocks: blocks.iter().map(block).collect() };
    program::Rule { peers, ports, action }
}

fn group_of(direction: Direction, rules: Vec<program::Rule>, default: Action) -> Arc<Group> {
    let tiers = vec![Tier { rules }];
    let program = Program { digest: digest(&tiers), tiers, default };
    Cache::new().group(Family::V4, &Options::default(), direction, &program)
}

/// Whether a packet between a pod and `other` passes.
fn passes(group: &Group, direction: Direction, other: &str, port: u16) -> bool {
    let name = names::group(direction, &digest(&"x"));
    let table = Table {
        chains: [(name.clone(), group.chain.clone())].into(),
        sets: group.sets.iter().cloned().collect(),
        hooks: [(BuiltIn::Forward, name)].into(),
    };
    let (pod, other): (IpAddr, IpAddr) = ([10, 244, 1, 1].into(), other.parse().unwrap());
    let (from, to) = match direction {
        Direction::Ingress => (other, pod),
        Direction::Egress => (pod, other),
    };
    trace(&table, &Packet::new(from, to, Transport::Port(Protocol::Tcp, port))).passed
}

/// How many members each set has.
fn sizes(group: &Group) -> Vec<(SetKind, usize)> {
    group.sets.iter().map(|(_, set)| (set.kind, set.members.len())).collect()
}

#[test]
fn many_blocks_with_a_port_each_become_one_lookup() {
    for direction in Direction::BOTH {
        for count in [JOINED_FROM - 1, JOINED_FROM] {
            let rules = (0..u16::try_from(count).unwrap())
                .map(|at| rule(Action::Allow, &[&format!("10.9.{at}.0/24")], tcp([1000 + at])));
            let group = group_of(direction, rules.collect(), Action::Deny);
            let joined = count == JOINED_FROM;
            assert_eq!(sizes(&group), if joined { vec![(SetKind::NetworkEndpoints, count)] } else { vec![] });
            for at in 0..16 {
                let is_meant = usize::from(at) < count;
                let other = format!("10.9.{at}.7");
                assert_eq!(passes(&group, direction, &other, 1000 + at), is_meant);
                assert!(!passes(&group, direction, &other, 1001 + at));
            }
        }
    }
    // One rule is saved for each protocol.
    let ports = |at: u16| {
        let range = PortRange::single(1000 + at);
        PortMatch::Of([(Protocol::Tcp, range), (Protocol::Udp, range)].into_iter().collect())
    };
    let rules = (0..8).map(|at| rule(Action::Allow, &[&format!("10.9.{at}.0/24")], ports(at)));
    assert_eq!(
        sizes(&group_of(Direction::Egress, rules.collect(), Action::Deny)),
        [(SetKind::NetworkEndpoints, 16)]
    );
}

#[test]
fn rule_with_many_pairs_of_block_and_port_is_not_joined_with_others() {
    let with_others = |blocks: usize, ports: u16| {
        let blocks: Vec<String> = (0..blocks).map(|at| format!("10.8.{}.0/24", 2 * at)).collect();
        let blocks: Vec<&str> = blocks.iter().map(String::as_str).collect();
        let mut rules = vec![rule(Action::Allow, &blocks, tcp(2000..2000 + ports))];
        rules.extend((0..16).map(|at| rule(Action::Allow, &[&format!("10.9.{at}.0/24")], tcp([1000 + at]))));
        let group = group_of(Direction::Egress, rules, Action::Deny);
        for (at, port) in [(0, 2000), (blocks.len() - 1, 2000 + ports - 1)] {
            assert!(passes(&group, Direction::Egress, &format!("10.8.{}.7", 2 * at), port));
        }
        sizes(&group).iter().find(|(kind, _)| *kind == SetKind::NetworkEndpoints).unwrap().1 - 16
    };
    for (blocks, ports) in [(1, 16), (4, 4), (16, 1), (5, 3)] {
        assert_eq!(with_others(blocks, ports), blocks * usize::from(ports));
    }
    for (blocks, ports) in [(1, 17), (4, 5), (17, 1), (6, 3)] {
        assert_eq!(with_others(blocks, ports), 0, "{blocks} blocks with {ports} ports");
    }
}

#[test]
fn first_matching_rule_decides_despite_joined_rules() {
    // Each block is allowed to one port, and then denied.
    let rules = (0..20_u16).flat_map(|at| {
        let block = format!("10.9.{at}.0/24");
        [
            rule(Action::Allow, &[&block], tcp([1000 + at])),
            rule(Action::Deny, &[&block], tcp([1000 + at, 80])),
        ]
    });
    let group = group_of(Direction::Ingress, rules.collect(), Action::Allow);
    for at in 0..20 {
        let of = |port| passes(&group, Direction::Ingress, &format!("10.9.{at}.7"), port);
        assert!(of(1000 + at) && !of(80) && of(81));
    }
    let denied = (0..20_u16).map(|at| rule(Action::Deny, &[&format!("10.9.{at}.0/24")], tcp([80])));
    let group = group_of(Direction::Ingress, denied.collect(), Action::Allow);
    assert!(!passes(&group, Direction::Ingress, "10.9.3.7", 80));
    assert!(passes(&group, Direction::Ingress, "10.9.3.7", 81));
}

#[test]
fn block_of_all_addresses_needs_no_match_and_replaces_other_peers() {
    let owners = PortOwners::Any;
    let named = Chosen::NamedPort { protocol: Protocol::Tcp, name: "http".into(), of: owners };
    let everything = IpBlock::new("0.0.0.0/0".parse().unwrap(), []).unwrap();
    let peers = PeerMatch::Of { pods: Some(Arc::new(Selection::new(named))), blocks: vec![everything] };
    let rules = vec![program::Rule { peers, ports: tcp([80]), action: Action::Allow }];
    let group = group_of(Direction::Egress, rules, Action::Deny);
    let allows: Vec<&Rule> = group.chain.rules.iter().filter(|rule| rule.target == Target::Return).collect();
    let [allow] = allows[..] else { panic!("{allows:?}") };
    assert_eq!(allow.matches, [Match::Ports(Protocol::Tcp, vec![PortRange::single(80)])]);
    assert!(group.selections.is_empty() && group.sets.is_empty());
}

#[test]
fn groups_unused_by_the_last_ruleset_are_dropped() {
    let program = |block: &str| {
        let within = IpBlock::new(block.parse().unwrap(), [block.replace("/16", "/24").parse().unwrap()]);
        let peers = PeerMatch::Of { pods: None, blocks: vec![within.unwrap()] };
        let rules = vec![program::Rule { peers, ports: PortMatch::Any, action: Action::Allow }];
        let tiers = vec![Tier { rules }];
        Program { digest: digest(&tiers), tiers, default: Action::Deny }
    };
    let mut cache = Cache::new();
    let mut ruleset = |blocks: &[&str]| {
        cache.begin();
        let group =
            |block: &&str| cache.group(Family::V4, &Options::default(), Direction::Ingress, &program(block));
        let groups: Vec<Arc<Group>> = blocks.iter().map(group).collect();
        cache.end();
        (groups, cache.groups.len(), cache.before.len(), cache.places.len())
    };
    let (first, groups, before, places) = ruleset(&["10.1.0.0/16", "10.2.0.0/16"]);
    assert_eq!((groups, before, places), (2, 0, 2));
    let (second, groups, before, places) = ruleset(&["10.2.0.0/16"]);
    assert!(Arc::ptr_eq(&first[1], &second[0]), "the group is reused");
    assert_eq!((groups, before, places), (1, 0, 2), "the first one is still referenced");
    drop((first, second));
    let (_, groups, before, places) = ruleset(&["10.2.0.0/16"]);
    assert_eq!((groups, before, places), (1, 0, 1));
}

#[test]
fn set_of_ports_is_used_up_to_a_size_per_saved_rule() {
    let kinds = |ports: u16, all_peers: bool| {
        // Two rules, since one has room for seven ranges: of two ports each; the last range has the other ports.
        let ranges = (0..8_u16).map(|at| (1000 * at, 1000 * at + if at == 7 { ports - 15 } else { 1 }));
        let ranges = ranges.map(|(first, last)| (Protocol::Tcp, PortRange::new(first, last).unwrap()));
        let ports = PortMatch::Of(ranges.collect());
        let mut rule = rule(Action::Allow, &["10.9.0.0/16"], ports);
        match &mut rule.peers {
            peers if all_peers => *peers = PeerMatch::Any,
            PeerMatch::Of { pods, .. } => *pods = Some(Arc::new(Selection::new(Chosen::Pods(Vec::new())))),
            peers => panic!("{peers:?}"),
        }
        sizes(&group_of(Direction::Egress, vec![rule], Action::Deny))
    };
    let saved = u16::try_from(2 * RULE_PORTS).unwrap();
    let set = |ports: u16| vec![(SetKind::Ports, usize::from(ports))];
    assert_eq!(kinds(saved, true), set(saved));
    assert_eq!(kinds(saved + 1, true), []);
    // The block and the pods are separate rules.
    assert_eq!(kinds(2 * saved, false), set(2 * saved));
    assert_eq!(kinds(2 * saved + 1, false), []);
    assert!(group(&[(80, 80), (90, 95)]).sets.is_empty(), "one rule has room for them");
}

#[test]
fn block_with_many_excepts_uses_the_same_sets_beside_other_blocks() {
    let except =
        |at: usize| IpAddr::from((0x0a00_0000 + 5 * u32::try_from(at).unwrap()).to_be_bytes()).into();
    let of = |beside: bool| {
        let large = IpBlock::new("10.0.0.0/8".parse().unwrap(), (0..1024).map(except)).unwrap();
        let mut rule = rule(Action::Allow, if beside { &["192.0.2.0/24"] } else { &[] }, PortMatch::Any);
        let PeerMatch::Of { blocks, .. } = &mut rule.peers else { panic!("no blocks") };
        if beside {
            let small = IpBlock::new("172.16.0.0/12".parse().unwrap(), ["172.16.7.7/32".parse().unwrap()]);
            blocks.push(small.unwrap());
        }
        blocks.push(large);
        blocks.sort();
        group_of(Direction::Egress, vec![rule], Action::Deny)
    };
    let excepts = |group: &Group| -> Vec<SetName> {
        let is = |set: &IpSet| set.members.len() > 100;
        group.sets.iter().filter(|(_, set)| is(set)).map(|(name, _)| name.clone()).collect()
    };
    let (alone, together) = (of(false), of(true));
    assert_eq!(excepts(&alone).len(), 1);
    assert_eq!(excepts(&alone), excepts(&together));
    assert_eq!(sizes(&together).len(), 2, "small blocks share one set");
    for (other, passing) in
        [("10.0.0.5", false), ("10.0.0.6", true), ("172.16.7.7", false), ("172.16.7.6", true)]
    {
        assert_eq!(passes(&together, Direction::Egress, other, 80), passing, "{other}");
    }
    assert!(passes(&together, Direction::Egress, "192.0.2.1", 80));
    assert!(!passes(&alone, Direction::Egress, "192.0.2.1", 80));
}
