//! Floods: continuous new flows, and a record of everything that arrives.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::{Socket, Type};

use crate::model::Family;

use super::{End, Host, LabError, Netns, socket::open};

/// How long a packet may still be in transit after its sender has stopped.
const LINGER: Duration = Duration::from_millis(100);

/// The sender, receiver and port of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FloodFlow {
    /// The sender.
    pub from: End,
    /// The destination address, of a pod, a node or the external host.
    pub to: IpAddr,
    /// The destination UDP port; no other listener may use it.
    pub port: u16,
}

/// One datagram that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The index of its flow among those given to [`super::Lab::flood`].
    pub flow: usize,
    /// Its number within its flow, from 0.
    pub sequence: u64,
    /// When it was received.
    pub at: Instant,
}

/// Senders that start a new flow at every beat, and receivers that record everything that arrives.
///
/// Each datagram leaves from its own socket, and so from its own port: to connection tracking it is the first packet of
/// a new flow, which only the current rules judge. Nothing is answered, so no flow ever becomes ESTABLISHED. Each
/// datagram that slips through is one [`Arrival`].
#[derive(Debug)]
pub struct Flood {
    shared: Arc<Shared>,
    stop_senders: Arc<AtomicBool>,
    stop_receivers: Arc<AtomicBool>,
    senders: Vec<JoinHandle<()>>,
    receivers: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    sent: Vec<AtomicU64>,
    arrivals: Mutex<Vec<Arrival>>,
}

/// What a flood recorded until its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FloodReport {
    /// How many datagrams each flow sent.
    pub sent: Vec<u64>,
    /// What arrived, in order of arrival at each receiver.
    pub arrivals: Vec<Arrival>,
}

impl FloodReport {
    /// How many datagrams of a flow arrived.
    #[must_use]
    pub fn arrived(&self, flow: usize) -> usize {
        self.arrivals.iter().filter(|arrival| arrival.flow == flow).count()
    }

    /// How many datagrams of a flow were sent and did not arrive.
    #[must_use]
    pub fn lost(&self, flow: usize) -> u64 {
        let sent = self.sent.get(flow).copied().unwrap_or_default();
        sent.saturating_sub(self.arrived(flow) as u64)
    }
}

impl Flood {
    /// Opens every receiver, then starts every sender; `hosts` are sender and receiver of each flow.
    pub(super) fn start(flows: &[(FloodFlow, &Host, &Host)], beat: Duration) -> Result<Self, LabError> {
        let shared = Arc::new(Shared {
            sent: flows.iter().map(|_| AtomicU64::new(0)).collect(),
            arrivals: Mutex::default(),
        });
        let mut flood = Self {
            shared,
            stop_senders: Arc::default(),
            stop_receivers: Arc::default(),
            senders: Vec::new(),
            receivers: Vec::new(),
        };
        let mut sinks: Vec<SocketAddr> = Vec::new();
        for (flow, _, receiver) in flows {
            let sink = SocketAddr::new(flow.to, flow.port);
            if !sinks.contains(&sink) {
                sinks.push(sink);
                flood.receive(receiver.netns(), sink)?;
            }
        }
        for (at, (flow, sender, _)) in flows.iter().enumerate() {
            flood.send(sender.netns(), at, SocketAddr::new(flow.to, flow.port), beat)?;
        }
        Ok(flood)
    }

    /// How many datagrams a flow has sent so far.
    #[must_use]
    pub fn sent(&self, flow: usize) -> u64 {
        self.shared.sent.get(flow).map_or(0, |sent| sent.load(Ordering::Relaxed))
    }

    /// What has arrived so far.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.shared.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops it, after the last packets had time to arrive.
    #[must_use]
    pub fn stop(mut self) -> FloodReport {
        self.end();
        FloodReport {
            sent: self.shared.sent.iter().map(|sent| sent.load(Ordering::Relaxed)).collect(),
            arrivals: self.arrivals(),
        }
    }

    fn end(&mut self) {
        self.stop_senders.store(true, Ordering::Relaxed);
        let were_sending = !self.senders.is_empty();
        join(&mut self.senders);
        if were_sending {
            thread::sleep(LINGER);
        }
        self.stop_receivers.store(true, Ordering::Relaxed);
        join(&mut self.receivers);
    }

    fn receive(&mut self, netns: &Netns, sink: SocketAddr) -> Result<(), LabError> {
        let opened = netns.run(move || open_sink(sink))?;
        let socket = opened.map_err(LabError::system(format!("receive a flood on {sink}")))?;
        let (shared, stop) = (self.shared.clone(), self.stop_receivers.clone());
        let receive = move || {
            use std::io::Read;
            let mut reader = &socket;
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if let Ok(length) = reader.read(&mut buffer)
                    && let Some((flow, sequence)) = buffer.get(..length).and_then(decode)
                {
                    let arrival = Arrival { flow, sequence, at: Instant::now() };
                    shared.arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
                }
            }
        };
        self.receivers.push(netns.start_thread("flood sink", receive)?);
        Ok(())
    }

    fn send(&mut self, netns: &Netns, flow: usize, to: SocketAddr, beat: Duration) -> Result<(), LabError> {
        let (shared, stop) = (self.shared.clone(), self.stop_senders.clone());
        let family = Family::of(to.ip());
        let send = move || {
            let Some(sent) = shared.sent.get(flow) else { return };
            let mut next = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let sequence = sent.load(Ordering::Relaxed);
                let gone = open(family, Type::DGRAM, None)
                    .and_then(|socket| socket.send_to(&encode(flow, sequence), &to.into()));
                // A datagram that this host's own kernel refuses, for lack of a route or by its filter, was never sent.
                if gone.is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                // Late beats are dropped, not made up for: a burst would overflow queues and look like a loss.
                next = (next + beat).max(Instant::now());
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        };
        self.senders.push(netns.start_thread("flood", send)?);
        Ok(())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.end();
    }
}

fn join(threads: &mut Vec<JoinHandle<()>>) {
    for thread in threads.drain(..) {
        let _panicked = thread.join();
    }
}

fn open_sink(sink: SocketAddr) -> io::Result<Socket> {
    let socket = open(Family::of(sink.ip()), Type::DGRAM, None)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    socket.bind(&sink.into())?;
    Ok(socket)
}

fn encode(flow: usize, sequence: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(flow as u64).to_be_bytes());
    bytes[8..].copy_from_slice(&sequence.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<(usize, u64)> {
    let (flow, rest) = bytes.split_first_chunk::<8>()?;
    let sequence = u64::from_be_bytes(*rest.first_chunk::<8>()?);
    Some((usize::try_from(u64::from_be_bytes(*flow)).ok()?, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_counts_each_flow_separately() {
        let arrival = |flow, sequence| Arrival { flow, sequence, at: Instant::now() };
        let report =
            FloodReport { sent: vec![3, 5], arrivals: vec![arrival(0, 0), arrival(1, 4), arrival(0, 2)] };
        assert_eq!((report.arrived(0), report.lost(0)), (2, 1));
        assert_eq!((report.arrived(1), report.lost(1)), (1, 4));
        assert_eq!(decode(&encode(3, 9)), Some((3, 9)));
    }
}
