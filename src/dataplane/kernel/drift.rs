//! What differs from what was written: names, places and numbers, no contents.

use std::collections::BTreeMap;

use super::{chains::Saved, sets::Head};
use crate::{
    model::Family,
    ruleset::{
        SetName,
        observed::{Content, HookState, ObservedTable},
    },
};

/// How one family's chains and hooks differ, each difference as a sentence.
pub(super) fn chains(family: Family, expected: &ObservedTable, saved: &Saved) -> Vec<String> {
    let mut findings = Vec::new();
    for (at, hook) in &expected.hooks {
        let target = hook.targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let there = saved.hooks.get(at);
        let at = at.name();
        match there {
            Some(there) if there == hook => {}
            Some(HookState { first: false, .. }) => findings.push(format!(
                "the {family} chain {at} has a rule in front of the jump to {target}: someone put it there"
            )),
            Some(_) => {
                findings.push(format!("the {family} chain {at} jumps to other chains of ours than {target}"));
            }
            None => findings.push(format!("the {family} chain {at} lost its jump to {target}")),
        }
    }
    for (name, content) in &expected.chains {
        match (saved.chains.get(name), content) {
            (None, _) => findings.push(format!("the {family} chain {name} is gone")),
            (Some(there), Content::Known(chain)) if *there != chain.rules.len() => findings.push(format!(
                "the {family} chain {name} has {there} rules instead of {}",
                chain.rules.len()
            )),
            _ => {}
        }
    }
    findings
}

/// How sets differ, each difference as a sentence.
pub(super) fn sets(expected: &ObservedTable, heads: &BTreeMap<SetName, Head>) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, set) in &expected.sets {
        match heads.get(name) {
            None => findings.push(format!("the set {name} is gone")),
            Some(head) if head.entries != set.members.len() => findings.push(format!(
                "the set {name} has {} members instead of {}",
                head.entries,
                set.members.len()
            )),
            Some(_) => {}
        }
    }
    findings
}
