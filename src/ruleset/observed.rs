//! What the kernel holds of ours now, as far as it is known.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    BuiltIn, Chain, ChainName, IpSet, Ruleset, SetName, Table,
    step::{SetEdit, Step},
};
use crate::model::Family;

/// What the kernel holds of ours. Objects of other programs are not included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// For IPv4.
    pub v4: ObservedTable,
    /// For IPv6.
    pub v6: ObservedTable,
}

/// Our objects in the tables of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedTable {
    /// Our chains.
    pub chains: BTreeMap<ChainName, Content>,
    /// Our sets, with their members.
    pub sets: BTreeMap<SetName, IpSet>,
    /// Our sets that another version made: of a role that is not known here, or of another type than this version
    /// would give them.
    pub others: BTreeSet<SetName>,
    /// Those of our sets that no rule refers to, as far as that is known: a process that was killed may have left them
    /// incomplete.
    pub unused: BTreeSet<SetName>,
    /// Our jumps in the built-in chains.
    pub hooks: BTreeMap<BuiltIn, HookState>,
}

/// What is known of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Only that it exists: a previous process wrote it, and rules are never read back.
    Unknown,
    /// We wrote this.
    Known(Chain),
}

/// Our jumps in one built-in chain; absent if there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookState {
    /// Our chains to which it jumps, one entry for each such rule, in their order.
    pub targets: Vec<ChainName>,
    /// Whether the first of them is the first rule of the built-in chain.
    pub first: bool,
}

impl HookState {
    /// One jump to `chain`, in the first place: the desired state.
    #[must_use]
    pub fn in_place(chain: ChainName) -> Self {
        Self { targets: vec![chain], first: true }
    }
}

impl Observed {
    /// The state in which the kernel holds `ruleset`.
    #[must_use]
    pub fn holding(ruleset: &Ruleset) -> Self {
        let table = |table: &Table| ObservedTable {
            chains: table.chains.iter().map(|(n, c)| (n.clone(), Content::Known(c.clone()))).collect(),
            sets: table.sets.clone(),
            others: BTreeSet::new(),
            unused: BTreeSet::new(),
            hooks: table.hooks.iter().map(|(at, to)| (*at, HookState::in_place(to.clone()))).collect(),
        };
        Self { v4: table(&ruleset.v4), v6: table(&ruleset.v6) }
    }

    /// The table of one family.
    #[must_use]
    pub fn table(&self, family: Family) -> &ObservedTable {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The table of one family, to change.
    pub fn table_mut(&mut self, family: Family) -> &mut ObservedTable {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Whether the kernel holds nothing of ours.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        Family::BOTH.into_iter().all(|family| {
            let table = self.table(family);
            table.chains.is_empty()
                && table.sets.is_empty()
                && table.others.is_empty()
                && table.hooks.is_empty()
        })
    }

    /// Shares the members of sets that equal those of `ruleset`. Members that were noted edit by edit are a separate
    /// copy, which takes as much memory again, and the next plan would compare all of it.
    pub fn share(&mut self, ruleset: &Ruleset) {
        for family in Family::BOTH {
            let there = &mut self.table_mut(family).sets;
            for (name, set) in &ruleset.table(family).sets {
                if let Some(there) = there.get_mut(name)
                    && there.kind == set.kind
                    && !there.members.ptr_eq(&set.members)
                    && there.members.diff(&set.members).next().is_none()
                {
                    there.members = set.members.clone();
                }
            }
        }
    }

    /// Records that a step was carried out.
    pub fn note(&mut self, step: &Step) {
        match step {
            Step::Sets(edits) | Step::Gc(edits) => edits.iter().for_each(|edit| self.note_edit(edit)),
            Step::Chains(family, batch) => {
                let table = self.table_mut(*family);
                table.unused.clear();
                for name in &batch.remove {
                    table.chains.remove(name);
                }
                for (name, chain) in &batch.write {
                    table.chains.insert(name.clone(), Content::Known(chain.clone()));
                }
                for edit in &batch.hooks {
                    match &edit.now {
                        Some(to) => table.hooks.insert(edit.at, HookState::in_place(to.clone())),
                        None => table.hooks.remove(&edit.at),
                    };
                }
            }
        }
    }

    /// Records that one edit of a set was carried out.
    pub fn note_edit(&mut self, edit: &SetEdit) {
        let table = self.table_mut(edit.set().family());
        let sets = &mut table.sets;
        match edit {
            SetEdit::Create(name, kind) => {
                sets.insert(name.clone(), IpSet { kind: *kind, members: imbl::OrdSet::new() });
            }
            SetEdit::Add(name, member) => {
                if let Some(set) = sets.get_mut(name) {
                    set.members.insert(*member);
                }
            }
            SetEdit::Remove(name, member) => {
                if let Some(set) = sets.get_mut(name) {
                    set.members.remove(member);
                }
            }
            SetEdit::Destroy(name) => {
                sets.remove(name);
                table.others.remove(name);
                table.unused.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Direction,
        ruleset::{Member, SetKind, names},
    };

    fn set(kind: SetKind, last: &[u8]) -> IpSet {
        let members = last.iter().map(|last| Member::Address([10, 244, 1, *last].into())).collect();
        IpSet { kind, members }
    }

    fn with_set(set: IpSet) -> Ruleset {
        let v4 = Table { sets: [(names::all_pods(Family::V4), set)].into(), ..Table::default() };
        Ruleset { v4, ..Ruleset::default() }
    }

    #[test]
    fn ruleset_with_any_chain_set_or_hook_is_not_empty() {
        let chain = names::dispatch(Direction::Ingress);
        let with_chain =
            Table { chains: [(chain.clone(), [].into_iter().collect())].into(), ..Table::default() };
        let with_hook = Table { hooks: [(BuiltIn::Forward, chain)].into(), ..Table::default() };
        let with_set = with_set(set(SetKind::Addresses, &[])).v4;
        assert!(Observed::holding(&Ruleset::default()).is_empty());
        for table in [with_chain, with_hook, with_set] {
            let v4 = Ruleset { v4: table.clone(), ..Ruleset::default() };
            let v6 = Ruleset { v6: table, ..Ruleset::default() };
            assert!(!Observed::holding(&v4).is_empty());
            assert!(!Observed::holding(&v6).is_empty());
        }
    }

    #[test]
    fn members_are_shared_between_sets_that_are_equal_and_no_others() {
        let wanted = with_set(set(SetKind::Addresses, &[1, 2]));
        let shares = |there: IpSet| {
            let mut observed = Observed::holding(&with_set(there.clone()));
            observed.share(&wanted);
            let name = names::all_pods(Family::V4);
            assert_eq!(observed.v4.sets[&name], there, "what is in the kernel does not change by it");
            observed.v4.sets[&name].members.ptr_eq(&wanted.v4.sets[&name].members)
        };
        assert!(shares(set(SetKind::Addresses, &[1, 2])));
        assert!(!shares(set(SetKind::Addresses, &[1, 3])));
        assert!(!shares(set(SetKind::CountedAddresses, &[1, 2])));
    }
}
