//! The program `towpath-cni`: see [`towpath_cni`].

use std::process::ExitCode;

fn main() -> ExitCode {
    towpath_cni::main()
}
