//! Cases that are rare in the scenarios: many pods on one node, two with one address, isolation in one direction only.

use super::*;
use crate::{
    model::{
        Change, Cluster, LabelSelector, NetworkPolicy, ObjectKey, Peers, Pod, PolicyRule, Port, PortRange,
        Ports, Protocol, Requirement, Standing, Transport,
    },
    policy::resolve::Resolver,
    ruleset::{
        BuiltIn, SetRole,
        trace::{Packet, trace},
    },
};

const OUTSIDE: [&str; 2] = ["203.0.113.9", "2001:db8::9"];

fn pod(name: &str, addresses: &[IpAddr]) -> Change {
    let labels = [("app", name)].into_iter().collect();
    let pod = Pod::new(ObjectKey::new("shop", name));
    Change::SetPod(Pod { labels, node: Some("n1".into()), addresses: addresses.to_vec(), ..pod })
}

/// Allows only `ports` from any peer to this pod, or from it to any peer, or both.
fn policy(name: &str, directions: &[Direction], ports: &[u16]) -> Change {
    let ports = ports.iter().map(|port| Port::Range(Protocol::Tcp, PortRange::single(*port)));
    let rules = vec![PolicyRule { peers: Peers::Any, ports: Ports::Of(ports.collect()) }];
    let of = |direction| directions.contains(&direction).then(|| rules.clone());
    Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new("shop", name),
        subject: LabelSelector::new([Requirement::equals("app", name)]),
        ingress: of(Direction::Ingress),
        egress: of(Direction::Egress),
        standing: Standing::Accepted,
    })
}

fn compiled(changes: impl IntoIterator<Item = Change>, options: &Options) -> Ruleset {
    let mut cluster = Cluster::new();
    for change in changes {
        cluster.apply(change);
    }
    compile(&Resolver::of("n1", &cluster).resolve(&cluster), options)
}

fn parse(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn passes(rules: &Ruleset, from: IpAddr, to: IpAddr, port: u16) -> bool {
    let packet = Packet::new(from, to, Transport::Port(Protocol::Tcp, port));
    trace(rules.table(Family::of(to)), &packet).passed
}

/// How deep chains are nested from this one on, itself included, and how many rules the longest one has.
fn depth_and_width(table: &Table, from: &ChainName, above: usize) -> (usize, usize) {
    assert!(above < 16, "more nested chains than the kernel accepts, or a loop");
    let rules = &table.chains[from].rules;
    let next = rules.iter().filter_map(|rule| match &rule.target {
        Target::Goto(chain) | Target::Jump(chain) => Some(depth_and_width(table, chain, above + 1)),
        _ => None,
    });
    next.fold((1, rules.len()), |(depth, width), (more, other)| (depth.max(1 + more), width.max(other)))
}

/// Isolates a pod at each of these addresses, allows port 1000 of the first, port 1001 of the second, and so on, and
/// checks these ports. Returns [`depth_and_width`] of the dispatch of packets to pods.
fn each_with_its_own_port(addresses: &[IpAddr]) -> (usize, usize) {
    let changes = addresses.iter().zip(1000_u16..).flat_map(|(address, port)| {
        let name = format!("p{port}");
        [pod(&name, &[*address]), policy(&name, &[Direction::Ingress], &[port])]
    });
    let rules = compiled(changes, &Options::default());
    let table = rules.table(Family::of(addresses[0]));
    let shape = depth_and_width(table, &names::dispatch(Direction::Ingress), 2);
    for (address, port) in addresses.iter().zip(1000_u16..) {
        let outside = OUTSIDE.map(parse).into_iter().find(|one| one.is_ipv4() == address.is_ipv4()).unwrap();
        for other in [port - 1, port, port + 1] {
            assert_eq!(passes(&rules, outside, *address, other), other == port, "{address} at {other}");
        }
    }
    shape
}

#[test]
fn many_pods_are_dispatched_through_few_short_chains() {
    let v4: Vec<IpAddr> = (0..200_u8).map(|last| [10, 244, 1, last].into()).collect();
    let v6: Vec<IpAddr> = (0..200).map(|last| parse(&format!("fd00:10:244:1::{last:x}"))).collect();
    for addresses in [v4, v6] {
        // Two of the tree, since the shared prefix is skipped; the pod's and its group's.
        assert_eq!(each_with_its_own_port(&addresses), (4, DISPATCH_WIDTH + 1));
    }
}

#[test]
fn pods_that_fit_into_one_chain_need_no_tree() {
    let addresses = |how_many: u8| (0..how_many).map(|last| [10, 244, 1, last].into()).collect::<Vec<_>>();
    let depth = |how_many: u8| each_with_its_own_port(&addresses(how_many)).0;
    let most = u8::try_from(DISPATCH_WIDTH).unwrap();
    assert_eq!((depth(most), depth(most + 1)), (3, 4));
}

#[test]
fn deep_dispatch_tree_ends_in_one_long_chain() {
    // Each level separates one of them from all others.
    let address = |digit: u32| IpAddr::from((0xfd_u128 << 120 | 1 << (4 * digit)).to_be_bytes());
    let addresses: Vec<IpAddr> = (0..30).map(address).collect();
    let (depth, width) = each_with_its_own_port(&addresses);
    assert_eq!(depth, 1 + DISPATCH_DEPTH + 2);
    assert_eq!(width, addresses.len() - DISPATCH_DEPTH + 1);
}

#[test]
fn shared_address_allows_only_what_both_pods_allow() {
    let address = [10, 244, 1, 1].into();
    let ingress = [Direction::Ingress];
    let rules = compiled(
        [
            pod("one", &[address]),
            pod("two", &[address]),
            policy("one", &ingress, &[80, 81]),
            policy("two", &ingress, &[81, 82]),
        ],
        &Options::default(),
    );
    let passing: Vec<u16> =
        (79..84).filter(|port| passes(&rules, parse(OUTSIDE[0]), address, *port)).collect();
    assert_eq!(passing, [81]);
}

#[test]
fn pod_reaches_itself_despite_its_policies() {
    let addresses = ["10.244.1.1", "fd00::1"].map(parse);
    let rules = compiled([pod("web", &addresses), policy("web", &Direction::BOTH, &[])], &Options::default());
    for (address, outside) in addresses.into_iter().zip(OUTSIDE.map(parse)) {
        assert!(passes(&rules, address, address, 80), "{address}");
        assert!(!passes(&rules, outside, address, 80) && !passes(&rules, address, outside, 80));
    }
}

#[test]
fn drops_are_counted_only_for_isolated_pods() {
    let address = |last: u8| -> IpAddr { [10, 244, 1, last].into() };
    let rules = compiled(
        [
            pod("in", &[address(1)]),
            pod("out", &[address(2)]),
            pod("free", &[address(3)]),
            policy("in", &[Direction::Ingress], &[80]),
            policy("out", &[Direction::Egress], &[80]),
        ],
        &Options::default(),
    );
    let counted = &rules.v4.sets[&names::drops(Family::V4)].members;
    assert_eq!(
        counted.iter().copied().collect::<Vec<_>>(),
        [1, 2].map(|last| Member::Address(address(last)))
    );
}

#[test]
fn multicast_is_dropped_while_a_pod_is_isolated_in_either_direction() {
    let multicast = ["224.0.0.251", "ff02::fb"].map(parse);
    let closed = |directions: &[Direction], link_rules: bool| {
        let addresses = ["10.244.1.1", "fd00::1"].map(parse);
        let mut changes = vec![pod("web", &addresses)];
        if !directions.is_empty() {
            changes.push(policy("web", directions, &[80]));
        }
        let rules = compiled(changes, &Options { link_rules, ..Options::default() });
        let others = ["10.244.1.9", "fd00::9"].map(parse);
        let [v4, v6] = [0, 1].map(|at| !passes(&rules, others[at], multicast[at], 5353));
        assert_eq!(v4, v6);
        v4
    };
    for direction in Direction::BOTH {
        assert!(closed(&[direction], true));
        assert!(!closed(&[direction], false), "with the interface guard these rules are not needed");
    }
    assert!(!closed(&[], true), "no pod is isolated");
}

#[test]
fn icmp_errors_of_connections_pass_before_policy() {
    let changes = [pod("web", &["10.244.1.1", "fd00::1"].map(parse)), policy("web", &Direction::BOTH, &[80])];
    let rules = compiled(changes, &Options { enforce_pod_to_node: true, ..Options::default() });
    for (family, protocol) in [(Family::V4, 1), (Family::V6, 58)] {
        let table = rules.table(family);
        for at in BuiltIn::ALL {
            let chain = &table.chains[&table.hooks[&at]];
            let uses_policy = |rule: &Rule| {
                rule.matches
                    .iter()
                    .any(|m| m.set().is_some_and(|set| matches!(set.role(), SetRole::Isolated(_))))
            };
            let before: Vec<&Rule> = chain.rules.iter().take_while(|rule| !uses_policy(rule)).collect();
            let of_icmp = before.iter().find(|rule| rule.matches.first() == Some(&Match::Protocol(protocol)));
            let of_icmp = of_icmp.unwrap();
            let passes_errors = match &of_icmp.target {
                Target::Goto(chain) => {
                    let first = &table.chains[chain].rules[0];
                    first.matches == [Match::Related] && first.target == Target::Return
                }
                target => of_icmp.matches[1..] == [Match::Related] && *target == Target::Return,
            };
            assert!(passes_errors, "{family} {}: {before:?}", at.name());
        }
    }
}
