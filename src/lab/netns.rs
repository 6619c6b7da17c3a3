//! A network namespace without a name, kept alive by this process alone.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
};

use super::LabError;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, and the thread that runs in it.
///
/// It is anonymous: nothing appears under `/run/netns`, and only an open descriptor keeps it alive. However this
/// process ends, the kernel removes the namespace with everything in it. A namespace belongs to a thread, so work
/// inside is sent to a thread that never leaves: processes that it starts and sysctls that it writes are those of the
/// namespace, and a socket always belongs to the namespace in which it was created.
#[derive(Debug)]
pub struct Netns {
    name: Arc<str>,
    handle: Arc<File>,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// The result of work for a namespace's thread.
#[derive(Debug)]
#[must_use]
pub struct Pending<T> {
    namespace: Arc<str>,
    result: mpsc::Receiver<T>,
}

impl<T> Pending<T> {
    /// Waits for it.
    ///
    /// # Errors
    /// [`LabError::ThreadEnded`] if the thread is gone, or the work panicked.
    pub fn wait(self) -> Result<T, LabError> {
        self.result.recv().map_err(|_| LabError::ThreadEnded(self.namespace.to_string()))
    }
}

impl Netns {
    /// A new, empty namespace; `name` appears in messages only.
    ///
    /// # Errors
    /// [`LabError::NotRoot`] if this process may not create one.
    pub fn new(name: impl Into<Arc<str>>) -> Result<Self, LabError> {
        let name = name.into();
        let (jobs, work) = mpsc::channel::<Job>();
        let (entered, outcome) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("ns {name}"))
            .spawn(move || {
                let handle = unshare(CloneFlags::CLONE_NEWNET)
                    .map_err(io::Error::from)
                    .and_then(|()| File::open("/proc/thread-self/ns/net"));
                let inside = handle.is_ok();
                if entered.send(handle).is_ok() && inside {
                    for job in work {
                        job();
                    }
                }
            })
            .map_err(LabError::system("start a thread"))?;
        let handle =
            outcome.recv().map_err(|_| LabError::ThreadEnded(name.to_string()))?.map_err(|error| {
                match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
                    Errno::EPERM | Errno::EACCES => LabError::NotRoot(error),
                    _ => LabError::system("make a network namespace")(error),
                }
            })?;
        Ok(Self { name, handle: Arc::new(handle), jobs: Some(jobs), thread: Some(thread) })
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path by which another process can refer to it while this one lives, as `ip link ... netns PATH` accepts it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }

    /// Runs `work` in the namespace, after what was submitted before, and does not wait for it.
    pub fn submit<T, F>(&self, work: F) -> Pending<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (done, result) = mpsc::sync_channel(1);
        if let Some(jobs) = &self.jobs {
            // A thread that has ended drops the job and with it `done`, which the receiver then notices.
            let _ended = jobs.send(Box::new(move || drop(done.send(work()))));
        }
        Pending { namespace: self.name.clone(), result }
    }

    /// Runs `work` in the namespace, and returns its result.
    ///
    /// # Errors
    /// [`LabError::ThreadEnded`] if the thread is gone, or the work panicked.
    pub fn run<T, F>(&self, work: F) -> Result<T, LabError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.submit(work).wait()
    }

    /// Starts another thread in the namespace, for long work.
    ///
    /// # Errors
    /// If the system provides no thread, or does not let it enter.
    pub fn start_thread<F>(&self, name: &str, work: F) -> Result<JoinHandle<()>, LabError>
    where
        F: FnOnce() + Send + 'static,
    {
        let handle = self.handle.clone();
        let (entered, outcome) = mpsc::sync_channel(1);
        let action = format!("start the thread {name:?} in the namespace of {}", self.name);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let inside = setns(&*handle, CloneFlags::CLONE_NEWNET);
                drop(handle);
                if entered.send(inside).is_ok() && inside.is_ok() {
                    work();
                }
            })
            .map_err(LabError::system(action.clone()))?;
        outcome
            .recv()
            .map_err(|_| LabError::ThreadEnded(self.name.to_string()))?
            .map_err(LabError::system(action))?;
        Ok(thread)
    }

    /// Starts a process in the namespace. Its standard streams are those of `command`.
    ///
    /// # Errors
    /// [`LabError::MissingProgram`] if there is no such program, otherwise a system error.
    pub fn spawn(&self, mut command: Command) -> Result<Child, LabError> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.run(move || command.spawn())?.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => LabError::MissingProgram { package: package_of(&program), program },
            _ => LabError::system(format!("start {program}"))(error),
        })
    }

    /// Runs a process in the namespace to its end, with `input` as its standard input.
    ///
    /// # Errors
    /// Only if it cannot be started or waited for: a process that fails is an [`Output`] like any other.
    pub fn output(&self, mut command: Command, input: &str) -> Result<Output, LabError> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = self.spawn(command)?;
        let stdin = child.stdin.take();
        thread::scope(|scope| {
            // A process that stops reading closes the pipe: its own message is then more useful than the write's error.
            scope.spawn(|| stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
            child.wait_with_output()
        })
        .map_err(LabError::system(format!("wait for {program}")))
    }

    /// Runs a process in the namespace that must succeed; returns what it printed.
    ///
    /// # Errors
    /// [`LabError::Command`] with its standard error, if it fails.
    pub fn succeed(&self, program: &str, arguments: &[&str], input: &str) -> Result<String, LabError> {
        let mut command = Command::new(program);
        command.args(arguments);
        let output = self.output(command, input)?;
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        if stderr.contains("Unknown device type") {
            let wanted = ["vxlan", "veth", "bridge"].into_iter().find(|module| stderr.contains(module));
            return Err(LabError::MissingModule { module: wanted.unwrap_or("veth") });
        }
        Err(LabError::Command {
            command: [&[program], arguments].concat().join(" "),
            namespace: self.name.to_string(),
            status: output.status,
            stderr,
            input: input.to_owned(),
        })
    }

    /// Runs lines of `ip`, all in one process.
    ///
    /// # Errors
    /// [`LabError::Command`] with the line that failed.
    pub fn ip(&self, lines: &[String]) -> Result<(), LabError> {
        self.succeed("ip", &["-batch", "-"], &lines.join("\n")).map(drop)
    }

    /// Writes sysctls, each a path below `/proc/sys/net` and its value.
    ///
    /// # Errors
    /// The first one that could not be written.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<(), LabError> {
        let values: Vec<(String, String)> = values
            .iter()
            .map(|(path, value)| (format!("/proc/sys/net/{path}"), (*value).to_owned()))
            .collect();
        self.run(move || {
            values.into_iter().try_for_each(|(path, value)| {
                std::fs::write(&path, &value).map_err(LabError::system(format!("write {value} to {path}")))
            })
        })?
    }
}

/// Ends the thread; the namespace disappears with its last descriptor, socket and process.
impl Drop for Netns {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported when it happened.
            let _panicked = thread.join();
        }
    }
}

/// The Debian package that contains a program that a lab may start.
fn package_of(program: &str) -> &'static str {
    match program.rsplit('/').next().unwrap_or(program) {
        "ip" | "bridge" | "ss" | "tc" => "iproute2",
        name if name.starts_with("ip6tables") || name.starts_with("iptables") => "iptables",
        "ipset" => "ipset",
        _ => "that has this program",
    }
}
