//! What is deployed: the manifests say what they have to, and the image does as the manifests run it.
//!
//! The image's root filesystem is built from Debian's packages by the script that the Dockerfile runs, and its containers
//! are started here as a container runtime would start them, from what the manifests say: arguments, environment, mounts,
//! capabilities, a read-only root. That needs root, apt and a mirror of Debian.

#![cfg(test)]

mod container;
mod image;
mod manifests;
mod yaml;

use std::{fs, path::Path};

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A text of the repository.
fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Says that a test does not run, and why. Where everything has to run (`CI=true`), it fails.
fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI skips nothing: {why}");
    println!("skipped: {why}");
}
