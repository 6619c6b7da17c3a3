//! What a soak found.

use std::fmt::Write as _;

use towpath::lab::Variant;

use crate::{
    faults::Flushed,
    meter::{Fate, Meters},
};

/// How many faults are listed.
const LISTED: usize = 20;

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) starts: u64,
    pub(crate) forced: u64,
    pub(crate) changes: u64,
    pub(crate) kills: u64,
    pub(crate) restarts: u64,
    pub(crate) upgrades: u64,
    /// Daemons that SIGTERM did not end in time.
    pub(crate) hung: u64,
    pub(crate) connections: u64,
    pub(crate) messages: u64,
}

/// The result for one variant.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) variant: &'static str,
    seconds: u64,
    counts: Counts,
    denied: u64,
    allowed: u64,
    /// Packets that passed although no state allows them, and that did not although all states do: not during flushes.
    pub(crate) leaked: u64,
    pub(crate) refused: u64,
    /// Each flush, with what passed and what did not until it was repaired.
    flushes: Vec<String>,
    pub(crate) faults: Vec<String>,
}

impl Report {
    pub(crate) fn new(
        variant: Variant,
        seconds: u64,
        counts: Counts,
        flushed: &[Flushed],
        meters: &Meters,
    ) -> Self {
        let mut report = Self {
            variant: variant.name(),
            seconds,
            counts,
            denied: 0,
            allowed: 0,
            leaked: 0,
            refused: 0,
            flushes: Vec::new(),
            faults: Vec::new(),
        };
        let mut during = vec![(0_u64, 0_u64); flushed.len()];
        let mut fault = |moment: usize, packets: u64, is_allowed: bool, what: String| {
            let flush = flushed.iter().position(|one| one.window.contains(&moment));
            let (leaked, refused) = match flush.and_then(|flush| during.get_mut(flush)) {
                Some((leaked, refused)) => (leaked, refused),
                None => (&mut report.leaked, &mut report.refused),
            };
            *(if is_allowed { refused } else { leaked }) += packets;
            if flush.is_none() && report.faults.len() < LISTED {
                report.faults.push(format!("moment {moment}: {what}: {packets}"));
            }
        };
        for meter in meters.all() {
            let is_allowed = meter.fate == Fate::Allowed;
            *(if is_allowed { &mut report.allowed } else { &mut report.denied }) += meter.sent();
            for one in meter.faults() {
                let since = one.moment - meter.begin().unwrap_or(one.moment);
                fault(one.moment, one.packets, is_allowed, format!("{}, after {since} moments", meter.name));
            }
        }
        for failure in meters.failures() {
            fault(failure.moment, 1, failure.is_allowed, failure.what);
        }
        let line = |(one, (leaked, refused)): (&Flushed, (u64, u64))| {
            format!(
                "{}, {}: repaired after {:.2?}; {leaked} denied packets passed meanwhile, {refused} allowed ones \
                 did not",
                variant.name(),
                one.flush.command(),
                one.repaired
            )
        };
        report.flushes = flushed.iter().zip(during).map(line).collect();
        report
    }

    /// Checks that everything happened that a soak consists of.
    #[track_caller]
    pub(crate) fn assert_complete(&self) {
        let Counts { starts, changes, kills, restarts, connections, messages, .. } = self.counts;
        let of_each = [starts, changes, kills + restarts, connections, messages, self.flushes.len() as u64];
        assert!(of_each.iter().all(|count| *count > 0), "{self:?}");
        assert!(self.denied > 100 * self.seconds && self.allowed > 100 * self.seconds, "{self:?}");
    }
}

/// All results, and below them the flushes.
pub(crate) fn table(reports: &[Report]) -> String {
    let mut text = String::from(
        "| variant | seconds | starts | forced deletions | changes of objects | kills | restarts | upgrades | flushes \
         | denied packets sent | allowed packets sent | connections | leaked | refused |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for report in reports {
        let Report { variant, seconds, denied, allowed, leaked, refused, .. } = report;
        let Counts { starts, forced, changes, kills, restarts, upgrades, connections, .. } = report.counts;
        let flushes = report.flushes.len();
        writeln!(
            text,
            "| {variant} | {seconds} | {starts} | {forced} | {changes} | {kills} | {restarts} | {upgrades} | {flushes} \
             | {denied} | {allowed} | {connections} | {leaked} | {refused} |"
        )
        .unwrap();
    }
    for report in reports.iter().filter(|report| report.counts.hung > 0) {
        writeln!(
            text,
            "{}: {} daemons did not end in time after SIGTERM",
            report.variant, report.counts.hung
        )
        .unwrap();
    }
    for flush in reports.iter().flat_map(|report| &report.flushes) {
        writeln!(text, "{flush}").unwrap();
    }
    text
}
