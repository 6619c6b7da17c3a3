//! Requests to a lab: probes, streams, floods and watches between its hosts.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Once,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{
    Flood, FloodFlow, Host, Lab, LabError, Outcome, PodId, Probe, Reply, Stream, Watch, probe::ask_all,
};

/// How long new links may take to become usable: a hundred times what they take on an idle machine.
const READY: Duration = Duration::from_secs(10);

/// A host that can send and receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// A pod.
    Pod(PodId),
    /// A node itself, counted from 0.
    Node(usize),
    /// The host outside of the cluster.
    External,
}

impl From<PodId> for End {
    fn from(pod: PodId) -> Self {
        Self::Pod(pod)
    }
}

impl Lab {
    /// Any host.
    ///
    /// # Errors
    /// [`LabError::NoSuchPod`], [`LabError::NoSuchNode`].
    pub fn host(&self, end: End) -> Result<&Host, LabError> {
        match end {
            End::Pod(id) => self.pod(id).map(|pod| &pod.host),
            End::Node(index) => self.node(index).map(|node| &node.host),
            End::External => Ok(&self.external),
        }
    }

    pub(super) fn host_mut(&mut self, end: End) -> Result<&mut Host, LabError> {
        let nodes = self.nodes.len();
        match end {
            End::Pod(id) => self.pods.get_mut(&id).map(|pod| &mut pod.host).ok_or(LabError::NoSuchPod(id)),
            End::Node(index) => {
                let node = self.nodes.get_mut(index).map(|node| &mut node.host);
                node.ok_or(LabError::NoSuchNode { index, nodes })
            }
            End::External => Ok(&mut self.external),
        }
    }

    /// The host that has an address.
    ///
    /// # Errors
    /// [`LabError::Unowned`].
    pub fn owner(&self, address: IpAddr) -> Result<&Host, LabError> {
        let pods = self.pods.values().map(|pod| &pod.host);
        let nodes = self.nodes.iter().map(|node| &node.host);
        pods.chain(nodes)
            .chain([&self.external])
            .find(|host| host.addresses().contains(&address))
            .ok_or(LabError::Unowned(address))
    }

    /// Sends all probes at once and returns their outcomes, in the same order.
    ///
    /// Every probe is a new flow, from a port that was not used recently, and is sent once: whether to retry an
    /// unanswered one is up to the caller. All senders work in parallel, so that however many probes stay unanswered,
    /// the whole takes little more than `timeout`.
    ///
    /// # Errors
    /// If a sender does not exist or does not have a probe's source address, or the system provides no socket.
    pub fn probe_all(&self, probes: &[Probe], timeout: Duration) -> Result<Vec<Outcome>, LabError> {
        Ok(self.ask_all(probes, timeout)?.into_iter().map(|reply| reply.outcome).collect())
    }

    /// As [`Self::probe_all`], and returns who answered.
    ///
    /// # Errors
    /// As [`Self::probe_all`].
    pub fn ask_all(&self, probes: &[Probe], timeout: Duration) -> Result<Vec<Reply>, LabError> {
        let by_sender = by_sender(probes);
        let at_once = (file_limit() / 2 / by_sender.len().max(1)).clamp(16, 2000);
        let mut asked = Vec::with_capacity(by_sender.len());
        for (sender, indexes) in by_sender {
            let host = self.host(sender)?;
            let fresh = host.fresh();
            let probes: Vec<Probe> = indexes.iter().filter_map(|at| probes.get(*at).copied()).collect();
            let ask = move || {
                let mut replies = Vec::with_capacity(probes.len());
                for some in probes.chunks(at_once) {
                    replies.extend(ask_all(some, &fresh, timeout)?);
                }
                Ok::<_, std::io::Error>(replies)
            };
            asked.push((host.name(), indexes, host.netns().submit(ask)));
        }
        let mut all: Vec<Option<Reply>> = vec![None; probes.len()];
        for (name, indexes, pending) in asked {
            let replies = pending.wait()?.map_err(LabError::system(format!("send probes from {name}")))?;
            for (at, reply) in indexes.into_iter().zip(replies) {
                if let Some(slot) = all.get_mut(at) {
                    *slot = Some(reply);
                }
            }
        }
        // Each sender returns a reply for each of its probes, and each probe has a sender.
        Ok(all.into_iter().flatten().collect())
    }

    /// Waits until every one of these probes has been answered once.
    ///
    /// The kernel activates links in the background, and drops what is sent through them before: on a busy machine that
    /// takes a moment.
    pub(super) fn wait_for(&self, probes: &[Probe]) -> Result<(), LabError> {
        let until = Instant::now() + READY;
        let mut missing = probes.to_vec();
        loop {
            let outcomes = self.probe_all(&missing, Duration::from_millis(20))?;
            let mut outcomes = outcomes.into_iter();
            missing.retain(|_| outcomes.next().is_none_or(|outcome| !outcome.is_open()));
            match missing.first() {
                None => return Ok(()),
                Some(probe) if Instant::now() > until => {
                    let from = self.host(probe.from)?.name().to_owned();
                    return Err(LabError::NotReady { from, to: probe.to });
                }
                Some(_) => {}
            }
        }
    }

    /// Opens a TCP connection that stays open, to a port on which the owner of `to` listens.
    ///
    /// # Errors
    /// If it is not established `within` this time.
    pub fn open_stream(
        &self,
        from: impl Into<End>,
        to: SocketAddr,
        within: Duration,
    ) -> Result<Stream, LabError> {
        self.host(from.into())?.netns().run(move || Stream::connect(to, within))?
    }

    /// Starts a new UDP flow for each of these at every `beat`, and records what arrives.
    ///
    /// # Errors
    /// [`LabError::Unowned`] if no host has a receiver's address, or the system provides no socket.
    pub fn flood(&self, flows: &[FloodFlow], beat: Duration) -> Result<Flood, LabError> {
        let ends = |flow: &FloodFlow| Ok((*flow, self.host(flow.from)?, self.owner(flow.to)?));
        let flows = flows.iter().map(ends).collect::<Result<Vec<_>, LabError>>()?;
        Flood::start(&flows, beat)
    }

    /// Repeats these probes, which are expected to be answered always, and counts their outcomes.
    ///
    /// # Errors
    /// If a sender does not exist.
    pub fn watch(&self, probes: &[Probe], every: Duration, timeout: Duration) -> Result<Watch, LabError> {
        let senders = by_sender(probes).into_iter().map(|(sender, indexes)| {
            let its_own = indexes.iter().filter_map(|at| probes.get(*at).copied()).collect();
            self.host(sender).map(|host| (host, its_own))
        });
        Watch::start(senders.collect::<Result<Vec<_>, LabError>>()?, every, timeout)
    }
}

/// The indexes of the probes of each sender.
fn by_sender(probes: &[Probe]) -> BTreeMap<End, Vec<usize>> {
    let mut by_sender: BTreeMap<End, Vec<usize>> = BTreeMap::new();
    for (at, probe) in probes.iter().enumerate() {
        by_sender.entry(probe.from).or_default().push(at);
    }
    by_sender
}

/// How many files this process may open; raised to the hard limit by the first call.
fn file_limit() -> usize {
    static RAISE: Once = Once::new();
    RAISE.call_once(|| {
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            // With fewer files the rounds of probes are smaller, nothing else.
            let _refused = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
    });
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}
