//! Probes: one new flow each, and its outcome.

use std::{
    collections::HashMap,
    fmt,
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use socket2::{Socket, Type};

use crate::model::{Family, Protocol};

use super::{
    End, sctp,
    socket::{any, next_refusal, open, open_sctp, payload, receive, refusal_of_error, report_refusals},
};

/// How long to wait for an answer by default: many times what an answer takes here.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(250);

/// What a probe sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// A TCP connection to this port, which must return a banner.
    Tcp(u16),
    /// A UDP datagram to this port.
    Udp(u16),
    /// An SCTP INIT to this port.
    Sctp(u16),
    /// An echo request, ICMP or `ICMPv6` by the address family.
    Icmp,
}

impl From<(Protocol, u16)> for Transport {
    fn from((protocol, port): (Protocol, u16)) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp(port),
            Protocol::Udp => Self::Udp(port),
            Protocol::Sctp => Self::Sctp(port),
        }
    }
}

/// `80/TCP`, or `ICMP`.
impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "{port}/TCP"),
            Self::Udp(port) => write!(f, "{port}/UDP"),
            Self::Sctp(port) => write!(f, "{port}/SCTP"),
            Self::Icmp => f.write_str("ICMP"),
        }
    }
}

/// One question: can this end start that flow?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// The sender.
    pub from: End,
    /// The destination address.
    pub to: IpAddr,
    /// The kind of flow.
    pub transport: Transport,
    /// The source address; `None` leaves it to the sender's routes.
    pub source_address: Option<IpAddr>,
}

impl Probe {
    /// A probe from the address that the sender's routes choose.
    pub fn new(from: impl Into<End>, to: IpAddr, transport: impl Into<Transport>) -> Self {
        Self { from: from.into(), to, transport: transport.into(), source_address: None }
    }
}

/// The outcome of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was answered: packets pass both ways.
    Open,
    /// An error came back.
    Refused(RefusalKind),
    /// Nothing came back in time. A TCP connection without a banner is silent too.
    Silent,
}

impl Outcome {
    /// Whether the flow was possible.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Open)
    }
}

/// The kind of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// TCP RST or SCTP ABORT: no listener, or `REJECT --reject-with tcp-reset`.
    Reset,
    /// ICMP port unreachable: no UDP listener, or REJECT with its default.
    PortUnreachable,
    /// ICMP administratively prohibited, or a filter on the sender's own output.
    Prohibited,
    /// Any other ICMP error: no route, no such host, an unsupported protocol.
    Unreachable,
}

/// The outcome of a probe, and who answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The outcome.
    pub outcome: Outcome,
    /// The name that the listener returned; `None` for ICMP, and without an answer.
    pub answered_by: Option<String>,
}

impl Reply {
    const SILENT: Self = Self { outcome: Outcome::Silent, answered_by: None };

    const fn refused(refusal: RefusalKind) -> Self {
        Self { outcome: Outcome::Refused(refusal), answered_by: None }
    }

    fn open(banner: &[u8]) -> Self {
        let name = banner.split(|byte| *byte == b'\n').next().filter(|name| !name.is_empty());
        let answered_by = name.map(|name| String::from_utf8_lossy(name).into_owned());
        Self { outcome: Outcome::Open, answered_by }
    }
}

/// Source ports and echo identifiers that were not used before.
///
/// Connection tracking identifies a flow by addresses and ports. A port that is reused while the kernel still remembers
/// its last flow would be ESTABLISHED, and pass whatever the policy is now. Because the cycle's length is prime, a
/// matrix that is probed repeatedly gets the same ports only after as many repeats as the cycle is long.
#[derive(Debug, Default)]
pub(super) struct FreshPorts(AtomicU32);

impl FreshPorts {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 39_989;

    fn next(&self) -> u16 {
        let next =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| Some((at + 1) % Self::COUNT));
        u16::try_from(Self::FIRST + next.unwrap_or_default()).unwrap_or(u16::MAX)
    }
}

/// Sends all of these at once, and waits until each is answered or `timeout` has passed since the last was sent.
///
/// To be called in the sender's namespace.
pub(super) fn ask_all(probes: &[Probe], fresh: &FreshPorts, timeout: Duration) -> io::Result<Vec<Reply>> {
    let mut round = Round::new(probes)?;
    for (at, probe) in probes.iter().enumerate() {
        round.send(at, probe, fresh)?;
    }
    round.collect(Instant::now() + timeout)?;
    Ok(round.replies.into_iter().map(|reply| reply.unwrap_or(Reply::SILENT)).collect())
}

/// The sockets of one round of probes.
struct Round<'a> {
    probes: &'a [Probe],
    replies: Vec<Option<Reply>>,
    open: usize,
    epoll: Epoll,
    /// TCP, UDP and ICMP probes have their own sockets, under their own index.
    sockets: HashMap<usize, Asked>,
    /// SCTP probes share one for each family and source address, under the indexes after the probes'.
    raw: Vec<(Family, Option<IpAddr>, Socket)>,
    /// By source port.
    associations: HashMap<u16, usize>,
}

enum Asked {
    Connecting(Socket),
    Sent(Socket, Vec<u8>),
}

impl<'a> Round<'a> {
    fn new(probes: &'a [Probe]) -> io::Result<Self> {
        Ok(Self {
            probes,
            replies: vec![None; probes.len()],
            open: probes.len(),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            sockets: HashMap::new(),
            raw: Vec::new(),
            associations: HashMap::new(),
        })
    }

    fn send(&mut self, at: usize, probe: &Probe, fresh: &FreshPorts) -> io::Result<()> {
        let sent = match probe.transport {
            Transport::Sctp(port) => self.associate(at, probe, port, fresh),
            _ => self.knock(at, probe, fresh),
        };
        match sent {
            Ok(()) => Ok(()),
            Err(error) => match refusal_of_error(&error) {
                Some(refusal) => {
                    self.settle(at, Reply::refused(refusal));
                    Ok(())
                }
                None => Err(error),
            },
        }
    }

    /// TCP, UDP, ICMP: its own socket, bound to a fresh port, and connected so that it receives ICMP errors.
    fn knock(&mut self, at: usize, probe: &Probe, fresh: &FreshPorts) -> io::Result<()> {
        let family = Family::of(probe.to);
        let (kind, protocol, port) = match probe.transport {
            Transport::Tcp(port) => (Type::STREAM, None, port),
            Transport::Udp(port) | Transport::Sctp(port) => (Type::DGRAM, None, port),
            Transport::Icmp if family == Family::V4 => (Type::DGRAM, Some(socket2::Protocol::ICMPV4), 0),
            Transport::Icmp => (Type::DGRAM, Some(socket2::Protocol::ICMPV6), 0),
        };
        let socket = open(family, kind, protocol)?;
        report_refusals(&socket, family)?;
        let from = bind_fresh(&socket, probe.source_address.unwrap_or(any(family)), fresh)?;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        self.epoll.add(&socket, EpollEvent::new(interest, at as u64))?;
        let asked = match socket.connect(&SocketAddr::new(probe.to, port).into()) {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(error),
            _ if kind == Type::STREAM => {
                // Reset instead of FIN at the end: nothing of the flow remains, here or in connection tracking.
                socket.set_linger(Some(Duration::ZERO))?;
                Asked::Connecting(socket)
            }
            _ => {
                let body = format!("towpath {at} {from}").into_bytes();
                socket.send(&match probe.transport {
                    Transport::Icmp => echo_request(family, &body),
                    _ => body.clone(),
                })?;
                Asked::Sent(socket, body)
            }
        };
        self.sockets.insert(at, asked);
        Ok(())
    }

    fn associate(&mut self, at: usize, probe: &Probe, port: u16, fresh: &FreshPorts) -> io::Result<()> {
        let family = Family::of(probe.to);
        let known = self.raw.iter().position(|(of, from, _)| (*of, *from) == (family, probe.source_address));
        let index = match known {
            Some(index) => index,
            None => self.open_raw(family, probe.source_address)?,
        };
        let source = fresh.next();
        self.associations.insert(source, at);
        let chunk = sctp::Chunk::Init { tag: tag_of(at) };
        let packet = sctp::Packet { source, destination: port, tag: 0, chunk };
        if let Some((_, _, socket)) = self.raw.get(index) {
            socket.send_to(&packet.encode(), &SocketAddr::new(probe.to, 0).into())?;
        }
        Ok(())
    }

    fn open_raw(&mut self, family: Family, from: Option<IpAddr>) -> io::Result<usize> {
        let socket = open_sctp(family)?;
        report_refusals(&socket, family)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        let index = self.raw.len();
        let token = (self.probes.len() + index) as u64;
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        self.raw.push((family, from, socket));
        Ok(index)
    }

    fn settle(&mut self, at: usize, reply: Reply) {
        if let Some(slot @ None) = self.replies.get_mut(at) {
            *slot = Some(reply);
            self.open -= 1;
        }
        self.sockets.remove(&at);
    }

    fn collect(&mut self, deadline: Instant) -> io::Result<()> {
        let mut events = vec![EpollEvent::empty(); 256];
        let mut buffer = vec![0; 2048];
        while self.open > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // Rounded up, so that the last fraction of a millisecond is not spent spinning.
            let wait = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
            let count = match self.epoll.wait(&mut events, EpollTimeout::from(wait)) {
                Err(Errno::EINTR) => 0,
                other => other?,
            };
            for event in events.iter().take(count) {
                let token = usize::try_from(event.data()).unwrap_or(usize::MAX);
                match token.checked_sub(self.probes.len()) {
                    Some(index) => self.read_raw(index, &mut buffer),
                    None => self.read(token, &mut buffer),
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, at: usize, buffer: &mut [u8]) {
        let Some(asked) = self.sockets.get(&at) else { return };
        let (Asked::Connecting(socket) | Asked::Sent(socket, _)) = asked;
        let reply = if let Some((refusal, _)) = next_refusal(socket, buffer) {
            Some(Reply::refused(refusal))
        } else {
            let mut reader = socket;
            match (reader.read(buffer), asked) {
                (Err(error), _) => refusal_of_error(&error).map(Reply::refused),
                // Closed without a banner: the peer accepted and then refused it.
                (Ok(0), Asked::Connecting(_)) => Some(Reply::refused(RefusalKind::Reset)),
                (Ok(length), Asked::Connecting(_)) => buffer.get(..length).map(Reply::open),
                (Ok(length), Asked::Sent(_, body)) => {
                    let answer = buffer.get(..length).filter(|answer| answer.ends_with(body));
                    let is_ping = self.probes.get(at).is_some_and(|probe| probe.transport == Transport::Icmp);
                    answer.map(|answer| Reply::open(if is_ping { &[] } else { answer }))
                }
            }
        };
        if let Some(reply) = reply {
            self.settle(at, reply);
        }
    }

    fn read_raw(&mut self, index: usize, buffer: &mut [u8]) {
        let mut answers = Vec::new();
        let Some((family, _, socket)) = self.raw.get(index) else { return };
        while let Some((refusal, quoted)) = next_refusal(socket, buffer) {
            let ports = buffer.get(..quoted).and_then(sctp::ports);
            if let Some(at) = ports.and_then(|(source, _)| self.associations.get(&source)) {
                answers.push((*at, Reply::refused(refusal)));
            }
        }
        // Errors were read above, each with the packet that it is about; what remains of them adds nothing.
        let _seen = socket.take_error();
        while let Ok(datagram) = receive(socket, buffer) {
            let packet = buffer
                .get(..datagram.length)
                .and_then(|packet| payload(*family, packet))
                .and_then(sctp::Packet::decode);
            let Some(packet) = packet else { continue };
            let Some(&at) = self.associations.get(&packet.destination) else { continue };
            let Some(probe) = self.probes.get(at) else { continue };
            let expected = packet.tag == tag_of(at)
                && datagram.from.ip() == probe.to
                && probe.transport == Transport::Sctp(packet.source);
            match packet.chunk {
                sctp::Chunk::InitAck { cookie, .. } if expected => answers.push((at, Reply::open(&cookie))),
                sctp::Chunk::Abort if expected => answers.push((at, Reply::refused(RefusalKind::Reset))),
                _ => {}
            }
        }
        for (at, reply) in answers {
            self.settle(at, reply);
        }
    }
}

/// The tag by which a probe recognizes the answer to its INIT; never 0.
fn tag_of(at: usize) -> u32 {
    0x7470_0000 | u32::try_from(at).unwrap_or(u32::MAX)
}

/// An echo request; the kernel fills in identifier and checksum.
fn echo_request(family: Family, body: &[u8]) -> Vec<u8> {
    let kind = if family == Family::V4 { 8 } else { 128 };
    [&[kind, 0, 0, 0, 0, 0, 0, 1], body].concat()
}

/// Binds to a port that no flow of this host used recently, and returns it.
fn bind_fresh(socket: &Socket, from: IpAddr, fresh: &FreshPorts) -> io::Result<u16> {
    loop {
        let port = fresh.next();
        match socket.bind(&SocketAddr::new(from, port).into()) {
            // A listener has it: try the next one. Listeners are few.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            other => return other.map(|()| port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_is_reused_only_after_all_others() {
        let fresh = FreshPorts::default();
        let first = fresh.next();
        let others: std::collections::HashSet<u16> = (1..FreshPorts::COUNT).map(|_| fresh.next()).collect();
        assert_eq!(others.len(), 39_988);
        assert!(!others.contains(&first));
        assert_eq!(fresh.next(), first);
    }

    #[test]
    fn answer_names_its_sender() {
        assert_eq!(Reply::open(b"shop/web\nrest").answered_by.as_deref(), Some("shop/web"));
        assert_eq!(Reply::open(b"").answered_by, None);
        assert!(Reply::open(b"").outcome.is_open());
    }
}
