//! Programs that hang: they are killed, it is reported, and enforcement goes on, without a leaked packet.

use std::{fs, slice, time::Duration};

use towpath::model::Family;

use crate::{
    churn_flows::assert_none_arrived,
    kill,
    stand_in::{Hang, StandIns},
    testbed::{Daemon, READY, for_both_variants},
    wait::wait_until,
    yaml_objects::policy,
};

/// Longer than the time after which a running command is reported.
const LIMIT: &str = "8";

#[test]
fn command_that_hangs_is_killed_and_enforcement_goes_on() {
    for_both_variants(|variant| {
        let bed = kill::bed(variant);
        let restore = variant.program(Family::V4, "-restore");
        let stand_ins = StandIns::new(bed.folder(), &[&restore, "ipset"]);
        let mut command = bed.command(&["--command-limit", LIMIT]);
        stand_ins.before_others(&mut command);
        let daemon = Daemon::start(&bed, command);
        daemon.wait_ready();
        let flows = kill::flows(&bed);
        let flood = bed.lab.flood(&flows, Duration::from_millis(2)).unwrap();
        let churning = kill::Churn::new(&bed).start(11, 100);
        let closing = policy("shop/late", "podSelector: {matchLabels: {app: free}}");
        let not_ready = |reason: &str| {
            wait_until(reason, Duration::from_secs(30), || {
                daemon.get("/readyz").is_some_and(|(code, text)| code == 503 && text.contains(reason))
            });
        };
        for (program, hang) in [
            (restore.as_str(), Hang::Before),
            (&restore, Hang::After),
            ("ipset", Hang::Half),
            ("ipset", Hang::After),
        ] {
            let failures = || timeouts(&daemon);
            let before = failures();
            stand_ins.hang(program, Some(hang));
            bed.write("late.yaml", slice::from_ref(&closing));
            not_ready("has been running for");
            not_ready("did not end within 8 s and was killed");
            assert!(failures() > before, "{program} {hang:?}");
            stand_ins.hang(program, None);
            wait_until("ready again", READY, || daemon.is_ready());
            bed.wait_until_reachable("far/peer", "shop/free", false, READY);
            bed.objects().remove("late.yaml");
            bed.wait_until_reachable("far/peer", "shop/free", true, READY);
        }
        drop(churning);
        assert_none_arrived(flood, &flows, 100, &format!("{variant:?}, four commands hung"));
        // The one that runs now, if any, ends.
        for program in [restore.as_str(), "ipset"] {
            wait_until("no process is left", READY, || stand_ins.left(program).is_empty());
        }
        assert_eq!(zombies(daemon.id()), Vec::<String>::new());
        let log = daemon.log();
        for text in ["command is slow", "was killed: stuck", "sync works again"] {
            assert!(log.contains(text), "{text}");
        }
    });
}

/// All failures because something was not finished in time.
fn timeouts(daemon: &Daemon<'_>) -> f64 {
    let (_, text) = daemon.get("/metrics").unwrap();
    let failures = text
        .lines()
        .filter(|line| line.starts_with("towpath_failures_total{") && line.contains("reason=\"timeout\""));
    failures.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// The children of `parent` that have ended and were not reaped.
fn zombies(parent: u32) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let statuses = all.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let is_zombie = |status: &String| {
        status.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(&format!("Z {parent} ")))
    };
    statuses.filter(is_zombie).collect()
}
