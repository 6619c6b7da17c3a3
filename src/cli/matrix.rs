//! `towpath matrix`: who may talk to whom.
//!
//! For people, pods that behave alike are one row and one column (`grouped`): as a table if it fits (`table`), else as
//! a list of who may reach whom (`list`); as a graph for Graphviz (`dot`) and as a picture (`svg`). For scripts, and
//! with `--pods`, every pod is on its own (`pods`).

mod dot;
mod filter;
mod grouped;
mod list;
pub mod pods;
mod svg;
mod table;

use std::net::IpAddr;

use clap::{Args, ValueEnum};

use self::{
    filter::{Filter, FilterArgs},
    grouped::Grouped,
};
use super::{Ended, QuestionArgs, json, objects, print, terminal::LayoutArgs};
use crate::{
    model::Transport,
    policy::{Reachability, known_transports},
};

/// What to show.
#[derive(Debug, Args)]
pub(super) struct MatrixArgs {
    #[command(flatten)]
    objects: QuestionArgs,
    /// A port to check: PORT for TCP, or PORT/PROTOCOL; may be repeated. Default: every port that a pod declares and
    /// every port number in a policy.
    #[arg(long, value_name = "PORT[/PROTOCOL]", env = "TOWPATH_PORT", value_delimiter = ',')]
    port: Vec<Transport>,
    /// An address outside the cluster to include; may be repeated.
    #[arg(long, value_name = "IP", env = "TOWPATH_EXTERNAL", value_delimiter = ',')]
    external: Vec<IpAddr>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Show every pod on its own. Without it, pods that behave alike are one row and one column.
    #[arg(long, env = "TOWPATH_PODS")]
    pods: bool,
    /// The output format.
    #[arg(short, long, value_enum, default_value_t = Format::Table, env = "TOWPATH_OUTPUT")]
    output: Format,
    #[command(flatten)]
    layout: LayoutArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people: a table, or a list if that would be too wide.
    Table,
    /// For people: who may reach whom.
    List,
    /// For scripts: every pair of pods.
    Json,
    /// A graph, for Graphviz.
    Dot,
    /// A picture.
    Svg,
}

pub(super) fn matrix(args: &MatrixArgs, verbose: bool) -> Result<(), Ended> {
    let cluster = objects::queried(&args.objects, verbose)?;
    let filter = Filter::new(&args.filter, &cluster, &args.external)?;
    let transports = if args.port.is_empty() { known_transports(&cluster) } else { args.port.clone() };
    let reachability = || Reachability::new(&cluster, &args.external, &transports);
    let layout = args.layout.layout();
    match args.output {
        Format::Json => {
            let reachability = reachability();
            let mut matrix = pods::json(&reachability);
            pods::retain(&mut matrix, &reachability, &filter);
            matrix.groups = Grouped::new(&cluster, &args.external, &transports, &filter, args.pods).list();
            return print(&json(&matrix)?);
        }
        Format::Table if args.pods => return print(&pods::part(&reachability(), layout, &filter)),
        _ => {}
    }
    let grouped = Grouped::new(&cluster, &args.external, &transports, &filter, args.pods);
    if let Some(missing) = grouped.what_is_missing() {
        if !matches!(args.output, Format::Dot | Format::Svg) {
            return print(missing);
        }
        // Another program reads these: it gets an empty graph.
        eprint!("note: {missing}");
    }
    print(&match args.output {
        Format::Table => table::table(&grouped, layout).unwrap_or_else(|| list::list(&grouped, layout)),
        Format::List | Format::Json => list::list(&grouped, layout),
        Format::Dot => dot::dot(&grouped),
        Format::Svg => svg::svg(&grouped),
    })
}
