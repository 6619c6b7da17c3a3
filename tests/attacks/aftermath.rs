//! The state after the attacks: whether allowed pods still communicate, and what the others believe of neighbours.

use std::net::IpAddr;

use towpath::{
    lab::{End, Probe, Transport},
    model::Family,
};

use crate::{
    bed::{Bed, Who},
    cast::{ATTACKER, FAR_FRIEND, FAR_OPEN, FREE, FRIEND, NODE, OPEN, SHY, VICTIM},
    table::{Expect, Seen, observed},
};

/// Senders and receivers that may communicate, as real connections.
const TALKERS: [(Who, Who); 6] = [
    (FRIEND, SHY),
    (OPEN, FRIEND),
    (VICTIM, FRIEND),
    (FAR_FRIEND, SHY),
    (OPEN, FAR_OPEN),
    (FAR_OPEN, FRIEND),
];

/// Makes all of them learn the true neighbours first.
pub(crate) fn prime(bed: &Bed) {
    for seen in talk(bed) {
        assert!(seen.arrived, "before any attack: {:?}", seen.attack);
    }
}

pub(crate) fn rows(bed: &Bed) -> Vec<Seen> {
    // First the beliefs: communicating refreshes them.
    let mut rows = beliefs(bed);
    rows.extend(talk(bed));
    rows
}

fn talk(bed: &Bed) -> Vec<Seen> {
    let end = |who| match who {
        Who::Pod(place) => End::Pod(bed.id(place)),
        Who::Node(node) => End::Node(node),
        _ => End::External,
    };
    let pairs: Vec<(Who, Who, Family)> =
        TALKERS.iter().flat_map(|(from, to)| Family::BOTH.map(|family| (*from, *to, family))).collect();
    let probes: Vec<Probe> = pairs
        .iter()
        .map(|(from, to, family)| Probe::new(end(*from), bed.address(*to, *family), Transport::Tcp(80)))
        .collect();
    let outcomes = bed.lab.probe_all(&probes, std::time::Duration::from_secs(3)).expect("probes");
    pairs
        .into_iter()
        .zip(outcomes)
        .map(|((from, to, family), outcome)| {
            let name = format!("a connection after all attacks, {family:?}");
            observed(bed, "aftermath", name, (from, to), (Expect::Arrives, outcome.is_open()))
        })
        .collect()
}

fn beliefs(bed: &Bed) -> Vec<Seen> {
    let liars = [FREE, ATTACKER].map(|who| (who, bed.mac(who).to_string()));
    let mut rows = Vec::new();
    for to in [NODE, OPEN, SHY, VICTIM] {
        let table = bed.netns(to).succeed("ip", &["neigh", "show"], "").expect("the neighbours");
        for (about, address) in Family::BOTH.into_iter().flat_map(|family| {
            [("a pod", bed.address(FRIEND, family)), ("the gateway", bed.gateway_address(0, family))]
        }) {
            for (liar, mac) in &liars {
                let believed = table.lines().any(|line| {
                    let mut words = line.split(' ');
                    let same = words.next().and_then(|word| word.parse::<IpAddr>().ok()) == Some(address);
                    same && words.any(|word| word == mac)
                });
                let name = format!("takes the attacker for {about}, {:?}", Family::of(address));
                rows.push(observed(bed, "aftermath", name, (*liar, to), (Expect::Never, believed)));
            }
        }
    }
    rows
}
