//! `towpath prepare`.

use clap::Args;

use super::{Ended, print};
use crate::dataplane::{command::Commands, kernel::sysctl::Bridge};

#[derive(Debug, Args)]
pub(super) struct PrepareArgs {
    /// Exit with status 0 even on failure: `run` then is not ready, says why, and enforces what it can.
    #[arg(long, env = "TOWPATH_BEST_EFFORT")]
    best_effort: bool,
}

pub(super) fn prepare(args: &PrepareArgs) -> Result<(), Ended> {
    match Bridge::default().load(&Commands::default()) {
        Ok(true) => print("loaded the kernel module br_netfilter\n"),
        Ok(false) => print("the kernel has br_netfilter already\n"),
        Err(error) if args.best_effort => {
            tracing::warn!(%error, "cannot prepare the node; going on");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
