//! When to check whether the kernel still holds what was written, and what to do if not.
//!
//! Drift is repaired at once. If another program undoes the repair again and again, the two fight, and each turn costs
//! a check and a sync, both of which hold the lock that every writer of the tables waits for. A pause that grows with
//! every turn would end that, but leave the node open for as long. So the pause depends on what a turn costs: twice as
//! long as it took. A fight then takes a third of one core and of the lock, however long it lasts, and with few rules a
//! hole is closed within a tenth of a second.

use std::time::{Duration, Instant};

use tracing::warn;

use super::{Agent, Pace};
use crate::{
    dataplane::{CheckDepth, Dataplane, Difference},
    model::Family,
};

/// The shortest pause between two checks, however little they cost.
const PAUSE_LEAST: Duration = Duration::from_millis(100);

/// However much a check costs, suspected drift is checked after this at the latest.
const PAUSE_MOST: Duration = Duration::from_secs(5);

/// A failed check is repeated after this, or after the usual time if that is shorter.
const RETRY: Duration = Duration::from_secs(5);

/// After this many failed checks in a row the node is not ready: then it is not known what it enforces.
const FAILURES: u32 = 3;

/// During a fight, drift is logged no more often than this.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How many differences are logged one by one.
const LOGGED_FINDINGS: usize = 5;

/// The part of the daemon that reports failed checks.
const PART: &str = "check";

/// When to check.
#[derive(Debug)]
pub(super) struct DriftChecker {
    /// When to check everything.
    whole_at: Instant,
    /// When to check briefly, because another program may have changed something.
    brief_at: Option<Instant>,
    /// No brief check before this.
    rest_until: Instant,
    /// How many checks in a row have failed.
    failures: u32,
    /// When drift was last logged, and how many repairs were not logged since.
    logged_at: Option<Instant>,
    not_logged: u64,
}

impl DriftChecker {
    pub(super) fn new(now: Instant, pace: Pace) -> Self {
        Self {
            whole_at: now + pace.check,
            brief_at: None,
            rest_until: now,
            failures: 0,
            logged_at: None,
            not_logged: 0,
        }
    }

    /// Another program may have changed something.
    pub(super) fn recheck(&mut self) {
        self.brief_at.get_or_insert(self.rest_until);
    }

    /// When to check next.
    pub(super) fn next(&self) -> Instant {
        self.brief_at.map_or(self.whole_at, |at| at.min(self.whole_at))
    }

    /// How closely to check now, if at all.
    fn due(&mut self, now: Instant, pace: Pace) -> Option<CheckDepth> {
        if now >= self.whole_at {
            self.whole_at = now + pace.check;
            self.brief_at = None;
            return Some(CheckDepth::Members);
        }
        self.brief_at.take_if(|at| now >= *at).map(|_| CheckDepth::Counts)
    }

    /// A check, and the sync that it caused, took from `start` until `end`.
    fn rest(&mut self, start: Instant, end: Instant) {
        self.rest_until = end + (2 * end.saturating_duration_since(start)).clamp(PAUSE_LEAST, PAUSE_MOST);
        // A change reported meanwhile may have come after the check.
        self.brief_at = self.brief_at.map(|at| at.max(self.rest_until));
    }

    /// Whether to log drift now, and if so, how many repairs were not logged since the last time.
    fn may_log(&mut self, now: Instant) -> Option<u64> {
        if self.logged_at.is_some_and(|logged_at| now.saturating_duration_since(logged_at) < LOG_INTERVAL) {
            self.not_logged += 1;
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.not_logged))
    }
}

/// What a repair writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RepairScope {
    /// What differs.
    Differences,
    /// All chains, and whatever else differs then.
    Everything,
}

impl RepairScope {
    const fn name(self) -> &'static str {
        match self {
            Self::Differences => "differences",
            Self::Everything => "everything",
        }
    }
}

/// Logs differences, and that `repairs` before were not logged.
fn log_findings(findings: &[String], scope: RepairScope, repairs: u64) {
    for finding in findings.iter().take(LOGGED_FINDINGS) {
        warn!(finding, writes = scope.name(), "another program changed our rules; repairing them");
    }
    let more = findings.len().saturating_sub(LOGGED_FINDINGS);
    if more > 0 || repairs > 0 {
        warn!(
            more,
            repairs, "not all drift is logged: more differences, or more repairs since the last line"
        );
    }
}

impl<D: Dataplane> Agent<D> {
    /// Checks if it is time to, and repairs drift.
    pub(super) fn check_drift(&mut self, now: Instant) {
        let Some(depth) = self.drift_checker.due(now, self.pace) else { return };
        if self.differs(depth) {
            self.metrics.drift_repairs.inc();
            self.sync(false);
        }
        self.drift_checker.rest(now, Instant::now());
    }

    /// Takes in what differs: the next sync repairs that and nothing else. In doubt it observes everything, and writes
    /// all chains.
    ///
    /// Members are moved in the order of the changes that moved them, and no change explains what another program did.
    /// So while changes are pending, sets are not repaired by themselves.
    fn note_drift(&mut self, differences: Vec<Difference>) -> RepairScope {
        let Some(kernel) = &mut self.kernel else { return RepairScope::Everything };
        let is_settled = self.moves.is_empty() && !self.schedule.is_pending() && self.deferred.is_empty();
        let is_known = |difference: &Difference| match difference {
            Difference::Set { .. } => is_settled,
            other => other.is_known(),
        };
        let tables = Family::BOTH.map(|family| kernel.table(family));
        let chains: usize = tables.iter().map(|table| table.chains.len()).sum();
        let differing = differences.iter().filter(|it| matches!(it, Difference::Chain { .. })).count();
        if !differences.iter().all(is_known) || 2 * differing > chains {
            self.kernel = None;
            return RepairScope::Everything;
        }
        for difference in differences {
            difference.note(kernel);
        }
        RepairScope::Differences
    }

    /// Whether the kernel holds something other than what was written. If so, that is taken in.
    fn differs(&mut self, depth: CheckDepth) -> bool {
        let Some(expected) = &self.kernel else { return false };
        match self.dataplane.check(expected, depth) {
            Ok(drift) => {
                if std::mem::take(&mut self.drift_checker.failures) >= FAILURES {
                    self.status.set_condition(PART, None);
                }
                if drift.findings.is_empty() {
                    return false;
                }
                let scope = self.note_drift(drift.differences);
                if let Some(repairs) = self.drift_checker.may_log(Instant::now()) {
                    log_findings(&drift.findings, scope, repairs);
                }
                true
            }
            Err(error) => {
                warn!(%error, "drift check failed");
                self.metrics.failed("check", error.reason().label());
                self.drift_checker.failures = self.drift_checker.failures.saturating_add(1);
                self.drift_checker.whole_at = Instant::now() + self.pace.check.min(RETRY);
                if self.drift_checker.failures >= FAILURES {
                    let text = format!(
                        "the drift check failed {} times in a row: {error}",
                        self.drift_checker.failures
                    );
                    self.status.set_condition(PART, Some(text));
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        agent::{Readiness, Status},
        dataplane::{ApplyError, DataplaneError, Drift, fake::Fake},
        metrics::Metrics,
        ruleset::{
            BuiltIn, ChainName, Member,
            compile::Options,
            names,
            observed::Observed,
            plan::{SetEdit, Step},
        },
    };

    /// A fake whose checks fail while it is blind, and that keeps the steps that it was given.
    #[derive(Default)]
    struct Blindable {
        fake: Fake,
        is_blind: bool,
        observed: u32,
        steps: Vec<Step>,
    }

    impl Dataplane for Blindable {
        fn observe(&mut self) -> Result<Observed, DataplaneError> {
            self.observed += 1;
            self.fake.observe()
        }

        fn apply(&mut self, step: &Step) -> Result<(), ApplyError> {
            self.steps.push(step.clone());
            self.fake.apply(step)
        }

        fn check(&mut self, expected: &Observed, depth: CheckDepth) -> Result<Drift, DataplaneError> {
            if self.is_blind {
                return Err(DataplaneError::Locked { command: "iptables-save".to_owned() });
            }
            self.fake.check(expected, depth)
        }
    }

    /// An agent that has written its rules.
    fn agent(pace: Pace) -> Agent<Blindable> {
        let (metrics, status) =
            (Arc::new(Metrics::new().unwrap()), Arc::new(Status::starting("the objects")));
        let mut agent =
            Agent::new("n1", Blindable::default(), Options::default(), pace, metrics, status, None);
        agent.sync(false);
        agent
    }

    /// What a check and the sync after it wrote, and whether everything was observed for it.
    fn repair(agent: &mut Agent<Blindable>, depth: CheckDepth) -> (Vec<Step>, bool) {
        agent.dataplane.steps.clear();
        agent.dataplane.observed = 0;
        let whole = agent.kernel.clone().unwrap();
        assert!(agent.differs(depth));
        agent.sync(false);
        assert_eq!(agent.kernel.as_ref(), Some(&whole), "what was written before is there again");
        assert_eq!(agent.dataplane.observe().unwrap().v4.sets, whole.v4.sets);
        assert!(!agent.differs(CheckDepth::Members), "nothing differs any more");
        (agent.dataplane.steps.clone(), agent.dataplane.observed > 1)
    }

    #[test]
    fn changed_chain_or_hook_is_written_again_and_nothing_else() {
        let mut agent = agent(Pace::default());
        let forward = ChainName::new("TOWPATH-FORWARD").unwrap();
        for (length, hook) in [(Some(0), false), (Some(1), true), (None, true)] {
            let table = &mut agent.dataplane.fake.ruleset_mut().v6;
            let chain = table.chains.remove(&forward).unwrap();
            if hook {
                table.hooks.remove(&BuiltIn::Forward);
            }
            if let Some(length) = length {
                table.chains.insert(forward.clone(), chain.rules.iter().take(length).cloned().collect());
            }
            let (steps, observed) = repair(&mut agent, CheckDepth::Counts);
            let [Step::Chains(Family::V6, batch)] = &*steps else { panic!("{steps:?}") };
            let names: Vec<&ChainName> = batch.write.iter().map(|(name, _)| name).collect();
            assert_eq!((names, batch.hooks.len(), batch.remove.len()), (vec![&forward], hook.into(), 0));
            assert!(!observed);
        }
        agent.dataplane.fake.displace(Family::V4, BuiltIn::Forward);
        let (steps, observed) = repair(&mut agent, CheckDepth::Counts);
        let [Step::Chains(Family::V4, batch)] = &*steps else { panic!("{steps:?}") };
        assert_eq!((batch.write.len(), batch.hooks.len(), observed), (0, 1, false));
    }

    #[test]
    fn changed_members_are_moved_back_and_nothing_else() {
        let mut agent = agent(Pace::default());
        let (name, foreign) = (names::local_pods(Family::V4), Member::Address([10, 0, 0, 1].into()));
        let break_it = |agent: &mut Agent<Blindable>| {
            let sets = &mut agent.dataplane.fake.ruleset_mut().v4.sets;
            sets.get_mut(&name).unwrap().members.insert(foreign);
        };
        break_it(&mut agent);
        let (steps, observed) = repair(&mut agent, CheckDepth::Members);
        assert_eq!(
            (steps, observed),
            (vec![Step::Sets(vec![SetEdit::Remove(name.clone(), foreign)])], false)
        );
        // In doubt everything is observed: which members differ is not known, or changes are pending.
        break_it(&mut agent);
        assert!(repair(&mut agent, CheckDepth::Counts).1);
        break_it(&mut agent);
        agent.schedule.changed();
        assert!(repair(&mut agent, CheckDepth::Members).1);
    }

    #[test]
    fn flushed_tables_are_observed_and_written_as_a_whole() {
        let mut agent = agent(Pace::default());
        for chain in agent.dataplane.fake.ruleset_mut().v4.chains.values_mut() {
            *chain = [].into_iter().collect();
        }
        for chain in agent.dataplane.fake.ruleset_mut().v6.chains.values_mut() {
            *chain = [].into_iter().collect();
        }
        assert!(repair(&mut agent, CheckDepth::Counts).1);
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn pause_depends_on_the_cost_of_a_check_within_bounds() {
        let start = Instant::now();
        for (cost, pause) in [
            (Duration::from_millis(1), PAUSE_LEAST),
            (Duration::from_millis(400), Duration::from_millis(800)),
            (seconds(60), PAUSE_MOST),
        ] {
            let mut drift_checker = DriftChecker::new(start, Pace::default());
            drift_checker.recheck();
            assert_eq!(
                drift_checker.due(start, Pace::default()),
                Some(CheckDepth::Counts),
                "the first check is due immediately"
            );
            drift_checker.recheck();
            drift_checker.rest(start, start + cost);
            assert_eq!(drift_checker.next(), (start + cost + pause).min(start + Pace::default().check));
            drift_checker.recheck();
            assert_eq!(
                drift_checker.due(start + cost, Pace::default()).filter(|depth| *depth == CheckDepth::Counts),
                None
            );
        }
    }

    #[test]
    fn all_parts_are_checked_in_time_despite_many_suspicions() {
        let pace = Pace { check: seconds(1), ..Pace::default() };
        let start = Instant::now();
        let mut drift_checker = DriftChecker::new(start, pace);
        let mut checks = Vec::new();
        for tenth in 0..=20 {
            let now = start + tenth * Duration::from_millis(100);
            drift_checker.recheck();
            if let Some(depth) = drift_checker.due(now, pace) {
                checks.push(depth);
                drift_checker.rest(now, now);
            }
        }
        assert_eq!(checks.iter().filter(|depth| **depth == CheckDepth::Members).count(), 2, "{checks:?}");
        assert!(checks.len() > 15, "{checks:?}");
    }

    #[test]
    fn during_a_fight_drift_is_logged_every_ten_seconds_with_the_number_of_repairs_between() {
        let start = Instant::now();
        let mut drift_checker = DriftChecker::new(start, Pace::default());
        assert_eq!(drift_checker.may_log(start), Some(0));
        assert_eq!(drift_checker.may_log(start + seconds(1)), None);
        assert_eq!(drift_checker.may_log(start + seconds(9)), None);
        assert_eq!(drift_checker.may_log(start + LOG_INTERVAL), Some(2));
        assert_eq!(drift_checker.may_log(start + LOG_INTERVAL + seconds(1)), None);
        assert_eq!(drift_checker.may_log(start + 2 * LOG_INTERVAL), Some(1));
    }

    #[test]
    fn after_three_failed_checks_in_a_row_the_node_is_not_ready_until_one_succeeds() {
        let mut agent = agent(Pace::default());
        let is_ready = |agent: &Agent<Blindable>| agent.status.readiness() == Readiness::Ready;
        agent.dataplane.is_blind = true;
        for ready in [true, true, false, false] {
            assert!(!agent.differs(CheckDepth::Counts));
            assert_eq!(is_ready(&agent), ready);
        }
        agent.dataplane.is_blind = false;
        assert!(!agent.differs(CheckDepth::Counts));
        assert!(is_ready(&agent));
        agent.dataplane.is_blind = true;
        assert!(!agent.differs(CheckDepth::Counts));
        assert!(is_ready(&agent), "the failures before do not count any more");
    }

    #[test]
    fn failed_check_is_repeated_after_at_most_five_seconds() {
        for (check, wait) in [(seconds(60), seconds(5)), (seconds(2), seconds(2))] {
            let mut agent = agent(Pace { check, ..Pace::default() });
            agent.dataplane.is_blind = true;
            let before = Instant::now();
            assert!(!agent.differs(CheckDepth::Members));
            let next = agent.drift_checker.next();
            assert!(before + wait <= next && next <= Instant::now() + wait);
        }
    }
}
