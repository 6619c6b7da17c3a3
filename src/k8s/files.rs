//! Objects from files, watched: for the daemon.
//!
//! What is told is the difference to what was told before, and never more than the files say. A file is read again
//! when whoever wrote it is done with it (closed it, or moved it in place), so that nobody's half-written file makes
//! objects vanish. What cannot be read keeps the last version that could. Of a changed file only the documents whose
//! text changed are parsed again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    hash::{BuildHasher, RandomState},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};

use super::{
    assemble::{FileContents, Key, Said, assemble},
    chunk::{self, Chunk},
    fault::{Fault, Severity},
    intern::Interner,
    manifest::{LoadError, find, is_manifest, is_stdin, not_utf8, read_bytes},
    object::Object,
};
use crate::model::Change;

/// What a source tells.
#[derive(Debug)]
pub enum SourceEvent {
    /// Objects changed.
    Changes(Vec<Change>),
    /// Everything that was there at the start has been told.
    Synced,
    /// Everything that is wrong now, whenever that changes.
    Faults(Vec<Fault>),
}

/// How often every file is looked at, in case that something was not heard of: a network file system tells nothing.
const RESCAN: Duration = Duration::from_secs(30);

/// In a look at everything, a file younger than this is left for another look soon after: somebody may be writing it.
const SETTLED: Duration = Duration::from_secs(1);

/// Hints that follow each other within this time belong together, up to so many.
const GATHER: Duration = Duration::from_millis(2);
const GATHER_MOST: usize = 64;

/// Files and folders that objects are read from; watched until dropped.
#[derive(Debug)]
pub struct FileSource {
    /// Held for its drop: that closes the channel, and with it ends the thread.
    _held: RecommendedWatcher,
}

impl FileSource {
    /// Reads `paths`, tells what they hold, and goes on telling what changes on a thread of its own.
    ///
    /// # Errors
    /// A path that does not exist, or cannot be read or watched.
    pub fn open(
        paths: &[PathBuf],
        mut tell: impl FnMut(SourceEvent) + Send + 'static,
    ) -> Result<Self, LoadError> {
        let (sender, hints) = mpsc::channel();
        // Watched before it is read: what changes meanwhile is heard of.
        let watcher = watch(paths, sender)?;
        let mut files = Files::new(paths.to_vec());
        files.scan(None)?;
        for event in files.take_news() {
            tell(event);
        }
        tell(SourceEvent::Synced);
        let started =
            thread::Builder::new().name("files".to_owned()).spawn(move || files.follow(&hints, tell));
        let failed = |source| LoadError { path: paths.first().cloned().unwrap_or_default(), source };
        started.map_err(failed)?;
        Ok(Self { _held: watcher })
    }
}

/// What to look at again.
#[derive(Debug, PartialEq, Eq)]
enum Hint {
    /// This file.
    File(PathBuf),
    /// Everything: a folder came or went, a link moved, or something was not heard of.
    Everything,
}

fn watch(paths: &[PathBuf], sender: Sender<Hint>) -> Result<RecommendedWatcher, LoadError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| LoadError { path, source: io::Error::other(error) }
    };
    let roots = paths.to_vec();
    let heard = move |event: notify::Result<Event>| {
        for hint in hints_of(event, &roots) {
            // Nobody listens any more only when the source is being dropped.
            let _ = sender.send(hint);
        }
    };
    let mut watcher = notify::recommended_watcher(heard).map_err(failed(Path::new("inotify")))?;
    for path in paths.iter().filter(|path| !is_stdin(path)) {
        let kind = fs::metadata(path).map_err(|source| LoadError { path: path.clone(), source })?;
        let result = if kind.is_dir() {
            watcher.watch(path, RecursiveMode::Recursive)
        } else {
            // The folder, not the file: a file that is replaced by moving another in its place is another one.
            watcher.watch(folder_of(path), RecursiveMode::NonRecursive)
        };
        result.map_err(failed(path))?;
    }
    Ok(watcher)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn hints_of(event: notify::Result<Event>, roots: &[PathBuf]) -> Vec<Hint> {
    let Ok(event) = event else { return vec![Hint::Everything] };
    if event.need_rescan() {
        return vec![Hint::Everything];
    }
    let done = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(_))
        | EventKind::Remove(_) => true,
        EventKind::Access(_) | EventKind::Modify(_) => false,
        EventKind::Create(CreateKind::Folder) | EventKind::Any | EventKind::Other => {
            return vec![Hint::Everything];
        }
        // A file that was only just made is not written yet, but for links, which nobody closes.
        EventKind::Create(_) => event.paths.iter().any(|path| is_link(path)),
    };
    if !done {
        return Vec::new();
    }
    let hint = |path: PathBuf| {
        if is_manifest(&path) && !path.is_symlink() || roots.contains(&path) {
            Hint::File(path)
        } else {
            Hint::Everything
        }
    };
    event.paths.into_iter().map(hint).collect()
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|kind| kind.is_symlink() || kind.nlink() > 1)
}

/// What tells whether a file is still the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let file = fs::metadata(path)?;
        let modified = file.modified().ok();
        Ok(Self { device: file.dev(), inode: file.ino(), size: file.size(), modified })
    }

    fn is_settled(self) -> bool {
        let age = self.modified.and_then(|modified| modified.elapsed().ok());
        age.is_none_or(|age| age >= SETTLED)
    }
}

/// One file, as it was last read.
#[derive(Debug, Default)]
struct FileState {
    stamp: Option<Stamp>,
    contents: FileContents,
    /// The pieces that were read, by length and digest of their text.
    pieces: HashMap<(usize, u64), Arc<Chunk>>,
}

impl FileState {
    /// Whether something in it could not be read at all, so that it may hold objects that are not seen.
    fn is_broken(&self) -> bool {
        self.contents.unreadable.is_some()
            || self.contents.chunks.iter().any(|(_, chunk)| chunk.error.is_some())
    }
}

/// All files, and what was told of them.
#[derive(Debug)]
struct Files {
    roots: Vec<PathBuf>,
    files: BTreeMap<PathBuf, FileState>,
    names: Interner,
    digests: RandomState,
    /// What was told, and which file said it.
    told: BTreeMap<Key, (Object, PathBuf)>,
    faults: Vec<Fault>,
    /// Why the folders could not be gone through the last time.
    trouble: Option<Fault>,
    changed: bool,
    /// Whether a file was left for another look soon.
    unsettled: bool,
}

impl Files {
    fn new(roots: Vec<PathBuf>) -> Self {
        Self {
            roots,
            files: BTreeMap::new(),
            names: Interner::new(),
            digests: RandomState::new(),
            told: BTreeMap::new(),
            faults: Vec::new(),
            trouble: None,
            changed: true,
            unsettled: false,
        }
    }

    /// Follows the hints until there is nobody left to give any.
    fn follow(mut self, hints: &Receiver<Hint>, mut tell: impl FnMut(SourceEvent)) {
        let mut next_scan = Instant::now() + RESCAN;
        loop {
            match hints.recv_timeout(next_scan.saturating_duration_since(Instant::now())) {
                Ok(first) => {
                    let mut paths = BTreeSet::new();
                    let mut everything = false;
                    // A file that moves is heard of twice; what belongs together is told together.
                    let together = || hints.recv_timeout(GATHER).ok();
                    for hint in std::iter::once(first).chain(std::iter::from_fn(together).take(GATHER_MOST)) {
                        match hint {
                            Hint::File(path) => drop(paths.insert(path)),
                            Hint::Everything => everything = true,
                        }
                    }
                    if everything {
                        self.scan_or_note(&paths);
                    } else {
                        paths.iter().for_each(|path| self.reload(path));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    next_scan = Instant::now() + RESCAN;
                    self.scan_or_note(&BTreeSet::new());
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if std::mem::take(&mut self.unsettled) {
                next_scan = next_scan.min(Instant::now() + SETTLED);
            }
            self.take_news().into_iter().for_each(&mut tell);
        }
    }

    /// As [`Self::scan`]; what stands in its way is a fault, and everything stays as it was.
    fn scan_or_note(&mut self, sure: &BTreeSet<PathBuf>) {
        let trouble = self.scan(Some(sure)).err().map(|error| Fault {
            file: error.path.clone(),
            line: 1,
            column: 1,
            severity: Severity::Error,
            text: error.to_string(),
            path: String::new(),
            object: None,
        });
        self.changed |= trouble != self.trouble;
        self.trouble = trouble;
    }

    /// Looks at every file, and reads those that are not what they were. With `sure`, a file that changed only just
    /// now is left for later unless it is among these.
    fn scan(&mut self, sure: Option<&BTreeSet<PathBuf>>) -> Result<(), LoadError> {
        let mut found = BTreeSet::new();
        for root in self.roots.clone() {
            found.extend(find(&root)?);
        }
        let gone: Vec<PathBuf> = self.files.keys().filter(|path| !found.contains(*path)).cloned().collect();
        for path in gone {
            self.files.remove(&path);
            self.changed = true;
        }
        for path in found {
            let known = self.files.get(&path).and_then(|file| file.stamp);
            let Ok(stamp) = Stamp::of(&path) else {
                self.reload(&path);
                continue;
            };
            let may_read =
                sure.is_none_or(|sure| sure.contains(&path) || stamp.is_settled() || path.is_symlink());
            if known != Some(stamp) && may_read {
                self.reload(&path);
            }
            self.unsettled |= known != Some(stamp) && !may_read;
        }
        Ok(())
    }

    /// Reads one file again; a file that is not there any more is forgotten.
    fn reload(&mut self, path: &Path) {
        let stamp = if is_stdin(path) { None } else { Stamp::of(path).ok() };
        let contents = match read_bytes(path) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.changed |= self.files.remove(path).is_some();
                return;
            }
            Err(error) => Err(format!("cannot be read: {error}")),
        };
        let text =
            contents.and_then(|bytes| String::from_utf8(bytes).map_err(|error| not_utf8(error.utf8_error())));
        let known = self.files.remove(path).unwrap_or_default();
        let mut pieces = HashMap::new();
        let contents = match text {
            Ok(text) => {
                let mut read = |text: &str| {
                    let digest = (text.len(), self.digests.hash_one(text));
                    let fresh = || Arc::new(chunk::read(text, false, &mut self.names));
                    let chunk = known.pieces.get(&digest).cloned().unwrap_or_else(fresh);
                    pieces.insert(digest, chunk.clone());
                    chunk
                };
                let chunks = chunk::pieces(&text).into_iter().map(|piece| (piece.lines, read(piece.text)));
                FileContents { chunks: chunks.collect(), unreadable: None }
            }
            Err(unreadable) => FileContents { chunks: Vec::new(), unreadable: Some(unreadable) },
        };
        self.files.insert(path.to_owned(), FileState { stamp, contents, pieces });
        self.changed = true;
    }

    /// What is to be told now.
    fn take_news(&mut self) -> Vec<SourceEvent> {
        if !std::mem::take(&mut self.changed) {
            return Vec::new();
        }
        let contents: Vec<(&PathBuf, &FileContents)> =
            self.files.iter().map(|(path, file)| (path, &file.contents)).collect();
        let assembly = assemble(&contents, &mut self.names);
        let mut places: HashMap<&Key, &PathBuf> = HashMap::new();
        let ids: Vec<(Key, &PathBuf)> = contents
            .iter()
            .flat_map(|(path, contents)| contents.chunks.iter().map(move |(_, chunk)| (*path, chunk)))
            .flat_map(|(path, chunk)| chunk.manifests.iter().map(move |manifest| (path, manifest)))
            .filter_map(|(path, manifest)| Some((Key::of_id(manifest.id.as_ref()?), path)))
            .collect();
        for (key, path) in &ids {
            places.entry(key).or_insert(path);
        }
        let is_broken = |path: &PathBuf| self.files.get(path).is_some_and(FileState::is_broken);
        let mut now = BTreeMap::new();
        for (key, said) in assembly.said {
            let place = places.get(&key).map(|path| (*path).clone()).unwrap_or_default();
            let object = match said {
                Said::Is(object) => Some(object),
                // The last good version stays; with none, what it may be taken for.
                Said::Doubtful(fallback) => {
                    self.told.get(&key).map(|(object, _)| object.clone()).or(fallback)
                }
            };
            if let Some(object) = object {
                now.insert(key, (object, place));
            }
        }
        let kept = self.told.iter().filter(|(key, (_, place))| !now.contains_key(*key) && is_broken(place));
        let kept: Vec<_> = kept.map(|(key, told)| (key.clone(), told.clone())).collect();
        now.extend(kept);

        let differs = |key: &Key, object: &Object| self.told.get(key).is_none_or(|(told, _)| told != object);
        let mut changes: Vec<Change> = now
            .iter()
            .filter(|(key, (object, _))| differs(key, object))
            .map(|(_, (object, _))| object.clone().change())
            .collect();
        let gone = self.told.keys().filter(|key| !now.contains_key(*key));
        changes.extend(gone.cloned().map(Key::removal));
        self.told = now;

        let mut news = Vec::new();
        let faults: Vec<Fault> = self.trouble.iter().cloned().chain(assembly.faults).collect();
        if faults != self.faults {
            self.faults.clone_from(&faults);
            news.push(SourceEvent::Faults(faults));
        }
        if !changes.is_empty() {
            news.push(SourceEvent::Changes(changes));
        }
        news
    }
}

#[cfg(test)]
mod tests;
