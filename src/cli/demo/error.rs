//! What can end the demo early.

use std::{io, time::Duration};

use crate::lab::LabError;

use super::table::TableError;

/// Why the demo could not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The lab could not be built or used.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Something in the file system, or the terminal, failed.
    #[error("could not {action}: {source}")]
    Io {
        /// What was being done, on what.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// A daemon stopped without a request.
    #[error("`towpath run` on {node} {reason}; the end of its log:\n{log}")]
    Daemon {
        /// On which node.
        node: String,
        /// What it did.
        reason: String,
        /// The end of what it wrote to standard error.
        log: String,
    },
    /// The story has an error.
    #[error("the story of the demo is broken: {0}")]
    Story(String),
    /// A signal interrupted the demo.
    #[error("interrupted by signal {0}")]
    Interrupted(i32),
}

impl DemoError {
    /// Adds to a system error what was being done.
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    /// A daemon that was not ready in time.
    pub(super) fn not_ready(node: &str, after: Duration, answer: &str, log: String) -> Self {
        let reason = format!("was not ready after {after:?} ({answer})");
        Self::Daemon { node: node.to_owned(), reason, log }
    }
}

impl From<TableError> for DemoError {
    fn from(error: TableError) -> Self {
        Self::Story(error.to_string())
    }
}
