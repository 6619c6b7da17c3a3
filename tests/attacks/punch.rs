//! Forged packets that open a connection in the victim's name: packets back to the victim are then replies.
//!
//! The victim may send and must not be reached. An attacker sends as the victim, to a partner or back to itself, and
//! the node tracks a connection of the victim's. Replies pass whatever the policy.

use towpath::{
    lab::frame::{Ip, Link, Mac, protocol},
    model::Family,
};

use crate::{
    bed::{Bed, PORT, Who, source_port},
    cast::{ATTACKER, FAR_OPEN, FAR_VICTIM, FREE, FRIEND, GATE, GUEST, OPEN, OUTSIDE, VICTIM},
    table::{Expect, Seen, observed},
};

/// The case, the forger, and the one that answers.
const PAIRS: [(&str, Who, Who, Expect); 6] = [
    ("a reply to what the sender itself forged", FREE, FREE, Expect::Never),
    ("a reply to what another pod forged", FREE, OPEN, Expect::Never),
    ("a reply to what a pod that may not send forged", ATTACKER, OPEN, Expect::Never),
    ("a reply from the other node to what a pod forged", FREE, FAR_OPEN, Expect::Never),
    ("a reply to what was forged outside", OUTSIDE, OPEN, Expect::Undefended),
    ("a reply to what was forged on another bridge", GUEST, OPEN, Expect::Undefended),
];

pub(crate) fn rows(bed: &Bed) -> Vec<Seen> {
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
    // The same without any forgery before it: a true connection of the victim's.
    let honest = Family::BOTH.map(|family| (family, bed.token()));
    for (family, token) in honest {
        let ip = bed.ip(VICTIM, FRIEND, family);
        let packet = ip.packet(protocol::UDP, &ip.udp(source_port(token), PORT, b"for the record"));
        bed.send(VICTIM, &bed.link(VICTIM, FRIEND).ip(&packet));
    }
    bed.settle();
    for (family, token) in honest {
        let ip = bed.ip(FRIEND, VICTIM, family);
        let packet = ip.packet(protocol::UDP, &ip.udp(PORT, source_port(token), &token.bytes()));
        bed.send(FRIEND, &bed.link(FRIEND, VICTIM).ip(&packet));
    }
    bed.settle();
    let forged = all.iter().map(|(family, (name, _, partner, expect), token)| {
        let verdict = (*expect, bed.seen(*token).contains(&VICTIM));
        observed(bed, "forged connections", format!("{name}, {family:?}"), (*partner, VICTIM), verdict)
    });
    let true_ones = honest.into_iter().map(|(family, token)| {
        let verdict = (Expect::Arrives, bed.seen(token).contains(&VICTIM));
        let name = format!("a reply to what the victim itself sent, {family:?}");
        observed(bed, "forged connections", name, (FRIEND, VICTIM), verdict)
    });
    let mut rows: Vec<Seen> = forged.chain(true_ones).collect();
    rows.extend(Family::BOTH.into_iter().flat_map(|family| together(bed, family)));
    rows
}

/// Two pods that may both send and must not be reached, sending to each other with the same ports.
///
/// On one node denied packets leave no trace; but a frame to a group's hardware address does not pass the rules before
/// the kernel tracks its connection, on kernels that confirm such frames when a bridge delivers them to its node. On
/// two nodes each of them knows only its own pod, which may send: what the other one sends is a reply to it.
fn together(bed: &Bed, family: Family) -> Vec<Seen> {
    let group = Mac::of_group(bed.address(GATE, family));
    let cases = [
        ("on one node", GATE, None, Expect::Never),
        ("on one node, by a group's hardware address", GATE, Some(group), Expect::Never),
        ("on one node, by broadcast", GATE, Some(Mac::BROADCAST), Expect::Never),
        ("on two nodes", FAR_VICTIM, None, Expect::Undefended),
    ];
    let all = cases.map(|case| (case, bed.token()));
    let send = |from: Who, to: Who, ports: (u16, u16), mac: Option<Mac>, payload: &[u8]| {
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
            let verdict = (expect, bed.seen(token).contains(&VICTIM));
            let name = format!("two that meet halfway, {name}, {family:?}");
            observed(bed, "forged connections", name, (partner, VICTIM), verdict)
        })
        .collect()
}
