//! Random frames from random pods of random clusters, checked against the evaluator and their true senders.
//!
//! A frame may arrive at another pod, or outside, only if its true sender's own address is its source, the receiver has
//! its destination, and `policy::evaluate` allows the flow from that sender to that receiver; or if it is a neighbour
//! message of the permitted kind. Plain allowed frames must arrive.
//!
//! `TOWPATH_FRAMES` sets the number of frames in each lab, `TOWPATH_CLUSTERS` the number of clusters, `TOWPATH_SEED`
//! the first one (`make soak-flows`).

use std::{collections::BTreeMap, net::IpAddr};

use towpath::{
    lab::{
        Topology, Variant,
        frame::Token,
        random::{Generator, Random, Shape, Stack, cluster_of},
    },
    model::{Cluster, Direction, Endpoint, Flow, Pod, Transport},
    policy::evaluate,
};

use crate::{
    bed::{Bed, Host, PodPlan, Setting},
    env::number,
    frames::{Fuzzer, Sent},
    model_objects,
    root::has_root,
};

/// Whether a frame may have arrived at a receiver.
fn may_arrive(cluster: &Cluster, bed: &Bed, pods: &[Pod], sent: &Sent, at: Host) -> bool {
    let on_link = bed.on_link(Host::Pod(sent.from), at);
    if sent.discovery && on_link {
        return true;
    }
    let Some(transport) = sent.transport else { return false };
    let sender = Endpoint::Pod(pods[sent.from].key.clone());
    let (receiver, is_receivers) = if let Host::Pod(place) = at {
        let pod = &pods[place];
        (Endpoint::Pod(pod.key.clone()), pod.addresses.contains(&sent.destination))
    } else {
        let address = bed.address(at, sent.family);
        (Endpoint::Address(address), address == sent.destination)
    };
    let to_all = match sent.destination {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast() || address.octets()[3] == 255,
        IpAddr::V6(address) => address.is_multicast(),
    };
    let verdict = |from: &Endpoint, to: &Endpoint| {
        let (from, to, family) = (from.clone(), to.clone(), Some(sent.family));
        evaluate(cluster, &Flow { from, to, transport, family })
    };
    // Without ports, if the receiver may start a connection, everything in its other direction is a reply; on another
    // node it has started when it was sent, whatever the sender's own node does with it (SECURITY.md).
    let back = verdict(&receiver, &sender);
    let begun = back.allowed()
        || bed.node_of(at) != bed.node_of(Host::Pod(sent.from)) && back.of(Direction::Egress).allowed();
    let reply = matches!(transport, Transport::Other(_)) && begun;
    (is_receivers || to_all && on_link) && (verdict(&sender, &receiver).allowed() || reply)
}

fn fuzz(topology: Topology, variant: Variant) {
    if !has_root() {
        return;
    }
    let (first, clusters) = (number("TOWPATH_SEED", 1), number("TOWPATH_CLUSTERS", 1));
    let due: usize = (first..first + clusters)
        .map(|seed| fuzz_one(Setting { topology, variant }, seed, number("TOWPATH_FRAMES", 1500)))
        .sum();
    // In some clusters no flow is allowed; the first one is not such a cluster.
    assert!(due > 0 || first != 1, "no frame was sent that must arrive");
}

/// Returns how many frames had to arrive, and did.
fn fuzz_one(setting: Setting, seed: u64, frames: u64) -> usize {
    let shape = Shape { stack: Stack::Dual, namespaces: 3, pods: 3, policies: 6, oddities: false };
    let cluster = cluster_of(Generator::new(seed, shape).cluster());
    let pods: Vec<Pod> = cluster.pods().map(|pod| (**pod).clone()).collect();
    let plans: Vec<PodPlan> = pods
        .iter()
        .map(|pod| PodPlan {
            name: pod.key.to_string(),
            node: usize::from(pod.node.as_deref() == Some("n2")),
            addresses: pod.addresses.clone(),
            named: true,
        })
        .collect();
    let objects: Vec<_> = cluster
        .namespaces()
        .map(|namespace| model_objects::namespace(namespace))
        .chain(cluster.policies().map(|policy| model_objects::policy(policy)))
        .collect();
    let bed = Bed::new(setting, &plans, |place, _, _| model_objects::pod(&pods[place]), &objects);
    let mut fuzzer = Fuzzer { bed: &bed, pods: &pods, random: Random::new(seed ^ 0xf00d) };
    let mut all = Vec::new();
    for _ in 0..frames {
        let (sent, frames) = if fuzzer.random.chance(12) { fuzzer.discovery() } else { fuzzer.packet() };
        for frame in &frames {
            bed.send(Host::Pod(sent.from), frame);
        }
        all.push(sent);
    }
    bed.settle();
    let (mut leaks, mut outages) = (BTreeMap::new(), BTreeMap::new());
    let (mut allowed, mut due) = (0, 0);
    for sent in &all {
        let arrivals = bed.receivers(sent.token);
        for at in arrivals.iter().copied() {
            // An outside host shares the wire with the nodes; frames that are not for it only pass by.
            let passes_by = match at {
                Host::Pod(place) => place == sent.from,
                Host::Outside => sent.destination != bed.address(Host::Outside, sent.family),
                Host::Node(_) | Host::Guest(_) => true,
            };
            if passes_by {
                continue;
            }
            if may_arrive(&cluster, &bed, &pods, sent, at) {
                allowed += 1;
            } else {
                let name = format!("{} -> {}", bed.name(Host::Pod(sent.from)), bed.name(at));
                leaks.insert(sent.token, format!("{name}: {}", sent.description));
            }
        }
        let receiver = pods.iter().position(|pod| pod.addresses.contains(&sent.destination)).map(Host::Pod);
        let receiver = receiver.filter(|to| sent.plain && *to != Host::Pod(sent.from));
        let Some(to) = receiver.filter(|to| may_arrive(&cluster, &bed, &pods, sent, *to)) else { continue };
        due += 1;
        if !arrivals.contains(&to) {
            let name = format!("{} -> {}", bed.name(Host::Pod(sent.from)), bed.name(to));
            outages.insert(sent.token, format!("{name}: {}", sent.description));
        }
    }
    let context = format!("{setting:?}, seed {seed}, {frames} frames");
    println!(
        "{context}: {allowed} arrivals that are allowed, {} that are not; {} of {due} plain ones missing",
        leaks.len(),
        outages.len()
    );
    let list = |of: &BTreeMap<Token, String>| of.values().take(40).cloned().collect::<Vec<_>>().join("\n  ");
    assert!(
        leaks.is_empty() && outages.is_empty(),
        "{context}\n{} arrived that must not:\n  {}\n{} did not arrive:\n  {}\n{:#?}\n{}",
        leaks.len(),
        list(&leaks),
        outages.len(),
        list(&outages),
        cluster.policies().collect::<Vec<_>>(),
        bed.logs()
    );
    bed.end();
    due
}

#[test]
fn only_allowed_frames_arrive_on_a_bridge() {
    fuzz(Topology::Bridge, Variant::Nft);
}

#[test]
fn only_allowed_frames_arrive_point_to_point() {
    fuzz(Topology::PointToPoint, Variant::Legacy);
}

#[test]
fn only_allowed_frames_arrive_over_vxlan() {
    fuzz(Topology::Vxlan, Variant::Nft);
}
