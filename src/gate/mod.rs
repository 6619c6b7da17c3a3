//! The gate for new pods: the edge to the CNI plugin `towpath-cni`.
//!
//! ```text
//! towpath-cni --Request--> server --> daemon::gate --Attached, Detached--> agent
//!             <-Response--                         <--once it is in the kernel--
//!                                     records: the attachments, across restarts of the daemon
//! ```

pub mod records;
pub mod server;
