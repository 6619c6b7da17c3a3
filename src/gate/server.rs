//! The socket on which the CNI plugin asks.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use towpath_cni::protocol::{MessageError, Request, Response, read_message, write_message};
use tracing::warn;

/// How long a plugin may take to send its request, and to take in the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many requests are answered at a time. Each holds a thread, most of which wait for the same sync.
const MOST_REQUESTS: usize = 512;

/// The wait after a connection could not be accepted.
const RETRY: Duration = Duration::from_millis(100);

/// Listens on a socket that only root can connect to, and answers each request on a thread of its own. Without an answer
/// the connection is closed, and the plugin asks again. A socket that is there already is replaced: that of a process
/// that ended.
///
/// # Errors
/// If the socket cannot be made, or no thread can be started.
pub fn serve(
    path: &Path,
    answer: impl Fn(Request) -> Option<Response> + Send + Sync + 'static,
) -> io::Result<()> {
    // Made under another name, so that no plugin finds a socket that it may not use, or that nobody listens on.
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)?;
    let answer = Arc::new(answer);
    let running = Arc::new(AtomicUsize::new(0));
    thread::Builder::new().name("gate".to_owned()).spawn(move || {
        for stream in listener.incoming() {
            let stream = match stream {
                Ok(stream) => stream,
                Err(error) => {
                    warn!(%error, "cannot accept a connection of the CNI plugin");
                    thread::sleep(RETRY);
                    continue;
                }
            };
            if running.fetch_add(1, Ordering::AcqRel) >= MOST_REQUESTS {
                running.fetch_sub(1, Ordering::AcqRel);
                // The plugin tries again.
                continue;
            }
            let (answer, counter) = (answer.clone(), running.clone());
            let thread = thread::Builder::new().name("gate-request".to_owned()).spawn(move || {
                if let Err(error) = exchange(&stream, &*answer) {
                    warn!(%error, "cannot answer the CNI plugin");
                }
                counter.fetch_sub(1, Ordering::AcqRel);
            });
            if let Err(error) = thread {
                running.fetch_sub(1, Ordering::AcqRel);
                warn!(%error, "cannot start a thread for the CNI plugin");
            }
        }
    })?;
    Ok(())
}

fn exchange(stream: &UnixStream, answer: &impl Fn(Request) -> Option<Response>) -> Result<(), MessageError> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let response = match read_message(stream) {
        Ok(request) => match answer(request) {
            Some(response) => response,
            None => return Ok(()),
        },
        Err(MessageError::Io(error)) => return Err(error.into()),
        // A connection without a request only tests whether anybody listens.
        Err(MessageError::Incomplete) => return Ok(()),
        Err(error) => Response::Failed { reason: format!("the request cannot be read: {error}") },
    };
    match write_message(stream, &response) {
        // The plugin has given up meanwhile, and is told again.
        Err(MessageError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::fs::FileTypeExt as _,
    };

    use super::*;

    fn ask(path: &Path, text: &str) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn requests_are_answered_and_faulty_ones_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate.sock");
        fs::write(&path, "left by a former process").unwrap();
        serve(&path, |request| match request {
            Request::Status => Some(Response::Done),
            Request::Gc { .. } => None,
            other => Some(Response::Failed { reason: format!("{other:?}") }),
        })
        .unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(ask(&path, "{\"command\":\"status\"}\n"), "{\"result\":\"done\"}\n");
        assert_eq!(ask(&path, "{\"command\":\"gc\",\"network\":\"n\",\"valid\":[]}\n"), "", "no answer");
        let refused = ask(&path, "{\"command\":\"del\",\"container_id\":\"../x\",\"ifname\":\"eth0\"}\n");
        assert!(refused.contains("\"failed\"") && refused.contains("../x"), "{refused}");
        assert!(ask(&path, "nonsense\n").contains("cannot be read"));
        drop(UnixStream::connect(&path).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no other file is left");
    }
}
