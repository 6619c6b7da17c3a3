//! Flows that must be denied, and flows that must be allowed, in every state of a churn of objects and between its
//! states.

use std::net::IpAddr;

use towpath::{
    lab::{End, Flood, FloodFlow, Probe, Transport},
    model::Family,
};

/// A sender and a receiver, each `namespace/name`.
pub(crate) type Pair = (&'static str, &'static str);

/// Senders that must not reach their receiver in any state of the churn, or between two states.
pub(crate) const NEVER: [Pair; 4] = [
    // In one role it may send but is not admitted; in the other role it is admitted but may not send.
    ("shop/turncoat", "shop/receiver"),
    // One policy isolates either the sender or the receiver.
    ("shop/left", "shop/right"),
    // Its namespace changes its label, between two that are not admitted.
    ("team/nomad", "shop/receiver"),
    // Admitted by pods to which the receiver never belongs, and on another node.
    ("far/peer", "shop/receiver"),
];

/// Senders that may always reach their receiver, in every state.
const ALWAYS: [Pair; 3] = [
    ("shop/client", "shop/server"),
    // Changes from one admitted role to another.
    ("far/friend", "shop/server"),
    // Not selected by any policy.
    ("far/peer", "shop/free"),
];

/// The flows of these pairs, in both families. `end` and `address` return those of a pod.
pub(crate) fn flows(
    pairs: &[Pair],
    end: impl Fn(&str) -> End,
    address: impl Fn(&str, Family) -> IpAddr,
) -> Vec<FloodFlow> {
    let flow = |(from, to): &Pair, family| FloodFlow { from: end(from), to: address(to, family), port: 4000 };
    pairs.iter().flat_map(|pair| Family::BOTH.map(|family| flow(pair, family))).collect()
}

/// Probes for the flows that are always allowed, in both families.
pub(crate) fn allowed_probes(
    end: impl Fn(&str) -> End,
    address: impl Fn(&str, Family) -> IpAddr,
) -> Vec<Probe> {
    let probe = |(from, to): &Pair, family| Probe::new(end(from), address(to, family), Transport::Tcp(80));
    ALWAYS.iter().flat_map(|pair| Family::BOTH.map(|family| probe(pair, family))).collect()
}

/// Checks that no datagram of any flow arrived, although each flow sent more than `least`.
#[track_caller]
pub(crate) fn assert_none_arrived(flood: Flood, flows: &[FloodFlow], least: u64, what: &str) {
    let report = flood.stop();
    let sent: u64 = report.sent.iter().sum();
    println!("{what}: {sent} denied datagrams, {} arrived", report.arrivals.len());
    assert!(report.sent.iter().all(|sent| *sent > least), "{:?}", report.sent);
    let leaked: Vec<_> =
        report.arrivals.iter().map(|arrival| (flows[arrival.flow], arrival.sequence)).collect();
    assert!(leaked.is_empty(), "{} leaked, the first: {:?}", leaked.len(), &leaked[..leaked.len().min(4)]);
}
