//! Objects from files, for the commands that look once.

use std::path::PathBuf;

use super::Ended;
use crate::{
    k8s::manifest::{Options, load},
    model::Cluster,
};

/// The objects of these files. Their faults go to standard error; an error among them ends the command, since an
/// answer from half of the objects would be a wrong one.
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
