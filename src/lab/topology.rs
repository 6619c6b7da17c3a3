//! The plan of a lab: its addresses, and the `ip` lines that create it.
//!
//! Everything here is text and numbers; [`super::Lab`] runs it. Node 0 has the addresses of number 1, as a cluster's
//! first node would: `192.168.77.1` and `fd00:77::1` on the wire, `10.244.1.0/24` and `fd00:10:244:1::/64` for pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::Family;

use super::LabError;

/// The maximum number of nodes in the address plan.
pub const MAX_NODES: usize = 200;

/// How pods are connected to their node, and nodes to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topology {
    /// The CNI `bridge` plugin: pods on the node's `cni0`, hairpin on. Nodes route to each other (flannel's host-gw).
    Bridge,
    /// The CNI `ptp` plugin: each pod on its own link and host route. Nodes route to each other.
    PointToPoint,
    /// Flannel's default: pods on `cni0` as with [`Topology::Bridge`], nodes connected by VXLAN.
    Vxlan,
}

impl Topology {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bridge, Self::PointToPoint, Self::Vxlan];

    /// Whether the pods of one node share a bridge, so that policy between them needs `br_netfilter`.
    #[must_use]
    pub const fn has_bridge(self) -> bool {
        matches!(self, Self::Bridge | Self::Vxlan)
    }
}

/// The IP families of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Families {
    /// Only IPv4.
    V4,
    /// Only IPv6.
    V6,
    /// Both; IPv4 is the primary one.
    Dual,
}

impl Families {
    /// All three choices.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Dual];

    /// The families it consists of.
    #[must_use]
    pub const fn list(self) -> &'static [Family] {
        match self {
            Self::V4 => &[Family::V4],
            Self::V6 => &[Family::V6],
            Self::Dual => &Family::BOTH,
        }
    }

    /// Whether `family` is among them.
    #[must_use]
    pub fn has(self, family: Family) -> bool {
        self.list().contains(&family)
    }
}

/// The address plan, as a function of the number of nodes and the choices above.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) topology: Topology,
    pub(super) families: Families,
    pub(super) nodes: usize,
}

/// The two ends of a pod's link.
#[derive(Clone, Debug)]
pub(super) struct PodLink {
    /// The name of the node's end.
    pub(super) host_end: String,
    /// Its node, counted from 0.
    pub(super) node: usize,
    /// The pod's addresses; at least one.
    pub(super) addresses: Vec<IpAddr>,
}

impl Layout {
    /// Refuses options that do not fit the address plan.
    pub(super) fn check(&self) -> Result<(), LabError> {
        match (self.topology, self.nodes) {
            (_, 0) => Err(LabError::Options("at least one node is needed")),
            (Topology::Vxlan, 1) => Err(LabError::Options("a VXLAN joins at least two nodes")),
            (_, nodes) if nodes > MAX_NODES => Err(LabError::Options("the address plan ends at 200 nodes")),
            _ => Ok(()),
        }
    }

    /// The address of a node on the wire.
    pub(super) fn node_address(family: Family, node: usize) -> IpAddr {
        on_the_wire(family, number(node))
    }

    /// The address of the external host on the wire.
    pub(super) fn external_address(family: Family) -> IpAddr {
        on_the_wire(family, 254)
    }

    /// The block for the addresses of a node's pods.
    pub(super) fn pod_cidr(family: Family, node: usize) -> IpNet {
        let number = number(node);
        match family {
            Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24).into(),
            Family::V6 => {
                let base = Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0);
                Ipv6Net::new_assert(base, 64).into()
            }
        }
    }

    /// The block that contains the blocks of all nodes.
    pub(super) fn cluster_cidr(family: Family) -> IpNet {
        match family {
            Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16).into(),
            Family::V6 => Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0), 48).into(),
        }
    }

    /// The `host`th address of a node's block; 0 is its VTEP's, 1 its gateway's.
    pub(super) fn pod_address(family: Family, node: usize, host: u8) -> IpAddr {
        match Self::pod_cidr(family, node).network() {
            IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() + u32::from(host)).into(),
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() + u128::from(host)).into(),
        }
    }

    /// The address to which a node's pods send packets for other hosts.
    pub(super) fn gateway(family: Family, node: usize) -> IpAddr {
        Self::pod_address(family, node, 1)
    }

    /// The MTU of a pod: the wire's 1500 bytes less the tunnel's overhead.
    fn pod_mtu(&self) -> u16 {
        match self.topology {
            Topology::Vxlan if self.families.has(Family::V6) => 1430,
            Topology::Vxlan => 1450,
            Topology::Bridge | Topology::PointToPoint => 1500,
        }
    }

    /// The wire: one bridge, and a link to each node's and the external host's namespace.
    pub(super) fn wire(nodes: &[String], external: &str) -> Vec<String> {
        let mut lines = vec![
            "link set lo up".to_owned(),
            "link add wire type bridge mcast_snooping 0".to_owned(),
            "link set wire up".to_owned(),
        ];
        let ends =
            nodes.iter().enumerate().map(|(node, path)| (format!("node{}", number(node)), path.as_str()));
        for (name, path) in ends.chain([("external".to_owned(), external)]) {
            lines.push(format!("link add {name} type veth peer name eth0 netns {path}"));
            lines.push(format!("link set {name} master wire up"));
        }
        lines
    }

    /// Inside a node: its address, the default route, the pods' bridge, and the routes to the other nodes' pods.
    pub(super) fn node(&self, node: usize) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
        for &family in self.families.list() {
            let wire = on_the_wire_prefix(family);
            lines.push(address(Self::node_address(family, node), wire, "eth0"));
            lines.push(format!("route add {} via {}", anywhere(family), Self::external_address(family)));
        }
        if self.topology.has_bridge() {
            lines.push(format!(
                "link add cni0 mtu {} address {} type bridge mcast_snooping 0",
                self.pod_mtu(),
                mac(0x58, self.primary(|family| Self::gateway(family, node))),
            ));
            lines.push("link set cni0 up".to_owned());
            for &family in self.families.list() {
                let prefix = Self::pod_cidr(family, node).prefix_len();
                lines.push(address(Self::gateway(family, node), prefix, "cni0"));
            }
        }
        for &family in self.families.list() {
            if self.topology == Topology::Vxlan {
                lines.extend(self.tunnel(family, node));
            } else {
                lines.extend(self.others(node).map(|other| {
                    format!(
                        "route add {} via {}",
                        Self::pod_cidr(family, other),
                        Self::node_address(family, other)
                    )
                }));
            }
        }
        lines
    }

    /// Flannel's VXLAN device of one family, with its static neighbours and routes.
    fn tunnel(&self, family: Family, node: usize) -> Vec<String> {
        let device = tunnel_device(family);
        let vtep = |node| Self::pod_address(family, node, 0);
        let mtu = if family == Family::V4 { 1450 } else { 1430 };
        let mut lines = vec![
            format!(
                "link add {device} mtu {mtu} address {} type vxlan id 1 dev eth0 local {} dstport 8472 nolearning",
                mac(0x5a, vtep(node)),
                Self::node_address(family, node),
            ),
            address(vtep(node), family.bits(), device),
            format!("link set {device} up"),
        ];
        for other in self.others(node) {
            let (at, lladdr) = (vtep(other), mac(0x5a, vtep(other)));
            lines.push(format!("neigh replace {at} lladdr {lladdr} dev {device} nud permanent"));
            lines.push(format!("route add {} via {at} dev {device} onlink", Self::pod_cidr(family, other)));
        }
        lines
    }

    /// Lines of `bridge`: behind which node each VXLAN device is.
    pub(super) fn forwarding(&self, node: usize) -> Vec<String> {
        if self.topology != Topology::Vxlan {
            return Vec::new();
        }
        let line = |family, other| {
            format!(
                "fdb append {} dev {} dst {} self permanent",
                mac(0x5a, Self::pod_address(family, other, 0)),
                tunnel_device(family),
                Self::node_address(family, other),
            )
        };
        let families = self.families.list().iter();
        families.flat_map(|&family| self.others(node).map(move |other| line(family, other))).collect()
    }

    /// Inside the external host: its address, and the routes to the pods.
    pub(super) fn external(&self) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
        for &family in self.families.list() {
            lines.push(address(Self::external_address(family), on_the_wire_prefix(family), "eth0"));
            lines.extend((0..self.nodes).map(|node| {
                format!("route add {} via {}", Self::pod_cidr(family, node), Self::node_address(family, node))
            }));
        }
        lines
    }

    /// One more address of the external host, of any network: the nodes send there everything without another route.
    pub(super) fn external_extra(extra: IpAddr) -> String {
        address(extra, Family::of(extra).bits(), "lo")
    }

    /// In the node: the links of new pods. `paths` are those of the pods' namespaces.
    ///
    /// A pod's hardware address is derived from its first address, so that the next owner of an address also matches
    /// what its neighbours have cached.
    pub(super) fn pods_on_node(&self, pods: &[(PodLink, String)]) -> Vec<String> {
        let mut lines = Vec::new();
        for (link, path) in pods {
            let (end, mtu) = (&link.host_end, self.pod_mtu());
            let lladdr = link.addresses.first().map(|address| mac(0x58, *address)).unwrap_or_default();
            lines.push(format!(
                "link add {end} mtu {mtu} type veth peer name eth0 mtu {mtu} address {lladdr} netns {path}"
            ));
            if self.topology.has_bridge() {
                lines.push(format!("link set {end} master cni0 up"));
                lines.push(format!("link set {end} type bridge_slave hairpin on"));
                continue;
            }
            lines.push(format!("link set {end} up"));
            for &pod in &link.addresses {
                let family = Family::of(pod);
                lines.push(address(Self::gateway(family, link.node), family.bits(), end));
                lines.push(format!("route add {pod}/{} dev {end}", family.bits()));
            }
        }
        lines
    }

    /// In the pod: its addresses and its default routes.
    pub(super) fn inside_pod(&self, link: &PodLink) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
        for &pod in &link.addresses {
            let family = Family::of(pod);
            let gateway = Self::gateway(family, link.node);
            if self.topology.has_bridge() {
                lines.push(address(pod, Self::pod_cidr(family, link.node).prefix_len(), "eth0"));
            } else {
                lines.push(address(pod, family.bits(), "eth0"));
                lines.push(format!("route add {gateway}/{} dev eth0", family.bits()));
            }
            lines.push(format!("route add {} via {gateway} dev eth0", anywhere(family)));
        }
        lines
    }

    /// A value that exists once for each family, taken from the primary one.
    fn primary(&self, of: impl Fn(Family) -> IpAddr) -> IpAddr {
        of(if self.families.has(Family::V4) { Family::V4 } else { Family::V6 })
    }

    fn others(&self, node: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.nodes).filter(move |other| *other != node)
    }
}

/// The number in a node's addresses: 1 for node 0.
fn number(node: usize) -> u8 {
    u8::try_from(node + 1).unwrap_or(u8::MAX)
}

fn on_the_wire(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 168, 77, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, host.into()).into(),
    }
}

const fn on_the_wire_prefix(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

const fn anywhere(family: Family) -> &'static str {
    match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    }
}

const fn tunnel_device(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel.1",
        Family::V6 => "flannel-v6.1",
    }
}

/// The line that gives a device an address, usable at once.
fn address(address: IpAddr, prefix: u8, device: &str) -> String {
    let nodad = if address.is_ipv6() { " nodad" } else { "" };
    format!("addr add {address}/{prefix} dev {device}{nodad}")
}

/// A locally administered hardware address derived from an IP address; `kind` distinguishes devices of one node.
fn mac(kind: u8, address: IpAddr) -> String {
    let folded = match address {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => address.octets().chunks_exact(4).fold(0, |folded, word| {
            folded ^ word.iter().fold(0, |value, byte| (value << 8) | u32::from(*byte))
        }),
    };
    let [a, b, c, d] = folded.to_be_bytes();
    format!("0a:{kind:02x}:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_node_has_number_one() {
        assert_eq!(Layout::node_address(Family::V4, 0).to_string(), "192.168.77.1");
        assert_eq!(Layout::pod_cidr(Family::V4, 1).to_string(), "10.244.2.0/24");
        assert_eq!(Layout::pod_cidr(Family::V6, 0).to_string(), "fd00:10:244:1::/64");
        assert_eq!(Layout::gateway(Family::V6, 0).to_string(), "fd00:10:244:1::1");
    }

    #[test]
    fn pod_blocks_are_disjoint_parts_of_the_cluster_block() {
        for family in Family::BOTH {
            for node in 0..MAX_NODES {
                let block = Layout::pod_cidr(family, node);
                assert!(Layout::cluster_cidr(family).contains(&block), "{block}");
                assert!(!block.contains(&Layout::node_address(family, node)));
                assert!(node == 0 || !Layout::pod_cidr(family, node - 1).contains(&block), "{block}");
            }
        }
    }

    #[test]
    fn hardware_address_depends_only_on_the_address() {
        assert_eq!(mac(0x58, "10.244.1.5".parse().unwrap()), "0a:58:0a:f4:01:05");
        let six = |text: &str| mac(0x58, text.parse().unwrap());
        assert_ne!(six("fd00:10:244:1::5"), six("fd00:10:244:1::6"));
        assert_ne!(six("fd00:10:244:1::5"), six("fd00:10:244:2::5"));
    }

    #[test]
    fn lab_that_exceeds_the_address_plan_is_refused() {
        let layout = |topology, nodes| Layout { topology, families: Families::V4, nodes };
        assert!(layout(Topology::Bridge, 0).check().is_err());
        assert!(layout(Topology::Vxlan, 1).check().is_err());
        assert!(layout(Topology::Bridge, MAX_NODES + 1).check().is_err());
        assert!(layout(Topology::PointToPoint, MAX_NODES).check().is_ok());
    }
}
