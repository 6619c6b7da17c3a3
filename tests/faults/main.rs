//! Faults: `towpath run` killed, doubled, disturbed and misled, with real packets in network namespaces. Needs root.

#![expect(clippy::unwrap_used, reason = "where the ground cannot be laid, the test shall fail")]

mod connections;
mod foreign;
mod ground;
mod handover;
mod identity;
mod kill;
mod limits;
mod luck;
mod neighbours;
mod packets;
