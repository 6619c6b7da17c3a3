//! The Grafana dashboard and the alert rules of deploy/, against what a real daemon exposes and in a real Prometheus.
//!
//! Needs root, and the program `prometheus` with its `promtool`.

#![cfg(test)]

mod alerts;
mod cluster;
#[expect(dead_code, reason = "the tests of the gate use more of it")]
#[path = "../support/cni.rs"]
mod cni;
#[path = "../support/daemon_command.rs"]
mod daemon_command;
mod dashboard;
mod expression;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/isolated.rs"]
mod isolated;
mod queries;
#[path = "../support/repository.rs"]
mod repository;
#[path = "../support/root.rs"]
mod root;
mod scrape;
#[path = "../support/wait.rs"]
mod wait;
#[path = "../deploy/yaml.rs"]
mod yaml;
#[path = "../support/yaml_objects.rs"]
mod yaml_objects;

use std::process::Command;

/// Whether a program of Debian's package prometheus is installed. If not, it prints that the test is skipped; in CI
/// nothing is skipped, and the test fails.
fn has(program: &str) -> bool {
    let is_there = Command::new(program).arg("--version").output().is_ok();
    let is_ci = std::env::var("CI").as_deref() == Ok("true");
    assert!(is_there || !is_ci, "nothing may be skipped in CI: there is no {program}");
    if !is_there {
        println!("skipped: there is no {program} (Debian's package prometheus)");
    }
    is_there
}
