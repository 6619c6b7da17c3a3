//! Members of sets: what selectors, blocks and ports resolve to.

use std::net::IpAddr;

use imbl::OrdSet;
use ipnet::IpNet;

use crate::model::{Family, Protocol};

/// A member of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// An address.
    Address(IpAddr),
    /// A network. Its prefix length is at least 1: the kernel's hash of networks cannot hold `/0`.
    Network(IpNet),
    /// A protocol and port of an address.
    Endpoint(IpAddr, Protocol, u16),
    /// A port.
    Port(u16),
    /// A protocol and port of every address of a network, whose prefix length is at least 1.
    NetworkEndpoint(IpNet, Protocol, u16),
}

/// Members of a set, by family. A clone shares them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Those of IPv4.
    pub v4: OrdSet<Member>,
    /// Those of IPv6.
    pub v6: OrdSet<Member>,
}

impl Members {
    /// Those of one family.
    #[must_use]
    pub fn of(&self, family: Family) -> &OrdSet<Member> {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Whether these are the same members without comparing each one: a clone that was not changed since.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.v4.ptr_eq(&other.v4) && self.v6.ptr_eq(&other.v6)
    }

    pub(super) fn of_mut(&mut self, family: Family) -> &mut OrdSet<Member> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Replaces the members for `address` with these.
    pub(super) fn replace(&mut self, address: IpAddr, now: &[Member]) {
        let set = self.of_mut(Family::of(address));
        let span =
            Member::Endpoint(address, Protocol::Tcp, 0)..=Member::Endpoint(address, Protocol::Sctp, u16::MAX);
        let stale: Vec<Member> = std::iter::once(Member::Address(address))
            .filter(|member| set.contains(member))
            .chain(set.range(span).copied())
            .filter(|member| !now.contains(member))
            .collect();
        for member in stale {
            set.remove(&member);
        }
        for member in now {
            if !set.contains(member) {
                set.insert(*member);
            }
        }
    }
}
