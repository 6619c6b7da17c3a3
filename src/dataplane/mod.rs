//! Edge out: what holds the rules. The kernel is one; [`fake`] refuses what the kernel refuses, and fails on demand.

pub mod command;
mod drift;
pub mod fake;
pub mod kernel;
mod reason;

pub use reason::Reason;

use crate::ruleset::{Object, observed::Observed, plan::Step};

/// Something that holds chains and sets.
pub trait Dataplane {
    /// What of ours it holds. Reads names, set members and hooks; never parses rules back.
    ///
    /// # Errors
    /// If it could not be asked.
    fn observe(&mut self) -> Result<Observed, DataplaneError>;

    /// Carries out one step. A chain that shall go but that somebody else's rule uses is emptied and left; a warning in
    /// the log says whose rule it is.
    ///
    /// # Errors
    /// [`ApplyError::Refused`] names what was refused. Of a step of sets, the rest was carried out; a step of chains
    /// takes effect whole or not at all. After [`ApplyError::Failed`] nothing is known: observe again.
    fn apply(&mut self, step: &Step) -> Result<(), ApplyError>;

    /// Told once that the first full sync is in it: what a former run left elsewhere may go now.
    fn settled(&mut self) {}

    /// Whether it still holds what `expected` says: hooks in the first place, chains with their rules, and of sets as
    /// much as `look` says.
    ///
    /// # Errors
    /// If it could not be asked.
    fn check(&mut self, expected: &Observed, depth: CheckDepth) -> Result<Drift, DataplaneError>;
}

/// How closely [`Dataplane::check`] looks at sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckDepth {
    /// At the number of their members: often, whenever somebody may have changed something.
    Counts,
    /// At every member: now and then.
    Members,
}

/// Where the dataplane differs from what was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// What differs, each as a sentence for the log; empty if nothing does.
    pub findings: Vec<String>,
}

/// One object that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What could not be written.
    pub object: Object,
    /// What the tool said, and what of the object it did not take.
    pub reason: String,
}

/// Why a step could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Single objects were refused.
    #[error("refused: {}", .0.iter().map(|r| format!("{}: {}", r.object, r.reason)).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Refusal>),
    /// The step failed as a whole.
    #[error(transparent)]
    Failed(#[from] DataplaneError),
}

/// A command or a system call that failed.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// A program is not installed.
    #[error("{program} was not found: install the package {package}")]
    Missing {
        /// The program.
        program: String,
        /// The package that brings it, as Debian calls it.
        package: &'static str,
    },
    /// A command ended with an error.
    #[error("{command} failed with {status}: {stderr}")]
    Command {
        /// The command with its arguments.
        command: String,
        /// Its exit status, in words.
        status: String,
        /// What it said on standard error, trimmed.
        stderr: String,
    },
    /// This process may not change the kernel's tables.
    #[error(
        "changing the kernel's tables needs root, or at least the capability {capability}: run it as root"
    )]
    NotPermitted {
        /// What it lacks.
        capability: &'static str,
    },
    /// The kernel lacks something.
    #[error("{what}: {remedy}")]
    Unsupported {
        /// What is missing, and what said so.
        what: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Another process holds the xtables lock; waiting helps.
    #[error("another process holds the xtables lock ({command})")]
    Locked {
        /// The command that could not get it.
        command: String,
    },
    /// Something else about the system.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: std::io::Error,
    },
}
