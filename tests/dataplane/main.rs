//! The kernel dataplane against a real kernel, in the tests' own network namespaces. Needs root.

#![expect(clippy::unwrap_used, reason = "a test whose setup fails shall fail")]

mod connections;
mod fake;
mod fixtures;
mod foreign;
mod guard;
#[path = "../support/isolated.rs"]
mod isolated;
#[path = "../support/root.rs"]
mod root;
mod variants;
mod writing;
