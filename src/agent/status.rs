//! What the loop tells the outside of itself.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Whether this node enforces what it ought to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet: the reason says what is being waited for.
    Starting(String),
    /// The kernel holds what it ought to.
    Ready,
    /// All but single objects is enforced; what those would allow is closed.
    Degraded(String),
    /// The last round failed; what the kernel held before stays enforced.
    Failing(String),
}

/// The loop's state, as others may ask for it at any time.
#[derive(Debug)]
pub struct Status(Mutex<(Readiness, Instant)>);

impl Status {
    /// Before the first round; `waiting_for` says what has to come first.
    #[must_use]
    pub fn starting(waiting_for: &str) -> Self {
        Self(Mutex::new((Readiness::Starting(waiting_for.to_owned()), Instant::now())))
    }

    /// Whether this node enforces what it ought to.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// How long the loop has not shown itself.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.elapsed()
    }

    /// Says how it stands.
    pub fn set(&self, readiness: Readiness) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = readiness;
    }

    /// Shows that the loop still turns.
    pub fn beat(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = Instant::now();
    }
}
