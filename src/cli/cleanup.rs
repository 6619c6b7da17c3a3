//! `towpath cleanup`.

use clap::Args;

use super::{Ended, print};
use crate::{
    daemon::stop_signal,
    dataplane::{command::Commands, kernel},
};

#[derive(Debug, Args)]
pub(super) struct CleanupArgs {
    /// After removing everything, wait for SIGTERM: the pods of a `DaemonSet` are restarted when they exit.
    #[arg(long, env = "TOWPATH_WAIT")]
    wait: bool,
}

pub(super) fn cleanup(args: &CleanupArgs) -> Result<(), Ended> {
    let removed = kernel::cleanup::cleanup(&Commands::default())?;
    print(&format!(
        "removed {} jumps, {} chains, {} sets and {} tables\n",
        removed.hooks, removed.chains, removed.sets, removed.tables
    ))?;
    if !removed.left.is_empty() {
        return Err(Ended::Failed(anyhow::anyhow!("could not remove {}", removed.left.join("; "))));
    }
    if args.wait {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(stop_signal())?;
    }
    Ok(())
}
