//! How the stations of a link find each other: ARP, neighbour and router discovery, listener reports, DHCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Mac;

/// An ARP request.
pub const REQUEST: u16 = 1;
/// An ARP reply.
pub const REPLY: u16 = 2;

/// An ARP message: the addresses of two stations, as its sender claims.
#[must_use]
pub fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut message = vec![0, 1, 0x08, 0, 6, 4];
    message.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        message.extend(mac.0);
        message.extend(address.octets());
    }
    message
}

/// Types of the messages below, as ICMPv6 numbers them.
pub mod kind {
    /// A multicast listener query.
    pub const LISTENER_QUERY: u8 = 130;
    /// Asks for routers.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Announces its sender as a router.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Asks for a neighbour.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Announces the hardware address of a neighbour.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Announces a better route.
    pub const REDIRECT: u8 = 137;
}

/// Flags of a neighbour advertisement.
pub mod flag {
    /// Its sender is a router.
    pub const ROUTER: u32 = 1 << 31;
    /// It answers a solicitation.
    pub const SOLICITED: u32 = 1 << 30;
    /// It replaces what is cached.
    pub const OVERRIDE: u32 = 1 << 29;
}

/// The body of a solicitation or a neighbour advertisement: flags and reserved bits, the target except in a router
/// solicitation, and an option with a hardware address, the target's in an advertisement and otherwise the sender's.
#[must_use]
pub fn neighbour(kind: u8, flags: u32, target: Ipv6Addr, mac: Option<Mac>) -> Vec<u8> {
    let mut body = flags.to_be_bytes().to_vec();
    if kind != kind::ROUTER_SOLICITATION {
        body.extend(target.octets());
    }
    if let Some(mac) = mac {
        body.extend([if kind == kind::NEIGHBOUR_ADVERTISEMENT { 2 } else { 1 }, 1]);
        body.extend(mac.0);
    }
    body
}

/// The body of a router advertisement: a router for half an hour, and a prefix for addresses.
#[must_use]
pub fn router_advertisement(mac: Mac, prefix: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
    body.extend(mac.0);
    body.extend([3, 4, 64, 0xc0, 0, 0, 0x07, 0x08, 0, 0, 0x07, 0x08, 0, 0, 0, 0]);
    body.extend(prefix.octets());
    body
}

/// The body of a redirect: packets for `destination` should go to `target`, which has this hardware address.
#[must_use]
pub fn redirect(target: Ipv6Addr, destination: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(target.octets());
    body.extend(destination.octets());
    body.extend([2, 1]);
    body.extend(mac.0);
    body
}

/// The body of a listener message of the first version about one group; a query without a group asks for all.
#[must_use]
pub fn listener(group: Ipv6Addr) -> Vec<u8> {
    [&[0x03, 0xe8, 0, 0], &group.octets()[..]].concat()
}

/// The group in which the owner of an address receives neighbour solicitations.
#[must_use]
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let [a, b, c] = [a, b, c].map(u16::from);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | a, b << 8 | c)
}

/// An offer of an IPv4 DHCP server: `yours`, and itself as the router. Sent over UDP from port 67 to 68.
#[must_use]
pub fn dhcp_offer(server: Ipv4Addr, yours: Ipv4Addr, client: Mac, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![2, 1, 6, 0];
    message.extend([0; 12]);
    message.extend(yours.octets());
    message.extend(server.octets());
    message.extend([0; 4]);
    message.extend(client.0);
    // The rest of the client's address, the server's name and the file's.
    message.extend(vec![0; 10 + 64 + 128]);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 2, 54, 4]);
    message.extend(server.octets());
    message.extend([3, 4]);
    message.extend(server.octets());
    message.push(224);
    message.push(u8::try_from(payload.len()).unwrap_or(u8::MAX));
    message.extend(payload);
    message.push(255);
    message
}

/// An advertisement of an IPv6 DHCP server. Sent over UDP from port 547 to 546.
#[must_use]
pub fn dhcpv6_advertise(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[2, 0, 0, 1, 0, 2], &length[..], payload].concat()
}

/// The IPv4 address, if it is one.
#[must_use]
pub const fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// The IPv6 address, if it is one.
#[must_use]
pub const fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arp_message_contains_both_addresses() {
        let sender = (Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 0, 0, 1));
        let message = arp(REPLY, sender, (Mac::BROADCAST, Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(message.len(), 28);
        assert_eq!(&message[6..8], &[0, 2]);
        assert_eq!(&message[8..18], &[2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
    }

    #[test]
    fn solicited_node_group_ends_like_the_address() {
        let group = solicited_node("fd00::12:3456".parse().unwrap());
        assert_eq!(group.to_string(), "ff02::1:ff12:3456");
    }

    #[test]
    fn options_have_their_declared_lengths() {
        let body = router_advertisement(Mac::BROADCAST, Ipv6Addr::LOCALHOST);
        assert_eq!(body.len(), 12 + 8 + 32);
        assert_eq!(redirect(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST, Mac::BROADCAST).len(), 36 + 8);
        assert_eq!(
            dhcp_offer(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, Mac::BROADCAST, b"").len(),
            240 + 3 + 6 + 6 + 2 + 1
        );
    }
}
