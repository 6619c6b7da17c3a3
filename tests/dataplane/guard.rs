//! The interface guard: what is read from interfaces, and the tables that are written.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::Duration,
};

use towpath::{
    dataplane::{
        command::Commands,
        kernel::{
            guard::{GuardTables, PreviousGuard, follow, remove},
            links::{self, Link, Links},
        },
    },
    lab::Netns,
    model::ObjectKey,
    policy::{
        members::{Member, Members},
        resolve::LocalPod,
    },
    ruleset::guard::{Bindings, KnownAddresses, Mac, Veth, bind, render::Guard},
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
                sandbox: None,
            }
        })
        .collect();
    let (nodes, host) = (&Members::default(), &BTreeSet::new());
    let known = KnownAddresses { pods: &pods, all_pods: &all_pods, nodes, pod_cidrs: &[], host };
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

/// Repeats `act` until `notified` has received something: what follows changes may not listen yet.
#[track_caller]
fn repeat_until_reported(notified: &Receiver<()>, act: impl Fn()) {
    let reported = (0..200).any(|_| {
        act();
        notified.recv_timeout(Duration::from_millis(100)).is_ok()
    });
    assert!(reported, "nothing was reported");
}

#[test]
fn deleted_veth_is_no_error_and_host_addresses_are_read() {
    in_namespace(|| {
        let _a = pod("vetha", "02:00:00:00:00:0a", None, &["10.244.1.2/32"]);
        sh("ip link set lo up && ip addr add 192.0.2.1/32 dev lo && ip addr add 10.244.1.1/32 dev vetha");
        let mut links = Links::open().unwrap();
        let host = links.host_addresses().unwrap();
        assert!([ip("192.0.2.1"), ip("10.244.1.1")].iter().all(|address| host.contains(address)), "{host:?}");
        assert!(!host.contains(&ip("10.244.1.2")));
        let all = links.all().unwrap();
        let veth = all.iter().find(|link| link.name == "vetha").unwrap().clone();
        links.probe(&all).unwrap();
        assert!(links.veth(&veth).unwrap().is_some());
        sh("ip link del vetha");
        assert_eq!(links.veth(&veth).unwrap(), None);
        let elsewhere = Link { peer: Some((2, 77)), ..veth };
        assert_eq!(links.veth(&elsewhere).unwrap(), None, "no namespace has this number");
        assert!(links.probe(&[elsewhere]).is_err());
    });
}

#[test]
fn veth_has_only_the_addresses_of_its_own_peer() {
    in_namespace(|| {
        let a = pod("vetha", "02:00:00:00:00:0a", None, &["10.244.1.2/32"]);
        let path = a.path();
        sh(&format!("ip link add vethb type veth peer name eth1 netns {path}"));
        a.ip(&["link set eth1 up".to_owned(), "addr add 10.9.0.1/24 dev eth1".to_owned()]).unwrap();
        let mut links = Links::open().unwrap();
        let (veths, _) = read(&mut links);
        let behind = |name: &str| {
            let veth = veths.iter().find(|veth| veth.name == name).unwrap();
            veth.addresses.iter().filter(|address| address.is_ipv4()).copied().collect::<Vec<_>>()
        };
        assert_eq!(behind("vetha"), [ip("10.244.1.2")]);
        assert_eq!(behind("vethb"), [ip("10.9.0.1")]);
    });
}

#[test]
fn tunnels_are_read_with_their_ports_and_remote_ends() {
    in_namespace(|| {
        sh("ip link add known type vxlan id 1 dstport 8472 nolearning local 192.0.2.1");
        sh("ip link add learning type vxlan id 2 dstport 4789 local 192.0.2.1");
        sh("bridge fdb append 00:00:00:00:00:00 dev known dst 192.0.2.7");
        let mut links = Links::open().unwrap();
        let all = links.all().unwrap();
        let tunnels = links.tunnels(&all).unwrap();
        assert_eq!(tunnels.vxlan, BTreeSet::from([8472]));
        assert_eq!(tunnels.others, BTreeSet::from([4789]));
        assert_eq!(tunnels.ends, BTreeSet::from([ip("192.0.2.7")]));
        assert!(tunnels.protocols.is_empty());
        // On a port that one of two interfaces shares with any host, no sender is known.
        sh("ip link add shared type vxlan id 3 dstport 4789 nolearning local 192.0.2.1");
        let all = links.all().unwrap();
        assert_eq!(links.tunnels(&all).unwrap().vxlan, BTreeSet::from([8472]));
        // A tunnel without ports counts while it is up.
        let link = Link { kind: "gre".to_owned(), ..all[0].clone() };
        let protocols =
            |links: &mut Links, up| links.tunnels(&[Link { up, ..link.clone() }]).unwrap().protocols;
        assert_eq!(protocols(&mut links, true), BTreeSet::from([47]));
        assert!(protocols(&mut links, false).is_empty());
    });
}

#[test]
fn link_changes_are_reported_until_the_receiver_is_gone() {
    in_namespace(|| {
        let (sender, reports) = channel();
        let count = AtomicUsize::new(0);
        let follow = move || {
            links::follow(&|| {
                sender.send(()).unwrap();
                count.fetch_add(1, Ordering::Relaxed) == 0
            })
        };
        let thread = thread::spawn(follow);
        let turn = || drop(sh("ip link set lo up && ip link set lo down"));
        repeat_until_reported(&reports, turn);
        repeat_until_reported(&reports, turn);
        thread.join().unwrap().unwrap();
        assert!(reports.recv().is_err(), "it ended after the second time");
    });
}

#[test]
fn only_changes_by_other_programs_are_reported() {
    in_namespace(|| {
        let mut tables = GuardTables::new(Arc::new(Commands::default())).unwrap();
        tables.apply(&Guard::default()).unwrap();
        let (changes, (sender, reports)) = (tables.changes(), channel());
        let enough = Arc::new(AtomicBool::new(false));
        let is_enough = enough.clone();
        let notify = move || {
            // Before the report: the main thread sets it when it has received one.
            let goes_on = !is_enough.load(Ordering::Relaxed);
            sender.send(()).is_ok() && goes_on
        };
        let thread = thread::spawn(move || follow(&changes, &notify));
        // Adding what is there already would be no change.
        let turn = "nft add counter bridge towpath strange && nft delete counter bridge towpath strange";
        repeat_until_reported(&reports, || drop(sh(turn)));
        while reports.recv_timeout(Duration::from_secs(1)).is_ok() {}
        // Its own writes, and tables of others. Reports come in the order of the changes.
        tables.distrust();
        tables.apply(&Guard::default()).unwrap();
        sh("nft add table bridge other && nft add table ip towpath && nft add chain bridge other towpath");
        sh("nft add counter netdev towpath strange");
        reports.recv_timeout(Duration::from_secs(20)).unwrap();
        enough.store(true, Ordering::Relaxed);
        sh("nft add counter bridge towpath stranger");
        thread.join().unwrap().unwrap();
        assert_eq!(reports.iter().count(), 1, "the last change, and nothing before it");
    });
}

#[test]
fn nft_that_refuses_the_tables_is_noticed_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/false", folder.path().join("nft")).unwrap();
    let tables = GuardTables::new(Arc::new(Commands::new(folder.path().into()))).unwrap();
    assert!(tables.probe().is_err());
}

#[test]
fn next_process_reads_the_bindings_and_closed_interfaces() {
    in_namespace(|| {
        let commands = Arc::new(Commands::default());
        sh("ip link add br0 type bridge && ip link set br0 up");
        let _a = pod("vetha", "02:00:00:00:00:0a", Some("br0"), &["10.244.1.2/24", "fd00::2/64"]);
        let _b = pod("vethb", "02:00:00:00:00:0b", Some("br0"), &["10.244.1.3/24"]);
        let mut links = Links::open().unwrap();
        let (veths, interfaces) = read(&mut links);
        let mut tables = GuardTables::new(commands.clone()).unwrap();
        assert_eq!(tables.take_over(&interfaces).unwrap(), PreviousGuard::default());
        tables.apply(&guard(&veths, &[("a", &["10.244.1.2", "fd00::2"]), ("b", &["10.244.1.3"])])).unwrap();
        let previous = GuardTables::new(commands.clone()).unwrap().take_over(&interfaces).unwrap();
        let a = &previous.bindings["vetha"];
        assert_eq!(a.mac, Mac([2, 0, 0, 0, 0, 10]));
        assert!([ip("10.244.1.2"), ip("fd00::2")].iter().all(|address| a.addresses.contains(address)));
        assert!(
            previous.closed.is_empty() && previous.bindings["vethb"].addresses.contains(&ip("10.244.1.3"))
        );

        let b = interfaces["vethb"];
        let mut closed = veths.iter().filter(|veth| veth.index == b).cloned().collect::<Vec<_>>();
        closed[0].addresses.clear();
        let (nodes, host, none) = (&Members::default(), &BTreeSet::new(), &Members::default());
        let known = KnownAddresses { pods: &[], all_pods: none, nodes, pod_cidrs: &[], host };
        let bindings = bind(&closed, &known, &Bindings::retired([b]));
        tables.apply(&Guard::new(&bindings)).unwrap();
        let taken_over = || {
            let mut next = GuardTables::new(commands.clone()).unwrap();
            let found = next.take_over(&interfaces).unwrap();
            assert_eq!(found.closed, BTreeSet::from([b]));
            next
        };
        assert!(!taken_over().apply(&Guard::new(&bindings)).unwrap(), "nothing to write");
        // As another version might have it.
        sh("nft 'delete chain bridge towpath forward; add chain bridge towpath newer'");
        sh("nft 'add table inet towpath; add map bridge towpath later { type iface_index : verdict; }'");
        let mut next = taken_over();
        assert!(next.apply(&Guard::new(&bindings)).unwrap());
        assert_eq!(sh("nft list tables"), "table bridge towpath\ntable netdev towpath\n");
        assert!(!sh("nft list table bridge towpath").contains("newer"));
    });
}

#[test]
fn cleanup_removes_the_tables_of_any_version() {
    in_namespace(|| {
        for family in ["bridge", "netdev", "inet", "ip"] {
            sh(&format!("nft add table {family} towpath && nft add table {family} other"));
        }
        sh("nft add table bridge towpath-trial");
        let commands = Commands::default();
        assert_eq!(remove(&commands).unwrap(), 5);
        assert!(!sh("nft list tables").contains("towpath"));
        assert_eq!(sh("nft list tables | wc -l").trim(), "4");
        assert_eq!(remove(&commands).unwrap(), 0);
    });
}

#[test]
fn dropped_frames_are_counted_by_their_reason() {
    in_namespace(|| {
        let commands = Arc::new(Commands::default());
        sh("ip link add br0 type bridge && ip link set br0 up");
        let a = pod("vetha", "02:00:00:00:00:0a", Some("br0"), &["10.244.1.2/24"]);
        let mut links = Links::open().unwrap();
        let (veths, _) = read(&mut links);
        let mut tables = GuardTables::new(commands).unwrap();
        tables.apply(&guard(&veths, &[("a", &["10.244.1.2"])])).unwrap();
        assert_eq!(tables.drops().unwrap()["claim"], 0);
        // It asks for a neighbour with an address that is not its own.
        a.ip(&["addr add 10.9.9.9/24 dev eth0".to_owned()]).unwrap();
        let ask = || {
            let socket = UdpSocket::bind("10.9.9.9:0").unwrap();
            socket.send_to(b"x", "10.9.9.1:9").unwrap();
        };
        for _ in 0..200 {
            a.run(ask).unwrap();
            if tables.drops().unwrap()["claim"] > 0 {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("{:?}", tables.drops());
    });
}
