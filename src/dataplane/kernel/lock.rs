//! One writer per network namespace.
//!
//! Two daemons that write the same chains would undo each other's work. So a daemon holds an flock for as long as it
//! runs; during a rolling update the new one waits and takes over when the old one ends, for whatever reason.
//!
//! A command outlives a daemon that was killed: one that waits for the xtables lock may write outdated rules seconds
//! later. So the commands inherit the open file, and with it the lock, which lasts until the last of them ends.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::dataplane::DataplaneError;

/// The folder of the lock files, one for each network namespace.
pub const FOLDER: &str = "/run/towpath";

/// The right to write in this network namespace; released when dropped.
///
/// The file stays: if it were removed, a waiting process would hold the lock of a file that no other process can find.
#[derive(Debug)]
pub struct WriterLock {
    _file: File,
}

impl WriterLock {
    /// Takes the lock of this thread's network namespace, and waits for it without a timeout. If it has to wait, it
    /// first calls `waiting` with the process id of the holder, if that is known; the holder's container may have its
    /// own process ids.
    ///
    /// # Errors
    /// If the file cannot be created or locked.
    pub fn acquire(folder: &Path, waiting: impl FnOnce(Option<u32>)) -> Result<Self, DataplaneError> {
        let path = path(folder)?;
        let failed = |source| DataplaneError::System { doing: format!("locking {}", path.display()), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = holder(&mut file);
                tracing::warn!(
                    file = %path.display(), holder,
                    "another towpath holds the writer lock; waiting for it to exit"
                );
                waiting(holder);
                file.lock().map_err(failed)?;
                tracing::info!("writer lock acquired; taking over");
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        sign(&mut file).map_err(failed)?;
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|error| failed(error.into()))?;
        Ok(Self { _file: file })
    }
}

fn path(folder: &Path) -> Result<PathBuf, DataplaneError> {
    let namespace = "/proc/thread-self/ns/net";
    let inode = fs::metadata(namespace)
        .map_err(|source| DataplaneError::System { doing: format!("reading {namespace}"), source })?
        .ino();
    Ok(folder.join(format!("netns-{inode}.lock")))
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn sign(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn second_writer_waits_and_learns_the_process_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = WriterLock::acquire(folder.path(), |_| panic!("the lock is free")).unwrap();
        let (sender, waits) = mpsc::channel();
        let path = folder.path().to_owned();
        let second = thread::spawn(move || {
            WriterLock::acquire(&path, move |holder| sender.send(holder).unwrap()).unwrap();
        });
        assert_eq!(waits.recv().unwrap(), Some(std::process::id()));
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap();
    }

    #[test]
    fn running_command_holds_the_lock_of_its_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let first = WriterLock::acquire(folder.path(), |_| panic!("the lock is free")).unwrap();
        let mut command = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        drop(first);
        let (sender, waits) = mpsc::channel();
        let path = folder.path().to_owned();
        let second = thread::spawn(move || {
            WriterLock::acquire(&path, move |holder| sender.send(holder).unwrap()).unwrap();
        });
        waits.recv().unwrap();
        assert!(!second.is_finished());
        command.kill().unwrap();
        command.wait().unwrap();
        second.join().unwrap();
    }
}
