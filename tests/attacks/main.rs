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
#[path = "../support/daemon_command.rs"]
mod daemon_command;
mod deaths;
#[path = "../support/env.rs"]
mod env;
mod frames;
mod full;
mod fuzz;
mod helpers;
#[path = "../support/http.rs"]
mod http;
mod mirror;
#[path = "../support/model_objects.rs"]
mod model_objects;
#[path = "../support/node_http.rs"]
mod node_http;
mod punch;
#[path = "../support/ready.rs"]
mod ready;
#[path = "../support/root.rs"]
mod root;
mod sightings;
mod sip;
mod table;
mod topics;

use bed::Setting;
use root::has_root;
use table::{Table, judge};
use towpath::lab::{Topology, Variant};

fn attack(topology: Topology, variant: Variant) {
    if !has_root() {
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
fn no_attack_arrives_on_a_bridge_with_nft() {
    attack(Topology::Bridge, Variant::Nft);
}

#[test]
fn no_attack_arrives_on_a_bridge_with_legacy() {
    attack(Topology::Bridge, Variant::Legacy);
}

#[test]
fn no_attack_arrives_point_to_point_with_nft() {
    attack(Topology::PointToPoint, Variant::Nft);
}

#[test]
fn no_attack_arrives_point_to_point_with_legacy() {
    attack(Topology::PointToPoint, Variant::Legacy);
}

#[test]
fn no_attack_arrives_over_vxlan_with_nft() {
    attack(Topology::Vxlan, Variant::Nft);
}

#[test]
fn no_attack_arrives_over_vxlan_with_legacy() {
    attack(Topology::Vxlan, Variant::Legacy);
}
