//! Listeners: the servers in a pod.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::Arc,
    thread::JoinHandle,
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    socket::{Backlog, listen},
};
use socket2::{Socket, Type};

use crate::model::{Family, Protocol};

use super::{
    Families, LabError, Netns, sctp,
    socket::{any, open, open_sctp, payload, receive, report_destinations, send_from},
};

const STOP: u64 = u64::MAX;

/// The listeners of one host, and the thread that answers for them.
///
/// TCP: the host's name and a line feed as soon as the connection is established, and then an echo of everything
/// received, until the peer closes. UDP: the host's name, a line feed, and the datagram. SCTP: an INIT ACK whose cookie
/// is the host's name, or ABORT for a port without a listener, as a kernel with SCTP would answer.
#[derive(Debug)]
pub(super) struct Listener {
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

enum Service {
    Tcp(TcpListener),
    Udp(Socket),
    Sctp(Socket, Family),
}

struct Answering {
    name: Arc<str>,
    services: Vec<Service>,
    sctp_ports: HashSet<u16>,
    connections: HashMap<u64, TcpStream>,
    next_connection: u64,
    epoll: Epoll,
    /// Readable once the listener is dropped. The poll knows it by its descriptor, so it must stay open here.
    _stopped: UnixStream,
}

impl Listener {
    /// Opens the ports in the namespace, for every family, and answers from now on.
    pub(super) fn start(
        netns: &Netns,
        families: Families,
        ports: &[(Protocol, u16)],
    ) -> Result<Self, LabError> {
        let name: Arc<str> = netns.name().into();
        let (stop, stopped) = UnixStream::pair().map_err(LabError::system("make a pair of sockets"))?;
        let ports = ports.to_vec();
        let action = format!("listen on {ports:?} in the namespace of {name}");
        let mut answering = netns
            .run(move || Answering::open(name, families, &ports, stopped))?
            .map_err(LabError::system(action))?;
        let thread = netns.start_thread("listener", move || answering.serve())?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _closed = self.stop.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Answering {
    fn open(
        name: Arc<str>,
        families: Families,
        ports: &[(Protocol, u16)],
        stopped: UnixStream,
    ) -> io::Result<Self> {
        let mut services = Vec::new();
        let mut sctp_ports = HashSet::new();
        for &(protocol, port) in ports {
            if protocol == Protocol::Sctp {
                sctp_ports.insert(port);
                continue;
            }
            for &family in families.list() {
                services.push(Service::open(protocol, family, port)?);
            }
        }
        if !sctp_ports.is_empty() {
            for &family in families.list() {
                let socket = open_sctp(family)?;
                report_destinations(&socket, family)?;
                services.push(Service::Sctp(socket, family));
            }
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (token, service) in (0..).zip(&services) {
            epoll.add(service.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        }
        epoll.add(&stopped, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        let next_connection = services.len() as u64;
        Ok(Self {
            name,
            services,
            sctp_ports,
            connections: HashMap::new(),
            next_connection,
            epoll,
            _stopped: stopped,
        })
    }

    fn serve(&mut self) {
        let mut events = [EpollEvent::empty(); 128];
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(_) => return,
            };
            for event in events.iter().take(count) {
                if event.data() == STOP {
                    return;
                }
                self.answer(event.data(), &mut buffer);
            }
        }
    }

    fn answer(&mut self, token: u64, buffer: &mut [u8]) {
        let service = usize::try_from(token).ok().and_then(|at| self.services.get(at));
        match service {
            Some(Service::Tcp(listener)) => {
                while let Ok((connection, _)) = listener.accept() {
                    // A peer that has disconnected meanwhile is no fault of the listener.
                    let _gone = greet(&self.epoll, self.next_connection, &self.name, &connection).map(|()| {
                        self.connections.insert(self.next_connection, connection);
                        self.next_connection += 1;
                    });
                }
            }
            Some(Service::Udp(socket)) => {
                while let Ok(datagram) = receive_next(socket, buffer) {
                    let asked = buffer.get(..datagram.length).unwrap_or_default();
                    let reply = [self.name.as_bytes(), b"\n", asked].concat();
                    let _gone = send_from(socket, &reply, datagram.from, datagram.to);
                }
            }
            Some(Service::Sctp(socket, family)) => {
                while let Ok(datagram) = receive_next(socket, buffer) {
                    let packet = buffer
                        .get(..datagram.length)
                        .and_then(|packet| payload(*family, packet))
                        .and_then(sctp::Packet::decode);
                    if let Some(reply) = packet.and_then(|it| associate(&it, &self.name, &self.sctp_ports)) {
                        let to = SocketAddr::new(datagram.from.ip(), 0);
                        let _gone = send_from(socket, &reply.encode(), to, datagram.to);
                    }
                }
            }
            None => self.echo(token, buffer),
        }
    }

    fn echo(&mut self, token: u64, buffer: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let alive = match connection.read(buffer) {
            Ok(0) => false,
            Ok(length) => connection.write_all(buffer.get(..length).unwrap_or_default()).is_ok(),
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        if !alive {
            self.connections.remove(&token);
        }
    }
}

impl Service {
    fn open(protocol: Protocol, family: Family, port: u16) -> io::Result<Self> {
        let kind = if protocol == Protocol::Tcp { Type::STREAM } else { Type::DGRAM };
        let socket = open(family, kind, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(any(family), port).into())?;
        if protocol == Protocol::Tcp {
            // A backlog as large as the namespace's somaxconn allows: a whole matrix connects at once.
            listen(&socket, Backlog::MAXALLOWABLE)?;
            return Ok(Self::Tcp(socket.into()));
        }
        report_destinations(&socket, family)?;
        Ok(Self::Udp(socket))
    }

    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Udp(socket) | Self::Sctp(socket, _) => socket.as_fd(),
        }
    }
}

fn greet(epoll: &Epoll, token: u64, name: &str, mut connection: &TcpStream) -> io::Result<()> {
    connection.set_nonblocking(true)?;
    connection.set_nodelay(true)?;
    connection.write_all(format!("{name}\n").as_bytes())?;
    epoll.add(connection, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, token))?;
    Ok(())
}

/// The next datagram. An ICMP error for an earlier reply is not a datagram, and must not hide those behind it.
fn receive_next(socket: &Socket, buffer: &mut [u8]) -> io::Result<super::socket::Datagram> {
    loop {
        match receive(socket, buffer) {
            Err(error) if super::socket::refusal_of_error(&error).is_some() => {}
            other => return other,
        }
    }
}

/// The answer of an SCTP host that listens on `ports` to a packet.
fn associate(packet: &sctp::Packet, name: &str, ports: &HashSet<u16>) -> Option<sctp::Packet> {
    let sctp::Chunk::Init { tag } = packet.chunk else { return None };
    let chunk = if ports.contains(&packet.destination) {
        sctp::Chunk::InitAck { tag: !tag | 1, cookie: name.as_bytes().to_vec() }
    } else {
        sctp::Chunk::Abort
    };
    Some(sctp::Packet { source: packet.destination, destination: packet.source, tag, chunk })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_init_is_answered_and_only_listening_ports_accept() {
        let ports = HashSet::from([9999]);
        let packet = |destination, chunk| sctp::Packet { source: 4000, destination, tag: 0, chunk };
        let init = sctp::Chunk::Init { tag: 8 };
        let granted = associate(&packet(9999, init.clone()), "shop/web", &ports).unwrap();
        assert_eq!((granted.source, granted.destination, granted.tag), (9999, 4000, 8));
        assert_eq!(granted.chunk, sctp::Chunk::InitAck { tag: !8 | 1, cookie: b"shop/web".to_vec() });
        assert_eq!(associate(&packet(1, init), "shop/web", &ports).unwrap().chunk, sctp::Chunk::Abort);
        assert_eq!(associate(&packet(9999, sctp::Chunk::Abort), "shop/web", &ports), None);
    }
}
