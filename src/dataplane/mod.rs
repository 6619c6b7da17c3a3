//! Output edge: what holds the rules. The kernel is one; [`fake`] refuses what the kernel refuses, and fails on demand.

pub mod command;
mod drift;
pub mod fake;
pub mod kernel;
mod reason;

pub use reason::FailureReason;

use std::time::Duration;

use crate::{
    model::Family,
    ruleset::{
        BuiltIn, ChainName, IpSet, Object, SetName,
        observed::{Content, HookState, Observed},
        plan::Step,
    },
};

/// Something that holds chains and sets.
pub trait Dataplane {
    /// What it holds of ours. Reads names, set members and hooks; never parses rules back.
    ///
    /// # Errors
    /// If it could not be queried.
    fn observe(&mut self) -> Result<Observed, DataplaneError>;

    /// Carries out one step. A chain that should be removed but that a rule of another program uses is emptied and
    /// left; a warning in the log shows that rule.
    ///
    /// # Errors
    /// [`ApplyError::Refused`] names what was refused. Of a step of sets, the rest was carried out; a step of chains
    /// takes effect completely or not at all. After [`ApplyError::Failed`] nothing is known: observe again.
    fn apply(&mut self, step: &Step) -> Result<(), ApplyError>;

    /// Called once when the first full sync is in the dataplane: what a previous run left elsewhere can be removed now.
    fn settled(&mut self) {}

    /// Whether it still holds `expected`: hooks first, chains with their rules, and sets as closely as `depth` says.
    ///
    /// # Errors
    /// If it could not be queried.
    fn check(&mut self, expected: &Observed, depth: CheckDepth) -> Result<Drift, DataplaneError>;
}

/// How closely [`Dataplane::check`] checks sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckDepth {
    /// The number of their members: often, whenever another program may have changed something.
    Counts,
    /// Every member: now and then.
    Members,
}

/// Where the dataplane differs from what was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// What differs, each as a sentence for the log; empty if nothing does.
    pub findings: Vec<String>,
    /// The same, each in the place of its sentence.
    pub differences: Vec<Difference>,
}

/// One difference from what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A chain has other rules, or is gone.
    Chain {
        /// The family of its table.
        family: Family,
        /// Its name.
        name: ChainName,
        /// Whether it exists.
        exists: bool,
    },
    /// Our jumps in a built-in chain are others: these.
    Hook {
        /// The family of its table.
        family: Family,
        /// The built-in chain.
        at: BuiltIn,
        /// Our jumps in it, if there are any.
        found: Option<HookState>,
    },
    /// A set is another one: this.
    Set {
        /// Its name.
        name: SetName,
        /// The set, if there is one.
        found: Option<IpSet>,
    },
    /// A set has another number of members; which ones is not known.
    Members(SetName),
    /// Something else.
    Other,
}

impl Drift {
    fn extend(&mut self, differences: impl IntoIterator<Item = (String, Difference)>) {
        for (finding, difference) in differences {
            self.findings.push(finding);
            self.differences.push(difference);
        }
    }
}

impl Difference {
    /// Whether it is known what there is instead, so that nothing else needs to be read or written.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        !matches!(self, Self::Members(_) | Self::Other)
    }

    /// Corrects what is known of the dataplane.
    pub fn note(self, observed: &mut Observed) {
        match self {
            Self::Chain { family, name, exists: true } => {
                observed.table_mut(family).chains.insert(name, Content::Unknown);
            }
            Self::Chain { family, name, exists: false } => {
                observed.table_mut(family).chains.remove(&name);
            }
            Self::Hook { family, at, found: Some(found) } => {
                observed.table_mut(family).hooks.insert(at, found);
            }
            Self::Hook { family, at, found: None } => {
                observed.table_mut(family).hooks.remove(&at);
            }
            Self::Set { name, found: Some(found) } => {
                observed.table_mut(name.family()).sets.insert(name, found);
            }
            Self::Set { name, found: None } => {
                observed.table_mut(name.family()).sets.remove(&name);
            }
            Self::Members(_) | Self::Other => {}
        }
    }
}

/// One object that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What could not be written.
    pub object: Object,
    /// What the tool said, and which part of the object it refused.
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
        /// The Debian package that contains it.
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
    /// This process lacks the privilege to change the kernel's tables.
    #[error(
        "changing the kernel's tables needs root, or at least the capability {capability}: run it as root"
    )]
    NotPermitted {
        /// The missing capability.
        capability: &'static str,
    },
    /// The kernel lacks something.
    #[error("{what}: {remedy}")]
    Unsupported {
        /// What is missing, and how that was detected.
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
    /// A command did not end in time and was killed.
    #[error("{command} did not end within {} s and was killed{}", .after.as_secs(), and_said(.stderr))]
    TimedOut {
        /// The command with its arguments.
        command: String,
        /// How long it had run.
        after: Duration,
        /// What it had said on standard error, trimmed.
        stderr: String,
    },
    /// A command that was killed has not ended: a system call holds it in the kernel.
    #[error(
        "{command} (process {process}) was killed and has not ended: waiting for it, since it may still write"
    )]
    Unkillable {
        /// The command with its arguments.
        command: String,
        /// Its process.
        process: u32,
    },
    /// A command wrote more than expected and was killed.
    #[error("{command} wrote more than {bytes} bytes and was killed{}", and_said(.stderr))]
    TooMuchOutput {
        /// The command with its arguments.
        command: String,
        /// How much it may write.
        bytes: usize,
        /// What it had said on standard error, trimmed.
        stderr: String,
    },
    /// Another system error.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: std::io::Error,
    },
}

fn and_said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}
