//! The page of `towpath run`, in a network namespace of its own (root).

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{sched::CloneFlags, unistd::gettid};
use towpath::lab::Netns;

use crate::{
    http::{self, LISTEN},
    isolated::isolated,
    root::has_root,
    tools::{check, has_browser, play},
    wait::wait_until,
};

/// A daemon for the node of the examples; killed when dropped.
struct Daemon(Child);

impl Daemon {
    fn start(more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shop");
        command
            .args(["run", "-f", folder, "--node-name", "node-2", "--bridge-netfilter", "ignore"])
            .args(more);
        let daemon = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_until("the daemon ready", Duration::from_secs(40), || {
            http::get(TcpStream::connect(LISTEN), "/readyz").is_some_and(|(status, _)| status == 200)
        });
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !has_root() {
        return;
    }
    isolated(CloneFlags::CLONE_NEWNET, || {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        test();
    });
}

/// The status of a request with this `Host`.
fn status(method: &str, path: &str, host: &str) -> u16 {
    status_at(&LISTEN.to_string(), method, path, host)
}

fn status_at(address: &str, method: &str, path: &str, host: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn daemon_shows_its_objects_on_its_page_and_changes_nothing() {
    in_namespace(|| {
        let _daemon = Daemon::start(&["--page", "node"]);
        assert_eq!(status("GET", "/api/v1/graph", "127.0.0.1:9586"), 200);
        assert_eq!(status("GET", "/api/v1/graph", "evil.example"), 421);
        assert_eq!(status("GET", "/", "evil.example"), 421);
        assert_eq!(status("POST", "/api/v1/apply", "127.0.0.1:9586"), 403);
        // Prometheus and kubelet may use names.
        assert_eq!(status("GET", "/metrics", "node.example"), 200);
        if has_browser() {
            check(play("daemon", "http://127.0.0.1:9586/").output().unwrap());
        }
    });
}

#[test]
fn daemon_has_no_page_unless_it_is_turned_on() {
    in_namespace(|| {
        let _daemon = Daemon::start(&[]);
        for path in ["/", "/app.js", "/api/v1/graph"] {
            assert_eq!(status("GET", path, "127.0.0.1:9586"), 404, "{path}");
        }
        assert_eq!(status("GET", "/status", "127.0.0.1:9586"), 200);
    });
}

/// Another machine, with a cable to this namespace.
fn other_machine() -> Netns {
    let other = Netns::new("another machine").unwrap();
    let lines = [
        format!("link add cable type veth peer name cable netns {}", gettid()),
        "addr add 192.0.2.2/24 dev cable".to_owned(),
        "link set cable up".to_owned(),
    ];
    other.ip(&lines).unwrap();
    for arguments in
        [["addr", "add", "192.0.2.1/24", "dev", "cable"].as_slice(), &["link", "set", "cable", "up"]]
    {
        assert!(Command::new("ip").args(arguments).status().unwrap().success());
    }
    other
}

#[test]
fn other_machines_see_the_page_of_a_daemon_only_if_it_is_for_everybody() {
    in_namespace(|| {
        let other = other_machine();
        for (arguments, expected) in
            [(&["--page", "node"][..], 403), (&["--page", "everybody"], 200), (&["--page", "off"], 404)]
        {
            let _daemon = Daemon::start(&[&["--listen", "0.0.0.0:9586"], arguments].concat());
            for path in ["/", "/api/v1/graph"] {
                let seen =
                    other.run(move || status_at("192.0.2.1:9586", "GET", path, "192.0.2.1:9586")).unwrap();
                assert_eq!(seen, expected, "{arguments:?} {path}");
            }
            let near = status_at("192.0.2.1:9586", "GET", "/api/v1/graph", "192.0.2.1:9586");
            assert_eq!(near, if expected == 404 { 404 } else { 200 }, "{arguments:?}");
        }
    });
}
