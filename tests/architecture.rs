//! The architecture rules, checked in the source.
//!
//! Modules are the folders and files right below `src/`. Data flows downward through the list of [`MODULES`]; a lower
//! module never names a higher one. The core does no I/O, and uses no async, clock, log or Kubernetes types.

#![cfg(test)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Every module, with the modules that it may name.
const MODULES: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("policy", &["model"]),
    ("ruleset", &["model", "policy"]),
    ("metrics", &[]),
    ("k8s", &["model"]),
    ("dataplane", &["model", "ruleset"]),
    ("gate", &["model"]),
    ("agent", &["dataplane", "metrics", "model", "policy", "ruleset"]),
    ("drops", &["dataplane", "model", "policy", "ruleset"]),
    ("page", &["k8s", "model", "policy"]),
    ("web", &["agent", "drops", "gate", "metrics", "model", "page", "policy"]),
    (
        "daemon",
        &[
            "agent",
            "dataplane",
            "drops",
            "gate",
            "k8s",
            "metrics",
            "model",
            "page",
            "policy",
            "ruleset",
            "web",
        ],
    ),
    ("lab", &["model"]),
    (
        "cli",
        &[
            "agent",
            "daemon",
            "dataplane",
            "drops",
            "gate",
            "k8s",
            "lab",
            "model",
            "page",
            "policy",
            "ruleset",
            "web",
        ],
    ),
];

/// The modules that only compute.
const CORE: [&str; 3] = ["model", "policy", "ruleset"];

/// What the core must not name.
const FORBIDDEN_IN_CORE: &[&str] = &[
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "std::time",
    "Instant::now",
    "SystemTime",
    "std::net::Tcp",
    "std::net::Udp",
    "async ",
    ".await",
    "tokio",
    "futures",
    "tracing",
    "println!",
    "eprintln!",
    "kube::",
    "k8s_openapi",
    "serde",
    "prometheus",
    "towpath_cni",
];

/// What the CNI plugin may depend on: a runtime starts it for every pod, and it must be small and start fast.
const PLUGIN_DEPENDENCIES: [&str; 2] = ["serde", "serde_json"];

/// Where processes may be started: the kernel edge, the exec plugin of a kubeconfig, and the lab with the demo that uses
/// it.
const STARTS_PROCESSES: [&str; 5] = [
    "src/dataplane/command.rs",
    "src/dataplane/command/tests.rs",
    "src/k8s/watch/exec_plugin.rs",
    "src/lab/",
    "src/cli/demo/",
];

fn sources() -> Vec<(PathBuf, String)> {
    sources_in("src")
}

/// The source below a folder, without comments and tests.
fn sources_in(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(&root.join(folder), &mut found);
    found.sort();
    let relative = |path: &Path| path.strip_prefix(root).unwrap().to_owned();
    found.iter().map(|path| (relative(path), code(&fs::read_to_string(path).unwrap()))).collect()
}

/// The text without comments and without the tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn module(path: &Path) -> String {
    let name = path.components().nth(1).unwrap().as_os_str().to_string_lossy().into_owned();
    name.strip_suffix(".rs").unwrap_or(&name).to_owned()
}

/// The modules that a text names as `crate::module` or within `crate::{...}`.
fn named_modules(text: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut modules = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            modules.insert(word(rest));
            continue;
        };
        let (mut depth, mut starts) = (0, true);
        for (at, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => starts = true,
                _ if starts && !character.is_whitespace() => {
                    modules.insert(word(&group[at..]));
                    starts = false;
                }
                _ => {}
            }
        }
    }
    modules
}

#[test]
fn modules_use_only_modules_above_them() {
    let mut seen = BTreeSet::new();
    for (path, text) in sources() {
        let here = module(&path);
        if here == "lib" || here == "main" {
            continue;
        }
        let Some((_, allowed)) = MODULES.iter().find(|(name, _)| *name == here) else {
            panic!("{} is in no module that this test knows", path.display())
        };
        for named in named_modules(&text) {
            let is_allowed = named == here || allowed.contains(&named.as_str());
            assert!(is_allowed, "{}: {here} must not name {named}", path.display());
        }
        seen.insert(here);
    }
    assert_eq!(seen.len(), MODULES.len(), "a module of the list does not exist");
}

#[test]
fn core_uses_no_io_clock_log_or_kubernetes_types() {
    for (path, text) in sources().into_iter().filter(|(path, _)| CORE.contains(&module(path).as_str())) {
        if path.ends_with("tests.rs") {
            continue;
        }
        for forbidden in FORBIDDEN_IN_CORE {
            assert!(!text.contains(forbidden), "{}: the core names {forbidden:?}", path.display());
        }
    }
}

#[test]
fn processes_are_started_only_in_the_listed_files() {
    for (path, text) in sources() {
        let path = path.to_string_lossy().into_owned();
        if !STARTS_PROCESSES.iter().any(|place| path.starts_with(place)) {
            assert!(!text.contains("Command::new("), "{path} starts a process");
            assert!(!text.contains("iptables::"), "{path} uses a crate that starts processes");
        }
    }
}

#[test]
fn plugin_knows_nothing_of_the_daemon_and_depends_on_little() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("cni/Cargo.toml")).unwrap();
    let (_, dependencies) = manifest.split_once("\n[dependencies]\n").unwrap();
    let lines = dependencies.lines().take_while(|line| !line.is_empty());
    let named: Vec<&str> = lines.filter_map(|line| line.split([' ', '=', '.']).next()).collect();
    assert_eq!(named, PLUGIN_DEPENDENCIES);

    let sources = sources_in("cni/src");
    assert!(sources.len() > 5, "{} files", sources.len());
    for (path, text) in sources {
        for forbidden in ["towpath::", "async ", ".await", "Command::new("] {
            assert!(!text.contains(forbidden), "{}: the plugin names {forbidden:?}", path.display());
        }
    }
}

#[test]
fn module_names_are_found_in_use_groups_and_paths() {
    let text = "use crate::{\n    agent::{Agent, Input},\n    web::Web,\n};\nfn f() { crate::cli::main() }";
    let expected: BTreeSet<String> = ["agent", "cli", "web"].map(str::to_owned).into();
    assert_eq!(named_modules(text), expected);
}
