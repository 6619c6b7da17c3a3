//! HTTP clients of the daemon delay neither its syncs nor other clients.

#![cfg(test)]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, runtime::Runtime};
use towpath::{
    agent::{Agent, Input, Pace, Readiness, Refused, Status},
    dataplane::fake::Fake,
    drops::{DropLog, End, Page, Record},
    lab::random::{Generator, NODES, Shape, Stack},
    metrics::Metrics,
    model::{Change, Namespace},
    ruleset::compile::Options,
    web::{About, Web},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon in memory: the loop over a fake, and its port.
struct Daemon {
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    drops: Arc<DropLog>,
    inputs: Sender<Input>,
    address: SocketAddr,
    turn: u64,
    thread: Option<JoinHandle<()>>,
    _runtime: Runtime,
}

impl Daemon {
    fn start() -> Self {
        let (metrics, status) =
            (Arc::new(Metrics::new().unwrap()), Arc::new(Status::starting("the objects")));
        let (inputs, inbox) = mpsc::channel();
        let pace = Pace { debounce: Duration::from_millis(1), ..Pace::default() };
        let (agent_metrics, agent_status) = (metrics.clone(), status.clone());
        let work = move || {
            let options = Options::default();
            Agent::new(NODES[0], Fake::default(), options, pace, agent_metrics, agent_status, None)
                .run(&inbox);
        };
        let thread = Some(thread::spawn(work));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let about = About { node: NODES[0].into(), iptables: "nft".to_owned() };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let drops = Arc::new(DropLog::new(1000, None));
        let web = Web {
            about,
            metrics: metrics.clone(),
            status: status.clone(),
            gate: Arc::default(),
            drops: drops.clone(),
        };
        runtime.spawn(web.serve(listener));
        let daemon = Self { metrics, status, drops, inputs, address, turn: 0, thread, _runtime: runtime };
        let shape = Shape { stack: Stack::V4, namespaces: 2, pods: 8, policies: 8, oddities: false };
        daemon.inputs.send(Input::changes(Generator::new(7, shape).cluster())).unwrap();
        daemon.inputs.send(Input::Synced).unwrap();
        daemon.wait("readiness", || daemon.status.readiness() == Readiness::Ready);
        daemon
    }

    #[track_caller]
    fn wait(&self, what: &str, mut is_true: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_true() {
            assert!(start.elapsed() < PATIENCE, "{what}: timed out\n{}", self.metrics.text());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Causes `count` syncs, one after the other.
    fn sync_times(&mut self, count: u64) {
        let syncs = || self.metrics.syncs.with_label_values(&["success"]).get();
        for _ in 0..count {
            self.turn += 1;
            let labels = [("turn", self.turn.to_string())].into_iter().collect();
            let change = Change::SetNamespace(Namespace { name: "bystander".into(), labels });
            let before = syncs();
            self.inputs.send(Input::changes(vec![change])).unwrap();
            self.wait("a sync", || syncs() > before);
        }
    }

    fn get(&self, path: &str) -> (String, String) {
        get(self.address, path).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.inputs.send(Input::Stop);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The first line and the body of a response.
fn get(address: SocketAddr, path: &str) -> std::io::Result<(String, String)> {
    get_as(address, path, "127.0.0.1")
}

/// The same, of a request to this host.
fn get_as(address: SocketAddr, path: &str, host: &str) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

#[test]
fn constant_scraping_blocks_no_sync_and_always_returns_every_series() {
    let mut daemon = Daemon::start();
    let object = ["Pod", "shop", "db"].map(str::to_owned);
    let refused = Refused { object: Some(object), reason: "unreadable".to_owned() };
    daemon.status.set_refused("files", vec![refused.clone()], &daemon.metrics);
    // Counters with labels exist after their first event.
    daemon.sync_times(1);
    let stop = Arc::new(AtomicBool::new(false));
    let scrapers: Vec<JoinHandle<u64>> = (0..4)
        .map(|_| {
            let (metrics, stop) = (daemon.metrics.clone(), stop.clone());
            thread::spawn(move || {
                let mut scrapes = 0;
                while !stop.load(Ordering::Relaxed) {
                    let text = metrics.text();
                    for series in [
                        "towpath_refused_object{kind=\"Pod\",name=\"db\",namespace=\"shop\"} 1\n",
                        "towpath_enforcement_latency_seconds_count{kind=",
                        "towpath_policies{direction=\"ingress\"} ",
                        "towpath_isolated_pods{direction=\"ingress\"} ",
                    ] {
                        assert!(text.contains(series), "{series} is missing:\n{text}");
                    }
                    scrapes += 1;
                }
                scrapes
            })
        })
        .collect();
    for _ in 0..100 {
        daemon.sync_times(1);
        daemon.status.set_refused("files", vec![refused.clone()], &daemon.metrics);
    }
    stop.store(true, Ordering::Relaxed);
    for scraper in scrapers {
        assert!(scraper.join().unwrap() > 0);
    }
    let observed = daemon.metrics.enforcement_latency.with_label_values(&["Namespace"]).get_sample_count();
    assert_eq!(observed, 101);
}

#[test]
fn stalled_clients_block_neither_syncs_nor_other_clients() {
    let mut daemon = Daemon::start();
    let mut silent: Vec<TcpStream> = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        // A third sends nothing, a third half a request, a third a request without reading the response.
        let request =
            [&b""[..], b"GET /metrics HTTP/1.1\r\nHost: tow", b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n"];
        stream.write_all(request[number % 3]).unwrap();
        silent.push(stream);
        if number % 20 == 0 {
            daemon.sync_times(1);
            assert_eq!(daemon.get("/livez").0, "HTTP/1.1 200 OK");
        }
    }
    daemon.sync_times(20);
    let (head, body) = daemon.get("/metrics");
    assert_eq!(head, "HTTP/1.1 200 OK");
    assert!(body.contains("towpath_syncs_total{result=\"success\"} "), "{body}");
    // The first connections were closed in favour of later ones.
    let mut first = silent.remove(0);
    first.set_read_timeout(Some(PATIENCE)).unwrap();
    let end = first.read(&mut [0; 64]);
    assert!(matches!(end, Ok(0)) || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
}

#[test]
fn too_large_request_is_refused() {
    let daemon = Daemon::start();
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let long = "x".repeat(100_000);
    // The other end may close before it has read everything.
    let _ = write!(stream, "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: {long}\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(!answer.contains("200 OK") && !answer.contains("towpath_"), "{answer}");
    assert_eq!(daemon.get("/readyz"), ("HTTP/1.1 200 OK".to_owned(), "ok\n".to_owned()));
}

/// A record of packets between two pods.
fn record(from: &str, to: &str) -> Record {
    let pod = |name: &str| End { pod: Some(name.to_owned()), ..End::default() };
    Record { from: pod(from), to: pod(to), count: 1, ..Record::default() }
}

#[test]
fn drops_are_filtered_by_pod_namespace_and_cursor() {
    let daemon = Daemon::start();
    let first = daemon.drops.insert(record("shop/web", "shop/db"));
    daemon.drops.insert(record("blog/web", "shop/db"));
    let ask = |query: &str| -> Vec<String> {
        let (status, body) = daemon.get(&format!("/drops{query}"));
        assert_eq!(status, "HTTP/1.1 200 OK", "{body}");
        let page: Page = serde_json::from_str(&body).unwrap();
        page.records.into_iter().filter_map(|record| record.from.pod).collect()
    };
    assert_eq!(ask(""), ["shop/web", "blog/web"]);
    assert_eq!(ask("?pod=blog/web"), ["blog/web"]);
    assert_eq!(ask("?pod=blog%2Fweb&namespace=shop"), ["blog/web"]);
    assert_eq!(ask("?namespace=blog"), ["blog/web"]);
    assert_eq!(ask(&format!("?since={first}")), ["blog/web"]);
    assert_eq!(daemon.get("/drops?since=yesterday").0, "HTTP/1.1 400 Bad Request");
}

#[test]
fn what_concerns_tenants_is_answered_to_addresses_and_not_to_names() {
    let daemon = Daemon::start();
    let status = |path: &str, host: &str| get_as(daemon.address, path, host).unwrap().0;
    for path in ["/status", "/drops", "/drops?follow=true"] {
        for host in ["evil.example", "evil.example:9586", "127.0.0.1.evil.example"] {
            assert_eq!(status(path, host), "HTTP/1.1 421 Misdirected Request", "{path} {host}");
        }
    }
    for host in ["127.0.0.1:9586", "localhost:8080", "[::1]:9586"] {
        assert_eq!(status("/status", host), "HTTP/1.1 200 OK", "{host}");
        assert_eq!(status("/drops", host), "HTTP/1.1 200 OK", "{host}");
    }
    // Prometheus and kubelet may use names.
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(status(path, "node.example"), "HTTP/1.1 200 OK", "{path}");
    }
}

#[test]
fn follower_receives_each_record_as_it_comes() {
    let daemon = Daemon::start();
    daemon.drops.insert(record("shop/web", "shop/db"));
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET /drops?follow=true&namespace=shop HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().ends_with("200 OK"));
    let mut next = || loop {
        if let Ok(record) = serde_json::from_str::<Record>(&lines.next().unwrap()) {
            return record.from.pod.unwrap();
        }
    };
    assert_eq!(next(), "shop/web");
    daemon.drops.insert(record("blog/web", "blog/db"));
    daemon.drops.insert(record("shop/api", "shop/db"));
    assert_eq!(next(), "shop/api");
}

#[test]
fn followers_are_few_and_make_room_for_new_ones_and_others_are_served_beside_them() {
    let daemon = Daemon::start();
    let follow = || {
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /drops?follow=true HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
        let mut status = String::new();
        let mut reader = BufReader::new(stream);
        reader.read_line(&mut status).unwrap();
        (reader, status)
    };
    let mut followers: Vec<_> = (0..9).map(|_| follow()).collect();
    assert!(followers.iter().all(|(_, status)| status.contains("200")));
    // The one that has followed the longest is told to go, and no other one.
    let (first, _) = followers.remove(0);
    assert!(first.lines().all(|line| line.is_ok()), "it ends");
    // As many connections as are served at once, none of which sends a request.
    let idle: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(daemon.address).unwrap()).collect();
    assert!(daemon.get("/livez").0.contains("200"));
    // They were closed for others; those who follow were not.
    daemon.drops.insert(record("shop/web", "shop/db"));
    for (mut reader, _) in followers {
        let mut line = String::new();
        while !line.contains("shop/web") {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0, "closed");
        }
    }
    drop(idle);
}
