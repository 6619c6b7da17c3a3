use super::{super::netlink::NESTED, *};

/// Attributes as the kernel encodes them.
fn encoded(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in attributes {
        put(&mut bytes, *kind, value);
    }
    bytes
}

/// A message about link 7 with these flags and attributes.
fn link_message(flags: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![0; LINK_HEADER];
    body.splice(4..8, 7_u32.to_ne_bytes());
    body.splice(8..12, flags.to_ne_bytes());
    body.extend(encoded(attributes));
    body
}

/// A link of this kind, with the kind's own data.
fn of_kind(kind: &str, data: &[(u16, &[u8])]) -> Link {
    let info = encoded(&[(INFO_KIND, kind.as_bytes()), (INFO_DATA | NESTED, &encoded(data))]);
    link(&link_message(UP, &[(LINK_NAME, b"tun0\0"), (LINK_INFO | NESTED, &info)])).unwrap()
}

#[test]
fn link_is_parsed_with_index_name_bridge_and_state() {
    let bridge = 3_u32.to_ne_bytes();
    let attributes: [(u16, &[u8]); 2] = [(LINK_NAME, b"eth0\0"), (LINK_MASTER, &bridge)];
    let read = link(&link_message(UP, &attributes)).unwrap();
    let expected = Link {
        index: 7,
        name: "eth0".to_owned(),
        kind: String::new(),
        master: Some(3),
        peer: None,
        port: None,
        has_known_ends: false,
        up: true,
    };
    assert_eq!(read, expected);
    let (broadcast, running) = (1 << 1, 1 << 6);
    assert!(link(&link_message(UP | broadcast, &attributes)).unwrap().up);
    assert!(!link(&link_message(broadcast | running, &attributes)).unwrap().up);
    assert_eq!(link(&[0; LINK_HEADER - 1]), None);
}

#[test]
fn only_a_veth_with_a_namespace_id_has_a_peer() {
    let of = |kind: &str, netns: Option<i32>| {
        let (peer, number) = (2_u32.to_ne_bytes(), netns.unwrap_or_default().to_ne_bytes());
        let info = encoded(&[(INFO_KIND, kind.as_bytes())]);
        let mut attributes: Vec<(u16, &[u8])> =
            vec![(LINK_PEER, &peer), (LINK_INFO | NESTED, info.as_slice())];
        attributes.extend(netns.map(|_| (LINK_PEER_NETNS, number.as_slice())));
        link(&link_message(UP, &attributes)).unwrap().peer
    };
    assert_eq!(of("veth", Some(0)), Some((2, 0)));
    assert_eq!(of("veth", Some(5)), Some((2, 5)));
    assert_eq!(of("veth", Some(-1)), None, "the namespace has no number here");
    assert_eq!(of("veth", None), None, "the peer is in this namespace");
    assert_eq!(of("vlan", Some(5)), None);
}

#[test]
fn vxlan_ends_are_known_unless_it_accepts_any_sender() {
    let port: (u16, &[u8]) = (VXLAN_PORT, &8472_u16.to_be_bytes());
    let quiet: (u16, &[u8]) = (VXLAN_LEARNING, &[0]);
    let known = of_kind("vxlan", &[port, quiet]);
    assert_eq!((known.kind.as_str(), known.port, known.has_known_ends), ("vxlan", Some(8472), true));
    let any: [(u16, &[u8]); 4] = [
        (VXLAN_LEARNING, &[1]),
        (VXLAN_GROUP, &[239, 0, 0, 1]),
        (VXLAN_GROUP6, &[0xff; 16]),
        (VXLAN_METADATA, &[1]),
    ];
    for one in any {
        assert!(!of_kind("vxlan", &[port, one]).has_known_ends, "{one:?}");
    }
    assert_eq!(of_kind("vxlan", &[quiet]).port, None);
}

#[test]
fn other_tunnels_have_the_port_of_their_own_attribute_or_a_protocol() {
    let port = 6081_u16.to_be_bytes();
    assert_eq!(of_kind("geneve", &[(GENEVE_PORT, &port)]).port, Some(6081));
    assert_eq!(of_kind("geneve", &[(VXLAN_PORT, &port)]).port, None);
    assert_eq!(of_kind("bridge", &[(GENEVE_PORT, &port), (VXLAN_PORT, &port)]).port, None);
    for (number, kinds) in [
        (4, &["ipip"][..]),
        (41, &["sit", "ip6tnl"]),
        (47, &["gre", "gretap", "erspan", "ip6gre", "ip6gretap", "ip6erspan"]),
    ] {
        assert!(kinds.iter().all(|kind| protocol(kind) == Some(number)), "{kinds:?}");
    }
    assert_eq!(protocol("veth"), None);
}

#[test]
fn host_routes_are_single_addresses_of_the_main_table() {
    let route = |length: u8, table: u8, kind: u8, destination: &[u8]| {
        let mut body = vec![0, length, 0, 0, table, 0, 0, kind, 0, 0, 0, 0];
        let interface = 5_u32.to_ne_bytes();
        body.extend(encoded(&[(ROUTE_DESTINATION, destination), (ROUTE_INTERFACE, &interface)]));
        host_route(&body)
    };
    let (main, local) = (254, 255);
    let (unicast, blackhole) = (1, 6);
    let v6 = "fd00::2".parse::<Ipv6Addr>().unwrap();
    let to = |address: IpAddr| Some((5, address));
    assert_eq!(route(32, main, unicast, &[10, 244, 1, 3]), to([10, 244, 1, 3].into()));
    assert_eq!(route(128, main, unicast, &v6.octets()), to(v6.into()));
    assert_eq!(route(24, main, unicast, &[10, 244, 1, 0]), None, "a network");
    assert_eq!(route(32, main, unicast, &v6.octets()), None, "a network");
    assert_eq!(route(32, local, unicast, &[10, 244, 1, 3]), None, "an address of this host");
    assert_eq!(route(32, main, blackhole, &[10, 244, 1, 3]), None, "leads nowhere");
    assert_eq!(route(32, main, unicast, &[10, 244, 1]), None, "not an address");
    assert_eq!(host_route(&[0; ROUTE_HEADER]), None);
}

#[test]
fn missing_link_or_namespace_counts_as_gone() {
    let error = |code: Errno| io::Error::from_raw_os_error(code as i32);
    assert!(is_gone(&error(Errno::ENODEV)) && is_gone(&error(Errno::EINVAL)));
    assert!(!is_gone(&error(Errno::EPERM)) && !is_gone(&io::Error::other("else")));
}

#[test]
fn of_repeated_details_only_the_last_count() {
    let port = 4789_u16.to_be_bytes();
    let info = |kind: &str| {
        encoded(&[(INFO_KIND, kind.as_bytes()), (INFO_DATA | NESTED, &encoded(&[(VXLAN_PORT, &port)]))])
    };
    let [tunnel, bridge] = ["vxlan", "bridge"].map(info);
    let read = link(&link_message(UP, &[(LINK_INFO, &tunnel), (LINK_INFO, &bridge)])).unwrap();
    assert_eq!((&*read.kind, read.port, read.has_known_ends), ("bridge", None, false));
}

#[test]
fn neighbours_for_which_packets_may_wait_are_found() {
    let read = |state: u16, address: &[u8]| {
        let mut body = vec![0; NEIGHBOUR_HEADER];
        body.splice(4..8, 7_u32.to_ne_bytes());
        body.splice(8..10, state.to_ne_bytes());
        body.extend(encoded(&[(NEIGHBOUR_DESTINATION, address)]));
        neighbour(&body)
    };
    let (incomplete, noarp, permanent) = (0x01, 0x40, 0x80);
    assert_eq!(read(incomplete, &[10, 0, 0, 1]), Some((7, [10, 0, 0, 1].into())));
    assert_eq!(read(incomplete, &[0; 16]), Some((7, [0_u8; 16].into())));
    assert_eq!((read(noarp, &[10, 0, 0, 1]), read(permanent, &[10, 0, 0, 1])), (None, None));
    assert_eq!((read(incomplete, &[10]), neighbour(&[0; NEIGHBOUR_HEADER])), (None, None));
}
