//! Datagrams without end between namespaces, each the first packet of a new flow.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use towpath::lab::Netns;

/// How often a sender sends.
const BEAT: Duration = Duration::from_millis(1);

/// How long a packet may still be in transit after its sender has stopped.
const LINGER: Duration = Duration::from_millis(100);

/// Counts what arrives at a port, at whichever address, and whenever the host gets it.
pub(crate) struct Sink {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    pub(crate) fn open(host: &Netns, port: u16) -> Self {
        let socket = host.run(move || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (stop, arrived) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), arrived.clone());
        let thread = thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if socket.recv_from(&mut buffer).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { stop, arrived, thread: Some(thread) }
    }

    pub(crate) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// Sends to an address from new ports, from before it can until it is stopped.
pub(crate) struct Sender {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    pub(crate) fn start(host: &Netns, to: IpAddr, port: u16) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), sent.clone());
        let to = SocketAddr::new(to, port);
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        let thread = host.start_thread("sender", move || {
            while !stopped.load(Ordering::Relaxed) {
                // Without an address or a route yet, sending fails.
                if UdpSocket::bind(any).and_then(|socket| socket.send_to(b"probe", to)).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(BEAT);
            }
        });
        Self { stop, sent, thread: Some(thread.unwrap()) }
    }

    /// Stops, waits for what is in transit, and returns how many datagrams were sent.
    pub(crate) fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
        thread::sleep(LINGER);
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}
