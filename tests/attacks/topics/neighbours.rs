//! False claims about neighbours and routers: ARP, neighbour and router discovery, listener queries, DHCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use towpath::{
    lab::frame::{
        Ip, Link, Mac, Token, ether,
        neighbour::{self, REPLY, REQUEST, flag, kind},
        protocol,
    },
    model::Family,
};

use super::sources::link_local;
use crate::{
    bed::{Bed, Host, PORT, udp},
    pods::{ATTACKER, FAR_VICTIM, FREE, FRIEND, OPEN, SHY, VICTIM},
    table::{Stage, Table},
};

pub(super) fn rows(table: &mut Table<'_>) {
    if table.bed.setting.topology.has_bridge() {
        arp(table);
        advertisements(table);
        routers(table);
    }
    misused(table);
    dhcp(table);
}

fn all_nodes() -> IpAddr {
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into()
}

fn arp_frame(
    bed: &Bed,
    from: Host,
    destination: Mac,
    token: Token,
    (operation, sender, target): (u16, (Mac, Ipv4Addr), (Mac, Ipv4Addr)),
) -> Vec<Vec<u8>> {
    // The token is where Ethernet's padding would be.
    let body = [neighbour::arp(operation, sender, target), token.bytes().to_vec()].concat();
    vec![Link { source: bed.mac(from), destination }.frame(ether::ARP, &body)]
}

fn arp(table: &mut Table<'_>) {
    const UNKNOWN: Mac = Mac([0; 6]);
    table.section("ARP", Some(Family::V4), Stage::Normal);
    let own = |bed: &Bed, host: Host| (bed.mac(host), bed.v4(host));
    table.arrives("request for a pod", FREE, OPEN, |bed, token| {
        let message = (REQUEST, own(bed, FREE), (UNKNOWN, bed.v4(OPEN)));
        arp_frame(bed, FREE, Mac::BROADCAST, token, message)
    });
    table.arrives("reply with its own address", FREE, OPEN, |bed, token| {
        arp_frame(bed, FREE, bed.mac(OPEN), token, (REPLY, own(bed, FREE), own(bed, OPEN)))
    });
    table.arrives("gratuitous for its own address", FREE, OPEN, |bed, token| {
        arp_frame(bed, FREE, Mac::BROADCAST, token, (REQUEST, own(bed, FREE), (UNKNOWN, bed.v4(FREE))))
    });
    table.section("ARP", Some(Family::V4), Stage::Poison);
    for from in [FREE, ATTACKER] {
        let gateway = |bed: &Bed| match bed.gateway_address(0, Family::V4) {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => unreachable!("an IPv4 address"),
        };
        for to in [OPEN, SHY, VICTIM] {
            table.never("gratuitous for another pod's address", from, to, |bed, token| {
                let claim = (bed.mac(from), bed.v4(FRIEND));
                arp_frame(bed, from, Mac::BROADCAST, token, (REQUEST, claim, (UNKNOWN, bed.v4(FRIEND))))
            });
            table.never("reply for another pod's address", from, to, |bed, token| {
                arp_frame(
                    bed,
                    from,
                    bed.mac(to),
                    token,
                    (REPLY, (bed.mac(from), bed.v4(FRIEND)), own(bed, to)),
                )
            });
            table.never("reply for the gateway's address", from, to, |bed, token| {
                arp_frame(bed, from, bed.mac(to), token, (REPLY, (bed.mac(from), gateway(bed)), own(bed, to)))
            });
            table.never("request as another pod", from, to, |bed, token| {
                let claim = (bed.mac(from), bed.v4(FRIEND));
                arp_frame(bed, from, Mac::BROADCAST, token, (REQUEST, claim, (UNKNOWN, bed.v4(to))))
            });
            table.never("own address, another pod's hardware address inside", from, to, |bed, token| {
                let claim = (bed.mac(FRIEND), bed.v4(from));
                arp_frame(bed, from, bed.mac(to), token, (REPLY, claim, own(bed, to)))
            });
            table.never("an unassigned address", from, to, |bed, token| {
                let claim = (bed.mac(from), Ipv4Addr::new(10, 244, 1, 200));
                arp_frame(bed, from, Mac::BROADCAST, token, (REQUEST, claim, (UNKNOWN, bed.v4(to))))
            });
        }
    }
}

/// A neighbour discovery message, which has room for a token only in its reserved bits.
struct Discovery {
    kind: u8,
    flags: u32,
    source: IpAddr,
    destination: IpAddr,
    target: Ipv6Addr,
    mac: Mac,
    hops: u8,
}

impl Discovery {
    /// The genuine advertisement of `from`.
    fn advertisement(bed: &Bed, from: Host, to: Host) -> Self {
        Self {
            kind: kind::NEIGHBOUR_ADVERTISEMENT,
            flags: flag::SOLICITED | flag::OVERRIDE,
            source: bed.address(from, Family::V6),
            destination: bed.address(to, Family::V6),
            target: bed.v6(from),
            mac: bed.mac(from),
            hops: 255,
        }
    }

    /// The solicitation of `from` for `to`.
    fn solicitation(bed: &Bed, from: Host, to: Host) -> Self {
        Self {
            kind: kind::NEIGHBOUR_SOLICITATION,
            flags: 0,
            source: bed.address(from, Family::V6),
            destination: neighbour::solicited_node(bed.v6(to)).into(),
            target: bed.v6(to),
            mac: bed.mac(from),
            hops: 255,
        }
    }

    fn frames(&self, bed: &Bed, from: Host, unicast: Mac, token: Token) -> Vec<Vec<u8>> {
        let body = neighbour::neighbour(self.kind, self.flags | token.0, self.target, Some(self.mac));
        bed.recognise(body.clone(), token);
        let destination =
            if self.destination.is_multicast() { Mac::of_group(self.destination) } else { unicast };
        let ip = Ip::new(self.source, self.destination).hops(self.hops);
        let message = ip.icmp(self.kind, 0, &body);
        vec![Link { source: bed.mac(from), destination }.ip(&ip.packet(protocol::ICMPV6, &message))]
    }
}

fn advertisements(table: &mut Table<'_>) {
    table.section("neighbour discovery", Some(Family::V6), Stage::Normal);
    table.arrives("solicitation for a pod", FREE, OPEN, |bed, token| {
        Discovery::solicitation(bed, FREE, OPEN).frames(bed, FREE, bed.mac(OPEN), token)
    });
    table.arrives("advertisement with its own address", FREE, OPEN, |bed, token| {
        Discovery::advertisement(bed, FREE, OPEN).frames(bed, FREE, bed.mac(OPEN), token)
    });
    table.arrives("advertisement with its own link-local address", FREE, OPEN, |bed, token| {
        let own = link_local(bed.mac(FREE));
        let destination = link_local(bed.mac(OPEN)).into();
        Discovery {
            source: own.into(),
            target: own,
            destination,
            ..Discovery::advertisement(bed, FREE, OPEN)
        }
        .frames(bed, FREE, bed.mac(OPEN), token)
    });
    table.section("neighbour discovery", Some(Family::V6), Stage::Poison);
    for from in [FREE, ATTACKER] {
        for to in [OPEN, SHY, VICTIM] {
            let gateway = |bed: &Bed| match bed.gateway_address(0, Family::V6) {
                IpAddr::V6(address) => address,
                IpAddr::V4(_) => unreachable!("an IPv6 address"),
            };
            let mut forge = |name: &str, change: &dyn Fn(&Bed, Discovery) -> Discovery| {
                table.never(name, from, to, |bed, token| {
                    let genuine = Discovery::advertisement(bed, from, to);
                    change(bed, genuine).frames(bed, from, bed.mac(to), token)
                });
            };
            forge("advertisement for another pod's address", &|bed, genuine| Discovery {
                target: bed.v6(FRIEND),
                ..genuine
            });
            forge("advertisement for another pod's address, as that pod", &|bed, genuine| Discovery {
                source: bed.address(FRIEND, Family::V6),
                target: bed.v6(FRIEND),
                ..genuine
            });
            forge("advertisement for another pod's address, to all", &|bed, genuine| Discovery {
                flags: flag::OVERRIDE,
                destination: all_nodes(),
                target: bed.v6(FRIEND),
                ..genuine
            });
            forge("advertisement for the gateway's address", &|bed, genuine| Discovery {
                flags: flag::ROUTER | flag::SOLICITED | flag::OVERRIDE,
                target: gateway(bed),
                ..genuine
            });
            forge("advertisement for the gateway's link-local address", &|bed, genuine| Discovery {
                target: link_local(bed.gateway(from)),
                ..genuine
            });
            forge("own address, another pod's hardware address inside", &|bed, genuine| Discovery {
                mac: bed.mac(FRIEND),
                ..genuine
            });
            forge("solicitation as another pod", &|bed, _| Discovery {
                source: bed.address(FRIEND, Family::V6),
                ..Discovery::solicitation(bed, from, to)
            });
            forge("solicitation as another pod, unicast", &|bed, _| Discovery {
                source: bed.address(FRIEND, Family::V6),
                destination: bed.address(to, Family::V6),
                ..Discovery::solicitation(bed, from, to)
            });
            for hops in [1, 64, 254] {
                forge(&format!("advertisement with hop limit {hops}"), &move |_, genuine| Discovery {
                    hops,
                    ..genuine
                });
                forge(&format!("solicitation with hop limit {hops}"), &move |bed, _| Discovery {
                    hops,
                    ..Discovery::solicitation(bed, from, to)
                });
            }
        }
    }
}

fn routers(table: &mut Table<'_>) {
    table.section("router messages", Some(Family::V6), Stage::Poison);
    for from in [FREE, ATTACKER] {
        for to in [OPEN, SHY, VICTIM] {
            let mut message =
                |name: &str, source: &dyn Fn(&Bed) -> Ipv6Addr, kind: u8, body: &dyn Fn(&Bed) -> Vec<u8>| {
                    for destination in ["to all", "to one"] {
                        table.never(format!("{name}, {destination}"), from, to, |bed, token| {
                            let group = destination == "to all";
                            let destination =
                                if group { all_nodes() } else { link_local(bed.mac(to)).into() };
                            let mac = if group { Mac::of_group(destination) } else { bed.mac(to) };
                            let ip = Ip::new(source(bed).into(), destination);
                            // A listener query is ignored unless it has hop limit 1.
                            let ip = ip.hops(if kind == kind::LISTENER_QUERY { 1 } else { 255 });
                            // An unknown option, two units long.
                            let option = [&[253, 2, 0, 0][..], &token.bytes(), &[0; 4]].concat();
                            let body = [body(bed), option].concat();
                            let link = Link { source: bed.mac(from), destination: mac };
                            vec![link.ip(&ip.packet(protocol::ICMPV6, &ip.icmp(kind, 0, &body)))]
                        });
                    }
                };
            let prefix = Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0);
            let own = |bed: &Bed| link_local(bed.mac(from));
            let gateway = |bed: &Bed| link_local(bed.gateway(from));
            message("router advertisement", &own, kind::ROUTER_ADVERTISEMENT, &|bed| {
                neighbour::router_advertisement(bed.mac(from), prefix)
            });
            message("router advertisement as the gateway", &gateway, kind::ROUTER_ADVERTISEMENT, &|bed| {
                neighbour::router_advertisement(bed.mac(from), prefix)
            });
            message("redirect", &own, kind::REDIRECT, &|bed| {
                neighbour::redirect(bed.v6(from), bed.v6(FRIEND), bed.mac(from))
            });
            message("redirect as the gateway", &gateway, kind::REDIRECT, &|bed| {
                neighbour::redirect(bed.v6(from), bed.v6(FRIEND), bed.mac(from))
            });
            message("listener query", &own, kind::LISTENER_QUERY, &|_| {
                neighbour::listener(Ipv6Addr::UNSPECIFIED)
            });
        }
    }
}

/// Types that pass without a policy, with contents, destinations or hop limits that such messages never have.
fn misused(table: &mut Table<'_>) {
    table.section("misused neighbour messages", Some(Family::V6), Stage::Poison);
    table.arrives("1,200 bytes of UDP", FREE, OPEN, |bed, token| {
        let ip = bed.ip(FREE, OPEN, Family::V6);
        vec![bed.link(FREE, OPEN).ip(&udp(&ip, token, PORT, &[b'x'; 1200]))]
    });
    for kind in [130, 131, 132, 133, 134, 135, 136, 137, 143, 151, 152, 153] {
        for hops in [255, 64, 2] {
            for (from, to) in [(ATTACKER, OPEN), (FREE, VICTIM), (FREE, FAR_VICTIM)] {
                for long in [false, true] {
                    let size = if long { "1,200 bytes" } else { "short" };
                    // A short one on the link with the right hop limit is a normal message.
                    if !long && hops == 255 && table.bed.on_link(from, to) {
                        continue;
                    }
                    table.never(format!("type {kind}, hop limit {hops}, {size}"), from, to, |bed, token| {
                        let mut body = neighbour::neighbour(kind, 0, bed.v6(from), Some(bed.mac(from)));
                        body.extend([253, 2, 0, 0]);
                        body.extend(token.bytes());
                        body.extend([0; 4]);
                        if long {
                            body.resize(1200, b'x');
                        }
                        let ip = bed.ip(from, to, Family::V6).hops(hops);
                        vec![bed.link(from, to).ip(&ip.packet(protocol::ICMPV6, &ip.icmp(kind, 0, &body)))]
                    });
                }
            }
        }
    }
}

fn dhcp(table: &mut Table<'_>) {
    let broadcast: IpAddr = Ipv4Addr::BROADCAST.into();
    table.section("DHCP server", Some(Family::V4), Stage::Normal);
    for from in [FREE, ATTACKER] {
        for to in [OPEN, VICTIM] {
            if !table.bed.on_link(from, to) {
                continue;
            }
            // To the client's own address it would be an ordinary datagram, subject to policy.
            table.never("broadcast", from, to, |bed, token| {
                let (server, yours) = (bed.v4(from), bed.v4(to));
                let offer = neighbour::dhcp_offer(server, yours, bed.mac(to), &token.bytes());
                let ip = Ip::new(server.into(), broadcast);
                let link = Link { source: bed.mac(from), destination: Mac::BROADCAST };
                vec![link.ip(&ip.packet(protocol::UDP, &ip.udp(67, 68, &offer)))]
            });
            table.never("to an address that it offers", from, to, |bed, token| {
                let (server, offered) = (bed.v4(from), Ipv4Addr::from(bed.v4(to).to_bits() ^ 0x40));
                let offer = neighbour::dhcp_offer(server, offered, bed.mac(to), &token.bytes());
                let ip = Ip::new(server.into(), offered.into());
                let link = Link { source: bed.mac(from), destination: bed.mac(to) };
                vec![link.ip(&ip.packet(protocol::UDP, &ip.udp(67, 68, &offer)))]
            });
        }
    }
    table.section("DHCP server", Some(Family::V6), Stage::Normal);
    for from in [FREE, ATTACKER] {
        for to in [OPEN, VICTIM] {
            if !table.bed.on_link(from, to) {
                continue;
            }
            table.never("between link-local addresses", from, to, |bed, token| {
                let of = |host| IpAddr::from(link_local(bed.mac(host)));
                let ip = Ip::new(of(from), of(to));
                let message = neighbour::dhcpv6_advertise(&token.bytes());
                vec![bed.link(from, to).ip(&ip.packet(protocol::UDP, &ip.udp(547, 546, &message)))]
            });
        }
    }
}
