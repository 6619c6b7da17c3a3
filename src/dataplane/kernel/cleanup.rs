//! Removes everything of ours, and nothing else.
//!
//! In the nft variant the table `filter` and its base chains remain if our first rule created them: we cannot know
//! whether another program relies on them, and an empty chain with the policy ACCEPT does nothing.

use super::{
    chains::{Filter, removal},
    guard, require_net_admin, sets,
    variant::{Tools, installed, usable_families},
};
use crate::{
    dataplane::{ApplyError, DataplaneError, command::Commands},
    ruleset::{plan::SetEdit, render},
};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many jumps from built-in chains.
    pub hooks: usize,
    /// How many chains.
    pub chains: usize,
    /// How many sets.
    pub sets: usize,
    /// How many tables of the interface guard.
    pub tables: usize,
    /// What had to stay and why, each as a sentence; empty if nothing of ours is left.
    pub left: Vec<String>,
}

/// Removes our hooks, chains and sets from the tables of both variants and families in this network namespace, and the
/// tables of the interface guard. It is idempotent.
///
/// # Errors
/// If this process lacks the privilege, or no iptables is installed. Other failures are reported in [`Removed::left`],
/// and the rest is removed.
pub fn cleanup(commands: &Commands) -> Result<Removed, DataplaneError> {
    require_net_admin()?;
    let mut removed = Removed::default();
    for tools in installed(commands)? {
        remove_chains(commands, &tools, &mut removed);
    }
    if let Err(error) = remove_sets(commands, &mut removed) {
        removed.left.push(format!("the sets: {error}"));
    }
    match guard::remove(commands) {
        Ok(tables) => removed.tables = tables,
        Err(error) => removed.left.push(format!("the tables of the interface guard: {error}")),
    }
    Ok(removed)
}

/// Removes our hooks and chains from one variant's tables.
pub(super) fn remove_chains(commands: &Commands, tools: &Tools, removed: &mut Removed) {
    for family in usable_families(commands, tools) {
        let filter = Filter { commands, tools, journal: None, family };
        if let Err(error) = remove_chains_of(&filter, removed) {
            removed.left.push(format!("the {family} chains of {}: {error}", tools.main(family)));
        }
    }
}

fn remove_chains_of(filter: &Filter<'_>, removed: &mut Removed) -> Result<(), DataplaneError> {
    let saved = filter.read()?;
    if saved.chains.is_empty() && saved.hooks.is_empty() {
        return Ok(());
    }
    let batch = removal(&saved);
    filter.restore(&render::chains(filter.family, &batch))?.checked()?;
    removed.hooks += saved.hooks.values().map(|hook| hook.targets.len()).sum::<usize>();
    removed.chains += batch.remove.len();
    for (name, _) in &batch.write {
        let rule = saved.foreign_uses.get(name).map_or("", String::as_str);
        removed.left.push(format!(
            "the {} chain {name}, emptied: a rule of somebody else uses it ({rule})",
            filter.family
        ));
    }
    Ok(())
}

fn remove_sets(commands: &Commands, removed: &mut Removed) -> Result<(), DataplaneError> {
    let edits: Vec<SetEdit> = sets::read_heads(commands)?.into_keys().map(SetEdit::Destroy).collect();
    if edits.is_empty() {
        return Ok(());
    }
    removed.sets += edits.len();
    match sets::gc(commands, &edits) {
        Ok(()) => Ok(()),
        Err(ApplyError::Refused(refusals)) => {
            removed.sets -= refusals.len();
            removed.left.extend(refusals.iter().map(|r| format!("the {}: {}", r.object, r.reason)));
            Ok(())
        }
        Err(ApplyError::Failed(error)) => Err(error),
    }
}
