//! When the loop syncs, retries, and collects unused sets.
//!
//! | event | changes pending | no sync before | retry at | collect unused sets at |
//! |---|---|---|---|---|
//! | an object or the tunnels changed, the initial lists or deferred sets are complete | yes | | | |
//! | a pod was attached or detached | yes | now, unless a retry is set | | |
//! | a sync starts | no | start + debounce | | never, if it collects them |
//! | everything was written | | | never; failures = 0 | |
//! | the kernel refused an object | | | unless set: now + backoff; one more failure | |
//! | the sync failed | | the retry | unless set: now + backoff; one more failure | |
//! | sets became unused | | | | unless set: now + gc |
//! | an unused set was still in use | | | | now + 2 gc |
//! | the retry is due | | | never, until this sync fails | |
//!
//! An empty field stays as it was. The backoff doubles with each failure in a row, up to a limit. Nothing is due before
//! the initial lists are complete.

use std::time::Instant;

use super::Pace;

/// What is due when.
#[derive(Debug)]
pub(super) struct Schedule {
    pace: Pace,
    /// Whether the initial lists are complete.
    synced: bool,
    /// Whether something changed since the last sync.
    pending: bool,
    not_before: Instant,
    retry_at: Option<Instant>,
    gc_at: Option<Instant>,
    /// How many syncs in a row have failed, or left out what the kernel refused.
    failures: u32,
}

/// A sync that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// Whether it retries the objects that the kernel refused.
    pub(super) retry: bool,
    /// Whether it destroys unused sets.
    pub(super) gc: bool,
}

impl Schedule {
    pub(super) fn new(pace: Pace, now: Instant) -> Self {
        Self {
            pace,
            synced: false,
            pending: false,
            not_before: now,
            retry_at: None,
            gc_at: None,
            failures: 0,
        }
    }

    /// The initial lists are complete.
    pub(super) fn lists_complete(&mut self) {
        self.synced = true;
        self.pending = true;
    }

    /// Something changed.
    pub(super) fn changed(&mut self) {
        self.pending = true;
    }

    /// Something changed that a pod waits for. Only a retry delays it.
    pub(super) fn changed_urgently(&mut self, now: Instant) {
        self.pending = true;
        if self.retry_at.is_none() {
            self.not_before = self.not_before.min(now);
        }
    }

    /// Whether the initial lists are complete.
    pub(super) const fn is_synced(&self) -> bool {
        self.synced
    }

    /// Whether something changed since the last sync.
    pub(super) const fn is_pending(&self) -> bool {
        self.pending
    }

    /// Whether a sync may come between two inputs: there is something to write, and nothing that failed waits for its
    /// retry.
    pub(super) const fn may_split(&self) -> bool {
        self.synced && self.pending && self.retry_at.is_none()
    }

    /// When something is due next, if nothing else happens.
    pub(super) fn next(&self) -> Option<Instant> {
        let sync = self.pending.then_some(self.not_before);
        [sync, self.retry_at, self.gc_at].into_iter().flatten().min().filter(|_| self.synced)
    }

    /// What is due now.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        if !self.synced {
            return None;
        }
        let is_due = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        let gc = is_due(self.gc_at);
        if is_due(self.retry_at) {
            self.retry_at = None;
            return Some(Due { retry: true, gc });
        }
        (self.pending && now >= self.not_before || gc).then_some(Due { retry: false, gc })
    }

    /// A sync starts.
    pub(super) fn starts(&mut self, now: Instant, gc: bool) {
        self.not_before = now + self.pace.debounce;
        self.pending = false;
        if gc {
            self.gc_at = None;
        }
    }

    /// The sync wrote everything. Returns how many before it had failed.
    pub(super) fn wrote_everything(&mut self) -> u32 {
        self.retry_at = None;
        std::mem::take(&mut self.failures)
    }

    /// The kernel refused some objects; everything else is written.
    pub(super) fn refused(&mut self, now: Instant) {
        if self.retry_at.is_some() {
            return;
        }
        let backoff = self.pace.retry_first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + backoff.min(self.pace.retry_most));
    }

    /// The sync failed: another one before the retry would fail as well.
    pub(super) fn failed(&mut self, now: Instant) {
        self.refused(now);
        self.not_before = self.retry_at.unwrap_or(self.not_before);
    }

    /// Sets became unused.
    pub(super) fn sets_unused(&mut self, now: Instant) {
        self.gc_at.get_or_insert(now + self.pace.gc);
    }

    /// The kernel still used some of the sets that were to be destroyed.
    pub(super) fn sets_still_used(&mut self, now: Instant) {
        self.gc_at = Some(now + 2 * self.pace.gc);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DEBOUNCE: Duration = Duration::from_secs(1);
    const RETRY: Duration = Duration::from_secs(10);
    const GC: Duration = Duration::from_secs(100);
    const SYNC: Due = Due { retry: false, gc: false };

    fn schedule() -> (Schedule, Instant) {
        let pace =
            Pace { debounce: DEBOUNCE, retry_first: RETRY, retry_most: 4 * RETRY, gc: GC, ..Pace::default() };
        let now = Instant::now();
        (Schedule::new(pace, now), now)
    }

    /// One that has written the initial lists at the returned time.
    fn synced() -> (Schedule, Instant) {
        let (mut schedule, now) = schedule();
        schedule.lists_complete();
        schedule.starts(now, false);
        schedule.wrote_everything();
        (schedule, now)
    }

    #[test]
    fn nothing_is_due_before_the_initial_lists_are_complete() {
        let (mut schedule, now) = schedule();
        schedule.changed();
        assert_eq!((schedule.due(now + GC), schedule.next(), schedule.may_split()), (None, None, false));
        schedule.lists_complete();
        assert!(schedule.may_split());
        assert_eq!((schedule.due(now), schedule.next()), (Some(SYNC), Some(now)));
    }

    #[test]
    fn change_is_due_at_once_but_not_within_the_debounce() {
        let (mut schedule, now) = synced();
        assert_eq!((schedule.due(now + GC), schedule.next(), schedule.may_split()), (None, None, false));
        schedule.changed();
        assert_eq!(schedule.next(), Some(now + DEBOUNCE));
        let just_before = now + Duration::from_millis(999);
        assert_eq!(schedule.due(just_before), None);
        assert_eq!(schedule.due(now + DEBOUNCE), Some(SYNC));
        schedule.starts(now + DEBOUNCE, false);
        assert_eq!(schedule.due(now + GC), None);
    }

    #[test]
    fn urgent_change_waits_for_no_debounce_but_for_a_retry() {
        let (mut schedule, now) = synced();
        schedule.changed_urgently(now);
        assert_eq!((schedule.due(now), schedule.next()), (Some(SYNC), Some(now)));
        schedule.starts(now, false);
        schedule.failed(now);
        schedule.changed_urgently(now);
        assert_eq!((schedule.due(now), schedule.next()), (None, Some(now + RETRY)));
    }

    #[test]
    fn refused_objects_are_retried_after_a_backoff_and_changes_do_not_wait_for_it() {
        let (mut schedule, mut now) = synced();
        for backoff in [RETRY, 2 * RETRY, 4 * RETRY, 4 * RETRY] {
            schedule.refused(now);
            schedule.refused(now + DEBOUNCE);
            assert_eq!(schedule.next(), Some(now + backoff), "the first refusal counts");
            schedule.changed();
            assert!(!schedule.may_split());
            assert_eq!(schedule.due(now + DEBOUNCE), Some(SYNC));
            schedule.starts(now + DEBOUNCE, false);
            now += backoff;
            assert_eq!(schedule.due(now), Some(Due { retry: true, gc: false }));
            schedule.starts(now, false);
        }
        assert_eq!(schedule.wrote_everything(), 4);
        assert_eq!((schedule.wrote_everything(), schedule.next()), (0, None));
        schedule.refused(now);
        assert_eq!(schedule.next(), Some(now + RETRY), "the backoff starts again");
    }

    #[test]
    fn no_sync_runs_between_a_failed_one_and_its_retry() {
        let (mut schedule, now) = synced();
        schedule.failed(now);
        schedule.changed();
        assert_eq!((schedule.due(now + DEBOUNCE), schedule.next()), (None, Some(now + RETRY)));
        assert_eq!(schedule.due(now + RETRY), Some(Due { retry: true, gc: false }));
        schedule.starts(now + RETRY, false);
        schedule.wrote_everything();
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn unused_sets_are_collected_once_and_again_if_the_kernel_still_used_one() {
        let (mut schedule, now) = synced();
        schedule.sets_unused(now);
        schedule.sets_unused(now + DEBOUNCE);
        assert_eq!(schedule.next(), Some(now + GC));
        assert_eq!(schedule.due(now + GC), Some(Due { retry: false, gc: true }));
        schedule.starts(now + GC, true);
        assert_eq!(schedule.next(), None);
        schedule.sets_still_used(now + GC);
        assert_eq!(schedule.next(), Some(now + 3 * GC));
        schedule.starts(now + GC, false);
        assert_eq!(schedule.next(), Some(now + 3 * GC), "a sync that destroys nothing leaves it");
    }
}
