//! The test bed for attacks: two nodes with pods, guests on another bridge of the first node, an outside host, one
//! `towpath run` on each node, a raw socket for every attacker and a capture at every possible victim.

mod node_setup;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use towpath::{
    lab::{
        Capture, Families, FlannelRules, Lab, LabOptions, Netns, PodId, PodSpec, Process, RawSocket, Tap,
        Topology, Variant,
        frame::{Ip, Link, Mac, Token, protocol},
        mac_of,
    },
    model::{Family, Protocol},
};

use crate::{daemon_command::daemon_command, http::LISTEN, ready::is_ready, received::Received};
use node_setup::guest_address;

/// How long a daemon may take until it is ready: far more than it needs, even on a busy machine.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// The UDP port to which most attacks go; nodes and pods listen on it.
pub(crate) const PORT: u16 = 7777;

/// The port of a VXLAN that is not flannel's, on each node: the guests' overlay, for example.
pub(crate) const OTHER_VXLAN_PORT: u16 = 4789;

/// The port of flannel's VXLAN.
pub(crate) const VXLAN_PORT: u16 = 8472;

/// The port of Geneve.
pub(crate) const GENEVE_PORT: u16 = 6081;

/// Tunnels that are IP protocols of their own.
const TUNNELS: [u8; 3] = [protocol::IPV4, protocol::IPV6, protocol::GRE];

/// The parameters of a bed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) topology: Topology,
    pub(crate) variant: Variant,
}

/// A host that can send or receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Host {
    /// A pod, by its place in the list from which the bed was built.
    Pod(usize),
    /// A node itself; it has received what its sockets have.
    Node(usize),
    /// A machine on a bridge of the first node that is not the pods', as KVM, LXD and Docker create them.
    Guest(usize),
    /// The outside host.
    Outside,
}

/// The description of a new pod.
#[derive(Clone, Debug)]
pub(crate) struct PodPlan {
    /// `namespace/name`.
    pub(crate) name: String,
    pub(crate) node: usize,
    /// If empty: the next free ones.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether it has an object: a pod exists before the API server reports it.
    pub(crate) named: bool,
}

/// The test bed.
pub(crate) struct Bed {
    // In the order in which they must end: captures and daemons before the namespaces.
    captures: Vec<Capture>,
    daemons: Vec<Process>,
    /// The logs of all daemons, including those that were killed.
    logs: Vec<PathBuf>,
    sockets: BTreeMap<Host, RawSocket>,
    gateways: BTreeMap<Host, Mac>,
    guests: Vec<Netns>,
    pub(crate) lab: Lab,
    pods: Vec<(PodId, String)>,
    folder: TempDir,
    pub(crate) setting: Setting,
    received: Arc<Received>,
    next_token: AtomicU32,
}

impl Bed {
    /// Builds everything, pods and objects first, and returns when the daemons enforce `objects`. `manifest` creates a
    /// pod's object from its place, its addresses and those of its node.
    pub(crate) fn new(
        setting: Setting,
        plans: &[PodPlan],
        manifest: impl Fn(usize, &[IpAddr], &[IpAddr]) -> Value,
        objects: &[Value],
    ) -> Self {
        let mut lab = Lab::new(LabOptions {
            topology: setting.topology,
            families: Families::Dual,
            nodes: 2,
            flannel_rules: Some(FlannelRules::new(setting.variant)),
        })
        .expect("a lab");
        let specs: Vec<PodSpec> = plans
            .iter()
            .map(|plan| {
                let spec = PodSpec::new(&plan.name, plan.node).listening(&[(Protocol::Tcp, 80)]);
                plan.addresses.iter().fold(spec, |spec, address| spec.at(*address))
            })
            .collect();
        let ids = lab.add_pods(&specs).expect("pods");
        let names = plans.iter().map(|plan| plan.name.clone());
        let mut bed = Self {
            captures: Vec::new(),
            daemons: Vec::new(),
            logs: Vec::new(),
            sockets: BTreeMap::new(),
            gateways: BTreeMap::new(),
            guests: Vec::new(),
            lab,
            pods: ids.into_iter().zip(names).collect(),
            folder: TempDir::new().expect("a folder"),
            setting,
            received: Arc::default(),
            next_token: AtomicU32::new(1),
        };
        bed.open_forwarding();
        bed.add_guests();
        bed.add_other_vxlan();
        bed.open_sockets();
        bed.write_objects(plans, manifest, objects);
        bed.start_daemons();
        bed.wait_until_guarded();
        bed.start_captures();
        bed
    }

    fn open_sockets(&mut self) {
        let mut open = |host, netns: &Netns, gateway: Mac| {
            self.sockets.insert(host, RawSocket::open(netns, "eth0").expect("a raw socket"));
            self.gateways.insert(host, gateway);
        };
        for (place, (id, _)) in self.pods.iter().enumerate() {
            let pod = self.lab.pod(*id).expect("a pod");
            let node = self.lab.node(pod.node()).expect("a node");
            let device = if self.setting.topology.has_bridge() { "cni0" } else { pod.interface() };
            open(Host::Pod(place), pod.netns(), mac_of(node.netns(), device).expect("the gateway"));
        }
        let node = self.lab.node(0).expect("a node").netns();
        for (guest, netns) in self.guests.iter().enumerate() {
            open(Host::Guest(guest), netns, mac_of(node, "virbr0").expect("the gateway"));
        }
        open(Host::Outside, self.lab.external().netns(), mac_of(node, "eth0").expect("the gateway"));
    }

    fn write_objects(
        &self,
        plans: &[PodPlan],
        manifest: impl Fn(usize, &[IpAddr], &[IpAddr]) -> Value,
        objects: &[Value],
    ) {
        let named = plans.iter().enumerate().filter(|(_, plan)| plan.named);
        let pods = named.map(|(place, plan)| {
            let pod = self.lab.pod(self.pods[place].0).expect("a pod");
            let node = self.lab.node(plan.node).expect("a node");
            manifest(place, pod.addresses(), node.addresses())
        });
        let all: Vec<Value> = objects.iter().cloned().chain(pods).collect();
        let folder = self.folder.path().join("objects");
        fs::create_dir(&folder).expect("a folder for the objects");
        for (at, object) in all.iter().enumerate() {
            fs::write(folder.join(format!("{at}.json")), object.to_string()).expect("a manifest");
        }
    }

    /// Starts a daemon on each node, and does not wait for them.
    pub(crate) fn start_daemons(&mut self) {
        for node in 0..2 {
            let name = node_name(node);
            let log = self.folder.path().join(format!("{name}-{}.log", self.logs.len()));
            let folder = self.folder.path();
            let (objects, run) = (folder.join("objects"), folder.join("run").join(&name));
            let mut command = daemon_command(&name, self.setting.variant, &objects, &run);
            command.stderr(fs::File::create(&log).expect("a log"));
            let process = self.lab.node(node).expect("a node").spawn(command).expect("a daemon");
            self.daemons.push(process);
            self.logs.push(log);
        }
    }

    /// Kills the daemons, as a crash would.
    pub(crate) fn kill_daemons(&mut self) {
        for mut daemon in self.daemons.drain(..) {
            daemon.kill().expect("its end");
        }
    }

    /// Waits until both daemons enforce everything, including the bindings of interfaces to pods.
    fn wait_until_guarded(&self) {
        let until = Instant::now() + READY_WITHIN;
        while !self.is_guarded() {
            assert!(Instant::now() < until, "a node is not ready\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether both daemons enforce everything.
    ///
    /// The one place to change when a daemon reports more about that than its readiness.
    pub(crate) fn is_guarded(&self) -> bool {
        self.lab.nodes().iter().all(|node| is_ready(node, LISTEN))
    }

    /// What the daemons logged.
    pub(crate) fn logs(&self) -> String {
        let logs = self
            .logs
            .iter()
            .map(|log| format!("--- {}\n{}", log.display(), fs::read_to_string(log).unwrap_or_default()));
        logs.collect::<Vec<_>>().join("\n")
    }

    fn start_captures(&mut self) {
        let mut taps: Vec<(Host, Tap)> = Vec::new();
        for place in 0..self.pods.len() {
            taps.push((Host::Pod(place), Tap::Frames));
            taps.extend(Family::BOTH.map(|family| (Host::Pod(place), Tap::Udp(family, PORT))));
        }
        taps.extend((0..self.guests.len()).map(|guest| (Host::Guest(guest), Tap::Frames)));
        taps.push((Host::Outside, Tap::Frames));
        for node in 0..2 {
            for family in Family::BOTH {
                taps.extend(TUNNELS.map(|number| (Host::Node(node), Tap::Ip(family, number))));
                taps.extend([PORT, GENEVE_PORT].map(|port| (Host::Node(node), Tap::Udp(family, port))));
                // With VXLAN the kernel's own tunnel has that port.
                if self.setting.topology != Topology::Vxlan {
                    taps.push((Host::Node(node), Tap::Udp(family, VXLAN_PORT)));
                }
            }
        }
        for (host, tap) in taps {
            let received = self.received.clone();
            let each = move |bytes: &[u8]| received.record(host, bytes);
            self.captures.push(Capture::start(self.netns(host), tap, each).expect("a capture"));
        }
    }

    pub(crate) fn netns(&self, host: Host) -> &Netns {
        match host {
            Host::Pod(place) => self.lab.pod(self.pods[place].0).expect("a pod").netns(),
            Host::Node(node) => self.lab.node(node).expect("a node").netns(),
            Host::Guest(guest) => &self.guests[guest],
            Host::Outside => self.lab.external().netns(),
        }
    }

    /// The lab's id of a pod.
    pub(crate) fn id(&self, place: usize) -> PodId {
        self.pods[place].0
    }

    /// The name in messages and tables.
    pub(crate) fn name(&self, host: Host) -> String {
        match host {
            Host::Pod(place) => self.pods[place].1.clone(),
            Host::Node(0) => "the node".to_owned(),
            Host::Node(_) => "the other node".to_owned(),
            Host::Guest(guest) => format!("guest {}", guest + 1),
            Host::Outside => "outside".to_owned(),
        }
    }

    /// The node that it is on; `None` for the outside host.
    pub(crate) fn node_of(&self, host: Host) -> Option<usize> {
        match host {
            Host::Pod(place) => Some(self.lab.pod(self.pods[place].0).expect("a pod").node()),
            Host::Node(node) => Some(node),
            Host::Guest(_) => Some(0),
            Host::Outside => None,
        }
    }

    /// Its own address.
    pub(crate) fn address(&self, host: Host, family: Family) -> IpAddr {
        let address = match host {
            Host::Pod(place) => self.lab.pod(self.pods[place].0).expect("a pod").address(family),
            Host::Node(node) => self.lab.node(node).expect("a node").address(family),
            Host::Guest(guest) => Some(guest_address(family, guest + 1)),
            Host::Outside => self.lab.external().address(family),
        };
        address.expect("an address of each family")
    }

    pub(crate) fn v4(&self, host: Host) -> Ipv4Addr {
        let IpAddr::V4(address) = self.address(host, Family::V4) else { unreachable!("an IPv4 address") };
        address
    }

    pub(crate) fn v6(&self, host: Host) -> Ipv6Addr {
        let IpAddr::V6(address) = self.address(host, Family::V6) else { unreachable!("an IPv6 address") };
        address
    }

    /// The node's address to which its pods send packets for other hosts: the bridge's, if there is one.
    pub(crate) fn gateway_address(&self, node: usize, family: Family) -> IpAddr {
        offset(self.lab.node(node).expect("a node").pod_cidr(family).network(), 1)
    }

    /// The hardware address of a pod, a guest or the outside host.
    pub(crate) fn mac(&self, host: Host) -> Mac {
        self.sockets[&host].mac()
    }

    /// The hardware address of the node on the link of a host.
    pub(crate) fn gateway(&self, host: Host) -> Mac {
        self.gateways[&host]
    }

    /// The hardware address of a device of a node.
    pub(crate) fn device(&self, node: usize, device: &str) -> Mac {
        mac_of(self.lab.node(node).expect("a node").netns(), device).expect("the device")
    }

    /// Whether two hosts share a link.
    pub(crate) fn on_link(&self, from: Host, to: Host) -> bool {
        match (from, to) {
            (Host::Pod(_), Host::Pod(_)) => {
                self.setting.topology.has_bridge() && self.node_of(from) == self.node_of(to)
            }
            (Host::Guest(_), Host::Guest(_)) => true,
            _ => false,
        }
    }

    /// The genuine link header from `from` to `to`.
    pub(crate) fn link(&self, from: Host, to: Host) -> Link {
        let destination = if self.on_link(from, to) { self.mac(to) } else { self.gateway(from) };
        Link { source: self.mac(from), destination }
    }

    /// The genuine IP header between two hosts.
    pub(crate) fn ip(&self, from: Host, to: Host, family: Family) -> Ip {
        Ip::new(self.address(from, family), self.address(to, family))
    }

    /// A token that no frame has yet.
    pub(crate) fn token(&self) -> Token {
        Token(self.next_token.fetch_add(1, Ordering::Relaxed))
    }

    /// Registers this body of a neighbour discovery message as having that token.
    pub(crate) fn recognise(&self, body: Vec<u8>, token: Token) {
        self.received.recognise(body, token);
    }

    pub(crate) fn send(&self, from: Host, frame: &[u8]) {
        self.sockets[&from].send(frame).expect("a frame");
    }

    /// Which hosts have received a token so far.
    pub(crate) fn receivers(&self, token: Token) -> BTreeSet<Host> {
        self.received.receivers(token)
    }

    /// Returns when everything that was sent before has arrived, if it arrives at all: a last datagram of each sender
    /// to its own node, which is never denied, must arrive first.
    pub(crate) fn settle(&self) {
        self.settle_hosts(None);
    }

    /// The same, while one sender has other addresses than usual.
    pub(crate) fn settle_except(&self, changed: Host) {
        self.settle_hosts(Some(changed));
    }

    fn settle_hosts(&self, changed: Option<Host>) {
        let until = Instant::now() + READY_WITHIN;
        for host in self.sockets.keys().copied().filter(|host| Some(*host) != changed) {
            let Some(node) = self.node_of(host).map(Host::Node) else { continue };
            let token = self.token();
            let ip = self.ip(host, node, Family::V4);
            let frame = self.link(host, node).ip(&udp(&ip, token, PORT, &[]));
            for attempt in 0.. {
                // A link that just came up may lose the first ones.
                if attempt % 20 == 0 {
                    self.send(host, &frame);
                }
                if self.receivers(token).contains(&node) {
                    break;
                }
                assert!(
                    Instant::now() < until,
                    "{} no longer reaches its node\n{}",
                    self.name(host),
                    self.logs()
                );
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // Wait for what a node holds back until it knows a neighbour or the last fragment arrived, and for what the
        // captures still have to process.
        let mut processed = None;
        while processed != Some(self.received.processed()) && Instant::now() < until {
            processed = Some(self.received.processed());
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Stops the daemons as a node's shutdown does, and checks their exit status.
    pub(crate) fn end(mut self) {
        let logs = self.logs();
        for process in &mut self.daemons {
            process.signal(nix::sys::signal::Signal::SIGTERM).expect("a signal");
            let status = process.wait(READY_WITHIN).expect("its end").expect("an end in time");
            assert!(status.success(), "{status}\n{logs}");
        }
    }
}

/// The name of a node.
pub(crate) fn node_name(node: usize) -> String {
    format!("n{}", node + 1)
}

/// A UDP datagram with a token, from a port that no other token has.
pub(crate) fn udp(ip: &Ip, token: Token, port: u16, more: &[u8]) -> Vec<u8> {
    let payload = [&token.bytes()[..], more].concat();
    ip.packet(protocol::UDP, &ip.udp(source_port(token), port, &payload))
}

/// The source port of a token, so that no attack matches the connection of another one.
pub(crate) fn source_port(token: Token) -> u16 {
    u16::try_from(20_000 + token.0 % 40_000).expect("less than 60,000")
}

/// The address `count` after another one.
pub(crate) fn offset(base: IpAddr, count: u8) -> IpAddr {
    match base {
        IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() + u32::from(count)).into(),
        IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() + u128::from(count)).into(),
    }
}
