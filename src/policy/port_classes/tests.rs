use proptest::prelude::*;

use super::*;
use crate::model::{Change, ContainerPort, LabelSelector, NetworkPolicy, ObjectKey, Pod};

fn tcp(first: u16, last: u16) -> Port {
    Port::Range(Protocol::Tcp, PortRange::new(first, last).unwrap())
}

/// A cluster whose policy has a rule for each of these lists, and whose pods declare these ports by name.
fn cluster(lists: &[Vec<Port>], named: &[(&str, u16)]) -> Cluster {
    let mut cluster = Cluster::new();
    let rule = |ports: &Vec<Port>| PolicyRule { peers: Peers::Any, ports: Ports::Of(ports.clone()) };
    cluster.apply(Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new("shop", "p"),
        subject: LabelSelector::everything(),
        ingress: Some(lists.iter().map(rule).collect()),
        egress: None,
        standing: Standing::Accepted,
    }));
    for (name, number) in named {
        let port = ContainerPort { name: Some((*name).into()), protocol: Protocol::Tcp, number: *number };
        cluster.apply(Change::SetPod(Pod {
            ports: vec![port],
            ..Pod::new(ObjectKey::new("shop", format!("{name}-{number}")))
        }));
    }
    cluster
}

fn texts(classes: &PortClasses) -> Vec<String> {
    (0..classes.transports().len()).map(|class| classes.union([class]).to_string()).collect()
}

#[test]
fn ports_of_one_list_are_one_class_and_all_others_are_another() {
    let classes = PortClasses::of(&[&cluster(&[vec![tcp(80, 80), tcp(8000, 8009)]], &[])]);
    assert_eq!(
        texts(&classes),
        [
            "all TCP ports but 80, 8000-8009",
            "80/TCP, 8000-8009/TCP",
            "all UDP ports",
            "all SCTP ports",
            "protocols without ports",
        ]
    );
    assert_eq!(classes.union(0..5), TransportSet::everything());
}

#[test]
fn port_name_cuts_out_each_number_that_it_means_and_no_other() {
    let named = vec![Port::Named(Protocol::Tcp, "http".into())];
    let cluster = cluster(&[named], &[("http", 80), ("http", 8080), ("other", 9000)]);
    let texts = texts(&PortClasses::of(&[&cluster]));
    assert_eq!(texts[..3], ["all TCP ports but 80, 8080", "80/TCP", "8080/TCP"]);
}

#[test]
fn set_of_transports_reads_as_a_person_would_say_it() {
    let all = TransportSet::everything();
    assert_eq!(all.to_string(), "all traffic");
    let ports = |text: &[(Protocol, u16, u16)]| -> PortSet {
        text.iter()
            .map(|(protocol, first, last)| (*protocol, PortRange::new(*first, *last).unwrap()))
            .collect()
    };
    let dns = ports(&[(Protocol::Udp, 53, 53), (Protocol::Tcp, 53, 53)]);
    let but_dns = TransportSet { ports: all.ports.minus(&dns), without_ports: true };
    assert_eq!(but_dns.to_string(), "all traffic but 53/TCP, 53/UDP");
    let of_tcp = TransportSet { ports: ports(&[(Protocol::Tcp, 1, 65535)]), without_ports: false };
    assert_eq!(of_tcp.to_string(), "all TCP ports");
    let some = TransportSet {
        ports: ports(&[(Protocol::Tcp, 80, 81), (Protocol::Udp, 1, 52), (Protocol::Udp, 54, 65535)]),
        without_ports: true,
    };
    assert_eq!(some.to_string(), "80-81/TCP, all UDP ports but 53, protocols without ports");
    assert_eq!(some.entries(), ["80-81/TCP", "1-52/UDP", "54-65535/UDP", "other"]);
}

#[test]
fn classes_beyond_the_limit_are_counted() {
    let lists: Vec<Vec<Port>> = (1..=5000).map(|port| vec![tcp(port, port)]).collect();
    let classes = PortClasses::of(&[&cluster(&lists, &[])]);
    assert_eq!((classes.transports().len(), classes.omitted()), (MOST + 1, 5000 + 3 - MOST));
}

proptest! {
    #[test]
    fn ports_of_one_class_are_in_the_same_lists(
        lists in prop::collection::vec(prop::collection::vec((0..40_u16, 0..6_u16), 0..4), 0..6),
    ) {
        // Some at the end of the range.
        let place = |first: u16| if first < 30 { first + 1 } else { 65496 + first };
        let lists: Vec<Vec<Port>> = lists
            .iter()
            .map(|list| list.iter().map(|(at, more)| tcp(place(*at), place(*at).saturating_add(*more))).collect())
            .collect();
        let classes = PortClasses::of(&[&cluster(&lists, &[])]);
        let transports = classes.transports();
        let is_in = |list: &[Port], number: u16| {
            list.iter().any(|port| matches!(port, Port::Range(_, range) if range.contains(number)))
        };
        for number in (1..60).chain(65480..=65535) {
            let has = |class: &usize| classes.union([*class]).contains(Protocol::Tcp, number);
            let of: Vec<usize> = (0..transports.len()).filter(has).collect();
            prop_assert_eq!(of.len(), 1, "{}", number);
            let Transport::Port(_, example) = transports[of[0]] else { unreachable!() };
            for list in &lists {
                prop_assert_eq!(is_in(list, number), is_in(list, example));
            }
        }
    }
}
