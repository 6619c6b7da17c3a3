//! Keeps the interface guard up to date: which interface belongs to which pod, and the tables that check what enters.
//!
//! It runs on its own thread, so that a slow policy change does not delay it. It reads the node's interfaces again
//! whenever the kernel reports that links have changed, and binds them to the pods that the agent sends.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::{debug, error, info, warn};

use crate::{
    agent::{AddressOwners, Answer, GuardInput, GuardState, Status},
    dataplane::{
        DataplaneError,
        command::Commands,
        kernel::{
            guard::{self, Changes, GuardTables, PreviousBinding, PreviousGuard},
            links::{self, Link, Links},
        },
    },
    metrics::Metrics,
    ruleset::{
        compile::Tunnels,
        guard::{Bindings, KnownAddresses, Mac, Veth, bind, render::Guard},
    },
};

/// The part of the daemon that reports conditions of the guard.
const PART: &str = "interface guard";

/// Link changes that arrive together are handled together: not before this long after the last time.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// While an interface has no address yet, it is read again after this at first, and then after twice as long each time.
/// A network plugin gives a new interface its addresses within milliseconds.
const RETRY_FIRST: Duration = Duration::from_millis(5);

/// How long a network plugin has from an interface's first address to its last one and to the hardware address. It is
/// done before the first process of a pod starts, which takes longer.
const SETTLE: Duration = Duration::from_millis(100);

/// The longest time between two reads of the interfaces.
const RETRY_MOST: Duration = Duration::from_secs(2);

/// How often the tables are compared with what was written, and the drop counters are read.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// What the guard's thread receives.
#[derive(Debug)]
enum Input {
    /// From the agent.
    Agent(GuardInput),
    /// Links have changed.
    Links,
    /// Another program has changed our tables.
    Foreign,
}

/// The guard before its thread has started.
#[derive(Debug)]
pub(super) struct UnstartedGuard {
    links: Links,
    tables: GuardTables,
}

/// What is known of the peer of a veth.
#[derive(Clone, Debug)]
struct VethReading {
    veth: Veth,
    /// When the peer was first seen with an address.
    since: Option<Instant>,
    /// Whether it is never read again.
    is_final: bool,
}

impl VethReading {
    /// An empty reading.
    fn unread(link: &Link) -> Self {
        let veth = Veth {
            index: link.index,
            name: link.name.clone(),
            bridge: link.master,
            netns: link.peer.map_or(-1, |(_, netns)| netns),
            mac: Mac([0; 6]),
            addresses: Vec::new(),
            routed: Vec::new(),
            is_read: false,
        };
        Self { veth, since: None, is_final: false }
    }

    fn has_address(&self) -> bool {
        self.veth
            .addresses
            .iter()
            .any(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
    }

    /// Takes in what was read. From the first address on, the network plugin has a moment to add the others; what is
    /// there then is final.
    fn take(&mut self, veth: Veth, now: Instant) {
        self.veth = veth;
        if self.has_address() {
            let since = *self.since.get_or_insert(now);
            self.is_final = now.saturating_duration_since(since) >= SETTLE;
        }
    }
}

impl UnstartedGuard {
    /// Takes over the tables of the previous process; if that is not possible, they are rewritten. What that process
    /// let an interface use stays valid: what its pod has changed at its end since does not count. Also returns the
    /// interfaces that it had closed.
    fn take_over(&mut self) -> (BTreeMap<u32, VethReading>, BTreeSet<u32>) {
        let all = match self.links.all() {
            Ok(all) => all,
            Err(error) => {
                warn!(%error, "cannot read the network interfaces");
                return Default::default();
            }
        };
        let interfaces = all.iter().map(|link| (link.name.clone(), link.index)).collect();
        let PreviousGuard { bindings, closed } = self.tables.take_over(&interfaces).unwrap_or_else(|error| {
            warn!(%error, "cannot read the interface guard of the previous process");
            PreviousGuard::default()
        });
        let reading = |link: &Link| {
            let PreviousBinding { mac, addresses } = bindings.get(&link.name)?;
            let mut reading = VethReading::unread(link);
            reading.veth.mac = *mac;
            reading.veth.addresses = addresses.iter().copied().collect();
            reading.veth.is_read = true;
            // An interface with only its link-local address was not set up yet.
            reading.is_final = reading.has_address();
            reading.is_final.then_some((link.index, reading))
        };
        (all.iter().filter(|link| link.peer.is_some()).filter_map(reading).collect(), closed)
    }

    /// The tunnels that end on this node now.
    pub(super) fn tunnels(&mut self) -> io::Result<Tunnels> {
        let all = self.links.all()?;
        self.links.tunnels(&all)
    }
}

/// Checks whether this kernel supports the guard. Writes nothing.
///
/// # Errors
/// What is missing.
pub(super) fn probe(commands: &Arc<Commands>) -> Result<UnstartedGuard, DataplaneError> {
    let system = |doing: &str| {
        let doing = doing.to_owned();
        move |source: io::Error| DataplaneError::System { doing, source }
    };
    let tables = GuardTables::new(commands.clone()).map_err(system("opening a netfilter socket"))?;
    tables.probe()?;
    let mut links = Links::open().map_err(system("opening a route socket"))?;
    let all = links.all().map_err(system("reading the network interfaces"))?;
    links.probe(&all).map_err(system("reading the addresses behind a veth pair (Linux 4.20 can)"))?;
    Ok(UnstartedGuard { links, tables })
}

/// Starts the guard's thread. It stops when the returned sender is dropped. `tunnels` is called with the tunnels that
/// end on this node whenever they have changed.
///
/// # Errors
/// If no thread can be started.
pub(super) fn start(
    ready: UnstartedGuard,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    tunnels: impl Fn(Tunnels) + Send + 'static,
) -> io::Result<Sender<GuardInput>> {
    let (owners, new_owners) = mpsc::channel::<GuardInput>();
    let (inputs, inbox) = mpsc::channel::<Input>();
    status.set_condition(PART, Some("the interface guard is not written yet".to_owned()));
    follow_links(inputs.clone())?;
    follow_tables(ready.tables.changes(), inputs.clone())?;
    thread::Builder::new().name("guard-owners".to_owned()).spawn(move || {
        for update in new_owners {
            if inputs.send(Input::Agent(update)).is_err() {
                return;
            }
        }
    })?;
    let mut ready = ready;
    let (readings, closed) = ready.take_over();
    let bindings = Bindings::retired(closed);
    let worker = Worker {
        links: ready.links,
        tables: ready.tables,
        metrics,
        status,
        tunnels: Box::new(tunnels),
        known_tunnels: None,
        readings,
        bindings,
        interfaces: BTreeMap::new(),
        owners: None,
        drops: BTreeMap::new(),
        retry: RETRY_FIRST,
        failing: false,
    };
    thread::Builder::new().name("guard".to_owned()).spawn(move || worker.run(&inbox))?;
    Ok(owners)
}

fn follow_links(inputs: Sender<Input>) -> io::Result<()> {
    let notify = move || inputs.send(Input::Links).is_ok();
    thread::Builder::new().name("guard-links".to_owned()).spawn(move || {
        if let Err(error) = links::follow(&notify) {
            error!(%error, "cannot follow changes of network interfaces; reading them every 2 seconds");
        }
    })?;
    Ok(())
}

fn follow_tables(changes: Changes, inputs: Sender<Input>) -> io::Result<()> {
    let notify = move || inputs.send(Input::Foreign).is_ok();
    thread::Builder::new().name("guard-tables".to_owned()).spawn(move || {
        if let Err(error) = guard::follow(&changes, &notify) {
            error!(%error, "cannot follow changes of the guard's tables; checking them every 15 seconds");
        }
    })?;
    Ok(())
}

/// The guard's thread.
struct Worker {
    links: Links,
    tables: GuardTables,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    tunnels: Box<dyn Fn(Tunnels) + Send>,
    known_tunnels: Option<Tunnels>,
    /// What was read of each veth, by its index.
    readings: BTreeMap<u32, VethReading>,
    bindings: Bindings,
    /// The indices of all interfaces, by name.
    interfaces: BTreeMap<String, u32>,
    owners: Option<AddressOwners>,
    /// The drop counters when they were last read.
    drops: BTreeMap<&'static str, u64>,
    /// How long to wait before incomplete interfaces are read again.
    retry: Duration,
    /// Whether the last sync failed.
    failing: bool,
}

impl Worker {
    fn run(mut self, inbox: &Receiver<Input>) {
        let mut check_at = Instant::now() + CHECK_INTERVAL;
        let mut foreign = false;
        let mut waiting_for = Vec::new();
        let mut answers: Vec<Answer> = Vec::new();
        loop {
            let first = match inbox.recv_timeout(self.retry.min(RETRY_MOST)) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let timed_out = first.is_none();
            let mut waiting = Vec::new();
            for input in first.into_iter().chain(inbox.try_iter()) {
                match input {
                    Input::Agent(GuardInput::Owners(mut owners)) => {
                        waiting.extend(owners.done.take());
                        self.owners = Some(owners);
                    }
                    Input::Agent(GuardInput::Answers(more)) => answers.extend(more),
                    Input::Links => {}
                    Input::Foreign => foreign = true,
                }
            }
            if !timed_out {
                self.retry = RETRY_FIRST;
            }
            // Before the first list of pods nothing is known of any interface, and the tables of the previous process
            // are better than new ones.
            if self.owners.is_some() {
                self.sync();
                waiting_for.extend(waiting);
                if !self.failing {
                    for done in waiting_for.drain(..) {
                        // The agent may have stopped waiting.
                        let _ = done.send(());
                    }
                    answers.drain(..).for_each(Answer::give);
                }
                let due = Instant::now() >= check_at;
                if std::mem::take(&mut foreign) || due {
                    self.check();
                }
                if due {
                    check_at = Instant::now() + CHECK_INTERVAL;
                    self.read_drops();
                }
            }
            thread::sleep(DEBOUNCE);
        }
    }

    /// Reads the interfaces, binds them and writes what changed.
    fn sync(&mut self) {
        let result = self.read().map_err(|source| DataplaneError::System {
            doing: "reading the network interfaces".to_owned(),
            source,
        });
        let result = result.and_then(|host| {
            self.bind(&host);
            self.tables.apply(&Guard::new(&self.bindings))
        });
        match result {
            Ok(_) => {
                if std::mem::take(&mut self.failing) {
                    info!("interface guard written again");
                }
                self.status.set_condition(PART, None);
                self.publish();
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    error!(%error, "cannot write the interface guard; rules written before stay in force");
                }
                self.metrics.failed("guard", error.reason().label());
                self.status
                    .set_condition(PART, Some(format!("the interface guard cannot be written: {error}")));
                self.retry = RETRY_MOST;
            }
        }
    }

    /// Reads all interfaces, and the peers of those that are not final. Returns the addresses of this host.
    fn read(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        let all = self.links.all()?;
        let routes = self.links.host_routes()?;
        let now = Instant::now();
        let mut readings = BTreeMap::new();
        for link in &all {
            let before = self.readings.remove(&link.index);
            if before.is_none() && link.peer.is_none() {
                continue;
            }
            let mut reading = before.unwrap_or_else(|| VethReading::unread(link));
            if !reading.is_final {
                // An error in one namespace affects only its interface.
                match self.links.veth(link) {
                    Ok(Some(veth)) => reading.take(veth, now),
                    Ok(None) => {}
                    Err(error) => debug!(interface = link.name, %error, "cannot read the peer of a veth"),
                }
            }
            reading.veth.name.clone_from(&link.name);
            reading.veth.bridge = bridge(link, &all);
            reading.veth.routed = routes.get(&link.index).cloned().unwrap_or_default();
            readings.insert(link.index, reading);
        }
        self.readings = readings;
        self.interfaces = all.iter().map(|link| (link.name.clone(), link.index)).collect();
        let tunnels = self.links.tunnels(&all)?;
        if self.known_tunnels.as_ref() != Some(&tunnels) {
            (self.tunnels)(tunnels.clone());
            self.known_tunnels = Some(tunnels);
        }
        self.links.host_addresses()
    }

    fn bind(&mut self, host: &BTreeSet<IpAddr>) {
        let Some(owners) = &self.owners else { return };
        let known = KnownAddresses {
            pods: &owners.pods,
            all_pods: &owners.all_pods,
            nodes: &owners.nodes,
            pod_cidrs: &owners.pod_cidrs,
            host,
        };
        let veths: Vec<Veth> = self.readings.values().map(|reading| reading.veth.clone()).collect();
        let bindings = bind(&veths, &known, &self.bindings);
        for (pod, why) in &bindings.unbound {
            if !self.bindings.unbound.contains_key(pod) {
                info!(%pod, reason = %why, "no interface bound to the pod yet");
            }
        }
        let settling = self.readings.values().any(|reading| !reading.is_final && reading.has_address());
        let incomplete = !bindings.unbound.is_empty()
            || bindings.ports.values().any(|port| port.pod.is_none() && port.addresses.is_empty());
        self.retry = if settling {
            SETTLE / 2
        } else if incomplete {
            (self.retry * 2).min(RETRY_MOST)
        } else {
            RETRY_MOST
        };
        self.bindings = bindings;
    }

    fn publish(&self) {
        let ports = self.bindings.ports.values();
        let unknown = ports.clone().filter(|port| port.pod.is_none()).count();
        let count = |gauge: &prometheus::IntGauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        count(&self.metrics.guarded_interfaces, self.bindings.ports.len());
        count(&self.metrics.unknown_interfaces, unknown);
        count(&self.metrics.unguarded_pods, self.bindings.unbound.len());
        let unbound = self.bindings.unbound.iter().map(|(pod, why)| (pod.clone(), why.to_string()));
        self.status.set_guard(GuardState {
            off: None,
            interfaces: self.bindings.ports.len(),
            unknown,
            unbound: unbound.collect(),
            pods: ports.filter_map(|port| Some((port.pod.clone()?, port.name.clone()))).collect(),
        });
    }

    /// Compares the tables with what was written, and rewrites them if they differ.
    fn check(&mut self) {
        if self.failing {
            return;
        }
        match self.tables.check(&self.interfaces) {
            Ok(true) => {}
            Ok(false) => {
                warn!("another program changed the interface guard's tables; rewriting them");
                self.metrics.drift_repairs.inc();
                self.tables.distrust();
                self.sync();
            }
            Err(error) => {
                warn!(%error, "cannot check the interface guard's tables");
                self.metrics.failed("guard", error.reason().label());
            }
        }
    }

    fn read_drops(&mut self) {
        let Ok(drops) = self.tables.drops() else { return };
        for (reason, count) in &drops {
            let before = self.drops.get(reason).copied().unwrap_or(0);
            // The counters of rewritten tables restart at zero.
            let more = if *count >= before { count - before } else { *count };
            self.metrics.guard_drops.with_label_values(&[reason]).inc_by(more);
        }
        self.drops = drops;
    }
}

/// The bridge that a link is a port of; other masters, such as bonds, do not count.
fn bridge(link: &Link, all: &[Link]) -> Option<u32> {
    link.master.filter(|master| all.iter().any(|other| other.index == *master && other.kind == "bridge"))
}
