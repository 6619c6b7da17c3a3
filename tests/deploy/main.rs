//! The deployment: the manifests contain what they must, and the image works as the manifests run it.
//!
//! The image's root filesystem is built from Debian's packages by the script that the Dockerfile runs, and its
//! containers are started here as a container runtime would, from the manifests: arguments, environment, mounts,
//! capabilities, a read-only root. That needs root, apt and a Debian mirror.

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

/// A file of the repository as text.
fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Reports that a test is skipped, and why. Where everything must run (`CI=true`), it fails.
fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI skips nothing: {why}");
    println!("skipped: {why}");
}
