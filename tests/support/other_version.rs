//! Rulesets as another version might write them.

use towpath::{
    policy::{digest::digest, members::Member},
    ruleset::{ChainName, IpSet, Match, Rule, Ruleset, SetKind, SetName, SetRole, Table, Target},
};

/// The same rules with other names: those of all chains and of most sets. Two sets keep their names and have other
/// types.
pub(crate) fn of_another_version(ruleset: &Ruleset) -> Ruleset {
    let table = |table: &Table| Table {
        chains: table.chains.iter().map(|(n, c)| (chain(n), c.rules.iter().map(rule).collect())).collect(),
        sets: table.sets.iter().map(|(name, set)| (set_name(name), content(name, set))).collect(),
        hooks: table.hooks.iter().map(|(at, to)| (*at, chain(to))).collect(),
    };
    Ruleset { v4: table(&ruleset.v4), v6: table(&ruleset.v6) }
}

fn chain(name: &ChainName) -> ChainName {
    let name = name.as_str();
    let other = name.strip_prefix("TP-").map_or_else(|| format!("{name}2"), |rest| format!("TP-X{rest}"));
    ChainName::new(&other).unwrap()
}

fn set_name(name: &SetName) -> SetName {
    match name.role() {
        SetRole::Drops | SetRole::LocalPods => name.clone(),
        _ => SetName::new(&format!("{}v2-{}", &name.as_str()[..4], digest(&name.as_str()))).unwrap(),
    }
}

fn content(name: &SetName, set: &IpSet) -> IpSet {
    let network = |member: &Member| match member {
        Member::Address(address) => Member::Network((*address).into()),
        other => *other,
    };
    match name.role() {
        SetRole::Drops => IpSet { kind: SetKind::Addresses, members: set.members.clone() },
        SetRole::LocalPods => {
            IpSet { kind: SetKind::Networks, members: set.members.iter().map(network).collect() }
        }
        _ => set.clone(),
    }
}

fn rule(rule: &Rule) -> Rule {
    let matches = rule.matches.iter().map(|m| match m {
        Match::Set { set, field } => Match::Set { set: set_name(set), field: *field },
        Match::NotInSet { set, field } => Match::NotInSet { set: set_name(set), field: *field },
        other => other.clone(),
    });
    let target = match &rule.target {
        Target::Jump(to) => Target::Jump(chain(to)),
        Target::Goto(to) => Target::Goto(chain(to)),
        other => other.clone(),
    };
    Rule::new(matches.collect::<Vec<_>>(), target)
}
