//! The towpath binary: see [`towpath::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    towpath::cli::main()
}
