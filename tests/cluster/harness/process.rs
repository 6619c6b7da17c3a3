//! Processes that never outlive a test, however it ends.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use towpath::lab::Netns;

use crate::log;

/// `program` as a command that the kernel kills together with the thread that starts it.
pub(crate) fn bound(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// A process in a network namespace. Dropping it kills it; so does the kernel if this process is killed.
#[derive(Debug)]
pub(crate) struct Served {
    child: Child,
    log: PathBuf,
}

impl Served {
    /// Starts `program`; its output is appended to a log.
    pub(crate) fn start(netns: &Netns, program: &Path, arguments: &[String], log: &Path) -> Self {
        // The command is bound to the namespace's thread.
        let mut command = bound(program);
        command.args(arguments);
        let file = File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: netns.spawn(command).unwrap(), log: log.to_owned() }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // It was not waited for yet, so the pid is still its own.
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Its exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// The end of its output.
    pub(crate) fn tail(&self, lines: usize) -> String {
        log::tail(&self.log, lines)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
        if thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.tail(30));
        }
    }
}

/// Removes a folder when this process has ended, however it ends: a control plane that is kept for the next test is
/// never dropped.
pub(crate) fn remove_at_exit(folder: &Path) {
    let mut command = Command::new("sh");
    // Standard input ends when no process holds its other end, and every process that writes to the folder was killed.
    command.args(["-c", "cat; sleep 1; rm -rf -- \"$0\""]).arg(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // The shell outlives this process, which therefore cannot wait for it; its standard input is held until the end.
    std::mem::forget(command.spawn().unwrap());
}
