//! Raw sockets: sending and capturing unmodified frames on an interface.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::{
        socket::{
            AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto,
            setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{LabError, Netns, frame::Mac};
use crate::model::Family;

/// How often a capture checks whether it should stop.
const TICK: Duration = Duration::from_millis(50);

/// Room for bursts: the default overflows after some hundred frames.
const RECEIVE_BUFFER: usize = 16 << 20;

/// The largest frame or datagram.
const LARGEST: usize = 1 << 16;

/// How the kernel marks a frame that leaves through the interface, instead of one that was received.
const OUTGOING: u8 = 4;

/// The hardware type of `lo`.
const LOOPBACK: u16 = 772;

/// Sends unmodified frames out of one interface.
#[derive(Debug)]
pub struct RawSocket {
    socket: OwnedFd,
    to: LinkAddr,
    interface: String,
    mac: Mac,
}

impl RawSocket {
    /// A socket on an interface of a namespace.
    ///
    /// # Errors
    /// If there is no such interface, or the system provides no raw socket.
    pub fn open(netns: &Netns, interface: &str) -> Result<Self, LabError> {
        let action = format!("open a raw socket on {interface} of {}", netns.name());
        let to = link_address(netns, interface)?;
        let opened = netns
            .run(|| socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None))?
            .map_err(LabError::system(action))?;
        let mac = Mac(to.addr().unwrap_or_default());
        Ok(Self { socket: opened, to, interface: interface.to_owned(), mac })
    }

    /// The hardware address that the interface had when the socket was opened.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        self.mac
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// A system error, for example if the frame is longer than the interface's MTU.
    pub fn send(&self, frame: &[u8]) -> Result<(), LabError> {
        let failed = || format!("send {} bytes out of {}", frame.len(), self.interface);
        loop {
            match sendto(self.socket.as_raw_fd(), frame, &self.to, MsgFlags::empty()) {
                // The queue drains by itself.
                Err(Errno::EINTR | Errno::ENOBUFS | Errno::EAGAIN) => std::thread::yield_now(),
                Err(error) => return Err(LabError::system(failed())(error)),
                Ok(_) => return Ok(()),
            }
        }
    }
}

/// The hardware address of an interface of a namespace.
///
/// # Errors
/// If there is no such interface.
pub fn mac_of(netns: &Netns, interface: &str) -> Result<Mac, LabError> {
    link_address(netns, interface).map(|link| Mac(link.addr().unwrap_or_default()))
}

fn link_address(netns: &Netns, interface: &str) -> Result<LinkAddr, LabError> {
    let action = format!("find {interface} in the namespace of {}", netns.name());
    let name = interface.to_owned();
    let found = netns.run(move || {
        let all = getifaddrs().map_err(io::Error::from)?;
        let mut links = all.filter(|entry| entry.interface_name == name);
        let link = links.find_map(|entry| entry.address?.as_link_addr().copied());
        link.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    })?;
    found.map_err(LabError::system(action))
}

/// What a [`Capture`] receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tap {
    /// Every frame that any interface receives, before any rule of the namespace; except what its own loopback carries.
    Frames,
    /// Datagrams to this UDP port, reassembled from their fragments and after all rules of the namespace.
    Udp(Family, u16),
    /// Packets of this IP protocol, reassembled from their fragments and after all rules of the namespace.
    Ip(Family, u8),
}

/// A thread that passes on everything that arrives in a namespace, until it is dropped.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts capturing `tap`. Everything that arrives after this returned is passed to `each`.
    ///
    /// # Errors
    /// A system error, for example if the port is in use.
    pub fn start(
        netns: &Netns,
        tap: Tap,
        mut each: impl FnMut(&[u8]) + Send + 'static,
    ) -> Result<Self, LabError> {
        let opened = netns
            .run(move || open(tap))?
            .map_err(LabError::system(format!("listen to {tap:?} in the namespace of {}", netns.name())))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = netns.start_thread("capture", move || {
            let mut buffer = vec![0; LARGEST];
            while !stopped.load(Ordering::Relaxed) {
                match recvfrom::<LinkAddr>(opened.as_raw_fd(), &mut buffer) {
                    Ok((length, from)) if tap == Tap::Frames => {
                        let own = |from: LinkAddr| from.pkttype() == OUTGOING || from.hatype() == LOOPBACK;
                        if !from.is_some_and(own) {
                            each(&buffer[..length]);
                        }
                    }
                    Ok((length, _)) => each(&buffer[..length]),
                    // Nothing for a tick, or an ICMP error: neither is a packet.
                    Err(_) => {}
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported when it happened.
            let _panicked = thread.join();
        }
    }
}

fn open(tap: Tap) -> io::Result<OwnedFd> {
    let opened: OwnedFd = match tap {
        Tap::Frames => {
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?
        }
        Tap::Udp(family, port) => {
            let socket = Socket::new(domain(family), Type::DGRAM, Some(Protocol::UDP))?;
            if family == Family::V6 {
                socket.set_only_v6(true)?;
            }
            socket.bind(&std::net::SocketAddr::from((super::socket::any(family), port)).into())?;
            socket.into()
        }
        Tap::Ip(family, number) => {
            Socket::new(domain(family), Type::RAW, Some(Protocol::from(i32::from(number))))?.into()
        }
    };
    setsockopt(&opened, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    setsockopt(&opened, sockopt::ReceiveTimeout, &TimeVal::new(0, i64::from(TICK.subsec_micros())))?;
    Ok(opened)
}

const fn domain(family: Family) -> Domain {
    match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    }
}
