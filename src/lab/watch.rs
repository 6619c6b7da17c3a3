//! Watches flows that must never fail.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{Host, LabError, Outcome, Probe, probe::ask_all};

/// Probes that are repeated until stopped, each time as new flows, and a count of their outcomes.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<WatchReport>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What a watch recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchReport {
    /// How many probes were answered.
    pub open: u64,
    /// Those that were refused or lost: when the round of probes ended, which probe, and its outcome.
    pub failures: Vec<(Instant, Probe, Outcome)>,
    /// Why a sender had to give up, if one did.
    pub broken: Option<String>,
}

impl Watch {
    /// Starts one thread for each sender with the probes that it sends.
    pub(super) fn start(
        senders: Vec<(&Host, Vec<Probe>)>,
        every: Duration,
        timeout: Duration,
    ) -> Result<Self, LabError> {
        let mut watch = Self { seen: Arc::default(), stop: Arc::default(), threads: Vec::new() };
        for (host, probes) in senders {
            let (seen, stop, fresh) = (watch.seen.clone(), watch.stop.clone(), host.fresh());
            let repeat = move || {
                while !stop.load(Ordering::Relaxed) {
                    let next = Instant::now() + every;
                    let replies = ask_all(&probes, &fresh, timeout);
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    match replies {
                        Ok(replies) => {
                            for (probe, reply) in probes.iter().zip(replies) {
                                seen.count(*probe, reply.outcome);
                            }
                        }
                        Err(error) => {
                            seen.broken = Some(error.to_string());
                            return;
                        }
                    }
                    drop(seen);
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            };
            watch.threads.push(host.netns().start_thread("watch", repeat)?);
        }
        Ok(watch)
    }

    /// What it has seen so far.
    #[must_use]
    pub fn report(&self) -> WatchReport {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops it, after the answers to the last probes have arrived.
    #[must_use]
    pub fn stop(mut self) -> WatchReport {
        self.end();
        self.report()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

impl WatchReport {
    fn count(&mut self, probe: Probe, outcome: Outcome) {
        if outcome.is_open() {
            self.open += 1;
        } else {
            self.failures.push((Instant::now(), probe, outcome));
        }
    }
}
