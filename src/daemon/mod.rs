//! The daemon: starts all parts, connects them, and waits until it is stopped.
//!
//! ```text
//! source  --Changes--> agent --Step--> kernel
//! kernel  --Recheck----^ |  |
//! guard   --Tunnels----^ |  +--Applied--> conntrack_cleaner: cuts connections that policy no longer allows
//!   ^                    |
//!   +-------Owners-------+
//! kernel --copies of dropped packets--> drop_log --Identify--> agent
//! web: /metrics /status /drops /livez /readyz <-- metrics, status, drop_log
//! ```
//!
//! - `source`: objects out of files or the API server.
//! - `guard`: the thread of the interface guard.
//! - `conntrack_cleaner`: the thread that cuts established connections.
//! - `gate`: the threads that answer the CNI plugin.
//! - `gate_install`: the thread that installs the gate for new pods.
//! - `drop_log`: the threads that read and explain copies of dropped packets.
//! - `drop_events`: Kubernetes Events about denied packets, if wanted.
//! - `host`: the thread that checks settings of the host without which packets bypass the rules.
//! - `events`: Kubernetes Events about what is over budget.

mod conntrack_cleaner;
mod drop_events;
mod drop_log;
mod events;
mod gate;
mod gate_install;
mod guard;
mod host;
mod source;
mod traffic;

pub use drop_log::Telling;
pub use gate::gate_socket;
pub use gate_install::GateInstall;
pub use host::HostChecks;

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ipnet::IpNet;
use tokio::{
    net::TcpListener,
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing::{error, info, warn};

use crate::{
    agent::{Agent, Applied, GuardState, Input, Pace, Status},
    dataplane::{
        DataplaneError,
        command::Commands,
        kernel::{self, Backend, Kernel, lock::WriterLock},
    },
    drops::DropLog,
    gate::install::Installation,
    k8s::{
        events::EventWriter,
        files::SavedFiles,
        watch::{Access, MemoryLimits},
    },
    metrics::Metrics,
    page::{Explainer, api::Page, guard::Guard},
    policy::budget::Budgets,
    ruleset::{
        Field, Match, Rule, Target,
        compile::{LogLimit, Options},
        log_prefix::LogPrefix,
    },
    web::{About, NodeObjects, NodePage, Web},
};
use drop_log::DropLogger;
use source::{Outputs, Source};

/// What the daemon does, and how.
#[derive(Debug)]
pub struct Settings {
    /// The files and folders with the objects; the API server if there are none.
    pub files: Vec<PathBuf>,
    /// The way to the API server.
    pub access: Access,
    /// The name of this node, as in `spec.nodeName` of its pods.
    pub node: Arc<str>,
    /// The variant of iptables to use.
    pub backend: Backend,
    /// The address to serve `/metrics`, `/status`, `/livez` and `/readyz` on.
    pub listen: SocketAddr,
    /// How rules are written. Whether the link rules are among them depends on the interface guard.
    pub options: Options,
    /// The blocks of this node's pod addresses; if there are none, those of the node's object.
    pub pod_cidrs: Vec<IpNet>,
    /// What policies may cost this node.
    pub budgets: Budgets,
    /// How much memory policies may take.
    pub memory: MemoryLimits,
    /// The node is not ready while a change has been pending for longer than this.
    pub ready_lag: Duration,
    /// How often to compare everything in the kernel with what was written.
    pub check_interval: Duration,
    /// How long a command may run before it is killed; one with much input may run for longer.
    pub command_limit: Duration,
    /// Whether to write Kubernetes Events, if the objects come from the API server.
    pub writes_events: bool,
    /// Whether to cut established connections that policy no longer allows.
    pub cuts_connections: bool,
    /// Which settings of the host to check.
    pub host: HostChecks,
    /// Whether dropped packets are recorded and logged.
    pub telling: Telling,
    /// How many records of dropped packets are kept.
    pub drop_records: usize,
    /// How many pods have a metric of their own for denied packets.
    pub drop_pod_metrics: usize,
    /// Whether to write Kubernetes Events about denied packets, if the objects come from the API server.
    pub drop_events: bool,
    /// Whether to check what pods send.
    pub interface_guard: InterfaceGuard,
    /// Whether to install the gate for new pods.
    pub gate_install: GateInstall,
    /// The page, if it is served.
    pub page: Option<PageSettings>,
    /// The folder of the writer lock, of the gate's socket and records, and of what was read from files.
    pub run_dir: PathBuf,
}

/// How the daemon serves its page.
#[derive(Clone, Copy, Debug)]
pub struct PageSettings {
    /// How it explains a flow.
    pub explainer: Explainer,
    /// Whether everybody who reaches the daemon sees it, or only clients on this node's network.
    pub for_all: bool,
}

/// Whether to check what pods send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterfaceGuard {
    /// If the kernel supports it.
    Auto,
    /// Always; without support the daemon does not run.
    Require,
    /// Never; the tables of a previous run are removed.
    Off,
}

/// How long the loop may take to stop on request. What a single command does to the kernel is atomic.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of the daemon that reports that new pods cannot be answered.
const GATE: &str = "gate";

/// How long the address for HTTP may be in use by a process that has just ended.
const IN_USE: Duration = Duration::from_secs(2);

/// How often to check whether changes have been pending for too long.
const LAG_INTERVAL: Duration = Duration::from_secs(1);

/// While changes are pending for too long, this is logged so often.
const LAG_LOG_INTERVAL: Duration = Duration::from_secs(30);

/// The node is not ready while a command has been running for this long: what it writes or reads is not known.
const SLOW_COMMAND: Duration = Duration::from_secs(5);

/// The part of the daemon that reports slow commands.
const COMMANDS: &str = "commands";

/// Runs the daemon until it receives SIGTERM or SIGINT. The rules stay in the kernel.
///
/// # Errors
/// If a part cannot be started, or the sync loop ends by itself.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    let commands = Arc::new(Commands::default().with_limit(settings.command_limit));
    let metrics = Arc::new(Metrics::new()?);
    let counted = commands.clone();
    metrics.count_commands(move || counted.started());
    let status = Arc::new(Status::starting("waiting for the initial lists"));
    status.set_lag_limit(settings.ready_lag);
    let waiting = status.clone();
    metrics.show_pending(move || waiting.waiting());
    let ready = status.clone();
    metrics.show_ready(move || ready.readiness().is_ready());
    let kernel = Kernel::new(commands.clone(), settings.backend)?;
    info!(node = %settings.node, iptables = %kernel.variant(), version = env!("CARGO_PKG_VERSION"), "starting towpath");
    if settings.interface_guard == InterfaceGuard::Require {
        guard::probe(&commands)?;
    }

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let listener = runtime
        .block_on(listen(settings.listen))
        .with_context(|| format!("listening on {}", settings.listen))?;
    let about = About { node: settings.node.clone(), iptables: kernel.variant().to_string() };
    let gate = Arc::new(Installation::default());
    let drops = Arc::new(DropLog::new(settings.drop_records, Some(drops_are_off(&settings).to_owned())));
    let web = Web {
        about,
        metrics: metrics.clone(),
        status: status.clone(),
        gate: gate.clone(),
        drops: drops.clone(),
    };
    let (inputs, inbox) = mpsc::channel();
    let page = settings.page.map(|page| NodePage {
        router: Page::new(Arc::new(NodeObjects::new(web.clone(), inputs.clone())), page.explainer)
            .router(Guard { token: None }),
        for_all: page.for_all,
    });
    if let Some(near) = runtime.block_on(loopback(settings.listen)) {
        runtime.spawn(web.clone().serve_with(near, page.clone()));
    }
    runtime.spawn(web.serve_with(listener, page));
    runtime.spawn(warn_of_lag(status.clone()));
    runtime.spawn(report_slow_commands(commands.clone(), status.clone()));
    if settings.writes_events && settings.files.is_empty() {
        let writer = EventWriter::new(settings.access.clone(), settings.node.clone());
        runtime.spawn(events::report(writer, status.clone()));
    }

    let daemon = Daemon { settings, commands, metrics, status, gate, drops, inputs: inputs.clone() };
    let mut ended = {
        // The watches need the context of the runtime.
        let _runtime = runtime.enter();
        daemon.start(kernel, inbox)?
    };
    let signal = runtime.block_on(async {
        tokio::select! {
            signal = stop_signal() => signal.map(Some),
            _ = &mut ended => Ok(None),
        }
    })?;
    let Some(signal) = signal else {
        anyhow::bail!("the sync loop ended unexpectedly; rules stay in place");
    };
    info!(signal, "stopping; rules stay in place");
    // The loop may have ended already.
    let _ = inputs.send(Input::Stop);
    if runtime.block_on(async { tokio::time::timeout(STOP_TIMEOUT, ended).await }).is_err() {
        warn!("a command is still running; not waiting for it");
    }
    runtime.shutdown_background();
    Ok(())
}

/// Listens on an address. A process that was killed may leave it in use for a moment: a command that it was about to
/// start still has the socket.
async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let until = Instant::now() + IN_USE;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                tokio::time::sleep(IN_USE / 20).await;
            }
            result => return result,
        }
    }
}

/// Listens on loopback as well, if the address is another one: what a kubelet forwards to the daemon arrives there.
async fn loopback(address: SocketAddr) -> Option<TcpListener> {
    if address.ip().is_loopback() || address.ip().is_unspecified() {
        return None;
    }
    let near = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port());
    match TcpListener::bind(near).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            info!(%error, "not listening on {near}; towpath drops --all-nodes does not reach this node");
            None
        }
    }
}

/// Waits for SIGTERM or SIGINT, and returns its name.
///
/// # Errors
/// If no handler can be installed.
pub async fn stop_signal() -> std::io::Result<&'static str> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// Logs that changes have been pending for too long. Separate from the loop, which may be busy with the very thing that
/// takes so long.
async fn warn_of_lag(status: Arc<Status>) {
    let mut logged: Option<Instant> = None;
    loop {
        tokio::time::sleep(LAG_INTERVAL).await;
        let (waiting, limit) = (status.waiting(), status.lag_limit());
        if waiting <= limit {
            if logged.take().is_some() {
                info!("pending changes are written in time again");
            }
        } else if logged.is_none_or(|logged| logged.elapsed() >= LAG_LOG_INTERVAL) {
            let busy = status.silence().as_secs();
            warn!(
                seconds = waiting.as_secs(),
                loop_busy_seconds = busy,
                "changes have been pending for too long"
            );
            logged = Some(Instant::now());
        }
    }
}

/// Reports a command that has been running for long, while it runs. Separate from the loop, which waits for it.
async fn report_slow_commands(commands: Arc<Commands>, status: Arc<Status>) {
    let mut known: Option<String> = None;
    loop {
        tokio::time::sleep(LAG_INTERVAL).await;
        let slow = commands.longest_running().filter(|(_, running)| *running >= SLOW_COMMAND);
        if let Some((command, running)) = slow {
            let text = format!("{command} has been running for {} s", running.as_secs());
            status.set_condition(COMMANDS, Some(text));
            if known.as_ref() != Some(&command) {
                warn!(
                    command,
                    seconds = running.as_secs(),
                    "command is slow; if it does not end, it is killed"
                );
                known = Some(command);
            }
        } else if known.take().is_some() {
            status.set_condition(COMMANDS, None);
        }
    }
}

/// What the parts of the daemon share.
struct Daemon {
    settings: Settings,
    commands: Arc<Commands>,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    gate: Arc<Installation>,
    drops: Arc<DropLog>,
    inputs: Sender<Input>,
}

impl Daemon {
    /// Starts every part on its own thread. The returned receiver resolves when the loop ends.
    fn start(self, kernel: Kernel, inbox: Receiver<Input>) -> anyhow::Result<oneshot::Receiver<()>> {
        let files = if self.settings.files.is_empty() {
            None
        } else {
            let Settings { files, run_dir, node, .. } = &self.settings;
            Some(self.outputs().files(files, SavedFiles::new(run_dir, node, files))?)
        };
        let applied = if self.settings.cuts_connections {
            Some(conntrack_cleaner::start(self.metrics.clone())?)
        } else {
            None
        };
        host::watch(&self.settings.host, &self.commands, &self.metrics, &self.status)?;
        let runtime = Handle::current();
        let (ending, ended) = oneshot::channel::<()>();
        thread::Builder::new().name("agent".to_owned()).spawn(move || {
            // Dropped when this thread ends, however it ends: that notifies the receiver.
            let _ending = ending;
            self.enforce(kernel, files, applied, &runtime, &inbox);
        })?;
        Ok(ended)
    }

    /// Runs the loop, once no other daemon runs one.
    fn enforce(
        self,
        mut kernel: Kernel,
        files: Option<Source>,
        applied: Option<Sender<Applied>>,
        runtime: &Handle,
        inbox: &Receiver<Input>,
    ) {
        let Some(_lock) = writer_lock(&self.settings.run_dir, &self.status) else { return };
        let outputs = self.outputs();
        let Self { settings, commands, metrics, status, gate: installation, drops, inputs } = self;
        let objects = if files.is_some() {
            gate::ObjectReader::Files
        } else {
            gate::ObjectReader::Api(settings.access.clone(), runtime.clone())
        };
        let drop_events = (settings.drop_events && files.is_none()).then(|| {
            let (sender, records) = drop_events::waiting();
            let writer = EventWriter::new(settings.access.clone(), settings.node.clone());
            runtime.spawn(drop_events::report(writer, records));
            sender
        });
        // A daemon that waits for another one watches nothing: nothing would take in its changes.
        let source = files.unwrap_or_else(|| {
            let _runtime = runtime.enter();
            outputs.api(settings.access, settings.node.clone(), settings.memory)
        });
        let wants_log = settings.options.log_group.is_some();
        let options = without_unsupported_log(settings.options, &mut kernel);
        let logger = DropLogger {
            node: settings.node.clone(),
            log: drops,
            inputs: inputs.clone(),
            metrics: metrics.clone(),
            status: status.clone(),
            logs: settings.telling == Telling::On,
            pod_metrics: settings.drop_pod_metrics,
            events: drop_events,
        };
        start_drop_log(logger, settings.telling, options.log_group, wants_log);
        // Only now, since another daemon may have written the guard until just before.
        let mut guard = match interface_guard(settings.interface_guard, &commands, &status) {
            Ok(guard) => guard,
            Err(error) => {
                error!(%error, "cannot set up the interface guard");
                return;
            }
        };
        let options = Options { link_rules: guard.is_none(), ..options };
        // Known before the first rules are written: those of a previous run are about the same tunnels.
        let tunnels =
            guard.as_mut().map(guard::UnstartedGuard::tunnels).transpose().unwrap_or_else(|error| {
                warn!(%error, "cannot read the tunnels of this node");
                None
            });
        let changed = inputs.clone();
        let send_tunnels = move |tunnels| {
            let _ = changed.send(Input::Tunnels(tunnels));
        };
        let started = guard.map(|ready| guard::start(ready, metrics.clone(), status.clone(), send_tunnels));
        let guard = match started.transpose() {
            Ok(guard) => guard,
            Err(error) => {
                error!(%error, "cannot start the interface guard");
                return;
            }
        };
        let gate = gate::start(&settings.run_dir, inputs.clone(), metrics.clone(), status.clone(), objects);
        let gate = gate.and_then(|gate| {
            gate_install::start(settings.gate_install, metrics.clone(), installation)?;
            Ok(gate)
        });
        // Without it new pods cannot be answered; all others are enforced.
        let (known, records) = match gate {
            Ok(gate) => (gate.known, Some(gate.records)),
            Err(error) => {
                error!(%error, "cannot answer the CNI plugin");
                status
                    .set_condition(GATE, Some(format!("the gate for new pods cannot be answered: {error}")));
                (Vec::new(), None)
            }
        };
        let recheck = move || {
            let _ = inputs.send(Input::Recheck);
        };
        let watches = (kernel.watch(recheck.clone()), kernel.watch_sets(recheck));
        let pace = Pace { check: settings.check_interval, ..Pace::default() };
        let mut agent = Agent::new(&settings.node, kernel, options, pace, metrics, status, applied);
        if !settings.pod_cidrs.is_empty() {
            agent = agent.with_pod_cidrs(&settings.pod_cidrs);
        }
        agent
            .with_guard(guard)
            .with_attachments(known, records)
            .with_tunnels(tunnels)
            .with_budgets(settings.budgets)
            .run(inbox);
        drop((watches, source));
    }

    /// What a source of objects is connected to.
    fn outputs(&self) -> Outputs {
        Outputs { inputs: self.inputs.clone(), metrics: self.metrics.clone(), status: self.status.clone() }
    }
}

/// Why no dropped packets are recorded: because of the settings, or not yet.
fn drops_are_off(settings: &Settings) -> &'static str {
    if settings.telling == Telling::Off {
        "--drop-log=off"
    } else if settings.options.log_group.is_none() {
        "--nflog-group=0"
    } else {
        "the daemon is starting"
    }
}

/// Starts to record dropped packets, unless that is not wanted or not possible. Only the holder of the writer lock does:
/// one process can read a log group.
fn start_drop_log(logger: DropLogger, telling: Telling, group: Option<u16>, group_was_wanted: bool) {
    if telling == Telling::Off {
        return;
    }
    let Some(group) = group else {
        if group_was_wanted {
            let reason = "the kernel cannot log denied packets: load the module xt_NFLOG";
            logger.log.set_off(Some(reason.to_owned()));
        }
        return;
    };
    if let Err(error) = logger.start(group) {
        error!(%error, "cannot record denied packets");
    }
}

/// Waits until no other daemon holds the writer lock of this network namespace.
fn writer_lock(folder: &Path, status: &Status) -> Option<WriterLock> {
    let waiting = |holder: Option<u32>| {
        let holder = holder.map_or(String::new(), |pid| format!(" (process {pid})"));
        status.wait_for(&format!("another towpath{holder} holds the writer lock of this network namespace"));
    };
    match WriterLock::acquire(folder, waiting) {
        Ok(lock) => {
            status.wait_for("waiting for the initial lists");
            Some(lock)
        }
        Err(error) => {
            error!(%error, "cannot take the writer lock; not writing any rules");
            status.wait_for(&error.to_string());
            None
        }
    }
}

/// The interface guard, if it is wanted and the kernel supports it.
fn interface_guard(
    wanted: InterfaceGuard,
    commands: &Arc<Commands>,
    status: &Status,
) -> Result<Option<guard::UnstartedGuard>, DataplaneError> {
    let reason = if wanted == InterfaceGuard::Off {
        kernel::guard::remove(commands)?;
        "--interface-guard=off".to_owned()
    } else {
        match guard::probe(commands) {
            Ok(ready) => return Ok(Some(ready)),
            Err(error) if wanted == InterfaceGuard::Require => return Err(error),
            Err(error) => {
                warn!(%error, "no interface guard: spoofed addresses and tagged frames from pods are not dropped");
                error.to_string()
            }
        }
    };
    status.set_guard(GuardState { off: Some(reason), ..GuardState::default() });
    Ok(None)
}

/// Turns off the log of denied packets, or the shares of senders in it, if the kernel does not support it: policy matters
/// more than its log.
fn without_unsupported_log(options: Options, kernel: &mut Kernel) -> Options {
    let Some(group) = options.log_group else { return options };
    let mut takes = |limit: Match| {
        let target = Target::Log { group, prefix: LogPrefix::UnknownPod.to_string().into() };
        kernel.takes(&Rule::new([limit], target)).unwrap_or_else(|error| {
            warn!(%error, "cannot check whether the kernel can log denied packets");
            true
        })
    };
    if !takes(Match::Limit { per_second: 1 }) {
        warn!("kernel cannot log denied packets: load the module xt_NFLOG; enforcing policy without the log");
        return Options { log_group: None, ..options };
    }
    if takes(Match::LimitEach { per_second: 1, field: Field::Source }) {
        return options;
    }
    warn!(
        "kernel cannot limit copies of denied packets by sender: load the module xt_hashlimit; one sender may hide \
         others in the drop log"
    );
    Options { log_limit: LogLimit::OfARule, ..options }
}
