//! Tracked connections, and cutting those that a new ruleset denies.
//!
//! Rules judge the first packet of a connection; later ones pass as ESTABLISHED. So a connection that began before its
//! policy would outlive it. Deleting its entry makes the next packet a first one again, and the rules judge it.
//!
//! That is not enough for TCP. If the next packet comes from the answering end, the kernel takes it for the first one
//! of a connection in the other direction (`nf_conntrack_tcp_loose`), which policy may well allow, and the denied end's
//! packets pass as its replies: in measurements, a server that sends keeps its connection. So the entry of a TCP
//! connection is replaced by one in the state of a connection whose first packet was never answered. While that lasts,
//! the kernel classifies everything from the denied end as INVALID or NEW, never ESTABLISHED, and the rules judge it;
//! the other end's packets start nothing new. With address translation deleting is enough: what the server sends then
//! carries an address that the client has no connection with, and the client resets it.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::{errno::Errno, ifaddrs::getifaddrs};

use super::netlink::{
    FLAG_ACK, FLAG_CREATE, FLAG_DUMP, FLAG_EXCLUSIVE, Message, NESTED, Netlink, attributes, put,
};
use crate::{dataplane::DataplaneError, model::Family};

/// No specific family: all of them.
const EITHER: u8 = 0;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const NEW: u16 = SUBSYSTEM;
const DELETE: u16 = SUBSYSTEM | 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const PROTOCOL_STATE: u16 = 4;
const TIMEOUT: u16 = 7;
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

/// Within the protocol state: the TCP state; and within that, the state's number.
const TCP: u16 = 1;
const TCP_STATE: u16 = 1;

const SYN_SENT: u8 = 1;
const TIME_WAIT: u8 = 7;
const CLOSE: u8 = 8;

/// How long the entry of a cut connection keeps it from coming back, in seconds: longer than either end retransmits a
/// segment before it gives up, which is about 15 minutes (`tcp_retries2`).
const CUT_LASTS: u32 = 1200;

/// How many connections are held at once to be deleted: a pod can have as many as the table has room for.
const FORGOTTEN_AT_ONCE: usize = 10_000;

/// How often a connection is cut again if it comes back between two messages to the kernel.
const ATTEMPTS: usize = 4;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// The sender.
    pub source: IpAddr,
    /// The receiver.
    pub destination: IpAddr,
    /// The source port; 0 for protocols without ports.
    pub source_port: u16,
    /// The destination port; 0 for protocols without ports.
    pub destination_port: u16,
}

/// A tracked connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConntrackEntry {
    /// Its family.
    pub family: Family,
    /// Its IP protocol number.
    pub protocol: u8,
    /// Its original direction, as sent: before any translation of the destination.
    pub original: Tuple,
    /// Its replies, as sent: by the host that really answers.
    pub reply: Tuple,
    /// The number of its state, if it is TCP.
    pub(super) tcp_state: Option<u8>,
    /// What identifies it to the kernel: the original direction and the zone, as the kernel encoded them.
    pub(super) key: Vec<u8>,
    /// Its replies, as the kernel encoded them.
    pub(super) raw_reply: Vec<u8>,
    /// The kernel's id of it, which another connection between the same ends will not have.
    id: Vec<u8>,
}

/// A connection as the filter table sees its first packet: after the destination was translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EstablishedFlow {
    /// The end that started it.
    pub source: IpAddr,
    /// The end that answers; behind a Service, the pod.
    pub destination: IpAddr,
    /// The IP protocol number.
    pub protocol: u8,
    /// The port of the answering end; 0 for protocols without ports.
    pub destination_port: u16,
}

impl ConntrackEntry {
    pub(super) fn parse(message: &Message<'_>) -> Option<Self> {
        let mut original = None;
        let mut reply = None;
        let (mut key, mut raw_reply, mut id) = (Vec::new(), Vec::new(), Vec::new());
        let mut tcp_state = None;
        for (kind, payload) in message.attributes() {
            match kind {
                TUPLE_ORIGINAL => {
                    original = Some(tuple(payload)?);
                    put(&mut key, kind | NESTED, payload);
                }
                TUPLE_REPLY => {
                    reply = Some(tuple(payload)?);
                    put(&mut raw_reply, kind | NESTED, payload);
                }
                PROTOCOL_STATE => {
                    tcp_state = inner(payload, TCP)
                        .and_then(|tcp| inner(tcp, TCP_STATE))
                        .and_then(|state| state.first().copied());
                }
                ZONE => put(&mut key, kind, payload),
                ID => put(&mut id, kind, payload),
                _ => {}
            }
        }
        let (protocol, original) = original?;
        let (_, reply) = reply?;
        let family = Family::of(original.source);
        Some(Self { family, protocol, original, reply, tcp_state, key, raw_reply, id })
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

    /// Whether addresses or ports are translated.
    fn is_translated(&self) -> bool {
        let Tuple { source, destination, source_port, destination_port } = self.reply;
        self.original
            != Tuple {
                source: destination,
                destination: source,
                source_port: destination_port,
                destination_port: source_port,
            }
    }

    /// Whether both ends may still send, so that the connection could come back.
    fn is_open_tcp(&self) -> bool {
        self.tcp_state.is_some_and(|state| state != TIME_WAIT && state != CLOSE)
    }

    /// The entry of a connection between the same ends that was started but never answered.
    pub(super) fn unanswered(&self) -> Vec<u8> {
        let mut attributes = [self.key.as_slice(), &self.raw_reply].concat();
        put(&mut attributes, TIMEOUT, &CUT_LASTS.to_be_bytes());
        let (mut state, mut tcp) = (Vec::new(), Vec::new());
        put(&mut state, TCP_STATE, &[SYN_SENT]);
        put(&mut tcp, TCP | NESTED, &state);
        put(&mut attributes, PROTOCOL_STATE | NESTED, &tcp);
        attributes
    }
}

/// The attribute of a type among those in `payload`.
fn inner(payload: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(payload).find(|(found, _)| *found == kind).map(|(_, payload)| payload)
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

/// The kernel's connection table in this network namespace.
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

    /// Passes every connection to `visit`. Both families share one table, which the kernel always walks completely,
    /// however few entries it has.
    ///
    /// # Errors
    /// If the table cannot be read: the module `nf_conntrack_netlink` may be missing.
    pub fn each(&mut self, mut visit: impl FnMut(ConntrackEntry)) -> Result<(), DataplaneError> {
        self.netlink
            .request(GET, FLAG_DUMP, EITHER, &[], |message| {
                if let Some(entry) = ConntrackEntry::parse(message) {
                    visit(entry);
                }
            })
            .map_err(failed("reading the table of connections"))
    }

    /// Deletes one connection, so that its next packet is judged as a first one. Returns whether it still existed.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn delete(&mut self, entry: &ConntrackEntry) -> Result<bool, DataplaneError> {
        self.delete_by(entry.family, &[entry.key.as_slice(), &entry.id].concat())
    }

    fn delete_by(&mut self, family: Family, key: &[u8]) -> Result<bool, DataplaneError> {
        match self.netlink.request(DELETE, FLAG_ACK, number(family), key, |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
            Err(error) => Err(failed("deleting a tracked connection")(error)),
        }
    }

    /// Keeps an open TCP connection, whose entry was deleted, from coming back through packets of the answering end.
    fn keep_out(&mut self, entry: &ConntrackEntry) -> Result<(), DataplaneError> {
        let flags = FLAG_CREATE | FLAG_EXCLUSIVE | FLAG_ACK;
        let unanswered = entry.unanswered();
        for _ in 0..ATTEMPTS {
            match self.netlink.request(NEW, flags, number(entry.family), &unanswered, |_| {}) {
                Ok(()) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(Errno::EEXIST as i32) => {
                    // A packet was faster. The kernel finds the entry by either of its directions.
                    self.delete_by(entry.family, &entry.key)?;
                }
                Err(error) => return Err(failed("replacing a tracked connection")(error)),
            }
        }
        tracing::warn!(from = %entry.original.source, to = %entry.reply.source, "a denied connection keeps coming back");
        Ok(())
    }

    /// Cuts every connection for which `denies` returns true, and returns their number.
    ///
    /// Protocols other than TCP have no direction that the kernel could detect: if policy lets the answering end start
    /// a connection, its next packet is the first of one.
    ///
    /// `denies` is not called for connections that begin or end on this node itself: their packets do not pass FORWARD,
    /// so no rule of ours judged them, and kubelet's probes must not be cut.
    ///
    /// # Errors
    /// If the table cannot be read or written. The connections that can be cut are still cut.
    pub fn cut(&mut self, mut denies: impl FnMut(&EstablishedFlow) -> bool) -> Result<usize, DataplaneError> {
        let local = local_addresses().map_err(failed("listing this node's addresses"))?;
        let mut to_cut = Vec::new();
        self.each(|entry| {
            let flow = entry.flow();
            let is_forwarded = !local.contains(&flow.source) && !local.contains(&flow.destination);
            if is_forwarded && denies(&flow) {
                to_cut.push(entry);
            }
        })?;
        let mut cut = 0;
        let mut failure = None;
        for entry in to_cut {
            match self.cut_one(&entry) {
                Ok(is_there) => {
                    // Unanswered connections include those that were cut before.
                    cut += usize::from(is_there && entry.tcp_state != Some(SYN_SENT));
                }
                // The others are still cut.
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(cut), Err)
    }

    /// Deletes every connection of these addresses, as either end, and returns their number. For addresses that
    /// change their owner: their next packet is judged as a first one.
    ///
    /// # Errors
    /// If the table cannot be read or written. The connections that can be deleted are still deleted.
    pub fn forget(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<usize, DataplaneError> {
        let (mut deleted, mut failure) = (0, None);
        loop {
            let mut of_these = Vec::new();
            self.each(|entry| {
                let ends = [&entry.original, &entry.reply].map(|tuple| [tuple.source, tuple.destination]);
                if of_these.len() < FORGOTTEN_AT_ONCE
                    && ends.iter().flatten().any(|end| addresses.contains(end))
                {
                    of_these.push(entry);
                }
            })?;
            let is_last = of_these.len() < FORGOTTEN_AT_ONCE;
            for entry in of_these {
                match self.delete(&entry) {
                    Ok(is_there) => deleted += usize::from(is_there),
                    Err(error) => failure = Some(error),
                }
            }
            if is_last || failure.is_some() {
                return failure.map_or(Ok(deleted), Err);
            }
        }
    }

    /// Cuts one connection. Returns whether it still existed.
    fn cut_one(&mut self, entry: &ConntrackEntry) -> Result<bool, DataplaneError> {
        let is_there = self.delete(entry)?;
        if is_there && entry.is_open_tcp() && !entry.is_translated() {
            self.keep_out(entry)?;
        }
        Ok(is_there)
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

#[cfg(test)]
mod tests {
    use super::super::netlink::{encode, messages};
    use super::*;

    /// A message as the kernel encodes it: a connection to a Service that a pod answers.
    fn through_a_service() -> Vec<u8> {
        let tuple = |source: [u8; 4], destination: [u8; 4], ports: [u16; 2]| {
            let (mut addresses, mut protocol, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
            put(&mut addresses, V4_SOURCE, &source);
            put(&mut addresses, V4_DESTINATION, &destination);
            put(&mut protocol, PROTOCOL_NUMBER, &[6]);
            put(&mut protocol, SOURCE_PORT, &ports[0].to_be_bytes());
            put(&mut protocol, DESTINATION_PORT, &ports[1].to_be_bytes());
            put(&mut tuple, TUPLE_ADDRESSES | NESTED, &addresses);
            put(&mut tuple, TUPLE_PROTOCOL | NESTED, &protocol);
            tuple
        };
        let (mut state, mut tcp, mut all) = (Vec::new(), Vec::new(), Vec::new());
        put(&mut state, TCP_STATE, &[3]);
        put(&mut tcp, TCP | NESTED, &state);
        put(&mut all, TUPLE_ORIGINAL | NESTED, &tuple([10, 244, 0, 7], [10, 96, 0, 1], [40_000, 80]));
        put(&mut all, TUPLE_REPLY | NESTED, &tuple([10, 244, 1, 9], [10, 244, 0, 7], [8080, 40_000]));
        put(&mut all, PROTOCOL_STATE | NESTED, &tcp);
        put(&mut all, ID, &[1, 2, 3, 4]);
        encode(NEW, 0, 1, 2, &all)
    }

    #[test]
    fn flow_destination_is_the_backend_pod_of_a_service() {
        let bytes = through_a_service();
        let entry = ConntrackEntry::parse(&messages(&bytes).next().unwrap()).unwrap();
        let flow = EstablishedFlow {
            source: "10.244.0.7".parse().unwrap(),
            destination: "10.244.1.9".parse().unwrap(),
            protocol: 6,
            destination_port: 8080,
        };
        assert_eq!(entry.flow(), flow);
        assert_eq!(entry.original.destination.to_string(), "10.96.0.1");
        assert!(entry.is_translated() && entry.is_open_tcp());
    }

    /// The entry of that connection in this TCP state, if it has one, and with these further attributes.
    fn entry(state: Option<u8>, more: &[(u16, &[u8])]) -> ConntrackEntry {
        let bytes = through_a_service();
        let mut attributes = Vec::new();
        for (kind, payload) in messages(&bytes).next().unwrap().attributes() {
            match (kind, state) {
                (PROTOCOL_STATE, Some(state)) => {
                    let (mut inner, mut tcp) = (Vec::new(), Vec::new());
                    put(&mut inner, TCP_STATE, &[state]);
                    put(&mut tcp, TCP | NESTED, &inner);
                    put(&mut attributes, kind | NESTED, &tcp);
                }
                (PROTOCOL_STATE, None) => {}
                _ => put(&mut attributes, kind, payload),
            }
        }
        for (kind, payload) in more {
            put(&mut attributes, *kind, payload);
        }
        let bytes = encode(NEW, 0, 1, 2, &attributes);
        ConntrackEntry::parse(&messages(&bytes).next().unwrap()).unwrap()
    }

    #[test]
    fn connection_is_addressed_by_tuple_zone_and_id() {
        let kinds = |bytes: &[u8]| attributes(bytes).map(|(kind, _)| kind).collect::<Vec<_>>();
        let entry = entry(None, &[(ZONE, &[0, 9])]);
        assert_eq!(kinds(&entry.key), [TUPLE_ORIGINAL, ZONE]);
        assert_eq!(inner(&entry.key, ZONE), Some(&[0, 9][..]));
        assert_eq!(inner(&entry.key, TUPLE_ORIGINAL).and_then(tuple), Some((6, entry.original)));
        assert_eq!(attributes(&entry.id).collect::<Vec<_>>(), [(ID, &[1, 2, 3, 4][..])]);
    }

    #[test]
    fn tcp_connection_is_open_until_both_ends_close_it() {
        let established = 3;
        for (state, is_open) in [
            (Some(SYN_SENT), true),
            (Some(established), true),
            (Some(TIME_WAIT), false),
            (Some(CLOSE), false),
            (None, false),
        ] {
            assert_eq!(entry(state, &[]).is_open_tcp(), is_open, "{state:?}");
        }
    }

    #[test]
    fn replacement_entry_has_the_same_ends_and_no_reply() {
        let entry = entry(Some(3), &[]);
        let bytes = entry.unanswered();
        let tuple_of = |kind| inner(&bytes, kind).and_then(tuple).map(|(_, tuple)| tuple);
        assert_eq!(tuple_of(TUPLE_ORIGINAL), Some(entry.original));
        assert_eq!(tuple_of(TUPLE_REPLY), Some(entry.reply));
        assert_eq!(inner(&bytes, TIMEOUT), Some(&CUT_LASTS.to_be_bytes()[..]));
        let state = inner(&bytes, PROTOCOL_STATE).and_then(|tcp| inner(tcp, TCP));
        assert_eq!(state.and_then(|state| inner(state, TCP_STATE)), Some(&[SYN_SENT][..]));
        assert_eq!(inner(&bytes, ID), None, "it is another connection");
    }

    #[test]
    fn refused_delete_is_an_error() {
        let mut key = Vec::new();
        // No tuple has a direction without addresses. Without the privilege the kernel refuses it as well.
        put(&mut key, TUPLE_ORIGINAL | NESTED, &[]);
        assert!(Conntrack::open().unwrap().delete_by(Family::V4, &key).is_err());
    }

    #[test]
    fn addresses_of_both_families_are_read_and_nothing_else() {
        let v6: Ipv6Addr = "fd00::2".parse().unwrap();
        assert_eq!(address(&[10, 0, 0, 1]), Some([10, 0, 0, 1].into()));
        assert_eq!(address(&v6.octets()), Some(v6.into()));
        assert_eq!(address(&[10, 0, 0]), None);
    }

    #[test]
    fn truncated_message_is_no_connection() {
        let bytes = through_a_service();
        for length in 20..bytes.len() - 40 {
            let mut short = bytes[..length].to_vec();
            short[..4].copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
            assert!(messages(&short).next().is_none_or(|message| ConntrackEntry::parse(&message).is_none()));
        }
    }
}
