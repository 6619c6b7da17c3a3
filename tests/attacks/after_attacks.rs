//! The state after the attacks: whether allowed pods still communicate, and what neighbour tables contain.

use std::net::IpAddr;

use towpath::{
    lab::{End, Probe, Transport},
    model::Family,
};

use crate::{
    bed::{Bed, Host},
    pods::{ATTACKER, FAR_FRIEND, FAR_OPEN, FREE, FRIEND, NODE, OPEN, SHY, VICTIM},
    table::{Expect, Outcome, observed},
};

/// Senders and receivers that may communicate, as real connections.
const ALLOWED: [(Host, Host); 6] = [
    (FRIEND, SHY),
    (OPEN, FRIEND),
    (VICTIM, FRIEND),
    (FAR_FRIEND, SHY),
    (OPEN, FAR_OPEN),
    (FAR_OPEN, FRIEND),
];

/// Makes all of them learn the true hardware addresses first.
pub(crate) fn connect_before(bed: &Bed) {
    for outcome in connect(bed) {
        assert!(outcome.arrived, "before any attack: {:?}", outcome.attack);
    }
}

pub(crate) fn rows(bed: &Bed) -> Vec<Outcome> {
    // First the neighbour tables: communicating refreshes them.
    let mut rows = neighbour_tables(bed);
    rows.extend(connect(bed));
    rows
}

fn connect(bed: &Bed) -> Vec<Outcome> {
    let end = |host| match host {
        Host::Pod(place) => End::Pod(bed.id(place)),
        Host::Node(node) => End::Node(node),
        _ => End::External,
    };
    let pairs: Vec<(Host, Host, Family)> =
        ALLOWED.iter().flat_map(|(from, to)| Family::BOTH.map(|family| (*from, *to, family))).collect();
    let probes: Vec<Probe> = pairs
        .iter()
        .map(|(from, to, family)| Probe::new(end(*from), bed.address(*to, *family), Transport::Tcp(80)))
        .collect();
    let outcomes = bed.lab.probe_all(&probes, std::time::Duration::from_secs(3)).expect("probes");
    pairs
        .into_iter()
        .zip(outcomes)
        .map(|((from, to, family), outcome)| {
            let name = format!("a connection, {family:?}");
            observed(bed, "after the attacks", name, (from, to), (Expect::Arrives, outcome.is_open()))
        })
        .collect()
}

fn neighbour_tables(bed: &Bed) -> Vec<Outcome> {
    let attackers = [FREE, ATTACKER].map(|host| (host, bed.mac(host).to_string()));
    let mut rows = Vec::new();
    for to in [NODE, OPEN, SHY, VICTIM] {
        let table = bed.netns(to).succeed("ip", &["neigh", "show"], "").expect("the neighbours");
        for (about, address) in Family::BOTH.into_iter().flat_map(|family| {
            [("a pod", bed.address(FRIEND, family)), ("the gateway", bed.gateway_address(0, family))]
        }) {
            for (attacker, mac) in &attackers {
                let is_poisoned = table.lines().any(|line| {
                    let mut words = line.split(' ');
                    let same = words.next().and_then(|word| word.parse::<IpAddr>().ok()) == Some(address);
                    same && words.any(|word| word == mac)
                });
                let name = format!("the attacker's hardware address for {about}, {:?}", Family::of(address));
                rows.push(observed(
                    bed,
                    "after the attacks",
                    name,
                    (*attacker, to),
                    (Expect::Never, is_poisoned),
                ));
            }
        }
    }
    rows
}
