//! Compiles what a node must enforce into chains and sets.
//!
//! ```text
//! FORWARD (position 1) -> TOWPATH-FORWARD
//!   established, or an ICMP error about such a connection -> RETURN
//!   [v6] ICMPv6: neighbour and listener messages of the link -> RETURN, the others as below
//!   [without the interface guard] broadcast, multicast, link-local -> DROP, while a pod of this node is isolated
//!   source in tp4-egress-isolated-...            -> TOWPATH-EGRESS
//!   destination in tp4-ingress-isolated-...      -> TOWPATH-INGRESS
//!   tunnel packets from local pods to anything but pods -> TOWPATH-TUNNEL: log, DROP
//! TOWPATH-EGRESS: goto by address, through a shallow tree once there are many; end: TOWPATH-NO-EGRESS: log, DROP
//! TP-PE-<pod>:    to itself -> RETURN; goto its group
//! TP-SE-<address> [several pods report it]: jump to the chain of each pod, goto that of the last
//! TP-GE-<group>:  the program's rules -> RETURN; then log, count, DROP
//! ```
//!
//! The use of `goto` is essential: a RETURN inside a group chain goes back to TOWPATH-FORWARD, after the rule that
//! checks this direction. So "allowed" needs no packet mark, and the other direction is still checked. An allowed
//! packet returns to FORWARD and is never accepted outright: the rules of other programs still apply to it.
//!
//! Compiling is total and deterministic: every input has exactly one ruleset.

mod hooks;
pub(super) mod logs;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdSet;
use ipnet::IpNet;

use super::{
    Chain, ChainName, IpSet, Match, Member, Rule, Ruleset, SetKind, SetName, Table, Target, group::Cache,
    names,
};
use crate::{
    model::{Direction, Family, layout},
    policy::{
        program::{self, Chosen, Program},
        resolve::{LocalPod, Resolved},
    },
};

/// The configurable parts of enforcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether the sender of a denied packet is informed.
    pub deny: DenyAction,
    /// The netlink log group that gets a copy of denied packets; `None` logs nothing.
    pub log_group: Option<u16>,
    /// Who shares the limit of these copies.
    pub log_limit: LogLimit,
    /// Whether egress policy also applies to packets of a pod to its own node.
    pub enforce_pod_to_node: bool,
    /// The UDP port of the node's VXLAN endpoint. A pod may send to it only at another pod: else its packets would come
    /// out on another node as if they came from some other pod.
    pub vxlan_port: u16,
    /// Whether these rules must drop traffic between pods over addresses that belong to no pod: broadcast, multicast
    /// and link-local ones. They need not if the interface guard does.
    pub link_rules: bool,
    /// Whether to drop packets from and to addresses of this node's pod blocks that no known pod holds.
    pub close_unknown_pods: bool,
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
    /// The hosts to which its VXLAN interfaces forward: it must accept their packets.
    pub ends: BTreeSet<IpAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deny: DenyAction::Drop,
            log_group: Some(100),
            log_limit: LogLimit::OfASender,
            enforce_pod_to_node: false,
            vxlan_port: 8472,
            link_rules: true,
            close_unknown_pods: false,
        }
    }
}

/// Who shares the limit of copies of denied packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLimit {
    /// Each sender has its own, so that one with many cannot hide those of others. The kernel needs `xt_hashlimit`.
    OfASender,
    /// All packets that a rule denies.
    OfARule,
}

/// What happens to a denied packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyAction {
    /// It is dropped silently: its sender waits.
    Drop,
    /// Its sender is informed: connections are refused at once.
    Reject,
}

/// At most this many pods in one chain of the dispatch tree; beyond it the chain is split by prefix.
const DISPATCH_WIDTH: usize = 16;

/// The same in the other layout.
const OTHER_DISPATCH_WIDTH: usize = 1;

/// How many address bits one level of the dispatch tree distinguishes: at most 16 branches.
const DISPATCH_BITS: u8 = 4;

/// How deep the dispatch tree may be: the nft variant accepts 16 nested chains, ours included. Addresses that would
/// need more are in one long chain.
const DISPATCH_DEPTH: usize = 8;

/// The ruleset that enforces `resolved` on a node whose tunnels are not known.
#[must_use]
pub fn compile(resolved: &Resolved, options: &Options) -> Ruleset {
    Compiler::new(options.clone()).whole(resolved)
}

/// Compiles incrementally: each sync does only the work that the last change requires.
///
/// The result is always that of [`compile`].
#[derive(Clone, Debug)]
pub struct Compiler {
    options: Options,
    tunnels: Option<Tunnels>,
    last: Option<Compiled>,
    /// The groups of the programs of the last ruleset.
    v4: Cache,
    v6: Cache,
}

/// The last ruleset, and what its chains depend on.
#[derive(Clone, Debug)]
struct Compiled {
    pods: Arc<[LocalPod]>,
    pod_cidrs: Arc<[IpNet]>,
    ruleset: Ruleset,
}

impl Compiler {
    /// A compiler with these options.
    #[must_use]
    pub const fn new(options: Options) -> Self {
        Self { options, tunnels: None, last: None, v4: Cache::new(), v6: Cache::new() }
    }

    /// Sets the tunnels that end on the node.
    pub fn set_tunnels(&mut self, tunnels: Tunnels) {
        self.tunnels = Some(tunnels);
        self.last = None;
    }

    /// Every chain and every set. Those of unchanged programs are taken from the last ruleset.
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
    /// While no pod of this node and no program changes, no chain does, and only members of sets change: that is the
    /// case for most changes in a large cluster. Otherwise the chains and covers of unchanged programs are reused.
    pub fn compile(&mut self, resolved: &Resolved) -> Ruleset {
        let mut ruleset = match self.last.take() {
            Some(last) if Arc::ptr_eq(&last.pods, &resolved.pods) && last.pod_cidrs == resolved.pod_cidrs => {
                last.ruleset
            }
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
                set.members = hooks::tunnel_ends(family, tunnels, resolved);
            }
        }
        self.last = Some(Compiled {
            pods: resolved.pods.clone(),
            pod_cidrs: resolved.pod_cidrs.clone(),
            ruleset: ruleset.clone(),
        });
        ruleset
    }
}

/// The name of the set for a selection, and its kind.
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
    /// The sets of isolated pods, once they are built.
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
        let all: OrdSet<Member> = address_set(&mut local.iter().map(|(_, address)| *address));
        if self.options.close_unknown_pods {
            self.set(names::known_pods(self.family), SetKind::Addresses, all);
        }
        let local_pods = names::local_pods(self.family);
        let of_kind = |address| match names::kind(local_pods.role()) {
            SetKind::Networks => Member::Network(IpNet::from(address)),
            _ => Member::Address(address),
        };
        let all = local.iter().map(|(_, address)| of_kind(*address)).collect();
        self.set(local_pods.clone(), names::kind(local_pods.role()), all);
        let all_pods = self.resolved.all_pods.of(self.family).clone();
        self.set(names::all_pods(self.family), SetKind::Addresses, all_pods);
        let isolated = local.iter().filter(|(pod, _)| pod.ingress.is_some() || pod.egress.is_some());
        let counted = address_set(&mut isolated.map(|(_, address)| *address));
        let drops = names::drops(self.family);
        self.set(drops.clone(), names::kind(drops.role()), counted);
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

    /// The dispatch chain: continues in the isolated pod's chain, by its address; split into branches if there are many
    /// pods. A pod in no branch is isolated but has no chain, and stays closed.
    fn dispatch(&mut self, direction: Direction, leaves: &[(IpAddr, ChainName)], depth: usize) -> Chain {
        let own = |network| own_address(direction, network);
        let goto = |network, to: ChainName| Rule::new([own(network)], Target::Goto(to));
        let leaf = |(address, name): &(IpAddr, ChainName)| goto(IpNet::from(*address), name.clone());
        let end = Rule::new([], self.end(names::no_chain(direction)));
        let width = if layout::is_other() { OTHER_DISPATCH_WIDTH } else { DISPATCH_WIDTH };
        if leaves.len() <= width || depth == DISPATCH_DEPTH {
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

    /// The chain of an address that several isolated pods report: a packet must return from the chain of each of them.
    /// A packet that one of them allows returns here, after its jump; the last one is entered by goto, as usual.
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

    /// The chain of one pod: its traffic to itself passes, also through its own Service. An address that another pod
    /// also reports may not be the pod itself.
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
}

/// Matches packets whose isolated pod has an address in `network`.
fn own_address(direction: Direction, network: IpNet) -> Match {
    match direction {
        Direction::Ingress => Match::Destination(network),
        Direction::Egress => Match::Source(network),
    }
}

/// How many leading bits all these addresses share; they are of one family and ascending, so the first and the last
/// are enough.
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

/// Shortened to what the kernel's comment match accepts: 255 bytes. Names are ASCII.
fn shortened(text: &str) -> Arc<str> {
    text.chars().take(255).collect::<String>().into()
}

#[cfg(test)]
mod tests;
