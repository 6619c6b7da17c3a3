//! The kernel's netlink messages, as far as we read and write them.
//!
//! A message is a header, a header of its subsystem, and attributes; an attribute is a length, a type and a payload,
//! padded to four bytes. The subsystem's header of netfilter is family, version and resource; those of routing are in
//! [`links`](super::links). Numbers in headers are in host byte order, numbers in netfilter's attributes in network
//! byte order. Parsing stops at anything that is shorter than its length says.

use std::io;

use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

pub(super) const FLAG_REQUEST: u16 = 0x1;
pub(super) const FLAG_ACK: u16 = 0x4;
pub(super) const FLAG_DUMP: u16 = 0x300;
pub(super) const FLAG_EXCLUSIVE: u16 = 0x200;
pub(super) const FLAG_CREATE: u16 = 0x400;

/// Set in a message of a dump during which something changed: the dump may be incomplete.
const FLAG_INTERRUPTED: u16 = 0x10;

/// Kinds of messages that every subsystem has.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Set in the type of an attribute that holds attributes.
pub(super) const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that hold the type itself.
const TYPE_MASK: u16 = 0x3fff;

const HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;

/// The size of the read buffer. The kernel puts at most 32 KiB of a dump into one read.
const ROOM: usize = 1 << 16;

/// A socket to the kernel.
#[derive(Debug)]
pub(super) struct Netlink {
    pub(super) socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
    /// Whether the last dump may be incomplete, because something changed meanwhile.
    pub(super) interrupted: bool,
}

impl Netlink {
    /// A socket to the kernel's netfilter.
    pub(super) fn open() -> io::Result<Self> {
        Self::of(NETLINK_NETFILTER)
    }

    /// A socket to the kernel's links, addresses and routes. Requests are checked strictly, so that a filter that the
    /// kernel does not know is an error instead of an unfiltered answer.
    pub(super) fn open_route() -> io::Result<Self> {
        let netlink = Self::of(NETLINK_ROUTE)?;
        netlink.socket.set_netlink_get_strict_chk(true)?;
        Ok(netlink)
    }

    fn of(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        Ok(Self { socket, buffer: Vec::with_capacity(ROOM), sequence: 0, interrupted: false })
    }

    /// Sends a request of the given kind (`subsystem << 8 | message`) and passes on each answer until the last.
    pub(super) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        attributes: &[u8],
        each: impl FnMut(&Message<'_>),
    ) -> io::Result<()> {
        self.request_body(kind, flags, &[&[family, 0, 0, 0], attributes].concat(), each)
    }

    /// As [`request`](Self::request); `body` is the subsystem's header and the attributes.
    pub(super) fn request_body(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(&Message<'_>),
    ) -> io::Result<()> {
        self.sequence += 1;
        self.interrupted = false;
        let message = encode_body(kind, flags | FLAG_REQUEST, self.sequence, body);
        self.socket.send_to(&message, &SocketAddr::new(0, 0), 0)?;
        loop {
            let sequence = self.sequence;
            let mut interrupted = false;
            let mut done = None;
            for message in messages(self.receive()?) {
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.flags & FLAG_INTERRUPTED != 0;
                if !matches!(message.kind, DONE | ERROR) {
                    each(&message);
                }
                done = message.end(flags);
                if done.is_some() {
                    break;
                }
            }
            self.interrupted |= interrupted;
            if let Some(result) = done {
                return result;
            }
        }
    }

    /// Waits for the next datagram.
    pub(super) fn receive(&mut self) -> io::Result<&[u8]> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(&self.buffer),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// `subsystem << 8 | message`
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    /// The family that the netfilter header names.
    pub(super) family: u8,
    /// The part after the header.
    payload: &'a [u8],
}

impl<'a> Message<'a> {
    pub(super) fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        attributes(self.payload.get(NETFILTER_HEADER..).unwrap_or_default())
    }

    /// The part after the header: the subsystem's header and the attributes.
    pub(super) fn body(&self) -> &'a [u8] {
        self.payload
    }

    /// The result of a request with these flags, if this answer is the last one.
    fn end(&self, flags: u16) -> Option<io::Result<()>> {
        match self.kind {
            // Its payload is a result as well; some subsystems leave it out.
            DONE if self.payload.len() < 4 => Some(Ok(())),
            DONE | ERROR => Some(self.error()),
            // Neither a dump nor acknowledged: this answer was the only one.
            _ => (flags & (FLAG_DUMP | FLAG_ACK) == 0).then_some(Ok(())),
        }
    }

    /// The result that an error message or an acknowledgement carries.
    fn error(&self) -> io::Result<()> {
        match self.payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            None => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }
}

#[cfg(test)]
pub(super) fn encode(kind: u16, flags: u16, sequence: u32, family: u8, attributes: &[u8]) -> Vec<u8> {
    encode_body(kind, flags, sequence, &[&[family, 0, 0, 0], attributes].concat())
}

pub(super) fn encode_body(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = HEADER + body.len();
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

/// Appends an attribute.
pub(super) fn put(to: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    to.extend(u16::try_from(payload.len() + 4).unwrap_or(u16::MAX).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(payload);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// The messages of a datagram.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER)?;
        let length = usize::try_from(u32::from_ne_bytes(*header.first_chunk()?)).ok()?;
        let payload = bytes.get(HEADER..length)?;
        let message = Message {
            kind: u16::from_ne_bytes(*header.get(4..)?.first_chunk()?),
            flags: u16::from_ne_bytes(*header.get(6..)?.first_chunk()?),
            sequence: u32::from_ne_bytes(*header.get(8..)?.first_chunk()?),
            family: payload.first().copied().unwrap_or(0),
            payload,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes of a message, or in another attribute: type and payload.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & TYPE_MASK;
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The payload as text, without its trailing zero byte.
pub(super) fn text(payload: &[u8]) -> &str {
    let end = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
    payload.get(..end).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_any_length_survive_encoding_and_parsing() {
        let mut encoded = Vec::new();
        put(&mut encoded, 1 | NESTED, b"abc\0");
        put(&mut encoded, 2, b"x");
        let message = encode(0x0a10, FLAG_REQUEST, 7, 2, &encoded);
        let twice = [message.clone(), message].concat();
        let read: Vec<Message<'_>> = messages(&twice).collect();
        assert_eq!(read.len(), 2);
        for message in read {
            assert_eq!((message.kind, message.sequence, message.family), (0x0a10, 7, 2));
            let found: Vec<_> = message.attributes().collect();
            assert_eq!(found, [(1, &b"abc\0"[..]), (2, &b"x"[..])]);
            assert_eq!(text(found[0].1), "abc");
        }
    }

    #[test]
    fn truncated_message_ends_the_parsing() {
        let mut encoded = Vec::new();
        put(&mut encoded, 1, b"abcdefgh");
        let message = encode(0x0100, 0, 1, 2, &encoded);
        for length in 0..message.len() {
            assert_eq!(messages(&message[..length]).count(), 0);
            assert!(attributes(&encoded[..length.min(encoded.len() - 1)]).count() == 0);
        }
    }

    #[test]
    fn zero_length_does_not_loop() {
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[0; 64]).count(), 0);
    }

    #[test]
    fn last_message_has_the_result_of_the_request() {
        let end = |kind: u16, flags: u16, payload: &[u8]| {
            let bytes = encode_body(kind, 0, 1, payload);
            let end = messages(&bytes).next().unwrap().end(flags);
            end.map(|result| result.map_err(|error| error.raw_os_error()))
        };
        let (none, busy) = (0_i32.to_ne_bytes(), (-16_i32).to_ne_bytes());
        for kind in [DONE, ERROR] {
            assert_eq!(end(kind, FLAG_DUMP, &none), Some(Ok(())));
            assert_eq!(end(kind, FLAG_DUMP, &busy), Some(Err(Some(16))));
        }
        assert_eq!(end(DONE, FLAG_DUMP, &[]), Some(Ok(())), "some subsystems leave it out");
        assert_eq!(end(ERROR, FLAG_ACK, &[]), Some(Err(None)));
        let other = 0x0a10;
        assert_eq!(end(other, FLAG_DUMP, &busy), None, "more answers follow");
        assert_eq!(end(other, FLAG_ACK | FLAG_CREATE, &busy), None, "the acknowledgement follows");
        assert_eq!(end(other, FLAG_CREATE, &busy), Some(Ok(())), "it was the only answer");
    }

    /// Requests about links, which need no privilege.
    const GET_LINK: u16 = 18;
    const LINK_HEADER: usize = 16;

    /// The indices of the links in the answers to a request about the link with this index; 0 is none.
    fn links(netlink: &mut Netlink, flags: u16, index: u32) -> io::Result<Vec<u32>> {
        let mut body = vec![0; LINK_HEADER];
        body.splice(4..8, index.to_ne_bytes());
        let mut found = Vec::new();
        netlink.request_body(GET_LINK, flags, &body, |message| {
            found.push(u32::from_ne_bytes(*message.body()[4..].first_chunk().unwrap()));
        })?;
        Ok(found)
    }

    #[test]
    fn dump_ends_after_its_last_message_and_request_after_the_first() {
        let mut netlink = Netlink::open_route().unwrap();
        let all = links(&mut netlink, FLAG_DUMP, 0).unwrap();
        assert!(all.contains(&1), "the loopback interface: {all:?}");
        assert!(!netlink.interrupted);
        assert_eq!(links(&mut netlink, 0, 1).unwrap(), [1]);
        assert_eq!(links(&mut netlink, FLAG_ACK, 1).unwrap(), [1]);
        assert_eq!(netlink.sequence, 3, "each request has a number of its own");
    }

    #[test]
    fn refused_request_returns_the_kernels_error() {
        let mut netlink = Netlink::open_route().unwrap();
        let error = links(&mut netlink, 0, u32::MAX >> 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::ENODEV as i32));
        assert_eq!(links(&mut netlink, 0, 1).unwrap(), [1], "the next request is another matter");
    }
}
