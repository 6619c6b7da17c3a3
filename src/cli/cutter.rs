//! Cuts established connections that the rules just written deny.
//!
//! To find them the kernel's whole table of connections has to be walked, and an empty one costs the kernel as many
//! steps as it has buckets: some milliseconds. While policy changes all the time, each change would bring a walk. So
//! the first one is at once, and after each there is a rest that goes by what it cost.

use std::{
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

/// A first packet that was judged just before new rules took effect may found its connection just after: so the
/// connections are gone through once more, so long after the rules have ceased to change.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// After a walk that took a millisecond there is a rest of so many: a fiftieth of one core, as long as it
/// takes no more than ten.
const REST: u32 = 49;

/// However much a walk costs, the next one waits no longer.
const REST_MOST: Duration = Duration::from_millis(500);

/// What failed is tried again after so long.
const RETRY: Duration = Duration::from_secs(5);

/// Starts the thread that cuts. It is told of every round that wrote, and ends when nobody is left who could tell it.
///
/// # Errors
/// If there can be no more threads.
pub(super) fn start(metrics: Arc<Metrics>) -> io::Result<Sender<Applied>> {
    let (sender, receiver) = mpsc::channel::<Applied>();
    thread::Builder::new().name("cutter".to_owned()).spawn(move || run(&receiver, &metrics))?;
    Ok(sender)
}

fn run(receiver: &Receiver<Applied>, metrics: &Metrics) {
    let mut look_again = false;
    let mut latest: Option<Ruleset> = None;
    let mut rest_until = Instant::now();
    loop {
        let first = if look_again {
            receiver.recv_timeout(SECOND_LOOK)
        } else {
            receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        if let Err(RecvTimeoutError::Disconnected) = first {
            return;
        }
        // What is written meanwhile is looked at together.
        thread::sleep(rest_until.saturating_duration_since(Instant::now()));
        let mut narrowed = false;
        for applied in first.into_iter().chain(receiver.try_iter()) {
            narrowed |= applied.narrowed;
            latest = Some(applied.ruleset);
        }
        let look_now = narrowed || look_again;
        look_again = narrowed;
        if let Some(ruleset) = latest.as_ref().filter(|_| look_now) {
            let start = Instant::now();
            let worked = cut(ruleset, metrics);
            look_again |= !worked;
            rest_until = Instant::now() + if worked { rest(start.elapsed()) } else { RETRY };
        }
    }
}

/// How long to rest after a walk that took so long.
fn rest(walk: Duration) -> Duration {
    walk.saturating_mul(REST).min(REST_MOST)
}

/// Cuts the connections whose first packet `ruleset` would drop today. Whether that worked.
fn cut(ruleset: &Ruleset, metrics: &Metrics) -> bool {
    let denies = |flow: &EstablishedFlow| {
        let family = Family::of(flow.source);
        let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == flow.protocol);
        let transport = protocol.map_or(Transport::Other(flow.protocol), |protocol| {
            Transport::Port(protocol, flow.destination_port)
        });
        let packet = Packet { at: BuiltIn::Forward, ..Packet::new(flow.source, flow.destination, transport) };
        !trace(ruleset.table(family), &packet).passed
    };
    let result = Conntrack::open().and_then(|mut conntrack| conntrack.cut(denies));
    let worked = result.is_ok();
    match result {
        Ok(0) => {}
        Ok(count) => {
            info!(count, "cut connections that policy no longer allows");
            metrics.connections_cut.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        }
        Err(error) => {
            error!(%error, "could not cut connections that policy no longer allows");
            metrics.failed("conntrack", error.reason().label());
        }
    }
    worked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_goes_by_what_the_walk_cost_and_stays_bounded() {
        let ms = Duration::from_millis;
        assert_eq!(rest(ms(0)), ms(0));
        assert_eq!(rest(ms(4)), ms(196));
        assert_eq!(rest(ms(10_000)), ms(500));
    }
}
