//! Pods.

use std::{fmt, net::IpAddr, ops::Deref};

use crate::model::Protocol;

use super::{Host, topology::PodLink};

/// Identifies one pod of a lab; never reused for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(pub(super) u64);

/// The description of a new pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Its name, by convention `namespace/name`: its listeners answer with it.
    pub name: String,
    /// Its node, counted from 0.
    pub node: usize,
    /// Its addresses, from its node's blocks; if empty, the next free one of each of the lab's families.
    pub addresses: Vec<IpAddr>,
    /// The ports on which it listens.
    pub listen: Vec<(Protocol, u16)>,
}

impl PodSpec {
    /// A pod with the next free addresses, and without any listener.
    #[must_use]
    pub fn new(name: impl Into<String>, node: usize) -> Self {
        Self { name: name.into(), node, addresses: Vec::new(), listen: Vec::new() }
    }

    /// The same pod, listening on these ports.
    #[must_use]
    pub fn listening(self, listen: &[(Protocol, u16)]) -> Self {
        Self { listen: listen.to_vec(), ..self }
    }

    /// The same pod, with this address instead of a free one.
    #[must_use]
    pub fn at(mut self, address: IpAddr) -> Self {
        self.addresses.push(address);
        self
    }
}

/// A pod: a host behind its node.
#[derive(Debug)]
pub struct Pod {
    pub(super) host: Host,
    pub(super) link: PodLink,
}

impl Pod {
    /// Its node, counted from 0.
    #[must_use]
    pub const fn node(&self) -> usize {
        self.link.node
    }

    /// The name of its link's end on the node.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.link.host_end
    }
}

impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// `shop/web`.
impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
