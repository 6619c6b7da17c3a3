//! Large new sets: which wait, and how they are filled.
//!
//! One tool writes one step, and while it runs nothing else is written. So a round writes no more new sets than take a
//! moment. Those that are left over are deferred: the round is written without the rules that need them, which closes
//! what they would allow and nothing else. All isolation and all small changes are in the kernel then. Between inputs
//! the deferred sets are created and filled in pieces. No rule asks them yet, so it is of no meaning in which order, or
//! where a process is killed. The round after the last piece of a set puts its rules in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tracing::{error, info};

use super::Agent;
use crate::{
    dataplane::{ApplyError, Dataplane},
    model::{Direction, Family},
    policy::resolve::Resolved,
    ruleset::{
        ChainName, IpSet, Object, Ruleset, SetName, names,
        observed::Observed,
        plan::{SetEdit, Step, missing, piece},
    },
};

/// New entries that one round writes, a set counted as [`OF_A_SET`] of them: a tenth of a second's worth.
const OF_A_ROUND: usize = 20_000;

/// New entries that one piece has.
const OF_A_PIECE: usize = 10_000;

/// Making a set takes as long as so many entries: the kernel compares its name with that of each other set.
const OF_A_SET: usize = 100;

/// While sets are being filled all the time, the rules of those that are complete go in this often.
const ROUND_EVERY: Duration = Duration::from_millis(500);

/// The sets that wait to be filled.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    /// In the order in which they are filled.
    queue: Vec<Waits>,
    /// How many rounds have deferred sets.
    turn: u64,
    /// When a set last became complete whose rules are not in yet.
    complete_since: Option<Instant>,
    /// When a round was last written.
    last_round: Option<Instant>,
}

/// A set that waits.
#[derive(Debug)]
struct Waits {
    name: SetName,
    want: IpSet,
    /// The round that deferred it.
    turn: u64,
    /// When the oldest change was received that may need it.
    since: Instant,
}

/// A set that is not in the kernel, or not complete.
struct Lacking<'a> {
    name: &'a SetName,
    want: &'a IpSet,
    /// What it costs to complete it.
    cost: usize,
}

impl Deferred {
    /// Decides which sets of `whole` wait: all that the kernel lacks and one round cannot write. A set that rules may
    /// ask already never waits.
    ///
    /// What a round has room for goes to the namespaces that need least, so that one that needs much is behind all
    /// others. Among those that wait, the one that has waited longest is filled first.
    pub(super) fn choose(
        &mut self,
        observed: &Observed,
        whole: &Ruleset,
        resolved: &Resolved,
        broken: &BTreeSet<Object>,
        since: Instant,
    ) {
        self.complete_since = None;
        self.last_round = Some(Instant::now());
        let before: BTreeMap<SetName, (u64, Instant)> =
            self.queue.drain(..).map(|waits| (waits.name, (waits.turn, waits.since))).collect();
        let mut lacking = Vec::new();
        for (name, want) in Family::BOTH.into_iter().flat_map(|family| &whole.table(family).sets) {
            let allows = names::may_break(name) && *name != names::drops(name.family());
            if !allows || broken.contains(&Object::Set(name.clone())) {
                continue;
            }
            let lacks = match observed.table(name.family()).sets.get(name) {
                // No rule asks it: it was still waiting when the last round was written.
                Some(there) if before.contains_key(name) && there.kind == want.kind => {
                    let differs = !there.members.ptr_eq(&want.members) && there.members != want.members;
                    differs.then(|| want.members.len().abs_diff(there.members.len()).max(1))
                }
                _ => missing(observed, name, want).map(|lacks| lacks + OF_A_SET),
            };
            lacking.extend(lacks.map(|cost| Lacking { name, want, cost }));
        }
        if lacking.iter().map(|set| set.cost).sum::<usize>() <= OF_A_ROUND {
            return;
        }
        let needs = needs_of_namespaces(whole, resolved, &lacking);
        lacking.sort_by_cached_key(|set| {
            (needs.get(set.name).copied().unwrap_or(usize::MAX), set.cost, set.name.clone())
        });
        self.turn += 1;
        let mut left = OF_A_ROUND;
        for Lacking { name, want, cost } in lacking {
            if let Some(rest) = left.checked_sub(cost) {
                left = rest;
                continue;
            }
            left = 0;
            let (turn, since) = before.get(name).copied().unwrap_or((self.turn, since));
            self.queue.push(Waits { name: name.clone(), want: want.clone(), turn, since });
        }
        self.queue.sort_by_key(|waits| waits.turn);
    }

    /// The sets that wait, as objects that a round is written without.
    pub(super) fn objects(&self) -> impl Iterator<Item = Object> {
        self.queue.iter().map(|waits| Object::Set(waits.name.clone()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether sets still wait that the first round deferred.
    pub(super) fn is_starting(&self) -> bool {
        self.queue.iter().any(|waits| waits.turn <= 1)
    }

    /// When the oldest change was received that waits for a set.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.queue.iter().map(|waits| waits.since).min()
    }

    /// The next edits, of one set or of several.
    fn edits(&self, observed: &Observed) -> Vec<SetEdit> {
        let mut edits = Vec::new();
        let mut left = OF_A_PIECE;
        for waits in &self.queue {
            let is_new = !observed.table(waits.name.family()).sets.contains_key(&waits.name);
            let Some(room) = left.checked_sub(if is_new { OF_A_SET } else { 0 }).filter(|room| *room > 0)
            else {
                break;
            };
            let more = piece(observed, &waits.name, &waits.want, room);
            left = room - more.len().min(room);
            edits.extend(more);
        }
        edits
    }

    /// Takes what is complete out of the queue.
    fn note_complete(&mut self, observed: &mut Observed) {
        let before = self.queue.len();
        self.queue.retain(|waits| {
            let sets = &mut observed.table_mut(waits.name.family()).sets;
            let complete = sets.get(&waits.name).is_some_and(|there| *there == waits.want);
            if complete {
                // Held once, and not once as it was read and once as it is wanted.
                sets.insert(waits.name.clone(), waits.want.clone());
            }
            !complete
        });
        if self.queue.len() < before {
            self.complete_since.get_or_insert_with(Instant::now);
        }
    }

    /// Whether it is time for a round that puts in the rules of what is complete.
    fn wants_round(&self) -> bool {
        let often = self.last_round.is_none_or(|at| at.elapsed() >= ROUND_EVERY);
        self.complete_since.is_some() && (self.queue.is_empty() || often)
    }
}

/// What the smallest namespace that uses a set lacks in all, for each set that is lacking.
fn needs_of_namespaces<'a>(
    whole: &Ruleset,
    resolved: &Resolved,
    lacking: &[Lacking<'a>],
) -> BTreeMap<&'a SetName, usize> {
    let mut users: BTreeMap<ChainName, BTreeSet<&str>> = BTreeMap::new();
    for pod in resolved.pods.iter() {
        for direction in Direction::BOTH {
            if let Some(program) = pod.program(direction) {
                let namespaces = users.entry(names::group(direction, &program.digest)).or_default();
                namespaces.insert(&pod.key.namespace);
            }
        }
    }
    let costs: BTreeMap<&SetName, &Lacking<'a>> = lacking.iter().map(|set| (set.name, set)).collect();
    let mut sets: BTreeMap<&str, BTreeSet<&'a SetName>> = BTreeMap::new();
    for family in Family::BOTH {
        for (name, namespaces) in &users {
            let Some(chain) = whole.table(family).chains.get(name) else { continue };
            for m in chain.rules.iter().flat_map(|rule| &rule.matches) {
                let Some(set) = m.set() else { continue };
                if let Some(lacking) = costs.get(set) {
                    for namespace in namespaces {
                        sets.entry(namespace).or_default().insert(lacking.name);
                    }
                }
            }
        }
    }
    let mut needs: BTreeMap<&'a SetName, usize> = BTreeMap::new();
    for names in sets.values() {
        let total: usize = names.iter().filter_map(|name| costs.get(name)).map(|set| set.cost).sum();
        for name in names {
            needs.entry(name).and_modify(|least| *least = total.min(*least)).or_insert(total);
        }
    }
    needs
}

impl<D: Dataplane> Agent<D> {
    /// Writes one piece of the sets that wait, if there is one to write and the kernel's state is known.
    pub(super) fn fill(&mut self) {
        if self.deferred.is_empty() {
            return;
        }
        let Some(mut observed) = self.kernel.take() else { return };
        let step = Step::Sets(self.deferred.edits(&observed));
        match self.timed("sets", |agent| agent.dataplane.apply(&step)) {
            Ok(()) => {
                observed.note(&step);
                self.deferred.note_complete(&mut observed);
                self.kernel = Some(observed);
                if self.deferred.is_empty() {
                    info!("deferred sets are complete");
                }
                self.dirty |= self.deferred.wants_round();
            }
            Err(ApplyError::Refused(refusals)) => {
                for refusal in refusals {
                    error!(object = %refusal.object, reason = refusal.reason, "kernel refused an object; traffic that it would allow stays denied");
                    self.metrics.failed("sets", crate::dataplane::Reason::Refused.label());
                    self.broken.insert(refusal.object);
                }
                // What of the step was carried out is not known: the round looks.
                self.dirty = true;
            }
            Err(ApplyError::Failed(error)) => {
                self.metrics.failed("sets", error.reason().label());
                self.failed(&error);
                self.publish_age();
            }
        }
    }

    /// Whether a piece could be written now.
    pub(super) fn can_fill(&self) -> bool {
        !self.deferred.is_empty() && self.kernel.is_some()
    }
}

#[cfg(test)]
mod tests;
