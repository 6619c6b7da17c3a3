//! The cost of the drop log under a flood of denied packets: a real `towpath run` in a network namespace, one pod that
//! floods, and others whose allowed traffic is measured meanwhile; and the time from a denied packet to its log line.
//!
//! `make bench-drops` runs it, as root. docs/benchmarks.md contains results.

#![expect(clippy::expect_used, reason = "whatever is missing here ends the bench with its name")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{JoinHandle, sleep},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use towpath::lab::{Families, Lab, LabOptions, Netns, PodId, PodSpec, Process, Topology, Variant};

#[path = "../tests/support/http.rs"]
mod http;
#[path = "../tests/support/ready.rs"]
mod ready;

use http::LISTEN;
use ready::is_ready;

/// The pods that ask: each may have 64 different denied flows in a minute.
const ASKERS: usize = 10;

/// How many denied packets per second the flood aims at.
const FLOOD: f64 = 100_000.0;

/// Longer than the flood needs to use up its share of records.
const WARM: Duration = Duration::from_secs(12);

const PORT: u16 = 7777;

/// How much is measured.
#[derive(Clone, Copy)]
struct Size {
    rounds: usize,
    round: Duration,
    samples: u16,
    warm: Duration,
}

const FULL: Size = Size { rounds: 10, round: Duration::from_secs(3), samples: 200, warm: WARM };
const SMOKE: Size =
    Size { rounds: 1, round: Duration::from_millis(100), samples: 2, warm: Duration::from_millis(100) };

fn main() {
    // `cargo test` and `cargo bench -- --test` only check that it starts.
    let smoke = std::env::args().any(|argument| argument == "--test");
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root, to make network namespaces");
        return;
    }
    let size = if smoke { SMOKE } else { FULL };
    for variant in Variant::BOTH {
        println!("{}:", variant.name());
        let bed = Bed::new();
        throughput(&bed, variant, size);
        latency(&bed, variant, size);
    }
}

struct Bed {
    lab: Lab,
    ids: Vec<PodId>,
    folder: TempDir,
}

/// The pods, by their index.
const CLIENT: usize = 0;
const SERVER: usize = 1;
const FLOODER: usize = 2;
const VICTIM: usize = 3;
const FIRST_ASKER: usize = 4;

impl Bed {
    fn new() -> Self {
        let (topology, families) = (Topology::Bridge, Families::V4);
        let mut lab =
            Lab::new(LabOptions { topology, families, nodes: 1, flannel_rules: None }).expect("a lab");
        let mut names = ["client", "server", "flooder", "victim"].map(str::to_owned).to_vec();
        names.extend((0..ASKERS).map(|number| format!("asker-{number}")));
        let specs: Vec<PodSpec> = names.iter().map(|name| PodSpec::new(format!("shop/{name}"), 0)).collect();
        let ids = lab.add_pods(&specs).expect("pods");
        let folder = TempDir::new().expect("a folder");
        let mut objects = String::from(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: networking.k8s.io/v1\n\
             kind: NetworkPolicy\nmetadata: {name: closed, namespace: shop}\n\
             spec: {podSelector: {matchLabels: {name: victim}}, ingress: [{from: [{podSelector: \
             {matchLabels: {name: nobody}}}]}]}\n",
        );
        for (name, id) in names.iter().zip(&ids) {
            let address = lab.pod(*id).expect("a pod").addresses()[0];
            let object = serde_json::json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "namespace": "shop", "name": name, "labels": { "name": name } },
                "spec": { "nodeName": "n1" },
                "status": { "phase": "Running", "podIPs": [{ "ip": address }] },
            });
            objects.push_str("---\n");
            objects.push_str(&object.to_string());
            objects.push('\n');
        }
        fs::write(folder.path().join("objects.yaml"), objects).expect("objects");
        Self { lab, ids, folder }
    }

    fn netns(&self, pod: usize) -> &Netns {
        self.lab.pod(self.ids[pod]).expect("a pod").netns()
    }

    fn address(&self, pod: usize) -> IpAddr {
        self.lab.pod(self.ids[pod]).expect("a pod").addresses()[0]
    }

    fn log(&self) -> std::path::PathBuf {
        self.folder.path().join(".log")
    }

    /// A daemon that is ready.
    fn daemon(&self, variant: Variant, more: &[&str]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
        command
            .args(["run", "--node-name", "n1", "--iptables-backend", variant.name()])
            .args(more)
            .arg("-f")
            .arg(self.folder.path())
            .arg("--run-dir")
            .arg(self.folder.path().join(".run"))
            .stderr(fs::File::create(self.log()).expect("a log"));
        let node = self.lab.node(0).expect("a node");
        let daemon = node.spawn(command).expect("a daemon");
        let started = Instant::now();
        while !is_ready(node, LISTEN) {
            let log = || fs::read_to_string(self.log()).unwrap_or_default();
            assert!(started.elapsed() < Duration::from_mins(1), "it does not become ready:\n{}", log());
            sleep(Duration::from_millis(2));
        }
        daemon
    }

    /// Denied datagrams, as many as wanted, from changing ports to changing ports.
    fn flood(&self) -> Flood {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), sent.clone());
        let victim = self.address(VICTIM);
        let work = move || {
            let start = Instant::now();
            let sockets: Vec<UdpSocket> = (0..64).filter_map(|_| UdpSocket::bind("0.0.0.0:0").ok()).collect();
            for (number, socket) in sockets.iter().cycle().enumerate() {
                if number % 64 == 0 {
                    let sent = counted.load(Ordering::Relaxed);
                    #[expect(clippy::cast_precision_loss, reason = "a count of packets")]
                    let due = Duration::from_secs_f64(sent as f64 / FLOOD);
                    sleep(due.saturating_sub(start.elapsed()));
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                }
                let port = 1024 + u16::try_from(number % 60_000).expect("a port");
                let _ = socket.send_to(b"x", SocketAddr::new(victim, port));
                counted.fetch_add(1, Ordering::Relaxed);
            }
        };
        let thread = self.netns(FLOODER).start_thread("flood", work).expect("a thread");
        Flood { stop, sent, thread: Some(thread) }
    }
}

struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Allowed traffic while packets are denied, with the log and without.
fn throughput(bed: &Bed, variant: Variant, size: Size) {
    let kinds: [(&str, &[&str]); 2] =
        [("without the log", &["--nflog-group", "0"]), ("with the log", &["--drop-log", "on"])];
    let mut figures: [Vec<Figures>; 2] = [Vec::new(), Vec::new()];
    for round in 0..size.rounds {
        // Each is first equally often.
        for kind in [round % 2, (round + 1) % 2] {
            let mut daemon = bed.daemon(variant, kinds[kind].1);
            let flood = bed.flood();
            // The first records of the flood are a part of it.
            let figure = measure(bed, &daemon, &flood, size.round);
            drop(flood);
            figures[kind].push(figure);
            daemon.stop().expect("its end");
        }
    }
    println!("  allowed traffic beside the flood, median of {} rounds of {:?}:", size.rounds, size.round);
    for ((name, _), figures) in kinds.iter().zip(&figures) {
        let of = |field: fn(&Figures) -> f64| median(figures.iter().map(field).collect());
        println!(
            "    {name}: {:.0} denied packets/s, {:.0} MB/s, {:.0} round trips/s; daemon {:.2} % of a core, {:.1} MiB \
             resident (most {:.1})",
            of(|one| one.denied),
            of(|one| one.megabytes),
            of(|one| one.round_trips),
            of(|one| one.core * 100.0),
            of(|one| one.resident),
            figures.iter().map(|one| one.resident).fold(0.0, f64::max),
        );
    }
}

struct Figures {
    denied: f64,
    megabytes: f64,
    round_trips: f64,
    core: f64,
    resident: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts of packets and bytes")]
fn measure(bed: &Bed, daemon: &Process, flood: &Flood, round: Duration) -> Figures {
    let (sent, cpu, start) = (flood.sent.load(Ordering::Relaxed), cpu(daemon.id()), Instant::now());
    let bytes = stream(bed, round);
    let trips = round_trips(bed, round);
    let seconds = start.elapsed().as_secs_f64();
    let each = round.as_secs_f64();
    Figures {
        denied: (flood.sent.load(Ordering::Relaxed) - sent) as f64 / seconds,
        megabytes: bytes as f64 / 1e6 / each,
        round_trips: trips as f64 / each,
        core: (self::cpu(daemon.id()) - cpu) / seconds,
        resident: resident(daemon.id()),
    }
}

/// Bytes that a TCP connection carries in this time.
fn stream(bed: &Bed, round: Duration) -> u64 {
    let server = SocketAddr::new(bed.address(SERVER), PORT);
    let listener = bed.netns(SERVER).run(move || TcpListener::bind(server)).expect("a pod").expect("a port");
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let (mut buffer, mut bytes) = (vec![0; 1 << 16], 0_u64);
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            bytes += read as u64;
        }
        bytes
    });
    let client = bed.netns(CLIENT).run(move || TcpStream::connect(server)).expect("a pod");
    let (mut client, buffer) = (client.expect("an allowed connection"), vec![0; 1 << 16]);
    let start = Instant::now();
    while start.elapsed() < round {
        client.write_all(&buffer).expect("bytes");
    }
    drop(client);
    reader.join().expect("a reader")
}

/// Datagrams that go there and back in this time, one after another.
fn round_trips(bed: &Bed, round: Duration) -> u64 {
    let server = SocketAddr::new(bed.address(SERVER), PORT);
    let bound = |pod: usize, port: u16| {
        let socket = bed.netns(pod).run(move || UdpSocket::bind(("0.0.0.0", port)));
        let socket = socket.expect("a pod").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        socket
    };
    let (answering, asking) = (bound(SERVER, PORT), bound(CLIENT, 0));
    let echo = std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = answering.recv_from(&mut buffer) {
            let _ = answering.send_to(&buffer[..length], from);
        }
    });
    let (start, mut trips, mut buffer) = (Instant::now(), 0, [0; 64]);
    while start.elapsed() < round {
        asking.send_to(b"ping", server).expect("a datagram");
        trips += u64::from(asking.recv(&mut buffer).is_ok());
    }
    echo.join().expect("an echo");
    trips
}

/// The processor time of a process, in seconds.
fn cpu(id: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).expect("a process");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
    // User and system time, in hundredths of a second.
    (ticks(11) + ticks(12)) / 100.0
}

/// The memory of a process, in MiB.
fn resident(id: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap_or(0.0);
    kib / 1024.0
}

/// From a denied packet to its line in the daemon's log.
fn latency(bed: &Bed, variant: Variant, size: Size) {
    for flooded in [false, true] {
        let mut daemon = bed.daemon(variant, &[]);
        let flood = flooded.then(|| bed.flood());
        sleep(size.warm);
        let mut times = Vec::new();
        let mut missing = 0;
        for sample in 0..size.samples {
            let asker = FIRST_ASKER + usize::from(sample) % ASKERS;
            let (victim, port) = (bed.address(VICTIM), 2000 + sample);
            let send = move || {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                let start = Instant::now();
                socket.send_to(b"x", SocketAddr::new(victim, port)).expect("a packet");
                start
            };
            let start = bed.netns(asker).run(send).expect("a pod");
            let wanted = format!("shop/asker-{} -> shop/victim:{port}/UDP", usize::from(sample) % ASKERS);
            match appears(&bed.log(), &wanted, start) {
                Some(time) => times.push(time),
                None => missing += 1,
            }
            // Fewer than may be logged.
            sleep(Duration::from_millis(150));
        }
        let (middle, p99) = (median(times.clone()), quantile(times, 0.99));
        println!(
            "  from a denied packet to its log line{}: median {middle:.1} ms, p99 {p99:.1} ms ({} packets, {missing} \
             without a line within 5 s)",
            if flooded { ", beside the flood" } else { "" },
            size.samples,
        );
        drop(flood);
        daemon.stop().expect("its end");
    }
}

/// When a text appears in a file, in milliseconds from `start`.
fn appears(log: &Path, text: &str, start: Instant) -> Option<f64> {
    while start.elapsed() < Duration::from_secs(5) {
        let bytes = fs::read(log).expect("a log");
        let tail = &bytes[bytes.len().saturating_sub(1 << 16)..];
        if String::from_utf8_lossy(tail).contains(text) {
            return Some(start.elapsed().as_secs_f64() * 1e3);
        }
        sleep(Duration::from_micros(200));
    }
    None
}

/// The middle one, or the higher of the two middle ones.
fn median(values: Vec<f64>) -> f64 {
    quantile(values, 0.5)
}

/// The value below which this share of all lies.
fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index among some hundreds"
    )]
    let index = (values.len() as f64 * share) as usize;
    values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
