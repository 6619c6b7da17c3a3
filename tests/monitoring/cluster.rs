//! Two nodes with a real daemon on each, and a Prometheus that scrapes them: one daemon reads files, in which some
//! objects are wrong, and drops packets; the other one waits for an API server that does not answer.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use towpath::{
    lab::{Families, FlannelRules, Lab, LabOptions, Node, PodId, PodSpec, Process, Topology, Variant},
    model::Family,
};

use crate::{
    cni::{self, Network, NewPod},
    daemon_command::daemon_command,
    http,
    repository::root,
    wait::wait_until,
    yaml_objects::{namespace, pod, policy},
};

const PROMETHEUS: &str = "127.0.0.1:9090";

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// The pods: name, node, labels.
const PODS: [(&str, usize, &str); 4] = [
    ("shop/web", 0, "app: web"),
    ("shop/db", 0, "app: db"),
    ("shop/far", 1, "app: far"),
    ("greedy/big", 0, "a: b"),
];

pub(crate) struct Cluster {
    lab: Lab,
    ids: Vec<PodId>,
    folder: TempDir,
    processes: Vec<Process>,
    sender: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Cluster {
    /// Everything started, and not yet ready.
    pub(crate) fn start() -> Self {
        let flannel_rules = Some(FlannelRules::new(Variant::Nft));
        let options =
            LabOptions { topology: Topology::Bridge, families: Families::Dual, nodes: 2, flannel_rules };
        let mut lab = Lab::new(options).unwrap();
        let specs: Vec<PodSpec> = PODS.iter().map(|(name, node, _)| PodSpec::new(*name, *node)).collect();
        let ids = lab.add_pods(&specs).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for sub in ["objects", "run-1", "run-2", "bin", "prometheus"] {
            fs::create_dir(folder.path().join(sub)).unwrap();
        }
        let mut cluster = Self { lab, ids, folder, processes: Vec::new(), sender: None };
        cluster.write_objects();
        cluster.start_daemons();
        cluster.start_prometheus();
        cluster
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn node(&self, index: usize) -> &Node {
        self.lab.node(index).unwrap()
    }

    fn write(&self, name: &str, documents: &[String]) {
        let staged = self.path().join(name);
        fs::write(&staged, documents.join("---\n")).unwrap();
        fs::rename(staged, self.path().join("objects").join(name)).unwrap();
    }

    fn write_objects(&self) {
        self.write("namespaces.yaml", &["shop", "greedy"].map(|name| namespace(name, "")));
        for (index, (_, _, labels)) in PODS.iter().enumerate() {
            self.write_pod(index, labels);
        }
        let admits_web = "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]";
        let ports: Vec<String> = (0..200).map(|index| format!("{{port: {}}}", 1000 + 2 * index)).collect();
        let too_much = format!("podSelector: {{}}, ingress: [{{ports: [{}]}}]", ports.join(", "));
        self.write("policies.yaml", &[policy("shop/db", admits_web), policy("greedy/ports", &too_much)]);
        let wrong = "podSelector: {matchLabels: {app: none}}, ingress: [{ports: [{port: 70000}]}]";
        self.write("wrong.yaml", &[policy("shop/wrong", wrong)]);
    }

    fn write_pod(&self, index: usize, labels: &str) {
        let (name, node, _) = PODS[index];
        let existing = self.lab.pod(self.ids[index]).unwrap();
        let manifest = pod(name, labels, existing.addresses(), node, self.node(node).addresses());
        self.write(&format!("pod-{index}.yaml"), &[manifest]);
    }

    /// Changes the labels of a pod, and with them the sets that select it.
    pub(crate) fn change(&self, turn: usize) {
        self.write_pod(0, if turn.is_multiple_of(2) { "app: other" } else { "app: web" });
    }

    fn start_daemons(&mut self) {
        let path = self.path().to_owned();
        // A program that fails once, so that a sync does.
        let (flag, ipset) = (path.join("fails"), path.join("bin/ipset"));
        fs::write(&flag, "").unwrap();
        let search = std::env::var_os("PATH").unwrap();
        let real = std::env::split_paths(&search).map(|it| it.join("ipset")).find(|it| it.is_file()).unwrap();
        let (fails, real) = (flag.display(), real.display());
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = restore ] && rm {fails} 2>/dev/null; then echo no >&2; exit 1; fi\nexec {real} \"$@\"\n"
        );
        fs::write(&ipset, script).unwrap();
        fs::set_permissions(&ipset, fs::Permissions::from_mode(0o755)).unwrap();
        let folders = [path.join("bin")].into_iter().chain(std::env::split_paths(&search));

        let mut first = daemon_command("n1", Variant::Nft, &path.join("objects"), &path.join("run-1"));
        first.env("PATH", std::env::join_paths(folders).unwrap());
        first.args(["--policy-budget", "100", "--drop-pod-metrics", "5"]);

        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": { "server": "https://127.0.0.1:1", "insecure-skip-tls-verify": true } }],
            "users": [{ "name": "it", "user": { "token": "none" } }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
        });
        fs::write(path.join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let mut second = Command::new(env!("CARGO_BIN_EXE_towpath"));
        second.args(["run", "--node-name", "n2", "--iptables-backend", "nft", "--listen", "0.0.0.0:9586"]);
        second.arg("--kubeconfig").arg(path.join("kubeconfig")).arg("--run-dir").arg(path.join("run-2"));

        for (index, mut command) in [first, second].into_iter().enumerate() {
            command.stderr(File::create(path.join(format!("log-{index}"))).unwrap());
            let process = self.node(index).spawn(command).unwrap();
            self.processes.push(process);
        }
    }

    /// On the first node. It scrapes that node's daemon with the labels that a PodMonitor gives it and, as if it were in
    /// another cluster, without.
    fn start_prometheus(&mut self) {
        let folder = self.path().join("prometheus");
        let far = self.node(1).address(Family::V4).unwrap();
        let labels = |node: &str| json!({ "namespace": "towpath", "pod": "towpath-x", "container": "towpath", "node": node });
        let configuration = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [root().join("deploy/components/alerts/rules.yaml")],
            "scrape_configs": [
                { "job_name": "towpath/towpath", "static_configs": [
                    { "targets": ["127.0.0.1:9586"], "labels": labels("n1") },
                    { "targets": [format!("{far}:9586")], "labels": labels("n2") },
                ] },
                { "job_name": "towpath", "static_configs": [
                    { "targets": ["127.0.0.1:9586"], "labels": { "cluster": "plain" } },
                ] },
            ],
        });
        // JSON is YAML.
        fs::write(folder.join("prometheus.yml"), configuration.to_string()).unwrap();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.arg(format!("--web.listen-address={PROMETHEUS}"));
        let log = File::create(folder.join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let process = self.node(0).spawn(command).unwrap();
        self.processes.push(process);
    }

    /// Waits until the first daemon is ready; then a pod passes its gate, and one without permission sends to a pod.
    pub(crate) fn cause_everything(&mut self) {
        wait_until("readiness", PATIENCE, || {
            self.page(0, "/readyz").is_some_and(|(status, _)| status == 200)
        });
        let blocks = Family::BOTH.map(|family| self.node(0).pod_cidr(family).to_string());
        let gate = json!({ "timeoutSeconds": 60, "socket": self.path().join("run-1/gate.sock") });
        let network = Network::new(cni::bridge(&blocks, &self.path().join("ipam")), Some(gate));
        let new = NewPod::new(self.node(0), "shop/new", 40);
        network.add(self.node(0).netns(), &new.container, &new.addresses).unwrap();
        network.del(self.node(0).netns(), &new.container).unwrap();
        self.send_denied_packets();
    }

    /// To a new port each time: more flows than the drop log keeps of one sender.
    fn send_denied_packets(&mut self) {
        let db = self.lab.pod(self.ids[1]).unwrap().address(Family::V4).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for port in (2000..60_000).cycle() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let _ = socket.send_to(b"x", SocketAddr::new(db, port));
                thread::sleep(Duration::from_millis(20));
            }
        };
        let netns = self.lab.pod(self.ids[2]).unwrap().netns();
        self.sender = Some((stop, netns.start_thread("denied", work).unwrap()));
    }

    /// A page of the daemon on this node.
    fn page(&self, node: usize, path: &str) -> Option<(u16, String)> {
        http::get(self.node(node).connect(http::LISTEN, Duration::from_secs(1)).unwrap(), path)
    }

    /// What both daemons expose.
    pub(crate) fn metrics(&self) -> String {
        [0, 1].map(|node| self.page(node, "/metrics").unwrap().1).concat()
    }

    /// The samples that an expression has in Prometheus now.
    ///
    /// # Errors
    /// What Prometheus says about the expression.
    pub(crate) fn evaluate(&self, expression: &str) -> Result<Vec<Value>, String> {
        let Some(answer) = self.prometheus(&format!("/api/v1/query?query={}", encoded(expression))) else {
            return Ok(Vec::new());
        };
        if answer["status"] != "success" {
            return Err(answer["error"].to_string());
        }
        let result = &answer["data"]["result"];
        Ok(result.as_array().unwrap_or_else(|| panic!("{expression}: {answer}")).clone())
    }

    /// An answer of Prometheus; `None` while it does not listen or is not ready.
    pub(crate) fn prometheus(&self, path: &str) -> Option<Value> {
        let address = PROMETHEUS.parse().unwrap();
        let mut connection = self.node(0).connect(address, Duration::from_secs(1)).unwrap().ok()?;
        connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // With HTTP/1.0 it does not send the answer in pieces.
        write!(connection, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut response = String::new();
        connection.read_to_string(&mut response).ok()?;
        serde_json::from_str(response.split_once("\r\n\r\n")?.1).ok()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.sender.take() {
            stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
        if thread::panicking() {
            for log in ["log-0", "log-1", "prometheus/log"] {
                let text = fs::read_to_string(self.path().join(log)).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                println!("--- the end of {log} ---\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
        }
    }
}

/// Percent-encoded.
fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric();
    text.bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
