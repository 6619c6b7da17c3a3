//! Addresses outside of the cluster that stand for all others: those of one network that no policy tells apart.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::{Cluster, Direction, Family, Peer, Peers, Standing};

/// One address for each network that policies name, and one for the rest of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// The addresses, by network.
    pub addresses: Vec<OutsideAddress>,
    /// How many networks have none, since there were too many.
    pub omitted: usize,
}

/// An address that stands for those of a network that are in no smaller network which a policy names, and that no pod
/// and no node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideAddress {
    /// The address.
    pub address: IpAddr,
    /// The network: the `cidr` or an `except` of an ipBlock. Of the rest of the world, all addresses of the family.
    pub network: IpNet,
}

impl OutsideAddress {
    /// Whether it stands for the rest of the world.
    #[must_use]
    pub fn is_internet(&self) -> bool {
        self.network.prefix_len() == 0
    }
}

impl Outside {
    /// The addresses by the policies of all these clusters, for at most `most` networks, larger ones first.
    ///
    /// Networks contain each other or have nothing in common, so the smallest one that has an address decides which
    /// blocks contain it.
    #[must_use]
    pub fn of(clusters: &[&Cluster], most: usize) -> Self {
        let mut networks: BTreeSet<IpNet> = clusters.iter().flat_map(|cluster| named(cluster)).collect();
        let mut families: BTreeSet<Family> =
            networks.iter().map(|network| Family::of_net(*network)).collect();
        let pods = clusters.iter().flat_map(|cluster| cluster.pods());
        families.extend(pods.flat_map(|pod| &pod.addresses).map(|address| Family::of(*address)));
        if families.is_empty() {
            families.extend(Family::BOTH);
        }
        networks.extend(families.into_iter().map(whole));
        // A network comes before those within it.
        let mut networks: Vec<IpNet> = networks.into_iter().collect();
        networks.sort_by_key(|network| (Family::of_net(*network), network.network(), network.prefix_len()));
        let free = networks.iter().enumerate().filter_map(|(at, network)| {
            let inner = networks.get(at + 1..).unwrap_or_default();
            let address = free_address(*network, inner, clusters)?;
            Some(OutsideAddress { address, network: *network })
        });
        let mut addresses: Vec<OutsideAddress> = free.collect();
        let omitted = addresses.len().saturating_sub(most);
        if omitted > 0 {
            addresses.sort_by_key(|known| (known.network.prefix_len(), known.network));
            addresses.truncate(most);
        }
        addresses.sort_by_key(|known| known.network);
        Self { addresses, omitted }
    }
}

/// The networks that the policies of a cluster name.
fn named(cluster: &Cluster) -> impl Iterator<Item = IpNet> {
    let policies = cluster.policies().filter(|policy| policy.standing == Standing::Accepted);
    let rules = policies
        .flat_map(|policy| Direction::BOTH.into_iter().filter_map(|direction| policy.rules(direction)))
        .flatten();
    let peers = rules.filter_map(|rule| match &rule.peers {
        Peers::Of(peers) => Some(peers),
        Peers::Any => None,
    });
    let blocks = peers.flatten().filter_map(|peer| match peer {
        Peer::Block(block) => Some(block),
        Peer::Pods(_) => None,
    });
    blocks.flat_map(|block| block.except().iter().copied().chain([block.cidr()]))
}

fn whole(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::default().into(),
        Family::V6 => Ipv6Net::default().into(),
    }
}

/// The first address of `network` that is in none of the networks within it, which `following` begins with, and that
/// nothing in these clusters has.
fn free_address(network: IpNet, following: &[IpNet], clusters: &[&Cluster]) -> Option<IpAddr> {
    let mut inner = following.iter().take_while(|inner| network.contains(*inner)).peekable();
    let mut candidate = network.network();
    loop {
        if !network.contains(&candidate) {
            return None;
        }
        // Those that end before the candidate lie within one that was left behind.
        while inner.next_if(|inner| inner.broadcast() < candidate).is_some() {}
        if let Some(inner) = inner.peek().filter(|inner| inner.contains(&candidate)) {
            candidate = next(inner.broadcast())?;
        } else if clusters.iter().any(|cluster| is_taken(cluster, candidate)) {
            candidate = next(candidate)?;
        } else {
            return Some(candidate);
        }
    }
}

fn is_taken(cluster: &Cluster, address: IpAddr) -> bool {
    !cluster.claimants(address).is_empty() || cluster.nodes_at(address).next().is_some()
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_add(1).map(|next| Ipv4Addr::from(next).into()),
        IpAddr::V6(address) => u128::from(address).checked_add(1).map(|next| Ipv6Addr::from(next).into()),
    }
}

#[cfg(test)]
mod tests;
