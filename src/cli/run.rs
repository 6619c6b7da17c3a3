//! `towpath run`: connects all parts of the daemon.
//!
//! ```text
//! API server, or
//! files --------Changes----> agent --Step--> kernel
//! watcher -------Recheck----^  |
//!                                +--Applied--> conntrack_cleaner (connections that policy no longer allows)
//! web: /metrics /status /livez /readyz <-- metrics, status
//! ```

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing::{error, info, warn};

use super::{
    BackendArg, BudgetArgs, ClusterArgs, Ended, EnforcementArgs, LogFormat, NodeArgs,
    client::{DEFAULT_ADDRESS, address_and_port},
    conntrack_cleaner, events, guard,
    source::Ends,
};
use crate::{
    agent::{Agent, GuardState, Input, LAG_LIMIT, Pace, Status},
    dataplane::{
        DataplaneError,
        command::Commands,
        kernel::{
            self, Kernel, ipvs,
            lock::{self, WriterLock},
            sysctl::{self, Bridge},
        },
    },
    k8s::{events::EventWriter, watch::MemoryLimits},
    metrics::Metrics,
    ruleset::{Match, Rule, Target, compile::Options},
    web::{About, Web},
};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// A file or folder with the objects, which is watched for changes; may be repeated. Default: the API server.
    #[arg(short, long = "file", value_name = "PATH", env = "TOWPATH_FILE")]
    file: Vec<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    node: NodeArgs,
    /// The variant of iptables to use.
    #[arg(long, visible_alias = "backend", value_enum, default_value_t = BackendArg::Auto)]
    #[arg(env = "TOWPATH_IPTABLES_BACKEND")]
    iptables_backend: BackendArg,
    /// The address to serve /metrics, /status, /livez and /readyz on.
    #[arg(long, value_name = "ADDR:PORT", default_value = DEFAULT_ADDRESS, env = "TOWPATH_LISTEN")]
    #[arg(value_parser = address_and_port)]
    listen: SocketAddr,
    #[command(flatten)]
    enforcement: EnforcementArgs,
    #[command(flatten)]
    budgets: BudgetArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    /// The node is not ready while a change has been pending for longer than this, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = LAG_LIMIT.as_secs(), env = "TOWPATH_READY_LAG")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3_600))]
    ready_lag: u64,
    /// Whether to write a Kubernetes Event into a namespace whose policies are over budget.
    #[arg(long, value_enum, default_value_t = Events::Auto, env = "TOWPATH_EVENTS")]
    events: Events,
    /// What to do with an established connection that policy no longer allows.
    #[arg(long, value_enum, default_value_t = Established::Cut, env = "TOWPATH_ESTABLISHED")]
    established: Established,
    /// Whether packets between pods on one bridge must pass through iptables, as with flannel and other bridge CNIs.
    #[arg(long, value_enum, default_value_t = BridgeNetfilter::Require, env = "TOWPATH_BRIDGE_NETFILTER")]
    bridge_netfilter: BridgeNetfilter,
    /// What to do if IPVS serves Services: traffic from pods to them is not policed.
    #[arg(long, value_enum, default_value_t = IpvsServices::Refuse, env = "TOWPATH_IPVS")]
    ipvs: IpvsServices,
    /// Whether to check what pods send: only from their own addresses, and only IPv4, IPv6 and ARP.
    #[arg(long, value_enum, default_value_t = InterfaceGuard::Auto, env = "TOWPATH_INTERFACE_GUARD")]
    interface_guard: InterfaceGuard,
    /// The directory of the network sysctls. A container sees the usual one read-only.
    #[arg(long, value_name = "DIR", default_value = sysctl::PROC_SYS_NET, env = "TOWPATH_PROC_SYS_NET")]
    proc_sys_net: PathBuf,
    /// How often to compare everything in the kernel with what was written, in seconds. Changes to the filter table are
    /// noticed at once; this is for the rest.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, env = "TOWPATH_CHECK_INTERVAL")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    check_interval: u64,
    /// The folder of the lock file that lets only one daemon write rules in a network namespace.
    #[arg(long, value_name = "DIR", default_value = lock::FOLDER, env = "TOWPATH_RUN_DIR")]
    run_dir: PathBuf,
    /// The format of the log.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "TOWPATH_LOG_FORMAT")]
    pub(super) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Established {
    /// Cut it at once.
    Cut,
    /// Let it go on until it ends by itself.
    Keep,
}

/// How much memory policies may take, whichever pods they are for.
#[derive(Debug, Args)]
struct MemoryArgs {
    /// Memory that the policies of one namespace may take, in MiB. If they take more, all of them isolate their pods
    /// and allow nothing.
    #[arg(long, value_name = "MIB", default_value_t = MemoryLimits::default().namespace / MIB)]
    #[arg(env = "TOWPATH_NAMESPACE_MEMORY", value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    namespace_memory: u64,
    /// Memory that the policies of all namespaces together may take, in MiB. Beyond that, the largest namespaces are
    /// closed first.
    #[arg(long, value_name = "MIB", default_value_t = MemoryLimits::default().all / MIB)]
    #[arg(env = "TOWPATH_CLUSTER_MEMORY", value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    cluster_memory: u64,
}

/// A mebibyte, in bytes.
const MIB: u64 = 1024 * 1024;

impl MemoryArgs {
    fn limits(&self) -> MemoryLimits {
        MemoryLimits { namespace: self.namespace_memory * MIB, all: self.cluster_memory * MIB }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Events {
    /// Write Events if the API server is the source of objects and permits it.
    Auto,
    /// Write no Events.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BridgeNetfilter {
    /// Load `br_netfilter`, set its sysctls and watch them; not ready while they are wrong.
    Require,
    /// Change nothing: no pod is on a bridge.
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum InterfaceGuard {
    /// Check if the kernel supports it; otherwise log a warning and enforce policy without.
    Auto,
    /// Check; exit with an error if the kernel does not support it.
    Require,
    /// Do not check, and remove the tables of a previous run.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IpvsServices {
    /// Not ready while there are any.
    Refuse,
    /// Enforce policy on everything else.
    Ignore,
}

/// The part of the daemon that reports IPVS.
const IPVS: &str = "ipvs";

/// The part of the daemon that reports bridged packets.
const BRIDGE: &str = "bridge";

/// How often to check what can be checked without starting a process.
const GUARD_INTERVAL: Duration = Duration::from_secs(2);

/// How long the loop may take to stop on request. What a single command does to the kernel is atomic.
const FAREWELL: Duration = Duration::from_secs(5);

pub(super) fn run(args: &RunArgs) -> Result<(), Ended> {
    let commands = Arc::new(Commands::default());
    let metrics = Arc::new(Metrics::new()?);
    let counted = commands.clone();
    metrics.count_commands(move || counted.started());
    let status = Arc::new(Status::starting("waiting for the initial lists"));
    status.set_lag_limit(Duration::from_secs(args.ready_lag));
    let waiting = status.clone();
    metrics.show_pending(move || waiting.waiting());
    let kernel = Kernel::new(commands.clone(), args.iptables_backend.into())?;
    info!(node = %args.node.node_name, iptables = %kernel.variant(), version = env!("CARGO_PKG_VERSION"), "starting towpath");
    if args.interface_guard == InterfaceGuard::Require {
        guard::probe(&commands)?;
    }

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let listener = runtime
        .block_on(TcpListener::bind(args.listen))
        .with_context(|| format!("listening on {}", args.listen))?;
    let about = About { node: args.node.node_name.clone(), iptables: kernel.variant().to_string() };
    let web = Web { about, metrics: metrics.clone(), status: status.clone() };
    runtime.spawn(web.serve(listener));
    runtime.spawn(warn_of_lag(status.clone()));
    if args.events == Events::Auto && args.file.is_empty() {
        let writer = EventWriter::new(args.cluster.access(), args.node.node_name.clone());
        runtime.spawn(events::report(writer, status.clone()));
    }

    let (inputs, inbox) = mpsc::channel();
    let daemon = Daemon { args, commands, metrics, status, inputs: inputs.clone() };
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
        return Err(Ended::Failed(anyhow::anyhow!("the sync loop ended unexpectedly; rules stay in place")));
    };
    info!(signal, "stopping; rules stay in place");
    // The loop may have ended already.
    let _ = inputs.send(Input::Stop);
    if runtime.block_on(async { tokio::time::timeout(FAREWELL, ended).await }).is_err() {
        warn!("a command is still running; not waiting for it");
    }
    runtime.shutdown_background();
    Ok(())
}

/// Waits for SIGTERM or SIGINT, and returns its name.
pub(super) async fn stop_signal() -> std::io::Result<&'static str> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// How often to check whether changes have been pending for too long.
const LAG_INTERVAL: Duration = Duration::from_secs(1);

/// While changes are pending for too long, the log says so this often.
const LAG_TOLD_EVERY: Duration = Duration::from_secs(30);

/// Logs that changes have been pending for too long. Separate from the loop, which may be busy with the very thing that
/// takes so long.
async fn warn_of_lag(status: Arc<Status>) {
    let mut told: Option<Instant> = None;
    loop {
        tokio::time::sleep(LAG_INTERVAL).await;
        let (waiting, limit) = (status.waiting(), status.lag_limit());
        if waiting <= limit {
            if told.take().is_some() {
                info!("pending changes are written in time again");
            }
        } else if told.is_none_or(|told| told.elapsed() >= LAG_TOLD_EVERY) {
            let busy = status.silence().as_secs();
            warn!(
                seconds = waiting.as_secs(),
                loop_busy_seconds = busy,
                "changes have been pending for too long"
            );
            told = Some(Instant::now());
        }
    }
}

/// What the parts of the daemon share.
struct Daemon<'a> {
    args: &'a RunArgs,
    commands: Arc<Commands>,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    inputs: Sender<Input>,
}

impl Daemon<'_> {
    /// Starts every part on its own thread. The returned receiver resolves when the loop ends.
    fn start(&self, kernel: Kernel, inbox: Receiver<Input>) -> Result<oneshot::Receiver<()>, Ended> {
        let ends =
            Ends { inputs: self.inputs.clone(), metrics: self.metrics.clone(), status: self.status.clone() };
        let files = if self.args.file.is_empty() { None } else { Some(ends.clone().files(&self.args.file)?) };
        let (runtime, access) = (Handle::current(), self.args.cluster.access());
        let applied = match self.args.established {
            Established::Cut => Some(conntrack_cleaner::start(self.metrics.clone())?),
            Established::Keep => None,
        };
        self.guard()?;
        let pace = Pace { check: Duration::from_secs(self.args.check_interval), ..Pace::default() };
        let (metrics, status) = (self.metrics.clone(), self.status.clone());
        let mut kernel = kernel;
        let (node, options) = (self.args.node.node_name.clone(), self.args.enforcement.options());
        let (budgets, limits) = (self.args.budgets.budgets(), self.args.memory.limits());
        let (run_dir, rechecks) = (self.args.run_dir.clone(), self.inputs.clone());
        let (facts, wanted, commands) =
            (self.inputs.clone(), self.args.interface_guard, self.commands.clone());
        let (ending, ended) = oneshot::channel::<()>();
        thread::Builder::new().name("agent".to_owned()).spawn(move || {
            // Dropped when this thread ends, however it ends: that notifies the receiver.
            let _ending = ending;
            let Some(_lock) = writer_lock(&run_dir, &status) else { return };
            // A daemon that waits for another one watches nothing: nothing would take in its changes.
            let source = files.unwrap_or_else(|| {
                let _runtime = runtime.enter();
                ends.api(access, node.clone(), limits)
            });
            let options = what_can_be_logged(options, &mut kernel);
            let tunnels = move |tunnels| {
                let _ = facts.send(Input::Tunnels(tunnels));
            };
            // Only now, since another daemon may have written the guard until just before.
            let mut guard = match interface_guard(wanted, &commands, &status) {
                Ok(guard) => guard,
                Err(error) => {
                    error!(%error, "cannot set up the interface guard");
                    return;
                }
            };
            let options = Options { link_rules: guard.is_none(), ..options };
            // Known before the first rules are written: those of a previous run are about the same tunnels.
            let found = guard.as_mut().map(guard::Ready::tunnels).transpose().unwrap_or_else(|error| {
                warn!(%error, "cannot read the tunnels of this node");
                None
            });
            let started = guard.map(|ready| guard::start(ready, metrics.clone(), status.clone(), tunnels));
            let guard = match started.transpose() {
                Ok(guard) => guard,
                Err(error) => {
                    error!(%error, "cannot start the interface guard");
                    return;
                }
            };
            let watch = kernel.watch(move || {
                let _ = rechecks.send(Input::Recheck);
            });
            let agent = Agent::new(&node, kernel, options, pace, metrics, status, applied);
            agent.with_guard(guard).with_tunnels(found).with_budgets(budgets).run(&inbox);
            drop((watch, source));
        })?;
        Ok(ended)
    }

    /// Watches what needs no new process: the sysctls that let iptables see bridged packets, and IPVS.
    fn guard(&self) -> Result<(), Ended> {
        let mut checks: Vec<Box<dyn FnMut() + Send>> = vec![self.ipvs()];
        if self.args.bridge_netfilter == BridgeNetfilter::Require {
            checks.push(self.bridge());
        }
        let mut check = move || {
            for check in &mut checks {
                check();
            }
        };
        check();
        thread::Builder::new().name("host".to_owned()).spawn(move || {
            loop {
                thread::sleep(GUARD_INTERVAL);
                check();
            }
        })?;
        Ok(())
    }

    /// Sets the sysctls for bridged packets, and sets them again when they are changed.
    fn bridge(&self) -> Box<dyn FnMut() + Send> {
        let (commands, status, metrics) = (self.commands.clone(), self.status.clone(), self.metrics.clone());
        let bridge = Bridge::below(&self.args.proc_sys_net);
        let mut first = true;
        Box::new(move || {
            let is_repair = !std::mem::replace(&mut first, false);
            let faults = bridge.check();
            if faults.is_empty() {
                status.set_condition(BRIDGE, None);
                return;
            }
            match bridge.ensure(&commands) {
                Ok(changes) => {
                    for change in changes {
                        info!(%change, "changed a kernel setting");
                    }
                    if is_repair {
                        metrics.drift_repairs.inc();
                    }
                    status.set_condition(BRIDGE, None);
                }
                Err(error) => {
                    error!(%error, "packets between pods of this node bypass iptables");
                    status.set_condition(BRIDGE, Some(error.to_string()));
                }
            }
        })
    }

    /// Checks whether Services are balanced by IPVS, whose packets bypass the rules.
    fn ipvs(&self) -> Box<dyn FnMut() + Send> {
        let status = self.status.clone();
        let ignored = self.args.ipvs == IpvsServices::Ignore;
        let mut reported = false;
        Box::new(move || {
            let services = ipvs::services(Path::new(ipvs::PROC_IP_VS));
            let found = services > 0 && !ignored;
            if found && !reported {
                error!(services, "IPVS serves Services: traffic from pods to them is not policed");
            }
            reported = found;
            status.set_condition(
                IPVS,
                found.then(|| {
                    format!(
                        "IPVS balances {services} Services on this node, and what pods send to these passes by \
                         FORWARD, where policy is enforced: run kube-proxy in mode iptables or nftables, or set \
                         --ipvs=ignore"
                    )
                }),
            );
        })
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
) -> Result<Option<guard::Ready>, DataplaneError> {
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

/// Turns off the log of denied packets if the kernel does not support it: policy matters more than its log.
fn what_can_be_logged(options: Options, kernel: &mut Kernel) -> Options {
    let Some(group) = options.log_group else { return options };
    let target = Target::Log { group, prefix: "towpath".into() };
    match kernel.takes(&Rule::new([Match::Limit { per_second: 1 }], target)) {
        Ok(false) => {
            warn!(
                "kernel cannot log denied packets: load the module xt_NFLOG; enforcing policy without the log"
            );
            Options { log_group: None, ..options }
        }
        Ok(true) => options,
        Err(error) => {
            warn!(%error, "cannot check whether the kernel can log denied packets");
            options
        }
    }
}
