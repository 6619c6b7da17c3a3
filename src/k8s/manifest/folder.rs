//! Which files a path stands for, and whether a file is still the version that was read.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Whether a file of this name is read when its folder is: .yaml, .yml and .json, without a leading dot.
#[must_use]
pub fn is_manifest(path: &Path) -> bool {
    !is_hidden(path)
        && path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|e| extension == *e))
}

/// Whether a name begins with a dot. Such files are left by editors, and such folders hold the generations of a mounted
/// `ConfigMap`, whose files are reached through links outside of them.
#[must_use]
pub fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// What is in a folder and below.
#[derive(Debug, Default)]
pub struct Found {
    /// The files to read, sorted.
    pub files: BTreeSet<PathBuf>,
    /// The folders that could not be read, and why.
    pub unreadable: Vec<(PathBuf, io::Error)>,
}

/// Finds every manifest in `folder` and below, links followed. `enter` is called for each folder before it is read.
pub fn walk(folder: &Path, mut enter: impl FnMut(&Path)) -> Found {
    let mut found = Found::default();
    let mut folders = vec![folder.to_owned()];
    let mut visited = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        // A link to a parent folder would cause an endless loop.
        let same = match fs::canonicalize(&folder) {
            Ok(same) => same,
            Err(error) => {
                found.unreadable.push((folder, error));
                continue;
            }
        };
        if !visited.insert(same) {
            continue;
        }
        enter(&folder);
        let mut probe = || -> io::Result<()> {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if is_hidden(&path) {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path);
                } else if is_manifest(&path) {
                    found.files.insert(path);
                }
            }
            Ok(())
        };
        if let Err(error) = probe() {
            found.unreadable.push((folder, error));
        }
    }
    found
}

/// Identifies a version of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of a file with this metadata.
    #[must_use]
    pub fn of(file: &fs::Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    /// What stays the same while the file moves: its device and its inode.
    #[must_use]
    pub const fn file(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

/// Whether a file with this metadata was last written so long ago that its writer is surely done.
#[must_use]
pub fn is_settled(file: &fs::Metadata, after: Duration) -> bool {
    // A time in the future, or none, means nothing: then there is nothing to wait for.
    let age = file.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    age.is_none_or(|age| age >= after)
}
