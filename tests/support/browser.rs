//! What tests of the page need: node, the packages of `ui/package-lock.json`, Chromium.

use std::{
    path::Path,
    process::{Command, Output},
};

/// The page's sources.
pub(crate) fn ui() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/ui"))
}

/// Whether all of that is there. If not, it prints that the test is skipped; in CI the test fails.
pub(crate) fn has_browser() -> bool {
    let is_there = |program: &str| {
        Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    let mut missing: Vec<&str> =
        ["node", "chromium"].into_iter().filter(|program| !is_there(program)).collect();
    if !ui().join("node_modules/.package-lock.json").exists() {
        missing.push("ui/node_modules, which scripts/ui installs");
    }
    let missing = missing.join(", ");
    assert!(missing.is_empty() || std::env::var("CI").as_deref() != Ok("true"), "CI needs {missing}");
    if !missing.is_empty() {
        println!("skipped: needs {missing}");
    }
    missing.is_empty()
}

/// The command that plays a scenario of `ui/test/scenarios.mjs` on the page at this address.
pub(crate) fn play(scenario: &str, url: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(ui().join("test/run.mjs")).arg(scenario).env("PAGE_URL", url);
    command
}

/// Fails unless everything was as the scenario says.
#[track_caller]
pub(crate) fn check(output: Output) {
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}
