//! Deletes all connections of a node, as an operator's `conntrack -F` does.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use towpath::lab::Netns;

/// Subsystem 1 of netfilter, message "delete"; without attributes: everything.
const DELETE: u16 = (1 << 8) | 2;
const REQUEST_AND_ACK: u16 = 0x1 | 0x4;

/// Deletes every connection of a namespace.
pub(crate) fn flush(netns: &Netns) {
    netns
        .run(|| {
            let mut socket = Socket::new(NETLINK_NETFILTER).expect("a socket to netfilter");
            socket.bind_auto().expect("an address");
            let mut message = 20_u32.to_ne_bytes().to_vec();
            message.extend(DELETE.to_ne_bytes());
            message.extend(REQUEST_AND_ACK.to_ne_bytes());
            message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
            // Any family, version 0, resource 0.
            message.extend([0; 4]);
            socket.send_to(&message, &SocketAddr::new(0, 0), 0).expect("a request");
            let mut answer = Vec::with_capacity(4096);
            socket.recv(&mut answer, 0).expect("an answer");
            let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
            assert_eq!(code, Some(0), "the kernel did not delete its connections");
        })
        .expect("the namespace");
}
