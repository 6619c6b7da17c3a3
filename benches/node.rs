//! The cost of a node, end to end: a real `towpath run` in a network namespace, with the objects of a whole cluster in
//! files, tested with real packets.
//!
//! `make bench-node` runs it, as root. It prints medians and the 99th percentiles; docs/benchmarks.md contains results.

#![expect(clippy::expect_used, reason = "whatever is missing here ends the bench with its name")]

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use towpath::{
    lab::{
        Families, FloodFlow, Lab, LabOptions, PodSpec, Process, Topology, Variant,
        random::cluster_of,
        sized::{self, NODE, SIZES, Size},
    },
    model::{Change, Family, Namespace, ObjectKey, Pod, Protocol, Transport},
    policy::resolve::Resolver,
    ruleset::{
        compile::{Options, compile},
        trace::{Packet, trace},
    },
};

#[path = "../tests/support/http.rs"]
mod http;
#[path = "../tests/support/model_objects.rs"]
mod model_objects;
#[path = "../tests/support/ready.rs"]
mod ready;

use http::LISTEN;
use ready::is_ready;

const CHANGES: usize = 100;
const PORT: u16 = 7777;

fn main() {
    // `cargo test` and `cargo bench -- --test` only check that it starts.
    let smoke = std::env::args().any(|argument| argument == "--test");
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root, to make network namespaces");
        return;
    }
    rules_walked();
    let sizes = if smoke { &SIZES[..1] } else { &SIZES[..2] };
    for variant in Variant::BOTH {
        for size in sizes {
            node(*size, variant, if smoke { 4 } else { CHANGES });
        }
    }
}

/// The rules that the first packet of a flow between two isolated pods of the node passes.
fn rules_walked() {
    println!("first packet of an allowed flow to a policed pod of the node: rules walked, sets looked up");
    for size in SIZES {
        let cluster = cluster_of(sized::cluster(size));
        let ruleset = compile(&Resolver::of(NODE, &cluster).resolve(&cluster), &Options::default());
        let addresses: Vec<IpAddr> = cluster
            .pods()
            .filter(|pod| pod.node.as_deref() == Some(NODE))
            .filter_map(|pod| pod.address(Family::V4))
            .collect();
        let from = IpAddr::from([172, 16, 0, 9]);
        let packets = addresses.iter().map(|to| Packet::new(from, *to, Transport::Port(Protocol::Tcp, 443)));
        let walks: Vec<_> =
            packets.map(|packet| trace(&ruleset.v4, &packet)).filter(|walk| walk.passed).collect();
        let rules = sorted(walks.iter().map(|walk| walk.rules_walked).collect());
        let lookups = sorted(walks.iter().map(|walk| walk.set_lookups).collect());
        println!(
            "  {}: median {} rules (most {}), {} set lookups; the table has {} rules",
            size.name,
            rules[rules.len() / 2],
            rules[rules.len() - 1],
            lookups[lookups.len() / 2],
            ruleset.v4.chains.values().map(|chain| chain.rules.len()).sum::<usize>(),
        );
    }
}

fn node(size: Size, variant: Variant, changes: usize) {
    let mut lab = Lab::new(LabOptions {
        topology: Topology::Bridge,
        families: Families::V4,
        nodes: 1,
        flannel_rules: None,
    })
    .expect("a lab");
    let ids =
        lab.add_pods(&[PodSpec::new("bench/client", 0), PodSpec::new("bench/server", 0)]).expect("pods");
    let address = |index: usize| lab.pod(ids[index]).expect("a pod").addresses()[0];
    let (client, server) = (address(0), address(1));

    let folder = TempDir::new().expect("a folder");
    let mut objects = Objects::new(size, client, server);
    objects.write(folder.path());
    let started = Instant::now();
    let mut daemon = start(&lab, folder.path(), variant);
    while !is_ready(lab.node(0).expect("a node"), LISTEN) {
        assert!(started.elapsed() < Duration::from_mins(1), "it does not become ready");
        sleep(Duration::from_millis(2));
    }
    println!("{}, {}:", size.name, variant.name());
    println!("  ready {} ms after its start", started.elapsed().as_millis());

    let flow = FloodFlow { from: ids[0].into(), to: server, port: PORT };
    let flood = lab.flood(&[flow], Duration::from_millis(1)).expect("a flood");
    sleep(Duration::from_millis(300));
    let mut latencies: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for turn in 0..changes {
        let closes = turn % 2 == 0;
        let by_label = turn % 4 < 2;
        let what = match (by_label, closes) {
            (true, true) => "a pod's label in the file of all pods: closes",
            (true, false) => "a pod's label in the file of all pods: opens",
            (false, true) => "a policy: closes",
            (false, false) => "a policy: opens",
        };
        if by_label {
            objects.label(!closes);
        } else {
            objects.policy(closes);
        }
        let at = objects.write_changed(folder.path(), by_label);
        sleep(Duration::from_millis(250));
        let arrivals: Vec<Instant> =
            flood.arrivals().iter().map(|arrival| arrival.at).filter(|arrival| *arrival > at).collect();
        let seen = if closes { arrivals.last() } else { arrivals.first() };
        latencies.entry(what).or_default().push(seen.map_or(Duration::ZERO, |seen| *seen - at));
        // If packets arrive while it is closed, or none while it is open, nothing was measured.
        let recent = flood.arrivals().iter().any(|arrival| arrival.at.elapsed() < Duration::from_millis(50));
        if recent == closes {
            let log = fs::read_to_string(folder.path().join(".log")).unwrap_or_default();
            println!("  turn {turn}, {what}: not enforced within 200 ms\n{log}");
        }
    }
    drop(flood);
    for (what, latencies) in latencies {
        let sorted = sorted(latencies);
        let (median, worst) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
        println!("  {what}: median {:.1} ms, worst {:.1} ms, of {}", ms(median), ms(worst), sorted.len());
    }
    let metrics = get(&lab, "/metrics").map_or_else(String::new, |(_, text)| text);
    for wanted in ["towpath_rules{", "towpath_set_entries{", "towpath_commands_total "] {
        for line in metrics.lines().filter(|line| line.starts_with(wanted)) {
            println!("  {line}");
        }
    }
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap_or_default();
    for line in status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM")) {
        println!("  {}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    daemon.stop().expect("its end");
}

fn start(lab: &Lab, folder: &Path, variant: Variant) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
    command
        .args([
            "run",
            "--node-name",
            NODE,
            "--listen",
            &LISTEN.to_string(),
            "--iptables-backend",
            variant.name(),
        ])
        .args(["--nflog-group", "0", "-v"])
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

/// The objects of a cluster, and two pods of the lab in their own namespace.
struct Objects {
    others: Vec<Change>,
    client: Pod,
    server: Pod,
    closed: bool,
}

impl Objects {
    fn new(size: Size, client: IpAddr, server: IpAddr) -> Self {
        let pod = |name: &str, address| Pod {
            node: Some(NODE.into()),
            addresses: vec![address],
            labels: [("role", name)].into_iter().collect(),
            ..Pod::new(ObjectKey::new("bench", name))
        };
        Self {
            others: sized::cluster(size),
            client: pod("client", client),
            server: pod("server", server),
            closed: false,
        }
    }

    fn label(&mut self, is_client: bool) {
        let role = if is_client { "client" } else { "other" };
        self.client.labels = [("role", role)].into_iter().collect();
    }

    fn policy(&mut self, closed: bool) {
        self.closed = closed;
    }

    fn write(&self, folder: &Path) {
        let mut policies = Vec::new();
        let mut namespaces = vec![model_objects::namespace(&Namespace {
            name: "bench".into(),
            labels: [("kubernetes.io/metadata.name", "bench")].into_iter().collect(),
        })];
        for change in &self.others {
            match change {
                Change::SetNamespace(namespace) => namespaces.push(model_objects::namespace(namespace)),
                Change::SetPolicy(policy) => policies.push(model_objects::policy(policy)),
                _ => {}
            }
        }
        save(&folder.join("namespaces.yaml"), &namespaces);
        save(&folder.join("policies.yaml"), &policies);
        self.write_changed(folder, true);
        self.write_changed(folder, false);
    }

    /// Writes the changed file; returns when it was renamed.
    fn write_changed(&self, folder: &Path, pods: bool) -> Instant {
        if pods {
            let others = self.others.iter().filter_map(|change| match change {
                Change::SetPod(pod) => Some(model_objects::pod(pod)),
                _ => None,
            });
            let own = [&self.client, &self.server].map(model_objects::pod);
            save(&folder.join("pods.yaml"), &others.chain(own).collect::<Vec<_>>())
        } else {
            let role = if self.closed { "other" } else { "client" };
            let policy = serde_json::json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": { "namespace": "bench", "name": "server" },
                "spec": {
                    "podSelector": { "matchLabels": { "role": "server" } },
                    "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "role": role } } }] }],
                },
            });
            save(&folder.join("server.yaml"), &[policy])
        }
    }
}

/// Writes documents to another name and renames that. Returns when it renamed: the time of writing is not measured.
fn save(path: &Path, documents: &[Value]) -> Instant {
    let documents: Vec<String> = documents.iter().map(|document| format!("---\n{document}\n")).collect();
    let next = path.with_extension("next");
    fs::write(&next, documents.concat()).expect("manifests");
    let at = Instant::now();
    fs::rename(next, path).expect("manifests in their place");
    at
}

fn sorted<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort();
    values
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
