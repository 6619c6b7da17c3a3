//! From what a node has to enforce to the chains and sets that do it.
//!
//! ```text
//! FORWARD (position 1) -> TOWPATH-FORWARD
//!   established, or an ICMP error about such a connection -> RETURN
//!   [v6] ICMPv6: neighbour and listener messages of the link -> RETURN, the others as below
//!   [without the interface guard] broadcast, multicast, link-local -> DROP, while a pod of this node is isolated
//!   source in tp4-egress-isolated-...            -> TOWPATH-EGRESS
//!   destination in tp4-ingress-isolated-...      -> TOWPATH-INGRESS
//!   tunnel packets from local pods to others than pods -> DROP
//! TOWPATH-EGRESS: goto by address, through a shallow tree once there are many; end: DROP
//! TP-PE-<pod>:    to itself -> RETURN; goto its group
//! TP-SE-<address> [several pods report it]: jump to the chain of each pod, goto that of the last
//! TP-GE-<group>:  the program's rules -> RETURN; then log, count, DROP
//! ```
//!
//! `goto` is the point of it: a RETURN inside a group chain goes back to TOWPATH-FORWARD, behind the rule that asked
//! about this direction. So "allowed" needs no packet mark, and the other direction is still asked. An allowed packet
//! returns to FORWARD and is never accepted outright: the rules of others still apply to it.
//!
//! Compiling is total and deterministic: every input has exactly one ruleset.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use imbl::OrdSet;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    BuiltIn, Chain, ChainName, Field, IpSet, Match, Member, PORT_SLOTS, Rule, Ruleset, SetKind, SetName,
    Table, Target, group::Cache, names,
};
use crate::{
    model::{Direction, Family, PortRange, Protocol},
    policy::{
        program::{self, Chosen, Program},
        resolve::{LocalPod, Resolved},
    },
};

/// How a node enforces, where that is a matter of taste.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What a sender learns of a denied packet.
    pub deny: DenyAction,
    /// The netlink log group that gets a copy of denied packets; `None` logs nothing.
    pub log_group: Option<u16>,
    /// Whether egress policy also holds for packets of a pod to its own node.
    pub enforce_pod_to_node: bool,
    /// The UDP port of the node's VXLAN endpoint, to which no pod may send: its packets would come out on another
    /// node as if they were some other pod's.
    pub vxlan_port: u16,
    /// Whether these rules have to drop what passes between pods by addresses that are no pod's: broadcast, multicast
    /// and link-local ones. They need not where the interface guard does.
    pub link_rules: bool,
}

/// The tunnels that end on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tunnels {
    /// The UDP ports of its VXLAN interfaces that exchange packets with known hosts only.
    pub vxlan: BTreeSet<u16>,
    /// The UDP ports of its other VXLAN and Geneve interfaces.
    pub others: BTreeSet<u16>,
    /// The IP protocols of its other tunnels: 4 (IPv4 in IP), 41 (IPv6 in IP), 47 (GRE).
    pub protocols: BTreeSet<u8>,
    /// The hosts to which its VXLAN interfaces forward: those whose packets it has to accept.
    pub ends: BTreeSet<IpAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deny: DenyAction::Drop,
            log_group: Some(100),
            enforce_pod_to_node: false,
            vxlan_port: 8472,
            link_rules: true,
        }
    }
}

/// What happens to a denied packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyAction {
    /// It vanishes: its sender waits.
    Drop,
    /// Its sender is told: connections are refused at once.
    Reject,
}

/// At most this many pods in one chain of the dispatch tree; beyond it the chain is split by prefix.
const DISPATCH_WIDTH: usize = 16;

/// By how many bits one level of the dispatch tree tells addresses apart: at most 16 branches.
const DISPATCH_BITS: u8 = 4;

/// ICMPv6 types without which IPv6 does not work on a link: router solicitation and advertisement, neighbour
/// solicitation and advertisement, redirect. A receiver takes them with a hop limit of 255 only (RFC 4861), which no
/// packet has that a router passed on.
const NEIGHBOUR_DISCOVERY: [u8; 5] = [133, 134, 135, 136, 137];

/// Of these, the ones that no host sends in more than [`DISCOVERY_LENGTH`] bytes.
const SHORT_DISCOVERY: [u8; 3] = [133, 135, 136];

/// 40 bytes of IPv6 header, 24 of the message, and room for the options that hosts send with it: their hardware
/// address and a nonce. More would be a message of another kind.
const DISCOVERY_LENGTH: u16 = 104;

/// ICMPv6 types of multicast listeners: query, report, done, and the second report. They stay on their link: they are
/// sent with a hop limit of 1 (RFC 2710, RFC 3810), to a multicast group of the link.
const MULTICAST_LISTENER: [u8; 4] = [130, 131, 132, 143];

const LINK_SCOPE_MULTICAST: IpNet =
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16));

/// IP protocol numbers of tunnels without ports that a node may have without our knowledge: IPv4 in IP, IPv6 in IP.
const IP_IN_IP: [u8; 2] = [4, 41];

const GRE: u8 = 47;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

const MULTICAST_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4));
const MULTICAST_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8));
const LINK_LOCAL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));

/// How deep the dispatch tree may be: the nft variant takes 16 chains behind each other, ours included. Addresses that
/// would need more are in one long chain.
const DISPATCH_DEPTH: usize = 8;

/// The ruleset that enforces `resolved` on a node of whose tunnels nothing is known.
#[must_use]
pub fn compile(resolved: &Resolved, options: &Options) -> Ruleset {
    Compiler::new(options.clone()).whole(resolved)
}

/// Compiles round after round, and does only the work that the last change makes necessary.
///
/// What it returns is always what [`compile`] would.
#[derive(Clone, Debug)]
pub struct Compiler {
    options: Options,
    tunnels: Option<Tunnels>,
    last: Option<(Arc<[LocalPod]>, Ruleset)>,
    /// What was made for the programs of the last ruleset.
    v4: Cache,
    v6: Cache,
}

impl Compiler {
    /// A compiler with these options.
    #[must_use]
    pub const fn new(options: Options) -> Self {
        Self { options, tunnels: None, last: None, v4: Cache::new(), v6: Cache::new() }
    }

    /// Takes note of the tunnels that end on the node.
    pub fn set_tunnels(&mut self, tunnels: Tunnels) {
        self.tunnels = Some(tunnels);
        self.last = None;
    }

    /// Every chain and every set. Those of programs that did not change are taken from the last ruleset.
    fn whole(&mut self, resolved: &Resolved) -> Ruleset {
        let (options, tunnels) = (&self.options, self.tunnels.as_ref());
        let table = |family, cache: &mut Cache| {
            cache.begin();
            let (isolated, table) = (BTreeMap::new(), Table::default());
            let table = TableBuilder { family, resolved, options, tunnels, cache, isolated, table }.build();
            cache.end();
            table
        };
        Ruleset { v4: table(Family::V4, &mut self.v4), v6: table(Family::V6, &mut self.v6) }
    }

    /// The ruleset that enforces `resolved`.
    ///
    /// While no pod of this node and no program changed, no chain does, and sets only get other members: that is
    /// what most changes in a large cluster come to. Otherwise the chains and covers of programs that did not change
    /// are taken over.
    pub fn compile(&mut self, resolved: &Resolved) -> Ruleset {
        let mut ruleset = match self.last.take() {
            Some((pods, ruleset)) if Arc::ptr_eq(&pods, &resolved.pods) => ruleset,
            _ => self.whole(resolved),
        };
        for family in Family::BOTH {
            let addresses = [(names::all_pods(family), &resolved.all_pods)];
            let selections = resolved
                .selections
                .iter()
                .map(|(selection, members)| (selection_set(family, selection).0, members));
            let table = ruleset.table_mut(family);
            for (name, members) in addresses.into_iter().chain(selections) {
                if let Some(set) = table.sets.get_mut(&name) {
                    set.members = members.of(family).clone();
                }
            }
            if let (Some(set), Some(tunnels)) =
                (table.sets.get_mut(&names::tunnel_ends(family)), &self.tunnels)
            {
                set.members = tunnel_ends(family, tunnels, resolved);
            }
        }
        self.last = Some((resolved.pods.clone(), ruleset.clone()));
        ruleset
    }
}

/// The set that holds the members of a selection, and its kind.
pub(super) fn selection_set(family: Family, selection: &program::Selection) -> (SetName, SetKind) {
    match &selection.chosen {
        Chosen::Pods(_) => (names::pods(family, &selection.digest), SetKind::Addresses),
        Chosen::NamedPort { .. } => (names::named_ports(family, &selection.digest), SetKind::Endpoints),
    }
}

struct TableBuilder<'a> {
    family: Family,
    resolved: &'a Resolved,
    options: &'a Options,
    tunnels: Option<&'a Tunnels>,
    cache: &'a mut Cache,
    /// The sets of isolated pods, once they are made.
    isolated: BTreeMap<Direction, SetName>,
    table: Table,
}

impl TableBuilder<'_> {
    fn build(mut self) -> Table {
        let local: Vec<(&LocalPod, IpAddr)> = self
            .resolved
            .pods
            .iter()
            .flat_map(|pod| pod.addresses.iter().map(move |address| (pod, *address)))
            .filter(|(_, address)| Family::of(*address) == self.family)
            .collect();
        let address_set =
            |addresses: &mut dyn Iterator<Item = IpAddr>| addresses.map(Member::Address).collect();
        let all = address_set(&mut local.iter().map(|(_, address)| *address));
        self.set(names::local_pods(self.family), SetKind::Addresses, all);
        let all_pods = self.resolved.all_pods.of(self.family).clone();
        self.set(names::all_pods(self.family), SetKind::Addresses, all_pods);
        let isolated = local.iter().filter(|(pod, _)| pod.ingress.is_some() || pod.egress.is_some());
        let counted = address_set(&mut isolated.map(|(_, address)| *address));
        self.set(names::drops(self.family), SetKind::CountedAddresses, counted);
        for direction in Direction::BOTH {
            self.direction(direction, &local);
        }
        self.hooked_chains();
        self.table
    }

    /// The chains and sets of one direction.
    fn direction(&mut self, direction: Direction, local: &[(&LocalPod, IpAddr)]) {
        let mut claims: BTreeMap<IpAddr, Vec<&LocalPod>> = BTreeMap::new();
        for &(pod, address) in local {
            let pods = claims.entry(address).or_default();
            if pods.iter().all(|other| other.key != pod.key) {
                pods.push(pod);
            }
        }
        let mut leaves: BTreeMap<IpAddr, ChainName> = BTreeMap::new();
        for (address, pods) in &claims {
            let mut chains = Vec::new();
            for pod in pods {
                let Some(program) = pod.program(direction) else { continue };
                let group = self.group(direction, program);
                let name = names::pod(direction, &pod.key);
                if !self.table.chains.contains_key(&name) {
                    self.pod(direction, pod, name.clone(), group);
                }
                chains.push(name);
            }
            let Some(last) = chains.pop() else { continue };
            let leaf = if chains.is_empty() { last } else { self.shared(direction, *address, chains, last) };
            leaves.insert(*address, leaf);
        }
        let isolated = leaves.keys().copied().map(Member::Address).collect();
        let name = names::isolated(self.family, direction, &isolated);
        self.set(name.clone(), SetKind::Addresses, isolated);
        self.isolated.insert(direction, name);
        let leaves: Vec<(IpAddr, ChainName)> = leaves.into_iter().collect();
        let dispatch = self.dispatch(direction, &leaves, 0);
        self.table.chains.insert(names::dispatch(direction), dispatch);
    }

    /// A chain that goes on, by the isolated pod's address, in that pod's chain; made of branches when there are many.
    /// Who is in no branch is isolated but has no chain, and stays closed.
    fn dispatch(&mut self, direction: Direction, leaves: &[(IpAddr, ChainName)], depth: usize) -> Chain {
        let own = |network| own_address(direction, network);
        let goto = |network, to: ChainName| Rule::new([own(network)], Target::Goto(to));
        let leaf = |(address, name): &(IpAddr, ChainName)| goto(IpNet::from(*address), name.clone());
        let end = Rule::new([], Target::Drop);
        if leaves.len() <= DISPATCH_WIDTH || depth == DISPATCH_DEPTH {
            return leaves.iter().map(leaf).chain([end]).collect();
        }
        let prefix = common_prefix(leaves).saturating_add(DISPATCH_BITS).min(self.family.bits());
        let network = |address: IpAddr| IpNet::new_assert(address, prefix).trunc();
        let branches = leaves.chunk_by(|(a, _), (b, _)| network(*a) == network(*b));
        let mut rules = Vec::new();
        for branch in branches {
            if let [single] = branch {
                rules.push(leaf(single));
            } else if let [(first, _), ..] = branch {
                let network = network(*first);
                let name = names::branch(direction, network);
                let chain = self.dispatch(direction, branch, depth + 1);
                self.table.chains.insert(name.clone(), chain);
                rules.push(goto(network, name));
            }
        }
        rules.into_iter().chain([end]).collect()
    }

    /// The chain of an address that several isolated pods report: a packet has to come back from the chain of each of
    /// them. What one of them allows returns here, behind its jump; the last one is entered by goto, as ever.
    fn shared(
        &mut self,
        direction: Direction,
        address: IpAddr,
        others: Vec<ChainName>,
        last: ChainName,
    ) -> ChainName {
        let name = names::shared(direction, address);
        let jumps = others.into_iter().map(|chain| Rule::new([], Target::Jump(chain)));
        let goto = Rule::new([], Target::Goto(last));
        self.table.chains.insert(name.clone(), jumps.chain([goto]).collect());
        name
    }

    /// The chain of one pod: what it sends to itself passes, also by way of its own Service. An address that another
    /// pod reports as well may not be the pod itself.
    fn pod(&mut self, direction: Direction, pod: &LocalPod, name: ChainName, group: ChainName) {
        let is_own =
            |address: &&IpAddr| Family::of(**address) == self.family && !pod.shared.contains(*address);
        let own = pod.addresses.iter().filter(is_own);
        let itself = own.map(|address| {
            let other_end = match direction {
                Direction::Ingress => Match::Source(IpNet::from(*address)),
                Direction::Egress => Match::Destination(IpNet::from(*address)),
            };
            Rule::new([other_end], Target::Return)
        });
        let comment = Match::Comment(shortened(&format!("{} {direction}", pod.key)));
        let goto = Rule::new([comment], Target::Goto(group));
        self.table.chains.insert(name, itself.chain([goto]).collect());
    }

    /// The chain of all pods with this program.
    fn group(&mut self, direction: Direction, program: &Program) -> ChainName {
        let name = names::group(direction, &program.digest);
        if !self.table.chains.contains_key(&name) {
            let group = self.cache.group(self.family, self.options, direction, program);
            for (set, content) in &group.sets {
                self.table.sets.entry(set.clone()).or_insert_with(|| content.clone());
            }
            for selection in &group.selections {
                self.selection(selection);
            }
            self.table.chains.insert(name.clone(), group.chain.clone());
        }
        name
    }

    /// The set of a selection.
    fn selection(&mut self, selection: &Arc<program::Selection>) {
        let (name, kind) = selection_set(self.family, selection);
        let members = self.resolved.selections.get(selection).map(|members| members.of(self.family).clone());
        self.set(name, kind, members.unwrap_or_default());
    }

    fn set(&mut self, name: SetName, kind: SetKind, members: OrdSet<Member>) {
        self.table.sets.entry(name).or_insert(IpSet { kind, members });
    }

    /// The chains that the built-in ones jump to.
    fn hooked_chains(&mut self) {
        let established = Rule::new([Match::Established], Target::Return);
        let forward = [
            vec![established.clone()],
            self.errors(),
            self.discovery("TOWPATH-FORWARD-ND", &Direction::BOTH),
            self.link_wide(),
            self.ask(&Direction::BOTH),
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
    }

    /// Asks about the isolated end of the packet, for each of `directions`.
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

    /// Lets ICMP errors about connections pass. In IPv6 the chain for ICMPv6 does.
    fn errors(&self) -> Vec<Rule> {
        match self.family {
            Family::V4 => vec![Rule::new([Match::Protocol(ICMP), Match::Related], Target::Return)],
            Family::V6 => Vec::new(),
        }
    }

    /// Sends ICMPv6 through a chain of its own, so that other packets pay for one comparison only. What that chain
    /// returns leaves the caller as well; so it asks itself what the caller would have asked.
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
        let chain = pass.chain(self.link_wide()).chain(self.ask(directions)).collect();
        self.table.chains.insert(name.clone(), chain);
        vec![Rule::new([Match::Protocol(ICMPV6)], Target::Goto(name))]
    }

    /// Drops what goes past the addresses of pods, while any pod of this node is isolated.
    ///
    /// On a bridge, pods reach each other also by broadcast, multicast and link-local addresses, which say nothing of
    /// the pod: no policy could allow them, and no set of isolated pods knows them. None of it is ever routed.
    fn link_wide(&self) -> Vec<Rule> {
        let is_isolated = |pod: &LocalPod| pod.ingress.is_some() || pod.egress.is_some();
        if !self.options.link_rules || !self.resolved.pods.iter().any(is_isolated) {
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
        matches.into_iter().map(|m| Rule::new([m], Target::Drop)).collect()
    }

    /// Drops tunnel packets that a pod sends through this node to anything that is no pod: a host could take them for
    /// its peer's, and let out what is inside as some other pod's.
    fn forwarded_tunnels(&self) -> Vec<Rule> {
        let from_local = Match::Set { set: names::local_pods(self.family), field: Field::Source };
        let to_host = Match::NotInSet { set: names::all_pods(self.family), field: Field::Destination };
        let protocols = self.tunnel_protocols().map(Match::Protocol);
        let drop = |tunnel| Rule::new([tunnel, from_local.clone(), to_host.clone()], Target::Drop);
        self.tunnel_ports().chain(protocols).map(drop).collect()
    }

    /// Drops tunnel packets to this node that come from a pod, and those of VXLAN that come from anybody but the hosts
    /// that it exchanges packets with, as far as these are known.
    fn received_tunnels(&mut self) -> Vec<Rule> {
        let from_local = Match::Set { set: names::local_pods(self.family), field: Field::Source };
        let vxlan = self.tunnels.map(|tunnels| &tunnels.vxlan).filter(|ports| !ports.is_empty());
        let mut rules = Vec::new();
        if let (Some(tunnels), Some(ports)) = (self.tunnels, vxlan) {
            let set = names::tunnel_ends(self.family);
            let members = tunnel_ends(self.family, tunnels, self.resolved);
            self.set(set.clone(), SetKind::Addresses, members);
            for ports in udp_ports(ports.iter().copied()) {
                let stranger = Match::NotInSet { set: set.clone(), field: Field::Source };
                rules.push(Rule::new([ports, stranger], Target::Drop));
            }
        }
        let known: BTreeSet<u16> = vxlan.cloned().unwrap_or_default();
        let others = self.all_tunnel_ports().filter(|port| !known.contains(port)).collect::<Vec<_>>();
        for ports in udp_ports(others.into_iter()) {
            rules.push(Rule::new([ports, from_local.clone()], Target::Drop));
        }
        for protocol in self.tunnel_protocols() {
            rules.push(Rule::new([Match::Protocol(protocol), from_local.clone()], Target::Drop));
        }
        rules
    }

    fn tunnel_ports(&self) -> impl Iterator<Item = Match> + use<> {
        udp_ports(self.all_tunnel_ports().collect::<Vec<_>>().into_iter()).into_iter()
    }

    /// The UDP ports of tunnels: the one that is configured, and those of the node's interfaces.
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
fn tunnel_ends(family: Family, tunnels: &Tunnels, resolved: &Resolved) -> OrdSet<Member> {
    let ends = tunnels.ends.iter().copied().filter(|end| Family::of(*end) == family);
    let mut members = resolved.nodes.of(family).clone();
    members.extend(ends.map(Member::Address));
    members
}

/// Matches of UDP packets to these ports, as many as are needed.
fn udp_ports(ports: impl Iterator<Item = u16>) -> Vec<Match> {
    let ports: Vec<PortRange> = ports.map(PortRange::single).collect();
    ports.chunks(PORT_SLOTS).map(|ports| Match::Ports(Protocol::Udp, ports.to_vec())).collect()
}

/// That the isolated pod of a packet lies in `network`.
fn own_address(direction: Direction, network: IpNet) -> Match {
    match direction {
        Direction::Ingress => Match::Destination(network),
        Direction::Egress => Match::Source(network),
    }
}

/// How many leading bits all these addresses share; they are of one family and ascend, so that its first and last
/// tell.
fn common_prefix(leaves: &[(IpAddr, ChainName)]) -> u8 {
    let bits = match (leaves.first(), leaves.last()) {
        (Some((IpAddr::V4(a), _)), Some((IpAddr::V4(b), _))) => {
            (u32::from(*a) ^ u32::from(*b)).leading_zeros()
        }
        (Some((IpAddr::V6(a), _)), Some((IpAddr::V6(b), _))) => {
            (u128::from(*a) ^ u128::from(*b)).leading_zeros()
        }
        _ => 0,
    };
    u8::try_from(bits).unwrap_or(0)
}

/// At most as long as the kernel's comment match takes: 255 bytes. Names are ASCII.
fn shortened(text: &str) -> Arc<str> {
    text.chars().take(255).collect::<String>().into()
}
