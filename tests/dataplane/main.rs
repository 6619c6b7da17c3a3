//! The kernel dataplane against a real kernel, in the tests' own network namespaces. Needs root.

#![expect(clippy::unwrap_used, reason = "where the ground cannot be laid, the test shall fail")]

mod connections;
mod fake;
mod foreign;
mod ground;
mod guard;
mod variants;
mod writing;
