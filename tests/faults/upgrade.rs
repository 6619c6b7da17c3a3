//! One version takes over from another one, back and forth: no packet passes that is never allowed, none is lost that is
//! always allowed, and nothing of the version before is left.
//!
//! The other version is this program with another layout: other digests, chains, hooks, sets, types of sets and tables.
//! `TOWPATH_OTHER_BINARY` names a program of a real other version to use instead (`make upgrade REV=...`), and
//! `TOWPATH_SWAPS` says how often to swap.

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use fastrand::Rng;
use towpath::{
    lab::{Flood, FloodFlow, Probe, Pulse, Stream, Topology, Transport, Variant, Watch},
    model::Family,
};

use crate::{
    churn_flows::{self, Pair},
    daemon_command::daemon_command,
    kill::{Churn, always, bed_in, never, pod_file},
    reach::TIMEOUT,
    testbed::{Bed, Daemon, for_both_variants, with_own_run},
    wait::wait_until,
};

/// Selected by the same rule in every state.
const STEADY: &str = "far/steady";
/// Its object is deleted, but a process of it still runs.
const GHOST: &str = "shop/ghost";

/// How long a message on an open connection may take. One that was cut stays cut; on a busy machine, one that was not
/// may take longer than a new connection.
const ALIVE: Duration = Duration::from_secs(5);

/// A version of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    This,
    Other,
}

impl Version {
    fn next(self) -> Self {
        match self {
            Self::This => Self::Other,
            Self::Other => Self::This,
        }
    }

    fn prepare(self, mut command: Command) -> Command {
        match (self, other_binary()) {
            (Self::This, _) => command,
            (Self::Other, None) => {
                command.env("TOWPATH_LAB_OTHER_LAYOUT", "1");
                command
            }
            (Self::Other, Some(program)) => {
                let mut other = Command::new(program);
                other.args(command.get_args());
                other
            }
        }
    }

    fn start<'a>(self, bed: &'a Bed, more: &[&str]) -> Daemon<'a> {
        let (objects, run) = (bed.folder().join("objects"), bed.folder().join("run"));
        let mut command = daemon_command("n1", bed.variant, &objects, &run);
        command.args(more);
        Daemon::start(bed, self.prepare(command))
    }

    fn run<'a>(self, bed: &'a Bed, more: &[&str]) -> Daemon<'a> {
        let daemon = self.start(bed, more);
        daemon.wait_ready();
        daemon
    }

    /// Runs `towpath cleanup`; returns what it printed.
    fn cleanup(self, bed: &Bed) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
        command.arg("cleanup");
        let output = bed.node().run(self.prepare(command), "").unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}

fn other_binary() -> Option<String> {
    env::var("TOWPATH_OTHER_BINARY").ok()
}

/// What is sent all the time.
struct Traffic {
    never: Vec<FloodFlow>,
    denied: Flood,
    refused: Watch,
    allowed: Flood,
    answered: Watch,
    streams: Streams,
}

impl Traffic {
    fn start(bed: &Bed, never: &[Pair]) -> Self {
        let flows = |pairs: &[Pair]| {
            churn_flows::flows(pairs, |pod| bed.end(pod), |pod, family| bed.address(pod, family))
        };
        let never = flows(never);
        let beat = Duration::from_millis(2);
        let denied = bed.lab.flood(&never, beat).unwrap();
        let connect = |flow: &FloodFlow| Probe::new(flow.from, flow.to, Transport::Tcp(80));
        let connects: Vec<Probe> = never.iter().map(connect).collect();
        let refused = bed.lab.watch(&connects, Duration::ZERO, Duration::from_millis(250)).unwrap();
        let always_udp = [("shop/client", "shop/server"), (STEADY, "shop/server"), ("far/peer", "shop/free")];
        let always_udp: Vec<FloodFlow> =
            flows(&always_udp).into_iter().map(|flow| FloodFlow { port: 4001, ..flow }).collect();
        let allowed = bed.lab.flood(&always_udp, beat).unwrap();
        let answered = bed.lab.watch(&always(bed), Duration::from_millis(5), TIMEOUT).unwrap();
        let streams = Streams::start(bed, &["shop/client", STEADY], "shop/server");
        Self { never, denied, refused, allowed, answered, streams }
    }

    #[track_caller]
    fn assert_nothing_leaked_or_lost(self, what: &str) {
        let denied = self.denied.stop();
        let refused = self.refused.stop();
        let allowed = self.allowed.stop();
        let answered = self.answered.stop();
        let (pulses, broken) = self.streams.stop();
        let flows = 0..allowed.sent.len();
        let lost: u64 = flows.map(|flow| allowed.lost(flow)).sum();
        println!(
            "{what}\n  never allowed: {} datagrams, {} arrived; {} connects, {} succeeded\n  always allowed: {} \
             datagrams, {lost} lost; {} connects, {} failed; {pulses} messages on open connections, {} failed",
            denied.sent.iter().sum::<u64>(),
            denied.arrivals.len(),
            refused.failures.len() as u64 + refused.open,
            refused.open,
            allowed.sent.iter().sum::<u64>(),
            answered.open + answered.failures.len() as u64,
            answered.failures.len(),
            broken.len(),
        );
        let leaked: BTreeMap<usize, usize> =
            denied.arrivals.iter().fold(BTreeMap::new(), |mut counts, arrival| {
                *counts.entry(arrival.flow).or_default() += 1;
                counts
            });
        let leaked: Vec<_> = leaked.into_iter().map(|(flow, count)| (self.never[flow], count)).collect();
        assert!(leaked.is_empty(), "{what}: {leaked:?}");
        assert_eq!((refused.open, lost), (0, 0), "{what}");
        assert!(answered.failures.is_empty(), "{what}: {:?}", answered.failures);
        assert!(broken.is_empty(), "{what}: {broken:?}");
        assert!(
            refused.broken.is_none() && answered.broken.is_none(),
            "{:?} {:?}",
            refused.broken,
            answered.broken
        );
        assert!(
            denied.sent.iter().chain(&allowed.sent).all(|sent| *sent > 500),
            "{denied:?} {:?}",
            allowed.sent
        );
        assert!(refused.failures.len() > 50 && answered.open > 500 && pulses > 200);
    }
}

/// Connections that stay open, with a message on each of them all the time.
struct Streams {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<(u64, Vec<String>)>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Streams {
    fn start(bed: &Bed, from: &[&str], to: &str) -> Self {
        let mut streams = Self { stop: Arc::default(), seen: Arc::default(), threads: Vec::new() };
        for (from, family) in from.iter().flat_map(|from| Family::BOTH.map(|family| (*from, family))) {
            let address = SocketAddr::new(bed.address(to, family), 80);
            let stream: Stream = bed.lab.open_stream(bed.pod(from), address, TIMEOUT).unwrap();
            let (stop, seen, name) =
                (streams.stop.clone(), streams.seen.clone(), format!("{from}, {family}"));
            streams.threads.push(thread::spawn(move || {
                let mut stream = stream;
                while !stop.load(Ordering::Relaxed) {
                    let pulse = stream.pulse(ALIVE).unwrap();
                    let mut seen = seen.lock().unwrap();
                    seen.0 += 1;
                    if pulse != Pulse::Through {
                        seen.1.push(format!("{name}: {pulse:?}"));
                    }
                    drop(seen);
                    thread::sleep(Duration::from_millis(20));
                }
            }));
        }
        streams
    }

    fn stop(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        let seen = self.seen.lock().unwrap();
        (seen.0, seen.1.clone())
    }
}

/// Everything of towpath in the kernel, of any version, as sorted lines without what depends on history.
fn state(bed: &Bed) -> Vec<String> {
    let mut lines = Vec::new();
    for family in Family::BOTH {
        let saved = bed.saved(family, "filter");
        let ours = saved.lines().filter(|line| line.contains("TOWPATH-") || line.contains("TP-"));
        lines.extend(ours.map(|line| format!("{family} {line}")));
    }
    let history = ["hashsize", "bucketsize", "initval", "packets", "bytes"];
    for line in bed.node().succeed("ipset", &["save"]).unwrap().lines() {
        if line.contains(" tp4-") || line.contains(" tp6-") {
            let mut words = line.split(' ');
            let mut kept = Vec::new();
            while let Some(word) = words.next() {
                if history.contains(&word) {
                    words.next();
                } else {
                    kept.push(word);
                }
            }
            lines.push(kept.join(" "));
        }
    }
    for line in bed.node().succeed("nft", &["list", "tables"]).unwrap().lines() {
        if line.contains("towpath") {
            let words: Vec<&str> = line.split(' ').collect();
            let listing = ["-s", "-n", "list", "table", words[1], words[2]];
            let text = bed.node().succeed("nft", &listing).unwrap();
            let elements =
                |line: &str| line.trim().trim_matches(['{', '}', ',']).replace("elements = { ", "");
            let parts = text
                .lines()
                .flat_map(|line| elements(line).split(", ").map(str::to_owned).collect::<Vec<_>>());
            lines.extend(parts.map(|part| format!("{line}: {}", part.trim())));
        }
    }
    lines.sort();
    lines
}

/// Ends `old` and starts a process of `next`, in one of several ways.
fn swap<'a>(bed: &'a Bed, old: Daemon<'a>, version: Version, at: usize, rng: &mut Rng) -> Daemon<'a> {
    let next = version.next();
    match at / 2 % 4 {
        // A rolling update.
        0 => {
            assert!(old.terminate().success());
            next.run(bed, &[])
        }
        // The next one already waits for the writer lock.
        1 => {
            // The former one still listens on the other port.
            let port = ["127.0.0.1:9587", "127.0.0.1:9586"][at % 2];
            let waiting = next.start(bed, &["--listen", port]);
            let waits = || waiting.get("/readyz").is_some_and(|(_, text)| text.contains("another towpath"));
            wait_until("waits for the writer lock", Duration::from_secs(10), waits);
            assert!(old.terminate().success());
            waiting.wait_ready();
            waiting
        }
        // The next one is killed in its first sync, and started again.
        2 => {
            old.kill();
            let dying = next.start(bed, &[]);
            thread::sleep(Duration::from_millis(rng.u64(50..450)));
            dying.kill();
            next.run(bed, &[])
        }
        // The next one is killed in its first sync, the former one is back for a while, and killed as well.
        _ => {
            assert!(old.terminate().success());
            let dying = next.start(bed, &[]);
            thread::sleep(Duration::from_millis(rng.u64(50..450)));
            dying.kill();
            let back = version.start(bed, &[]);
            thread::sleep(Duration::from_millis(rng.u64(50..900)));
            back.kill();
            next.run(bed, &[])
        }
    }
}

/// Swaps versions under traffic.
fn upgrade_and_roll_back(variant: Variant, topology: Topology) {
    let swaps: usize = crate::env::number("TOWPATH_SWAPS", 20);
    let bed = bed_in(variant, topology, &[(STEADY, 1), (GHOST, 0)]);
    bed.write(&pod_file("steady"), &[bed.manifest(STEADY, "app: steady, role: friend")]);
    // Files that another version might leave beside the lock.
    fs::write(bed.folder().join("run/towpath.sock"), "").unwrap();
    let mut pairs = [&never()[..], &[("shop/client", "far/peer")]].concat();
    let mut version = Version::This;
    let mut running = version.run(&bed, &[]);
    if other_binary().is_none() {
        pairs.push((GHOST, "shop/free"));
        bed.objects().remove(&pod_file("ghost"));
        bed.wait_until_reachable(GHOST, "shop/free", false, Duration::from_secs(10));
    }
    for (from, to) in &pairs {
        assert_eq!(bed.reaches(from, to), [false; 2], "{from} -> {to}");
    }
    let traffic = Traffic::start(&bed, &pairs);
    let mut rng = Rng::with_seed(21);
    for at in 0..swaps {
        let churning = (at % 3 != 0).then(|| Churn::new(&bed).start(at as u64, 25));
        running = swap(&bed, running, version, at, &mut rng);
        version = version.next();
        thread::sleep(Duration::from_millis(300));
        drop(churning);
    }
    if version == Version::Other {
        running = swap(&bed, running, version, 0, &mut rng);
    }
    // Until unused sets are destroyed and their names are free.
    thread::sleep(Duration::from_secs(3));
    traffic.assert_nothing_leaked_or_lost(&format!("{variant:?}, {topology:?}, {swaps} swaps"));

    // A process that finds nothing to take over knows nothing of the closed interface.
    let closed = bed.lab.pod(bed.pod(GHOST)).unwrap().interface();
    let state = || -> Vec<String> { state(&bed).into_iter().filter(|line| !line.contains(closed)).collect() };
    let left = state();
    assert!(running.terminate().success());
    Version::This.cleanup(&bed);
    assert_eq!(state(), [""; 0]);
    let running = Version::This.run(&bed, &[]);
    let fresh = state();
    let differences = |a: &[String], b: &[String]| -> Vec<String> {
        a.iter().filter(|line| !b.contains(line)).cloned().collect()
    };
    assert!(
        left == fresh,
        "left: {:#?}\nlacking: {:#?}",
        differences(&left, &fresh),
        differences(&fresh, &left)
    );
    drop(running);
}

#[test]
fn versions_with_other_names_and_layouts_follow_each_other_without_a_leak_or_a_loss() {
    for_both_variants(|variant| upgrade_and_roll_back(variant, Topology::Bridge));
}

#[test]
fn links_without_a_bridge_are_taken_over_by_another_version_without_a_leak_or_a_loss() {
    with_own_run(|| upgrade_and_roll_back(Variant::Nft, Topology::PointToPoint));
}

/// Writes chains and sets beside those that are there, as `iptables-save` and `ipset save` printed them.
fn put_beside(bed: &Bed, sets: &str, filters: &[String; 2]) {
    let there = bed.node().succeed("ipset", &["list", "-name"]).unwrap();
    let is_new =
        |line: &&str| line.split(' ').nth(1).is_some_and(|set| !there.lines().any(|name| name == set));
    let sets = sets.lines().filter(is_new).fold(String::new(), |text, line| text + line + "\n");
    let restore = |program: &str, arguments: &[&str], text: &str| {
        let mut command = Command::new(program);
        command.args(arguments);
        let output = bed.node().run(command, text).unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    restore("ipset", &["restore"], &sets);
    for (family, filter) in Family::BOTH.into_iter().zip(filters) {
        let is_ours =
            |line: &&str| line.starts_with('*') || line.contains("TOWPATH-") || line.contains("TP-");
        let text: String = filter.lines().filter(is_ours).map(|line| line.to_owned() + "\n").collect();
        // Chains are printed without their counters.
        let text = text.replace(" -\n", " - [0:0]\n") + "COMMIT\n";
        restore(&bed.variant.program(family, "-restore"), &["--noflush"], &text);
    }
}

#[test]
fn cleanup_of_either_version_removes_what_both_left() {
    for_both_variants(|variant| {
        let bed = bed_in(variant, Topology::Bridge, &[]);
        for cleaner in [Version::This, Version::Other] {
            let writer = cleaner.next();
            assert!(writer.run(&bed, &[]).terminate().success());
            let (of_one, sets) = (state(&bed), bed.node().succeed("ipset", &["save"]).unwrap());
            let filters = Family::BOTH.map(|family| bed.saved(family, "filter"));
            let said = cleaner.cleanup(&bed);
            assert_eq!(state(&bed), [""; 0], "{cleaner:?} said {said}");

            assert!(cleaner.run(&bed, &[]).terminate().success());
            let of_other = state(&bed);
            let both = of_one.iter().filter(|line| of_other.contains(line) && line.contains(" TP-")).count();
            assert_eq!(both, 0, "the versions have no chain of a pod or a group in common");
            put_beside(&bed, &sets, &filters);
            let hooks = |lines: &[String]| {
                lines.iter().filter(|line| line.contains("-A FORWARD -j TOWPATH-")).count()
            };
            assert_eq!((hooks(&of_other), hooks(&state(&bed))), (2, 4));
            let said = cleaner.cleanup(&bed);
            assert_eq!(state(&bed), [""; 0], "{cleaner:?} said {said}");
        }
    });
}
