//! Objects from files or the API server, for the commands that run once.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use super::{Ended, QuestionArgs};
use crate::{
    k8s::{
        manifest::{ForeignTexts, Loaded, Options, load},
        service::Service,
        watch,
    },
    model::{Change, Cluster, Direction, Peer, Peers, PodPeer, Scope},
    policy::{
        budget::{Budgets, OverBudget, excess_of_policy},
        resolve::Resolver,
    },
};

/// How many notes of one kind go to standard error without `-v`: a folder may hold thousands of other files.
const NOTES: usize = 10;

/// The objects of these files. Their faults go to standard error; an error among them ends the command, since an answer
/// from part of the objects would be wrong. Texts that are no objects are left out, and named.
pub(super) fn read(files: &[PathBuf], workloads: bool, verbose: bool) -> Result<Cluster, Ended> {
    loaded(files, workloads, verbose).map(|loaded| loaded.cluster())
}

/// The objects of these files, which are only a part of those of a cluster: other files declare their namespaces.
pub(super) fn read_part(files: &[PathBuf], verbose: bool) -> Result<Cluster, Ended> {
    loaded_part(files, true, verbose).map(|loaded| loaded.cluster())
}

/// The objects of these files, before they are a cluster.
pub(super) fn loaded(files: &[PathBuf], workloads: bool, verbose: bool) -> Result<Loaded, Ended> {
    let loaded = loaded_part(files, workloads, verbose)?;
    // Faults with -v have named them already.
    if !verbose && !loaded.undeclared.is_empty() && selects_namespaces(&loaded.changes) {
        let names: Vec<&str> = loaded.undeclared.iter().take(NOTES).map(|name| &**name).collect();
        let more = loaded.undeclared.len() - names.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        eprintln!(
            "note: not declared in these files, and taken to exist with no label but their name: {}{more}",
            names.join(", ")
        );
    }
    Ok(loaded)
}

fn loaded_part(files: &[PathBuf], workloads: bool, verbose: bool) -> Result<Loaded, Ended> {
    let loaded = load(files, Options { workloads, foreign: ForeignTexts::LeaveOut, ..Options::default() })?;
    for fault in &loaded.faults {
        if fault.is_error() || verbose {
            eprintln!("{fault}");
        }
    }
    let shown = if verbose { usize::MAX } else { NOTES };
    for note in loaded.left_out.iter().take(shown) {
        eprintln!("{note}");
    }
    if loaded.left_out.len() > shown {
        eprintln!("note: {} more files were left out: -v names them", loaded.left_out.len() - shown);
    }
    if verbose {
        for (kind, count) in &loaded.skipped {
            eprintln!("skipped {count} of kind {kind}");
        }
    }
    if loaded.has_errors() {
        return Err(Ended::No);
    }
    if loaded.is_empty() && !loaded.left_out.is_empty() {
        return Err(Ended::Failed(anyhow::anyhow!(
            "there is no object of a kind that is read, only what was left out"
        )));
    }
    Ok(loaded)
}

/// Whether any policy selects namespaces by their labels.
fn selects_namespaces(changes: &[Change]) -> bool {
    let of = |change: &Change| match change {
        Change::SetPolicy(policy) => Direction::BOTH.iter().any(|direction| {
            let rules = policy.rules(*direction).unwrap_or_default();
            rules.iter().any(|rule| match &rule.peers {
                Peers::Of(peers) => peers
                    .iter()
                    .any(|peer| matches!(peer, Peer::Pods(PodPeer { scope: Scope::Matching(_), .. }))),
                Peers::Any => false,
            })
        }),
        _ => false,
    };
    changes.iter().any(of)
}

/// The objects of these files, of which there have to be some: an answer about none would look like one about all.
fn question(files: &[PathBuf], verbose: bool) -> Result<Loaded, Ended> {
    let loaded = loaded(files, true, verbose)?;
    if loaded.is_empty() { Err(no_objects(files)) } else { Ok(loaded) }
}

/// What to say of files without objects.
pub(super) fn no_objects(files: &[PathBuf]) -> Ended {
    let names: Vec<String> = files
        .iter()
        .take(NOTES)
        .map(|file| match file.display().to_string() {
            name if name == "-" => "standard input".to_owned(),
            name => name,
        })
        .collect();
    Ended::Failed(anyhow::anyhow!("there is no Kubernetes object in {}", names.join(", ")))
}

/// The objects that a question is about: from files, or from the cluster. Faults of single objects of the cluster go to
/// standard error; the answer is what the daemon would enforce.
pub(super) fn queried(args: &QuestionArgs, verbose: bool) -> Result<Cluster, Ended> {
    let files = args.files();
    if !files.is_empty() {
        return question(&files, verbose).map(|loaded| loaded.cluster());
    }
    of_cluster(&args.cluster.access())
}

/// The objects of the cluster as they are now.
pub(super) fn of_cluster(access: &watch::Access) -> Result<Cluster, Ended> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (cluster, refusals) = runtime
        .block_on(watch::snapshot(access))
        .map_err(|error| anyhow::anyhow!("no objects: {error}. For objects of files, name them with -f"))?;
    for refusal in refusals {
        eprintln!("{refusal}");
    }
    Ok(cluster)
}

/// What a question about one flow is answered from.
pub(super) struct Queried {
    pub(super) cluster: Cluster,
    /// The Services, as far as they can be read.
    pub(super) services: Vec<Service>,
    /// The namespace of the kubeconfig's context.
    pub(super) namespace: Option<String>,
}

/// The same as [`queried`], with the Services. Without the right to list Services the question is answered without them.
pub(super) fn queried_with_services(args: &QuestionArgs, verbose: bool) -> Result<Queried, Ended> {
    let files = args.files();
    if !files.is_empty() {
        let loaded = question(&files, verbose)?;
        let cluster = loaded.cluster();
        return Ok(Queried { cluster, services: loaded.services, namespace: None });
    }
    let cluster = queried(args, verbose)?;
    let access = args.cluster.access();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let services = runtime.block_on(watch::services(&access)).unwrap_or_else(|error| {
        eprintln!("note: answered without Services, which cannot be listed: {error}");
        Vec::new()
    });
    let namespace = runtime.block_on(access.default_namespace()).ok().flatten();
    Ok(Queried { cluster, services, namespace })
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
