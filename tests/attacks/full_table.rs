//! A node whose connection table is full.
//!
//! A pod that may send fills it: first with unanswered datagrams, of which the kernel drops one for each new
//! connection; then an outside host answers, and the kernel keeps these connections. Denied packets must not arrive,
//! neither then nor after the table is empty again.
//!
//! The limit is the machine's, and a namespace can only read it; but each namespace has its own count. So the node's
//! table is filled up to the machine's limit, without affecting other namespaces.

use std::{net::Ipv4Addr, ops::Range, time::Duration};

use towpath::{
    lab::{
        Topology,
        frame::{Ip, Link, Tcp, Token, protocol, tcp_flag},
    },
    model::Family,
};

use crate::{
    bed::{Bed, Host, PORT, source_port, udp},
    conntrack,
    pods::{ATTACKER, FAR_FRIEND, FAR_OPEN, FAR_VICTIM, FREE, FRIEND, NODE, OPEN, OUTSIDE, SHY, VICTIM},
    table::{Expect, Outcome, Stage, Table, observed},
};

const TOPIC: &str = "full connection table";

/// A larger table is not filled: that would take minutes.
const LARGEST: u64 = 1 << 19;

/// How many connections the pod has with one address.
const PER_ADDRESS: u64 = 60_000;

/// How many connections the pod opens to find out whether any more fit.
const SAMPLE: u64 = 2_000;

/// How many more it opens while they fit, and how often.
const MORE: u64 = 16_000;
const ROUNDS: usize = 20;

/// The kernel keeps an answered connection of UDP that has lasted for two seconds.
const LASTS_AFTER: Duration = Duration::from_millis(2_200);

/// Far longer than the test, so that nothing expires on a slow machine.
const TIMEOUTS: [(&str, &str); 2] =
    [("netfilter/nf_conntrack_udp_timeout", "1800"), ("netfilter/nf_conntrack_udp_timeout_stream", "1800")];

/// Senders and receivers of connections that exist before.
const CONNECTED: [(Host, Host); 5] =
    [(FRIEND, SHY), (FREE, OPEN), (OPEN, ATTACKER), (FREE, FAR_OPEN), (FAR_FRIEND, SHY)];

const DENIED: [(Host, Host); 6] = [
    (FREE, VICTIM),
    (FREE, SHY),
    (ATTACKER, OPEN),
    (FREE, FAR_VICTIM),
    (FAR_OPEN, VICTIM),
    (OUTSIDE, VICTIM),
];

const ALLOWED: [(Host, Host); 5] =
    [(FRIEND, SHY), (VICTIM, FRIEND), (FREE, OPEN), (OPEN, FAR_OPEN), (FAR_FRIEND, SHY)];

pub(crate) fn rows(bed: &Bed) -> Vec<Outcome> {
    let limit = number(bed, "nf_conntrack_max");
    if limit == 0 || limit > LARGEST {
        println!("skipped: a full connection table, since net.netfilter.nf_conntrack_max is {limit}");
        return Vec::new();
    }
    let before =
        TIMEOUTS.map(|(name, _)| (name, number(bed, name.trim_start_matches("netfilter/")).to_string()));
    bed.netns(NODE).sysctl(&TIMEOUTS).expect("the node's own timeouts");
    let connections = open_connections(bed);
    let (mut rows, opened) = unanswered(bed, limit);
    rows.extend(answered(bed, opened, &connections));
    conntrack::flush(bed.netns(NODE));
    rows.extend(attempts(bed, "empty again").run());
    let back = before.each_ref().map(|(name, value)| (*name, value.as_str()));
    bed.netns(NODE).sysctl(&back).expect("the node's own timeouts");
    rows
}

/// Fills the table with unanswered connections; returns how many that took.
fn unanswered(bed: &Bed, limit: u64) -> (Vec<Outcome>, u64) {
    let evicted = statistic(bed, "early_drop");
    let is_full = || statistic(bed, "early_drop") >= evicted + SAMPLE / 2;
    let mut numbers = 0..limit;
    flood(bed, FREE, numbers.clone());
    // When the table is nearly full, the kernel may drop some by itself.
    while !is_full() && numbers.end < 2 * limit {
        numbers = numbers.end..numbers.end + SAMPLE;
        flood(bed, FREE, numbers.clone());
    }
    let name = "the kernel evicts unanswered connections for new ones";
    let mut rows = vec![observed(bed, TOPIC, name, (NODE, NODE), (Expect::Arrives, is_full()))];
    rows.extend(attempts(bed, "full of unanswered connections").run());
    (rows, numbers.end)
}

/// Fills the table with connections that the kernel keeps.
fn answered(bed: &Bed, opened: u64, connections: &[Connection]) -> Vec<Outcome> {
    let mut numbers = 0..opened;
    flood(bed, OUTSIDE, numbers.clone());
    flood(bed, FREE, numbers.clone());
    let mut is_full = false;
    for _ in 0..ROUNDS {
        // Other pods have connections that the kernel does not keep; they make room for some more.
        numbers = numbers.end..numbers.end + MORE;
        let refused = statistic(bed, "drop");
        flood(bed, FREE, numbers.start..numbers.start + SAMPLE);
        let refused = statistic(bed, "drop") - refused;
        is_full = refused >= SAMPLE / 10 * 9;
        if is_full {
            break;
        }
        flood(bed, FREE, numbers.clone());
        flood(bed, OUTSIDE, numbers.clone());
        std::thread::sleep(LASTS_AFTER);
        flood(bed, FREE, numbers.clone());
    }
    let name = "the kernel drops new connections";
    let mut rows = vec![observed(bed, TOPIC, name, (NODE, NODE), (Expect::Arrives, is_full))];
    let mut table = attempts(bed, "full of answered connections");
    for row in &mut table.rows {
        if row.expect == Expect::Arrives {
            row.expect = Expect::Undefended;
        }
    }
    table.send();
    // These continue; once they arrive, so has everything that was sent before, if it arrives at all.
    rows.extend(connections.iter().flat_map(|connection| connection.continues(bed)));
    rows.extend(table.rows.into_iter().map(|attack| {
        let arrived = bed.receivers(attack.token).contains(&attack.to);
        Outcome { attack, arrived }
    }));
    let verdict = (Expect::Undefended, bed.is_guarded());
    rows.push(observed(bed, TOPIC, "the daemon answers requests on its node", (NODE, NODE), verdict));
    rows
}

/// Builds a packet for a header.
type Message = fn(&Ip, Token) -> Vec<u8>;

/// The frames that are sent each time.
fn attempts<'a>(bed: &'a Bed, when: &str) -> Table<'a> {
    const MESSAGES: [(&str, Message); 4] = [
        ("UDP", |ip, token| udp(ip, token, PORT, &[])),
        ("TCP SYN", |ip, token| segment(ip, token, tcp_flag::SYN)),
        ("TCP ACK", |ip, token| segment(ip, token, tcp_flag::ACK)),
        ("ping", |ip, token| ip.ping(source_port(token), &token.bytes())),
    ];
    let mut table = Table::new(bed);
    for family in Family::BOTH {
        table.section(TOPIC, Some(family), Stage::Normal);
        for (name, message) in MESSAGES {
            let name = format!("{when}: {name}");
            let frames =
                |from, to, token| vec![bed.link(from, to).ip(&message(&bed.ip(from, to, family), token))];
            for (from, to) in DENIED {
                table.never(&name, from, to, |_, token| frames(from, to, token));
            }
            for (from, to) in ALLOWED {
                table.arrives(&name, from, to, |_, token| frames(from, to, token));
            }
        }
    }
    table
}

fn segment(ip: &Ip, token: Token, flags: u8) -> Vec<u8> {
    let head = Tcp { source: source_port(token), destination: 80, sequence: 1000, acknowledged: 0, flags };
    ip.packet(protocol::TCP, &ip.tcp(head, &token.bytes()))
}

/// A connection that existed before.
struct Connection {
    from: Host,
    to: Host,
    family: Family,
    port: u16,
}

/// Opens connections that the kernel keeps.
fn open_connections(bed: &Bed) -> Vec<Connection> {
    let connection = |family, (from, to)| Connection { from, to, family, port: source_port(bed.token()) };
    let of = |family| CONNECTED.map(|pair| connection(family, pair));
    let connections: Vec<Connection> = Family::BOTH.into_iter().flat_map(of).collect();
    let send = |forth| {
        for connection in &connections {
            connection.send(bed, forth, b"for the record");
        }
        bed.settle();
    };
    send(true);
    send(false);
    std::thread::sleep(LASTS_AFTER);
    send(true);
    connections
}

impl Connection {
    fn send(&self, bed: &Bed, forth: bool, payload: &[u8]) {
        let (from, to) = if forth { (self.from, self.to) } else { (self.to, self.from) };
        let (source, destination) = if forth { (self.port, PORT) } else { (PORT, self.port) };
        let ip = bed.ip(from, to, self.family);
        let packet = ip.packet(protocol::UDP, &ip.udp(source, destination, payload));
        bed.send(from, &bed.link(from, to).ip(&packet));
    }

    /// Whether both directions still pass.
    fn continues(&self, bed: &Bed) -> [Outcome; 2] {
        // The tunnel's own packets are not answered: the kernel drops their connection for a new one.
        let is_tunnelled =
            bed.setting.topology == Topology::Vxlan && bed.node_of(self.from) != bed.node_of(self.to);
        let (expect, attempts) = if is_tunnelled { (Expect::Undefended, 1) } else { (Expect::Arrives, 20) };
        [true, false].map(|forth| {
            let (from, to) = if forth { (self.from, self.to) } else { (self.to, self.from) };
            let token = bed.token();
            let arrived = (0..attempts).any(|_| {
                self.send(bed, forth, &token.bytes());
                (0..50).any(|_| {
                    std::thread::sleep(Duration::from_millis(10));
                    bed.receivers(token).contains(&to)
                })
            });
            let name = format!("an existing connection, {:?}", self.family);
            observed(bed, TOPIC, name, (from, to), (expect, arrived))
        })
    }
}

/// One datagram for each of these connections of a pod with outside addresses: the pod's, or the answer.
fn flood(bed: &Bed, from: Host, numbers: Range<u64>) {
    let link = Link { source: bed.mac(from), destination: bed.gateway(from) };
    let own = bed.v4(FREE);
    let mut frame = Vec::new();
    for number in numbers {
        if frame.is_empty() || number % PER_ADDRESS == 0 {
            let last = u8::try_from(1 + number / PER_ADDRESS).expect("few addresses");
            let other = Ipv4Addr::new(198, 51, 100, last);
            let (source, destination) = if from == FREE { (own, other) } else { (other, own) };
            // Without a checksum, as IPv4 allows, since the ports are overwritten.
            let datagram = [0, 0, 0, 0, 0, 8, 0, 0];
            frame = link.ip(&Ip::new(source.into(), destination.into()).packet(protocol::UDP, &datagram));
        }
        let other = u16::try_from(1_024 + number % PER_ADDRESS).expect("a port");
        let (source, destination) = if from == FREE { (PORT, other) } else { (other, PORT) };
        frame[34..36].copy_from_slice(&source.to_be_bytes());
        frame[36..38].copy_from_slice(&destination.to_be_bytes());
        bed.send(from, &frame);
    }
}

fn number(bed: &Bed, name: &str) -> u64 {
    let path = format!("/proc/sys/net/netfilter/{name}");
    let text = bed.netns(NODE).run(|| std::fs::read_to_string(path)).expect("the node").expect("a number");
    text.trim().parse().expect("a number")
}

/// A counter of the node's connection tracking, summed over all processors.
fn statistic(bed: &Bed, name: &str) -> u64 {
    let text = bed.netns(NODE).run(|| std::fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack"));
    let text = text.expect("the node").expect("the statistics of connection tracking");
    let mut lines = text.lines().map(str::split_whitespace);
    let at = lines.next().and_then(|mut head| head.position(|word| word == name)).expect("a column");
    lines.map(|mut line| u64::from_str_radix(line.nth(at).expect("a column"), 16).expect("a number")).sum()
}
