//! `towpath status`: what the daemon of this node enforces, since when, and what is wrong.

use std::fmt::Write as _;

use anyhow::{Context as _, anyhow};
use clap::Args;

use super::{Ended, Text, client::DaemonArgs, print};
use crate::web::{Isolation, RefusedObject, Report};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
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
    match args.output {
        Text::Text => print(&text(&report))?,
        // As received: a newer daemon may send more than this program knows.
        Text::Json => {
            let value: serde_json::Value = serde_json::from_str(&answer.body)?;
            print(&super::json(&value)?)?;
        }
    }
    if report.ready { Ok(()) } else { Err(Ended::No) }
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
