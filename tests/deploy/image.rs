//! The image, its containers, and packets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use towpath::{
    lab::{
        DEFAULT_TIMEOUT, End, Families, FlannelRules, Lab, LabOptions, PodId, PodSpec, Probe, Process,
        Topology, Transport, Variant,
    },
    model::{Family, Protocol},
};

use crate::{
    container::{Container, PATH, PodTemplate, capabilities},
    root, skip, text,
    yaml::documents,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The exit status of `deploy/rootfs` if packages cannot be downloaded.
const UNAVAILABLE: i32 = 69;

const SWITCHES: [&str; 4] = [
    "bridge-nf-call-iptables",
    "bridge-nf-call-ip6tables",
    "bridge-nf-filter-vlan-tagged",
    "bridge-nf-filter-pppoe-tagged",
];

/// The root filesystem of the image, built once; or why there is none.
fn image() -> Result<&'static Path, String> {
    static IMAGE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = IMAGE.get_or_init(|| {
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root".to_owned());
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image");
        let mut script = Command::new(root().join("deploy/rootfs"));
        let output = script.arg(&folder).arg(env!("CARGO_BIN_EXE_towpath")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() == Some(UNAVAILABLE) {
            return Err(said);
        }
        assert!(output.status.success(), "{said}");
        Ok(folder)
    });
    built.as_deref().map_err(Clone::clone)
}

/// Runs `test` with the image, on a thread with its own `/run`.
fn with_image(test: impl FnOnce(&'static Path) + Send + 'static) {
    let image = match image() {
        Ok(image) => image,
        Err(why) => return skip(&why),
    };
    let inside = move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        mount(nothing, "/run", Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
        test(image);
    };
    if let Err(panic) = thread::spawn(inside).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Every file below a folder, by its relative path.
fn files(folder: &Path) -> BTreeMap<PathBuf, fs::Metadata> {
    fn walk(top: &Path, folder: &Path, found: &mut BTreeMap<PathBuf, fs::Metadata>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let metadata = entry.path().symlink_metadata().unwrap();
            if metadata.is_dir() {
                walk(top, &entry.path(), found);
            } else {
                found.insert(entry.path().strip_prefix(top).unwrap().to_owned(), metadata);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}

#[test]
fn the_image_has_what_the_daemon_starts_with_its_libraries_and_little_else() {
    with_image(|image| {
        let found = files(image);
        let has = |path: &str| found.contains_key(Path::new(path));
        for family in ["iptables", "ip6tables"] {
            for variant in ["-nft", "-legacy", ""] {
                for what in ["", "-save", "-restore"] {
                    assert!(has(&format!("usr/sbin/{family}{variant}{what}")), "{family}{variant}{what}");
                }
            }
        }
        for program in ["usr/sbin/ipset", "usr/sbin/nft", "usr/sbin/modprobe", "usr/bin/towpath"] {
            assert!(has(program), "{program}");
        }
        for shell in ["usr/bin/sh", "usr/bin/dash", "usr/bin/bash", "usr/bin/dpkg", "usr/bin/apt-get"] {
            assert!(!has(shell), "{shell} is not needed");
        }

        // Libraries that are loaded by name at run time, not by the loader: modprobe's decompressors.
        let libraries: BTreeSet<_> = found.keys().filter_map(|path| path.file_name()?.to_str()).collect();
        assert!(libraries.contains("liblzma.so.5") && libraries.contains("libzstd.so.1"), "{libraries:?}");
        let mut loaded = 0;
        for (path, metadata) in &found {
            let is_program = metadata.is_file() && metadata.mode() & 0o111 != 0;
            let is_module = path.parent().is_some_and(|folder| folder.ends_with("xtables"));
            if metadata.is_symlink()
                || !(is_program || is_module)
                || path.to_string_lossy().contains("ld-linux")
            {
                continue;
            }
            let mut list = Command::new("chroot");
            list.arg(image).arg(loader_of(&found)).arg("--list");
            let output = list.arg(Path::new("/").join(path)).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !said.contains("not found"), "{}: {said}", path.display());
            loaded += 1;
        }
        assert!(loaded > 50, "only {loaded} programs and modules");

        // The program of these tests is not optimised; that of a release may have 20 MiB.
        let of_others = found.iter().filter(|(path, _)| !path.ends_with("usr/bin/towpath"));
        let bytes: u64 = of_others.map(|(_, metadata)| metadata.len()).sum();
        assert!(bytes < 20 << 20, "{bytes} bytes beside the program, of 40 MiB for the whole");
    });
}

fn loader_of(files: &BTreeMap<PathBuf, fs::Metadata>) -> PathBuf {
    let is_loader =
        |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux"));
    let loader = files.iter().find(|(path, metadata)| is_loader(path) && metadata.is_file()).unwrap().0;
    Path::new("/").join(loader)
}

/// A node with three pods on its bridge, and the objects: only `shop/api` may connect to `shop/db`.
struct Ground {
    lab: Lab,
    pods: BTreeMap<&'static str, PodId>,
    objects: TempDir,
    image: &'static Path,
    variant: Variant,
}

impl Ground {
    fn new(image: &'static Path, variant: Variant) -> Self {
        let flannel_rules = Some(FlannelRules::new(variant));
        let options =
            LabOptions { topology: Topology::Bridge, families: Families::Dual, nodes: 1, flannel_rules };
        let mut lab = Lab::new(options).unwrap();
        let names = ["db", "api", "web"];
        let ids =
            lab.add_pods(&names.map(|name| PodSpec::new(name, 0).listening(&[(Protocol::Tcp, 80)]))).unwrap();
        let pods: BTreeMap<_, _> = names.into_iter().zip(ids).collect();

        let objects = tempfile::tempdir().unwrap();
        let mut manifests = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n\
             apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db, namespace: shop}\nspec:\n  \
             podSelector: {matchLabels: {app: db}}\n  ingress:\n  - from: [{podSelector: {matchLabels: {app: api}}}]\n"
            .to_owned();
        let listed = |addresses: &[IpAddr]| {
            addresses.iter().map(|ip| format!("{{ip: \"{ip}\"}}")).collect::<Vec<_>>().join(", ")
        };
        for (name, id) in &pods {
            let pod_ips = listed(lab.pod(*id).unwrap().addresses());
            let host_ips = listed(lab.node(0).unwrap().addresses());
            write!(
                manifests,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
                 spec: {{nodeName: n1, containers: [{{name: main, image: registry.example/main}}]}}\n\
                 status: {{phase: Running, hostIPs: [{host_ips}], podIPs: [{pod_ips}]}}\n"
            )
            .unwrap();
        }
        fs::write(objects.path().join("objects.yaml"), manifests).unwrap();
        Self { lab, pods, objects, image, variant }
    }

    /// A container of a pod, on the node.
    fn container<'a>(&self, pod: &'a PodTemplate, name: &'a str) -> Container<'a> {
        let address = self.address().to_string();
        Container {
            image: self.image,
            pod,
            name,
            fields: BTreeMap::from([("spec.nodeName", "n1".to_owned()), ("status.hostIP", address)]),
            environment: Vec::new(),
            mounts: Vec::new(),
            without: None,
        }
    }

    /// The daemon's container, which reads its objects from a folder.
    fn daemon<'a>(&self, pod: &'a PodTemplate) -> Container<'a> {
        let mut container = self.container(pod, "towpath");
        container.mounts.push((self.objects.path().to_owned(), "/objects"));
        container.environment.push(("TOWPATH_FILE", "/objects".to_owned()));
        container.environment.push(("TOWPATH_IPTABLES_BACKEND", self.variant.name().to_owned()));
        container
    }

    fn start(&self, container: &Container<'_>) -> Process {
        let mut command = container.command();
        let log = fs::OpenOptions::new().append(true).create(true).open(self.log_file()).unwrap();
        command.stderr(log);
        self.lab.node(0).unwrap().spawn(command).unwrap()
    }

    fn log_file(&self) -> PathBuf {
        self.objects.path().join("log")
    }

    /// The output so far of the containers that were started and not run to their end.
    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Runs a container to its end; returns its status and its output.
    fn run(&self, container: &Container<'_>) -> (Option<i32>, String) {
        let output = self.lab.node(0).unwrap().run(container.command(), "").unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code(), text.concat())
    }

    /// Runs a program as `kubectl exec` does; returns its status and its output.
    fn exec(&self, container: &Process, arguments: &[&str]) -> (Option<i32>, Vec<u8>) {
        let target = init_of(container).to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &target, "--mount", "--pid", "--root", "--wd=/"]).args(arguments);
        command.env_clear().env("PATH", PATH).env("TOWPATH_LISTEN", format!("{}:9586", self.address()));
        let output = self.lab.node(0).unwrap().run(command, "").unwrap();
        (output.status.code(), output.stdout)
    }

    fn address(&self) -> IpAddr {
        self.lab.node(0).unwrap().address(Family::V4).unwrap()
    }

    /// The body of a page, if its status is 200.
    fn get(&self, path: &str) -> Option<String> {
        let to = SocketAddr::new(self.address(), 9586);
        let mut connection = self.lab.node(0).unwrap().connect(to, Duration::from_secs(1)).unwrap().ok()?;
        connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(connection, "GET {path} HTTP/1.1\r\nHost: towpath\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        let body = answer.split_once("\r\n\r\n")?.1;
        answer.starts_with("HTTP/1.1 200 ").then(|| body.to_owned())
    }

    fn is_ready(&self) -> bool {
        self.get("/readyz").as_deref() == Some("ok\n")
    }

    /// Whether the database answers, in both families.
    fn reaches_db(&self, from: &str) -> [bool; 2] {
        let db = self.lab.pod(self.pods["db"]).unwrap();
        let from = End::Pod(self.pods[from]);
        let probes =
            Family::BOTH.map(|family| Probe::new(from, db.address(family).unwrap(), Transport::Tcp(80)));
        let outcomes = self.lab.probe_all(&probes, DEFAULT_TIMEOUT).unwrap();
        [outcomes[0].is_open(), outcomes[1].is_open()]
    }

    fn on_node(&self, line: &str) -> String {
        self.lab.node(0).unwrap().succeed("sh", &["-c", line]).unwrap()
    }

    fn set_switches(&self, value: u8) {
        for switch in SWITCHES {
            self.on_node(&format!("echo {value} > /proc/sys/net/bridge/{switch}"));
        }
    }

    fn switches(&self) -> String {
        SWITCHES.map(|switch| self.on_node(&format!("cat /proc/sys/net/bridge/{switch}"))).concat()
    }

    /// The rules of both families, and the names of the sets and of the interface guard's tables.
    fn rules(&self) -> String {
        let variant = self.variant.name();
        self.on_node(&format!(
            "iptables-{variant} -S; ip6tables-{variant} -S; ipset list -name; nft list tables bridge; nft list tables netdev"
        ))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("--- the log ---\n{}---", self.log());
        }
    }
}

#[track_caller]
fn wait_until(what: &str, process: &mut Process, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        let ended = process.try_wait().unwrap();
        assert!(ended.is_none(), "{what}: the container ended with {ended:?}");
        assert!(start.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Process 1 of the container. It receives the signals, not the program that created its namespaces.
fn init_of(process: &Process) -> Pid {
    let id = process.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    Pid::from_raw(children.trim().parse().unwrap())
}

fn the_daemon() -> PodTemplate {
    PodTemplate::of(&documents(&text("deploy/base/daemonset.yaml")))
}

fn the_cleanup() -> PodTemplate {
    PodTemplate::of(&documents(&text("deploy/uninstall/daemonset.yaml")))
}

fn from_start_to_uninstall(image: &'static Path, variant: Variant) {
    let ground = Ground::new(image, variant);
    let before = ground.rules();
    ground.set_switches(0);
    assert_eq!(ground.reaches_db("web"), [true; 2]);

    let pod = the_daemon();
    let (status, said) = ground.run(&ground.container(&pod, "prepare"));
    assert_eq!((status, said.as_str()), (Some(0), "the kernel has br_netfilter already\n"));

    let mut daemon = ground.start(&ground.daemon(&pod));
    wait_until("readiness", &mut daemon, || ground.is_ready());
    assert_eq!(ground.switches(), "1\n1\n1\n1\n");
    assert_eq!((ground.reaches_db("web"), ground.reaches_db("api")), ([false; 2], [true; 2]));
    assert!(ground.get("/livez").is_some() && ground.get("/metrics").unwrap().contains("towpath_build_info"));

    let (status, said) = ground.exec(&daemon, &["towpath", "status"]);
    let said = String::from_utf8_lossy(&said);
    assert!(status == Some(0) && said.contains(" on n1: ready since "), "{said}");
    // With the image's nft and the capabilities of the manifest, every pod's interface is known.
    assert!(said.contains(" guarded, ") && !said.contains("not guarded"), "{said}");
    assert!(!said.contains("interfaces     0 ") && !said.contains("without a known interface"), "{said}");
    let (status, archive) = ground.exec(&daemon, &["towpath", "bugreport", "--output", "-"]);
    assert_eq!((status, archive.get(..2)), (Some(0), Some(&[0x1f, 0x8b][..])), "no gzip");

    // Another program resets the switches, and removes our hook.
    ground.set_switches(0);
    wait_until("the switches", &mut daemon, || ground.switches() == "1\n1\n1\n1\n");
    ground.on_node(&format!("iptables-{} -w -D FORWARD -j TOWPATH-FORWARD", variant.name()));
    wait_until("the hook", &mut daemon, || ground.reaches_db("web") == [false; 2]);
    assert_eq!(ground.reaches_db("api"), [true; 2]);

    kill(init_of(&daemon), Signal::SIGTERM).unwrap();
    assert_eq!(daemon.wait(PATIENCE).unwrap().and_then(|status| status.code()), Some(0));
    assert_eq!((ground.reaches_db("web"), ground.reaches_db("api")), ([false; 2], [true; 2]));

    let cleanup = the_cleanup();
    let (status, said) = ground.run(&ground.container(&cleanup, "cleanup"));
    assert!(status == Some(0) && said.starts_with("removed 4 jumps, "), "{status:?} {said}");
    assert_eq!(ground.rules(), before);
    assert_eq!(ground.reaches_db("web"), [true; 2]);

    let mut done = ground.start(&ground.container(&cleanup, "done"));
    thread::sleep(Duration::from_secs(1));
    assert_eq!(done.try_wait().unwrap(), None, "it waits to be deleted");
    kill(init_of(&done), Signal::SIGTERM).unwrap();
    assert_eq!(done.wait(PATIENCE).unwrap().and_then(|status| status.code()), Some(0));
}

#[test]
fn as_the_manifest_runs_it_the_image_enforces_on_nf_tables_and_its_uninstall_leaves_nothing() {
    with_image(|image| from_start_to_uninstall(image, Variant::Nft));
}

#[test]
fn as_the_manifest_runs_it_the_image_enforces_on_legacy_tables_and_its_uninstall_leaves_nothing() {
    with_image(|image| from_start_to_uninstall(image, Variant::Legacy));
}

#[test]
fn without_any_one_of_its_capabilities_the_daemon_is_not_ready() {
    with_image(|image| {
        let pod = the_daemon();
        let all = capabilities(pod.container("towpath"));
        assert!(!all.is_empty());
        let start = |ground: &Ground, without| ground.start(&Container { without, ..ground.daemon(&pod) });
        let ground = Ground::new(image, Variant::Nft);
        let mut daemon = start(&ground, None);
        let began = Instant::now();
        wait_until("readiness with all of them", &mut daemon, || ground.is_ready());
        // Much longer than it took with all of them.
        let long = began.elapsed() * 5 + Duration::from_secs(2);
        for without in &all {
            let ground = Ground::new(image, Variant::Nft);
            let mut daemon = start(&ground, Some(without.as_str()));
            // It ends, or reports that it fails.
            let began = Instant::now();
            while began.elapsed() < long && daemon.try_wait().unwrap().is_none() {
                assert!(!ground.is_ready(), "ready without {without}");
                thread::sleep(Duration::from_millis(50));
            }
        }
    });
}

#[test]
fn where_the_switches_cannot_be_set_the_daemon_says_so_and_is_not_ready() {
    with_image(|image| {
        let pod = the_daemon();
        let ground = Ground::new(image, Variant::Nft);
        ground.set_switches(0);
        let mut container = ground.daemon(&pod);
        // The container's own view, which is read-only.
        container.environment.push(("TOWPATH_PROC_SYS_NET", "/proc/sys/net".to_owned()));
        let mut daemon = ground.start(&container);
        wait_until("what is wrong", &mut daemon, || {
            let said = ground.log();
            assert!(!ground.is_ready(), "{said}");
            said.contains("net.bridge.bridge-nf-call-iptables cannot be set to 1 (Read-only file system")
        });
        // Routed packets are still enforced; the rules are there.
        wait_until("the rules", &mut daemon, || ground.rules().contains("-A FORWARD -j TOWPATH-FORWARD"));
        ground.set_switches(1);
        wait_until("readiness", &mut daemon, || ground.is_ready());
    });
}

#[test]
fn a_module_that_cannot_be_loaded_stops_nothing_and_is_told() {
    with_image(|image| {
        let ground = Ground::new(image, Variant::Nft);
        let pod = the_daemon();
        let mut container = ground.container(&pod, "prepare");
        // A kernel without the module, as the container sees it, and no folder of modules for this kernel.
        let empty = tempfile::tempdir().unwrap();
        container.mounts.push((empty.path().to_owned(), "/proc/sys/net"));
        let (status, said) = ground.run(&container);
        assert_eq!(status, Some(0), "{said}");
        assert!(
            said.contains("the kernel module br_netfilter is not loaded, and could not be (modprobe"),
            "{said}"
        );
        assert!(said.contains("not found in directory /lib/modules/"), "{said}");
    });
}
