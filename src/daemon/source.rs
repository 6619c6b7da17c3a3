//! Where the daemon's objects come from: files or the API server, connected to the loop, the metrics and the status.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    time::{Duration, Instant},
};

use tracing::{debug, error, info, warn};

use crate::{
    agent::{Input, Refused, Status},
    k8s::{
        fault::{Fault, ObjectId},
        files::{FileSource, RESCAN, SavedFiles, SourceError, SourceEvent},
        watch::{Access, ApiSource, Cause, Kind, MemoryLimits, Rejection, SILENCE, Sink, WatchError},
    },
    metrics::Metrics,
    model::Change,
};

/// The parts of the daemon that report what keeps objects from arriving.
const API_SERVER: &str = "API server";
const NODE: &str = "node";

/// The node stays ready while the API server is away for less than this: it restarts now and then.
const PATIENCE: Duration = Duration::from_secs(30);

/// Delivers objects until it is dropped.
#[derive(Debug)]
pub(super) enum Source {
    Files { _files: FileSource },
    Api { _watches: ApiSource },
}

/// What every source is connected to.
#[derive(Clone, Debug)]
pub(super) struct Outputs {
    pub(super) inputs: Sender<Input>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) status: Arc<Status>,
}

impl Outputs {
    /// Sends changes to the loop. From now on they are pending.
    fn send(&self, received: Instant, changes: Vec<Change>) {
        self.status.sent(received);
        // The loop is gone only when the process ends: then nothing needs the changes.
        drop(self.inputs.send(Input::Changes { received, changes }));
    }

    /// Reads the objects of files, and keeps watching the files.
    pub(super) fn files(self, paths: &[PathBuf], saved: SavedFiles) -> Result<Source, SourceError> {
        let files = FileSource::open(paths, RESCAN, Some(saved), move |event| match event {
            SourceEvent::Changes(changes) => self.send(Instant::now(), changes),
            SourceEvent::Synced => drop(self.inputs.send(Input::Synced)),
            SourceEvent::Faults(faults) => {
                let errors = faults.iter().filter(|fault| fault.is_error());
                let refused = |fault: &Fault| refused(fault.object.as_ref(), fault.to_string());
                self.status.set_refused("files", errors.map(refused).collect(), &self.metrics);
                for fault in &faults {
                    if fault.is_error() {
                        error!(%fault, "cannot read an object; its last good version stays enforced");
                    } else {
                        warn!(%fault, "an object may not mean what it says");
                    }
                }
            }
        })?;
        Ok(Source::Files { _files: files })
    }

    /// Watches the API server. Needs the context of a tokio runtime.
    pub(super) fn api(self, access: Access, node: Arc<str>, limits: MemoryLimits) -> Source {
        for kind in Kind::ALL {
            self.metrics.received(kind.name());
        }
        let health = WatchHealth { outputs: self, state: Mutex::default() };
        Source::Api { _watches: ApiSource::start(access, node, limits, Arc::new(health)) }
    }
}

/// Connects the watches to the rest.
struct WatchHealth {
    outputs: Outputs,
    state: Mutex<WatchState>,
}

#[derive(Default)]
struct WatchState {
    synced: bool,
    /// The watches that are down, since when, and why.
    errors: BTreeMap<Kind, (Instant, WatchError)>,
    /// The watches that run again, and since when they had been down. A server that accepts a watch and breaks it off
    /// at once is still down: only what is received shows that it is over.
    unproven: BTreeMap<Kind, Instant>,
    /// The rejections that were reported.
    rejected: BTreeMap<Kind, Vec<Rejection>>,
}

impl Sink for WatchHealth {
    fn changes(&self, received: Instant, changes: Vec<Change>) {
        if changes.iter().any(|change| matches!(change, Change::SetNode(_))) {
            self.outputs.status.set_condition(NODE, None);
        }
        self.outputs.send(received, changes);
    }

    fn rejected(&self, kind: Kind, rejections: Vec<Rejection>) {
        let known = self.state().rejected.insert(kind, rejections.clone()).unwrap_or_default();
        for rejection in rejections.iter().filter(|rejection| !known.contains(rejection)) {
            error!(%rejection, "cannot read an object; what can be read, or its last good version, stays enforced");
        }
        let refused =
            rejections.iter().map(|rejection| refused(rejection.object.as_ref(), rejection.to_string()));
        self.outputs.status.set_refused(kind.name(), refused.collect(), &self.outputs.metrics);
    }

    fn synced(&self) {
        info!("initial lists complete");
        self.state().synced = true;
        drop(self.outputs.inputs.send(Input::Synced));
    }

    fn alive(&self, kind: Kind) {
        self.outputs.metrics.received(kind.name());
        self.state().unproven.remove(&kind);
    }

    fn ended(&self, kind: Kind, error: WatchError) {
        let restarts = &self.outputs.metrics.watch_restarts;
        restarts.with_label_values(&[kind.name(), error.cause.name()]).inc();
        match error.cause {
            Cause::Quiet => self.quiet(kind, &error),
            cause if cause.is_routine() => {}
            _ => self.error(kind, error),
        }
    }

    fn recovered(&self, kind: Kind) {
        let mut state = self.state();
        if let Some((since, _)) = state.errors.remove(&kind) {
            info!(%kind, after = ?since.elapsed(), "watch recovered");
            state.unproven.insert(kind, since);
        }
        self.report(&state);
    }

    fn no_such_node(&self, node: &str) {
        let text = if self.state().synced {
            format!(
                "the API server has no node {node:?} any more; its pods are policed as long as it has these"
            )
        } else {
            format!(
                "the API server has no node {node:?}: is --node-name right? Waiting for it; what the kernel holds stays"
            )
        };
        warn!(%node, reason = text, "no Node object for this node");
        self.outputs.status.set_condition(NODE, Some(text));
    }
}

impl WatchHealth {
    /// A running watch was silent, which need not mean anything: the next list will show. If it does mean something,
    /// that began when the watch last received something.
    fn quiet(&self, kind: Kind, error: &WatchError) {
        info!(%kind, reason = %error, "watch was quiet; relisting");
        self.state().unproven.entry(kind).or_insert_with(|| ago(SILENCE));
    }

    fn error(&self, kind: Kind, error: WatchError) {
        let mut state = self.state();
        let before = state.unproven.remove(&kind).or(state.errors.get(&kind).map(|(since, _)| *since));
        let is_known = state.errors.values().any(|(_, known)| known.text == error.text);
        if is_known {
            debug!(%kind, error = %error, "watch failed; known objects stay enforced; retrying");
        } else {
            warn!(%kind, error = %error, "watch failed; known objects stay enforced; retrying");
        }
        // Silence has lasted this long when it is noticed.
        let silence = if error.cause == Cause::Silent { SILENCE } else { Duration::ZERO };
        let since = before.unwrap_or_else(|| ago(silence));
        state.errors.insert(kind, (since, error));
        self.report(&state);
    }

    /// Reports what keeps the watches from running, if it does so for long, or before they ever ran.
    fn report(&self, state: &WatchState) {
        let lasting = |(since, _): &&(Instant, WatchError)| !state.synced || since.elapsed() >= PATIENCE;
        let lasting: Vec<&(Instant, WatchError)> = state.errors.values().filter(lasting).collect();
        let since = lasting.iter().map(|(since, _)| since.elapsed().as_secs()).max();
        let text = since.map(|seconds| {
            let texts: BTreeSet<&str> = lasting.iter().map(|(_, error)| &*error.text).collect();
            let texts = texts.into_iter().collect::<Vec<_>>().join("; ");
            if state.synced {
                format!("no changes received for {seconds} s or more; known objects stay enforced: {texts}")
            } else {
                texts
            }
        });
        self.outputs.status.set_condition(API_SERVER, text);
    }

    fn state(&self) -> MutexGuard<'_, WatchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The moment this long before now.
fn ago(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_sub(time).unwrap_or(now)
}

/// A fault of an object, as the status reports it.
fn refused(object: Option<&ObjectId>, reason: String) -> Refused {
    let object = object.map(|id| {
        [id.kind.to_owned(), id.namespace.as_deref().unwrap_or_default().to_owned(), (*id.name).to_owned()]
    });
    Refused { object, reason }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::k8s::watch::Cause;

    fn health() -> WatchHealth {
        let outputs = Outputs {
            inputs: mpsc::channel().0,
            metrics: Arc::new(Metrics::new().unwrap()),
            status: Arc::new(Status::starting("the objects")),
        };
        WatchHealth { outputs, state: Mutex::default() }
    }

    #[test]
    fn quiet_watch_is_a_problem_only_if_the_relist_stays_silent() {
        let health = health();
        let ended = |cause| {
            let error = WatchError { cause, text: "no events".to_owned() };
            health.ended(Kind::Pod, error);
        };
        let reasons = || health.outputs.status.view().reasons.join(" ");
        health.synced();
        // Whether or not the resumed watch received something before.
        for is_alive in [true, false, true] {
            ended(Cause::Quiet);
            assert!(health.state().errors.is_empty() && !reasons().contains("no events"));
            if is_alive {
                health.alive(Kind::Pod);
            }
            health.recovered(Kind::Pod);
        }
        ended(Cause::Quiet);
        ended(Cause::Silent);
        assert!(health.state().errors[&Kind::Pod].0.elapsed() >= SILENCE);
        assert!(reasons().contains("no events"));
    }

    #[test]
    fn watch_that_ends_before_any_event_has_not_recovered() {
        let health = health();
        let fails = || {
            let error = WatchError { cause: Cause::Unreachable, text: "it was reset".to_owned() };
            health.ended(Kind::Pod, error);
            health.state().errors[&Kind::Pod].0
        };
        let since = fails();
        health.recovered(Kind::Pod);
        assert!(health.state().errors.is_empty());
        assert_eq!(fails(), since, "the same outage");
        health.recovered(Kind::Pod);
        health.alive(Kind::Pod);
        assert!(fails() > since, "another outage");
    }
}
