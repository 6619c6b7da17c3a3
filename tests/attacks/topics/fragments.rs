//! Fragments: data that only the first part has, parts that contradict each other, packets that are never complete.

use towpath::{
    lab::frame::{Ip, Token, protocol},
    model::Family,
};

use crate::{
    bed::{Bed, Host, PORT, source_port},
    pods::{ATTACKER, FAR_OPEN, FAR_VICTIM, FREE, GATE, OPEN, VICTIM},
    table::{Stage, Table},
};

fn datagram(ip: &Ip, token: Token, port: u16) -> Vec<u8> {
    // The token is at the end, so that it is in the last fragment.
    let payload = [&[b'x'; 56][..], &token.bytes()].concat();
    ip.udp(source_port(token), port, &payload)
}

fn frames(bed: &Bed, from: Host, to: Host, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    packets.iter().map(|packet| bed.link(from, to).ip(packet)).collect()
}

pub(super) fn rows(table: &mut Table<'_>) {
    for family in Family::BOTH {
        table.section("fragments", Some(family), Stage::Normal);
        let whole = move |bed: &Bed, token: Token, from: Host, to: Host, port: u16, size: u16| {
            let ip = bed.ip(from, to, family).id(token.0);
            frames(bed, from, to, &ip.fragments(protocol::UDP, &datagram(&ip, token, port), size))
        };
        for to in [OPEN, FAR_OPEN] {
            table.arrives("two", FREE, to, |bed, token| whole(bed, token, FREE, to, PORT, 40));
            table.arrives("a tiny first one", FREE, to, |bed, token| whole(bed, token, FREE, to, PORT, 8));
        }
        table.arrives("two to an allowed port", FREE, GATE, |bed, token| {
            whole(bed, token, FREE, GATE, 53, 40)
        });
        for (from, to) in [(ATTACKER, OPEN), (FREE, VICTIM), (FREE, FAR_VICTIM), (FREE, GATE)] {
            table.never("two", from, to, |bed, token| whole(bed, token, from, to, PORT, 40));
            table.never("a tiny first one", from, to, |bed, token| whole(bed, token, from, to, PORT, 8));
            table.never("the first missing", from, to, |bed, token| {
                whole(bed, token, from, to, PORT, 40).split_off(1)
            });
            table.never("in the wrong order", from, to, |bed, token| {
                let mut all = whole(bed, token, from, to, PORT, 24);
                all.reverse();
                all
            });
            table.never("a single one that is the whole packet", from, to, |bed, token| {
                let ip = bed.ip(from, to, family).id(token.0);
                frames(bed, from, to, &[ip.fragment(protocol::UDP, &datagram(&ip, token, PORT), 0, false)])
            });
        }
        // Two first fragments, one with an allowed port and one with the token; in either order nothing may arrive.
        for reversed in [false, true] {
            let name =
                if reversed { "overlapping, the real port first" } else { "overlapping, the real port last" };
            table.never(name, FREE, GATE, |bed, token| {
                let ip = bed.ip(FREE, GATE, family).id(token.0);
                let harmless = ip.udp(source_port(token), 53, &[b'x'; 64]);
                let payload = [&token.bytes()[..], &[b'x'; 56]].concat();
                let real = ip.udp(source_port(token), PORT, &payload);
                let mut parts = vec![
                    ip.fragment(protocol::UDP, &harmless[..48], 0, true),
                    ip.fragment(protocol::UDP, &real[..48], 0, true),
                    ip.fragment(protocol::UDP, &real[48..], 48, false),
                ];
                if reversed {
                    parts.swap(0, 1);
                }
                frames(bed, FREE, GATE, &parts)
            });
        }
        // A later fragment that overlaps the header and would change the port.
        table.never("overlapping the header", FREE, GATE, |bed, token| {
            let ip = bed.ip(FREE, GATE, family).id(token.0);
            let harmless = ip.udp(source_port(token), 53, &[b'x'; 64]);
            let payload = [&[b'x'; 8][..], &token.bytes(), &[b'x'; 48]].concat();
            let real = ip.udp(source_port(token), PORT, &payload);
            frames(
                bed,
                FREE,
                GATE,
                &[
                    ip.fragment(protocol::UDP, &harmless[..16], 0, true),
                    ip.fragment(protocol::UDP, &real, 0, false),
                ],
            )
        });
    }
}
