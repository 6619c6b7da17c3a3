//! Every metric: its name, its help text and its buckets, in one place.
//!
//! Names and units follow the Prometheus conventions; docs/metrics.md says how to read them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use prometheus::{
    Encoder as _, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector, proto::MetricFamily,
};

mod process;

use process::Process;

/// Bucket bounds for everything that is timed, in seconds: from an idle sync to a very large first one.
const SECONDS: [f64; 14] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How many refused objects have their own series: enough to see which are affected, and bounded.
const REFUSED_SERIES: usize = 100;

/// How many namespaces have their own series because something in them is over budget.
const OVER_BUDGET_SERIES: usize = 100;

/// The source of a duration that is read only on demand.
struct Age(Box<dyn Fn() -> Duration + Send + Sync>);

impl fmt::Debug for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Age({:?})", (self.0)())
    }
}

/// The source of a count that is read only on demand.
struct Count(Box<dyn Fn() -> u64 + Send + Sync>);

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Count({})", (self.0)())
    }
}

/// The metrics of one daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// `towpath_syncs_total`.
    pub syncs: IntCounterVec,
    /// `towpath_sync_duration_seconds`, by stage.
    pub sync_duration: HistogramVec,
    /// `towpath_enforcement_latency_seconds`, by kind.
    pub enforcement_latency: HistogramVec,
    /// `towpath_failures_total`, by stage and reason; see [`failed`](Self::failed).
    pub failures: IntCounterVec,
    /// `towpath_last_success_timestamp_seconds`.
    pub last_success: Gauge,
    /// `towpath_objects`, by kind.
    pub objects: IntGaugeVec,
    refused_objects: IntGauge,
    refused_object: IntGaugeVec,
    /// Which refused objects have a series.
    refused_shown: Mutex<BTreeSet<[String; 3]>>,
    /// `towpath_policies`, by direction.
    pub policies: IntGaugeVec,
    /// `towpath_isolated_pods`, by direction.
    pub isolated_pods: IntGaugeVec,
    /// `towpath_chains`, by family.
    pub chains: IntGaugeVec,
    /// `towpath_rules`, by family.
    pub rules: IntGaugeVec,
    /// `towpath_sets`, by family.
    pub sets: IntGaugeVec,
    /// `towpath_set_entries`, by family.
    pub set_entries: IntGaugeVec,
    /// `towpath_broken_objects`.
    pub broken_objects: IntGauge,
    /// `towpath_drift_repairs_total`.
    pub drift_repairs: IntCounter,
    /// `towpath_watch_restarts_total`, by kind and reason.
    pub watch_restarts: IntCounterVec,
    /// `towpath_watch_staleness_seconds`, by kind; updated when the metrics are read.
    watch_staleness: GaugeVec,
    /// When the API server last sent something, by kind.
    received: Mutex<BTreeMap<&'static str, Instant>>,
    /// `towpath_connections_cut_total`.
    pub connections_cut: IntCounter,
    /// `towpath_attachments`.
    pub attachments: IntGauge,
    /// `towpath_gate_requests_total`, by command and outcome.
    pub gate_requests: IntCounterVec,
    /// `towpath_gate_duration_seconds`, by command.
    pub gate_duration: HistogramVec,
    /// `towpath_guarded_interfaces`.
    pub guarded_interfaces: IntGauge,
    /// `towpath_unknown_interfaces`.
    pub unknown_interfaces: IntGauge,
    /// `towpath_unguarded_pods`.
    pub unguarded_pods: IntGauge,
    /// `towpath_guard_drops_total`, by reason.
    pub guard_drops: IntCounterVec,
    /// `towpath_commands_total`.
    pub commands: IntCounter,
    started: OnceLock<Count>,
    /// `towpath_ready`; updated when the metrics are read.
    ready: IntGauge,
    ready_now: OnceLock<Count>,
    /// What the process uses; updated when the metrics are read.
    process: Process,
    /// `towpath_oldest_pending_change_seconds`; updated when the metrics are read.
    pending: Gauge,
    pending_age: OnceLock<Age>,
    over_budget: IntGauge,
    over_budget_by_namespace: IntGaugeVec,
    /// `towpath_deferred_sets`.
    pub deferred_sets: IntGauge,
    /// `towpath_connections_unjudged`.
    pub connections_unjudged: IntGauge,
    /// `towpath_gate_installed`.
    pub gate_installed: IntGauge,
    /// `towpath_drop_copies_total`, by kind and direction.
    pub drop_copies: IntCounterVec,
    /// `towpath_drop_records_total`, by kind.
    pub drop_records: IntCounterVec,
    /// `towpath_drops_not_told_total`, by reason.
    pub drops_not_told: IntCounterVec,
    /// `towpath_namespace_drop_copies_total`, by namespace and direction.
    pub namespace_drop_copies: IntCounterVec,
    /// `towpath_pod_drop_copies_total`, by namespace, pod and direction.
    pub pod_drop_copies: IntCounterVec,
}

impl Metrics {
    /// All metrics, at zero.
    ///
    /// # Errors
    /// If two had the same name, which a test rules out.
    #[expect(clippy::too_many_lines, reason = "a line or two for each metric")]
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let build = register(
            &registry,
            IntGaugeVec::new(
                Opts::new("towpath_build_info", "Always 1; the version is in the label."),
                &["version"],
            ),
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let int_gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        let int_counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help));
        let gauges = |name: &str, help: &str, label: &str| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), &[label]))
        };
        let counters = |name: &str, help: &str, label: &str| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let seconds = |name: &str, help: &str, label: &str| {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            register(&registry, HistogramVec::new(options, &[label]))
        };
        let syncs = counters(
            "towpath_syncs_total",
            "Syncs that compared the kernel with the wanted rules and wrote the difference, by result.",
            "result",
        )?;
        let gate_requests = register(
            &registry,
            IntCounterVec::new(
                Opts::new(
                    "towpath_gate_requests_total",
                    "Requests of the CNI plugin, by command and outcome.",
                ),
                &["command", "outcome"],
            ),
        )?;
        // Prometheus sees no increase in a counter that appears with its first event: what alerts use exists from the
        // start.
        for result in ["success", "failure"] {
            syncs.with_label_values(&[result]);
        }
        for outcome in ["done", "failed"] {
            gate_requests.with_label_values(&["add", outcome]);
        }
        Ok(Self {
            syncs,
            sync_duration: seconds(
                "towpath_sync_duration_seconds",
                "Duration of each stage of a sync.",
                "stage",
            )?,
            enforcement_latency: seconds(
                "towpath_enforcement_latency_seconds",
                "Time from receiving a change until the kernel enforced it, by kind of object.",
                "kind",
            )?,
            failures: register(
                &registry,
                IntCounterVec::new(
                    Opts::new("towpath_failures_total", "Failures, by stage and reason."),
                    &["stage", "reason"],
                ),
            )?,
            last_success: register(
                &registry,
                Gauge::new(
                    "towpath_last_success_timestamp_seconds",
                    "Unix time of the last successful sync.",
                ),
            )?,
            objects: gauges("towpath_objects", "Known objects, by kind.", "kind")?,
            refused_objects: int_gauge(
                "towpath_refused_objects",
                "Errors in objects that could not be read.",
            )?,
            refused_object: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "towpath_refused_object",
                        "1 for an object that could not be read; at most 100 of them.",
                    ),
                    &["kind", "namespace", "name"],
                ),
            )?,
            refused_shown: Mutex::default(),
            policies: gauges(
                "towpath_policies",
                "Policies that apply to pods on this node, by direction.",
                "direction",
            )?,
            isolated_pods: gauges(
                "towpath_isolated_pods",
                "Isolated pods on this node, by direction.",
                "direction",
            )?,
            chains: gauges("towpath_chains", "Chains in the kernel, by family.", "family")?,
            rules: gauges("towpath_rules", "Rules in the kernel, by family.", "family")?,
            sets: gauges("towpath_sets", "Sets in the kernel, by family.", "family")?,
            set_entries: gauges(
                "towpath_set_entries",
                "Entries of all sets in the kernel, by family.",
                "family",
            )?,
            broken_objects: int_gauge(
                "towpath_broken_objects",
                "Chains and sets that the kernel refused; traffic that they would allow is denied.",
            )?,
            drift_repairs: int_counter(
                "towpath_drift_repairs_total",
                "Repairs after another program had changed our rules, tables or kernel settings.",
            )?,
            watch_restarts: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "towpath_watch_restarts_total",
                        "Restarted API server watches, by kind and reason.",
                    ),
                    &["kind", "reason"],
                ),
            )?,
            watch_staleness: register(
                &registry,
                GaugeVec::new(
                    Opts::new(
                        "towpath_watch_staleness_seconds",
                        "Time since the last event or bookmark on a watch, by kind.",
                    ),
                    &["kind"],
                ),
            )?,
            received: Mutex::default(),
            connections_cut: int_counter(
                "towpath_connections_cut_total",
                "Established connections cut because policy no longer allows them.",
            )?,
            attachments: int_gauge(
                "towpath_attachments",
                "Attachments of this node's pods to the network, as the CNI plugin reported them.",
            )?,
            gate_requests,
            gate_duration: seconds(
                "towpath_gate_duration_seconds",
                "Time from a request of the CNI plugin to its answer, by command.",
                "command",
            )?,
            guarded_interfaces: int_gauge(
                "towpath_guarded_interfaces",
                "Interfaces of pods through which only the pod's own addresses may enter.",
            )?,
            unknown_interfaces: int_gauge(
                "towpath_unknown_interfaces",
                "Guarded interfaces without a known pod.",
            )?,
            unguarded_pods: int_gauge(
                "towpath_unguarded_pods",
                "Pods on this node without a known interface; no interface may use their addresses.",
            )?,
            guard_drops: counters(
                "towpath_guard_drops_total",
                "Frames that the interface guard dropped, by reason.",
                "reason",
            )?,
            started: OnceLock::new(),
            ready: int_gauge("towpath_ready", "1 while /readyz answers 200, else 0.")?,
            ready_now: OnceLock::new(),
            process: Process::new(&registry)?,
            pending: register(
                &registry,
                Gauge::new(
                    "towpath_oldest_pending_change_seconds",
                    "Age of the oldest received change that the kernel does not enforce yet.",
                ),
            )?,
            pending_age: OnceLock::new(),
            over_budget: int_gauge(
                "towpath_over_budget",
                "Policies and namespaces over budget on this node; they allow nothing.",
            )?,
            over_budget_by_namespace: gauges(
                "towpath_over_budget_namespace",
                "Policies and namespaces over budget, by namespace; at most 100 namespaces.",
                "namespace",
            )?,
            deferred_sets: int_gauge(
                "towpath_deferred_sets",
                "Large sets still being filled; traffic that they would allow is denied until then.",
            )?,
            connections_unjudged: int_gauge(
                "towpath_connections_unjudged",
                "Tracked connections not yet checked against the current rules.",
            )?,
            gate_installed: int_gauge(
                "towpath_gate_installed",
                "1 while the gate for new pods is in the CNI configuration of this node, else 0.",
            )?,
            drop_copies: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "towpath_drop_copies_total",
                        "Copies of dropped packets that the kernel delivered, by kind of rule and direction; of many \
                         packets it copies only some.",
                    ),
                    &["kind", "direction"],
                ),
            )?,
            drop_records: counters(
                "towpath_drop_records_total",
                "Records of the drop log, by kind of rule.",
                "kind",
            )?,
            drops_not_told: counters(
                "towpath_drops_not_told_total",
                "Copies of dropped packets that are in no record, by reason.",
                "reason",
            )?,
            namespace_drop_copies: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "towpath_namespace_drop_copies_total",
                        "Copies of packets that policies denied, by namespace of the policies and direction; at most 100 \
                         namespaces, and (other).",
                    ),
                    &["namespace", "direction"],
                ),
            )?,
            pod_drop_copies: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "towpath_pod_drop_copies_total",
                        "The same by pod, for as many pods as --drop-pod-metrics says.",
                    ),
                    &["namespace", "pod", "direction"],
                ),
            )?,
            commands: int_counter("towpath_commands_total", "Commands started by this process.")?,
            registry,
        })
    }

    /// Counts a failure: of a stage of a sync, or of another part of the daemon, for a reason of a small closed set.
    pub fn failed(&self, stage: &str, reason: &str) {
        self.failures.with_label_values(&[stage, reason]).inc();
    }

    /// Shows the current refusals: the number of `faults` in all objects, and the objects that can be named by kind,
    /// namespace and name, of which the first hundred get their own series.
    pub fn set_refused(&self, faults: usize, objects: &BTreeSet<[String; 3]>) {
        self.refused_objects.set(i64::try_from(faults).unwrap_or(i64::MAX));
        let now: BTreeSet<[String; 3]> = objects.iter().take(REFUSED_SERIES).cloned().collect();
        let mut shown = self.refused_shown.lock().unwrap_or_else(PoisonError::into_inner);
        // One by one, so that no scrape misses a series that stays.
        for gone in shown.difference(&now) {
            // It was shown, so it exists.
            let _ = self.refused_object.remove_label_values(gone);
        }
        for object in &now {
            self.refused_object.with_label_values(object).set(1);
        }
        *shown = now;
    }

    /// Shows what is closed for being over budget: the total, and by namespace, of which the first hundred get their
    /// own series.
    pub fn set_over_budget(&self, total: usize, namespaces: &BTreeMap<String, usize>) {
        self.over_budget.set(i64::try_from(total).unwrap_or(i64::MAX));
        let shown: BTreeMap<&String, &usize> = namespaces.iter().take(OVER_BUDGET_SERIES).collect();
        for gone in Self::by_label(&self.over_budget_by_namespace).keys() {
            if !shown.contains_key(gone) {
                // It was shown, so it exists.
                let _ = self.over_budget_by_namespace.remove_label_values(&[gone]);
            }
        }
        for (namespace, count) in shown {
            let gauge = self.over_budget_by_namespace.with_label_values(&[namespace]);
            gauge.set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
    }

    /// Sets the source of the age of the oldest pending change. Only the first call counts.
    pub fn show_pending(&self, age: impl Fn() -> Duration + Send + Sync + 'static) {
        let _ = self.pending_age.set(Age(Box::new(age)));
    }

    /// The API server sent something on the watch of `kind`, or that watch is about to start.
    pub fn received(&self, kind: &'static str) {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).insert(kind, Instant::now());
    }

    /// Sets the source of the number of started commands. Only the first call counts.
    pub fn count_commands(&self, started: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.started.set(Count(Box::new(started)));
    }

    /// Sets the source of readiness: whether `/readyz` is 200. Only the first call counts.
    pub fn show_ready(&self, ready: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.ready_now.set(Count(Box::new(move || u64::from(ready()))));
    }

    /// Frames that the interface guard dropped, by reason.
    #[must_use]
    pub fn guard_drops_by_reason(&self) -> BTreeMap<String, u64> {
        let mut drops = BTreeMap::new();
        for metric in self.guard_drops.collect().iter().flat_map(MetricFamily::get_metric) {
            let Some(label) = metric.get_label().first() else { continue };
            let count = self.guard_drops.with_label_values(&[label.value()]).get();
            drops.insert(label.value().to_owned(), count);
        }
        drops
    }

    /// The values of a gauge with one label, by that label.
    #[must_use]
    pub fn by_label(gauge: &IntGaugeVec) -> BTreeMap<String, i64> {
        let mut values = BTreeMap::new();
        for metric in gauge.collect().iter().flat_map(MetricFamily::get_metric) {
            let Some(label) = metric.get_label().first() else { continue };
            #[expect(
                clippy::cast_possible_truncation,
                reason = "it was an integer before the collector took it"
            )]
            values.insert(label.value().to_owned(), metric.get_gauge().get_value() as i64);
        }
        values
    }

    /// All metrics in Prometheus' text format.
    #[must_use]
    pub fn text(&self) -> String {
        if let Some(Count(started)) = self.started.get() {
            self.commands.inc_by(started().saturating_sub(self.commands.get()));
        }
        if let Some(Count(ready)) = self.ready_now.get() {
            self.ready.set(i64::from(ready() == 1));
        }
        self.process.update();
        if let Some(Age(age)) = self.pending_age.get() {
            self.pending.set(age().as_secs_f64());
        }
        for (kind, received) in &*self.received.lock().unwrap_or_else(PoisonError::into_inner) {
            self.watch_staleness.with_label_values(&[kind]).set(received.elapsed().as_secs_f64());
        }
        let mut text = Vec::new();
        // Encoding into memory can only fail for a metric without a name.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let collector = collector?;
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_unique_names_and_are_exported() {
        let metrics = Metrics::new().unwrap();
        metrics.failed("sets", "refused");
        let text = metrics.text();
        assert!(text.contains("towpath_failures_total{reason=\"refused\",stage=\"sets\"} 1"), "{text}");
        assert!(text.contains("towpath_build_info{version="), "{text}");
    }

    #[test]
    fn at_most_hundred_refused_objects_are_named_while_refused() {
        let metrics = Metrics::new().unwrap();
        let object = |number: usize| ["Pod".to_owned(), "shop".to_owned(), format!("p{number:04}")];
        let series =
            || metrics.text().lines().filter(|line| line.starts_with("towpath_refused_object{")).count();
        metrics.set_refused(1001, &(0..1000).map(object).collect());
        assert_eq!(series(), 100);
        assert!(metrics.text().contains("towpath_refused_objects 1001\n"));
        metrics.set_refused(2, &[object(99), object(7000)].into());
        let text = metrics.text();
        for name in ["p0099", "p7000"] {
            let line =
                format!("towpath_refused_object{{kind=\"Pod\",name=\"{name}\",namespace=\"shop\"}} 1\n");
            assert!(text.contains(&line), "{text}");
        }
        assert_eq!(series(), 2);
        metrics.set_refused(0, &BTreeSet::new());
        assert_eq!(series(), 0);
    }
}
