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
use crate::dataplane::{CheckDepth, Dataplane};

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

/// Logs differences, and that `repairs` before were not logged.
fn log_findings(findings: &[String], repairs: u64) {
    for finding in findings.iter().take(LOGGED_FINDINGS) {
        warn!(finding, "another program changed our rules; repairing them");
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
            self.kernel = None;
            self.sync(false);
        }
        self.drift_checker.rest(now, Instant::now());
    }

    /// Whether the kernel holds something other than what was written.
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
                if let Some(repairs) = self.drift_checker.may_log(Instant::now()) {
                    log_findings(&drift.findings, repairs);
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
        ruleset::{compile::Options, observed::Observed, plan::Step},
    };

    /// A fake whose checks fail while it is blind.
    #[derive(Default)]
    struct Blindable {
        fake: Fake,
        is_blind: bool,
    }

    impl Dataplane for Blindable {
        fn observe(&mut self) -> Result<Observed, DataplaneError> {
            self.fake.observe()
        }

        fn apply(&mut self, step: &Step) -> Result<(), ApplyError> {
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
