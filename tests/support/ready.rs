//! Readiness of the daemon of a simulated node.

use std::{net::SocketAddr, time::Duration};

use towpath::lab::Node;

use crate::http;

/// Whether the daemon reports that it is ready.
pub(crate) fn is_ready(node: &Node, daemon: SocketAddr) -> bool {
    let connection = node.connect(daemon, Duration::from_secs(1));
    connection
        .is_ok_and(|connection| http::get(connection, "/readyz").is_some_and(|(status, _)| status == 200))
}
