//! Datagrams that are counted by the moment at which they were sent.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use towpath::{lab::Netns, model::Family};

/// The length of a moment.
const MOMENT: Duration = Duration::from_millis(50);

/// How long a packet may still be in transit after its sender has stopped.
const LINGER: Duration = Duration::from_millis(200);

/// A busy machine lets a receiver wait: what arrives meanwhile must not be lost in its socket.
const RECEIVE_BUFFER: usize = 16 << 20;

/// A part of the soak, in moments.
pub(crate) type Window = RangeInclusive<usize>;

/// Whether a flow may arrive, in every state of the churn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Denied,
    Allowed,
}

/// What one sender sent, and what arrived of it, moment by moment.
pub(crate) struct Meter {
    pub(crate) name: String,
    pub(crate) fate: Fate,
    counts: Mutex<BTreeMap<usize, Counts>>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    sent: u64,
    arrived: u64,
}

/// The difference between what a flow sent and what arrived, or the leaked packets of it, in one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) moment: usize,
    pub(crate) packets: u64,
}

impl Meter {
    pub(crate) fn sent(&self) -> u64 {
        self.counts.lock().unwrap().values().map(|counts| counts.sent).sum()
    }

    fn count(&self, moment: usize, add: impl FnOnce(&mut Counts)) {
        add(self.counts.lock().unwrap().entry(moment).or_default());
    }

    /// The moment of the first packet.
    pub(crate) fn begin(&self) -> Option<usize> {
        self.counts.lock().unwrap().keys().next().copied()
    }

    /// What contradicts the flow's fate: packets that arrived, or that did not.
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let fault = |(moment, counts): (&usize, &Counts)| {
            let packets = match self.fate {
                Fate::Denied => counts.arrived,
                Fate::Allowed => counts.sent.saturating_sub(counts.arrived),
            };
            (packets > 0).then_some(Fault { moment: *moment, packets })
        };
        self.counts.lock().unwrap().iter().filter_map(fault).collect()
    }
}

/// A connection that was not what it should be.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) moment: usize,
    pub(crate) what: String,
    pub(crate) is_allowed: bool,
}

/// All meters of a soak.
#[derive(Clone)]
pub(crate) struct Meters(Arc<Shared>);

struct Shared {
    start: Instant,
    meters: RwLock<Vec<Arc<Meter>>>,
    failures: Mutex<Vec<Failure>>,
}

impl Meters {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
            start: Instant::now(),
            meters: RwLock::default(),
            failures: Mutex::default(),
        }))
    }

    pub(crate) fn now(&self) -> usize {
        usize::try_from(self.0.start.elapsed().as_millis() / MOMENT.as_millis()).unwrap()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Meter>> {
        self.0.meters.read().unwrap().clone()
    }

    /// Notes a connection that was open although it is denied, or the other way round.
    pub(crate) fn fail(&self, moment: usize, what: String, is_allowed: bool) {
        self.0.failures.lock().unwrap().push(Failure { moment, what, is_allowed });
    }

    pub(crate) fn failures(&self) -> Vec<Failure> {
        self.0.failures.lock().unwrap().clone()
    }

    /// Sends to one of these addresses after the other, from a new port each time, until it is stopped.
    pub(crate) fn send(
        &self,
        fate: Fate,
        name: &str,
        from: &Netns,
        to: &[IpAddr],
        port: u16,
        beat: Duration,
    ) -> Sender {
        let targets: Vec<(IpAddr, u32, Arc<Meter>)> = {
            let mut meters = self.0.meters.write().unwrap();
            let target = |address: &IpAddr| {
                let name = format!("{name} ({})", Family::of(*address));
                let meter = Arc::new(Meter { name, fate, counts: Mutex::default() });
                meters.push(meter.clone());
                (*address, u32::try_from(meters.len() - 1).unwrap(), meter)
            };
            to.iter().map(target).collect()
        };
        let (meters, stop) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = from.start_thread("sender", move || {
            for (address, number, meter) in targets.iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let any: SocketAddr = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
                let moment = meters.now();
                let mut datagram = [0; 8];
                datagram[..4].copy_from_slice(&number.to_be_bytes());
                datagram[4..].copy_from_slice(&u32::try_from(moment).unwrap().to_be_bytes());
                // Without an address or a route yet, sending fails.
                if UdpSocket::bind(any).and_then(|socket| socket.send_to(&datagram, (*address, port))).is_ok()
                {
                    meter.count(moment, |counts| counts.sent += 1);
                }
                thread::sleep(beat);
            }
        });
        Sender { stop, thread: Some(thread.unwrap()) }
    }

    /// Receives at a port of a host, at whichever address.
    pub(crate) fn receive(&self, at: &Netns, port: u16) -> Sink {
        let socket = at.run(move || {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).unwrap();
            socket
        });
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (meters, stop) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut datagram = [0; 8];
            loop {
                let is_last = stopped.load(Ordering::Relaxed);
                match socket.recv(&mut datagram) {
                    Ok(8) => {
                        let [number, moment] = [0, 4]
                            .map(|at| u32::from_be_bytes(*datagram[at..].first_chunk().unwrap()) as usize);
                        let meter = meters.0.meters.read().unwrap()[number].clone();
                        meter.count(moment, |counts| counts.arrived += 1);
                    }
                    Err(_) if is_last => return,
                    Ok(_) | Err(_) => {}
                }
            }
        });
        Sink { stop, thread: Some(thread) }
    }
}

/// Ends when dropped.
pub(crate) struct Sender {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Ends when dropped, after what is still in transit.
pub(crate) struct Sink {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        thread::sleep(LINGER);
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}
