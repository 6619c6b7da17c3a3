//! Files as the source of objects: what `towpath run -f` watches.
//!
//! A separate thread receives inotify events and reports changes. It acts only on complete writes: a file is read when
//! its writer closes it or when it is moved into place, never while it is being written, so that a file that is
//! truncated and rewritten never loses its objects in between. It also rescans periodically: network file systems send
//! no events, and a full queue drops them. What it reads is `saved` for the next process.

mod saved;
pub mod store;
mod worker;

use std::{
    fs, io,
    path::PathBuf,
    sync::mpsc::{Sender, channel},
    thread,
    time::Duration,
};

use notify::{
    Event, EventKind,
    event::{AccessKind, AccessMode},
};

pub use saved::SavedFiles;
pub use worker::SourceEvent;

use worker::{Message, Root, Worker};

/// How often everything is rescanned, whatever the events say.
pub const RESCAN: Duration = Duration::from_secs(30);

/// Why files cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A path that does not exist, or cannot be read.
    #[error("cannot watch {}: {source}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Standard input: it ends, and nothing can change in it.
    #[error("standard input cannot be watched: name a file or a folder")]
    StandardInput,
    /// inotify is not available.
    #[error("cannot listen for changes of files: {0}; look at fs.inotify.max_user_instances")]
    Listen(#[from] notify::Error),
    /// The thread could not be started.
    #[error("cannot start the thread that watches files: {0}")]
    Thread(io::Error),
}

/// Watched files. Stops when dropped.
#[derive(Debug)]
pub struct FileSource {
    messages: Sender<Message>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FileSource {
    /// Watches `paths`, files and folders, and rescans all of them every `rescan` ([`RESCAN`] is a good choice).
    ///
    /// `deliver` is called on a separate thread: with all objects first, then [`SourceEvent::Synced`], then with every
    /// change. Workloads are skipped: in a cluster their pods are objects of their own.
    ///
    /// With `saved`, a file that cannot be read in full at the start keeps the objects that a former process read.
    ///
    /// # Errors
    /// If a path does not exist, or inotify cannot be used.
    pub fn open(
        paths: &[PathBuf],
        rescan: Duration,
        saved: Option<SavedFiles>,
        deliver: impl FnMut(SourceEvent) + Send + 'static,
    ) -> Result<Self, SourceError> {
        let mut roots = Vec::new();
        for path in paths {
            if path.as_os_str() == "-" {
                return Err(SourceError::StandardInput);
            }
            let error = |source| SourceError::Path { path: path.clone(), source };
            let absolute = std::path::absolute(path).map_err(error)?;
            let is_folder = fs::metadata(&absolute).map_err(error)?.is_dir();
            roots.push(if is_folder { Root::Folder(absolute) } else { Root::File(absolute) });
        }
        let (messages, inbox) = channel();
        let outbox = messages.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // Ignore the events of our own reads.
            let of_a_reader = |event: &Event| {
                let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
                matches!(event.kind, EventKind::Access(_)) && event.kind != written
            };
            if event.as_ref().is_ok_and(of_a_reader) {
                return;
            }
            // The thread is gone only when the source is being dropped.
            let _ = outbox.send(Message::Notified(event));
        })?;
        let worker = Worker::new(roots, rescan, watcher, saved, deliver);
        let thread = thread::Builder::new()
            .name("towpath-files".to_owned())
            .spawn(move || worker.run(&inbox))
            .map_err(SourceError::Thread)?;
        Ok(Self { messages, thread: Some(thread) })
    }
}

impl Drop for FileSource {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        os::unix::fs::symlink,
        path::Path,
        sync::mpsc::{Receiver, RecvTimeoutError},
    };

    use super::*;
    use crate::{
        k8s::{
            fault::Fault,
            files::worker::{GRACE, QUIET, SETTLED},
        },
        model::{Change, Cluster, ObjectKey},
    };

    /// Longer than any event takes, even on a busy machine.
    const LONG: Duration = Duration::from_secs(10);

    /// A watched folder, and the cluster of its receiver.
    struct Watched {
        folder: tempfile::TempDir,
        _source: FileSource,
        events: Receiver<SourceEvent>,
        cluster: Cluster,
        faults: Vec<Fault>,
    }

    impl Watched {
        fn new(files: &[(&str, &str)]) -> Self {
            Self::rescanning(files, LONG * 60, |folder| vec![folder.to_owned()])
        }

        fn rescanning(files: &[(&str, &str)], rescan: Duration, paths: fn(&Path) -> Vec<PathBuf>) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in files {
                fs::write(folder.path().join(name), text).unwrap();
            }
            let (outbox, events) = channel();
            let deliver = move |event| drop(outbox.send(event));
            let source = FileSource::open(&paths(folder.path()), rescan, None, deliver).unwrap();
            let mut watched =
                Self { folder, _source: source, events, cluster: Cluster::new(), faults: Vec::new() };
            while watched.receive(LONG) != Some(SourceEvent::Synced) {}
            watched
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }

        fn receive(&mut self, wait: Duration) -> Option<SourceEvent> {
            let event = match self.events.recv_timeout(wait) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("the source has ended"),
            };
            match &event {
                SourceEvent::Changes(changes) => {
                    for change in changes {
                        assert!(self.cluster.apply(change.clone()).is_some(), "{change:?} changes nothing");
                    }
                }
                SourceEvent::Faults(faults) => self.faults.clone_from(faults),
                SourceEvent::Synced => {}
            }
            Some(event)
        }

        /// Receives events until the pods are these, each as `name=app`.
        fn until(&mut self, wanted: &[&str]) {
            while self.pods() != wanted {
                assert!(
                    self.receive(LONG).is_some(),
                    "pods {:?}, not {wanted:?}; {:?}",
                    self.pods(),
                    self.faults
                );
            }
        }

        /// Waits long enough for an event, and checks that none arrives.
        fn receives_nothing(&mut self) {
            assert_eq!(self.receive(GRACE + SETTLED * 2), None);
        }

        fn pods(&self) -> Vec<String> {
            let name = |pod: &crate::model::Pod| {
                format!("{}={}", pod.key.name, pod.labels.get("app").unwrap_or_default())
            };
            self.cluster.pods().map(|pod| name(pod)).collect()
        }
    }

    fn pod(name: &str, app: &str) -> String {
        format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\n")
    }

    #[test]
    fn existing_objects_are_reported_before_changes() {
        let mut watched = Watched::new(&[("a.yaml", &pod("one", "web")), ("b.txt", "not ours")]);
        assert_eq!(watched.pods(), ["one=web"]);
        watched.write("a.yaml", &pod("one", "db"));
        watched.until(&["one=db"]);
        watched.write("c.yml", &pod("two", "web"));
        watched.until(&["one=db", "two=web"]);
        fs::remove_file(watched.path("a.yaml")).unwrap();
        watched.until(&["two=web"]);
    }

    #[test]
    fn files_that_are_replaced_without_end_are_in_the_first_list() {
        const FILES: usize = 3;
        let name = |n: usize| (format!("{n:02}.yaml"), pod(&format!("pod-{n:02}"), "web"));
        let files: Vec<(String, String)> = (0..FILES).map(name).collect();
        let files: Vec<(&str, &str)> =
            files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let replaced = |folder: &Path| {
            let folder = folder.to_owned();
            let root = folder.clone();
            // It ends with the folder.
            thread::spawn(move || {
                for n in (0..FILES).cycle() {
                    let staged = folder.join(".staged");
                    // Long, so that reading it takes longer.
                    let text = pod(&format!("pod-{n:02}"), "web") + &"# more\n".repeat(20_000);
                    let replaced = fs::write(&staged, text)
                        .and_then(|()| fs::rename(&staged, folder.join(format!("{n:02}.yaml"))));
                    if replaced.is_err() {
                        return;
                    }
                }
            });
            vec![root]
        };
        let watched = Watched::rescanning(&files, LONG * 60, replaced);
        assert_eq!(watched.pods().len(), FILES, "{:?}", watched.pods());
    }

    #[test]
    fn missing_path_and_standard_input_are_refused() {
        let open = |path: &str| FileSource::open(&[path.into()], RESCAN, None, |_| {}).map(drop);
        assert!(open("/nowhere/at/all").unwrap_err().to_string().contains("/nowhere/at/all"));
        assert!(matches!(open("-"), Err(SourceError::StandardInput)));
    }

    #[test]
    fn file_is_not_read_while_it_is_written() {
        let mut watched = Watched::new(&[("a.yaml", &pod("one", "web"))]);
        let mut file = fs::File::create(watched.path("a.yaml")).unwrap();
        watched.receives_nothing();
        file.write_all(pod("one", "db").as_bytes()).unwrap();
        file.sync_all().unwrap();
        // Another file makes the source scan the folder, and that must not find this half-written one.
        watched.write("b.yaml", &pod("two", "web"));
        watched.until(&["one=web", "two=web"]);
        file.write_all(pod("three", "db").as_bytes()).unwrap();
        watched.receives_nothing();
        drop(file);
        watched.until(&["one=db", "three=db", "two=web"]);
    }

    #[test]
    fn repeatedly_written_file_never_loses_its_objects() {
        let mut watched = Watched::new(&[("a.yaml", &pod("one", "web"))]);
        let path = watched.path("a.yaml");
        let writer = thread::spawn(move || {
            for n in 0..300 {
                fs::write(&path, pod("one", &format!("v{n}"))).unwrap();
                if n % 7 == 0 {
                    thread::sleep(Duration::from_millis(5));
                }
            }
        });
        while watched.pods() != ["one=v299"] {
            match watched.receive(LONG) {
                Some(SourceEvent::Changes(changes)) => {
                    assert!(changes.iter().all(|change| matches!(change, Change::SetPod(_))), "{changes:?}");
                }
                // On a busy machine the writer may pause for long between emptying the file and writing to it.
                Some(SourceEvent::Faults(_)) => {}
                other => panic!("{other:?}, {:?}", watched.pods()),
            }
        }
        writer.join().unwrap();
    }

    #[test]
    fn file_replaced_by_a_rename_is_read() {
        let mut watched = Watched::new(&[("a.yaml", &pod("one", "web"))]);
        watched.write("a.yaml.tmp", &pod("one", "db"));
        fs::rename(watched.path("a.yaml.tmp"), watched.path("a.yaml")).unwrap();
        watched.until(&["one=db"]);
    }

    #[test]
    fn editor_that_renames_the_file_first_removes_nothing() {
        let mut watched = Watched::new(&[("a.yaml", &pod("one", "web"))]);
        fs::rename(watched.path("a.yaml"), watched.path("a.yaml~")).unwrap();
        thread::sleep(QUIET * 4);
        watched.write("a.yaml", &pod("one", "db"));
        let Some(SourceEvent::Changes(changes)) = watched.receive(LONG) else {
            panic!("{:?}", watched.pods())
        };
        assert!(matches!(&changes[..], [Change::SetPod(_)]), "{changes:?}");
        watched.receives_nothing();
    }

    #[test]
    fn renamed_file_changes_nothing() {
        let mut watched = Watched::new(&[("a.yaml", &pod("one", "web"))]);
        fs::rename(watched.path("a.yaml"), watched.path("b.yaml")).unwrap();
        watched.receives_nothing();
        watched.write("b.yaml", "");
        watched.until(&[]);
    }

    #[test]
    fn new_folder_is_watched_and_a_removed_one_removes_its_objects() {
        let mut watched = Watched::new(&[]);
        fs::create_dir_all(watched.path("x/y")).unwrap();
        watched.write("x/y/a.yaml", &pod("one", "web"));
        watched.until(&["one=web"]);
        watched.write("x/y/a.yaml", &pod("one", "db"));
        watched.until(&["one=db"]);
        fs::rename(watched.path("x"), watched.path("z")).unwrap();
        watched.receives_nothing();
        watched.write("z/y/a.yaml", &pod("one", "cache"));
        watched.until(&["one=cache"]);
        fs::remove_dir_all(watched.path("z")).unwrap();
        watched.until(&[]);
    }

    #[test]
    fn mounted_config_map_is_replaced_atomically() {
        let folder = tempfile::tempdir().unwrap();
        let generation = |name: &str, app: &str| {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("a.yaml"), pod("one", app)).unwrap();
            symlink(name, folder.path().join("..data_tmp")).unwrap();
            fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
        };
        generation("..1", "web");
        symlink("..data/a.yaml", folder.path().join("a.yaml")).unwrap();
        let (outbox, events) = channel();
        let deliver = move |event| drop(outbox.send(event));
        let source = FileSource::open(&[folder.path().to_owned()], LONG * 60, None, deliver).unwrap();
        let mut watched =
            Watched { folder, _source: source, events, cluster: Cluster::new(), faults: Vec::new() };
        watched.until(&["one=web"]);
        let folder = &watched.folder;
        fs::create_dir(folder.path().join("..2")).unwrap();
        fs::write(folder.path().join("..2/a.yaml"), pod("one", "db")).unwrap();
        symlink("..2", folder.path().join("..data_tmp")).unwrap();
        fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
        fs::remove_dir_all(folder.path().join("..1")).unwrap();
        watched.until(&["one=db"]);
    }

    #[test]
    fn single_file_is_watched_without_other_files() {
        let one = |folder: &Path| vec![folder.join("a.conf")];
        let mut watched = Watched::rescanning(&[("a.conf", &pod("one", "web"))], LONG * 60, one);
        assert_eq!(watched.pods(), ["one=web"]);
        watched.write("b.yaml", &pod("two", "web"));
        watched.receives_nothing();
        watched.write("a.conf", &pod("one", "db"));
        watched.until(&["one=db"]);
    }

    #[test]
    fn vanished_folder_keeps_its_objects_until_it_returns() {
        let within = |folder: &Path| {
            fs::create_dir(folder.join("mount")).unwrap();
            fs::write(folder.join("mount/a.yaml"), pod("one", "web")).unwrap();
            vec![folder.join("mount")]
        };
        let mut watched = Watched::rescanning(&[], LONG * 60, within);
        fs::rename(watched.path("mount"), watched.path("elsewhere")).unwrap();
        while watched.faults.is_empty() {
            assert!(watched.receive(LONG).is_some());
        }
        assert!(watched.faults[0].text.contains("cannot read this folder"), "{:?}", watched.faults);
        assert_eq!(watched.pods(), ["one=web"]);
        watched.write("elsewhere/a.yaml", &pod("one", "db"));
        fs::rename(watched.path("elsewhere"), watched.path("mount")).unwrap();
        watched.until(&["one=db"]);
        while !watched.faults.is_empty() {
            assert!(watched.receive(LONG).is_some());
        }
    }

    #[test]
    fn change_without_a_notification_is_found_by_polling() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("target");
        fs::write(&target, pod("one", "web")).unwrap();
        let mut watched =
            Watched::rescanning(&[], Duration::from_millis(300), |folder| vec![folder.to_owned()]);
        symlink(&target, watched.path("a.yaml")).unwrap();
        watched.until(&["one=web"]);
        // The folder of the link's target is not watched.
        fs::write(&target, pod("one", "db")).unwrap();
        watched.until(&["one=db"]);
    }

    #[test]
    fn refused_document_keeps_its_object_and_is_reported_until_fixed() {
        let mut watched = Watched::new(&[("a.yaml", &pod("one", "web"))]);
        watched.write("a.yaml", &pod("one", "yes"));
        while watched.faults.iter().all(|fault| !fault.is_error()) {
            assert!(watched.receive(LONG).is_some());
        }
        assert_eq!(watched.pods(), ["one=web"]);
        watched.write("a.yaml", &pod("one", "db"));
        watched.until(&["one=db"]);
        while !watched.faults.is_empty() {
            assert!(watched.receive(LONG).is_some());
        }
        assert!(watched.cluster.pod(&ObjectKey::new("default", "one")).is_some());
    }
}
