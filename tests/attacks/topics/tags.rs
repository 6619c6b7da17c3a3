//! Frames that are not plain IPv4, IPv6 or ARP: tags, `PPPoE`, LLC, other protocols.

use towpath::{
    lab::frame::{Link, Tag, ether, kind_of},
    model::Family,
};

use crate::{
    bed::{PORT, udp},
    pods::{ATTACKER, FAR_OPEN, FAR_VICTIM, FREE, OPEN, VICTIM},
    table::{Stage, Table},
};

/// Wraps a packet in a frame.
type Wrap = fn(Link, &[u8]) -> Vec<u8>;

const WRAPS: [(&str, Wrap); 16] = [
    ("VLAN 0", |link, packet| link.tagged(&[Tag::vlan(0)], kind_of(packet), packet)),
    ("VLAN 0 with priority 5", |link, packet| {
        link.tagged(&[Tag::vlan(0).priority(5)], kind_of(packet), packet)
    }),
    ("VLAN 1", |link, packet| link.tagged(&[Tag::vlan(1)], kind_of(packet), packet)),
    ("VLAN 4094 with priority 7", |link, packet| {
        link.tagged(&[Tag::vlan(4094).priority(7)], kind_of(packet), packet)
    }),
    ("802.1ad tag 0", |link, packet| link.tagged(&[Tag::provider(0)], kind_of(packet), packet)),
    ("802.1ad tag 9", |link, packet| link.tagged(&[Tag::provider(9)], kind_of(packet), packet)),
    ("VLAN 0 twice", |link, packet| link.tagged(&[Tag::vlan(0), Tag::vlan(0)], kind_of(packet), packet)),
    ("802.1ad tag 0 around VLAN 0", |link, packet| {
        link.tagged(&[Tag::provider(0), Tag::vlan(0)], kind_of(packet), packet)
    }),
    ("802.1ad tag 3 around VLAN 7", |link, packet| {
        link.tagged(&[Tag::provider(3), Tag::vlan(7)], kind_of(packet), packet)
    }),
    ("VLAN 0 three times", |link, packet| {
        link.tagged(&[Tag::vlan(0), Tag::vlan(0), Tag::vlan(0)], kind_of(packet), packet)
    }),
    ("PPPoE session", |link, packet| link.pppoe(1, packet)),
    ("VLAN 0 around PPPoE", |link, packet| {
        // The same frame as above, with the tag inserted.
        let mut frame = link.pppoe(1, packet);
        frame.splice(12..12, [0x81, 0x00, 0, 0]);
        frame
    }),
    ("LLC and SNAP", |link, packet| link.llc_snap(kind_of(packet), packet)),
    ("tag 0x9100", |link, packet| {
        link.tagged(&[Tag { protocol: 0x9100, priority: 0, id: 0 }], kind_of(packet), packet)
    }),
    ("MPLS", |link, packet| link.frame(0x8847, &[&[0, 0, 1, 64], packet].concat())),
    ("local experimental EtherType 0x88b5", |link, packet| link.frame(0x88b5, packet)),
];

pub(super) fn rows(table: &mut Table<'_>) {
    for family in Family::BOTH {
        table.section("tags", Some(family), Stage::Normal);
        for to in [OPEN, FAR_OPEN] {
            table.arrives("no tag", FREE, to, |bed, token| {
                vec![bed.link(FREE, to).ip(&udp(&bed.ip(FREE, to, family), token, PORT, &[]))]
            });
        }
        for (from, to) in [(ATTACKER, OPEN), (FREE, VICTIM), (ATTACKER, FAR_OPEN), (FREE, FAR_VICTIM)] {
            table.never("no tag", from, to, |bed, token| {
                vec![bed.link(from, to).ip(&udp(&bed.ip(from, to, family), token, PORT, &[]))]
            });
            for (name, wrap) in WRAPS {
                table.never(name, from, to, |bed, token| {
                    vec![wrap(bed.link(from, to), &udp(&bed.ip(from, to, family), token, PORT, &[]))]
                });
            }
        }
    }
    // Frames that are not IP can carry data across a bridge.
    table.section("tags", None, Stage::Normal);
    let kinds = [("LLDP", 0x88cc), ("EAPOL", 0x888e), ("loopback test", 0x9000), ("AppleTalk", 0x809b)];
    for (from, to) in [(ATTACKER, OPEN), (FREE, VICTIM)] {
        for (name, kind) in kinds {
            table.never(name, from, to, |bed, token| vec![bed.link(from, to).frame(kind, &token.bytes())]);
        }
        table.never("ARP with an invalid operation", from, to, |bed, token| {
            let body = [&[0, 1, 8, 0, 6, 4, 0, 99][..], &[0; 20], &token.bytes()].concat();
            vec![bed.link(from, to).frame(ether::ARP, &body)]
        });
    }
}
