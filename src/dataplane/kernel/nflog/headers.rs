//! The headers of a packet, out of the first bytes of a copy.
//!
//! Whoever sent the packet chose every byte. Nothing is read beyond what is there, extension headers are followed to a
//! fixed depth, and what cannot be read is left out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// IPv6 headers between the fixed one and the transport's.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// How many of these are followed. A packet with more is described by its addresses alone.
const EXTENSIONS: usize = 8;

const ARP: u16 = 0x0806;

/// What the first bytes of a packet say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The sender, and the receiver after any translation of a Service's address.
    pub source: IpAddr,
    /// The receiver.
    pub destination: IpAddr,
    /// What it carries.
    pub payload: Payload,
    /// Whether it is a fragment behind the first one, which has no ports.
    pub is_later_fragment: bool,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// An ARP message, whose addresses are those that it is about.
    Arp,
    /// TCP, with its flags.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Its flags, if the copy reaches so far.
        flags: Option<TcpFlags>,
    },
    /// UDP, SCTP, or UDP-Lite, by its IP protocol number.
    Ports {
        /// The IP protocol number.
        protocol: u8,
        /// Source and destination port.
        ports: (u16, u16),
    },
    /// ICMP or ICMPv6, by its IP protocol number.
    Icmp {
        /// The IP protocol number.
        protocol: u8,
        /// The message's type.
        kind: u8,
        /// The message's code.
        code: u8,
    },
    /// Another protocol, or one whose header is not in the copy.
    Other(u8),
}

/// The flags of a TCP segment that say where in a connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(u8);

impl TcpFlags {
    /// Whether it is the first segment of a connection.
    #[must_use]
    pub const fn starts_a_connection(self) -> bool {
        let (syn, ack) = (self.0 & 0x02 != 0, self.0 & 0x10 != 0);
        syn && !ack
    }
}

impl Headers {
    /// Reads the headers of a packet that begins at its network header. `ethertype` is that of its frame; 0 if it is not
    /// known. `None` if it is neither IPv4, IPv6 nor ARP, or too short for its addresses.
    #[must_use]
    pub fn parse(ethertype: u16, bytes: &[u8]) -> Option<Self> {
        if ethertype == ARP {
            return arp(bytes);
        }
        match bytes.first()? >> 4 {
            4 => v4(bytes),
            6 => v6(bytes),
            _ => None,
        }
    }

    /// The IP protocol number; `None` for ARP.
    #[must_use]
    pub const fn protocol(&self) -> Option<u8> {
        match self.payload {
            Payload::Arp => None,
            Payload::Tcp { .. } => Some(TCP),
            Payload::Ports { protocol, .. } | Payload::Icmp { protocol, .. } | Payload::Other(protocol) => {
                Some(protocol)
            }
        }
    }
}

fn arp(bytes: &[u8]) -> Option<Headers> {
    // Ethernet and IPv4, or it is nothing that has these addresses.
    let is_usual = bytes.get(..6)? == [0, 1, 8, 0, 6, 4];
    let address = |at: usize| bytes.get(at..)?.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).into());
    let (source, destination) = (address(14)?, address(24)?);
    is_usual.then_some(Headers { source, destination, payload: Payload::Arp, is_later_fragment: false })
}

fn v4(bytes: &[u8]) -> Option<Headers> {
    let length = usize::from(bytes.first()? & 0x0f) * 4;
    let address = |at: usize| bytes.get(at..)?.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).into());
    let (source, destination) = (address(12)?, address(16)?);
    let protocol = *bytes.get(9)?;
    let is_later_fragment = u16_at(bytes, 6)? & 0x1fff != 0;
    let rest = if length >= 20 && !is_later_fragment { bytes.get(length..) } else { None };
    let payload = transport(protocol, rest.unwrap_or_default());
    Some(Headers { source, destination, payload, is_later_fragment })
}

fn v6(bytes: &[u8]) -> Option<Headers> {
    let address = |at: usize| bytes.get(at..)?.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).into());
    let (source, destination) = (address(8)?, address(24)?);
    let mut protocol = *bytes.get(6)?;
    let mut rest = bytes.get(40..).unwrap_or_default();
    let mut is_later_fragment = false;
    for _ in 0..EXTENSIONS {
        let length = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6 => {
                rest.get(1).map(|length| (usize::from(*length) + 1) * 8)
            }
            AUTHENTICATION => rest.get(1).map(|length| (usize::from(*length) + 2) * 4),
            FRAGMENT => {
                is_later_fragment |= u16_at(rest, 2).is_some_and(|offset| offset & 0xfff8 != 0);
                Some(8)
            }
            _ => break,
        };
        let (Some(next), Some(after)) = (rest.first(), length.and_then(|length| rest.get(length..))) else {
            rest = &[];
            break;
        };
        (protocol, rest) = (*next, after);
        if is_later_fragment {
            rest = &[];
            break;
        }
    }
    let payload = transport(protocol, rest);
    Some(Headers { source, destination, payload, is_later_fragment })
}

fn transport(protocol: u8, bytes: &[u8]) -> Payload {
    let ports = || Some((u16_at(bytes, 0)?, u16_at(bytes, 2)?));
    let read = match protocol {
        TCP => ports().map(|ports| Payload::Tcp { ports, flags: bytes.get(13).copied().map(TcpFlags) }),
        UDP | SCTP | UDP_LITE => ports().map(|ports| Payload::Ports { protocol, ports }),
        ICMP | ICMPV6 => match bytes {
            [kind, code, ..] => Some(Payload::Icmp { protocol, kind: *kind, code: *code }),
            _ => None,
        },
        _ => None,
    };
    read.unwrap_or(Payload::Other(protocol))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk::<2>().map(|bytes| u16::from_be_bytes(*bytes))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An IPv4 packet without options.
    pub(in crate::dataplane::kernel::nflog) fn packet_v4(protocol: u8, offset: u16, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0];
        bytes.extend(offset.to_be_bytes());
        bytes.extend([63, protocol, 0, 0, 10, 244, 1, 7, 10, 244, 1, 9]);
        bytes.extend(rest);
        bytes
    }

    fn packet_v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next, 63];
        for address in ["fd00::7", "fd00::9"] {
            bytes.extend(address.parse::<Ipv6Addr>().unwrap().octets());
        }
        bytes.extend(rest);
        bytes
    }

    /// Ports 40000 and 5432, and the rest of a TCP header with these flags.
    fn tcp(flags: u8) -> Vec<u8> {
        let mut bytes = [40_000_u16.to_be_bytes(), 5432_u16.to_be_bytes()].concat();
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    fn payload(bytes: &[u8]) -> Payload {
        Headers::parse(0, bytes).unwrap().payload
    }

    #[test]
    fn addresses_ports_and_flags_of_both_families_are_read() {
        let headers = Headers::parse(0x0800, &packet_v4(TCP, 0, &tcp(0x02))).unwrap();
        assert_eq!(headers.source, IpAddr::from([10, 244, 1, 7]));
        assert_eq!(headers.destination, IpAddr::from([10, 244, 1, 9]));
        let Payload::Tcp { ports, flags } = headers.payload else { panic!("{headers:?}") };
        assert_eq!(ports, (40_000, 5432));
        assert!(flags.unwrap().starts_a_connection());
        let Payload::Tcp { flags, .. } = payload(&packet_v6(TCP, &tcp(0x12))) else { panic!() };
        assert!(!flags.unwrap().starts_a_connection(), "SYN and ACK");
        let udp = payload(&packet_v6(UDP, &tcp(0)[..8]));
        assert_eq!(udp, Payload::Ports { protocol: UDP, ports: (40_000, 5432) });
        assert_eq!(payload(&packet_v4(ICMP, 0, &[8, 0, 1])), Payload::Icmp { protocol: 1, kind: 8, code: 0 });
        assert_eq!(payload(&packet_v4(47, 0, &[8; 20])), Payload::Other(47));
    }

    #[test]
    fn options_and_extension_headers_are_skipped() {
        let mut bytes = packet_v4(TCP, 0, &[1, 1, 1, 0]);
        bytes[0] = 0x46;
        bytes.extend(tcp(0x02));
        assert!(matches!(payload(&bytes), Payload::Tcp { ports: (40_000, 5432), .. }));

        let options = [ROUTING, 0, 1, 4, 0, 0, 0, 0];
        let routing = [AUTHENTICATION, 0, 0, 0, 0, 0, 0, 0];
        let authentication = [TCP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let rest = [&options[..], &routing, &authentication, &tcp(0x02)].concat();
        let headers = Headers::parse(0x86dd, &packet_v6(HOP_BY_HOP, &rest)).unwrap();
        assert!(matches!(headers.payload, Payload::Tcp { ports: (40_000, 5432), .. }), "{headers:?}");
        // Too many of them: no ports, and no endless walk.
        let many = [[HOP_BY_HOP, 0, 1, 4, 0, 0, 0, 0].repeat(EXTENSIONS + 1), tcp(0x02)].concat();
        assert_eq!(payload(&packet_v6(HOP_BY_HOP, &many)), Payload::Other(HOP_BY_HOP));
    }

    #[test]
    fn only_the_first_fragment_has_ports() {
        let more_fragments = 0x2000;
        let first = Headers::parse(0, &packet_v4(UDP, more_fragments, &tcp(0))).unwrap();
        assert!(matches!(first.payload, Payload::Ports { .. }) && !first.is_later_fragment);
        let later = Headers::parse(0, &packet_v4(UDP, 185, &tcp(0))).unwrap();
        assert_eq!((later.payload, later.is_later_fragment), (Payload::Other(UDP), true));
        for (offset, is_later_fragment) in [(1_u16, false), (8, true)] {
            let [high, low] = offset.to_be_bytes();
            let rest = [&[UDP, 0, high, low, 0, 0, 0, 9][..], &tcp(0)].concat();
            let headers = Headers::parse(0, &packet_v6(FRAGMENT, &rest)).unwrap();
            assert_eq!(headers.is_later_fragment, is_later_fragment);
            assert_eq!(matches!(headers.payload, Payload::Ports { .. }), !is_later_fragment);
        }
    }

    #[test]
    fn arp_message_has_the_addresses_that_it_is_about() {
        let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1];
        bytes.extend([2, 0, 0, 0, 0, 1, 10, 244, 1, 7, 0, 0, 0, 0, 0, 0, 10, 244, 1, 9]);
        let headers = Headers::parse(ARP, &bytes).unwrap();
        assert_eq!(headers.payload, Payload::Arp);
        assert_eq!((headers.source, headers.destination), ([10, 244, 1, 7].into(), [10, 244, 1, 9].into()));
        assert_eq!(headers.protocol(), None);
        bytes[1] = 6;
        assert_eq!(Headers::parse(ARP, &bytes), None, "not Ethernet");
    }

    #[test]
    fn truncated_packet_is_read_as_far_as_it_goes() {
        for whole in [
            packet_v4(TCP, 0, &tcp(2)),
            packet_v6(HOP_BY_HOP, &[&[TCP, 0, 0, 0, 0, 0, 0, 0][..], &tcp(2)].concat()),
        ] {
            for length in 0..whole.len() {
                match Headers::parse(0, &whole[..length]) {
                    None => assert!(length < 40),
                    Some(headers) => {
                        assert!(headers.destination.to_string().ends_with('9'));
                        let has_flags = matches!(headers.payload, Payload::Tcp { flags: Some(_), .. });
                        assert_eq!(has_flags, length >= whole.len() - 6, "{length}");
                    }
                }
            }
        }
    }
}
