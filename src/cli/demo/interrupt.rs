//! Ctrl-C and similar signals: checked between steps, so that everything is cleaned up on the way out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use tokio::signal::unix::{SignalKind, signal};

use super::error::DemoError;

/// Remembers whether a signal was received.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupts(Arc<AtomicI32>);

impl Interrupts {
    /// From now on SIGINT, SIGTERM and SIGHUP no longer end the process at once.
    pub(super) fn listen() -> Result<Self, DemoError> {
        let failed = || DemoError::io("listen for signals");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed())?;
        let received = Self::default();
        let (mut interrupt, mut terminate, mut hang_up) = {
            let _inside = runtime.enter();
            let open = |kind| signal(kind).map_err(failed());
            (open(SignalKind::interrupt())?, open(SignalKind::terminate())?, open(SignalKind::hangup())?)
        };
        let receive = received.clone();
        let listen = move || {
            runtime.block_on(async {
                loop {
                    let kind = tokio::select! {
                        _ = interrupt.recv() => SignalKind::interrupt(),
                        _ = terminate.recv() => SignalKind::terminate(),
                        _ = hang_up.recv() => SignalKind::hangup(),
                    };
                    receive.0.store(kind.as_raw_value(), Ordering::Relaxed);
                }
            });
        };
        thread::Builder::new().name("signals".to_owned()).spawn(listen).map_err(failed())?;
        Ok(received)
    }

    /// Fails once a signal was received.
    pub(super) fn check(&self) -> Result<(), DemoError> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(DemoError::Interrupted(signal)),
        }
    }
}
