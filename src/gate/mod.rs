//! The gate for new pods: a plugin behind the network plugin's own, which lets a pod start once its rules are in the
//! kernel.
//!
//! ```text
//! towpath-cni --Request--> server --> daemon::gate --Attached, Detached--> agent
//!             <-Response--                         <--once it is in the kernel--
//! ```
//!
//! - [`server`]: the socket on which the plugin asks.
//! - [`records`]: what the plugin reported, across restarts of the daemon.
//! - [`conflist`]: the plugin's entry in the text of a CNI configuration.
//! - [`install`]: the plugin and its entry on this node, kept in place and taken out again.

pub mod conflist;
#[cfg(feature = "lab")]
pub mod fuzzing;
pub mod install;
pub mod records;
pub mod server;
