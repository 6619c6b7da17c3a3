//! Differences from what was written: names, positions, counts, and the members of sets.

use std::collections::BTreeMap;

use crate::{
    model::Family,
    ruleset::{
        BuiltIn, ChainName, IpSet, SetName,
        observed::{Content, HookState, ObservedTable},
    },
};

/// How one family's chains and hooks differ, each difference as a sentence. `chains` gives the number of rules of each
/// chain.
pub(super) fn chains(
    family: Family,
    expected: &ObservedTable,
    chains: &BTreeMap<ChainName, usize>,
    hooks: &BTreeMap<BuiltIn, HookState>,
) -> Vec<String> {
    let mut findings = Vec::new();
    for (at, hook) in &expected.hooks {
        let target = hook.targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let there = hooks.get(at);
        let at = at.name();
        match there {
            Some(there) if there == hook => {}
            Some(HookState { first: false, .. }) => findings
                .push(format!("the {family} chain {at} has a foreign rule in front of the jump to {target}")),
            Some(_) => {
                findings.push(format!(
                    "the {family} chain {at} has other jumps of ours than the one to {target}"
                ));
            }
            None => findings.push(format!("the {family} chain {at} lost its jump to {target}")),
        }
    }
    for (name, content) in &expected.chains {
        match (chains.get(name), content) {
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

/// How sets differ, each difference as a sentence. `entries` returns the number of members of a set, if it exists.
pub(super) fn sets(expected: &ObservedTable, entries: impl Fn(&SetName) -> Option<usize>) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, set) in &expected.sets {
        match entries(name) {
            None => findings.push(format!("the set {name} is gone")),
            Some(there) if there != set.members.len() => {
                findings.push(format!("the set {name} has {there} members instead of {}", set.members.len()));
            }
            Some(_) => {}
        }
    }
    findings
}

/// How sets differ from those in `there`, member by member, each difference as a sentence.
pub(super) fn members(expected: &ObservedTable, there: &BTreeMap<SetName, IpSet>) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, set) in &expected.sets {
        let Some(found) = there.get(name) else {
            findings.push(format!("the set {name} is gone"));
            continue;
        };
        if found == set {
            continue;
        }
        if found.kind != set.kind {
            findings.push(format!("the set {name} is of another kind"));
            continue;
        }
        let lacks = set.members.iter().filter(|member| !found.members.contains(*member)).count();
        let foreign = found.members.iter().filter(|member| !set.members.contains(*member)).count();
        findings.push(format!("the set {name} lacks {lacks} members and has {foreign} others"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::{IpSet, Member, Rule, SetKind, Target};

    #[test]
    fn each_difference_is_reported_once() {
        let chain = |name: &str| ChainName::new(name).unwrap();
        let set = SetName::new("tp4-nodes").unwrap();
        let forward = chain("TOWPATH-FORWARD");
        let mut expected = ObservedTable::default();
        expected.hooks.insert(BuiltIn::Forward, HookState::in_place(forward.clone()));
        expected.hooks.insert(BuiltIn::Input, HookState::in_place(chain("TOWPATH-INPUT")));
        expected.chains.insert(forward.clone(), Content::Known([].into_iter().collect()));
        expected.chains.insert(chain("TOWPATH-INPUT"), Content::Unknown);
        expected.chains.insert(chain("TP-GI-xxxxxxxxxxxxxxxx"), Content::Unknown);
        expected.sets.insert(set, IpSet { kind: SetKind::Addresses, members: imbl::OrdSet::new() });
        let counts = BTreeMap::from([(forward.clone(), 3), (chain("TOWPATH-INPUT"), 3)]);
        let hooks = BTreeMap::from([(BuiltIn::Forward, HookState { targets: vec![forward], first: false })]);
        assert_eq!(
            chains(Family::V4, &expected, &counts, &hooks),
            [
                "the IPv4 chain INPUT lost its jump to TOWPATH-INPUT",
                "the IPv4 chain FORWARD has a foreign rule in front of the jump to TOWPATH-FORWARD",
                "the IPv4 chain TOWPATH-FORWARD has 3 rules instead of 0",
                "the IPv4 chain TP-GI-xxxxxxxxxxxxxxxx is gone",
            ]
        );
        assert_eq!(sets(&expected, |_| None), ["the set tp4-nodes is gone"]);
        assert_eq!(sets(&expected, |_| Some(2)), ["the set tp4-nodes has 2 members instead of 0"]);
        assert!(sets(&expected, |_| Some(0)).is_empty());
    }

    #[test]
    fn hooks_and_chains_that_are_as_written_are_no_difference() {
        let forward = ChainName::new("TOWPATH-FORWARD").unwrap();
        let rules = [Rule::new([], Target::Drop), Rule::new([], Target::Return)];
        let mut expected = ObservedTable::default();
        expected.hooks.insert(BuiltIn::Forward, HookState::in_place(forward.clone()));
        expected.chains.insert(forward.clone(), Content::Known(rules.into_iter().collect()));
        let there = BTreeMap::from([(forward, 2)]);
        let none: [String; 0] = [];
        assert_eq!(chains(Family::V4, &expected, &there, &expected.hooks), none);
    }

    #[test]
    fn members_that_differ_are_counted_in_both_directions() {
        let name = SetName::new("tp4-nodes").unwrap();
        let of = |kind, last: &[u8]| IpSet {
            kind,
            members: last.iter().map(|last| Member::Address([192, 168, 0, *last].into())).collect(),
        };
        let mut expected = ObservedTable::default();
        expected.sets.insert(name.clone(), of(SetKind::Addresses, &[1, 2, 3, 4, 5]));
        let found = |set: Option<IpSet>| {
            members(&expected, &set.map(|set| (name.clone(), set)).into_iter().collect())
        };
        let none: [String; 0] = [];
        assert_eq!(found(None), ["the set tp4-nodes is gone"]);
        assert_eq!(found(Some(of(SetKind::Addresses, &[1, 2, 3, 4, 5]))), none);
        assert_eq!(
            found(Some(of(SetKind::Addresses, &[1, 2, 8]))),
            ["the set tp4-nodes lacks 3 members and has 1 others"]
        );
        assert_eq!(
            found(Some(of(SetKind::CountedAddresses, &[1, 2, 3, 4, 5]))),
            ["the set tp4-nodes is of another kind"]
        );
    }
}
