//! What was read from each file, saved for the next process: a file that it cannot read then keeps what this one
//! enforced from it.
//!
//! Only texts are saved, and read again as any text is: nothing else has to be kept compatible. There is one saved file
//! for each file, so that saving costs what changed. Each is complete or absent, since it is renamed into place; one
//! that cannot be used is reported and ignored, as if it had never been written.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::warn;

/// The version of the format. Saved files of other versions are ignored.
const VERSION: u32 = 1;

/// The most that is saved for one file, and read again for all of them, in bytes.
const MOST_OF_ONE: usize = 32 << 20;
const MOST_OF_ALL: u64 = 128 << 20;

/// How many texts of one file are kept: the last one that was read in full, and later ones that were read in part.
const MOST_TEXTS: usize = 4;

/// A process that was killed while it saved leaves its file behind for at most this long after the next start.
const ABANDONED: Duration = Duration::from_mins(1);

/// The saved texts of the files of one daemon.
#[derive(Clone, Debug)]
pub struct SavedFiles {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    path: PathBuf,
    texts: Vec<String>,
}

impl SavedFiles {
    /// In a folder below `folder` that belongs to this node and these paths: those of other daemons are left alone.
    #[must_use]
    pub fn new(folder: &Path, node: &str, paths: &[PathBuf]) -> Self {
        let mut paths: Vec<PathBuf> =
            paths.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())).collect();
        paths.sort();
        let mut digest = Sha256::new();
        digest.update(node);
        for path in paths {
            digest.update([0]);
            digest.update(path.as_os_str().as_encoded_bytes());
        }
        Self { folder: folder.join(format!("files-{}", short(&digest.finalize()))) }
    }

    /// The texts of each file, in the order in which they were read.
    pub(super) fn load(&self) -> BTreeMap<PathBuf, Vec<String>> {
        let mut all = BTreeMap::new();
        let mut size = 0;
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return all,
            Err(error) => {
                warn!(folder = %self.folder.display(), %error, "cannot read what a former run saved; ignoring it");
                return all;
            }
        };
        for entry in entries.flatten() {
            let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
            if path.extension().is_none_or(|extension| extension != "json") {
                let age =
                    metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
                if age.is_some_and(|age| age > ABANDONED) {
                    let _ = fs::remove_file(path);
                }
                continue;
            }
            size += metadata.len();
            if size > MOST_OF_ALL {
                warn!(bytes = MOST_OF_ALL, "a former run saved more than is read again; ignoring the rest");
                return all;
            }
            match read(&path) {
                Ok(saved) => {
                    all.insert(saved.path, saved.texts);
                }
                Err(error) => {
                    warn!(file = %path.display(), %error, "cannot use what a former run saved; ignoring it");
                }
            }
        }
        all
    }

    /// Saves a text of the file at `path`. `is_whole`: all of it could be read, so that no former text matters.
    pub(super) fn save(&self, path: &Path, text: String, is_whole: bool) {
        let place = self.place(path);
        let mut texts =
            if is_whole { Vec::new() } else { read(&place).map_or_else(|_| Vec::new(), |it| it.texts) };
        if texts.last() == Some(&text) {
            return;
        }
        if texts.len() >= MOST_TEXTS {
            // The first was read in full.
            texts.remove(1);
        }
        texts.push(text);
        let saved = Saved { version: VERSION, path: path.to_owned(), texts };
        if let Err(error) = self.write(&place, &saved) {
            warn!(
                file = %path.display(), %error,
                "cannot save what was read: if the file cannot be read after a restart, its objects are lost"
            );
        }
    }

    /// The file at `path` is gone.
    pub(super) fn remove(&self, path: &Path) {
        match fs::remove_file(self.place(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(file = %path.display(), %error, "cannot remove what was saved of a file that is gone");
            }
            _ => {}
        }
    }

    fn place(&self, path: &Path) -> PathBuf {
        let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
        self.folder.join(format!("{}.json", short(&digest)))
    }

    fn write(&self, place: &Path, saved: &Saved) -> io::Result<()> {
        let text = serde_json::to_vec(saved)?;
        if text.len() > MOST_OF_ONE {
            // What is there is of an older text.
            let _ = fs::remove_file(place);
            return Err(io::Error::other(format!("it is longer than {MOST_OF_ONE} bytes")));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let staged = place.with_extension(std::process::id().to_string());
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
        file.write_all(&text)?;
        file.sync_data()?;
        fs::rename(staged, place)
    }
}

fn read(place: &Path) -> io::Result<Saved> {
    let saved: Saved = serde_json::from_slice(&fs::read(place)?)?;
    if saved.version != VERSION {
        return Err(io::Error::other(format!("its version is {}, not {VERSION}", saved.version)));
    }
    Ok(saved)
}

fn short(digest: &[u8]) -> String {
    HEXLOWER.encode(digest.get(..16).unwrap_or(digest))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn saved(folder: &Path) -> SavedFiles {
        SavedFiles::new(folder, "n1", &["/etc/policies".into()])
    }

    #[test]
    fn texts_since_the_last_whole_one_are_loaded_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path());
        let texts = |files: &SavedFiles| files.load().remove(Path::new("/a.yaml"));
        assert_eq!(texts(&files), None);
        for (text, is_whole) in [("old", true), ("1", true), ("2", false), ("2", false), ("3", false)] {
            files.save(Path::new("/a.yaml"), text.to_owned(), is_whole);
        }
        assert_eq!(texts(&files).unwrap(), ["1", "2", "3"]);
        for text in ["4", "5", "6"] {
            files.save(Path::new("/a.yaml"), text.to_owned(), false);
        }
        assert_eq!(texts(&files).unwrap(), ["1", "4", "5", "6"]);
        files.remove(Path::new("/a.yaml"));
        files.remove(Path::new("/a.yaml"));
        assert_eq!(texts(&files), None);
    }

    #[test]
    fn other_nodes_and_paths_have_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let new = |node: &str, paths: &[&str]| {
            SavedFiles::new(folder.path(), node, &paths.iter().map(PathBuf::from).collect::<Vec<_>>())
        };
        new("n1", &["/a", "/b"]).save(Path::new("/a/x.yaml"), "x".to_owned(), true);
        assert_eq!(new("n1", &["/b", "/a"]).load().len(), 1);
        for other in [new("n2", &["/a", "/b"]), new("n1", &["/a"]), new("n1", &["/a", "/b", "/c"])] {
            assert!(other.load().is_empty());
        }
    }

    #[test]
    fn only_the_owner_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path());
        files.save(Path::new("/a.yaml"), "text".to_owned(), true);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&files.folder), mode(&files.place(Path::new("/a.yaml")))), (0o700, 0o600));
    }

    #[test]
    fn what_cannot_be_used_is_ignored_and_the_rest_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path());
        for name in ["/half.yaml", "/newer.yaml", "/good.yaml"] {
            files.save(Path::new(name), "text".to_owned(), true);
        }
        let half = files.place(Path::new("/half.yaml"));
        let text = fs::read_to_string(&half).unwrap();
        fs::write(&half, &text[..text.len() / 2]).unwrap();
        let newer = files.place(Path::new("/newer.yaml"));
        let text = fs::read_to_string(&newer).unwrap().replace("\"version\":1", "\"version\":2");
        fs::write(newer, text).unwrap();
        fs::write(files.folder.join("left.4711"), "half").unwrap();
        assert_eq!(files.load().into_keys().collect::<Vec<_>>(), [PathBuf::from("/good.yaml")]);
    }

    #[test]
    fn text_that_is_too_long_leaves_no_older_one_behind() {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path());
        files.save(Path::new("/a.yaml"), "text".to_owned(), true);
        files.save(Path::new("/a.yaml"), "x".repeat(MOST_OF_ONE), true);
        assert!(files.load().is_empty());
    }
}
