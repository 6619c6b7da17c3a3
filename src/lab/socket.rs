//! Sockets for probes and listeners: with both addresses of a datagram, and with the reason of a refusal.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd,
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
    },
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::model::Family;

use super::{RefusalKind, sctp};

/// Room for bursts of small datagrams: the default overflows after some 250.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The ICMP message types that mean "unreachable" or similar, and the codes with a special meaning.
mod icmp {
    pub(super) const ORIGIN_V4: u8 = 2;
    pub(super) const ORIGIN_V6: u8 = 3;
    pub(super) const V4_UNREACHABLE: u8 = 3;
    pub(super) const V4_PORT: u8 = 3;
    pub(super) const V4_PROHIBITED: [u8; 3] = [9, 10, 13];
    pub(super) const V6_UNREACHABLE: u8 = 1;
    pub(super) const V6_PORT: u8 = 4;
    pub(super) const V6_PROHIBITED: [u8; 3] = [1, 5, 6];
}

/// A datagram, and the addresses between which it was sent.
#[derive(Debug)]
pub(super) struct Datagram {
    /// How many bytes of the buffer it fills.
    pub(super) length: usize,
    /// The sender.
    pub(super) from: SocketAddr,
    /// Which of our addresses received it, if the socket was set to report that.
    pub(super) to: Option<IpAddr>,
}

/// A socket that never blocks, with room for bursts.
pub(super) fn open(family: Family, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, kind, protocol)?;
    socket.set_nonblocking(true)?;
    if family == Family::V6 && protocol.is_none() {
        socket.set_only_v6(true)?;
    }
    if kind != Type::STREAM {
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    }
    Ok(socket)
}

/// A raw socket that receives and sends SCTP packets.
pub(super) fn open_sctp(family: Family) -> io::Result<Socket> {
    open(family, Type::RAW, Some(Protocol::from(i32::from(sctp::PROTOCOL))))
}

/// Makes every datagram report which of our addresses received it.
pub(super) fn report_destinations(socket: &Socket, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        Family::V6 => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

/// Makes the socket keep received ICMP errors, for [`next_refusal`].
pub(super) fn report_refusals(socket: &Socket, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => setsockopt(socket, sockopt::Ipv4RecvErr, &true)?,
        Family::V6 => setsockopt(socket, sockopt::Ipv6RecvErr, &true)?,
    }
    Ok(())
}

/// Receives the next datagram.
pub(super) fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut control = nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let to = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into())
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    });
    let from = message.address.as_ref().and_then(socket_address).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Datagram { length: message.bytes, from, to })
}

/// Sends a datagram from one of our own addresses, which a host with several must choose itself.
pub(super) fn send_from(
    socket: &Socket,
    bytes: &[u8],
    to: SocketAddr,
    from: Option<IpAddr>,
) -> io::Result<()> {
    let parts = [IoSlice::new(bytes)];
    let destination = SockaddrStorage::from(to);
    let (v4, v6);
    let mut control = Vec::with_capacity(1);
    match from {
        Some(IpAddr::V4(from)) => {
            let address = libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) };
            v4 = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: address };
            control.push(ControlMessage::Ipv4PacketInfo(&v4));
        }
        Some(IpAddr::V6(from)) => {
            let address = libc::in6_addr { s6_addr: from.octets() };
            v6 = libc::in6_pktinfo { ipi6_ifindex: 0, ipi6_addr: address };
            control.push(ControlMessage::Ipv6PacketInfo(&v6));
        }
        None => {}
    }
    sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_DONTWAIT, Some(&destination))?;
    Ok(())
}

/// Takes the next received ICMP error: its meaning, and how much of the refused packet it quotes in `buffer`.
pub(super) fn next_refusal(socket: &Socket, buffer: &mut [u8]) -> Option<(RefusalKind, usize)> {
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
    let refusal = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            Some(refusal_of(error.ee_origin, error.ee_type, error.ee_code, error.ee_errno))
        }
        _ => None,
    })?;
    Some((refusal, message.bytes))
}

/// What an ICMP error means for the prober.
fn refusal_of(origin: u8, kind: u8, code: u8, errno: u32) -> RefusalKind {
    match (origin, kind) {
        (icmp::ORIGIN_V4, icmp::V4_UNREACHABLE) if icmp::V4_PROHIBITED.contains(&code) => {
            RefusalKind::Prohibited
        }
        (icmp::ORIGIN_V4, icmp::V4_UNREACHABLE) if code == icmp::V4_PORT => RefusalKind::PortUnreachable,
        (icmp::ORIGIN_V6, icmp::V6_UNREACHABLE) if icmp::V6_PROHIBITED.contains(&code) => {
            RefusalKind::Prohibited
        }
        (icmp::ORIGIN_V6, icmp::V6_UNREACHABLE) if code == icmp::V6_PORT => RefusalKind::PortUnreachable,
        (icmp::ORIGIN_V4 | icmp::ORIGIN_V6, _) => RefusalKind::Unreachable,
        _ => i32::try_from(errno)
            .ok()
            .and_then(|errno| refusal_of_error(&io::Error::from_raw_os_error(errno)))
            .unwrap_or(RefusalKind::Unreachable),
    }
}

/// The refusal that a call's own error means; `None` if it means something else.
pub(super) fn refusal_of_error(error: &io::Error) -> Option<RefusalKind> {
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::EPIPE => Some(RefusalKind::Reset),
        Errno::EACCES | Errno::EPERM => Some(RefusalKind::Prohibited),
        Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP => {
            Some(RefusalKind::Unreachable)
        }
        _ => None,
    }
}

/// The part of a raw packet after its IP header; an IPv6 socket delivers it without one.
pub(super) fn payload(family: Family, packet: &[u8]) -> Option<&[u8]> {
    match family {
        Family::V4 => packet.get(usize::from(packet.first()? & 0x0f) * 4..),
        Family::V6 => Some(packet),
    }
}

/// The wildcard address of a family.
pub(super) const fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    address
        .as_sockaddr_in()
        .map(|v4| SocketAddrV4::from(*v4).into())
        .or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into()))
}
