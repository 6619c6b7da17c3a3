//! The workflows in `examples/ci`, run on a repository of their own: all is real but the machine of the CI system.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    program::{Finished, TOWPATH, finish},
    repository::{root, text},
};

/// A repository with the manifests of the shop, and on a branch, which is checked out, a change of them.
struct Repository {
    folder: tempfile::TempDir,
}

impl Repository {
    fn new(change: impl Fn(&str) -> String) -> Self {
        let repository = Self { folder: tempfile::tempdir().unwrap() };
        let manifests = repository.path().join("work/manifests");
        fs::create_dir_all(&manifests).unwrap();
        for name in ["namespaces.yaml", "pods.yaml", "policies.yaml"] {
            fs::copy(root().join("examples/shop").join(name), manifests.join(name)).unwrap();
        }
        repository.git(&["init", "--quiet", "--initial-branch", "main"]);
        repository.commit();
        repository.git(&["remote", "add", "origin", "."]);
        repository.git(&["checkout", "--quiet", "-b", "change"]);
        let policies = manifests.join("policies.yaml");
        let changed = change(&fs::read_to_string(&policies).unwrap());
        fs::write(policies, changed).unwrap();
        repository.commit();
        repository
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn git(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("git");
        let identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"];
        let finished = finish(command.args(identity).args(arguments).current_dir(self.path().join("work")));
        assert_eq!(finished.status, 0, "git {arguments:?}: {finished:?}");
        finished.stdout.trim().to_owned()
    }

    fn commit(&self) {
        self.git(&["add", "."]);
        self.git(&["commit", "--quiet", "--allow-empty", "-m", "manifests"]);
    }

    /// Runs the lines of a workflow, with a `docker` that starts the built program on the folders that it mounts.
    fn run(&self, script: &str, variables: &[(&str, &str)]) -> Finished {
        let bin = self.path().join("bin");
        fs::create_dir_all(&bin).unwrap();
        let docker = bin.join("docker");
        fs::write(&docker, DOCKER).unwrap();
        fs::set_permissions(&docker, fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&path))).unwrap();
        let mut command = Command::new("bash");
        command.args(["-e", "-o", "pipefail", "-c", script]).current_dir(self.path().join("work"));
        command.env("PATH", path).env("TOWPATH_PROGRAM", TOWPATH).env("MANIFESTS", "manifests");
        command.env("TOWPATH_IMAGE", "image");
        finish(command.envs(variables.iter().copied()))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// `docker run ... -v FROM:TO:ro ... image ARGUMENTS`: the program with each TO at the start of an argument replaced.
const DOCKER: &str = r#"#!/bin/bash
mounts=()
while [ "$1" != image ]; do
  if [ "$1" = -v ]; then mounts+=("$2"); fi
  shift
done
shift
arguments=()
for argument in "$@"; do
  for mount in "${mounts[@]}"; do
    IFS=: read -r from to _ <<< "$mount"
    case "$argument" in "$to" | "$to"/*) argument="$from${argument#"$to"}"; break ;; esac
  done
  arguments+=("$argument")
done
unset MANIFESTS TOWPATH_IMAGE
exec "$TOWPATH_PROGRAM" "${arguments[@]}"
"#;

/// The lines below `key: |` in a text, from `after` on.
fn block(text: &str, after: &str, key: &str) -> String {
    let (_, rest) = text.split_once(after).unwrap_or_else(|| panic!("no {after:?}"));
    let mut lines = rest.lines().skip_while(|line| line.trim_start() != format!("{key}|"));
    let head = lines.next().unwrap();
    let indent = head.len() - head.trim_start().len();
    let is_inside = |line: &&str| line.is_empty() || line.len() - line.trim_start().len() > indent;
    let lines: Vec<&str> = lines.take_while(is_inside).map(|line| line.trim_start_matches(' ')).collect();
    lines.join("\n")
}

fn without(policies: &str, name: &str) -> String {
    let is_kept = |policy: &&str| !policy.contains(&format!("name: {name}\n"));
    policies.split("---\n").filter(is_kept).collect::<Vec<_>>().join("---\n")
}

/// Nothing allows web to reach the API any more.
fn closing(policies: &str) -> String {
    without(policies, "api-from-web")
}

/// Nothing isolates the API any more.
fn opening(policies: &str) -> String {
    let isolating = ["api-from-web", "default-deny", "metrics-from-monitoring"];
    isolating.iter().fold(policies.to_owned(), |policies, name| without(&policies, name))
}

fn github(repository: &Repository) -> Finished {
    let script = block(&text("examples/ci/github.yml"), "- name: Compare with the base", "run: ");
    let base = repository.git(&["rev-parse", "main"]);
    let [temporary, summary, output] = ["temporary", "summary", "output"].map(|name| repository.file(name));
    fs::create_dir(&temporary).unwrap();
    repository.run(
        &script,
        &[
            ("BASE", &base),
            ("RUNNER_TEMP", temporary.to_str().unwrap()),
            ("GITHUB_STEP_SUMMARY", summary.to_str().unwrap()),
            ("GITHUB_OUTPUT", output.to_str().unwrap()),
        ],
    )
}

#[test]
fn workflow_for_github_tells_what_a_pull_request_changes() {
    for (change, opened, says) in [
        (&closing as &dyn Fn(&str) -> String, "opened=0\n", "| - | `shop/web` | `shop/api` | 8080/TCP |"),
        (&opening, "opened=1\n", "**Opened**"),
    ] {
        let repository = Repository::new(change);
        let finished = github(&repository);
        assert_eq!(finished.status, 0, "{finished:?}");
        assert_eq!(fs::read_to_string(repository.file("output")).unwrap(), opened);
        let summary = fs::read_to_string(repository.file("summary")).unwrap();
        assert!(summary.contains(says), "{summary}");
        assert_eq!(fs::read_to_string(repository.file("temporary/diff.md")).unwrap(), summary);
    }
}

#[test]
fn workflow_for_github_fails_if_manifests_have_errors() {
    let repository = Repository::new(|policies| policies.replace("port: 80\n", "port: 99999\n"));
    let finished = github(&repository);
    assert_eq!(finished.status, 1, "{finished:?}");
    assert!(finished.stderr.contains("policies.yaml:"), "{finished:?}");
    assert!(!repository.file("output").exists());
}

#[test]
fn workflow_for_gitlab_fails_if_flows_are_opened_without_the_label() {
    let script = block(&text("examples/ci/gitlab.yml"), "\n  script:\n", "- ");
    let run = |change: &dyn Fn(&str) -> String, labels: &str| {
        let repository = Repository::new(change);
        let work = repository.file("work");
        repository.run(
            &script,
            &[
                ("CI_PROJECT_DIR", work.to_str().unwrap()),
                ("CI_MERGE_REQUEST_TARGET_BRANCH_NAME", "main"),
                ("CI_MERGE_REQUEST_LABELS", labels),
            ],
        )
    };
    let closes = run(&closing, "");
    assert_eq!(closes.status, 0, "{closes:?}");
    assert!(closes.stdout.contains("| - | `shop/web` | `shop/api` |"), "{closes:?}");
    let opens = run(&opening, "docs");
    assert_eq!(opens.status, 1, "{opens:?}");
    assert!(opens.stdout.contains("the label opens-flows"), "{opens:?}");
    let labelled = run(&opening, "docs,opens-flows");
    assert_eq!(labelled.status, 0, "{labelled:?}");
}

/// `actionlint` from the `PATH` or from `go install`; without one the test says so and ends.
#[test]
fn workflow_for_github_has_no_fault_that_actionlint_finds() {
    let installed = std::env::var_os("HOME").map(|home| PathBuf::from(home).join("go/bin/actionlint"));
    let programs = [Some(PathBuf::from("actionlint")), installed];
    for program in programs.into_iter().flatten() {
        let Ok(output) = Command::new(&program).arg(root().join("examples/ci/github.yml")).output() else {
            continue;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    eprintln!(
        "skipped: there is no actionlint. `go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.7` installs it"
    );
}
