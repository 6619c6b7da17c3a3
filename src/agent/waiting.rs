//! Changes that the kernel does not enforce yet, and since when they wait.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use prometheus::{HistogramVec, local::LocalHistogram};

/// Changes that arrive this soon after others count as having arrived with them.
const TOGETHER: Duration = Duration::from_millis(1);

/// How many times of arrival are kept for each kind; beyond that, each two neighbours become the earlier one. So hours
/// in which the kernel refuses everything cost no more memory, and the latency is overstated rather than understated.
const MOST_ARRIVALS: usize = 1024;

/// Pending changes, by kind of object. Changes that arrived together are one entry, so that the first list of a large
/// cluster costs no more than a single change.
#[derive(Debug, Default)]
pub(super) struct Waiting(BTreeMap<&'static str, Vec<Arrival>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Arrival {
    received: Instant,
    changes: u64,
}

impl Waiting {
    /// Adds a change of an object of `kind`, which a source received at `received`.
    pub(super) fn add(&mut self, kind: &'static str, received: Instant) {
        let arrivals = self.0.entry(kind).or_default();
        if let Some(last) = arrivals.last_mut()
            && received.saturating_duration_since(last.received) <= TOGETHER
        {
            last.received = last.received.min(received);
            last.changes += 1;
            return;
        }
        arrivals.push(Arrival { received, changes: 1 });
        if arrivals.len() > MOST_ARRIVALS {
            *arrivals = arrivals.chunks(2).filter_map(joined).collect();
        }
    }

    /// When the oldest of them was received.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.0.values().flatten().map(|arrival| arrival.received).min()
    }

    /// The kernel enforces all of it: every change is observed once, and nothing is pending any more.
    pub(super) fn enforced(&mut self, latency: &HistogramVec, now: Instant) {
        for (kind, arrivals) in std::mem::take(&mut self.0) {
            // Locally, so that 100,000 observations take a millisecond instead of a hundred thousand shared writes.
            let local: LocalHistogram = latency.with_label_values(&[kind]).local();
            for arrival in arrivals {
                let waited = now.saturating_duration_since(arrival.received).as_secs_f64();
                (0..arrival.changes).for_each(|_| local.observe(waited));
            }
            local.flush();
        }
    }
}

/// Merges neighbours into one entry, with the earlier time.
fn joined(neighbours: &[Arrival]) -> Option<Arrival> {
    let received = neighbours.iter().map(|arrival| arrival.received).min()?;
    Some(Arrival { received, changes: neighbours.iter().map(|arrival| arrival.changes).sum() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn count(metrics: &Metrics, kind: &str) -> (u64, f64) {
        let histogram = metrics.enforcement_latency.with_label_values(&[kind]);
        (histogram.get_sample_count(), histogram.get_sample_sum())
    }

    #[test]
    fn latency_of_each_change_is_observed_once_by_kind() {
        let metrics = Metrics::new().unwrap();
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        (0..100_000).for_each(|_| waiting.add("Pod", start));
        waiting.add("Pod", start + Duration::from_secs(1));
        waiting.add("Namespace", start + Duration::from_secs(1));
        assert_eq!(waiting.0["Pod"].len(), 2);
        assert_eq!(waiting.oldest(), Some(start));
        waiting.enforced(&metrics.enforcement_latency, start + Duration::from_secs(2));
        waiting.enforced(&metrics.enforcement_latency, start + Duration::from_secs(9));
        assert_eq!(waiting.oldest(), None);
        let (pods, seconds) = count(&metrics, "Pod");
        assert_eq!(pods, 100_001);
        assert!((seconds - 200_001.0).abs() < 1e-6, "{seconds}");
        assert_eq!(count(&metrics, "Namespace").0, 1);
    }

    #[test]
    fn pending_changes_stay_bounded_and_none_is_lost() {
        let metrics = Metrics::new().unwrap();
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        for second in 0..10_000 {
            waiting.add("Pod", start + Duration::from_secs(second));
        }
        assert!(waiting.0["Pod"].len() <= MOST_ARRIVALS);
        assert_eq!(waiting.0["Pod"][0].received, start);
        let kept = |arrivals: usize| {
            let mut waiting = Waiting::default();
            (0..).take(arrivals).for_each(|second| waiting.add("Pod", start + Duration::from_secs(second)));
            waiting.0["Pod"].len()
        };
        assert_eq!(kept(MOST_ARRIVALS), MOST_ARRIVALS);
        assert_eq!(kept(MOST_ARRIVALS + 1), MOST_ARRIVALS / 2 + 1);
        waiting.enforced(&metrics.enforcement_latency, start + Duration::from_secs(10_000));
        assert_eq!(count(&metrics, "Pod").0, 10_000);
    }
}
