//! A host of the lab: what pods, nodes and the external host have in common.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use crate::model::{Family, Protocol};

use super::{Families, LabError, Netns, listen::Listener, probe::FreshPorts};

/// A namespace with addresses and listeners.
#[derive(Debug)]
pub struct Host {
    // Before the namespace: its thread ends first.
    listener: Option<Listener>,
    netns: Netns,
    addresses: Vec<IpAddr>,
    ports: Vec<(Protocol, u16)>,
    families: Families,
    fresh: Arc<FreshPorts>,
}

impl Host {
    /// A host in its own namespace, which has nothing yet but the settings that make it answer at once.
    pub(super) fn new(
        name: &str,
        families: Families,
        addresses: Vec<IpAddr>,
        fresh: Arc<FreshPorts>,
    ) -> Result<Self, LabError> {
        let netns = Netns::new(name)?;
        // ICMP errors must reach a probe however many there are, and any process may ping.
        netns.sysctl(&[
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/icmp_ratemask", "0"),
            ("ipv4/ping_group_range", "0 2147483647"),
        ])?;
        if families.has(Family::V6) {
            netns.sysctl(&[
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/all/accept_ra", "0"),
                ("ipv6/conf/default/accept_ra", "0"),
                ("ipv6/icmp/ratelimit", "0"),
                ("ipv6/icmp/ratemask", "127"),
            ])?;
        }
        Ok(Self { listener: None, netns, addresses, ports: Vec::new(), families, fresh })
    }

    /// Its name in messages and banners.
    #[must_use]
    pub fn name(&self) -> &str {
        self.netns.name()
    }

    /// Its namespace.
    #[must_use]
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its addresses, the primary one first.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its first address of `family`.
    #[must_use]
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }

    /// The ports on which it listens.
    #[must_use]
    pub fn ports(&self) -> &[(Protocol, u16)] {
        &self.ports
    }

    /// Listens on more ports. This closes existing connections.
    ///
    /// # Errors
    /// If a port cannot be opened.
    pub fn listen(&mut self, ports: &[(Protocol, u16)]) -> Result<(), LabError> {
        let mut all = self.ports.clone();
        for port in ports {
            if !all.contains(port) {
                all.push(*port);
            }
        }
        if all.len() == self.ports.len() {
            return Ok(());
        }
        self.listener = None;
        self.listener = Some(Listener::start(&self.netns, self.families, &all)?);
        self.ports = all;
        Ok(())
    }

    pub(super) fn add_address(&mut self, address: IpAddr) {
        self.addresses.push(address);
    }

    pub(super) fn fresh(&self) -> Arc<FreshPorts> {
        self.fresh.clone()
    }
}

/// The port counters of a lab, by primary address: the next owner of an address continues where the last one stopped,
/// because connection tracking remembers addresses, not pods.
#[derive(Debug, Default)]
pub(super) struct Counters(RwLock<std::collections::HashMap<IpAddr, Arc<FreshPorts>>>);

impl Counters {
    pub(super) fn of(&self, addresses: &[IpAddr]) -> Arc<FreshPorts> {
        let mut counters = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = addresses.iter().find_map(|address| counters.get(address).cloned()).unwrap_or_default();
        counters.extend(addresses.iter().map(|address| (*address, known.clone())));
        known
    }
}
