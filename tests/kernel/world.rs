//! A running random cluster: its pods in a lab, its objects in a folder, and one `towpath run` on each node.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use towpath::{
    lab::{
        End, Families, FlannelRules, Lab, LabOptions, PodId, PodSpec, Probe, Process, Topology, Transport,
        Variant,
        random::{NODES, Stack, externals},
    },
    model::{
        self, Change, Cluster, Endpoint, Family, Flow, Namespace, NetworkPolicy, ObjectKey, Pod, Protocol,
    },
    policy::evaluate,
};

use crate::{daemon_command::daemon_command, http::LISTEN, model_objects, ready::is_ready};

/// How long a daemon may take until it is ready: far more than it needs, even on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How long packets may contradict the objects before that is a failure: machines that run tests are busy.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

/// How long a probe waits for its answer.
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);

/// The ports on which every pod listens.
const LISTENED: [(Protocol, u16); 6] = [
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 81),
    (Protocol::Tcp, 8080),
    (Protocol::Udp, 53),
    (Protocol::Udp, 80),
    (Protocol::Sctp, 80),
];

/// The parameters of a world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// How pods and nodes are connected.
    pub(crate) topology: Topology,
    /// Which iptables.
    pub(crate) variant: Variant,
    /// Which families.
    pub(crate) stack: Stack,
}

/// A running cluster.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    lab: Lab,
    pods: BTreeMap<ObjectKey, (PodId, Pod)>,
    folder: TempDir,
    daemons: Vec<(Process, PathBuf)>,
    stack: Stack,
    topology: Topology,
    /// How many verdicts were confirmed.
    pub(crate) verdicts: usize,
}

impl World {
    /// Builds the lab and starts a daemon on each node; there are no objects yet.
    pub(crate) fn new(setting: Setting) -> Self {
        let families = match setting.stack {
            Stack::V4 => Families::V4,
            Stack::V6 => Families::V6,
            Stack::Dual => Families::Dual,
        };
        let mut lab = Lab::new(LabOptions {
            topology: setting.topology,
            families,
            nodes: NODES.len(),
            flannel_rules: Some(FlannelRules::new(setting.variant)),
        })
        .expect("a lab");
        lab.add_external_addresses(&externals(setting.stack)).expect("more external addresses");
        lab.listen(End::External, &LISTENED).expect("external listeners");
        let folder = TempDir::new().expect("a folder");
        fs::create_dir(folder.path().join("objects")).expect("a folder for the objects");
        let mut world = Self {
            cluster: Cluster::new(),
            lab,
            pods: BTreeMap::new(),
            folder,
            daemons: Vec::new(),
            stack: setting.stack,
            topology: setting.topology,
            verdicts: 0,
        };
        world.start_daemons(setting);
        world
    }

    fn start_daemons(&mut self, setting: Setting) {
        for (index, node) in NODES.iter().enumerate() {
            let log = self.folder.path().join(format!("{node}.log"));
            let folder = self.folder.path();
            let (objects, run) = (folder.join("objects"), folder.join("run"));
            let mut command = daemon_command(node, setting.variant, &objects, &run);
            command.stderr(fs::File::create(&log).expect("a log"));
            let process = self.lab.node(index).expect("a node").spawn(command).expect("a daemon");
            self.daemons.push((process, log));
        }
        for index in 0..NODES.len() {
            let until = Instant::now() + READY_WITHIN;
            while !self.is_ready(index) {
                assert!(Instant::now() < until, "node {index} is not ready\n{}", self.logs());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn is_ready(&self, node: usize) -> bool {
        is_ready(self.lab.node(node).expect("a node"), LISTEN)
    }

    /// What the daemons logged.
    pub(crate) fn logs(&self) -> String {
        let read = |log: &Path| fs::read_to_string(log).unwrap_or_default();
        let logs = self.daemons.iter().map(|(_, log)| format!("--- {}\n{}", log.display(), read(log)));
        logs.collect::<Vec<_>>().join("\n")
    }

    /// A namespace that an object in a file names exists, with the label that every namespace has.
    fn declare_namespace_of(&mut self, change: &Change) {
        let (Change::SetPod(Pod { key, .. }) | Change::SetPolicy(NetworkPolicy { key, .. })) = change else {
            return;
        };
        if self.cluster.namespace(&key.namespace).is_none() {
            let labels = [("kubernetes.io/metadata.name", &*key.namespace)].into_iter().collect();
            self.cluster.apply(Change::SetNamespace(Namespace { name: key.namespace.clone(), labels }));
        }
    }

    /// Applies the changes: to the pods in the lab first, then to the objects in the folder.
    pub(crate) fn change(&mut self, changes: Vec<Change>) {
        for change in &changes {
            self.cluster.apply(change.clone());
            self.declare_namespace_of(change);
        }
        // A removed pod makes room for a new one with the same address.
        let wanted: BTreeMap<ObjectKey, Pod> = self
            .cluster
            .pods()
            .filter(|pod| !pod.host_network && !pod.is_finished())
            .map(|pod| (pod.key.clone(), (**pod).clone()))
            .collect();
        let stays = |key: &ObjectKey, existing: &Pod| {
            wanted
                .get(key)
                .is_some_and(|pod| (&pod.addresses, &pod.node) == (&existing.addresses, &existing.node))
        };
        let gone: Vec<ObjectKey> =
            self.pods.iter().filter(|(key, (_, pod))| !stays(key, pod)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            let (id, _) = self.pods.remove(&key).expect("a pod of the lab");
            self.lab.remove_pod(id).expect("its removal");
        }
        let new: Vec<Pod> = wanted.into_values().filter(|pod| !self.pods.contains_key(&pod.key)).collect();
        let specs: Vec<PodSpec> = new
            .iter()
            .map(|pod| {
                let node = NODES.iter().position(|node| pod.node.as_deref() == Some(node)).expect("a node");
                let spec = PodSpec::new(pod.key.to_string(), node).listening(&LISTENED);
                pod.addresses.iter().fold(spec, |spec, address| spec.at(*address))
            })
            .collect();
        let ids = self.lab.add_pods(&specs).expect("pods");
        self.pods.extend(new.into_iter().zip(ids).map(|(pod, id)| (pod.key.clone(), (id, pod))));
        for change in changes {
            self.write(&change);
        }
    }

    fn write(&self, change: &Change) {
        let (name, manifest) = match change {
            Change::SetNamespace(namespace) => {
                (format!("namespace-{}", namespace.name), Some(model_objects::namespace(namespace)))
            }
            Change::RemoveNamespace(name) => (format!("namespace-{name}"), None),
            Change::SetPod(pod) => {
                (format!("pod-{}-{}", pod.key.namespace, pod.key.name), Some(model_objects::pod(pod)))
            }
            Change::RemovePod(key) => (format!("pod-{}-{}", key.namespace, key.name), None),
            Change::SetPolicy(policy) => (
                format!("policy-{}-{}", policy.key.namespace, policy.key.name),
                Some(model_objects::policy(policy)),
            ),
            Change::RemovePolicy(key) => (format!("policy-{}-{}", key.namespace, key.name), None),
            Change::SetNode(_) | Change::RemoveNode(_) | Change::DropRules(..) => {
                unreachable!("the generator makes no such change")
            }
        };
        let objects = self.folder.path().join("objects");
        let path = objects.join(format!("{name}.json"));
        match manifest {
            Some(manifest) => {
                let next = objects.join(format!(".{name}"));
                fs::write(&next, serde_json::to_string_pretty(&manifest).expect("JSON")).expect("a manifest");
                fs::rename(next, path).expect("a manifest in its place");
            }
            None => match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
                _ => {}
            },
        }
    }

    /// Compares packets of every pair and transport with the evaluator, until they agree.
    pub(crate) fn assert_agrees(&mut self, context: &str) {
        let expected = self.expected_outcomes();
        let probes: Vec<Probe> = expected.iter().map(|(probe, _)| *probe).collect();
        let until = Instant::now() + SETTLED_WITHIN;
        let mut open: Vec<usize> = (0..probes.len()).collect();
        loop {
            let again: Vec<Probe> = open.iter().map(|index| probes[*index]).collect();
            let outcomes = self.lab.probe_all(&again, PROBE_TIMEOUT).expect("probes");
            open = open
                .into_iter()
                .zip(outcomes)
                .filter(|(index, outcome)| outcome.is_open() != expected[*index].1)
                .map(|(index, _)| index)
                .collect();
            if open.is_empty() {
                self.verdicts += expected.len();
                return;
            }
            if Instant::now() > until {
                let wrong: Vec<String> = open
                    .iter()
                    .take(10)
                    .map(|index| {
                        let (probe, allowed) = &expected[*index];
                        format!("{probe:?} must be {}", if *allowed { "open" } else { "closed" })
                    })
                    .collect();
                panic!(
                    "{context}: {} of {} verdicts are wrong:\n{}\n{:#?}\n{}",
                    open.len(),
                    probes.len(),
                    wrong.join("\n"),
                    self.cluster.policies().collect::<Vec<_>>(),
                    self.logs()
                );
            }
        }
    }

    /// The probes, each with the evaluator's verdict.
    fn expected_outcomes(&self) -> Vec<(Probe, bool)> {
        let pods = self
            .pods
            .values()
            .flat_map(|(id, pod)| pod.addresses.iter().map(move |address| (End::Pod(*id), *address)));
        let externals = externals(self.stack).into_iter().map(|address| (End::External, address));
        let nodes = (0..NODES.len()).flat_map(|node| {
            let addresses = self.lab.node(node).expect("a node").addresses().to_vec();
            addresses.into_iter().map(move |address| (End::Node(node), address))
        });
        let ends: Vec<(End, IpAddr)> = pods.chain(externals).chain(nodes).collect();
        let mut expected = Vec::new();
        for (from, source) in &ends {
            for (to, destination) in &ends {
                let apart = from != to && Family::of(*source) == Family::of(*destination);
                let outside = |end: &End| !matches!(end, End::Pod(_));
                if !apart || outside(from) && outside(to) {
                    continue;
                }
                let ports = LISTENED.map(Transport::from);
                // A node has no listener that a pod could reach, but answers pings.
                let listened = if matches!(to, End::Node(_)) { &[][..] } else { &ports[..] };
                for transport in listened.iter().copied().chain([Transport::Icmp]) {
                    let flow = Flow {
                        from: Endpoint::Address(self.seen_source(from, *source, *destination)),
                        to: Endpoint::Address(*destination),
                        transport: transport_of(transport, *source),
                        family: None,
                    };
                    let source_address = matches!(from, End::External).then_some(*source);
                    let probe = Probe { source_address, ..Probe::new(*from, *destination, transport) };
                    expected.push((probe, evaluate(&self.cluster, &flow).allowed()));
                }
            }
        }
        expected
    }

    /// The source that a receiver sees: over a VXLAN, a node sends to another node's pods from its tunnel's end.
    fn seen_source(&self, from: &End, source: IpAddr, destination: IpAddr) -> IpAddr {
        let End::Node(node) = from else { return source };
        let node = self.lab.node(*node).expect("a node");
        let block = node.pod_cidr(Family::of(destination));
        let cluster = self.lab.cluster_cidr(Family::of(destination));
        let is_elsewhere = cluster.contains(&destination) && !block.contains(&destination);
        if self.topology == Topology::Vxlan && is_elsewhere { block.network() } else { source }
    }

    /// Stops the daemons as a node's shutdown does, and checks their exit status.
    pub(crate) fn end(mut self) {
        for (process, log) in &mut self.daemons {
            let status = process.stop().expect("its end");
            assert!(status.success(), "{status}\n{}", fs::read_to_string(log).unwrap_or_default());
        }
    }
}

fn transport_of(transport: Transport, source: IpAddr) -> model::Transport {
    match transport {
        Transport::Tcp(port) => model::Transport::Port(Protocol::Tcp, port),
        Transport::Udp(port) => model::Transport::Port(Protocol::Udp, port),
        Transport::Sctp(port) => model::Transport::Port(Protocol::Sctp, port),
        Transport::Icmp => model::Transport::Other(if source.is_ipv4() { 1 } else { 58 }),
    }
}
