//! The history of moves: in which order the members of sets have to change so that nothing opens in between.
//!
//! A change of objects moves addresses: out of the sets of selections that no longer select their pods, into those of
//! selections that now do. The kernel takes these edits one at a time, and the daemon may be killed after any of them.
//! So after every single edit this must hold: **a packet passes only if one of the states allows it that the objects
//! went through since the last sync.**
//!
//! ```text
//!  Change           Delta                    Move                     Order             edits
//!  ┌─────────┐     ┌───────────────┐        ┌─────────────────┐      ┌──────────────┐  Add    api  10.244.1.7
//!  │ a pod   │ ──▶ │ before, after │ ─────▶ │ its addresses   │ ───▶ │ turn 1: add, │  Remove web  10.244.1.7
//!  │         │     │ handovers     │        │                 │      │ then remove  │
//!  ├─────────┤     ├───────────────┤        ├─────────────────┤      ├──────────────┤  Remove web  10.244.1.8
//!  │ a       │ ──▶ │ before, after │ ─────▶ │ of all its pods │ ───▶ │ turn 2:      │  Remove web  10.244.1.9
//!  │namespace│     │               │        │ close_first     │      │ remove, then │  Add    api  10.244.1.8
//!  └─────────┘     └───────────────┘        └─────────────────┘      │ add          │  Add    api  10.244.1.9
//!  Cluster::apply   Resolver::update         Moves                   └──────────────┘
//!                                             join: one input, one move   plan::in_order
//! ```
//!
//! # Why the order is safe
//!
//! A packet from address *p* to address *q* passes if the program of *p* for egress and that of *q* for ingress allow
//! it, where isolated. The program of *p* looks up *q* in sets, the program of *q* looks up *p*. The rules of a program
//! are alternatives: more members can only allow more. (That is so for the sets that allow. Sets that close, such as
//! excepts and isolated pods, are not moved: they grow before everything else and shrink after it, see
//! [`names::grows_early`](crate::ruleset::names::grows_early).)
//!
//! 1. **One address moves: it enters its new sets first.** If *p* moves and *q* does not, only the program of *q* looks
//!    up what changes. While *p* is in the sets of both states, that program allows the packet if it does so in one of
//!    the two states, and the program of *p* decides the same in both. So the packet passes only if one of the two
//!    states allows it; and what both states allow passes all the time. The same holds for an address that passes from
//!    one pod to another ([`Handover`](crate::model::Handover)), since the sets hold addresses, not pods. If an
//!    isolated pod of this node gets it, chains change too: see 5. The addresses of a pod with several move at once,
//!    but packets between them are those of a pod to itself.
//! 2. **An address that several pods report leaves its old sets first**, if one of them is of this node. A packet of
//!    *p* to itself always passes where *p* is one pod. Where it is several, it depends on the sets in both directions,
//!    as in 3.
//! 3. **Several addresses move at once: all leave their old sets first** ([`Move::close_first`]). If *p* and *q* both
//!    move, the program of *p* could allow the packet by *q*'s new sets, and that of *q* by *p*'s old ones: no state
//!    allows it. While members are removed, they are a subset of the old state; while members are added, a subset of
//!    the new one. That applies to the pods of a namespace whose labels change, and to changes that arrived as one
//!    input (`Moves::join`): the states between them never existed.
//! 4. **An address that moved twice since the last sync: all moves close first.** Only its first and its last sets are
//!    known by now, and moves of other addresses in between may rely on those that are lost.
//! 5. **Members and chains change in one sync: members close first, then the chains change, then members open**
//!    ([`plan`](crate::ruleset::plan)). The old chains must not look up the new members, nor the new chains the old
//!    ones. That can deny for some milliseconds what both states allow, so the loop tries not to mix the two: it syncs
//!    between inputs that change different things ([`Batch`]). After a failed sync, after drift, and when a process
//!    starts, the history is not known. Then the kernel is observed, the rules in its chains are not, all chains are
//!    written again, and so this order applies.
//!
//! `tests/plan.rs` breaks each of these rules in turn and shows the packet that leaks. docs/decisions/0005 has the
//! costs.

use std::{cmp::Reverse, collections::HashMap, net::IpAddr};

use super::members::Member;
use crate::model::{Change, Cluster, ObjectKey, Pod};

/// Addresses whose members of sets were moved by one change.
///
/// If a pod at `10.244.1.7` becomes `app: api` instead of `app: web`, this is a move of `[10.244.1.7]`: the address
/// enters the sets of selections with `app: api`, and then leaves those with `app: web`. If the namespace of ten pods
/// gets another label, this is one move of their ten addresses with `close_first`: all leave their old sets before any
/// enters a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Those of one pod, or of all pods of a namespace.
    pub addresses: Vec<IpAddr>,
    /// Whether they leave their old sets before they enter the new ones, because they belong to several pods.
    pub close_first: bool,
}

/// The moves since they were last taken, in the order of the events.
#[derive(Clone, Debug, Default)]
pub(super) struct Moves(Vec<Move>);

impl Moves {
    /// The addresses of one pod moved; `is_shared` says whether several pods, one of them of this node, report one of
    /// them, or did so before.
    pub(super) fn of_pod(&mut self, addresses: Vec<IpAddr>, is_shared: bool) {
        self.0.push(Move { addresses, close_first: is_shared });
    }

    /// The addresses of all pods of a namespace moved at once.
    pub(super) fn of_namespace(&mut self, addresses: Vec<IpAddr>) {
        self.0.push(Move { addresses, close_first: true });
    }

    /// Joins all but the first `before` moves: they came as one, and no state between them ever existed.
    pub(super) fn join(&mut self, before: usize) {
        let joined = self.0.drain(before.min(self.0.len())..);
        let addresses: Vec<IpAddr> = joined.flat_map(|one| one.addresses).collect();
        if !addresses.is_empty() {
            self.0.push(Move { addresses, close_first: true });
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn take(&mut self) -> Vec<Move> {
        std::mem::take(&mut self.0)
    }
}

/// The order of the edits that carry out some moves.
#[derive(Debug)]
pub struct Order {
    /// The turn of each address, and whether it closes first.
    places: HashMap<IpAddr, (usize, bool)>,
}

impl Order {
    /// The order for these moves.
    #[must_use]
    pub fn new(moves: &[Move]) -> Self {
        let mut places = HashMap::new();
        let mut moved_again = false;
        for (turn, Move { addresses, close_first }) in moves.iter().enumerate() {
            for address in addresses {
                moved_again |= places.insert(*address, (turn, *close_first)).is_some();
            }
        }
        if moved_again {
            places.clear();
        }
        Self { places }
    }

    /// The place of an edit that removes or adds this member: edits are sorted by it. Members without a known move come
    /// first, and close first.
    #[must_use]
    pub fn place(&self, member: Member, removes: bool) -> impl Ord + Copy + use<> {
        let place = match member {
            Member::Address(address) | Member::Endpoint(address, ..) => self.places.get(&address).copied(),
            Member::Network(_) | Member::Port(_) | Member::NetworkEndpoint(..) => None,
        };
        let (turn, close_first) = place.map_or((None, true), |(turn, close_first)| (Some(turn), close_first));
        (turn, Reverse(removes == close_first))
    }
}

/// What a change may affect in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeScope {
    /// Only members of sets.
    Members,
    /// Chains as well.
    Chains,
}

impl ChangeScope {
    /// That of changes that are one input, on `node`, where `cluster` is the state before them.
    #[must_use]
    pub fn of(changes: &[Change], node: &str, cluster: &Cluster) -> Self {
        let is_local = |pod: &Pod| pod.node.as_deref() == Some(node);
        let was_local = |key: &ObjectKey| cluster.pod(key).is_some_and(|pod| is_local(pod));
        let changes_chains = |change: &Change| match change {
            Change::SetPolicy(_) | Change::RemovePolicy(_) | Change::DropRules(..) => true,
            Change::SetNamespace(_)
            | Change::RemoveNamespace(_)
            | Change::SetNode(_)
            | Change::RemoveNode(_) => false,
            Change::SetPod(pod) => is_local(pod) || was_local(&pod.key),
            Change::RemovePod(key) => was_local(key),
        };
        if changes.iter().any(changes_chains) { Self::Chains } else { Self::Members }
    }
}

/// How many extra syncs inputs of both scopes may cause if they arrive together.
const SPLITS: usize = 4;

/// The inputs that arrived together, and where a sync splits them. One input is one state, and is never split.
#[derive(Debug, Default)]
pub struct Batch {
    /// The scope of all inputs since the last sync.
    scope: Option<ChangeScope>,
    /// How many more syncs may split the batch.
    splits_left: usize,
}

impl Batch {
    /// Inputs arrive after the last ones were all taken in.
    pub fn begin(&mut self) {
        self.splits_left = SPLITS;
    }

    /// Whether a sync should come before an input of this scope; counts it if so.
    pub fn splits_before(&mut self, scope: ChangeScope) -> bool {
        let splits = self.splits_left > 0 && self.scope.is_some_and(|before| before != scope);
        self.splits_left -= usize::from(splits);
        splits
    }

    /// An input of this scope was taken in.
    pub fn add(&mut self, scope: ChangeScope) {
        self.scope = Some(scope);
    }

    /// A sync starts.
    pub fn written(&mut self) {
        self.scope = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LabelSelector, Labels, Namespace, NetworkPolicy, Standing};

    fn ip(last: u8) -> IpAddr {
        [10, 244, 1, last].into()
    }

    /// The order of edits, `+1` to add the member of address 1 and `-1` to remove it, after these moves.
    fn order(moves: &[Move], edits: &[i8]) -> Vec<i8> {
        let order = Order::new(moves);
        let mut edits = edits.to_vec();
        edits.sort_by_key(|edit| order.place(Member::Address(ip(edit.unsigned_abs())), *edit < 0));
        edits
    }

    fn one(last: u8) -> Move {
        Move { addresses: vec![ip(last)], close_first: false }
    }

    fn together(lasts: &[u8]) -> Move {
        Move { addresses: lasts.iter().map(|last| ip(*last)).collect(), close_first: true }
    }

    #[test]
    fn address_enters_new_sets_before_it_leaves_old_ones() {
        assert_eq!(order(&[one(2), one(1)], &[-1, -2, 1, 2]), [2, -2, 1, -1]);
    }

    #[test]
    fn addresses_of_one_move_all_leave_before_any_enters() {
        assert_eq!(order(&[one(3), together(&[1, 2])], &[1, -1, 2, -2, 3, -3]), [3, -3, -1, -2, 1, 2]);
    }

    #[test]
    fn members_without_a_move_come_first_and_close_first() {
        assert_eq!(order(&[one(1)], &[1, -1, 9, -8]), [-8, 9, 1, -1]);
    }

    #[test]
    fn address_that_moved_twice_makes_all_moves_close_first() {
        assert_eq!(order(&[one(1), one(2), one(1)], &[1, -1, 2, -2]), [-1, -2, 1, 2]);
    }

    #[test]
    fn batch_splits_between_scopes_at_most_four_times() {
        use ChangeScope::{Chains, Members};
        let mut batch = Batch::default();
        batch.begin();
        assert!(!batch.splits_before(Chains), "nothing came before");
        batch.add(Chains);
        assert!(!batch.splits_before(Chains));
        for split in 0..SPLITS {
            let scope = if split % 2 == 0 { Members } else { Chains };
            assert!(batch.splits_before(scope), "{split}");
            batch.written();
            assert!(!batch.splits_before(Members) && !batch.splits_before(Chains), "a sync has just run");
            batch.add(scope);
        }
        assert!(!batch.splits_before(Members));
        batch.begin();
        assert!(batch.splits_before(Members));
    }

    fn pod(node: &str, name: &str, last: u8) -> Change {
        let pod = Pod::new(ObjectKey::new("shop", name));
        Change::SetPod(Pod { node: Some(node.into()), addresses: vec![ip(last)], ..pod })
    }

    #[test]
    fn policies_and_pods_of_this_node_change_chains_and_everything_else_only_members() {
        let mut cluster = Cluster::new();
        cluster.apply(pod("n1", "here", 1));
        cluster.apply(pod("n2", "there", 2));
        let key = |name: &str| ObjectKey::new("shop", name);
        let policy = NetworkPolicy {
            key: key("p"),
            subject: LabelSelector::everything(),
            ingress: None,
            egress: None,
            standing: Standing::Accepted,
        };
        let chains = [
            Change::SetPolicy(policy),
            Change::RemovePolicy(key("p")),
            pod("n1", "here", 3),
            pod("n1", "new", 3),
            pod("n2", "here", 1),
            pod("n1", "there", 2),
            Change::RemovePod(key("here")),
        ];
        let members = [
            pod("n2", "there", 3),
            pod("n2", "new", 3),
            Change::RemovePod(key("there")),
            Change::RemovePod(key("unknown")),
            Change::SetNamespace(Namespace { name: "shop".into(), labels: Labels::default() }),
            Change::RemoveNamespace("shop".into()),
        ];
        for change in &chains {
            let scope = ChangeScope::of(std::slice::from_ref(change), "n1", &cluster);
            assert_eq!(scope, ChangeScope::Chains, "{change:?}");
            let both = [members[0].clone(), change.clone()];
            assert_eq!(ChangeScope::of(&both, "n1", &cluster), ChangeScope::Chains);
        }
        assert_eq!(ChangeScope::of(&members, "n1", &cluster), ChangeScope::Members);
    }
}
