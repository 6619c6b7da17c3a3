//! `towpath demo` as a user runs it.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails shall fail")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[path = "support/root.rs"]
mod root;

use root::has_root;

/// The demo, with its own folder for temporary files, so that a test sees what it leaves there.
fn demo(folder: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
    command.arg("demo").args(arguments).env("TMPDIR", folder).stdin(Stdio::null());
    command
}

/// The processes whose command line names `folder`: the daemons of a demo that keeps its manifests there.
fn daemons(folder: &std::path::Path) -> BTreeSet<PathBuf> {
    let name = folder.to_string_lossy().into_owned();
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    processes
        .filter(|path| {
            let line = fs::read(path.join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&name)
        })
        .collect()
}

fn links() -> String {
    String::from_utf8(Command::new("ip").args(["-br", "link"]).output().unwrap().stdout).unwrap()
}

fn assert_no_trace(folder: &std::path::Path, links_before: &str) {
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "no file stays");
    assert_eq!(daemons(folder), BTreeSet::new(), "no process stays");
    assert_eq!(links(), links_before, "no link stays");
}

#[test]
fn demo_steps_have_their_expected_results_and_leave_no_trace() {
    if !has_root() {
        return;
    }
    for backend in ["auto", "nft", "legacy"] {
        let (folder, before) = (tempfile::tempdir().unwrap(), links());
        let Output { status, stdout, stderr } =
            demo(folder.path(), &["--iptables-backend", backend]).output().unwrap();
        let (text, errors) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "{backend}: {text}\n{errors}");
        assert_eq!(text.matches("enforced after").count(), 9, "eight changes and the summary: {text}");
        assert!(text.contains("369 of 369 as expected"), "{text}");
        assert!(text.contains("-A FORWARD -j TOWPATH-FORWARD"), "{text}");
        assert!(!text.contains('\x1b'), "no colour where there is no terminal");
        assert_no_trace(folder.path(), &before);
    }
}

#[test]
fn interrupted_demo_cleans_up_and_reports_it_by_its_exit_status() {
    if !has_root() {
        return;
    }
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let (folder, before) = (tempfile::tempdir().unwrap(), links());
        let mut child = demo(folder.path(), &[]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("[2/")), "it gets as far as the second step");
        assert_eq!(daemons(folder.path()).len(), 2, "a daemon on each node");
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status));
        assert_no_trace(folder.path(), &before);
    }
}

#[test]
fn killed_daemon_ends_the_demo_and_its_log_is_printed() {
    if !has_root() {
        return;
    }
    let (folder, before) = (tempfile::tempdir().unwrap(), links());
    let mut child = demo(folder.path(), &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("[2/") {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "it gets as far as the second step");
    }
    let victim = daemons(folder.path()).into_iter().next().unwrap();
    let victim: i32 = victim.file_name().unwrap().to_str().unwrap().parse().unwrap();
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    output.read_to_string(&mut line).unwrap();
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3), "{errors}");
    assert!(errors.contains("SIGKILL") && errors.contains("starting towpath"), "{errors}");
    assert_no_trace(folder.path(), &before);
}
