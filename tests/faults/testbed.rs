//! The test bed: a lab with pods, their objects in a folder, and the real daemon on a node.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::Duration,
};

use nix::{sched::CloneFlags, sys::signal::Signal};
use tempfile::TempDir;
use towpath::{
    lab::{
        End, Families, FlannelRules, Lab, LabOptions, Node, Outcome, PodId, PodSpec, Probe, Process,
        Topology, Transport, Variant,
    },
    model::{Family, Protocol},
};

use crate::{
    daemon_command::daemon_command,
    http::{self, LISTEN},
    isolated::isolated,
    log, metrics,
    reach::{self, TIMEOUT},
    ready::is_ready,
    root::has_root,
    wait::wait_until,
    yaml_objects,
};

/// How long a daemon may take until it is ready, on a busy machine.
pub(crate) const READY: Duration = Duration::from_secs(20);

/// The ports on which every pod listens.
pub(crate) const PORTS: [(Protocol, u16); 3] =
    [(Protocol::Tcp, 80), (Protocol::Tcp, 8081), (Protocol::Udp, 53)];

/// Runs `test` on a thread with its own `/run`, and so with its own xtables lock, for both variants.
pub(crate) fn for_both_variants(test: impl Fn(Variant) + Send + Clone + 'static) {
    for variant in Variant::BOTH {
        let test = test.clone();
        with_own_run(move || test(variant));
    }
}

/// Runs `test` on a thread with its own `/run`; namespaces and processes that it creates share it.
pub(crate) fn with_own_run(test: impl FnOnce() + Send + 'static) {
    if has_root() {
        isolated(CloneFlags::empty(), test);
    }
}

/// A lab of two nodes with flannel's rules, and a folder with the objects.
pub(crate) struct Bed {
    pub(crate) lab: Lab,
    pub(crate) variant: Variant,
    pods: BTreeMap<String, PodId>,
    folder: TempDir,
}

impl Bed {
    /// Both families; pods on the bridges of two nodes. `pods` are names like `shop/web` and their nodes, from 0.
    pub(crate) fn new(variant: Variant, pods: &[(&str, usize)]) -> Self {
        Self::in_topology(variant, Topology::Bridge, pods)
    }

    pub(crate) fn in_topology(variant: Variant, topology: Topology, pods: &[(&str, usize)]) -> Self {
        let flannel_rules = Some(FlannelRules::new(variant));
        let mut lab =
            Lab::new(LabOptions { topology, families: Families::Dual, nodes: 2, flannel_rules }).unwrap();
        let specs: Vec<PodSpec> =
            pods.iter().map(|(name, node)| PodSpec::new(*name, *node).listening(&PORTS)).collect();
        let ids = lab.add_pods(&specs).unwrap();
        let pods = pods.iter().map(|(name, _)| (*name).to_owned()).zip(ids).collect();
        let folder = tempfile::tempdir().unwrap();
        for sub in ["objects", "staging", "run"] {
            fs::create_dir(folder.path().join(sub)).unwrap();
        }
        Self { lab, variant, pods, folder }
    }

    pub(crate) fn node(&self) -> &Node {
        self.lab.node(0).unwrap()
    }

    pub(crate) fn pod(&self, name: &str) -> PodId {
        self.pods[name]
    }

    pub(crate) fn end(&self, name: &str) -> End {
        End::Pod(self.pod(name))
    }

    pub(crate) fn address(&self, pod: &str, family: Family) -> IpAddr {
        self.lab.pod(self.pod(pod)).unwrap().address(family).unwrap()
    }

    /// The manifest of a pod that is in the lab.
    pub(crate) fn manifest(&self, pod: &str, labels: &str) -> String {
        let existing = self.lab.pod(self.pod(pod)).unwrap();
        self.manifest_at(pod, labels, existing.addresses(), existing.node())
    }

    pub(crate) fn manifest_at(&self, pod: &str, labels: &str, addresses: &[IpAddr], node: usize) -> String {
        let host = self.lab.node(node).unwrap().addresses();
        yaml_objects::pod(pod, labels, addresses, node, host)
    }

    /// Writes an object file atomically, by renaming.
    pub(crate) fn write(&self, name: &str, documents: &[String]) {
        self.objects().write(name, documents);
    }

    /// The folder with the objects, for use in other threads.
    pub(crate) fn objects(&self) -> Objects {
        Objects(self.folder.path().to_owned())
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a daemon on the first node, with additional arguments.
    pub(crate) fn start(&self, more: &[&str]) -> Daemon<'_> {
        Daemon::start(self, self.command(more))
    }

    /// Starts a daemon on the first node and waits until it is ready.
    pub(crate) fn run(&self, more: &[&str]) -> Daemon<'_> {
        let daemon = self.start(more);
        daemon.wait_ready();
        daemon
    }

    /// The `towpath run` command for the first node.
    pub(crate) fn command(&self, more: &[&str]) -> Command {
        let (objects, run) = (self.folder().join("objects"), self.folder().join("run"));
        let mut command = daemon_command("n1", self.variant, &objects, &run);
        command.args(more);
        command
    }

    /// Runs `iptables` or `ip6tables` of the bed's variant on the first node.
    pub(crate) fn iptables(&self, family: Family, arguments: &str) -> String {
        let program = self.variant.program(family, "");
        let arguments: Vec<&str> = ["-w"].into_iter().chain(arguments.split(' ')).collect();
        self.node().succeed(&program, &arguments).unwrap()
    }

    /// The output of `iptables-save` for a table, without counters and times.
    pub(crate) fn saved(&self, family: Family, table: &str) -> String {
        let text = self.node().succeed(&self.variant.program(family, "-save"), &["-t", table]).unwrap();
        let mut lines = String::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let line = if line.starts_with(':') { line.split(" [").next().unwrap() } else { line };
            writeln!(lines, "{line}").unwrap();
        }
        lines
    }

    /// Our part of the filter table: our chains, and the position of our jump in FORWARD and INPUT.
    pub(crate) fn our_rules(&self, family: Family) -> String {
        let mut first = BTreeMap::new();
        let saved = self.saved(family, "filter");
        let mut ours: Vec<String> = Vec::new();
        for line in saved.lines() {
            let chain = line.trim_start_matches("-A ").split(' ').next().unwrap();
            let place = first.entry(chain).or_insert(0);
            *place += 1;
            if line.contains("TOWPATH-") || line.contains("TP-") {
                let built_in = ["FORWARD", "INPUT"].contains(&chain);
                ours.push(if built_in { format!("{place}: {line}") } else { line.to_owned() });
            }
        }
        ours.join("\n")
    }

    /// Probes once.
    pub(crate) fn probe(&self, from: End, to: IpAddr, transport: impl Into<Transport>) -> Outcome {
        let transport = transport.into();
        let probe = Probe::new(from, to, transport);
        self.lab.probe_all(&[probe], TIMEOUT).unwrap()[0]
    }

    /// Checks in both families at once whether TCP port 80 answers.
    pub(crate) fn reaches(&self, from: &str, to: &str) -> [bool; 2] {
        let addresses = Family::BOTH.map(|family| self.address(to, family));
        reach::reaches(&self.lab, self.end(from), addresses)
    }

    /// Waits until TCP port 80 answers, or does not, in both families; returns how long it took.
    #[track_caller]
    pub(crate) fn wait_until_reachable(
        &self,
        from: &str,
        to: &str,
        open: bool,
        at_most: Duration,
    ) -> Duration {
        let what = format!("{from} -> {to} becoming {}", if open { "open" } else { "closed" });
        wait_until(&what, at_most, || self.reaches(from, to) == [open; 2])
    }
}

/// The folder with the objects.
#[derive(Clone)]
pub(crate) struct Objects(PathBuf);

impl Objects {
    /// Writes an object file atomically, by renaming.
    pub(crate) fn write(&self, name: &str, documents: &[String]) {
        self.write_text(name, &documents.join("---\n"));
    }

    pub(crate) fn write_text(&self, name: &str, text: &str) {
        let staged = self.0.join("staging").join(name);
        fs::write(&staged, text).unwrap();
        fs::rename(staged, self.0.join("objects").join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.0.join("objects").join(name)).unwrap();
    }
}

/// A running `towpath`. If the test fails, its log is printed; dropping it ends it.
pub(crate) struct Daemon<'a> {
    process: Process,
    log: PathBuf,
    node: &'a Node,
    listen: SocketAddr,
}

impl<'a> Daemon<'a> {
    pub(crate) fn start(bed: &'a Bed, mut command: Command) -> Self {
        let arguments = command.get_args().map(|argument| argument.to_string_lossy());
        let listen = arguments.skip_while(|argument| argument != "--listen").nth(1);
        let listen = listen.map_or(LISTEN, |listen| listen.parse().unwrap());
        let log = tempfile::Builder::new().prefix("log-").tempfile_in(bed.folder()).unwrap();
        let (file, log) = log.keep().unwrap();
        command.stderr(file).stdout(File::create(bed.folder().join("stdout")).unwrap());
        let node = bed.node();
        Self { process: node.spawn(command).unwrap(), log, node, listen }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Status and text of a page; `None` without an answer.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        http::get(self.node.connect(self.listen, Duration::from_secs(1)).unwrap(), path)
    }

    pub(crate) fn is_ready(&self) -> bool {
        is_ready(self.node, self.listen)
    }

    #[track_caller]
    pub(crate) fn wait_ready(&self) -> Duration {
        wait_until("ready", READY, || self.is_ready())
    }

    /// A value of `/metrics`; `series` with its labels.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.get("/metrics").unwrap();
        metrics::value(&text, series)
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        self.process.signal(signal).unwrap();
    }

    /// Waits until it ends by itself; returns its exit status.
    #[track_caller]
    pub(crate) fn wait_for_end(&mut self, at_most: Duration) -> ExitStatus {
        let status = self.process.wait(at_most).unwrap();
        assert!(status.is_some(), "still running after {at_most:?}");
        status.unwrap()
    }

    /// Stops it with SIGTERM, and waits.
    #[track_caller]
    pub(crate) fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_for_end(Duration::from_secs(10))
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("--- the end of the daemon's log ---\n{}\n---", log::tail(&self.log, 60));
        }
    }
}
