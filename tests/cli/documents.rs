//! The documents show what the program prints.
//!
//! Each ```` ```console ```` block of the documents in [`SESSIONS`] is a session in the root of the
//! repository: each `$ command` is followed by its standard output and then its standard error. Blocks marked
//! `console root` change the kernel and are not run. `TOWPATH_UPDATE_README=1 cargo test --test cli` writes the output
//! into them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    program::{commands, files, run, shell},
    repository::{root, text},
};

/// A text with its sessions run again, and the number of commands in it.
fn rerun(text: &str) -> (String, usize) {
    let mut lines = text.lines().peekable();
    let mut result = String::new();
    let mut commands = 0;
    let mut push = |line: &str| {
        result.push_str(line);
        result.push('\n');
    };
    while let Some(line) = lines.next() {
        push(line);
        if line != "```console" {
            continue;
        }
        while let Some(line) = lines.next_if(|line| *line != "```") {
            // Lines that are not commands are the output of the previous one.
            if let Some(command) = line.strip_prefix("$ ") {
                commands += 1;
                push(line);
                let finished = shell(command, root());
                finished.stdout.lines().chain(finished.stderr.lines()).for_each(&mut push);
            }
        }
    }
    (result, commands)
}

/// The documents with sessions, and the least number of commands in each.
const SESSIONS: [(&str, usize); 4] =
    [("README.md", 7), ("docs/diff.md", 3), ("docs/explain.md", 20), ("docs/lint.md", 1)];

#[test]
fn sessions_in_documents_match_the_output_of_the_program() {
    for (document, least) in SESSIONS {
        let shown = text(document);
        let (printed, commands) = rerun(&shown);
        assert!(commands >= least, "{document} has only {commands} commands that can be run");
        if std::env::var_os("TOWPATH_UPDATE_README").is_some() {
            fs::write(root().join(document), &printed).unwrap();
            continue;
        }
        let differs =
            shown.lines().zip(printed.lines()).enumerate().find(|(_, (shown, printed))| shown != printed);
        assert!(
            differs.is_none() && shown == printed,
            "{document} differs from the output: {differs:?}; see tests/cli/documents.rs"
        );
    }
}

#[test]
fn session_with_other_output_is_detected() {
    let text = "a\n```console\n$ echo b; echo c >&2\nold\n```\n```console root\n# false\nkept\n```\n";
    let (printed, commands) = rerun(text);
    assert_eq!(commands, 1);
    assert_eq!(printed, text.replace("old", "b\nc"));
}

#[test]
fn readme_lists_every_command() {
    let commands = commands();
    assert!(commands.len() >= 6, "{commands:?}");
    let readme = text("README.md");
    for command in commands {
        assert!(readme.contains(&format!("| `towpath {command}")), "README.md lacks towpath {command}");
    }
}

/// The names of metrics in a text, between backquotes at the start of a row of a table.
fn rows(text: &str) -> BTreeSet<String> {
    let name = |line: &str| Some(line.strip_prefix("| `towpath_")?.split('`').next()?.to_owned());
    text.lines().filter_map(name).map(|name| format!("towpath_{name}")).collect()
}

/// The names of metrics in the source that registers them.
fn registered() -> BTreeSet<String> {
    let sources = ["src/metrics.rs", "src/metrics/process.rs"].map(text);
    let code = sources.iter().map(|source| source.split("#[cfg(test)]").next().unwrap_or_default());
    let is_name = |text: &&str| {
        text.starts_with("towpath_") && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    code.flat_map(|code| code.split('"')).filter(is_name).map(str::to_owned).collect()
}

#[test]
fn docs_metrics_lists_exactly_the_existing_metrics() {
    assert!(registered().len() > 15, "{:?}", registered());
    assert_eq!(rows(&text("docs/metrics.md")), registered());
}

#[test]
fn docs_operations_lists_every_flag_of_run_with_its_variable() {
    let operations = text("docs/operations.md");
    let help = run(&["run", "-h"]).stdout;
    // Text further to the right describes a flag.
    let is_flag = |line: &&str| line.len() - line.trim_start().len() <= 6;
    let flags = help.lines().filter(is_flag).filter_map(|line| {
        let line = line.trim_start();
        let long = line.split(", ").find(|word| word.starts_with("--"))?;
        (line.starts_with('-')).then(|| long.split([' ', '.']).next().unwrap_or_default())
    });
    let flags: Vec<&str> = flags.filter(|flag| *flag != "--help").collect();
    assert!(flags.len() >= 12, "{flags:?}");
    for flag in flags {
        assert!(operations.contains(&format!("{flag}`")), "docs/operations.md lacks {flag}");
    }
    for variable in help.split("TOWPATH_").skip(1).filter_map(|rest| rest.split('=').next()) {
        assert!(operations.contains(&format!("`TOWPATH_{variable}`")), "docs/operations.md lacks {variable}");
    }
}

/// The text of all `.rs` files below a folder.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text.push_str(&sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
    text
}

/// Every document of the repository.
fn documents() -> Vec<PathBuf> {
    let folders = [root().to_owned(), root().join("docs"), root().join("docs/decisions")];
    let documents = folders.iter().flat_map(|folder| files(folder));
    documents.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

#[test]
fn tests_named_in_documents_exist() {
    let sources = ["src", "tests", "cni"].map(|folder| sources(&root().join(folder))).concat();
    // The name of a test is a sentence.
    let is_sentence = |word: &&str| {
        word.matches('_').count() > 2 && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    // Metrics and kernel modules are words with underscores, too.
    let is_test =
        |word: &&str| !["towpath_", "process_", "ip_set_"].iter().any(|prefix| word.starts_with(prefix));
    let mut named = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let document = document.strip_prefix(root()).unwrap().display();
        for test in text.split('`').filter(is_sentence).filter(is_test) {
            assert!(
                sources.contains(&format!("fn {test}(")),
                "{document} names {test}, which does not exist"
            );
            named += 1;
        }
        for path in text.split('`').filter(|word| word.starts_with("tests/")) {
            assert!(root().join(path).exists(), "{document} names {path}, which does not exist");
        }
    }
    assert!(named > 10, "only {named} tests are named");
}

#[test]
fn make_targets_named_in_contributing_exist() {
    let makefile = text("Makefile");
    let contributing = text("CONTRIBUTING.md");
    let targets: Vec<&str> = contributing.split('`').filter_map(|word| word.strip_prefix("make ")).collect();
    assert!(targets.len() > 6, "{targets:?}");
    for target in targets {
        let exists = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
        assert!(exists, "CONTRIBUTING.md names make {target}, which does not exist");
    }
}

#[test]
fn links_between_documents_resolve() {
    let mut links = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = document.parent().unwrap().join(target);
            assert!(path.exists(), "{} links to {target}, which does not exist", document.display());
            links += 1;
        }
    }
    assert!(links > 10, "only {links} links");
}
