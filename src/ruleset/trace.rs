//! The effect of our own rules on a packet: an interpreter of chains and sets.
//!
//! It does not depend on policies, and is used to compare the compiled rules with their meaning.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{BuiltIn, ChainName, Field, Match, Member, Table, Target};
use crate::model::{Protocol, Transport};

/// A packet, as rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The built-in chain that it passes.
    pub at: BuiltIn,
    /// Its source address.
    pub source: IpAddr,
    /// Its destination address, after any translation of a Service's address.
    pub destination: IpAddr,
    /// Its protocol and port.
    pub transport: Transport,
    /// For an ICMPv6 packet, its type.
    pub icmpv6_type: Option<u8>,
    /// Its hop limit or time to live, as the rules see it: after the decrement of a router.
    pub hop_limit: u8,
    /// Its length in bytes, including its IP header.
    pub length: u16,
    /// Whether it belongs to a connection that passed before, or is an error about one.
    pub established: bool,
}

impl Packet {
    /// The first packet of a forwarded flow.
    #[must_use]
    pub const fn new(source: IpAddr, destination: IpAddr, transport: Transport) -> Self {
        Self {
            at: BuiltIn::Forward,
            source,
            destination,
            transport,
            icmpv6_type: None,
            hop_limit: 63,
            length: 64,
            established: false,
        }
    }
}

/// The verdict for a packet, and its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Whether our rules let it pass; rules of other programs come after them.
    pub passed: bool,
    /// Every rule whose matches held: the chain, and the index of the rule in it, from 0.
    pub hits: Vec<(ChainName, usize)>,
    /// How many rules were evaluated: the cost of the packet.
    pub rules_walked: usize,
    /// How many sets were looked up.
    pub set_lookups: usize,
}

/// Sends a packet through the rules of its family's table.
///
/// A reference to a missing chain or set cannot happen in a table that the kernel holds, since the kernel's tools
/// refuse such rules. Here it closes.
#[must_use]
pub fn trace(table: &Table, packet: &Packet) -> Trace {
    let mut trace = Trace { passed: true, hits: Vec::new(), rules_walked: 0, set_lookups: 0 };
    if let Some(chain) = table.hooks.get(&packet.at) {
        // The jump in the built-in chain.
        trace.rules_walked += 1;
        trace.passed = walk(table, chain, packet, &mut trace);
    }
    trace
}

/// Whether the packet returns from `start`.
fn walk(table: &Table, start: &ChainName, packet: &Packet, trace: &mut Trace) -> bool {
    let mut name = start;
    'chain: loop {
        let Some(chain) = table.chains.get(name) else { return false };
        for (number, rule) in chain.rules.iter().enumerate() {
            trace.rules_walked += 1;
            if !rule.matches.iter().all(|m| holds(table, m, packet, trace)) {
                continue;
            }
            trace.hits.push((name.clone(), number));
            match &rule.target {
                Target::Return => return true,
                Target::Drop | Target::Reject => return false,
                Target::Jump(to) => {
                    if !walk(table, to, packet, trace) {
                        return false;
                    }
                }
                Target::Goto(to) => {
                    name = to;
                    continue 'chain;
                }
                Target::Log { .. } => {}
            }
        }
        return true;
    }
}

fn holds(table: &Table, m: &Match, packet: &Packet, trace: &mut Trace) -> bool {
    let protocol = match packet.transport {
        Transport::Port(protocol, _) => protocol.number(),
        Transport::Other(number) => number,
    };
    match m {
        Match::Established | Match::Related => packet.established,
        Match::Protocol(number) => *number == protocol,
        Match::Ports(wanted, ranges) => match packet.transport {
            Transport::Port(protocol, port) => {
                protocol == *wanted && ranges.iter().any(|range| range.contains(port))
            }
            Transport::Other(_) => false,
        },
        Match::Icmpv6Type(number) => packet.icmpv6_type == Some(*number),
        // Only the node's own routes show which other addresses are broadcast.
        Match::Broadcast => packet.destination == IpAddr::from([255, 255, 255, 255]),
        Match::Source(network) => network.contains(&packet.source),
        Match::Destination(network) => network.contains(&packet.destination),
        Match::Set { set, field } => {
            trace.set_lookups += 1;
            table.sets.get(set).is_some_and(|set| is_member(&set.members, *field, packet))
        }
        Match::NotInSet { set, field } => {
            trace.set_lookups += 1;
            table.sets.get(set).is_some_and(|set| !is_member(&set.members, *field, packet))
        }
        Match::HopLimit(number) => packet.hop_limit == *number,
        Match::LengthAtMost(bytes) => packet.length <= *bytes,
        Match::Limit { .. } | Match::LimitEach { .. } | Match::Comment(_) => true,
    }
}

fn is_member(members: &imbl::OrdSet<Member>, field: Field, packet: &Packet) -> bool {
    let port: Option<(Protocol, u16)> = match packet.transport {
        Transport::Port(protocol, port) => Some((protocol, port)),
        Transport::Other(_) => None,
    };
    let has_address =
        |address: IpAddr| members.contains(&Member::Address(address)) || has_network(members, address);
    match field {
        Field::Source => has_address(packet.source),
        Field::Destination => has_address(packet.destination),
        Field::DestinationPort => port.is_some_and(|(_, port)| members.contains(&Member::Port(port))),
        Field::DestinationEndpoint => port.is_some_and(|(protocol, port)| {
            members.contains(&Member::Endpoint(packet.destination, protocol, port))
                || has_network_endpoint(members, packet.destination, protocol, port)
        }),
        Field::SourceWithPort => {
            port.is_some_and(|(protocol, port)| has_network_endpoint(members, packet.source, protocol, port))
        }
    }
}

/// The network of each prefix length that contains an address; the kernel looks up the same ones.
fn networks(address: IpAddr) -> impl Iterator<Item = IpNet> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    (0..=bits).map(move |prefix| IpNet::new_assert(address, prefix).trunc())
}

/// Whether one of the networks contains the address.
fn has_network(members: &imbl::OrdSet<Member>, address: IpAddr) -> bool {
    networks(address).any(|network| members.contains(&Member::Network(network)))
}

/// Whether one of the networks contains the address, with this port.
fn has_network_endpoint(
    members: &imbl::OrdSet<Member>,
    address: IpAddr,
    protocol: Protocol,
    port: u16,
) -> bool {
    networks(address).any(|network| members.contains(&Member::NetworkEndpoint(network, protocol, port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Direction, Family},
        ruleset::{IpSet, Rule, SetKind, names},
    };

    #[test]
    fn packet_cost_counts_rules_set_lookups_and_the_hook() {
        let (set, group) = (names::all_pods(Family::V4), names::dispatch(Direction::Ingress));
        let field = Field::Source;
        let is_pod = Match::Set { set: set.clone(), field };
        let is_none = Match::NotInSet { set: set.clone(), field };
        let udp = Match::Protocol(Protocol::Udp.number());
        let table = Table {
            sets: [(set, IpSet { kind: SetKind::Addresses, members: imbl::OrdSet::new() })].into(),
            chains: [
                (
                    names::forward(),
                    [
                        // Nothing is asked behind the first match that does not hold.
                        Rule::new([udp, is_pod.clone()], Target::Drop),
                        Rule::new([is_pod], Target::Drop),
                        Rule::new([is_none], Target::Jump(group.clone())),
                    ]
                    .into_iter()
                    .collect(),
                ),
                (
                    group.clone(),
                    [Rule::new([], Target::Drop), Rule::new([], Target::Return)].into_iter().collect(),
                ),
            ]
            .into(),
            hooks: [(BuiltIn::Forward, names::forward())].into(),
        };
        let tcp = Transport::Port(Protocol::Tcp, 80);
        let packet = Packet::new([10, 244, 1, 1].into(), [10, 244, 1, 2].into(), tcp);
        let hits = vec![(names::forward(), 2), (group, 0)];
        assert_eq!(trace(&table, &packet), Trace { passed: false, hits, rules_walked: 5, set_lookups: 2 });
        let to_node = Packet { at: BuiltIn::Input, ..packet };
        let nothing = Trace { passed: true, hits: Vec::new(), rules_walked: 0, set_lookups: 0 };
        assert_eq!(trace(&table, &to_node), nothing);
    }
}
