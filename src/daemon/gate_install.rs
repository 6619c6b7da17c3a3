//! The thread that installs the gate for new pods, and keeps it installed.

use std::{io, sync::Arc, thread, time::Duration};

use tracing::{error, info, warn};

use crate::{
    gate::install::{self, Installation, Installer, State, Wait},
    metrics::Metrics,
};

/// Whether to install the gate.
#[derive(Debug)]
pub enum GateInstall {
    /// No folders are set: nothing is installed, and nothing removed.
    NotWanted,
    /// What a previous run installed is removed.
    Remove(install::Settings),
    /// It is installed, and kept in place.
    Keep(install::Settings),
}

/// How often to look whether the first sync has succeeded.
const FIRST_SYNC_INTERVAL: Duration = Duration::from_millis(50);

/// Starts the thread, if there is something to do.
///
/// The entry is added only after the first sync. Until then the daemon cannot say that a pod's rules are written; if it
/// never can, since it lacks a permission for example, a node without the entry starts its pods as before.
pub(super) fn start(wanted: GateInstall, metrics: Arc<Metrics>, state: Arc<Installation>) -> io::Result<()> {
    let thread = thread::Builder::new().name("gate-install".to_owned());
    let settings = match wanted {
        GateInstall::NotWanted => return Ok(()),
        GateInstall::Remove(settings) => {
            thread.spawn(move || remove(&settings, &state))?;
            return Ok(());
        }
        GateInstall::Keep(settings) => settings,
    };
    state.set(State::Waiting(Wait::FirstSync));
    thread.spawn(move || {
        // Also one that had to leave out what the kernel refuses.
        let syncs = metrics.syncs.with_label_values(&["success"]);
        while syncs.get() == 0 {
            thread::sleep(FIRST_SYNC_INTERVAL);
        }
        Installer::new(settings).run(|now, put_back| report(&now, put_back, &metrics, &state));
    })?;
    Ok(())
}

fn remove(settings: &install::Settings, state: &Installation) {
    match install::remove(&settings.conf_dir, Some(&settings.bin_dir)) {
        Ok(removed) => info!(%removed, "gate for new pods is off"),
        Err(error) => {
            error!(%error, "cannot remove the gate for new pods");
            state.set(State::Failed(error));
        }
    }
}

fn report(now: &State, put_back: bool, metrics: &Metrics, state: &Installation) {
    metrics.gate_installed.set(i64::from(matches!(now, State::Installed { .. })));
    if put_back {
        metrics.drift_repairs.inc();
    }
    let before = state.set(now.clone());
    match (now, &before) {
        (State::Installed { file, .. }, State::Installed { file: old, .. }) if !put_back && file == old => {}
        (State::Installed { file, removals }, _) if put_back => {
            warn!(file, removals, "another program removed the gate's entry; added it again");
        }
        (State::Installed { file, .. }, _) => info!(file, "gate for new pods is installed"),
        (now, before) if now == before => {}
        (State::Waiting(reason), _) => info!(%reason, "gate for new pods is not installed yet"),
        (State::Failed(error), _) => error!(%error, "cannot install the gate for new pods"),
        (State::NotWanted, _) => {}
    }
}
