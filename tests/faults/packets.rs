//! Special packets: refusals, tunnels, a pod's own, replies and errors, neighbour discovery.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol as IpProtocol, Socket, Type};
use towpath::{
    lab::{End, Netns, Outcome, RefusalKind, Topology, Transport, Variant},
    model::{Family, Protocol},
};

use crate::{
    testbed::{Bed, for_both_variants},
    yaml_objects::{namespace, policy},
};

fn bed(variant: Variant, topology: Topology, policies: &[String]) -> Bed {
    let pods = [("shop/web", 0), ("shop/db", 0), ("shop/far", 1)];
    let bed = Bed::in_topology(variant, topology, &pods);
    bed.write("namespaces.yaml", &[namespace("shop", "")]);
    let manifest = |(name, _): (&str, usize)| bed.manifest(name, &format!("app: {}", &name[5..]));
    bed.write("pods.yaml", &pods.map(manifest));
    bed.write("policies.yaml", policies);
    bed
}

const ISOLATED: &str = "podSelector: {}, policyTypes: [Ingress, Egress]";

#[test]
fn reject_is_answered_immediately() {
    for_both_variants(|variant| {
        let policies = [policy("shop/db", "podSelector: {matchLabels: {app: db}}")];
        let bed = bed(variant, Topology::Bridge, &policies);
        let _daemon = bed.run(&["--deny-action", "reject"]);
        for from in ["shop/web", "shop/far"] {
            for family in Family::BOTH {
                let to = bed.address("shop/db", family);
                let start = Instant::now();
                let tcp = bed.probe(bed.end(from), to, Transport::Tcp(80));
                assert_eq!(tcp, Outcome::Refused(RefusalKind::Reset), "{from}, {family}");
                let udp = bed.probe(bed.end(from), to, Transport::Udp(53));
                assert_eq!(udp, Outcome::Refused(RefusalKind::PortUnreachable), "{from}, {family}");
                assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
            }
        }
    });
}

/// Whether a packet of this IP protocol arrives from one namespace at an address in another one.
fn arrives(from: &Netns, to: (&Netns, IpAddr), protocol: u8) -> bool {
    let address = to.1;
    let raw = move || {
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        Socket::new(domain, Type::RAW, Some(IpProtocol::from(i32::from(protocol)))).unwrap()
    };
    let mut receiver = to.0.run(raw).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    let sender = from.run(raw).unwrap();
    sender.send_to(&[0x45; 40], &SocketAddr::new(address, 0).into()).unwrap();
    receiver.read(&mut [0; 256]).is_ok()
}

#[test]
fn tunnel_packets_from_a_pod_to_a_node_are_dropped_and_other_packets_are_not() {
    for_both_variants(|variant| {
        let mut bed = bed(variant, Topology::Bridge, &[]);
        for node in 0..2 {
            bed.lab.listen(End::Node(node), &[(Protocol::Udp, 8472), (Protocol::Udp, 8473)]).unwrap();
        }
        let tunnels = |bed: &Bed, open: bool| {
            let tunnel = if open { Outcome::Open } else { Outcome::Silent };
            for family in Family::BOTH {
                for index in 0..2 {
                    let node = bed.lab.node(index).unwrap();
                    let to = node.address(family).unwrap();
                    let what = format!("{variant:?}: to node {index}, {family}");
                    let web = bed.end("shop/web");
                    assert_eq!(bed.probe(web, to, Transport::Udp(8472)), tunnel, "{what}");
                    assert_eq!(bed.probe(web, to, Transport::Udp(8473)), Outcome::Open, "{what}");
                    let pod = bed.lab.pod(bed.pod("shop/web")).unwrap().netns();
                    let number = if family == Family::V4 { 4 } else { 41 };
                    assert_eq!(arrives(pod, (node.netns(), to), number), open, "{what}, protocol {number}");
                    assert!(arrives(pod, (node.netns(), to), 253), "{what}, protocol 253");
                }
            }
        };
        tunnels(&bed, true);
        // The daemon learns the other node's address from its pods.
        let _daemon = bed.run(&[]);
        tunnels(&bed, false);
    });
}

#[test]
fn isolated_pod_reaches_itself_through_its_own_service() {
    for_both_variants(|variant| {
        let bed = bed(variant, Topology::Bridge, &[policy("shop/all", ISOLATED)]);
        let service: [IpAddr; 2] = ["10.96.0.10", "fd00:96::10"].map(|address| address.parse().unwrap());
        for (family, service) in Family::BOTH.into_iter().zip(service) {
            let pod = bed.address("shop/db", family);
            bed.iptables(
                family,
                &format!("-t nat -A PREROUTING -d {service} -j DNAT --to-destination {pod}"),
            );
            bed.iptables(family, &format!("-t nat -I POSTROUTING -s {pod} -d {pod} -j MASQUERADE"));
        }
        let _daemon = bed.run(&[]);
        for address in service {
            let tcp = Transport::Tcp(80);
            assert_eq!(bed.probe(bed.end("shop/db"), address, tcp), Outcome::Open, "{address}");
            assert_eq!(bed.probe(bed.end("shop/web"), address, tcp), Outcome::Silent, "{address}");
        }
    });
}

#[test]
fn replies_errors_and_neighbour_discovery_of_allowed_flows_pass() {
    for_both_variants(|variant| {
        let allow = |from: &str, to: &str| {
            let pod = |app: &str| format!("podSelector: {{matchLabels: {{app: {app}}}}}");
            [
                policy(
                    &format!("shop/{from}-to-{to}-sent"),
                    &format!("{}, policyTypes: [Egress], egress: [{{to: [{{{}}}]}}]", pod(from), pod(to)),
                ),
                policy(
                    &format!("shop/{from}-to-{to}-taken"),
                    &format!("{}, policyTypes: [Ingress], ingress: [{{from: [{{{}}}]}}]", pod(to), pod(from)),
                ),
            ]
        };
        let mut policies = vec![policy("shop/all", ISOLATED)];
        policies.extend(allow("web", "far"));
        policies.extend(allow("far", "db"));
        let bed = bed(variant, Topology::Bridge, &policies);
        let _daemon = bed.run(&[]);
        for (from, to) in [("shop/web", "shop/far"), ("shop/far", "shop/db")] {
            assert_eq!(bed.reaches(from, to), [true; 2], "{from} -> {to}");
            assert_eq!(bed.reaches(to, from), [false; 2], "{to} -> {from}");
            for family in Family::BOTH {
                // Nothing listens there: the error comes back to a pod to which the other may not send.
                let refused = bed.probe(bed.end(from), bed.address(to, family), Transport::Udp(9));
                assert_eq!(
                    refused,
                    Outcome::Refused(RefusalKind::PortUnreachable),
                    "{from} -> {to}, {family}"
                );
            }
        }
        // The path to the other node's pods gets a smaller MTU than the sender's own link: only the other node's
        // "packet too big" reports that.
        let far_node = bed.lab.node(1).unwrap();
        far_node.succeed("ip", &["link", "set", "cni0", "mtu", "1300"]).unwrap();
        for family in Family::BOTH {
            let to = SocketAddr::new(bed.address("shop/far", family), 80);
            let exchange = move || {
                let mut connection = TcpStream::connect_timeout(&to, Duration::from_secs(2)).unwrap();
                connection.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
                connection.read_exact(&mut [0; 9]).unwrap();
                connection.write_all(&[7; 16_000]).unwrap();
                connection.read_exact(&mut [0; 16_000]).is_ok()
            };
            let web = bed.lab.pod(bed.pod("shop/web")).unwrap().netns();
            assert!(web.run(exchange).unwrap(), "{family}: a full segment over a link with a small MTU");
        }
        // The neighbour tables of all hosts are flushed.
        for _ in 0..3 {
            for (_, pod) in bed.lab.pods() {
                pod.netns().succeed("ip", &["-6", "neigh", "flush", "all"], "").unwrap();
            }
            bed.node().succeed("ip", &["-6", "neigh", "flush", "all"]).unwrap();
            assert_eq!(bed.reaches("shop/web", "shop/far"), [true; 2]);
            assert_eq!(bed.reaches("shop/far", "shop/db"), [true; 2]);
            thread::sleep(Duration::from_millis(50));
        }
        // The same on one bridge, where even solicitations pass FORWARD; data is still denied.
        let near: Vec<String> = allow("web", "db").into();
        bed.write("near.yaml", &near);
        bed.wait_until_reachable("shop/web", "shop/db", true, Duration::from_secs(3));
        for (_, pod) in bed.lab.pods() {
            pod.netns().succeed("ip", &["-6", "neigh", "flush", "all"], "").unwrap();
        }
        assert_eq!(bed.reaches("shop/web", "shop/db"), [true; 2]);
        assert_eq!(bed.reaches("shop/db", "shop/web"), [false; 2]);
    });
}
