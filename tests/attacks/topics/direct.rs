//! Frames sent directly to another pod's hardware address, with a destination that is not that pod's address.

use std::net::IpAddr;

use towpath::{
    lab::frame::{Ip, Link, Mac},
    model::Family,
};

use super::sources::link_local;
use crate::{
    bed::{Bed, Host, PORT, offset, udp},
    pods::{ATTACKER, FREE, NODE, OPEN, VICTIM},
    table::{Stage, Table},
};

/// Addresses that no object reports.
const SECOND: [&str; 2] = ["10.77.7.7", "fd77::7"];

fn destinations(bed: &Bed, to: Host, family: Family) -> Vec<(&'static str, IpAddr)> {
    let block = bed.lab.nodes()[0].pod_cidr(family).network();
    let fixed: &[(&'static str, &str)] = match family {
        Family::V4 => &[
            ("255.255.255.255", "255.255.255.255"),
            ("224.0.0.1", "224.0.0.1"),
            ("224.0.0.251", "224.0.0.251"),
            ("239.1.2.3", "239.1.2.3"),
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "0.0.0.0"),
            ("169.254.1.1", "169.254.1.1"),
            ("an address without an object", SECOND[0]),
        ],
        Family::V6 => &[
            ("ff02::1", "ff02::1"),
            ("ff02::fb", "ff02::fb"),
            ("ff05::1", "ff05::1"),
            ("ff0e::1", "ff0e::1"),
            ("::1", "::1"),
            ("fe80::1", "fe80::1"),
            ("an address without an object", SECOND[1]),
        ],
    };
    let mut all: Vec<_> =
        fixed.iter().map(|(name, address)| (*name, address.parse().expect("an address"))).collect();
    if family == Family::V4 {
        all.push(("the block's broadcast address", offset(block, 255)));
    } else {
        all.push(("the receiver's link-local address", link_local(bed.mac(to)).into()));
    }
    all
}

pub(super) fn rows(table: &mut Table<'_>) {
    let bed = table.bed;
    for family in Family::BOTH {
        table.section("direct frames", Some(family), Stage::Normal);
        table.arrives("the receiver's own address", FREE, OPEN, |bed, token| {
            vec![bed.link(FREE, OPEN).ip(&udp(&bed.ip(FREE, OPEN, family), token, PORT, &[]))]
        });
        for (from, to) in [(FREE, VICTIM), (ATTACKER, OPEN)] {
            for (name, destination) in destinations(bed, to, family) {
                let macs = [("", bed.link(from, to).destination), (", broadcast", Mac::BROADCAST)];
                for (how, mac) in macs {
                    table.never(format!("to {name}{how}"), from, to, |bed, token| {
                        let link = Link { source: bed.mac(from), destination: mac };
                        let ip = Ip::new(bed.address(from, family), destination);
                        vec![link.ip(&udp(&ip, token, PORT, &[]))]
                    });
                }
                if destination.is_multicast() {
                    table.never(format!("to {name}, as multicast"), from, to, |bed, token| {
                        let link = Link { source: bed.mac(from), destination: Mac::of_group(destination) };
                        let ip = Ip::new(bed.address(from, family), destination);
                        vec![link.ip(&udp(&ip, token, PORT, &[]))]
                    });
                }
            }
            // The destination is allowed: the node's, or that of an open pod. Only the hardware address directs the
            // frame elsewhere; it is flooded if no host has it.
            let allowed = if from == FREE { bed.address(OPEN, family) } else { bed.address(NODE, family) };
            for (how, mac) in [
                ("to its hardware address", bed.link(from, to).destination),
                ("to all", Mac::BROADCAST),
                ("to a group's hardware address", Mac::of_group(allowed)),
                ("to an unknown hardware address", Mac([2, 0, 0, 0, 0, 0x77])),
            ] {
                table.never(format!("with an allowed destination, {how}"), from, to, |bed, token| {
                    let link = Link { source: bed.mac(from), destination: mac };
                    vec![link.ip(&udp(&Ip::new(bed.address(from, family), allowed), token, PORT, &[]))]
                });
            }
            if family == Family::V6 {
                table.never("between link-local addresses", from, to, |bed, token| {
                    let ip = Ip::new(link_local(bed.mac(from)).into(), link_local(bed.mac(to)).into());
                    vec![bed.link(from, to).ip(&udp(&ip, token, PORT, &[]))]
                });
            }
        }
    }
}
