//! Other protocols, options and extension headers, source routes, mid-stream segments, forged ICMP errors.

use towpath::{
    lab::frame::{Ip, Tcp, Token, option, protocol, sctp_init, tcp_flag},
    model::Family,
};

use crate::{
    bed::{Bed, Host, PORT, source_port, udp},
    pods::{ATTACKER, FAR_OPEN, FAR_VICTIM, FREE, FRIEND, NODE, OPEN, OTHER_NODE, SHY, VICTIM},
    table::{Stage, Table},
};

/// Builds a packet for a header.
type Message = fn(&Ip, Token) -> Vec<u8>;

fn segment(ip: &Ip, token: Token, flags: u8) -> Vec<u8> {
    let head = Tcp {
        source: source_port(token),
        destination: 80,
        sequence: 1000,
        acknowledged: if flags & tcp_flag::ACK == 0 { 0 } else { 2000 },
        flags,
    };
    ip.packet(protocol::TCP, &ip.tcp(head, &token.bytes()))
}

const MESSAGES: [(&str, Message); 14] = [
    ("UDP", |ip, token| udp(ip, token, PORT, &[])),
    ("TCP SYN", |ip, token| segment(ip, token, tcp_flag::SYN)),
    ("SCTP INIT", |ip, token| {
        ip.packet(protocol::SCTP, &sctp_init(source_port(token), 80, 7, &token.bytes()))
    }),
    ("ping", |ip, token| ip.ping(source_port(token), &token.bytes())),
    ("GRE", |ip, token| ip.packet(protocol::GRE, &[&[0, 0, 8, 0][..], &token.bytes()].concat())),
    ("ESP", |ip, token| ip.packet(50, &token.bytes())),
    ("AH", |ip, token| {
        ip.packet(51, &[&[59, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1][..], &token.bytes(), &[0; 4]].concat())
    }),
    ("UDP-Lite", |ip, token| ip.packet(136, &ip.udp(source_port(token), PORT, &token.bytes()))),
    ("DCCP", |ip, token| ip.packet(33, &[&[78, 32, 0, 80][..], &token.bytes(), &[0; 8]].concat())),
    ("OSPF", |ip, token| ip.packet(89, &token.bytes())),
    ("VRRP", |ip, token| ip.packet(112, &token.bytes())),
    ("protocol 253", |ip, token| ip.packet(253, &token.bytes())),
    ("protocol 255", |ip, token| ip.packet(255, &token.bytes())),
    ("IGMP", |ip, token| ip.packet(2, &token.bytes())),
];

/// Segments that start no connection. Those with ACK claim to belong to one.
const MID_STREAM: [(&str, u8); 6] = [
    ("ACK", tcp_flag::ACK),
    ("PSH and ACK", tcp_flag::PSH | tcp_flag::ACK),
    ("SYN and ACK", tcp_flag::SYN | tcp_flag::ACK),
    ("FIN and ACK", tcp_flag::FIN | tcp_flag::ACK),
    ("RST", tcp_flag::RST),
    ("no flags", 0),
];

const DENIED: [(Host, Host); 4] =
    [(ATTACKER, OPEN), (FREE, VICTIM), (ATTACKER, FAR_OPEN), (FREE, FAR_VICTIM)];

pub(super) fn rows(table: &mut Table<'_>) {
    for family in Family::BOTH {
        table.section("protocols", Some(family), Stage::Normal);
        let packet = move |bed: &Bed, from: Host, to: Host, token: Token, message: Message| {
            vec![bed.link(from, to).ip(&message(&bed.ip(from, to, family), token))]
        };
        for (name, message) in MESSAGES {
            table.arrives(name, FREE, OPEN, |bed, token| packet(bed, FREE, OPEN, token, message));
            table.arrives(name, FREE, FAR_OPEN, |bed, token| packet(bed, FREE, FAR_OPEN, token, message));
            for (from, to) in DENIED {
                table.never(name, from, to, |bed, token| packet(bed, from, to, token, message));
            }
        }
        icmp(table, family);
        for stage in [Stage::Normal, Stage::Flushed] {
            let when =
                if stage == Stage::Normal { "" } else { ", after the node's connections were flushed" };
            table.section("mid-stream segments", Some(family), stage);
            let segment = move |bed: &Bed, from: Host, to: Host, token: Token, flags: u8| {
                vec![bed.link(from, to).ip(&segment(&bed.ip(from, to, family), token, flags))]
            };
            table.arrives(format!("ACK{when}"), FREE, OPEN, |bed, token| {
                segment(bed, FREE, OPEN, token, tcp_flag::ACK)
            });
            for (name, flags) in MID_STREAM {
                for (from, to) in DENIED {
                    table.never(format!("{name}{when}"), from, to, |bed, token| {
                        segment(bed, from, to, token, flags)
                    });
                }
            }
        }
        errors(table, family);
    }
    options(table);
    extensions(table);
}

/// ICMP messages that start no connection, of every type that some host processes.
fn icmp(table: &mut Table<'_>, family: Family) {
    table.section("ICMP", Some(family), Stage::Normal);
    let kinds: &[u8] = match family {
        Family::V4 => &[0, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 42],
        Family::V6 => &[1, 2, 3, 4, 128, 129, 138, 139, 141, 144, 145, 148, 151, 155, 160, 255],
    };
    for kind in kinds {
        for (from, to) in DENIED {
            table.never(format!("type {kind}"), from, to, |bed, token| {
                let ip = bed.ip(from, to, family);
                let body =
                    [&source_port(token).to_be_bytes(), &[0, 1][..], &token.bytes(), &[0; 40]].concat();
                vec![bed.link(from, to).ip(&ip.packet(ip.icmp_number(), &ip.icmp(*kind, 0, &body)))]
            });
        }
    }
}

/// Errors about packets that were never sent, and about packets of others.
fn errors(table: &mut Table<'_>, family: Family) {
    table.section("forged ICMP errors", Some(family), Stage::Normal);
    for (from, to) in DENIED {
        table.never("about a packet that was never sent", from, to, |bed, token| {
            let quoted = udp(&bed.ip(to, from, family), token, PORT, &[]);
            vec![bed.link(from, to).ip(&bed.ip(from, to, family).port_unreachable(&quoted))]
        });
        table.never("about a packet to a third pod that was never sent", from, to, |bed, token| {
            let quoted = udp(&bed.ip(to, FRIEND, family), token, PORT, &[]);
            vec![bed.link(from, to).ip(&bed.ip(from, to, family).port_unreachable(&quoted))]
        });
    }
    // A datagram of the friend, and then errors about its reply. They quote the ports of that datagram.
    let mut port = None;
    table.arrives("the connection that the errors quote", FRIEND, SHY, |bed, token| {
        port = Some(source_port(token));
        vec![bed.link(FRIEND, SHY).ip(&udp(&bed.ip(FRIEND, SHY, family), token, PORT, &[]))]
    });
    let port = port.unwrap_or_default();
    let about = move |bed: &Bed, from: Host, token: Token| {
        let ip = bed.ip(SHY, FRIEND, family);
        let quoted = ip.packet(protocol::UDP, &ip.udp(PORT, port, &token.bytes()));
        vec![bed.link(from, SHY).ip(&bed.ip(from, SHY, family).port_unreachable(&quoted))]
    };
    // Sent with the attacks, because the connection must exist before.
    table.undefended("about a connection, from its other end", FRIEND, SHY, |bed, token| {
        about(bed, FRIEND, token)
    });
    for from in [FREE, ATTACKER] {
        table.never("about a connection, from a third pod", from, SHY, |bed, token| about(bed, from, token));
    }
}

fn options(table: &mut Table<'_>) {
    table.section("IPv4 options", Some(Family::V4), Stage::Normal);
    let with = |bed: &Bed, from: Host, to: Host, token: Token, options: Vec<u8>| {
        let ip = bed.ip(from, to, Family::V4).options(options);
        vec![bed.link(from, to).ip(&udp(&ip, token, PORT, &[]))]
    };
    table.arrives("record route", FREE, OPEN, |bed, token| {
        with(bed, FREE, OPEN, token, option::record_route(3))
    });
    for (from, to) in DENIED {
        table.never("record route", from, to, |bed, token| {
            with(bed, from, to, token, option::record_route(3))
        });
    }
    // By a host that may be reached to one that may not.
    let routers =
        [("the node", NODE), ("a pod", OPEN), ("a remote pod", FAR_OPEN), ("the other node", OTHER_NODE)];
    for (name, hop) in routers {
        for victim in [VICTIM, FAR_VICTIM] {
            table.never(format!("loose source route by {name}"), FREE, victim, |bed, token| {
                with(bed, FREE, hop, token, option::loose_source_route(&[bed.v4(victim)]))
            });
            table.never(format!("strict source route by {name}"), FREE, victim, |bed, token| {
                with(bed, FREE, hop, token, option::strict_source_route(&[bed.v4(victim)]))
            });
        }
    }
}

/// Number and body of an extension header.
type Extension = (u8, Vec<u8>);

fn extensions(table: &mut Table<'_>) {
    table.section("IPv6 extension headers", Some(Family::V6), Stage::Normal);
    let chains: [(&str, &[Extension]); 6] = [
        ("hop-by-hop options", &[(protocol::HOP_BY_HOP, option::padding())]),
        ("destination options", &[(protocol::DESTINATION, option::padding())]),
        (
            "destination options twice",
            &[(protocol::DESTINATION, option::padding()), (protocol::DESTINATION, option::padding())],
        ),
        (
            "hop-by-hop and destination options",
            &[(protocol::HOP_BY_HOP, option::padding()), (protocol::DESTINATION, option::padding())],
        ),
        ("routing header type 0 with nothing left", &[(protocol::ROUTING, option::routing(0, 0, &[]))]),
        ("routing header type 2 with nothing left", &[(protocol::ROUTING, option::routing(2, 0, &[]))]),
    ];
    let with = |bed: &Bed, from: Host, to: Host, token: Token, chain: &[Extension]| {
        let ip = chain
            .iter()
            .fold(bed.ip(from, to, Family::V6), |ip, (number, body)| ip.extension(*number, body.clone()));
        vec![bed.link(from, to).ip(&udp(&ip, token, PORT, &[]))]
    };
    for (name, chain) in &chains {
        // Whether a receiver's kernel accepts a routing header does not matter here; it must arrive there.
        table.arrives(*name, FREE, OPEN, |bed, token| with(bed, FREE, OPEN, token, chain));
        for (from, to) in DENIED {
            table.never(*name, from, to, |bed, token| with(bed, from, to, token, chain));
        }
    }
    for (kind, segments) in [(0, 1), (2, 1), (4, 1)] {
        for (hop, victim) in [(NODE, VICTIM), (OPEN, VICTIM), (NODE, FAR_VICTIM), (FAR_OPEN, FAR_VICTIM)] {
            table.never(format!("routing header type {kind}"), FREE, victim, |bed, token| {
                let header = option::routing(kind, segments, &[bed.v6(victim)]);
                with(bed, FREE, hop, token, &[(protocol::ROUTING, header)])
            });
        }
    }
}
