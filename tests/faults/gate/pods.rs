//! A node with a network of real CNI plugins, and the pods that are attached to it.

use std::{
    net::IpAddr,
    path::Path,
    thread::{self, JoinHandle},
    time::Duration,
};

use towpath::{
    lab::{Netns, Topology, Variant},
    model::Family,
};

use crate::{
    cni::{Container, Network},
    testbed::{Bed, Daemon},
    yaml_objects,
};

/// Whether the object of a pod is there before its network plugin runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodObject {
    Before,
    After,
}

/// The test bed with a CNI network on its first node.
pub(crate) struct Stage<'a> {
    pub(crate) bed: &'a Bed,
    pub(crate) network: Network,
}

impl Stage<'static> {
    /// Pods in `shop` are isolated in both directions, and those with `app: new` accept ingress from `app: friend`.
    pub(crate) fn new(variant: Variant, topology: Topology) -> Self {
        let pods = [("shop/server", 0), ("far/peer", 1), ("far/friend", 1)];
        let bed: &'static Bed = Box::leak(Box::new(Bed::in_topology(variant, topology, &pods)));
        let objects = [
            yaml_objects::namespace("shop", ""),
            yaml_objects::namespace("free", ""),
            yaml_objects::namespace("far", "team: far"),
            yaml_objects::policy("shop/default-deny", "podSelector: {}, policyTypes: [Ingress, Egress]"),
            yaml_objects::policy(
                "shop/friends",
                "podSelector: {matchLabels: {app: new}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: far}}, \
                 podSelector: {matchLabels: {app: friend}}}], ports: [{port: 5000, protocol: UDP}]}]",
            ),
            // The server may be asked, and ask, so only the new pod's own policies keep it from that.
            yaml_objects::policy(
                "shop/server",
                "podSelector: {matchLabels: {app: server}}, ingress: [{}], egress: [{}]",
            ),
            bed.manifest("shop/server", "app: server"),
            bed.manifest("far/peer", "app: peer"),
            bed.manifest("far/friend", "app: friend"),
        ];
        bed.write("objects.yaml", &objects);
        let blocks = Family::BOTH.map(|family| bed.node().pod_cidr(family).to_string());
        let (data, socket) = (bed.folder().join("ipam"), bed.folder().join("run/gate.sock"));
        let network = network(topology, &blocks, &data, &socket);
        Self { bed, network }
    }
}

fn network(topology: Topology, blocks: &[String], data: &Path, socket: &Path) -> Network {
    if topology.has_bridge() {
        Network::bridge("cni0", blocks, data, Some(socket))
    } else {
        Network::ptp(blocks, data, Some(socket))
    }
}

impl Stage<'_> {
    /// Starts the daemon, as with the gate installed, and waits until it is ready.
    pub(crate) fn run(&self) -> Daemon<'_> {
        let blocks = Family::BOTH.map(|family| self.bed.node().pod_cidr(family).to_string()).join(",");
        self.bed.run(&["--unknown-local-pods", "closed", "--pod-cidr", &blocks])
    }

    pub(crate) fn netns(&self, pod: &str) -> &Netns {
        self.bed.lab.pod(self.bed.pod(pod)).unwrap().netns()
    }

    /// Writes the object of a pod that does not report an address yet.
    pub(crate) fn write_pod(&self, pod: &NewPod) {
        self.bed.write(&pod.file(), &[pod.manifest()]);
    }

    pub(crate) fn write_pod_after(&self, pod: &NewPod, delay: Duration) -> JoinHandle<()> {
        let (objects, file, manifest) = (self.bed.objects(), pod.file(), pod.manifest());
        thread::spawn(move || {
            thread::sleep(delay);
            objects.write(&file, &[manifest]);
        })
    }

    pub(crate) fn remove_pod(&self, pod: &NewPod) {
        self.bed.objects().remove(&pod.file());
    }
}

/// A pod whose sandbox exists and that is not attached yet.
pub(crate) struct NewPod {
    pub(crate) container: Container,
    pub(crate) netns: Netns,
    pub(crate) addresses: [IpAddr; 2],
}

impl NewPod {
    /// `name` is `namespace/name`; `host` the last part of its addresses.
    pub(crate) fn new(stage: &Stage<'_>, name: &str, host: usize) -> Self {
        let netns = Netns::new(name).unwrap();
        netns.sysctl(&[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")]).unwrap();
        let (namespace, pod) = name.split_once('/').unwrap();
        let addresses = Family::BOTH.map(|family| {
            let block = stage.bed.node().pod_cidr(family);
            block.hosts().nth(host).unwrap()
        });
        let container = Container {
            id: format!("sandbox-{pod}-{host}"),
            namespace: namespace.to_owned(),
            name: pod.to_owned(),
            uid: format!("uid-{pod}-{host}"),
            netns: netns.path(),
        };
        Self { container, netns, addresses }
    }

    pub(crate) fn address(&self, family: Family) -> IpAddr {
        self.addresses.into_iter().find(|address| Family::of(*address) == family).unwrap()
    }

    fn file(&self) -> String {
        format!("{}.yaml", self.container.name)
    }

    fn manifest(&self) -> String {
        let Container { namespace, name, uid, .. } = &self.container;
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, uid: {uid}, labels: {{app: new}}}}\n\
             spec:\n  nodeName: n1\n  containers: [{{name: main, image: registry.example/main}}]\n\
             status: {{phase: Pending}}\n"
        )
    }
}
