//! `towpath status`: what the daemon of this node enforces, since when, and what is wrong.

use std::fmt::Write as _;

use anyhow::{Context as _, anyhow};
use clap::Args;
use serde::Serialize;

use super::{Ended, Text, client::DaemonArgs, print};
use crate::{
    dataplane::{
        command::Commands,
        kernel::{
            Variant,
            pod_counters::{Counted, PodCounters},
        },
    },
    drops::record::escaped,
    model::{Direction, ObjectKey},
    web::{Isolation, PodReport, RefusedObject, Report},
};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Also show what the kernel has counted of each pod: the packets that its policies judged and denied. Needs root on
    /// the node.
    #[arg(long, env = "TOWPATH_STATUS_PODS")]
    pods: bool,
    /// The output format.
    #[arg(short, long, value_enum, default_value_t = Text::Text, env = "TOWPATH_OUTPUT")]
    output: Text,
}

pub(super) fn status(args: &StatusArgs) -> Result<(), Ended> {
    let answer = args.daemon.get("/status")?;
    if answer.status != 200 {
        let address = args.daemon.address();
        return Err(Ended::Failed(anyhow!(
            "what listens at {address} answered {}, no status",
            answer.status
        )));
    }
    let report: Report = serde_json::from_str(&answer.body).context("the answer is no status of towpath")?;
    let counters = if args.pods { Some(counters(&report)?) } else { None };
    match args.output {
        Text::Text => {
            let counted = counters.as_deref().map_or_else(String::new, counted);
            print(&(text(&report) + &counted))?;
        }
        // As received: a newer daemon may send more than this program knows.
        Text::Json => {
            let mut value: serde_json::Value = serde_json::from_str(&answer.body)?;
            let pods = value.get_mut("pods").and_then(serde_json::Value::as_array_mut);
            for (pod, counters) in pods.into_iter().flatten().zip(counters.iter().flatten()) {
                pod["counters"] = serde_json::to_value(counters)?;
            }
            print(&super::json(&value)?)?;
        }
    }
    if report.ready { Ok(()) } else { Err(Ended::No) }
}

/// What the kernel has counted of a pod: first packets of connections, in both families, since its rules were written.
#[derive(Debug, Serialize)]
struct PodCounts {
    #[serde(skip)]
    pod: String,
    /// Judged by its policies for ingress.
    ingress: Counts,
    /// Judged by its policies for egress.
    egress: Counts,
    /// Those of both that were allowed.
    allowed: Counts,
    /// Those of both that were denied.
    denied: Counts,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Counts {
    packets: u64,
    bytes: u64,
}

impl From<Counted> for Counts {
    fn from(Counted { packets, bytes }: Counted) -> Self {
        Self { packets, bytes }
    }
}

/// What the kernel of this node has counted of each pod of the report, in its order.
fn counters(report: &Report) -> Result<Vec<PodCounts>, Ended> {
    let variant = Variant::BOTH.into_iter().find(|variant| variant.to_string() == report.iptables);
    let variant = variant.with_context(|| format!("{:?} is no variant of iptables", report.iptables))?;
    let counters = PodCounters::read(&Commands::default(), variant)
        .context("reading what the kernel has counted; this needs root, on the node itself")?;
    let of_pod = |pod: &PodReport| {
        let key: Option<ObjectKey> = pod.pod.parse().ok();
        let judged =
            |direction| key.as_ref().map_or_else(Counted::default, |key| counters.judged(direction, key));
        let (ingress, egress) = (judged(Direction::Ingress), judged(Direction::Egress));
        let denied = counters.denied(&pod.addresses);
        let allowed = |ingress: u64, egress: u64, denied: u64| (ingress + egress).saturating_sub(denied);
        let allowed = Counts {
            packets: allowed(ingress.packets, egress.packets, denied.packets),
            bytes: allowed(ingress.bytes, egress.bytes, denied.bytes),
        };
        let (ingress, egress, denied) = (ingress.into(), egress.into(), denied.into());
        PodCounts { pod: pod.pod.clone(), ingress, egress, allowed, denied }
    };
    Ok(report.pods.iter().map(of_pod).collect())
}

/// A table of these counts.
fn counted(counters: &[PodCounts]) -> String {
    let mut text = "\nfirst packets that policies judged, and their bytes\n".to_owned();
    let width = counters.iter().map(|one| one.pod.len()).max().unwrap_or(0).max(3);
    let mut row = |pod: &str, cells: [String; 4]| {
        let [ingress, egress, allowed, denied] = cells;
        line(
            &mut text,
            &format!("  {pod:<width$}  {ingress:>20}  {egress:>20}  {allowed:>20}  {denied:>20}"),
        );
    };
    row("pod", ["ingress", "egress", "allowed", "denied"].map(str::to_owned));
    for one in counters {
        let cell = |counts: Counts| format!("{} ({})", counts.packets, counts.bytes);
        row(&escaped(&one.pod), [one.ingress, one.egress, one.allowed, one.denied].map(cell));
    }
    text
}

/// The report for people.
pub(super) fn text(report: &Report) -> String {
    let mut text =
        format!("towpath {} on {}: {} since {}\n", report.version, report.node, report.state, report.since);
    for reason in &report.reasons {
        line(&mut text, &format!("  {reason}"));
    }
    text.push('\n');
    let mut field = |name: &str, value: &str| line(&mut text, &format!("{name:<15}{value}"));
    field("iptables", &report.iptables);
    field("started", &report.started);
    field("last success", report.last_success.as_deref().unwrap_or("never"));
    let objects: Vec<String> = report.objects.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    field("objects", &or_none(&objects));
    let policies: Vec<String> =
        report.policies.iter().map(|(direction, count)| format!("{count} for {direction}")).collect();
    field("policies here", &or_none(&policies));
    for (family, there) in &report.kernel {
        let amounts = format!(
            "{} chains, {} rules, {} sets, {} entries",
            there.chains, there.rules, there.sets, there.set_entries
        );
        field(family, &amounts);
    }
    field("interfaces", &interfaces(report));
    field("new pods", &gate(report));
    field("repairs", &format!("{} after changes by other programs", report.drift_repairs));
    field("failed rounds", &report.failed_rounds.to_string());
    if report.oldest_pending_seconds > 0 {
        field(
            "waiting",
            &format!("{} s for the oldest change that is not in the kernel", report.oldest_pending_seconds),
        );
    }
    if report.deferred_sets > 0 {
        field(
            "being filled",
            &format!("{} large sets; what they allow is closed until then", report.deferred_sets),
        );
    }
    if !report.over_budget.is_empty() {
        text.push_str("\nover budget\n");
        for over in &report.over_budget {
            line(&mut text, &format!("  {}", over.reason));
        }
    }
    text.push_str("\npods of this node\n");
    text.push_str(&pods(report));
    if !report.refused.is_empty() {
        text.push_str("\nobjects that cannot be read\n");
        for refused in &report.refused {
            line(&mut text, &format!("  {}{}", name(refused), refused.reason));
        }
    }
    text
}

/// One line about the interface guard.
fn interfaces(report: &Report) -> String {
    let guard = &report.interface_guard;
    if let Some(reason) = &guard.off {
        return format!("not guarded: {}", reason.lines().next().unwrap_or_default());
    }
    let drops: u64 = guard.drops.values().sum();
    let mut text = format!("{} guarded, {drops} frames dropped", guard.interfaces);
    if guard.unknown_interfaces > 0 {
        let _ = write!(text, ", {} of no known pod", guard.unknown_interfaces);
    }
    if !guard.pods_without_interface.is_empty() {
        let _ = write!(text, ", {} pods without a known interface", guard.pods_without_interface.len());
    }
    text
}

/// One line about the gate for new pods.
fn gate(report: &Report) -> String {
    match (&report.gate.file, &report.gate.reason) {
        (Some(file), _) => format!("wait for their rules: the gate is in {file}"),
        (None, Some(_)) => format!("do not wait for their rules: the gate is {}", report.gate.state),
        (None, None) => "do not wait for their rules".to_owned(),
    }
}

fn line(text: &mut String, line: &str) {
    // Writing into memory cannot fail.
    let _ = writeln!(text, "{}", line.trim_end());
}

fn or_none(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

/// A table of the pods, with what applies to each.
fn pods(report: &Report) -> String {
    if report.pods.is_empty() {
        return "  none\n".to_owned();
    }
    let mut rows = vec![["pod", "addresses", "ingress", "egress"].map(str::to_owned)];
    for pod in &report.pods {
        let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        rows.push([pod.pod.clone(), addresses.join(", "), isolation(&pod.ingress), isolation(&pod.egress)]);
    }
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let mut text = String::new();
    for [pod, addresses, ingress, egress] in &rows {
        let [first, second, third] = widths;
        line(&mut text, &format!("  {pod:<first$}  {addresses:<second$}  {ingress:<third$}  {egress}"));
    }
    text
}

fn isolation(isolation: &Isolation) -> String {
    if !isolation.isolated {
        return "open".to_owned();
    }
    let policies = isolation.isolated_by.join(", ");
    if isolation.allows_everything { format!("open ({policies})") } else { policies }
}

fn name(refused: &RefusedObject) -> String {
    match (&refused.kind, &refused.namespace, &refused.name) {
        (Some(kind), Some(namespace), Some(name)) if !namespace.is_empty() => {
            format!("{kind} {namespace}/{name}: ")
        }
        (Some(kind), _, Some(name)) => format!("{kind} {name}: "),
        _ => String::new(),
    }
}
