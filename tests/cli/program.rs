//! Runs the built program.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::repository::root;

/// The built program.
pub(crate) const TOWPATH: &str = env!("CARGO_BIN_EXE_towpath");

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Standard output, parsed.
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.status, 0, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// The program with these arguments, in the root of the repository, without towpath's variables in its environment.
pub(crate) fn towpath(arguments: &[&str]) -> Command {
    let mut command = Command::new(TOWPATH);
    command.args(arguments);
    without_variables(command)
}

/// Runs a shell line, in which `towpath` is the built program.
pub(crate) fn shell(line: &str, folder: &Path) -> Finished {
    let bin = Path::new(TOWPATH).parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&path))).unwrap();
    let mut command = Command::new("bash");
    command.args(["-c", line]).env("PATH", path);
    finish(without_variables(command).current_dir(folder))
}

fn without_variables(mut command: Command) -> Command {
    command.current_dir(root()).stdin(Stdio::null()).env("COLUMNS", "100");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOWPATH_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end.
pub(crate) fn finish(command: &mut Command) -> Finished {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Finished {
        status: output.status.code().unwrap(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// The program with these arguments, run to its end.
pub(crate) fn run(arguments: &[&str]) -> Finished {
    finish(&mut towpath(arguments))
}

/// The same, with `input` as its standard input.
pub(crate) fn run_with_input(arguments: &[&str], input: &str) -> Finished {
    let mut command = towpath(arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Finished {
        status: output.status.code().unwrap(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// The commands that `towpath --help` lists.
pub(crate) fn commands() -> Vec<String> {
    let help = run(&["--help"]).stdout;
    let lines =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // Continuation lines are further to the right.
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !name.is_empty() && *name != "help").map(str::to_owned).collect()
}

/// A folder with the files of the examples in `--help`: `objects.yaml` and `manifests/`.
pub(crate) fn examples() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let mut objects = String::new();
    for file in files(&root().join("examples/shop")) {
        fs::copy(&file, manifests.join(file.file_name().unwrap())).unwrap();
        objects.push_str("---\n");
        objects.push_str(&fs::read_to_string(&file).unwrap());
    }
    fs::write(folder.path().join("objects.yaml"), objects).unwrap();
    folder
}

/// The files of a folder, by name.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}
