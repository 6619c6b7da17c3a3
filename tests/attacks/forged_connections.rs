//! Forged packets that open a connection with the victim's address: packets back to the victim are then replies.
//!
//! The victim may send and must not be reached. An attacker sends with the victim's address, to a partner or back to
//! itself, and the node tracks a connection of the victim. Replies pass regardless of policy.

use towpath::{
    lab::frame::{Ip, Link, Mac, protocol},
    model::Family,
};

use crate::{
    bed::{Bed, Host, PORT, source_port},
    pods::{ATTACKER, FAR_OPEN, FAR_VICTIM, FREE, FRIEND, GATE, GUEST, OPEN, OUTSIDE, VICTIM},
    table::{Expect, Outcome, observed},
};

/// The case, the sender of the forged packet, and the pod that answers it.
const PAIRS: [(&str, Host, Host, Expect); 6] = [
    ("a reply to its own forged packet", FREE, FREE, Expect::Never),
    ("a reply to another pod's forged packet", FREE, OPEN, Expect::Never),
    ("a reply to a forged packet of a pod that may not send", ATTACKER, OPEN, Expect::Never),
    ("a reply from the other node to a pod's forged packet", FREE, FAR_OPEN, Expect::Never),
    ("a reply to a packet forged outside", OUTSIDE, OPEN, Expect::Undefended),
    ("a reply to a packet forged on another bridge", GUEST, OPEN, Expect::Undefended),
];

pub(crate) fn rows(bed: &Bed) -> Vec<Outcome> {
    let all: Vec<_> =
        Family::BOTH.into_iter().flat_map(|family| PAIRS.map(|pair| (family, pair, bed.token()))).collect();
    for (family, (_, forger, partner, _), token) in &all {
        let ip = Ip::new(bed.address(VICTIM, *family), bed.address(*partner, *family));
        let packet = ip.packet(protocol::UDP, &ip.udp(source_port(*token), PORT, b"for the record"));
        let link = if forger == partner {
            // To the node and back.
            Link { source: bed.mac(*forger), destination: bed.gateway(*forger) }
        } else {
            bed.link(*forger, *partner)
        };
        bed.send(*forger, &link.ip(&packet));
    }
    bed.settle();
    for (family, (_, _, partner, _), token) in &all {
        let ip = bed.ip(*partner, VICTIM, *family);
        let packet = ip.packet(protocol::UDP, &ip.udp(PORT, source_port(*token), &token.bytes()));
        bed.send(*partner, &bed.link(*partner, VICTIM).ip(&packet));
    }
    // The control: a genuine connection of the victim.
    let genuine = Family::BOTH.map(|family| (family, bed.token()));
    for (family, token) in genuine {
        let ip = bed.ip(VICTIM, FRIEND, family);
        let packet = ip.packet(protocol::UDP, &ip.udp(source_port(token), PORT, b"for the record"));
        bed.send(VICTIM, &bed.link(VICTIM, FRIEND).ip(&packet));
    }
    bed.settle();
    for (family, token) in genuine {
        let ip = bed.ip(FRIEND, VICTIM, family);
        let packet = ip.packet(protocol::UDP, &ip.udp(PORT, source_port(token), &token.bytes()));
        bed.send(FRIEND, &bed.link(FRIEND, VICTIM).ip(&packet));
    }
    bed.settle();
    let forged = all.iter().map(|(family, (name, _, partner, expect), token)| {
        let verdict = (*expect, bed.receivers(*token).contains(&VICTIM));
        observed(bed, "forged connections", format!("{name}, {family:?}"), (*partner, VICTIM), verdict)
    });
    let controls = genuine.into_iter().map(|(family, token)| {
        let verdict = (Expect::Arrives, bed.receivers(token).contains(&VICTIM));
        let name = format!("a reply to a packet of the victim itself, {family:?}");
        observed(bed, "forged connections", name, (FRIEND, VICTIM), verdict)
    });
    let mut rows: Vec<Outcome> = forged.chain(controls).collect();
    rows.extend(Family::BOTH.into_iter().flat_map(|family| simultaneous(bed, family)));
    rows
}

/// Two pods that may both send and must not be reached, sending to each other with the same ports.
///
/// On one node denied packets leave no trace; but a frame to a group's hardware address does not pass the rules before
/// the kernel tracks its connection, on kernels that confirm such frames when a bridge delivers them to its node. On
/// two nodes each node tracks only its own pod, which may send: what the other pod sends is a reply to it.
fn simultaneous(bed: &Bed, family: Family) -> Vec<Outcome> {
    let group = Mac::of_group(bed.address(GATE, family));
    let cases = [
        ("on one node", GATE, None, Expect::Never),
        ("on one node, by a group's hardware address", GATE, Some(group), Expect::Never),
        ("on one node, by broadcast", GATE, Some(Mac::BROADCAST), Expect::Never),
        ("on two nodes", FAR_VICTIM, None, Expect::Undefended),
    ];
    let all = cases.map(|case| (case, bed.token()));
    let send = |from: Host, to: Host, ports: (u16, u16), mac: Option<Mac>, payload: &[u8]| {
        let ip = bed.ip(from, to, family);
        let packet = ip.packet(protocol::UDP, &ip.udp(ports.0, ports.1, payload));
        let link = bed.link(from, to);
        bed.send(from, &Link { destination: mac.unwrap_or(link.destination), ..link }.ip(&packet));
    };
    for ((_, partner, mac, _), token) in &all {
        send(VICTIM, *partner, (source_port(*token), PORT), *mac, b"for the record");
    }
    bed.settle();
    for ((_, partner, ..), token) in &all {
        send(*partner, VICTIM, (PORT, source_port(*token)), None, &token.bytes());
    }
    bed.settle();
    all.into_iter()
        .map(|((name, partner, _, expect), token)| {
            let verdict = (expect, bed.receivers(token).contains(&VICTIM));
            let name = format!("simultaneous datagrams, {name}, {family:?}");
            observed(bed, "forged connections", name, (partner, VICTIM), verdict)
        })
        .collect()
}
