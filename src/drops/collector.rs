//! Copies of dropped packets, gathered into flows that wait to be explained.
//!
//! Copies of one flow (whatever its source port) within a minute are one entry with a count. Each sender may have only so
//! many entries, and if there are too many in all, the one with the most loses its oldest; those that wait are taken in
//! turns, one of each sender. A sender is a pod, whose address nobody else can use. What comes from outside the cluster
//! can have any address, so for each receiver all of it is one sender.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    dataplane::kernel::nflog::{
        Copied,
        headers::{Headers, Payload},
    },
    model::Family,
    policy::members::{Member, Members},
    ruleset::log_prefix::LogPrefix,
};

/// How long packets of one flow are one record, from the first one.
pub const WINDOW: Duration = Duration::from_mins(1);

/// How many different flows a sender may have within [`WINDOW`].
const OF_A_SENDER: usize = 64;

/// How many flows there may be in all.
const IN_ALL: usize = 4096;

/// A flow of dropped packets: what is the same in packets that are told as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dropped {
    /// The rule that dropped it.
    pub prefix: LogPrefix,
    /// What is known of the packets; `None` if they could not be read.
    pub packet: Option<Packet>,
}

/// What is the same in all packets of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    /// The sender.
    pub source: IpAddr,
    /// The receiver, after any translation of a Service's address.
    pub destination: IpAddr,
    /// The IP protocol number; `None` for ARP.
    pub protocol: Option<u8>,
    /// The destination port, if there is one and it was in the copy.
    pub port: Option<u16>,
    /// Type and code of an ICMP message.
    pub icmp: Option<(u8, u8)>,
    /// Whether it is TCP, and not the first segment of a connection.
    pub is_mid_connection: bool,
    /// Whether these are fragments without ports.
    pub is_later_fragment: bool,
}

/// A flow that waits to be explained.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The flow.
    pub dropped: Dropped,
    /// How many copies there were until now.
    pub count: u64,
    /// When the first and the last one came.
    pub seen: (SystemTime, SystemTime),
    /// The source port of the last one.
    pub source_port: Option<u16>,
}

/// What became of a flow that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// The number that it was told under.
    pub id: u64,
    /// How many copies there were.
    pub count: u64,
    /// When the last one came.
    pub last: SystemTime,
    /// Whether no more will be counted: further packets are another record.
    pub is_final: bool,
}

/// Why a dropped packet was not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Untold {
    /// The kernel had no room for its copy.
    Overflow,
    /// Its sender, or all together, had too many different flows.
    Flows,
    /// It waited too long to be explained.
    Late,
    /// Its copy has none of our prefixes.
    Foreign,
}

impl Untold {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Overflow, Self::Flows, Self::Late, Self::Foreign];

    /// The reason, in one word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::Flows => "flows",
            Self::Late => "late",
            Self::Foreign => "foreign",
        }
    }
}

/// Whose entry a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Sender {
    /// A pod.
    Pod(IpAddr),
    /// Whatever is outside of the cluster and sends to this address.
    Outside(IpAddr),
    /// Packets that could not be read.
    Unreadable,
}

/// The flows of the last minute.
#[derive(Debug, Default)]
pub struct Collector {
    flows: HashMap<Dropped, Entry>,
    senders: HashMap<Sender, Flows>,
    by_count: BTreeSet<(usize, Sender)>,
    /// The senders with flows that wait, in the order of their turns.
    turns: VecDeque<Sender>,
    all_pods: Members,
    untold: BTreeMap<Untold, u64>,
    /// The last updates of those that were told and are gone before their time.
    ended: Vec<Update>,
}

#[derive(Debug)]
struct Entry {
    sender: Sender,
    began: Instant,
    waiting: Waiting,
    /// Once it was told: its number there, and the count that was told.
    told: Option<(u64, u64)>,
}

/// The flows of one sender, oldest first.
#[derive(Debug, Default)]
struct Flows {
    all: VecDeque<Dropped>,
    waiting: VecDeque<Dropped>,
}

impl Dropped {
    /// The flow of a copied packet, and its source port. `None` if the prefix is none of ours.
    #[must_use]
    pub fn of(copied: &Copied<'_>) -> Option<(Self, Option<u16>)> {
        let prefix = LogPrefix::parse(copied.prefix)?;
        let source_port = copied.headers.and_then(|headers| match headers.payload {
            Payload::Tcp { ports: (from, _), .. } | Payload::Ports { ports: (from, _), .. } => Some(from),
            Payload::Arp | Payload::Icmp { .. } | Payload::Other(_) => None,
        });
        Some((Self { prefix, packet: copied.headers.map(Packet::of) }, source_port))
    }

    /// The addresses of its ends.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.packet.into_iter().flat_map(|packet| [packet.source, packet.destination])
    }
}

impl Packet {
    fn of(headers: Headers) -> Self {
        let (port, icmp, is_mid_connection) = match headers.payload {
            Payload::Tcp { ports: (_, to), flags } => {
                (Some(to), None, flags.is_some_and(|flags| !flags.starts_a_connection()))
            }
            Payload::Ports { ports: (_, to), .. } => (Some(to), None, false),
            Payload::Icmp { kind, code, .. } => (None, Some((kind, code)), false),
            Payload::Arp | Payload::Other(_) => (None, None, false),
        };
        Self {
            source: headers.source,
            destination: headers.destination,
            protocol: headers.protocol(),
            port,
            icmp,
            is_mid_connection,
            is_later_fragment: headers.is_later_fragment,
        }
    }
}

impl Collector {
    /// Takes in one copy.
    pub fn take_in(&mut self, dropped: Dropped, source_port: Option<u16>, now: Instant, at: SystemTime) {
        if let Some(entry) = self.flows.get_mut(&dropped) {
            entry.waiting.count += 1;
            entry.waiting.seen.1 = at;
            entry.waiting.source_port = source_port;
            return;
        }
        let sender = self.sender(&dropped);
        let has = self.senders.get(&sender).map_or(0, |flows| flows.all.len());
        if has >= OF_A_SENDER || (self.flows.len() >= IN_ALL && !self.make_room(has + 1)) {
            self.not_told(Untold::Flows, 1);
            return;
        }
        let flows = self.senders.entry(sender).or_default();
        if flows.waiting.is_empty() {
            self.turns.push_back(sender);
        }
        flows.all.push_back(dropped.clone());
        flows.waiting.push_back(dropped.clone());
        self.by_count.remove(&(has, sender));
        self.by_count.insert((has + 1, sender));
        let waiting = Waiting { dropped: dropped.clone(), count: 1, seen: (at, at), source_port };
        self.flows.insert(dropped, Entry { sender, began: now, waiting, told: None });
    }

    /// Counts packets that were not told.
    pub fn not_told(&mut self, why: Untold, count: u64) {
        *self.untold.entry(why).or_default() += count;
    }

    /// What was not told since the last call.
    pub fn take_untold(&mut self) -> BTreeMap<Untold, u64> {
        std::mem::take(&mut self.untold)
    }

    /// Sets the addresses of all pods of the cluster.
    pub fn set_pods(&mut self, all_pods: Members) {
        self.all_pods = all_pods;
    }

    /// Whether a flow waits to be explained.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.turns.is_empty()
    }

    /// At most `most` of the flows that wait, one of each sender in turn. They wait no more.
    pub fn next(&mut self, most: usize) -> Vec<Waiting> {
        let mut next = Vec::new();
        while next.len() < most
            && let Some(sender) = self.turns.pop_front()
        {
            let Some(flows) = self.senders.get_mut(&sender) else { continue };
            let Some(dropped) = flows.waiting.pop_front() else { continue };
            if !flows.waiting.is_empty() {
                self.turns.push_back(sender);
            }
            next.extend(self.flows.get(&dropped).map(|entry| entry.waiting.clone()));
        }
        next
    }

    /// A flow was told under a number, with the count that it had when it was taken.
    pub fn told(&mut self, told: &Waiting, id: u64) {
        let Waiting { dropped, count, seen: (_, last), .. } = told;
        let entry = self.flows.get_mut(dropped).filter(|entry| {
            // If it had to go meanwhile and came again, this is another one, which waits.
            let of_sender = self.senders.get(&entry.sender);
            let waits = of_sender.is_some_and(|flows| flows.waiting.contains(dropped));
            !waits
        });
        match entry {
            Some(entry) => entry.told = Some((id, *count)),
            None => self.ended.push(Update { id, count: *count, last: *last, is_final: true }),
        }
    }

    /// What changed of the flows that were told. Those of more than [`WINDOW`] ago end. Each that was told ends once.
    pub fn updates(&mut self, now: Instant) -> Vec<Update> {
        let is_over = |entry: &Entry| now.saturating_duration_since(entry.began) >= WINDOW;
        let over: Vec<Dropped> = self
            .flows
            .values()
            .filter(|entry| is_over(entry))
            .map(|entry| entry.waiting.dropped.clone())
            .collect();
        let mut updates = std::mem::take(&mut self.ended);
        for dropped in over {
            updates.extend(self.remove(&dropped));
        }
        for entry in self.flows.values_mut() {
            let count = entry.waiting.count;
            if let Some((id, told)) = &mut entry.told
                && *told != count
            {
                *told = count;
                updates.push(Update { id: *id, count, last: entry.waiting.seen.1, is_final: false });
            }
        }
        updates
    }

    fn sender(&self, dropped: &Dropped) -> Sender {
        let Some(packet) = &dropped.packet else { return Sender::Unreadable };
        let is_pod =
            |address: IpAddr| self.all_pods.of(Family::of(address)).contains(&Member::Address(address));
        if is_pod(packet.source) { Sender::Pod(packet.source) } else { Sender::Outside(packet.destination) }
    }

    /// Removes the oldest flow of the sender with the most, unless that has no more than `than`. Returns whether it did.
    fn make_room(&mut self, than: usize) -> bool {
        let Some((most, sender)) = self.by_count.last().copied() else { return false };
        let oldest = self.senders.get(&sender).and_then(|flows| flows.all.front()).cloned();
        let Some(oldest) = oldest.filter(|_| most > than) else { return false };
        let ended = self.remove(&oldest);
        self.ended.extend(ended);
        true
    }

    /// Removes a flow. Returns what became of it, if it was told.
    fn remove(&mut self, dropped: &Dropped) -> Option<Update> {
        let entry = self.flows.remove(dropped)?;
        if let Some(flows) = self.senders.get_mut(&entry.sender) {
            self.by_count.remove(&(flows.all.len(), entry.sender));
            flows.all.retain(|other| other != dropped);
            flows.waiting.retain(|other| other != dropped);
            if flows.waiting.is_empty() {
                self.turns.retain(|other| *other != entry.sender);
            }
            if flows.all.is_empty() {
                self.senders.remove(&entry.sender);
            } else {
                self.by_count.insert((flows.all.len(), entry.sender));
            }
        }
        let Waiting { count, seen: (_, last), .. } = entry.waiting;
        if entry.told.is_none() {
            self.not_told(Untold::Late, count);
        }
        entry.told.map(|(id, _)| Update { id, count, last, is_final: true })
    }
}

#[cfg(test)]
mod tests;
