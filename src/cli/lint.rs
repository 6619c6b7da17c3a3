//! `towpath lint`.

use std::{fmt::Write as _, path::PathBuf};

use clap::Args;

use super::{Ended, objects::over_budget, print};
use crate::{
    k8s::manifest::{Options, load},
    policy::budget::Budgets,
};

#[derive(Debug, Args)]
pub(super) struct LintArgs {
    /// Files, folders (every .yaml, .yml and .json below them) or - for standard input.
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
}

pub(super) fn lint(args: &LintArgs) -> Result<(), Ended> {
    let loaded = load(&args.paths, Options { workloads: true, ..Options::default() })?;
    let mut text = String::new();
    for fault in &loaded.faults {
        writeln!(text, "{fault}")?;
    }
    for over in over_budget(&loaded.cluster(), &Budgets::default()) {
        writeln!(text, "warning: with the default budgets {over}")?;
    }
    print(&text)?;
    if loaded.has_errors() { Err(Ended::No) } else { Ok(()) }
}
