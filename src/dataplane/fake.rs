//! A dataplane in memory, for tests: it refuses what the kernel refuses, and stops where a test wants it to.
//!
//! The kernel silently accepts a rule that can never match, a loop that no packet reaches yet, and a text that it
//! truncates because it is too long. The fake is stricter: all three are bugs of the code that wrote them. So is a rule
//! that checks that a packet is not in a set, unless that is a set of networks.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use super::{ApplyError, CheckDepth, Dataplane, DataplaneError, Difference, Drift, Refusal, drift};
use crate::{
    model::Family,
    ruleset::{
        BuiltIn, Chain, ChainName, Field, IpSet, Match, Member, Object, PORT_SLOTS, Rule, Ruleset, SetKind,
        SetName, Table, Target, names,
        observed::{Content, HookState, Observed, ObservedTable},
        plan::{ChainBatch, SetEdit, Step},
    },
};

/// How deep chains may be nested, the built-in one counted: the nft variant's limit.
const DEPTH: usize = 16;

/// Chains and sets of both families, in memory.
#[derive(Clone, Debug, Default)]
pub struct Fake {
    ruleset: Ruleset,
    /// Built-in chains in which another program put a rule in front of our jump.
    displaced: BTreeSet<(Family, BuiltIn)>,
    effects: u64,
    dies_at: Option<u64>,
    refused: BTreeSet<Object>,
}

impl Fake {
    /// A fake that already holds `ruleset`.
    #[must_use]
    pub fn holding(ruleset: Ruleset) -> Self {
        Self { ruleset, ..Self::default() }
    }

    /// What it holds now.
    #[must_use]
    pub const fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// What it holds now, for a test to change as another program would.
    pub const fn ruleset_mut(&mut self) -> &mut Ruleset {
        &mut self.ruleset
    }

    /// Puts a rule of another program in front of our jump.
    pub fn displace(&mut self, family: Family, at: BuiltIn) {
        self.displaced.insert((family, at));
    }

    /// How many atomic effects took place: one for each edit of a set, one for each batch of chains.
    #[must_use]
    pub const fn effects(&self) -> u64 {
        self.effects
    }

    /// From now on `count` more effects take place; then everything fails, as after a SIGKILL.
    pub const fn die_after(&mut self, count: u64) {
        self.dies_at = Some(self.effects + count);
    }

    /// A new process starts with what the dead one left.
    pub const fn revive(&mut self) {
        self.dies_at = None;
    }

    /// From now on every write of `object` is refused.
    pub fn refuse(&mut self, object: Object) {
        self.refused.insert(object);
    }

    /// From now on only what the kernel would refuse is refused.
    pub fn refuse_nothing(&mut self) {
        self.refused.clear();
    }

    fn is_dead(&self) -> bool {
        self.dies_at.is_some_and(|at| self.effects >= at)
    }

    fn alive(&self) -> Result<(), DataplaneError> {
        if self.is_dead() { Err(failure("it was told to die here".to_owned())) } else { Ok(()) }
    }

    fn sets(&mut self, edits: &[SetEdit]) -> Result<(), ApplyError> {
        let mut refused: BTreeMap<&SetName, Vec<String>> = BTreeMap::new();
        let mut given_up: BTreeSet<&SetName> = BTreeSet::new();
        for edit in edits {
            let set = edit.set();
            if given_up.contains(set) {
                continue;
            }
            self.alive()?;
            self.effects += 1;
            if let Err(reason) = self.edit(edit) {
                refused.entry(set).or_default().push(reason);
                if matches!(edit, SetEdit::Create(..)) {
                    given_up.insert(set);
                }
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        let refusal = |(set, reasons): (&SetName, Vec<String>)| Refusal {
            object: Object::Set(set.clone()),
            reason: reasons.join("; "),
        };
        Err(ApplyError::Refused(refused.into_iter().map(refusal).collect()))
    }

    fn edit(&mut self, edit: &SetEdit) -> Result<(), String> {
        let name = edit.set();
        let is_refused = self.refused.contains(&Object::Set(name.clone()));
        if is_refused && matches!(edit, SetEdit::Create(..) | SetEdit::Add(..)) {
            return Err(format!("{name} is refused"));
        }
        let table = self.ruleset.table_mut(name.family());
        match edit {
            SetEdit::Create(_, kind) => match table.sets.get(name) {
                Some(there) if there.kind != *kind => Err(format!("{name} exists, of another kind")),
                Some(_) => Ok(()),
                None => {
                    table.sets.insert(name.clone(), IpSet { kind: *kind, members: imbl::OrdSet::new() });
                    Ok(())
                }
            },
            SetEdit::Add(_, member) => {
                let set = table.sets.get_mut(name).ok_or_else(|| format!("{name} does not exist"))?;
                let member = storable(name.family(), set.kind, *member)?;
                set.members.insert(member);
                Ok(())
            }
            SetEdit::Remove(_, member) => {
                let set = table.sets.get_mut(name).ok_or_else(|| format!("{name} does not exist"))?;
                let member = storable(name.family(), set.kind, *member)?;
                set.members.remove(&member);
                Ok(())
            }
            SetEdit::Destroy(_) => {
                if let Some((chain, _)) = table.chains.iter().find(|(_, chain)| uses_set(chain, name)) {
                    return Err(format!("{name} is in use by a rule of {chain}"));
                }
                table.sets.remove(name);
                Ok(())
            }
        }
    }

    fn chains(&mut self, family: Family, batch: &ChainBatch) -> Result<(), ApplyError> {
        self.alive()?;
        let mut table = self.ruleset.table(family).clone();
        // Removed chains are declared first as well, so that removing a missing one is no error.
        for name in &batch.remove {
            table.chains.insert(name.clone(), [].into_iter().collect());
        }
        table.chains.extend(batch.write.iter().cloned());
        let mut refusals = Vec::new();
        for (name, chain) in &batch.write {
            let object = Object::Chain(family, name.clone());
            let refused = self.refused.contains(&object).then(|| format!("{object} is refused"));
            let fault = refused.or_else(|| chain_fault(family, &table, batch, chain));
            refusals.extend(fault.map(|reason| Refusal { object, reason }));
        }
        if !refusals.is_empty() {
            return Err(ApplyError::Refused(refusals));
        }
        for edit in &batch.hooks {
            for target in &edit.remove {
                if table.hooks.get(&edit.at) != Some(target) {
                    return Err(failure(format!("{} has no jump to {target}", edit.at.name())).into());
                }
                table.hooks.remove(&edit.at);
            }
            if let Some(to) = &edit.now {
                if !table.chains.contains_key(to) || batch.remove.contains(to) {
                    return Err(
                        failure(format!("{} cannot jump to {to}: no such chain", edit.at.name())).into()
                    );
                }
                if table.hooks.insert(edit.at, to.clone()).is_some() {
                    return Err(failure(format!("{} would have two jumps of ours", edit.at.name())).into());
                }
            }
        }
        for name in &batch.remove {
            let user = table.chains.iter().find(|(_, chain)| targets(chain).any(|to| to == name));
            if let Some((user, _)) = user {
                return Err(failure(format!("{name} cannot be removed: {user} goes to it")).into());
            }
            if table.hooks.values().any(|to| to == name) {
                return Err(failure(format!("{name} cannot be removed: it is hooked in")).into());
            }
            table.chains.remove(name);
        }
        for name in table.chains.keys() {
            let mut path = Vec::new();
            nesting(&table, name, &mut path).map_err(failure)?;
        }
        self.effects += 1;
        for edit in &batch.hooks {
            self.displaced.remove(&(family, edit.at));
        }
        *self.ruleset.table_mut(family) = table;
        Ok(())
    }

    fn hooks(&self, family: Family) -> BTreeMap<BuiltIn, HookState> {
        let state = |(at, to): (&BuiltIn, &ChainName)| {
            let first = !self.displaced.contains(&(family, *at));
            (*at, HookState { targets: vec![to.clone()], first })
        };
        self.ruleset.table(family).hooks.iter().map(state).collect()
    }
}

impl Dataplane for Fake {
    fn observe(&mut self) -> Result<Observed, DataplaneError> {
        self.alive()?;
        let mut observed = Observed::default();
        let is_unused =
            |table: &Table, name: &SetName| !table.chains.values().any(|chain| uses_set(chain, name));
        let is_usual = |(name, set): &(&SetName, &IpSet)| names::is_usual(name, set.kind);
        for family in Family::BOTH {
            let table = self.ruleset.table(family);
            *observed.table_mut(family) = ObservedTable {
                chains: table.chains.keys().map(|name| (name.clone(), Content::Unknown)).collect(),
                sets: table.sets.iter().filter(is_usual).map(|(n, set)| (n.clone(), set.clone())).collect(),
                others: table
                    .sets
                    .iter()
                    .filter(|set| !is_usual(set))
                    .map(|(name, _)| name.clone())
                    .collect(),
                unused: table.sets.keys().filter(|name| is_unused(table, name)).cloned().collect(),
                hooks: self.hooks(family),
            };
        }
        Ok(observed)
    }

    fn apply(&mut self, step: &Step) -> Result<(), ApplyError> {
        match step {
            Step::Sets(edits) | Step::Gc(edits) => self.sets(edits),
            Step::Chains(family, batch) => self.chains(*family, batch),
        }
    }

    fn check(&mut self, expected: &Observed, depth: CheckDepth) -> Result<Drift, DataplaneError> {
        self.alive()?;
        let mut drift = Drift::default();
        for family in Family::BOTH {
            let table = self.ruleset.table(family);
            let chains = table.chains.iter().map(|(name, chain)| (name.clone(), chain.rules.len())).collect();
            drift.extend(drift::chains(family, expected.table(family), &chains, &self.hooks(family)));
            for (name, content) in &expected.table(family).chains {
                if let (Content::Known(chain), Some(there)) = (content, table.chains.get(name))
                    && there != chain
                    && there.rules.len() == chain.rules.len()
                {
                    let difference = Difference::Chain { family, name: name.clone(), exists: true };
                    drift.extend([(format!("the {family} chain {name} has other rules"), difference)]);
                }
            }
            let entries = |set: &SetName| table.sets.get(set).map(|set| set.members.len());
            drift.extend(match depth {
                CheckDepth::Counts => drift::sets(expected.table(family), entries),
                CheckDepth::Members => drift::members(expected.table(family), &table.sets),
            });
        }
        Ok(drift)
    }
}

fn failure(what: String) -> DataplaneError {
    DataplaneError::System { doing: "writing to the fake".to_owned(), source: io::Error::other(what) }
}

/// The member as a set of this kind and family stores it.
fn storable(family: Family, kind: SetKind, member: Member) -> Result<Member, String> {
    let of_family = |address: IpAddr| {
        let is_null = family == Family::V4 && address.is_unspecified();
        (Family::of(address) == family && !is_null).then_some(address)
    };
    let stored = match (kind, member) {
        (SetKind::Addresses | SetKind::CountedAddresses, Member::Address(address)) => {
            of_family(address).map(Member::Address)
        }
        (SetKind::Networks, Member::Network(network)) => {
            let is_storable = Family::of_net(network) == family && network.prefix_len() > 0;
            is_storable.then(|| Member::Network(network.trunc()))
        }
        (SetKind::Endpoints, Member::Endpoint(address, protocol, port)) => {
            of_family(address).map(|address| Member::Endpoint(address, protocol, port))
        }
        (SetKind::Ports, Member::Port(port)) => Some(Member::Port(port)),
        (SetKind::NetworkEndpoints, Member::NetworkEndpoint(network, protocol, port)) => {
            let is_storable = Family::of_net(network) == family && network.prefix_len() > 0;
            is_storable.then(|| Member::NetworkEndpoint(network.trunc(), protocol, port))
        }
        _ => None,
    };
    stored.ok_or_else(|| format!("an {family} set of {kind:?} cannot hold {member:?}"))
}

fn uses_set(chain: &Chain, name: &SetName) -> bool {
    chain.rules.iter().flat_map(|rule| &rule.matches).filter_map(Match::set).any(|set| set == name)
}

fn targets(chain: &Chain) -> impl Iterator<Item = &ChainName> {
    chain.rules.iter().filter_map(|rule| match &rule.target {
        Target::Jump(to) | Target::Goto(to) => Some(to),
        _ => None,
    })
}

/// Why the kernel would refuse this chain, if it would.
fn chain_fault(family: Family, table: &Table, batch: &ChainBatch, chain: &Chain) -> Option<String> {
    let missing = targets(chain).find(|to| !table.chains.contains_key(*to) || batch.remove.contains(to));
    if let Some(to) = missing {
        return Some(format!("the chain {to} does not exist"));
    }
    chain.rules.iter().find_map(|rule| rule_fault(family, table, rule))
}

fn rule_fault(family: Family, table: &Table, rule: &Rule) -> Option<String> {
    let count = |is: fn(&Match) -> bool| rule.matches.iter().filter(|m| is(m)).count();
    let protocols = count(|m| matches!(m, Match::Protocol(_) | Match::Ports(..) | Match::Icmpv6Type(_)));
    if protocols > 1 {
        return Some("a rule names its protocol more than once".to_owned());
    }
    if count(|m| matches!(m, Match::Source(_))) > 1 || count(|m| matches!(m, Match::Destination(_))) > 1 {
        return Some("a rule names its source or destination more than once".to_owned());
    }
    if let Target::Log { prefix, .. } = &rule.target
        && prefix.len() > 63
    {
        return Some(format!("the log prefix {prefix:?} is longer than 63 bytes"));
    }
    rule.matches.iter().find_map(|m| match_fault(family, table, m))
}

fn match_fault(family: Family, table: &Table, m: &Match) -> Option<String> {
    match m {
        Match::Established
        | Match::Related
        | Match::Broadcast
        | Match::Protocol(_)
        | Match::LengthAtMost(_) => None,
        Match::Ports(_, ranges) => {
            let slots: usize = ranges.iter().map(|r| if r.first() == r.last() { 1 } else { 2 }).sum();
            (slots == 0 || slots > PORT_SLOTS)
                .then(|| format!("{slots} slots of ports, not 1 to {PORT_SLOTS}"))
        }
        Match::Icmpv6Type(_) => (family == Family::V4).then(|| "ICMPv6 in an IPv4 rule".to_owned()),
        Match::Source(network) | Match::Destination(network) => {
            (Family::of_net(*network) != family).then(|| format!("{network} in an {family} rule"))
        }
        Match::HopLimit(_) => (family == Family::V4).then(|| "a hop limit in an IPv4 rule".to_owned()),
        Match::Set { set, field } | Match::NotInSet { set, field } => {
            if set.family() != family {
                return Some(format!("{set} in an {family} rule"));
            }
            let Some(there) = table.sets.get(set) else {
                return Some(format!("the set {set} does not exist"));
            };
            let fits = match there.kind {
                SetKind::Addresses | SetKind::CountedAddresses | SetKind::Networks => {
                    matches!(field, Field::Source | Field::Destination)
                }
                SetKind::Endpoints => *field == Field::DestinationEndpoint,
                SetKind::Ports => *field == Field::DestinationPort,
                SetKind::NetworkEndpoints => {
                    matches!(field, Field::SourceWithPort | Field::DestinationEndpoint)
                }
            };
            if matches!(m, Match::NotInSet { .. })
                && !matches!(there.kind, SetKind::Networks | SetKind::Addresses)
            {
                return Some(format!(
                    "whether a packet is not in {set} has an answer only for addresses and networks"
                ));
            }
            (!fits).then(|| format!("{field:?} of a packet is never in {set}, which holds {:?}", there.kind))
        }
        Match::Limit { per_second } | Match::LimitEach { per_second, .. } => {
            (*per_second == 0 || *per_second > 10_000).then(|| format!("{per_second} packets a second"))
        }
        Match::Comment(text) => {
            (text.len() > 255).then(|| format!("a comment of {} bytes: at most 255", text.len()))
        }
    }
}

/// Follows every path from `name`; `path` is the path to it.
fn nesting<'a>(table: &'a Table, name: &'a ChainName, path: &mut Vec<&'a ChainName>) -> Result<(), String> {
    if path.contains(&name) {
        return Err(format!("the chain {name} leads back to itself"));
    }
    path.push(name);
    if path.len() >= DEPTH {
        return Err(format!("chains nested more than {DEPTH} deep, at {name}"));
    }
    if let Some(chain) = table.chains.get(name) {
        for to in targets(chain).collect::<BTreeSet<_>>() {
            nesting(table, to, path)?;
        }
    }
    path.pop();
    Ok(())
}
