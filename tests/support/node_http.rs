//! HTTP requests to the daemon of a simulated node.

use std::{net::SocketAddr, time::Duration};

use towpath::lab::Node;

use crate::http;

/// Requests a page from the node itself. Returns the status and the body; `None` without a response.
pub(crate) fn get(node: &Node, daemon: SocketAddr, path: &str) -> Option<(u16, String)> {
    http::get(node.connect(daemon, Duration::from_secs(1)).ok()?.ok()?, path)
}
