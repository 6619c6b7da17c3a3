//! The node as a mirror: an attacker claims that its own address is at the victim's hardware address, and makes the
//! node answer it.
//!
//! The answer carries the attacker's payload, and goes from the node to the victim's interface, where no rule that
//! checks what pods send ever sees it.

use std::net::IpAddr;

use towpath::{
    lab::frame::{
        Ip, Link, Mac, ether,
        neighbour::{self, flag, kind},
        protocol,
    },
    model::Family,
};

use crate::{
    bed::{Bed, source_port},
    cast::{FREE, NODE, VICTIM},
    table::{Expect, Seen, observed},
};

/// How the claim is sent: an ARP operation, or a type of ICMPv6.
#[derive(Clone, Copy)]
enum Lie {
    Arp(u16),
    Discovery(u8),
}

const LIES: [(&str, Lie); 5] = [
    ("ARP reply", Lie::Arp(neighbour::REPLY)),
    ("ARP request", Lie::Arp(neighbour::REQUEST)),
    ("neighbour advertisement", Lie::Discovery(kind::NEIGHBOUR_ADVERTISEMENT)),
    ("neighbour solicitation", Lie::Discovery(kind::NEIGHBOUR_SOLICITATION)),
    ("router solicitation", Lie::Discovery(kind::ROUTER_SOLICITATION)),
];

pub(crate) fn rows(bed: &Bed) -> Vec<Seen> {
    if !bed.setting.topology.has_bridge() {
        return Vec::new();
    }
    // By default a node accepts one change a second from ARP.
    bed.netns(NODE).sysctl(&[("ipv4/neigh/cni0/locktime", "0")]).expect("a switch of the node");
    let mut rows = Vec::new();
    for (name, lie) in LIES {
        let family = if matches!(lie, Lie::Arp(_)) { Family::V4 } else { Family::V6 };
        tell(bed, lie, bed.mac(VICTIM));
        bed.settle_but(FREE);
        let token = ask(bed, family);
        bed.settle_but(FREE);
        let verdict = (Expect::Never, bed.seen(token).contains(&VICTIM));
        rows.push(observed(bed, "mirrors", format!("{name} with the victim's"), (FREE, VICTIM), verdict));
        // The true address again, and the same question: its answer comes back to the asker. More than once, since a
        // busy node does not process every message.
        let comes_back = (0..5).any(|_| {
            tell(bed, lie, bed.mac(FREE));
            bed.settle_but(FREE);
            let token = ask(bed, family);
            bed.settle();
            bed.seen(token).contains(&FREE)
        });
        let verdict = (Expect::Arrives, comes_back);
        rows.push(observed(bed, "mirrors", format!("{name} with the own"), (NODE, FREE), verdict));
    }
    rows
}

/// Tells the node the hardware address of the attacker's own address.
fn tell(bed: &Bed, lie: Lie, mac: Mac) {
    let link = Link { source: bed.mac(FREE), destination: bed.gateway(FREE) };
    let frame = match lie {
        Lie::Arp(operation) => {
            let IpAddr::V4(gateway) = bed.gateway_address(0, Family::V4) else {
                unreachable!("asked for IPv4")
            };
            let message = neighbour::arp(operation, (mac, bed.v4(FREE)), (bed.gateway(FREE), gateway));
            link.frame(ether::ARP, &message)
        }
        Lie::Discovery(kind) => {
            let IpAddr::V6(gateway) = bed.gateway_address(0, Family::V6) else {
                unreachable!("asked for IPv6")
            };
            let (flags, target) = match kind {
                kind::NEIGHBOUR_ADVERTISEMENT => (flag::SOLICITED | flag::OVERRIDE, bed.v6(FREE)),
                _ => (0, gateway),
            };
            let body = neighbour::neighbour(kind, flags, target, Some(mac));
            let ip = Ip::new(bed.address(FREE, Family::V6), gateway.into()).hops(255);
            link.ip(&ip.packet(protocol::ICMPV6, &ip.icmp(kind, 0, &body)))
        }
    };
    bed.send(FREE, &frame);
}

/// Pings the node.
fn ask(bed: &Bed, family: Family) -> towpath::lab::frame::Token {
    let token = bed.token();
    let ip = Ip::new(bed.address(FREE, family), bed.gateway_address(0, family));
    let link = Link { source: bed.mac(FREE), destination: bed.gateway(FREE) };
    bed.send(FREE, &link.ip(&ip.ping(source_port(token), &token.bytes())));
    token
}
