//! What packets carry: UDP, TCP, ICMP of both families, SCTP.

use super::{Ip, checksum, protocol};
use crate::{lab::sctp::crc32c, model::Family};

/// Flags of a TCP segment.
pub mod tcp_flag {
    /// The last segment of its direction.
    pub const FIN: u8 = 0x01;
    /// The first segment of its direction.
    pub const SYN: u8 = 0x02;
    /// Resets the connection.
    pub const RST: u8 = 0x04;
    /// To be delivered at once.
    pub const PSH: u8 = 0x08;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
}

/// The header of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// The source port.
    pub source: u16,
    /// The destination port.
    pub destination: u16,
    /// The sequence number of its first byte.
    pub sequence: u32,
    /// The number of the next byte that its sender expects.
    pub acknowledged: u32,
    /// From [`tcp_flag`].
    pub flags: u8,
}

impl Ip {
    /// A UDP datagram for this header.
    #[must_use]
    pub fn udp(&self, source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
        let mut datagram = [source, destination, length, 0].map(u16::to_be_bytes).concat();
        datagram.extend(payload);
        // A checksum of 0 would mean that there is none.
        let sum = match self.sum(protocol::UDP, &datagram) {
            0 => u16::MAX,
            sum => sum,
        };
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        datagram
    }

    /// A TCP segment for this header.
    #[must_use]
    pub fn tcp(&self, head: Tcp, payload: &[u8]) -> Vec<u8> {
        let mut segment = [head.source, head.destination].map(u16::to_be_bytes).concat();
        segment.extend(head.sequence.to_be_bytes());
        segment.extend(head.acknowledged.to_be_bytes());
        segment.extend([0x50, head.flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(payload);
        let sum = self.sum(protocol::TCP, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    /// An ICMP message of this header's family: type, code, and everything after the checksum.
    #[must_use]
    pub fn icmp(&self, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0];
        message.extend(body);
        let sum = match self.family() {
            Family::V4 => checksum(&[&message]),
            Family::V6 => self.sum(protocol::ICMPV6, &message),
        };
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    }

    /// The protocol number of ICMP in this header's family.
    #[must_use]
    pub const fn icmp_number(&self) -> u8 {
        match self.family() {
            Family::V4 => protocol::ICMP,
            Family::V6 => protocol::ICMPV6,
        }
    }

    /// A whole packet with an echo request.
    #[must_use]
    pub fn ping(&self, id: u16, payload: &[u8]) -> Vec<u8> {
        let kind = if self.family() == Family::V4 { 8 } else { 128 };
        let body = [&id.to_be_bytes(), &[0, 1], payload].concat();
        self.packet(self.icmp_number(), &self.icmp(kind, 0, &body))
    }

    /// A whole packet with the error "port unreachable", which quotes another packet.
    #[must_use]
    pub fn port_unreachable(&self, quoted: &[u8]) -> Vec<u8> {
        let (kind, code) = if self.family() == Family::V4 { (3, 3) } else { (1, 4) };
        let body = [&[0; 4], quoted].concat();
        self.packet(self.icmp_number(), &self.icmp(kind, code, &body))
    }
}

/// An SCTP packet that requests an association, with bytes of ours in a parameter that receivers skip.
#[must_use]
pub fn sctp_init(source: u16, destination: u16, tag: u32, payload: &[u8]) -> Vec<u8> {
    let mut value = [&tag.to_be_bytes()[..], &65_536_u32.to_be_bytes(), &[0, 1, 0, 1]].concat();
    value.extend(tag.to_be_bytes());
    let length = |inner: usize| u16::try_from(inner + 4).unwrap_or(u16::MAX).to_be_bytes();
    // The highest bits of its type mean: skip it if unknown.
    value.extend([0x9f, 0xff]);
    value.extend(length(payload.len()));
    value.extend(payload);
    value.resize(value.len().next_multiple_of(4), 0);
    let mut packet = [source, destination].map(u16::to_be_bytes).concat();
    packet.extend([0; 8]);
    packet.extend([1, 0]);
    packet.extend(length(value.len()));
    packet.extend(value);
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> [Ip; 2] {
        [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")]
            .map(|(from, to)| Ip::new(from.parse().unwrap(), to.parse().unwrap()))
    }

    #[test]
    fn message_with_its_checksum_sums_to_zero() {
        for ip in both() {
            let head = Tcp { source: 1, destination: 2, sequence: 3, acknowledged: 4, flags: tcp_flag::SYN };
            assert_eq!(ip.sum(protocol::UDP, &ip.udp(5000, 53, b"odd")), 0);
            assert_eq!(ip.sum(protocol::TCP, &ip.tcp(head, b"even")), 0);
        }
        let [four, six] = both();
        assert_eq!(checksum(&[&four.icmp(8, 0, b"1234")]), 0);
        assert_eq!(six.sum(protocol::ICMPV6, &six.icmp(128, 0, b"1234")), 0);
    }

    #[test]
    fn sctp_init_is_parsed_by_the_lab() {
        let packet = sctp_init(4000, 80, 7, b"payload");
        let read = crate::lab::sctp::Packet::decode(&packet).unwrap();
        assert_eq!((read.source, read.destination), (4000, 80));
        assert_eq!(read.chunk, crate::lab::sctp::Chunk::Init { tag: 7 });
    }
}
