//! Two nodes with pods, a folder with their objects, and on each node the daemon with its gate.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::IpAddr,
    path::PathBuf,
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;
use towpath::{
    lab::{
        End, Families, FlannelRules, Lab, LabOptions, Netns, Node, PodId, PodSpec, Process, Topology, Variant,
    },
    model::{Family, Protocol},
};

use crate::{
    cni::{self, Network},
    daemon_command::daemon_command,
    http::LISTEN,
    log,
    ready::is_ready,
    wait::wait_until,
    yaml_objects::{self, namespace, policy},
};

/// The nodes, by index.
pub(crate) const NODES: [usize; 2] = [0, 1];

/// How long a daemon may take until it is ready, on a busy machine.
const READY: Duration = Duration::from_mins(1);

/// How many lines of a log are printed.
const LOGGED: usize = 100;

/// How long kubelet waits for the end of a pod.
const GRACE: Duration = Duration::from_secs(30);

/// The environment variable with which a daemon behaves as another version of itself: other names, another layout.
const OTHER_VERSION: &str = "TOWPATH_LAB_OTHER_LAYOUT";

/// Pods that are there before the daemons and never end, and their nodes. Those of `shop` are isolated both ways.
pub(crate) const PODS: [(&str, usize); 13] = [
    ("shop/server-1", 0),
    ("shop/server-2", 1),
    ("shop/fixed-1", 0),
    ("shop/fixed-2", 1),
    ("far/peer-1", 0),
    ("far/peer-2", 1),
    ("far/friend-1", 0),
    ("far/friend-2", 1),
    ("shop/turncoat", 0),
    ("shop/receiver", 0),
    ("shop/left", 1),
    ("shop/right", 1),
    ("team/nomad", 1),
];

pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) variant: Variant,
    pods: BTreeMap<&'static str, PodId>,
    folder: TempDir,
}

impl World {
    pub(crate) fn new(variant: Variant) -> Self {
        let options = LabOptions {
            topology: Topology::Bridge,
            families: Families::Dual,
            nodes: NODES.len(),
            flannel_rules: Some(FlannelRules::new(variant)),
        };
        let mut lab = Lab::new(options).unwrap();
        let specs: Vec<PodSpec> = PODS
            .iter()
            .map(|(name, node)| PodSpec::new(*name, *node).listening(&[(Protocol::Tcp, 80)]))
            .collect();
        let pods = PODS.iter().map(|(name, _)| *name).zip(lab.add_pods(&specs).unwrap()).collect();
        let folder = tempfile::tempdir().unwrap();
        for sub in ["objects", "staging", "run-0", "run-1"] {
            fs::create_dir(folder.path().join(sub)).unwrap();
        }
        for node in lab.nodes() {
            // Every datagram is a connection of its own: with the default they would fill the table.
            node.netns().sysctl(&[("netfilter/nf_conntrack_udp_timeout", "2")]).unwrap();
        }
        let world = Self { lab, variant, pods, folder };
        world.write_policies();
        for (name, _) in PODS {
            world.write_pod(name, "");
        }
        world
    }

    fn write_policies(&self) {
        self.write(
            "namespaces",
            &[namespace("shop", ""), namespace("far", "team: far"), namespace("team", "tier: a")],
        );
        let friends = "from: [{namespaceSelector: {matchLabels: {team: far}}, \
                               podSelector: {matchLabels: {role: friend}}}, \
                       {namespaceSelector: {}, podSelector: {matchLabels: {role: ally}}}]";
        self.write(
            "policies",
            &[
                policy("shop/default-deny", "podSelector: {}, policyTypes: [Ingress, Egress]"),
                policy(
                    "shop/new",
                    &format!(
                        "podSelector: {{matchLabels: {{kind: new}}}}, policyTypes: [Ingress, Egress], \
                         ingress: [{{{friends}, ports: [{{port: 5000, protocol: UDP}}, {{port: 80}}]}}], \
                         egress: [{{to: [{{podSelector: {{matchLabels: {{kind: server}}}}}}], \
                                    ports: [{{port: 5001, protocol: UDP}}]}}]"
                    ),
                ),
                // It may be asked by all, and ask all, so that only the policies of the other end keep it from that.
                policy(
                    "shop/server",
                    "podSelector: {matchLabels: {kind: server}}, ingress: [{}], egress: [{}]",
                ),
                // In one role it may send and is not admitted; in the other it is admitted and may not send.
                policy(
                    "shop/honest",
                    "podSelector: {matchLabels: {role: honest}}, policyTypes: [Egress], egress: [{}]",
                ),
                policy(
                    "shop/receiver",
                    "podSelector: {matchLabels: {kind: receiver}}, \
                     ingress: [{from: [{podSelector: {matchLabels: {role: double}}}, \
                                       {namespaceSelector: {matchLabels: {tier: taken}}}]}]",
                ),
            ],
        );
    }

    /// The first label of a pod is its kind: its name without the number.
    pub(crate) fn write_pod(&self, name: &str, labels: &str) {
        let app = name.split_once('/').unwrap().1;
        let kind = app.trim_end_matches(|end: char| end == '-' || end.is_ascii_digit());
        let role = match kind {
            "turncoat" if labels.is_empty() => ", role: honest",
            "friend" if labels.is_empty() => ", role: friend",
            _ => "",
        };
        let kind = if kind == "fixed" { "new" } else { kind };
        let labels = format!("kind: {kind}{role}{labels}");
        let pod = self.lab.pod(self.pods[name]).unwrap();
        let host = self.node(pod.node()).addresses();
        self.write(
            &format!("pod-{app}"),
            &[yaml_objects::pod(name, &labels, pod.addresses(), pod.node(), host)],
        );
    }

    /// Writes an object file atomically, by renaming.
    pub(crate) fn write(&self, name: &str, documents: &[String]) {
        let staged = self.folder.path().join("staging").join(name);
        fs::write(&staged, documents.join("---\n")).unwrap();
        fs::rename(staged, self.object_file(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        match fs::remove_file(self.object_file(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{name}: {error}"),
            _ => {}
        }
    }

    fn object_file(&self, name: &str) -> PathBuf {
        self.folder.path().join("objects").join(format!("{name}.yaml"))
    }

    pub(crate) fn node(&self, node: usize) -> &Node {
        self.lab.node(node).unwrap()
    }

    pub(crate) fn end(&self, pod: &str) -> End {
        End::Pod(self.pods[pod])
    }

    pub(crate) fn netns(&self, pod: &str) -> &Netns {
        self.lab.pod(self.pods[pod]).unwrap().netns()
    }

    pub(crate) fn addresses(&self, pod: &str) -> &[IpAddr] {
        self.lab.pod(self.pods[pod]).unwrap().addresses()
    }

    fn run_dir(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("run-{node}"))
    }

    fn blocks(&self, node: usize) -> [String; 2] {
        Family::BOTH.map(|family| self.node(node).pod_cidr(family).to_string())
    }

    /// The network of a node: flannel's bridge plugin, and the gate behind it.
    pub(crate) fn network(&self, node: usize) -> Network {
        let data = self.folder.path().join(format!("ipam-{node}"));
        let gate = json!({ "timeoutSeconds": 120, "socket": self.run_dir(node).join("gate.sock") });
        Network::new(cni::bridge(&self.blocks(node), &data), Some(gate))
    }

    pub(crate) fn start(&self, node: usize, as_other_version: bool) -> Daemon<'_> {
        let name = format!("n{}", node + 1);
        let objects = self.folder.path().join("objects");
        let mut command = daemon_command(&name, self.variant, &objects, &self.run_dir(node));
        command.args(["--unknown-local-pods", "closed", "--pod-cidr", &self.blocks(node).join(",")]);
        if as_other_version {
            command.env(OTHER_VERSION, "1");
        }
        let log = self.folder.path().join(format!("log-{node}"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        command.stderr(file).stdout(File::create(self.folder.path().join(format!("stdout-{node}"))).unwrap());
        Daemon { process: self.node(node).spawn(command).unwrap(), node: self.node(node), log }
    }
}

/// A daemon. If the test fails, its log is printed.
pub(crate) struct Daemon<'a> {
    process: Process,
    node: &'a Node,
    log: PathBuf,
}

impl Daemon<'_> {
    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        wait_until("ready", READY, || is_ready(self.node, LISTEN));
    }

    /// Ends it as a crash would, or as kubelet does: with SIGTERM, and with SIGKILL if it is still running after the
    /// time that it gives a pod. Returns whether that was needed.
    pub(crate) fn end(mut self, signal: Signal) -> bool {
        let ended = match signal {
            Signal::SIGKILL => None,
            other => {
                self.process.signal(other).unwrap();
                self.process.wait(GRACE).unwrap()
            }
        };
        if ended.is_none() {
            if signal != Signal::SIGKILL {
                println!("still running {GRACE:?} after {signal}:\n{}", threads(self.process.id()));
            }
            self.process.kill().unwrap();
        }
        ended.is_none() && signal != Signal::SIGKILL
    }

    /// Prints the end of the log.
    pub(crate) fn print_log(&self) {
        println!("--- the end of the daemon's log ---\n{}\n---", log::tail(&self.log, LOGGED));
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.print_log();
        }
    }
}

/// What each thread of a process waits for.
fn threads(process: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let describe = |task: fs::DirEntry| {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        format!("{} {} {}\n{}", read("comm").trim(), read("wchan"), read("syscall").trim(), read("stack"))
    };
    tasks.map(describe).collect::<Vec<_>>().join("\n")
}
