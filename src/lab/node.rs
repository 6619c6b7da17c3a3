//! Nodes, and the processes that run on them.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    ops::Deref,
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::model::Family;

use super::{Host, LabError, topology::Layout};

/// How long a process may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(3);

/// A node: a host that routes for its pods.
#[derive(Debug)]
pub struct Node {
    pub(super) host: Host,
    pub(super) index: usize,
}

impl Node {
    /// The block of `family` for its pods' addresses.
    #[must_use]
    pub fn pod_cidr(&self, family: Family) -> IpNet {
        Layout::pod_cidr(family, self.index)
    }

    /// Runs a command on the node to its end, with `input` as its standard input; returns what it printed.
    ///
    /// # Errors
    /// Only if it cannot be started or waited for: a command that fails is an [`Output`] like any other.
    pub fn run(&self, command: Command, input: &str) -> Result<Output, LabError> {
        self.netns().output(command, input)
    }

    /// Runs a program on the node that must succeed; returns its standard output.
    ///
    /// # Errors
    /// [`LabError::Command`] with its standard error, if it fails.
    pub fn succeed(&self, program: &str, arguments: &[&str]) -> Result<String, LabError> {
        self.netns().succeed(program, arguments, "")
    }

    /// Starts a process on the node, which ends at the latest when the returned value is dropped.
    ///
    /// Its standard input is empty; the other streams are those of `command`, by default those of this process.
    ///
    /// # Errors
    /// [`LabError::MissingProgram`] if there is no such program, otherwise a system error.
    pub fn spawn(&self, mut command: Command) -> Result<Process, LabError> {
        command.stdin(Stdio::null());
        let name = command.get_program().to_string_lossy().into_owned();
        Ok(Process { child: self.netns().spawn(command)?, name })
    }

    /// Connects to a port on the node itself, as a process on it would.
    ///
    /// # Errors
    /// [`LabError::ThreadEnded`]; the inner one is that of the connection.
    pub fn connect(&self, to: SocketAddr, timeout: Duration) -> Result<io::Result<TcpStream>, LabError> {
        self.netns().run(move || TcpStream::connect_timeout(&to, timeout))
    }
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// A process on a node. Dropping it ends it: SIGTERM, and SIGKILL if that does not help.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard streams, if they are pipes.
    pub const fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends it a signal; if the process has already ended, this does nothing and is no error.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn signal(&mut self, signal: Signal) -> Result<(), LabError> {
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        // It was not waited for yet, so the pid is still its own.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).map_err(LabError::system(format!("send {signal} to {} ({pid})", self.name)))
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, LabError> {
        self.child.try_wait().map_err(LabError::system(format!("look after {}", self.name)))
    }

    /// Waits for its end, at most this long.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn wait(&mut self, at_most: Duration) -> Result<Option<ExitStatus>, LabError> {
        let until = Instant::now() + at_most;
        loop {
            match self.try_wait()? {
                None if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
                ended => return Ok(ended),
            }
        }
    }

    /// Ends it: SIGTERM, and SIGKILL if it is still running three seconds later. Returns its exit status.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn stop(&mut self) -> Result<ExitStatus, LabError> {
        self.signal(Signal::SIGTERM)?;
        if let Some(status) = self.wait(GRACE)? {
            return Ok(status);
        }
        self.kill()
    }

    /// Kills it, as a crash would. Returns its exit status.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn kill(&mut self) -> Result<ExitStatus, LabError> {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        ended.map_err(LabError::system(format!("kill {}", self.name)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error cannot be returned here.
        let _ended = self.stop();
    }
}
