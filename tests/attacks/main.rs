//! Attacks: what a hostile pod sends, and whether it arrives.
//!
//! A pod and its owner are the adversary; the pod has `CAP_NET_RAW`. Each row of the table is a frame, its sender and
//! receiver, and whether it must arrive: an attack must not, and a control, as similar as possible, must. A frame has
//! arrived when the victim's interface received it (for a node: when one of its sockets did), whatever addresses it
//! had. Each carries its own token, so that all are sent at once and checked after one wait.
//!
//! On a bridge, point to point and over VXLAN, with `nf_tables` and legacy, both families. SECURITY.md has a row for
//! each topic.
//!
//! It needs root. `make attacks` runs it; `TOWPATH_ATTACK_TABLE` names a file for the table as Markdown.

#![cfg(test)]

mod address_changes;
mod after_attacks;
mod bed;
mod conntrack;
#[path = "../support/daemon_command.rs"]
mod daemon_command;
mod daemon_down;
#[path = "../support/env.rs"]
mod env;
mod forged_connections;
mod frames;
mod full_table;
mod fuzz;
mod helpers;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/json_objects.rs"]
mod json_objects;
#[path = "../support/model_objects.rs"]
mod model_objects;
mod pods;
#[path = "../support/ready.rs"]
mod ready;
mod received;
mod reflection;
#[path = "../support/root.rs"]
mod root;
mod sip;
mod table;
mod topics;

use bed::Setting;
use root::has_root;
use table::{Table, report};
use towpath::lab::{Topology, Variant};

fn attack(topology: Topology, variant: Variant) {
    if !has_root() {
        return;
    }
    let mut bed = pods::bed(Setting { topology, variant });
    after_attacks::connect_before(&bed);
    let mut table = Table::new(&bed);
    table.rows = topics::all(&bed);
    let mut outcomes = table.run();
    outcomes.extend(after_attacks::rows(&bed));
    outcomes.extend(forged_connections::rows(&bed));
    outcomes.extend(reflection::rows(&bed));
    outcomes.extend(helpers::rows(&bed));
    outcomes.extend(address_changes::rows(&bed));
    outcomes.extend(full_table::rows(&bed));
    bed.kill_daemons();
    outcomes.extend(daemon_down::while_dead(&bed));
    bed.start_daemons();
    outcomes.extend(daemon_down::while_starting(&bed));
    report(&bed, &outcomes);
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
