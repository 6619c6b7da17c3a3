//! Attacks: what a hostile pod sends, and whether it arrives.
//!
//! A pod and its owner are the adversary; the pod has `CAP_NET_RAW`. Each row of the table is a frame, its sender and
//! receiver, and whether it must arrive: an attack must not, and a control, as similar as possible, must. A frame has
//! arrived when the victim's interface saw it (for a node: when a socket of it did), whatever addresses it had. Each
//! carries its own token, so that all are sent at once and judged after one wait.
//!
//! On a bridge, point to point and over VXLAN, with `nf_tables` and legacy, both families. SECURITY.md has a row for
//! each topic.
//!
//! It needs root. `make attacks` runs it; `TOWPATH_ATTACK_TABLE` names a file for the table as Markdown.

#![cfg(test)]

mod aftermath;
mod bed;
mod cast;
mod changes;
mod conntrack;
mod deaths;
mod frames;
mod full;
mod fuzz;
mod helpers;
#[path = "../kernel/manifests.rs"]
mod manifests;
mod mirror;
mod punch;
mod sightings;
mod sip;
mod table;
mod topics;

use bed::Setting;
use table::{Table, judge};
use towpath::lab::{Topology, Variant};

/// Whether the tests can run here; in CI they must.
fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "these tests need root, and in CI nothing is skipped");
    if !root {
        println!("skipped: needs root, to make network namespaces");
    }
    root
}

fn attack(topology: Topology, variant: Variant) {
    if !can_run() {
        return;
    }
    let mut bed = cast::bed(Setting { topology, variant });
    aftermath::prime(&bed);
    let mut table = Table::new(&bed);
    table.rows = topics::all(&bed);
    let mut seen = table.run();
    seen.extend(aftermath::rows(&bed));
    seen.extend(punch::rows(&bed));
    seen.extend(mirror::rows(&bed));
    seen.extend(helpers::rows(&bed));
    seen.extend(changes::rows(&bed));
    seen.extend(full::rows(&bed));
    bed.kill_daemons();
    seen.extend(deaths::dead(&bed));
    bed.start_daemons();
    seen.extend(deaths::starting(&bed));
    judge(&bed, &seen);
    bed.end();
}

#[test]
fn on_a_bridge_with_nft_no_attack_arrives() {
    attack(Topology::Bridge, Variant::Nft);
}

#[test]
fn on_a_bridge_with_legacy_no_attack_arrives() {
    attack(Topology::Bridge, Variant::Legacy);
}

#[test]
fn point_to_point_with_nft_no_attack_arrives() {
    attack(Topology::PointToPoint, Variant::Nft);
}

#[test]
fn point_to_point_with_legacy_no_attack_arrives() {
    attack(Topology::PointToPoint, Variant::Legacy);
}

#[test]
fn over_vxlan_with_nft_no_attack_arrives() {
    attack(Topology::Vxlan, Variant::Nft);
}

#[test]
fn over_vxlan_with_legacy_no_attack_arrives() {
    attack(Topology::Vxlan, Variant::Legacy);
}
