//! The kernel's copies of dropped packets: a netlink log group (`nfnetlink_log`), read by one process at a time.
//!
//! The kernel puts copies into the socket's buffer, and drops those for which there is no room; each copy has a number,
//! so that the gaps show how many those were.

pub mod headers;

use std::{io, num::Wrapping};

use nix::errno::Errno;

use super::netlink::{FLAG_ACK, Message, Netlink, messages, put, text};
use headers::Headers;

const SUBSYSTEM: u16 = 4 << 8;
const PACKET: u16 = SUBSYSTEM;
const CONFIGURE: u16 = SUBSYSTEM | 1;

/// Attributes of a copy.
const PACKET_HEADER: u16 = 1;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
const NUMBER: u16 = 12;

/// Attributes of the configuration.
const COMMAND: u16 = 1;
const MODE: u16 = 2;
const TIMEOUT: u16 = 4;
const FLAGS: u16 = 6;

/// Takes over a group.
const BIND: u8 = 1;

/// The mode in which the beginning of the packet is copied.
const COPY_PACKET: u8 = 2;

/// Numbers the copies.
const NUMBERED: u16 = 1;

/// How many bytes of a packet are copied: an IPv6 header, some extension headers, and a transport's.
const COPIED: u32 = 128;

/// How long the kernel gathers copies for one message, in hundredths of a second. Its own default is a second.
const GATHERED: u32 = 1;

/// The size of the socket's buffer, in bytes; the kernel takes twice that for its own accounts. It may grant less.
const BUFFER: u32 = 1 << 19;

/// A netlink log group.
#[derive(Debug)]
pub struct Nflog {
    netlink: Netlink,
    next: Option<Wrapping<u32>>,
}

/// The copy of one dropped packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied<'a> {
    /// The prefix that the rule gave it.
    pub prefix: &'a str,
    /// Its headers, as far as they can be read.
    pub headers: Option<Headers>,
}

impl Nflog {
    /// Takes over a group.
    ///
    /// # Errors
    /// If the kernel has no netlink log (the module `nfnetlink_log`), or another process reads this group.
    pub fn open(group: u16) -> io::Result<Self> {
        let mut netlink = Netlink::open()?;
        let mut configure = |attributes: &[u8]| {
            let [high, low] = group.to_be_bytes();
            let body = [&[0, 0, high, low], attributes].concat();
            netlink.request_body(CONFIGURE, FLAG_ACK, &body, |_| {})
        };
        let mut bind = Vec::new();
        put(&mut bind, COMMAND, &[BIND]);
        configure(&bind)?;
        let mut how = Vec::new();
        let [a, b, c, d] = COPIED.to_be_bytes();
        put(&mut how, MODE, &[a, b, c, d, COPY_PACKET, 0]);
        put(&mut how, TIMEOUT, &GATHERED.to_be_bytes());
        put(&mut how, FLAGS, &NUMBERED.to_be_bytes());
        configure(&how)?;
        netlink.socket.set_rx_buf_sz(BUFFER)?;
        Ok(Self { netlink, next: None })
    }

    /// Whether [`open`](Self::open) failed because another process has the group. The kernel says "not permitted" then;
    /// the privilege for it is that without which the daemon does not start.
    #[must_use]
    pub fn is_taken(error: &io::Error) -> bool {
        [Errno::EPERM, Errno::EBUSY].iter().any(|taken| error.raw_os_error() == Some(*taken as i32))
    }

    /// Waits for copies and passes each on. Returns how many were lost before them for lack of room.
    ///
    /// # Errors
    /// If the kernel no longer delivers any.
    pub fn receive(&mut self, mut each: impl FnMut(&Copied<'_>)) -> io::Result<u64> {
        let bytes = match self.netlink.receive() {
            Ok(bytes) => bytes,
            // The next copy's number shows how many.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return Ok(0),
            Err(error) => return Err(error),
        };
        let mut lost = 0;
        for message in messages(bytes) {
            let Some((number, copied)) = parse(&message) else { continue };
            if let Some(number) = number.map(Wrapping) {
                lost += self.next.map_or(0, |next| u64::from((number - next).0));
                self.next = Some(number + Wrapping(1));
            }
            each(&copied);
        }
        Ok(lost)
    }
}

/// Reads a message: the number of the copy, and the copy.
pub(super) fn parse<'a>(message: &Message<'a>) -> Option<(Option<u32>, Copied<'a>)> {
    if message.kind != PACKET {
        return None;
    }
    let number = |payload: &[u8]| payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let (mut ethertype, mut packet, mut prefix, mut count) = (0, None, "", None);
    for (kind, payload) in message.attributes() {
        match kind {
            PACKET_HEADER => {
                ethertype = payload.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes));
            }
            PAYLOAD => packet = Some(payload),
            PREFIX => prefix = text(payload),
            NUMBER => count = number(payload),
            _ => {}
        }
    }
    let headers = packet.and_then(|packet| Headers::parse(ethertype, packet));
    Some((count, Copied { prefix, headers }))
}

#[cfg(test)]
mod tests {
    use super::super::netlink::encode_body;
    use super::{headers::tests::packet_v4, *};

    fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![2, 0, 0, 100];
        for (kind, payload) in attributes {
            put(&mut body, *kind, payload);
        }
        encode_body(PACKET, 0, 0, &body)
    }

    #[test]
    fn copy_has_prefix_and_headers() {
        let packet = packet_v4(17, 0, &[156, 64, 0, 53, 0, 8, 0, 0]);
        let bytes = message(&[
            (PACKET_HEADER, &[8, 0, 2, 0]),
            (PREFIX, b"towpath unknown \0"),
            (PAYLOAD, &packet),
            (NUMBER, &[0, 0, 1, 0]),
        ]);
        let (number, copied) = parse(&messages(&bytes).next().unwrap()).unwrap();
        assert_eq!(number, Some(256));
        assert_eq!(copied.prefix, "towpath unknown ");
        assert_eq!(copied.headers.unwrap().protocol(), Some(17));
    }

    #[test]
    fn copy_without_a_readable_packet_is_still_one() {
        let bytes = message(&[(PREFIX, b"x\0"), (PAYLOAD, &[0x90, 1, 2])]);
        let (number, copied) = parse(&messages(&bytes).next().unwrap()).unwrap();
        assert_eq!((number, copied), (None, Copied { prefix: "x", headers: None }));
        assert!(parse(&messages(&encode_body(CONFIGURE, 0, 0, &[0; 4])).next().unwrap()).is_none());
    }
}
