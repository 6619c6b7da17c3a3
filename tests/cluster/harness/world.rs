//! A cluster of two nodes: network namespaces with pods, their objects at a real API server, `towpath run` on the
//! nodes.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use nix::sched::CloneFlags;
use serde_json::{Value, json};
use tempfile::TempDir;
use towpath::{
    lab::{
        End, Families, FlannelRules, Lab, LabOptions, Netns, Node, PodId, PodSpec, Process, Topology, Variant,
    },
    model::{Family, Protocol},
};

use super::{
    Api, ControlPlane, Lease,
    api::write_kubeconfig,
    control_plane::{ADDRESS, BRIDGE, PORT, assets, lease},
    objects,
    process::bound,
};
use crate::{
    http::{self, LISTEN},
    isolated::isolated,
    log, metrics,
    our_sets::our_sets,
    reach,
    ready::is_ready,
    root::has_root,
    wait::wait_until,
};

/// How long a daemon may take until it is ready, on a busy machine.
pub(crate) const READY: Duration = Duration::from_secs(40);

/// How long a change may take until packets follow it, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The ports on which every pod listens.
pub(crate) const PORTS: [(Protocol, u16); 2] = [(Protocol::Tcp, 80), (Protocol::Tcp, 8081)];

/// Where a pod finds the credentials of its ServiceAccount.
pub(crate) const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Runs `test` with a control plane, on a thread with its own `/run`; namespaces and processes that it creates share
/// it.
pub(crate) fn with_control_plane(test: impl FnOnce(Lease) + Send + 'static) {
    if !has_root() {
        return;
    }
    let assets = match assets() {
        Ok(assets) => assets,
        Err(why) => {
            let is_ci = std::env::var("CI").as_deref() == Ok("true");
            assert!(!is_ci, "CI runs these tests with a control plane: {why}");
            println!("skipped: {why}");
            return;
        }
    };
    isolated(CloneFlags::empty(), move || test(lease(&assets)));
}

/// A lab of two nodes, and the same nodes and pods as objects.
pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) plane: Lease,
    pub(crate) variant: Variant,
    pods: BTreeMap<String, PodId>,
    cables: Vec<Cable>,
    folder: TempDir,
}

impl World {
    /// Dual stack, pods on the bridges of two nodes. `pods` are names like `shop/web` and their nodes, from 0; each has
    /// its name as the label `app`, and its namespace has its own name as the label `team`.
    pub(crate) fn new(plane: Lease, pods: &[(&str, usize)]) -> Self {
        Self::with(plane, Variant::Nft, pods)
    }

    pub(crate) fn with(plane: Lease, variant: Variant, pods: &[(&str, usize)]) -> Self {
        let lab = Lab::new(LabOptions {
            topology: Topology::Bridge,
            families: Families::Dual,
            nodes: 2,
            flannel_rules: Some(FlannelRules::new(variant)),
        })
        .unwrap();
        let cables = lab.nodes().iter().map(|node| Cable::new(&plane, node)).collect();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("run")).unwrap();
        let mut world = Self { lab, plane, variant, pods: BTreeMap::new(), cables, folder };
        for node in world.lab.nodes() {
            let cidrs = Family::BOTH.map(|family| node.pod_cidr(family).to_string());
            world.api().create(&objects::node(node.name(), node.addresses(), &cidrs));
        }
        world.add(pods);
        world.install();
        world
    }

    /// Adds pods, in the lab and as objects, and their namespaces.
    fn add(&mut self, pods: &[(&str, usize)]) {
        let specs: Vec<PodSpec> =
            pods.iter().map(|(key, node)| PodSpec::new(*key, *node).listening(&PORTS)).collect();
        let ids = self.lab.add_pods(&specs).unwrap();
        let mut made = Vec::new();
        for ((key, _), id) in pods.iter().zip(ids) {
            self.pods.insert((*key).to_owned(), id);
            let (namespace, app) = key.split_once('/').unwrap();
            if self.api().get(&format!("/api/v1/namespaces/{namespace}")).is_none() {
                self.api().create(&objects::namespace(namespace, &json!({ "team": namespace })));
            }
            made.push(self.object(key, &json!({ "app": app })));
        }
        self.api().create_all(made);
    }

    /// Installs the access rights of deploy/ for a daemon, and its token where a pod has it.
    fn install(&self) {
        if self.api().get("/api/v1/namespaces/towpath/serviceaccounts/towpath").is_none() {
            let applied = self.plane.kubectl(&["apply", "-k", "deploy"], "");
            assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
        }
        fs::create_dir_all(ACCOUNT).unwrap();
        let account = Path::new(ACCOUNT);
        fs::copy(self.plane.pki().join("ca.crt"), account.join("ca.crt")).unwrap();
        fs::write(account.join("namespace"), "towpath").unwrap();
        Self::write_token(&self.api().token("towpath/towpath", None));
    }

    /// Replaces the token as a kubelet does: by renaming.
    pub(crate) fn write_token(token: &str) {
        let account = Path::new(ACCOUNT);
        fs::write(account.join("..token"), token).unwrap();
        fs::rename(account.join("..token"), account.join("token")).unwrap();
    }

    pub(crate) fn api(&self) -> &Api {
        self.plane.api()
    }

    pub(crate) fn node(&self, index: usize) -> &Node {
        self.lab.node(index).unwrap()
    }

    pub(crate) fn cable(&self, node: usize) -> &Cable {
        &self.cables[node]
    }

    pub(crate) fn end(&self, pod: &str) -> End {
        End::Pod(self.pods[pod])
    }

    pub(crate) fn address(&self, pod: &str, family: Family) -> IpAddr {
        self.lab.pod(self.pods[pod]).unwrap().address(family).unwrap()
    }

    /// The object of a pod that is in the lab.
    pub(crate) fn object(&self, pod: &str, labels: &Value) -> Value {
        let existing = self.lab.pod(self.pods[pod]).unwrap();
        let node = self.node(existing.node());
        objects::pod(pod, labels, node.name(), existing.addresses(), node.addresses())
    }

    /// Sets or, with `null`, removes labels of a pod.
    #[track_caller]
    pub(crate) fn label(&self, pod: &str, labels: &Value) {
        self.api().label(&objects::path("pods", pod), labels);
    }

    /// Creates a policy.
    #[track_caller]
    pub(crate) fn policy(&self, key: &str, spec: &Value) {
        self.api().create(&objects::policy(key, spec));
    }

    /// `towpath run` of a node, which uses the API server as a pod of the DaemonSet does.
    pub(crate) fn command(&self, node: usize, more: &[&str]) -> Command {
        self.command_at(node, PORT, more)
    }

    /// The same with the API server at another port.
    pub(crate) fn command_at(&self, node: usize, port: u16, more: &[&str]) -> Command {
        let mut command = bound(Path::new(env!("CARGO_BIN_EXE_towpath")));
        command.args(["run", "--node-name", self.node(node).name()]);
        command.args(["--iptables-backend", self.variant.name()]);
        command.arg("--run-dir").arg(self.folder.path().join("run")).args(more);
        command.env("KUBERNETES_SERVICE_HOST", ADDRESS).env("KUBERNETES_SERVICE_PORT", port.to_string());
        command.env_remove("KUBECONFIG");
        command
    }

    /// Starts a daemon on a node.
    pub(crate) fn start(&self, node: usize) -> Daemon<'_> {
        Daemon::start(self, node, self.command(node, &[]))
    }

    /// Starts a daemon on a node and waits until it is ready.
    #[track_caller]
    pub(crate) fn run(&self, node: usize) -> Daemon<'_> {
        let daemon = self.start(node);
        daemon.wait_ready();
        daemon
    }

    /// The same with additional arguments.
    #[track_caller]
    pub(crate) fn run_with(&self, node: usize, more: &[&str]) -> Daemon<'_> {
        let daemon = Daemon::start(self, node, self.command(node, more));
        daemon.wait_ready();
        daemon
    }

    /// The daemons' run directory.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// The network namespace of a pod that is in the lab.
    pub(crate) fn netns(&self, pod: &str) -> &Netns {
        self.lab.pod(self.pods[pod]).unwrap().netns()
    }

    /// A kubeconfig with a token in its own file, for a server at this port.
    pub(crate) fn kubeconfig(&self, name: &str, port: u16, token: &str) -> PathBuf {
        let token_file = self.folder.path().join(format!("{name}.token"));
        fs::write(&token_file, token).unwrap();
        self.kubeconfig_of(name, port, &json!({ "tokenFile": token_file }))
    }

    /// A kubeconfig with a user like this, for a server at this port.
    pub(crate) fn kubeconfig_of(&self, name: &str, port: u16, user: &Value) -> PathBuf {
        let path = self.folder.path().join(format!("{name}.kubeconfig"));
        write_kubeconfig(&path, &format!("https://{ADDRESS}:{port}"), &self.plane.pki(), user);
        path
    }

    /// Our state in the kernel of the first node: chains, the position of our jumps, and sets with their members.
    pub(crate) fn rules(&self) -> String {
        let run = |program: &str, arguments: &[&str]| self.node(0).succeed(program, arguments).unwrap();
        let mut lines = Vec::new();
        for family in Family::BOTH {
            let saved = run(&self.variant.program(family, "-save"), &["-t", "filter"]);
            let ours = saved.lines().filter(|line| line.contains("TOWPATH-") || line.contains("TP-"));
            lines.extend(ours.map(|line| line.split(" [").next().unwrap().to_owned()));
        }
        lines.extend(our_sets(self.node(0)));
        lines.join("\n")
    }

    /// How many addresses of pods are in the sets of the first node's rules that allow, of IPv4.
    pub(crate) fn members(&self) -> usize {
        let sets = self.node(0).succeed("ipset", &["save"]).unwrap();
        sets.lines().filter(|line| line.starts_with("add tp4-pods-")).count()
    }

    /// Ends it and its control plane, since deleting all objects would take long.
    pub(crate) fn discard(self) {
        self.plane.discard();
    }

    /// Checks in both families at once whether TCP port 80 answers.
    pub(crate) fn reaches(&self, from: &str, to: &str) -> [bool; 2] {
        let addresses = Family::BOTH.map(|family| self.address(to, family));
        reach::reaches(&self.lab, self.end(from), addresses)
    }

    /// Waits until TCP port 80 answers, or does not, in both families; returns how long it took.
    #[track_caller]
    pub(crate) fn until(&self, from: &str, to: &str, open: bool, at_most: Duration) -> Duration {
        let what = format!("{from} -> {to} becoming {}", if open { "open" } else { "closed" });
        wait_until(&what, at_most, || self.reaches(from, to) == [open; 2])
    }
}

/// The connection of a node to the control plane.
pub(crate) struct Cable {
    end: String,
    address: String,
}

impl Cable {
    fn new(plane: &ControlPlane, node: &Node) -> Self {
        let number = plane.next_cable();
        let end = format!("node{number}");
        let address = format!("100.100.{}.{}", 1 + number / 250, 1 + number % 250);
        let path = node.netns().path();
        let lines = [
            format!("link add {end} type veth peer name kube0 netns {path}"),
            format!("link set {end} master {BRIDGE} up"),
        ];
        plane.netns().ip(&lines).unwrap();
        let lines = [format!("addr add {address}/16 dev kube0"), "link set kube0 up".to_owned()];
        node.netns().ip(&lines).unwrap();
        Self { end, address }
    }

    /// Cuts it behind the next switch: the link stays up, and no packet arrives, in either direction.
    pub(crate) fn cut(&self, plane: &ControlPlane) {
        plane.netns().ip(&[format!("link set {} nomaster", self.end)]).unwrap();
    }

    /// Reconnects it.
    pub(crate) fn reconnect(&self, plane: &ControlPlane) {
        plane.netns().ip(&[format!("link set {} master {BRIDGE}", self.end)]).unwrap();
    }

    /// Closes existing connections, as an API server does on an orderly shutdown.
    pub(crate) fn reset(&self, plane: &ControlPlane) {
        plane.netns().succeed("ss", &["-K", "dst", &self.address], "").unwrap();
    }

    /// Drops the packets of existing connections, as a firewall on the path does after a restart; neither end is
    /// notified. New connections pass.
    pub(crate) fn drop_connections(&self, plane: &ControlPlane) -> usize {
        let query = ["-Htn", "state", "established", "dst", &self.address];
        let established = plane.netns().succeed("ss", &query, "").unwrap();
        let ports: Vec<&str> = established
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3)?.rsplit_once(':').map(|(_, port)| port))
            .collect();
        for port in &ports {
            for (chain, end, port_flag) in [("INPUT", "-s", "--sport"), ("OUTPUT", "-d", "--dport")] {
                let rule =
                    ["-w", "-I", chain, end, &self.address, "-p", "tcp", port_flag, port, "-j", "DROP"];
                plane.netns().succeed("iptables-nft", &rule, "").unwrap();
            }
        }
        ports.len()
    }
}

/// A running `towpath`. If the test fails, its log is printed; dropping it ends it.
pub(crate) struct Daemon<'a> {
    process: RefCell<Process>,
    log: PathBuf,
    node: &'a Node,
    killed: Cell<bool>,
}

impl<'a> Daemon<'a> {
    pub(crate) fn start(world: &'a World, node: usize, mut command: Command) -> Self {
        let log = tempfile::Builder::new().prefix("log-").tempfile_in(world.folder.path()).unwrap();
        let (file, log) = log.keep().unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let node = world.node(node);
        let process = RefCell::new(node.spawn(command).unwrap());
        Self { process, log, node, killed: Cell::new(false) }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Status and text of a page; `None` without an answer.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        http::get(self.node.connect(LISTEN, Duration::from_secs(1)).unwrap(), path)
    }

    pub(crate) fn is_ready(&self) -> bool {
        is_ready(self.node, LISTEN)
    }

    /// Waits until it is ready; a daemon that ended never will be.
    #[track_caller]
    pub(crate) fn wait_ready(&self) -> Duration {
        wait_until("ready", READY, || {
            let ended = self.process.borrow_mut().try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {ended:?}");
            self.is_ready()
        })
    }

    /// Waits until it is not ready and its reason contains all of these words.
    #[track_caller]
    pub(crate) fn wait_unready(&self, at_most: Duration, words: &[&str]) -> String {
        let mut last = String::new();
        wait_until(&format!("not ready, for the reason {words:?}"), at_most, || {
            let Some((status, text)) = self.get("/readyz") else { return false };
            last = text;
            status == 503 && words.iter().all(|word| last.contains(word))
        });
        last
    }

    /// A value of `/metrics`; `series` with its labels.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.get("/metrics").unwrap();
        metrics::value(&text, series)
    }

    /// For how many kinds a watch was restarted for this reason.
    pub(crate) fn restarts(&self, reason: &str) -> usize {
        let (_, text) = self.get("/metrics").unwrap();
        let reason = format!("reason={reason:?}");
        let restarts = text.lines().filter(|line| line.starts_with("towpath_watch_restarts_total{"));
        restarts.filter(|line| line.contains(&reason)).count()
    }

    /// A line of `/proc/PID/status`, in KiB: `VmRSS`, `VmHWM`.
    pub(crate) fn memory(&self, line: &str) -> u64 {
        let status = self.proc("status");
        let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        found.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap()
    }

    /// This file in /proc of its process.
    pub(crate) fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.process.borrow().id())).unwrap()
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(&self) {
        self.killed.set(true);
        self.process.borrow_mut().kill().unwrap();
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- towpath on {}\n{}", self.node.name(), log::tail(&self.log, 60));
        } else if !self.killed.get() {
            let ended = self.process.borrow_mut().stop().unwrap();
            assert!(ended.success(), "towpath on {} ended with {ended}\n{}", self.node.name(), self.log());
        }
    }
}
