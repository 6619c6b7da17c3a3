//! The drop log: each dropped packet is told with its pods and the reason, whoever tries to hide it.

use std::{
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use towpath::{
    drops::{Page, Record},
    lab::Transport,
    model::Family,
};

use crate::{
    conditions::{bed, db_admits},
    http,
    testbed::{Bed, Daemon, for_both_variants},
    wait::wait_until,
    yaml_objects::{namespace, policy},
};

/// How long a record may take on a busy machine.
const TOLD: Duration = Duration::from_secs(10);

impl Daemon<'_> {
    /// What `/drops` answers.
    fn drops(&self, query: &str) -> Page {
        let (status, body) = self.get(&format!("/drops{query}")).unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Waits for a record of this kind and returns it.
    #[track_caller]
    fn told(&self, what: &str, is_it: impl Fn(&Record) -> bool) -> Record {
        let mut found = None;
        wait_until(what, TOLD, || {
            found = self.drops("").records.into_iter().find(&is_it);
            found.is_some()
        });
        found.unwrap()
    }

    /// Waits until the kernel's copies are read.
    #[track_caller]
    fn wait_until_it_records(&self) {
        wait_until("recording", TOLD, || self.drops("").off.is_none());
    }
}

impl Bed {
    /// The output and the exit status of `towpath` on the first node.
    fn towpath(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_towpath"));
        command.args(arguments);
        let output = self.node().run(command, "").unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Sends datagrams from a pod to changing ports of an address until the flood is dropped.
    fn flood(&self, from: &str, to: IpAddr) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let netns = self.lab.pod(self.pod(from)).unwrap().netns();
        let work = move || {
            let mut socket = None;
            for port in (1024..u16::MAX).cycle() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                if port % 16 == 0 {
                    // Another source port.
                    socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).ok();
                }
                if let Some(socket) = &socket {
                    let _ = socket.send_to(b"x", SocketAddr::new(to, port));
                }
            }
        };
        Flood { stop, thread: Some(netns.start_thread("flood", work).unwrap()) }
    }
}

struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn is_between(record: &Record, from: &str, to: &str) -> bool {
    record.from.pod.as_deref() == Some(from) && record.to.pod.as_deref() == Some(to)
}

fn is_of(record: &Record, family: Family) -> bool {
    let address: IpAddr = record.from.address.as_deref().unwrap().parse().unwrap();
    Family::of(address) == family
}

#[test]
fn denied_connection_is_told_with_its_pods_policy_and_reason_in_both_families() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let daemon = bed.run(&[]);
        daemon.wait_until_it_records();
        assert_eq!(bed.reaches("shop/far", "shop/db"), [false; 2]);
        assert_eq!(bed.reaches("shop/web", "shop/db"), [true; 2]);
        for family in Family::BOTH {
            let record = daemon.told("a record", |record| {
                is_between(record, "shop/far", "shop/db") && is_of(record, family)
            });
            assert_eq!((record.protocol.as_deref(), record.port), (Some("TCP"), Some(80)));
            assert_eq!((record.kind.as_str(), record.direction.as_deref()), ("policy", Some("ingress")));
            assert_eq!(record.policies, ["shop/db"]);
            assert_eq!((record.node.as_str(), record.from.node.as_deref()), ("n1", Some("n2")));
            assert!(record.reason.starts_with("denied by ingress of shop/db: "), "{}", record.reason);
        }
        let page = daemon.drops("");
        assert!(page.records.iter().all(|record| !is_between(record, "shop/web", "shop/db")), "{page:?}");
        // The same for people, and in the log.
        let (status, text, _) = bed.towpath(&["drops", "--pod", "shop/far"]);
        assert_eq!(status, Some(0));
        let line = text.lines().next().unwrap();
        assert!(line.contains("  shop/far -> shop/db:80/TCP  denied by ingress of shop/db: "), "{text}");
        assert_eq!(bed.towpath(&["drops", "--namespace", "blog"]).1, "");
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains("denied packet")).unwrap_or_else(|| panic!("{log}"));
        assert!(line.contains("shop/far -> shop/db:80/TCP") && line.contains("shop/db"), "{line}");
        assert!(daemon.metric("towpath_drop_copies_total{direction=\"ingress\",kind=\"policy\"}") >= 2.0);
    });
}

#[test]
fn repeated_packets_are_one_record_with_a_count() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let daemon = bed.run(&[]);
        daemon.wait_until_it_records();
        for _ in 0..4 {
            bed.reaches("shop/far", "shop/db");
        }
        // Each connection comes from another port.
        let of_v4 = |page: Page| -> Vec<Record> {
            let is_it =
                |record: &Record| is_between(record, "shop/far", "shop/db") && is_of(record, Family::V4);
            page.records.into_iter().filter(is_it).collect()
        };
        wait_until("a count", TOLD, || {
            of_v4(daemon.drops("")).first().is_some_and(|record| record.count >= 4)
        });
        let records = of_v4(daemon.drops(""));
        assert_eq!(records.len(), 1, "{records:?}");
        assert!(records[0].first < records[0].last, "{records:?}");
        let (_, text, _) = bed.towpath(&["drops"]);
        assert!(text.contains("  (x"), "{text}");
    });
}

#[test]
fn egress_to_an_address_outside_is_told() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        bed.write(
            "out.yaml",
            &[policy("shop/no-egress", "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]")],
        );
        let daemon = bed.run(&[]);
        daemon.wait_until_it_records();
        for family in Family::BOTH {
            let outside = bed.lab.external().address(family).unwrap();
            bed.probe(bed.end("shop/web"), outside, Transport::Udp(53));
            let record = daemon.told("egress", |record| {
                record.to.address == Some(outside.to_string())
                    && record.from.pod.as_deref() == Some("shop/web")
            });
            assert_eq!((record.protocol.as_deref(), record.port), (Some("UDP"), Some(53)));
            assert_eq!(record.policies, ["shop/no-egress"]);
            assert!(record.reason.starts_with("denied by egress of shop/web: "), "{}", record.reason);
            assert_eq!(record.to.pod, None);
        }
    });
}

#[test]
fn packets_of_unknown_pods_are_told_as_such() {
    for_both_variants(|variant| {
        let bed = Bed::new(variant, &[("shop/web", 0), ("shop/late", 0)]);
        bed.write("objects.yaml", &[namespace("shop", ""), bed.manifest("shop/web", "app: web")]);
        let blocks = Family::BOTH.map(|family| bed.node().pod_cidr(family).to_string()).join(",");
        let daemon = bed.run(&["--unknown-local-pods", "closed", "--pod-cidr", &blocks]);
        daemon.wait_until_it_records();
        assert_eq!(bed.reaches("shop/web", "shop/late"), [false; 2]);
        for family in Family::BOTH {
            let late = bed.address("shop/late", family);
            let record = daemon.told("an unknown pod", |record| record.to.address == Some(late.to_string()));
            assert_eq!((record.kind.as_str(), record.direction.as_deref()), ("unknown-pod", None));
            assert!(record.reason.contains(&late.to_string()), "{}", record.reason);
        }
    });
}

#[test]
fn flood_of_one_pod_does_not_hide_what_happens_to_others() {
    for_both_variants(|variant| {
        let bed = Bed::new(variant, &[("shop/web", 0), ("shop/db", 0), ("evil/flood", 0), ("shop/far", 1)]);
        bed.write("namespaces.yaml", &[namespace("shop", ""), namespace("evil", "")]);
        for pod in ["shop/web", "shop/db", "evil/flood", "shop/far"] {
            let app = pod.split('/').nth(1).unwrap();
            bed.write(&format!("pod-{app}.yaml"), &[bed.manifest(pod, &format!("app: {app}"))]);
        }
        bed.write("db.yaml", &[db_admits("nobody")]);
        let daemon = bed.run(&["--drop-records", "50", "--drop-log", "quiet"]);
        daemon.wait_until_it_records();
        bed.reaches("shop/far", "shop/db");
        daemon.told("before the flood", |record| is_between(record, "shop/far", "shop/db"));
        let floods = Family::BOTH.map(|family| bed.flood("evil/flood", bed.address("shop/db", family)));
        daemon.told("the flood", |record| is_between(record, "evil/flood", "shop/db"));
        thread::sleep(Duration::from_secs(3));
        bed.reaches("shop/web", "shop/db");
        daemon.told("during the flood", |record| is_between(record, "shop/web", "shop/db"));
        let page = daemon.drops("");
        assert!(page.records.len() <= 50, "{}", page.records.len());
        let before = page.records.iter().find(|record| is_between(record, "shop/far", "shop/db"));
        assert!(before.is_some(), "its record was pushed out");
        // What it has beyond its share is counted.
        wait_until("flows that are not told", TOLD * 2, || daemon.drops("").not_told["flows"] > 0);
        drop(floods);
        assert!(daemon.is_ready());
    });
}

#[test]
fn restarted_daemon_goes_on_and_the_one_that_waits_reads_nothing() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let first = bed.run(&[]);
        first.wait_until_it_records();
        bed.reaches("shop/far", "shop/db");
        let last = first.told("a record", |record| is_between(record, "shop/far", "shop/db")).cursor;
        let second = bed.start(&["--listen", "127.0.0.1:9587"]);
        wait_until("the second waits", TOLD, || {
            second.log().contains("starting towpath") && second.get("/drops").is_some()
        });
        assert!(second.drops("").off.is_some());
        assert!(first.drops("").off.is_none());
        first.kill();
        second.wait_ready();
        wait_until("the group is free", TOLD, || second.drops("").off.is_none());
        bed.reaches("shop/far", "shop/db");
        second.told("a record of the second", |record| is_between(record, "shop/far", "shop/db"));
        let after = second.drops(&format!("?since={last}"));
        assert!(!after.records.is_empty() && after.records.iter().all(|record| record.cursor > last));
    });
}

#[test]
fn switched_off_log_says_so_and_a_taken_group_is_named() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        for (arguments, reason) in
            [(["--nflog-group", "0"], "--nflog-group=0"), (["--drop-log", "off"], "--drop-log=off")]
        {
            let daemon = bed.run(&arguments);
            assert_eq!(daemon.drops("").off.as_deref(), Some(reason));
            assert_eq!(bed.reaches("shop/far", "shop/db"), [false; 2]);
            let (status, _, error) = bed.towpath(&["drops"]);
            assert_eq!(status, Some(3));
            assert!(
                error.contains("denied packets are not recorded on n1") && error.contains(reason),
                "{error}"
            );
            assert!(daemon.terminate().success());
        }
        // Another reader has the group; what is enforced does not depend on it.
        let netns = bed.node().netns();
        let taken = netns.run(|| towpath::dataplane::kernel::nflog::Nflog::open(100).unwrap()).unwrap();
        let daemon = bed.run(&[]);
        let is_named = |page: Page| {
            page.off.is_some_and(|off| off.contains("another process reads netlink log group 100"))
        };
        wait_until("the taken group", TOLD, || is_named(daemon.drops("")));
        assert!(daemon.log().contains("another process reads netlink log group 100"), "{}", daemon.log());
        assert_eq!(bed.reaches("shop/far", "shop/db"), [false; 2]);
        drop(taken);
        daemon.wait_until_it_records();
        bed.reaches("shop/far", "shop/db");
        daemon.told("a record", |record| is_between(record, "shop/far", "shop/db"));
    });
}

#[test]
fn tunnel_packets_of_a_pod_are_told_as_such() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let daemon = bed.run(&[]);
        daemon.wait_until_it_records();
        for family in Family::BOTH {
            let outside = bed.lab.external().address(family).unwrap();
            bed.probe(bed.end("shop/web"), outside, Transport::Udp(8472));
            let record =
                daemon.told("a tunnel packet", |record| record.to.address == Some(outside.to_string()));
            assert_eq!((record.kind.as_str(), record.port), ("tunnel", Some(8472)));
            assert_eq!(record.from.pod.as_deref(), Some("shop/web"));
            assert!(record.reason.starts_with("tunnel packet"), "{}", record.reason);
        }
    });
}

#[test]
fn without_the_interface_guard_link_wide_packets_are_told_as_such() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let daemon = bed.run(&["--interface-guard", "off"]);
        daemon.wait_until_it_records();
        let netns = bed.lab.pod(bed.pod("shop/web")).unwrap().netns();
        let send = || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_multicast_ttl_v4(4).unwrap();
            socket.send_to(b"x", "239.1.2.3:5353").unwrap();
        };
        netns.run(send).unwrap();
        let record = daemon.told("multicast", |record| record.to.address.as_deref() == Some("239.1.2.3"));
        assert_eq!(record.kind, "link");
        assert_eq!(record.from.pod.as_deref(), Some("shop/web"));
    });
}

#[test]
fn counts_of_the_kernel_are_shown_for_each_pod_and_namespace() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let daemon = bed.run(&["--drop-pod-metrics", "5"]);
        daemon.wait_until_it_records();
        assert_eq!(bed.reaches("shop/web", "shop/db"), [true; 2]);
        assert_eq!(bed.reaches("shop/far", "shop/db"), [false; 2]);
        let (status, text, error) = bed.towpath(&["status", "--pods", "-o", "json"]);
        assert_eq!(status, Some(0), "{error}");
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        let pods = report["pods"].as_array().unwrap();
        let counters = |name: &str| &pods.iter().find(|pod| pod["pod"] == name).unwrap()["counters"];
        let packets = |counts: &serde_json::Value| counts["packets"].as_u64().unwrap();
        let db = counters("shop/db");
        // At least one first packet in each family was allowed, and one was denied.
        assert!(packets(&db["allowed"]) >= 2 && packets(&db["denied"]) >= 2, "{db}");
        assert_eq!(packets(&db["ingress"]), packets(&db["allowed"]) + packets(&db["denied"]), "{db}");
        assert_eq!(packets(&db["egress"]), 0, "{db}");
        let web = counters("shop/web");
        assert_eq!((packets(&web["ingress"]), packets(&web["denied"])), (0, 0), "{web}");
        let (_, text, _) = bed.towpath(&["status", "--pods"]);
        assert!(text.contains("first packets that policies judged"), "{text}");
        for series in [
            "towpath_namespace_drop_copies_total{direction=\"ingress\",namespace=\"shop\"}",
            "towpath_pod_drop_copies_total{direction=\"ingress\",namespace=\"shop\",pod=\"db\"}",
        ] {
            wait_until(series, TOLD, || {
                let (_, text) = daemon.get("/metrics").unwrap();
                text.lines().any(|line| line.starts_with(series))
            });
            assert!(daemon.metric(series) >= 2.0);
        }
    });
}

#[test]
fn daemon_that_listens_on_another_address_is_reached_over_loopback_and_not_by_pods() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let node = bed.node().addresses()[0];
        let listen = SocketAddr::new(node, 9586).to_string();
        let daemon = bed.run(&["--listen", &listen]);
        daemon.wait_until_it_records();
        bed.reaches("shop/far", "shop/db");
        daemon.told("a record", |record| is_between(record, "shop/far", "shop/db"));
        for address in [listen.as_str(), "127.0.0.1:9586"] {
            let (status, text, error) = bed.towpath(&["drops", "--addr", address]);
            assert_eq!(status, Some(0), "{address}: {error}");
            assert!(text.contains("shop/far -> shop/db"), "{address}: {text}");
        }
        let netns = bed.lab.pod(bed.pod("shop/web")).unwrap().netns();
        let asked = netns.run(move || http::get(TcpStream::connect((node, 9586)), "/drops")).unwrap();
        let (status, body) = asked.unwrap();
        assert_eq!(status, 403, "{body}");
        assert!(!body.contains("shop/"), "{body}");
    });
}
