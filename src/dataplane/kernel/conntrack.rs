//! Connections that the kernel tracks, and cutting those that a new ruleset denies.
//!
//! Rules judge the first packet of a connection; what follows passes as ESTABLISHED. So a connection that began before
//! its policy would outlive it. Deleting its entry makes the next packet a first one again, and the rules judge it.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::{errno::Errno, ifaddrs::getifaddrs};

use super::netlink::{FLAG_ACK, FLAG_DUMP, Message, NESTED, Netlink, attributes, put};
use crate::{dataplane::DataplaneError, model::Family};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;

const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;

const V4_SOURCE: u16 = 1;
const V4_DESTINATION: u16 = 2;
const V6_SOURCE: u16 = 3;
const V6_DESTINATION: u16 = 4;

const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Who sends.
    pub source: IpAddr,
    /// Who receives.
    pub destination: IpAddr,
    /// From which port; 0 for protocols without.
    pub source_port: u16,
    /// To which port; 0 for protocols without.
    pub destination_port: u16,
}

/// A tracked connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its family.
    pub family: Family,
    /// Its IP protocol number.
    pub protocol: u8,
    /// Its first direction, as sent: before any translation of the destination.
    pub original: Tuple,
    /// Its replies, as sent: by whoever really answers.
    pub reply: Tuple,
    /// What identifies it to the kernel: the first direction, the zone and the id, as the kernel wrote them.
    key: Vec<u8>,
}

/// A connection as the filter table sees its first packet: after the destination was translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EstablishedFlow {
    /// Who began it.
    pub source: IpAddr,
    /// Who answers; behind a Service, the pod.
    pub destination: IpAddr,
    /// The IP protocol number.
    pub protocol: u8,
    /// The port of whoever answers; 0 for protocols without.
    pub destination_port: u16,
}

impl Entry {
    fn parse(message: &Message<'_>) -> Option<Self> {
        let mut original = None;
        let mut reply = None;
        let mut key = Vec::new();
        for (kind, payload) in message.attributes() {
            match kind {
                TUPLE_ORIGINAL => {
                    original = Some(tuple(payload)?);
                    put(&mut key, kind | NESTED, payload);
                }
                TUPLE_REPLY => reply = Some(tuple(payload)?),
                ID | ZONE => put(&mut key, kind, payload),
                _ => {}
            }
        }
        let (protocol, original) = original?;
        let (_, reply) = reply?;
        Some(Self { family: Family::of(original.source), protocol, original, reply, key })
    }

    /// As the filter table sees it.
    #[must_use]
    pub const fn flow(&self) -> EstablishedFlow {
        EstablishedFlow {
            source: self.original.source,
            destination: self.reply.source,
            protocol: self.protocol,
            destination_port: self.reply.source_port,
        }
    }
}

fn tuple(payload: &[u8]) -> Option<(u8, Tuple)> {
    let mut protocol = None;
    let (mut source, mut destination) = (None, None);
    let (mut source_port, mut destination_port) = (0, 0);
    for (kind, payload) in attributes(payload) {
        for (inner, value) in attributes(payload) {
            match (kind, inner) {
                (TUPLE_ADDRESSES, V4_SOURCE | V6_SOURCE) => source = address(value),
                (TUPLE_ADDRESSES, V4_DESTINATION | V6_DESTINATION) => destination = address(value),
                (TUPLE_PROTOCOL, PROTOCOL_NUMBER) => protocol = value.first().copied(),
                (TUPLE_PROTOCOL, SOURCE_PORT) => source_port = port(value)?,
                (TUPLE_PROTOCOL, DESTINATION_PORT) => destination_port = port(value)?,
                _ => {}
            }
        }
    }
    let tuple = Tuple { source: source?, destination: destination?, source_port, destination_port };
    Some((protocol?, tuple))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).into()),
        16 => value.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).into()),
        _ => None,
    }
}

fn port(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// The kernel's table of connections in this network namespace.
#[derive(Debug)]
pub struct Conntrack {
    netlink: Netlink,
}

impl Conntrack {
    /// Opens it.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn open() -> Result<Self, DataplaneError> {
        let netlink = Netlink::open().map_err(failed("opening the table of connections"))?;
        Ok(Self { netlink })
    }

    /// Hands over every connection of one family.
    ///
    /// # Errors
    /// If the table cannot be read: the module `nf_conntrack_netlink` may be missing.
    pub fn each(&mut self, family: Family, mut visit: impl FnMut(Entry)) -> Result<(), DataplaneError> {
        self.netlink
            .request(GET, FLAG_DUMP, number(family), &[], |message| {
                // The kernel may answer for another family if it cannot filter.
                if let Some(entry) = Entry::parse(message).filter(|entry| entry.family == family) {
                    visit(entry);
                }
            })
            .map_err(failed("reading the table of connections"))
    }

    /// Deletes one connection. Whether it was still there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn delete(&mut self, entry: &Entry) -> Result<bool, DataplaneError> {
        match self.netlink.request(DELETE, FLAG_ACK, number(entry.family), &entry.key, |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
            Err(error) => Err(failed("deleting a tracked connection")(error)),
        }
    }

    /// Cuts every connection that `denies` holds for, and says how many these were.
    ///
    /// It is not asked about connections that begin or end on this node itself: their packets do not pass FORWARD, so
    /// no rule of ours judged them, and kubelet's probes must not be cut.
    ///
    /// # Errors
    /// If the table cannot be read or written.
    pub fn cut(&mut self, denies: impl Fn(&EstablishedFlow) -> bool) -> Result<usize, DataplaneError> {
        let local = local_addresses().map_err(failed("listing this node's addresses"))?;
        let mut denied = Vec::new();
        for family in Family::BOTH {
            self.each(family, |entry| {
                let flow = entry.flow();
                let is_forwarded = !local.contains(&flow.source) && !local.contains(&flow.destination);
                if is_forwarded && denies(&flow) {
                    denied.push(entry);
                }
            })?;
        }
        let mut cut = 0;
        for entry in denied {
            cut += usize::from(self.delete(&entry)?);
        }
        Ok(cut)
    }
}

fn local_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let addresses = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    Ok(addresses.collect())
}

const fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn failed(doing: &str) -> impl FnOnce(io::Error) -> DataplaneError {
    let doing = doing.to_owned();
    |source| DataplaneError::System { doing, source }
}
