//! HTTP requests to a daemon.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// Where a daemon serves HTTP, unless it is started with another address.
pub(crate) const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9586);

/// Requests a page over a new connection. Returns the status and the body; `None` without a response.
pub(crate) fn get(connection: io::Result<TcpStream>, path: &str) -> Option<(u16, String)> {
    let mut connection = connection.ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(connection, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").ok()?;
    let mut response = String::new();
    connection.read_to_string(&mut response).ok()?;
    let status = response.split(' ').nth(1)?.parse().ok()?;
    Some((status, response.split_once("\r\n\r\n")?.1.to_owned()))
}
