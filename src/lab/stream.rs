//! A connection that stays open, to test established flows.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use super::LabError;

/// A TCP connection to a listener, which echoes.
#[derive(Debug)]
pub struct Stream {
    connection: TcpStream,
    sent: u64,
    unread: Vec<u8>,
}

/// The state of an established connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pulse {
    /// A message was sent and came back.
    Through,
    /// It did not come back in time.
    Stuck,
    /// The connection was reset or closed.
    Broken,
}

impl Stream {
    /// Connects, and waits for the banner; to be called in the sender's namespace.
    pub(super) fn connect(to: SocketAddr, within: Duration) -> Result<Self, LabError> {
        let open = || -> io::Result<Self> {
            let mut connection = TcpStream::connect_timeout(&to, within)?;
            connection.set_nodelay(true)?;
            connection.set_read_timeout(Some(within))?;
            let mut byte = [0];
            while byte != *b"\n" {
                connection.read_exact(&mut byte)?;
            }
            connection.set_nonblocking(true)?;
            Ok(Self { connection, sent: 0, unread: Vec::new() })
        };
        open().map_err(LabError::system(format!("open a connection to {to}")))
    }

    /// Whether something sent now comes back in time.
    ///
    /// Messages that were sent before and did not come back yet are ahead of it, and the sender's retransmission pauses
    /// grow: a connection that was cut for seconds needs as long again to recover.
    ///
    /// # Errors
    /// Only errors that are unrelated to the connection itself.
    pub fn pulse(&mut self, within: Duration) -> Result<Pulse, LabError> {
        match self.exchange(Instant::now() + within) {
            Ok(pulse) => Ok(pulse),
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::TimedOut
                | io::ErrorKind::ConnectionAborted => Ok(Pulse::Broken),
                _ => Err(LabError::system("use an established connection")(error)),
            },
        }
    }

    fn exchange(&mut self, until: Instant) -> io::Result<Pulse> {
        self.sent += 1;
        let message = self.sent.to_be_bytes();
        self.connection.write_all(&message)?;
        let mut buffer = [0; 1024];
        while Instant::now() < until {
            match self.connection.read(&mut buffer) {
                Ok(0) => return Ok(Pulse::Broken),
                Ok(length) => self.unread.extend(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
            while let Some((head, rest)) = self.unread.split_first_chunk::<8>() {
                let came_back = *head == message;
                self.unread = rest.to_vec();
                if came_back {
                    return Ok(Pulse::Through);
                }
            }
        }
        Ok(Pulse::Stuck)
    }
}
