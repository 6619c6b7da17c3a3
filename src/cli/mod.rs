//! The command line: what each command accepts, does and prints.
//!
//! Results go to standard output, everything else to standard error. Exit status: 0 done; 1 the answer is "no", or
//! faults were found; 2 wrong use; 3 could not do it.

mod all_nodes;
mod bugreport;
mod cleanup;
mod client;
mod compile;
#[cfg(feature = "lab")]
pub mod demo;
mod diff;
mod drops;
mod ends;
pub mod explain;
pub mod lint;
pub mod matrix;
mod names;
mod objects;
mod prepare;
mod run;
mod status;
mod terminal;
mod ui;
pub mod words;

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::{
    dataplane::kernel::{Backend, Variant},
    k8s::watch::Access,
    policy::budget::Budgets,
    ruleset::compile::{DenyAction, LogLimit, Options},
};

/// Enforces Kubernetes NetworkPolicy with ipsets and iptables where the network itself does not.
#[derive(Debug, Parser)]
#[command(name = "towpath", version, max_term_width = 110)]
struct Arguments {
    /// Log more to standard error; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, env = "TOWPATH_VERBOSE")]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon, which enforces NetworkPolicy for the pods of this node. Needs root.
    #[command(after_help = "Example: towpath run --node-name n1 --kubeconfig /etc/towpath/kubeconfig\n\
                      Example: towpath run --node-name n1 -f /etc/towpath/objects --listen 127.0.0.1:9586")]
    Run(Box<run::RunArgs>),
    /// Prints the rules that `run` would write, as input for `ipset restore` and `iptables-restore`. Needs no root.
    #[command(after_help = "Example: towpath compile -f objects.yaml --node-name node-1")]
    Compile(compile::CompileArgs),
    /// Shows which pods may connect to which.
    #[command(
        after_help = "Example: towpath matrix -f objects.yaml --port 80 --port 53/UDP --external 203.0.113.9\n\
                      Example: towpath matrix -n shop --denied\n\
                      Example: towpath matrix -f manifests/ -o svg > matrix.svg"
    )]
    Matrix(Box<matrix::MatrixArgs>),
    /// Explains whether a connection is allowed, which policies and rules decide it, and what would allow it. Exit status:
    /// 0 if it is allowed, 1 if it is denied or the objects have errors, 2 if an end or port does not exist, 3 if the
    /// objects cannot be read.
    #[command(
        after_help = "Example: towpath explain -f objects.yaml --from shop/api --to shop/db --port 5432\n\
                      Example: towpath explain --from shop/deploy/web --to shop/svc/db\n\
                      Example: towpath explain -n shop --from web --to db --port postgres -o fix | sh"
    )]
    Explain(explain::ExplainArgs),
    /// Shows which flows a change of policies, namespaces or pods opens, and which it closes.
    #[command(after_help = "Example: towpath diff manifests/ objects.yaml\n\
                      Example: towpath diff --before main/ --after branch/ -o markdown --exit-code=opened\n\
                      Example: towpath diff -f new-policy.yaml")]
    Diff(Box<diff::DiffArgs>),
    /// Checks manifests: every error with its line and column, and valid policies that probably do not do what was
    /// meant. docs/lint.md explains each code. Exit status 1 if there are errors, 3 if there is no object.
    #[command(after_help = "Example: towpath lint manifests/\n\
                      Example: towpath lint manifests/ --ignore TP501 --warnings-as-errors -o sarif > lint.sarif")]
    Lint(lint::LintArgs),
    /// Serves a page for a browser on this machine: who may talk to whom, why, and an editor for policies that shows what
    /// a change opens and closes before it is applied. Prints its address, with a token that is new at each start.
    #[command(after_help = "Example: towpath ui -f manifests/\n\
                      Example: towpath ui --context staging")]
    Ui(ui::UiArgs),
    /// Shows what the daemon on this node enforces, since when, and what is wrong; exit status 1 if it is not ready, 3
    /// if it cannot be reached.
    #[command(after_help = "Example: towpath status --addr 127.0.0.1:9586")]
    Status(status::StatusArgs),
    /// Shows what this node dropped, or all nodes, between whom, and by which policies; exit status 3 if a daemon cannot
    /// be reached.
    #[command(after_help = "Example: towpath drops --follow --namespace shop\n\
                      Example: towpath drops --all-nodes --pod shop/web --since 10m")]
    Drops(drops::DropsArgs),
    /// Collects into one .tar.gz what a bug report needs: the daemon's status and metrics, the filter tables, our sets,
    /// versions and settings. Prints the file's name. Needs root for the tables and sets.
    #[command(after_help = "Example: towpath bugreport --output /tmp")]
    Bugreport(bugreport::BugreportArgs),
    /// Removes every chain, rule, set and table of towpath in this network namespace, and with `--cni-conf-dir` the gate
    /// for new pods; nothing else. Needs root.
    #[command(after_help = "Example: towpath cleanup\n\
                      Example: towpath cleanup --cni-conf-dir /etc/cni/net.d --cni-bin-dir /opt/cni/bin")]
    Cleanup(cleanup::CleanupArgs),
    /// Loads the kernel module `br_netfilter`, which makes bridged packets pass through iptables. `run` loads it too if
    /// it may; this command is for an init container, so that the daemon itself needs no right to load modules. Needs
    /// root.
    #[command(after_help = "Example: towpath prepare --best-effort")]
    Prepare(prepare::PrepareArgs),
    /// The CNI plugin `towpath-cni`, in this program. For container runtimes, not for people: it takes its command from
    /// the environment and the network's configuration from standard input. Exit status: 0 success, 1 failure, 2 no
    /// command.
    #[command(after_help = "Example: towpath cni < configuration.json")]
    Cni,
    /// Runs a scripted demo with real packets on two simulated nodes, and shows after each step what is expected and
    /// what is seen. Needs root.
    #[cfg(feature = "lab")]
    #[command(after_help = "Example: towpath demo --pause")]
    Demo(demo::DemoArgs),
    /// Not in this build. `make demo` runs it, in a build with `--features lab`.
    #[cfg(not(feature = "lab"))]
    Demo(NoDemoArgs),
}

/// Accepts the arguments of `demo` in a build without it.
#[cfg(not(feature = "lab"))]
#[derive(Debug, Args)]
struct NoDemoArgs {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<String>,
}

/// The files that objects come from.
#[derive(Debug, Args)]
struct ObjectArgs {
    /// A file, a folder (every .yaml, .yml and .json below it) or - for standard input; may be repeated.
    #[arg(
        short,
        long = "file",
        value_name = "PATH",
        env = "TOWPATH_FILE",
        required_unless_present = "paths"
    )]
    file: Vec<PathBuf>,
    /// The same as `-f`.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

impl ObjectArgs {
    fn files(&self) -> Vec<PathBuf> {
        named_files(&self.file, &self.paths)
    }
}

/// The files of both forms. Like any argument, a path without `-f` overrides the environment.
fn named_files(file: &[PathBuf], paths: &[PathBuf]) -> Vec<PathBuf> {
    let from_environment = std::env::var_os("TOWPATH_FILE")
        .is_some_and(|value| matches!(file, [one] if one.as_os_str() == value));
    match paths {
        [] => file.to_vec(),
        _ if from_environment => paths.to_vec(),
        _ => [file, paths].concat(),
    }
}

/// What a question is about.
#[derive(Debug, Args)]
struct QuestionArgs {
    /// A file, a folder (every .yaml, .yml and .json below it) or - for standard input; may be repeated. Without it the
    /// API server is asked.
    #[arg(short, long = "file", value_name = "PATH", env = "TOWPATH_FILE")]
    file: Vec<PathBuf>,
    /// The same as `-f`.
    #[arg(value_name = "PATH", conflicts_with_all = ["kubeconfig", "context"])]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl QuestionArgs {
    fn files(&self) -> Vec<PathBuf> {
        named_files(&self.file, &self.paths)
    }
}

/// Which API server to ask, where no file is named.
#[derive(Debug, Args)]
struct ClusterArgs {
    /// The kubeconfig for the API server. Default: in a pod, the pod's service account, unless `--context` is given;
    /// elsewhere $KUBECONFIG or ~/.kube/config.
    #[arg(long, value_name = "FILE", env = "TOWPATH_KUBECONFIG", conflicts_with = "file")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig, if not its current one.
    #[arg(long, value_name = "NAME", env = "TOWPATH_CONTEXT", conflicts_with = "file")]
    context: Option<String>,
}

impl ClusterArgs {
    fn access(&self) -> Access {
        Access::new(self.kubeconfig.clone(), self.context.clone())
    }
}

/// How packets are denied and what else is a matter of taste.
#[derive(Debug, Args)]
struct EnforcementArgs {
    /// What to do with a denied packet.
    #[arg(long, value_enum, default_value_t = Deny::Drop, env = "TOWPATH_DENY_ACTION")]
    deny_action: Deny,
    /// Apply egress policy to packets from a pod to its own node as well.
    #[arg(long, env = "TOWPATH_ENFORCE_POD_TO_NODE")]
    enforce_pod_to_node: bool,
    /// The netlink log group that receives copies of denied packets, ten per second of each sender; 0 for none.
    #[arg(long, value_name = "GROUP", default_value_t = 100, env = "TOWPATH_NFLOG_GROUP")]
    nflog_group: u16,
    /// A UDP port that VXLAN endpoints listen on. Pods may send to it only if the destination is a pod. Ports of the
    /// node's own VXLAN interfaces are detected.
    #[arg(long, value_name = "PORT", default_value_t = 8472, env = "TOWPATH_VXLAN_PORT")]
    vxlan_port: u16,
    /// What to do with packets from and to addresses of this node's pod blocks that no known pod holds.
    #[arg(long, value_enum, default_value_t = UnknownPods::Open, env = "TOWPATH_UNKNOWN_LOCAL_PODS")]
    unknown_local_pods: UnknownPods,
    /// A block of this node's pod addresses; may be repeated. Default: `spec.podCIDRs` of its Node.
    #[arg(long = "pod-cidr", value_name = "CIDR", env = "TOWPATH_POD_CIDR", value_delimiter = ',')]
    pod_cidrs: Vec<IpNet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum UnknownPods {
    /// Drop them: a pod that did not pass the gate has no network until its object reports its address.
    Closed,
    /// Let them pass, as no policy is known to apply to them.
    Open,
}

impl EnforcementArgs {
    fn options(&self) -> Options {
        Options {
            deny: match self.deny_action {
                Deny::Drop => DenyAction::Drop,
                Deny::Reject => DenyAction::Reject,
            },
            log_group: (self.nflog_group != 0).then_some(self.nflog_group),
            log_limit: LogLimit::OfASender,
            enforce_pod_to_node: self.enforce_pod_to_node,
            vxlan_port: self.vxlan_port,
            // The interface guard does the work of these rules; without one, `run` turns them on.
            link_rules: false,
            close_unknown_pods: self.unknown_local_pods == UnknownPods::Closed,
        }
    }
}

/// How much the policies of one tenant may cost this node.
#[derive(Debug, Args)]
struct BudgetArgs {
    /// Set entries and rules that one policy may need. A policy that needs more isolates its pods and allows nothing.
    #[arg(long, value_name = "N", default_value_t = Budgets::default().policy, env = "TOWPATH_POLICY_BUDGET")]
    policy_budget: u64,
    /// Set entries and rules that the policies of one namespace may need on this node. If they need more, all of them
    /// isolate their pods and allow nothing.
    #[arg(long, value_name = "N", default_value_t = Budgets::default().namespace, env = "TOWPATH_NAMESPACE_BUDGET")]
    namespace_budget: u64,
    /// Set entries and rules that all namespaces together may need on this node. Beyond that, the largest namespaces
    /// are closed first.
    #[arg(long, value_name = "N", default_value_t = Budgets::default().node, env = "TOWPATH_NODE_BUDGET")]
    node_budget: u64,
    /// Sets that one namespace may need on this node.
    #[arg(long, value_name = "N", default_value_t = Budgets::default().namespace_sets, env = "TOWPATH_NAMESPACE_SETS")]
    namespace_sets: u64,
    /// Sets that all namespaces together may need on this node. The kernel has 65,534 for all programs.
    #[arg(long, value_name = "N", default_value_t = Budgets::default().node_sets, env = "TOWPATH_NODE_SETS")]
    node_sets: u64,
    /// Pod addresses that the selectors of one namespace may select in total, or eight times those of the whole cluster
    /// if that is more. Selectors that require no label may be compared with 80 times as many addresses.
    #[arg(long, value_name = "N", default_value_t = Budgets::default().namespace_members)]
    #[arg(env = "TOWPATH_NAMESPACE_MEMBERS")]
    namespace_members: u64,
    /// The same for all namespaces on this node, or sixteen times those of the whole cluster if that is more.
    #[arg(long, value_name = "N", default_value_t = Budgets::default().node_members, env = "TOWPATH_NODE_MEMBERS")]
    node_members: u64,
}

impl BudgetArgs {
    fn budgets(&self) -> Budgets {
        Budgets {
            policy: self.policy_budget,
            namespace: self.namespace_budget,
            node: self.node_budget,
            namespace_sets: self.namespace_sets,
            node_sets: self.node_sets,
            namespace_members: self.namespace_members,
            node_members: self.node_members,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Deny {
    /// Drop it silently.
    Drop,
    /// Answer with a TCP reset or an ICMP error.
    Reject,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackendArg {
    /// The one that kubelet and kube-proxy use; if they leave no trace, the one with more rules.
    Auto,
    /// iptables on `nf_tables`.
    Nft,
    /// iptables on the legacy tables.
    Legacy,
}

impl From<BackendArg> for Backend {
    fn from(argument: BackendArg) -> Self {
        match argument {
            BackendArg::Auto => Self::Auto,
            BackendArg::Nft => Self::Only(Variant::Nft),
            BackendArg::Legacy => Self::Only(Variant::Legacy),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Text {
    /// For people.
    Text,
    /// For scripts.
    Json,
}

/// How a command ended, if it did not do what it was asked.
#[derive(Debug)]
enum Ended {
    /// The answer is "no", or faults were found; they are already printed.
    No,
    /// The command cannot be carried out with these arguments.
    WrongUse(anyhow::Error),
    /// It could not be done.
    Failed(anyhow::Error),
    /// The command has an exit status of its own, and has said everything.
    Status(ExitCode),
    /// This signal ended the command before the work was done; everything is cleaned up.
    #[cfg(feature = "lab")]
    Interrupted(i32),
}

impl<E: Into<anyhow::Error>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Parses the command line and runs the command.
#[must_use]
pub fn main() -> ExitCode {
    // For tests of upgrades: this process then behaves like one of another version. Not an option, since no user wants it.
    #[cfg(feature = "lab")]
    if std::env::var_os("TOWPATH_LAB_OTHER_LAYOUT").is_some() {
        crate::model::layout::use_other();
    }
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Command::Run(args) => {
            log_to_stderr(args.log_format, arguments.verbose + 1);
            run::run(args)
        }
        command => {
            log_to_stderr(LogFormat::Text, arguments.verbose);
            one_shot(command, arguments.verbose > 0)
        }
    };
    let (status, error) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Ended::No) => return ExitCode::from(1),
        Err(Ended::Status(status)) => return status,
        // As a shell reports it: 130 for Ctrl-C.
        #[cfg(feature = "lab")]
        Err(Ended::Interrupted(signal)) => {
            return ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX));
        }
        Err(Ended::WrongUse(error)) => (2, error),
        Err(Ended::Failed(error)) => (3, error),
    };
    eprintln!("towpath: {}", with_causes(&error));
    ExitCode::from(status)
}

/// The error and its causes. Many of our errors include their cause; it is not repeated.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn one_shot(command: &Command, verbose: bool) -> Result<(), Ended> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Compile(args) => compile::compile(args, verbose),
        Command::Matrix(args) => matrix::matrix(args, verbose),
        Command::Explain(args) => explain::explain(args, verbose),
        Command::Diff(args) => diff::diff(args, verbose),
        Command::Lint(args) => lint::lint(args),
        Command::Cleanup(args) => cleanup::cleanup(args),
        Command::Prepare(args) => prepare::prepare(args),
        Command::Ui(args) => ui::ui(args),
        Command::Status(args) => status::status(args),
        Command::Drops(args) => drops::drops(args),
        Command::Bugreport(args) => bugreport::bugreport(args),
        Command::Cni => Err(Ended::Status(towpath_cni::main())),
        #[cfg(feature = "lab")]
        Command::Demo(args) => match demo::run(args)? {
            demo::DemoEnd::AsExpected => Ok(()),
            demo::DemoEnd::Otherwise => Err(Ended::No),
            demo::DemoEnd::Interrupted(signal) => Err(Ended::Interrupted(signal)),
        },
        #[cfg(not(feature = "lab"))]
        Command::Demo(_) => Err(Ended::Failed(anyhow::anyhow!(
            "this build has no demo: run `make demo` in the source, or build with `cargo build --release --features lab`"
        ))),
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Ended> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Writes a result to standard output. A closed pipe is not a failure.
fn print(text: &str) -> Result<(), Ended> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line, for collectors.
    Json,
}

/// `TOWPATH_LOG` is a filter in `tracing`'s syntax; without it `verbosity` decides: warnings, information, details.
fn log_to_stderr(format: LogFormat, verbosity: u8) {
    use tracing_subscriber::{EnvFilter, fmt};
    let level = match verbosity {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    // Libraries would repeat, in their own words, what the watches log once and explain.
    // Denied packets have a switch of their own, `--drop-log`.
    let filter = format!("off,towpath={level},towpath::denied=info");
    let filter = EnvFilter::try_from_env("TOWPATH_LOG").unwrap_or_else(|_| EnvFilter::new(filter));
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            log.with_ansi(std::io::stderr().is_terminal()).with_target(false).compact().init();
        }
        LogFormat::Json => log.json().init(),
    }
}

/// The name of a node, as Kubernetes knows it.
#[derive(Debug, Args)]
struct NodeArgs {
    /// The name of this node, as in `spec.nodeName` of its pods.
    #[arg(long, value_name = "NODE", env = "TOWPATH_NODE_NAME")]
    node_name: Arc<str>,
}
