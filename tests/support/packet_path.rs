//! The path of a packet through the rules of the nodes that it passes.

use std::{collections::BTreeSet, net::IpAddr};

use towpath::{
    model::{Cluster, Family, Transport},
    ruleset::{
        BuiltIn, Ruleset,
        trace::{Packet, trace},
    },
};

/// The home nodes of `address`: those of the pods that report it, or those that have it.
fn homes(cluster: &Cluster, nodes: &[(&str, Ruleset)], address: IpAddr) -> BTreeSet<usize> {
    let place = |name: &str| nodes.iter().position(|(node, _)| *node == name);
    match cluster.claimants(address) {
        [] => cluster.nodes_at(address).filter_map(|name| place(name)).collect(),
        pods => pods.iter().filter_map(|pod| place(pod.node.as_deref()?)).collect(),
    }
}

/// Whether the rules of the nodes on its path let the first packet through, whichever home node an address has.
///
/// `nodes` are the nodes that enforce, each with its rules.
pub(crate) fn passes(
    cluster: &Cluster,
    nodes: &[(&str, Ruleset)],
    from: IpAddr,
    to: IpAddr,
    transport: Transport,
) -> bool {
    let is_node =
        |address| cluster.claimants(address).is_empty() && cluster.nodes_at(address).next().is_some();
    let (starts, ends) = (homes(cluster, nodes, from), homes(cluster, nodes, to));
    let ask = |node: &usize, at| {
        let packet = Packet { at, ..Packet::new(from, to, transport) };
        trace(nodes[*node].1.table(Family::of(from)), &packet).passed
    };
    // A pod's packet to itself gets no further than lo; with two pods of one address it may be for the other.
    if from == to && cluster.claimants(from).len() < 2 {
        return true;
    }
    // A node's packets to its own pods do not pass FORWARD, and a pod's packet to its own node enters through INPUT.
    let leaves = is_node(from)
        || starts.iter().all(|node| {
            let to_own_node = is_node(to) && ends.contains(node);
            ask(node, if to_own_node { BuiltIn::Input } else { BuiltIn::Forward })
        });
    let arrives = ends.iter().all(|node| {
        let from_own_node = is_node(from) && starts.contains(node);
        from_own_node || ask(node, if is_node(to) { BuiltIn::Input } else { BuiltIn::Forward })
    });
    leaves && arrives
}
