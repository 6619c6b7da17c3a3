//! Asks the daemon, for no longer than it may take.

use std::{
    fmt,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::protocol::{MessageError, Request, Response, read_message, to_line};

/// How long to wait before the next attempt.
const RETRY: Duration = Duration::from_millis(50);

/// What is cut off sooner than this says nothing about the daemon.
const TOO_SHORT: Duration = Duration::from_millis(500);

/// A client of the daemon.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// How long an answer is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long to try to reach the daemon. An answer that cannot be read counts as not reached.
    pub reach: Duration,
    /// How long it may take from the first attempt to the answer.
    pub answer: Duration,
}

impl Patience {
    /// Tries to reach the daemon for as long as an answer is waited for.
    #[must_use]
    pub const fn of(whole: Duration) -> Self {
        Self { reach: whole, answer: whole }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum AskError {
    /// The request cannot be sent to any daemon.
    Request(MessageError),
    /// Nobody accepts connections.
    Connect(io::Error),
    /// The connection was accepted, but no answer came, or none that can be read.
    Answer(MessageError),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(error) => write!(f, "request: {error}"),
            Self::Connect(error) => write!(f, "connect: {error}"),
            Self::Answer(error) => write!(f, "answer: {error}"),
        }
    }
}

impl std::error::Error for AskError {}

impl AskError {
    fn is_late(&self) -> bool {
        match self {
            Self::Connect(error) | Self::Answer(MessageError::Io(error)) => {
                error.kind() == io::ErrorKind::TimedOut
            }
            Self::Request(_) | Self::Answer(_) => false,
        }
    }
}

impl Client {
    /// A client of the daemon that listens on this socket. Does not connect.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Sends a request, again and again until there is an answer that can be read. Connections that break are part of a
    /// daemon's restart: it must accept the same request twice.
    ///
    /// # Errors
    ///
    /// Why the last attempt failed that was not cut off, once `patience` is at its end.
    pub fn ask(&self, request: &Request, patience: Patience) -> Result<Response, AskError> {
        let line = to_line(request).map_err(AskError::Request)?;
        let started = Instant::now();
        let (reach, answer) = (started + patience.reach, started + patience.answer);
        let mut before = None;
        loop {
            let began = Instant::now();
            let error = match self.attempt(&line, reach.min(answer), answer) {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let says_nothing = error.is_late() && began.elapsed() < TOO_SHORT;
            let error = before.take().filter(|_| says_nothing).unwrap_or(error);
            if Instant::now() + RETRY >= reach {
                return Err(error);
            }
            before = Some(error);
            thread::sleep(RETRY);
        }
    }

    fn attempt(&self, line: &[u8], reach: Instant, answer: Instant) -> Result<Response, AskError> {
        let stream = self.connect(reach).map_err(AskError::Connect)?;
        let mut timed = Timed { stream: &stream, deadline: answer };
        timed.write_all(line).map_err(|error| AskError::Answer(error.into()))?;
        read_message(timed).map_err(AskError::Answer)
    }

    /// Connecting blocks while the listener's queue is full, and has no timeout in the standard library. The thread ends
    /// when the queue moves on or the listener goes.
    fn connect(&self, until: Instant) -> io::Result<UnixStream> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let socket = self.socket.clone();
        thread::Builder::new().spawn(move || sender.send(UnixStream::connect(socket)))?;
        let left = until.saturating_duration_since(Instant::now());
        receiver.recv_timeout(left).unwrap_or_else(|_| Err(late()))
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it took too long")
}

/// A connection whose reads and writes end by a deadline, however slowly the other side sends.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(late()) } else { Ok(Some(left)) }
    }
}

fn late_if_blocked<T>(result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| if error.kind() == io::ErrorKind::WouldBlock { late() } else { error })
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        late_if_blocked(self.stream.read(buffer))
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        late_if_blocked(self.stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
