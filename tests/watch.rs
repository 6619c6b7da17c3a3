//! How the watches handle responses that a real API server seldom gives, or only with a storage that is not available
//! here: a minimal server gives them.

#![cfg(test)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use towpath::{
    k8s::watch::{Access, ApiSource, Cause, Kind, MemoryLimits, Rejection, SILENCE, Sink, WatchError},
    model::{Change, NetworkPolicy, Standing},
};

/// How long an event may take, on a busy machine: the timeout for silence, and more.
const PATIENCE: Duration = SILENCE.saturating_add(Duration::from_mins(1));

/// What the watches report, as far as these tests need it.
#[derive(Debug)]
enum WatchEvent {
    Changes(Vec<Change>),
    Synced,
    Alive(Kind),
    Ended(Kind, WatchError),
    Recovered(Kind),
}

/// Sends on what the watches report.
struct Recorder(mpsc::Sender<WatchEvent>);

impl Recorder {
    fn record(&self, event: WatchEvent) {
        // The test may be over.
        let _ = self.0.send(event);
    }
}

impl Sink for Recorder {
    fn changes(&self, _: Instant, changes: Vec<Change>) {
        self.record(WatchEvent::Changes(changes));
    }

    fn rejected(&self, _: Kind, _: Vec<Rejection>) {}

    fn synced(&self) {
        self.record(WatchEvent::Synced);
    }

    fn alive(&self, kind: Kind) {
        self.record(WatchEvent::Alive(kind));
    }

    fn ended(&self, kind: Kind, error: WatchError) {
        self.record(WatchEvent::Ended(kind, error));
    }

    fn recovered(&self, kind: Kind) {
        self.record(WatchEvent::Recovered(kind));
    }

    fn no_such_node(&self, _: &str) {}
}

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// A page.
    Page,
    /// A watch that begins with all existing objects.
    StreamingList,
    /// The same, of whatever time the server's cache is.
    OldStreamingList,
    /// A resumed watch.
    Watch,
}

/// The server's response: a page, or events, after which a watch stays open and silent unless the last is an error or
/// [`BREAKS_OFF`].
type Response = Vec<String>;

/// At the end of a response: the server closes the connection.
const BREAKS_OFF: &str = "";

/// An API server and the watches that use it.
struct Watched {
    events: mpsc::Receiver<WatchEvent>,
    requests: Arc<Mutex<Vec<Request>>>,
    _source: ApiSource,
    _runtime: Runtime,
    _folder: TempDir,
}

impl Watched {
    /// A server with a node and nothing else except the answers of `pods` to requests for pods.
    fn new(pods: impl FnMut(Request) -> Response + Send + 'static) -> Self {
        Self::of("/pods?", MemoryLimits::default(), pods)
    }

    /// A server with a node and nothing else except the `answers` for the objects of one kind, at paths with `place`.
    fn of(
        place: &'static str,
        limits: MemoryLimits,
        answers: impl FnMut(Request) -> Response + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (answers, requests) = (Arc::new(Mutex::new(answers)), Arc::new(Mutex::new(Vec::new())));
        let recorded = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (answers, recorded) = (answers.clone(), recorded.clone());
                thread::spawn(move || {
                    let answer = |path: &str| {
                        let request = request_of(path);
                        if path.contains(place) {
                            recorded.lock().unwrap().push(request);
                            return (answers.lock().unwrap())(request);
                        }
                        let node = path.contains("/nodes?").then(|| event("ADDED", &object("n1")));
                        node.into_iter().chain([list_ends("1")]).collect()
                    };
                    serve(stream.unwrap(), answer);
                });
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": format!("http://{address}") } }],
            "users": [{ "name": "test", "user": {} }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        fs::write(&kubeconfig, text.to_string()).unwrap();
        let (sender, events) = mpsc::channel();
        let runtime = Runtime::new().unwrap();
        let source = {
            let _inside = runtime.enter();
            let access = Access::new(Some(kubeconfig), None);
            ApiSource::start(access, "n1".into(), limits, Arc::new(Recorder(sender)))
        };
        Self { events, requests, _source: source, _runtime: runtime, _folder: folder }
    }

    /// The first event, from now on, for which `select` returns something.
    #[track_caller]
    fn wait<T>(&self, select: impl Fn(WatchEvent) -> Option<T>) -> T {
        let start = Instant::now();
        while let Some(rest) = PATIENCE.checked_sub(start.elapsed())
            && let Ok(event) = self.events.recv_timeout(rest)
        {
            if let Some(found) = select(event) {
                return found;
            }
        }
        panic!("timed out; the requests: {:?}", self.requests.lock().unwrap());
    }

    /// Waits until the watch of pods ends; returns why.
    #[track_caller]
    fn end(&self) -> Cause {
        self.wait(|event| match event {
            WatchEvent::Ended(Kind::Pod, error) => Some(error.cause),
            _ => None,
        })
    }
}

fn request_of(path: &str) -> Request {
    match (path.contains("watch=true"), path.contains("sendInitialEvents=true")) {
        (false, _) => Request::Page,
        (true, true) if path.contains("resourceVersion=0") => Request::OldStreamingList,
        (true, true) => Request::StreamingList,
        (true, false) => Request::Watch,
    }
}

/// Answers one request, and closes the connection only after an error, or if the answer says so.
fn serve(mut stream: TcpStream, answer: impl Fn(&str) -> Response) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    lines.find(|line| line.as_ref().is_ok_and(String::is_empty));
    let path = first.split(' ').nth(1).unwrap();
    let lines_sent = answer(path);
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
    let body = lines_sent.join("\n") + "\n";
    // The client may be gone.
    let _ = write!(stream, "{head}{body}");
    let is_over =
        lines_sent.last().is_some_and(|last| last == BREAKS_OFF || last.starts_with(r#"{"type":"ERROR""#));
    if request_of(path) != Request::Page && !is_over {
        // Until the client disconnects.
        lines.map_while(Result::ok).for_each(drop);
    }
}

fn object(name: &str) -> Value {
    json!({ "metadata": { "name": name, "namespace": "shop", "resourceVersion": "1" } })
}

/// An event as the API server writes it: its type first.
fn event(kind: &str, object: &Value) -> String {
    format!(r#"{{"type":"{kind}","object":{object}}}"#)
}

fn list_ends(version: &str) -> String {
    let annotations = json!({ "k8s.io/initial-events-end": "true" });
    let metadata = json!({ "resourceVersion": version, "annotations": annotations });
    event("BOOKMARK", &json!({ "kind": "Pod", "apiVersion": "v1", "metadata": metadata }))
}

fn bookmark(version: &str) -> String {
    event(
        "BOOKMARK",
        &json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "resourceVersion": version } }),
    )
}

fn error(code: u16, reason: &str, message: &str) -> String {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    event("ERROR", &status)
}

fn page(names: &[&str]) -> String {
    let items: Vec<Value> = names.iter().map(|name| object(name)).collect();
    json!({ "metadata": { "resourceVersion": "5" }, "items": items }).to_string()
}

#[test]
fn failed_streaming_list_falls_back_to_pages() {
    // As an API server responds whose storage cannot report its progress.
    let watched = Watched::new(|request| match request {
        Request::StreamingList => vec![error(500, "InternalError", "RequestWatchProgress is disabled")],
        Request::Page => vec![page(&["a"])],
        _ => Vec::new(),
    });
    assert_eq!(watched.end(), Cause::Failed);
    watched.wait(|event| matches!(event, WatchEvent::Synced).then_some(()));
    let requests = watched.requests.lock().unwrap();
    assert_eq!(requests[..2], [Request::StreamingList, Request::Page], "{requests:?}");
}

#[test]
fn watch_that_fails_with_an_error_is_followed_by_a_relist() {
    let mut lists = 0;
    let watched = Watched::new(move |requests| {
        if requests == Request::StreamingList {
            lists += 1;
        }
        match (requests, lists) {
            (Request::StreamingList, 1) => {
                vec![
                    event("ADDED", &object("a")),
                    list_ends("5"),
                    error(500, "InternalError", "cannot be decoded"),
                ]
            }
            (Request::StreamingList, _) => vec![list_ends("9")],
            _ => vec![error(500, "InternalError", "cannot be decoded")],
        }
    });
    let gone = watched.wait(|event| match event {
        WatchEvent::Changes(changes) => changes.into_iter().find_map(|change| match change {
            Change::RemovePod(key) => Some(key.to_string()),
            _ => None,
        }),
        _ => None,
    });
    assert_eq!(gone, "shop/a");
}

#[test]
fn server_that_is_always_behind_is_reported_as_a_problem() {
    let behind = || error(504, "Timeout", "Too large resource version: 9, current: 1");
    let watched = Watched::new(move |_| vec![behind()]);
    for _ in 0..3 {
        assert!(!watched.end().is_routine());
    }
    let is_alive = |event| matches!(event, WatchEvent::Alive(Kind::Pod));
    assert!(!watched.events.try_iter().any(is_alive), "an error is no sign of life");
}

/// Both cases take as long as the timeout for silence, so they run in parallel.
#[test]
fn stalled_list_is_silent_and_watch_without_events_is_quiet() {
    let mut lists = 0;
    let quiet = Watched::new(move |requests| {
        lists += usize::from(requests == Request::StreamingList);
        match (requests, lists) {
            (Request::StreamingList, 1) => vec![list_ends("5")],
            (Request::StreamingList, _) => vec![event("ADDED", &object("missed")), list_ends("9")],
            _ => Vec::new(),
        }
    });
    let stalled = Watched::new(|_| vec![event("ADDED", &object("a"))]);
    assert_eq!(stalled.end(), Cause::Silent, "it was never complete");
    assert_eq!(quiet.end(), Cause::Quiet);
    let missed = |event| match event {
        WatchEvent::Changes(changes) => {
            changes.iter().any(|change| matches!(change, Change::SetPod(_))).then_some(())
        }
        _ => None,
    };
    quiet.wait(missed);
    quiet.wait(|event| matches!(event, WatchEvent::Recovered(Kind::Pod)).then_some(()));
    quiet.wait(|event| matches!(event, WatchEvent::Alive(Kind::Pod)).then_some(()));
}

/// Waits until the reported policy `shop/a` matches `is`.
#[track_caller]
fn wait_for_a(watched: &Watched, is: impl Fn(&NetworkPolicy) -> bool) {
    watched.wait(|event| {
        let WatchEvent::Changes(changes) = event else { return None };
        changes.into_iter().find_map(|change| match change {
            Change::SetPolicy(policy) if &*policy.key.name == "a" && is(&policy) => Some(()),
            _ => None,
        })
    });
}

#[test]
fn dropped_rules_are_relisted_once_they_fit_into_memory() {
    let policy = |name: &str, ports: u16| {
        let ports: Vec<Value> = (1..=ports).map(|port| json!({ "port": port })).collect();
        let mut policy = object(name);
        policy["spec"] = json!({ "podSelector": {}, "ingress": [{ "ports": ports }] });
        policy
    };
    let mut lists = 0;
    let limits = MemoryLimits { namespace: 40_000, ..MemoryLimits::default() };
    let watched = Watched::of("/networkpolicies?", limits, move |requests| {
        lists += usize::from(requests == Request::StreamingList);
        let added =
            |ports| [("a", 1000), ("b", ports)].map(|(name, ports)| event("ADDED", &policy(name, ports)));
        match (requests, lists) {
            (Request::StreamingList, 1) => {
                let smaller = event("MODIFIED", &policy("b", 1));
                added(1000).into_iter().chain([list_ends("5"), smaller]).collect()
            }
            (Request::StreamingList, _) => added(1).into_iter().chain([list_ends("9")]).collect(),
            _ => Vec::new(),
        }
    });
    wait_for_a(&watched, |a| {
        a.ingress.as_ref().is_some_and(Vec::is_empty) && matches!(a.standing, Standing::TooLarge(_))
    });
    wait_for_a(&watched, |a| {
        a.ingress.as_ref().is_some_and(|rules| rules.len() == 1) && a.standing == Standing::Accepted
    });
    assert_eq!(*watched.requests.lock().unwrap(), [Request::StreamingList; 2]);
}

#[test]
fn every_list_is_as_of_now() {
    let mut lists = 0;
    let watched = Watched::new(move |request| {
        lists += usize::from(request != Request::Watch);
        match lists {
            1 => vec![list_ends("5"), error(410, "Expired", "too old resource version: 5 (9)")],
            _ => vec![list_ends("9")],
        }
    });
    assert_eq!(watched.end(), Cause::Gone);
    watched.wait(|event| matches!(event, WatchEvent::Alive(Kind::Pod)).then_some(()));
    assert_eq!(*watched.requests.lock().unwrap(), [Request::StreamingList; 2]);
}

#[test]
fn every_bookmark_is_a_sign_of_life() {
    let bookmarks: Vec<String> = (6..36).map(|version| bookmark(&version.to_string())).collect();
    let watched = Watched::new(move |_| [vec![list_ends("5")], bookmarks.clone()].concat());
    for _ in 0..30 {
        watched.wait(|event| matches!(event, WatchEvent::Alive(Kind::Pod)).then_some(()));
    }
}

#[test]
fn broken_off_watches_are_restarted_with_a_pause() {
    let watched = Watched::new(|request| match request {
        Request::Watch => vec![BREAKS_OFF.to_owned()],
        _ => vec![list_ends("5"), BREAKS_OFF.to_owned()],
    });
    watched.wait(|event| matches!(event, WatchEvent::Synced).then_some(()));
    thread::sleep(Duration::from_secs(5));
    let requests = watched.requests.lock().unwrap().len();
    assert!((2..=10).contains(&requests), "{requests} requests");
    assert_eq!(watched.end(), Cause::Ended);
}
