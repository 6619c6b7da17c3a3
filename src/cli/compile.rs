//! `towpath compile`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use clap::Args;
use serde::Serialize;

use super::{
    BackendArg, BudgetArgs, Ended, EnforcementArgs, NodeArgs, ObjectArgs, Text, json, objects, print,
};
use crate::{
    k8s::manifest::hints::nearest,
    model::{Cluster, Direction, Family},
    policy::resolve::{Resolved, Resolver},
    ruleset::{self, Ruleset, names, render},
};

#[derive(Debug, Args)]
pub(super) struct CompileArgs {
    #[command(flatten)]
    objects: ObjectArgs,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    enforcement: EnforcementArgs,
    #[command(flatten)]
    budgets: BudgetArgs,
    /// The variant of iptables; both read the same text.
    #[arg(long, visible_alias = "iptables-backend", value_enum, default_value_t = BackendArg::Auto)]
    #[arg(env = "TOWPATH_IPTABLES_BACKEND")]
    backend: BackendArg,
    /// The output format.
    #[arg(short, long, value_enum, default_value_t = Text::Text, env = "TOWPATH_OUTPUT")]
    output: Text,
}

/// What `-o json` prints: the input of each tool.
#[derive(Debug, Serialize)]
struct Inputs {
    ipset: String,
    iptables: String,
    ip6tables: String,
    /// What each chain of a pod or a group is for.
    legend: Vec<ChainOwners>,
}

/// A chain, and the pod or pods that it is for.
#[derive(Debug, Serialize)]
struct ChainOwners {
    chain: String,
    direction: String,
    pods: Vec<String>,
}

pub(super) fn compile(args: &CompileArgs, verbose: bool) -> Result<(), Ended> {
    // Both variants read the same text; the flag exists so that scripts may pass the same flags as to `run`.
    let _ = args.backend;
    let loaded = objects::loaded(&args.objects.files(), false, verbose)?;
    let cluster = loaded.cluster();
    for note in notes(&loaded.skipped, &cluster, &args.node.node_name) {
        eprintln!("note: {note}");
    }
    let mut of_node =
        Resolver::of(args.node.node_name.clone(), &cluster).with_budgets(args.budgets.budgets());
    if !args.enforcement.pod_cidrs.is_empty() {
        of_node = of_node.with_pod_cidrs(args.enforcement.pod_cidrs.as_slice().into());
    }
    let resolved = of_node.resolve(&cluster);
    for over in resolved.over_budget.iter() {
        eprintln!("warning: {over}");
    }
    let ruleset = ruleset::compile::compile(&resolved, &args.enforcement.options());
    let legend = legend(&resolved);
    match args.output {
        Text::Text => print(&text(&ruleset, &legend)?),
        Text::Json => {
            let chains = |family| render::all_chains(family, ruleset.table(family));
            print(&json(&Inputs {
                ipset: render::all_sets(&ruleset),
                iptables: chains(Family::V4),
                ip6tables: chains(Family::V6),
                legend,
            })?)
        }
    }
}

/// What is not in the rules, and why.
fn notes(skipped: &BTreeMap<String, usize>, cluster: &Cluster, node: &str) -> Vec<String> {
    let mut notes = Vec::new();
    let workloads: Vec<String> = skipped
        .iter()
        .filter(|(kind, _)| kind.starts_with("apps/v1/") || kind.starts_with("batch/v1/"))
        .map(|(kind, count)| format!("{count} {}", kind.rsplit('/').next().unwrap_or(kind)))
        .collect();
    if !workloads.is_empty() {
        notes.push(format!(
            "left out {}: rules are for pods with a node and an address, and what a workload creates is not in these \
             files",
            workloads.join(", ")
        ));
    }
    let of_node = || cluster.pods().filter(|pod| pod.node.as_deref() == Some(node));
    if of_node().next().is_none() {
        let known: BTreeSet<&str> = cluster.pods().filter_map(|pod| pod.node.as_deref()).collect();
        let known: Vec<&str> = known.into_iter().collect();
        let meant = nearest(node, &known).map(|name| format!(" (did you mean {name}?)")).unwrap_or_default();
        notes.push(match known.len() {
            0 => format!("no pod is on the node {node}: none of them has spec.nodeName"),
            count => {
                let names = known[..count.min(MOST_NAMES)].join(", ");
                let more = if count > MOST_NAMES { ", ..." } else { "" };
                format!("no pod is on the node {node}; there are pods on {names}{more}{meant}")
            }
        });
    }
    let without: Vec<String> = of_node()
        .filter(|pod| pod.is_selectable() && pod.addresses.is_empty())
        .map(|pod| pod.key.to_string())
        .collect();
    if let Some(first) = without.first() {
        let more = if without.len() > 1 { format!(" and {} more", without.len() - 1) } else { String::new() };
        notes.push(format!(
            "left out {first}{more}: without status.podIPs there is nothing to write rules for"
        ));
    }
    notes
}

/// How many nodes a note names.
const MOST_NAMES: usize = 10;

/// The three inputs one after the other. Each tool accepts lines with `#` as comments.
fn text(ruleset: &Ruleset, legend: &[ChainOwners]) -> Result<String, Ended> {
    let mut text = format!("# ipset restore -exist\n{}", render::all_sets(ruleset));
    for (family, tool) in [(Family::V4, "iptables-restore"), (Family::V6, "ip6tables-restore")] {
        writeln!(text, "\n# {tool} --noflush")?;
        let table = ruleset.table(family);
        let is_there = |entry: &&ChainOwners| table.chains.keys().any(|name| name.as_str() == entry.chain);
        for entry in legend.iter().filter(is_there) {
            writeln!(text, "# {}: {} of {}", entry.chain, entry.direction, entry.pods.join(", "))?;
        }
        text.push_str(&render::all_chains(family, table));
    }
    Ok(text)
}

fn legend(resolved: &Resolved) -> Vec<ChainOwners> {
    let mut chains = BTreeMap::<String, (Direction, Vec<String>)>::new();
    for pod in &*resolved.pods {
        for direction in Direction::BOTH {
            let Some(program) = pod.program(direction) else { continue };
            for chain in [names::pod(direction, &pod.key), names::group(direction, &program.digest)] {
                let (_, pods) = chains.entry(chain.to_string()).or_insert((direction, Vec::new()));
                pods.push(pod.key.to_string());
            }
            for address in &pod.shared {
                let chain = names::shared(direction, *address).to_string();
                let (_, pods) = chains.entry(chain).or_insert((direction, Vec::new()));
                pods.push(pod.key.to_string());
            }
        }
    }
    chains
        .into_iter()
        .map(|(chain, (direction, pods))| ChainOwners { chain, direction: direction.to_string(), pods })
        .collect()
}
