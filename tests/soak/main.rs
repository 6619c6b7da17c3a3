//! Soak: two nodes under random churn. Pods start and end through the gate, objects change, daemons are killed, other
//! programs flush rules, and all the while packets flow. Needs root.
//!
//! `TOWPATH_SOAK_SECONDS` is the length of the churn for each variant; `TOWPATH_SOAK_SEED` repeats its choices.

#![cfg(test)]

mod churn;
#[path = "../support/cni.rs"]
mod cni;
#[path = "../support/daemon_command.rs"]
mod daemon_command;
#[path = "../support/env.rs"]
mod env;
mod faults;
mod flows;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/isolated.rs"]
mod isolated;
#[path = "../support/log.rs"]
mod log;
mod meter;
#[path = "../support/our_sets.rs"]
mod our_sets;
mod pods;
#[path = "../support/ready.rs"]
mod ready;
mod report;
#[path = "../support/root.rs"]
mod root;
#[path = "../support/wait.rs"]
mod wait;
mod world;
#[path = "../support/yaml_objects.rs"]
mod yaml_objects;

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fastrand::Rng;
use nix::sched::CloneFlags;
use towpath::lab::Variant;

use report::{Report, table};

/// How long the churn lasts for each variant, unless the environment says otherwise: a minute in all.
const SECONDS: u64 = 30;

static REPORTS: Mutex<Vec<Report>> = Mutex::new(Vec::new());

#[test]
fn no_packet_leaks_and_none_is_refused_while_everything_changes() {
    if !root::has_root() {
        return;
    }
    let length = Duration::from_secs(env::number("TOWPATH_SOAK_SECONDS", SECONDS));
    let seed: u64 = env::number("TOWPATH_SOAK_SEED", fastrand::u64(..1 << 32));
    println!("TOWPATH_SOAK_SEED={seed} TOWPATH_SOAK_SECONDS={}", length.as_secs());
    for variant in Variant::BOTH {
        isolated::isolated(CloneFlags::empty(), move || {
            let report = churn::run(variant, length, &mut Rng::with_seed(seed));
            REPORTS.lock().unwrap().push(report);
        });
    }
    let reports = REPORTS.lock().unwrap_or_else(PoisonError::into_inner);
    println!("\n{}", table(&reports));
    for report in &*reports {
        report.assert_complete();
        assert_eq!((report.leaked, report.refused), (0, 0), "{}: {:#?}", report.variant, report.faults);
    }
}
