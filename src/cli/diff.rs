//! `towpath diff`: which flows a change opens, and which it closes.

mod markdown;
mod overlay;
mod report;
mod text;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use self::{overlay::overlay, report::Report};
use super::{Ended, json, objects, print, terminal::LayoutArgs};
use crate::{
    k8s::watch::Access,
    model::Cluster,
    policy::difference::{Difference, Kind, Limits},
};

/// What to compare.
#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// The objects before and after: two files, folders (every .yaml, .yml and .json below them), or - for standard
    /// input.
    #[arg(value_name = "OLD NEW", num_args = 0..=2, conflicts_with_all = ["before", "after", "file"])]
    paths: Vec<PathBuf>,
    /// The objects before; may be repeated. Without it, those of the cluster.
    #[arg(long, value_name = "PATH", env = "TOWPATH_BEFORE")]
    before: Vec<PathBuf>,
    /// The objects after, all of them; may be repeated.
    #[arg(long, value_name = "PATH", env = "TOWPATH_AFTER", conflicts_with = "file")]
    after: Vec<PathBuf>,
    /// Objects to apply to those before, as `kubectl apply` would; may be repeated.
    #[arg(short, long, value_name = "PATH", env = "TOWPATH_FILE")]
    file: Vec<PathBuf>,
    /// The kubeconfig for the API server. Default: in a pod, the pod's service account, unless `--context` is given;
    /// elsewhere $KUBECONFIG or ~/.kube/config.
    #[arg(long, value_name = "FILE", env = "TOWPATH_KUBECONFIG", conflicts_with_all = ["before", "paths"])]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig, if not its current one.
    #[arg(long, value_name = "NAME", env = "TOWPATH_CONTEXT", conflicts_with_all = ["before", "paths"])]
    context: Option<String>,
    /// The output format.
    #[arg(short, long, value_enum, default_value_t = Format::Text, env = "TOWPATH_OUTPUT")]
    output: Format,
    /// Exit with status 1 if flows differ: any of them, only if some are opened, or only if some are closed.
    #[arg(
        long,
        value_enum,
        value_name = "KIND",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "any",
        env = "TOWPATH_EXIT_CODE"
    )]
    exit_code: Option<Gate>,
    #[command(flatten)]
    layout: LayoutArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people.
    #[value(alias = "table")]
    Text,
    /// For scripts.
    Json,
    /// For a comment on a pull request.
    Markdown,
}

/// What makes the exit status 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Gate {
    /// Any flow that differs, those of new and removed pods included.
    Any,
    /// A flow between ends that both sides have, which was denied and passes now.
    Opened,
    /// A flow between ends that both sides have, which passed and is denied now.
    Closed,
}

impl Gate {
    fn is_hit(self, difference: &Difference) -> bool {
        match self {
            Self::Any => !difference.rows.is_empty(),
            Self::Opened => difference.has(Kind::Opened),
            Self::Closed => difference.has(Kind::Closed),
        }
    }
}

pub(super) fn diff(args: &DiffArgs, verbose: bool) -> Result<(), Ended> {
    let (before, after) = sides(args, verbose)?;
    let difference = Difference::between(&before, &after, Limits::default())?;
    let report = Report::new(&before, &after, &difference);
    match args.output {
        Format::Text => print(&text::text(&report, args.layout.layout()))?,
        Format::Json => print(&json(&report.json())?)?,
        Format::Markdown => print(&markdown::markdown(&report))?,
    }
    match args.exit_code {
        Some(gate) if gate.is_hit(&difference) => Err(Ended::No),
        _ => Ok(()),
    }
}

/// The objects of both sides.
fn sides(args: &DiffArgs, verbose: bool) -> Result<(Cluster, Cluster), Ended> {
    let all = [&args.paths, &args.before, &args.after, &args.file];
    if all.into_iter().flatten().filter(|path| path.as_path() == Path::new("-")).count() > 1 {
        return Err(wrong("standard input can be read only once"));
    }
    let read = |paths: &[PathBuf]| objects::read(paths, true, verbose);
    match args.paths.as_slice() {
        [] => {}
        [old, new] => return Ok((read(std::slice::from_ref(old))?, read(std::slice::from_ref(new))?)),
        [only, ..] => {
            let only = only.display();
            return Err(wrong(&format!(
                "one path is not enough: `towpath diff OLD {only}` compares two, `towpath diff --after {only}` the \
                 cluster with it, and `towpath diff -f {only}` the cluster with what `kubectl apply` would make of it"
            )));
        }
    }
    if args.after.is_empty() && args.file.is_empty() {
        return Err(wrong("nothing to compare with: name OLD and NEW, or --after, or with -f what to apply"));
    }
    let before = match args.before.as_slice() {
        [] => objects::of_cluster(&Access::new(args.kubeconfig.clone(), args.context.clone()))?,
        paths => read(paths)?,
    };
    let after = if args.after.is_empty() {
        overlay(&before, &objects::read_part(&args.file, verbose)?)
    } else {
        read(&args.after)?
    };
    Ok((before, after))
}

fn wrong(text: &str) -> Ended {
    Ended::WrongUse(anyhow::anyhow!("{text}"))
}
