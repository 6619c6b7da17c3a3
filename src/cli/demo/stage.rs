//! The stage: two nodes with a daemon each, the pods of the scenes so far, and their manifests.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{Read, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    lab::{
        End, Families, FlannelRules, Lab, LabOptions, Node, Outcome, PodId, PodSpec, Probe, Process,
        Topology, Transport, Variant,
    },
    model::{Family, Protocol},
};

use super::{
    chains::{self, PodChains},
    error::DemoError,
    folder::Folder,
    interrupt::Interrupts,
    story::{Labels, Scene},
    table::{Mark, ReachTable, Spot},
};

/// The second TCP port on which all ends listen, and which no policy of the story names.
pub(super) const OTHER_PORT: u16 = 8080;

/// Where each daemon listens, in its own node's namespace.
const DAEMON: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9586);

/// How long a daemon may take until its first full sync is in the kernel.
const READY: Duration = Duration::from_secs(20);

/// The timeout of probes that measure when a change took effect; an answer comes within a millisecond or never.
const GLANCE: Duration = Duration::from_millis(5);

/// How long a change must have held before it counts as having taken effect.
const STEADY: Duration = Duration::from_millis(40);

/// Everything that the story needs.
pub(super) struct Stage {
    // Dropped in this order: the daemons end before their nodes go, and they write to the folder until then.
    daemons: Vec<(String, Process)>,
    lab: Lab,
    folder: Folder,
    pods: BTreeMap<&'static str, PodOnStage>,
    interrupts: Interrupts,
    variant: Variant,
}

struct PodOnStage {
    id: PodId,
    labels: Labels,
    port: u16,
}

/// A party of a scene: what sends and receives under one name.
struct Party {
    end: End,
    addresses: Vec<IpAddr>,
    port: u16,
    /// Whether to set the source address, because the end has other addresses too.
    sends_from: bool,
}

impl Stage {
    /// Two nodes as flannel sets them up, without pods and daemons yet.
    pub(super) fn set(variant: Variant, interrupts: Interrupts) -> Result<Self, DemoError> {
        let has_ipv6 = Path::new("/proc/sys/net/ipv6").exists();
        let lab = Lab::new(LabOptions {
            topology: Topology::Vxlan,
            families: if has_ipv6 { Families::Dual } else { Families::V4 },
            nodes: 2,
            flannel_rules: Some(FlannelRules::new(variant)),
        })?;
        Ok(Self {
            daemons: Vec::new(),
            lab,
            folder: Folder::new()?,
            pods: BTreeMap::new(),
            interrupts,
            variant,
        })
    }

    /// The families in use.
    pub(super) fn families(&self) -> &'static [Family] {
        self.lab.families().list()
    }

    /// Adds a scene's pods and outsiders, and writes the manifests for the daemons.
    pub(super) fn enter(&mut self, scene: &'static Scene) -> Result<(), DemoError> {
        let ports = |port| [(Protocol::Tcp, port), (Protocol::Tcp, OTHER_PORT), (Protocol::Udp, port)];
        let outside: Vec<IpAddr> = scene.outsiders.iter().map(|outsider| outsider.address.into()).collect();
        if !outside.is_empty() {
            self.lab.add_external_addresses(&outside)?;
        }
        let outside_ports: Vec<_> =
            scene.outsiders.iter().flat_map(|outsider| ports(outsider.port)).collect();
        self.lab.listen(End::External, &outside_ports)?;
        let specs: Vec<PodSpec> = scene
            .cast
            .iter()
            .map(|actor| PodSpec::new(actor.name, actor.node).listening(&ports(actor.port)))
            .collect();
        let ids = self.lab.add_pods(&specs)?;
        for (actor, id) in scene.cast.iter().zip(ids) {
            self.pods.insert(actor.name, PodOnStage { id, labels: actor.labels, port: actor.port });
        }
        for (name, labels) in scene.namespaces {
            self.folder.put(&namespace_file(name), &namespace_manifest(name, labels))?;
        }
        scene.cast.iter().try_for_each(|actor| self.write_pod(actor.name))
    }

    /// Starts a daemon on each node and waits until the first full sync of each is in the kernel.
    pub(super) fn start_daemons(&mut self, backend: &str) -> Result<(), DemoError> {
        let program = std::env::current_exe().map_err(DemoError::io("find this program's own file"))?;
        for node in self.lab.nodes() {
            let log = File::create(self.folder.log(node.name())).map_err(DemoError::io("make a log file"))?;
            let mut command = Command::new(&program);
            // Settings of the user's own daemon must not apply to these.
            for (name, _) in
                std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"TOWPATH_"))
            {
                command.env_remove(name);
            }
            command.arg("run").arg("-f").arg(self.folder.objects());
            command.args(["--node-name", node.name(), "--iptables-backend", backend]);
            command.args(["--listen", &DAEMON.to_string()]);
            command.arg("--run-dir").arg(self.folder.locks());
            command.stdout(Stdio::null()).stderr(log);
            self.daemons.push((node.name().to_owned(), node.spawn(command)?));
        }
        let start = Instant::now();
        for node in 0..self.lab.nodes().len() {
            loop {
                self.check()?;
                let node = self.lab.node(node)?;
                let answer = readiness(node)?;
                if answer.split_whitespace().nth(1) == Some("200") {
                    break;
                }
                if start.elapsed() > READY {
                    let log = self.folder.end_of_log(node.name());
                    return Err(DemoError::not_ready(node.name(), READY, answer.trim(), log));
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// Fails if a signal was received, or a daemon has ended.
    pub(super) fn check(&mut self) -> Result<(), DemoError> {
        self.interrupts.check()?;
        for (node, daemon) in &mut self.daemons {
            if let Some(status) = daemon.try_wait()? {
                // Ctrl-C reaches the daemons too, and they may have been faster.
                thread::sleep(Duration::from_millis(50));
                self.interrupts.check()?;
                let (reason, log) = (format!("ended by itself with {status}"), self.folder.end_of_log(node));
                return Err(DemoError::Daemon { node: node.clone(), reason, log });
            }
        }
        Ok(())
    }

    /// Writes a manifest as it is.
    pub(super) fn put(&self, name: &str, text: &str) -> Result<(), DemoError> {
        self.folder.put(name, text)
    }

    /// Changes a pod's labels.
    pub(super) fn relabel(&mut self, name: &'static str, labels: Labels) -> Result<(), DemoError> {
        if let Some(pod) = self.pods.get_mut(name) {
            pod.labels = labels;
        }
        self.write_pod(name)
    }

    /// Probes every pair of a table in every family both ends have, and fills in the results.
    pub(super) fn probe(
        &self,
        scene: &Scene,
        table: &ReachTable,
        timeout: Duration,
    ) -> Result<ReachTable, DemoError> {
        let asked = self.questions(scene, table)?;
        let probes: Vec<Probe> = asked.iter().map(|(_, probe)| *probe).collect();
        let outcomes = self.lab.probe_all(&probes, timeout)?;
        let mut seen: BTreeMap<Spot, Vec<bool>> = BTreeMap::new();
        for ((spot, _), outcome) in asked.iter().zip(outcomes) {
            seen.entry(*spot).or_default().push(outcome.is_open());
        }
        Ok(table.filled(|spot| Mark::of(seen.get(&spot).map_or(&[], Vec::as_slice))))
    }

    /// The ports below the columns of a table.
    pub(super) fn ports(&self, scene: &Scene, table: &ReachTable) -> Result<Vec<u16>, DemoError> {
        table.columns.iter().map(|column| Ok(self.party(scene, column)?.port)).collect()
    }

    /// Probes some marks with new flows every few milliseconds, until all are as `table` says and stay so; returns how
    /// long after `since` the last of them was. `None` if that takes longer than `at_most`.
    pub(super) fn time_until(
        &mut self,
        scene: &Scene,
        table: &ReachTable,
        spots: &[Spot],
        since: Instant,
        at_most: Duration,
    ) -> Result<Option<Duration>, DemoError> {
        let mut asked = self.questions(scene, table)?;
        asked.retain(|(spot, _)| spots.contains(spot));
        let probes: Vec<Probe> = asked.iter().map(|(_, probe)| *probe).collect();
        let wanted: Vec<bool> = asked.iter().map(|(spot, _)| table.mark(*spot) == Some(Mark::Open)).collect();
        // Since when each has been right without interruption.
        let mut right: Vec<Option<Instant>> = vec![None; probes.len()];
        loop {
            self.check()?;
            let sent = Instant::now();
            let outcomes = self.lab.probe_all(&probes, GLANCE)?;
            for ((outcome, wanted), right) in outcomes.into_iter().zip(&wanted).zip(&mut right) {
                // A flow that passes is known when it is answered; one that does not was dropped when sent.
                let known = if outcome == Outcome::Open { Instant::now() } else { sent };
                *right = (outcome.is_open() == *wanted).then(|| right.unwrap_or(known));
            }
            let last = right.iter().copied().collect::<Option<Vec<_>>>().map(|all| all.into_iter().max());
            match last {
                Some(last) if last.is_none_or(|last| last.elapsed() >= STEADY) => {
                    return Ok(Some(last.map_or(Duration::ZERO, |last| last.duration_since(since))));
                }
                _ if since.elapsed() > at_most => return Ok(None),
                _ => {}
            }
        }
    }

    /// The real chains of one pod, and the members of the sets that they refer to.
    pub(super) fn chains(&self, name: &str) -> Result<(PodChains, Vec<String>), DemoError> {
        let pod = self.pods.get(name).ok_or_else(|| DemoError::Story(format!("there is no pod {name}")))?;
        let pod = self.lab.pod(pod.id)?;
        let node = self.lab.node(pod.node())?;
        let listing = node.succeed(&self.variant.program(Family::V4, ""), &["-w", "-S"])?;
        let Some(address) = pod.address(Family::V4) else { return Ok((PodChains::default(), Vec::new())) };
        let chains = chains::of_pod(&listing, address);
        let mut sets = Vec::new();
        for set in &chains.sets {
            let saved = node.succeed("ipset", &["save", "-sorted", set])?;
            let members: Vec<&str> = saved
                .lines()
                .filter_map(|line| line.strip_prefix(&format!("add {set} ")))
                .filter_map(|member| member.split_whitespace().next())
                .collect();
            sets.push(format!("{set}: {}", members.join(" ")));
        }
        Ok((chains, sets))
    }

    fn write_pod(&self, name: &str) -> Result<(), DemoError> {
        let Some(on_stage) = self.pods.get(name) else {
            return Err(DemoError::Story(format!("there is no pod {name}")));
        };
        let pod = self.lab.pod(on_stage.id)?;
        let node = self.lab.node(pod.node())?;
        let manifest = pod_manifest(name, on_stage, node, pod.addresses());
        self.folder.put(&pod_file(name), &manifest)
    }

    /// Every mark of a table with the probes that decide it.
    fn questions(&self, scene: &Scene, table: &ReachTable) -> Result<Vec<(Spot, Probe)>, DemoError> {
        let receivers: Vec<Party> =
            table.columns.iter().map(|name| self.party(scene, name)).collect::<Result<_, _>>()?;
        let senders: Vec<Party> =
            table.rows.iter().map(|(name, _)| self.party(scene, name)).collect::<Result<_, _>>()?;
        let mut questions = Vec::new();
        for spot in table.spots() {
            let (Some(sender), Some(receiver)) = (senders.get(spot.row), receivers.get(spot.column)) else {
                continue;
            };
            let transport = match spot.place {
                0 => Transport::Tcp(receiver.port),
                1 => Transport::Tcp(OTHER_PORT),
                _ => Transport::Udp(receiver.port),
            };
            for to in &receiver.addresses {
                let own = sender.addresses.iter().find(|from| from.is_ipv4() == to.is_ipv4());
                let Some(from) = own else { continue };
                let source_address = sender.sends_from.then_some(*from);
                questions.push((spot, Probe { source_address, ..Probe::new(sender.end, *to, transport) }));
            }
        }
        Ok(questions)
    }

    /// The party with a name in a table: a pod of the scene by its whole name or its last part, or an outsider.
    fn party(&self, scene: &Scene, name: &str) -> Result<Party, DemoError> {
        if let Some(outsider) = scene.outsiders.iter().find(|outsider| outsider.name == name) {
            let addresses = vec![outsider.address.into()];
            return Ok(Party { end: End::External, addresses, port: outsider.port, sends_from: true });
        }
        let actor = scene.cast.iter().find(|actor| {
            actor.name == name || actor.name.split_once('/').is_some_and(|(_, last)| last == name)
        });
        let pod = actor.and_then(|actor| self.pods.get(actor.name));
        let pod =
            pod.ok_or_else(|| DemoError::Story(format!("nobody in {:?} is called {name}", scene.title)))?;
        let addresses = self.lab.pod(pod.id)?.addresses().to_vec();
        Ok(Party { end: End::Pod(pod.id), addresses, port: pod.port, sends_from: false })
    }
}

/// The first line of a daemon's answer to `/readyz`; empty while there is none.
fn readiness(node: &Node) -> Result<String, DemoError> {
    let second = Duration::from_secs(1);
    let Ok(mut connection) = node.connect(DAEMON, second)? else { return Ok(String::new()) };
    let mut ask = || {
        connection.set_read_timeout(Some(second))?;
        connection.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    // A daemon that is just starting or ending may close the connection.
    Ok(ask().unwrap_or_default().lines().next().unwrap_or_default().to_owned())
}

/// The file of a pod's manifest.
pub(super) fn pod_file(name: &str) -> String {
    format!("pod-{}.yaml", name.replace('/', "-"))
}

/// The file of a namespace's manifest.
pub(super) fn namespace_file(name: &str) -> String {
    format!("namespace-{name}.yaml")
}

fn labels_of(labels: Labels, indent: &str) -> String {
    if labels.is_empty() {
        return " {}\n".to_owned();
    }
    labels.iter().fold("\n".to_owned(), |text, (key, value)| text + &format!("{indent}{key}: {value}\n"))
}

fn namespace_manifest(name: &str, labels: Labels) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:{}",
        labels_of(labels, "    ")
    )
}

fn pod_manifest(name: &str, pod: &PodOnStage, node: &Node, addresses: &[IpAddr]) -> String {
    let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
    let list = |addresses: &[IpAddr]| {
        addresses.iter().fold(String::new(), |mut text, address| {
            // Writing to a String cannot fail.
            let _infallible = write!(text, "\n    - ip: {address:?}");
            text
        })
    };
    let ports: String = [(pod.port, "TCP"), (OTHER_PORT, "TCP"), (pod.port, "UDP")]
        .map(|(port, protocol)| format!("\n        - containerPort: {port}\n          protocol: {protocol}"))
        .concat();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {short}\n  namespace: {namespace}\n  labels:{}\
         spec:\n  nodeName: {}\n  containers:\n    - name: listener\n      image: listener\n      ports:{ports}\n\
         status:\n  phase: Running\n  podIPs:{}\n  hostIPs:{}\n",
        labels_of(pod.labels, "    "),
        node.name(),
        list(addresses),
        list(node.addresses()),
    )
}
