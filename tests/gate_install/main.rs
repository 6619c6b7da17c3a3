//! The gate for new pods is installed on a node, kept there, and taken out: real files, real inotify, and the daemon
//! (root).

#![cfg(test)]

mod daemon;
mod files;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/isolated.rs"]
mod isolated;
mod node;
#[path = "../support/root.rs"]
mod root;
#[path = "../support/wait.rs"]
mod wait;
