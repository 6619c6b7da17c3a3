//! One sync: resolve, compile, observe if needed, plan, apply, publish; and how its outcome is handled.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, mpsc::sync_channel},
    time::{Duration, Instant, SystemTime},
};

use tracing::{debug, error, info, warn};

use super::{AddressOwners, Agent, Applied, GuardInput, Readiness};
use crate::{
    dataplane::{ApplyError, Dataplane, DataplaneError, FailureReason},
    model::{Direction, Family, ObjectKey},
    policy::{budget::OverBudget, resolve::Resolved},
    ruleset::{
        Object, Ruleset, SetRole, names,
        observed::Observed,
        plan::{SetEdit, Step, plan},
    },
};

/// How long the first sync waits for the interface guard.
const GUARD_PATIENCE: Duration = Duration::from_secs(10);

/// How a sync ended that did not fail.
enum Synced {
    /// Everything is written, but for what is deferred or refused.
    Written,
    /// Nothing is written: the rules of a former process stay in force while large sets are filled.
    Filling,
}

/// Why a sync ended early.
enum Stopped {
    Refused,
    Failed(DataplaneError),
}

impl<D: Dataplane> Agent<D> {
    /// Runs one sync. Only one with `gc` destroys sets.
    pub(super) fn sync(&mut self, gc: bool) {
        let start = Instant::now();
        self.schedule.starts(start, gc);
        self.batch.written();
        let result = self.try_sync(gc);
        self.metrics.sync_duration.with_label_values(&["total"]).observe(start.elapsed().as_secs_f64());
        match result {
            Ok(Synced::Written) => self.succeeded(),
            Ok(Synced::Filling) => self.status.wait_for(&format!(
                "{} large sets are being filled; the rules of the previous process stay in force until then",
                self.deferred.len()
            )),
            Err(error) => self.failed(&error),
        }
        self.publish_age();
    }

    fn succeeded(&mut self) {
        self.metrics.syncs.with_label_values(&["success"]).inc();
        let starting = !self.settled && self.deferred.is_starting();
        if !starting && !std::mem::replace(&mut self.settled, true) {
            self.dataplane.settled();
        }
        self.waiting.enforced(&self.metrics.enforcement_latency, Instant::now());
        self.answer();
        self.metrics.broken_objects.set(i64::try_from(self.broken.len()).unwrap_or(i64::MAX));
        if self.broken.is_empty() {
            let failures = self.schedule.wrote_everything();
            if failures > 0 {
                info!(failures, "sync works again");
            }
            let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.metrics.last_success.set(since_1970.as_secs_f64());
            if starting {
                let sets = self.deferred.len();
                self.status.wait_for(&format!(
                    "{sets} large sets are still being filled; traffic that they allow is denied until then"
                ));
            } else {
                self.status.set(Readiness::Ready);
            }
        } else {
            // Everything else is enforced, and what these would allow is closed: ready, but not done.
            self.status.set(Readiness::Degraded(format!("the kernel refused {}", named(&self.broken))));
            self.schedule.refused(Instant::now());
        }
    }

    pub(super) fn failed(&mut self, error: &DataplaneError) {
        error!(%error, "sync failed; rules written before stay in force");
        self.metrics.syncs.with_label_values(&["failure"]).inc();
        self.status.set(Readiness::Failing(error.to_string()));
        self.kernel = None;
        // Kept moves would accumulate for as long as syncs fail. The next sync needs none: it observes the kernel, and
        // so writes all chains again, and with chains all members close first.
        self.moves.clear();
        self.schedule.failed(Instant::now());
    }

    fn try_sync(&mut self, gc: bool) -> Result<Synced, DataplaneError> {
        let resolved = self.timed("resolve", |agent| agent.resolver.resolve(&agent.cluster));
        self.update_guard(&resolved);
        let mut whole = self.timed("compile", |agent| agent.compiler.compile(&resolved));
        self.moves.extend(self.resolver.take_moves());
        loop {
            let observed = match self.kernel.take() {
                Some(observed) => observed,
                None => self.timed("observe", |agent| agent.dataplane.observe()).inspect_err(|error| {
                    self.metrics.failed("observe", error.reason().label());
                })?,
            };
            whole = whole.beside(&observed);
            let since = self.waiting.oldest().unwrap_or_else(Instant::now);
            self.deferred.choose(&observed, &whole, &resolved, &self.broken, since);
            if self.deferred.keeps_former_rules(&observed) {
                self.kernel = Some(observed);
                return Ok(Synced::Filling);
            }
            let deferred: BTreeSet<Object> = self.deferred.objects().collect();
            let closed = self.broken.iter().chain(&deferred).cloned().collect();
            let desired = whole.clone().without(&closed);
            let mut steps = self.timed("plan", |agent| plan(&observed, &desired, &agent.moves));
            steps.retain_mut(|step| match step {
                Step::Gc(edits) => {
                    // A waiting set is not used yet, but is not unused either.
                    edits.retain(|edit| !deferred.contains(&Object::Set(edit.set().clone())));
                    !edits.is_empty()
                }
                Step::Sets(_) | Step::Chains(..) => true,
            });
            let beside_others = Family::BOTH.iter().any(|family| !observed.table(*family).others.is_empty());
            match self.carry_out(observed, &steps, gc) {
                Ok(()) => {
                    if gc && beside_others {
                        // Names that sets of another version had may be free now.
                        self.schedule.changed();
                    }
                    self.share_members(&desired);
                    self.moves.clear();
                    self.kernel.iter_mut().for_each(|observed| observed.share(&desired));
                    self.publish(&resolved, &desired, whole, &steps);
                    return Ok(Synced::Written);
                }
                Err(Stopped::Refused) => {}
                Err(Stopped::Failed(error)) => return Err(error),
            }
        }
    }

    /// Sends the owner of each address to the interface guard, if that changed. Before the first rules are written it
    /// waits for the guard: those rules rely on it.
    fn update_guard(&mut self, resolved: &Resolved) {
        let Some(guard) = &self.guard else { return };
        let is_same = self.guarded.as_ref().is_some_and(|(pods, all_pods, nodes)| {
            Arc::ptr_eq(pods, &resolved.pods)
                && all_pods.is_same(&resolved.all_pods)
                && nodes.is_same(&resolved.nodes)
        });
        if is_same {
            return;
        }
        let (done, written) = sync_channel(1);
        let owners = AddressOwners {
            pods: resolved.pods.clone(),
            all_pods: resolved.all_pods.clone(),
            nodes: resolved.nodes.clone(),
            pod_cidrs: resolved.pod_cidrs.clone(),
            done: (!self.settled).then_some(done),
        };
        let sent = guard.send(GuardInput::Owners(owners)).is_ok();
        if sent && !self.settled && written.recv_timeout(GUARD_PATIENCE).is_err() {
            warn!("interface guard not written in time; writing rules without it");
        }
        self.guarded = Some((resolved.pods.clone(), resolved.all_pods.clone(), resolved.nodes.clone()));
    }

    /// Carries out the steps. On success the kernel's state is known; otherwise it must be observed again.
    fn carry_out(&mut self, mut observed: Observed, steps: &[Step], gc: bool) -> Result<(), Stopped> {
        for step in steps {
            if matches!(step, Step::Gc(_)) && !gc {
                self.schedule.sets_unused(Instant::now());
                continue;
            }
            let stage = match step {
                Step::Sets(_) | Step::Gc(_) => "sets",
                Step::Chains(Family::V4, _) => "chains_v4",
                Step::Chains(Family::V6, _) => "chains_v6",
            };
            match self.timed(stage, |agent| agent.dataplane.apply(step)) {
                Ok(()) => observed.note(step),
                Err(ApplyError::Refused(refusals)) => {
                    if let Step::Gc(edits) = step {
                        debug!(sets = refusals.len(), "sets still in use; retrying later");
                        let is_left = |edit: &SetEdit| {
                            refusals.iter().any(|refusal| refusal.object == Object::Set(edit.set().clone()))
                        };
                        edits.iter().filter(|edit| !is_left(edit)).for_each(|edit| observed.note_edit(edit));
                        self.schedule.sets_still_used(Instant::now());
                        continue;
                    }
                    let lost = refusals.iter().find(|refusal| match &refusal.object {
                        Object::Set(name) => !names::may_break(name),
                        Object::Chain(..) => false,
                    });
                    if let Some(refusal) = lost {
                        // Continuing without it would open what it closes: better to leave everything as it was.
                        self.metrics.failed(stage, FailureReason::Refused.label());
                        let doing =
                            format!("writing {}, without which nothing may be written", refusal.object);
                        let source = std::io::Error::other(refusal.reason.clone());
                        return Err(Stopped::Failed(DataplaneError::System { doing, source }));
                    }
                    let known = self.broken.len();
                    for refusal in refusals {
                        error!(object = %refusal.object, reason = refusal.reason, "kernel refused an object; traffic that it would allow stays denied");
                        self.metrics.failed(stage, FailureReason::Refused.label());
                        self.broken.insert(refusal.object);
                    }
                    if self.broken.len() == known {
                        // Closing it did not help: an immediate retry would gain nothing.
                        let doing = format!("closing what the kernel refuses in step {stage}");
                        let source = std::io::Error::other("it is refused all the same");
                        return Err(Stopped::Failed(DataplaneError::System { doing, source }));
                    }
                    return Err(Stopped::Refused);
                }
                Err(ApplyError::Failed(error)) => {
                    self.metrics.failed(stage, error.reason().label());
                    return Err(Stopped::Failed(error));
                }
            }
        }
        self.kernel = Some(observed);
        Ok(())
    }

    /// Holds the members of sets once: after these edits they equal the desired ones, so no comparison is needed.
    fn share_members(&mut self, written: &Ruleset) {
        let Some(observed) = &mut self.kernel else { return };
        for family in Family::BOTH {
            let there = &mut observed.table_mut(family).sets;
            for (name, set) in &written.table(family).sets {
                if let Some(there) = there.get_mut(name) {
                    there.members.clone_from(&set.members);
                }
            }
        }
    }

    /// `written` is in the kernel; `meant` is the desired state, without the loss of what the kernel refused.
    fn publish(&mut self, resolved: &Resolved, written: &Ruleset, meant: Ruleset, steps: &[Step]) {
        let set = |gauge: &prometheus::IntGaugeVec, label: &str, value: usize| {
            gauge.with_label_values(&[label]).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        for family in Family::BOTH {
            let table = written.table(family);
            let label = family.to_string();
            set(&self.metrics.chains, &label, table.chains.len());
            set(&self.metrics.rules, &label, table.chains.values().map(|chain| chain.rules.len()).sum());
            set(&self.metrics.sets, &label, table.sets.len());
            set(&self.metrics.set_entries, &label, table.sets.values().map(|set| set.members.len()).sum());
        }
        for direction in Direction::BOTH {
            let policies: BTreeSet<&ObjectKey> = resolved
                .pods
                .iter()
                .flat_map(|pod| pod.policies.iter())
                .filter(|policy| policy.rules(direction).is_some())
                .map(|policy| &policy.key)
                .collect();
            set(&self.metrics.policies, &direction.to_string(), policies.len());
            let isolated = resolved.pods.iter().filter(|pod| pod.program(direction).is_some()).count();
            set(&self.metrics.isolated_pods, &direction.to_string(), isolated);
        }
        self.status.show(resolved.pods.clone(), resolved.over_budget.clone());
        self.log_over_budget(&resolved.over_budget);
        self.metrics.deferred_sets.set(i64::try_from(self.deferred.len()).unwrap_or(i64::MAX));
        if let Some(applied) = &self.applied
            && !steps.is_empty()
        {
            // The receiver is gone only when the process ends.
            let _ = applied.send(Applied { narrowed: steps.iter().any(may_deny), ruleset: meant });
        }
    }

    /// Logs what is closed for being over budget, when that begins and when it ends.
    fn log_over_budget(&mut self, now: &Arc<[OverBudget]>) {
        if Arc::ptr_eq(now, &self.over_budget) {
            return;
        }
        let before = std::mem::replace(&mut self.over_budget, now.clone());
        let was = |one: &OverBudget| before.binary_search_by(|other| other.closed.cmp(&one.closed)).is_ok();
        let news: Vec<&OverBudget> = now.iter().filter(|one| !was(one)).collect();
        for one in news.iter().take(NAMED) {
            warn!(namespace = %one.namespace(), reason = %one, "over budget; closed");
        }
        if news.len() > NAMED {
            warn!(
                more = news.len() - NAMED,
                "more policies or namespaces are over budget; towpath status lists all"
            );
        }
        let is = |one: &OverBudget| now.binary_search_by(|other| other.closed.cmp(&one.closed)).is_ok();
        for one in before.iter().filter(|one| !is(one)).take(NAMED) {
            info!(namespace = %one.namespace(), closed = %one.closed, "within budget again");
        }
        let namespaces = now.iter().map(|one| one.namespace().to_string());
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        namespaces.for_each(|namespace| *counts.entry(namespace).or_default() += 1);
        self.metrics.set_over_budget(now.len(), &counts);
    }

    pub(super) fn timed<T>(&mut self, stage: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        let start = Instant::now();
        let result = work(self);
        self.metrics.sync_duration.with_label_values(&[stage]).observe(start.elapsed().as_secs_f64());
        result
    }
}

/// How many objects are named at most.
const NAMED: usize = 10;

/// The names of objects; of many the first, and how many more there are.
fn named(objects: &BTreeSet<Object>) -> String {
    let names: Vec<String> = objects.iter().take(NAMED).map(ToString::to_string).collect();
    match objects.len().saturating_sub(NAMED) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// Whether a step can deny what was allowed before it. New sets, longer ones that allow, and unused ones cannot.
fn may_deny(step: &Step) -> bool {
    match step {
        Step::Chains(..) => true,
        Step::Gc(_) => false,
        Step::Sets(edits) => edits.iter().any(|edit| match edit {
            // These two only decide whose tunnel packets pass; no connection of a policy depends on them.
            SetEdit::Remove(set, _) if matches!(set.role(), SetRole::AllPods | SetRole::TunnelEnds) => false,
            SetEdit::Remove(set, _) => !names::grows_early(set),
            SetEdit::Add(set, _) => names::closes(set),
            SetEdit::Create(..) | SetEdit::Destroy(_) => false,
        }),
    }
}

#[cfg(test)]
mod tests;
