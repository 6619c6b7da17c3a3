//! Waiting for a condition.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Waits until the condition named `what` is true; returns how long that took.
#[track_caller]
pub(crate) fn wait_until(what: &str, at_most: Duration, mut is_true: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < at_most, "{what}: not within {at_most:?}");
        thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}
