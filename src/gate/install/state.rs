//! The state of the installation, and why it is not what it should be.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::MANY_REMOVALS;
use crate::gate::conflist::{ConflistError, PLUGIN};

/// Whether new pods wait for their rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// No folders are set.
    NotWanted,
    /// Something is not there yet.
    Waiting(Wait),
    /// The plugin and its entry are in place.
    Installed {
        /// The name of the configuration with the entry.
        file: String,
        /// How often another program removed the entry within the last minute.
        removals: usize,
    },
    /// An operator has to change something.
    Failed(Fault),
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wait {
    /// The daemon could not yet say whether a pod's rules are written.
    #[error("waiting for the first sync")]
    FirstSync,
    /// The folder has no configuration.
    #[error("no CNI configuration in {}: the network plugin is not installed yet", .0.display())]
    NoConfiguration(PathBuf),
    /// Its configurations are invalid.
    #[error("no valid CNI configuration in {}: {file}: {error}", folder.display())]
    NoneValid {
        /// The folder.
        folder: PathBuf,
        /// The first file.
        file: String,
        /// What is wrong with it.
        error: ConflistError,
    },
    /// None of the plugins in the configuration is in the folder of plugins.
    #[error("no plugin of {file} is in {}: the runtime must read its plugins from this folder", folder.display())]
    NoPlugins {
        /// The folder.
        folder: PathBuf,
        /// The configuration.
        file: String,
    },
    /// Other programs keep writing the file.
    #[error("{0}: another program is writing it")]
    Busy(String),
}

/// What has to be changed before the gate can be installed, or removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Reading or writing failed.
    #[error("{doing} {}: {error}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        error: String,
    },
    /// The configuration has a single plugin.
    #[error(
        "{0}: no plugin can follow that of a .conf or .json file: make it a .conflist, with a list of plugins"
    )]
    Single(String),
    /// The configuration is that of Multus.
    #[error("{0}: Multus calls the plugins of another file: add the entry for {PLUGIN} to that one by hand")]
    Multus(String),
    /// The configuration is a symbolic link, whose target may be elsewhere, or something else inside of a container.
    #[error("{0}: a symbolic link is not edited: put the file itself there")]
    Link(String),
    /// The file has an owner to whom this process may give no file.
    #[error("{file}: its owner {uid}:{gid} cannot be kept: change it to 0:0")]
    Owner {
        /// The configuration.
        file: String,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// An entry is in a file that cannot be edited.
    #[error("{file}: {error}: take the entry for {PLUGIN} out by hand")]
    Unreadable {
        /// The configuration.
        file: String,
        /// What is wrong with it.
        error: ConflistError,
    },
}

impl State {
    /// The state in one word: `not wanted`, `waiting`, `installed` or `failed`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotWanted => "not wanted",
            Self::Waiting(_) => "waiting",
            Self::Installed { .. } => "installed",
            Self::Failed(_) => "failed",
        }
    }

    /// Why new pods do not wait for their rules although they should, or may not.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::NotWanted => None,
            Self::Waiting(wait) => Some(wait.to_string()),
            Self::Failed(fault) => Some(fault.to_string()),
            Self::Installed { file, removals } => (*removals >= MANY_REMOVALS).then(|| {
                format!("{file}: another program removed the entry {removals} times within a minute")
            }),
        }
    }
}

/// The state, readable at any time.
#[derive(Debug)]
pub struct Installation(Mutex<State>);

impl Default for Installation {
    fn default() -> Self {
        Self(Mutex::new(State::NotWanted))
    }
}

impl Installation {
    /// The current state.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the current state; returns the previous one.
    pub fn set(&self, state: State) -> State {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), state)
    }
}

impl Fault {
    pub(super) fn io(doing: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), error: error.to_string() }
    }
}
