//! Reachability: the verdict of every flow between many ends.

use std::{collections::BTreeSet, net::IpAddr};

use crate::model::{Cluster, Direction, Endpoint, Family, Port, Ports, Protocol, Transport};

use super::{
    evaluate::Pair,
    resolved_endpoint::{ResolvedEndpoint, families},
};

/// For every ordered pair of ends and every transport, whether it may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachability {
    endpoints: Vec<Endpoint>,
    transports: Vec<Transport>,
    /// By sender, receiver and transport, in this order.
    cells: Vec<Reach>,
}

/// Whether one end may reach another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// It is the same end.
    Itself,
    /// Allowed, in every family that both have.
    Allowed,
    /// Denied, in every family.
    Denied,
    /// Allowed in this family, and denied in the other; the flag says whether this is the family that the flow would
    /// use, the first one of the receiver.
    Only(Family, bool),
}

impl Reach {
    /// Whether a packet in `family` passes; `None` means the family that the flow would use.
    #[must_use]
    pub fn allowed(self, family: Option<Family>) -> bool {
        match self {
            Self::Itself | Self::Allowed => true,
            Self::Denied => false,
            Self::Only(only, preferred) => family.map_or(preferred, |family| family == only),
        }
    }

    /// Merges the verdicts of the families, the one that the flow would use first.
    fn merge(verdicts: &[(Option<Family>, bool)]) -> Self {
        match verdicts {
            [(Some(first), true), (_, false)] => Self::Only(*first, true),
            [(_, false), (Some(second), true)] => Self::Only(*second, false),
            [(_, true), ..] => Self::Allowed,
            _ => Self::Denied,
        }
    }
}

impl Reachability {
    /// The table of all pods that have not finished, sorted, and then of the addresses in `external`.
    ///
    /// Each pair is evaluated once for all transports: the cost is pairs times rules of the policies that select the
    /// two.
    #[must_use]
    pub fn new(cluster: &Cluster, external: &[IpAddr], transports: &[Transport]) -> Self {
        let endpoints = endpoints(cluster, external);
        let transports: Vec<Transport> = distinct(transports);
        let parties: Vec<ResolvedEndpoint<'_>> =
            endpoints.iter().map(|endpoint| ResolvedEndpoint::new(cluster, endpoint)).collect();
        let mut cells = Vec::with_capacity(endpoints.len() * endpoints.len() * transports.len());
        for (row, from) in parties.iter().enumerate() {
            for (column, to) in parties.iter().enumerate() {
                if row == column {
                    cells.extend(transports.iter().map(|_| Reach::Itself));
                } else {
                    cells.extend(between(from, to, &transports));
                }
            }
        }
        Self { endpoints, transports, cells }
    }

    /// The ends, pods first.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The transports, in the order in which they were given.
    #[must_use]
    pub fn transports(&self) -> &[Transport] {
        &self.transports
    }

    /// Whether the `from`th end may reach the `to`th end with the `transport`th transport.
    ///
    /// `None` if an index is out of range.
    #[must_use]
    pub fn reach(&self, from: usize, to: usize, transport: usize) -> Option<Reach> {
        let ends = self.endpoints.len();
        let within = from < ends && to < ends && transport < self.transports.len();
        let at = (from * ends + to) * self.transports.len() + transport;
        within.then(|| self.cells.get(at).copied()).flatten()
    }

    /// Every flow between two different ends: by transport, sender and receiver.
    pub fn flows(&self) -> impl Iterator<Item = (&Endpoint, &Endpoint, Transport, Reach)> {
        let ends = || self.endpoints.iter().enumerate();
        self.transports.iter().enumerate().flat_map(move |(at, transport)| {
            ends().flat_map(move |(row, from)| {
                ends().filter(move |(column, _)| *column != row).filter_map(move |(column, to)| {
                    Some((from, to, *transport, self.reach(row, column, at)?))
                })
            })
        })
    }
}

/// The verdict of each of `transports` between two different ends.
pub(super) fn between(
    from: &ResolvedEndpoint<'_>,
    to: &ResolvedEndpoint<'_>,
    transports: &[Transport],
) -> Vec<Reach> {
    let mut shared: Vec<Option<Family>> = families(from, to).into_iter().map(Some).collect();
    if shared.is_empty() {
        shared.push(None);
    }
    let verdicts: Vec<(Option<Family>, Vec<bool>)> =
        shared.into_iter().map(|family| (family, Pair { from, to, family }.passing(transports))).collect();
    let of = |at: usize| -> Vec<(Option<Family>, bool)> {
        verdicts.iter().filter_map(|(family, passing)| Some((*family, *passing.get(at)?))).collect()
    };
    (0..transports.len()).map(|at| Reach::merge(&of(at))).collect()
}

/// All pods that have not finished, sorted, and then the addresses in `external`, each once.
pub(super) fn endpoints(cluster: &Cluster, external: &[IpAddr]) -> Vec<Endpoint> {
    let pods = cluster.pods().filter(|pod| !pod.is_finished()).map(|pod| Endpoint::Pod(pod.key.clone()));
    let external: BTreeSet<IpAddr> = external.iter().copied().collect();
    pods.chain(external.into_iter().map(Endpoint::Address)).collect()
}

/// The transports worth checking: every container port of a pod that has not finished, and every number that a policy
/// names; of a range its first and its last port. Sorted by number, then by protocol.
#[must_use]
pub fn known_transports(cluster: &Cluster) -> Vec<Transport> {
    let mut known: BTreeSet<(u16, Protocol)> = BTreeSet::new();
    for pod in cluster.pods().filter(|pod| !pod.is_finished()) {
        known.extend(pod.ports.iter().map(|port| (port.number, port.protocol)));
    }
    let rules = cluster
        .policies()
        .flat_map(|policy| Direction::BOTH.into_iter().filter_map(|direction| policy.rules(direction)))
        .flatten();
    for rule in rules {
        let Ports::Of(ports) = &rule.ports else { continue };
        for port in ports {
            if let Port::Range(protocol, range) = port {
                known.extend([(range.first(), *protocol), (range.last(), *protocol)]);
            }
        }
    }
    known.into_iter().map(|(number, protocol)| Transport::Port(protocol, number)).collect()
}

pub(super) fn distinct(transports: &[Transport]) -> Vec<Transport> {
    let mut seen = BTreeSet::new();
    transports.iter().copied().filter(|transport| seen.insert(*transport)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Change, ContainerPort, IpBlock, LabelSelector, NetworkPolicy, ObjectKey, Peer, Peers, Phase, Pod,
        PolicyRule, PortRange, Standing,
    };

    fn mk_pod(name: &str, addresses: &[&str]) -> Pod {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Pod { addresses, ..Pod::new(ObjectKey::new("shop", name)) }
    }

    /// Isolates every pod of the namespace for ingress, and allows these blocks to these ports.
    fn mk_policy(blocks: &[&str], ports: Ports) -> NetworkPolicy {
        let block = |cidr: &&str| Peer::Block(IpBlock::new(cidr.parse().unwrap(), []).unwrap());
        NetworkPolicy {
            key: ObjectKey::new("shop", "p"),
            subject: LabelSelector::everything(),
            ingress: Some(vec![PolicyRule { peers: Peers::Of(blocks.iter().map(block).collect()), ports }]),
            egress: None,
            standing: Standing::Accepted,
        }
    }

    fn mk_cluster(pods: &[Pod], policy: Option<NetworkPolicy>) -> Cluster {
        let mut cluster = Cluster::new();
        for change in pods.iter().cloned().map(Change::SetPod).chain(policy.map(Change::SetPolicy)) {
            cluster.apply(change);
        }
        cluster
    }

    fn table(cluster: &Cluster, external: &[&str]) -> Reachability {
        let external: Vec<_> = external.iter().map(|address| address.parse().unwrap()).collect();
        Reachability::new(cluster, &external, &["80".parse().unwrap()])
    }

    #[test]
    fn endpoints_are_unfinished_pods_and_requested_addresses() {
        let done = Pod { phase: Phase::Failed, ..mk_pod("done", &["10.0.0.9"]) };
        let cluster = mk_cluster(&[mk_pod("web", &[]), done, mk_pod("db", &[])], None);
        let table = table(&cluster, &["172.17.0.9", "172.17.0.9"]);
        let ends: Vec<_> = table.endpoints().iter().map(ToString::to_string).collect();
        assert_eq!(ends, ["shop/db", "shop/web", "ip:172.17.0.9"]);
        assert_eq!(table.flows().count(), 6);
        assert_eq!(table.reach(1, 1, 0), Some(Reach::Itself));
        assert_eq!(table.reach(0, 1, 0), Some(Reach::Allowed));
        assert_eq!(table.reach(0, 3, 0), None);
        assert_eq!(table.reach(0, 0, 1), None);
    }

    #[test]
    fn known_transports_are_declared_ports_and_ports_in_policies() {
        let declares = |number| vec![ContainerPort { name: None, protocol: Protocol::Udp, number }];
        let web = Pod { ports: declares(53), ..mk_pod("web", &[]) };
        let done = Pod { ports: declares(99), phase: Phase::Succeeded, ..mk_pod("done", &[]) };
        let ports = vec![
            Port::Range(Protocol::Tcp, PortRange::new(8000, 8009).unwrap()),
            Port::Range(Protocol::Tcp, PortRange::single(53)),
            Port::All(Protocol::Sctp),
            Port::Named(Protocol::Tcp, "http".into()),
        ];
        let cluster = mk_cluster(&[web, done], Some(mk_policy(&[], Ports::Of(ports))));
        let known: Vec<_> = known_transports(&cluster).iter().map(ToString::to_string).collect();
        assert_eq!(known, ["53/TCP", "53/UDP", "8000/TCP", "8009/TCP"]);
    }

    #[test]
    fn pair_with_different_verdicts_by_family_keeps_both() {
        let pods = [mk_pod("four", &["10.0.0.1", "fd00::1"]), mk_pod("six", &["fd00::2", "10.0.0.2"])];
        let cluster = mk_cluster(&pods, Some(mk_policy(&["10.0.0.0/8"], Ports::Any)));
        let table = table(&cluster, &[]);
        assert_eq!(table.reach(1, 0, 0), Some(Reach::Only(Family::V4, true)));
        assert_eq!(table.reach(0, 1, 0), Some(Reach::Only(Family::V4, false)));
        assert!(table.reach(1, 0, 0).unwrap().allowed(None));
        assert!(!table.reach(0, 1, 0).unwrap().allowed(None));
    }
}
