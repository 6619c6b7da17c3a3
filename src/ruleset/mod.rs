//! How it is enforced: chains, rules and sets, as data.
//!
//! ```text
//! Resolved --compile--> Ruleset --plan(Observed)--> Steps --render--> text for the kernel edge
//!                          |
//!                          +--trace(Packet)--> what these rules do with a packet
//! ```
//!
//! The words are netfilter's (chain, rule, match, target, set), the text is not: only [`render`] writes what
//! `iptables-restore` and `ipset restore` read, so that another dataplane can stand beside that one.

mod areas;
pub mod compile;
mod group;
pub mod guard;
pub mod names;
pub mod observed;
pub mod plan;
pub mod render;
pub mod trace;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use imbl::OrdSet;
use ipnet::IpNet;

pub use crate::policy::members::Member;

use crate::model::{Direction, Family, PortRange, Protocol};

/// Everything of ours that the kernel of one node shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// For IPv4.
    pub v4: Table,
    /// For IPv6.
    pub v6: Table,
}

impl Ruleset {
    /// The table of one family.
    #[must_use]
    pub fn table(&self, family: Family) -> &Table {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The table of one family, to change.
    pub fn table_mut(&mut self, family: Family) -> &mut Table {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Closes what cannot be written: for each of `broken`, the allow rules that need that set vanish, and every
    /// jump to that chain drops. Nothing else changes, so that one bad object costs no other pod anything.
    ///
    /// An allow rule needs the set of what is excepted from it as much as any other: without it, it would allow more.
    /// Sets that close, those of isolated pods first of all, have no such way out (see [`names::may_break`]).
    #[must_use]
    pub fn without(mut self, broken: &BTreeSet<Object>) -> Self {
        for family in Family::BOTH {
            if broken.iter().any(|object| object.family() == family) {
                self.table_mut(family).close(family, broken);
            }
        }
        self
    }
}

/// Our chains and sets of one family, and where they are hooked in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Our chains in the filter table.
    pub chains: BTreeMap<ChainName, Chain>,
    /// Our sets.
    pub sets: BTreeMap<SetName, IpSet>,
    /// The built-in chains whose first rule jumps to a chain of ours.
    pub hooks: BTreeMap<BuiltIn, ChainName>,
}

impl Table {
    fn close(&mut self, family: Family, broken: &BTreeSet<Object>) {
        self.sets.retain(|name, _| !broken.contains(&Object::Set(name.clone())));
        let any_chain = broken.iter().any(|object| matches!(object, Object::Chain(..)));
        let is_broken_chain =
            |name: &ChainName| any_chain && broken.contains(&Object::Chain(family, name.clone()));
        self.chains.retain(|name, _| !is_broken_chain(name));
        // Only what allows, and what counts or logs, may go for want of a set. A rule that closes stays and keeps its
        // set: without the rule its packets would pass.
        let needs_broken_set = |rule: &Rule| {
            let closes = match rule.target {
                Target::Return | Target::Log { .. } => false,
                Target::Drop | Target::Reject => !counts(rule),
                Target::Jump(_) | Target::Goto(_) => true,
            };
            let is_broken = |set: &SetName| broken.contains(&Object::Set(set.clone()));
            !closes && rule.matches.iter().filter_map(Match::set).any(is_broken)
        };
        for chain in self.chains.values_mut() {
            let touched = |rule: &Rule| {
                needs_broken_set(rule)
                    || matches!(&rule.target, Target::Jump(to) | Target::Goto(to) if is_broken_chain(to))
            };
            if !chain.rules.iter().any(touched) {
                continue;
            }
            chain.rules = chain
                .rules
                .iter()
                .filter(|rule| !needs_broken_set(rule))
                .map(|rule| match &rule.target {
                    Target::Jump(to) | Target::Goto(to) if is_broken_chain(to) => {
                        Rule { matches: rule.matches.clone(), target: Target::Drop }
                    }
                    _ => rule.clone(),
                })
                .collect();
        }
    }
}

/// Whether a rule only counts what the rule behind it drops as well.
fn counts(rule: &Rule) -> bool {
    rule.matches.iter().any(|m| matches!(m, Match::Set { set, .. } if set.role() == SetRole::Drops))
}

/// A chain or a set of ours, as something that an operation can fail on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// A chain of one family's filter table.
    Chain(Family, ChainName),
    /// A set; its name tells the family.
    Set(SetName),
}

impl Object {
    fn family(&self) -> Family {
        match self {
            Self::Chain(family, _) => *family,
            Self::Set(name) => name.family(),
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain(family, name) => write!(f, "{family} chain {name}"),
            Self::Set(name) => write!(f, "set {name}"),
        }
    }
}

/// A built-in chain of the filter table that we hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BuiltIn {
    /// Packets to the node itself.
    Input,
    /// Packets through the node: between its pods, and between them and the world.
    Forward,
}

impl BuiltIn {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Input, Self::Forward];

    /// The kernel's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
        }
    }
}

/// The name of a chain of ours; [`names`] says which names are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName(Arc<str>);

impl ChainName {
    /// The name, if this version or a former one gives it to chains.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        names::is_chain(name).then(|| Self(name.into()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a set of ours: a family, a role and, for most roles, a digest. Ordered as its text is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName {
    text: Arc<str>,
    family: Family,
    role: SetRole,
}

impl SetName {
    /// The name, if this version or a former one gives it to sets.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let (family, role) = names::parse_set(name)?;
        Some(Self { text: name.into(), family, role })
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The family whose rules use it.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// What the set is for.
    #[must_use]
    pub const fn role(&self) -> SetRole {
        self.role
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a set of ours is for. [`names`] says what follows from it: its name, its kind, and when it may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetRole {
    /// Counts what was dropped, by isolated pod.
    Drops,
    /// The pods of this node.
    LocalPods,
    /// The addresses of nodes.
    Nodes,
    /// The addresses of all pods of the cluster.
    AllPods,
    /// The hosts whose tunnel packets this node accepts.
    TunnelEnds,
    /// The pods of this node that are isolated in one direction; named after its members.
    Isolated(Direction),
    /// The pods of a selection; named after what is selected.
    Pods,
    /// The named ports of a selection; named after what is selected.
    NamedPorts,
    /// Networks; named after its members.
    Networks,
    /// Networks that are excepted from blocks; named after its members.
    Excepts,
    /// Networks with protocol and port; named after its members.
    NetworkPorts,
    /// Ports; named after its members.
    Ports,
}

/// A chain: rules that a packet meets in this order. A packet that leaves it at its end goes on as after `Return`.
#[derive(Clone, Debug, Eq)]
pub struct Chain {
    /// Its rules.
    pub rules: Arc<[Rule]>,
}

/// Chains of programs that did not change are shared from one ruleset to the next: equal at once.
impl PartialEq for Chain {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.rules, &other.rules) || self.rules == other.rules
    }
}

impl FromIterator<Rule> for Chain {
    fn from_iter<I: IntoIterator<Item = Rule>>(rules: I) -> Self {
        Self { rules: rules.into_iter().collect() }
    }
}

/// A rule: where every match holds, the target happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What must hold of the packet, in the order in which it is tested: cheap first.
    pub matches: Vec<Match>,
    /// What happens then.
    pub target: Target,
}

impl Rule {
    /// A rule.
    #[must_use]
    pub fn new(matches: impl Into<Vec<Match>>, target: Target) -> Self {
        Self { matches: matches.into(), target }
    }
}

/// A condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// It belongs to a connection that passed before.
    Established,
    /// It is about a connection that passed before: with the protocol ICMP, an error. With other protocols it would be
    /// a connection that a helper expects, of which policy knows nothing.
    Related,
    /// Its IP protocol number.
    Protocol(u8),
    /// Its protocol and destination port: at most [`PORT_SLOTS`] slots.
    Ports(Protocol, Vec<PortRange>),
    /// It goes to everybody on a link of this node: the broadcast address of one of its networks, or of all.
    Broadcast,
    /// It is an ICMPv6 message of this type.
    Icmpv6Type(u8),
    /// Its source lies in this network.
    Source(IpNet),
    /// Its destination lies in this network.
    Destination(IpNet),
    /// What `field` says of it is a member of the set.
    Set {
        /// The set.
        set: SetName,
        /// What is looked up.
        field: Field,
    },
    /// What `field` says of it is an address, and no member of the set.
    ///
    /// The set closes here. Only a set of addresses or networks may stand in it: one that also looks at ports has no
    /// answer to a packet without ports, and the kernel takes no answer for "not a member".
    NotInSet {
        /// The set.
        set: SetName,
        /// What is looked up: an address.
        field: Field,
    },
    /// It is an IPv6 packet with this hop limit. In FORWARD, 255 means that no router has passed it on, this node
    /// included.
    HopLimit(u8),
    /// It has at most so many bytes, its IP header included.
    LengthAtMost(u16),
    /// Not more often than this; for logging only.
    Limit {
        /// Packets a second, with a burst of as many.
        per_second: u32,
    },
    /// Always holds; tells a reader what the rule is for. At most 255 bytes.
    Comment(Arc<str>),
}

impl Match {
    /// The set that it asks.
    #[must_use]
    pub const fn set(&self) -> Option<&SetName> {
        match self {
            Self::Set { set, .. } | Self::NotInSet { set, .. } => Some(set),
            _ => None,
        }
    }
}

/// How many slots one [`Match::Ports`] has; a range of more than one port takes two. The kernel's `multiport` match
/// has room for so many.
pub const PORT_SLOTS: usize = 15;

/// What a set lookup takes from a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// Its source address.
    Source,
    /// Its destination address.
    Destination,
    /// Its destination port, whatever the protocol.
    DestinationPort,
    /// Its destination address, protocol and destination port.
    DestinationEndpoint,
    /// Its source address, protocol and destination port.
    SourceWithPort,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Leaves the chain, for the rule behind the latest `Jump`.
    Return,
    /// Drops the packet.
    Drop,
    /// Drops the packet and tells its sender: TCP by a reset, others by ICMP.
    Reject,
    /// Goes through another chain and comes back.
    Jump(ChainName),
    /// Goes on in another chain; what returns from there returns from here too.
    Goto(ChainName),
    /// Hands a copy to whoever listens on this netlink log group, and goes on.
    Log {
        /// The netlink log group, 1 to 65535.
        group: u16,
        /// Stands before the copy; at most 64 bytes with its end.
        prefix: Arc<str>,
    },
}

/// A set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpSet {
    /// What it can hold.
    pub kind: SetKind,
    /// What it holds. A clone shares the members, and a difference costs what differs.
    pub members: OrdSet<Member>,
}

/// What a set can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// Addresses (`hash:ip`).
    Addresses,
    /// Addresses, each with counters of the packets and bytes that matched it.
    CountedAddresses,
    /// Networks (`hash:net`).
    Networks,
    /// Addresses with protocol and port (`hash:ip,port`).
    Endpoints,
    /// Ports (`bitmap:port`).
    Ports,
    /// Networks with protocol and port (`hash:net,port`).
    NetworkEndpoints,
}
