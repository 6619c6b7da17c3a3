//! etcd and kube-apiserver, as a test needs them: started, killed, paused and disconnected.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::TcpStream,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use data_encoding::BASE64;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use towpath::lab::Netns;

use super::{
    Api,
    api::write_kubeconfig,
    pki,
    process::{Served, remove_at_exit},
};

/// The address of the API server for the nodes.
pub(crate) const ADDRESS: &str = "100.100.0.1";

/// The port of the API server.
pub(crate) const PORT: u16 = 6443;

/// The bridge to which the nodes' cables are connected.
pub(super) const BRIDGE: &str = "kube";

/// How long a control plane may take until it is ready, on a busy machine.
const READY: Duration = Duration::from_mins(2);

/// Only requests of ServiceAccounts are recorded in the audit log.
const AUDIT_POLICY: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
 "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}]}"#;

/// An etcd and an API server with TLS and RBAC, in their own network namespace. Dropping it ends both.
pub(crate) struct ControlPlane {
    server: Mutex<Option<Served>>,
    etcd: Mutex<Option<Served>>,
    api: Api,
    cables: AtomicU32,
    /// How much of the audit log belongs to previous leases.
    audited: u64,
    folder: TempDir,
    assets: PathBuf,
    netns: Netns,
}

impl ControlPlane {
    /// Starts one with the programs in `assets`, and waits until it is ready.
    pub(crate) fn new(assets: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("control-plane-").tempdir().unwrap();
        remove_at_exit(folder.path());
        let pki_folder = folder.path().join("pki");
        fs::create_dir(&pki_folder).unwrap();
        pki::write(&pki_folder, &["127.0.0.1", ADDRESS, "kubernetes.default.svc"]);
        fs::write(folder.path().join("audit-policy.json"), AUDIT_POLICY).unwrap();
        let admin = json!({
            "client-certificate": pki_folder.join("admin.crt"), "client-key": pki_folder.join("admin.key"),
        });
        let kubeconfig = folder.path().join("admin.kubeconfig");
        write_kubeconfig(&kubeconfig, &format!("https://127.0.0.1:{PORT}"), &pki_folder, &admin);
        let netns = Netns::new("the control plane").unwrap();
        let lines = [
            "link set lo up".to_owned(),
            format!("link add {BRIDGE} type bridge mcast_snooping 0"),
            format!("addr add {ADDRESS}/16 dev {BRIDGE}"),
            format!("link set {BRIDGE} up"),
        ];
        netns.ip(&lines).unwrap();
        let api = Api::new(&netns, &kubeconfig);
        let plane = Self {
            server: Mutex::default(),
            etcd: Mutex::default(),
            api,
            cables: AtomicU32::new(0),
            audited: 0,
            folder,
            assets: assets.to_owned(),
            netns,
        };
        plane.restart_etcd();
        plane.restart();
        plane.wait_ready();
        plane
    }

    pub(crate) const fn api(&self) -> &Api {
        &self.api
    }

    pub(crate) const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its certificates: `ca.crt` and others.
    pub(crate) fn pki(&self) -> PathBuf {
        self.folder.path().join("pki")
    }

    /// A number that no other cable of it has.
    pub(super) fn next_cable(&self) -> u32 {
        self.cables.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Starts etcd on its existing data.
    pub(crate) fn restart_etcd(&self) {
        let data = self.folder.path().join("etcd");
        let arguments = [
            format!("--data-dir={}", data.display()),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-cluster=default=http://127.0.0.1:2380".to_owned(),
            "--log-level=warn".to_owned(),
            // A killed process loses nothing that it wrote, only a machine does.
            "--unsafe-no-fsync".to_owned(),
        ];
        *self.etcd() = Some(self.serve("etcd", "etcd.log", &arguments));
    }

    /// Copies everything that is stored, while nothing writes.
    pub(crate) fn back_up(&self) {
        self.kill_etcd();
        self.copy("etcd", "backup");
        self.restart_etcd();
    }

    /// Replaces what is stored by the copy, as after a disaster; the API server is restarted on it.
    pub(crate) fn restore(&self) {
        self.kill();
        self.kill_etcd();
        self.copy("backup", "etcd");
        self.restart_etcd();
        self.restart();
        self.wait_ready();
    }

    fn copy(&self, from: &str, to: &str) {
        let path = |name: &str| self.folder.path().join(name);
        drop(fs::remove_dir_all(path(to)));
        let copied = Command::new("cp").arg("-a").arg(path(from)).arg(path(to)).status().unwrap();
        assert!(copied.success());
    }

    /// Starts the API server; it may take a while until it answers.
    pub(crate) fn restart(&self) {
        *self.server() = Some(self.serve_api(PORT, "kube-apiserver.log", &[]));
    }

    /// Kills the API server.
    pub(crate) fn kill(&self) {
        *self.server() = None;
    }

    /// Kills etcd.
    pub(crate) fn kill_etcd(&self) {
        *self.etcd() = None;
    }

    fn server(&self) -> MutexGuard<'_, Option<Served>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn etcd(&self) -> MutexGuard<'_, Option<Served>> {
        self.etcd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pauses the API server: its connections stay open, and it does not answer.
    pub(crate) fn pause(&self) {
        self.server().as_ref().unwrap().signal(Signal::SIGSTOP);
    }

    /// Resumes a paused API server.
    pub(crate) fn resume(&self) {
        self.server().as_ref().unwrap().signal(Signal::SIGCONT);
    }

    /// Another API server on the same etcd, with its own port and flags; it ends when it is dropped.
    pub(crate) fn second_server(&self, port: u16, flags: &[&str]) -> SecondServer {
        let log = format!("kube-apiserver-{port}.log");
        let kubeconfig = self.folder.path().join(format!("admin-{port}.kubeconfig"));
        let text = fs::read_to_string(self.kubeconfig()).unwrap();
        fs::write(&kubeconfig, text.replace(&PORT.to_string(), &port.to_string())).unwrap();
        let mut server = self.serve_api(port, &log, flags);
        let api = Api::new(&self.netns, &kubeconfig);
        wait_ready(&mut server, &api);
        SecondServer { _server: server, api }
    }

    fn serve_api(&self, port: u16, log: &str, flags: &[&str]) -> Served {
        let folder = self.folder.path().display();
        let pki = format!("{folder}/pki");
        let audit = if port == PORT { "audit.log".to_owned() } else { format!("audit-{port}.log") };
        let mut arguments = vec![
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--bind-address=0.0.0.0".to_owned(),
            format!("--secure-port={port}"),
            format!("--advertise-address={ADDRESS}"),
            format!("--tls-cert-file={pki}/server.crt"),
            format!("--tls-private-key-file={pki}/server.key"),
            format!("--client-ca-file={pki}/ca.crt"),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={pki}/service-account.pub"),
            format!("--service-account-signing-key-file={pki}/service-account.key"),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            // There is no controller that would create a ServiceAccount in each namespace.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            // Compacted when a test wants it.
            "--etcd-compaction-interval=0".to_owned(),
            format!("--audit-policy-file={folder}/audit-policy.json"),
            format!("--audit-log-path={folder}/{audit}"),
            "--profiling=false".to_owned(),
        ];
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self.serve("kube-apiserver", log, &arguments)
    }

    fn serve(&self, program: &str, log: &str, arguments: &[String]) -> Served {
        Served::start(&self.netns, &self.program(program), arguments, &self.folder.path().join(log))
    }

    /// The path of `etcd`, `kube-apiserver` or `kubectl`.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.assets.join(name)
    }

    /// Waits until the API server reports that it is ready.
    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        wait_ready(self.server().as_mut().expect("it was started"), &self.api);
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("admin.kubeconfig")
    }

    /// Runs `kubectl` as administrator, from the root of the repository.
    pub(crate) fn kubectl(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(self.program("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments);
        command.arg("--cache-dir").arg(self.folder.path().join("kubectl"));
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        self.netns.output(command, input).unwrap()
    }

    /// Compacts etcd to the current revision: a client that resumes a watch from before learns that it is too old.
    pub(crate) fn compact(&self) {
        // The API server's own marker always exists.
        let present = self.call_etcd("range", &json!({ "key": BASE64.encode(b"compact_rev_key") }));
        let revision = present["header"]["revision"].as_str().unwrap().to_owned();
        self.call_etcd("compaction", &json!({ "revision": revision, "physical": true }));
    }

    /// Writes an object to etcd, bypassing the API server's validation: as an older one may have left it. etcd's
    /// gateway takes bytes as base64.
    pub(crate) fn put(&self, key: &str, object: &Value) {
        let value = BASE64.encode(object.to_string().as_bytes());
        self.call_etcd("put", &json!({ "key": BASE64.encode(key.as_bytes()), "value": value }));
    }

    /// Calls etcd's key-value service through its JSON gateway.
    fn call_etcd(&self, call: &str, body: &Value) -> Value {
        let body = body.to_string();
        let request = format!(
            "POST /v3/kv/{call} HTTP/1.0\r\nHost: etcd\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let call_api = move || -> std::io::Result<String> {
            let mut stream = TcpStream::connect("127.0.0.1:2379")?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.netns.run(call_api).unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{call}: {answer}");
        serde_json::from_str(body).unwrap()
    }

    /// The requests of ServiceAccounts during this lease, one event for each stage of a request.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let Ok(mut file) = File::open(self.folder.path().join("audit.log")) else { return Vec::new() };
        file.seek(SeekFrom::Start(self.audited)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        // The last line may be incomplete.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Resets it to where a test may start: running, and without the objects of a previous one.
    fn reset(&mut self) {
        let has_ended =
            |process: &mut Option<Served>| process.as_mut().is_none_or(|process| process.ended().is_some());
        let (etcd, server) = (has_ended(&mut self.etcd()), has_ended(&mut self.server()));
        if etcd {
            self.restart_etcd();
        }
        if server {
            self.restart();
        }
        self.resume();
        self.wait_ready();
        self.api.delete("/api/v1/nodes");
        for namespace in self.api.list("/api/v1/namespaces") {
            let name = namespace["metadata"]["name"].as_str().unwrap();
            if name != "default" && !name.starts_with("kube-") && name != "towpath" {
                self.api.delete_namespace(name);
            }
        }
        let log = fs::metadata(self.folder.path().join("audit.log"));
        self.audited = log.map_or(0, |log| log.len());
    }
}

/// Another API server on the etcd of a control plane.
pub(crate) struct SecondServer {
    _server: Served,
    pub(crate) api: Api,
}

#[track_caller]
fn wait_ready(server: &mut Served, api: &Api) {
    let start = Instant::now();
    while let Err(reason) = api.ready() {
        let ended = server.ended();
        assert!(ended.is_none(), "kube-apiserver ended with {ended:?}:\n{}", server.tail(30));
        assert!(start.elapsed() < READY, "not ready: {reason}\n{}", server.tail(30));
        thread::sleep(Duration::from_millis(100));
    }
}

/// Control planes that no test uses now.
static FREE: Mutex<Vec<ControlPlane>> = Mutex::new(Vec::new());

/// A control plane for one test, which is then passed on to the next one, unless the test failed.
pub(crate) struct Lease(Option<ControlPlane>);

/// A running control plane that no other test uses, without nodes and with the namespaces of a new cluster.
pub(crate) fn lease(assets: &Path) -> Lease {
    let free = FREE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut plane = free.unwrap_or_else(|| ControlPlane::new(assets));
    plane.reset();
    Lease(Some(plane))
}

impl Lease {
    /// Ends the control plane, so that no other test gets it.
    pub(crate) fn discard(mut self) {
        self.0 = None;
    }
}

impl Deref for Lease {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let plane = self.0.take();
        // One in which a test failed may be the reason, and dropping it shows its output.
        if !thread::panicking() {
            FREE.lock().unwrap_or_else(PoisonError::into_inner).extend(plane);
        }
    }
}

/// The folder of the programs, as `scripts/control-plane` reports it, or why there is none.
pub(crate) fn assets() -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/control-plane");
    let output = Command::new(script).arg("--cached").output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}
