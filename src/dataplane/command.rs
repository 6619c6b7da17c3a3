//! Runs programs: the one place that starts processes.
//!
//! Every command runs to its end, with its standard input given and its output and exit status kept. The whole input
//! exists before the program starts: through a pipe, a daemon that is killed while it writes would leave half a line
//! behind, and half an address can be another address. Programs that take the xtables lock wait for it: in the legacy
//! variant all writers of the machine share one lock file, and a firewall with many rules can hold it for seconds.
//!
//! A command that does not end within its limit is killed, with every process that it started. That leaves a legal
//! state, as a kill of the daemon does: `iptables-restore` and `nft` commit everything at once or nothing, and
//! `ipset restore` carries out its lines in an order of which every prefix is legal.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    io::{self, Read, Seek as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::CommandExt as _,
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, killpg},
    },
    unistd::Pid,
};

use super::DataplaneError;

/// How long one run of a program waits for the xtables lock, in seconds. After each such wait a warning is logged.
const LOCK_ROUND_SECONDS: u32 = 2;

/// How long an operation waits for the xtables lock in total.
const LOCK_PATIENCE: Duration = Duration::from_mins(1);

/// How long a command may run, unless a flag says otherwise. One that has input may run for longer.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// A command may run for one second longer for each of these: 100,000 rules are 10 MB.
const INPUT_BYTES_PER_SECOND: usize = 100_000;

/// How long to wait for a killed command to end. One that a system call holds in the kernel ends only after that call.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// The most that a command may write to standard output, in bytes: two million set entries are less.
const STDOUT_LIMIT: usize = 128 << 20;

/// As much of standard error is kept, in bytes. The rest is read and dropped.
const STDERR_LIMIT: usize = 64 << 10;

/// How often to check whether a command has ended although a process that it started still holds its output open.
const END_INTERVAL: Duration = Duration::from_millis(50);

/// Where programs are searched for if there is no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs programs and counts how many it started.
#[derive(Debug)]
pub struct Commands {
    path: OsString,
    patience: Duration,
    limit: Duration,
    started: AtomicU64,
    /// How many runs have taken the xtables lock, or tried to. Locked while one does.
    lock_runs: Mutex<u64>,
    /// Programs that were found, with their paths.
    found: Mutex<BTreeMap<String, PathBuf>>,
    /// The commands that run now, by their number, and since when.
    running: Mutex<BTreeMap<u64, (String, Instant)>>,
    /// Commands that were killed and have not ended.
    unkillable: Mutex<Vec<(String, Child)>>,
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
            limit: COMMAND_LIMIT,
            started: AtomicU64::new(0),
            lock_runs: Mutex::new(0),
            found: Mutex::new(BTreeMap::new()),
            running: Mutex::new(BTreeMap::new()),
            unkillable: Mutex::new(Vec::new()),
        }
    }

    /// The same with another limit for each command.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The command that has been running for longest, and for how long.
    #[must_use]
    pub fn longest_running(&self) -> Option<(String, Duration)> {
        let running = locked(&self.running);
        let (command, since) = running.values().min_by_key(|(_, since)| *since)?;
        Some((command.clone(), since.elapsed()))
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
    /// If it is not installed or could not be run, or did not end in time. The caller must check whether it succeeded:
    /// see [`Output::checked`].
    pub fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<Output, DataplaneError> {
        let command = [&[program], arguments].concat().join(" ");
        let failed = |source| DataplaneError::System { doing: format!("running {command}"), source };
        let mut process = Command::new(self.find(program)?);
        // In a group of its own, so that whatever it starts can be killed with it.
        process.args(arguments).env("LC_ALL", "C").process_group(0);
        process.stdin(if input.is_empty() {
            Stdio::null()
        } else {
            in_memory(input).map_err(failed)?.into()
        });
        process.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.wait_for_killed(program)?;
        let started = Instant::now();
        let limit = self.limit + Duration::from_secs((input.len() / INPUT_BYTES_PER_SECOND) as u64);
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        locked(&self.running).insert(number, (command.clone(), started));
        let ended = process.spawn().and_then(|child| collect(child, started + limit));
        locked(&self.running).remove(&number);
        let output = match ended.map_err(failed)? {
            Ended::ByItself { status, stdout, stderr } => Output::new(command, status, stdout, stderr),
            Ended::Killed { child, stdout, stderr } => {
                locked(&self.unkillable).extend(child.map(|child| (command.clone(), child)));
                let stderr = text(stderr).trim().to_owned();
                return Err(if stdout.len() > STDOUT_LIMIT {
                    DataplaneError::TooMuchOutput { command, bytes: STDOUT_LIMIT, stderr }
                } else {
                    DataplaneError::TimedOut { command, after: started.elapsed(), stderr }
                });
            }
        };
        tracing::debug!(
            command = output.command,
            status = output.status,
            input_bytes = input.len(),
            microseconds = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            "command finished"
        );
        Ok(output)
    }

    /// Fails while a killed command has not ended: it might still write what is out of date by then. Loading a module
    /// may go on for long, and writes no rule.
    fn wait_for_killed(&self, program: &str) -> Result<(), DataplaneError> {
        let mut unkillable = locked(&self.unkillable);
        // A child that cannot be waited for does not exist.
        unkillable.retain_mut(|(_, child)| matches!(child.try_wait(), Ok(None)));
        let held = unkillable.iter().find(|(command, _)| !command.starts_with(MODPROBE));
        match held {
            Some((command, child)) if program != MODPROBE => {
                Err(DataplaneError::Unkillable { command: command.clone(), process: child.id() })
            }
            _ => Ok(()),
        }
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
        let arguments: Vec<&str> = ["-t", table].into_iter().chain(question.split(' ')).collect();
        self.run_with_lock(program, &arguments, "")
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
        locked(&self.lock_runs)
    }

    fn find(&self, program: &str) -> Result<PathBuf, DataplaneError> {
        let mut found = locked(&self.found);
        if let Some(file) = found.get(program) {
            return Ok(file.clone());
        }
        let file: Option<PathBuf> =
            std::env::split_paths(&self.path).map(|folder| folder.join(program)).find(|file| file.is_file());
        let Some(file) = file else {
            return Err(DataplaneError::Missing { program: program.to_owned(), package: package(program) });
        };
        found.insert(program.to_owned(), file.clone());
        Ok(file)
    }
}

/// Loads a module of the kernel.
const MODPROBE: &str = "modprobe";

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a command ended, and what it wrote.
enum Ended {
    ByItself {
        status: ExitStatus,
        stdout: Vec<u8>,
        stderr: Vec<u8>,
    },
    Killed {
        /// If it has not ended yet.
        child: Option<Child>,
        stdout: Vec<u8>,
        stderr: Vec<u8>,
    },
}

/// Reads what a command writes until it ends. After `deadline`, or when it has written too much, its group is killed.
fn collect(mut child: Child, deadline: Instant) -> io::Result<Ended> {
    let (mut stdout, mut stderr) = (Pipe::new(child.stdout.take()), Pipe::new(child.stderr.take()));
    let mut pause = Duration::from_micros(50);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stdout.kept.len() > STDOUT_LIMIT {
            let child = kill(child)?;
            return Ok(Ended::Killed { child, stdout: stdout.kept, stderr: stderr.kept });
        }
        if stdout.file.is_some() || stderr.file.is_some() {
            read(&mut stdout, &mut stderr, left.min(END_INTERVAL))?;
        } else {
            // It has closed both, which a program does by ending.
            thread::sleep(pause.min(left));
            pause = (pause * 2).min(END_INTERVAL);
        }
        if let Some(status) = child.try_wait()? {
            // What is still in the pipes. A process that it left behind may keep them open.
            while stdout.kept.len() <= STDOUT_LIMIT && read(&mut stdout, &mut stderr, Duration::ZERO)? {}
            return Ok(Ended::ByItself { status, stdout: stdout.kept, stderr: stderr.kept });
        }
    }
}

/// Kills a command and what it started. Returns it if it has not ended soon after.
fn kill(mut child: Child) -> io::Result<Option<Child>> {
    let group = i32::try_from(child.id()).map_err(io::Error::other)?;
    // Not reaped yet, so the group is its own even if it has just ended.
    match killpg(Pid::from_raw(group), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => return Err(error.into()),
    }
    let until = Instant::now() + KILL_PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() >= until {
            return Ok(Some(child));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(None)
}

/// One end of a pipe, and what came out of it.
struct Pipe<R> {
    /// `None` once it is at its end.
    file: Option<R>,
    kept: Vec<u8>,
}

impl<R: Read + AsFd> Pipe<R> {
    fn new(file: Option<R>) -> Self {
        Self { file, kept: Vec::new() }
    }

    fn take(&mut self, most: usize, buffer: &mut [u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let count = match file.read(buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        if count == 0 {
            self.file = None;
        }
        let room = most.saturating_sub(self.kept.len());
        self.kept.extend(buffer.iter().take(count.min(room)));
        Ok(())
    }
}

/// Waits for output of either pipe and reads it. Returns whether there was any, or an end.
fn read<A: Read + AsFd, B: Read + AsFd>(
    stdout: &mut Pipe<A>,
    stderr: &mut Pipe<B>,
    at_most: Duration,
) -> io::Result<bool> {
    let files: [Option<BorrowedFd<'_>>; 2] =
        [stdout.file.as_ref().map(AsFd::as_fd), stderr.file.as_ref().map(AsFd::as_fd)];
    let mut waits: Vec<PollFd<'_>> =
        files.iter().flatten().map(|file| PollFd::new(*file, PollFlags::POLLIN)).collect();
    if waits.is_empty() {
        return Ok(false);
    }
    let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
    match poll(&mut waits, timeout) {
        Ok(0) | Err(Errno::EINTR) => return Ok(false),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let mut ready = waits.iter().map(|wait| wait.any().unwrap_or(false));
    let is_ready = files.map(|file| file.is_some() && ready.next().unwrap_or(false));
    let mut buffer = [0; 1 << 14];
    if is_ready[0] {
        // One byte more than allowed shows that there was more.
        stdout.take(STDOUT_LIMIT + 1, &mut buffer)?;
    }
    if is_ready[1] {
        stderr.take(STDERR_LIMIT, &mut buffer)?;
    }
    Ok(true)
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
    fn new(command: String, status: ExitStatus, stdout: Vec<u8>, stderr: Vec<u8>) -> Self {
        Self {
            command,
            stdout: text(stdout),
            stderr: text(stderr).trim().to_owned(),
            success: status.success(),
            status: in_words(status),
            code: status.code(),
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

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn in_words(status: ExitStatus) -> String {
    status.to_string()
}

#[cfg(test)]
mod tests;
