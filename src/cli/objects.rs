//! Objects from files or the API server, for the commands that run once.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use super::{Ended, QuestionArgs};
use crate::{
    k8s::{
        manifest::{Options, load},
        watch,
    },
    model::Cluster,
    policy::{
        budget::{Budgets, OverBudget, excess_of_policy},
        resolve::Resolver,
    },
};

/// The objects of these files. Their faults go to standard error; an error among them ends the command, since an answer
/// from part of the objects would be wrong.
pub(super) fn read(files: &[PathBuf], workloads: bool, verbose: bool) -> Result<Cluster, Ended> {
    let loaded = load(files, Options { workloads })?;
    for fault in &loaded.faults {
        if fault.is_error() || verbose {
            eprintln!("{fault}");
        }
    }
    if verbose {
        for (kind, count) in &loaded.skipped {
            eprintln!("skipped {count} of kind {kind}");
        }
    }
    if loaded.has_errors() { Err(Ended::No) } else { Ok(loaded.cluster()) }
}

/// The objects that a question is about: from files, or from the cluster. Faults of single objects of the cluster go to
/// standard error; the answer is what the daemon would enforce.
pub(super) fn queried(args: &QuestionArgs, verbose: bool) -> Result<Cluster, Ended> {
    if !args.file.is_empty() {
        return read(&args.file, true, verbose);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (cluster, refusals) = runtime
        .block_on(watch::snapshot(&args.cluster.access()))
        .map_err(|error| anyhow::anyhow!("no objects: {error}. For objects of files, name them with -f"))?;
    for refusal in refusals {
        eprintln!("{refusal}");
    }
    Ok(cluster)
}

/// What would be closed on some node for being over budget: policies, wherever their pods are, and namespaces on the
/// nodes of their pods.
pub(super) fn over_budget(cluster: &Cluster, budgets: &Budgets) -> BTreeSet<OverBudget> {
    let mut over: BTreeSet<OverBudget> =
        cluster.policies().filter_map(|policy| excess_of_policy(policy, budgets)).collect();
    let nodes: BTreeSet<Arc<str>> = cluster.pods().filter_map(|pod| pod.node.clone()).collect();
    for node in nodes {
        let resolved = Resolver::of(node, cluster).with_budgets(*budgets).resolve(cluster);
        over.extend(resolved.over_budget.iter().cloned());
    }
    over
}
