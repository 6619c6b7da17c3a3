//! Threads with namespaces of their own.

use std::thread;

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Runs `test` on a thread with its own `/run`, and so with its own xtables lock, and with its own namespaces of these
/// other kinds. Processes and network namespaces that it creates share them.
pub(crate) fn isolated(kinds: CloneFlags, test: impl FnOnce() + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNS | kinds).unwrap();
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        mount(nothing, "/run", Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
        test();
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}
