//! Runs programs: the one place that starts processes.
//!
//! Every command runs to its end, with its standard input given and its output and exit status kept. The whole input
//! exists before the program starts: through a pipe, a daemon that is killed while it writes would leave half a line
//! behind, and half an address can be another address. Programs that take the xtables lock wait for it: in the legacy
//! variant all writers of the machine share one lock file, and a firewall with many rules can hold it for seconds.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    io::{self, Seek as _, Write as _},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use iptables::IPTables;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::DataplaneError;

/// How long one run of a program waits for the xtables lock, in seconds. After each such wait a warning is logged.
const LOCK_ROUND_SECONDS: u32 = 2;

/// How long an operation waits for the xtables lock in total.
const LOCK_PATIENCE: Duration = Duration::from_mins(1);

/// Where programs are searched for if there is no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs programs and counts how many it started.
#[derive(Debug)]
pub struct Commands {
    path: OsString,
    patience: Duration,
    started: AtomicU64,
    /// How many runs have taken the xtables lock, or tried to. Locked while one does.
    lock_runs: Mutex<u64>,
    /// Programs that were found, with their paths. The `iptables` crate needs names with a static lifetime; there are a
    /// dozen of them.
    found: Mutex<BTreeMap<String, &'static str>>,
}

impl Default for Commands {
    fn default() -> Self {
        Self::new(std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()))
    }
}

impl Commands {
    /// Searches for programs in the directories of `path`, in the format of `PATH`.
    #[must_use]
    pub fn new(path: OsString) -> Self {
        Self {
            path,
            patience: LOCK_PATIENCE,
            started: AtomicU64::new(0),
            lock_runs: Mutex::new(0),
            found: Mutex::new(BTreeMap::new()),
        }
    }

    /// How many processes were started.
    #[must_use]
    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Whether `program` is installed.
    #[must_use]
    pub fn has(&self, program: &str) -> bool {
        self.find(program).is_ok()
    }

    /// Runs `program` to its end with `input` as its standard input.
    ///
    /// # Errors
    /// If it is not installed or could not be run. The caller must check whether it succeeded: see [`Output::checked`].
    pub fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<Output, DataplaneError> {
        let command = [&[program], arguments].concat().join(" ");
        let failed = |source| DataplaneError::System { doing: format!("running {command}"), source };
        let mut process = Command::new(self.find(program)?);
        process.args(arguments).env("LC_ALL", "C");
        process.stdin(if input.is_empty() {
            Stdio::null()
        } else {
            in_memory(input).map_err(failed)?.into()
        });
        process.stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        self.started.fetch_add(1, Ordering::Relaxed);
        let output = process.output().map_err(failed)?;
        let output = Output::new(command, &output);
        tracing::debug!(
            command = output.command,
            status = output.status,
            input_bytes = input.len(),
            microseconds = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            "command finished"
        );
        Ok(output)
    }

    /// Runs a program that takes the xtables lock, and waits for the lock for up to a minute.
    ///
    /// # Errors
    /// As [`run`](Self::run), and [`DataplaneError::Locked`] if another process holds the lock for longer.
    pub fn run_with_lock(
        &self,
        program: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<Output, DataplaneError> {
        let wait = format!("--wait={LOCK_ROUND_SECONDS}");
        let arguments = [arguments, &[wait.as_str()]].concat();
        self.until_unlocked(|| self.run(program, &arguments, input))
    }

    /// Queries a chain of `table` with `program`, an iptables or ip6tables: `-S FORWARD 1`, for example.
    ///
    /// # Errors
    /// As [`run_with_lock`](Self::run_with_lock).
    pub fn ask(&self, program: &str, table: &str, question: &str) -> Result<Output, DataplaneError> {
        // Not the crate's own waiting, which has no timeout and logs nothing.
        let tool = IPTables { cmd: self.find(program)?, has_check: true, has_wait: false, is_numeric: true };
        let arguments = format!("{question} -w {LOCK_ROUND_SECONDS}");
        self.until_unlocked(|| {
            self.started.fetch_add(1, Ordering::Relaxed);
            let command = format!("{program} -t {table} {question}");
            match tool.execute(table, &arguments) {
                Ok(output) => Ok(Output::new(command, &output)),
                Err(error) => {
                    let source = match error.downcast::<io::Error>() {
                        Ok(error) => *error,
                        Err(other) => io::Error::other(other.to_string()),
                    };
                    Err(DataplaneError::System { doing: format!("running {command}"), source })
                }
            }
        })
    }

    fn until_unlocked(
        &self,
        attempt: impl Fn() -> Result<Output, DataplaneError>,
    ) -> Result<Output, DataplaneError> {
        let since = Instant::now();
        loop {
            let output = {
                let mut runs = self.lock_runs();
                *runs += 1;
                attempt()?
            };
            if !output.lacks_lock() {
                return Ok(output);
            }
            if since.elapsed() >= self.patience {
                return Err(DataplaneError::Locked { command: output.command });
            }
            tracing::warn!(
                command = output.command,
                seconds = since.elapsed().as_secs(),
                "waiting for the xtables lock, which another process holds"
            );
        }
    }

    /// How many runs have taken the xtables lock, or tried to. While this guard is held, none can.
    pub(super) fn lock_runs(&self) -> MutexGuard<'_, u64> {
        self.lock_runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, program: &str) -> Result<&'static str, DataplaneError> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = found.get(program) {
            return Ok(file);
        }
        let file: Option<PathBuf> =
            std::env::split_paths(&self.path).map(|folder| folder.join(program)).find(|file| file.is_file());
        let Some(file) = file.as_deref().and_then(|file| file.to_str()) else {
            return Err(DataplaneError::Missing { program: program.to_owned(), package: package(program) });
        };
        let file: &'static str = Box::leak(file.into());
        found.insert(program.to_owned(), file);
        Ok(file)
    }
}

/// An anonymous file that holds `input`, positioned at its start.
fn in_memory(input: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("input", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(input.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// The Debian package that contains a program.
fn package(program: &str) -> &'static str {
    match program {
        "ipset" => "ipset",
        "modprobe" => "kmod",
        "ip" => "iproute2",
        "nft" => "nftables",
        _ => "iptables",
    }
}

/// What a program printed, and its exit status.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command with its arguments.
    pub command: String,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error, trimmed.
    pub stderr: String,
    /// Whether it exited with status 0.
    pub success: bool,
    /// Its exit status in words.
    status: String,
    code: Option<i32>,
}

impl Output {
    fn new(command: String, output: &std::process::Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            command,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr).trim().to_owned(),
            success: output.status.success(),
            status: in_words(output.status),
            code: output.status.code(),
        }
    }

    /// What it wrote to standard output, if it succeeded.
    ///
    /// # Errors
    /// [`DataplaneError::Command`] if it did not.
    pub fn checked(self) -> Result<String, DataplaneError> {
        if self.success { Ok(self.stdout) } else { Err(self.into_error()) }
    }

    /// The error for this failure, with its exit status and standard error.
    #[must_use]
    pub fn into_error(self) -> DataplaneError {
        DataplaneError::Command { command: self.command, status: self.status, stderr: self.stderr }
    }

    /// "Another app is currently holding the xtables lock", with status 4: nothing was done.
    fn lacks_lock(&self) -> bool {
        self.code == Some(4) && self.stderr.contains("xtables lock")
    }
}

fn in_words(status: ExitStatus) -> String {
    status.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_input_and_output_do_not_deadlock() {
        let commands = Commands::default();
        let input = "a line of text\n".repeat(100_000);
        let output = commands.run("cat", &[], &input).unwrap();
        assert_eq!(output.checked().unwrap(), input);
        assert_eq!(commands.started(), 1);
    }

    #[test]
    fn input_is_complete_before_the_program_starts() {
        let input = "add tp4-pods-x 10.244.1.12\n".repeat(10_000);
        let output = Commands::default().run("stat", &["-L", "-c", "%s", "/dev/stdin"], &input).unwrap();
        assert_eq!(output.checked().unwrap().trim(), input.len().to_string());
    }

    #[test]
    fn program_that_does_not_read_its_input_ends() {
        let output = Commands::default().run("false", &[], &"x".repeat(1 << 20)).unwrap();
        assert!(!output.success);
    }

    #[test]
    fn error_contains_status_and_output() {
        let output = Commands::default().run("sh", &["-c", "echo why >&2; exit 3"], "").unwrap();
        let error = output.checked().unwrap_err().to_string();
        assert_eq!(error, "sh -c echo why >&2; exit 3 failed with exit status: 3: why");
    }

    #[test]
    fn only_runs_with_the_xtables_lock_are_counted() {
        let commands = Commands::default();
        commands.run("true", &[], "").unwrap();
        assert_eq!(*commands.lock_runs(), 0);
        for count in 1..=3 {
            commands.run_with_lock("true", &[], "").unwrap();
            assert_eq!(*commands.lock_runs(), count);
        }
    }

    #[test]
    fn programs_are_named_with_their_debian_package() {
        for (program, from) in [
            ("ipset", "ipset"),
            ("modprobe", "kmod"),
            ("ip", "iproute2"),
            ("nft", "nftables"),
            ("iptables-nft", "iptables"),
            ("ip6tables-legacy-save", "iptables"),
        ] {
            assert_eq!(package(program), from, "{program}");
        }
    }

    #[test]
    fn missing_program_is_named_with_its_package() {
        let commands = Commands::new("/nonexistent".into());
        assert!(!commands.has("ipset"));
        let error = commands.run("ip6tables-nft-restore", &[], "").unwrap_err().to_string();
        assert_eq!(error, "ip6tables-nft-restore was not found: install the package iptables");
        assert_eq!(commands.started(), 0);
    }

    #[test]
    fn held_xtables_lock_is_waited_for_and_then_reported() {
        let folder = tempfile::tempdir().unwrap();
        let script = "#!/bin/sh\necho x >> \"$0.runs\"\n\
                      echo 'Another app is currently holding the xtables lock.' >&2\nexit 4\n";
        let program = folder.path().join("iptables-legacy-restore");
        std::fs::write(&program, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let path = std::env::join_paths([folder.path(), "/bin".as_ref(), "/usr/bin".as_ref()]).unwrap();
        let commands = Commands { patience: Duration::from_secs(2), ..Commands::new(path) };
        let error = commands.run_with_lock("iptables-legacy-restore", &[], "*filter\n").unwrap_err();
        assert!(matches!(error, DataplaneError::Locked { .. }), "{error}");
        let runs = std::fs::read_to_string(folder.path().join("iptables-legacy-restore.runs")).unwrap();
        assert!(runs.lines().count() > 1);
    }
}
