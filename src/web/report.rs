//! `/status`: what this node enforces, since when, and what is wrong.

use std::{collections::BTreeMap, net::IpAddr, time::SystemTime};

use jiff::{Timestamp, Unit};
use serde::{Deserialize, Serialize};

use super::Web;
use crate::{
    agent::{Readiness, View},
    gate::install,
    metrics::Metrics,
    model::{Direction, Family},
    policy::{
        budget::{Closed, OverBudget},
        resolve::LocalPod,
    },
};

/// The whole state at one moment. Fields may be added, none changes its meaning. Times are RFC 3339, in UTC.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The node for whose pods it enforces policy.
    pub node: String,
    /// The daemon's version.
    pub version: String,
    /// The variant of iptables that it writes to.
    pub iptables: String,
    /// Whether `/readyz` is 200.
    pub ready: bool,
    /// `starting`, `ready`, `degraded` (ready, except for single objects) or `failing`.
    pub state: String,
    /// The current problems, one by one.
    pub reasons: Vec<String>,
    /// Since when `state` is what it is.
    pub since: String,
    /// When the daemon started.
    pub started: String,
    /// When the kernel last held the desired state; null before the first time.
    pub last_success: Option<String>,
    /// How many objects are known, by kind.
    pub objects: BTreeMap<String, i64>,
    /// How many policies apply to pods of this node, by direction.
    pub policies: BTreeMap<String, i64>,
    /// What is in the kernel, by family.
    pub kernel: BTreeMap<String, Amounts>,
    /// Chains and sets that the kernel refused.
    pub broken_objects: i64,
    /// Objects that could not be read.
    pub refused: Vec<RefusedObject>,
    /// What is closed for being over budget.
    pub over_budget: Vec<OverBudgetReport>,
    /// The age of the oldest change that is not in the kernel yet, in seconds.
    pub oldest_pending_seconds: u64,
    /// Large sets still being filled; traffic that they would allow is denied until then.
    pub deferred_sets: i64,
    /// Repairs after another program had changed our rules, tables or kernel settings.
    pub drift_repairs: u64,
    /// Syncs that failed.
    pub failed_rounds: u64,
    /// Established connections that were cut.
    pub connections_cut: u64,
    /// The interface guard.
    pub interface_guard: GuardReport,
    /// The gate for new pods.
    pub gate: GateReport,
    /// The pods of this node that have an address, by namespace and name, as the last successful sync wrote them.
    pub pods: Vec<PodReport>,
}

/// The interface guard: whether frames that enter through pods' interfaces are checked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GuardReport {
    /// Why it is off; null while it is on.
    pub off: Option<String>,
    /// How many interfaces it guards.
    pub interfaces: usize,
    /// How many of them have no known pod. They may use the addresses that the network plugin gave them.
    pub unknown_interfaces: usize,
    /// Pods of this node without a known interface, so that no interface may use their addresses; each with the reason.
    pub pods_without_interface: BTreeMap<String, String>,
    /// Frames that it dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// The gate for new pods: whether a pod starts only once its rules are written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GateReport {
    /// `not wanted`, `waiting`, `installed` or `failed`.
    pub state: String,
    /// What it waits for, or what failed; null if nothing is wrong.
    pub reason: Option<String>,
    /// The CNI configuration that has its entry; null unless it is installed.
    pub file: Option<String>,
}

/// Our objects in the tables of one family.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Amounts {
    /// Chains.
    pub chains: i64,
    /// Their rules.
    pub rules: i64,
    /// Sets.
    pub sets: i64,
    /// Their members.
    pub set_entries: i64,
}

/// An object that could not be read. Its last good version stays enforced.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusedObject {
    /// Its kind; null if it is not known, as are its namespace and its name then.
    pub kind: Option<String>,
    /// Its namespace; empty for a kind that has none.
    pub namespace: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Its position, if it has one, and what is wrong with it.
    pub reason: String,
}

/// A policy or a namespace that is closed on this node for being over budget.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OverBudgetReport {
    /// `Namespace`, or `NetworkPolicy`.
    pub kind: String,
    /// The namespace whose pods are closed.
    pub namespace: String,
    /// The policy's name; null if the whole namespace is closed.
    pub name: Option<String>,
    /// What it needs, which budget that exceeds, and what is closed.
    pub reason: String,
}

/// A pod of this node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodReport {
    /// `namespace/name`.
    pub pod: String,
    /// The addresses that it owns.
    pub addresses: Vec<IpAddr>,
    /// Its interface on the node; null while it is not known.
    pub interface: Option<String>,
    /// Its isolation for ingress.
    pub ingress: Isolation,
    /// Its isolation for egress.
    pub egress: Isolation,
}

/// Whether a pod is isolated in one direction.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Isolation {
    /// Whether a policy applies to the pod in this direction.
    pub isolated: bool,
    /// The policies that do, as `namespace/name`.
    pub isolated_by: Vec<String>,
    /// Whether these together allow everything, so that no rule is needed.
    pub allows_everything: bool,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            node: String::new(),
            version: String::new(),
            iptables: String::new(),
            ready: false,
            state: "unknown".to_owned(),
            reasons: Vec::new(),
            since: String::new(),
            started: String::new(),
            last_success: None,
            objects: BTreeMap::new(),
            policies: BTreeMap::new(),
            kernel: BTreeMap::new(),
            broken_objects: 0,
            refused: Vec::new(),
            over_budget: Vec::new(),
            oldest_pending_seconds: 0,
            deferred_sets: 0,
            drift_repairs: 0,
            failed_rounds: 0,
            connections_cut: 0,
            interface_guard: GuardReport::default(),
            gate: GateReport::default(),
            pods: Vec::new(),
        }
    }
}

impl Report {
    /// The report on the current state of `web`.
    pub(super) fn of(web: &Web) -> Self {
        let (view, metrics) = (web.status.view(), &web.metrics);
        let (ready, state) = state(&view);
        let gate = GateReport::of(&web.gate.state());
        let reasons = view.reasons.iter().chain(&gate.problem()).cloned().collect();
        let last = metrics.last_success.get();
        Self {
            node: web.about.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            iptables: web.about.iptables.clone(),
            ready,
            state: state.to_owned(),
            since: in_words(view.since),
            started: in_words(view.started),
            last_success: (last > 0.0)
                .then(|| in_words(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs_f64(last))),
            objects: Metrics::by_label(&metrics.objects),
            policies: Metrics::by_label(&metrics.policies),
            kernel: amounts(metrics),
            broken_objects: metrics.broken_objects.get(),
            refused: view.refused.iter().flat_map(|refused| refused.iter()).map(RefusedObject::of).collect(),
            over_budget: view.over_budget.iter().map(OverBudgetReport::of).collect(),
            oldest_pending_seconds: view.waiting.as_secs(),
            deferred_sets: metrics.deferred_sets.get(),
            drift_repairs: metrics.drift_repairs.get(),
            failed_rounds: metrics.syncs.with_label_values(&["failure"]).get(),
            connections_cut: metrics.connections_cut.get(),
            interface_guard: guard(&view, metrics),
            gate,
            pods: view.pods.iter().map(|pod| PodReport::of(pod, &view)).collect(),
            reasons,
        }
    }
}

fn state(view: &View) -> (bool, &'static str) {
    match view.readiness {
        Readiness::Starting(_) => (false, "starting"),
        Readiness::Ready => (true, "ready"),
        Readiness::Degraded(_) => (true, "degraded"),
        Readiness::Failing(_) => (false, "failing"),
    }
}

fn amounts(metrics: &Metrics) -> BTreeMap<String, Amounts> {
    let [chains, rules, sets, set_entries] =
        [&metrics.chains, &metrics.rules, &metrics.sets, &metrics.set_entries].map(Metrics::by_label);
    let of = |values: &BTreeMap<String, i64>, family: &str| values.get(family).copied().unwrap_or(0);
    let amounts = |family: Family| {
        let name = family.to_string();
        let amounts = Amounts {
            chains: of(&chains, &name),
            rules: of(&rules, &name),
            sets: of(&sets, &name),
            set_entries: of(&set_entries, &name),
        };
        (name, amounts)
    };
    Family::BOTH.into_iter().map(amounts).collect()
}

fn guard(view: &View, metrics: &Metrics) -> GuardReport {
    let guard = &view.guard;
    let without = guard.unbound.iter().map(|(pod, reason)| (pod.to_string(), reason.clone()));
    GuardReport {
        off: guard.off.clone(),
        interfaces: guard.interfaces,
        unknown_interfaces: guard.unknown,
        pods_without_interface: without.collect(),
        drops: metrics.guard_drops_by_reason(),
    }
}

impl GateReport {
    fn of(gate: &install::State) -> Self {
        let file = match gate {
            install::State::Installed { file, .. } => Some(file.clone()),
            _ => None,
        };
        Self { state: gate.name().to_owned(), reason: gate.reason(), file }
    }

    /// What is wrong, if something is.
    fn problem(&self) -> Option<String> {
        self.reason.as_ref().map(|reason| format!("gate for new pods: {reason}"))
    }
}

impl OverBudgetReport {
    fn of(over: &OverBudget) -> Self {
        let (kind, name) = match &over.closed {
            Closed::Policy(key) => ("NetworkPolicy", Some(key.name.to_string())),
            Closed::Namespace(_) => ("Namespace", None),
        };
        let namespace = over.namespace().to_string();
        Self { kind: kind.to_owned(), namespace, name, reason: over.to_string() }
    }
}

impl RefusedObject {
    fn of(refused: &crate::agent::Refused) -> Self {
        let [kind, namespace, name] = match &refused.object {
            Some(object) => object.clone().map(Some),
            None => [None, None, None],
        };
        Self { kind, namespace, name, reason: refused.reason.clone() }
    }
}

impl PodReport {
    fn of(pod: &LocalPod, view: &View) -> Self {
        let isolation = |direction: Direction| {
            let applies = pod.policies.iter().filter(|policy| policy.rules(direction).is_some());
            let isolated_by: Vec<String> = applies.map(|policy| policy.key.to_string()).collect();
            let isolated = !isolated_by.is_empty();
            let allows_everything = isolated && pod.program(direction).is_none();
            Isolation { isolated, isolated_by, allows_everything }
        };
        Self {
            pod: pod.key.to_string(),
            addresses: pod.addresses.clone(),
            interface: view.guard.pods.get(&pod.key).cloned(),
            ingress: isolation(Direction::Ingress),
            egress: isolation(Direction::Egress),
        }
    }
}

/// `2026-11-21T12:39:28Z`. Empty for a time that the calendar does not have.
fn in_words(time: SystemTime) -> String {
    Timestamp::try_from(time)
        .and_then(|time| time.round(Unit::Second))
        .map_or_else(|_| String::new(), |time| time.to_string())
}
