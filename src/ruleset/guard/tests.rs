use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{
    render::{Guard, closed, has_all_rules, tables, trial},
    *,
};
use crate::{
    model::{Attachment, AttachmentId, Pod, Sandbox, SandboxState},
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
        sandbox: None,
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
    bind(veths, &KnownAddresses { pods, all_pods: &all_pods, nodes, pod_cidrs: &[], host: &host }, before)
}

fn fresh(veths: &[Veth], pods: &[LocalPod]) -> Bindings {
    bound(veths, pods, &[], &[], &Bindings::default())
}

fn owner(bindings: &Bindings, index: u32) -> Option<&str> {
    bindings.ports.get(&index)?.pod.as_ref().map(|pod| &*pod.name)
}

#[test]
fn pod_is_bound_to_the_interface_with_its_addresses() {
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
fn address_that_a_pod_gave_itself_binds_nothing() {
    let genuine = veth(3, &["10.244.1.2"]);
    let forger = veth(4, &["10.244.1.3", "10.244.1.2", "10.244.9.9"]);
    let pods = [pod("genuine", &["10.244.1.2"]), pod("forger", &["10.244.1.3"])];
    for veths in [[genuine.clone(), forger.clone()], [forger.clone(), genuine.clone()]] {
        let bindings = fresh(&veths, &pods);
        assert_eq!((owner(&bindings, 3), owner(&bindings, 4)), (Some("genuine"), Some("forger")));
        assert_eq!(bindings.ports[&4].addresses, [ip("10.244.1.3")]);
    }
}

#[test]
fn changes_after_the_binding_are_ignored() {
    let pods = [pod("a", &["10.244.1.2"]), pod("b", &["10.244.1.3"])];
    let before = fresh(&[veth(3, &["10.244.1.2"]), veth(4, &["10.244.1.3"])], &pods);
    let mut swapped = veth(4, &["10.244.1.2"]);
    swapped.mac = Mac([2, 0, 0, 0, 0, 3]);
    let after = bound(&[veth(3, &["10.244.1.2"]), swapped], &pods, &[], &[], &before);
    assert_eq!(after, before);
}

#[test]
fn interface_of_a_deleted_pod_is_closed_and_reused_only_without_alternative() {
    let pods = [pod("a", &["10.244.1.2"])];
    let before = fresh(&[veth(3, &["10.244.1.2"])], &pods);
    let deleted = bound(&[veth(3, &["10.244.1.2"])], &[], &[], &[], &before);
    assert!(
        deleted.ports[&3].retired
            && deleted.ports[&3].mac.is_none()
            && deleted.ports[&3].addresses.is_empty()
    );
    // Its address has a new owner, with its own interface.
    let next = [pod("next", &["10.244.1.2"])];
    let after = bound(&[veth(3, &["10.244.1.2"]), veth(5, &["10.244.1.2"])], &next, &[], &[], &deleted);
    assert_eq!((owner(&after, 3), owner(&after, 5)), (None, Some("next")));
    // The object of the same pod is created again, as for a static pod whose mirror was deleted.
    let again = bound(&[veth(3, &["10.244.1.2"])], &pods, &[], &[], &deleted);
    assert_eq!((owner(&again, 3), again.ports[&3].retired), (Some("a"), false));
}

#[test]
fn guarded_interface_stays_guarded_if_its_peer_moves() {
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
fn ambiguous_interfaces_of_one_pod_are_both_closed() {
    let bindings = fresh(
        &[veth(3, &["10.244.1.2"]), veth(4, &["10.244.1.2"]), veth(5, &["10.244.1.5"])],
        &[pod("a", &["10.244.1.2"]), pod("c", &["10.244.1.5"])],
    );
    assert_eq!(bindings.unbound.get(&ObjectKey::new("shop", "a")), Some(&Unbound::Ambiguous));
    // Guarded, since they are on the bridge of a pod; and the address belongs to a pod, so neither may use it.
    assert!(bindings.ports[&3].addresses.is_empty() && bindings.ports[&4].addresses.is_empty());
}

#[test]
fn interface_of_a_deleted_pod_is_not_reused_beside_ambiguous_ones() {
    let deleted = fresh(&[veth(3, &["10.244.1.2"])], &[pod("deleted", &["10.244.1.2"])]);
    let veths = [3, 4, 5].map(|index| veth(index, &["10.244.1.2"]));
    let next = bound(&veths, &[pod("next", &["10.244.1.2"])], &[], &[], &deleted);
    assert_eq!([3, 4, 5].map(|index| owner(&next, index)), [None; 3]);
    assert!(next.ports[&3].retired);
    assert_eq!(next.unbound.get(&ObjectKey::new("shop", "next")), Some(&Unbound::Ambiguous));
}

#[test]
fn bound_pod_is_not_listed_as_ambiguous() {
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
fn pods_that_report_the_same_address_are_both_bound() {
    let veths = [veth(3, &["10.244.1.2"]), veth(4, &["10.244.1.2"])];
    let bindings = fresh(&veths, &[pod("a", &["10.244.1.2"]), pod("b", &["10.244.1.2"])]);
    let owners: BTreeSet<_> = [3, 4].into_iter().filter_map(|index| owner(&bindings, index)).collect();
    assert_eq!(owners, BTreeSet::from(["a", "b"]));
}

#[test]
fn unknown_port_on_a_pod_bridge_can_use_unowned_addresses() {
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
fn second_interface_of_a_pod_is_guarded_on_any_bridge() {
    let second = Veth { bridge: Some(9), netns: 3, ..veth(7, &["172.20.0.2", "10.244.1.5"]) };
    let veths = [veth(3, &["10.244.1.2"]), second];
    let bindings = bound(&veths, &[pod("a", &["10.244.1.2"])], &["10.244.1.5"], &[], &Bindings::default());
    assert_eq!(bindings.ports[&7].addresses, [ip("172.20.0.2")]);
}

#[test]
fn routed_link_is_guarded_before_its_pod_is_known() {
    let routed = vec![ip("10.244.1.8")];
    let ptp = Veth { bridge: None, routed, ..veth(6, &["10.244.1.8"]) };
    let bindings = fresh(&[ptp], &[]);
    assert_eq!(bindings.ports[&6].addresses, [ip("10.244.1.8")]);
}

#[test]
fn first_interface_is_guarded_if_its_address_is_in_the_pod_cidr() {
    let (all_pods, host) = (&Members::default(), &BTreeSet::new());
    let pod_cidrs = &["10.244.1.0/24".parse().unwrap()];
    let known = KnownAddresses { pods: &[], all_pods, nodes: all_pods, pod_cidrs, host };
    let veths = [veth(3, &["10.244.1.2"]), Veth { bridge: Some(9), ..veth(4, &["10.244.2.2"]) }];
    let bindings = bind(&veths, &known, &Bindings::default());
    assert_eq!(bindings.ports.keys().copied().collect::<Vec<_>>(), [3]);
}

#[test]
fn first_bound_interface_keeps_a_duplicate_hardware_address() {
    let pods = [pod("a", &["10.244.1.2"]), pod("b", &["10.244.1.3"])];
    let before = fresh(&[veth(4, &["10.244.1.3"])], &pods[1..]);
    let forger = Veth { mac: Mac([2, 0, 0, 0, 0, 4]), ..veth(3, &["10.244.1.2"]) };
    let bindings = bound(&[forger, veth(4, &["10.244.1.3"])], &pods, &[], &[], &before);
    assert_eq!(bindings.ports[&4].mac, Some(Mac([2, 0, 0, 0, 0, 4])));
    assert_eq!(bindings.ports[&3].mac, None);
}

#[test]
fn lost_hardware_address_is_not_taken_back_in_the_next_sync() {
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
fn new_port_is_guarded_while_the_last_pod_of_its_bridge_is_deleted() {
    let existing = veth(3, &["10.244.1.2"]);
    let before = fresh(std::slice::from_ref(&existing), &[pod("a", &["10.244.1.2"])]);
    let after = bound(&[existing, veth(4, &[])], &[], &[], &[], &before);
    assert!(after.ports.contains_key(&4));
}

#[test]
fn difference_of_guards_contains_only_changes() {
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
fn ptp_link_has_a_chain_while_it_exists() {
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
fn tables_with_different_rules_are_not_taken_over() {
    assert_eq!(Guard::read("", "", &BTreeMap::new()), None);
    assert_eq!(
        Guard::read("table bridge towpath {\n\tchain layout-x {\n\t}\n}\n", "", &BTreeMap::new()),
        None
    );
}

#[test]
fn output_avoids_constructs_that_crash_older_nft() {
    let ptp = Veth { bridge: None, ..veth(6, &["10.244.1.8"]) };
    let text = Guard::new(&fresh(&[ptp], &[pod("a", &["10.244.1.8"])])).whole();
    let sets = text.lines().filter_map(|line| line.strip_prefix("set ")?.split_once("{ type "));
    let kinds: Vec<&str> = sets.filter_map(|(_, rest)| rest.split(';').next()).collect();
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| kind.contains(" . ")), "{kinds:?}");
    assert!(!text.contains(" vmap "), "{text}");
}

#[test]
fn ptp_link_with_empty_sets_passes_nothing() {
    let text = Guard::default().whole();
    let (bridge, netdev) = text.split_once("table netdev towpath {").unwrap();
    assert!(bridge.contains("iif != @guarded accept"), "{bridge}");
    assert!(!netdev.contains("!= @guarded accept"), "{netdev}");
}

#[test]
fn interface_closed_by_a_previous_process_stays_closed_until_bound() {
    let before = fresh(
        &[veth(3, &["10.244.1.2"]), veth(4, &["10.244.1.3"])],
        &[pod("a", &["10.244.1.2"]), pod("b", &["10.244.1.3"])],
    );
    let veths = [veth(3, &["10.244.1.2"]), veth(4, &["10.244.1.3"])];
    let after = bound(&veths, &[pod("b", &["10.244.1.3"])], &[], &[], &before);
    let interfaces = BTreeMap::from([("veth4".to_owned(), 4)]);
    let [bridge, _] = printed(&Guard::new(&after).whole(), &interfaces);
    let closed = closed(&bridge, &interfaces);
    assert_eq!(closed, BTreeSet::from([3]));
    let next = bound(&veths, &[pod("b", &["10.244.1.3"])], &[], &[], &Bindings::retired(closed));
    assert_eq!((&next.ports[&3].mac, next.ports[&3].addresses.len()), (&None, 0));
    assert_eq!(owner(&next, 4), Some("b"));
}

#[test]
fn closed_interfaces_are_read_from_the_tables_of_another_version() {
    let interfaces = BTreeMap::from([("vetha".to_owned(), 3), ("vethb".to_owned(), 4)]);
    let other = "table bridge towpath {\n\tmap guarded-by {\n\t\telements = { \"vethb\" : 7 }\n\t}\n\n\
                 \tset guarded {\n\t\ttype iface_index\n\t\tflags timeout\n\t\telements = { \"vetha\" timeout 1h,\n\
                 \t\t\t     \"vethb\", 9 }\n\t}\n\n\
                 \tset frames {\n\t\telements = { \"vethb\" . 02:00:00:00:00:0b counter packets 1 bytes 2 }\n\t}\n\
                 \tchain something-new {\n\t}\n}\n";
    assert_eq!(closed(other, &interfaces), BTreeSet::from([3, 9]));
    assert_eq!(closed("", &interfaces), BTreeSet::new());
}

#[test]
fn tables_of_any_version_are_recognised_by_their_names() {
    let listing = "table ip filter\ntable bridge towpath\ntable inet towpath\ntable netdev towpath-trial\n\
                   table inet towpath-x\ntable ip my-towpath\n";
    let ours = [("bridge", "towpath"), ("inet", "towpath"), ("netdev", "towpath-trial")];
    let ours = ours.map(|(family, name)| (family.to_owned(), name.to_owned()));
    assert_eq!(tables(listing), BTreeSet::from(ours));
}

#[test]
fn truncated_listing_lacks_rules() {
    let both = trial("some");
    let (bridge, netdev) = both.split_once("table netdev ").unwrap();
    assert!(has_all_rules("bridge", bridge) && has_all_rules("netdev", netdev));
    let last = netdev.trim_end().trim_end_matches(['}', '\n']).rfind('\n').unwrap();
    let early = format!("{}\n}}\n}}\n", &netdev[..last]);
    assert!(!has_all_rules("netdev", &early), "{early}");
}

#[test]
fn only_routable_addresses_that_were_read_identify_the_pod() {
    let mut veth = veth(3, &["127.0.0.1", "169.254.1.1", "10.244.1.2", "::1", "fe80::3", "fd00::2"]);
    veth.routed = vec![ip("169.254.1.2"), ip("10.244.1.3")];
    assert_eq!(veth.evidence().collect::<Vec<_>>(), ["10.244.1.2", "fd00::2", "10.244.1.3"].map(ip));
    veth.is_read = false;
    assert_eq!(veth.evidence().count(), 0);
}

#[test]
fn interface_is_isolated_in_the_directions_of_its_pod() {
    let program = || {
        let (tiers, default) = (Vec::new(), crate::policy::program::Action::Deny);
        Some(Arc::new(Program { tiers, default, digest: "x".into() }))
    };
    let pods = [
        LocalPod { ingress: program(), ..pod("a", &["10.244.1.2"]) },
        LocalPod { egress: program(), ..pod("b", &["10.244.1.3"]) },
        pod("c", &["10.244.1.4"]),
    ];
    let veths = [veth(3, &["10.244.1.2"]), veth(4, &["10.244.1.3"]), veth(5, &["10.244.1.4"])];
    let bindings = fresh(&veths, &pods);
    let isolated = |index: u32| Direction::BOTH.map(|direction| bindings.ports[&index].isolated(direction));
    let [ingress, egress] = Direction::BOTH.map(|direction| direction == Direction::Ingress);
    assert_eq!(isolated(3), [ingress, egress]);
    assert_eq!(isolated(4), [!ingress, !egress]);
    assert_eq!(isolated(5), [false, false]);
}

#[test]
fn bridge_chains_run_before_ebtables_and_iptables() {
    let text = Guard::default().whole();
    for hook in ["prerouting", "forward"] {
        assert!(text.contains(&format!("type filter hook {hook} priority -300; policy accept;")), "{text}");
    }
}

/// A guard for two ports of a bridge and a separate link, and its interfaces.
fn three() -> (Guard, BTreeMap<String, u32>) {
    let veths = [
        veth(3, &["10.244.1.2", "fd00::2", "fe80::3"]),
        veth(4, &["10.244.1.3"]),
        Veth { bridge: None, routed: vec![ip("10.244.1.4")], ..veth(6, &["10.244.1.4"]) },
    ];
    let pods = [pod("a", &["10.244.1.2", "fd00::2"]), pod("b", &["10.244.1.3"]), pod("c", &["10.244.1.4"])];
    let interfaces = veths.iter().map(|veth| (veth.name.clone(), veth.index)).collect();
    (Guard::new(&fresh(&veths, &pods)), interfaces)
}

/// The tables of the bridge and netdev families as nft prints them once `text` is written: indented, with the names of
/// interfaces, numbers without leading zeros, and each element of several parts on a line of its own.
fn printed(text: &str, interfaces: &BTreeMap<String, u32>) -> [String; 2] {
    let element = |set: &str, element: &str| {
        let mut parts: Vec<String> = element.split(" . ").map(str::to_owned).collect();
        let name = interfaces.iter().find(|(_, index)| index.to_string() == parts[0]);
        parts[0] = name.map_or(parts[0].clone(), |(name, _)| format!("\"{name}\""));
        if ["macs", "quoted4", "targets6"].contains(&set) {
            let digits = parts[1].trim_start_matches("0x").trim_start_matches('0');
            parts[1] = format!("0x{digits}");
        }
        parts.join(" . ")
    };
    let mut chains: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        if let Some((chain, rest)) =
            line.strip_prefix("add chain netdev towpath ").and_then(|l| l.split_once(" { "))
        {
            chains.insert(chain, vec![format!("\t\t{}\n", rest.trim_end_matches(" }"))]);
        } else if let Some((chain, rule)) =
            line.strip_prefix("add rule netdev towpath ").and_then(|l| l.split_once(' '))
        {
            chains.get_mut(chain).unwrap().push(format!("\t\t{rule}\n"));
        }
    }
    let table = |family: &str, links: String| {
        let start = format!("table {family} towpath {{\n");
        let body = text.split_once(&start).unwrap().1;
        let mut printed = vec![start];
        let mut chain = false;
        for line in body.lines() {
            if let Some((name, rest)) = line.strip_prefix("set ").and_then(|line| line.split_once(" { ")) {
                let (kind, rest) = rest.split_once(';').unwrap();
                printed.push(format!("\tset {name} {{\n\t\t{kind}\n"));
                if let Some(list) = rest.strip_prefix(" elements = { ") {
                    let list = list.trim_end_matches(" }; }").split(", ").map(|one| element(name, one));
                    let between = if kind.contains(" . ") { ",\n\t\t\t     " } else { ", " };
                    let list = list.collect::<Vec<_>>().join(between);
                    printed.push(format!("\t\telements = {{ {list} }}\n"));
                }
                printed.push("\t}\n\n".to_owned());
            } else if !chain && line.starts_with("counter ") {
                printed.push(format!("\t{}\n\t\tpackets 0 bytes 0\n\t}}\n\n", line.trim_end_matches(" }")));
            } else if line.starts_with("chain ") {
                chain = true;
                printed.push(format!("\t{line}\n"));
            } else if line == "}" && !chain {
                break;
            } else if line == "}" {
                chain = false;
                printed.push("\t}\n\n".to_owned());
            } else {
                printed.push(format!("\t\t{line}\n"));
            }
        }
        printed.concat() + &links + "}\n"
    };
    let links = chains.iter().map(|(chain, rules)| format!("\tchain {chain} {{\n{}\t}}\n\n", rules.concat()));
    [table("bridge", String::new()), table("netdev", links.collect())]
}

#[test]
fn printed_guard_is_read_back() {
    let (guard, interfaces) = three();
    let [bridge, netdev] = printed(&guard.whole(), &interfaces);
    assert!(bridge.contains("elements = { \"veth3\" . 0x20000000003,\n"), "{bridge}");
    assert!(netdev.contains("hook ingress device \"veth6\""), "{netdev}");
    assert_eq!(Guard::read(&bridge, &netdev, &interfaces).as_ref(), Some(&guard));
    assert_eq!(Guard::read(&bridge, &netdev, &interfaces).unwrap().difference(&guard), "");
    // The name of an interface that is gone is not known: nft prints its index.
    let left: BTreeMap<String, u32> = interfaces.into_iter().filter(|(name, _)| name != "veth4").collect();
    let [bridge, netdev] = printed(&guard.whole(), &left);
    assert!(bridge.contains("4 . 02:00:00:00:00:04"), "{bridge}");
    assert_eq!(Guard::read(&bridge, &netdev, &left), Some(guard));
    // An interface that is neither a known name nor an index was not written by this version.
    assert_eq!(Guard::read(&bridge.replace("\"veth3\"", "\"else\""), &netdev, &left), None);
}

#[test]
fn tables_that_lack_a_rule_or_a_hook_or_have_a_rule_more_are_not_taken_over() {
    let (guard, interfaces) = three();
    let [bridge, netdev] = printed(&guard.whole(), &interfaces);
    let is_read = |bridge: &str, netdev: &str| Guard::read(bridge, netdev, &interfaces).is_some();
    assert!(is_read(&bridge, &netdev));
    let rule = "\t\tiif . ether saddr . ip saddr @sources4 accept\n";
    for (more, less) in [(rule.repeat(2), rule), (String::new(), rule)] {
        assert!(bridge.contains(less) && netdev.contains(less));
        assert!(!is_read(&bridge.replacen(less, &more, 1), &netdev));
        assert!(!is_read(&bridge, &netdev.replacen(less, &more, 1)));
    }
    for hook in ["prerouting", "forward"] {
        let line = format!("\t\ttype filter hook {hook} priority -300; policy accept;\n");
        assert!(bridge.contains(&line));
        assert!(!is_read(&bridge.replace(&line, ""), &netdev));
        assert!(!is_read(&bridge.replace(&line, "\t\taccept\n"), &netdev), "as many lines, but no hook");
    }
    // The name of one chain says which checks a table has.
    assert!(!is_read(&bridge.replace("chain layout-", "chain layout-x"), &netdev));
    assert!(!is_read(&bridge, &netdev.replace("chain layout-", "chain layout-x")));
}

#[test]
fn hardware_addresses_and_quoted_addresses_are_numbers_as_wide_as_their_field() {
    let text = three().0.whole();
    for element in [
        "macs { typeof iif . @th,208,48; elements = { 3 . 0x020000000003, 4 . 0x020000000004 }; }",
        "quoted4 { typeof iif . @th,192,32; elements = { 3 . 0x0af40102, 4 . 0x0af40103 }; }",
        "3 . 0xfd000000000000000000000000000002",
    ] {
        assert!(text.contains(element), "{text}");
    }
}

#[test]
fn trial_has_the_same_rules_and_no_hook() {
    let text = trial("towpath-trial");
    assert!(!text.contains("hook") && !text.contains("elements"), "{text}");
    let whole = Guard::default().whole().replace("table bridge towpath {", "table bridge towpath-trial {");
    let whole = whole.replace("table netdev towpath {", "table netdev towpath-trial {");
    let (removal, tables) = whole.split_at(whole.find("table bridge towpath-trial {").unwrap());
    assert_eq!(removal, render::removal());
    let rules: Vec<&str> = tables.lines().filter(|line| !line.starts_with("type filter hook ")).collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), rules);
}

#[test]
fn both_tables_are_removed_whether_or_not_they_are_there() {
    assert_eq!(
        render::removal(),
        "table bridge towpath\ndelete table bridge towpath\ntable netdev towpath\ndelete table netdev towpath\n"
    );
}

/// The pod with an attachment that its network plugin reported at this interface.
fn reported(pod: LocalPod, interface: &str, mac: Option<[u8; 6]>) -> LocalPod {
    let attachment = Attachment {
        id: AttachmentId { container: "c".into(), interface: "eth0".into() },
        pod: pod.key.clone(),
        uid: None,
        host_interfaces: vec!["cni0".into(), interface.into()],
        mac,
        addresses: pod.addresses.clone(),
    };
    let sandbox = Sandbox { attachments: vec![attachment], state: SandboxState::Current };
    LocalPod { sandbox: Some(Arc::new(sandbox)), ..pod }
}

#[test]
fn reported_interface_is_bound_whatever_is_behind_it() {
    let mac = [2, 0, 0, 0, 0, 9];
    // Another interface has the address, and the pod's own end was not read yet.
    let unread = Veth { is_read: false, addresses: Vec::new(), ..veth(4, &[]) };
    let veths = [veth(3, &["10.244.1.2"]), unread];
    let bindings = fresh(&veths, &[reported(pod("a", &["10.244.1.2"]), "veth4", Some(mac))]);
    assert_eq!((owner(&bindings, 3), owner(&bindings, 4)), (None, Some("a")));
    let port = &bindings.ports[&4];
    assert_eq!((port.mac, &port.addresses), (Some(Mac(mac)), &vec![ip("10.244.1.2")]));
    assert_eq!(bindings.ports[&3].addresses, [] as [IpAddr; 0], "the address is the pod's");
}

#[test]
fn pod_whose_reported_interface_is_missing_is_bound_to_no_other() {
    let veths = [veth(3, &["10.244.1.2"]), veth(5, &["10.244.1.5"])];
    let bindings =
        fresh(&veths, &[reported(pod("a", &["10.244.1.2"]), "veth4", None), pod("b", &["10.244.1.5"])]);
    assert_eq!((owner(&bindings, 3), owner(&bindings, 5)), (None, Some("b")));
    assert_eq!(bindings.unbound[&ObjectKey::new("shop", "a")], Unbound::NoInterface);
}

#[test]
fn report_replaces_a_binding_by_addresses() {
    let veths = [veth(3, &["10.244.1.2"]), veth(4, &["10.244.1.2"])];
    let before = fresh(&veths[..1], &[pod("a", &["10.244.1.2"])]);
    assert_eq!(owner(&before, 3), Some("a"));
    let after = bound(&veths, &[reported(pod("a", &["10.244.1.2"]), "veth4", None)], &[], &[], &before);
    assert_eq!((owner(&after, 3), owner(&after, 4)), (None, Some("a")));
    assert!(after.ports[&3].retired && after.ports[&3].mac.is_none());
}
