//! Why a lab cannot be built or used.

use std::{io, net::IpAddr, process::ExitStatus};

use super::PodId;

/// Why an operation in the lab failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The process may not create network namespaces.
    #[error("the lab makes network namespaces and needs root: run it with sudo ({0})")]
    NotRoot(io::Error),
    /// A program is not installed.
    #[error("`{program}` was not found: install Debian's package {package}")]
    MissingProgram {
        /// The program to start.
        program: String,
        /// The Debian package that contains it.
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
    /// A set-up program failed.
    #[error("`{command}` in the namespace of {namespace} ended with {status}: {stderr}\n{input}")]
    Command {
        /// The command that was run.
        command: String,
        /// In which namespace.
        namespace: String,
        /// Its exit status.
        status: ExitStatus,
        /// What it wrote to standard error.
        stderr: String,
        /// Its input.
        input: String,
    },
    /// A system call failed.
    #[error("could not {action}: {source}")]
    System {
        /// What was being done, on what.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// The thread of a namespace has ended, most likely because it panicked.
    #[error("the thread of the namespace of {0} has ended: its own message is above")]
    ThreadEnded(String),
    /// There is no such pod, or no longer.
    #[error("there is no pod {0:?} in this lab: it was removed, or belongs to another one")]
    NoSuchPod(PodId),
    /// There is no such node.
    #[error("there is no node {index} in this lab: it has {nodes}, counted from 0")]
    NoSuchNode {
        /// The requested one.
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
        /// The sender.
        from: String,
        /// The destination address.
        to: IpAddr,
    },
}

impl LabError {
    /// Adds to a system error what was being done.
    pub(super) fn system<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::System { action, source: source.into() }
    }
}
