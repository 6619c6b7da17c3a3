//! The chains that the built-in ones jump to: what every packet passes before and after the rules of pods.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use imbl::OrdSet;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{TableBuilder, Tunnels, logs::drop_unconditionally};
use crate::{
    model::{Direction, Family, PortRange, Protocol, layout},
    policy::resolve::{LocalPod, Resolved},
    ruleset::{
        BuiltIn, Chain, ChainName, Field, Match, Member, PORT_SLOTS, Rule, SetKind, Target,
        log_prefix::LogPrefix, names,
    },
};

/// ICMPv6 types without which IPv6 does not work on a link: router solicitation and advertisement, neighbour
/// solicitation and advertisement, redirect. A receiver accepts them only with a hop limit of 255 (RFC 4861), which no
/// forwarded packet has.
const NEIGHBOUR_DISCOVERY: [u8; 5] = [133, 134, 135, 136, 137];

/// Those of them that no host sends with more than [`DISCOVERY_LENGTH`] bytes.
const SHORT_DISCOVERY: [u8; 3] = [133, 135, 136];

/// 40 bytes of IPv6 header, 24 of the message, and room for the options that hosts send with it: their hardware
/// address and a nonce. A longer one would be a message of another kind.
const DISCOVERY_LENGTH: u16 = 104;

/// ICMPv6 types of multicast listeners: query, report, done, and the second report. They stay on their link: they are
/// sent with a hop limit of 1 (RFC 2710, RFC 3810), to a multicast group of the link.
const MULTICAST_LISTENER: [u8; 4] = [130, 131, 132, 143];

const LINK_SCOPE_MULTICAST: IpNet =
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16));

/// IP protocol numbers of tunnels without ports that a node may have undetected: IPv4 in IP, IPv6 in IP.
const IP_IN_IP: [u8; 2] = [4, 41];

const GRE: u8 = 47;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

const MULTICAST_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4));
const MULTICAST_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8));
const LINK_LOCAL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));

impl TableBuilder<'_> {
    /// The chains that the built-in ones jump to.
    pub(super) fn hooked_chains(&mut self) {
        let established = Rule::new([Match::Established], Target::Return);
        self.logged_ends();
        let forward = [
            vec![established.clone()],
            self.errors(),
            self.discovery("TOWPATH-FORWARD-ND", &Direction::BOTH),
            self.link_wide(),
            self.ask(&Direction::BOTH),
            self.unknown_pods(),
            self.forwarded_tunnels(),
        ];
        let mut input = self.received_tunnels();
        if self.options.enforce_pod_to_node {
            let own_egress = [Direction::Egress];
            input.push(established);
            input.extend(self.errors());
            input.extend(self.discovery("TOWPATH-INPUT-ND", &own_egress));
            input.extend(self.ask(&own_egress));
        }
        for (at, name, chain) in [
            (BuiltIn::Forward, names::forward(), forward.into_iter().flatten().collect::<Chain>()),
            (BuiltIn::Input, names::input(), input.into_iter().collect()),
        ] {
            self.table.chains.insert(name.clone(), chain);
            self.table.hooks.insert(at, name);
        }
        if layout::is_other() {
            self.table.chains.insert(names::output(), [].into_iter().collect());
            self.table.hooks.insert(BuiltIn::Output, names::output());
        }
    }

    /// Checks the isolated end of the packet, for each of `directions`.
    fn ask(&self, directions: &[Direction]) -> Vec<Rule> {
        let directions =
            directions.iter().filter_map(|direction| Some((*direction, self.isolated.get(direction)?)));
        directions
            .map(|(direction, set)| {
                let field = match direction {
                    Direction::Egress => Field::Source,
                    Direction::Ingress => Field::Destination,
                };
                Rule::new([Match::Set { set: set.clone(), field }], Target::Jump(names::dispatch(direction)))
            })
            .collect()
    }

    /// Drops what an address of this node's pod blocks sends, or is sent, unless a known pod holds it. Known pods may
    /// be isolated; that was checked before.
    fn unknown_pods(&self) -> Vec<Rule> {
        let blocks = self.resolved.pod_cidrs.iter().filter(|block| Family::of(block.addr()) == self.family);
        let blocks = blocks.filter(|_| self.options.close_unknown_pods);
        blocks
            .flat_map(|block| {
                Direction::BOTH.map(|direction| Rule::for_unknown_pods(self.family, *block, direction))
            })
            .collect()
    }

    /// The chains in which packets end that are logged and dropped for another reason than a policy.
    fn logged_ends(&mut self) {
        let is_logged = self.options.log_group.is_some();
        for (name, prefix, is_used) in [
            (names::unknown(), LogPrefix::UnknownPod, self.options.close_unknown_pods),
            (names::tunnel(), LogPrefix::Tunnel, is_logged),
            (names::link(), LogPrefix::Link, is_logged && self.options.link_rules),
            (names::no_chain(Direction::Egress), LogPrefix::NoChain(Direction::Egress), is_logged),
            (names::no_chain(Direction::Ingress), LogPrefix::NoChain(Direction::Ingress), is_logged),
        ] {
            if is_used {
                let chain = drop_unconditionally(self.family, self.options, &prefix).into_iter().collect();
                self.table.chains.insert(name, chain);
            }
        }
    }

    /// Drops a packet, in the given chain where it is logged before.
    pub(super) fn end(&self, chain: ChainName) -> Target {
        if self.options.log_group.is_some() { Target::Goto(chain) } else { Target::Drop }
    }

    /// Whether traffic that bypasses the addresses of pods is dropped here.
    fn drops_link_wide(&self) -> bool {
        let is_isolated = |pod: &LocalPod| pod.ingress.is_some() || pod.egress.is_some();
        self.options.link_rules && self.resolved.pods.iter().any(is_isolated)
    }

    /// Lets ICMP errors about connections pass. For IPv6 the chain for ICMPv6 does this.
    fn errors(&self) -> Vec<Rule> {
        match self.family {
            Family::V4 => vec![Rule::new([Match::Protocol(ICMP), Match::Related], Target::Return)],
            Family::V6 => Vec::new(),
        }
    }

    /// Sends ICMPv6 to its own chain, so that other packets need only one comparison. A return from that chain leaves
    /// the caller as well, so it contains the checks that the caller would have made.
    fn discovery(&mut self, name: &str, directions: &[Direction]) -> Vec<Rule> {
        let (Family::V6, Some(name)) = (self.family, ChainName::new(name)) else { return Vec::new() };
        let neighbours = NEIGHBOUR_DISCOVERY.map(|number| {
            let mut matches = vec![Match::Icmpv6Type(number), Match::HopLimit(255)];
            if SHORT_DISCOVERY.contains(&number) {
                matches.push(Match::LengthAtMost(DISCOVERY_LENGTH));
            }
            Rule::new(matches, Target::Return)
        });
        let listeners = MULTICAST_LISTENER.map(|number| {
            let link = Match::Destination(LINK_SCOPE_MULTICAST);
            Rule::new([Match::Icmpv6Type(number), Match::HopLimit(1), link], Target::Return)
        });
        let related = Rule::new([Match::Related], Target::Return);
        let pass = std::iter::once(related).chain(neighbours).chain(listeners);
        // The node sends to itself from its own address in the pods' block: that is no unknown pod.
        let is_forwarded = directions == Direction::BOTH;
        let unknown = if is_forwarded { self.unknown_pods() } else { Vec::new() };
        let ask = self.ask(directions).into_iter().chain(unknown);
        let chain = pass.chain(self.link_wide()).chain(ask).collect();
        self.table.chains.insert(name.clone(), chain);
        vec![Rule::new([Match::Protocol(ICMPV6)], Target::Goto(name))]
    }

    /// Drops traffic that bypasses the addresses of pods, while any pod of this node is isolated.
    ///
    /// On a bridge, pods also reach each other by broadcast, multicast and link-local addresses, which do not identify
    /// the pod: no policy could allow them, and no set of isolated pods contains them. None of it is ever routed.
    fn link_wide(&self) -> Vec<Rule> {
        if !self.drops_link_wide() {
            return Vec::new();
        }
        let matches = match self.family {
            Family::V4 => vec![Match::Destination(MULTICAST_V4), Match::Broadcast],
            Family::V6 => vec![
                Match::Source(LINK_LOCAL_V6),
                Match::Destination(LINK_LOCAL_V6),
                Match::Destination(MULTICAST_V6),
            ],
        };
        matches.into_iter().map(|m| Rule::new([m], self.end(names::link()))).collect()
    }

    /// Drops tunnel packets that a pod sends through this node to anything but a pod: a host could mistake them for its
    /// peer's, and forward the inner packet as if it came from some other pod.
    fn forwarded_tunnels(&self) -> Vec<Rule> {
        let from_local = Match::Set { set: names::local_pods(self.family), field: Field::Source };
        let to_host = Match::NotInSet { set: names::all_pods(self.family), field: Field::Destination };
        let protocols = self.tunnel_protocols().map(Match::Protocol);
        let end = self.end(names::tunnel());
        let drop = |tunnel| Rule::new([tunnel, from_local.clone(), to_host.clone()], end.clone());
        self.tunnel_ports().chain(protocols).map(drop).collect()
    }

    /// Drops tunnel packets to this node that come from a pod, and VXLAN packets that do not come from the hosts that
    /// it exchanges packets with, as far as these are known.
    fn received_tunnels(&mut self) -> Vec<Rule> {
        let from_local = Match::Set { set: names::local_pods(self.family), field: Field::Source };
        let end = self.end(names::tunnel());
        let vxlan = self.tunnels.map(|tunnels| &tunnels.vxlan).filter(|ports| !ports.is_empty());
        let mut rules = Vec::new();
        if let (Some(tunnels), Some(ports)) = (self.tunnels, vxlan) {
            let set = names::tunnel_ends(self.family);
            let members = tunnel_ends(self.family, tunnels, self.resolved);
            self.set(set.clone(), SetKind::Addresses, members);
            for ports in udp_ports(ports.iter().copied()) {
                let stranger = Match::NotInSet { set: set.clone(), field: Field::Source };
                rules.push(Rule::new([ports, stranger], end.clone()));
            }
        }
        let known: BTreeSet<u16> = vxlan.cloned().unwrap_or_default();
        let others = self.all_tunnel_ports().filter(|port| !known.contains(port)).collect::<Vec<_>>();
        for ports in udp_ports(others.into_iter()) {
            rules.push(Rule::new([ports, from_local.clone()], end.clone()));
        }
        for protocol in self.tunnel_protocols() {
            rules.push(Rule::new([Match::Protocol(protocol), from_local.clone()], end.clone()));
        }
        rules
    }

    fn tunnel_ports(&self) -> impl Iterator<Item = Match> + use<> {
        udp_ports(self.all_tunnel_ports().collect::<Vec<_>>().into_iter()).into_iter()
    }

    /// The UDP ports of tunnels: the configured one, and those of the node's interfaces.
    fn all_tunnel_ports(&self) -> impl Iterator<Item = u16> + use<> {
        let mut ports = BTreeSet::from([self.options.vxlan_port]);
        if let Some(tunnels) = self.tunnels {
            ports.extend(tunnels.vxlan.iter().chain(&tunnels.others));
        }
        ports.into_iter()
    }

    /// The IP protocols of tunnels without ports.
    fn tunnel_protocols(&self) -> impl Iterator<Item = u8> + use<> {
        let gre = self.tunnels.is_some_and(|tunnels| tunnels.protocols.contains(&GRE)).then_some(GRE);
        IP_IN_IP.into_iter().chain(gre)
    }
}

/// The hosts whose tunnel packets a node accepts: all nodes, and those to which it sends such packets itself.
pub(super) fn tunnel_ends(family: Family, tunnels: &Tunnels, resolved: &Resolved) -> OrdSet<Member> {
    let ends = tunnels.ends.iter().copied().filter(|end| Family::of(*end) == family);
    let mut members = resolved.nodes.of(family).clone();
    members.extend(ends.map(Member::Address));
    members
}

/// Matches for UDP packets to these ports, as many as needed.
fn udp_ports(ports: impl Iterator<Item = u16>) -> Vec<Match> {
    let ports: Vec<PortRange> = ports.map(PortRange::single).collect();
    ports.chunks(PORT_SLOTS).map(|ports| Match::Ports(Protocol::Udp, ports.to_vec())).collect()
}
