//! The arguments of `towpath run`, and the settings of the daemon that they make.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};

use super::{
    BackendArg, BudgetArgs, ClusterArgs, Ended, EnforcementArgs, LogFormat, NodeArgs,
    client::{DEFAULT_ADDRESS, address_and_port},
    ui::EXPLAINER,
};
use crate::{
    agent::LAG_LIMIT,
    daemon::{self, GateInstall, HostChecks, PageSettings, Settings},
    dataplane::{
        command::COMMAND_LIMIT,
        kernel::{lock, sysctl},
    },
    gate::{
        conflist::{Entry, WhenAway},
        install,
    },
    k8s::watch::MemoryLimits,
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
    /// The address to serve /metrics, /status, /drops, /livez, /readyz and the page on.
    #[arg(long, value_name = "ADDR:PORT", default_value = DEFAULT_ADDRESS, env = "TOWPATH_LISTEN")]
    #[arg(value_parser = address_and_port)]
    listen: SocketAddr,
    #[command(flatten)]
    enforcement: EnforcementArgs,
    #[command(flatten)]
    budgets: BudgetArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    gate: GateArgs,
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
    #[command(flatten)]
    drops: DropLogArgs,
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
    /// How long a command such as iptables-restore may run before it is killed, in seconds. One with much input gets one
    /// second more for every 100,000 bytes of it.
    #[arg(long, value_name = "SECONDS", default_value_t = COMMAND_LIMIT.as_secs(), env = "TOWPATH_COMMAND_LIMIT")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3_600))]
    command_limit: u64,
    /// The folder of the lock file that lets only one daemon write rules in a network namespace. With --file, what was
    /// read is saved there as well: a file that cannot be read after a restart keeps what was enforced from it.
    #[arg(long, value_name = "DIR", default_value = lock::FOLDER, env = "TOWPATH_RUN_DIR")]
    run_dir: PathBuf,
    /// Who may see the page, which shows every pod and policy that the daemon knows, at the address of --listen.
    #[arg(long, value_enum, default_value_t = PageFor::Off, env = "TOWPATH_PAGE")]
    page: PageFor,
    /// The format of the log.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "TOWPATH_LOG_FORMAT")]
    pub(super) log_format: LogFormat,
}

/// What becomes of the copies of denied packets.
#[derive(Debug, Args)]
struct DropLogArgs {
    /// What to do with the copies of denied packets in the log group of --nflog-group.
    #[arg(long = "drop-log", value_enum, default_value_t = DropLog::On, env = "TOWPATH_DROP_LOG")]
    telling: DropLog,
    /// How many records of denied packets are kept for `towpath drops`.
    #[arg(long = "drop-records", value_name = "N", default_value_t = 1000, env = "TOWPATH_DROP_RECORDS")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=10_000))]
    records: u16,
    /// How many pods have a metric of their own for denied packets.
    #[arg(
        long = "drop-pod-metrics",
        value_name = "N",
        default_value_t = 0,
        env = "TOWPATH_DROP_POD_METRICS"
    )]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=1_000))]
    pod_metrics: u16,
    /// Write Kubernetes Events about denied packets on the pods whose policies denied them, if the API server is the
    /// source of objects and permits it.
    #[arg(long = "drop-events", env = "TOWPATH_DROP_EVENTS")]
    drop_events: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DropLog {
    /// Explain each denied flow for `towpath drops`, and log it.
    On,
    /// Explain each denied flow for `towpath drops`.
    Quiet,
    /// Leave the log group to another program.
    Off,
}

impl From<DropLog> for daemon::Telling {
    fn from(argument: DropLog) -> Self {
        match argument {
            DropLog::On => Self::On,
            DropLog::Quiet => Self::Quiet,
            DropLog::Off => Self::Off,
        }
    }
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

/// Where to install the gate for new pods, and how it works.
#[derive(Debug, Args)]
struct GateArgs {
    /// Whether new pods wait for their rules. Only with --cni-conf-dir and --cni-bin-dir.
    #[arg(long, value_enum, default_value_t = Gate::On, env = "TOWPATH_GATE")]
    gate: Gate,
    /// The folder of the CNI configuration that the container runtime reads. The gate's entry is added to it.
    #[arg(long, value_name = "DIR", env = "TOWPATH_CNI_CONF_DIR", requires = "cni_bin_dir")]
    cni_conf_dir: Option<PathBuf>,
    /// The folder of CNI plugins that the container runtime starts. The gate's plugin is copied to it.
    #[arg(long, value_name = "DIR", env = "TOWPATH_CNI_BIN_DIR", requires = "cni_conf_dir")]
    cni_bin_dir: Option<PathBuf>,
    /// The gate's plugin.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/usr/libexec/towpath/towpath-cni",
        env = "TOWPATH_CNI_PLUGIN"
    )]
    cni_plugin: PathBuf,
    /// What the plugin does with a new pod while the daemon does not answer.
    #[arg(long, value_enum, default_value_t = GateWhenAway::Wait, env = "TOWPATH_GATE_WHEN_AWAY")]
    gate_when_away: GateWhenAway,
    /// The path on the node at which the plugin asks the daemon. Default: gate.sock in --run-dir.
    #[arg(long, value_name = "PATH", env = "TOWPATH_GATE_SOCKET")]
    gate_socket: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Gate {
    /// Install the gate, and keep it installed.
    On,
    /// Remove the gate of a previous run from these folders.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GateWhenAway {
    /// The pod does not start; kubelet tries again.
    Wait,
    /// The pod starts.
    Open,
}

impl GateArgs {
    fn install(&self, run_dir: &Path) -> GateInstall {
        let (Some(conf_dir), Some(bin_dir)) = (self.cni_conf_dir.clone(), self.cni_bin_dir.clone()) else {
            return GateInstall::NotWanted;
        };
        let when_away = match self.gate_when_away {
            GateWhenAway::Wait => WhenAway::Wait,
            GateWhenAway::Open => WhenAway::Open,
        };
        let usual = || daemon::gate_socket(run_dir).to_string_lossy().into_owned();
        let entry = Entry::new(&self.gate_socket.clone().unwrap_or_else(usual), when_away);
        let (plugin, check_interval) = (self.cni_plugin.clone(), install::CHECK_INTERVAL);
        let settings = install::Settings { conf_dir, bin_dir, plugin, entry, check_interval };
        match self.gate {
            Gate::On => GateInstall::Keep(settings),
            Gate::Off => GateInstall::Remove(settings),
        }
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
enum PageFor {
    /// Processes on this node's network, and so whoever may use `kubectl port-forward`, and the probes of any pod.
    Node,
    /// Everybody who reaches the address: pods and other machines too.
    Everybody,
    /// Nobody: there is no page.
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

impl From<InterfaceGuard> for daemon::InterfaceGuard {
    fn from(argument: InterfaceGuard) -> Self {
        match argument {
            InterfaceGuard::Auto => Self::Auto,
            InterfaceGuard::Require => Self::Require,
            InterfaceGuard::Off => Self::Off,
        }
    }
}

/// Runs the daemon until it is stopped.
pub(super) fn run(args: &RunArgs) -> Result<(), Ended> {
    daemon::run(Settings {
        files: args.file.clone(),
        access: args.cluster.access(),
        node: args.node.node_name.clone(),
        backend: args.iptables_backend.into(),
        listen: args.listen,
        options: args.enforcement.options(),
        pod_cidrs: args.enforcement.pod_cidrs.clone(),
        budgets: args.budgets.budgets(),
        memory: args.memory.limits(),
        ready_lag: Duration::from_secs(args.ready_lag),
        check_interval: Duration::from_secs(args.check_interval),
        command_limit: Duration::from_secs(args.command_limit),
        writes_events: args.events == Events::Auto,
        cuts_connections: args.established == Established::Cut,
        host: HostChecks {
            bridge_netfilter: args.bridge_netfilter == BridgeNetfilter::Require,
            ipvs: args.ipvs == IpvsServices::Refuse,
            proc_sys_net: args.proc_sys_net.clone(),
        },
        telling: args.drops.telling.into(),
        drop_records: args.drops.records.into(),
        drop_pod_metrics: args.drops.pod_metrics.into(),
        drop_events: args.drops.drop_events,
        interface_guard: args.interface_guard.into(),
        gate_install: args.gate.install(&args.run_dir),
        page: (args.page != PageFor::Off)
            .then_some(PageSettings { explainer: EXPLAINER, for_all: args.page == PageFor::Everybody }),
        run_dir: args.run_dir.clone(),
    })?;
    Ok(())
}
