//! The test lab.
//!
//! [`random`] and [`sized`] create clusters as values. A [`Lab`] is a cluster on one machine: nodes, pods and an
//! external host as network namespaces, with real listeners and real probes. `towpath demo` and the kernel tests are
//! built on it.
//!
//! ```text
//!   pod  pod        pod  pod      each box a network namespace; nothing in the machine's own
//!     \  /            \  /
//!     cni0            cni0        or, point to point, a link and a host route for each pod
//!    node 0          node 1       iptables, ipset and `towpath run` work in these
//!       \    (vxlan)   /
//!        ---- wire ---- external  any address that a test asks for
//! ```
//!
//! It needs root, and nothing of it outlives the process: namespaces have no names, so the kernel removes them with
//! their last descriptor.
//!
//! A [`Lab`] is built from [`LabOptions`]; [`Lab::add_pods`] puts pods on its nodes; [`Lab::probe_all`] sends any
//! number of probes at once; [`Lab::open_stream`], [`Lab::flood`] and [`Lab::watch`] observe what takes time.
//! [`frame`], [`RawSocket`] and [`Capture`] are for hostile pods, which follow no protocol, and for watching them.

mod ask;
mod error;
mod flannel;
mod flood;
pub mod frame;
mod host;
pub mod hostile;
mod listen;
mod netns;
mod node;
mod pod;
mod probe;
pub mod random;
mod raw;
mod sctp;
pub mod sized;
mod socket;
mod stream;
mod topology;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use nix::unistd::geteuid;

use crate::model::{Family, Protocol};

pub use ask::End;
pub use error::LabError;
pub use flannel::{FlannelRules, Variant};
pub use flood::{Arrival, Flood, FloodFlow, FloodReport};
pub use host::Host;
pub use netns::{Netns, Pending};
pub use node::{Node, Process};
pub use pod::{Pod, PodId, PodSpec};
pub use probe::{DEFAULT_TIMEOUT, Outcome, Probe, RefusalKind, Reply, Transport};
pub use raw::{Capture, RawSocket, Tap, mac_of};
pub use stream::{Pulse, Stream};
pub use topology::{Families, MAX_NODES, Topology};
pub use watch::{Watch, WatchReport};

use host::Counters;
use topology::{Layout, PodLink};

/// The options of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabOptions {
    /// How pods and nodes are connected.
    pub topology: Topology,
    /// The families that they use.
    pub families: Families,
    /// How many nodes there are: 1 to [`MAX_NODES`], for a VXLAN at least 2.
    pub nodes: usize,
    /// The rules of flannel and kube-proxy on every node; `None` for nodes without any rule.
    pub flannel_rules: Option<FlannelRules>,
}

/// A cluster of network namespaces.
#[derive(Debug)]
pub struct Lab {
    pods: BTreeMap<PodId, Pod>,
    nodes: Vec<Node>,
    external: Host,
    // Keeps the wire's namespace alive.
    _wire: Netns,
    layout: Layout,
    counters: Counters,
    next_pod: u64,
}

impl Lab {
    /// Builds the nodes, the wire between them and the external host; there are no pods yet.
    ///
    /// # Errors
    /// [`LabError::NotRoot`], [`LabError::MissingProgram`] and [`LabError::MissingModule`] if the machine lacks
    /// something, [`LabError::Options`] if the options are invalid.
    pub fn new(options: LabOptions) -> Result<Self, LabError> {
        let LabOptions { topology, families, nodes, flannel_rules } = options;
        let layout = Layout { topology, families, nodes };
        layout.check()?;
        if !geteuid().is_root() {
            return Err(LabError::NotRoot(std::io::ErrorKind::PermissionDenied.into()));
        }
        let counters = Counters::default();
        let host = |name: &str, address: &dyn Fn(Family) -> IpAddr| {
            let addresses: Vec<IpAddr> = families.list().iter().map(|&family| address(family)).collect();
            let fresh = counters.of(&addresses);
            Host::new(name, families, addresses, fresh)
        };
        let wire = Netns::new("the wire")?;
        let external = host("external", &Layout::external_address)?;
        let nodes = (0..nodes)
            .map(|index| {
                let host =
                    host(&format!("node-{}", index + 1), &|family| Layout::node_address(family, index))?;
                Ok(Node { host, index })
            })
            .collect::<Result<Vec<_>, LabError>>()?;
        let paths: Vec<String> = nodes.iter().map(|node| node.netns().path()).collect();
        wire.ip(&Layout::wire(&paths, &external.netns().path()))?;
        // Bridged packets are filtered on the nodes; the wire is just a cable.
        wire.sysctl(&existing(
            &wire,
            &["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"],
            "0",
        )?)?;
        external.netns().ip(&layout.external())?;
        for node in &nodes {
            set_up_node(node, layout)?;
            if let Some(rules) = flannel_rules {
                rules.install(node.netns(), layout, node.index)?;
            }
        }
        let lab = Self { pods: BTreeMap::new(), nodes, external, _wire: wire, layout, counters, next_pod: 0 };
        let nodes = lab.nodes.iter().flat_map(|node| node.addresses());
        lab.wait_for(&nodes.map(|&to| Probe::new(End::External, to, Transport::Icmp)).collect::<Vec<_>>())?;
        Ok(lab)
    }

    /// The families of the lab.
    #[must_use]
    pub const fn families(&self) -> Families {
        self.layout.families
    }

    /// The block of the pod addresses of all nodes.
    #[must_use]
    pub fn cluster_cidr(&self, family: Family) -> ipnet::IpNet {
        Layout::cluster_cidr(family)
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node, counted from 0.
    ///
    /// # Errors
    /// [`LabError::NoSuchNode`].
    pub fn node(&self, index: usize) -> Result<&Node, LabError> {
        self.nodes.get(index).ok_or(LabError::NoSuchNode { index, nodes: self.nodes.len() })
    }

    /// The host outside of the cluster.
    #[must_use]
    pub const fn external(&self) -> &Host {
        &self.external
    }

    /// All pods, in the order in which they were added.
    pub fn pods(&self) -> impl Iterator<Item = (PodId, &Pod)> {
        self.pods.iter().map(|(id, pod)| (*id, pod))
    }

    /// One pod.
    ///
    /// # Errors
    /// [`LabError::NoSuchPod`].
    pub fn pod(&self, id: PodId) -> Result<&Pod, LabError> {
        self.pods.get(&id).ok_or(LabError::NoSuchPod(id))
    }

    /// Adds one pod; it answers when this returns.
    ///
    /// # Errors
    /// As [`Self::add_pods`].
    pub fn add_pod(&mut self, spec: PodSpec) -> Result<PodId, LabError> {
        Ok(self.add_pods(&[spec])?.into_iter().next().unwrap_or(PodId(self.next_pod)))
    }

    /// Adds pods, all at once; they answer when this returns.
    ///
    /// # Errors
    /// [`LabError::NoSuchNode`], [`LabError::Address`] if an address is taken or not allowed, or a system error.
    pub fn add_pods(&mut self, specs: &[PodSpec]) -> Result<Vec<PodId>, LabError> {
        let mut taken: BTreeSet<IpAddr> =
            self.pods.values().flat_map(|pod| pod.addresses().to_vec()).collect();
        let mut made = Vec::with_capacity(specs.len());
        for spec in specs {
            let addresses = self.addresses_for(spec, &taken)?;
            taken.extend(&addresses);
            let fresh = self.counters.of(&addresses);
            let host = Host::new(&spec.name, self.layout.families, addresses.clone(), fresh)?;
            let id = PodId(self.next_pod);
            self.next_pod += 1;
            let link = PodLink { host_end: format!("veth{:08x}", id.0), node: spec.node, addresses };
            made.push((id, Pod { host, link }));
        }
        for node in &self.nodes {
            let here = made.iter().filter(|(_, pod)| pod.node() == node.index);
            let links: Vec<_> = here.map(|(_, pod)| (pod.link.clone(), pod.netns().path())).collect();
            if !links.is_empty() {
                node.netns().ip(&self.layout.pods_on_node(&links))?;
            }
        }
        let layout = self.layout;
        std::thread::scope(|scope| {
            let set_up = made.iter_mut().zip(specs).map(|((_, pod), spec)| {
                scope.spawn(move || {
                    pod.netns().ip(&layout.inside_pod(&pod.link))?;
                    pod.host.listen(&spec.listen)
                })
            });
            let running: Vec<_> = set_up.collect();
            running.into_iter().try_for_each(|thread| {
                thread.join().map_err(|_| LabError::ThreadEnded("a new pod".to_owned()))?
            })
        })?;
        let pods = made.iter().flat_map(|(_, pod)| pod.addresses().iter().map(|to| (pod.node(), *to)));
        // Pinged by their nodes: those reach a pod whatever the policy.
        let pings: Vec<Probe> =
            pods.map(|(node, to)| Probe::new(End::Node(node), to, Transport::Icmp)).collect();
        self.wait_for(&pings)?;
        let ids = made.iter().map(|(id, _)| *id).collect();
        self.pods.extend(made);
        Ok(ids)
    }

    /// Removes a pod with its link; its address is free when this returns.
    ///
    /// # Errors
    /// [`LabError::NoSuchPod`], or a system error.
    pub fn remove_pod(&mut self, id: PodId) -> Result<(), LabError> {
        let pod = self.pods.remove(&id).ok_or(LabError::NoSuchPod(id))?;
        self.node(pod.node())?.netns().ip(&[format!("link del {}", pod.interface())])
    }

    /// Gives the external host more addresses, of any network; every pod can send there.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn add_external_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), LabError> {
        let lines: Vec<String> = addresses.iter().map(|address| Layout::external_extra(*address)).collect();
        self.external.netns().ip(&lines)?;
        for address in addresses {
            self.external.add_address(*address);
        }
        Ok(())
    }

    /// Makes a host listen on more ports. This closes existing connections to it.
    ///
    /// # Errors
    /// If there is no such host, or a port cannot be opened.
    pub fn listen(&mut self, end: impl Into<End>, ports: &[(Protocol, u16)]) -> Result<(), LabError> {
        self.host_mut(end.into())?.listen(ports)
    }

    /// Sets whether bridged packets of a node pass iptables and ip6tables, as towpath itself does when it starts.
    ///
    /// # Errors
    /// [`LabError::MissingModule`] if the kernel has no `br_netfilter`.
    pub fn set_bridge_nf_call(&self, node: usize, on: bool) -> Result<(), LabError> {
        let value = if on { "1" } else { "0" };
        let netns = self.node(node)?.netns();
        if netns.run(|| Path::new("/proc/sys/net/bridge").exists())? {
            netns.sysctl(&[
                ("bridge/bridge-nf-call-iptables", value),
                ("bridge/bridge-nf-call-ip6tables", value),
            ])
        } else {
            Err(LabError::MissingModule { module: "br_netfilter" })
        }
    }

    /// The addresses for a new pod: those that it requests, or the first free ones.
    fn addresses_for(&self, spec: &PodSpec, taken: &BTreeSet<IpAddr>) -> Result<Vec<IpAddr>, LabError> {
        let node = self.node(spec.node)?;
        let refuse = |address, reason| LabError::Address { address, node: node.name().to_owned(), reason };
        for &address in &spec.addresses {
            let family = Family::of(address);
            let reserved = [0, 1].map(|host| Layout::pod_address(family, spec.node, host));
            if !self.families().has(family) {
                return Err(refuse(address, "the lab does not speak its family"));
            }
            if !node.pod_cidr(family).contains(&address) {
                return Err(refuse(address, "it is not in that node's block"));
            }
            if taken.contains(&address) || reserved.contains(&address) {
                return Err(refuse(address, "it is taken"));
            }
        }
        if !spec.addresses.is_empty() {
            return Ok(spec.addresses.clone());
        }
        let free = |&family: &Family| {
            let mut candidates = (2..=254).map(|host| Layout::pod_address(family, spec.node, host));
            candidates
                .find(|address| !taken.contains(address))
                .ok_or_else(|| refuse(Layout::pod_address(family, spec.node, 254), "all addresses are taken"))
        };
        self.families().list().iter().map(free).collect()
    }
}

/// Sets up a node's links, addresses, routes and forwarding.
fn set_up_node(node: &Node, layout: Layout) -> Result<(), LabError> {
    let netns = node.netns();
    netns.sysctl(&[("ipv4/ip_forward", "1")])?;
    if layout.families.has(Family::V6) {
        netns.sysctl(&[("ipv6/conf/all/forwarding", "1"), ("ipv6/conf/default/forwarding", "1")])?;
    }
    netns.ip(&layout.node(node.index))?;
    let forwarding = layout.forwarding(node.index);
    if forwarding.is_empty() {
        return Ok(());
    }
    netns.succeed("bridge", &["-batch", "-"], &forwarding.join("\n")).map(drop)
}

/// Those of the sysctls that this kernel has, each with the value.
fn existing<'a>(
    netns: &Netns,
    paths: &[&'a str],
    value: &'a str,
) -> Result<Vec<(&'a str, &'a str)>, LabError> {
    let there = paths.iter().map(|path| {
        let full = format!("/proc/sys/net/{path}");
        netns.run(move || Path::new(&full).exists()).map(|exists| exists.then_some((*path, value)))
    });
    there.filter_map(Result::transpose).collect()
}
