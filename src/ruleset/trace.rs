//! What our own rules do with a packet: an interpreter of chains and sets.
//!
//! It knows nothing of policies, and is how the compiled rules are held against their meaning.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{BuiltIn, ChainName, Field, Match, Member, Table, Target};
use crate::model::{Protocol, Transport};

/// A packet, as a rule sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The built-in chain that it comes through.
    pub at: BuiltIn,
    /// Its source address.
    pub source: IpAddr,
    /// Its destination address, behind any translation of a Service's address.
    pub destination: IpAddr,
    /// What it carries.
    pub transport: Transport,
    /// For an ICMPv6 packet, its type.
    pub icmpv6_type: Option<u8>,
    /// Its hop limit or time to live, as the rules see it: behind the decrement of a router.
    pub hop_limit: u8,
    /// How many bytes it has, its IP header included.
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

/// What became of a packet, and the way it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Whether our rules let it through; others' rules come behind them.
    pub passed: bool,
    /// Every rule whose matches held: the chain, and the rule's number in it, from 0.
    pub hits: Vec<(ChainName, usize)>,
    /// How many rules were looked at: what the packet costs.
    pub rules_walked: usize,
    /// How many sets were looked up.
    pub set_lookups: usize,
}

/// Sends a packet through the rules of its family's table.
///
/// What refers to a chain or a set that is not there does as the kernel's tools do, which refuse such rules: it
/// cannot happen in a table that the kernel holds. Here it closes.
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

/// Whether the packet comes back from `start`.
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
        // Which other addresses are broadcast, only the node's own routes tell.
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
        Match::Limit { .. } | Match::Comment(_) => true,
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

/// The networks of each prefix length that hold an address, in which the kernel looks for it as well.
fn networks(address: IpAddr) -> impl Iterator<Item = IpNet> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    (0..=bits).map(move |prefix| IpNet::new_assert(address, prefix).trunc())
}

/// Whether one of the networks holds the address.
fn has_network(members: &imbl::OrdSet<Member>, address: IpAddr) -> bool {
    networks(address).any(|network| members.contains(&Member::Network(network)))
}

/// Whether one of the networks holds the address, with this port.
fn has_network_endpoint(
    members: &imbl::OrdSet<Member>,
    address: IpAddr,
    protocol: Protocol,
    port: u16,
) -> bool {
    networks(address).any(|network| members.contains(&Member::NetworkEndpoint(network, protocol, port)))
}
