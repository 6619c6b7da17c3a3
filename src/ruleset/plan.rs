//! The steps from the observed to the desired state, in an order of which every prefix is legal.
//!
//! "Legal" means: the kernel accepts it, and after any number of its edits no packet passes that every state denied
//! which the objects went through since the old one, the old and the new state included. A process may be killed after
//! any edit, and another one continues from there.
//!
//! ```text
//! Sets    create new sets, filled, those that close first; complete those that no rule uses; [with chains] shrink
//!         allow-sets
//! Chains  per family, in one transaction: write changed chains and hooks, remove unused chains
//! Sets    [with chains] extend allow-sets
//! Gc      destroy unused sets
//! ```
//!
//! Which pods are isolated, by which programs, and which sets those look up: all of that is in chains, and so it
//! changes atomically. (The sets of isolated pods are named after their members: another membership is another set, to
//! which the chains switch.) What remains are members that are added to and removed from existing sets.
//!
//! Without a change of chains they move in the order that [`policy::moves`](crate::policy::moves) proves safe. Together
//! with one, members are first removed from the sets, then the chains change, then members are added: neither the old
//! nor the new chains see members that only the other needs.

use imbl::ordset::DiffItem;

pub use super::step::{ChainBatch, HookEdit, SetEdit, Step};
use super::{
    BuiltIn, Chain, ChainName, IpSet, Member, Ruleset, SetName, Table, names,
    observed::{Content, HookState, Observed, ObservedTable},
};
use crate::{
    model::Family,
    policy::moves::{Move, Order},
};

/// The steps that lead from `observed` to `desired`; empty if nothing differs.
///
/// `moves` are the moves of members since `observed` was the desired state, in the order of the events. Members that
/// they do not explain leave their old sets first.
#[must_use]
pub fn plan(observed: &Observed, desired: &Ruleset, moves: &[Move]) -> Vec<Step> {
    let mut sets = SetEdits::default();
    let mut chains = Vec::new();
    for family in Family::BOTH {
        let (now, want) = (observed.table(family), desired.table(family));
        sets.table(now, want);
        let batch = chain_batch(now, want);
        if !batch.is_empty() {
            chains.push(Step::Chains(family, batch));
        }
    }
    // If the kernel has no room for all of them, it must refuse sets that allow.
    sets.created.sort_by_key(|edit| names::may_break(edit.set()));
    let step = |edits: Vec<SetEdit>| (!edits.is_empty()).then_some(Step::Sets(edits));
    let gc = (!sets.gc.is_empty()).then_some(Step::Gc(sets.gc));
    let (before, after) = if chains.is_empty() {
        (sets.created.into_iter().chain(in_order(sets.removed, sets.added, moves)).collect(), sets.retired)
    } else {
        let removed = sets.removed.into_iter().map(|(set, member)| SetEdit::Remove(set, member));
        let added = sets.added.into_iter().map(|(set, member)| SetEdit::Add(set, member));
        (sets.created.into_iter().chain(removed).collect(), added.chain(sets.retired).collect())
    };
    step(before).into_iter().chain(chains).chain(step(after)).chain(gc).collect()
}

/// The edits that lead from one state of all sets to another, by their effect.
#[derive(Debug, Default)]
struct SetEdits {
    /// New sets with all their members, and more members for sets that may grow at any time.
    created: Vec<SetEdit>,
    /// Members to remove from allow-sets.
    removed: Vec<(SetName, Member)>,
    /// Members to add to allow-sets.
    added: Vec<(SetName, Member)>,
    /// Members to remove from sets that may grow at any time.
    retired: Vec<SetEdit>,
    /// Sets to destroy.
    gc: Vec<SetEdit>,
}

impl SetEdits {
    fn table(&mut self, now: &ObservedTable, want: &Table) {
        for (name, set) in &want.sets {
            let Some(there) = now.sets.get(name).filter(|there| there.kind == set.kind) else {
                self.created.push(SetEdit::Create(name.clone(), set.kind));
                self.created.extend(set.members.iter().map(|member| SetEdit::Add(name.clone(), *member)));
                continue;
            };
            let (added, removed) = difference(&there.members, &set.members);
            if now.unused.contains(name) {
                // No packet depends on it before the chains change.
                self.created.extend(added.into_iter().map(|member| SetEdit::Add(name.clone(), member)));
                self.created.extend(removed.into_iter().map(|member| SetEdit::Remove(name.clone(), member)));
            } else if names::grows_early(name) {
                self.created.extend(added.into_iter().map(|member| SetEdit::Add(name.clone(), member)));
                self.retired.extend(removed.into_iter().map(|member| SetEdit::Remove(name.clone(), member)));
            } else {
                self.added.extend(added.into_iter().map(|member| (name.clone(), member)));
                self.removed.extend(removed.into_iter().map(|member| (name.clone(), member)));
            }
        }
        let there = now.sets.keys().chain(&now.others);
        let unused = there.filter(|name| !want.sets.contains_key(*name));
        self.gc.extend(unused.map(|name| SetEdit::Destroy(name.clone())));
    }
}

/// The edits that move members, pod by pod in the order of the events.
fn in_order(
    removed: Vec<(SetName, Member)>,
    added: Vec<(SetName, Member)>,
    moves: &[Move],
) -> impl Iterator<Item = SetEdit> {
    let order = Order::new(moves);
    let removed = removed.into_iter().map(|(set, member)| (member, SetEdit::Remove(set, member), true));
    let added = added.into_iter().map(|(set, member)| (member, SetEdit::Add(set, member), false));
    let mut edits: Vec<_> =
        removed.chain(added).map(|(member, edit, removes)| (order.place(member, removes), edit)).collect();
    edits.sort_by_key(|(place, _)| *place);
    edits.into_iter().map(|(_, edit)| edit)
}

/// What is in `want` but not in `now`, and vice versa.
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

/// How many members a set of `want` lacks if it may be filled before any rule refers to it; `None` if it is complete,
/// or if rules may already refer to it.
///
/// Rules refer to a set only once it is complete. So no rule refers to one that does not exist, or to one that is named
/// after its members and lacks some: a process that was killed did not finish it. Of others, the kernel knows.
#[must_use]
pub fn missing(observed: &Observed, name: &SetName, want: &IpSet) -> Option<usize> {
    let table = observed.table(name.family());
    let there = table.sets.get(name).filter(|there| there.kind == want.kind);
    let may_wait = names::is_named_after_members(name) || table.unused.contains(name);
    let lacks = want.members.len() - there.map_or(0, |there| there.members.len().min(want.members.len()));
    match there {
        None => Some(lacks),
        Some(_) => (lacks > 0 && may_wait).then_some(lacks),
    }
}

/// The next edits, at most `most` of them, that bring a set to which no rule refers to its desired state; empty if it
/// is complete. Such a set may be edited in any order: no packet depends on it.
#[must_use]
pub fn piece(observed: &Observed, name: &SetName, want: &IpSet, most: usize) -> Vec<SetEdit> {
    let there = observed.table(name.family()).sets.get(name).filter(|there| there.kind == want.kind);
    let Some(there) = there else {
        let create = SetEdit::Create(name.clone(), want.kind);
        let add = want.members.iter().map(|member| SetEdit::Add(name.clone(), *member));
        return std::iter::once(create).chain(add).take(most.max(1)).collect();
    };
    let edits = there.members.diff(&want.members).map(|item| match item {
        DiffItem::Add(member) => SetEdit::Add(name.clone(), *member),
        DiffItem::Remove(member) => SetEdit::Remove(name.clone(), *member),
    });
    edits.take(most).collect()
}

fn chain_batch(now: &ObservedTable, want: &Table) -> ChainBatch {
    let is_there = |name: &ChainName, chain: &Chain| match now.chains.get(name) {
        Some(Content::Known(there)) => there == chain,
        Some(Content::Unknown) | None => false,
    };
    let write = want.chains.iter().filter(|(name, chain)| !is_there(name, chain));
    let remove = now.chains.keys().filter(|name| !want.chains.contains_key(*name));
    let hooks = BuiltIn::OF_ANY_VERSION.into_iter().filter_map(|at| {
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
