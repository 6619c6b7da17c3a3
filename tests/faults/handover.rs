//! One daemon ends and another one starts: on request, and in a rolling update.

use std::{thread, time::Duration};

use crate::{
    churn_flows::assert_none_arrived,
    kill::{Churn, always, bed, flows},
    reach::TIMEOUT,
    testbed::for_both_variants,
};

#[test]
fn terminated_daemon_leaves_its_rules_and_the_next_one_takes_over_without_a_gap() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let first = bed.run(&[]);
        let flows = flows(&bed);
        let flood = bed.lab.flood(&flows, Duration::from_millis(1)).unwrap();
        let watch = bed.lab.watch(&always(&bed), Duration::from_millis(5), TIMEOUT).unwrap();
        let rules = bed.our_rules(towpath::model::Family::V4);
        let status = first.terminate();
        assert!(status.success(), "{status}");
        assert_eq!(bed.our_rules(towpath::model::Family::V4), rules);
        thread::sleep(Duration::from_millis(300));
        let churning = Churn::new(&bed).start(3, 25);
        for _ in 0..3 {
            let next = bed.run(&[]);
            thread::sleep(Duration::from_millis(200));
            assert!(next.terminate().success());
        }
        drop(churning);
        assert_none_arrived(flood, &flows, 100, &format!("{variant:?}, terminated and restarted"));
        let watched = watch.stop();
        assert!(watched.failures.is_empty() && watched.broken.is_none(), "{watched:?}");
    });
}

#[test]
fn rolling_update_hands_over_when_the_old_daemon_ends() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let old = bed.run(&[]);
        let flows = flows(&bed);
        let flood = bed.lab.flood(&flows, Duration::from_millis(1)).unwrap();
        let watch = bed.lab.watch(&always(&bed), Duration::from_millis(5), TIMEOUT).unwrap();
        let churning = Churn::new(&bed).start(5, 25);
        let new = bed.start(&["--listen", "127.0.0.1:9587"]);
        thread::sleep(Duration::from_secs(1));
        let (status, text) = new.get("/readyz").unwrap();
        assert_eq!(status, 503);
        let old_id = format!("(process {})", old.id());
        assert!(text.contains("another towpath") && text.contains(&old_id), "{text}");
        assert!(old.is_ready());
        assert!(old.terminate().success());
        println!("{variant:?}: ready {:?} after the old daemon ended", new.wait_ready());
        thread::sleep(Duration::from_millis(300));
        drop(churning);
        assert_none_arrived(flood, &flows, 100, &format!("{variant:?}, rolling update"));
        let watched = watch.stop();
        assert!(watched.failures.is_empty() && watched.broken.is_none(), "{watched:?}");
        assert!(new.terminate().success());
    });
}
