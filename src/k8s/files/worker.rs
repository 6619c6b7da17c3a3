//! The thread behind [`FileSource`](super::FileSource): receives file events and reads the files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs, io, mem,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode},
};

use super::{saved::SavedFiles, store::Store};
use crate::{
    k8s::{
        fault::{Fault, Severity},
        manifest::folder::{Stamp, is_hidden, is_manifest, is_settled, walk},
    },
    model::Change,
};

/// How long there must be no event before events are handled: a move is two events, a `kubectl` many.
pub(super) const QUIET: Duration = Duration::from_millis(3);

/// How long events are collected at most.
const GATHER: Duration = Duration::from_millis(50);

/// How long a file may be gone before its objects are removed.
pub(super) const GRACE: Duration = Duration::from_millis(50);

/// How old a file must be to be read without an event that says it is complete.
pub(super) const SETTLED: Duration = Duration::from_millis(250);

/// How long the start waits for files that another program seems to be writing.
const PATIENCE: Duration = Duration::from_secs(2);

/// An event of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// Objects that were added, changed or removed. Each change is sent only once.
    Changes(Vec<Change>),
    /// All current faults of the files; empty once there are none.
    Faults(Vec<Fault>),
    /// All files have been read once, and their objects have been sent.
    Synced,
}

/// A message to the worker.
#[derive(Debug)]
pub(super) enum Message {
    Notified(notify::Result<Event>),
    Stop,
}

/// A path to watch.
#[derive(Debug)]
pub(super) enum Root {
    Folder(PathBuf),
    File(PathBuf),
}

impl Root {
    fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::File(path) => path,
        }
    }
}

/// The worker: the files as they were read, and what events have said about them.
pub(super) struct Worker<F> {
    roots: Vec<Root>,
    /// The device of each root, as it was at the start.
    devices: Vec<Option<u64>>,
    rescan: Duration,
    watcher: RecommendedWatcher,
    /// The folders that inotify watches.
    watched: BTreeSet<PathBuf>,
    /// The version of each file that was read.
    stamps: HashMap<PathBuf, Stamp>,
    /// Files that were written to and not closed yet.
    writing: HashSet<PathBuf>,
    /// Files that may be complete, and are checked again when they have settled.
    later: BTreeSet<PathBuf>,
    /// Files that have disappeared, and when to accept that.
    leaving: BTreeMap<PathBuf, Instant>,
    store: Store,
    saved: Option<SavedFiles>,
    /// Texts that were read, and files that are gone, since the last difference.
    unsaved: BTreeMap<PathBuf, Option<String>>,
    /// The files that keep objects which a former process read.
    restored: BTreeSet<PathBuf>,
    /// The faults of what a former process read, until those of the files are known.
    restored_faults: Option<Vec<Fault>>,
    deliver: F,
}

/// What was found at a path.
enum FileState {
    Holds(Vec<u8>, Stamp),
    Gone,
    Unreadable(io::Error),
}

impl FileState {
    fn without(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound { Self::Gone } else { Self::Unreadable(error) }
    }
}

fn device(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|file| file.dev())
}

/// What some messages together ask for.
#[derive(Default)]
struct Batch {
    /// Files that are complete, to be read whatever their stamps say.
    complete: BTreeSet<PathBuf>,
    /// Files that may have changed.
    touched: BTreeSet<PathBuf>,
    /// Files that are no longer where they were.
    departed: BTreeSet<PathBuf>,
    /// Whether everything must be checked.
    everything: bool,
}

impl<F: FnMut(SourceEvent)> Worker<F> {
    /// A worker that has not read anything yet.
    pub(super) fn new(
        roots: Vec<Root>,
        rescan: Duration,
        watcher: RecommendedWatcher,
        saved: Option<SavedFiles>,
        deliver: F,
    ) -> Self {
        Self {
            devices: roots.iter().map(|root| device(root.path())).collect(),
            roots,
            rescan,
            watcher,
            watched: BTreeSet::new(),
            stamps: HashMap::new(),
            writing: HashSet::new(),
            later: BTreeSet::new(),
            leaving: BTreeMap::new(),
            store: Store::new(),
            saved,
            unsaved: BTreeMap::new(),
            restored: BTreeSet::new(),
            restored_faults: None,
            deliver,
        }
    }

    /// Watches until it is stopped.
    pub(super) fn run(mut self, inbox: &Receiver<Message>) {
        self.restore();
        self.read_all(SETTLED);
        self.wait_for_writers();
        self.deliver_difference();
        (self.deliver)(SourceEvent::Synced);
        let mut rescan_at = Instant::now() + self.rescan;
        loop {
            let now = Instant::now();
            let soon = (!self.later.is_empty()).then_some(now + SETTLED);
            let wake_at = self.leaving.values().copied().chain(soon).fold(rescan_at, Instant::min);
            let mut batch = match inbox.recv_timeout(wake_at.saturating_duration_since(now)) {
                Ok(Message::Notified(notified)) => match self.gather(notified, inbox) {
                    Some(batch) => batch,
                    None => return,
                },
                Err(RecvTimeoutError::Timeout) => Batch::default(),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            };
            self.part(&mut batch);
            batch.touched.append(&mut self.later);
            if Instant::now() >= rescan_at {
                batch.everything = true;
            }
            if batch.everything {
                rescan_at = Instant::now() + self.rescan;
            }
            if !self.take_in(batch, inbox) {
                return;
            }
            self.deliver_difference();
        }
    }

    /// Takes in what a former process read. What the files hold now comes on top: only where they cannot be read do these
    /// objects stay, and those of files that are gone are removed.
    fn restore(&mut self) {
        let Some(saved) = &self.saved else { return };
        for (path, texts) in saved.load() {
            if !self.is_wanted(&path) {
                continue;
            }
            for text in texts {
                self.store.set(&path, text.as_bytes());
            }
            self.restored.insert(path);
        }
        let difference = self.store.difference();
        self.restored_faults = difference.faults;
        if !difference.changes.is_empty() {
            (self.deliver)(SourceEvent::Changes(difference.changes));
        }
    }

    /// At the start, waits a while for files that another program seems to be writing: their contents may be what keeps
    /// a pod isolated. A file that is written without end is read as it is, in the first moment without a write.
    fn wait_for_writers(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.later.is_empty() {
            let settled = if Instant::now() < until { SETTLED } else { Duration::ZERO };
            thread::sleep(SETTLED / 5);
            for path in mem::take(&mut self.later) {
                if let Some(state) = self.read_file(&path, settled) {
                    self.accept(&path, state);
                }
            }
            if Instant::now() >= until + PATIENCE {
                return;
            }
        }
    }

    /// Collects messages until it is quiet; `None` on a stop message.
    fn gather(&mut self, first: notify::Result<Event>, inbox: &Receiver<Message>) -> Option<Batch> {
        let mut batch = Batch::default();
        self.note(first, &mut batch);
        let until = Instant::now() + GATHER;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(left.min(QUIET)) {
                Ok(Message::Notified(notified)) => self.note(notified, &mut batch),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => return Some(batch),
            }
            if left.is_zero() {
                return Some(batch);
            }
        }
    }

    /// Decides about files that have disappeared. They may come back: editors move a file away before they write it
    /// again. If the same file appeared elsewhere at the same time, it was moved there.
    fn part(&mut self, batch: &mut Batch) {
        let now = Instant::now();
        let departed = mem::take(&mut batch.departed);
        let identity = |path: &PathBuf| Some(Stamp::of(&fs::metadata(path).ok()?).file());
        let arrived: HashSet<_> = batch.complete.iter().chain(&batch.touched).filter_map(identity).collect();
        for path in departed {
            if self.stamps.get(&path).is_some_and(|stamp| arrived.contains(&stamp.file())) {
                batch.complete.insert(path);
            } else {
                self.leaving.insert(path, now + GRACE);
            }
        }
        batch.complete.extend(self.leaving.extract_if(.., |_, due| *due <= now).map(|(path, _)| path));
    }

    /// Reads what `batch` asks for, until nothing writes to any of it meanwhile. Returns whether to continue.
    fn take_in(&mut self, mut batch: Batch, inbox: &Receiver<Message>) -> bool {
        /// A program may write without end: what is left then waits for the next time.
        const ROUNDS: usize = 10;
        for _ in 0..ROUNDS {
            let mut read = Vec::new();
            if batch.everything {
                read.extend(self.read_all_but(&batch.complete));
            }
            for path in &batch.complete {
                self.stamps.remove(path);
            }
            let complete = batch.complete.iter().map(|path| (path, Duration::ZERO));
            for (path, settled) in complete.chain(batch.touched.iter().map(|path| (path, SETTLED))) {
                read.extend(self.read_file(path, settled).map(|state| (path.clone(), state)));
            }
            if read.is_empty() {
                return true;
            }
            // Receive the events for all writes that happened during the read.
            self.receive_pending_events();
            let mut meanwhile = Batch::default();
            loop {
                match inbox.try_recv() {
                    Ok(Message::Notified(notified)) => self.note(notified, &mut meanwhile),
                    Ok(Message::Stop) | Err(TryRecvError::Disconnected) => return false,
                    Err(TryRecvError::Empty) => break,
                }
            }
            for (path, state) in read {
                if !self.writing.contains(&path) && !meanwhile.complete.contains(&path) {
                    self.accept(&path, state);
                }
            }
            self.part(&mut meanwhile);
            batch = meanwhile;
        }
        self.later.extend(batch.complete.into_iter().chain(batch.touched));
        true
    }

    /// Waits until every event that the kernel has sent so far is in the inbox.
    ///
    /// The notify thread answers one request per iteration of its loop, before or after it takes over the kernel's
    /// events: with the second answer, the iteration of the first has ended. The request itself is to unwatch a path
    /// that cannot be watched.
    fn receive_pending_events(&mut self) {
        for _ in 0..2 {
            let _ = self.watcher.unwatch(Path::new("/dev/null/nothing"));
        }
    }

    fn note(&mut self, notified: notify::Result<Event>, batch: &mut Batch) {
        let Ok(event) = notified else {
            batch.everything = true;
            return;
        };
        if event.need_rescan() {
            // The end of any write may be among the dropped events.
            self.writing.clear();
            batch.everything = true;
        }
        for path in event.paths {
            match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write)) if self.is_wanted(&path) => {
                    self.writing.remove(&path);
                    self.leaving.remove(&path);
                    batch.departed.remove(&path);
                    batch.complete.insert(path);
                }
                EventKind::Modify(ModifyKind::Data(_)) if self.is_wanted(&path) => {
                    batch.complete.remove(&path);
                    self.writing.insert(path);
                }
                EventKind::Modify(ModifyKind::Metadata(_)) if self.is_wanted(&path) => {
                    batch.touched.insert(path);
                }
                EventKind::Modify(ModifyKind::Name(RenameMode::To)) => {
                    self.writing.remove(&path);
                    self.leaving.remove(&path);
                    batch.departed.remove(&path);
                    self.note_arrival(path, true, batch);
                }
                EventKind::Create(CreateKind::Folder) => self.note_arrival(path, false, batch),
                EventKind::Create(_) => {
                    // A link is complete when it is created. A file is complete when it is closed, for which there is
                    // an event; but one that was written without a name and then linked was closed before.
                    let is_link = |file: fs::Metadata| file.file_type().is_symlink() || file.nlink() > 1;
                    let complete = fs::symlink_metadata(&path).is_ok_and(is_link);
                    self.note_arrival(path, complete, batch);
                }
                EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => {
                    self.note_departure(path, batch);
                }
                _ => {}
            }
        }
    }

    /// Something new is at `path`; `complete` says that nothing writes to it.
    fn note_arrival(&mut self, path: PathBuf, complete: bool, batch: &mut Batch) {
        if self.roots.iter().any(|root| matches!(root, Root::Folder(folder) if *folder == path)) {
            self.forget_watches(&path);
            batch.everything = true;
        } else if is_hidden(&path) {
            // The files of a mounted ConfigMap are links through `..data`, which is itself a link and gets replaced.
            let linked = |file: &&Path| file.parent() == path.parent() && file.is_symlink();
            batch.touched.extend(self.store.files().filter(linked).map(Path::to_owned));
        } else if self.is_wanted(&path) && !path.is_dir() {
            let _ = if complete { batch.complete.insert(path) } else { self.later.insert(path) };
        } else if self.is_below_a_root(&path) && path.is_dir() {
            let files = self.walk(&path).0;
            if complete { batch.complete.extend(files) } else { batch.touched.extend(files) }
        }
    }

    fn note_departure(&mut self, path: PathBuf, batch: &mut Batch) {
        if self.roots.iter().any(|root| matches!(root, Root::Folder(folder) if *folder == path)) {
            batch.everything = true;
        }
        if self.watched.contains(&path) {
            self.forget_watches(&path);
            let below = self.store.files().filter(|file| file.starts_with(&path));
            batch.departed.extend(below.map(Path::to_owned));
        } else if self.is_wanted(&path) {
            self.writing.remove(&path);
            batch.complete.remove(&path);
            batch.departed.insert(path);
        }
    }

    /// Whether the file at `path` is one to watch.
    fn is_wanted(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| matches!(root, Root::File(file) if file == path))
            || (is_manifest(path) && self.is_below_a_root(path))
    }

    /// Whether `path` is in a folder to watch, and in no hidden one below that.
    fn is_below_a_root(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| {
            let Root::Folder(folder) = root else { return false };
            let below = path.strip_prefix(folder);
            below.is_ok_and(|below| !below.as_os_str().is_empty() && !below.ancestors().any(is_hidden))
        })
    }

    /// Checks every file that exists or existed before, and takes in what changed.
    fn read_all(&mut self, settled: Duration) {
        for file in self.every_file() {
            if let Some(state) = self.read_file(&file, settled) {
                self.accept(&file, state);
            }
        }
    }

    /// Checks every file that exists or existed before, except for `others`.
    fn read_all_but(&mut self, others: &BTreeSet<PathBuf>) -> Vec<(PathBuf, FileState)> {
        let files = self.every_file();
        let files = files.into_iter().filter(|file| !others.contains(file));
        files.filter_map(|file| self.read_file(&file, SETTLED).map(|state| (file, state))).collect()
    }

    fn every_file(&mut self) -> BTreeSet<PathBuf> {
        let mut files = BTreeSet::new();
        let mut unreadable = Vec::new();
        for index in 0..self.roots.len() {
            let root = self.roots[index].path().to_owned();
            // The event for a replaced root comes from its parent folder.
            if let Some(parent) = root.parent() {
                self.watch(parent);
            }
            if matches!(self.roots[index], Root::Folder(_)) {
                let found = self.walk(&root);
                files.extend(found.0);
                unreadable.extend(found.1);
            } else {
                files.insert(root);
            }
        }
        let seen = |file: &&Path| !unreadable.iter().any(|folder| file.starts_with(folder));
        files.extend(self.store.files().filter(seen).map(Path::to_owned));
        files
    }

    /// The files in a folder and below, all of it watched from now on, and the folders that could not be read.
    fn walk(&mut self, folder: &Path) -> (BTreeSet<PathBuf>, Vec<PathBuf>) {
        let mut entered = Vec::new();
        let found = walk(folder, |folder| {
            // Watch first, then read: no change in between is missed.
            self.watch(folder);
            entered.push(folder.to_owned());
        });
        for folder in entered {
            self.store.remove(&folder);
        }
        let mut unreadable = Vec::new();
        for (folder, error) in found.unreadable {
            self.store.set_unreadable(&folder, format!("cannot read this folder: {error}; its objects stay"));
            unreadable.push(folder);
        }
        (found.files, unreadable)
    }

    fn watch(&mut self, folder: &Path) {
        // What cannot be watched is still checked periodically.
        if !self.watched.contains(folder) && self.watcher.watch(folder, RecursiveMode::NonRecursive).is_ok() {
            self.watched.insert(folder.to_owned());
        }
    }

    fn forget_watches(&mut self, folder: &Path) {
        let gone: Vec<PathBuf> =
            self.watched.iter().filter(|path| path.starts_with(folder)).cloned().collect();
        for path in gone {
            // The kernel may have removed it before.
            let _ = self.watcher.unwatch(&path);
            self.watched.remove(&path);
        }
    }

    /// Reads the file at `path` if it is not the version that was read, and nothing writes to it.
    fn read_file(&mut self, path: &Path, settled: Duration) -> Option<FileState> {
        if self.writing.contains(path) {
            return None;
        }
        let file = match fs::metadata(path) {
            Ok(file) if file.is_file() => file,
            Ok(_) => return None,
            Err(error) => return Some(FileState::without(error)),
        };
        let stamp = Stamp::of(&file);
        if self.stamps.get(path) == Some(&stamp) {
            return None;
        }
        // A file that is about to be rewritten is empty for a moment before the kernel sends an event.
        let settled = if file.len() == 0 && self.store.has(path) { SETTLED } else { settled };
        if !is_settled(&file, settled) {
            self.later.insert(path.to_owned());
            return None;
        }
        match fs::read(path).and_then(|bytes| Ok((bytes, Stamp::of(&fs::metadata(path)?)))) {
            Ok((bytes, after)) if after == stamp && bytes.len() as u64 == file.len() => {
                Some(FileState::Holds(bytes, stamp))
            }
            Ok(_) => {
                self.later.insert(path.to_owned());
                None
            }
            Err(error) => Some(FileState::without(error)),
        }
    }

    fn accept(&mut self, path: &Path, state: FileState) {
        match state {
            FileState::Holds(bytes, stamp) => {
                self.store.set(path, &bytes);
                if let (Some(_), Ok(text)) = (&self.saved, String::from_utf8(bytes)) {
                    self.unsaved.insert(path.to_owned(), Some(text));
                }
                self.stamps.insert(path.to_owned(), stamp);
            }
            FileState::Gone => {
                // If its whole root is gone, it was more likely unmounted than deleted, and its objects stay. An
                // unmount leaves an empty folder on another device.
                let unmounted = |(root, was): (&Root, &Option<u64>)| match root {
                    Root::Folder(folder) if path.starts_with(folder) => device(folder) != *was,
                    _ => false,
                };
                if !self.roots.iter().zip(&self.devices).any(unmounted) {
                    self.store.remove(path);
                    self.unsaved.insert(path.to_owned(), None);
                }
                self.stamps.remove(path);
            }
            FileState::Unreadable(error) => {
                self.store.set_unreadable(path, format!("cannot read this file: {error}; its objects stay"));
                self.stamps.remove(path);
            }
        }
    }

    /// Delivers what has changed.
    fn deliver_difference(&mut self) {
        let difference = self.store.difference();
        if !difference.changes.is_empty() {
            (self.deliver)(SourceEvent::Changes(difference.changes));
        }
        self.save();
        self.restored.retain(|path| self.store.has_error(path));
        if let Some(mut faults) = difference.faults.or(self.restored_faults.take()) {
            faults.extend(self.restored.iter().map(|path| restored_fault(path)));
            (self.deliver)(SourceEvent::Faults(faults));
        }
    }

    /// Saves what was read, for the next process.
    fn save(&mut self) {
        let Some(saved) = &self.saved else { return };
        for (path, text) in mem::take(&mut self.unsaved) {
            match text {
                Some(text) => saved.save(&path, text, !self.store.has_error(&path)),
                None => saved.remove(&path),
            }
        }
    }
}

/// Says that a file keeps objects which a former process read.
fn restored_fault(path: &Path) -> Fault {
    Fault {
        file: path.to_owned(),
        line: 1,
        column: 1,
        severity: Severity::Error,
        text:
            "what a former run of the daemon read from this file stays enforced until all of it can be read"
                .to_owned(),
        path: String::new(),
        object: None,
    }
}
