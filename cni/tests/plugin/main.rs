//! The plugin as a container runtime runs it: the program itself, with its environment, standard input and output.
//!
//! `chain` runs it behind the real `bridge` and `portmap` plugins. Elsewhere the previous result is written here, and the
//! daemon is a socket that answers as the test wants.

#![cfg(test)]

mod away;
mod call;
mod chain;
mod commands;
mod configuration;
mod daemon;
mod environment;
mod faults;
#[path = "../../../tests/support/isolated.rs"]
mod isolated;
#[path = "../../../tests/support/root.rs"]
mod root;

/// Says that a test does not run here. In CI nothing is skipped.
fn skip(why: &str) {
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{why}");
    println!("skipped: {why}");
}
