//! Just enough SCTP to request an association and to receive an answer (RFC 9260).
//!
//! The kernel of a test machine seldom has the sctp module, so both ends use raw sockets. Connection tracking still
//! checks these packets: a wrong checksum or verification tag makes them INVALID.

/// The protocol's number in an IP header.
pub(super) const PROTOCOL: u8 = 132;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const STATE_COOKIE: u16 = 7;

/// One packet with one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// The source port.
    pub(super) source: u16,
    /// The destination port.
    pub(super) destination: u16,
    /// The tag by which the receiver recognizes it; 0 in an INIT.
    pub(super) tag: u32,
    /// Its chunk.
    pub(super) chunk: Chunk,
}

/// The chunk of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Requests an association; replies must carry this tag.
    Init {
        /// Never 0.
        tag: u32,
    },
    /// Grants one.
    InitAck {
        /// Never 0.
        tag: u32,
        /// What the requester must send back; here it also carries the answering pod's name.
        cookie: Vec<u8>,
    },
    /// Refuses one: nothing listens on that port.
    Abort,
}

impl Packet {
    /// Its bytes, checksum included.
    pub(super) fn encode(&self) -> Vec<u8> {
        let chunk = match &self.chunk {
            Chunk::Init { tag } => chunk(INIT, &initiation(*tag)),
            Chunk::InitAck { tag, cookie } => {
                let mut value = initiation(*tag);
                value.extend(STATE_COOKIE.to_be_bytes());
                value.extend(length_of(cookie).to_be_bytes());
                value.extend(cookie);
                chunk(INIT_ACK, &value)
            }
            Chunk::Abort => chunk(ABORT, &[]),
        };
        let mut bytes = Vec::with_capacity(12 + chunk.len());
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(chunk);
        let sum = crc32c(&bytes);
        bytes.splice(8..12, sum.to_le_bytes());
        bytes
    }

    /// Parses a packet; `None` if it is damaged, or of a kind that this module does not know.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (source, destination) = ports(bytes)?;
        let sum = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
        let mut blank = bytes.to_vec();
        blank.splice(8..12, [0; 4]);
        if crc32c(&blank) != sum {
            return None;
        }
        let tag = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
        let promised = || Some(u32::from_be_bytes(bytes.get(16..20)?.try_into().ok()?));
        let chunk = match *bytes.get(12)? {
            INIT => Chunk::Init { tag: promised()? },
            INIT_ACK => Chunk::InitAck { tag: promised()?, cookie: cookie(bytes.get(32..)?)? },
            ABORT => Chunk::Abort,
            _ => return None,
        };
        Some(Self { source, destination, tag, chunk })
    }
}

/// Source and destination port at the start of a packet, either complete or as quoted by an ICMP error.
pub(super) fn ports(bytes: &[u8]) -> Option<(u16, u16)> {
    let port = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    Some((port(0)?, port(2)?))
}

/// The fixed part of INIT and INIT ACK: tag, window, streams out and in, first sequence number.
fn initiation(tag: u32) -> Vec<u8> {
    [&tag.to_be_bytes()[..], &65_536_u32.to_be_bytes(), &[0, 1, 0, 1], &tag.to_be_bytes()].concat()
}

/// The length field of a chunk or parameter: its own header of four bytes counts.
fn length_of(value: &[u8]) -> u16 {
    u16::try_from(value.len() + 4).unwrap_or(u16::MAX)
}

fn chunk(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0];
    bytes.extend(length_of(value).to_be_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn cookie(parameter: &[u8]) -> Option<Vec<u8>> {
    let (kind, length) = ports(parameter)?;
    if kind == STATE_COOKIE { parameter.get(4..usize::from(length)).map(<[u8]>::to_vec) } else { None }
}

/// `CRC32c`, bit by bit: packets here are few and short.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_crc32c() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn chunks_survive_encoding_and_parsing() {
        for chunk in [
            Chunk::Init { tag: 7 },
            Chunk::InitAck { tag: 9, cookie: b"shop/web".to_vec() },
            Chunk::InitAck { tag: 9, cookie: b"odd".to_vec() },
            Chunk::Abort,
        ] {
            let packet = Packet { source: 4000, destination: 9999, tag: 5, chunk };
            assert_eq!(Packet::decode(&packet.encode()), Some(packet.clone()), "{packet:?}");
            assert_eq!(ports(&packet.encode()[..8]), Some((4000, 9999)));
        }
    }

    #[test]
    fn damaged_packet_is_rejected() {
        let bytes = Packet { source: 1, destination: 2, tag: 0, chunk: Chunk::Init { tag: 3 } }.encode();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert_eq!(Packet::decode(&damaged), None, "byte {at}");
            assert_eq!(Packet::decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
