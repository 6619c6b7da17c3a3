//! The node's neighbours: which hardware address an IP address has on a link.
//!
//! While the kernel does not know it, packets to the address wait, each neighbour's up to about a hundred, for up to
//! three seconds. They have passed the rules by then. So packets to a new pod that were judged before its rules existed
//! would still be delivered to it when it answers.

use std::{collections::BTreeSet, io, net::IpAddr};

use nix::errno::Errno;

use super::netlink::{FLAG_ACK, FLAG_DUMP, Netlink, attributes, put};
use crate::model::Family;

const DELETE: u16 = 29;
const GET: u16 = 30;

/// Family, padding, interface, state, flags and type.
const HEADER: usize = 12;

/// The attribute that holds the IP address.
const DESTINATION: u16 = 1;

/// States in which no packet waits: `NUD_NOARP` and `NUD_PERMANENT`.
const NEVER_WAITS: u16 = 0x40 | 0x80;

/// Forgets these neighbours, and with them the packets that wait for them. Returns how many there were; the next packet
/// to each looks for it again.
///
/// # Errors
/// If a system call fails.
pub fn forget(addresses: &BTreeSet<IpAddr>) -> io::Result<usize> {
    let mut netlink = Netlink::open_route()?;
    let mut known = Vec::new();
    for family in Family::BOTH.into_iter().filter(|one| addresses.iter().any(|of| Family::of(*of) == *one)) {
        netlink.request_body(GET, FLAG_DUMP, &header(family, [0; 4]), |message| {
            known.extend(neighbour(message.body()).filter(|(_, address)| addresses.contains(address)));
        })?;
    }
    let (mut forgotten, mut failure) = (0, None);
    for (interface, address) in known {
        let mut body = header(Family::of(address), interface);
        match address {
            IpAddr::V4(address) => put(&mut body, DESTINATION, &address.octets()),
            IpAddr::V6(address) => put(&mut body, DESTINATION, &address.octets()),
        }
        match netlink.request_body(DELETE, FLAG_ACK, &body, |_| {}) {
            Ok(()) => forgotten += 1,
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
            // Those of other pods are still forgotten.
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(forgotten), Err)
}

fn header(family: Family, interface: [u8; 4]) -> Vec<u8> {
    let mut header = vec![0; HEADER];
    header[0] = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    header[4..8].copy_from_slice(&interface);
    header
}

/// The interface and the address of a neighbour for which packets may wait.
pub(super) fn neighbour(body: &[u8]) -> Option<([u8; 4], IpAddr)> {
    let interface = body.get(4..8)?.try_into().ok()?;
    let state = u16::from_ne_bytes(body.get(8..10)?.try_into().ok()?);
    let (_, address) = attributes(body.get(HEADER..)?).find(|(kind, _)| *kind == DESTINATION)?;
    let address = match address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        _ => return None,
    };
    (state & NEVER_WAITS == 0).then_some((interface, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(state: u16, address: &[u8]) -> Vec<u8> {
        let mut body = header(Family::V4, 7_u32.to_ne_bytes());
        body[8..10].copy_from_slice(&state.to_ne_bytes());
        put(&mut body, DESTINATION, address);
        body
    }

    #[test]
    fn neighbours_for_which_packets_may_wait_are_found() {
        let found = |state, address: &[u8]| neighbour(&body(state, address)).map(|(_, address)| address);
        assert_eq!(neighbour(&body(1, &[10, 0, 0, 1])), Some((7_u32.to_ne_bytes(), [10, 0, 0, 1].into())));
        assert_eq!(found(2, &[0; 16]), Some([0_u8; 16].into()));
        assert_eq!(
            (found(0x80, &[10, 0, 0, 1]), found(0x40, &[10, 0, 0, 1]), found(1, &[10])),
            (None, None, None)
        );
        assert_eq!(neighbour(&body(1, &[10, 0, 0, 1])[..10]), None);
    }
}
