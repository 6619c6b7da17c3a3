//! The image, its containers, and packets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::CloneFlags,
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
    http::{self, LISTEN},
    isolated::isolated,
    repository::{root, text},
    skip, wait,
    yaml::documents,
    yaml_objects::{namespace, pod, policy},
};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Where the CNI plugin is in the image.
const PLUGIN: &str = "usr/libexec/towpath/towpath-cni";

/// The exit status of `deploy/rootfs` if packages cannot be downloaded, and of `scripts/cni-plugin` if there is no
/// standard library to build it with.
const UNAVAILABLE: i32 = 69;

const SWITCHES: [&str; 4] = [
    "bridge-nf-call-iptables",
    "bridge-nf-call-ip6tables",
    "bridge-nf-filter-vlan-tagged",
    "bridge-nf-filter-pppoe-tagged",
];

/// The node's CNI configuration.
const CONFLIST: &str = "etc/cni/net.d/10-bridge.conflist";
const CONFLIST_TEXT: &str = r#"{"name": "cbr0", "plugins": [{"type": "bridge"}]}"#;

/// The root filesystem of the image, built once; or why there is none.
fn image() -> Result<&'static Path, String> {
    static IMAGE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = IMAGE.get_or_init(|| {
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root".to_owned());
        }
        let plugin = run(&mut Command::new(root().join("scripts/cni-plugin")))?;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image");
        let mut script = Command::new(root().join("deploy/rootfs"));
        script.arg(&folder).arg(env!("CARGO_BIN_EXE_towpath")).arg(root().join(plugin.trim_end()));
        run(&mut script)?;
        Ok(folder)
    });
    built.as_deref().map_err(Clone::clone)
}

/// The output of a script; or why it cannot do its work here.
fn run(script: &mut Command) -> Result<String, String> {
    let output = script.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(UNAVAILABLE) {
        return Err(errors);
    }
    assert!(output.status.success(), "{script:?}: {errors}");
    Ok(String::from_utf8(output.stdout).unwrap())
}

/// Runs `test` with the image, on a thread with its own `/run`.
fn with_image(test: impl FnOnce(&'static Path) + Send + 'static) {
    let image = match image() {
        Ok(image) => image,
        Err(why) => return skip(&why),
    };
    isolated(CloneFlags::empty(), move || test(image));
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
fn image_contains_the_programs_of_the_daemon_their_libraries_and_little_else() {
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
                || path == Path::new(PLUGIN)
            {
                continue;
            }
            let mut list = Command::new("chroot");
            list.arg(image).arg(loader_of(&found)).arg("--list");
            let listed = list.arg(Path::new("/").join(path)).output().unwrap();
            let output = String::from_utf8_lossy(&listed.stdout) + String::from_utf8_lossy(&listed.stderr);
            assert!(listed.status.success() && !output.contains("not found"), "{}: {output}", path.display());
            loaded += 1;
        }
        assert!(loaded > 50, "only {loaded} programs and modules");

        // The program of these tests is not optimised; that of a release may have 20 MiB.
        let others = found.iter().filter(|(path, _)| !path.ends_with("usr/bin/towpath"));
        let bytes: u64 = others.map(|(_, metadata)| metadata.len()).sum();
        assert!(bytes < 20 << 20, "{bytes} bytes beside the program, of 40 MiB for the whole");
    });
}

#[test]
fn plugin_in_the_image_runs_where_there_is_nothing_else() {
    with_image(|image| {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(image.join(PLUGIN), folder.path().join("towpath-cni")).unwrap();
        let mut command = Command::new("chroot");
        command.arg(folder.path()).arg("/towpath-cni").env("CNI_COMMAND", "VERSION");
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let versions: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(versions["cniVersion"], "1.1.0");
    });
}

fn loader_of(files: &BTreeMap<PathBuf, fs::Metadata>) -> PathBuf {
    let is_loader =
        |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux"));
    let loader = files.iter().find(|(path, metadata)| is_loader(path) && metadata.is_file()).unwrap().0;
    Path::new("/").join(loader)
}

/// A node with three pods on its bridge, and the objects: only `shop/api` may connect to `shop/db`.
struct Bed {
    lab: Lab,
    pods: BTreeMap<&'static str, PodId>,
    objects: TempDir,
    /// The node's `/etc` and `/opt`.
    files: TempDir,
    image: &'static Path,
    variant: Variant,
}

impl Bed {
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
        let node_addresses = lab.node(0).unwrap().addresses();
        let manifest = |(name, id): (&&str, &PodId)| {
            let addresses = lab.pod(*id).unwrap().addresses();
            pod(&format!("shop/{name}"), &format!("app: {name}"), addresses, 0, node_addresses)
        };
        let spec = "podSelector: {matchLabels: {app: db}}, \
                    ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]";
        let mut documents = vec![namespace("shop", ""), policy("shop/db", spec)];
        documents.extend(pods.iter().map(manifest));
        fs::write(objects.path().join("objects.yaml"), documents.join("---\n")).unwrap();
        let files = tempfile::tempdir().unwrap();
        let bed = Self { lab, pods, objects, files, image, variant };
        for (path, text) in [(CONFLIST, CONFLIST_TEXT), ("opt/cni/bin/bridge", "a program")] {
            let path = bed.files.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        // That of the image takes as long to build as the image.
        fs::write(bed.objects.path().join("towpath-cni"), "the plugin").unwrap();
        bed
    }

    /// A container of a pod, on the node.
    fn container<'a>(&'a self, pod: &'a PodTemplate, name: &'a str) -> Container<'a> {
        let address = self.address().to_string();
        Container {
            image: self.image,
            pod,
            name,
            node: self.files.path(),
            fields: BTreeMap::from([("spec.nodeName", "n1".to_owned()), ("status.hostIP", address)]),
            environment: Vec::new(),
            mounts: Vec::new(),
            without: None,
        }
    }

    /// The daemon's container, which reads its objects from a folder.
    fn daemon<'a>(&'a self, pod: &'a PodTemplate) -> Container<'a> {
        let mut container = self.container(pod, "towpath");
        container.mounts.push((self.objects.path().to_owned(), "/objects"));
        container.environment.push(("TOWPATH_FILE", "/objects".to_owned()));
        container.environment.push(("TOWPATH_CNI_PLUGIN", "/objects/towpath-cni".to_owned()));
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
        command.env_clear().env("PATH", PATH).env("TOWPATH_LISTEN", self.listen().to_string());
        let output = self.lab.node(0).unwrap().run(command, "").unwrap();
        (output.status.code(), output.stdout)
    }

    /// The node's CNI configuration, and whether the plugin of the gate is among its plugins.
    fn gate(&self) -> (String, bool) {
        let files = self.files.path();
        (fs::read_to_string(files.join(CONFLIST)).unwrap(), files.join("opt/cni/bin/towpath-cni").exists())
    }

    fn address(&self) -> IpAddr {
        self.lab.node(0).unwrap().address(Family::V4).unwrap()
    }

    /// Where the manifest makes the daemon listen.
    fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.address(), LISTEN.port())
    }

    /// The body of a page, if its status is 200.
    fn get(&self, path: &str) -> Option<String> {
        let connection = self.lab.node(0).unwrap().connect(self.listen(), Duration::from_secs(1)).unwrap();
        let (status, body) = http::get(connection, path)?;
        (status == 200).then_some(body)
    }

    fn is_ready(&self) -> bool {
        // The gate is installed a moment later.
        self.get("/readyz")
            .is_some_and(|text| text == "ok\n" || text.ends_with("the gate is not installed\n"))
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

impl Drop for Bed {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("--- the daemon's log ---\n{}---", self.log());
        }
    }
}

/// Waits for a condition while the container runs.
#[track_caller]
fn wait_until(what: &str, process: &mut Process, mut is_true: impl FnMut() -> bool) {
    wait::wait_until(what, TIMEOUT, || {
        let ended = process.try_wait().unwrap();
        assert!(ended.is_none(), "{what}: the container ended with {ended:?}");
        is_true()
    });
}

/// Process 1 of the container. It receives the signals, not the program that created its namespaces.
fn init_of(process: &Process) -> Pid {
    let id = process.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    Pid::from_raw(children.trim().parse().unwrap())
}

fn daemon_pod() -> PodTemplate {
    PodTemplate::of(&documents(&text("deploy/base/daemonset.yaml")))
}

fn cleanup_pod() -> PodTemplate {
    PodTemplate::of(&documents(&text("deploy/uninstall/daemonset.yaml")))
}

fn run_and_uninstall(image: &'static Path, variant: Variant) {
    let bed = Bed::new(image, variant);
    let before = bed.rules();
    bed.set_switches(0);
    assert_eq!(bed.reaches_db("web"), [true; 2]);

    let pod = daemon_pod();
    let (status, output) = bed.run(&bed.container(&pod, "prepare"));
    assert_eq!((status, output.as_str()), (Some(0), "the kernel has br_netfilter already\n"));

    let mut daemon = bed.start(&bed.daemon(&pod));
    wait_until("readiness", &mut daemon, || bed.is_ready());
    assert_eq!(bed.switches(), "1\n1\n1\n1\n");
    assert_eq!((bed.reaches_db("web"), bed.reaches_db("api")), ([false; 2], [true; 2]));
    wait_until("the gate", &mut daemon, || bed.gate().0.contains("towpath-cni"));
    assert!(bed.gate().1);
    assert!(bed.get("/livez").is_some() && bed.get("/metrics").unwrap().contains("towpath_build_info"));

    let (status, output) = bed.exec(&daemon, &["towpath", "status"]);
    let output = String::from_utf8_lossy(&output);
    assert!(status == Some(0) && output.contains(" on n1: ready since "), "{output}");
    // With the image's nft and the capabilities of the manifest, every pod's interface is known.
    assert!(output.contains(" guarded, ") && !output.contains("not guarded"), "{output}");
    assert!(
        !output.contains("interfaces     0 ") && !output.contains("without a known interface"),
        "{output}"
    );
    let (status, archive) = bed.exec(&daemon, &["towpath", "bugreport", "--output", "-"]);
    assert_eq!((status, archive.get(..2)), (Some(0), Some(&[0x1f, 0x8b][..])), "no gzip");

    // Another program resets the switches, and removes our hook.
    bed.set_switches(0);
    wait_until("the switches", &mut daemon, || bed.switches() == "1\n1\n1\n1\n");
    bed.on_node(&format!("iptables-{} -w -D FORWARD -j TOWPATH-FORWARD", variant.name()));
    wait_until("the hook", &mut daemon, || bed.reaches_db("web") == [false; 2]);
    assert_eq!(bed.reaches_db("api"), [true; 2]);

    kill(init_of(&daemon), Signal::SIGTERM).unwrap();
    assert_eq!(daemon.wait(TIMEOUT).unwrap().and_then(|status| status.code()), Some(0));
    assert_eq!((bed.reaches_db("web"), bed.reaches_db("api")), ([false; 2], [true; 2]));

    let cleanup = cleanup_pod();
    let (status, output) = bed.run(&bed.container(&cleanup, "cleanup"));
    let gate = "removed the entry for towpath-cni from 10-bridge.conflist, and the plugin\n";
    let rules = output.strip_prefix(gate).unwrap_or_else(|| panic!("{output}"));
    assert!(status == Some(0) && rules.starts_with("removed 4 jumps, "), "{status:?} {output}");
    assert_eq!(bed.gate(), (CONFLIST_TEXT.to_owned(), false));
    assert_eq!(bed.rules(), before);
    assert_eq!(bed.reaches_db("web"), [true; 2]);

    let mut done = bed.start(&bed.container(&cleanup, "done"));
    thread::sleep(Duration::from_secs(1));
    assert_eq!(done.try_wait().unwrap(), None, "it runs until it is deleted");
    kill(init_of(&done), Signal::SIGTERM).unwrap();
    assert_eq!(done.wait(TIMEOUT).unwrap().and_then(|status| status.code()), Some(0));
}

#[test]
fn image_run_by_its_manifest_enforces_with_nft_and_uninstalls_without_trace() {
    with_image(|image| run_and_uninstall(image, Variant::Nft));
}

#[test]
fn image_run_by_its_manifest_enforces_with_legacy_and_uninstalls_without_trace() {
    with_image(|image| run_and_uninstall(image, Variant::Legacy));
}

#[test]
fn daemon_is_not_ready_without_any_one_of_its_capabilities() {
    with_image(|image| {
        let pod = daemon_pod();
        let all = capabilities(pod.container("towpath"));
        assert!(!all.is_empty());
        let start = |bed: &Bed, without| bed.start(&Container { without, ..bed.daemon(&pod) });
        let bed = Bed::new(image, Variant::Nft);
        let mut daemon = start(&bed, None);
        let began = Instant::now();
        wait_until("readiness with all of them", &mut daemon, || bed.is_ready());
        // Much longer than it took with all capabilities.
        let long = began.elapsed() * 5 + Duration::from_secs(2);
        for without in &all {
            let bed = Bed::new(image, Variant::Nft);
            let mut daemon = start(&bed, Some(without.as_str()));
            // It ends, or reports that it fails.
            let began = Instant::now();
            while began.elapsed() < long && daemon.try_wait().unwrap().is_none() {
                assert!(!bed.is_ready(), "ready without {without}");
                thread::sleep(Duration::from_millis(50));
            }
        }
    });
}

#[test]
fn daemon_reports_switches_that_cannot_be_set_and_is_not_ready() {
    with_image(|image| {
        let pod = daemon_pod();
        let bed = Bed::new(image, Variant::Nft);
        bed.set_switches(0);
        let mut container = bed.daemon(&pod);
        // The container's own view, which is read-only.
        container.environment.push(("TOWPATH_PROC_SYS_NET", "/proc/sys/net".to_owned()));
        let mut daemon = bed.start(&container);
        wait_until("the message", &mut daemon, || {
            let output = bed.log();
            assert!(!bed.is_ready(), "{output}");
            output.contains("net.bridge.bridge-nf-call-iptables cannot be set to 1 (Read-only file system")
        });
        // Routed packets are still enforced; the rules are there.
        wait_until("the rules", &mut daemon, || bed.rules().contains("-A FORWARD -j TOWPATH-FORWARD"));
        bed.set_switches(1);
        wait_until("readiness", &mut daemon, || bed.is_ready());
    });
}

#[test]
fn module_that_cannot_be_loaded_is_reported_and_enforcement_works() {
    with_image(|image| {
        let bed = Bed::new(image, Variant::Nft);
        let pod = daemon_pod();
        let mut container = bed.container(&pod, "prepare");
        // A kernel without the module, as the container sees it, and no folder of modules for this kernel.
        let empty = tempfile::tempdir().unwrap();
        container.mounts.push((empty.path().to_owned(), "/proc/sys/net"));
        let (status, output) = bed.run(&container);
        assert_eq!(status, Some(0), "{output}");
        assert!(
            output.contains("the kernel module br_netfilter is not loaded, and could not be (modprobe"),
            "{output}"
        );
        assert!(output.contains("not found in directory /lib/modules/"), "{output}");
    });
}
