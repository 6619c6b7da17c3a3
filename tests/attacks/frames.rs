//! Random frames, and where each may arrive.

use std::net::IpAddr;

use towpath::{
    lab::{
        Topology,
        frame::{
            Ip, Link, Mac, Tag, Tcp, Token, ether, kind_of,
            neighbour::{self, kind},
            option, protocol, sctp_init, tunnel,
        },
        random::Random,
    },
    model::{Family, Pod, Protocol, Transport},
};

use crate::bed::{Bed, Host, offset, source_port, udp};

/// A frame that was sent, and where it may arrive.
pub(crate) struct Sent {
    pub(crate) token: Token,
    pub(crate) from: usize,
    /// How it was built, to reproduce it.
    pub(crate) description: String,
    pub(crate) family: Family,
    /// What a policy must allow; `None` if nothing may allow it.
    pub(crate) transport: Option<Transport>,
    /// The destination in its header.
    pub(crate) destination: IpAddr,
    /// A neighbour message that passes without a policy.
    pub(crate) discovery: bool,
    /// Nothing about it is unusual: if it is allowed, it must arrive.
    pub(crate) plain: bool,
}

pub(crate) struct Fuzzer<'a> {
    pub(crate) bed: &'a Bed,
    pub(crate) pods: &'a [Pod],
    pub(crate) random: Random,
}

/// Ports that policies mention, and ports with a meaning for nodes.
const PORTS: [u16; 10] = [53, 80, 81, 8080, 443, 4789, 6081, 8472, 67, 547];

impl Fuzzer<'_> {
    fn v6(&mut self) -> bool {
        self.random.chance(50)
    }

    fn any_pod(&mut self) -> usize {
        self.random.below(self.pods.len())
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.random.below(256)).expect("a byte")
    }

    /// Any address of a host, or one that addresses several hosts.
    fn any_address(&mut self, family: Family) -> IpAddr {
        let node = self.random.below(2);
        let block = self.bed.lab.nodes()[node].pod_cidr(family).network();
        let odd: &[&str] = match family {
            Family::V4 => {
                &["127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "239.1.2.3", "203.0.113.5"]
            }
            Family::V6 => &["::1", "::", "ff02::1", "ff02::2", "ff05::1", "fe80::1", "2001:db8::5"],
        };
        match self.random.below(8) {
            0..3 => {
                let pod = self.any_pod();
                self.bed.address(Host::Pod(pod), family)
            }
            3 => self.bed.address(Host::Node(node), family),
            4 => offset(block, u8::try_from(self.random.below(2)).expect("0 or 1")),
            5 => offset(block, self.byte()),
            6 => self.bed.address(Host::Outside, family),
            _ => self.random.pick(odd).parse().expect("an address"),
        }
    }

    /// The hardware address of a pod.
    fn any_mac(&mut self) -> Mac {
        let pod = self.any_pod();
        self.bed.mac(Host::Pod(pod))
    }

    /// The content of a packet: its protocol, its bytes, and what a policy must allow.
    fn message(&mut self, ip: &Ip, token: Token) -> (u8, Vec<u8>, Option<Transport>, String) {
        let port = *self.random.pick(&PORTS);
        let source = source_port(token);
        let payload = token.bytes();
        match self.random.below(8) {
            0..3 => {
                // A DHCP server sends from the first of these ports to the second.
                let (source, port) = match port {
                    67 => (67, 68),
                    547 => (547, 546),
                    port => (source, port),
                };
                let transport = Transport::Port(Protocol::Udp, port);
                (protocol::UDP, ip.udp(source, port, &payload), Some(transport), format!("UDP {port}"))
            }
            3 => {
                let flags = self.byte() & 0x1f;
                let head = Tcp { source, destination: port, sequence: 9, acknowledged: 9, flags };
                let transport = Transport::Port(Protocol::Tcp, port);
                (
                    protocol::TCP,
                    ip.tcp(head, &payload),
                    Some(transport),
                    format!("TCP {port}, flags {flags:#x}"),
                )
            }
            4 => {
                let transport = Transport::Port(Protocol::Sctp, port);
                let packet = sctp_init(source, port, 7, &payload);
                (protocol::SCTP, packet, Some(transport), format!("SCTP {port}"))
            }
            5 => {
                let (kind, code) = (self.byte(), if self.random.chance(70) { 0 } else { self.byte() });
                let length = if self.random.chance(20) { 1000 } else { 24 };
                let mut body = [&source.to_be_bytes(), &[0, 1][..], &payload].concat();
                body.resize(length, 0);
                let router = ip.family() == Family::V6 && matches!(kind, 130 | 134 | 137);
                let transport = (!router).then(|| Transport::Other(ip.icmp_number()));
                (ip.icmp_number(), ip.icmp(kind, code, &body), transport, format!("ICMP {kind}/{code}"))
            }
            6 => {
                let own: [u8; 5] = [protocol::TCP, protocol::UDP, protocol::SCTP, 1, 58];
                let number = self.byte();
                let number = if own.contains(&number) { 253 } else { number };
                let bytes = [&[59, 0][..], &[0; 14], &payload].concat();
                (number, bytes, Some(Transport::Other(number)), format!("protocol {number}"))
            }
            _ => {
                // As if one pod had sent it to another.
                let family = if self.v6() { Family::V6 } else { Family::V4 };
                let (from, to) = (self.any_pod(), self.any_pod());
                let inner = self.bed.ip(Host::Pod(from), Host::Pod(to), family);
                let packet = inner.packet(protocol::UDP, &inner.udp(source, 80, &payload));
                if self.random.chance(50) {
                    let number = if family == Family::V4 { protocol::IPV4 } else { protocol::IPV6 };
                    return (number, packet, Some(Transport::Other(number)), "IP in IP".to_owned());
                }
                let node = self.random.below(2);
                let (device, port, network) = match (self.bed.setting.topology, self.random.below(3)) {
                    (Topology::Vxlan, 0) => ("flannel.1", 8472, 1),
                    (Topology::Vxlan, 1) => ("flannel-v6.1", 8472, 1),
                    _ => ("overlay", 4789, 42),
                };
                let link =
                    Link { source: Mac([2, 0, 0, 0, 0, 7]), destination: self.bed.device(node, device) };
                let payload = tunnel::vxlan(network, &link.ip(&packet));
                let transport = Transport::Port(Protocol::Udp, port);
                (protocol::UDP, ip.udp(source, port, &payload), Some(transport), format!("VXLAN {port}"))
            }
        }
    }

    /// An ordinary datagram from one pod to another.
    fn ordinary(&mut self, from: usize, to: usize, family: Family) -> (Sent, Vec<Vec<u8>>) {
        let (token, port) = (self.bed.token(), *self.random.pick(&PORTS[..5]));
        let (from_pod, to_pod) = (Host::Pod(from), Host::Pod(to));
        let ip = self.bed.ip(from_pod, to_pod, family);
        let sent = Sent {
            token,
            from,
            description: format!("plain UDP {port}, {family:?}"),
            family,
            transport: Some(Transport::Port(Protocol::Udp, port)),
            destination: self.bed.address(to_pod, family),
            discovery: false,
            plain: true,
        };
        (sent, vec![self.bed.link(from_pod, to_pod).ip(&udp(&ip, token, port, &[]))])
    }

    /// An IP packet in any encapsulation.
    pub(crate) fn packet(&mut self) -> (Sent, Vec<Vec<u8>>) {
        let (bed, token, from) = (self.bed, self.bed.token(), self.any_pod());
        let family = if self.v6() { Family::V6 } else { Family::V4 };
        let own = bed.address(Host::Pod(from), family);
        // Enough allowed traffic to detect a defence that denies too much.
        if self.random.chance(15) {
            let to = self.any_pod();
            return self.ordinary(from, to, family);
        }
        let source = if self.random.chance(60) { own } else { self.any_address(family) };
        let destination = self.any_address(family);
        let hops = *self.random.pick(&[255, 64, 64, 64, 2, 1]);
        let mut ip = Ip::new(source, destination).hops(hops).id(token.0);
        let mut odd = hops < 3;
        let mut description = vec![format!("{source} -> {destination}, hop limit {hops}")];
        if family == Family::V4 && self.random.chance(10) {
            ip = ip.options(option::record_route(2));
            description.push("record route".to_owned());
            odd = true;
        }
        while family == Family::V6 && self.random.chance(15) {
            let (number, body) = match self.random.below(4) {
                0 => (protocol::HOP_BY_HOP, option::padding()),
                1 => (protocol::DESTINATION, option::padding()),
                other => {
                    let kind = if other == 2 { 0 } else { 2 };
                    let IpAddr::V6(hop) = self.any_address(Family::V6) else {
                        unreachable!("an IPv6 address")
                    };
                    (protocol::ROUTING, option::routing(kind, u8::from(self.random.chance(50)), &[hop]))
                }
            };
            description.push(format!("extension {number}"));
            ip = ip.extension(number, body);
            odd = true;
        }
        let (number, bytes, transport, what) = self.message(&ip, token);
        description.push(what.clone());
        let mut packets = if self.random.chance(12) {
            let size = u16::try_from(8 + self.random.below(48)).expect("a small number");
            let mut parts = ip.fragments(number, &bytes, size);
            description.push(format!("{} fragments of {size}", parts.len()));
            if self.random.chance(30) {
                parts = self.random.shuffled(parts);
                description.push("in another order".to_owned());
            }
            if self.random.chance(30) {
                parts.remove(self.random.below(parts.len()));
                description.push("without one".to_owned());
            }
            odd = true;
            parts
        } else {
            vec![ip.packet(number, &bytes)]
        };
        packets.truncate(30);
        let receiver = self.pods.iter().position(|pod| pod.addresses.contains(&destination));
        let genuine = bed.link(Host::Pod(from), receiver.map_or(Host::Node(0), Host::Pod));
        let mut link = genuine;
        if self.random.chance(20) {
            link.destination = match self.random.below(3) {
                0 => Mac::BROADCAST,
                1 => Mac::of_group(destination),
                _ => self.any_mac(),
            };
        }
        if self.random.chance(8) {
            link.source = self.any_mac();
        }
        odd |= link != genuine;
        let wrap = if self.random.chance(85) { 0 } else { 1 + self.random.below(7) };
        description.push(format!("link {} -> {}, wrap {wrap}", link.source, link.destination));
        let frame = |packet: &Vec<u8>| {
            let kind = kind_of(packet);
            match wrap {
                0 => link.ip(packet),
                1 => link.tagged(&[Tag::vlan(0).priority(3)], kind, packet),
                2 => link.tagged(&[Tag::vlan(5)], kind, packet),
                3 => link.tagged(&[Tag::provider(0)], kind, packet),
                4 => link.tagged(&[Tag::vlan(0), Tag::vlan(0)], kind, packet),
                5 => link.pppoe(1, packet),
                6 => link.llc_snap(kind, packet),
                _ => link.frame(0x88b5, packet),
            }
        };
        let frames = packets.iter().map(frame).collect();
        // No policy allows encapsulated packets.
        let transport = transport.filter(|_| source == own && wrap == 0);
        let dhcp = matches!(transport, Some(Transport::Port(Protocol::Udp, 68 | 546)));
        // To an address that is not a single host's, only a server sends that.
        let outside = destination == bed.address(Host::Outside, family);
        let transport = transport.filter(|_| !dhcp || receiver.is_some() || outside);
        let plain = !odd && !dhcp && what.starts_with("UDP") && transport.is_some();
        // A short solicitation to neighbours or routers is permitted, whatever it contains.
        let solicitation = number == protocol::ICMPV6 && matches!(bytes.first(), Some(133 | 135));
        let whole = packets.len() == 1 && wrap == 0 && source == own && hops == 255 && bytes.len() < 100;
        let discovery = solicitation && whole && family == Family::V6;
        let description = description.join(", ");
        let sent = Sent { token, from, description, family, transport, destination, discovery, plain };
        (sent, frames)
    }

    /// ARP, and neighbour discovery with all its fields.
    pub(crate) fn discovery(&mut self) -> (Sent, Vec<Vec<u8>>) {
        let (bed, token, from) = (self.bed, self.bed.token(), self.any_pod());
        let host = Host::Pod(from);
        let own_mac = bed.mac(host);
        let mac = if self.random.chance(60) { own_mac } else { self.any_mac() };
        let v6 = self.v6();
        let family = if v6 { Family::V6 } else { Family::V4 };
        let own = bed.address(host, family);
        let claimed = if self.random.chance(60) { own } else { self.any_address(family) };
        let target_address = self.any_address(family);
        let destination = if self.random.chance(50) { Mac::BROADCAST } else { self.any_mac() };
        let mut sent = Sent {
            token,
            from,
            description: String::new(),
            family,
            transport: None,
            destination: target_address,
            discovery: false,
            plain: false,
        };
        let (IpAddr::V6(six), IpAddr::V6(target)) = (claimed, target_address) else {
            let (Some(claimed), Some(target)) = (neighbour::v4(claimed), neighbour::v4(target_address))
            else {
                unreachable!("both are of one family")
            };
            let operation = if self.random.chance(50) { neighbour::REQUEST } else { neighbour::REPLY };
            let message = neighbour::arp(operation, (mac, claimed), (Mac([0; 6]), target));
            let frame = Link { source: own_mac, destination }
                .frame(ether::ARP, &[message, token.bytes().to_vec()].concat());
            sent.description =
                format!("ARP {operation}: {claimed} is at {mac}, for {target_address}, to {destination}");
            // A host without an address asks whether another host has it (RFC 5227).
            let probe = claimed.is_unspecified() && operation == neighbour::REQUEST;
            sent.discovery = (claimed == own || probe) && mac == own_mac;
            return (sent, vec![frame]);
        };
        let message = *self.random.pick(&[
            kind::ROUTER_SOLICITATION,
            kind::ROUTER_ADVERTISEMENT,
            kind::NEIGHBOUR_SOLICITATION,
            kind::NEIGHBOUR_ADVERTISEMENT,
            kind::REDIRECT,
            kind::LISTENER_QUERY,
        ]);
        let hops = *self.random.pick(&[255, 255, 255, 254, 64, 1]);
        // In an advertisement the target is its subject.
        let subject =
            if message == kind::NEIGHBOUR_ADVERTISEMENT && self.random.chance(60) { six } else { target };
        let body = neighbour::neighbour(message, token.0 & 0x1fff_ffff, subject, Some(mac));
        bed.recognise(body.clone(), token);
        let group: IpAddr = neighbour::solicited_node(target).into();
        let address = if message == kind::NEIGHBOUR_SOLICITATION { group } else { target_address };
        let ip = Ip::new(claimed, address).hops(hops);
        let destination = if address.is_multicast() { Mac::of_group(address) } else { destination };
        let packet = ip.packet(protocol::ICMPV6, &ip.icmp(message, 0, &body));
        sent.description = format!(
            "ICMPv6 {message}: {claimed} -> {address}, hop limit {hops}, about {subject} at {mac}, to {destination}"
        );
        sent.discovery = hops == 255
            && match message {
                // A host without an address asks for its own (RFC 4862).
                kind::NEIGHBOUR_SOLICITATION if claimed.is_unspecified() => IpAddr::V6(subject) == own,
                _ if claimed != own => false,
                kind::ROUTER_SOLICITATION | kind::NEIGHBOUR_SOLICITATION => mac == own_mac,
                kind::NEIGHBOUR_ADVERTISEMENT => mac == own_mac && IpAddr::V6(subject) == own,
                _ => false,
            };
        let harmless = matches!(message, kind::NEIGHBOUR_SOLICITATION | kind::NEIGHBOUR_ADVERTISEMENT | 133);
        sent.transport =
            (harmless && claimed == own && sent.discovery).then_some(Transport::Other(protocol::ICMPV6));
        sent.destination = address;
        (sent, vec![Link { source: own_mac, destination }.ip(&packet)])
    }
}
