//! The interface guard: what is read from interfaces, and the tables that are written.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use towpath::{
    dataplane::{
        command::Commands,
        kernel::{
            guard::{GuardTables, remove},
            links::Links,
        },
    },
    lab::Netns,
    model::ObjectKey,
    policy::{
        members::{Member, Members},
        resolve::LocalPod,
    },
    ruleset::guard::{Bindings, Known, Mac, Veth, bind, render::Guard},
};

use crate::fixtures::{in_namespace, sh};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A network namespace behind a veth of this thread's namespace; with a bridge it is a port of that.
fn pod(veth: &str, mac: &str, bridge: Option<&str>, addresses: &[&str]) -> Netns {
    let netns = Netns::new(veth).unwrap();
    let path = netns.path();
    sh(&format!(
        "ip link add {veth} type veth peer name eth0 address {mac} netns {path} && ip link set {veth} up"
    ));
    if let Some(bridge) = bridge {
        sh(&format!("ip link set {veth} master {bridge}"));
    }
    let mut lines = vec!["link set eth0 up".to_owned()];
    lines.extend(addresses.iter().map(|address| format!("addr add {address} dev eth0 nodad")));
    netns.ip(&lines).unwrap();
    netns
}

fn read(links: &mut Links) -> (Vec<Veth>, BTreeMap<String, u32>) {
    let all = links.all().unwrap();
    let routes = links.host_routes().unwrap();
    let veths = all.iter().filter_map(|link| {
        let own = routes.get(&link.index).cloned().unwrap_or_default();
        links.veth(link).unwrap().map(|veth| Veth { routed: own, ..veth })
    });
    (veths.collect(), all.iter().map(|link| (link.name.clone(), link.index)).collect())
}

fn guard(veths: &[Veth], pods: &[(&str, &[&str])]) -> Guard {
    let mut all_pods = Members::default();
    let pods: Vec<LocalPod> = pods
        .iter()
        .map(|(name, addresses)| {
            let addresses: Vec<IpAddr> = addresses.iter().map(|address| ip(address)).collect();
            for address in &addresses {
                let set = if address.is_ipv4() { &mut all_pods.v4 } else { &mut all_pods.v6 };
                set.insert(Member::Address(*address));
            }
            LocalPod {
                key: ObjectKey::new("shop", *name),
                addresses,
                shared: Vec::new(),
                ingress: None,
                egress: None,
                policies: [].into(),
            }
        })
        .collect();
    let (nodes, host) = (&Members::default(), &BTreeSet::new());
    let known = Known { pods: &pods, all_pods: &all_pods, nodes, pod_cidrs: &[], host };
    Guard::new(&bind(veths, &known, &Bindings::default()))
}

#[test]
fn peer_of_a_veth_is_read_without_entering_its_namespace() {
    in_namespace(|| {
        sh("ip link add br0 type bridge && ip link set br0 up");
        let _a = pod("vetha", "02:00:00:00:00:0a", Some("br0"), &["10.244.1.2/24", "fd00::2/64"]);
        let _b = pod("vethb", "02:00:00:00:00:0b", None, &["10.244.1.3/32"]);
        sh("ip route add 10.244.1.3/32 dev vethb");
        // A pair within this namespace belongs to no pod.
        sh("ip link add here type veth peer name there");
        let mut links = Links::open().unwrap();
        let (veths, index) = read(&mut links);
        let [a, b] = &veths[..] else { panic!("{veths:?}") };
        assert_eq!((&*a.name, a.mac, a.bridge), ("vetha", Mac([2, 0, 0, 0, 0, 10]), Some(index["br0"])));
        assert!([ip("10.244.1.2"), ip("fd00::2")].iter().all(|address| a.addresses.contains(address)));
        assert_eq!((&*b.name, b.bridge, &*b.routed), ("vethb", None, &[ip("10.244.1.3")][..]));
        assert_ne!(a.netns, b.netns);
    });
}

#[test]
fn guard_tables_are_updated_by_differences_taken_over_and_removed() {
    in_namespace(|| {
        let commands = Arc::new(Commands::default());
        sh("ip link add br0 type bridge && ip link set br0 up");
        let _a = pod("vetha", "02:00:00:00:00:0a", Some("br0"), &["10.244.1.2/24", "fd00::2/64"]);
        let _b = pod("vethb", "02:00:00:00:00:0b", None, &["10.244.1.3/32"]);
        let mut links = Links::open().unwrap();
        let (veths, _) = read(&mut links);
        let pods: [(&str, &[&str]); 2] = [("a", &["10.244.1.2", "fd00::2"]), ("b", &["10.244.1.3"])];
        let two = guard(&veths, &pods);
        let mut tables = GuardTables::new(commands.clone()).unwrap();
        tables.probe().unwrap();
        assert!(sh("nft list tables").is_empty(), "a probe writes nothing");
        assert!(tables.apply(&two).unwrap() && !tables.apply(&two).unwrap());
        let (_, interfaces) = read(&mut links);
        assert!(tables.check(&interfaces).unwrap() && tables.check(&interfaces).unwrap());

        let mut next = GuardTables::new(commands.clone()).unwrap();
        next.take_over(&interfaces).unwrap();
        assert!(!next.apply(&two).unwrap(), "the next process has nothing to change");

        let _c = pod("vethc", "02:00:00:00:00:0c", Some("br0"), &["10.244.1.4/24"]);
        sh("ip link del vethb");
        let (veths, interfaces) = read(&mut links);
        let other = guard(&veths, &[("a", &["10.244.1.2"]), ("c", &["10.244.1.4"])]);
        assert!(next.apply(&other).unwrap());
        let mut third = GuardTables::new(commands.clone()).unwrap();
        third.take_over(&interfaces).unwrap();
        assert!(!third.apply(&other).unwrap(), "{}", sh("nft list ruleset"));

        assert!(third.check(&interfaces).unwrap());
        let rule = "iif @guarded counter name frame drop";
        let handle = "$(nft -a list chain bridge towpath from-arp | sed -n 's/.*@guarded .*claim.*handle //p' | tail -1)";
        for change in [
            "delete element bridge towpath guarded '{ vethc }'".to_owned(),
            "flush chain bridge towpath from-ip6".to_owned(),
            "delete table netdev towpath".to_owned(),
            "insert rule bridge towpath prerouting accept".to_owned(),
            format!("replace rule bridge towpath from-arp handle {handle} {rule}"),
        ] {
            sh(&format!("nft {change}"));
            assert!(!third.check(&interfaces).unwrap(), "{change}");
            third.distrust();
            assert!(third.apply(&other).unwrap() && third.check(&interfaces).unwrap(), "{change}");
        }

        sh("nft add table bridge other && nft add table netdev towpath2");
        assert_eq!((remove(&commands).unwrap(), remove(&commands).unwrap()), (2, 0));
        assert_eq!(sh("nft list tables"), "table bridge other\ntable netdev towpath2\n");
    });
}
