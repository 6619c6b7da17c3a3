//! A flow: its endpoints and its transport.

use std::{fmt, net::IpAddr, str::FromStr};

use super::{Family, ObjectKey, Protocol};

/// The direction of a rule, seen from the pod that the policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both, in the order in which a packet passes them.
    pub const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// A pod, by name.
    Pod(ObjectKey),
    /// An address; it means the pod or node that owns it, if there is one.
    Address(IpAddr),
}

/// `ns/pod`, or `ip:ADDRESS`.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => key.fmt(f),
            Self::Address(address) => write!(f, "ip:{address}"),
        }
    }
}

/// The protocol, and the port if it has any, of a new connection or a first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// A protocol with ports, and the destination port, 1 to 65535.
    Port(Protocol, u16),
    /// Any other protocol, by its IP protocol number: 1 is ICMP, 47 GRE, 58 ICMPv6.
    Other(u8),
}

/// `80/TCP`, or `protocol 47`.
impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(protocol, port) => write!(f, "{port}/{protocol}"),
            Self::Other(number) => write!(f, "protocol {number}"),
        }
    }
}

/// Reads `PORT` (TCP) or `PORT/PROTOCOL`, as `--port` accepts it.
impl FromStr for Transport {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (port, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
        let error = || TransportError(text.to_owned());
        let number: u16 = port.parse().map_err(|_| error())?;
        let protocol = protocol.to_ascii_uppercase().parse().map_err(|_| error())?;
        if number == 0 { Err(error()) } else { Ok(Self::Port(protocol, number)) }
    }
}

/// A text that is not a port with a protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a port: want a number from 1 to 65535, or NUMBER/PROTOCOL with TCP, UDP or SCTP")]
pub struct TransportError(String);

/// A flow, as defined by its first packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// The sender of the first packet.
    pub from: Endpoint,
    /// The receiver of the first packet.
    pub to: Endpoint,
    /// Its protocol and port.
    pub transport: Transport,
    /// Its address family; `None` selects the receiver's first one that the sender has too.
    pub family: Option<Family>,
}
