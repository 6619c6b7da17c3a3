//! Rules and sets of other programs stay identical to the byte.

use std::{process::Command, thread, time::Duration};

use fastrand::Rng;
use towpath::{lab::Variant, model::Family};

use crate::{
    kill::{Churn, bed},
    testbed::{Bed, for_both_variants},
    wait::wait_until,
};

const TABLES: [&str; 4] = ["filter", "nat", "mangle", "raw"];

/// Chains, rules with text that is hard to quote, and sets of other programs.
fn add_foreign_state(bed: &Bed) {
    let ipset = "create foreign-v4 hash:net family inet\nadd foreign-v4 10.9.0.0/16\n\
                 create foreign-v6 hash:net family inet6\nadd foreign-v6 fd09::/32\n\
                 create TP-like hash:ip family inet\nadd TP-like 10.9.9.9\n\
                 create tp4-mine hash:ip family inet\nadd tp4-mine 10.9.9.9\n\
                 create tp4-pods-x hash:ip family inet\ncreate tp6-nodes-old hash:ip family inet6\n\
                 create tp4-pods-abcdefghijklmno hash:net family inet\n";
    bed.node().netns().succeed("ipset", &["restore"], ipset).unwrap();
    for family in Family::BOTH {
        let set = if family == Family::V4 { "foreign-v4" } else { "foreign-v6" };
        let text = format!(
            "*filter\n\
             :FOREIGN -\n:TPX -\n:towpath-forward -\n:TOWPATHFINDER -\n\
             :TP-LINK -\n:TOWPATH_MINE -\n:TP-GI-x -\n\
             -A FORWARD -p tcp -j TP-LINK\n-A INPUT -p udp -j TOWPATH_MINE\n-A TP-LINK -j TP-GI-x\n\
             -A TOWPATH_MINE -m set --match-set {set} src -j DROP\n\
             -A FORWARD -m comment --comment \"jump to TOWPATH-FORWARD \\\"not\\\"\" -j FOREIGN\n\
             -A INPUT -j TPX\n\
             -A FOREIGN -m set --match-set {set} src -m comment --comment \"a 'quote' and a $(cost)\" -j DROP\n\
             -A FOREIGN -p tcp -m multiport --dports 1,2,3:9 -m mark --mark 0x1/0xff -j RETURN\n\
             -A towpath-forward -m limit --limit 3/min -j TOWPATHFINDER\n\
             COMMIT\n\
             *nat\n:FOREIGN-NAT -\n-A FOREIGN-NAT -p tcp --dport 8080 -j REDIRECT --to-ports 80\nCOMMIT\n"
        );
        let program = bed.variant.program(family, "-restore");
        bed.node().netns().succeed(&program, &["--noflush", "-w"], &text).unwrap();
    }
}

/// Names in [`add_foreign_state`] that resemble ours.
const LOOKALIKES: [&str; 7] = [
    "TP-LINK",
    "TOWPATH_MINE",
    "TP-GI-x",
    "tp4-mine",
    "tp4-pods-x",
    "tp6-nodes-old",
    "tp4-pods-abcdefghijklmno",
];

fn names_a_lookalike(line: &str) -> bool {
    line.split([' ', ':']).any(|word| LOOKALIKES.contains(&word))
}

/// All tables of both families and all sets, without ours.
fn foreign(bed: &Bed) -> String {
    let mut all = String::new();
    for family in Family::BOTH {
        for table in TABLES {
            for line in bed.saved(family, table).lines() {
                let of_ours = [":TOWPATH-", ":TP-", "-A TOWPATH-", "-A TP-"];
                let jump = line.ends_with("-j TOWPATH-FORWARD") || line.ends_with("-j TOWPATH-INPUT");
                let is_ours = jump || of_ours.iter().any(|start| line.starts_with(start));
                if !is_ours || names_a_lookalike(line) {
                    all.push_str(line);
                    all.push('\n');
                }
            }
        }
    }
    let sets = bed.node().succeed("ipset", &["save"]).unwrap();
    let is_ours = |line: &&str| line.contains(" tp4-") || line.contains(" tp6-");
    for line in sets.lines().filter(|line| !is_ours(line) || names_a_lookalike(line)) {
        all.push_str(line);
        all.push('\n');
    }
    all
}

/// Everything, ours included.
fn all_state(bed: &Bed) -> String {
    let tables = Family::BOTH.into_iter().flat_map(|family| TABLES.map(|table| bed.saved(family, table)));
    tables.collect::<String>() + &bed.node().succeed("ipset", &["save"]).unwrap()
}

#[test]
fn rules_and_sets_of_other_programs_stay_identical_to_the_byte() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        add_foreign_state(&bed);
        let before = all_state(&bed);
        assert_eq!(before, foreign(&bed));
        let daemon = bed.run(&[]);
        let churn = Churn::new(&bed);
        let mut rng = Rng::with_seed(11);
        for _ in 0..40 {
            churn.step(&mut rng);
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(foreign(&bed), before);
        bed.iptables(Family::V4, "-F TOWPATH-FORWARD");
        bed.iptables(Family::V6, "-D FORWARD -j TOWPATH-FORWARD");
        wait_until("the repair", Duration::from_secs(30), || {
            bed.our_rules(Family::V4).contains("-A TOWPATH-FORWARD ")
                && bed.our_rules(Family::V6).contains("-A FORWARD -j TOWPATH-FORWARD")
        });
        assert_eq!(foreign(&bed), before, "after a repair");
        assert_ne!(all_state(&bed), before);
        assert!(daemon.terminate().success());
        for _ in 0..2 {
            let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
            command.arg("cleanup");
            let output = bed.node().run(command, "").unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        assert_eq!(all_state(&bed), before);
    });
}

#[test]
fn concurrent_edits_by_other_programs_are_kept() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        add_foreign_state(&bed);
        let daemon = bed.run(&[]);
        let churning = Churn::new(&bed).start(13, 12);
        let edits = |family: Family, seed: u64| {
            let mut expected: Vec<u64> = Vec::new();
            let mut rng = Rng::with_seed(seed);
            for number in 0..150 {
                if rng.u64(..3) > 0 || expected.is_empty() {
                    bed.iptables(family, &format!("-A TPX -p tcp --dport {} -j RETURN", 1000 + number));
                    expected.push(1000 + number);
                } else {
                    let removed = expected.remove(rng.usize(..expected.len()));
                    bed.iptables(family, &format!("-D TPX -p tcp --dport {removed} -j RETURN"));
                }
            }
            expected
        };
        let expected = Family::BOTH.map(|family| (family, edits(family, 17)));
        drop(churning);
        thread::sleep(Duration::from_millis(300));
        for (family, expected) in expected {
            let saved = bed.saved(family, "filter");
            let there: Vec<u64> = saved
                .lines()
                .filter(|line| line.starts_with("-A TPX "))
                .map(|line| {
                    line.split("--dport ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
                })
                .collect();
            assert_eq!(there, expected, "{family}");
        }
        if variant == Variant::Nft {
            // With nft the origin of each change is known, so nothing counts as drift.
            assert!(daemon.metric("towpath_drift_repairs_total") < 1.0);
        }
        assert!(daemon.is_ready());
    });
}
