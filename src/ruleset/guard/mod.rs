//! The interface guard: which host interface belongs to which pod, and what may enter through it.
//!
//! The rules of iptables identify a pod by the addresses in a packet's header, and a pod can spoof its headers. So a
//! frame is checked where it enters the node: a pod's interface may only send the pod's own hardware address with the
//! pod's own IP addresses, claim only these in ARP and neighbour discovery, and send nothing but IPv4, IPv6 and ARP.
//!
//! ```text
//! Veths, pods --bind--> Bindings --> Guard --render--> nft text for the dataplane
//! ```
//!
//! The pod behind an interface is read from the kernel, not learned from packets: the other end of a veth pair lies in
//! the pod's network namespace, and the addresses that the network plugin assigned to it there identify the pod. A pod
//! can change these only with `CAP_NET_ADMIN`, and only once one of its processes runs; the network plugin has finished
//! before that. So only the first reading counts, 100 ms after the first address: it is not repeated while the
//! interface exists, whatever the pod does to its end. An interface that is bound to a pod stays with it, and an
//! address or a hardware address that is bound to one interface is not given to another.

mod bind;
pub mod render;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
};

pub use bind::{KnownAddresses, bind};

use crate::model::{Direction, ObjectKey};

/// The most addresses that an interface without a known pod may use.
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

/// The host's end of a veth pair whose other end lies in another network namespace, with what the kernel reported of
/// that other end after the network plugin had set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    /// Its interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The index of the bridge that it is a port of.
    pub bridge: Option<u32>,
    /// The ID of the other end's network namespace in this one.
    pub netns: i32,
    /// The hardware address of the other end.
    pub mac: Mac,
    /// The addresses of the other end.
    pub addresses: Vec<IpAddr>,
    /// Single addresses that this host routes to it, like the ptp plugin does.
    pub routed: Vec<IpAddr>,
    /// Whether the other end could be read at all. If not, it may use no address, and belongs to no pod yet.
    pub is_read: bool,
}

impl Veth {
    /// The addresses that identify the pod behind it.
    fn evidence(&self) -> impl Iterator<Item = IpAddr> {
        let all = self.addresses.iter().chain(&self.routed).copied();
        all.filter(|address| self.is_read && !is_link_local(*address))
    }
}

/// The state of the guarded interfaces, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings {
    /// Each guarded interface.
    pub ports: BTreeMap<u32, Port>,
    /// Pods of this node without an interface, each with the reason.
    pub unbound: BTreeMap<ObjectKey, Unbound>,
}

/// Why a pod has no known interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbound {
    /// No interface has its addresses.
    NoInterface,
    /// Several interfaces have its addresses, and it is not known which one is the pod's.
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
    /// The bridge that it is a port of; `None` for a separate link, such as those of the ptp plugin.
    pub bridge: Option<u32>,
    /// The hardware address that it may send from; `None` if another interface of its bridge has it, which closes it.
    pub mac: Option<Mac>,
    /// The addresses that it may send from and claim.
    pub addresses: Vec<IpAddr>,
    /// The link-local addresses that it may send from and claim.
    pub link_local: Vec<Ipv6Addr>,
    /// The pod behind it; `None` while no object identifies the pod. Then it may use the addresses that the network
    /// plugin assigned to it, as long as they have no other owner.
    pub pod: Option<ObjectKey>,
    /// Whether the object of the pod behind it is gone. Processes that still run there may send nothing.
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
    /// The link-local address that an interface derives from its hardware address (RFC 4291, appendix A).
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

/// Whether an address is only usable on its own link.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_loopback(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_loopback(),
    }
}
