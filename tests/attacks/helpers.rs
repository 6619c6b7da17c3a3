//! Connection helpers: a line in one connection makes the kernel expect another one.
//!
//! A rule of another program on the node assigns FTP to the kernel's helper. A pod that must not be reached then opens
//! such a connection and names one of its own ports: packets to that port are "related", and no policy allows them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use towpath::{
    lab::{
        LabError,
        frame::{Tcp, protocol, tcp_flag},
    },
    model::Family,
};

use crate::{
    bed::Bed,
    pods::{NODE, OPEN, VICTIM},
    sip,
    table::{Expect, Outcome, observed},
};

/// The port that the victim announces.
const NAMED: u16 = 40_021;

pub(crate) fn rows(bed: &Bed) -> Vec<Outcome> {
    let mut rows: Vec<Outcome> = Family::BOTH.into_iter().flat_map(|family| ftp(bed, family)).collect();
    rows.extend(sip::rows(bed));
    rows
}

/// A rule of another program on the node: packets to this port are assigned to that helper.
pub(crate) fn hand_to_helper(
    bed: &Bed,
    family: Family,
    (protocol, port): (&str, u16),
    helper: &str,
) -> Result<String, LabError> {
    let port = port.to_string();
    let of = ["-p", protocol, "--dport", &port];
    let rule =
        [&["-w", "-t", "raw", "-A", "PREROUTING"], &of[..], &["-j", "CT", "--helper", helper]].concat();
    bed.netns(NODE).succeed(&bed.setting.variant.program(family, ""), &rule, "")
}

/// The expectations of the node's kernel.
pub(crate) fn expectations(bed: &Bed) -> String {
    let text = bed.netns(NODE).run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack_expect"));
    text.expect("the node").unwrap_or_default()
}

fn ftp(bed: &Bed, family: Family) -> Vec<Outcome> {
    hand_to_helper(bed, family, ("tcp", 21), "ftp").expect("the rule for the helper");
    let server = SocketAddr::new(bed.address(OPEN, family), 21);
    let listener = bed.netns(OPEN).run(move || TcpListener::bind(server)).expect("the pod");
    let listener = listener.expect("a listener");
    let connect = move || TcpStream::connect_timeout(&server, Duration::from_secs(5));
    let mut client = bed.netns(VICTIM).run(connect).expect("the pod").expect("a connection");
    let (server, _) = listener.accept().expect("a connection");
    let (high, low) = (NAMED >> 8, NAMED & 0xff);
    let line = match bed.address(VICTIM, family) {
        IpAddr::V4(own) => format!("PORT {},{high},{low}\r\n", own.to_string().replace('.', ",")),
        IpAddr::V6(own) => format!("EPRT |2|{own}|{NAMED}|\r\n"),
    };
    // The helper reads only lines that follow a complete one.
    let mut server = BufReader::new(server);
    for line in ["USER anonymous\r\n", &line] {
        client.write_all(line.as_bytes()).expect("a line");
        let mut received = String::new();
        server.read_line(&mut received).expect("a line");
        assert_eq!(received, line);
    }
    // Without an expectation there is no attack.
    let expected = expectations(bed).contains(&format!("dport={NAMED}"));
    let token = bed.token();
    let ip = bed.ip(OPEN, VICTIM, family);
    let head = Tcp { source: 20, destination: NAMED, sequence: 1, acknowledged: 0, flags: tcp_flag::SYN };
    let packet = ip.packet(protocol::TCP, &ip.tcp(head, &token.bytes()));
    bed.send(OPEN, &bed.link(OPEN, VICTIM).ip(&packet));
    bed.settle();
    let arrived = bed.receivers(token).contains(&VICTIM);
    let row = |name: &str, expect, seen| {
        observed(bed, "connection helpers", format!("{name}, {family:?}"), (OPEN, VICTIM), (expect, seen))
    };
    vec![
        row("the kernel expects the FTP connection", Expect::Arrives, expected),
        row("the expected FTP connection", Expect::Never, arrived),
    ]
}
