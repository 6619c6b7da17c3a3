//! The drop log's threads: one reads the kernel's copies of dropped packets, one explains them.
//!
//! The reader only sorts copies into flows, so that it is done with them as fast as they come. The explainer asks the
//! agent who has the addresses, which the agent answers with shared objects between two inputs, and does everything that
//! can take long itself: it rests for nine times as long as it worked. Both run at the lowest priority.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Sender, sync_channel},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::{
    agent::{Identified, Input, Status},
    dataplane::kernel::nflog::Nflog,
    drops::{
        Collector, DropLog, Dropped, Record,
        collector::{Untold, Waiting},
        explain::{LocalPods, Scene, explain},
        record::escaped,
        tally::{Counted, Tally},
    },
    metrics::Metrics,
};

/// How many flows are explained per second, and at once after a quiet time.
const PER_SECOND: u32 = 50;
const BURST: u32 = 100;

/// How many flows are explained between two looks at the clock.
const TOGETHER: usize = 16;

/// How many records are logged per second, and at once after a quiet time.
const LINES_PER_SECOND: u32 = 10;
const LINES_BURST: u32 = 50;

/// The rest after some work, as a multiple of the time that it took: the explainer uses at most a tenth of a core.
const REST: u32 = 9;

/// The longest rest.
const REST_MOST: Duration = Duration::from_secs(2);

/// How long the agent may take to say who has an address, before the packet is explained without it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often the counts of told records are brought up to date.
const UPDATE: Duration = Duration::from_secs(1);

/// How often what was not told is logged, if anything was not.
const SUMMARY: Duration = Duration::from_secs(30);

/// How long to wait before the group is opened again: another process may have it.
const RETRY: Duration = Duration::from_secs(5);

/// Whether dropped packets are recorded, and told in the daemon's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// They are recorded and logged.
    On,
    /// They are recorded.
    Quiet,
    /// They are left to other readers of the log group.
    Off,
}

/// What the threads need.
pub(super) struct DropLogger {
    pub(super) node: Arc<str>,
    pub(super) log: Arc<DropLog>,
    pub(super) inputs: Sender<Input>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) status: Arc<Status>,
    /// Whether records are logged.
    pub(super) logs: bool,
    /// How many pods have a metric of their own.
    pub(super) pod_metrics: usize,
    /// Where records are sent that become Events.
    pub(super) events: Option<mpsc::Sender<Record>>,
}

/// What the two threads share.
#[derive(Default)]
struct Shared {
    collector: Mutex<Collector>,
    arrived: Condvar,
}

impl Shared {
    fn collector(&self) -> MutexGuard<'_, Collector> {
        self.collector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for flows, until `until` at most, and takes as many as may be explained now.
    fn next(&self, until: Instant, allowance: &mut Allowance) -> Vec<Waiting> {
        let mut collector = self.collector();
        loop {
            let now = Instant::now();
            let left = until.saturating_duration_since(now);
            if collector.has_waiting() {
                let most = TOGETHER.min(allowance.available(now));
                if most > 0 {
                    let next = collector.next(most);
                    allowance.take(next.len());
                    return next;
                }
                drop(collector);
                thread::sleep(left.min(Duration::from_secs(1) / PER_SECOND));
                collector = self.collector();
            } else if !left.is_zero() {
                let waited = self.arrived.wait_timeout(collector, left);
                collector = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if Instant::now() >= until {
                return Vec::new();
            }
        }
    }
}

impl DropLogger {
    /// Starts the threads, which read this log group until the process ends.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(super) fn start(self, group: u16) -> io::Result<()> {
        let shared = Arc::new(Shared::default());
        let (to, log, metrics) = (shared.clone(), self.log.clone(), self.metrics.clone());
        thread::Builder::new().name("nflog".to_owned()).spawn(move || read(group, &to, &log, &metrics))?;
        thread::Builder::new().name("drop-log".to_owned()).spawn(move || self.run(&shared))?;
        Ok(())
    }

    fn run(self, shared: &Shared) {
        lowest_priority();
        let mut explained = Allowance::new(PER_SECOND, BURST);
        let mut lines = Allowance::new(LINES_PER_SECOND, LINES_BURST);
        let mut local = LocalPods::default();
        let mut tally = Tally::new(self.pod_metrics);
        let (mut update_at, mut summary_at) = (Instant::now() + UPDATE, Instant::now() + SUMMARY);
        let mut untold: BTreeMap<Untold, u64> = BTreeMap::new();
        let mut not_logged = 0;
        loop {
            let waiting = shared.next(update_at, &mut explained);
            let start = Instant::now();
            if !waiting.is_empty() {
                let identified = self.identify(&waiting);
                if let Some(identified) = &identified {
                    shared.collector().set_pods(identified.all_pods.clone());
                }
                let identified = identified.unwrap_or_default();
                // Waiting for the agent is no work.
                let start = Instant::now();
                for one in &waiting {
                    let record = self.explain(one, &identified, &mut local);
                    let id = self.log.insert(record.clone());
                    shared.collector().told(one, id);
                    self.metrics.drop_records.with_label_values(&[&*record.kind]).inc();
                    self.count(tally.record(id, &record));
                    if let Some(events) = &self.events {
                        // If it is full, enough is told.
                        let _ = events.try_send(record.clone());
                    }
                    not_logged += u64::from(self.logs && !log(&record, &mut lines));
                }
                rest(start.elapsed());
            }
            if start >= update_at {
                update_at = start + UPDATE;
                let updates = shared.collector().updates(start);
                for update in &updates {
                    self.count(tally.update(update));
                }
                for again in updates.iter().filter_map(|update| self.log.update(update)) {
                    not_logged += u64::from(self.logs && !log(&again, &mut lines));
                }
                let lost = shared.collector().take_untold();
                self.log.not_told(&lost);
                for (why, count) in lost {
                    self.metrics.drops_not_told.with_label_values(&[why.label()]).inc_by(count);
                    *untold.entry(why).or_default() += count;
                }
            }
            if start >= summary_at {
                summary_at = start + SUMMARY;
                let untold = std::mem::take(&mut untold);
                let of = |why| untold.get(&why).copied().unwrap_or(0);
                let not_logged = std::mem::take(&mut not_logged);
                if self.logs && (not_logged > 0 || !untold.is_empty()) {
                    info!(
                        target: "towpath::denied",
                        not_logged,
                        overflow = of(Untold::Overflow),
                        too_many_flows = of(Untold::Flows),
                        too_late = of(Untold::Late),
                        foreign = of(Untold::Foreign),
                        "denied packets that were not told one by one"
                    );
                }
            }
        }
    }

    fn count(&self, counted: Option<Counted>) {
        let Some(Counted { namespace, pod, direction, copies }) = counted else { return };
        self.metrics.namespace_drop_copies.with_label_values(&[&namespace, &direction]).inc_by(copies);
        if let Some(pod) = pod {
            self.metrics.pod_drop_copies.with_label_values(&[&namespace, &pod, &direction]).inc_by(copies);
        }
    }

    /// Asks the agent who has the addresses of these flows.
    fn identify(&self, waiting: &[Waiting]) -> Option<Identified> {
        let addresses = waiting.iter().flat_map(|one| one.dropped.addresses()).collect();
        let (answer, answered) = sync_channel(1);
        self.inputs.send(Input::Identify(addresses, answer)).ok()?;
        answered.recv_timeout(PATIENCE).ok()
    }

    fn explain(&self, waiting: &Waiting, identified: &Identified, local: &mut LocalPods) -> Record {
        let pods = self.status.pods();
        if !local.are(&pods) {
            *local = LocalPods::new(pods);
        }
        let scene = Scene {
            node: &self.node,
            owners: &identified.owners,
            local,
            over_budget: &self.status.over_budget(),
        };
        explain(waiting, &scene)
    }
}

/// Reads copies of dropped packets from the kernel.
fn read(group: u16, shared: &Shared, log: &DropLog, metrics: &Metrics) {
    lowest_priority();
    let mut told = None;
    loop {
        match Nflog::open(group) {
            Ok(mut nflog) => {
                log.set_off(None);
                if told.take().is_some() {
                    info!(group, "denied packets are recorded again");
                }
                let error = loop {
                    match receive(&mut nflog, shared, metrics) {
                        Ok(()) => {}
                        Err(error) => break error,
                    }
                };
                warn!(%error, "cannot read copies of denied packets");
            }
            Err(error) => {
                let reason = if Nflog::is_taken(&error) {
                    format!("another process reads netlink log group {group}; --nflog-group sets another one")
                } else {
                    format!("cannot read netlink log group {group}: {error}")
                };
                if told.as_ref() != Some(&reason) {
                    warn!(reason, "denied packets are not recorded");
                }
                log.set_off(Some(reason.clone()));
                told = Some(reason);
            }
        }
        thread::sleep(RETRY);
    }
}

/// Takes in what the kernel has copied.
fn receive(nflog: &mut Nflog, shared: &Shared, metrics: &Metrics) -> io::Result<()> {
    let mut copies = Vec::new();
    let mut foreign = 0;
    let lost = nflog.receive(|copied| match Dropped::of(copied) {
        Some(flow) => copies.push(flow),
        None => foreign += 1,
    })?;
    let (now, at) = (Instant::now(), SystemTime::now());
    let mut collector = shared.collector();
    for (why, count) in [(Untold::Overflow, lost), (Untold::Foreign, foreign)] {
        if count > 0 {
            collector.not_told(why, count);
        }
    }
    for (dropped, source_port) in copies {
        let prefix = &dropped.prefix;
        let direction = prefix.direction().map_or_else(String::new, |direction| direction.to_string());
        metrics.drop_copies.with_label_values(&[prefix.kind(), &direction]).inc();
        collector.take_in(dropped, source_port, now, at);
    }
    if collector.has_waiting() {
        shared.arrived.notify_one();
    }
    Ok(())
}

/// Logs a record, if one may be logged now. Returns whether it did.
fn log(record: &Record, lines: &mut Allowance) -> bool {
    if lines.available(Instant::now()) == 0 {
        return false;
    }
    lines.take(1);
    let text = |text: &Option<String>| escaped(text.as_deref().unwrap_or_default());
    info!(
        target: "towpath::denied",
        flow = escaped(&record.flow()),
        reason = escaped(&record.explanation()),
        kind = record.kind,
        direction = text(&record.direction),
        from = text(&record.from.pod),
        from_address = text(&record.from.address),
        to = text(&record.to.pod),
        to_address = text(&record.to.address),
        protocol = text(&record.protocol),
        port = record.port,
        policies = escaped(&record.policies.join(",")),
        count = record.count,
        first = record.first,
        last = record.last,
        "denied packet"
    );
    true
}

fn rest(worked: Duration) {
    thread::sleep(worked.saturating_mul(REST).min(REST_MOST));
}

/// Lets everything else on the node go first.
fn lowest_priority() {
    // On Linux this is about the calling thread alone. It is a courtesy: without it everything works.
    let _ = rustix::process::setpriority_process(None, 19);
}

/// So many per second, and after a quiet time more at once.
struct Allowance {
    per_second: u32,
    burst: u32,
    left: f64,
    since: Instant,
}

impl Allowance {
    fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second, burst, left: f64::from(burst), since: Instant::now() }
    }

    fn available(&mut self, now: Instant) -> usize {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.left = (self.left + passed * f64::from(self.per_second)).min(f64::from(self.burst));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is between 0 and a burst"
        )]
        let available = self.left as usize;
        available
    }

    fn take(&mut self, count: usize) {
        self.left -= f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowance_refills_up_to_its_burst() {
        let mut allowance = Allowance::new(10, 20);
        let now = Instant::now();
        assert_eq!(allowance.available(now), 20);
        allowance.take(20);
        assert_eq!(allowance.available(now), 0);
        assert_eq!(allowance.available(now + Duration::from_millis(550)), 5);
        assert_eq!(allowance.available(now + Duration::from_mins(1)), 20);
    }
}
