//! What is computed for requests: one thing at a time, whoever asks, and kept for those who ask for the same.
//!
//! A client that goes away does not end a computation. So it must not be able to start another one beside it: the turn is
//! given back by the computation, not by the client, and what it computed is there for the next one.

use std::{
    io::{self, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Bytes,
    http::header,
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::Failure;

/// The largest answer, in bytes.
pub(super) const MOST_BYTES: usize = 16 << 20;

/// What nobody has asked for during this time is not kept.
const IDLE: Duration = Duration::from_mins(1);

/// What is computed once for each version of the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// The graph.
    Graph,
    /// The list of policies.
    Policies,
}

/// The computations of a page.
#[derive(Clone, Debug, Default)]
pub(super) struct Work(Arc<Mutex<Known>>);

/// An answer, and the version of the objects that it is about.
type Answer = Option<(u64, Result<Bytes, Failure>)>;

#[derive(Debug, Default)]
struct Known {
    graph: Answer,
    policies: Answer,
    /// When one of them was last asked for; `None` if nothing is kept.
    seen: Option<Instant>,
}

impl Known {
    fn answer(&mut self, kept: Kept) -> &mut Answer {
        match kept {
            Kept::Graph => &mut self.graph,
            Kept::Policies => &mut self.policies,
        }
    }
}

/// The right to compute, until it is dropped.
pub(super) struct Turn {
    known: OwnedMutexGuard<Known>,
    work: Work,
}

impl Work {
    /// Waits until nothing else is computed. A client that goes away meanwhile waits no longer.
    pub(super) async fn turn(&self) -> Turn {
        Turn { known: self.0.clone().lock_owned().await, work: self.clone() }
    }

    /// Drops what is kept once nobody asks for it any more.
    fn forget_later(self) {
        tokio::spawn(async move {
            let mut wait = IDLE;
            loop {
                tokio::time::sleep(wait).await;
                let mut known = self.0.lock().await;
                wait = IDLE.saturating_sub(known.seen.map_or(IDLE, |seen| seen.elapsed()));
                if wait.is_zero() {
                    *known = Known::default();
                    return;
                }
            }
        });
    }
}

impl Turn {
    /// Computes an answer off the threads that answer requests.
    pub(super) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        off(move || {
            let done = work();
            drop(self);
            done
        })
        .await
    }

    /// The answer about this version of the objects, computed unless it is known.
    pub(super) async fn kept(
        mut self,
        kept: Kept,
        version: u64,
        work: impl FnOnce() -> Result<Bytes, Failure> + Send + 'static,
    ) -> Result<Bytes, Failure> {
        if self.known.seen.replace(Instant::now()).is_none() {
            self.work.clone().forget_later();
        }
        let answer = self.known.answer(kept);
        if let Some((_, known)) = answer.as_ref().filter(|(of, _)| *of == version) {
            return known.clone();
        }
        // Not kept beside the new one.
        *answer = None;
        off(move || {
            let done = work();
            *self.known.answer(kept) = Some((version, done.clone()));
            done
        })
        .await
    }
}

async fn off<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Failure::new(500, "the computation failed: please report it")))
}

/// A value as JSON, unless that is too large.
pub(super) fn json(value: &impl Serialize) -> Result<Bytes, Failure> {
    let mut text = Bounded(Vec::new());
    match serde_json::to_writer(&mut text, value) {
        Ok(()) => Ok(text.0.into()),
        Err(error) if error.is_io() => Err(Failure::new(
            422,
            "the answer is too large for this page: use towpath matrix, towpath diff and towpath explain",
        )),
        Err(error) => Err(Failure::new(500, error.to_string())),
    }
}

/// A response with this JSON.
pub(super) fn response(json: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

/// A text that does not grow beyond the largest answer.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MOST_BYTES {
            return Err(io::Error::other("too large"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    /// What the computations of a test have done.
    #[derive(Default)]
    struct Seen {
        started: AtomicUsize,
        running: AtomicUsize,
        at_once: AtomicUsize,
        may_end: AtomicBool,
    }

    impl Seen {
        fn compute(&self) -> Bytes {
            self.started.fetch_add(1, Ordering::SeqCst);
            self.at_once.fetch_max(self.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            while !self.may_end.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            self.running.fetch_sub(1, Ordering::SeqCst);
            Bytes::from_static(b"{}")
        }
    }

    #[tokio::test]
    async fn clients_that_go_away_start_one_computation_and_the_next_one_gets_its_result() {
        let (work, seen) = (Work::default(), Arc::new(Seen::default()));
        let ask = async |kept: bool| {
            let seen = seen.clone();
            let turn = work.turn().await;
            let compute = move || Ok(seen.compute());
            if kept { turn.kept(Kept::Graph, 1, compute).await } else { turn.run(compute).await }
        };
        for (kept, expected) in [(true, 1), (false, 2)] {
            seen.may_end.store(false, Ordering::SeqCst);
            for _ in 0..6 {
                assert!(tokio::time::timeout(Duration::from_millis(20), ask(kept)).await.is_err());
            }
            seen.may_end.store(true, Ordering::SeqCst);
            assert_eq!(ask(true).await.unwrap(), "{}");
            assert_eq!(seen.started.load(Ordering::SeqCst), expected);
        }
        assert_eq!(seen.at_once.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn answer_is_kept_for_its_version_and_shared_without_a_copy() {
        let work = Work::default();
        let ask = async |kept, version, text: &'static str| {
            let compute = move || Ok(Bytes::from(text.to_owned()));
            work.turn().await.kept(kept, version, compute).await.unwrap()
        };
        let first = ask(Kept::Graph, 1, "first").await;
        let again = ask(Kept::Graph, 1, "again").await;
        assert_eq!((&*again, again.as_ptr()), (&b"first"[..], first.as_ptr()));
        assert_eq!(ask(Kept::Policies, 1, "policies").await, "policies");
        assert_eq!(ask(Kept::Graph, 2, "second").await, "second");
        let failing = || Err(Failure::new(422, "too large"));
        assert!(work.turn().await.kept(Kept::Graph, 3, failing).await.is_err());
        let computing = || Ok(Bytes::new());
        assert!(work.turn().await.kept(Kept::Graph, 3, computing).await.is_err(), "not computed again");
    }

    #[test]
    fn too_large_answer_is_refused() {
        assert_eq!(json(&"x".repeat(MOST_BYTES - 2)).unwrap().len(), MOST_BYTES);
        assert_eq!(json(&"x".repeat(MOST_BYTES - 1)).unwrap_err().status, 422);
    }
}
