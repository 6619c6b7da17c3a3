//! `towpath cleanup`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::{Ended, print};
use crate::{
    daemon::stop_signal,
    dataplane::{command::Commands, kernel},
    gate::install,
};

#[derive(Debug, Args)]
pub(super) struct CleanupArgs {
    /// After removing everything, wait for SIGTERM: the pods of a `DaemonSet` are restarted when they exit.
    #[arg(long, env = "TOWPATH_WAIT")]
    wait: bool,
    /// The folder of the CNI configuration: removes the entry of the gate for new pods from it, before anything else.
    #[arg(long, value_name = "DIR", env = "TOWPATH_CNI_CONF_DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// The folder of CNI plugins: removes the gate's plugin from it, once no configuration has its entry.
    #[arg(long, value_name = "DIR", env = "TOWPATH_CNI_BIN_DIR", requires = "cni_conf_dir")]
    cni_bin_dir: Option<PathBuf>,
}

pub(super) fn cleanup(args: &CleanupArgs) -> Result<(), Ended> {
    if let Some(conf_dir) = &args.cni_conf_dir {
        let removed = install::remove(conf_dir, args.cni_bin_dir.as_deref())
            .context("the gate for new pods was not removed, and nothing else either")?;
        print(&format!("removed {removed}\n"))?;
    }
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
