//! Forged source addresses, and the pod's own address with a forged hardware address.

use std::net::{IpAddr, Ipv6Addr};

use towpath::{
    lab::frame::{Ip, Link, Mac},
    model::Family,
};

use crate::{
    bed::{Bed, PORT, offset, udp},
    pods::{
        ATTACKER, FAR_FRIEND, FAR_OPEN, FAR_SHY, FREE, FRIEND, GUEST, NODE, OPEN, OTHER_NODE, OUTSIDE, SHY,
        UNLISTED, VICTIM,
    },
    table::{Stage, Table},
};

/// Name, address, and the hardware address if it is not the sender's own.
type Forged = (&'static str, IpAddr, Option<Mac>);

fn parse(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn forged(bed: &Bed, family: Family) -> Vec<Forged> {
    let friend = bed.address(FRIEND, family);
    let node_block = bed.lab.nodes()[0].pod_cidr(family).network();
    let mut all: Vec<Forged> = vec![
        ("another local pod's address", friend, None),
        ("another local pod's addresses, IP and MAC", friend, Some(bed.mac(FRIEND))),
        ("a remote pod's address", bed.address(FAR_FRIEND, family), None),
        ("the node's address", bed.address(NODE, family), None),
        ("the other node's address", bed.address(OTHER_NODE, family), None),
        ("the gateway's address", bed.gateway_address(0, family), None),
        ("the gateway's addresses, IP and MAC", bed.gateway_address(0, family), Some(bed.gateway(FREE))),
        ("an unassigned address of the node's block", offset(node_block, 200), None),
    ];
    let fixed: &[(&str, &str)] = match family {
        Family::V4 => &[
            ("an unassigned address of the cluster", "10.244.200.9"),
            ("an internet address", "203.0.113.77"),
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "0.0.0.0"),
            ("broadcast as source", "255.255.255.255"),
            ("multicast as source", "224.0.0.1"),
            ("a link-local address", "169.254.9.9"),
        ],
        Family::V6 => &[
            ("an unassigned address of the cluster", "fd00:10:244:200::9"),
            ("an internet address", "2001:db8::77"),
            ("::1", "::1"),
            ("the unspecified address", "::"),
            ("multicast as source", "ff02::1"),
            ("an unassigned link-local address", "fe80::9:9"),
        ],
    };
    all.extend(fixed.iter().map(|(name, address)| (*name, parse(address), None)));
    if family == Family::V6 {
        let mapped = bed.v4(FRIEND).to_ipv6_mapped();
        all.push(("an IPv4-mapped address", mapped.into(), None));
        all.push(("another pod's link-local address", link_local(bed.mac(FRIEND)).into(), None));
    }
    all
}

/// The link-local address that an interface derives from its hardware address (EUI-64).
pub(super) fn link_local(mac: Mac) -> Ipv6Addr {
    let [first, rest @ ..] = mac.0;
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8] = first ^ 2;
    octets[9..11].copy_from_slice(&rest[..2]);
    octets[11..13].copy_from_slice(&[0xff, 0xfe]);
    octets[13..].copy_from_slice(&rest[2..]);
    octets.into()
}

pub(super) fn rows(table: &mut Table<'_>) {
    let bed = table.bed;
    let victims = [OPEN, SHY, VICTIM, FAR_OPEN, FAR_SHY, NODE, OTHER_NODE, OUTSIDE];
    for family in Family::BOTH {
        // A frame with another host's hardware address changes the bridge's table, so these come last.
        table.section("sources", Some(family), Stage::Normal);
        for to in [OPEN, FAR_OPEN, NODE, OTHER_NODE, OUTSIDE] {
            table.arrives("its own address", FREE, to, |bed, token| genuine(bed, FREE, to, family, token));
        }
        table.arrives("its own address", ATTACKER, NODE, |bed, token| {
            genuine(bed, ATTACKER, NODE, family, token)
        });
        table.arrives("its own address", FRIEND, SHY, |bed, token| genuine(bed, FRIEND, SHY, family, token));
        table.arrives("its own address", FAR_FRIEND, SHY, |bed, token| {
            genuine(bed, FAR_FRIEND, SHY, family, token)
        });
        for (name, source, mac) in forged(bed, family) {
            let stage = if mac.is_some() { Stage::Poison } else { Stage::Normal };
            table.section("sources", Some(family), stage);
            for from in [ATTACKER, FREE] {
                for to in victims {
                    table.never(name, from, to, |bed, token| {
                        let link = bed.link(from, to);
                        let link = Link { source: mac.unwrap_or(link.source), ..link };
                        let ip = Ip::new(source, bed.address(to, family));
                        vec![link.ip(&udp(&ip, token, PORT, &[]))]
                    });
                }
            }
        }
        table.section("hardware addresses", Some(family), Stage::Poison);
        table.arrives("its own", FREE, OPEN, |bed, token| genuine(bed, FREE, OPEN, family, token));
        let others = [
            ("an unknown one", Mac([2, 0, 0, 0, 0, 9])),
            ("another pod's", bed.mac(FRIEND)),
            ("the gateway's", bed.gateway(FREE)),
            ("broadcast", Mac::BROADCAST),
            ("zero", Mac([0; 6])),
        ];
        for (name, source) in others {
            for to in [OPEN, FAR_OPEN, NODE] {
                table.never(name, FREE, to, |bed, token| {
                    let link = Link { source, ..bed.link(FREE, to) };
                    vec![link.ip(&udp(&bed.ip(FREE, to, family), token, PORT, &[]))]
                });
            }
        }
        table.section("pods without an object", Some(family), Stage::Normal);
        for (name, owner) in
            [("as a local pod", FRIEND), ("as a remote pod", FAR_FRIEND), ("as the node", NODE)]
        {
            for to in [SHY, FAR_SHY, VICTIM] {
                table.never(name, UNLISTED, to, |bed, token| {
                    let ip = Ip::new(bed.address(owner, family), bed.address(to, family));
                    vec![bed.link(UNLISTED, to).ip(&udp(&ip, token, PORT, &[]))]
                });
            }
        }
        // It is not known which policies select it.
        table.undefended("with its own address", UNLISTED, OPEN, |bed, token| {
            genuine(bed, UNLISTED, OPEN, family, token)
        });
        table.section("sources from elsewhere", Some(family), Stage::Normal);
        for (name, from, owner) in [
            ("a local pod's address from outside", OUTSIDE, FRIEND),
            ("a remote pod's address from outside", OUTSIDE, FAR_FRIEND),
            ("a local pod's address from another bridge", GUEST, FRIEND),
            ("a remote pod's address from another bridge", GUEST, FAR_FRIEND),
        ] {
            table.undefended(name, from, SHY, |bed, token| {
                let ip = Ip::new(bed.address(owner, family), bed.address(SHY, family));
                vec![bed.link(from, SHY).ip(&udp(&ip, token, PORT, &[]))]
            });
        }
    }
}

fn genuine(
    bed: &Bed,
    from: crate::bed::Host,
    to: crate::bed::Host,
    family: Family,
    token: towpath::lab::frame::Token,
) -> Vec<Vec<u8>> {
    vec![bed.link(from, to).ip(&udp(&bed.ip(from, to, family), token, PORT, &[]))]
}
