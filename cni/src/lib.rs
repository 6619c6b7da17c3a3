//! The chained CNI plugin of towpath: a pod starts once its policies are in place.
//!
//! ```text
//!  container runtime                             the daemon of this node
//!    bridge, ptp or flannel: makes the interface
//!      portmap
//!        towpath-cni  ── Add: pod, interface, addresses ──▶  writes the pod's rules
//!                     ◀── Done ─────────────────────────────
//!  starts the containers
//! ```
//!
//! It changes nothing itself: it tells the daemon about the new interface, waits until the daemon has written what the
//! policies of the pod demand, and passes the result of the plugin before it through. `docs/cni.md` is the reference.
//!
//! The quoted sentences are those of the [CNI specification 1.1.0](https://github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md).
//!
//! | module | what it is |
//! |---|---|
//! | [`protocol`] | what the plugin and the daemon say to each other |
//! | [`client`] | asks the daemon, with a deadline |
//! | `environment`, `config`, `prev_result` | what the runtime passes: variables, standard input, and in it the previous result |
//! | `plugin` | the commands |
//! | `error` | errors as a runtime reads them |
//! | `fuzzing` (with the feature `lab`) | what must hold for any input |

pub mod client;
mod config;
mod environment;
mod error;
#[cfg(feature = "lab")]
pub mod fuzzing;
mod plugin;
mod prev_result;
pub mod protocol;

use std::{io, process::ExitCode};

/// The plugin, with the environment, standard input, output and error of this process.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::from(plugin::run(&|name| std::env::var_os(name), io::stdin(), io::stdout(), io::stderr()))
}
