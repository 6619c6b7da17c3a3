//! The helper for SIP: what one datagram makes the kernel expect.
//!
//! A rule of another program on the node assigns SIP to the kernel's helper. A pod that must not be reached then calls
//! another one, names a port for the voice (`INVITE` with SDP), and registers another one for calls to itself
//! (`REGISTER`): packets from the other side to these ports are "related", and no policy allows them.

use towpath::{
    lab::frame::{Token, protocol},
    model::Family,
};

use crate::{
    bed::{Bed, Host, source_port},
    helpers::{expectations, hand_to_helper},
    pods::{FREE, NODE, OPEN, VICTIM},
    table::{Expect, Outcome, observed},
};

const PORT: u16 = 5060;

/// One call: the caller, what it announces about itself, and whether the other side's packets may then arrive.
struct Call {
    family: Family,
    from: Host,
    expected: Expect,
    /// Names the method, and which port the kernel must record.
    method: &'static str,
    announced: u16,
    requested: Token,
    answered: Token,
    followed: Token,
}

pub(crate) fn rows(bed: &Bed) -> Vec<Outcome> {
    for family in Family::BOTH {
        // The rule is that for FTP except for port and helper name, and that one worked: so the name is the cause.
        if let Err(error) = hand_to_helper(bed, family, ("udp", PORT), "sip") {
            println!(
                "skipped: the helper for SIP, which this kernel does not have (nf_conntrack_sip): {error}"
            );
            return Vec::new();
        }
    }
    // The pod that may be reached is the control: the same messages, and all of them arrive.
    let host = [(VICTIM, Expect::Never), (FREE, Expect::Arrives)];
    let methods = ["INVITE", "REGISTER"];
    let mut announced = (40_060..).step_by(2);
    let mut calls = Vec::new();
    for family in Family::BOTH {
        for (from, expected) in host {
            for method in methods {
                let announced = announced.next().expect("a port");
                let [requested, answered, followed] = [bed.token(), bed.token(), bed.token()];
                calls.push(Call { family, from, expected, method, announced, requested, answered, followed });
            }
        }
    }
    for call in &calls {
        call.send(bed, true, (source_port(call.requested), PORT), &call.request(bed));
    }
    bed.settle();
    for call in &calls {
        call.send(bed, false, (PORT, source_port(call.requested)), &call.answer(bed));
    }
    bed.settle();
    let expectations = expectations(bed);
    for call in &calls {
        call.send(bed, false, (source_port(call.followed), call.announced), &call.followed.bytes());
    }
    bed.settle();
    calls.iter().flat_map(|call| call.outcomes(bed, &expectations)).collect()
}

impl Call {
    /// Sends a datagram from the caller, or one from the other side.
    fn send(&self, bed: &Bed, forth: bool, (source, destination): (u16, u16), payload: &[u8]) {
        let (from, to) = if forth { (self.from, OPEN) } else { (OPEN, self.from) };
        let ip = bed.ip(from, to, self.family);
        let packet = ip.packet(protocol::UDP, &ip.udp(source, destination, payload));
        bed.send(from, &bed.link(from, to).ip(&packet));
    }

    fn address(&self, bed: &Bed, host: Host) -> String {
        let address = bed.address(host, self.family);
        if address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
    }

    /// What the request and its answer have in common.
    fn lines(&self, bed: &Bed) -> String {
        let (own, other) = (self.address(bed, self.from), self.address(bed, OPEN));
        let (method, announced, port) = (self.method, self.announced, source_port(self.requested));
        let contact = if method == "REGISTER" { announced } else { port };
        format!(
            "Via: SIP/2.0/UDP {own}:{port};branch=z9hG4bK{announced}\r\n\
             From: <sip:caller@{own}>;tag=1\r\n\
             To: <sip:other@{other}>\r\n\
             Call-ID: {announced}@example.org\r\n\
             CSeq: 1 {method}\r\n\
             Contact: <sip:caller@{own}:{contact}>\r\n",
        )
    }

    fn request(&self, bed: &Bed) -> Vec<u8> {
        let lines = self.lines(bed);
        let other = self.address(bed, OPEN);
        let (start, more) = if self.method == "REGISTER" {
            (format!("REGISTER sip:{other} SIP/2.0"), "Expires: 3600\r\n\r\n".to_owned())
        } else {
            let bare = bed.address(self.from, self.family);
            let kind = if bare.is_ipv6() { "IP6" } else { "IP4" };
            let sdp = format!(
                "v=0\r\no=- 1 1 IN {kind} {bare}\r\ns=-\r\nc=IN {kind} {bare}\r\nt=0 0\r\n\
                 m=audio {} RTP/AVP 0\r\n",
                self.announced
            );
            (
                format!("INVITE sip:other@{other} SIP/2.0"),
                format!("Content-Type: application/sdp\r\n\r\n{sdp}"),
            )
        };
        [format!("{start}\r\n{lines}{more}").as_bytes(), &self.requested.bytes()].concat()
    }

    /// A granted registration, and a ringing call.
    fn answer(&self, bed: &Bed) -> Vec<u8> {
        let lines = self.lines(bed);
        let text = if self.method == "REGISTER" {
            format!("SIP/2.0 200 OK\r\n{lines}Expires: 3600\r\n\r\n")
        } else {
            format!("SIP/2.0 180 Ringing\r\n{lines}\r\n")
        };
        [text.as_bytes(), &self.answered.bytes()].concat()
    }

    fn outcomes(&self, bed: &Bed, expectations: &str) -> [Outcome; 4] {
        let dport = format!("dport={} ", self.announced);
        // A registration that was not granted is recorded too, and allows nothing yet.
        let is_expected =
            expectations.lines().any(|line| line.contains(&dport) && !line.contains("INACTIVE"));
        let row = |name: &str, (from, to): (Host, Host), expect: Expect, arrived: bool| {
            let name = format!("SIP {}, {name}, {:?}", self.method, self.family);
            observed(bed, "connection helpers", name, (from, to), (expect, arrived))
        };
        let (forth, back) = ((self.from, OPEN), (OPEN, self.from));
        let seen = |token, host| bed.receivers(token).contains(&host);
        [
            row("the request", forth, Expect::Arrives, seen(self.requested, OPEN)),
            row("the answer", back, Expect::Arrives, seen(self.answered, self.from)),
            // Without an expectation there is no attack.
            row("the kernel expects the announced port", (NODE, self.from), Expect::Arrives, is_expected),
            row("a packet to the announced port", back, self.expected, seen(self.followed, self.from)),
        ]
    }
}
