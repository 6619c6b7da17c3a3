//! Changes of our rules and sets by other programs are repaired: how long it takes is printed.

use std::{
    thread,
    time::{Duration, Instant},
};

use towpath::{
    lab::{FloodFlow, Variant},
    model::Family,
};

use crate::{
    our_sets::our_sets,
    testbed::{Bed, for_both_variants},
    wait::wait_until,
    yaml_objects::{namespace, policy},
};

/// How soon a change must be repaired if we are notified of it at once, on a busy machine.
const NOTIFIED: Duration = Duration::from_secs(10);

/// The same for a change that only the periodic check finds, which runs every second.
const FOUND: Duration = Duration::from_secs(5);

fn bed(variant: Variant) -> Bed {
    let bed = Bed::new(variant, &[("shop/web", 0), ("shop/db", 0), ("shop/other", 1)]);
    bed.write("namespaces.yaml", &[namespace("shop", "")]);
    let pods = ["web", "db", "other"].map(|app| bed.manifest(&format!("shop/{app}"), &format!("app: {app}")));
    bed.write("pods.yaml", &pods);
    bed.write(
        "policies.yaml",
        &[policy(
            "shop/db",
            "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress], \
             ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]",
        )],
    );
    bed
}

/// Changes our state and waits until it is as before. `closed`: meanwhile nothing may pass that policy denies.
#[track_caller]
fn assert_repaired(bed: &Bed, what: &str, closed: bool, within: Duration, change: impl FnOnce()) {
    let state = || (bed.our_rules(Family::V4), bed.our_rules(Family::V6), our_sets(bed.node()));
    let before = state();
    let flows: Vec<FloodFlow> = Family::BOTH
        .map(|family| FloodFlow {
            from: bed.end("shop/other"),
            to: bed.address("shop/db", family),
            port: 4000,
        })
        .into();
    let flood = bed.lab.flood(&flows, Duration::from_millis(1)).unwrap();
    thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    change();
    let changed = Instant::now();
    // The change may already be repaired, so only the final state is compared.
    let repaired = wait_until(what, within, || state() == before);
    // Packets that passed before the rules were back have arrived.
    thread::sleep(Duration::from_millis(200));
    let repaired_at = changed + repaired + Duration::from_millis(50);
    let report = flood.stop();
    let last = report.arrivals.iter().map(|arrival| arrival.at).max();
    println!(
        "{:?}: {what}: repaired {:?} after the change; {} of {} datagrams passed, the last {:?} after the change began",
        bed.variant,
        repaired,
        report.arrivals.len(),
        report.sent.iter().sum::<u64>(),
        last.map(|at| at - start),
    );
    assert!(!closed || report.arrivals.is_empty(), "{what}: {} passed", report.arrivals.len());
    assert!(last.is_none_or(|at| at < repaired_at), "{what}: a packet passed after the repair");
    assert_eq!(bed.reaches("shop/other", "shop/db"), [false; 2], "{what}");
}

#[test]
fn changes_of_our_rules_by_other_programs_are_repaired_immediately() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        // The periodic check runs once an hour, so an earlier repair is due to a notification.
        let daemon = bed.run(&["--check-interval", "3600"]);
        let both = |arguments: &str| {
            for family in Family::BOTH {
                bed.iptables(family, arguments);
            }
        };
        let group = |family| {
            let ours = bed.our_rules(family);
            let chain = ours.lines().find_map(|line| line.strip_prefix(":TP-GI-")).unwrap();
            format!("TP-GI-{}", chain.split(' ').next().unwrap())
        };
        thread::sleep(Duration::from_millis(1200));
        assert_repaired(&bed, "iptables -D FORWARD 1", false, NOTIFIED, || both("-D FORWARD 1"));
        assert_repaired(&bed, "iptables -I FORWARD 1 -j ACCEPT", false, NOTIFIED, || {
            both("-I FORWARD 1 -j ACCEPT");
        });
        assert_repaired(&bed, "iptables -D TOWPATH-FORWARD 2", false, NOTIFIED, || {
            both("-D TOWPATH-FORWARD 2");
        });
        assert_repaired(&bed, "iptables -F of a group's chain", false, NOTIFIED, || {
            for family in Family::BOTH {
                bed.iptables(family, &format!("-F {}", group(family)));
            }
        });
        assert_repaired(&bed, "iptables -D of one rule of a group's chain", false, NOTIFIED, || {
            for family in Family::BOTH {
                bed.iptables(family, &format!("-D {} 1", group(family)));
            }
        });
        assert_repaired(
            &bed,
            "iptables -R of one rule of a group's chain by a rule that allows everything",
            false,
            NOTIFIED,
            || {
                for family in Family::BOTH {
                    bed.iptables(family, &format!("-R {} 1 -j RETURN", group(family)));
                }
            },
        );
        assert_eq!(bed.reaches("shop/web", "shop/db"), [true; 2]);
        // These remove flannel's rules too, and then FORWARD drops what nothing accepts.
        assert_repaired(&bed, "iptables -F FORWARD", true, NOTIFIED, || both("-F FORWARD"));
        assert_repaired(&bed, "iptables -F", true, NOTIFIED, || both("-F"));
        assert!(daemon.metric("towpath_drift_repairs_total") >= 7.0);
        assert!(daemon.is_ready());
    });
}

#[test]
fn emptied_sets_are_repaired_without_the_periodic_check() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let daemon = bed.run(&["--check-interval", "3600"]);
        assert_eq!(bed.reaches("shop/web", "shop/db"), [true; 2]);
        // The sets must have been seen with their members.
        thread::sleep(Duration::from_millis(1200));
        assert_repaired(&bed, "ipset flush", false, NOTIFIED, || {
            drop(bed.node().succeed("ipset", &["flush"]).unwrap());
        });
        assert_eq!(bed.reaches("shop/web", "shop/db"), [true; 2]);
        assert!(daemon.metric("towpath_drift_repairs_total") >= 1.0);
    });
}

#[test]
fn changes_of_our_sets_by_other_programs_are_repaired_by_the_periodic_check() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let daemon = bed.run(&["--check-interval", "1"]);
        thread::sleep(Duration::from_millis(1200));
        let ipset = |arguments: &[&str]| drop(bed.node().succeed("ipset", arguments).unwrap());
        let isolated = |version: u8| {
            let sets = our_sets(bed.node());
            let prefix = format!("create tp{version}-ingress-isolated-");
            let of_one = |line: &&String| {
                let name = line.split(' ').nth(1).unwrap();
                line.starts_with(&prefix) && sets.iter().any(|line| line.starts_with(&format!("add {name} ")))
            };
            sets.iter().find(of_one).unwrap().split(' ').nth(1).unwrap().to_owned()
        };
        assert_repaired(&bed, "ipset flush of the isolated pods", false, FOUND, || {
            ipset(&["flush", &isolated(4)]);
            ipset(&["flush", &isolated(6)]);
        });
        assert_repaired(&bed, "ipset del of an isolated pod", false, FOUND, || {
            let of = |family| bed.address("shop/db", family).to_string();
            ipset(&["del", &isolated(4), &of(Family::V4)]);
            ipset(&["del", &isolated(6), &of(Family::V6)]);
        });
        assert_repaired(&bed, "ipset add of a pod that no policy admits", false, FOUND, || {
            let sets = our_sets(bed.node());
            for (version, family) in [(4, Family::V4), (6, Family::V6)] {
                let prefix = format!("create tp{version}-pods-");
                let set = sets.iter().find_map(|line| line.strip_prefix(&prefix)).unwrap();
                let set = format!("tp{version}-pods-{}", set.split(' ').next().unwrap());
                ipset(&["add", &set, &bed.address("shop/other", family).to_string()]);
            }
        });
        assert_repaired(
            &bed,
            "ipset del of an isolated pod and ipset add of another in its place",
            false,
            FOUND,
            || {
                for (version, family, another) in
                    [(4, Family::V4, "10.99.99.99"), (6, Family::V6, "fd99::99")]
                {
                    let set = isolated(version);
                    ipset(&["del", &set, &bed.address("shop/db", family).to_string()]);
                    ipset(&["add", &set, another]);
                }
            },
        );
        assert!(daemon.metric("towpath_drift_repairs_total") >= 4.0);
    });
}
