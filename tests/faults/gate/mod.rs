//! New pods pass the gate: attached by real CNI plugins in network namespaces, with the real daemon and packets that
//! flow from before a pod has its address.

mod pods;

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use pods::{PodObject, Stage};
use serde_json::json;
use towpath::{
    dataplane::kernel::conntrack::{Conntrack, ConntrackEntry},
    lab::{Topology, Variant},
    model::Family,
};

use crate::{
    cni::NewPod,
    env::number,
    testbed::{for_both_variants, with_own_run},
    traffic::{Sender, Sink},
    wait::wait_until,
    yaml_objects,
};

/// How long it may take to send some packets, on a busy machine.
const SENT: Duration = Duration::from_secs(10);

/// Ports of datagrams that no policy allows, and that one allows.
const DENIED: u16 = 4000;
const ALLOWED: u16 = 5000;

/// How long something may take that is not a matter of time here.
const SOON: Duration = Duration::from_secs(10);

/// Senders to a pod that no policy allows.
const STRANGERS: [&str; 2] = ["shop/server", "far/peer"];

/// Starts one pod while strangers send to it and it sends to them, from before it has an address. Returns how long the
/// gate took.
fn start_one(stage: &Stage<'_>, name: &str, object: PodObject, address: usize) -> Duration {
    let pod = NewPod::new(stage.bed.node(), name, address);
    let [denied, allowed] = [DENIED, ALLOWED].map(|port| Sink::open(&pod.netns, port));
    let sinks = STRANGERS
        .map(|stranger| Sink::open(stage.netns(stranger), DENIED + 1 + u16::try_from(address).unwrap()));
    let mut senders = Vec::new();
    for family in Family::BOTH {
        for stranger in STRANGERS {
            senders.push(Sender::start(stage.netns(stranger), pod.address(family), DENIED));
            let back = stage.bed.address(stranger, family);
            senders.push(Sender::start(&pod.netns, back, DENIED + 1 + u16::try_from(address).unwrap()));
        }
    }
    if object == PodObject::Before {
        stage.write_pod(&pod);
    }
    let late = (object == PodObject::After).then(|| stage.write_pod_after(&pod, Duration::from_millis(300)));
    let begin = Instant::now();
    let result = stage.network.add(stage.bed.node().netns(), &pod.container, &pod.addresses);
    let took = begin.elapsed();
    let result = result.unwrap();
    late.map(thread::JoinHandle::join);
    for family in Family::BOTH {
        assert!(result.to_string().contains(&format!("\"{}/", pod.address(family))), "{result}");
    }
    // What is allowed passes at once.
    for family in Family::BOTH {
        let friend = stage.netns("far/friend").run({
            let to = (pod.address(family), ALLOWED);
            move || {
                std::net::UdpSocket::bind(if to.0.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?
                    .send_to(b"hello", to)
            }
        });
        friend.unwrap().unwrap();
    }
    wait_until("what is allowed to arrive", SOON, || allowed.arrived() >= 2);
    thread::sleep(Duration::from_millis(50));
    let sent: Vec<u64> = senders.into_iter().map(Sender::stop).collect();
    assert!(sent.iter().all(|sent| *sent > 20), "{name}: {sent:?}");
    assert_eq!(denied.arrived(), 0, "{name}: strangers reached the new pod");
    assert_eq!(sinks.iter().map(Sink::arrived).sum::<u64>(), 0, "{name}: the new pod reached strangers");
    stage.network.del(stage.bed.node().netns(), &pod.container).unwrap();
    stage.remove_pod(&pod);
    took
}

fn start_pods(variant: Variant, topology: Topology) {
    let count: usize = number("TOWPATH_STARTS", 12);
    let stage = Stage::new(variant, topology);
    let daemon = stage.run();
    let mut took = Vec::new();
    for at in 0..count {
        let object = if at % 4 == 3 { PodObject::After } else { PodObject::Before };
        let duration = start_one(&stage, &format!("shop/new-{at}"), object, 40 + at % 100);
        if object == PodObject::Before {
            took.push(duration);
        }
    }
    took.sort();
    println!(
        "{}, {topology:?}: {count} starts, {:?} in the median, {:?} at most",
        variant.name(),
        took[took.len() / 2],
        took[took.len() - 1]
    );
    assert!(daemon.metric("towpath_attachments") < 0.5);
}

#[test]
fn no_packet_reaches_or_leaves_a_new_pod_before_its_rules_on_a_bridge() {
    for_both_variants(|variant| start_pods(variant, Topology::Bridge));
}

#[test]
fn no_packet_reaches_or_leaves_a_new_pod_before_its_rules_on_ptp_links() {
    with_own_run(|| start_pods(Variant::Nft, Topology::PointToPoint));
}

#[test]
fn pod_whose_object_was_deleted_is_policed_until_its_sandbox_is_gone() {
    for_both_variants(|variant| {
        let count: usize = number("TOWPATH_FORCED", 4);
        let stage = Stage::new(variant, Topology::Bridge);
        let mut daemon = Some(stage.run());
        for at in 0..count {
            let pod = NewPod::new(stage.bed.node(), "shop/forced", 40 + at);
            stage.write_pod(&pod);
            stage.network.add(stage.bed.node().netns(), &pod.container, &pod.addresses).unwrap();
            let denied = Sink::open(&pod.netns, DENIED);
            let senders: Vec<Sender> = Family::BOTH
                .map(|family| Sender::start(stage.netns("far/peer"), pod.address(family), DENIED))
                .into();
            let peer = Sink::open(stage.netns("far/peer"), DENIED);
            let back: Vec<Sender> = Family::BOTH
                .map(|family| Sender::start(&pod.netns, stage.bed.address("far/peer", family), DENIED))
                .into();
            stage.remove_pod(&pod);
            if at % 2 == 1 {
                // A new process knows of the pod only what the former one recorded.
                daemon.take().unwrap().kill();
                daemon = Some(stage.run());
            }
            let status = || daemon.as_ref().unwrap().get("/status").unwrap().1;
            let key = format!("shop/forced@{}", pod.container.uid);
            wait_until("the pod without an object", SOON, || status().contains(&key));
            thread::sleep(Duration::from_millis(200));
            let sent: Vec<u64> = senders.into_iter().chain(back).map(Sender::stop).collect();
            assert!(sent.iter().all(|sent| *sent > 50), "{sent:?}");
            assert_eq!((denied.arrived(), peer.arrived()), (0, 0));
            stage.network.del(stage.bed.node().netns(), &pod.container).unwrap();
            assert!(!status().contains(&key));
        }
    });
}

#[test]
fn pod_that_was_never_heard_of_starts_closed_and_opens_when_its_object_arrives() {
    with_own_run(|| {
        let stage = Stage::new(Variant::Nft, Topology::Bridge);
        let _daemon = stage.run();
        // No policy selects a pod of this namespace.
        let pod = NewPod::new(stage.bed.node(), "free/late", 40);
        stage.network.add(stage.bed.node().netns(), &pod.container, &pod.addresses).unwrap();
        let sink = Sink::open(&pod.netns, DENIED);
        let sender = Sender::start(stage.netns("far/peer"), pod.address(Family::V4), DENIED);
        thread::sleep(Duration::from_millis(300));
        assert!(sender.sent() > 50);
        assert_eq!(sink.arrived(), 0, "nothing is known of it");
        stage.write_pod(&pod);
        wait_until("packets to arrive", SOON, || sink.arrived() > 0);
    });
}

#[test]
fn new_pod_waits_for_a_daemon_that_is_away() {
    for_both_variants(|variant| {
        let stage = Stage::new(variant, Topology::Bridge);
        let pod = NewPod::new(stage.bed.node(), "shop/early", 40);
        stage.write_pod(&pod);
        let node = stage.bed.node().netns();
        let impatient = stage.network_with(json!({ "timeoutSeconds": 1 }));
        let error = impatient.add(node, &pod.container, &pod.addresses).unwrap_err();
        assert!(error.contains("\"code\":11") || error.contains("\"code\": 11"), "{error}");
        impatient.del(node, &pod.container).unwrap();
        let open = stage.network_with(json!({ "whenAway": "open" }));
        open.add(node, &pod.container, &pod.addresses).unwrap();
        open.del(node, &pod.container).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| stage.network.add(node, &pod.container, &pod.addresses));
            thread::sleep(Duration::from_millis(500));
            assert!(!waiting.is_finished());
            let daemon = stage.run();
            waiting.join().unwrap().unwrap();
            assert!((daemon.metric("towpath_attachments") - 1.0).abs() < 0.5);
        });
    });
}

/// What was tracked of an address's former owner is gone before the address has its next one.
#[test]
fn connections_of_an_address_are_forgotten_before_its_next_owner_has_it() {
    with_own_run(|| {
        let stage = Stage::new(Variant::Nft, Topology::Bridge);
        let _daemon = stage.run();
        let node = stage.bed.node().netns();
        let tracked = |address: IpAddr| {
            let count = move || {
                let mut count = 0;
                let of_address =
                    |entry: ConntrackEntry| count += usize::from(entry.original.destination == address);
                Conntrack::open().unwrap().each(of_address).unwrap();
                count
            };
            node.run(count).unwrap()
        };
        let first = NewPod::new(stage.bed.node(), "free/first", 40);
        stage.write_pod(&first);
        stage.network.add(node, &first.container, &first.addresses).unwrap();
        let sink = Sink::open(&first.netns, DENIED);
        let senders =
            Family::BOTH.map(|family| Sender::start(stage.netns("far/peer"), first.address(family), DENIED));
        wait_until("datagrams", SOON, || sink.arrived() > 20);
        for sender in senders {
            sender.stop();
        }
        for family in Family::BOTH {
            assert!(tracked(first.address(family)) > 0, "{family}");
        }
        stage.network.del(node, &first.container).unwrap();
        for family in Family::BOTH {
            assert_eq!(tracked(first.address(family)), 0, "{family}");
        }
    });
}

/// Sends what is always allowed to a pod that was there before: none of it may be lost.
struct Always<'a> {
    sink: Sink,
    senders: Vec<Sender>,
    stage: &'a Stage<'a>,
    pod: NewPod,
}

impl<'a> Always<'a> {
    fn start(stage: &'a Stage<'a>) -> Self {
        let pod = NewPod::new(stage.bed.node(), "shop/always", 30);
        stage.write_pod(&pod);
        stage.network.add(stage.bed.node().netns(), &pod.container, &pod.addresses).unwrap();
        let sink = Sink::open(&pod.netns, ALLOWED);
        let senders = Family::BOTH
            .map(|family| Sender::start(stage.netns("far/friend"), pod.address(family), ALLOWED))
            .into();
        Self { sink, senders, stage, pod }
    }

    fn stop(self) -> u64 {
        let sent = self.senders.into_iter().map(Sender::stop).sum::<u64>();
        // On a busy machine the last ones wait in the socket for their reader.
        let deadline = Instant::now() + SENT;
        while self.sink.arrived() < sent && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.sink.arrived(), sent, "allowed packets were lost");
        self.stage.network.del(self.stage.bed.node().netns(), &self.pod.container).unwrap();
        sent
    }
}

#[test]
fn pods_start_closed_while_the_daemon_is_killed_again_and_again() {
    for_both_variants(|variant| {
        let count: usize = number("TOWPATH_KILLS", 8);
        let stage = Stage::new(variant, Topology::Bridge);
        let first = stage.run();
        let always = Always::start(&stage);
        let last = thread::scope(|scope| {
            let mut daemon = first;
            let starts = scope.spawn(|| {
                let mut starts = 0;
                for at in 0..count {
                    start_one(&stage, &format!("shop/killed-{at}"), PodObject::Before, 40 + at % 100);
                    starts += 1;
                }
                starts
            });
            let mut kills = 0;
            while kills < count || !starts.is_finished() {
                thread::sleep(Duration::from_millis(fastrand::u64(50..1500)));
                // On a busy machine a start may take longer than this; some must get through.
                if kills % 3 == 2 {
                    daemon.wait_ready();
                }
                daemon.kill();
                daemon = stage.start();
                kills += 1;
            }
            daemon.wait_ready();
            println!("{}: {kills} kills, {} starts", variant.name(), starts.join().unwrap());
            daemon
        });
        println!("{} allowed datagrams, all arrived", always.stop());
        drop(last);
    });
}

/// After a restart of the node nothing is left: no rule, no set, no table, no record, no interface of a pod.
fn empty(stage: &Stage<'_>) {
    let node = stage.bed.node();
    let script = "for i in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do $i -F; $i -X; done; \
                  ipset destroy; nft flush ruleset";
    node.succeed("sh", &["-c", script]).unwrap();
    for folder in ["attachments", "gate.sock"] {
        let path = stage.bed.folder().join("run").join(folder);
        let _ = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
    }
}

#[test]
fn no_packet_reaches_a_process_of_a_pod_that_starts_after_the_node_and_before_the_daemon() {
    for_both_variants(|variant| {
        let count: usize = number("TOWPATH_REBOOTS", 3);
        let stage = Stage::new(variant, Topology::Bridge);
        for at in 0..count {
            stage.run().kill();
            empty(&stage);
            let pod = NewPod::new(stage.bed.node(), &format!("shop/boot-{at}"), 40 + at);
            stage.write_pod(&pod);
            let strangers =
                STRANGERS.map(|from| Sender::start(stage.netns(from), pod.address(Family::V4), DENIED));
            let peer = Sink::open(stage.netns("far/peer"), DENIED);
            let (sink, back, daemon) = thread::scope(|scope| {
                let start = scope.spawn(|| {
                    stage.network.add(stage.bed.node().netns(), &pod.container, &pod.addresses).unwrap();
                    // Now the first process starts.
                    let to = stage.bed.address("far/peer", Family::V4);
                    (Sink::open(&pod.netns, DENIED), Sender::start(&pod.netns, to, DENIED))
                });
                thread::sleep(Duration::from_millis(fastrand::u64(100..1500)));
                assert!(!start.is_finished(), "it waits for the daemon");
                let daemon = stage.start();
                let (sink, back) = start.join().unwrap();
                (sink, back, daemon)
            });
            thread::sleep(Duration::from_millis(200));
            wait_until("enough packets in both directions", SENT, || {
                back.sent() > 50 && strangers.iter().all(|sender| sender.sent() > 50)
            });
            back.stop();
            for sender in strangers {
                sender.stop();
            }
            assert_eq!((sink.arrived(), peer.arrived()), (0, 0));
            stage.network.del(stage.bed.node().netns(), &pod.container).unwrap();
            stage.remove_pod(&pod);
            drop(daemon);
        }
        println!("{}: {count} restarts of the node", variant.name());
    });
}

#[test]
fn policy_is_enforced_although_the_plugin_cannot_be_answered() {
    with_own_run(|| {
        let stage = Stage::new(Variant::Nft, Topology::Bridge);
        // A folder stands where the socket belongs.
        std::fs::create_dir_all(stage.bed.folder().join("run/gate.sock/in-the-way")).unwrap();
        let daemon = stage.start();
        let why = || daemon.get("/readyz").is_some_and(|(code, text)| code == 503 && text.contains("gate"));
        wait_until("the reason", SOON, why);
        stage.bed.wait_until_reachable("far/peer", "shop/server", true, SOON);
        let spec = "podSelector: {matchLabels: {app: server}}, ingress: []";
        stage.bed.write("server.yaml", &[yaml_objects::policy("shop/server", spec)]);
        stage.bed.wait_until_reachable("far/peer", "shop/server", false, SOON);
    });
}
