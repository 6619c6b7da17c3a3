//! From what a node has to enforce to the chains and sets that do it.
//!
//! ```text
//! FORWARD (position 1) -> TOWPATH-FORWARD
//!   established or related                       -> RETURN
//!   [v6] ICMPv6: neighbour and listener messages -> RETURN, the others as below
//!   broadcast, multicast, link-local             -> DROP, while a pod of this node is isolated
//!   source in tp4-egress-isolated-...            -> TOWPATH-EGRESS
//!   destination in tp4-ingress-isolated-...      -> TOWPATH-INGRESS
//!   tunnel packets from local pods to nodes      -> DROP
//! TOWPATH-EGRESS: goto by address, through a shallow tree once there are many; end: DROP
//! TP-PE-<pod>:    to itself -> RETURN; goto its group
//! TP-GE-<group>:  the program's rules -> RETURN; then log, count, DROP
//! ```
//!
//! `goto` is the point of it: a RETURN inside a group chain goes back to TOWPATH-FORWARD, behind the rule that asked
//! about this direction. So "allowed" needs no packet mark, and the other direction is still asked. An allowed packet
//! returns to FORWARD and is never accepted outright: the rules of others still apply to it.
//!
//! Compiling is total and deterministic: every input has exactly one ruleset.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use imbl::OrdSet;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    BuiltIn, Chain, ChainName, Field, IpSet, Match, Member, Rule, Ruleset, SetKind, SetName, Table, Target,
    group::Cache, names,
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
}

impl Default for Options {
    fn default() -> Self {
        Self { deny: DenyAction::Drop, log_group: Some(100), enforce_pod_to_node: false, vxlan_port: 8472 }
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

/// ICMPv6 types without which IPv6 does not work on a link: multicast listener query, report and done (130 to 132),
/// router and neighbour discovery with redirects (133 to 137), and the second report (143).
const NEIGHBOUR_DISCOVERY: [u8; 9] = [130, 131, 132, 133, 134, 135, 136, 137, 143];

/// IP protocol numbers of tunnels without ports: IPv4 in IP and IPv6 in IP.
const IP_IN_IP: [u8; 2] = [4, 41];

const ICMPV6: u8 = 58;

const MULTICAST_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4));
const MULTICAST_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8));
const LINK_LOCAL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));

/// How deep the dispatch tree may be: the nft variant takes 16 chains behind each other, ours included. Addresses that
/// would need more are in one long chain.
const DISPATCH_DEPTH: usize = 8;

/// The ruleset that enforces `resolved`.
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
    last: Option<(Arc<[LocalPod]>, Ruleset)>,
    /// What was made for the programs of the last ruleset.
    v4: Cache,
    v6: Cache,
}

impl Compiler {
    /// A compiler with these options.
    #[must_use]
    pub const fn new(options: Options) -> Self {
        Self { options, last: None, v4: Cache::new(), v6: Cache::new() }
    }

    /// Every chain and every set. Those of programs that did not change are taken from the last ruleset.
    fn whole(&mut self, resolved: &Resolved) -> Ruleset {
        let options = &self.options;
        let table = |family, cache: &mut Cache| {
            cache.begin();
            let (isolated, table) = (BTreeMap::new(), Table::default());
            let table = TableBuilder { family, resolved, options, cache, isolated, table }.build();
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
            let nodes = [(names::nodes(family), &resolved.nodes)];
            let selections = resolved
                .selections
                .iter()
                .map(|(selection, members)| (selection_set(family, selection).0, members));
            for (name, members) in nodes.into_iter().chain(selections) {
                if let Some(set) = ruleset.table_mut(family).sets.get_mut(&name) {
                    set.members = members.of(family).clone();
                }
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
        self.set(names::nodes(self.family), SetKind::Addresses, self.resolved.nodes.of(self.family).clone());
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
        let mut leaves: BTreeMap<IpAddr, ChainName> = BTreeMap::new();
        for &(pod, address) in local {
            let Some(program) = pod.program(direction) else { continue };
            let group = self.group(direction, program);
            let name = names::pod(direction, &pod.key);
            if !self.table.chains.contains_key(&name) {
                self.pod(direction, pod, name.clone(), group);
            }
            leaves.insert(address, name);
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

    /// The chain of one pod: what it sends to itself passes, also by way of its own Service.
    fn pod(&mut self, direction: Direction, pod: &LocalPod, name: ChainName, group: ChainName) {
        let own = pod.addresses.iter().filter(|address| Family::of(**address) == self.family);
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
        let from_local = Match::Set { set: names::local_pods(self.family), field: Field::Source };
        let to_node = Match::Set { set: names::nodes(self.family), field: Field::Destination };

        let forward = [
            vec![established.clone()],
            self.discovery("TOWPATH-FORWARD-ND", &Direction::BOTH),
            self.link_wide(),
            self.ask(&Direction::BOTH),
            self.tunnels(&[from_local.clone(), to_node]),
        ];
        let mut input = self.tunnels(&[from_local]);
        if self.options.enforce_pod_to_node {
            let own_egress = [Direction::Egress];
            input.push(established);
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

    /// Sends ICMPv6 through a chain of its own, so that other packets pay for one comparison only. What that chain
    /// returns leaves the caller as well; so it asks itself what the caller would have asked.
    fn discovery(&mut self, name: &str, directions: &[Direction]) -> Vec<Rule> {
        let (Family::V6, Some(name)) = (self.family, ChainName::new(name)) else { return Vec::new() };
        let pass = NEIGHBOUR_DISCOVERY.map(|number| Rule::new([Match::Icmpv6Type(number)], Target::Return));
        let chain = pass.into_iter().chain(self.link_wide()).chain(self.ask(directions)).collect();
        self.table.chains.insert(name.clone(), chain);
        vec![Rule::new([Match::Protocol(ICMPV6)], Target::Goto(name))]
    }

    /// Drops what goes past the addresses of pods, while any pod of this node is isolated.
    ///
    /// On a bridge, pods reach each other also by broadcast, multicast and link-local addresses, which say nothing of
    /// the pod: no policy could allow them, and no set of isolated pods knows them. None of it is ever routed.
    fn link_wide(&self) -> Vec<Rule> {
        let is_isolated = |pod: &LocalPod| pod.ingress.is_some() || pod.egress.is_some();
        if !self.resolved.pods.iter().any(is_isolated) {
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

    /// Drops tunnel packets for which `ends` hold.
    fn tunnels(&self, ends: &[Match]) -> Vec<Rule> {
        let vxlan = Match::Ports(Protocol::Udp, vec![PortRange::single(self.options.vxlan_port)]);
        let tunnels = std::iter::once(vxlan).chain(IP_IN_IP.map(Match::Protocol));
        tunnels.map(|tunnel| Rule::new([&[tunnel], ends].concat(), Target::Drop)).collect()
    }
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
