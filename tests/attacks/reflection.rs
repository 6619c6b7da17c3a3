//! Reflection by the node: an attacker claims that its own address is at the victim's hardware address, and makes the
//! node answer it.
//!
//! The answer carries the attacker's payload, and goes from the node to the victim's interface. Rules that check what
//! pods send do not apply to it.

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
    pods::{FREE, NODE, VICTIM},
    table::{Expect, Outcome, observed},
};

/// How the claim is sent: an ARP operation, or a type of ICMPv6.
#[derive(Clone, Copy)]
enum Claim {
    Arp(u16),
    Discovery(u8),
}

const CLAIMS: [(&str, Claim); 5] = [
    ("ARP reply", Claim::Arp(neighbour::REPLY)),
    ("ARP request", Claim::Arp(neighbour::REQUEST)),
    ("neighbour advertisement", Claim::Discovery(kind::NEIGHBOUR_ADVERTISEMENT)),
    ("neighbour solicitation", Claim::Discovery(kind::NEIGHBOUR_SOLICITATION)),
    ("router solicitation", Claim::Discovery(kind::ROUTER_SOLICITATION)),
];

pub(crate) fn rows(bed: &Bed) -> Vec<Outcome> {
    if !bed.setting.topology.has_bridge() {
        return Vec::new();
    }
    // By default a node accepts one change a second from ARP.
    bed.netns(NODE).sysctl(&[("ipv4/neigh/cni0/locktime", "0")]).expect("a switch of the node");
    let mut rows = Vec::new();
    for (name, claim) in CLAIMS {
        let family = if matches!(claim, Claim::Arp(_)) { Family::V4 } else { Family::V6 };
        send_claim(bed, claim, bed.mac(VICTIM));
        bed.settle_except(FREE);
        let token = ping_node(bed, family);
        bed.settle_except(FREE);
        let verdict = (Expect::Never, bed.receivers(token).contains(&VICTIM));
        rows.push(observed(
            bed,
            "reflection",
            format!("{name} with the victim's hardware address"),
            (FREE, VICTIM),
            verdict,
        ));
        // The true address again, and another ping: the answer comes back to the sender. Up to five times, since a busy
        // node does not process every message.
        let is_answered = (0..5).any(|_| {
            send_claim(bed, claim, bed.mac(FREE));
            bed.settle_except(FREE);
            let token = ping_node(bed, family);
            bed.settle();
            bed.receivers(token).contains(&FREE)
        });
        let verdict = (Expect::Arrives, is_answered);
        rows.push(observed(
            bed,
            "reflection",
            format!("{name} with its own hardware address"),
            (NODE, FREE),
            verdict,
        ));
    }
    rows
}

/// Claims to the node that the attacker's own address is at this hardware address.
fn send_claim(bed: &Bed, claim: Claim, mac: Mac) {
    let link = Link { source: bed.mac(FREE), destination: bed.gateway(FREE) };
    let frame = match claim {
        Claim::Arp(operation) => {
            let IpAddr::V4(gateway) = bed.gateway_address(0, Family::V4) else {
                unreachable!("an IPv4 address")
            };
            let message = neighbour::arp(operation, (mac, bed.v4(FREE)), (bed.gateway(FREE), gateway));
            link.frame(ether::ARP, &message)
        }
        Claim::Discovery(kind) => {
            let IpAddr::V6(gateway) = bed.gateway_address(0, Family::V6) else {
                unreachable!("an IPv6 address")
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
fn ping_node(bed: &Bed, family: Family) -> towpath::lab::frame::Token {
    let token = bed.token();
    let ip = Ip::new(bed.address(FREE, family), bed.gateway_address(0, family));
    let link = Link { source: bed.mac(FREE), destination: bed.gateway(FREE) };
    bed.send(FREE, &link.ip(&ip.ping(source_port(token), &token.bytes())));
    token
}
