//! `--help` is correct.

use crate::program::{commands, examples, run, shell};

/// Commands that need root, a daemon or a container runtime, or do not end by themselves.
const NOT_RUN: [&str; 9] = ["run", "ui", "status", "drops", "bugreport", "cleanup", "prepare", "cni", "demo"];

#[test]
fn every_command_has_a_working_example() {
    let folder = examples();
    let mut run_examples = 0;
    for command in commands() {
        let help = run(&[&command, "-h"]).stdout;
        let example = help.lines().find_map(|line| line.strip_prefix("Example: "));
        let example = example.unwrap_or_else(|| panic!("towpath {command} -h has no example:\n{help}"));
        assert!(example.starts_with(&format!("towpath {command}")), "{example}");
        if NOT_RUN.contains(&command.as_str()) {
            continue;
        }
        let finished = shell(example, folder.path());
        assert_eq!(finished.status, 0, "{example}: {finished:?}");
        assert!(command == "lint" || !finished.stdout.is_empty(), "{example} prints nothing");
        assert_eq!(finished.stderr, "", "{example}");
        run_examples += 1;
    }
    assert!(run_examples >= 4, "only {run_examples} examples were run");
}

/// Whether a flag starts in this line of the help; continuation lines are further to the right.
fn starts_flag(line: &str) -> bool {
    let text = line.trim_start();
    text.starts_with('-') && line.len() - text.len() <= 6
}

#[test]
fn every_flag_has_an_environment_variable() {
    let mut flags = 0;
    for command in commands() {
        let help = run(&[&command, "-h"]).stdout;
        let options = help.split("\nOptions:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        let mut entries: Vec<String> = Vec::new();
        for line in options.lines() {
            match entries.last_mut() {
                Some(entry) if !starts_flag(line) => entry.push_str(line),
                _ => entries.push(line.to_owned()),
            }
        }
        for flag in entries.iter().filter(|flag| !flag.contains("--help")) {
            assert!(flag.contains("TOWPATH_"), "towpath {command}: {flag} has no variable");
            flags += 1;
        }
    }
    assert!(flags > 20, "only {flags} flags");
}

#[test]
fn version_is_that_of_the_package() {
    assert_eq!(run(&["--version"]).stdout, format!("towpath {}\n", env!("CARGO_PKG_VERSION")));
}
