//! Differences from what was written: names, positions, counts, and the members of sets.

use std::collections::BTreeMap;

use super::Difference;
use crate::{
    model::Family,
    ruleset::{
        BuiltIn, ChainName, IpSet, SetName,
        observed::{Content, HookState, ObservedTable},
    },
};

/// A difference, with a sentence for the log.
pub(super) type Finding = (String, Difference);

/// How one family's chains and hooks differ. `chains` gives the number of rules of each chain.
pub(super) fn chains(
    family: Family,
    expected: &ObservedTable,
    chains: &BTreeMap<ChainName, usize>,
    hooks: &BTreeMap<BuiltIn, HookState>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, hook) in &expected.hooks {
        let target = hook.targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let found = hooks.get(at);
        let name = at.name();
        let text = match found {
            Some(there) if there == hook => continue,
            Some(HookState { first: false, .. }) => {
                format!("the {family} chain {name} has a foreign rule in front of the jump to {target}")
            }
            Some(_) => {
                format!("the {family} chain {name} has other jumps of ours than the one to {target}")
            }
            None => format!("the {family} chain {name} lost its jump to {target}"),
        };
        findings.push((text, Difference::Hook { family, at: *at, found: found.cloned() }));
    }
    for (name, content) in &expected.chains {
        let difference = |exists| Difference::Chain { family, name: name.clone(), exists };
        match (chains.get(name), content) {
            (None, _) => findings.push((format!("the {family} chain {name} is gone"), difference(false))),
            (Some(there), Content::Known(chain)) if *there != chain.rules.len() => {
                let text =
                    format!("the {family} chain {name} has {there} rules instead of {}", chain.rules.len());
                findings.push((text, difference(true)));
            }
            _ => {}
        }
    }
    findings
}

/// How sets differ. `entries` returns the number of members of a set, if it exists.
pub(super) fn sets(expected: &ObservedTable, entries: impl Fn(&SetName) -> Option<usize>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, set) in &expected.sets {
        match entries(name) {
            None => findings.push(gone(name)),
            Some(there) if there != set.members.len() => {
                let text = format!("the set {name} has {there} members instead of {}", set.members.len());
                findings.push((text, Difference::Members(name.clone())));
            }
            Some(_) => {}
        }
    }
    findings
}

fn gone(name: &SetName) -> Finding {
    (format!("the set {name} is gone"), Difference::Set { name: name.clone(), found: None })
}

/// How sets differ from those in `there`, member by member.
pub(super) fn members(expected: &ObservedTable, there: &BTreeMap<SetName, IpSet>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, set) in &expected.sets {
        let Some(found) = there.get(name) else {
            findings.push(gone(name));
            continue;
        };
        if found == set {
            continue;
        }
        if found.kind != set.kind {
            findings.push((format!("the set {name} is of another kind"), Difference::Other));
            continue;
        }
        let lacks = set.members.iter().filter(|member| !found.members.contains(*member)).count();
        let foreign = found.members.iter().filter(|member| !set.members.contains(*member)).count();
        let text = format!("the set {name} lacks {lacks} members and has {foreign} others");
        findings.push((text, Difference::Set { name: name.clone(), found: Some(found.clone()) }));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::{Member, Rule, SetKind, Target, observed::Observed};

    fn texts(findings: Vec<Finding>) -> Vec<String> {
        findings.into_iter().map(|(text, _)| text).collect()
    }

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
            texts(chains(Family::V4, &expected, &counts, &hooks)),
            [
                "the IPv4 chain INPUT lost its jump to TOWPATH-INPUT",
                "the IPv4 chain FORWARD has a foreign rule in front of the jump to TOWPATH-FORWARD",
                "the IPv4 chain TOWPATH-FORWARD has 3 rules instead of 0",
                "the IPv4 chain TP-GI-xxxxxxxxxxxxxxxx is gone",
            ]
        );
        assert_eq!(texts(sets(&expected, |_| None)), ["the set tp4-nodes is gone"]);
        assert_eq!(texts(sets(&expected, |_| Some(2))), ["the set tp4-nodes has 2 members instead of 0"]);
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
        assert_eq!(texts(chains(Family::V4, &expected, &there, &expected.hooks)), none);
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
            texts(members(&expected, &set.map(|set| (name.clone(), set)).into_iter().collect()))
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

    #[test]
    fn noted_differences_describe_what_was_found() {
        let chain = |name: &str| ChainName::new(name).unwrap();
        let (forward, group) = (chain("TOWPATH-FORWARD"), chain("TP-GI-xxxxxxxxxxxxxxxx"));
        let set = SetName::new("tp4-nodes").unwrap();
        let empty = IpSet { kind: SetKind::Addresses, members: imbl::OrdSet::new() };
        let mut expected = Observed::default();
        expected.v4.hooks.insert(BuiltIn::Forward, HookState::in_place(forward.clone()));
        for name in [&forward, &group] {
            expected.v4.chains.insert(name.clone(), Content::Known([].into_iter().collect()));
        }
        expected.v4.sets.insert(set.clone(), empty.clone());
        let hooks = BTreeMap::from([(BuiltIn::Forward, HookState { targets: vec![], first: false })]);
        let one = Member::Address([10, 0, 0, 1].into());
        let found = IpSet { members: [one].into_iter().collect(), ..empty };
        let mut noted = expected.clone();
        let all = chains(Family::V4, &expected.v4, &BTreeMap::from([(forward.clone(), 2)]), &hooks);
        let all = all.into_iter().chain(members(&expected.v4, &[(set.clone(), found.clone())].into()));
        all.for_each(|(_, difference)| difference.note(&mut noted));
        assert_eq!(noted.v4.hooks, hooks);
        assert_eq!(noted.v4.chains, [(forward, Content::Unknown)].into());
        assert_eq!(noted.v4.sets, [(set.clone(), found)].into());
        let counted = sets(&expected.v4, |_| Some(7));
        assert!(counted.iter().all(|(_, difference)| *difference == Difference::Members(set.clone())));
        assert!(!counted[0].1.is_known());
    }
}
