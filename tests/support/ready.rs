//! Readiness of the daemon of a simulated node.

use std::net::SocketAddr;

use towpath::lab::Node;

use crate::node_http;

/// Whether the daemon reports that it is ready.
pub(crate) fn is_ready(node: &Node, daemon: SocketAddr) -> bool {
    node_http::get(node, daemon, "/readyz").is_some_and(|(status, _)| status == 200)
}
