//! Which sets wait, for how long, and in which pieces they are filled.

use std::{net::IpAddr, sync::Arc};

use super::*;
use crate::{
    model::ObjectKey,
    policy::{
        digest::digest,
        program::{Action, Program},
        resolve::LocalPod,
    },
    ruleset::{Chain, Field, Match, Member, Rule, SetKind, Target},
};

/// A set of pods with so many members; sets of another `label` have another name.
fn pods(label: &str, entries: usize) -> (SetName, IpSet) {
    let member = |at: u32| Member::Address(IpAddr::from((0x0a00_0000 + at).to_be_bytes()));
    let members = (0..u32::try_from(entries).unwrap()).map(member).collect();
    (names::pods(Family::V4, &digest(&label)), IpSet { kind: SetKind::Addresses, members })
}

fn name(label: &str) -> SetName {
    pods(label, 0).0
}

fn object(label: &str) -> Object {
    Object::Set(name(label))
}

/// The desired ruleset, the observed one, and the deferred sets.
#[derive(Default)]
struct World {
    whole: Ruleset,
    resolved: Resolved,
    observed: Observed,
    broken: BTreeSet<Object>,
    deferred: Deferred,
}

impl World {
    fn want(&mut self, sets: impl IntoIterator<Item = (SetName, IpSet)>) {
        self.whole.v4.sets.extend(sets);
    }

    fn observe(&mut self, (name, set): (SetName, IpSet)) {
        self.observed.v4.sets.insert(name, set);
    }

    /// Adds a pod of this namespace whose program uses the sets with these labels.
    fn namespace_uses(&mut self, namespace: &str, labels: &[&str]) {
        let program = Program { tiers: Vec::new(), default: Action::Deny, digest: digest(&namespace) };
        let in_set = |label: &&str| Match::Set { set: name(label), field: Field::Source };
        let chain: Chain = labels.iter().map(|label| Rule::new([in_set(label)], Target::Return)).collect();
        self.whole.v4.chains.insert(names::group(Direction::Ingress, &program.digest), chain);
        let pod = LocalPod {
            key: ObjectKey::new(namespace, "web"),
            addresses: Vec::new(),
            shared: Vec::new(),
            ingress: Some(Arc::new(program)),
            egress: None,
            policies: [].into(),
            sandbox: None,
        };
        self.resolved.pods = self.resolved.pods.iter().cloned().chain([pod]).collect();
    }

    /// Begins a sync; returns the deferred sets in order.
    fn sync(&mut self) -> Vec<Object> {
        let Self { whole, resolved, observed, broken, deferred } = self;
        deferred.choose(observed, whole, resolved, broken, Instant::now());
        assert_eq!(deferred.len(), deferred.objects().count());
        assert_eq!(deferred.is_empty(), deferred.objects().next().is_none());
        deferred.objects().collect()
    }

    /// Writes a piece; returns the number of edits of each set.
    fn fill(&mut self) -> Vec<(SetName, usize)> {
        let edits = self.deferred.edits(&self.observed);
        let of = edits.chunk_by(|a, b| a.set() == b.set()).map(|edits| (edits[0].set().clone(), edits.len()));
        let of = of.collect();
        self.observed.note(&Step::Sets(edits));
        self.deferred.note_complete(&mut self.observed);
        of
    }
}

#[test]
fn largest_sets_are_deferred_if_one_sync_cannot_write_all() {
    let half = OF_A_SYNC / 2 - OF_A_SET;
    let mut world = World::default();
    world.want([pods("a", half), pods("b", half)]);
    assert_eq!(world.sync(), []);
    world.want([pods("b", half + 1)]);
    assert_eq!(world.sync(), [object("b")]);
    // After a set without room, no later set gets room.
    world.want([pods("c", half + 2)]);
    assert_eq!(world.sync(), [object("b"), object("c")]);
}

#[test]
fn refused_set_is_not_deferred_and_defers_no_other_set() {
    let mut world = World::default();
    world.want([pods("refused", OF_A_SYNC), pods("a", 1000)]);
    world.broken.insert(object("refused"));
    assert_eq!(world.sync(), []);
    world.want([pods("large", OF_A_SYNC)]);
    assert_eq!(world.sync(), [object("large")]);
}

#[test]
fn set_already_used_by_rules_is_never_deferred() {
    let mut world = World::default();
    world.want([pods("used", 3 * OF_A_SYNC), pods("new", 2 * OF_A_SYNC)]);
    world.observe(pods("used", 10));
    assert_eq!(world.sync(), [object("new")]);
    // A deferred set stays deferred while one sync cannot write its missing members.
    world.observe(pods("new", OF_A_SYNC - 1));
    assert_eq!(world.sync(), [object("new")]);
    world.observe(pods("new", OF_A_SYNC));
    assert_eq!(world.sync(), []);
    // From then on rules use it.
    world.observe(pods("new", 10));
    assert_eq!(world.sync(), []);
}

#[test]
fn set_of_another_kind_counts_as_new() {
    let mut world = World::default();
    world.want([pods("a", OF_A_SYNC)]);
    assert_eq!(world.sync(), [object("a")]);
    let (name, set) = pods("a", OF_A_SYNC);
    world.observe((name, IpSet { kind: SetKind::Ports, ..set }));
    assert_eq!(world.sync(), [object("a")]);
}

#[test]
fn oldest_deferred_set_is_first_and_the_start_ends_with_the_sets_of_the_first_sync() {
    let mut world = World::default();
    world.want([pods("first", 2 * OF_A_SYNC)]);
    world.sync();
    let since = world.deferred.oldest();
    assert!(world.deferred.is_starting() && since.is_some());
    world.want([pods("second", OF_A_SYNC)]);
    assert_eq!(world.sync(), [object("first"), object("second")]);
    assert_eq!(world.deferred.oldest(), since);
    world.observe(pods("first", 2 * OF_A_SYNC));
    assert_eq!(world.sync(), [object("second")]);
    assert!(!world.deferred.is_starting());
    assert!(world.deferred.oldest() > since);
}

#[test]
fn room_is_given_to_the_smallest_namespaces_first() {
    let mut world = World::default();
    world.namespace_uses("modest", &["middle"]);
    world.namespace_uses("large", &["least", "huge"]);
    world.want([pods("middle", 15_000), pods("least", 10_000), pods("huge", 60_000)]);
    assert_eq!(world.sync(), [object("least"), object("huge")]);

    let mut world = World::default();
    world.namespace_uses("modest", &["small", "common"]);
    world.namespace_uses("large", &["common", "huge", "filled"]);
    // The common set is written for the modest namespace.
    world.want([pods("small", 9_000), pods("common", 10_000), pods("huge", 60_000)]);
    assert_eq!(world.sync(), [object("huge")]);
    world.want([pods("small", 30_000), pods("filled", 90_000)]);
    assert_eq!(world.sync(), [object("huge"), object("small"), object("filled")]);
    // Completely written, with members that are not shared.
    world.observe(pods("filled", 90_000));
    assert_eq!(world.sync(), [object("huge"), object("small")]);
}

#[test]
fn pieces_can_span_sets_and_have_a_maximum_size() {
    let mut world = World::default();
    // Two sets that one sync can write, so that the others are deferred.
    world.want(["a", "b"].map(|label| pods(label, OF_A_SYNC / 2 - OF_A_SET)));
    let wait = OF_A_PIECE - OF_A_SET;
    world.want([pods("c", wait), pods("d", wait + 500)]);
    assert_eq!(world.sync(), [object("c"), object("d")]);
    // Creating a set is also an edit.
    assert_eq!(world.fill(), [(name("c"), wait)]);
    assert_eq!(world.deferred.len(), 2);
    let rest = OF_A_PIECE - 1 - OF_A_SET;
    assert_eq!(world.fill(), [(name("c"), 1), (name("d"), rest)]);
    assert_eq!(world.deferred.objects().collect::<Vec<_>>(), [object("d")]);
    assert_eq!(world.fill(), [(name("d"), 1 + wait + 500 - rest)]);
    assert!(world.deferred.is_empty());
}

#[test]
fn set_is_not_created_in_a_piece_without_room_for_members() {
    let mut world = World::default();
    world.want([pods("a", OF_A_SYNC), pods("b", OF_A_SYNC + 1)]);
    assert_eq!(world.sync(), [object("a"), object("b")]);
    // After the first set there is room to create the second one, but not for a member.
    let first = OF_A_PIECE - OF_A_SET;
    world.observe(pods("a", OF_A_SYNC - first));
    assert_eq!(world.fill(), [(name("a"), first)]);
    assert_eq!(world.deferred.objects().collect::<Vec<_>>(), [object("b")]);
}

#[test]
fn sync_is_due_for_complete_sets_immediately_for_the_last_one() {
    let mut world = World::default();
    world.want([pods("a", OF_A_SYNC), pods("b", OF_A_SYNC + 1)]);
    assert_eq!(world.sync(), [object("a"), object("b")]);
    let long_ago = Instant::now().checked_sub(2 * SYNC_EVERY);
    world.deferred.last_sync = long_ago;
    world.fill();
    assert!(!world.deferred.wants_sync(), "no set is complete");
    world.observe(pods("a", OF_A_SYNC));
    world.deferred.note_complete(&mut world.observed);
    assert!(world.deferred.wants_sync());
    world.deferred.last_sync = Some(Instant::now());
    assert!(!world.deferred.wants_sync(), "the last sync was just now");
    world.observe(pods("b", OF_A_SYNC + 1));
    world.deferred.note_complete(&mut world.observed);
    assert!(world.deferred.wants_sync(), "no set is deferred any longer");
    world.sync();
    assert!(!world.deferred.wants_sync());
}

#[test]
fn sets_are_filled_only_if_some_are_deferred_and_the_kernel_state_is_known() {
    let metrics = Arc::new(crate::metrics::Metrics::new().unwrap());
    let status = Arc::new(crate::agent::Status::starting("the objects"));
    let (options, pace) = (crate::ruleset::compile::Options::default(), crate::agent::Pace::default());
    let fake = crate::dataplane::fake::Fake::default();
    let mut agent = Agent::new("n1", fake, options, pace, metrics, status, None);
    assert!(!agent.can_fill());
    agent.kernel = Some(Observed::default());
    assert!(!agent.can_fill());
    let mut world = World::default();
    world.want([pods("a", OF_A_SYNC)]);
    world.sync();
    agent.deferred = world.deferred;
    assert!(agent.can_fill());
    agent.kernel = None;
    assert!(!agent.can_fill());
}
