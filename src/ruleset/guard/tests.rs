use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{
    render::{Guard, has_all_rules, trial},
    *,
};
use crate::{
    model::Pod,
    policy::{
        members::{Member, Members},
        program::Program,
        resolve::LocalPod,
    },
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An interface on bridge 2 with these addresses behind it; its index determines its namespace and hardware address.
fn veth(index: u32, addresses: &[&str]) -> Veth {
    Veth {
        index,
        name: format!("veth{index}"),
        bridge: Some(2),
        netns: index.cast_signed(),
        mac: Mac([2, 0, 0, 0, 0, u8::try_from(index).unwrap()]),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        routed: Vec::new(),
        is_read: true,
    }
}

fn pod(name: &str, addresses: &[&str]) -> LocalPod {
    LocalPod {
        key: ObjectKey::new("shop", name),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        shared: Vec::new(),
        ingress: None,
        egress: None,
        policies: [].into(),
    }
}

/// Binds with the addresses of the pods, and these further addresses of pods elsewhere and of this host.
fn bound(
    veths: &[Veth],
    pods: &[LocalPod],
    elsewhere: &[&str],
    host: &[&str],
    before: &Bindings,
) -> Bindings {
    let members = |addresses: &mut dyn Iterator<Item = IpAddr>| {
        let mut members = Members::default();
        for address in addresses {
            let set = if address.is_ipv4() { &mut members.v4 } else { &mut members.v6 };
            set.insert(Member::Address(address));
        }
        members
    };
    let own = pods.iter().flat_map(|pod| pod.addresses.iter().copied());
    let all_pods = members(&mut own.chain(elsewhere.iter().map(|address| ip(address))));
    let host: BTreeSet<IpAddr> = host.iter().map(|address| ip(address)).collect();
    let nodes = &Members::default();
    bind(veths, &Known { pods, all_pods: &all_pods, nodes, pod_cidrs: &[], host: &host }, before)
}

fn fresh(veths: &[Veth], pods: &[LocalPod]) -> Bindings {
    bound(veths, pods, &[], &[], &Bindings::default())
}

fn owner(bindings: &Bindings, index: u32) -> Option<&str> {
    bindings.ports.get(&index)?.pod.as_ref().map(|pod| &*pod.name)
}

#[test]
fn a_pod_is_behind_the_interface_that_has_its_addresses() {
    let veths = [veth(3, &["10.244.1.2", "fe80::3"]), veth(4, &["10.244.1.3", "fd00::3", "fe80::4"])];
    let pods = [pod("a", &["10.244.1.2"]), pod("b", &["10.244.1.3", "fd00::3"])];
    let bindings = fresh(&veths, &pods);
    assert_eq!((owner(&bindings, 3), owner(&bindings, 4)), (Some("a"), Some("b")));
    // Its own, and the one that is derived from its hardware address.
    let own = ["fe80::4", "fe80::ff:fe00:4"].map(|address| address.parse::<Ipv6Addr>().unwrap());
    assert_eq!(bindings.ports[&4].link_local, own);
    assert!(bindings.unbound.is_empty());
}

#[test]
fn an_address_that_a_pod_gives_itself_binds_nothing() {
    let honest = veth(3, &["10.244.1.2"]);
    let thief = veth(4, &["10.244.1.3", "10.244.1.2", "10.244.9.9"]);
    let pods = [pod("honest", &["10.244.1.2"]), pod("thief", &["10.244.1.3"])];
    for veths in [[honest.clone(), thief.clone()], [thief.clone(), honest.clone()]] {
        let bindings = fresh(&veths, &pods);
        assert_eq!((owner(&bindings, 3), owner(&bindings, 4)), (Some("honest"), Some("thief")));
        assert_eq!(bindings.ports[&4].addresses, [ip("10.244.1.3")]);
    }
}

#[test]
fn what_a_pod_changes_after_it_was_bound_does_not_count() {
    let pods = [pod("a", &["10.244.1.2"]), pod("b", &["10.244.1.3"])];
    let before = fresh(&[veth(3, &["10.244.1.2"]), veth(4, &["10.244.1.3"])], &pods);
    let mut swapped = veth(4, &["10.244.1.2"]);
    swapped.mac = Mac([2, 0, 0, 0, 0, 3]);
    let after = bound(&[veth(3, &["10.244.1.2"]), swapped], &pods, &[], &[], &before);
    assert_eq!(after, before);
}

#[test]
fn an_interface_whose_pod_is_gone_may_use_nothing_and_is_the_next_owners_only_if_no_other_can_be() {
    let pods = [pod("a", &["10.244.1.2"])];
    let before = fresh(&[veth(3, &["10.244.1.2"])], &pods);
    let gone = bound(&[veth(3, &["10.244.1.2"])], &[], &[], &[], &before);
    assert!(gone.ports[&3].retired && gone.ports[&3].mac.is_none() && gone.ports[&3].addresses.is_empty());
    // Its address has a new owner, with its own interface.
    let next = [pod("next", &["10.244.1.2"])];
    let after = bound(&[veth(3, &["10.244.1.2"]), veth(5, &["10.244.1.2"])], &next, &[], &[], &gone);
    assert_eq!((owner(&after, 3), owner(&after, 5)), (None, Some("next")));
    // The same pod's object is back, as for a static pod whose mirror was deleted.
    let back = bound(&[veth(3, &["10.244.1.2"])], &pods, &[], &[], &gone);
    assert_eq!((owner(&back, 3), back.ports[&3].retired), (Some("a"), false));
}

#[test]
fn an_interface_that_was_guarded_stays_so_whatever_becomes_of_its_end() {
    let before = fresh(&[veth(3, &["10.244.1.2"])], &[pod("a", &["10.244.1.2"])]);
    let moved = Veth { netns: 77, addresses: vec![ip("10.244.1.9")], is_read: false, ..veth(3, &[]) };
    let after = bound(std::slice::from_ref(&moved), &[pod("a", &["10.244.1.2"])], &[], &[], &before);
    assert_eq!((owner(&after, 3), &*after.ports[&3].addresses), (Some("a"), &[ip("10.244.1.2")][..]));
    let unread = bound(
        &[Veth { index: 4, ..moved }, veth(3, &["10.244.1.2"])],
        &[pod("a", &["10.244.1.2"])],
        &[],
        &[],
        &before,
    );
    assert!(unread.ports[&4].addresses.is_empty() && unread.ports[&4].mac.is_none());
}

#[test]
fn two_interfaces_with_the_address_of_one_pod_are_both_closed_while_nothing_tells_them_apart() {
    let bindings = fresh(
        &[veth(3, &["10.244.1.2"]), veth(4, &["10.244.1.2"]), veth(5, &["10.244.1.5"])],
        &[pod("a", &["10.244.1.2"]), pod("c", &["10.244.1.5"])],
    );
    assert_eq!(bindings.unbound.get(&ObjectKey::new("shop", "a")), Some(&Unbound::Ambiguous));
    // Guarded, since they are on the bridge of a pod; and the address belongs to a pod, so neither may use it.
    assert!(bindings.ports[&3].addresses.is_empty() && bindings.ports[&4].addresses.is_empty());
}

#[test]
fn the_interface_of_a_pod_that_is_gone_is_not_taken_because_two_others_are_ambiguous() {
    let gone = fresh(&[veth(3, &["10.244.1.2"])], &[pod("gone", &["10.244.1.2"])]);
    let veths = [3, 4, 5].map(|index| veth(index, &["10.244.1.2"]));
    let next = bound(&veths, &[pod("next", &["10.244.1.2"])], &[], &[], &gone);
    assert_eq!([3, 4, 5].map(|index| owner(&next, index)), [None; 3]);
    assert!(next.ports[&3].retired);
    assert_eq!(next.unbound.get(&ObjectKey::new("shop", "next")), Some(&Unbound::Ambiguous));
}

#[test]
fn a_pod_that_is_bound_is_not_listed_as_ambiguous_too() {
    // No interface has exactly the addresses of either pod. Once b has its interface, only one is left for a.
    let veths = [veth(3, &["10.244.1.2", "10.244.1.8"]), veth(4, &["10.244.1.2", "10.244.1.3"])];
    let pods = [pod("a", &["10.244.1.2"]), pod("b", &["10.244.1.3"])];
    let first = fresh(&veths, &pods);
    assert_eq!((owner(&first, 3), owner(&first, 4)), (None, Some("b")));
    let second = bound(&veths, &pods, &[], &[], &first);
    assert_eq!((owner(&second, 3), owner(&second, 4)), (Some("a"), Some("b")));
    assert!(second.unbound.is_empty());
}

#[test]
fn two_pods_that_report_one_address_are_both_bound() {
    let veths = [veth(3, &["10.244.1.2"]), veth(4, &["10.244.1.2"])];
    let bindings = fresh(&veths, &[pod("a", &["10.244.1.2"]), pod("b", &["10.244.1.2"])]);
    let owners: BTreeSet<_> = [3, 4].into_iter().filter_map(|index| owner(&bindings, index)).collect();
    assert_eq!(owners, BTreeSet::from(["a", "b"]));
}

#[test]
fn an_unknown_port_of_a_bridge_of_pods_may_use_the_addresses_that_nobody_owns() {
    let veths = [
        veth(3, &["10.244.1.2"]),
        veth(4, &["10.244.1.7", "10.244.2.2", "10.244.1.1", "10.244.1.2", "fe80::1", "fe80::4"]),
    ];
    let bindings = bound(
        &veths,
        &[pod("a", &["10.244.1.2"])],
        &["10.244.2.2"],
        &["10.244.1.1", "fe80::1"],
        &Bindings::default(),
    );
    let port = &bindings.ports[&4];
    assert_eq!((port.pod.as_ref(), &*port.addresses), (None, &[ip("10.244.1.7")][..]));
    assert!(port.link_local.contains(&"fe80::4".parse().unwrap()));
    assert!(!port.link_local.contains(&"fe80::1".parse().unwrap()));
}

#[test]
fn interfaces_on_bridges_without_pods_are_left_alone() {
    let docker = Veth { bridge: Some(9), ..veth(7, &["172.17.0.2"]) };
    let uplink = Veth { bridge: None, ..veth(8, &["192.0.2.1"]) };
    let bindings = fresh(&[veth(3, &["10.244.1.2"]), docker, uplink], &[pod("a", &["10.244.1.2"])]);
    assert_eq!(bindings.ports.keys().copied().collect::<Vec<_>>(), [3]);
}

#[test]
fn a_second_interface_of_a_pod_is_guarded_on_whichever_bridge() {
    let second = Veth { bridge: Some(9), netns: 3, ..veth(7, &["172.20.0.2", "10.244.1.5"]) };
    let veths = [veth(3, &["10.244.1.2"]), second];
    let bindings = bound(&veths, &[pod("a", &["10.244.1.2"])], &["10.244.1.5"], &[], &Bindings::default());
    assert_eq!(bindings.ports[&7].addresses, [ip("172.20.0.2")]);
}

#[test]
fn a_link_with_a_route_to_the_address_behind_it_is_guarded_before_its_pod_is_known() {
    let routed = vec![ip("10.244.1.8")];
    let ptp = Veth { bridge: None, routed, ..veth(6, &["10.244.1.8"]) };
    let bindings = fresh(&[ptp], &[]);
    assert_eq!(bindings.ports[&6].addresses, [ip("10.244.1.8")]);
}

#[test]
fn the_first_interface_of_a_nodes_pods_is_guarded_by_the_block_of_its_address() {
    let (all_pods, host) = (&Members::default(), &BTreeSet::new());
    let pod_cidrs = &["10.244.1.0/24".parse().unwrap()];
    let known = Known { pods: &[], all_pods, nodes: all_pods, pod_cidrs, host };
    let veths = [veth(3, &["10.244.1.2"]), Veth { bridge: Some(9), ..veth(4, &["10.244.2.2"]) }];
    let bindings = bind(&veths, &known, &Bindings::default());
    assert_eq!(bindings.ports.keys().copied().collect::<Vec<_>>(), [3]);
}

#[test]
fn of_two_interfaces_with_one_hardware_address_the_one_that_was_bound_first_keeps_it() {
    let pods = [pod("a", &["10.244.1.2"]), pod("b", &["10.244.1.3"])];
    let before = fresh(&[veth(4, &["10.244.1.3"])], &pods[1..]);
    let thief = Veth { mac: Mac([2, 0, 0, 0, 0, 4]), ..veth(3, &["10.244.1.2"]) };
    let bindings = bound(&[thief, veth(4, &["10.244.1.3"])], &pods, &[], &[], &before);
    assert_eq!(bindings.ports[&4].mac, Some(Mac([2, 0, 0, 0, 0, 4])));
    assert_eq!(bindings.ports[&3].mac, None);
}

#[test]
fn who_lost_a_hardware_address_to_another_does_not_take_it_in_the_next_round() {
    let pods = [pod("a", &["10.244.1.2"]), pod("b", &["10.244.1.3"])];
    let first = veth(5, &["10.244.1.3"]);
    let before = fresh(std::slice::from_ref(&first), &pods);
    let veths = [Veth { mac: first.mac, ..veth(4, &["10.244.1.2"]) }, first];
    let after = bound(&veths, &pods, &[], &[], &before);
    assert_eq!((owner(&after, 4), owner(&after, 5)), (Some("a"), Some("b")));
    assert_eq!([4, 5].map(|index| after.ports[&index].mac), [None, Some(veths[1].mac)]);
    assert_eq!(bound(&veths, &pods, &[], &[], &after), after);
}

#[test]
fn a_port_that_comes_to_a_bridge_while_the_last_pod_of_it_goes_is_guarded() {
    let there = veth(3, &["10.244.1.2"]);
    let before = fresh(std::slice::from_ref(&there), &[pod("a", &["10.244.1.2"])]);
    let after = bound(&[there, veth(4, &[])], &[], &[], &[], &before);
    assert!(after.ports.contains_key(&4));
}

#[test]
fn a_difference_of_two_guards_names_only_what_differs() {
    let deny = Program::of_policies(Direction::Egress, [], &Pod::new(ObjectKey::new("shop", "b")));
    let pods =
        [pod("a", &["10.244.1.2"]), LocalPod { egress: Some(Arc::new(deny)), ..pod("b", &["10.244.1.3"]) }];
    let one = Guard::new(&fresh(&[veth(3, &["10.244.1.2"])], &pods[..1]));
    let two = Guard::new(&fresh(&[veth(3, &["10.244.1.2"]), veth(4, &["10.244.1.3"])], &pods));
    assert_eq!(one.difference(&one), "");
    let text = two.difference(&one);
    assert!(text.lines().all(|line| line.starts_with("add element bridge towpath ")), "{text}");
    assert!(text.contains("sources4 { 4 . 02:00:00:00:00:04 . 10.244.1.3 }"), "{text}");
    assert!(text.contains("egress-isolated { 4 }"), "{text}");
    assert!(one.difference(&two).lines().all(|line| line.starts_with("delete element bridge towpath ")));
}

#[test]
fn a_link_of_its_own_has_a_chain_as_long_as_it_is_there() {
    let ptp = Veth { bridge: None, ..veth(6, &["10.244.1.8"]) };
    let some = Guard::new(&fresh(&[ptp], &[pod("a", &["10.244.1.8"])]));
    let none = Guard::new(&Bindings::default());
    let text = some.difference(&none);
    assert!(text.contains("hook ingress device \"veth6\" priority -300; policy drop;"), "{text}");
    // The elements of the sets exist before the chain that looks them up.
    assert!(text.find("add element").unwrap() < text.find("add chain").unwrap());
    assert!(none.difference(&some).contains("delete chain netdev towpath ingress-6"));
}

#[test]
fn tables_with_other_checks_are_not_taken_over() {
    assert_eq!(Guard::read("", "", &BTreeMap::new()), None);
    assert_eq!(
        Guard::read("table bridge towpath {\n\tchain layout-x {\n\t}\n}\n", "", &BTreeMap::new()),
        None
    );
}

#[test]
fn nothing_is_written_that_an_older_nft_crashes_at() {
    let ptp = Veth { bridge: None, ..veth(6, &["10.244.1.8"]) };
    let text = Guard::new(&fresh(&[ptp], &[pod("a", &["10.244.1.8"])])).whole();
    let sets = text.lines().filter_map(|line| line.strip_prefix("set ")?.split_once("{ type "));
    let kinds: Vec<&str> = sets.filter_map(|(_, rest)| rest.split(';').next()).collect();
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| kind.contains(" . ")), "{kinds:?}");
    assert!(!text.contains(" vmap "), "{text}");
}

#[test]
fn on_a_link_of_its_own_nothing_passes_because_a_set_is_empty() {
    let text = Guard::default().whole();
    let (bridge, netdev) = text.split_once("table netdev towpath {").unwrap();
    assert!(bridge.contains("iif != @guarded accept"), "{bridge}");
    assert!(!netdev.contains("!= @guarded accept"), "{netdev}");
}

#[test]
fn an_interface_that_a_former_process_had_closed_stays_so_until_a_pod_is_behind_it() {
    let before = fresh(
        &[veth(3, &["10.244.1.2"]), veth(4, &["10.244.1.3"])],
        &[pod("a", &["10.244.1.2"]), pod("b", &["10.244.1.3"])],
    );
    let veths = [veth(3, &["10.244.1.2"]), veth(4, &["10.244.1.3"])];
    let after = bound(&veths, &[pod("b", &["10.244.1.3"])], &[], &[], &before);
    let closed = Guard::new(&after).closed();
    assert_eq!(closed, BTreeSet::from([3]));
    let next = bound(&veths, &[pod("b", &["10.244.1.3"])], &[], &[], &Bindings::retired(closed));
    assert_eq!((&next.ports[&3].mac, next.ports[&3].addresses.len()), (&None, 0));
    assert_eq!(owner(&next, 4), Some("b"));
}

#[test]
fn a_listing_that_ends_early_lacks_rules() {
    let both = trial("some");
    let (bridge, netdev) = both.split_once("table netdev ").unwrap();
    assert!(has_all_rules("bridge", bridge) && has_all_rules("netdev", netdev));
    let last = netdev.trim_end().trim_end_matches(['}', '\n']).rfind('\n').unwrap();
    let early = format!("{}\n}}\n}}\n", &netdev[..last]);
    assert!(!has_all_rules("netdev", &early), "{early}");
}
