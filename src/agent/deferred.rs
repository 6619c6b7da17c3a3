//! Large new sets: which of them wait, and how they are filled.
//!
//! Each step is written by one tool, and nothing else is written while it runs. So a sync writes no more new sets than
//! take a moment. The remaining ones are deferred: the sync leaves out the rules that need them, which closes what
//! those would allow and nothing else. All isolation and all small changes are in the kernel then. Between inputs the
//! deferred sets are created and filled in pieces. No rule refers to them yet, so the order does not matter, nor where
//! a process is killed. The sync after the last piece of a set adds its rules.
//!
//! A new process may find the rules of another version, whose sets have other names. These rules allow what large sets
//! allow, and must not be replaced by rules that do not. So the first sync that writes rules waits for the large sets,
//! but not for long: the old rules know nothing of what has changed since.

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
        observed::{Content, Observed, ObservedTable},
        plan::{SetEdit, Step, missing, piece},
    },
};

/// How many new entries one sync writes, a set counted as [`OF_A_SET`] of them: a tenth of a second's worth.
const OF_A_SYNC: usize = 20_000;

/// How many new entries one piece has.
const OF_A_PIECE: usize = 10_000;

/// Creating a set takes as long as this many entries: the kernel compares its name with that of every other set.
const OF_A_SET: usize = 100;

/// While sets are being filled continuously, the rules of complete ones are added this often.
const SYNC_EVERY: Duration = Duration::from_millis(500);

/// How long a new process leaves the rules of the one before it in force while it fills large sets.
const TAKE_OVER: Duration = Duration::from_secs(20);

/// The sets that wait to be filled.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    /// In the order in which they are filled.
    queue: Vec<WaitingSet>,
    /// How many syncs have deferred sets.
    turn: u64,
    /// When the first set became complete whose rules are not written yet.
    complete_since: Option<Instant>,
    /// When the last sync was written.
    last_sync: Option<Instant>,
    /// When this process found the rules of another one that allow what its large sets will allow.
    taking_over_since: Option<Instant>,
    /// Whether this process has begun to write rules.
    writes_rules: bool,
}

/// A set that waits.
#[derive(Debug)]
struct WaitingSet {
    name: SetName,
    want: IpSet,
    /// The sync that deferred it.
    turn: u64,
    /// When the oldest change was received that may need it.
    since: Instant,
}

/// A set that is missing in the kernel, or incomplete.
struct IncompleteSet<'a> {
    name: &'a SetName,
    want: &'a IpSet,
    /// What it costs to complete it.
    cost: usize,
}

impl Deferred {
    /// Decides which sets of `whole` wait: those that the kernel lacks and one sync cannot write. A set that rules may
    /// already refer to never waits.
    ///
    /// The room in a sync goes to the namespaces that need least, so that one that needs much comes after all others.
    /// Among the waiting sets, the one that has waited longest is filled first.
    pub(super) fn choose(
        &mut self,
        observed: &Observed,
        whole: &Ruleset,
        resolved: &Resolved,
        broken: &BTreeSet<Object>,
        since: Instant,
    ) {
        self.complete_since = None;
        self.last_sync = Some(Instant::now());
        let before: BTreeMap<SetName, (u64, Instant)> =
            self.queue.drain(..).map(|waits| (waits.name, (waits.turn, waits.since))).collect();
        let mut lacking = Vec::new();
        for (name, want) in Family::BOTH.into_iter().flat_map(|family| &whole.table(family).sets) {
            let allows = names::may_break(name) && *name != names::drops(name.family());
            if !allows || !broken.is_empty() && broken.contains(&Object::Set(name.clone())) {
                continue;
            }
            let lacks = match observed.table(name.family()).sets.get(name) {
                // No rule refers to it: it was still waiting when the last sync was written.
                Some(there) if before.contains_key(name) && there.kind == want.kind => {
                    let differs = !there.members.ptr_eq(&want.members) && there.members != want.members;
                    differs.then(|| want.members.len().abs_diff(there.members.len()).max(1))
                }
                _ => missing(observed, name, want).map(|lacks| lacks + OF_A_SET),
            };
            lacking.extend(lacks.map(|cost| IncompleteSet { name, want, cost }));
        }
        if lacking.iter().map(|set| set.cost).sum::<usize>() <= OF_A_SYNC {
            return;
        }
        let needs = needs_of_namespaces(whole, resolved, &lacking);
        lacking.sort_by_cached_key(|set| {
            (needs.get(set.name).copied().unwrap_or(usize::MAX), set.cost, set.name.clone())
        });
        self.turn += 1;
        let mut left = OF_A_SYNC;
        for IncompleteSet { name, want, cost } in lacking {
            if let Some(rest) = left.checked_sub(cost) {
                left = rest;
                continue;
            }
            left = 0;
            let (turn, since) = before.get(name).copied().unwrap_or((self.turn, since));
            self.queue.push(WaitingSet { name: name.clone(), want: want.clone(), turn, since });
        }
        self.queue.sort_by_key(|waits| waits.turn);
    }

    /// Whether the rules of a former process stay in force until the large sets are filled.
    pub(super) fn keeps_former_rules(&mut self, observed: &Observed) -> bool {
        let is_former = |table: &ObservedTable| {
            let hooked = table.hooks.values().flat_map(|hook| &hook.targets);
            hooked.into_iter().any(|chain| table.chains.get(chain) == Some(&Content::Unknown))
        };
        let finds_rules = || Family::BOTH.iter().any(|family| is_former(observed.table(*family)));
        let keeps = !self.writes_rules
            && !self.queue.is_empty()
            && finds_rules()
            && self.taking_over_since.get_or_insert_with(Instant::now).elapsed() < TAKE_OVER;
        self.writes_rules = !keeps;
        keeps
    }

    /// The waiting sets, as objects that a sync leaves out.
    pub(super) fn objects(&self) -> impl Iterator<Item = Object> {
        self.queue.iter().map(|waits| Object::Set(waits.name.clone()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether sets still wait since the first sync that deferred any.
    pub(super) fn is_starting(&self) -> bool {
        self.queue.iter().any(|waits| waits.turn <= 1)
    }

    /// When the oldest change was received that waits for a set.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.queue.iter().map(|waits| waits.since).min()
    }

    /// The next edits, of one or several sets.
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

    /// Removes complete sets from the queue.
    fn note_complete(&mut self, observed: &mut Observed) {
        let before = self.queue.len();
        self.queue.retain(|waits| {
            let sets = &mut observed.table_mut(waits.name.family()).sets;
            let complete = sets.get(&waits.name).is_some_and(|there| *there == waits.want);
            if complete {
                // Share the members, instead of holding them as observed and as desired.
                sets.insert(waits.name.clone(), waits.want.clone());
            }
            !complete
        });
        if self.queue.len() < before {
            self.complete_since.get_or_insert_with(Instant::now);
        }
    }

    /// Whether it is time for a sync that adds the rules of complete sets.
    fn wants_sync(&self) -> bool {
        let often = self.last_sync.is_none_or(|at| at.elapsed() >= SYNC_EVERY);
        self.complete_since.is_some() && (self.queue.is_empty() || often)
    }
}

/// For each lacking set, the least that a namespace that uses it lacks in all.
fn needs_of_namespaces<'a>(
    whole: &Ruleset,
    resolved: &Resolved,
    lacking: &[IncompleteSet<'a>],
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
    let costs: BTreeMap<&SetName, &IncompleteSet<'a>> = lacking.iter().map(|set| (set.name, set)).collect();
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
    /// Writes one piece of the waiting sets, if there is one to write and the kernel's state is known.
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
                if self.deferred.wants_sync() {
                    self.schedule.changed();
                }
            }
            Err(ApplyError::Refused(refusals)) => {
                for refusal in refusals {
                    error!(object = %refusal.object, reason = refusal.reason, "kernel refused an object; traffic that it would allow stays denied");
                    self.metrics.failed("sets", crate::dataplane::FailureReason::Refused.label());
                    self.broken.insert(refusal.object);
                }
                // It is not known which part of the step was carried out: the next sync observes the kernel.
                self.schedule.changed();
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
