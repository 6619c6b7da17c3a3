//! The lab against the real kernel: open where nothing filters, and able to detect every kind of deny.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails shall fail")]

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::{Duration, Instant},
};

use towpath::{
    lab::{
        DEFAULT_TIMEOUT, End, Families, FlannelRules, FloodFlow, Lab, LabOptions, Outcome, PodId, PodSpec,
        Probe, Pulse, RefusalKind, Topology, Transport, Variant,
    },
    model::{Family, Protocol},
};

#[path = "support/root.rs"]
mod root;

use root::has_root;

const PORTS: [(Protocol, u16); 3] = [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Sctp, 9999)];
const TRANSPORTS: [Transport; 4] =
    [Transport::Tcp(80), Transport::Udp(53), Transport::Sctp(9999), Transport::Icmp];
const ALL_SILENT: [Outcome; 4] = [Outcome::Silent; 4];
const ALL_OPEN: [Outcome; 4] = [Outcome::Open; 4];

fn options(topology: Topology, families: Families, nodes: usize) -> LabOptions {
    LabOptions { topology, families, nodes, flannel_rules: None }
}

fn every_lab() -> impl Iterator<Item = (Topology, Families)> {
    Topology::ALL.into_iter().flat_map(|topology| Families::ALL.map(|families| (topology, families)))
}

/// Every transport to every address of every pod but the sender's own, from every pod and the external host.
fn all_probes(lab: &Lab) -> Vec<Probe> {
    let senders: Vec<End> = lab.pods().map(|(id, _)| End::Pod(id)).chain([End::External]).collect();
    let mut probes = Vec::new();
    for from in senders {
        for (_, pod) in lab.pods().filter(|(id, _)| End::Pod(*id) != from) {
            for to in pod.addresses() {
                probes.extend(TRANSPORTS.map(|transport| Probe::new(from, *to, transport)));
            }
        }
    }
    probes
}

fn assert_open(lab: &Lab, probes: &[Probe], what: &str) {
    let replies = lab.ask_all(probes, DEFAULT_TIMEOUT).unwrap();
    assert_eq!(replies.len(), probes.len());
    for (probe, reply) in probes.iter().zip(replies) {
        assert_eq!(reply.outcome, Outcome::Open, "{what}: {probe:?}");
        if probe.transport != Transport::Icmp {
            let owner = lab.owner(probe.to).unwrap().name().to_owned();
            assert_eq!(reply.answered_by, Some(owner), "{what}: {probe:?}");
        }
    }
}

fn ask(lab: &Lab, from: impl Into<End>, to: IpAddr) -> [Outcome; 4] {
    let from = from.into();
    let outcomes = lab.probe_all(&TRANSPORTS.map(|it| Probe::new(from, to, it)), DEFAULT_TIMEOUT).unwrap();
    outcomes.try_into().unwrap()
}

fn address(lab: &Lab, pod: PodId, family: Family) -> IpAddr {
    lab.pod(pod).unwrap().address(family).unwrap()
}

#[test]
fn all_pods_are_reachable_from_pods_and_outside_without_rules() {
    if !has_root() {
        return;
    }
    for (topology, families) in every_lab() {
        let start = Instant::now();
        let mut lab = Lab::new(options(topology, families, 2)).unwrap();
        let specs =
            ["a", "b", "c", "d"].map(|name| PodSpec::new(name, usize::from(name > "b")).listening(&PORTS));
        lab.add_pods(&specs).unwrap();
        let built = start.elapsed();
        let start = Instant::now();
        assert_open(&lab, &all_probes(&lab), &format!("{topology:?} {families:?}"));
        println!("{topology:?} {families:?}: built in {built:?}, probed in {:?}", start.elapsed());
    }
}

/// Two pods on node 0 and one on node 1, in a lab with bridged packets filtered as towpath needs it.
fn three_pods(options: LabOptions) -> (Lab, [PodId; 3]) {
    let mut lab = Lab::new(options).unwrap();
    let specs = [("a", 0), ("b", 0), ("c", 1)].map(|(name, node)| PodSpec::new(name, node).listening(&PORTS));
    let pods = lab.add_pods(&specs).unwrap();
    if options.topology.has_bridge() {
        (0..2).for_each(|node| lab.set_bridge_nf_call(node, true).unwrap());
    }
    (lab, pods.try_into().unwrap())
}

/// Drops every flow to one address in FORWARD; replies to flows that the address started still pass.
fn drop_to(lab: &Lab, node: usize, variant: Variant, to: IpAddr) {
    let mut command = Command::new(variant.program(Family::of(to), ""));
    command.args(["-w", "-I", "FORWARD", "-d", &to.to_string()]);
    command.args(["-m", "conntrack", "--ctdir", "ORIGINAL", "-j", "DROP"]);
    assert!(lab.node(node).unwrap().run(command, "").unwrap().status.success());
}

#[test]
fn dropped_flow_is_silent_and_other_flows_are_open() {
    if !has_root() {
        return;
    }
    for (topology, variant) in
        Topology::ALL.into_iter().flat_map(|it| Variant::BOTH.map(|variant| (it, variant)))
    {
        let (lab, [a, b, c]) = three_pods(options(topology, Families::Dual, 2));
        for family in Family::BOTH {
            let to = address(&lab, b, family);
            drop_to(&lab, 0, variant, to);
            let what = format!("{topology:?} {variant:?} {family}");
            assert_eq!(ask(&lab, a, to), ALL_SILENT, "same node, {what}");
            assert_eq!(ask(&lab, c, to), ALL_SILENT, "from the other node, {what}");
            assert_eq!(ask(&lab, End::External, to), ALL_SILENT, "from outside, {what}");
            assert_eq!(ask(&lab, End::Node(0), to), ALL_OPEN, "from its own node, {what}");
            assert_eq!(ask(&lab, b, address(&lab, a, family)), ALL_OPEN, "the other direction, {what}");
            assert_eq!(ask(&lab, b, address(&lab, c, family)), ALL_OPEN, "to the other node, {what}");
        }
    }
}

#[test]
fn drop_rules_apply_to_bridged_packets_only_with_br_netfilter() {
    if !has_root() {
        return;
    }
    let (lab, [a, b, _]) = three_pods(options(Topology::Bridge, Families::Dual, 2));
    for family in Family::BOTH {
        let to = address(&lab, b, family);
        drop_to(&lab, 0, Variant::Nft, to);
        lab.set_bridge_nf_call(0, false).unwrap();
        assert_eq!(ask(&lab, a, to), ALL_OPEN, "{family}");
        lab.set_bridge_nf_call(0, true).unwrap();
        assert_eq!(ask(&lab, a, to), ALL_SILENT, "{family}");
    }
}

#[test]
fn reject_rules_yield_the_matching_refusal() {
    if !has_root() {
        return;
    }
    let (lab, [a, b, c]) = three_pods(options(Topology::Vxlan, Families::Dual, 2));
    for family in Family::BOTH {
        let to = address(&lab, b, family);
        let expect = |with: &str, transports: &[Transport], refusal: RefusalKind| {
            let mut command = Command::new(Variant::Nft.program(family, ""));
            let only = if with == "tcp-reset" { "tcp" } else { "all" };
            command.args(["-w", "-I", "FORWARD", "-p", only, "-d", &to.to_string(), "-j", "REJECT"]);
            command.args(["--reject-with", with]);
            assert!(lab.node(0).unwrap().run(command, "").unwrap().status.success());
            for from in [a, c] {
                let probes: Vec<Probe> = transports.iter().map(|it| Probe::new(from, to, *it)).collect();
                for (probe, outcome) in probes.iter().zip(lab.probe_all(&probes, DEFAULT_TIMEOUT).unwrap()) {
                    assert_eq!(outcome, Outcome::Refused(refusal), "{with} {probe:?}");
                }
            }
        };
        let v4 = family == Family::V4;
        expect(
            if v4 { "icmp-port-unreachable" } else { "icmp6-port-unreachable" },
            &TRANSPORTS,
            RefusalKind::PortUnreachable,
        );
        expect(
            if v4 { "icmp-admin-prohibited" } else { "icmp6-adm-prohibited" },
            &TRANSPORTS,
            RefusalKind::Prohibited,
        );
        expect(
            if v4 { "icmp-host-unreachable" } else { "icmp6-addr-unreachable" },
            &TRANSPORTS,
            RefusalKind::Unreachable,
        );
        expect("tcp-reset", &TRANSPORTS[..1], RefusalKind::Reset);
    }
}

#[test]
fn port_without_listener_is_refused_by_the_pod() {
    if !has_root() {
        return;
    }
    let (lab, [a, b, _]) = three_pods(options(Topology::PointToPoint, Families::Dual, 2));
    for family in Family::BOTH {
        let to = address(&lab, b, family);
        let probes =
            [Transport::Tcp(81), Transport::Udp(54), Transport::Sctp(9998)].map(|it| Probe::new(a, to, it));
        let refused = [RefusalKind::Reset, RefusalKind::PortUnreachable, RefusalKind::Reset]
            .map(Outcome::Refused)
            .to_vec();
        assert_eq!(lab.probe_all(&probes, DEFAULT_TIMEOUT).unwrap(), refused, "{family}");
    }
}

#[test]
fn reused_address_reaches_its_new_owner_immediately() {
    if !has_root() {
        return;
    }
    for (topology, families) in every_lab() {
        let (mut lab, [a, b, c]) = three_pods(options(topology, families, 2));
        let addresses = lab.pod(b).unwrap().addresses().to_vec();
        let senders = [End::Pod(a), End::Pod(c), End::External, End::Node(0)];
        let mut owner = b;
        for generation in 0..3 {
            let name = format!("b{generation}");
            lab.remove_pod(owner).unwrap();
            let mut spec = PodSpec::new(&name, 0).listening(&PORTS);
            spec.addresses.clone_from(&addresses);
            owner = lab.add_pod(spec).unwrap();
            for (from, to) in senders.iter().flat_map(|from| addresses.iter().map(move |to| (*from, *to))) {
                let replies =
                    lab.ask_all(&TRANSPORTS.map(|it| Probe::new(from, to, it)), DEFAULT_TIMEOUT).unwrap();
                for reply in &replies[..3] {
                    assert_eq!(reply.answered_by.as_ref(), Some(&name), "{topology:?} {families:?} {from:?}");
                }
                assert!(replies[3].outcome.is_open());
            }
            assert_open(&lab, &all_probes(&lab), "after a change of owner");
        }
        assert!(lab.pod(b).is_err(), "a removed pod is gone");
        assert!(
            lab.add_pod(PodSpec::new("second-owner", 0).at(addresses[0])).is_err(),
            "an address has one owner"
        );
    }
}

#[test]
fn external_host_is_reachable_at_every_address_and_can_send_from_each() {
    if !has_root() {
        return;
    }
    let outside: [IpAddr; 4] =
        ["172.17.0.10", "172.17.1.10", "10.0.0.10", "2001:db8::10"].map(|it| it.parse().unwrap());
    for variant in Variant::BOTH {
        let rules = FlannelRules::new(variant);
        let (mut lab, [a, _, c]) = three_pods(LabOptions {
            flannel_rules: Some(rules),
            ..options(Topology::Vxlan, Families::Dual, 2)
        });
        lab.add_external_addresses(&outside).unwrap();
        lab.listen(End::External, &PORTS).unwrap();
        for to in outside {
            assert_eq!(ask(&lab, a, to), ALL_OPEN, "{to}");
            assert_eq!(ask(&lab, c, to), ALL_OPEN, "{to}");
            let from = Some(to);
            let pod = address(&lab, c, Family::of(to));
            let probes =
                TRANSPORTS.map(|it| Probe { source_address: from, ..Probe::new(End::External, pod, it) });
            assert_eq!(lab.probe_all(&probes, DEFAULT_TIMEOUT).unwrap(), ALL_OPEN, "from {to}");
            // A rule on the path that drops this source shows that it was used.
            let mut command = Command::new(variant.program(Family::of(to), ""));
            command.args([
                "-w",
                "-I",
                "FORWARD",
                "-s",
                &to.to_string(),
                "-d",
                &pod.to_string(),
                "-j",
                "DROP",
            ]);
            assert!(lab.node(1).unwrap().run(command, "").unwrap().status.success());
            assert_eq!(lab.probe_all(&probes, DEFAULT_TIMEOUT).unwrap(), ALL_SILENT, "from {to}");
            assert_eq!(ask(&lab, End::External, pod), ALL_OPEN, "from its other address");
        }
    }
}

#[test]
fn external_host_sees_the_pods_address_unless_it_is_masqueraded() {
    if !has_root() {
        return;
    }
    for masquerade_external in [false, true] {
        let rules = FlannelRules { masquerade_external, ..FlannelRules::new(Variant::Nft) };
        let (mut lab, [a, ..]) = three_pods(LabOptions {
            flannel_rules: Some(rules),
            ..options(Topology::Vxlan, Families::Dual, 2)
        });
        lab.listen(End::External, &PORTS).unwrap();
        for family in Family::BOTH {
            let own = address(&lab, a, family).to_string();
            let program = Variant::Nft.program(family, "");
            let arguments = ["-w", "-I", "INPUT", "-s", &own, "-j", "DROP"];
            lab.external().netns().succeed(&program, &arguments, "").unwrap();
            let to = lab.external().address(family).unwrap();
            let expected = if masquerade_external { ALL_OPEN } else { ALL_SILENT };
            assert_eq!(ask(&lab, a, to), expected, "{family}, masquerading: {masquerade_external}");
        }
    }
}

#[test]
fn forward_policy_drops_pod_packets_without_the_flannel_rules() {
    if !has_root() {
        return;
    }
    for variant in Variant::BOTH {
        let rules = FlannelRules { masquerade_external: true, ..FlannelRules::new(variant) };
        let (lab, [a, b, _]) = three_pods(LabOptions {
            flannel_rules: Some(rules),
            ..options(Topology::Vxlan, Families::Dual, 2)
        });
        assert_open(&lab, &all_probes(&lab), variant.name());
        for family in Family::BOTH {
            let mut command = Command::new(variant.program(family, ""));
            command.args(["-w", "-F", "FLANNEL-FWD"]);
            assert!(lab.node(0).unwrap().run(command, "").unwrap().status.success());
            assert_eq!(ask(&lab, a, address(&lab, b, family)), ALL_SILENT, "the policy of FORWARD is DROP");
        }
    }
}

#[test]
fn stream_detects_whether_an_established_flow_passes() {
    if !has_root() {
        return;
    }
    let (lab, [a, b, c]) = three_pods(options(Topology::Vxlan, Families::Dual, 2));
    for (from, family) in [a, c].into_iter().flat_map(|from| Family::BOTH.map(|family| (from, family))) {
        let to = address(&lab, b, family);
        let mut stream = lab.open_stream(from, SocketAddr::new(to, 80), DEFAULT_TIMEOUT).unwrap();
        assert_eq!(stream.pulse(DEFAULT_TIMEOUT).unwrap(), Pulse::Through);
        let node = lab.node(0).unwrap();
        let program = Variant::Nft.program(family, "");
        node.succeed(&program, &["-w", "-I", "FORWARD", "-d", &to.to_string(), "-j", "DROP"]).unwrap();
        assert_eq!(stream.pulse(DEFAULT_TIMEOUT).unwrap(), Pulse::Stuck);
        node.succeed(&program, &["-w", "-F", "FORWARD"]).unwrap();
        assert_eq!(stream.pulse(Duration::from_secs(3)).unwrap(), Pulse::Through);
    }
}

#[test]
fn flood_counts_exactly_the_packets_that_pass() {
    if !has_root() {
        return;
    }
    let (lab, [a, b, c]) = three_pods(options(Topology::Vxlan, Families::Dual, 2));
    let flow = |from: PodId, to: PodId, family| FloodFlow {
        from: End::Pod(from),
        to: address(&lab, to, family),
        port: 7000,
    };
    let flows =
        [flow(a, b, Family::V4), flow(a, c, Family::V4), flow(c, b, Family::V6), flow(b, a, Family::V6)];
    drop_to(&lab, 0, Variant::Nft, flows[0].to);
    let flood = lab.flood(&flows, Duration::from_millis(1)).unwrap();
    let until = |flow, sent| {
        let start = Instant::now();
        while flood.sent(flow) < sent {
            assert!(start.elapsed() < Duration::from_secs(10), "flow {flow} sends");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    (0..4).for_each(|flow| until(flow, 200));
    let opened = Instant::now();
    assert!(flood.arrivals().iter().all(|arrival| arrival.flow != 0), "dropped");
    lab.node(0).unwrap().succeed("iptables-nft", &["-w", "-F", "FORWARD"]).unwrap();
    until(0, flood.sent(0) + 100);
    let report = flood.stop();
    for flow in 1..4 {
        assert_eq!(report.lost(flow), 0, "flow {flow} of {:?}", report.sent);
        assert!(report.sent[flow] >= 200);
    }
    assert!(report.arrived(0) >= 90, "{} after the rule was gone", report.arrived(0));
    assert!(report.arrivals.iter().filter(|arrival| arrival.flow == 0).all(|arrival| arrival.at >= opened));
}

#[test]
fn watch_counts_open_probes_and_names_failed_ones() {
    if !has_root() {
        return;
    }
    let (lab, [a, b, c]) = three_pods(options(Topology::Bridge, Families::V4, 2));
    let to = address(&lab, b, Family::V4);
    let probes = [Probe::new(a, to, Transport::Tcp(80)), Probe::new(c, to, Transport::Udp(53))];
    let watch = lab.watch(&probes, Duration::from_millis(5), DEFAULT_TIMEOUT).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(watch.report().failures, []);
    drop_to(&lab, 0, Variant::Nft, to);
    std::thread::sleep(Duration::from_millis(300));
    let report = watch.stop();
    assert!(report.open >= 10, "{report:?}");
    assert_eq!(report.broken, None);
    for probe in probes {
        assert!(report.failures.iter().any(|(_, it, outcome)| *it == probe && *outcome == Outcome::Silent));
    }
}

#[test]
fn matrix_of_dropped_probes_takes_about_one_timeout() {
    if !has_root() {
        return;
    }
    let start = Instant::now();
    let mut lab = Lab::new(options(Topology::Vxlan, Families::Dual, 2)).unwrap();
    let specs: Vec<PodSpec> =
        (0..20).map(|at| PodSpec::new(format!("pod-{at}"), at % 2).listening(&PORTS)).collect();
    lab.add_pods(&specs).unwrap();
    let built = start.elapsed();
    let probes = all_probes(&lab);
    assert_eq!(probes.len(), (20 * 19 + 20) * 2 * 4);
    let start = Instant::now();
    assert_open(&lab, &probes, "twenty pods");
    let all_open = start.elapsed();
    for node in 0..2 {
        for family in Family::BOTH {
            let program = Variant::Nft.program(family, "");
            lab.node(node).unwrap().succeed(&program, &["-w", "-P", "FORWARD", "DROP"]).unwrap();
        }
    }
    let start = Instant::now();
    let outcomes = lab.probe_all(&probes, DEFAULT_TIMEOUT).unwrap();
    let all_silent = start.elapsed();
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Silent));
    println!("{} probes: built in {built:?}, open {all_open:?}, silent {all_silent:?}", probes.len());
    assert!(built < Duration::from_secs(4), "{built:?}");
    assert!(all_silent < Duration::from_secs(3), "{all_silent:?}");
}

#[test]
fn repeated_probes_are_always_new_flows() {
    if !has_root() {
        return;
    }
    let (lab, [a, b, _]) = three_pods(options(Topology::Bridge, Families::V4, 2));
    let to = address(&lab, b, Family::V4);
    for transport in TRANSPORTS {
        // The rule below lets established flows pass, and drops new ones.
        let all_open: Vec<Probe> = vec![Probe::new(a, to, transport); 500];
        assert!(
            lab.probe_all(&all_open, DEFAULT_TIMEOUT).unwrap().iter().all(|it| it.is_open()),
            "{transport}"
        );
    }
    let node = lab.node(0).unwrap();
    let ours = ["-w", "-I", "FORWARD", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"];
    node.succeed("iptables-nft", &ours).unwrap();
    for transport in TRANSPORTS {
        let probes = vec![Probe::new(a, to, transport); 500];
        let outcomes = lab.probe_all(&probes, DEFAULT_TIMEOUT).unwrap();
        assert!(outcomes.iter().all(|it| *it == Outcome::Silent), "{transport}");
    }
}

#[test]
fn dropped_lab_leaves_nothing_behind() {
    if !has_root() {
        return;
    }
    let visible = || -> Vec<String> {
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        vec![
            run("ip", &["netns"]),
            run("ip", &["-br", "link"]),
            run("ip", &["route", "show", "table", "all"]),
        ]
    };
    let before = visible();
    let (lab, _) = three_pods(options(Topology::Vxlan, Families::Dual, 2));
    let mut sleeper = Command::new("sleep");
    sleeper.arg("1000");
    let process = lab.node(0).unwrap().spawn(sleeper).unwrap();
    let entry = format!("/proc/{}", process.id());
    assert_eq!(
        std::fs::read_link(format!("{entry}/ns/net")).unwrap(),
        lab.node(0).unwrap().netns().run(|| std::fs::read_link("/proc/thread-self/ns/net")).unwrap().unwrap(),
        "a process of a node lives in its namespace"
    );
    assert_ne!(
        std::fs::read_link(format!("{entry}/ns/net")).unwrap(),
        std::fs::read_link("/proc/thread-self/ns/net").unwrap(),
        "not in that of the machine"
    );
    assert_eq!(visible(), before, "a running lab is not visible on the machine");
    drop(process);
    drop(lab);
    assert!(!std::path::Path::new(&entry).exists(), "processes end");
    assert_eq!(visible(), before);
}
