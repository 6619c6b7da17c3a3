//! What can keep a lab from being built or used.

use std::{io, net::IpAddr, process::ExitStatus};

use super::PodId;

/// Why something in the lab could not be done.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The process may not make network namespaces.
    #[error("the lab makes network namespaces and needs root: run it with sudo ({0})")]
    NotRoot(io::Error),
    /// A program is not installed.
    #[error("`{program}` was not found: install Debian's package {package}")]
    MissingProgram {
        /// What was to be started.
        program: String,
        /// The Debian package that brings it.
        package: &'static str,
    },
    /// The kernel lacks a module.
    #[error(
        "the kernel cannot do {module}: run `modprobe {module}`; Debian's linux-image-amd64 brings it, its cloud and \
         container kernels may not"
    )]
    MissingModule {
        /// The module's name.
        module: &'static str,
    },
    /// A program that was to set something up failed.
    #[error("`{command}` in the namespace of {namespace} ended with {status}: {stderr}\n{input}")]
    Command {
        /// What was run.
        command: String,
        /// In whose namespace.
        namespace: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
        /// What it had been given to read.
        input: String,
    },
    /// A call of the operating system failed.
    #[error("could not {action}: {source}")]
    System {
        /// What was being done, on what.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// The thread of a namespace has ended, most likely in a panic.
    #[error("the thread of the namespace of {0} has ended: its own message is above")]
    ThreadEnded(String),
    /// No such pod, or no longer.
    #[error("there is no pod {0:?} in this lab: it was removed, or belongs to another one")]
    NoSuchPod(PodId),
    /// No such node.
    #[error("there is no node {index} in this lab: it has {nodes}, counted from 0")]
    NoSuchNode {
        /// The one asked for.
        index: usize,
        /// How many there are.
        nodes: usize,
    },
    /// An address that the lab cannot give to a pod.
    #[error("{address} cannot be given to a pod of {node}: {reason}")]
    Address {
        /// The address.
        address: IpAddr,
        /// The node of the pod.
        node: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Options that no lab can be built from.
    #[error("no lab can be built from these options: {0}")]
    Options(&'static str),
    /// Nothing owns the address to which something was to be sent.
    #[error("{0} belongs to no pod, node or external host of this lab")]
    Unowned(IpAddr),
    /// A new link does not carry packets.
    #[error("{from} could not ping {to} within 10 seconds of its set-up: look for rules in INPUT and OUTPUT")]
    NotReady {
        /// Who sent.
        from: String,
        /// To which address.
        to: IpAddr,
    },
}

impl LabError {
    /// Turns a system error into one that says what was being done.
    pub(super) fn system<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::System { action, source: source.into() }
    }
}
