//! Logs of processes.

use std::{fs, path::Path};

/// The last lines of a file; nothing if it cannot be read.
pub(crate) fn tail(file: &Path, lines: usize) -> String {
    let log = fs::read_to_string(file).unwrap_or_default();
    let mut tail: Vec<&str> = log.lines().rev().take(lines).collect();
    tail.reverse();
    tail.join("\n")
}
