//! How policy is enforced: chains, rules and sets, as data.
//!
//! ```text
//! Resolved --compile--> Ruleset --plan(Observed)--> Steps --render--> text for the dataplane
//!                          |
//!                          +--trace(Packet)--> what these rules do with a packet
//! ```
//!
//! The terms are netfilter's (chain, rule, match, target, set), the text is not: only [`render`] writes the input of
//! `iptables-restore` and `ipset restore`, so that another dataplane can be added.

mod areas;
pub mod compile;
mod group;
pub mod guard;
pub mod log_prefix;
pub mod names;
pub mod observed;
pub mod plan;
pub mod render;
mod step;
pub mod trace;
mod unknown;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use imbl::OrdSet;
use ipnet::IpNet;

pub use crate::policy::members::Member;

use self::observed::Observed;
use crate::model::{Direction, Family, PortRange, Protocol};

/// Everything of ours that the kernel of one node should hold.
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

    /// Gives another name to each set whose name the kernel has for a set of another type, which another version made:
    /// its rules may still use that one, and the type of a set cannot change. Once that set is destroyed, the next sync
    /// returns to the usual name.
    #[must_use]
    pub fn beside(mut self, observed: &Observed) -> Self {
        for family in Family::BOTH {
            let taken = &observed.table(family).others;
            if !taken.is_empty() {
                self.table_mut(family).rename(taken);
            }
        }
        self
    }

    /// Closes what cannot be written: for each of `broken`, the allow rules that need that set are removed, and every
    /// jump to that chain becomes a drop. Nothing else changes, so that one bad object does not affect other pods.
    ///
    /// An allow rule needs the set of its excepts as much as any other: without it, it would allow more. Sets that
    /// close, above all those of isolated pods, cannot be left out like this (see [`names::may_break`]).
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

/// Our chains and sets of one family, and their hooks.
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
    fn rename(&mut self, taken: &BTreeSet<SetName>) {
        let is_taken = |name: &&SetName| taken.contains(*name);
        let names: BTreeMap<SetName, SetName> = self
            .sets
            .keys()
            .filter(is_taken)
            .map(|name| (name.clone(), names::instead(name, taken)))
            .collect();
        for (name, other) in &names {
            if let Some(set) = self.sets.remove(name) {
                self.sets.insert(other.clone(), set);
            }
        }
        for chain in self.chains.values_mut() {
            let uses =
                |rule: &Rule| rule.matches.iter().filter_map(Match::set).any(|set| names.contains_key(set));
            if chain.rules.iter().any(uses) {
                let renamed = chain.rules.iter().cloned().map(|mut rule| {
                    for set in rule.matches.iter_mut().filter_map(Match::set_mut) {
                        if let Some(other) = names.get(set) {
                            set.clone_from(other);
                        }
                    }
                    rule
                });
                chain.rules = renamed.collect();
            }
        }
    }

    fn close(&mut self, family: Family, broken: &BTreeSet<Object>) {
        self.sets.retain(|name, _| !broken.contains(&Object::Set(name.clone())));
        let any_chain = broken.iter().any(|object| matches!(object, Object::Chain(..)));
        let is_broken_chain =
            |name: &ChainName| any_chain && broken.contains(&Object::Chain(family, name.clone()));
        self.chains.retain(|name, _| !is_broken_chain(name));
        // Only rules that allow, count or log may be removed for lack of a set. A rule that closes stays and keeps its
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

/// Whether a rule only counts what the rule after it drops as well.
fn counts(rule: &Rule) -> bool {
    rule.matches.iter().any(|m| matches!(m, Match::Set { set, .. } if set.role() == SetRole::Drops))
}

/// One of our chains or sets, as the object of an operation that can fail.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// A chain of one family's filter table.
    Chain(Family, ChainName),
    /// A set; its name includes the family.
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

/// A built-in chain of the filter table that this or another version hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BuiltIn {
    /// Packets to the node itself.
    Input,
    /// Packets through the node: between its pods, and between them and the outside world.
    Forward,
    /// Packets from the node itself. This version has no rules for them.
    Output,
}

impl BuiltIn {
    /// Those that we hook.
    pub const ALL: [Self; 2] = [Self::Input, Self::Forward];

    /// Those that any version may hook.
    pub const OF_ANY_VERSION: [Self; 3] = [Self::Input, Self::Forward, Self::Output];

    /// Its name in the kernel.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
        }
    }
}

/// The name of one of our chains; [`names`] defines which names are ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName(Arc<str>);

impl ChainName {
    /// The name, if a version of this program may use it for chains.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        names::is_chain(name).then(|| Self(name.into()))
    }

    /// The name as text.
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

/// The name of one of our sets: a family, a role and, for most roles, a digest. Ordered like its text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName {
    text: Arc<str>,
    family: Family,
    role: SetRole,
}

impl SetName {
    /// The name, if a version of this program may use it for sets.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let (family, role) = names::parse_set(name)?;
        Some(Self { text: name.into(), family, role })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The family whose rules use it.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// The purpose of the set.
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

/// The purpose of a set. [`names`] derives the set's name, its kind, and when it may grow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetRole {
    /// Counts dropped packets, by isolated pod.
    Drops,
    /// The pods of this node, in rules about what they may not do.
    LocalPods,
    /// The pods of this node, in rules about what only they may do.
    KnownPods,
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
    /// Known to another version only, which made the set.
    Unknown,
}

/// A chain: rules that a packet passes in this order. The end of a chain acts like `Return`.
#[derive(Clone, Debug, Eq)]
pub struct Chain {
    /// Its rules.
    pub rules: Arc<[Rule]>,
}

/// Chains of unchanged programs are shared from one ruleset to the next, which makes comparing them cheap.
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

/// A rule: if every match holds, the target applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The conditions on the packet, in the order in which they are tested: cheap ones first.
    pub matches: Vec<Match>,
    /// The action if all of them hold.
    pub target: Target,
}

impl Rule {
    /// A rule with these matches and this target.
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
    /// a connection that a helper expects, which policy does not cover.
    Related,
    /// Its IP protocol number.
    Protocol(u8),
    /// Its protocol and destination port: at most [`PORT_SLOTS`] slots.
    Ports(Protocol, Vec<PortRange>),
    /// It is a broadcast on a link of this node: to the broadcast address of one of its networks, or of all.
    Broadcast,
    /// It is an ICMPv6 message of this type.
    Icmpv6Type(u8),
    /// Its source lies in this network.
    Source(IpNet),
    /// Its destination lies in this network.
    Destination(IpNet),
    /// Its `field` is a member of the set.
    Set {
        /// The set.
        set: SetName,
        /// The field that is looked up.
        field: Field,
    },
    /// Its `field` is an address, and not a member of the set.
    ///
    /// Here the set closes. Only a set of addresses or networks may be used: one that also matches ports has no answer
    /// for a packet without ports, and the kernel treats no answer as "not a member".
    NotInSet {
        /// The set.
        set: SetName,
        /// The field that is looked up: an address.
        field: Field,
    },
    /// It is an IPv6 packet with this hop limit. In FORWARD, 255 means that no router has forwarded it, including this
    /// node.
    HopLimit(u8),
    /// It has at most this many bytes, including its IP header.
    LengthAtMost(u16),
    /// Not more often than this; for logging only.
    Limit {
        /// Packets per second, and the size of a burst.
        per_second: u32,
    },
    /// Not more often than this for each address at one end, whichever rule counts it; for logging only. The kernel
    /// keeps a counter for each such address, and drops a packet for which it has no room: only for addresses of which
    /// there are few, in a rule whose packets are dropped anyway.
    LimitEach {
        /// Packets per second, and the size of a burst.
        per_second: u32,
        /// The end: `Source` or `Destination`.
        field: Field,
    },
    /// Always holds; describes the rule to a reader. At most 255 bytes.
    Comment(Arc<str>),
}

impl Match {
    /// The set that it looks up.
    #[must_use]
    pub const fn set(&self) -> Option<&SetName> {
        match self {
            Self::Set { set, .. } | Self::NotInSet { set, .. } => Some(set),
            _ => None,
        }
    }

    const fn set_mut(&mut self) -> Option<&mut SetName> {
        match self {
            Self::Set { set, .. } | Self::NotInSet { set, .. } => Some(set),
            _ => None,
        }
    }
}

/// How many slots one [`Match::Ports`] has; a range of more than one port takes two. This is the limit of the kernel's
/// `multiport` match.
pub const PORT_SLOTS: usize = 15;

/// The part of a packet that a set lookup uses.
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

/// The action of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Leaves the chain, and continues after the latest `Jump`.
    Return,
    /// Drops the packet.
    Drop,
    /// Drops the packet and informs its sender: TCP by a reset, others by ICMP.
    Reject,
    /// Passes through another chain and comes back.
    Jump(ChainName),
    /// Continues in another chain; a return from there returns from this chain too.
    Goto(ChainName),
    /// Sends a copy to the listeners of this netlink log group, and continues.
    Log {
        /// The netlink log group, 1 to 65535.
        group: u16,
        /// The prefix of the copy; at most 64 bytes with its terminator.
        prefix: Arc<str>,
    },
}

/// A set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpSet {
    /// The kind of its members.
    pub kind: SetKind,
    /// Its members. A clone shares them, and the cost of a difference depends on what differs.
    pub members: OrdSet<Member>,
}

/// The kind of a set's members.
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
