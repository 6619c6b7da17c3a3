//! Frames, byte by byte: what a hostile pod can send on its link.
//!
//! Everything here computes; [`RawSocket`](super::RawSocket) sends. A frame is built from the inside out: a message
//! ([`Ip::udp`], [`Ip::tcp`], [`Ip::icmp`], [`neighbour`]), the packet around it ([`Ip::packet`], [`Ip::fragment`]),
//! optionally a [`tunnel`] around that, and the link's header ([`Link`]) around all. Checksums are right unless a test
//! damages them itself: a frame that the kernel drops for its checksum shows nothing about a policy.

mod ip;
pub mod neighbour;
mod transport;
pub mod tunnel;

use std::{fmt, net::IpAddr};

pub use ip::{Ip, option, protocol};
pub use transport::{Tcp, sctp_init, tcp_flag};

/// Values of `EtherType`.
pub mod ether {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// 802.1Q, a customer's tag.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// `PPPoE`, session stage.
    pub const PPPOE: u16 = 0x8864;
    /// 802.1ad, a provider's tag.
    pub const PROVIDER_VLAN: u16 = 0x88a8;
}

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations of a link.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The hardware address of a multicast group.
    #[must_use]
    pub fn of_group(group: IpAddr) -> Self {
        match group {
            IpAddr::V4(group) => {
                let [_, b, c, d] = group.octets();
                Self([0x01, 0x00, 0x5e, b & 0x7f, c, d])
            }
            IpAddr::V6(group) => {
                let [.., a, b, c, d] = group.octets();
                Self([0x33, 0x33, a, b, c, d])
            }
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

/// A tag of 802.1Q or 802.1ad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// [`ether::VLAN`] or [`ether::PROVIDER_VLAN`].
    pub protocol: u16,
    /// 0 to 7.
    pub priority: u8,
    /// The VLAN, 0 to 4095; 0 means that only the priority counts, and a receiver treats the frame as untagged.
    pub id: u16,
}

impl Tag {
    /// A tag of 802.1Q without priority.
    #[must_use]
    pub const fn vlan(id: u16) -> Self {
        Self { protocol: ether::VLAN, priority: 0, id }
    }

    /// A tag of 802.1ad without priority.
    #[must_use]
    pub const fn provider(id: u16) -> Self {
        Self { protocol: ether::PROVIDER_VLAN, priority: 0, id }
    }

    /// The same tag with a priority.
    #[must_use]
    pub const fn priority(self, priority: u8) -> Self {
        Self { priority, ..self }
    }
}

/// The two hardware addresses of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The claimed sender.
    pub source: Mac,
    /// The receiver.
    pub destination: Mac,
}

impl Link {
    /// A frame that carries `payload`, padded to Ethernet's minimum length.
    #[must_use]
    pub fn frame(self, kind: u16, payload: &[u8]) -> Vec<u8> {
        self.tagged(&[], kind, payload)
    }

    /// A frame with tags, the outermost first.
    #[must_use]
    pub fn tagged(self, tags: &[Tag], kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.addresses();
        for tag in tags {
            frame.extend(tag.protocol.to_be_bytes());
            frame.extend(((u16::from(tag.priority & 7) << 13) | (tag.id & 0x0fff)).to_be_bytes());
        }
        frame.extend(kind.to_be_bytes());
        frame.extend(payload);
        padded(frame)
    }

    /// A frame that carries an IP packet of either family.
    #[must_use]
    pub fn ip(self, packet: &[u8]) -> Vec<u8> {
        self.frame(kind_of(packet), packet)
    }

    /// A frame of IEEE 802.3: a length in place of an `EtherType`, and the `EtherType` in an LLC and SNAP header.
    #[must_use]
    pub fn llc_snap(self, kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut inner = vec![0xaa, 0xaa, 0x03, 0, 0, 0];
        inner.extend(kind.to_be_bytes());
        inner.extend(payload);
        let length = u16::try_from(inner.len()).unwrap_or(1500);
        self.frame(length, &inner)
    }

    /// An IP packet in a `PPPoE` session.
    #[must_use]
    pub fn pppoe(self, session: u16, packet: &[u8]) -> Vec<u8> {
        let ppp: u16 = if kind_of(packet) == ether::IPV4 { 0x0021 } else { 0x0057 };
        let mut inner = vec![0x11, 0];
        inner.extend(session.to_be_bytes());
        inner.extend(u16::try_from(packet.len() + 2).unwrap_or(u16::MAX).to_be_bytes());
        inner.extend(ppp.to_be_bytes());
        inner.extend(packet);
        self.frame(ether::PPPOE, &inner)
    }

    fn addresses(self) -> Vec<u8> {
        [self.destination.0, self.source.0].concat()
    }
}

/// The `EtherType` of a frame that carries an IP packet: the packet's own version decides.
#[must_use]
pub fn kind_of(packet: &[u8]) -> u16 {
    if packet.first().is_some_and(|byte| byte >> 4 == 6) { ether::IPV6 } else { ether::IPV4 }
}

/// A mark that distinguishes an attack from every other wherever it appears: in a frame, a tunnel or a fragment.
///
/// Eight bytes, so that the smallest fragment can hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u32);

impl Token {
    const MAGIC: [u8; 4] = [0xa7, 0x1c, 0x5b, 0xe3];

    /// The bytes to put into a frame.
    #[must_use]
    pub fn bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&Self::MAGIC);
        bytes[4..].copy_from_slice(&self.0.to_be_bytes());
        bytes
    }

    /// All tokens in some bytes.
    pub fn find(bytes: &[u8]) -> impl Iterator<Item = Self> + '_ {
        bytes.windows(8).filter_map(|window| {
            let (magic, number) = window.split_at(4);
            let number: [u8; 4] = number.try_into().ok()?;
            (magic == Self::MAGIC).then(|| Self(u32::from_be_bytes(number)))
        })
    }
}

/// The internet's checksum (RFC 1071) over all parts; only the last may have an odd length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(60), 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link { source: Mac([2, 0, 0, 0, 0, 1]), destination: Mac([2, 0, 0, 0, 0, 2]) };

    #[test]
    fn checksum_is_that_of_rfc_1071() {
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        assert_eq!(checksum(&[&[0x00, 0x01], &[0xf2]]), !0xf201);
    }

    #[test]
    fn tags_are_between_the_addresses_and_the_ethertype_in_order() {
        let tags = [Tag::provider(7), Tag::vlan(3).priority(5)];
        let frame = LINK.tagged(&tags, ether::IPV4, b"inner");
        assert_eq!(&frame[..12], &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        assert_eq!(&frame[12..22], &[0x88, 0xa8, 0, 7, 0x81, 0, 0xa0, 3, 8, 0]);
        assert_eq!(&frame[22..27], b"inner");
        assert_eq!(frame.len(), 60);
    }

    #[test]
    fn length_of_802_3_includes_the_llc_header() {
        let frame = LINK.llc_snap(ether::IPV4, &[9; 40]);
        assert_eq!(&frame[12..22], &[0, 48, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0]);
    }

    #[test]
    fn pppoe_header_has_ip_version_and_length() {
        let frame = LINK.pppoe(0x1234, &[0x60; 40]);
        assert_eq!(&frame[12..22], &[0x88, 0x64, 0x11, 0, 0x12, 0x34, 0, 42, 0, 0x57]);
    }

    #[test]
    fn token_is_found_at_any_offset() {
        let mut bytes = vec![0xa7, 0x1c];
        bytes.extend(Token(7).bytes());
        bytes.extend(Token(0xffff_ffff).bytes());
        bytes.extend(&Token(9).bytes()[..7]);
        assert_eq!(Token::find(&bytes).collect::<Vec<_>>(), [Token(7), Token(0xffff_ffff)]);
    }

    #[test]
    fn group_hardware_addresses_follow_the_rfcs() {
        assert_eq!(Mac::of_group("224.129.2.3".parse().unwrap()).to_string(), "01:00:5e:01:02:03");
        assert_eq!(Mac::of_group("ff02::1:ff00:12".parse().unwrap()).to_string(), "33:33:ff:00:00:12");
    }
}
