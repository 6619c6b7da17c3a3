//! The measured node, and the two pods that send and receive.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    process::Command,
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use nix::{
    net::if_::if_nametoindex,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use tempfile::TempDir;
use towpath::{
    lab::{
        Families, Lab, LabOptions, Netns, PodId, PodSpec, Process, RawSocket, Topology, Variant,
        frame::{Ip, Link, Mac, protocol},
        mac_of,
    },
    model::ObjectKey,
    policy::{members::Members, resolve::LocalPod},
    ruleset::guard::{Bindings, KnownAddresses, Mac as GuardMac, Veth, bind, render::Guard},
};

use crate::{http::LISTEN, ready::is_ready};

const NODE: &str = "n1";
pub(crate) const PORT: u16 = 7777;
const PAYLOAD: [u8; 32] = [0; 32];

/// The number of source ports for the first packets of flows, and how many of them are used in each turn.
const FLOWS: u16 = 60_000;
const TURN: usize = 5_000;
const FIRST_PORT: u16 = 1024;

/// Unanswered flows expire after a second, so that the same ports soon make new flows.
const FORGET: &[(&str, &str)] = &[("netfilter/nf_conntrack_udp_timeout", "1")];

/// One node and its pods. A policy denies everything to the second pod; the first and the last are measured.
pub(crate) struct Bed {
    pub(crate) lab: Lab,
    pub(crate) ids: Vec<PodId>,
    pub(crate) topology: Topology,
    folder: TempDir,
}

impl Bed {
    pub(crate) fn new(topology: Topology, pods: usize) -> Self {
        let options = LabOptions { topology, families: Families::V4, nodes: 1, flannel_rules: None };
        let mut lab = Lab::new(options).expect("a lab");
        let specs: Vec<PodSpec> = (0..pods).map(|pod| PodSpec::new(format!("shop/pod-{pod}"), 0)).collect();
        let ids = specs.chunks(50).flat_map(|specs| lab.add_pods(specs).expect("pods")).collect();
        let bed = Self { lab, ids, topology, folder: TempDir::new().expect("a folder") };
        bed.netns().sysctl(FORGET).expect("a timeout");
        let objects: Vec<String> =
            (0..pods).map(|pod| pod_object(&format!("pod-{pod}"), bed.address(pod))).collect();
        bed.write("pods.yaml", &objects.concat());
        let policy = serde_json::json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": "shop", "name": "deny" },
            "spec": {
                "podSelector": { "matchLabels": { "name": "pod-1" } },
                "policyTypes": ["Ingress", "Egress"],
            },
        });
        bed.write("policy.yaml", &policy.to_string());
        bed
    }

    pub(crate) fn netns(&self) -> &Netns {
        self.lab.node(0).expect("a node").netns()
    }

    pub(crate) fn address(&self, pod: usize) -> IpAddr {
        self.lab.pod(self.ids[pod]).expect("a pod").addresses()[0]
    }

    pub(crate) fn interface(&self, pod: usize) -> &str {
        self.lab.pod(self.ids[pod]).expect("a pod").interface()
    }

    pub(crate) fn inside(&self, pod: usize) -> &Netns {
        self.lab.pod(self.ids[pod]).expect("a pod").netns()
    }

    pub(crate) fn mac(&self, pod: usize) -> Mac {
        mac_of(self.inside(pod), "eth0").expect("a hardware address")
    }

    /// Writes a file of objects under another name and renames it.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        let next = path.with_extension("next");
        fs::write(&next, text).expect("objects");
        fs::rename(next, path).expect("objects in their place");
    }

    /// A daemon that is ready.
    pub(crate) fn daemon(&self, variant: Variant, guard: bool) -> Process {
        let program =
            std::env::var("TOWPATH_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_towpath").to_owned());
        let mut command = Command::new(program);
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
            .arg(format!("--interface-guard={}", if guard { "require" } else { "off" }))
            .args(["--nflog-group", "0", "-f"])
            .arg(self.folder.path())
            .arg("--run-dir")
            .arg(self.folder.path().join(".run"))
            .stderr(fs::File::create(self.folder.path().join(".log")).expect("a log"));
        let daemon = self.lab.node(0).expect("a node").spawn(command).expect("a daemon");
        let started = Instant::now();
        while !is_ready(self.lab.node(0).expect("a node"), LISTEN) {
            let log = || fs::read_to_string(self.folder.path().join(".log")).unwrap_or_default();
            assert!(started.elapsed() < Duration::from_mins(1), "it does not become ready:\n{}", log());
            sleep(Duration::from_millis(2));
        }
        daemon
    }

    /// Runs a program on the node that must succeed, with `input` as its standard input.
    pub(crate) fn succeed(&self, program: &str, arguments: &[&str], input: &str) -> String {
        self.netns().succeed(program, arguments, input).expect(program)
    }

    /// The guard for the first `count` pods, as the daemon would write it.
    pub(crate) fn guard(&self, count: usize) -> Guard {
        let index = |name: &str| {
            let name = name.to_owned();
            self.netns().run(move || if_nametoindex(&*name)).expect("the node").expect("an index")
        };
        let bridge = self.topology.has_bridge().then(|| index("cni0"));
        let veths: Vec<Veth> = (0..count)
            .map(|pod| Veth {
                index: index(self.interface(pod)),
                name: self.interface(pod).to_owned(),
                bridge,
                netns: i32::try_from(pod).expect("a small number"),
                mac: GuardMac(self.mac(pod).0),
                addresses: vec![self.address(pod)],
                routed: Vec::new(),
                is_read: true,
            })
            .collect();
        let pods: Vec<LocalPod> = (0..count)
            .map(|pod| LocalPod {
                key: ObjectKey::new("shop", format!("pod-{pod}")),
                addresses: vec![self.address(pod)],
                shared: Vec::new(),
                ingress: None,
                egress: None,
                policies: [].into(),
                sandbox: None,
            })
            .collect();
        let (none, host) = (Members::default(), [].into());
        let known =
            KnownAddresses { pods: &pods, all_pods: &none, nodes: &none, host: &host, pod_cidrs: &[] };
        Guard::new(&bind(&veths, &known, &Bindings::default()))
    }
}

/// A pod of the node as a document of a file.
pub(crate) fn pod_object(name: &str, address: IpAddr) -> String {
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "shop", "name": name, "labels": { "name": name } },
        "spec": { "nodeName": NODE },
        "status": { "phase": "Running", "podIPs": [{ "ip": address }] },
    });
    format!("---\n{object}\n")
}

/// Two pods, one of which sends to the other.
pub(crate) struct Pair {
    client: UdpSocket,
    server: UdpSocket,
    raw: RawSocket,
    frames: Vec<Vec<u8>>,
    turn: usize,
}

impl Pair {
    /// From the last pod to the first.
    pub(crate) fn new(bed: &Bed) -> Self {
        let (from, to) = (bed.ids.len() - 1, 0);
        let (source, destination) = (bed.address(from), bed.address(to));
        let bound = |netns: &Netns, port| {
            let socket = netns.run(move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)));
            let socket = socket.expect("a pod").expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
            socket
        };
        let (client, server) = (bound(bed.inside(from), 0), bound(bed.inside(to), PORT));
        client.connect((destination, PORT)).expect("a destination");
        let raw = RawSocket::open(bed.inside(from), "eth0").expect("a raw socket");
        let next = if bed.topology.has_bridge() {
            bed.mac(to)
        } else {
            mac_of(bed.netns(), bed.interface(from)).expect("the node's hardware address")
        };
        let ip = Ip::new(source, destination);
        let link = Link { source: raw.mac(), destination: next };
        let frame = |port| link.ip(&ip.packet(protocol::UDP, &ip.udp(port, PORT, &PAYLOAD)));
        let frames = (FIRST_PORT..FIRST_PORT + FLOWS).map(frame).collect();
        Self { client, server, raw, frames, turn: 0 }
    }

    /// How long it takes to send a packet of an established flow, in nanoseconds.
    pub(crate) fn established(&self, count: u32) -> f64 {
        self.answer();
        pinned(|| {
            let start = Instant::now();
            for _ in 0..count {
                self.client.send(&PAYLOAD).expect("a packet");
            }
            nanoseconds(start.elapsed(), count)
        })
    }

    /// How long it takes to send the first packet of a flow, in nanoseconds.
    pub(crate) fn first(&mut self) -> f64 {
        self.answer();
        let turn = self.turn % (self.frames.len() / TURN);
        let frames = &self.frames[turn * TURN..][..TURN];
        self.turn += 1;
        pinned(|| {
            let start = Instant::now();
            for frame in frames {
                self.raw.send(frame).expect("a packet");
            }
            nanoseconds(start.elapsed(), u32::try_from(frames.len()).expect("a count"))
        })
    }

    /// Makes the server answer, which establishes the flow, and shows that packets arrive at all.
    fn answer(&self) {
        let mut buffer = [0; 64];
        self.server.set_nonblocking(true).expect("a mode");
        while self.server.recv(&mut buffer).is_ok() {}
        self.server.set_nonblocking(false).expect("a mode");
        self.client.send(&PAYLOAD).expect("a packet");
        let (_, from) = self.server.recv_from(&mut buffer).expect("a packet that arrives");
        self.server.send_to(&PAYLOAD, from).expect("an answer");
        self.client.recv(&mut buffer).expect("an answer that arrives");
    }
}

/// On one processor, so that the data that a packet touches stays in its caches.
fn pinned<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    scope(|scope| {
        let thread = scope.spawn(|| {
            let mut processors = CpuSet::new();
            processors.set(0).expect("a processor");
            // On a machine without this processor it is still measured.
            let _ = sched_setaffinity(Pid::from_raw(0), &processors);
            work()
        });
        thread.join().expect("a measurement")
    })
}

fn nanoseconds(elapsed: Duration, count: u32) -> f64 {
    elapsed.as_secs_f64() * 1e9 / f64::from(count)
}
