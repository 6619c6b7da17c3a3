//! The legacy variant announces nothing. But each of its programs that may write takes the xtables lock: it opens the
//! lock file and closes it after writing. That can be watched.
//!
//! Our own programs do so too, once each, so the closings are compared with how many of ours ran. A program that uses
//! another lock file is not noticed, nor is one that ends at the same instant as one of ours: the periodic check covers
//! these.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

use super::Listen;
use crate::dataplane::command::Commands;

/// The lock of all programs of the legacy variant.
const LOCK: &str = "/run/xtables.lock";

pub(super) struct Listener {
    inotify: Inotify,
    commands: Arc<Commands>,
    /// How many of our runs are accounted for.
    known_runs: u64,
}

impl Listener {
    pub(super) fn open(commands: Arc<Commands>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // Two equal consecutive events are merged; with an open event between them, two close events are not.
        let events = AddWatchFlags::IN_CLOSE | AddWatchFlags::IN_OPEN | AddWatchFlags::IN_DELETE_SELF;
        let known_runs = *commands.lock_runs();
        inotify.add_watch(LOCK, events)?;
        Ok(Self { inotify, commands, known_runs })
    }

    /// How often the file was closed since the last call.
    fn closings(&self) -> io::Result<u64> {
        let mut closings = 0;
        loop {
            match self.inotify.read_events() {
                Ok(events) => {
                    for event in events {
                        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                            return Err(io::Error::other(format!("{LOCK} was removed")));
                        }
                        closings += u64::from(event.mask.intersects(AddWatchFlags::IN_CLOSE));
                    }
                }
                Err(Errno::EAGAIN) => return Ok(closings),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl Listen for Listener {
    fn drain(&mut self) -> io::Result<bool> {
        let before = self.closings()?;
        // While this is held none of ours runs, so that all of them are both counted and closed.
        let runs = self.commands.lock_runs();
        let closings = before + self.closings()?;
        let ours = runs.wrapping_sub(self.known_runs);
        self.known_runs = *runs;
        Ok(closings > ours)
    }
}
