//! The plugin and its entry on this node: put in place, kept there, and taken out.
//!
//! The plugin comes first and goes last: a runtime that finds the entry without the plugin starts no pod.
//!
//! # Which file
//!
//! containerd (go-cni 1.1.14, `loadFromConfDir`) and CRI-O (ocicni 0.4.3, `loadNetworks`) sort the names that end in
//! `.conf`, `.conflist` or `.json`, in the order of their bytes, and load the first. If it is invalid, containerd loads
//! none and starts no pod, and CRI-O takes the next. Here it is the next too: with containerd that changes nothing until
//! the first one is repaired, which is noticed.
//!
//! # Other writers
//!
//! flannel's init container copies its file over the one in the folder at each start, k3s does so when it starts, and
//! others rename theirs into place. A new file is exchanged with the old one, which therefore still has a name when it
//! can be compared with what was edited: if it is anything else, another program wrote in between, the two are exchanged back,
//! and the edit starts again. What remains is a program that opened the file before that, without truncating it, and
//! writes to it afterwards; its text is lost. No known one does so.

mod folder;
mod state;

use std::{
    fmt, fs, io,
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

pub use state::{Fault, Installation, State, Wait};

use super::conflist::{self, Entry, PLUGIN};
use folder::{Chosen, SETTLED, TEMPORARY, candidates, choose, is_there, read, replace, sync, write_beside};

/// How often to check without an event, unless a test says otherwise.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// How long to do nothing after an edit, so that two programs that undo each other's edits do little else.
const PAUSE: Duration = Duration::from_millis(100);

/// The same once the entry was removed [`MANY_REMOVALS`] times within [`REMOVALS_WITHIN`]. No longer than this: while the
/// entry is not there, new pods start without their rules.
const LONG_PAUSE: Duration = Duration::from_secs(2);
const MANY_REMOVALS: usize = 10;
const REMOVALS_WITHIN: Duration = Duration::from_mins(1);

/// How long the plugin stays after its entry: a runtime that has just read the entry starts the plugin after those in
/// front of it. A pod that is later still fails once, and kubelet tries again.
const READERS_PAUSE: Duration = Duration::from_secs(2);

/// How often to start again if another program writes at the same time.
const ATTEMPTS: usize = 5;

/// What is put where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the network configuration from which the runtime reads.
    pub conf_dir: PathBuf,
    /// The folder of plugins from which the runtime starts them.
    pub bin_dir: PathBuf,
    /// The plugin to copy.
    pub plugin: PathBuf,
    /// The entry to add.
    pub entry: Entry,
    /// How often to check without an event.
    pub check_interval: Duration,
}

/// Installs, and keeps installed.
#[derive(Debug)]
pub struct Installer {
    settings: Settings,
    /// The plugin that was found to be in place, and what it was compared with.
    compared: Option<[Stamp; 2]>,
    /// When the entry was put back, as far as that is recent.
    removals: Vec<Instant>,
    /// The configuration that had the entry at the end of the last check that found it.
    had_entry: Option<String>,
}

/// What changes whenever a file's contents do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp([i64; 4], [u64; 3]);

impl Stamp {
    fn of(file: &fs::Metadata) -> Self {
        Self(
            [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()],
            [file.dev(), file.ino(), file.size()],
        )
    }
}

impl Installer {
    /// One that has done nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, compared: None, removals: Vec::new(), had_entry: None }
    }

    /// Checks and installs now, and then whenever something changes, forever. `report` gets the state after each check,
    /// and whether the entry had been removed and was put back.
    pub fn run(mut self, mut report: impl FnMut(State, bool)) {
        // Of a daemon that was killed while it wrote.
        for folder in [&self.settings.conf_dir, &self.settings.bin_dir] {
            let _ = fs::remove_file(folder.join(TEMPORARY));
        }
        let watch = Watch::new();
        loop {
            watch.look_at([&self.settings.conf_dir, &self.settings.bin_dir]);
            let edits = self.removals.len();
            let state = self.check();
            let put_back = self.removals.len() > edits;
            let is_busy = matches!(state, State::Waiting(Wait::Busy(_)));
            report(state, put_back);
            if put_back {
                thread::sleep(if self.removals.len() >= MANY_REMOVALS { LONG_PAUSE } else { PAUSE });
            }
            watch.wait(if is_busy { SETTLED } else { self.settings.check_interval });
            self.removals.retain(|removal| removal.elapsed() < REMOVALS_WITHIN);
        }
    }

    /// Checks, installs what is not in place, and returns the state after that.
    pub fn check(&mut self) -> State {
        match self.install() {
            Ok(Ok(file)) => State::Installed { file, removals: self.removals.len() },
            Ok(Err(wait)) => State::Waiting(wait),
            Err(fault) => State::Failed(fault),
        }
    }

    fn install(&mut self) -> Result<Result<String, Wait>, Fault> {
        self.install_plugin()?;
        for _ in 0..ATTEMPTS {
            let chosen = match choose(&self.settings.conf_dir)? {
                Ok(chosen) => chosen,
                Err(wait) => return Ok(Err(wait)),
            };
            if !chosen.plugins.iter().any(|plugin| is_there(&self.settings.bin_dir, plugin)) {
                let folder = self.settings.bin_dir.clone();
                return Ok(Err(Wait::NoPlugins { folder, file: chosen.name }));
            }
            let edited = conflist::with_entry(&chosen.text, &self.settings.entry);
            let file = chosen.name.clone();
            if let Some(new) = edited.map_err(|error| Fault::Unreadable { file, error })? {
                if !replace(&self.settings.conf_dir, &chosen, &new)? {
                    continue;
                }
                if self.had_entry.as_ref() == Some(&chosen.name) {
                    self.removals.push(Instant::now());
                }
            }
            self.had_entry = Some(chosen.name.clone());
            return Ok(Ok(chosen.name));
        }
        let folder = self.settings.conf_dir.display().to_string();
        Ok(Err(Wait::Busy(folder)))
    }

    /// Copies the plugin, unless it is in place.
    fn install_plugin(&mut self) -> Result<(), Fault> {
        let Settings { plugin: source, bin_dir, .. } = &self.settings;
        let target = bin_dir.join(PLUGIN);
        let reading = |error| Fault::io("reading", source, &error);
        let stamps = [fs::metadata(source).ok(), fs::symlink_metadata(&target).ok()];
        let stamps = match &stamps {
            [Some(source), Some(target)] => Some([Stamp::of(source), Stamp::of(target)]),
            _ => None,
        };
        if stamps.is_some() && stamps == self.compared {
            return Ok(());
        }
        let wanted = fs::read(source).map_err(reading)?;
        let is_in_place = fs::symlink_metadata(&target)
            .is_ok_and(|there| there.is_file() && there.permissions().mode() & 0o7777 == 0o755)
            && fs::read(&target).is_ok_and(|there| there == wanted);
        if !is_in_place {
            let writing = |error| Fault::io("writing", &target, &error);
            let temporary = write_beside(bin_dir, &wanted, |file| {
                file.set_permissions(fs::Permissions::from_mode(0o755))
            })
            .map_err(writing)?;
            fs::rename(&temporary.0, &target).map_err(writing)?;
            sync(bin_dir);
        }
        let [source, target] = [fs::metadata(source), fs::symlink_metadata(&target)];
        self.compared =
            source.ok().zip(target.ok()).map(|(source, target)| [Stamp::of(&source), Stamp::of(&target)]);
        Ok(())
    }
}

/// What [`remove`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// The configurations that had our entry.
    pub entries: Vec<String>,
    /// Whether the plugin was there.
    pub plugin: bool,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = match &*self.entries {
            [] => "no configuration".to_owned(),
            files => files.join(", "),
        };
        write!(
            f,
            "the entry for {PLUGIN} from {entries}, and {} plugin",
            if self.plugin { "the" } else { "no" }
        )
    }
}

/// Takes our entry out of every configuration in `conf_dir`, and then the plugin out of `bin_dir`, if it is given. Between
/// the two it waits, if there was an entry: a runtime may just have read it.
///
/// # Errors
/// If an entry cannot be taken out, or that is not known; the plugin then stays.
pub fn remove(conf_dir: &Path, bin_dir: Option<&Path>) -> Result<Removed, Fault> {
    let mut removed = Removed::default();
    let names = match candidates(conf_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names.map_err(|error| Fault::io("listing", conf_dir, &error))?,
    };
    for name in names {
        if remove_entry(conf_dir, &name)? {
            removed.entries.push(name);
        }
    }
    // Of a daemon that was killed.
    let _ = fs::remove_file(conf_dir.join(TEMPORARY));
    let Some(bin_dir) = bin_dir else { return Ok(removed) };
    if !removed.entries.is_empty() {
        thread::sleep(READERS_PAUSE);
    }
    let _ = fs::remove_file(bin_dir.join(TEMPORARY));
    let plugin = bin_dir.join(PLUGIN);
    removed.plugin = match fs::remove_file(&plugin) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(Fault::io("removing", &plugin, &error)),
    };
    sync(bin_dir);
    Ok(removed)
}

/// Takes our entry out of one configuration; returns whether it had one.
fn remove_entry(folder: &Path, name: &str) -> Result<bool, Fault> {
    let path = folder.join(name);
    for _ in 0..ATTEMPTS {
        if path.is_symlink() {
            // Never edited by us, but perhaps by hand.
            let has_entry = fs::read(&path).is_ok_and(|bytes| mentions_plugin(&bytes));
            return if has_entry { Err(Fault::Link(name.to_owned())) } else { Ok(false) };
        }
        let bytes = match read(&path) {
            Ok((bytes, _)) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Fault::io("reading", &path, &error)),
        };
        let text = conflist::text(&bytes).map(str::to_owned);
        let edited = text.and_then(|text| Ok((conflist::without_entry(&text)?, text)));
        match edited {
            Ok((None, _)) => return Ok(false),
            Ok((Some(new), text)) => {
                let old = Chosen { name: name.to_owned(), text, plugins: Vec::new() };
                if replace(folder, &old, &new)? {
                    return Ok(true);
                }
            }
            Err(_) if !mentions_plugin(&bytes) => return Ok(false),
            Err(error) => return Err(Fault::Unreadable { file: name.to_owned(), error }),
        }
    }
    Err(Fault::io("writing", &path, &io::Error::other("another program is writing it")))
}

fn mentions_plugin(bytes: &[u8]) -> bool {
    bytes.windows(PLUGIN.len()).any(|window| window == PLUGIN.as_bytes())
}

/// Waits for changes in folders, which may not exist.
struct Watch(Option<Inotify>);

impl Watch {
    fn new() -> Self {
        let made = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        if let Err(error) = &made {
            tracing::warn!(%error, "cannot listen for changes of the CNI configuration; checking it periodically");
        }
        Self(made.ok())
    }

    /// Watches these folders as they are now: one that was replaced is watched again.
    fn look_at(&self, folders: [&Path; 2]) {
        let Some(inotify) = &self.0 else { return };
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR;
        for folder in folders {
            // The periodic check is for a folder that does not exist yet.
            let _ = inotify.add_watch(folder, events);
        }
    }

    /// Returns after an event, or after this time.
    fn wait(&self, at_most: Duration) {
        let Some(inotify) = &self.0 else { return thread::sleep(at_most) };
        let mut polled = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut polled, timeout);
        // They say that something changed; what, the check finds.
        while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}
