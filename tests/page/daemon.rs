//! The page of `towpath run`, in a network namespace of its own (root).

use std::{
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::sched::CloneFlags;

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
    use std::io::{Read as _, Write as _};
    let mut stream = TcpStream::connect(LISTEN).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn daemon_shows_its_objects_on_its_page_and_changes_nothing() {
    in_namespace(|| {
        let _daemon = Daemon::start(&[]);
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
fn page_of_a_daemon_can_be_turned_off() {
    in_namespace(|| {
        let _daemon = Daemon::start(&["--page", "off"]);
        for path in ["/", "/app.js", "/api/v1/graph"] {
            assert_eq!(status("GET", path, "127.0.0.1:9586"), 404, "{path}");
        }
        assert_eq!(status("GET", "/status", "127.0.0.1:9586"), 200);
    });
}
