//! The way from what the kernel holds to what it shall hold, in an order of which every prefix is legal.
//!
//! "Legal" is: the kernel accepts it, and after any number of its edits no packet passes that both the old and the
//! new state refuse, and none is refused that both allow. A process may be killed behind any edit, and another one
//! goes on from there.
//!
//! ```text
//! Sets    create new sets, filled; take addresses that changed hands out of allow-sets; extend allow-sets;
//!         take pods that are no longer isolated out of the isolated sets
//! Chains  per family, in one transaction: write changed chains and hooks, remove unused chains
//! Sets    put newly isolated pods into the isolated sets; shrink allow-sets
//! Tidy    destroy unused sets
//! ```
//!
//! So an allow rule never meets a set that lacks what it had and shall have; a pod is isolated only when its chain
//! is there, and its chain goes only when it is no longer isolated. Chains are removed in the same transaction that
//! removes the last reference to them.

use std::{collections::BTreeSet, net::IpAddr};

use imbl::ordset::DiffItem;

use super::{
    BuiltIn, Chain, ChainName, IpSet, Member, Ruleset, SetKind, SetName, Table, names,
    observed::{Content, HookState, Observed, ObservedTable},
};
use crate::model::Family;

/// One step of a plan: what one run of one tool carries out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Edits of sets, in this order; each takes effect by itself.
    Sets(Vec<SetEdit>),
    /// Changes of one family's chains, which take effect all at once.
    Chains(Family, ChainBatch),
    /// Removal of sets that nothing uses any more. Nothing waits for it: the kernel may still hold a set for a
    /// moment after the last rule that used it went, and the next round takes it along.
    Tidy(Vec<SetEdit>),
}

/// One edit of one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetEdit {
    /// Makes an empty set.
    Create(SetName, SetKind),
    /// Puts a member in.
    Add(SetName, Member),
    /// Takes a member out.
    Remove(SetName, Member),
    /// Removes a set.
    Destroy(SetName),
}

impl SetEdit {
    /// The set that it edits.
    #[must_use]
    pub const fn set(&self) -> &SetName {
        match self {
            Self::Create(name, _) | Self::Add(name, _) | Self::Remove(name, _) | Self::Destroy(name) => name,
        }
    }
}

/// Changes of the chains of one family, for one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainBatch {
    /// Chains to write whole, whether or not they are there already.
    pub write: Vec<(ChainName, Chain)>,
    /// Chains to remove.
    pub remove: Vec<ChainName>,
    /// Jumps in built-in chains to mend.
    pub hooks: Vec<HookEdit>,
}

impl ChainBatch {
    fn is_empty(&self) -> bool {
        self.write.is_empty() && self.remove.is_empty() && self.hooks.is_empty()
    }
}

/// A change of our jump in a built-in chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookEdit {
    /// The built-in chain.
    pub at: BuiltIn,
    /// Jumps to remove, one entry for each rule.
    pub remove: Vec<ChainName>,
    /// Where its first rule shall jump to.
    pub now: Option<ChainName>,
}

/// The steps that lead from `observed` to `desired`; empty if it is there.
///
/// `handed_over` are the addresses whose owner is another one than when `observed` was desired. Such an address
/// leaves the allow-sets of its former owner before it enters those of the new one, so that the new pod is never
/// taken for the old.
#[must_use]
pub fn plan(observed: &Observed, desired: &Ruleset, handed_over: &BTreeSet<IpAddr>) -> Vec<Step> {
    let mut before = Vec::new();
    let mut after = Vec::new();
    let mut tidy = Vec::new();
    let mut chains = Vec::new();
    for family in Family::BOTH {
        let (now, want) = (observed.table(family), desired.table(family));
        SetPlan { before: &mut before, after: &mut after, tidy: &mut tidy, handed_over }.table(now, want);
        let batch = chain_batch(now, want);
        if !batch.is_empty() {
            chains.push(Step::Chains(family, batch));
        }
    }
    let sets = |edits: Vec<SetEdit>| (!edits.is_empty()).then_some(Step::Sets(edits));
    let tidy = (!tidy.is_empty()).then_some(Step::Tidy(tidy));
    sets(before).into_iter().chain(chains).chain(sets(after)).chain(tidy).collect()
}

/// Sorts the edits of sets into those before and behind the chains.
struct SetPlan<'a> {
    before: &'a mut Vec<SetEdit>,
    after: &'a mut Vec<SetEdit>,
    tidy: &'a mut Vec<SetEdit>,
    handed_over: &'a BTreeSet<IpAddr>,
}

impl SetPlan<'_> {
    fn table(&mut self, now: &ObservedTable, want: &Table) {
        let is_isolated_set = |name: &SetName| names::is_isolated_set(name);
        let empty = imbl::OrdSet::new();
        let mut released = Vec::new();
        let mut grown = Vec::new();
        let mut opened = Vec::new();
        let mut closed = Vec::new();
        let mut shrunk = Vec::new();
        for (name, set) in &want.sets {
            let members = match now.sets.get(name) {
                Some(there) if there.kind == set.kind => &there.members,
                _ => {
                    grown.push(SetEdit::Create(name.clone(), set.kind));
                    &empty
                }
            };
            let (added, removed) = difference(members, &set.members);
            let add = |member| SetEdit::Add(name.clone(), member);
            let remove = |member| SetEdit::Remove(name.clone(), member);
            if is_isolated_set(name) {
                closed.extend(added.into_iter().map(add));
                opened.extend(removed.into_iter().map(remove));
            } else {
                let (handed_over, others): (Vec<_>, Vec<_>) =
                    removed.into_iter().partition(|member| self.is_handed_over(*member));
                released.extend(handed_over.into_iter().map(remove));
                grown.extend(added.into_iter().map(add));
                shrunk.extend(others.into_iter().map(remove));
            }
        }
        // An unused isolated set empties first as well: its pods are open from then on, chains or not.
        for (name, IpSet { members, .. }) in
            now.sets.iter().filter(|(name, _)| !want.sets.contains_key(*name))
        {
            if is_isolated_set(name) {
                opened.extend(members.iter().map(|member| SetEdit::Remove(name.clone(), *member)));
            }
            self.tidy.push(SetEdit::Destroy(name.clone()));
        }
        self.before.extend(released.into_iter().chain(grown).chain(opened));
        self.after.extend(closed.into_iter().chain(shrunk));
    }

    fn is_handed_over(&self, member: Member) -> bool {
        match member {
            Member::Address(address) | Member::Endpoint(address, ..) => self.handed_over.contains(&address),
            Member::Network(_) | Member::Port(_) => false,
        }
    }
}

/// What is in `want` but not in `now`, and the reverse.
fn difference(now: &imbl::OrdSet<Member>, want: &imbl::OrdSet<Member>) -> (Vec<Member>, Vec<Member>) {
    let mut added = Vec::new();
    let mut removed = Vec::new();
    if now.ptr_eq(want) {
        return (added, removed);
    }
    for item in now.diff(want) {
        match item {
            DiffItem::Add(member) => added.push(*member),
            DiffItem::Remove(member) => removed.push(*member),
        }
    }
    (added, removed)
}

fn chain_batch(now: &ObservedTable, want: &Table) -> ChainBatch {
    let is_there = |name: &ChainName, chain: &Chain| match now.chains.get(name) {
        Some(Content::Known(there)) => there == chain,
        Some(Content::Unknown) | None => false,
    };
    let write = want.chains.iter().filter(|(name, chain)| !is_there(name, chain));
    let remove = now.chains.keys().filter(|name| !want.chains.contains_key(*name));
    let hooks = BuiltIn::ALL.into_iter().filter_map(|at| {
        let target = want.hooks.get(&at);
        let there = now.hooks.get(&at);
        let in_place = target.map(|to| HookState::in_place(to.clone()));
        (there != in_place.as_ref()).then(|| HookEdit {
            at,
            remove: there.map(|hook| hook.targets.clone()).unwrap_or_default(),
            now: target.cloned(),
        })
    });
    ChainBatch {
        write: write.map(|(name, chain)| (name.clone(), chain.clone())).collect(),
        remove: remove.cloned().collect(),
        hooks: hooks.collect(),
    }
}
