//! The cost of the interface guard: a real `towpath run` in a network namespace, with real packets between two pods.
//!
//! `make bench-guard` runs it, as root. `TOWPATH_PART` names the only part to run (`packets`, `tables`, `candidates` or
//! `arrival`), `TOWPATH_BIN` another program to measure. docs/benchmarks.md contains results.
//!
//! A veth pair and a bridge forward a packet within the sender's system call. So the time of sending includes
//! everything that the node does with the packet, and the difference between two kinds of node is the difference of
//! their rules. The two are measured alternately, so that other load on the machine affects both.

#![expect(clippy::expect_used, reason = "whatever is missing here ends the bench with its name")]

mod arrival;
mod candidates;
#[path = "../../tests/support/http.rs"]
mod http;
#[path = "../../tests/support/ready.rs"]
mod ready;
mod tables;
mod testbed;

use std::time::Duration;

use nix::sys::signal::Signal;
use towpath::{
    lab::{Topology, Variant},
    ruleset::guard::render,
};

use testbed::{Bed, Pair};

/// How much is measured.
#[derive(Clone, Copy)]
struct Size {
    pods: &'static [usize],
    rounds: usize,
    established: u32,
    arrivals: u8,
}

/// A part of the bench, by name.
type Part = (&'static str, fn(Size));

const FULL: Size = Size { pods: &[10, 250], rounds: 41, established: 20_000, arrivals: 50 };
const SMOKE: Size = Size { pods: &[3], rounds: 1, established: 100, arrivals: 2 };

fn main() {
    // `cargo test` and `cargo bench -- --test` only check that it starts.
    let smoke = std::env::args().any(|argument| argument == "--test");
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root, to make network namespaces");
        return;
    }
    let size = if smoke { SMOKE } else { FULL };
    let only = std::env::var("TOWPATH_PART").unwrap_or_default();
    let parts: [Part; 4] = [
        ("packets", packets),
        ("tables", tables::measure),
        ("candidates", candidates::measure),
        ("arrival", arrival::measure),
    ];
    for (name, part) in parts.iter().filter(|(name, _)| only.is_empty() || only == *name) {
        println!("{name}:");
        part(size);
    }
}

/// A packet with the guard and without, from a pod to another one of the same node.
fn packets(size: Size) {
    println!(
        "nanoseconds per packet, median (best) of {} rounds; the median of their differences",
        size.rounds
    );
    let kinds = [
        (Topology::Bridge, Variant::Nft),
        (Topology::Bridge, Variant::Legacy),
        (Topology::PointToPoint, Variant::Nft),
    ];
    let removal = render::removal();
    for (topology, variant) in kinds {
        for &pods in size.pods {
            let bed = Bed::new(topology, pods);
            let mut pair = Pair::new(&bed);
            // The daemon writes policy and guard. What it has written stays, and nothing else is running.
            let mut daemon = bed.daemon(variant, true);
            daemon.signal(Signal::SIGTERM).expect("a signal");
            daemon.wait(Duration::from_secs(10)).expect("its end").expect("its end");
            assert!(has_guard(&bed), "the guard stays");
            let whole = bed.guard(pods).whole();
            let mut established = [Vec::new(), Vec::new()];
            let mut first = [Vec::new(), Vec::new()];
            for round in 0..size.rounds {
                // Each is first equally often.
                for guard in [round % 2 == 0, round % 2 != 0] {
                    bed.succeed("nft", &["-f", "-"], if guard { &whole } else { &removal });
                    assert_eq!(has_guard(&bed), guard, "the guard is there exactly if it is on");
                    established[usize::from(guard)].push(pair.established(size.established));
                    first[usize::from(guard)].push(pair.first());
                }
            }
            println!("  {topology:?}, {}, {pods} pods:", variant.name());
            for (name, [off, on]) in [("established flow", established), ("first packet", first)] {
                let differences: Vec<f64> = off.iter().zip(&on).map(|(off, on)| on - off).collect();
                println!(
                    "    {name}: off {}, on {}, difference {:.0}",
                    figures(off),
                    figures(on),
                    median(differences)
                );
            }
        }
    }
}

fn has_guard(bed: &Bed) -> bool {
    bed.succeed("nft", &["list", "tables"], "").contains("bridge towpath")
}

/// The median, and the best in brackets.
fn figures(values: Vec<f64>) -> String {
    let best = values.iter().copied().fold(f64::INFINITY, f64::min);
    format!("{:.0} ({best:.0})", median(values))
}

/// The middle one, or the higher of the two middle ones.
fn median(values: Vec<f64>) -> f64 {
    quantile(values, 0.5)
}

/// The value below which this share of all lies.
fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index among some dozens"
    )]
    let index = (values.len() as f64 * share) as usize;
    values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
