//! A node with a network of real CNI plugins, and the pods that are attached to it.

use std::{
    path::Path,
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Value, json};
use towpath::{
    lab::{Netns, Topology, Variant},
    model::Family,
};

use crate::{
    cni::{self, Container, Network, NewPod},
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
    first: Value,
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
            bed.manifest("shop/server", "app: server"),
            bed.manifest("far/peer", "app: peer"),
            bed.manifest("far/friend", "app: friend"),
        ];
        bed.write("objects.yaml", &objects);
        // The server may be asked, and ask, so only the new pod's own policies keep it from that.
        let spec = "podSelector: {matchLabels: {app: server}}, ingress: [{}], egress: [{}]";
        bed.write("server.yaml", &[yaml_objects::policy("shop/server", spec)]);
        let blocks = Family::BOTH.map(|family| bed.node().pod_cidr(family).to_string());
        let data = bed.folder().join("ipam");
        let first = if topology.has_bridge() { cni::bridge(&blocks, &data) } else { ptp(&blocks, &data) };
        let stage = Self { bed, network: Network::new(first.clone(), None), first };
        let network = stage.network_with(json!({ "timeoutSeconds": 60 }));
        Self { network, ..stage }
    }
}

/// Links of the ptp plugin, with addresses of these blocks.
fn ptp(blocks: &[String], data: &Path) -> Value {
    let ranges: Vec<Value> = blocks.iter().map(|block| json!([{ "subnet": block }])).collect();
    let routes = json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]);
    json!({
        "type": "ptp", "ipMasq": false,
        "ipam": { "type": "host-local", "ranges": ranges, "routes": routes, "dataDir": data },
    })
}

impl Stage<'_> {
    /// The network with these fields of the gate's entry.
    pub(crate) fn network_with(&self, mut gate: Value) -> Network {
        gate["socket"] = self.bed.folder().join("run/gate.sock").to_string_lossy().into();
        Network::new(self.first.clone(), Some(gate))
    }

    /// Starts the daemon, as with the gate installed, and waits until it is ready.
    pub(crate) fn run(&self) -> Daemon<'_> {
        let daemon = self.start();
        daemon.wait_ready();
        daemon
    }

    /// The same without waiting.
    pub(crate) fn start(&self) -> Daemon<'_> {
        let blocks = Family::BOTH.map(|family| self.bed.node().pod_cidr(family).to_string()).join(",");
        self.bed.start(&["--unknown-local-pods", "closed", "--pod-cidr", &blocks])
    }

    pub(crate) fn netns(&self, pod: &str) -> &Netns {
        self.bed.lab.pod(self.bed.pod(pod)).unwrap().netns()
    }

    /// Writes the object of a pod that does not report an address yet.
    pub(crate) fn write_pod(&self, pod: &NewPod) {
        self.bed.write(&file(pod), &[manifest(pod)]);
    }

    pub(crate) fn write_pod_after(&self, pod: &NewPod, delay: Duration) -> JoinHandle<()> {
        let (objects, file, manifest) = (self.bed.objects(), file(pod), manifest(pod));
        thread::spawn(move || {
            thread::sleep(delay);
            objects.write(&file, &[manifest]);
        })
    }

    pub(crate) fn remove_pod(&self, pod: &NewPod) {
        self.bed.objects().remove(&file(pod));
    }
}

/// The file of a pod's object.
fn file(pod: &NewPod) -> String {
    format!("{}.yaml", pod.container.name)
}

/// The object of a pod that reports no address.
fn manifest(pod: &NewPod) -> String {
    let Container { namespace, name, uid, .. } = &pod.container;
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, uid: {uid}, labels: {{app: new}}}}\n\
         spec:\n  nodeName: n1\n  containers: [{{name: main, image: registry.example/main}}]\n\
         status: {{phase: Pending}}\n"
    )
}
