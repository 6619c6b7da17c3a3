//! `towpath run` and `towpath cleanup` with the folders of a node, in their own network namespace.

use std::{
    fs,
    io::Read as _,
    net::TcpStream,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::CloneFlags,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    http::{self, LISTEN},
    isolated::isolated,
    node::{FLANNEL, FLANNEL_TEXT, Node, program},
    root::has_root,
    wait::wait_until,
};

const TOWPATH: &str = env!("CARGO_BIN_EXE_towpath");

const SOON: Duration = Duration::from_secs(30);

/// Runs `test` on a thread that has its own network namespace and `/run`.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !has_root() {
        return;
    }
    isolated(CloneFlags::CLONE_NEWNET, || {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        test();
    });
}

fn towpath(arguments: &[&str]) -> Output {
    let mut command = Command::new(TOWPATH);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TOWPATH_")) {
        command.env_remove(name);
    }
    command.args(arguments).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A daemon with the folders of a node; killed when dropped.
struct Daemon(Child);

impl Daemon {
    fn start(node: &Node, more: &[&str]) -> Self {
        Self::start_as(Command::new(TOWPATH), node, more)
    }

    fn start_as(mut command: Command, node: &Node, more: &[&str]) -> Self {
        let objects = node.path().join("objects");
        fs::create_dir_all(&objects).unwrap();
        fs::write(objects.join("shop.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
            .unwrap();
        command.args(["run", "--node-name", "n1", "--bridge-netfilter", "ignore", "-f"]).arg(objects);
        command.arg("--cni-conf-dir").arg(node.conf_dir()).arg("--cni-bin-dir").arg(node.bin_dir());
        command.arg("--cni-plugin").arg(node.source()).args(more);
        Self(command.stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Ends it with a signal; returns its log.
    fn end(mut self, signal: Signal) -> String {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
        let status = self.0.wait().unwrap();
        assert!(signal == Signal::SIGKILL || status.success(), "{status}");
        let mut log = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        log
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get(path: &str) -> Option<(u16, String)> {
    http::get(TcpStream::connect(LISTEN), path)
}

/// What `/status` says of the gate.
fn gate() -> Value {
    let status = get("/status").map(|(_, body)| serde_json::from_str::<Value>(&body).unwrap());
    status.map_or(Value::Null, |status| status["gate"].clone())
}

fn gauge() -> String {
    let metrics = get("/metrics").unwrap().1;
    metrics.lines().find(|line| line.starts_with("towpath_gate_installed ")).unwrap().to_owned()
}

#[track_caller]
fn wait_for_state(state: &str) {
    wait_until(state, SOON, || gate()["state"] == state);
}

fn cleanup(node: &Node) -> Output {
    let [conf_dir, bin_dir] = [node.conf_dir(), node.bin_dir()].map(|folder| folder.display().to_string());
    towpath(&["cleanup", "--cni-conf-dir", &conf_dir, "--cni-bin-dir", &bin_dir])
}

#[test]
fn daemon_installs_the_gate_says_so_and_leaves_it_until_cleanup() {
    in_namespace(|| {
        let node = Node::with_flannel();
        let daemon = Daemon::start(&node, &["--gate-when-away", "open", "--gate-socket", "/run/other.sock"]);
        wait_for_state("installed");
        assert_eq!(gate(), json!({"state": "installed", "reason": null, "file": FLANNEL}));
        assert_eq!(gauge(), "towpath_gate_installed 1");
        let plugins = node.load().unwrap();
        let (socket, when_away) = (&plugins[2]["socket"], &plugins[2]["whenAway"]);
        assert_eq!((socket, when_away), (&json!("/run/other.sock"), &json!("open")));
        let text = out(&towpath(&["status"]));
        assert!(text.contains("wait for their rules: the gate is in 10-flannel.conflist"), "{text}");
        assert_eq!(get("/readyz"), Some((200, "ok\n".to_owned())));

        node.write(FLANNEL, FLANNEL_TEXT);
        wait_until("the repair", SOON, || node.is_gated(FLANNEL));
        wait_until("its count", SOON, || {
            get("/metrics").unwrap().1.contains("towpath_drift_repairs_total 1\n")
        });
        let installed = node.read(FLANNEL);
        let log = daemon.end(Signal::SIGTERM);
        assert!(log.contains("gate for new pods is installed"), "{log}");
        assert!(log.contains("another program removed the gate's entry"), "{log}");
        assert_eq!(node.read(FLANNEL), installed);
        assert!(node.plugin().exists());

        let plain = towpath(&["cleanup"]);
        assert!(plain.status.success() && node.is_gated(FLANNEL), "{}", out(&plain));
        let cleaned = cleanup(&node);
        let expected =
            "removed the entry for towpath-cni from 10-flannel.conflist, and the plugin\nremoved 0 jumps";
        assert!(out(&cleaned).starts_with(expected), "{}", out(&cleaned));
        assert_eq!((cleaned.status.code(), node.read(FLANNEL)), (Some(0), FLANNEL_TEXT.to_owned()));
        assert!(!node.plugin().exists());

        let nothing = cleanup(&node);
        let expected = "removed the entry for towpath-cni from no configuration, and no plugin\n";
        assert!(nothing.status.success() && out(&nothing).starts_with(expected), "{}", out(&nothing));
    });
}

#[test]
fn gate_that_is_turned_off_is_removed_at_the_next_start() {
    in_namespace(|| {
        let node = Node::with_flannel();
        let daemon = Daemon::start(&node, &[]);
        wait_for_state("installed");
        daemon.end(Signal::SIGTERM);
        let daemon = Daemon::start(&node, &["--gate", "off"]);
        wait_until("the removal", SOON, || !node.plugin().exists());
        assert_eq!(node.read(FLANNEL), FLANNEL_TEXT);
        wait_for_state("not wanted");
        assert_eq!(gauge(), "towpath_gate_installed 0");
        assert!(out(&towpath(&["status"])).contains("new pods       do not wait for their rules\n"));
        drop(daemon);
    });
}

#[test]
fn entry_waits_for_the_first_sync() {
    in_namespace(|| {
        let node = Node::with_flannel();
        // Everything that the daemon starts, except an ipset that works: no sync succeeds.
        let programs = node.path().join("programs");
        fs::create_dir(&programs).unwrap();
        for folder in ["/usr/sbin", "/usr/bin", "/sbin", "/bin"] {
            for program in fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
                let name = program.file_name();
                if name != "ipset" && !programs.join(&name).exists() {
                    symlink(program.path(), programs.join(&name)).unwrap();
                }
            }
        }
        let fails = "case \"$*\" in *restore*) echo no memory for sets >&2; exit 1;; esac";
        program(&programs.join("ipset"), &format!("#!/bin/sh\n{fails}\nexec /usr/sbin/ipset \"$@\"\n"));
        let mut command = Command::new(TOWPATH);
        command.env("PATH", &programs);
        let daemon = Daemon::start_as(command, &node, &["--interface-guard", "off"]);
        wait_until("a failed sync", SOON, || {
            get("/readyz").is_some_and(|(_, text)| text.contains("no memory for sets"))
        });
        assert_eq!(gate()["reason"], "waiting for the first sync");
        assert_eq!(node.read(FLANNEL), FLANNEL_TEXT);
        symlink("/usr/sbin/ipset", programs.join("working")).unwrap();
        fs::rename(programs.join("working"), programs.join("ipset")).unwrap();
        wait_for_state("installed");
        drop(daemon);
    });
}

#[test]
fn gate_that_cannot_be_installed_is_named_and_policy_is_enforced() {
    in_namespace(|| {
        let node = Node::with_flannel();
        fs::remove_file(node.source()).unwrap();
        let daemon = Daemon::start(&node, &[]);
        wait_for_state("failed");
        let report = gate();
        let reason = report["reason"].as_str().unwrap();
        assert!(reason.starts_with("reading") && reason.contains("towpath-cni: No such file"), "{reason}");
        assert_eq!((gauge().as_str(), node.is_gated(FLANNEL)), ("towpath_gate_installed 0", false));
        let text = "ok, but new pods do not wait for their rules: the gate is not installed\n";
        assert_eq!(get("/readyz"), Some((200, text.to_owned())));
        let status = out(&towpath(&["status"]));
        assert!(status.contains(&format!("\n  gate for new pods: {reason}\n")), "{status}");
        assert!(status.contains("do not wait for their rules: the gate is failed"), "{status}");
        let rules = Command::new("iptables").arg("-S").output().unwrap();
        assert!(out(&rules).contains("-A FORWARD -j TOWPATH-FORWARD"), "{}", out(&rules));
        drop(daemon);
    });
}

#[test]
fn folders_without_write_permission_are_named_and_nothing_is_changed() {
    in_namespace(|| {
        let read_only = |folder: &Path| {
            mount(Some(folder), folder, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, folder, None::<&str>, flags, None::<&str>).unwrap();
        };
        let node = Node::with_flannel();
        read_only(&node.conf_dir());
        let daemon = Daemon::start(&node, &[]);
        wait_for_state("failed");
        let reason = gate()["reason"].to_string();
        assert!(reason.contains("writing") && reason.contains("Read-only file system"), "{reason}");
        assert!(node.plugin().exists() && !node.is_gated(FLANNEL));
        drop(daemon);

        let node = Node::with_flannel();
        read_only(&node.bin_dir());
        let daemon = Daemon::start(&node, &[]);
        wait_for_state("failed");
        assert!(gate()["reason"].to_string().contains("Read-only file system"));
        assert_eq!(node.read(FLANNEL), FLANNEL_TEXT);
        drop(daemon);

        let node = Node::with_flannel();
        let daemon = Daemon::start(&node, &[]);
        wait_for_state("installed");
        drop(daemon);
        read_only(&node.conf_dir());
        let failed = cleanup(&node);
        assert_eq!(failed.status.code(), Some(3), "{}", out(&failed));
        assert!(out(&failed).contains("the gate for new pods was not removed, and nothing else either"));
        assert!(node.plugin().exists() && node.is_gated(FLANNEL));
        let rules = Command::new("iptables").arg("-S").output().unwrap();
        assert!(out(&rules).contains("TOWPATH-FORWARD"), "{}", out(&rules));
    });
}

/// The program with the capabilities of the container in the manifest, and no others.
fn with_capabilities_of_the_manifest() -> Command {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/base/daemonset.yaml");
    let manifest = fs::read_to_string(manifest).unwrap();
    let container = &manifest[manifest.find("- name: towpath\n").unwrap()..];
    let mut kept: Vec<&str> = Vec::new();
    for line in container[container.find("add:").unwrap()..].lines().skip(1) {
        match line.trim() {
            comment if comment.starts_with('#') => {}
            item => match item.strip_prefix("- ") {
                Some(name) => kept.push(name),
                None => break,
            },
        }
    }
    assert_eq!(kept, ["NET_ADMIN", "NET_RAW"]);
    let bounds = kept.iter().map(|name| format!("+{}", name.to_lowercase())).collect::<Vec<_>>().join(",");
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", &format!("-all,{bounds}"), "--inh-caps=-all", "--no-new-privs", TOWPATH]);
    command
}

#[test]
fn capabilities_of_the_pod_suffice_for_folders_of_root() {
    in_namespace(|| {
        let node = Node::with_flannel();
        fs::set_permissions(node.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let daemon = Daemon::start_as(with_capabilities_of_the_manifest(), &node, &[]);
        wait_for_state("installed");
        assert_eq!(node.types(), ["flannel", "portmap", "towpath-cni"]);

        // Another owner's file: this process may neither read it nor give a file to that owner.
        node.write("owned.tmp", FLANNEL_TEXT);
        chown(node.conf("owned.tmp"), Some(12), Some(34)).unwrap();
        fs::rename(node.conf("owned.tmp"), node.conf(FLANNEL)).unwrap();
        wait_for_state("failed");
        assert!(gate()["reason"].to_string().contains("owner 12:34 cannot be kept"), "{}", gate());
        fs::set_permissions(node.conf(FLANNEL), fs::Permissions::from_mode(0o600)).unwrap();
        wait_until("that it is unreadable", SOON, || {
            gate()["reason"].to_string().contains("Permission denied")
        });
        assert_eq!(node.read(FLANNEL), FLANNEL_TEXT);
        assert_eq!(get("/readyz").unwrap().0, 200);
        chown(node.conf(FLANNEL), Some(0), Some(0)).unwrap();
        wait_for_state("installed");
        drop(daemon);
    });
}

#[test]
fn daemon_that_is_killed_at_any_moment_leaves_a_node_that_starts_pods() {
    in_namespace(|| {
        let node = Node::with_flannel();
        for round in 0..20_u64 {
            cleanup_quickly(&node);
            let daemon = Daemon::start(&node, &[]);
            // The last ones are killed as soon as the plugin is there, or the entry.
            let is_time = |since: Instant| match round {
                0..14 => since.elapsed() > Duration::from_millis(100 + round * 60),
                14..17 => node.plugin().exists(),
                _ => node.is_gated(FLANNEL),
            };
            let start = Instant::now();
            while !is_time(start) {
                node.types();
                assert!(start.elapsed() < SOON, "not installed, round {round}");
            }
            daemon.end(Signal::SIGKILL);
            let types = node.types();
            assert!(round < 17 || types.len() == 3, "{types:?}");
        }
        // What the one before did not finish.
        node.write(".towpath-cni.tmp", "half");
        let daemon = Daemon::start(&node, &[]);
        wait_for_state("installed");
        assert_eq!(node.files(), [FLANNEL]);
        daemon.end(Signal::SIGTERM);
    });
}

/// Back to the state before the first start, without a runtime that could notice.
fn cleanup_quickly(node: &Node) {
    node.write(FLANNEL, FLANNEL_TEXT);
    let _ = fs::remove_file(node.plugin());
    thread::sleep(Duration::from_millis(1));
}

#[test]
fn one_folder_without_the_other_is_a_usage_error() {
    let run = ["run", "--node-name", "n1", "-f", "/nowhere"];
    for (arguments, missing) in [
        ([&run[..], &["--cni-conf-dir", "/x"]].concat(), "--cni-bin-dir <DIR>"),
        ([&run[..], &["--cni-bin-dir", "/x"]].concat(), "--cni-conf-dir <DIR>"),
        (vec!["cleanup", "--cni-bin-dir", "/x"], "--cni-conf-dir <DIR>"),
    ] {
        let output = towpath(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", out(&output));
        assert!(out(&output).contains(missing), "{}", out(&output));
    }
}
