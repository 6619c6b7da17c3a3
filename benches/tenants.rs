//! What one tenant can do to the others: a real `towpath run` in a network namespace with the objects of a hostile
//! tenant in files, and the change of another tenant, tested with real packets.
//!
//! `make bench-tenants` runs it, as root. `TOWPATH_BIN` names another program to measure, for example an older one;
//! `TOWPATH_VARIANT` the variant of iptables, `TOWPATH_SHAPE` a part of the name of the only shapes to measure. For
//! each hostile shape it prints how long it takes from the start until another tenant's policy is enforced, and from a
//! change of that policy until it is, and the daemon's peak memory. docs/benchmarks.md contains results.

#![expect(clippy::expect_used, reason = "whatever is missing here ends the bench with its name")]

use std::{
    fs,
    net::IpAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use towpath::lab::{Families, Flood, FloodFlow, Lab, LabOptions, PodSpec, Process, Topology, Variant};

#[path = "../tests/support/hostile_shapes.rs"]
mod hostile_shapes;
#[path = "../tests/support/http.rs"]
mod http;

use hostile_shapes::{EVIL, SHAPES, Shape, crowd_objects, honest_policy, local_pod, peak_memory, write};
use http::LISTEN;

const PORT: u16 = 7777;
const CHANGES: usize = 10;

/// What does not happen within this is printed as such.
const TIMEOUT: Duration = Duration::from_mins(1);

fn main() {
    let smoke = std::env::args().any(|argument| argument == "--test");
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root, to make network namespaces");
        return;
    }
    let only = std::env::var("TOWPATH_SHAPE").unwrap_or_default();
    println!(
        "another tenant's deny after the start; its changes, median and worst; most memory; what is over budget"
    );
    for shape in
        SHAPES.iter().filter(|shape| shape.name.contains(&only)).take(if smoke { 1 } else { SHAPES.len() })
    {
        measure(shape, if smoke { 2 } else { CHANGES });
    }
}

fn measure(shape: &Shape, changes: usize) {
    let options =
        LabOptions { topology: Topology::Bridge, families: Families::V4, nodes: 1, flannel_rules: None };
    let mut lab = Lab::new(options).expect("a lab");
    let evil = format!("{EVIL}/pod");
    let names = ["shop/client", "shop/server", &evil];
    let ids = lab.add_pods(&names.map(|name| PodSpec::new(name, 0))).expect("pods");
    let addresses: Vec<IpAddr> = ids.iter().map(|id| lab.pod(*id).expect("a pod").addresses()[0]).collect();
    let folder = TempDir::new().expect("a folder");
    let pods: String =
        names.iter().zip(&addresses).map(|(name, address)| local_pod(name, *address)).collect();
    write(folder.path(), &(shape.files)());
    write(folder.path(), &[("pods.yaml".to_owned(), pods), ("shop.yaml".to_owned(), honest_policy(false))]);

    let flow = FloodFlow { from: ids[0].into(), to: addresses[1], port: PORT };
    let flood = lab.flood(&[flow], Duration::from_millis(1)).expect("a flood");
    sleep(Duration::from_millis(300));
    let start = Instant::now();
    let mut daemon = start_daemon(&lab, folder.path());
    let first = until(&flood, false, start);
    let mut worst_memory = peak_memory(daemon.id());

    let stop = Arc::new(AtomicBool::new(false));
    let restless = shape.restless.then(|| restless(folder.path(), stop.clone()));
    let mut seen = Vec::new();
    for turn in 0..changes {
        let allow = turn % 2 == 0;
        let before = Instant::now();
        write(folder.path(), &[("shop.yaml".to_owned(), honest_policy(allow))]);
        seen.push(until(&flood, allow, before));
        worst_memory = worst_memory.max(peak_memory(daemon.id()));
        if seen.iter().filter(|seen| seen.is_none()).count() > 1 {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    if let Some(thread) = restless {
        let _ = thread.join();
    }
    drop(flood);
    let mut sorted: Vec<Duration> = seen.iter().map(|seen| seen.unwrap_or(TIMEOUT)).collect();
    sorted.sort();
    let metrics = get(&lab, "/metrics").map_or_else(String::new, |(_, text)| text);
    let over =
        metrics.lines().find_map(|line| line.strip_prefix("towpath_over_budget ")).unwrap_or("-").to_owned();
    let ended = daemon.wait(Duration::ZERO).ok().flatten();
    println!(
        "{}: {}; {}, {}; {} MiB; {over}{}{}",
        shape.name,
        first.map_or_else(|| "never".to_owned(), ms),
        ms(sorted[sorted.len() / 2]),
        ms(sorted[sorted.len() - 1]),
        worst_memory / 1024,
        if shape.over_budget == (over == "0") { " (not as expected)" } else { "" },
        ended.map_or_else(String::new, |status| format!("; the daemon ended: {status}")),
    );
    if std::env::var_os("TOWPATH_LOG_SHOWN").is_some() {
        println!("{}", fs::read_to_string(folder.path().join(".log")).unwrap_or_default());
        for line in metrics
            .lines()
            .filter(|line| line.contains("_sync") || line.contains("_sets") || line.contains("_rules"))
        {
            println!("{line}");
        }
    }
    let _ = daemon.kill();
}

/// How long after `start` packets began to arrive, or stopped.
fn until(flood: &Flood, open: bool, start: Instant) -> Option<Duration> {
    const QUIET: Duration = Duration::from_millis(150);
    loop {
        sleep(Duration::from_millis(5));
        let arrivals = flood.arrivals();
        if open {
            if let Some(first) = arrivals.iter().find(|arrival| arrival.at > start) {
                return Some(first.at - start);
            }
        } else {
            let last = arrivals.iter().map(|arrival| arrival.at).filter(|at| *at > start).max();
            if last.unwrap_or(start).elapsed() > QUIET {
                return Some(last.map_or(Duration::ZERO, |last| last - start));
            }
        }
        if start.elapsed() > TIMEOUT {
            return None;
        }
    }
}

/// Changes the labels of 50 pods twenty times a second.
fn restless(folder: &Path, stop: Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let folder = folder.to_owned();
    thread::spawn(move || {
        let mut turn = 0;
        while !stop.load(Ordering::Relaxed) {
            turn += 1;
            write(&folder, &[("crowd.yaml".to_owned(), crowd_objects(50, turn % 2))]);
            sleep(Duration::from_millis(50));
        }
    })
}

fn start_daemon(lab: &Lab, folder: &Path) -> Process {
    let variant = std::env::var("TOWPATH_VARIANT").unwrap_or_else(|_| Variant::Nft.name().to_owned());
    let program = std::env::var("TOWPATH_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_towpath").to_owned());
    let mut command = Command::new(program);
    command
        .args(["run", "--node-name", "n1", "--listen", &LISTEN.to_string(), "--iptables-backend", &variant])
        .arg("-f")
        .arg(folder)
        .arg("--run-dir")
        .arg(folder.join(".run"))
        .stderr(fs::File::create(folder.join(".log")).expect("a log"));
    lab.node(0).expect("a node").spawn(command).expect("a daemon")
}

fn get(lab: &Lab, path: &str) -> Option<(u16, String)> {
    http::get(lab.node(0).ok()?.connect(LISTEN, Duration::from_secs(1)).ok()?, path)
}

fn ms(duration: Duration) -> String {
    format!("{:.0} ms", duration.as_secs_f64() * 1000.0)
}
