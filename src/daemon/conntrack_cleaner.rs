//! Cuts established connections that the newly written rules deny.
//!
//! To find them the kernel's whole connection table must be walked, and an empty one costs the kernel as many steps as
//! it has buckets: some milliseconds. While policy changes all the time, each change would cause a walk. So the first
//! one is immediate, and after each there is a rest that depends on its cost.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
    io,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::{error, info};

use crate::{
    agent::Applied,
    dataplane::kernel::conntrack::{Conntrack, EstablishedFlow},
    metrics::Metrics,
    model::{Family, Protocol, Transport},
    ruleset::{
        BuiltIn, Ruleset,
        trace::{Packet, trace},
    },
};

/// A first packet that was judged just before new rules took effect may establish its connection just after: so all
/// connections are checked once more, this long after the rules stopped changing.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// The rest after a walk, as a multiple of its duration: a fiftieth of one core, as long as a walk takes no more than
/// ten milliseconds.
const REST: u32 = 49;

/// How long one walk judges connections. The next one continues.
const WALK_MOST: Duration = Duration::from_millis(250);

/// The longest rest, however much a walk costs.
const REST_MOST: Duration = Duration::from_millis(500);

/// How long to wait before a retry after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Starts the conntrack cleaner thread. It receives every sync that wrote something, and stops when the sender is
/// dropped.
///
/// # Errors
/// If no thread can be started.
pub(super) fn start(metrics: Arc<Metrics>) -> io::Result<Sender<Applied>> {
    let (sender, receiver) = mpsc::channel::<Applied>();
    thread::Builder::new().name("conntrack".to_owned()).spawn(move || run(&receiver, &metrics))?;
    Ok(sender)
}

fn run(receiver: &Receiver<Applied>, metrics: &Metrics) {
    let mut passes = Passes::default();
    let mut latest: Option<Ruleset> = None;
    let mut rest_until = Instant::now();
    loop {
        let first = match passes.wait() {
            Some(wait) => receiver.recv_timeout(wait),
            None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        if let Err(RecvTimeoutError::Disconnected) = first {
            return;
        }
        // Handle everything that is written meanwhile together.
        thread::sleep(rest_until.saturating_duration_since(Instant::now()));
        let mut narrowed = false;
        for applied in first.into_iter().chain(receiver.try_iter()) {
            narrowed |= applied.narrowed;
            latest = Some(applied.ruleset);
        }
        if narrowed {
            passes.narrowed();
        }
        let Some(ruleset) = latest.as_ref().filter(|_| passes.is_due()) else { continue };
        let start = Instant::now();
        let mut walk = passes.walk();
        let worked = cut(ruleset, metrics, &mut walk, start + WALK_MOST);
        let Walk { denied, left, .. } = walk;
        let cut = if worked { denied } else { HashSet::new() };
        passes.walked(worked && left == 0, cut);
        metrics.connections_unjudged.set(i64::try_from(left).unwrap_or(i64::MAX));
        rest_until = Instant::now() + if worked { rest(start.elapsed()) } else { RETRY };
    }
}

/// How long to rest after a walk of this duration.
fn rest(walk: Duration) -> Duration {
    walk.saturating_mul(REST).min(REST_MOST)
}

/// How often all connections must still be judged, and which already were in the current pass.
///
/// One walk judges only for a bounded time, since rules can be long and connections many. The next walk continues, by
/// the rules as they are then. So a pass ends however often the rules change meanwhile; and after a change that
/// narrowed what is allowed there are two more, each from its beginning.
#[derive(Debug, Default)]
struct Passes {
    /// How many passes remain, including the current one.
    due: usize,
    /// The flows that this pass is done with, by their hashes; `None` between two passes.
    judged: Option<HashSet<u64>>,
    hashes: RandomState,
}

/// One walk of a pass.
struct Walk<'a> {
    judged: &'a mut HashSet<u64>,
    hashes: &'a RandomState,
    /// The flows that this walk found denied: several connections can be one flow.
    denied: HashSet<u64>,
    /// How many connections it left unjudged.
    left: usize,
}

impl Passes {
    /// How long to wait for input before the next walk; `None` if none is due.
    fn wait(&self) -> Option<Duration> {
        match (self.due, &self.judged) {
            (0, _) => None,
            (1, None) => Some(SECOND_LOOK),
            _ => Some(Duration::ZERO),
        }
    }

    fn narrowed(&mut self) {
        self.due = if self.judged.is_some() { 3 } else { 2 };
    }

    fn is_due(&self) -> bool {
        self.due > 0
    }

    fn walk(&mut self) -> Walk<'_> {
        let judged = self.judged.get_or_insert_default();
        Walk { judged, hashes: &self.hashes, denied: HashSet::new(), left: 0 }
    }

    /// A walk ended that cut `denied`, and the pass with it if nothing was left.
    fn walked(&mut self, whole: bool, denied: HashSet<u64>) {
        if whole {
            self.judged = None;
            self.due = self.due.saturating_sub(1);
        } else if let Some(judged) = &mut self.judged {
            // A cut connection stays in the table for a while, as one that was never answered.
            judged.extend(denied);
        }
    }
}

impl Walk<'_> {
    /// Whether to cut a flow. `denied` evaluates the rules for it, and is called until `until`.
    fn denies(&mut self, flow: &EstablishedFlow, until: Instant, denied: impl FnOnce() -> bool) -> bool {
        let hash = self.hashes.hash_one(flow);
        if self.judged.contains(&hash) {
            return false;
        }
        if self.denied.contains(&hash) {
            return true;
        }
        if Instant::now() >= until {
            self.left += 1;
            return false;
        }
        let denied = denied();
        if denied { &mut self.denied } else { &mut *self.judged }.insert(hash);
        denied
    }
}

/// Cuts the connections whose first packet `ruleset` would drop now, as far as they can be judged until `until`.
/// Returns whether that worked.
fn cut(ruleset: &Ruleset, metrics: &Metrics, walk: &mut Walk<'_>, until: Instant) -> bool {
    let judge = |flow: &EstablishedFlow| {
        let family = Family::of(flow.source);
        let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == flow.protocol);
        let transport = protocol.map_or(Transport::Other(flow.protocol), |protocol| {
            Transport::Port(protocol, flow.destination_port)
        });
        let packet = Packet { at: BuiltIn::Forward, ..Packet::new(flow.source, flow.destination, transport) };
        !trace(ruleset.table(family), &packet).passed
    };
    let denies = |flow: &EstablishedFlow| walk.denies(flow, until, || judge(flow));
    let result = Conntrack::open().and_then(|mut conntrack| conntrack.cut(denies));
    let worked = result.is_ok();
    match result {
        Ok(0) => {}
        Ok(count) => {
            info!(count, "cut connections that policy no longer allows");
            metrics.connections_cut.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        }
        Err(error) => {
            error!(%error, "cannot cut connections that policy no longer allows");
            metrics.failed("conntrack", error.reason().label());
        }
    }
    worked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_depends_on_the_cost_of_a_walk_within_bounds() {
        let ms = Duration::from_millis;
        assert_eq!(rest(ms(0)), ms(0));
        assert_eq!(rest(ms(4)), ms(196));
        assert_eq!(rest(ms(10_000)), ms(500));
    }

    fn flow(port: u16) -> EstablishedFlow {
        let address = |last: u8| [10, 244, 1, last].into();
        EstablishedFlow { source: address(1), destination: address(2), protocol: 6, destination_port: port }
    }

    #[test]
    fn entries_left_by_one_walk_are_evaluated_once_by_the_next_ones() {
        let mut passes = Passes::default();
        passes.narrowed();
        let (now, mut evaluated) = (Instant::now(), Vec::new());
        let later = now + Duration::from_hours(1);
        // Each walk has time for two flows.
        for turn in 0..3 {
            let mut walk = passes.walk();
            for port in 0..5 {
                let until = if port < 2 * (turn + 1) { later } else { now };
                let denied = walk.denies(&flow(port), until, || {
                    evaluated.push(port);
                    port == 3
                });
                assert!(!denied || port == 3);
            }
            let Walk { denied, left, .. } = walk;
            passes.walked(left == 0, denied);
        }
        assert_eq!(evaluated, [0, 1, 2, 3, 4]);
        assert_eq!((passes.due, passes.wait()), (1, Some(SECOND_LOOK)));
    }

    #[test]
    fn pass_ends_despite_changed_rules_and_a_full_pass_follows() {
        let mut passes = Passes::default();
        assert_eq!(passes.wait(), None);
        passes.narrowed();
        passes.walk();
        passes.walked(false, HashSet::new());
        passes.narrowed();
        for due in [2, 1, 0] {
            passes.walk();
            passes.walked(true, HashSet::new());
            assert_eq!(passes.due, due);
        }
        assert_eq!(passes.wait(), None);
    }
}
