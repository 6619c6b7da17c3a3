//! What nodes have besides pods: another bridge with machines, another tunnel, and no rules of other programs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use towpath::{lab::Netns, model::Family};

use super::{Bed, OTHER_VXLAN_PORT};

impl Bed {
    /// Another bridge on the first node, with two machines.
    pub(super) fn add_guests(&mut self) {
        let node = self.lab.node(0).expect("a node");
        let mut lines = vec![
            "link add virbr0 type bridge mcast_snooping 0".to_owned(),
            "link set virbr0 up".to_owned(),
            format!("addr add {}/24 dev virbr0", guest_address(Family::V4, 0)),
            format!("addr add {}/64 dev virbr0 nodad", guest_address(Family::V6, 0)),
        ];
        for guest in 0..2 {
            let netns = Netns::new(format!("guest-{}", guest + 1)).expect("a namespace");
            lines.push(format!("link add vnet{guest} type veth peer name eth0 netns {}", netns.path()));
            lines.push(format!("link set vnet{guest} master virbr0 up"));
            self.guests.push(netns);
        }
        node.netns().ip(&lines).expect("the guests' bridge");
        for (guest, netns) in self.guests.iter().enumerate() {
            let address = |family| guest_address(family, guest + 1);
            let lines = [
                "link set lo up".to_owned(),
                "link set eth0 up".to_owned(),
                format!("addr add {}/24 dev eth0", address(Family::V4)),
                format!("addr add {}/64 dev eth0 nodad", address(Family::V6)),
                format!("route add default via {}", guest_address(Family::V4, 0)),
                format!("route add ::/0 via {}", guest_address(Family::V6, 0)),
            ];
            netns.ip(&lines).expect("a guest");
        }
    }

    /// Removes the rules of other programs that drop packets: what is denied here is denied by towpath.
    ///
    /// Many nodes have no such rules, and they would hide an attack that passes ours.
    pub(super) fn open_forwarding(&self) {
        for node in self.lab.nodes() {
            for family in Family::BOTH {
                let program = self.setting.variant.program(family, "");
                node.succeed(&program, &["-w", "-P", "FORWARD", "ACCEPT"]).expect("no rules of others");
                let invalid = ["-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"];
                let delete = [&["-w", "-D", "KUBE-FORWARD"][..], &invalid].concat();
                node.succeed(&program, &delete).expect("no rules of others");
            }
        }
    }

    /// A tunnel that is not flannel's, on every node: its inner packets are routed like any others.
    pub(super) fn add_other_vxlan(&self) {
        for node in self.lab.nodes() {
            let local = node.address(Family::V4).expect("an address");
            let lines = [
                format!(
                    "link add overlay type vxlan id 42 local {local} dstport {OTHER_VXLAN_PORT} nolearning"
                ),
                "link set overlay up".to_owned(),
            ];
            node.netns().ip(&lines).expect("another tunnel");
        }
    }
}

/// The addresses of the other bridge: 0 is the node's own.
pub(super) fn guest_address(family: Family, guest: usize) -> IpAddr {
    let last = if guest == 0 { 1 } else { 10 + u8::try_from(guest).expect("few guests") };
    match family {
        Family::V4 => Ipv4Addr::new(10, 99, 0, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, last.into()).into(),
    }
}
