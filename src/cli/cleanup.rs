//! `towpath cleanup`.

use super::{Ended, print};
use crate::dataplane::{command::Commands, kernel};

pub(super) fn cleanup() -> Result<(), Ended> {
    let removed = kernel::cleanup::cleanup(&Commands::default())?;
    print(&format!(
        "removed {} jumps, {} chains and {} sets\n",
        removed.hooks, removed.chains, removed.sets
    ))?;
    if removed.left.is_empty() {
        return Ok(());
    }
    Err(Ended::Failed(anyhow::anyhow!("could not remove {}", removed.left.join("; "))))
}
