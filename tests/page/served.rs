//! A running `towpath ui`, on a port of its own.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

/// The objects of the demo "stars", without policies.
pub(crate) const STARS: &str = include_str!("../../ui/test/stars.yaml");

/// A `towpath ui` for a folder. Dropping it ends it.
pub(crate) struct Served {
    child: Child,
    /// The address with the token, as it was printed.
    pub(crate) url: String,
    pub(crate) folder: TempDir,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Served {
    /// Serves a folder with these files.
    pub(crate) fn new(files: &[(&str, &str)], arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
        command.args(["ui", "--listen", "127.0.0.1:0", "-f"]).arg(folder.path()).args(arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Self { child, url: url.trim_end().to_owned(), folder }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> &str {
        self.url.strip_prefix("http://").unwrap().split_once('/').unwrap().0
    }

    pub(crate) fn token(&self) -> &str {
        self.url.split_once("#token=").unwrap().1
    }

    /// Sends a request with exactly these headers.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut stream = TcpStream::connect(self.host()).unwrap();
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        for (name, value) in headers {
            write!(request, "{name}: {value}\r\n").unwrap();
        }
        write!(request, "Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    /// Sends a request as the page does.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &serde_json::Value) -> Answer {
        let bearer = format!("Bearer {}", self.token());
        let headers =
            [("Host", self.host()), ("Authorization", &*bearer), ("Content-Type", "application/json")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(method, path, &headers, &body)
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}
