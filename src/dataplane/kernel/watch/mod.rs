//! Reports when another program may have changed our rules.

mod legacy;
mod nft;
mod sets;

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::AsFd,
    sync::Arc,
    thread::{self, JoinHandle},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

#[cfg(feature = "lab")]
pub(super) use nft::concerns_us;
pub(super) use nft::{Journal, generation};

use crate::dataplane::command::Commands;

/// Listens on its own thread, until dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

/// A source of change notifications.
trait Listen: AsFd + Send + 'static {
    /// Reads everything that is available. Returns whether it shows a change by another program.
    fn drain(&mut self) -> io::Result<bool>;
}

impl Watch {
    /// Listens to the notifications of nftables.
    pub(super) fn nft(journal: Arc<Journal>, notify: impl Fn() + Send + 'static) -> io::Result<Self> {
        Self::start("rules-watch", nft::Listener::open(journal)?, notify)
    }

    /// Watches for sets of ours that become empty.
    pub(super) fn sets(notify: impl Fn() + Send + 'static) -> io::Result<Self> {
        Self::start("sets-watch", sets::Listener::open()?, notify)
    }

    /// Watches other programs take the xtables lock.
    pub(super) fn legacy(commands: Arc<Commands>, notify: impl Fn() + Send + 'static) -> io::Result<Self> {
        Self::start("rules-watch", legacy::Listener::open(commands)?, notify)
    }

    fn start(name: &str, mut listener: impl Listen, notify: impl Fn() + Send + 'static) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let run = move || {
            if let Err(error) = listen(&mut listener, &stopped, notify) {
                tracing::error!(%error, "no more change notifications from the kernel; relying on the periodic check");
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has already reported it.
            let _ = thread.join();
        }
    }
}

fn listen(listener: &mut impl Listen, stopped: &PipeReader, notify: impl Fn()) -> io::Result<()> {
    loop {
        let mut files = [
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut files, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        // The writing end closes when the watch is dropped.
        if files.first().and_then(PollFd::any).unwrap_or(false) {
            return Ok(());
        }
        if listener.drain()? {
            notify();
        }
    }
}
