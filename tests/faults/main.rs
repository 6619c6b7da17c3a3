//! Faults: `towpath run` killed, doubled, disturbed, misled and upgraded, with real packets in network namespaces. Needs
//! root.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails shall fail")]
#![expect(clippy::panic, reason = "as above")]

#[path = "../support/churn_flows.rs"]
mod churn_flows;
#[path = "../support/cni.rs"]
mod cni;
mod conditions;
mod connections;
#[path = "../support/daemon_command.rs"]
mod daemon_command;
mod drift_cost;
mod drops;
#[path = "../support/env.rs"]
mod env;
mod every_system_call;
mod foreign;
mod gate;
mod handover;
#[path = "../support/http.rs"]
mod http;
mod hung_commands;
mod identity;
#[path = "../support/isolated.rs"]
mod isolated;
mod kill;
mod limits;
#[path = "../support/log.rs"]
mod log;
#[path = "../support/metrics.rs"]
mod metrics;
mod other_programs;
#[path = "../support/our_sets.rs"]
mod our_sets;
mod packets;
#[path = "../support/reach.rs"]
mod reach;
#[path = "../support/ready.rs"]
mod ready;
#[path = "../support/root.rs"]
mod root;
mod stand_in;
mod testbed;
#[path = "../support/traffic.rs"]
mod traffic;
mod unreadable_files;
mod upgrade;
#[path = "../support/wait.rs"]
mod wait;
#[path = "../support/yaml_objects.rs"]
mod yaml_objects;
