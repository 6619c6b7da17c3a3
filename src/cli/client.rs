//! Queries the daemon on this node.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;

/// How long the daemon may take to accept the connection, and then to send each piece of its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest answer that is read, in bytes.
const MOST: u64 = 256 << 20;

/// Where the daemon listens by default.
pub(super) const DEFAULT_ADDRESS: &str = "127.0.0.1:9586";

/// Parses `ADDR:PORT`. An IPv6 address may omit its brackets, since manifests join the two from parts.
pub(super) fn address_and_port(text: &str) -> Result<SocketAddr, String> {
    let apart = || {
        let (address, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
    };
    let address = text.parse().ok().or_else(apart);
    address.ok_or_else(|| format!("{text:?} is not an IP address and a port, as in {DEFAULT_ADDRESS}"))
}

/// Checks that there is a port to ask: the host may be an address or a name.
fn host_and_port(text: &str) -> Result<String, String> {
    let is_whole =
        text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if is_whole {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is not an address and a port, as in {DEFAULT_ADDRESS}"))
}

/// Where the daemon is.
#[derive(Debug, Args)]
pub(super) struct DaemonArgs {
    /// The address of the daemon. Default: that of `TOWPATH_LISTEN`, or 127.0.0.1:9586.
    #[arg(long, value_name = "ADDR:PORT", value_parser = host_and_port, env = "TOWPATH_ADDR")]
    addr: Option<String>,
}

/// The daemon's answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl DaemonArgs {
    /// Its address, as it was given.
    pub(super) fn address(&self) -> String {
        // In the daemon's own container its variable is set.
        self.addr
            .clone()
            .or_else(|| std::env::var("TOWPATH_LISTEN").ok())
            .unwrap_or_else(|| DEFAULT_ADDRESS.to_owned())
    }

    /// Requests `path`.
    pub(super) fn get(&self, path: &str) -> anyhow::Result<Answer> {
        let address = self.address();
        let answer = ask(&address, path).with_context(|| {
            format!("asking the daemon at {address} for {path} (does it run, and listen there?)")
        })?;
        let text = String::from_utf8(answer).context("the answer is no text")?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        match status {
            Some(status) if head.starts_with("HTTP/1.") => Ok(Answer { status, body: body.to_owned() }),
            _ => bail!("what listens at {address} does not speak HTTP"),
        }
    }
}

impl DaemonArgs {
    /// Requests `path`, and passes on the lines of the answer as they come, until `each` returns false.
    pub(super) fn lines(&self, path: &str, each: impl FnMut(&str) -> bool) -> anyhow::Result<()> {
        let address = self.address();
        follow(&address, path, each).with_context(|| format!("following the daemon at {address}"))
    }
}

/// The longest line of an answer that comes line by line, in bytes.
const LONGEST_LINE: u64 = 1 << 20;

/// Passes on the lines of an answer until `each` returns false or the answer ends.
fn follow(address: &str, path: &str, mut each: impl FnMut(&str) -> bool) -> anyhow::Result<()> {
    let mut reader = BufReader::new(request(address, path)?);
    let (mut is_body, mut is_first) = (false, true);
    loop {
        let mut line = Vec::new();
        if reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if std::mem::take(&mut is_first) {
            let status = text.split(' ').nth(1).unwrap_or_default();
            anyhow::ensure!(status == "200", "what listens at {address} answered {status}");
        } else if !is_body {
            is_body = text.is_empty();
        } else if !text.is_empty() && !each(text) {
            return Ok(());
        }
    }
}

fn ask(address: &str, path: &str) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    request(address, path)?.take(MOST).read_to_end(&mut answer)?;
    Ok(answer)
}

fn request(address: &str, path: &str) -> io::Result<TcpStream> {
    let mut stream = connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0, so that the answer is not in chunks and ends with the connection.
    // The daemon answers to an address, not to a name.
    let peer = stream.peer_addr()?;
    let host = SocketAddr::new(peer.ip(), peer.port());
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    Ok(stream)
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let addresses = match address_and_port(address) {
        Ok(address) => vec![address],
        Err(_) => address.to_socket_addrs()?.collect(),
    };
    for address in addresses {
        match TcpStream::connect_timeout(&reachable(address), PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A daemon that listens on every address is reached over loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_and_port_are_split_in_both_families() {
        let read = |text| address_and_port(text).map(|address| address.to_string());
        assert_eq!(read("10.0.0.1:80").as_deref(), Ok("10.0.0.1:80"));
        assert_eq!(read("[fd00::1]:9586").as_deref(), Ok("[fd00::1]:9586"));
        assert_eq!(read("fd00::1:9586").as_deref(), Ok("[fd00::1]:9586"));
        assert!(read("10.0.0.1").is_err() && read("node:80").is_err() && read("fd00::1:").is_err());
    }
}
