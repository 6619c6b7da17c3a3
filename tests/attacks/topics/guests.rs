//! Machines on another bridge of the node: policies do not apply to them, and nothing between them is denied.

use std::net::IpAddr;

use towpath::{
    lab::frame::{Ip, Link, Mac, ether, neighbour},
    model::Family,
};

use super::sources::link_local;
use crate::{
    bed::{PORT, udp},
    pods::{GUEST, OTHER_GUEST},
    table::{Stage, Table},
};

pub(super) fn rows(table: &mut Table<'_>) {
    for family in Family::BOTH {
        table.section("other bridges", Some(family), Stage::Normal);
        table.arrives("unicast between guests", GUEST, OTHER_GUEST, |bed, token| {
            let ip = bed.ip(GUEST, OTHER_GUEST, family);
            vec![bed.link(GUEST, OTHER_GUEST).ip(&udp(&ip, token, PORT, &[]))]
        });
        let groups: &[&str] = match family {
            Family::V4 => &["255.255.255.255", "10.99.0.255", "224.0.0.1", "239.1.2.3"],
            Family::V6 => &["ff02::1", "ff02::fb", "ff05::1"],
        };
        for group in groups {
            table.arrives(format!("to {group} between guests"), GUEST, OTHER_GUEST, |bed, token| {
                let group: IpAddr = group.parse().expect("an address");
                let destination = if group.is_multicast() { Mac::of_group(group) } else { Mac::BROADCAST };
                let link = Link { source: bed.mac(GUEST), destination };
                vec![link.ip(&udp(&Ip::new(bed.address(GUEST, family), group), token, PORT, &[]))]
            });
        }
        if family == Family::V6 {
            table.arrives("between link-local addresses of guests", GUEST, OTHER_GUEST, |bed, token| {
                let of = |host| IpAddr::from(link_local(bed.mac(host)));
                let ip = Ip::new(of(GUEST), of(OTHER_GUEST));
                vec![bed.link(GUEST, OTHER_GUEST).ip(&udp(&ip, token, PORT, &[]))]
            });
        } else {
            table.arrives("DHCP server for guests", GUEST, OTHER_GUEST, |bed, token| {
                let (server, yours) = (bed.v4(GUEST), bed.v4(OTHER_GUEST));
                let offer = neighbour::dhcp_offer(server, yours, bed.mac(OTHER_GUEST), &token.bytes());
                let ip = Ip::new(server.into(), "255.255.255.255".parse().expect("an address"));
                let link = Link { source: bed.mac(GUEST), destination: Mac::BROADCAST };
                vec![link.ip(&ip.packet(17, &ip.udp(67, 68, &offer)))]
            });
        }
    }
    table.section("other bridges", None, Stage::Normal);
    table.arrives("a protocol other than IP between guests", GUEST, OTHER_GUEST, |bed, token| {
        vec![bed.link(GUEST, OTHER_GUEST).frame(0x88b5, &token.bytes())]
    });
    table.arrives("gratuitous ARP of a guest", GUEST, OTHER_GUEST, |bed, token| {
        let own = (bed.mac(GUEST), bed.v4(GUEST));
        let body = [neighbour::arp(neighbour::REQUEST, own, own), token.bytes().to_vec()].concat();
        let link = Link { source: bed.mac(GUEST), destination: Mac::BROADCAST };
        vec![link.frame(ether::ARP, &body)]
    });
}
