//! `towpath run` and `towpath cleanup`, in their own network namespace.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sched::CloneFlags,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    http::{self, LISTEN},
    isolated::isolated,
    program::{examples, finish, run, towpath},
    repository::text,
    root::has_root,
    wait::wait_until,
};

const TIMEOUT: Duration = Duration::from_secs(20);

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

/// A daemon; killed when dropped.
struct Daemon(Child);

impl Daemon {
    fn start(folder: &str, more: &[&str]) -> Self {
        let arguments = [&["run", "-f", folder, "--node-name", "node-2"], more].concat();
        Self(towpath(&arguments).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Stops it with SIGTERM; returns its exit status and its log.
    fn stop(mut self) -> (Option<i32>, String) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM).unwrap();
        let status = self.0.wait().unwrap().code();
        let mut log = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status, log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The status and the body of a page; `None` while nothing listens.
fn get(path: &str) -> Option<(u16, String)> {
    http::get(TcpStream::connect(LISTEN), path)
}

#[track_caller]
fn wait_for(what: &str, is_true: impl FnMut() -> bool) {
    wait_until(what, TIMEOUT, is_true);
}

fn output(program: &str, arguments: &[&str]) -> String {
    let result = finish(Command::new(program).args(arguments));
    assert_eq!(result.status, 0, "{result:?}");
    result.stdout
}

fn chains() -> String {
    output("iptables", &["-S"])
}

#[test]
fn daemon_follows_its_files_and_its_rules_stay_until_cleanup() {
    in_namespace(|| {
        let before = (chains(), output("ipset", &["list", "-name"]));
        let folder = examples();
        let manifests = folder.path().join("manifests");
        let daemon = Daemon::start(manifests.to_str().unwrap(), &["--bridge-netfilter", "ignore"]);
        // No interface here belongs to one of its pods.
        wait_for("readiness", || {
            get("/readyz").is_some_and(|(status, text)| {
                status == 200 && text.ends_with("are closed: no interface is known to be theirs\n")
            })
        });
        assert_eq!(get("/livez"), Some((200, "ok\n".to_owned())));
        assert_eq!(get("/nothing").unwrap().0, 404);
        let metrics = get("/metrics").unwrap().1;
        assert!(metrics.contains("towpath_objects{kind=\"NetworkPolicy\"} 5\n"), "{metrics}");
        assert!(metrics.contains("towpath_isolated_pods{direction=\"egress\"} 1\n"), "{metrics}");

        let enforced = chains();
        assert!(enforced.contains("--comment \"shop/db egress\""), "{enforced}");
        let policies = manifests.join("policies.yaml");
        let text = fs::read_to_string(&policies).unwrap();
        fs::write(&policies, text.replace("[Ingress, Egress]", "[Ingress]")).unwrap();
        wait_for("the change", || !chains().contains("shop/db egress"));

        assert!(output("iptables", &["-F", "FORWARD"]).is_empty());
        wait_for("the repair", || chains().contains("-A FORWARD -j TOWPATH-FORWARD"));

        // An unreadable file changes nothing and is reported.
        fs::write(&policies, "kind: [").unwrap();
        wait_for("the fault", || get("/metrics").unwrap().1.contains("towpath_refused_objects 1\n"));
        let last = chains();
        assert!(last.contains("shop/db ingress"), "{last}");

        let (status, log) = daemon.stop();
        assert_eq!(status, Some(0), "{log}");
        assert!(log.contains("stopping; rules stay in place"), "{log}");
        assert_eq!(chains(), last);

        let cleaned = run(&["cleanup"]);
        assert_eq!((cleaned.status, cleaned.stderr.as_str()), (0, ""), "{cleaned:?}");
        assert!(cleaned.stdout.starts_with("removed 4 jumps, "), "{cleaned:?}");
        assert_eq!((chains(), output("ipset", &["list", "-name"])), before);
        assert_eq!(run(&["cleanup"]).stdout, "removed 0 jumps, 0 chains, 0 sets and 0 tables\n");
    });
}

/// The files of a bug report, each with its text.
fn unpacked(file: &str) -> BTreeMap<String, String> {
    let names = output("tar", &["-tzf", file]);
    let text =
        |name: &str| (name.split_once('/').unwrap().1.to_owned(), output("tar", &["-xzOf", file, name]));
    names.lines().map(text).collect()
}

#[test]
fn status_shows_what_is_enforced_and_what_is_wrong() {
    in_namespace(|| {
        let without_daemon = run(&["status"]);
        assert_eq!(without_daemon.status, 3, "{without_daemon:?}");
        assert!(
            without_daemon.stderr.contains("asking the daemon at 127.0.0.1:9586 for /status"),
            "{without_daemon:?}"
        );

        let folder = examples();
        let manifests = folder.path().join("manifests");
        let path = manifests.to_str().unwrap();
        let daemon = Daemon::start(path, &["--bridge-netfilter", "ignore"]);
        wait_for("readiness", || get("/readyz").is_some_and(|(status, _)| status == 200));
        let shown = run(&["status"]);
        assert_eq!((shown.status, shown.stderr.as_str()), (0, ""), "{shown:?}");
        let first = shown.stdout.lines().next().unwrap();
        assert!(
            first.starts_with(&format!("towpath {} on node-2: ready since 2", env!("CARGO_PKG_VERSION"))),
            "{first}"
        );
        let row = shown.stdout.lines().find(|line| line.starts_with("  shop/db ")).unwrap();
        assert_eq!(row.split_whitespace().next_back(), Some("shop/db"), "{shown:?}");

        let report = run(&["status", "-o", "json"]).json();
        assert_eq!((&report["node"], &report["ready"]), (&"node-2".into(), &true.into()));
        assert_eq!(report["objects"]["NetworkPolicy"], 5);
        let pods = report["pods"].as_array().unwrap();
        let db = pods.iter().find(|pod| pod["pod"] == "shop/db").unwrap();
        assert_eq!(db["egress"]["isolated"], true);
        let chains = output("iptables", &["-S"]).lines().filter(|line| line.starts_with("-N T")).count();
        assert_eq!(report["kernel"]["IPv4"]["chains"], chains);

        let operations = text("docs/operations.md");
        for field in report.as_object().unwrap().keys().chain(db.as_object().unwrap().keys()) {
            assert!(operations.contains(&format!("`{field}`")), "docs/operations.md lacks {field}");
        }

        fs::write(manifests.join("policies.yaml"), "kind: [").unwrap();
        wait_for("the fault", || get("/metrics").unwrap().1.contains("towpath_refused_objects 1\n"));
        let report = run(&["status", "-o", "json"]).json();
        assert!(
            report["refused"][0]["reason"].as_str().unwrap().contains("policies.yaml:2:1: error"),
            "{report}"
        );

        // A second daemon waits for the first, and is not ready.
        let second = Daemon::start(path, &["--bridge-netfilter", "ignore", "--listen", "127.0.0.1:9587"]);
        let mut waits = run(&["status", "--addr", "127.0.0.1:9587"]);
        wait_for("the second one", || {
            waits = run(&["status", "--addr", "127.0.0.1:9587"]);
            waits.stdout.contains("holds the writer lock of this network namespace")
        });
        assert_eq!(waits.status, 1, "{waits:?}");
        drop((second, daemon));
    });
}

#[test]
fn bug_report_contains_daemon_and_kernel_state_and_names_missing_parts() {
    in_namespace(|| {
        assert!(output("ipset", &["create", "foreign", "hash:ip"]).is_empty());
        let folder = examples();
        let manifests = folder.path().join("manifests");
        let daemon = Daemon::start(manifests.to_str().unwrap(), &["--bridge-netfilter", "ignore"]);
        wait_for("readiness", || get("/readyz").is_some_and(|(status, _)| status == 200));
        let before = (chains(), output("ipset", &["save"]));
        let made = run(&["bugreport", "--output", folder.path().to_str().unwrap()]);
        assert_eq!(made.status, 0, "{made:?}");
        let files = unpacked(made.stdout.trim());
        let about = &files["README.txt"];
        assert!(files["status.txt"].contains("on node-2: ready since"), "{files:?}");
        assert!(files["metrics.txt"].contains("towpath_build_info"));
        assert!(files["ipset.txt"].contains("Name: tp4-drops") && !files["ipset.txt"].contains("foreign"));
        assert!(files["versions.txt"].contains("ipset: ipset v"), "{}", files["versions.txt"]);
        let tables: Vec<_> = files
            .iter()
            .filter(|(name, _)| name.starts_with("iptables-") && name.ends_with("-filter.txt"))
            .collect();
        assert!(tables.iter().any(|(_, text)| text.contains(":TOWPATH-FORWARD -")), "{tables:?}");
        assert_eq!((chains(), output("ipset", &["save"])), before, "a bug report changes nothing");
        drop(daemon);

        // Without a daemon the rest is included, and what is missing is named.
        let file = folder.path().join("left.tar.gz");
        let made = run(&["bugreport", "--output", file.to_str().unwrap()]);
        assert_eq!(made.status, 0, "{made:?}");
        assert!(made.stderr.contains("not in it: status.json: asking the daemon"), "{made:?}");
        let files = unpacked(file.to_str().unwrap());
        assert!(files["README.txt"].starts_with(about.lines().next().unwrap()));
        assert!(files["README.txt"].contains("- metrics.txt: asking the daemon"), "{}", files["README.txt"]);
        assert!(files["ipset.txt"].contains("Name: tp4-drops"), "the rules stay, and are shown");
        assert_eq!(run(&["bugreport", "--output", "/nonexistent/folder"]).status, 2);
    });
}

#[test]
fn listen_address_in_use_is_named() {
    in_namespace(|| {
        let _taken = std::net::TcpListener::bind("127.0.0.1:9586").unwrap();
        let result = run(&["run", "-f", "examples/shop", "--node-name", "node-2"]);
        assert_eq!(result.status, 3, "{result:?}");
        let last = result.stderr.lines().last().unwrap_or_default();
        assert_eq!(last, "towpath: listening on 127.0.0.1:9586: Address already in use (os error 98)");
        assert!(!chains().contains("TOWPATH"), "no rule is written");
    });
}

#[test]
fn compile_prints_what_run_writes() {
    in_namespace(|| {
        let folder = examples();
        let manifests = folder.path().join("manifests");
        let path = manifests.to_str().unwrap();
        let daemon = Daemon::start(path, &["--bridge-netfilter", "ignore"]);
        wait_for("readiness", || get("/readyz").is_some_and(|(status, _)| status == 200));
        let written = (chains(), output("ipset", &["save"]));
        assert_eq!(daemon.stop().0, Some(0));
        assert_eq!(run(&["cleanup"]).status, 0);

        let compiled = run(&["compile", "-f", path, "--node-name", "node-2", "-o", "json"]).json();
        for (program, arguments, input) in [
            ("ipset", &["restore", "-exist"][..], "ipset"),
            ("iptables-restore", &["--noflush"], "iptables"),
            ("ip6tables-restore", &["--noflush"], "ip6tables"),
        ] {
            let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(compiled[input].as_str().unwrap().as_bytes()).unwrap();
            assert!(child.wait().unwrap().success(), "{program}");
        }
        let sorted = |text: &str| {
            // The kernel gives each set its own seed and size.
            let mut lines: Vec<&str> = text.lines().filter(|line| line.starts_with("add")).collect();
            lines.sort_unstable();
            lines.join("\n")
        };
        assert_eq!(chains(), written.0);
        assert_eq!(sorted(&output("ipset", &["save"])), sorted(&written.1));
    });
}
