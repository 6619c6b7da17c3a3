//! The command line as users see it: the built program, run as a shell would run it.

#![cfg(test)]

mod answers;
mod ci;
mod cni;
mod daemon;
mod diff;
mod documents;
mod help;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/isolated.rs"]
mod isolated;
mod matrix;
mod mistakes;
mod program;
mod questions;
mod refusals;
#[path = "../support/repository.rs"]
mod repository;
#[path = "../support/root.rs"]
mod root;
#[path = "../support/wait.rs"]
mod wait;
