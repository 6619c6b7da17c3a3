//! Binds pods to interfaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{Bindings, MOST_ADDRESSES, Mac, Port, Unbound, Veth, is_link_local};
use crate::{
    model::{Attachment, Direction, Family},
    policy::{
        members::{Member, Members},
        resolve::LocalPod,
    },
};

/// What is known besides the interfaces.
#[derive(Clone, Copy, Debug)]
pub struct KnownAddresses<'a> {
    /// The pods of this node that have an address.
    pub pods: &'a [LocalPod],
    /// The addresses of all pods of the cluster.
    pub all_pods: &'a Members,
    /// The addresses of all nodes.
    pub nodes: &'a Members,
    /// The blocks of this node's pod addresses, as far as they are known.
    pub pod_cidrs: &'a [IpNet],
    /// The addresses of this host's own interfaces.
    pub host: &'a BTreeSet<IpAddr>,
}

impl KnownAddresses<'_> {
    /// Whether this host, a pod or a node is known to own this address.
    fn is_owned(&self, address: IpAddr) -> bool {
        let family = Family::of(address);
        let member = Member::Address(address);
        self.host.contains(&address)
            || self.all_pods.of(family).contains(&member)
            || self.nodes.of(family).contains(&member)
    }

    /// Whether an interface has an address in the blocks of this node's pods.
    fn is_pods(&self, veth: &Veth) -> bool {
        veth.evidence().any(|address| self.pod_cidrs.iter().any(|block| block.contains(&address)))
    }
}

/// Binds interfaces to pods. `before` are the bindings until now.
///
/// A pod whose network plugin reported its interfaces is behind these, with the addresses and the hardware address that
/// the plugin reported, and behind no other. For all others the addresses have to do:
///
/// An interface that is bound to a pod stays with it for as long as both exist and the pod's addresses stay the same. A
/// pod that is not bound yet is bound to the interface that has exactly its addresses, or else to the only one that has
/// them among others. An interface whose pod's object is gone is retired: it may use no address any more, and is bound
/// to another pod only if no other interface can be.
///
/// Besides the interfaces of pods, these are guarded: all ports of a bridge that has a pod's interface, further
/// interfaces into a pod's network namespace, links to which this host routes the single address that the other end
/// has, and interfaces with an address in the blocks of this node's pods. They may use the addresses that they have, as
/// long as no pod and no node owns them. An interface that was guarded once stays guarded until it is gone.
#[must_use]
pub fn bind(veths: &[Veth], known: &KnownAddresses<'_>, before: &Bindings) -> Bindings {
    let reported = reported(veths, known.pods);
    let mut owners = keep(veths, known.pods, before);
    owners.extend(reported.iter().map(|(index, (pod, _))| (*index, *pod)));
    let mut ambiguous = BTreeSet::new();
    let is_bound = |pod: &LocalPod| owners.values().any(|owner| owner.key == pod.key);
    let (missing, mut waiting): (Vec<&LocalPod>, Vec<&LocalPod>) =
        known.pods.iter().filter(|pod| !is_bound(pod)).partition(|pod| has_reported_interface(pod));
    let is_retired =
        |index: u32| before.ports.get(&index).is_some_and(|port| port.retired || port.pod.is_some());
    for (exactly, retired) in [(true, false), (false, false), (true, true), (false, true)] {
        waiting.retain(|pod| {
            // Other interfaces may be this pod's, so a retired one is not.
            if retired && ambiguous.contains(&pod.key) {
                return true;
            }
            match candidates(veths, pod, exactly, &owners, |index| is_retired(index) == retired).as_slice() {
                [] => true,
                [index] => {
                    owners.insert(*index, pod);
                    false
                }
                several => {
                    // As many pods with these addresses as interfaces: each gets one, and all may use these addresses.
                    let same = known.pods.iter().filter(|other| other.addresses == pod.addresses).count();
                    match several.first() {
                        Some(index) if same >= several.len() => {
                            owners.insert(*index, pod);
                            false
                        }
                        _ => {
                            ambiguous.insert(&pod.key);
                            true
                        }
                    }
                }
            }
        });
    }
    let reason = |pod: &LocalPod| {
        if ambiguous.contains(&pod.key) { Unbound::Ambiguous } else { Unbound::NoInterface }
    };
    let unbound = waiting.into_iter().chain(missing).map(|pod| (pod.key.clone(), reason(pod))).collect();
    let mut ports = BTreeMap::new();
    for veth in veths {
        let pod = owners.get(&veth.index).copied();
        if pod.is_some() || is_guarded(veth, veths, &owners, before) || known.is_pods(veth) {
            let attachment = reported.get(&veth.index).map(|(_, attachment)| *attachment);
            ports.insert(veth.index, port(veth, pod, attachment, known, before.ports.get(&veth.index)));
        }
    }
    part(&mut ports, before);
    Bindings { ports, unbound }
}

/// The interfaces that network plugins reported, each with its pod and its attachment.
fn reported<'a>(veths: &[Veth], pods: &'a [LocalPod]) -> BTreeMap<u32, (&'a LocalPod, &'a Attachment)> {
    let mut by_name: BTreeMap<&str, (&LocalPod, &Attachment)> = BTreeMap::new();
    for pod in pods {
        for attachment in pod.sandbox.iter().flat_map(|sandbox| &sandbox.attachments) {
            by_name.extend(attachment.host_interfaces.iter().map(|name| (&**name, (pod, attachment))));
        }
    }
    veths.iter().filter_map(|veth| Some((veth.index, *by_name.get(&*veth.name)?))).collect()
}

/// Whether a network plugin reported an interface of this pod.
fn has_reported_interface(pod: &LocalPod) -> bool {
    let mut attachments = pod.sandbox.iter().flat_map(|sandbox| &sandbox.attachments);
    attachments.any(|attachment| !attachment.host_interfaces.is_empty())
}

/// The interfaces that stay with their pods.
fn keep<'a>(veths: &[Veth], pods: &'a [LocalPod], before: &Bindings) -> BTreeMap<u32, &'a LocalPod> {
    let stays = |veth: &Veth| {
        let port = before.ports.get(&veth.index)?;
        let key = port.pod.as_ref()?;
        let is_same = |pod: &&LocalPod| pod.key == *key && pod.addresses == port.addresses;
        let pod = pods.iter().filter(|pod| !has_reported_interface(pod)).find(is_same)?;
        Some((veth.index, pod))
    };
    veths.iter().filter_map(stays).collect()
}

/// The unbound interfaces that may be the pod's, among those for which `counts` holds.
fn candidates(
    veths: &[Veth],
    pod: &LocalPod,
    exactly: bool,
    owners: &BTreeMap<u32, &LocalPod>,
    counts: impl Fn(u32) -> bool,
) -> Vec<u32> {
    let wanted: BTreeSet<IpAddr> = pod.addresses.iter().copied().collect();
    let fits = |veth: &&Veth| {
        let there: BTreeSet<IpAddr> = veth.evidence().collect();
        !owners.contains_key(&veth.index)
            && counts(veth.index)
            && if exactly { there == wanted } else { wanted.iter().any(|address| there.contains(address)) }
    };
    veths.iter().filter(fits).map(|veth| veth.index).collect()
}

/// Whether an interface without a known pod is still guarded.
fn is_guarded(veth: &Veth, veths: &[Veth], owners: &BTreeMap<u32, &LocalPod>, before: &Bindings) -> bool {
    let is_pods = |other: &&Veth| {
        owners.contains_key(&other.index)
            || before.ports.get(&other.index).is_some_and(|port| port.pod.is_some() || port.retired)
    };
    let shares_bridge = |other: &Veth| other.bridge.is_some() && other.bridge == veth.bridge;
    // An interface without addresses has nothing to spoof on a network that does not belong to pods.
    let shares_netns = |other: &Veth| other.netns == veth.netns && veth.evidence().next().is_some();
    let stays = before.ports.contains_key(&veth.index);
    let routed = veth.is_read && veth.routed.iter().any(|address| veth.addresses.contains(address));
    stays || routed || veths.iter().filter(is_pods).any(|other| shares_bridge(other) || shares_netns(other))
}

fn port(
    veth: &Veth,
    pod: Option<&LocalPod>,
    attachment: Option<&Attachment>,
    known: &KnownAddresses<'_>,
    before: Option<&Port>,
) -> Port {
    let bound_before = before.filter(|port| pod.is_some_and(|pod| port.pod.as_ref() == Some(&pod.key)));
    let retired = pod.is_none() && before.is_some_and(|port| port.retired || port.pod.is_some());
    let reported = attachment.and_then(|attachment| attachment.mac).map(Mac);
    let read = veth.is_read.then_some(veth.mac);
    let mac = reported.or_else(|| bound_before.and_then(|port| port.mac)).or(read);
    let own = veth.addresses.iter().filter_map(|address| match address {
        IpAddr::V6(address) if address.is_unicast_link_local() => Some(*address),
        _ => None,
    });
    let mut link_local: Vec<Ipv6Addr> = own.chain(mac.map(Mac::link_local)).collect();
    link_local.retain(|address| !known.host.contains(&IpAddr::V6(*address)));
    link_local.sort_unstable();
    link_local.dedup();
    link_local.truncate(MOST_ADDRESSES);
    let addresses = match (pod, attachment) {
        (_, Some(attachment)) => attachment.addresses.clone(),
        (Some(pod), None) => pod.addresses.clone(),
        (None, None) if retired || !veth.is_read => Vec::new(),
        (None, None) => {
            let own = veth.addresses.iter().copied();
            let free = own.filter(|address| !is_link_local(*address) && !known.is_owned(*address));
            free.take(MOST_ADDRESSES).collect()
        }
    };
    let isolated = |direction| pod.is_some_and(|pod| pod.program(direction).is_some());
    Port {
        name: veth.name.clone(),
        bridge: veth.bridge,
        mac: mac.filter(|_| !retired),
        addresses,
        link_local,
        pod: pod.map(|pod| pod.key.clone()),
        retired,
        isolated: [isolated(Direction::Ingress), isolated(Direction::Egress)],
    }
}

/// Ensures that no two interfaces of one bridge have the same hardware or link-local address, and that an interface
/// without a known pod has no address of another interface. The one that was bound first keeps it; pods come before
/// others.
fn part(ports: &mut BTreeMap<u32, Port>, before: &Bindings) {
    let mut order: Vec<u32> = ports.keys().copied().collect();
    let rank = |index: &u32| {
        let port = ports.get(index);
        let had = before
            .ports
            .get(index)
            .is_some_and(|old| port.is_some_and(|port| old.mac.is_some() && old.pod == port.pod));
        (
            !(had && port.is_some_and(|port| port.pod.is_some())),
            port.is_some_and(|port| port.pod.is_none()),
            *index,
        )
    };
    order.sort_by_key(rank);
    let mut macs: BTreeSet<(Option<u32>, Mac)> = BTreeSet::new();
    let mut link_local: BTreeSet<(Option<u32>, Ipv6Addr)> = BTreeSet::new();
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    for index in order {
        let Some(port) = ports.get_mut(&index) else { continue };
        // Separate links share nothing: the same addresses on two of them do no harm.
        if port.bridge.is_some() {
            port.mac = port.mac.filter(|mac| macs.insert((port.bridge, *mac)));
            let bridge = port.bridge;
            port.link_local.retain(|address| link_local.insert((bridge, *address)));
        }
        if port.pod.is_none() {
            port.addresses.retain(|address| addresses.insert(*address));
        } else {
            addresses.extend(&port.addresses);
        }
    }
}

impl Bindings {
    /// The bindings for interfaces that a previous process had closed: processes of pods that are gone may still run
    /// behind them.
    #[must_use]
    pub fn retired(interfaces: impl IntoIterator<Item = u32>) -> Self {
        let port = Port {
            name: String::new(),
            bridge: None,
            mac: None,
            addresses: Vec::new(),
            link_local: Vec::new(),
            pod: None,
            retired: true,
            isolated: [false; 2],
        };
        Self { ports: interfaces.into_iter().map(|index| (index, port.clone())).collect(), ..Self::default() }
    }
}
