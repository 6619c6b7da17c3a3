//! What must hold for any message of the kernel, and for any text that the tools print.

use std::collections::BTreeMap;

use super::{
    chains::{self, Saved},
    conntrack::ConntrackEntry,
    guard, links,
    netlink::{Message, attributes, encode_body, messages, put, text},
    nflog::{self, headers::Headers},
    sets, survey, verify, watch,
};
use crate::{
    model::Family,
    ruleset::{ChainName, SetName, guard::render::Guard, plan::SetEdit, render},
};

/// The header of netfilter's messages.
const NETFILTER_HEADER: [u8; 4] = [2, 0, 0, 0];

/// A kind of message for each parser that looks at it: a connection, a link, a rule, and a generation of nftables.
const KINDS: [u16; 4] = [0x100, 16, 0xa06, 0xa0f];

/// Reads `data` as a datagram, and as the body of messages, and checks what is read.
///
/// # Panics
/// If what is read breaks a rule.
pub fn netlink(data: &[u8]) {
    datagram(data);
    for kind in KINDS {
        datagram(&encode_body(kind, 0, 1, data));
    }
}

fn datagram(bytes: &[u8]) {
    let mut length = 0;
    for message in messages(bytes) {
        length += 16 + message.body().len();
        nested(message.body(), 4);
        connection(&message);
        let _ = watch::concerns_us(&message);
        let _ = watch::generation(&message);
        let _ = guard::is_ours(&message);
        if let Some(link) = links::link(message.body()) {
            assert!(link.peer.is_none() || link.kind == "veth", "{link:?}");
            assert!(link.peer.is_none_or(|(_, netns)| netns >= 0), "{link:?}");
            let is_tunnel = matches!(&*link.kind, "vxlan" | "geneve");
            assert!(link.port.is_none() && !link.has_known_ends || is_tunnel, "{link:?}");
            assert!(link.name.len() <= bytes.len() && !link.name.contains('\0'));
        }
        let _ = links::host_route(message.body());
        let _ = links::neighbour(message.body());
    }
    assert!(length <= bytes.len(), "messages overlap");
}

/// Attributes are parts of what they are read from, and the same when they are written and read again.
fn nested(bytes: &[u8], depth: usize) {
    let (mut length, mut again) = (0, Vec::new());
    for (kind, payload) in attributes(bytes) {
        length += 4 + payload.len();
        put(&mut again, kind, payload);
        assert!(text(payload).len() <= payload.len());
        if depth > 0 {
            nested(payload, depth - 1);
        }
    }
    assert!(length <= bytes.len(), "attributes overlap");
    assert!(attributes(&again).eq(attributes(bytes)));
}

/// A connection is found by what it is deleted by, and its replacement is one between the same ends.
fn connection(message: &Message<'_>) {
    let Some(entry) = ConntrackEntry::parse(message) else { return };
    let body = [&NETFILTER_HEADER[..], &entry.key, &entry.raw_reply].concat();
    let unanswered = [&NETFILTER_HEADER[..], &entry.unanswered()].concat();
    for (body, tcp_state) in [(body, None), (unanswered, Some(1))] {
        let bytes = encode_body(0x100, 0, 1, &body);
        let again = messages(&bytes).next().and_then(|message| ConntrackEntry::parse(&message));
        let ends = |entry: &ConntrackEntry| (entry.family, entry.flow(), entry.original, entry.reply);
        assert_eq!(again.as_ref().map(ends), Some(ends(&entry)));
        assert_eq!(again.and_then(|again| again.tcp_state), tcp_state);
    }
}

/// Reads `data` as the copy of a dropped packet: as a message of the kernel, as the packet in one, and as a packet of each
/// family; and checks what is read.
///
/// # Panics
/// If what is read breaks a rule.
pub fn drops(data: &[u8]) {
    let whole = [&NETFILTER_HEADER[..], data].concat();
    for bytes in [data.to_vec(), encode_body(0x400, 0, 1, &whole), copied(data)] {
        for message in messages(&bytes) {
            let Some((_, copied)) = nflog::parse(&message) else { continue };
            assert!(copied.prefix.len() <= bytes.len() && !copied.prefix.contains('\0'));
        }
    }
    let bytes = copied(data);
    let read = messages(&bytes).next().and_then(|message| nflog::parse(&message));
    assert!(read.is_some_and(|(_, copied)| copied.headers == Headers::parse(0, data)));
    for ethertype in [0, 0x0800, 0x0806, 0x86dd] {
        let Some(headers) = Headers::parse(ethertype, data) else { continue };
        assert_eq!(headers.source.is_ipv4(), headers.destination.is_ipv4());
        assert!(data.len() >= if headers.source.is_ipv4() { 20 } else { 40 });
        // What is behind the copy changes nothing that was read, except what was not there.
        let longer = Headers::parse(ethertype, &[data, &[0; 128]].concat());
        assert!(longer.is_some_and(|longer| longer.source == headers.source));
        assert!(!headers.is_later_fragment || matches!(headers.payload, nflog::headers::Payload::Other(_)));
    }
}

/// A message with the copy of a packet.
fn copied(packet: &[u8]) -> Vec<u8> {
    let mut body = NETFILTER_HEADER.to_vec();
    // An attribute has at most 64 KiB.
    put(&mut body, 9, packet.get(..60_000).unwrap_or(packet));
    encode_body(0x400, 0, 1, &body)
}

/// Reads `data` as the output of each tool, and checks what is read.
///
/// # Panics
/// If what is read breaks a rule.
pub fn tools(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    saved_chains(text);
    saved_sets(text);
    for line in text.lines() {
        rule(line);
    }
    guard_tables(text);
}

fn saved_chains(text: &str) {
    let saved = Saved::parse(text);
    let rules = saved.chains.values().map(Vec::len).sum::<usize>();
    assert!(rules + saved.chains.len() <= text.lines().count());
    let chains = saved.chains.keys().map(|chain| format!(":{chain} - [0:0]\n"));
    let rules = saved.chains.iter().flat_map(|(chain, rules)| rules.iter().map(move |rule| (chain, rule)));
    let again: String = chains.chain(rules.map(|(chain, rule)| format!("-A {chain} {rule}\n"))).collect();
    // A carriage return at the end of a line is a part of it or not.
    if !text.contains('\r') {
        assert_eq!(Saved::parse(&again).chains, saved.chains);
    }
    // What is removed is ours.
    let removal = chains::removal(&saved);
    assert!(removal.remove.iter().all(|chain| saved.chains.contains_key(chain)));
    assert!(removal.write.iter().all(|(chain, rules)| {
        saved.chains.contains_key(chain) && rules.rules.is_empty() && !removal.remove.contains(chain)
    }));
    for line in render::chains(Family::V4, &removal).lines() {
        let named = line.split(' ').find_map(|word| ChainName::new(word.trim_start_matches(':')));
        assert!(named.is_some() || ["*filter", "COMMIT"].contains(&line), "{line}");
    }
}

/// Sets that are read are the same when they are written and read again.
fn saved_sets(text: &str) {
    let found = sets::parse(text);
    let mut edits = Vec::new();
    for (name, set) in &found.sets {
        edits.push(SetEdit::Create(name.clone(), set.kind));
        edits.extend(set.members.iter().map(|member| SetEdit::Add(name.clone(), *member)));
    }
    assert!(edits.len() <= text.lines().count());
    assert_eq!(sets::parse(&render::sets(&edits)).sets, found.sets);
    assert!(sets::parse_heads(text).len() <= text.len() / "Name: ".len() + 1);
    if let Some((_, reason)) = sets::culprit(text) {
        assert!(reason.len() < text.len());
    }
    let ours = survey::ours(text);
    for set in ours.split("\n\n").filter(|set| !set.is_empty()) {
        let name = set.lines().find_map(|line| line.strip_prefix("Name: "));
        assert!(name.is_some_and(|name| SetName::new(name).is_some()), "{set}");
    }
}

/// A rule means the same as itself, and nothing is added to it.
fn rule(line: &str) {
    assert!(verify::means_the_same(line, line));
    let options = verify::options(line);
    assert!(options.is_sorted());
    assert!(options.iter().flatten().map(String::len).sum::<usize>() <= line.len(), "{options:?}");
}

fn guard_tables(text: &str) {
    assert!(guard::rules(text).len() <= text.len().saturating_mul(text.lines().count().max(1)));
    assert!(guard::counters(text).count() <= text.lines().count());
    let mut found = BTreeMap::new();
    guard::bindings(text, &mut found);
    let addresses = found.values().map(|binding| binding.addresses.len()).sum::<usize>();
    assert!(found.values().all(|binding| !binding.addresses.is_empty()));
    assert!(addresses <= text.len() / 4);
    let interfaces = found.keys().cloned().zip(1..).collect();
    if let Some(guard) = Guard::read(text, text, &interfaces) {
        assert!(guard.difference(&guard).is_empty());
    }
}
