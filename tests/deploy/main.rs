//! The deployment: the contents of the manifests, and the image as the manifests run it.
//!
//! The image's root filesystem is built from Debian's packages by the script that the Dockerfile runs, and its
//! containers are started here as a container runtime would, from the manifests: arguments, environment, mounts,
//! capabilities, a read-only root. That needs root, apt and a Debian mirror.

#![cfg(test)]

mod container;
#[path = "../support/http.rs"]
mod http;
mod image;
#[path = "../support/isolated.rs"]
mod isolated;
mod manifests;
#[path = "../support/repository.rs"]
mod repository;
#[path = "../support/wait.rs"]
mod wait;
mod yaml;
#[path = "../support/yaml_objects.rs"]
mod yaml_objects;

/// Reports that a test is skipped, and why. Where everything must run (`CI=true`), it fails.
fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "nothing may be skipped in CI: {why}");
    println!("skipped: {why}");
}
