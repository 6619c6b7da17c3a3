//! The network interfaces of this node, read over netlink: what is behind each veth, and which tunnels end here.
//!
//! The other end of a veth pair is in another network namespace. The kernel numbers that namespace
//! (`IFLA_LINK_NETNSID`) and answers requests about its links and addresses under that number (`IFLA_TARGET_NETNSID`,
//! Linux 4.20) to a process that has `CAP_NET_ADMIN` in both namespaces. No namespace has to be entered, and no file of
//! a container runtime has to be read.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::errno::Errno;

use super::netlink::{FLAG_ACK, FLAG_DUMP, Netlink, attributes, put, text};
use crate::ruleset::{
    compile::Tunnels,
    guard::{Mac, Veth},
};

const GET_LINK: u16 = 18;
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_ADDRESS: u16 = 22;
const GET_ROUTE: u16 = 26;
const DELETE_NEIGHBOUR: u16 = 29;
const GET_NEIGHBOUR: u16 = 30;

/// The sizes of the headers of links, addresses, routes and neighbours.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;
const NEIGHBOUR_HEADER: usize = 12;

/// Attributes of links.
const LINK_MAC: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_PEER: u16 = 5;
const LINK_MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const LINK_PEER_NETNS: u16 = 37;
const LINK_TARGET_NETNS: u16 = 46;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VXLAN_GROUP: u16 = 2;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const VXLAN_GROUP6: u16 = 16;
const VXLAN_METADATA: u16 = 25;
const GENEVE_PORT: u16 = 5;

/// Attributes of addresses: the peer's address, the local one, and the requested namespace.
const ADDRESS_ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_TARGET_NETNS: u16 = 10;

/// Attributes of routes: destination and outgoing interface.
const ROUTE_DESTINATION: u16 = 1;
const ROUTE_INTERFACE: u16 = 4;

/// The attribute of a neighbour that holds its IP address; of a forwarding entry, the remote host of a tunnel.
const NEIGHBOUR_DESTINATION: u16 = 1;

/// States of neighbours for which no packet waits: `NUD_NOARP` and `NUD_PERMANENT`.
const NEVER_WAITS: u16 = 0x40 | 0x80;

const IPV4: u8 = 2;
const IPV6: u8 = 10;
const BRIDGE: u8 = 7;

/// The flag of a link that is up.
const UP: u32 = 1;

/// How often a dump is repeated that a change interrupted.
const ATTEMPTS: usize = 16;

/// The multicast group of link changes.
const GROUP_LINK: u32 = 1;

/// A link of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind, as `ip -d link` prints it; empty for a physical interface.
    pub kind: String,
    /// The index of the bridge (or bond) that it is a port of.
    pub master: Option<u32>,
    /// For a veth whose peer is in another network namespace: the peer's index there, and the namespace's number.
    pub peer: Option<(u32, i32)>,
    /// For a VXLAN or Geneve interface: its UDP port.
    pub port: Option<u16>,
    /// Whether a VXLAN interface exchanges packets only with the hosts in its forwarding table.
    pub has_known_ends: bool,
    /// Whether it is up.
    pub up: bool,
}

/// Reads links, addresses and routes.
#[derive(Debug)]
pub struct Links {
    netlink: Netlink,
}

impl Links {
    /// Opens the socket for this network namespace.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open_route()? })
    }

    /// All links of this network namespace.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn all(&mut self) -> io::Result<Vec<Link>> {
        self.whole(|netlink| {
            let mut links = Vec::new();
            netlink.request_body(GET_LINK, FLAG_DUMP, &[0; LINK_HEADER], |message| {
                links.extend(link(message.body()));
            })?;
            Ok(links)
        })
    }

    /// The addresses of this network namespace.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn host_addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        Ok(self.addresses(None, 0)?.into_iter().collect())
    }

    /// What is behind a veth: the hardware address and the addresses of its peer; `None` if it is gone.
    ///
    /// # Errors
    /// If a system call fails; with `EOPNOTSUPP` or `EINVAL` before Linux 4.20.
    pub fn veth(&mut self, link: &Link) -> io::Result<Option<Veth>> {
        let Some((index, netns)) = link.peer else { return Ok(None) };
        let mut mac = None;
        let mut body = vec![0; LINK_HEADER];
        body.splice(4..8, index.to_ne_bytes());
        put(&mut body, LINK_TARGET_NETNS, &netns.to_ne_bytes());
        let asked = self.netlink.request_body(GET_LINK, 0, &body, |message| {
            mac = attributes(message.body().get(LINK_HEADER..).unwrap_or_default())
                .find_map(|(kind, value)| (kind == LINK_MAC).then(|| value.try_into().ok()).flatten());
        });
        match asked {
            Err(error) if is_gone(&error) => return Ok(None),
            other => other?,
        }
        let Some(mac) = mac else { return Ok(None) };
        let addresses = match self.addresses(Some(netns), index) {
            Err(error) if is_gone(&error) => return Ok(None),
            other => other?,
        };
        Ok(Some(Veth {
            index: link.index,
            name: link.name.clone(),
            bridge: link.master,
            netns,
            mac: Mac(mac),
            addresses,
            routed: Vec::new(),
            is_read: true,
        }))
    }

    /// Whether this kernel answers requests about the peers of the veths among `links`.
    ///
    /// # Errors
    /// The system error of the last request, if none was answered.
    pub fn probe(&mut self, links: &[Link]) -> io::Result<()> {
        let mut outcome = Ok(());
        for netns in links.iter().filter_map(|link| link.peer).map(|(_, netns)| netns) {
            match self.addresses(Some(netns), 0) {
                Ok(_) => return Ok(()),
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// The single addresses that this host routes to an interface, by interface.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn host_routes(&mut self) -> io::Result<BTreeMap<u32, Vec<IpAddr>>> {
        let mut routes: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
        for family in [IPV4, IPV6] {
            let mut body = vec![0; ROUTE_HEADER];
            body.splice(0..1, [family]);
            let found = self.whole(|netlink| {
                let mut found = Vec::new();
                netlink.request_body(GET_ROUTE, FLAG_DUMP, &body, |message| {
                    found.extend(host_route(message.body()));
                })?;
                Ok(found)
            })?;
            for (interface, address) in found {
                routes.entry(interface).or_default().push(address);
            }
        }
        Ok(routes)
    }

    /// The tunnels among `links`, and the remote hosts of the VXLAN ones.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn tunnels(&mut self, links: &[Link]) -> io::Result<Tunnels> {
        let mut tunnels = Tunnels::default();
        for link in links {
            match &*link.kind {
                "vxlan" if link.has_known_ends => tunnels.vxlan.extend(link.port),
                "vxlan" | "geneve" => tunnels.others.extend(link.port),
                kind => tunnels.protocols.extend(protocol(kind).filter(|_| link.up)),
            }
        }
        // Two interfaces may share a port.
        tunnels.vxlan.retain(|port| !tunnels.others.contains(port));
        for link in links.iter().filter(|link| link.kind == "vxlan") {
            let mut body = vec![0; NEIGHBOUR_HEADER];
            body.splice(0..1, [BRIDGE]);
            body.splice(4..8, link.index.to_ne_bytes());
            let ends = self.whole(|netlink| {
                let mut ends = Vec::new();
                netlink.request_body(GET_NEIGHBOUR, FLAG_DUMP, &body, |message| {
                    let found = attributes(message.body().get(NEIGHBOUR_HEADER..).unwrap_or_default());
                    let mut destinations = found.filter(|(kind, _)| *kind == NEIGHBOUR_DESTINATION);
                    ends.extend(destinations.find_map(|(_, value)| address(value)));
                })?;
                Ok(ends)
            })?;
            tunnels.ends.extend(ends);
        }
        Ok(tunnels)
    }

    /// Forgets the hardware addresses of these neighbours, and with them the packets that wait for them. The next packet
    /// to each asks for it again.
    ///
    /// While the kernel asks for a neighbour's hardware address, packets to it wait, about a hundred for each, for up to
    /// three seconds. They have passed the rules by then. So packets to a new pod that were judged before its rules
    /// existed would still be delivered to it when it answers.
    ///
    /// # Errors
    /// If a system call fails. The others are still forgotten.
    pub fn forget_neighbours(&mut self, addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
        let mut failure = None;
        for family in [IPV4, IPV6] {
            let mut all = vec![0; NEIGHBOUR_HEADER];
            all.splice(0..1, [family]);
            let found = self.whole(|netlink| {
                let mut found = Vec::new();
                netlink.request_body(GET_NEIGHBOUR, FLAG_DUMP, &all, |message| {
                    let of_these = |(_, address): &(u32, IpAddr)| addresses.contains(address);
                    found.extend(neighbour(message.body()).filter(of_these));
                })?;
                Ok(found)
            })?;
            for (interface, address) in found {
                let mut body = all.clone();
                body.splice(4..8, interface.to_ne_bytes());
                match address {
                    IpAddr::V4(address) => put(&mut body, NEIGHBOUR_DESTINATION, &address.octets()),
                    IpAddr::V6(address) => put(&mut body, NEIGHBOUR_DESTINATION, &address.octets()),
                }
                match self.netlink.request_body(DELETE_NEIGHBOUR, FLAG_ACK, &body, |_| {}) {
                    Err(error) if error.raw_os_error() != Some(Errno::ENOENT as i32) => failure = Some(error),
                    _ => {}
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Addresses of this network namespace or of the one with that number: of one interface, or of all with index 0.
    fn addresses(&mut self, netns: Option<i32>, index: u32) -> io::Result<Vec<IpAddr>> {
        let mut body = vec![0; ADDRESS_HEADER];
        body.splice(4..8, index.to_ne_bytes());
        if let Some(netns) = netns {
            put(&mut body, ADDRESS_TARGET_NETNS, &netns.to_ne_bytes());
        }
        self.whole(|netlink| {
            let mut found = Vec::new();
            netlink.request_body(GET_ADDRESS, FLAG_DUMP, &body, |message| {
                let body = message.body();
                let Some(rest) = body.get(ADDRESS_HEADER..) else { return };
                if index != 0 && number(body, 4) != Some(index) {
                    return;
                }
                // On a point-to-point link, `IFA_ADDRESS` is the peer's address instead of the local one.
                let of =
                    |wanted| attributes(rest).find(|(kind, _)| *kind == wanted).and_then(|(_, v)| address(v));
                found.extend(of(ADDRESS_LOCAL).or_else(|| of(ADDRESS_ADDRESS)));
            })?;
            Ok(found)
        })
    }

    /// Repeats a dump until nothing changed while it was read: one that lacks an interface would open it.
    fn whole<T>(&mut self, mut dump: impl FnMut(&mut Netlink) -> io::Result<T>) -> io::Result<T> {
        for _ in 0..ATTEMPTS {
            let result = dump(&mut self.netlink)?;
            if !self.netlink.interrupted {
                return Ok(result);
            }
        }
        Err(io::Error::other("it changed again and again while it was read"))
    }
}

/// Whether the requested object no longer exists.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENODEV as i32) || error.raw_os_error() == Some(Errno::EINVAL as i32)
}

/// The interface and the address of a neighbour for which packets may wait.
pub(super) fn neighbour(body: &[u8]) -> Option<(u32, IpAddr)> {
    let state = u16::from_ne_bytes(body.get(8..10)?.try_into().ok()?);
    let (_, value) =
        attributes(body.get(NEIGHBOUR_HEADER..)?).find(|(kind, _)| *kind == NEIGHBOUR_DESTINATION)?;
    (state & NEVER_WAITS == 0).then_some((number(body, 4)?, address(value)?))
}

pub(super) fn link(body: &[u8]) -> Option<Link> {
    let index = number(body, 4)?;
    let up = number(body, 8).is_some_and(|flags| flags & UP != 0);
    let mut link = Link {
        index,
        name: String::new(),
        kind: String::new(),
        master: None,
        peer: None,
        port: None,
        has_known_ends: false,
        up,
    };
    let (mut peer, mut netns) = (None, None);
    for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
        match kind {
            LINK_NAME => text(value).clone_into(&mut link.name),
            LINK_MASTER => link.master = number(value, 0),
            LINK_PEER => peer = number(value, 0),
            LINK_PEER_NETNS => netns = number(value, 0).map(u32::cast_signed).filter(|netns| *netns >= 0),
            LINK_INFO => describe(value, &mut link),
            _ => {}
        }
    }
    if link.kind == "veth" {
        link.peer = peer.zip(netns);
    }
    Some(link)
}

/// The IP protocol of a tunnel without ports, by the kind of its interface.
fn protocol(kind: &str) -> Option<u8> {
    match kind {
        "ipip" => Some(4),
        "sit" | "ip6tnl" => Some(41),
        "gre" | "gretap" | "erspan" | "ip6gre" | "ip6gretap" | "ip6erspan" => Some(47),
        _ => None,
    }
}

fn describe(info: &[u8], link: &mut Link) {
    let mut data: &[u8] = &[];
    for (kind, value) in attributes(info) {
        match kind {
            INFO_KIND => text(value).clone_into(&mut link.kind),
            INFO_DATA => data = value,
            _ => {}
        }
    }
    (link.port, link.has_known_ends) = (None, false);
    let wanted = match &*link.kind {
        "vxlan" => VXLAN_PORT,
        "geneve" => GENEVE_PORT,
        _ => return,
    };
    // An interface that learns, has a group or leaves its peers to other programs accepts packets from any sender.
    let flag = |kind| attributes(data).any(|(found, value)| found == kind && value != [0]);
    link.has_known_ends = ![VXLAN_GROUP, VXLAN_LEARNING, VXLAN_GROUP6, VXLAN_METADATA].into_iter().any(flag);
    link.port = attributes(data)
        .find(|(kind, _)| *kind == wanted)
        .and_then(|(_, value)| value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)));
}

/// The interface and the address of a route to a single address.
pub(super) fn host_route(body: &[u8]) -> Option<(u32, IpAddr)> {
    /// The offsets in the header of the destination's length, the table's number and the kind of the route.
    const LENGTH: usize = 1;
    const TABLE: usize = 4;
    const KIND: usize = 7;
    const MAIN: u8 = 254;
    const UNICAST: u8 = 1;
    if *body.get(TABLE)? != MAIN || *body.get(KIND)? != UNICAST {
        return None;
    }
    let (mut destination, mut interface) = (None, None);
    for (kind, value) in attributes(body.get(ROUTE_HEADER..)?) {
        match kind {
            ROUTE_DESTINATION => destination = address(value),
            ROUTE_INTERFACE => interface = number(value, 0),
            _ => {}
        }
    }
    let destination = destination?;
    let bits = if destination.is_ipv4() { 32 } else { 128 };
    (*body.get(LENGTH)? == bits).then_some((interface?, destination))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

/// Waits for links to come, go or change; calls `notify` for each burst of messages, until that returns `false`.
///
/// # Errors
/// If a system call fails.
pub fn follow(notify: &dyn Fn() -> bool) -> io::Result<()> {
    let mut netlink = Netlink::open_route()?;
    netlink.socket.add_membership(GROUP_LINK)?;
    loop {
        match netlink.receive() {
            Ok(datagram) => {
                let concerns =
                    super::netlink::messages(datagram).any(|m| matches!(m.kind, NEW_LINK | DELETE_LINK));
                if concerns && !notify() {
                    return Ok(());
                }
            }
            // More notifications were sent than the socket could hold: everything is read again in any case.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                if !notify() {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
