//! Ports that no policy tells apart, so that a question about all ports has few parts.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
};

use crate::model::{
    Cluster, Direction, Peers, PolicyRule, Port, PortRange, Ports, Protocol, Standing, Transport,
};

use super::{partition::Partition, ports::PortSet};

/// How many classes are told apart. A table of classes of ends has a verdict for each.
const MOST: usize = 4096;

/// The number of the protocol that stands for all without ports: policies do not tell these apart. It is ICMP.
const WITHOUT_PORTS: u8 = 1;

/// All ports of all protocols, and the protocols without ports, by which rules allow them.
///
/// Two ports are of one class if each list of `ports` in a policy has both or neither, and each port name means both or
/// neither in any pod.
#[derive(Clone, Debug)]
pub struct PortClasses {
    /// The ranges of each class.
    classes: Vec<Vec<(Protocol, PortRange)>>,
    /// How many classes there are beyond those that are told apart.
    omitted: usize,
}

impl PortClasses {
    /// The classes by the policies and the pods of all these clusters.
    ///
    /// At most 4096 are told apart, and [`Self::omitted`] tells how many are not.
    #[must_use]
    pub fn of(clusters: &[&Cluster]) -> Self {
        let lists: HashSet<&[Port]> = clusters.iter().flat_map(|cluster| lists(cluster)).collect();
        let named = named_numbers(clusters, &lists);
        let intervals = intervals(&lists, &named);
        let mut partition = Partition::new(intervals.len());
        partition.split_by(intervals.iter().map(|(protocol, _)| *protocol));
        for list in lists {
            let ranges = list.iter().filter_map(|port| match port {
                Port::All(protocol) => Some((*protocol, PortRange::new(1, u16::MAX)?)),
                Port::Range(protocol, range) => Some((*protocol, *range)),
                Port::Named(..) => None,
            });
            let ports: PortSet = ranges.collect();
            for (protocol, ranges) in ports.iter() {
                partition.split(ranges.iter().flat_map(|range| within(&intervals, protocol, *range)));
            }
        }
        for (protocol, number) in named {
            partition.split(within(&intervals, protocol, PortRange::single(number)));
        }
        let (_, members) = partition.finish();
        let range = |at: &usize| intervals.get(*at).copied();
        let mut classes: Vec<Vec<_>> =
            members.iter().map(|members| members.iter().filter_map(range).collect()).collect();
        let omitted = classes.len().saturating_sub(MOST);
        classes.truncate(MOST);
        Self { classes, omitted }
    }

    /// How many classes there are beyond those that are told apart: their ports are in no answer.
    #[must_use]
    pub const fn omitted(&self) -> usize {
        self.omitted
    }

    /// A transport of each class; the last one is of those without ports.
    #[must_use]
    pub fn transports(&self) -> Vec<Transport> {
        let first = self.classes.iter().filter_map(|ranges| ranges.first());
        let ports = first.map(|(protocol, range)| Transport::Port(*protocol, range.first()));
        ports.chain([Transport::Other(WITHOUT_PORTS)]).collect()
    }

    /// What these classes contain, by their index in [`Self::transports`].
    #[must_use]
    pub fn union(&self, classes: impl IntoIterator<Item = usize>) -> TransportSet {
        let mut ranges = Vec::new();
        let mut without_ports = false;
        for class in classes {
            match self.classes.get(class) {
                Some(of_class) => ranges.extend(of_class.iter().copied()),
                None => without_ports = true,
            }
        }
        TransportSet { ports: ranges.into_iter().collect(), without_ports }
    }
}

/// The lists of ports in a cluster's policies.
fn lists(cluster: &Cluster) -> impl Iterator<Item = &[Port]> {
    let policies = cluster.policies().filter(|policy| policy.standing == Standing::Accepted);
    let rules = policies
        .flat_map(|policy| Direction::BOTH.into_iter().filter_map(|direction| policy.rules(direction)))
        .flatten();
    // A rule without peers allows nothing on any port.
    rules.filter(|rule| rule.peers != Peers::Of(Vec::new())).filter_map(
        |PolicyRule { ports, .. }| match ports {
            Ports::Any => None,
            Ports::Of(ports) => Some(ports.as_slice()),
        },
    )
}

/// Every number that a name in these lists means in some pod.
fn named_numbers(clusters: &[&Cluster], lists: &HashSet<&[Port]>) -> BTreeSet<(Protocol, u16)> {
    let names: HashSet<(Protocol, &str)> = lists
        .iter()
        .copied()
        .flatten()
        .filter_map(|port| match port {
            Port::Named(protocol, name) => Some((*protocol, &**name)),
            Port::All(_) | Port::Range(..) => None,
        })
        .collect();
    let pods = clusters.iter().flat_map(|cluster| cluster.pods()).filter(|pod| !pod.is_finished());
    let ports = pods
        .flat_map(|pod| &pod.ports)
        .filter(|port| port.name.as_deref().is_some_and(|name| names.contains(&(port.protocol, name))));
    ports.map(|port| (port.protocol, port.number)).collect()
}

/// All ports of each protocol, cut where a range begins or ends. Ascending.
fn intervals(lists: &HashSet<&[Port]>, named: &BTreeSet<(Protocol, u16)>) -> Vec<(Protocol, PortRange)> {
    let mut starts: BTreeMap<Protocol, BTreeSet<u16>> =
        Protocol::ALL.into_iter().map(|protocol| (protocol, BTreeSet::from([1]))).collect();
    let mut cut = |protocol: Protocol, range: PortRange| {
        let starts = starts.entry(protocol).or_default();
        starts.insert(range.first().max(1));
        starts.extend(range.last().checked_add(1));
    };
    for port in lists.iter().copied().flatten() {
        if let Port::Range(protocol, range) = port {
            cut(*protocol, *range);
        }
    }
    for (protocol, number) in named {
        cut(*protocol, PortRange::single(*number));
    }
    let mut intervals = Vec::new();
    for (protocol, starts) in starts {
        let next = starts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
        let ranges = starts.iter().zip(next).filter_map(|(first, last)| PortRange::new(*first, last));
        intervals.extend(ranges.map(|range| (protocol, range)));
    }
    intervals
}

/// The intervals in a range that begins and ends with one.
fn within(
    intervals: &[(Protocol, PortRange)],
    protocol: Protocol,
    range: PortRange,
) -> impl Iterator<Item = usize> {
    let at = |port: u16| intervals.partition_point(|(of, known)| (*of, known.first()) < (protocol, port));
    let end =
        range.last().checked_add(1).map_or_else(|| intervals.partition_point(|(of, _)| *of <= protocol), at);
    at(range.first().max(1))..end
}

/// Ports, and whether the protocols without ports are among them.
///
/// Displays as a person would say it: `80/TCP, 8000-8009/TCP`, `all TCP ports but 22`, `all traffic`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransportSet {
    /// The ports by protocol.
    pub ports: PortSet,
    /// The protocols without ports, such as ICMP.
    pub without_ports: bool,
}

impl TransportSet {
    /// Every port of every protocol, and the protocols without ports.
    #[must_use]
    pub fn everything() -> Self {
        Self { ports: whole(Protocol::ALL), without_ports: true }
    }

    /// Whether this port is one of them.
    #[must_use]
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        let mut of_protocol = self.ports.iter().filter(|(of, _)| *of == protocol);
        of_protocol.any(|(_, ranges)| ranges.iter().any(|range| range.contains(port)))
    }

    /// `80/TCP`, `8000-8009/TCP` and so on, and `other` for the protocols without ports.
    #[must_use]
    pub fn entries(&self) -> Vec<String> {
        let mut entries = entries(&self.ports);
        if self.without_ports {
            entries.push("other".to_owned());
        }
        entries
    }

    /// The parts of the text, so that a long one may be cut.
    #[must_use]
    pub fn parts(&self) -> Vec<String> {
        let of = |protocol: Protocol| {
            let missing = whole([protocol]).minus(&self.ports);
            (whole([protocol]).minus(&missing), missing)
        };
        let missing = whole(Protocol::ALL).minus(&self.ports);
        let is_nearly_all = |(present, missing): (PortSet, PortSet)| is_nearly_all(&present, &missing);
        if self.without_ports && Protocol::ALL.into_iter().map(of).all(is_nearly_all) {
            return vec![all_but("all traffic", &entries(&missing))];
        }
        let mut parts = Vec::new();
        for protocol in Protocol::ALL {
            let (present, missing) = of(protocol);
            if is_nearly_all((present.clone(), missing.clone())) {
                let missing = missing.iter().flat_map(|(_, ranges)| ranges).map(ToString::to_string);
                parts.push(all_but(&format!("all {protocol} ports"), &missing.collect::<Vec<_>>()));
            } else {
                parts.extend(entries(&present));
            }
        }
        if self.without_ports {
            parts.push("protocols without ports".to_owned());
        }
        parts
    }
}

/// Up to this many ranges of a protocol are named as exceptions.
const FEW: usize = 8;

/// Whether the ports of a protocol are better told by those that are missing.
fn is_nearly_all(present: &PortSet, missing: &PortSet) -> bool {
    let ranges = |ports: &PortSet| ports.iter().map(|(_, ranges)| ranges.len()).sum::<usize>();
    let numbers = |ports: &PortSet| -> u32 {
        let ranges = ports.iter().flat_map(|(_, ranges)| ranges);
        ranges.map(|range| u32::from(range.last()) - u32::from(range.first()) + 1).sum()
    };
    let few = ranges(missing) <= FEW && ranges(missing) < ranges(present);
    few && numbers(missing) < numbers(present)
}

fn whole(protocols: impl IntoIterator<Item = Protocol>) -> PortSet {
    let range = PortRange::new(1, u16::MAX);
    protocols.into_iter().filter_map(|protocol| Some((protocol, range?))).collect()
}

fn entries(ports: &PortSet) -> Vec<String> {
    let of = |(protocol, ranges): (Protocol, &[PortRange])| -> Vec<String> {
        ranges.iter().map(|range| format!("{range}/{protocol}")).collect()
    };
    ports.iter().flat_map(of).collect()
}

fn all_but(all: &str, missing: &[String]) -> String {
    if missing.is_empty() { all.to_owned() } else { format!("{all} but {}", missing.join(", ")) }
}

impl fmt::Display for TransportSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parts().join(", "))
    }
}

#[cfg(test)]
mod tests;
