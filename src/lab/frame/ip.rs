//! Packets of both families, with everything that may be between their header and their payload.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum;
use crate::model::Family;

/// IP protocol numbers.
pub mod protocol {
    /// IPv6: options for every hop.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP of IPv4.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6: a routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6: a fragment.
    pub const FRAGMENT: u8 = 44;
    /// GRE.
    pub const GRE: u8 = 47;
    /// ICMP of IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6: options for the receiver.
    pub const DESTINATION: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Options of IPv4 and bodies of IPv6 extension headers.
pub mod option {
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// Loose source routing through these routers.
    #[must_use]
    pub fn loose_source_route(hops: &[Ipv4Addr]) -> Vec<u8> {
        route(131, hops)
    }

    /// Strict source routing through these routers.
    #[must_use]
    pub fn strict_source_route(hops: &[Ipv4Addr]) -> Vec<u8> {
        route(137, hops)
    }

    /// Space for the addresses of the routers on the path.
    #[must_use]
    pub fn record_route(slots: usize) -> Vec<u8> {
        route(7, &vec![Ipv4Addr::UNSPECIFIED; slots])
    }

    /// An IPv6 options header with padding only.
    #[must_use]
    pub fn padding() -> Vec<u8> {
        vec![1, 4, 0, 0, 0, 0]
    }

    /// An IPv6 routing header: its type, how many of the addresses are still ahead, and the addresses.
    #[must_use]
    pub fn routing(kind: u8, left: u8, addresses: &[Ipv6Addr]) -> Vec<u8> {
        let mut body = vec![kind, left, 0, 0, 0, 0];
        body.extend(addresses.iter().flat_map(Ipv6Addr::octets));
        body
    }

    fn route(kind: u8, hops: &[Ipv4Addr]) -> Vec<u8> {
        let length = u8::try_from(3 + 4 * hops.len()).unwrap_or(39);
        let mut bytes = vec![kind, length, 4];
        bytes.extend(hops.iter().flat_map(Ipv4Addr::octets));
        bytes
    }
}

/// The header of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    source: IpAddr,
    destination: IpAddr,
    hops: u8,
    id: u32,
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
}

impl Ip {
    /// A header without options, with hop limit 64. The destination decides the family; a source of the other one
    /// becomes the unspecified address.
    #[must_use]
    pub fn new(source: IpAddr, destination: IpAddr) -> Self {
        let source = match (source, destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => source,
            (_, IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
            (_, IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self { source, destination, hops: 64, id: 0, options: Vec::new(), extensions: Vec::new() }
    }

    /// The same header with this hop limit.
    #[must_use]
    pub fn hops(self, hops: u8) -> Self {
        Self { hops, ..self }
    }

    /// The same header with this identification, by which fragments are reassembled.
    #[must_use]
    pub fn id(self, id: u32) -> Self {
        Self { id, ..self }
    }

    /// The same header with options of IPv4, padded; IPv6 has none.
    #[must_use]
    pub fn options(mut self, mut options: Vec<u8>) -> Self {
        options.resize(options.len().next_multiple_of(4), 0);
        self.options = options;
        self
    }

    /// The same header with one more IPv6 extension header after it; IPv4 has none.
    ///
    /// `body` is the part after the header's own two bytes; it is padded to a multiple of eight with them.
    #[must_use]
    pub fn extension(mut self, number: u8, mut body: Vec<u8>) -> Self {
        body.resize((body.len() + 2).next_multiple_of(8) - 2, 0);
        self.extensions.push((number, body));
        self
    }

    /// The family of the packet.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self.destination {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The whole packet.
    #[must_use]
    pub fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        self.assemble(protocol, payload, None)
    }

    /// One fragment of a packet: the part of its payload at `offset` bytes, a multiple of eight.
    #[must_use]
    pub fn fragment(&self, protocol: u8, part: &[u8], offset: u16, more: bool) -> Vec<u8> {
        self.assemble(protocol, part, Some((offset, more)))
    }

    /// All fragments of a packet, each with at most `size` bytes of its payload, rounded down to a multiple of eight.
    #[must_use]
    pub fn fragments(&self, protocol: u8, payload: &[u8], size: u16) -> Vec<Vec<u8>> {
        let size = (size / 8).max(1) * 8;
        let count = payload.len().div_ceil(usize::from(size));
        let parts = payload.chunks(usize::from(size)).zip((0..).step_by(usize::from(size))).enumerate();
        parts.map(|(at, (part, offset))| self.fragment(protocol, part, offset, at + 1 < count)).collect()
    }

    fn assemble(&self, protocol: u8, payload: &[u8], part: Option<(u16, bool)>) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.v4(source, destination, protocol, payload, part)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.v6(source, destination, protocol, payload, part)
            }
            // The constructor made both of one family.
            _ => Vec::new(),
        }
    }

    fn v4(
        &self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: u8,
        payload: &[u8],
        part: Option<(u16, bool)>,
    ) -> Vec<u8> {
        let head = 20 + self.options.len();
        let flags = part.map_or(0x4000, |(offset, more)| (u16::from(more) << 13) | (offset / 8));
        let [.., high, low] = self.id.to_be_bytes();
        let mut packet = vec![0x40 | u8::try_from(head / 4).unwrap_or(15), 0];
        packet.extend(u16::try_from(head + payload.len()).unwrap_or(u16::MAX).to_be_bytes());
        packet.extend([high, low]);
        packet.extend(flags.to_be_bytes());
        packet.extend([self.hops, protocol, 0, 0]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(&self.options);
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(payload);
        packet
    }

    fn v6(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        protocol: u8,
        payload: &[u8],
        part: Option<(u16, bool)>,
    ) -> Vec<u8> {
        let fragment = part.map(|(offset, more)| {
            let mut body = (offset & !7 | u16::from(more)).to_be_bytes().to_vec();
            body.extend(self.id.to_be_bytes());
            body
        });
        // Later fragments carry bytes of the fragmentable part, which begins after the extensions.
        let all: Vec<(u8, &[u8])> = self
            .extensions
            .iter()
            .map(|(number, body)| (*number, &**body))
            .chain(fragment.as_deref().map(|body| (protocol::FRAGMENT, body)))
            .collect();
        let next = |at: usize| all.get(at).map_or(protocol, |(number, _)| *number);
        let mut inner = Vec::new();
        for (at, (number, body)) in all.iter().enumerate() {
            let units = if *number == protocol::FRAGMENT { 0 } else { (body.len() + 2) / 8 - 1 };
            inner.extend([next(at + 1), u8::try_from(units).unwrap_or(u8::MAX)]);
            inner.extend(*body);
        }
        inner.extend(payload);
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(inner.len()).unwrap_or(u16::MAX).to_be_bytes());
        packet.extend([next(0), self.hops]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(inner);
        packet
    }

    /// The checksum of a message over the pseudo-header and itself.
    pub(super) fn sum(&self, protocol: u8, message: &[u8]) -> u16 {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let (source, destination) = (octets(self.source), octets(self.destination));
        checksum(&[&source, &destination, &length, &[0, 0, 0, protocol], message])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four() -> Ip {
        Ip::new("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap())
    }

    fn six() -> Ip {
        Ip::new("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())
    }

    #[test]
    fn ipv4_header_has_a_valid_checksum_and_length() {
        let packet = four().options(option::record_route(2)).packet(protocol::UDP, b"12345678");
        assert_eq!(packet[0], 0x48);
        assert_eq!(&packet[2..4], &[0, 40]);
        assert_eq!(checksum(&[&packet[..32]]), 0);
        assert_eq!(&packet[32..], b"12345678");
    }

    #[test]
    fn extension_headers_are_chained_to_the_payload() {
        let header = option::routing(0, 1, &["fd00::3".parse().unwrap()]);
        let packet = six()
            .extension(protocol::HOP_BY_HOP, option::padding())
            .extension(protocol::ROUTING, header)
            .packet(protocol::UDP, b"12345678");
        assert_eq!(packet[6], protocol::HOP_BY_HOP);
        assert_eq!(&packet[4..6], &[0, 8 + 24 + 8]);
        assert_eq!(&packet[40..42], &[protocol::ROUTING, 0]);
        assert_eq!(&packet[48..52], &[protocol::UDP, 2, 0, 1]);
        assert_eq!(&packet[72..], b"12345678");
    }

    #[test]
    fn concatenated_fragments_are_the_payload() {
        let payload: Vec<u8> = (0..30).collect();
        let parts = four().id(77).fragments(protocol::UDP, &payload, 16);
        assert_eq!(parts.len(), 2);
        assert_eq!(&parts[0][4..8], &[0, 77, 0x20, 0]);
        assert_eq!(&parts[1][4..8], &[0, 77, 0, 2]);
        assert_eq!([&parts[0][20..], &parts[1][20..]].concat(), payload);
        let parts = six().id(77).fragments(protocol::UDP, &payload, 16);
        assert_eq!(&parts[0][40..48], &[protocol::UDP, 0, 0, 1, 0, 0, 0, 77]);
        assert_eq!(&parts[1][40..48], &[protocol::UDP, 0, 0, 16, 0, 0, 0, 77]);
        assert_eq!([&parts[0][48..], &parts[1][48..]].concat(), payload);
    }

    #[test]
    fn source_of_the_other_family_is_unspecified() {
        let packet = Ip::new("fd00::1".parse().unwrap(), "10.0.0.2".parse().unwrap()).packet(17, b"");
        assert_eq!(&packet[12..16], &[0; 4]);
    }
}
