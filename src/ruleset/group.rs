//! The chain of a program: its conditions as rules and sets.
//!
//! A chain and the sets that are named after their members depend on the program alone. So they are cached by the
//! program's digest for as long as pods have it: the cost of a change is that of the programs that it changes, however
//! large the others are.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use imbl::OrdSet;
use ipnet::IpNet;

use super::{
    Chain, ChainName, Field, IpSet, Match, Member, PORT_SLOTS, Rule, SetKind, SetName, Target,
    areas::{Area, areas, stands_alone},
    compile::{DenyAction, Options, logs::logs, selection_set},
    log_prefix::LogPrefix,
    names,
};
use crate::{
    model::{Direction, Family, IpBlock, PortRange, Protocol},
    policy::{
        digest::digest,
        ports::{PortMatch, PortSet},
        program::{self, Action, PeerMatch, Program, Selection},
    },
};

/// From this many rules on, those with one block and few ports each are combined into one lookup of address and port.
/// It costs a packet as much as that many rules.
const JOINED_FROM: usize = 16;

/// The most entries that one rule may become in such a set: the kernel needs about as much memory for them as for the
/// rule.
const JOINED_ENTRIES: usize = 16;

/// A set of ports is used for up to this many ports per rule that it replaces. It takes 8 KiB, however many they are.
const RULE_PORTS: usize = 64;

/// The chain of one program, and what it looks up.
#[derive(Debug)]
pub(super) struct Group {
    /// The chain.
    pub(super) chain: Chain,
    /// Its sets that are named after their members.
    pub(super) sets: Vec<(SetName, IpSet)>,
    /// The selections whose sets it looks up.
    pub(super) selections: Vec<Arc<Selection>>,
    /// The places of its blocks. Held so that other programs can share them.
    _places: Vec<Arc<[AddressLookup]>>,
}

/// The groups of one family for the programs of the last ruleset.
#[derive(Clone, Debug, Default)]
pub(super) struct Cache {
    /// By the chain's name, which contains the program's digest.
    groups: BTreeMap<ChainName, Arc<Group>>,
    /// Those of the previous ruleset that this one has not used yet.
    before: BTreeMap<ChainName, Arc<Group>>,
    /// The places of blocks, by the blocks' digest.
    places: BTreeMap<String, Weak<[AddressLookup]>>,
}

impl Cache {
    pub(super) const fn new() -> Self {
        Self { groups: BTreeMap::new(), before: BTreeMap::new(), places: BTreeMap::new() }
    }

    /// A new ruleset begins: what it does not use is dropped at its end.
    pub(super) fn begin(&mut self) {
        self.before = std::mem::take(&mut self.groups);
    }

    /// The ruleset is complete.
    pub(super) fn end(&mut self) {
        self.before.clear();
        self.places.retain(|_, places| places.strong_count() > 0);
    }

    /// The group of a program.
    pub(super) fn group(
        &mut self,
        family: Family,
        options: &Options,
        direction: Direction,
        program: &Program,
    ) -> Arc<Group> {
        let name = names::group(direction, &program.digest);
        let known = self.groups.get(&name).cloned().or_else(|| self.before.remove(&name));
        let group = known.unwrap_or_else(|| {
            let builder = GroupBuilder {
                family,
                options,
                direction,
                digest: &program.digest,
                known: &mut self.places,
                rules: Vec::new(),
                sets: BTreeMap::new(),
                selections: BTreeMap::new(),
                places: Vec::new(),
            };
            Arc::new(builder.build(program))
        });
        self.groups.insert(name, group.clone());
        group
    }
}

/// Addresses that one rule can match, as its lookups.
#[derive(Clone, Debug)]
struct AddressLookup {
    within: Within,
    /// The excluded addresses, if any.
    without: Option<(SetName, OrdSet<Member>)>,
}

#[derive(Clone, Debug)]
enum Within {
    /// Every address.
    All,
    /// One network.
    One(IpNet),
    /// Several networks.
    Set(SetName, OrdSet<Member>),
}

impl AddressLookup {
    fn new(family: Family, area: &Area) -> Self {
        let members = |nets: &[IpNet]| nets.iter().copied().map(Member::Network).collect::<OrdSet<_>>();
        let within = match &*area.within {
            [all] if all.prefix_len() == 0 => Within::All,
            [one] => Within::One(*one),
            several => Within::Set(names::networks(family, &digest(&several)), members(several)),
        };
        let without = (!area.without.is_empty())
            .then(|| (names::excepts(family, &digest(&area.without)), members(&area.without)));
        Self { within, without }
    }

    fn is_everything(&self) -> bool {
        matches!(self.within, Within::All) && self.without.is_none()
    }

    /// Its networks, if they are at most `most` and nothing is excluded from them.
    fn few(&self, most: usize) -> Option<Vec<IpNet>> {
        match (&self.within, &self.without) {
            (Within::One(network), None) => Some(vec![*network]),
            (Within::Set(_, members), None) if members.len() <= most => {
                let network = |member: &Member| match member {
                    Member::Network(network) => Some(*network),
                    _ => None,
                };
                members.iter().map(network).collect()
            }
            _ => None,
        }
    }
}

struct GroupBuilder<'a> {
    family: Family,
    options: &'a Options,
    direction: Direction,
    digest: &'a str,
    known: &'a mut BTreeMap<String, Weak<[AddressLookup]>>,
    rules: Vec<Rule>,
    sets: BTreeMap<SetName, IpSet>,
    selections: BTreeMap<SetName, Arc<Selection>>,
    places: Vec<Arc<[AddressLookup]>>,
}

impl GroupBuilder<'_> {
    fn build(mut self, program: &Program) -> Group {
        for tier in &program.tiers {
            // The first rule that matches decides. Among rules with one action the order does not matter.
            for run in tier.rules.chunk_by(|a, b| a.action == b.action) {
                self.run(run);
            }
        }
        self.act(program.default, &[]);
        Group {
            chain: self.rules.into_iter().collect(),
            sets: self.sets.into_iter().collect(),
            selections: self.selections.into_values().collect(),
            _places: self.places,
        }
    }

    /// Consecutive rules with one action.
    fn run(&mut self, rules: &[program::Rule]) {
        let placed: Vec<(&program::Rule, Vec<Arc<[AddressLookup]>>)> =
            rules.iter().map(|rule| (rule, self.places(&rule.peers))).collect();
        let (mut saved, mut members) = (0, Vec::new());
        for (rule, places) in placed.iter().filter(|(rule, _)| rule.action == Action::Allow) {
            for more in places.iter().flat_map(|places| places.iter()).filter_map(|place| joined(rule, place))
            {
                // Each protocol would be its own rule.
                saved += protocols(&rule.ports);
                members.extend(more);
            }
        }
        let join = saved >= JOINED_FROM;
        for (rule, places) in &placed {
            for matches in self.alternatives(rule, places, join) {
                self.act(rule.action, &matches);
            }
        }
        if join {
            let members: OrdSet<Member> = members.into_iter().collect();
            let set = names::network_ports(self.family, &digest(&members));
            self.set(set.clone(), SetKind::NetworkEndpoints, members);
            let field = match self.direction {
                Direction::Ingress => Field::SourceWithPort,
                Direction::Egress => Field::DestinationEndpoint,
            };
            self.act(Action::Allow, &[Match::Set { set, field }]);
        }
        self.places.extend(placed.into_iter().flat_map(|(_, places)| places));
    }

    /// Adds the rules that apply `action` to packets for which `matches` hold.
    fn act(&mut self, action: Action, matches: &[Match]) {
        let with = |more: &[Match]| [matches, more].concat();
        match action {
            Action::Allow => self.rules.push(Rule::new(matches, Target::Return)),
            Action::Deny => {
                let prefix = LogPrefix::Policy(self.direction, self.digest.into());
                self.rules.extend(logs(self.family, self.options, &prefix, matches));
                let field = match self.direction {
                    Direction::Ingress => Field::Destination,
                    Direction::Egress => Field::Source,
                };
                // A lookup in this set counts the packet. Every isolated pod is in it; the rule after it is for the
                // moment in which one is not in it yet, or no longer.
                let counted = Match::Set { set: names::drops(self.family), field };
                for counted in [&[counted][..], &[]] {
                    match self.options.deny {
                        DenyAction::Drop => self.rules.push(Rule::new(with(counted), Target::Drop)),
                        DenyAction::Reject => {
                            let tcp = [&[Match::Protocol(Protocol::Tcp.number())], counted].concat();
                            self.rules.push(Rule::new(with(&tcp), Target::Reject));
                            self.rules.push(Rule::new(with(counted), Target::Reject));
                        }
                    }
                }
            }
        }
    }

    /// The alternatives of one rule: it matches a packet for which all matches of one of them hold. Empty if the rule
    /// is for the other family only. With `join`, without those that are joined.
    fn alternatives(
        &mut self,
        rule: &program::Rule,
        places: &[Arc<[AddressLookup]>],
        join: bool,
    ) -> Vec<Vec<Match>> {
        let peers = self.peers(rule, places, join);
        if peers.is_empty() {
            return Vec::new();
        }
        let ports = self.port_matches(&rule.ports, peers.len());
        let pair = |port: &[Match], peer: &[Match]| [port, peer].concat();
        peers.iter().flat_map(|peer| ports.iter().map(move |port| pair(port, peer))).collect()
    }

    /// The alternatives for the other end; an empty one matches every end.
    fn peers(
        &mut self,
        rule: &program::Rule,
        places: &[Arc<[AddressLookup]>],
        join: bool,
    ) -> Vec<Vec<Match>> {
        let (field, other_end): (_, fn(IpNet) -> Match) = match self.direction {
            Direction::Ingress => (Field::Source, Match::Source),
            Direction::Egress => (Field::Destination, Match::Destination),
        };
        match &rule.peers {
            PeerMatch::Any => vec![Vec::new()],
            PeerMatch::NamedPorts(selection) => {
                let set = self.selection(selection);
                vec![vec![Match::Set { set, field: Field::DestinationEndpoint }]]
            }
            PeerMatch::Of { pods, .. } => {
                let places = || places.iter().flat_map(|places| places.iter());
                if places().any(AddressLookup::is_everything) {
                    return vec![Vec::new()];
                }
                let mut alternatives = Vec::new();
                for place in places().filter(|place| !join || joined(rule, place).is_none()) {
                    let mut matches = match &place.within {
                        Within::All => Vec::new(),
                        Within::One(network) => vec![other_end(*network)],
                        Within::Set(set, members) => {
                            self.set(set.clone(), SetKind::Networks, members.clone());
                            vec![Match::Set { set: set.clone(), field }]
                        }
                    };
                    if let Some((set, members)) = &place.without {
                        self.set(set.clone(), SetKind::Networks, members.clone());
                        matches.push(Match::NotInSet { set: set.clone(), field });
                    }
                    alternatives.push(matches);
                }
                if let Some(selection) = pods {
                    let set = self.selection(selection);
                    alternatives.push(vec![Match::Set { set, field }]);
                }
                alternatives
            }
        }
    }

    /// The places of the blocks of `peers`.
    fn places(&mut self, peers: &PeerMatch) -> Vec<Arc<[AddressLookup]>> {
        let PeerMatch::Of { blocks, .. } = peers else { return Vec::new() };
        let of_family = blocks.iter().filter(|block| Family::of_net(block.cidr()) == self.family);
        let (alone, together): (Vec<IpBlock>, Vec<IpBlock>) = of_family.cloned().partition(stands_alone);
        let alone = alone.into_iter().map(|block| vec![block]);
        let together = (!together.is_empty()).then_some(together);
        alone.chain(together).map(|blocks| self.placed(&blocks)).collect()
    }

    /// The places of blocks that are computed together.
    fn placed(&mut self, blocks: &[IpBlock]) -> Arc<[AddressLookup]> {
        let make = || -> Arc<[AddressLookup]> {
            areas(self.family, blocks).iter().map(|area| AddressLookup::new(self.family, area)).collect()
        };
        if matches!(blocks, [single] if single.except().is_empty()) {
            return make();
        }
        let digest = digest(&blocks);
        self.known.get(&digest).and_then(Weak::upgrade).unwrap_or_else(|| {
            let places = make();
            self.known.insert(digest, Arc::downgrade(&places));
            places
        })
    }

    /// The alternatives for protocol and port; each becomes a rule for each of the `peers` alternatives of the other
    /// end.
    fn port_matches(&mut self, ports: &PortMatch, peers: usize) -> Vec<Vec<Match>> {
        let PortMatch::Of(ports) = ports else { return vec![Vec::new()] };
        ports.iter().flat_map(|(protocol, ranges)| self.ranges(protocol, ranges, peers)).collect()
    }

    fn ranges(&mut self, protocol: Protocol, ranges: &[PortRange], peers: usize) -> Vec<Vec<Match>> {
        if ranges == [PortSet::all_of()] {
            return vec![vec![Match::Protocol(protocol.number())]];
        }
        let rules = slotted(ranges);
        if rules.len() > 1 && numbers(ranges) <= RULE_PORTS * rules.len() * peers {
            let set = names::ports(self.family, &digest(&ranges));
            let members =
                ranges.iter().flat_map(|range| range.first()..=range.last()).map(Member::Port).collect();
            self.set(set.clone(), SetKind::Ports, members);
            let in_set = Match::Set { set, field: Field::DestinationPort };
            return vec![vec![Match::Protocol(protocol.number()), in_set]];
        }
        rules.into_iter().map(|ranges| vec![Match::Ports(protocol, ranges)]).collect()
    }

    /// The set of a selection.
    fn selection(&mut self, selection: &Arc<Selection>) -> SetName {
        let (name, _) = selection_set(self.family, selection);
        self.selections.entry(name.clone()).or_insert_with(|| selection.clone());
        name
    }

    fn set(&mut self, name: SetName, kind: SetKind, members: OrdSet<Member>) {
        self.sets.entry(name).or_insert(IpSet { kind, members });
    }
}

/// Splits ranges into parts of at most [`PORT_SLOTS`] slots.
fn slotted(ranges: &[PortRange]) -> Vec<Vec<PortRange>> {
    let mut parts: Vec<Vec<PortRange>> = Vec::new();
    let mut left = 0;
    for range in ranges {
        let slots = if range.first() == range.last() { 1 } else { 2 };
        match parts.last_mut() {
            Some(part) if slots <= left => part.push(*range),
            _ => {
                parts.push(vec![*range]);
                left = PORT_SLOTS;
            }
        }
        left -= slots;
    }
    parts
}

/// How many ports the ranges contain.
fn numbers(ranges: &[PortRange]) -> usize {
    ranges.iter().map(|range| 1 + usize::from(range.last() - range.first())).sum()
}

/// How many protocols a rule names, each of which becomes its own rule.
fn protocols(ports: &PortMatch) -> usize {
    match ports {
        PortMatch::Any => 1,
        PortMatch::Of(ports) => ports.iter().count(),
    }
}

/// The members of a set of networks with ports for one of a rule's places; `None` if these would be too many.
fn joined(rule: &program::Rule, place: &AddressLookup) -> Option<Vec<Member>> {
    let PortMatch::Of(ports) = &rule.ports else { return None };
    let numbers: usize = ports.iter().map(|(_, ranges)| numbers(ranges)).sum();
    if numbers > JOINED_ENTRIES {
        return None;
    }
    let networks = place.few(JOINED_ENTRIES.checked_div(numbers)?)?;
    let endpoints = |network: IpNet| {
        ports.iter().flat_map(move |(protocol, ranges)| {
            let numbers = ranges.iter().flat_map(|range| range.first()..=range.last());
            numbers.map(move |number| Member::NetworkEndpoint(network, protocol, number))
        })
    };
    Some(networks.into_iter().flat_map(endpoints).collect())
}

#[cfg(test)]
mod tests;
