//! A socket in the place of the daemon's.

use std::{
    io::Write as _,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::Value;
use tempfile::TempDir;
use towpath_cni::protocol::{Response, read_message, write_message};

/// A folder with a socket, and what was asked there.
pub(crate) struct Daemon {
    folder: TempDir,
    requests: Arc<Mutex<Vec<Value>>>,
}

impl Daemon {
    /// Nobody listens, and there is no socket.
    pub(crate) fn absent() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), requests: Arc::default() }
    }

    /// Answers every request like this.
    pub(crate) fn answering(response: Response) -> Self {
        let daemon = Self::absent();
        daemon.start(response);
        daemon
    }

    pub(crate) fn done() -> Self {
        Self::answering(Response::Done)
    }

    pub(crate) fn failed(reason: &str) -> Self {
        Self::answering(Response::Failed { reason: reason.to_owned() })
    }

    /// Begins to listen, and to answer every request like this.
    pub(crate) fn start(&self, response: Response) {
        let requests = Arc::clone(&self.requests);
        self.behave(move |mut connection| {
            let request: Value = read_message(&mut connection).unwrap();
            requests.lock().unwrap().push(request);
            write_message(&mut connection, &response).unwrap();
        });
    }

    /// Begins to listen, and does this with every connection, each on a thread of its own.
    pub(crate) fn behave(&self, with_connection: impl Fn(UnixStream) + Send + Sync + 'static) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let with_connection = Arc::new(with_connection);
        thread::spawn(move || {
            for connection in listener.incoming() {
                let with_connection = Arc::clone(&with_connection);
                thread::spawn(move || with_connection(connection.unwrap()));
            }
        });
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("gate.sock")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes the record of an attachment, as the daemon does.
    pub(crate) fn record(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join("attachments");
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join(name);
        std::fs::File::create(&file).unwrap().write_all(b"{}").unwrap();
        file
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Vec<Value> {
        self.requests.lock().unwrap().clone()
    }
}
