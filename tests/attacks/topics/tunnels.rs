//! Tunnel packets from a pod to a node: the inner packet would appear to be another pod's.

use std::net::IpAddr;

use towpath::{
    lab::{
        Topology,
        frame::{Ip, Link, Mac, Token, ether, kind_of, protocol, tunnel},
    },
    model::Family,
};

use super::sources::link_local;
use crate::{
    bed::{Bed, GENEVE_PORT, Host, OTHER_VXLAN_PORT, PORT, VXLAN_PORT, offset, source_port, udp},
    pods::{ATTACKER, FAR_OPEN, FAR_SHY, FREE, FRIEND, GUEST, NODE, OPEN, OTHER_NODE, OUTSIDE, SHY},
    table::{Stage, Table},
};

/// Every address of a node to which a pod can send.
fn addresses(bed: &Bed, node: usize, family: Family) -> Vec<(&'static str, IpAddr)> {
    let block = bed.lab.nodes()[node].pod_cidr(family).network();
    let mut all = vec![
        ("its own address", bed.address(Host::Node(node), family)),
        ("its gateway's address", bed.gateway_address(node, family)),
    ];
    if bed.setting.topology == Topology::Vxlan {
        all.push(("its tunnel's address", offset(block, 0)));
    }
    if node == 0 {
        let guests = if family == Family::V4 { "10.99.0.1" } else { "fd00:99::1" };
        all.push(("another bridge's address", guests.parse().expect("an address")));
        if family == Family::V6 {
            all.push(("its link-local address", link_local(bed.gateway(FREE)).into()));
        }
    }
    all
}

/// The inner packet: as if the friend had sent it to the pod that admits only the friend.
fn inner(bed: &Bed, victim: Host, family: Family, token: Token) -> Vec<u8> {
    udp(&bed.ip(FRIEND, victim, family), token, PORT, &[])
}

/// The inner frame, for the tunnel's device of a node.
fn inner_frame(bed: &Bed, device: (usize, &str), packet: &[u8]) -> Vec<u8> {
    let destination = bed.device(device.0, device.1);
    Link { source: Mac([2, 0, 0, 0, 0, 7]), destination }.frame(kind_of(packet), packet)
}

pub(super) fn rows(table: &mut Table<'_>) {
    for family in Family::BOTH {
        table.section("tunnels", Some(family), Stage::Normal);
        for port in [VXLAN_PORT, OTHER_VXLAN_PORT, GENEVE_PORT] {
            for to in [OPEN, FAR_OPEN] {
                table.arrives(format!("UDP port {port} between pods"), FREE, to, |bed, token| {
                    vec![bed.link(FREE, to).ip(&udp(&bed.ip(FREE, to, family), token, port, &[]))]
                });
            }
        }
        for (node, victim) in [(0, SHY), (1, FAR_SHY)] {
            let whose = if node == 0 { "its own node" } else { "the other node" };
            for (which, address) in addresses(table.bed, node, family) {
                for from in [FREE, ATTACKER] {
                    to_node(table, (from, node, victim), family, &format!("to {whose}, {which}"), address);
                }
            }
        }
    }
    from_elsewhere(table);
}

/// All tunnel packets, from one pod to one address of a node.
fn to_node(
    table: &mut Table<'_>,
    (from, node, victim): (Host, usize, Host),
    family: Family,
    name: &str,
    address: IpAddr,
) {
    let host = Host::Node(node);
    let outer = move |bed: &Bed| Ip::new(bed.address(from, family), address);
    let link = move |bed: &Bed| Link { source: bed.mac(from), destination: bed.gateway(from) };
    let flannel = if family == Family::V4 { "flannel.1" } else { "flannel-v6.1" };
    let vxlan = move |bed: &Bed, token: Token| {
        let frame = inner_frame(bed, (node, flannel), &inner(bed, victim, family, token));
        let payload = tunnel::vxlan(1, &frame);
        let ip = outer(bed).id(token.0);
        (ip.udp(source_port(token), VXLAN_PORT, &payload), ip)
    };
    if table.bed.setting.topology == Topology::Vxlan {
        table.never(format!("VXLAN {name}, unpacked"), from, victim, |bed, token| {
            let (datagram, ip) = vxlan(bed, token);
            vec![link(bed).ip(&ip.packet(protocol::UDP, &datagram))]
        });
        table.never(format!("VXLAN {name}, in fragments, unpacked"), from, victim, |bed, token| {
            let (datagram, ip) = vxlan(bed, token);
            ip.fragments(protocol::UDP, &datagram, 64).iter().map(|part| link(bed).ip(part)).collect()
        });
        table.never(format!("VXLAN {name}, in VLAN 0, unpacked"), from, victim, |bed, token| {
            let (datagram, ip) = vxlan(bed, token);
            let packet = ip.packet(protocol::UDP, &datagram);
            vec![link(bed).tagged(&[towpath::lab::frame::Tag::vlan(0)], kind_of(&packet), &packet)]
        });
        table.never(format!("VXLAN {name}, as the other node, unpacked"), from, victim, |bed, token| {
            let (datagram, _) = vxlan(bed, token);
            let ip = Ip::new(bed.address(Host::Node(1 - node), family), address);
            let payload = &datagram[8..];
            let datagram = ip.udp(source_port(token), VXLAN_PORT, payload);
            vec![link(bed).ip(&ip.packet(protocol::UDP, &datagram))]
        });
    } else {
        table.never(format!("VXLAN {name}"), from, host, |bed, token| {
            let payload = tunnel::vxlan(1, &[&[0; 14][..], &inner(bed, victim, family, token)].concat());
            let ip = outer(bed);
            vec![link(bed).ip(&ip.packet(protocol::UDP, &ip.udp(source_port(token), VXLAN_PORT, &payload)))]
        });
    }
    if family == Family::V4 {
        table.never(format!("another VXLAN {name}, unpacked"), from, victim, |bed, token| {
            let frame = inner_frame(bed, (node, "overlay"), &inner(bed, victim, family, token));
            let payload = tunnel::vxlan(42, &frame);
            let ip = outer(bed);
            let datagram = ip.udp(source_port(token), OTHER_VXLAN_PORT, &payload);
            vec![link(bed).ip(&ip.packet(protocol::UDP, &datagram))]
        });
    }
    for inside in Family::BOTH {
        let (number, what) = match inside {
            Family::V4 => (protocol::IPV4, "IPv4 in IP"),
            Family::V6 => (protocol::IPV6, "IPv6 in IP"),
        };
        table.never(format!("{what} {name}"), from, host, |bed, token| {
            vec![link(bed).ip(&outer(bed).packet(number, &inner(bed, victim, inside, token)))]
        });
    }
    // No such tunnel ends on these nodes; to a node without one these are ordinary packets.
    table.undefended(format!("GRE {name}, without such a tunnel"), from, host, |bed, token| {
        let payload = tunnel::gre_ip(&inner(bed, victim, family, token));
        vec![link(bed).ip(&outer(bed).packet(protocol::GRE, &payload))]
    });
    table.undefended(format!("Geneve {name}, without such a tunnel"), from, host, |bed, token| {
        let payload = tunnel::geneve(1, &[&[0; 14][..], &inner(bed, victim, family, token)].concat());
        let ip = outer(bed);
        vec![link(bed).ip(&ip.packet(protocol::UDP, &ip.udp(source_port(token), GENEVE_PORT, &payload)))]
    });
}

/// A host that is not a node may not send to a node's tunnel either.
fn from_elsewhere(table: &mut Table<'_>) {
    if table.bed.setting.topology != Topology::Vxlan {
        return;
    }
    for family in Family::BOTH {
        let flannel = if family == Family::V4 { "flannel.1" } else { "flannel-v6.1" };
        let datagram = |bed: &Bed, ip: &Ip, token: Token| {
            let frame = inner_frame(bed, (0, flannel), &inner(bed, SHY, family, token));
            ip.packet(protocol::UDP, &ip.udp(source_port(token), VXLAN_PORT, &tunnel::vxlan(1, &frame)))
        };
        table.section("tunnels from elsewhere", Some(family), Stage::Normal);
        for (name, from) in [("from outside", OUTSIDE), ("from another bridge", GUEST)] {
            table.never(format!("VXLAN {name}, unpacked"), from, SHY, |bed, token| {
                let ip = bed.ip(from, NODE, family);
                vec![bed.link(from, NODE).ip(&datagram(bed, &ip, token))]
            });
        }
        // A host that can send as a node on the nodes' own network counts as a node.
        table.undefended("VXLAN from outside, as the other node, unpacked", OUTSIDE, SHY, |bed, token| {
            let ip = bed.ip(OTHER_NODE, NODE, family);
            let packet = datagram(bed, &ip, token);
            vec![
                bed.link(OUTSIDE, NODE)
                    .frame(if family == Family::V4 { ether::IPV4 } else { ether::IPV6 }, &packet),
            ]
        });
    }
}
