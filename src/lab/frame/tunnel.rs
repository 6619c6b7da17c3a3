//! Encapsulated packets, as tunnels carry them. IP in IP needs no function here: the inner packet is the payload.

use super::ether;

/// The payload of a VXLAN datagram: an inner frame and its network.
#[must_use]
pub fn vxlan(network: u32, frame: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend((network << 8).to_be_bytes());
    payload.extend(frame);
    payload
}

/// The payload of a Geneve datagram: an inner frame and its network.
#[must_use]
pub fn geneve(network: u32, frame: &[u8]) -> Vec<u8> {
    // "Transparent Ethernet bridging".
    let mut payload = vec![0, 0, 0x65, 0x58];
    payload.extend((network << 8).to_be_bytes());
    payload.extend(frame);
    payload
}

/// The payload of a GRE packet: an inner packet and its type, from [`ether`].
#[must_use]
pub fn gre(kind: u16, packet: &[u8]) -> Vec<u8> {
    let mut payload = vec![0, 0];
    payload.extend(kind.to_be_bytes());
    payload.extend(packet);
    payload
}

/// GRE around an IP packet of either family.
#[must_use]
pub fn gre_ip(packet: &[u8]) -> Vec<u8> {
    let kind = super::kind_of(packet);
    debug_assert!(kind == ether::IPV4 || kind == ether::IPV6);
    gre(kind, packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnel_headers_are_encoded_as_specified() {
        assert_eq!(vxlan(1, b"x"), [8, 0, 0, 0, 0, 0, 1, 0, b'x']);
        assert_eq!(geneve(0x01_0203, b"x"), [0, 0, 0x65, 0x58, 1, 2, 3, 0, b'x']);
        assert_eq!(gre_ip(&[0x60, 1]), [0, 0, 0x86, 0xdd, 0x60, 1]);
    }
}
