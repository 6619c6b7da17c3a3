//! Objects from files, for the daemon.

use std::path::PathBuf;

use super::{
    fault::Fault,
    manifest::{LoadError, Options, load},
};
use crate::model::Change;

/// What a source tells.
#[derive(Debug)]
pub enum SourceEvent {
    /// Objects changed.
    Changes(Vec<Change>),
    /// Everything that is there has been told.
    Synced,
    /// What is wrong now.
    Faults(Vec<Fault>),
}

/// Files that objects are read from.
#[derive(Debug)]
pub struct FileSource;

impl FileSource {
    /// Reads `paths` and tells what they hold.
    ///
    /// # Errors
    /// A path that does not exist or cannot be read.
    pub fn open(
        paths: &[PathBuf],
        mut tell: impl FnMut(SourceEvent) + Send + 'static,
    ) -> Result<Self, LoadError> {
        let loaded = load(paths, Options { workloads: false })?;
        tell(SourceEvent::Faults(loaded.faults));
        tell(SourceEvent::Changes(loaded.changes));
        tell(SourceEvent::Synced);
        Ok(Self)
    }
}
