//! Flows between pods that never end: datagrams, connections, and connections that stay open.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use towpath::lab::{Probe, Pulse, Transport};

use crate::{
    meter::{Fate, Meters, Sender, Sink},
    world::World,
};

/// Ports of datagrams that no policy allows, that the policies of the receiver allow, and those of the sender.
pub(crate) const DENIED: u16 = 4000;
pub(crate) const ALLOWED: u16 = 5000;
pub(crate) const TO_SERVER: u16 = 5001;

/// Senders that must not reach their receiver in any state of the churn, or between two states. What isolates one end
/// or the other is on one node: two nodes do not change at the same time.
const NEVER: [(&str, &str); 6] = [
    ("shop/turncoat", "shop/receiver"),
    ("shop/left", "shop/right"),
    ("team/nomad", "shop/receiver"),
    ("far/peer-2", "shop/receiver"),
    ("far/peer-1", "shop/fixed-2"),
    ("shop/server-2", "shop/fixed-1"),
];

/// Senders that may always reach their receiver.
const ALWAYS: [(&str, &str); 3] =
    [("far/friend-1", "shop/fixed-2"), ("far/friend-2", "shop/fixed-1"), ("far/friend-1", "shop/fixed-1")];

/// The pause between two datagrams of a flow that lasts for the whole soak.
const BEAT: Duration = Duration::from_millis(2);

/// How long a connection may take on a busy machine. A SYN that is lost is sent again meanwhile: the datagrams show
/// whether single packets are refused.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection is tried that must not come about.
const SHORT: Duration = Duration::from_millis(200);

/// The pause between two rounds of connections.
const PAUSE: Duration = Duration::from_millis(100);

/// Datagrams of the flows above; ends when dropped: the senders first.
pub(crate) struct Flows {
    _senders: Vec<Sender>,
    _sinks: Vec<Sink>,
}

impl Flows {
    pub(crate) fn start(world: &World, meters: &Meters) -> Self {
        let flows = [(Fate::Denied, DENIED, &NEVER[..]), (Fate::Allowed, ALLOWED, &ALWAYS[..])];
        let (mut senders, mut sinks) = (Vec::new(), Vec::new());
        for (fate, port, pairs) in flows {
            let mut receivers: Vec<&str> = pairs.iter().map(|(_, to)| *to).collect();
            receivers.sort_unstable();
            receivers.dedup();
            sinks.extend(receivers.iter().map(|to| meters.receive(world.netns(to), port)));
            for (from, to) in pairs {
                let name = format!("{from} -> {to}");
                senders.push(meters.send(fate, &name, world.netns(from), world.addresses(to), port, BEAT));
            }
        }
        // Those of the nodes, for the pods that start and end.
        for node in [1, 2] {
            sinks.push(meters.receive(world.netns(&format!("shop/server-{node}")), TO_SERVER));
            sinks.push(meters.receive(world.netns(&format!("far/peer-{node}")), DENIED));
        }
        Self { _senders: senders, _sinks: sinks }
    }
}

/// How many connections were tried and how many messages passed through open ones.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Connections {
    pub(crate) tried: u64,
    pub(crate) messages: u64,
}

/// Opens new connections and uses open ones, until `is_over`.
pub(crate) fn connect(world: &World, meters: &Meters, is_over: impl Fn() -> bool) -> Connections {
    let probes = |pairs: &[(&str, &str)]| -> Vec<Probe> {
        let probe = |(from, to): &(&str, &str)| {
            let from = world.end(from);
            world
                .addresses(to)
                .iter()
                .map(move |to| Probe::new(from, *to, Transport::Tcp(80)))
                .collect::<Vec<_>>()
        };
        pairs.iter().flat_map(probe).collect()
    };
    let (allowed, denied) = (probes(&ALWAYS), probes(&NEVER));
    let mut streams = Vec::new();
    for (from, to) in ALWAYS {
        for address in world.addresses(to) {
            let to = SocketAddr::new(*address, 80);
            streams.push((
                format!("{from} -> {to}"),
                world.lab.open_stream(world.end(from), to, PATIENCE).unwrap(),
            ));
        }
    }
    let mut counts = Connections::default();
    while !is_over() {
        for (probes, patience, open) in [(&allowed, PATIENCE, true), (&denied, SHORT, false)] {
            let moment = meters.now();
            for (probe, outcome) in probes.iter().zip(world.lab.probe_all(probes, patience).unwrap()) {
                counts.tried += 1;
                if outcome.is_open() != open {
                    meters.fail(moment, format!("{probe:?}: {outcome:?}"), open);
                }
            }
        }
        for (name, stream) in &mut streams {
            let (moment, start) = (meters.now(), Instant::now());
            let pulse = stream.pulse(PATIENCE).unwrap();
            counts.messages += 1;
            if pulse != Pulse::Through {
                meters.fail(moment, format!("{name}: {pulse:?} after {:?}", start.elapsed()), true);
            }
        }
        thread::sleep(PAUSE);
    }
    counts
}
