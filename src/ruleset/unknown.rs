//! Addresses of this node's pod blocks that no known pod holds.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    BuiltIn, Field, Match, Member, Rule, Target, names,
    observed::{Content, Observed},
};
use crate::model::{Direction, Family};

impl Rule {
    /// Drops what an address of this block of the node's pods sends, or is sent, unless a known pod holds it.
    #[must_use]
    pub fn for_unknown_pods(family: Family, block: IpNet, direction: Direction) -> Self {
        let (block, field) = match direction {
            Direction::Egress => (Match::Source(block), Field::Source),
            Direction::Ingress => (Match::Destination(block), Field::Destination),
        };
        let stranger = Match::NotInSet { set: names::known_pods(family), field };
        Self::new([block, stranger], Target::Goto(names::unknown()))
    }
}

impl Observed {
    /// Whether the written rules drop what is forwarded from and to `address` because no known pod holds it. Then no
    /// connection of it can begin.
    #[must_use]
    pub fn closes(&self, address: IpAddr) -> bool {
        let family = Family::of(address);
        let table = self.table(family);
        let known = names::known_pods(family);
        if table.sets.get(&known).is_none_or(|set| set.members.contains(&Member::Address(address))) {
            return false;
        }
        let hook = table.hooks.get(&BuiltIn::Forward).filter(|hook| hook.first);
        let chain = hook.and_then(|hook| table.chains.get(hook.targets.first()?));
        let Some(Content::Known(chain)) = chain else { return false };
        Direction::BOTH.into_iter().all(|direction| {
            chain.rules.iter().any(|rule| {
                let block = match (direction, rule.matches.first()) {
                    (Direction::Egress, Some(Match::Source(block)))
                    | (Direction::Ingress, Some(Match::Destination(block))) => *block,
                    _ => return false,
                };
                block.contains(&address) && *rule == Rule::for_unknown_pods(family, block, direction)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::{ChainName, IpSet, Ruleset, SetKind, Table};

    fn set(last: &[u8]) -> IpSet {
        let members = last.iter().map(|last| Member::Address([10, 244, 1, *last].into())).collect();
        IpSet { kind: SetKind::Addresses, members }
    }

    #[test]
    fn address_in_a_block_is_closed_unless_a_pod_holds_it() {
        let block = "10.244.1.0/24".parse().unwrap();
        let rule = |direction| Rule::for_unknown_pods(Family::V4, block, direction);
        let written = |rules: &[Rule], known: &[u8]| {
            let chain = ChainName::new("TOWPATH-FORWARD").unwrap();
            let known = (names::known_pods(Family::V4), set(known));
            Observed::holding(&Ruleset {
                v4: Table {
                    chains: [(chain.clone(), rules.iter().cloned().collect())].into(),
                    hooks: [(BuiltIn::Forward, chain)].into(),
                    sets: [known].into(),
                },
                ..Ruleset::default()
            })
        };
        let both = [rule(Direction::Ingress), rule(Direction::Egress)];
        let closes = |observed: &Observed, address: &str| observed.closes(address.parse().unwrap());
        let whole = written(&both, &[8]);
        assert!(closes(&whole, "10.244.1.7"));
        assert!(!closes(&whole, "10.244.1.8"), "a pod holds it");
        assert!(!closes(&whole, "10.244.2.7"), "it is in no block");
        assert!(!closes(&whole, "fd00::7"));
        for one in &both {
            assert!(!closes(&written(std::slice::from_ref(one), &[]), "10.244.1.7"), "one direction is open");
        }
        let mut displaced = whole.clone();
        displaced.v4.hooks.get_mut(&BuiltIn::Forward).unwrap().first = false;
        assert!(!closes(&displaced, "10.244.1.7"));
        let mut unread = whole;
        unread.v4.chains.values_mut().for_each(|content| *content = Content::Unknown);
        assert!(!closes(&unread, "10.244.1.7"), "a former process wrote it");
    }
}
