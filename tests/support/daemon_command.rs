//! The command line of a daemon that reads its objects from a folder.

use std::{path::Path, process::Command};

use towpath::lab::Variant;

/// `towpath run` for the node with this name, with the default address for HTTP.
pub(crate) fn daemon_command(node: &str, variant: Variant, objects: &Path, run_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
    command.args(["run", "--node-name", node, "--iptables-backend", variant.name()]);
    command.arg("-f").arg(objects).arg("--run-dir").arg(run_dir);
    command
}
