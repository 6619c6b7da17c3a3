//! What closing does to the objects that the kernel refused, and to the rules that need them.

use super::*;

const SOME: &str = "aaaaaaaaaaaaaaaa";
const OTHER: &str = "bbbbbbbbbbbbbbbb";

fn chain(digest: &str) -> ChainName {
    names::group(Direction::Ingress, digest)
}

/// That the packet's source is in this set.
fn from(set: &SetName) -> Match {
    Match::Set { set: set.clone(), field: Field::Source }
}

fn empty(kind: SetKind) -> IpSet {
    IpSet { kind, members: OrdSet::new() }
}

/// What is left of the rules of one chain, whose sets all exist, without the broken objects.
fn left(rules: &[Rule], broken: &[Object]) -> Vec<Rule> {
    let sets = rules.iter().flat_map(|rule| &rule.matches).filter_map(Match::set);
    let table = Table {
        sets: sets.map(|set| (set.clone(), empty(names::kind(set.role())))).collect(),
        chains: [
            (names::forward(), rules.iter().cloned().collect()),
            (chain(SOME), [].into_iter().collect()),
            (chain(OTHER), [].into_iter().collect()),
        ]
        .into(),
        hooks: [(BuiltIn::Forward, names::forward())].into(),
    };
    let whole = Ruleset { v4: table, ..Ruleset::default() };
    let broken: BTreeSet<Object> = broken.iter().cloned().collect();
    let closed = whole.clone().without(&broken);
    assert_eq!(closed.v4.hooks, whole.v4.hooks);
    let is_left = |object: &Object| !broken.contains(object);
    assert!(
        whole
            .v4
            .sets
            .keys()
            .all(|set| { closed.v4.sets.contains_key(set) == is_left(&Object::Set(set.clone())) })
    );
    assert!(whole.v4.chains.keys().all(|name| {
        closed.v4.chains.contains_key(name) == is_left(&Object::Chain(Family::V4, name.clone()))
    }));
    closed.v4.chains[&names::forward()].rules.to_vec()
}

#[test]
fn rules_follow_a_set_to_another_name_if_its_name_is_taken() {
    let (taken, free) = (names::local_pods(Family::V4), names::pods(Family::V4, SOME));
    let rules = [
        Rule::new(
            [from(&taken), Match::NotInSet { set: taken.clone(), field: Field::Destination }],
            Target::Drop,
        ),
        Rule::new([from(&free)], Target::Return),
    ];
    let table = Table {
        sets: [&taken, &free].map(|set| (set.clone(), empty(names::kind(set.role())))).into(),
        chains: [(names::forward(), rules.iter().cloned().collect())].into(),
        ..Table::default()
    };
    let whole = Ruleset { v4: table, ..Ruleset::default() };
    let mut observed = Observed::default();
    assert_eq!(whole.clone().beside(&observed), whole);
    observed.v4.others.insert(taken.clone());
    let beside = whole.clone().beside(&observed);
    let Some(Match::Set { set, .. }) = beside.v4.chains[&names::forward()].rules[0].matches.first() else {
        panic!("{beside:?}")
    };
    assert!(*set != taken && set.role() == SetRole::LocalPods);
    let not_in = Match::NotInSet { set: set.clone(), field: Field::Destination };
    let expected = [Rule::new([from(set), not_in], Target::Drop), rules[1].clone()];
    assert_eq!(*beside.v4.chains[&names::forward()].rules, expected);
    assert_eq!(beside.v4.sets.keys().collect::<BTreeSet<_>>(), BTreeSet::from([set, &free]));
    // The process after the next one finds both names taken.
    observed.v4.others.insert(set.clone());
    assert!(!whole.beside(&observed).v4.sets.contains_key(set));
}

#[test]
fn closing_a_set_removes_only_the_rules_that_use_it() {
    let (broken, other) = (names::pods(Family::V4, SOME), names::pods(Family::V4, OTHER));
    let excepts = names::excepts(Family::V4, SOME);
    let not_in = |set: &SetName| Match::NotInSet { set: set.clone(), field: Field::Source };
    let log = Target::Log { group: 1, prefix: "p".into() };
    let rules = [
        Rule::new([from(&broken)], Target::Return),
        Rule::new([from(&other), from(&broken)], Target::Return),
        Rule::new([from(&other)], Target::Return),
        Rule::new([not_in(&excepts)], Target::Return),
        Rule::new([from(&broken)], log.clone()),
        Rule::new([from(&other)], log),
        Rule::new([from(&broken)], Target::Drop),
        Rule::new([from(&broken)], Target::Reject),
        Rule::new([from(&broken)], Target::Jump(chain(SOME))),
        Rule::new([from(&broken)], Target::Goto(chain(SOME))),
        Rule::new([], Target::Drop),
    ];
    let [.., log_of_other, drop, reject, jump, goto, last] = rules.clone();
    assert_eq!(
        left(&rules, &[Object::Set(broken)]),
        [rules[2].clone(), rules[3].clone(), log_of_other, drop, reject, jump, goto, last]
    );
    let without_excepts: Vec<Rule> =
        rules.iter().filter(|rule| rule.matches.first() != Some(&not_in(&excepts))).cloned().collect();
    assert_eq!(left(&rules, &[Object::Set(excepts)]), without_excepts);
}

#[test]
fn closing_the_drop_counter_set_removes_only_counting_rules() {
    let drops = names::drops(Family::V4);
    let isolated = names::isolated(Family::V4, Direction::Ingress, &OrdSet::new());
    let rules = [
        Rule::new([from(&drops)], Target::Drop),
        Rule::new([from(&isolated)], Target::Drop),
        Rule::new([], Target::Drop),
    ];
    assert_eq!(left(&rules, &[Object::Set(drops)]), rules[1..]);
}

#[test]
fn without_a_chain_every_way_to_it_drops_and_every_other_way_stays() {
    let set = names::pods(Family::V4, SOME);
    let rules = [
        Rule::new([from(&set)], Target::Jump(chain(SOME))),
        Rule::new([], Target::Goto(chain(SOME))),
        Rule::new([], Target::Jump(chain(OTHER))),
        Rule::new([from(&set)], Target::Return),
    ];
    let [_, _, other, allow] = rules.clone();
    assert_eq!(
        left(&rules, &[Object::Chain(Family::V4, chain(SOME))]),
        [Rule::new([from(&set)], Target::Drop), Rule::new([], Target::Drop), other, allow]
    );
}

#[test]
fn broken_set_of_one_family_leaves_the_other_family_open() {
    let table = |family| Table {
        sets: [(names::pods(family, SOME), empty(SetKind::Addresses))].into(),
        chains: [
            (names::forward(), [Rule::new([], Target::Goto(chain(SOME)))].into_iter().collect()),
            (chain(SOME), [].into_iter().collect()),
        ]
        .into(),
        hooks: BTreeMap::new(),
    };
    let whole = Ruleset { v4: table(Family::V4), v6: table(Family::V6) };
    let closed = whole.clone().without(&[Object::Chain(Family::V6, chain(SOME))].into());
    assert_eq!(closed.v4, whole.v4);
    assert_ne!(closed.v6, whole.v6);
    let closed = whole.clone().without(&[Object::Set(names::pods(Family::V4, SOME))].into());
    assert_eq!(closed.v6, whole.v6);
    assert!(closed.v4.sets.is_empty());
    assert_eq!(closed.v4.chains, whole.v4.chains);
}
