//! What the plugin does, command by command.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    client::{AskError, Client, Patience},
    config::{Config, Entry, Version, WhenAway},
    environment::{self, Command, Variables},
    error::{Code, Error},
    prev_result::{self, Made},
    protocol::{Attachment, AttachmentId, MAX_MESSAGE, Request, Response, records},
};

/// The length of a configuration in bytes that is read.
const MAX_CONFIG: u64 = 1024 * 1024;

/// How long `ADD` tries to reach the daemon with `"whenAway": "open"`.
const OPEN_REACH: Duration = Duration::from_secs(1);
/// How long `DEL` waits. The runtime cannot end the pod before, and deletes again if this fails.
const DEL_PATIENCE: Duration = Duration::from_secs(2);
/// How long `CHECK`, `GC` and `STATUS` wait: longer than a restart of the daemon takes until it listens.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// The exit status of success.
const DONE: u8 = 0;
/// "A plugin must exit with a return code of 0 on success, and non-zero on failure."
const FAILED: u8 = 1;
/// Nobody asked for a command.
const WRONG_USE: u8 = 2;

/// Carries out one command. Returns the exit status.
pub(crate) fn run(
    variables: Variables<'_>,
    stdin: impl Read,
    mut stdout: impl Write,
    mut stderr: impl Write,
) -> u8 {
    let answer = match Command::of(variables) {
        Ok(Some(command)) => answer(command, variables, stdin, &mut stderr),
        Ok(None) => {
            note(
                &mut stderr,
                format_args!(
                    "towpath-cni {}: a chained CNI plugin ({}), called by a container runtime; CNI_COMMAND is not set",
                    env!("CARGO_PKG_VERSION"),
                    Version::names().join(", ")
                ),
            );
            return WRONG_USE;
        }
        Err(error) => Err(error),
    };
    let (text, status) = match answer {
        Ok(text) => (text, DONE),
        Err(error) => (json!(error).to_string(), FAILED),
    };
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => status,
        Err(error) => {
            note(&mut stderr, format_args!("towpath-cni: writing the result: {error}"));
            FAILED
        }
    }
}

/// "stderr can be used for unstructured output such as logs." If nobody reads it, nothing can be done about that.
fn note(mut stderr: impl Write, text: fmt::Arguments<'_>) {
    let _ = writeln!(stderr, "{text}");
}

/// What goes to standard output.
fn answer(
    command: Command,
    variables: Variables<'_>,
    stdin: impl Read,
    stderr: impl Write,
) -> Result<String, Error> {
    // A runtime that asks for versions may write nothing, or a version that is not ours.
    let is_probe = command == Command::Version;
    let text = match read(stdin) {
        Err(_) if is_probe => Vec::new(),
        text => text?,
    };
    let config = match Config::parse(&text) {
        Err(_) if is_probe => return Ok(versions(Version::NEWEST)),
        config => config?,
    };
    let done = |()| String::new();
    let answer = match command {
        Command::Add => add(&config, variables, stderr),
        Command::Check => check(&config, variables).map(done),
        Command::Del => del(&config, variables, stderr).map(done),
        Command::Gc => gc(&config).map(done),
        Command::Status => status(&config, stderr).map(done),
        Command::Version => Ok(versions(config.version)),
    };
    answer.map_err(|error| error.in_version(config.version))
}

fn read(stdin: impl Read) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    stdin
        .take(MAX_CONFIG + 1)
        .read_to_end(&mut text)
        .map_err(|error| Error::new(Code::Io, "reading the network configuration", error))?;
    if text.len() as u64 > MAX_CONFIG {
        let details = format!("it has more than {MAX_CONFIG} bytes");
        return Err(Error::new(Code::InvalidConfig, "the network configuration is too long", details));
    }
    Ok(text)
}

/// "`cniVersion`: The value of `cniVersion` specified on input; `supportedVersions`: A list of supported specification
/// versions".
fn versions(asked: Version) -> String {
    json!({"cniVersion": asked.name(), "supportedVersions": Version::names()}).to_string()
}

/// "If the plugin was supplied a `prevResult` as part of its input configuration, it MUST handle `prevResult` by either
/// passing it through, or modifying it appropriately."
fn add(config: &Config<'_>, variables: Variables<'_>, stderr: impl Write) -> Result<String, Error> {
    let entry = config.entry()?;
    let (attachment, prev_result) = match attachment(config, variables)? {
        (Some(attachment), prev_result) => (attachment, prev_result),
        // No pod, so no policy can select it.
        (None, prev_result) => return Ok(prev_result),
    };
    let pod = attachment.pod.clone();
    let patience = match entry.when_away {
        WhenAway::Wait => Patience::of(entry.timeout),
        WhenAway::Open => Patience { reach: OPEN_REACH, answer: entry.timeout },
    };
    match ask(&entry.socket, &Request::Add(attachment), patience)? {
        Ok(()) => Ok(prev_result),
        Err(NotDone::Away(away)) if entry.when_away == WhenAway::Open => {
            note(stderr, format_args!("towpath-cni: {pod} starts without waiting for its policies: {away}"));
            Ok(prev_result)
        }
        Err(not_done) => {
            Err(not_done.error(Code::TryAgainLater, &format!("the policies of pod {pod} are not in place")))
        }
    }
}

/// "The plugin must consult the `prevResult` to determine the expected interfaces and addresses." and "should return an
/// error if other resources not tracked in the Result type such as the following are missing or are in an invalid state:
/// Firewall rules, [...] External dependencies such as a daemon required for connectivity".
fn check(config: &Config<'_>, variables: Variables<'_>) -> Result<(), Error> {
    since(config, Version::V0_4_0, "CHECK")?;
    let entry = config.entry()?;
    let (Some(attachment), _) = attachment(config, variables)? else { return Ok(()) };
    let msg = format!("the policies of pod {} are not in place", attachment.pod);
    ask(&entry.socket, &Request::Check(attachment), Patience::of(PROBE_PATIENCE))?
        .map_err(|not_done| not_done.error(Code::TryAgainLater, &msg))
}

/// "Plugins should generally complete a `DEL` action without error even if some resources are missing." So it looks only
/// at what it needs: the attachment and the socket.
fn del(config: &Config<'_>, variables: Variables<'_>, stderr: impl Write) -> Result<(), Error> {
    let id = environment::attachment_id(variables)?;
    let socket = config.socket()?;
    match ask(&socket, &Request::Del(id.clone()), Patience::of(DEL_PATIENCE))? {
        Ok(()) => Ok(()),
        Err(NotDone::Away(away)) => {
            note(
                stderr,
                format_args!("towpath-cni: the record of {id} is removed without the daemon: {away}"),
            );
            remove_record(&socket, &id)
        }
        Err(not_done) => Err(not_done.error(Code::TryAgainLater, &format!("{id} is not removed"))),
    }
}

/// "Plugins MUST accept multiple `DEL` calls for the same (`CNI_CONTAINERID`, `CNI_IFNAME`) pair, and return success if
/// the interface in question, or any modifications added, are missing."
fn remove_record(socket: &Path, id: &AttachmentId) -> Result<(), Error> {
    let file = records(socket).join(id.file_name());
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::new(Code::Io, format!("removing {}", file.display()), error))
        }
        _ => Ok(()),
    }
}

/// "A plugin SHOULD remove as many stale resources as possible." Only the daemon knows which attachments belong to this
/// network and which to others.
fn gc(config: &Config<'_>) -> Result<(), Error> {
    since(config, Version::V1_1_0, "GC")?;
    let entry = config.entry()?;
    let request = Request::Gc { network: config.network()?, valid: config.valid_attachments()? };
    ask(&entry.socket, &request, Patience::of(PROBE_PATIENCE))?
        .map_err(|not_done| not_done.error(Code::TryAgainLater, "stale attachments are not removed"))
}

/// "A plugin must exit with a zero (success) return code if the plugin is ready to service ADD requests. If the plugin
/// knows that it is not able to service ADD requests, it must exit with a non-zero return code and output an error on
/// standard out". With `"whenAway": "open"` it services `ADD` without the daemon.
fn status(config: &Config<'_>, stderr: impl Write) -> Result<(), Error> {
    since(config, Version::V1_1_0, "STATUS")?;
    let entry = config.entry()?;
    config.network()?;
    let Entry { socket, when_away, .. } = entry;
    match ask(&socket, &Request::Status, Patience::of(PROBE_PATIENCE))? {
        Ok(()) => Ok(()),
        Err(NotDone::Away(away)) if when_away == WhenAway::Open => {
            note(stderr, format_args!("towpath-cni: pods start without waiting for their policies: {away}"));
            Ok(())
        }
        Err(not_done) => Err(not_done.error(Code::NotAvailable, "new pods cannot get their policies")),
    }
}

/// The command exists since this version of the specification.
fn since(config: &Config<'_>, version: Version, command: &str) -> Result<(), Error> {
    if config.version >= version {
        return Ok(());
    }
    let msg = format!("cniVersion {} has no {command}", config.version.name());
    Err(Error::new(Code::IncompatibleVersion, msg, format!("{command} exists since {}", version.name())))
}

/// What `ADD` and `CHECK` are about, and the previous result as it came. There is no attachment of a pod if the runtime
/// names no pod.
fn attachment(config: &Config<'_>, variables: Variables<'_>) -> Result<(Option<Attachment>, String), Error> {
    let (id, netns) = environment::attachment(variables)?;
    let network = config.network()?;
    let raw = config.prev_result()?;
    let Made { host_interfaces, mac, addresses } = prev_result::read(raw, &id.ifname)?;
    let attachment = environment::pod(variables)?.map(|pod| Attachment {
        id,
        network,
        pod,
        netns,
        host_interfaces,
        mac,
        addresses,
    });
    Ok((attachment, raw.get().to_owned()))
}

/// Why the daemon did not do what it was asked.
enum NotDone {
    /// It says so, and why.
    Refused(String),
    /// There is no answer.
    Away(Away),
}

/// The daemon is not there.
struct Away {
    socket: String,
    waited: Duration,
    error: AskError,
}

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { socket, waited, error } = self;
        let seconds = waited.as_secs_f64();
        write!(f, "no answer from the daemon of towpath at {socket} for {seconds:.0} s ({error})")
    }
}

impl NotDone {
    fn error(self, code: Code, msg: &str) -> Error {
        match self {
            Self::Refused(reason) => Error::new(code, msg, reason),
            Self::Away(away) => {
                Error::new(code, msg, format_args!("{away}; does the towpath pod of this node run?"))
            }
        }
    }
}

/// Asks the daemon. Fails if the request cannot be sent to any.
fn ask(socket: &Path, request: &Request, patience: Patience) -> Result<Result<(), NotDone>, Error> {
    let started = Instant::now();
    match Client::new(socket).ask(request, patience) {
        Ok(Response::Done) => Ok(Ok(())),
        Ok(Response::Failed { reason }) => Ok(Err(NotDone::Refused(reason))),
        Err(AskError::Request(error)) => {
            let msg = format!("the request to the daemon of towpath is longer than {MAX_MESSAGE} bytes");
            Err(Error::new(Code::TooLong, msg, error))
        }
        Err(error) => {
            let socket = socket.display().to_string();
            Ok(Err(NotDone::Away(Away { socket, waited: started.elapsed(), error })))
        }
    }
}
