//! The interface guard: which host interface is which pod's, and what may enter through it.
//!
//! The rules of iptables know a pod by the addresses in a packet's header, and a pod writes its headers itself. So a
//! frame is checked where it enters the node: a pod's interface may only send the pod's own hardware address with the
//! pod's own IP addresses, claim only these in ARP and neighbour discovery, and send nothing but IPv4, IPv6 and ARP.
//!
//! ```text
//! Veths, pods --bind--> Bindings --> Guard --render--> nft text for the kernel edge
//! ```
//!
//! Who is behind an interface is read from the kernel, not learned from packets: the other end of a veth pair lies in
//! the pod's network namespace, and the addresses that the network plugin gave it there tell which pod it is. A pod
//! can change these only with `CAP_NET_ADMIN`, and only once one of its processes runs; the network plugin is done
//! before that. So what counts is what was read first: it is never read again while the interface exists, whatever the
//! pod makes of its end. An interface that is bound to a pod stays with it, and an address or a hardware address that
//! is bound to one interface is not given to another.

mod bind;
pub mod render;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
};

pub use bind::{Known, bind};

use crate::model::{Direction, ObjectKey};

/// The most addresses that an interface may use which is no known pod's.
const MOST_ADDRESSES: usize = 16;

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

/// The host's end of a veth pair whose other end lies in another network namespace, with what the kernel said of that
/// other end when the network plugin had set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    /// Its interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The index of the bridge that it is a port of.
    pub bridge: Option<u32>,
    /// The number by which this network namespace knows the one of the other end.
    pub netns: i32,
    /// The hardware address of the other end.
    pub mac: Mac,
    /// The addresses of the other end.
    pub addresses: Vec<IpAddr>,
    /// Single addresses that this host routes to it, as the ptp plugin does.
    pub routed: Vec<IpAddr>,
    /// Whether the other end could be read at all. If not, it may use no address, and is no pod's yet.
    pub is_read: bool,
}

impl Veth {
    /// The addresses by which a pod is recognised behind it.
    fn evidence(&self) -> impl Iterator<Item = IpAddr> {
        let all = self.addresses.iter().chain(&self.routed).copied();
        all.filter(|address| self.is_read && !is_link_local(*address))
    }
}

/// What is known of the interfaces that are guarded, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings {
    /// Each guarded interface.
    pub ports: BTreeMap<u32, Port>,
    /// Pods of this node behind none of the interfaces, each with why.
    pub unbound: BTreeMap<ObjectKey, Unbound>,
}

/// Why a pod is behind no interface that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbound {
    /// No interface has its addresses.
    NoInterface,
    /// Several interfaces have its addresses, and nothing tells which one is the pod's.
    Ambiguous,
}

impl fmt::Display for Unbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoInterface => "no interface has its addresses",
            Self::Ambiguous => "several interfaces have its addresses",
        })
    }
}

/// A guarded interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// The bridge that it is a port of; `None` for a link of its own, as of the ptp plugin.
    pub bridge: Option<u32>,
    /// The hardware address that it may send from; `None` if another interface of its bridge has it, which closes it.
    pub mac: Option<Mac>,
    /// The addresses that it may send from and claim.
    pub addresses: Vec<IpAddr>,
    /// The link-local addresses that it may send from and claim.
    pub link_local: Vec<Ipv6Addr>,
    /// The pod behind it; `None` while no object says whose it is. Then it may use the addresses that the network
    /// plugin gave it, as long as nobody else owns them.
    pub pod: Option<ObjectKey>,
    /// Whether a pod was behind it whose object is gone. What still runs there may send nothing.
    pub retired: bool,
    /// Whether policy isolates the pod, for ingress and for egress.
    isolated: [bool; 2],
}

impl Port {
    /// Whether policy isolates the pod behind it in `direction`.
    #[must_use]
    pub const fn isolated(&self, direction: Direction) -> bool {
        self.isolated[match direction {
            Direction::Ingress => 0,
            Direction::Egress => 1,
        }]
    }
}

impl Mac {
    /// The link-local address that an interface makes of its hardware address (RFC 4291, appendix A).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let mut octets = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x00ff, 0xfe00, 0).octets();
        for (at, byte) in [8, 9, 10, 13, 14, 15].into_iter().zip(self.0) {
            octets[at] = byte;
        }
        octets[8] ^= 2;
        octets.into()
    }
}

/// Whether an address is of use on its own link only.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_loopback(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_loopback(),
    }
}
