//! Answers the CNI plugin: a pod starts once its rules are in the kernel, and is policed until its sandbox is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Handle;
use tracing::{debug, error, info, warn};

use super::traffic::{Traffic, TrafficCleaner};
use crate::{
    agent::{Attached, AttachmentRecord, Input, PodRules, Readiness, Status},
    dataplane::{DataplaneError, kernel::links::Links},
    gate::{
        records::{Recorded, Records},
        server,
    },
    k8s::{
        convert::validate,
        watch::{self, Access},
    },
    metrics::Metrics,
    model::{Attachment, AttachmentId, KnownAttachment, ObjectKey, Pod},
};
use towpath_cni::protocol::{self, Request, Response};

/// The socket on which a daemon with this run directory answers.
#[must_use]
pub fn gate_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("gate.sock")
}

/// How long a pod's rules may take to be written. The plugin gives up before.
const WRITING: Duration = Duration::from_mins(1);

/// How long to wait for what the removal of a pod changes in the kernel, and then for what is tracked of its addresses.
/// The plugin does not wait longer than for both: a pod must not be kept from ending.
const REMOVING: Duration = Duration::from_millis(900);

/// How long to look for the object of a new pod. A pod without one starts closed.
const LOOKING: Duration = Duration::from_secs(3);

/// The wait before the object is looked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How often to look for attachments that ended without a message.
const PRUNE_INTERVAL: Duration = Duration::from_mins(1);

/// Where the object of a pod is read, if the source of objects has not delivered it.
#[derive(Debug)]
pub(super) enum ObjectReader {
    /// From nowhere: it comes from a file or not at all.
    Files,
    /// From the API server.
    Api(Access, Handle),
}

/// What was started.
pub(super) struct Started {
    /// The attachments that a former process knew.
    pub(super) known: Vec<KnownAttachment>,
    /// Where the agent sends what has to be remembered.
    pub(super) records: Sender<AttachmentRecord>,
}

/// Why the rules of a pod are not written.
#[derive(Debug, PartialEq, Eq)]
enum NoRules {
    /// The sync loop has ended, and so will this process. The plugin asks the next one.
    Ending,
    /// For this reason.
    Because(String),
}

impl NoRules {
    fn removed() -> Self {
        Self::Because("the attachment was removed meanwhile".to_owned())
    }
}

impl From<String> for NoRules {
    fn from(reason: String) -> Self {
        Self::Because(reason)
    }
}

struct Gate {
    inputs: Sender<Input>,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    records: Records,
    objects: ObjectReader,
    traffic: TrafficCleaner,
    entries: Mutex<BTreeMap<AttachmentId, Entry>>,
}

/// An attachment that the plugin reported.
struct Entry {
    network: String,
    attachment: Attachment,
    /// Tells a repeated report from an earlier one.
    reported: Instant,
}

/// Reads the records of a former process and answers the plugin from now on.
///
/// # Errors
/// If the records cannot be read, the socket cannot be made, or no thread can be started.
pub(super) fn start(
    run_dir: &Path,
    inputs: Sender<Input>,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    objects: ObjectReader,
) -> io::Result<Started> {
    let socket = gate_socket(run_dir);
    let records = Records::open(protocol::records(&socket))?;
    let traffic = TrafficCleaner::start(metrics.clone())?;
    let gate =
        Arc::new(Gate { inputs, metrics, status, records, objects, traffic, entries: Mutex::default() });
    let known = gate.recover()?;
    let (sender, changes) = mpsc::channel();
    let keeper = gate.clone();
    thread::Builder::new().name("gate-records".to_owned()).spawn(move || keeper.keep_records(&changes))?;
    let pruner = gate.clone();
    thread::Builder::new().name("gate-prune".to_owned()).spawn(move || {
        loop {
            thread::sleep(PRUNE_INTERVAL);
            pruner.prune();
        }
    })?;
    server::serve(&socket, move |request| gate.answer(request))?;
    Ok(Started { known, records: sender })
}

impl Gate {
    /// The answer to a request; none if this process ends before it knows one.
    fn answer(&self, request: Request) -> Option<Response> {
        let start = Instant::now();
        let (command, result) = match request {
            Request::Add(attachment) => ("add", self.add(&attachment)),
            Request::Check(attachment) => ("check", self.check(&attachment)),
            Request::Del(id) => {
                self.del(&id);
                ("del", Ok(()))
            }
            Request::Gc { network, valid } => {
                self.gc(&network, &valid);
                ("gc", Ok(()))
            }
            Request::Status => ("status", self.ready().map_err(NoRules::Because)),
        };
        let outcome = if result.is_ok() { "done" } else { "failed" };
        self.metrics.gate_requests.with_label_values(&[command, outcome]).inc();
        self.metrics.gate_duration.with_label_values(&[command]).observe(start.elapsed().as_secs_f64());
        match result {
            Ok(()) => Some(Response::Done),
            Err(NoRules::Ending) => None,
            Err(NoRules::Because(reason)) => {
                warn!(command, reason, "CNI request failed");
                Some(Response::Failed { reason })
            }
        }
    }

    /// A new pod: returns once its rules are in the kernel and no connection of a former owner of its addresses is left.
    fn add(&self, reported: &protocol::Attachment) -> Result<(), NoRules> {
        let attachment = attachment(reported)?;
        let (id, pod, start) = (attachment.id.clone(), attachment.pod.clone(), Instant::now());
        let known = KnownAttachment { attachment: attachment.clone(), object: None };
        let recorded = Recorded { network: reported.network.clone(), known };
        let addresses: BTreeSet<IpAddr> = attachment.addresses.iter().copied().collect();
        {
            let mut entries = self.entries();
            self.records.keep(&recorded).map_err(|error| format!("cannot record the attachment: {error}"))?;
            let entry = Entry { network: recorded.network, attachment, reported: start };
            entries.insert(id.clone(), entry);
        }
        let mut closed = None;
        let repairs = self.metrics.drift_repairs.get();
        let mut rules = self.attach(&id, start, None, |is_closed| {
            // No connection can begin any more. What is left of the former owner's is deleted while the rules are
            // written, since finding it takes as long.
            closed = is_closed.then(|| self.traffic.forget(Traffic::Connections, addresses.clone()));
        })?;
        let mut pause = LOOK_AGAIN;
        while rules == PodRules::Closed && start.elapsed() < LOOKING {
            let object = self.read(&pod);
            if object.is_none() {
                thread::sleep(pause);
                pause *= 2;
            }
            rules = self.attach(&id, start, object, |_| ())?;
        }
        if rules == PodRules::Closed {
            warn!(%pod, "object of a new pod not found; the pod is closed until it is");
        }
        // If another program changed the rules, the addresses were perhaps not closed.
        let are_forgotten = closed.is_some_and(|forgetting| forgetting.wait(WRITING))
            && self.metrics.drift_repairs.get() == repairs;
        let left = if are_forgotten { Traffic::Waiting } else { Traffic::All };
        self.traffic.forget(left, addresses).wait(WRITING);
        debug!(%pod, attachment = %id, after = ?start.elapsed(), "pod may start");
        Ok(())
    }

    /// Tells the agent of an attachment, and waits for its rules. Meanwhile `taken` is told whether all its addresses
    /// were closed when the agent learned of it.
    fn attach(
        &self,
        id: &AttachmentId,
        reported: Instant,
        object: Option<Pod>,
        taken: impl FnOnce(bool),
    ) -> Result<PodRules, NoRules> {
        let (learned, were_closed) = sync_channel(1);
        let (written, rules) = sync_channel(1);
        {
            // Under the lock, so that a removal comes either before or after it.
            let entries = self.entries();
            let entry = entries.get(id).filter(|entry| entry.reported == reported);
            let Some(entry) = entry else { return Err(NoRules::removed()) };
            let known = KnownAttachment { attachment: entry.attachment.clone(), object };
            let attached = Box::new(Attached { known, taken: learned, written });
            self.inputs.send(Input::Attached(attached)).map_err(|_| NoRules::Ending)?;
        }
        let deadline = Instant::now() + WRITING;
        if let Ok(were_closed) = were_closed.recv_timeout(WRITING) {
            taken(were_closed);
        }
        rules.recv_timeout(deadline.saturating_duration_since(Instant::now())).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                let reasons = self.status.view().reasons.join("; ");
                let reasons = if reasons.is_empty() { "no reason is known".to_owned() } else { reasons };
                let within = WRITING.as_secs();
                NoRules::Because(format!(
                    "the rules of the pod were not written within {within} s: {reasons}"
                ))
            }
            RecvTimeoutError::Disconnected => {
                let is_there = self.entries().get(id).is_some_and(|entry| entry.reported == reported);
                if is_there { NoRules::Ending } else { NoRules::removed() }
            }
        })
    }

    /// The object of a pod, as the API server has it.
    fn read(&self, pod: &ObjectKey) -> Option<Pod> {
        let ObjectReader::Api(access, runtime) = &self.objects else { return None };
        runtime
            .block_on(watch::pod(access, pod))
            .inspect_err(|error| warn!(%pod, %error, "cannot read the object of a new pod"))
            .ok()
            .flatten()
    }

    /// The sandbox is about to be removed: ends the pod, and the connections of its addresses before another pod can
    /// have them.
    fn del(&self, id: &protocol::AttachmentId) {
        self.remove(&[model_id(id)]);
    }

    fn gc(&self, network: &str, valid: &[protocol::AttachmentId]) {
        let valid: BTreeSet<AttachmentId> = valid.iter().map(model_id).collect();
        self.remove_gone(|id, entry, links| {
            // A list may lack what still runs: one that another runtime sent, or that is older than an ADD. What still
            // has its link ends with that.
            let is_listed = valid.contains(id) || entry.network != network;
            !is_listed && !has_link(&entry.attachment, links)
        });
    }

    /// Removes the attachments for which this holds. It is given the links of this node.
    fn remove_gone(&self, is_gone: impl Fn(&AttachmentId, &Entry, &BTreeSet<String>) -> bool) {
        let links = match links() {
            Ok(links) => links,
            Err(error) => {
                warn!(%error, "cannot read the network interfaces");
                return;
            }
        };
        let entries = self.entries();
        let gone = entries.iter().filter(|(id, entry)| is_gone(id, entry, &links));
        let gone: Vec<AttachmentId> = gone.map(|(id, _)| id.clone()).collect();
        drop(entries);
        if !gone.is_empty() {
            info!(count = gone.len(), "attachments ended without a message");
            self.remove(&gone);
        }
    }

    fn remove(&self, ids: &[AttachmentId]) {
        let (written, done) = sync_channel(1);
        let mut addresses = BTreeSet::new();
        {
            let mut entries = self.entries();
            for entry in ids.iter().filter_map(|id| entries.remove(id)) {
                addresses.extend(entry.attachment.addresses);
            }
            // The loop is gone only when the process ends.
            let _ = self.inputs.send(Input::Detached(ids.to_vec(), written));
        }
        for id in ids {
            if let Err(error) = self.records.forget(id) {
                warn!(attachment = %id, %error, "cannot remove the record of an attachment");
            }
        }
        if done.recv_timeout(REMOVING).is_err() {
            warn!(attachments = ids.len(), "removal of attachments not written in time; it is retried");
        }
        if !addresses.is_empty() {
            self.traffic.forget(Traffic::All, addresses).wait(REMOVING);
        }
    }

    /// Whether the rules of a pod are in the kernel: another sync shows it.
    fn check(&self, reported: &protocol::Attachment) -> Result<(), NoRules> {
        let id = model_id(&reported.id);
        let known = self.entries().get(&id).map(|entry| entry.reported);
        let known = known.ok_or_else(|| "this attachment was never reported, or is gone".to_owned())?;
        self.attach(&id, known, None, |_| ()).map(drop)
    }

    fn ready(&self) -> Result<(), String> {
        match self.status.readiness() {
            Readiness::Starting(reason) => Err(reason),
            Readiness::Ready | Readiness::Degraded(_) | Readiness::Failing(_) => Ok(()),
        }
    }

    /// The attachments that a former process recorded and that still exist.
    fn recover(&self) -> io::Result<Vec<KnownAttachment>> {
        let links = links()?;
        let (there, gone): (Vec<Recorded>, Vec<Recorded>) = self.records.read()?.into_iter().partition(
            |Recorded { known: KnownAttachment { attachment, .. }, .. }| {
                attachment.host_interfaces.is_empty() || has_link(attachment, &links)
            },
        );
        for Recorded { known: KnownAttachment { attachment, .. }, .. } in &gone {
            info!(pod = %attachment.pod, attachment = %attachment.id, "interface of a recorded attachment is gone");
            self.records.forget(&attachment.id)?;
        }
        let mut entries = self.entries();
        let known = there.into_iter().map(|Recorded { network, known }| {
            let attachment = known.attachment.clone();
            let id = attachment.id.clone();
            let entry = Entry { network, attachment, reported: Instant::now() };
            entries.insert(id, entry);
            known
        });
        Ok(known.collect())
    }

    /// Removes attachments that ended without a message: their interfaces are gone, or the plugin removed their records
    /// while the daemon did not answer.
    fn prune(&self) {
        self.remove_gone(|id, entry, links| {
            if entry.attachment.host_interfaces.is_empty() {
                // Nothing else shows it.
                return !self.records.has(id);
            }
            !has_link(&entry.attachment, links)
        });
    }

    /// Keeps the records as the agent knows the pods.
    fn keep_records(&self, changes: &Receiver<AttachmentRecord>) {
        for change in changes {
            let result = match change {
                AttachmentRecord::Keep(known) => {
                    // Under the lock, so that no record of a removed attachment comes back.
                    let entries = self.entries();
                    entries.get(&known.attachment.id).map_or(Ok(()), |entry| {
                        self.records.keep(&Recorded { network: entry.network.clone(), known: *known })
                    })
                }
                AttachmentRecord::Forget(id) => {
                    self.entries().remove(&id);
                    self.records.forget(&id)
                }
            };
            if let Err(source) = result {
                let error = DataplaneError::System { doing: "recording an attachment".to_owned(), source };
                error!(%error, "cannot record an attachment");
                self.metrics.failed("gate", error.reason().label());
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<AttachmentId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The interfaces of this node that are no bridges: the ends of pods' links among them. Bridges come and go without
/// their pods.
fn links() -> io::Result<BTreeSet<String>> {
    let all = Links::open()?.all()?;
    Ok(all.into_iter().filter(|link| link.kind != "bridge").map(|link| link.name).collect())
}

/// Whether one of its links on the node exists.
fn has_link(attachment: &Attachment, links: &BTreeSet<String>) -> bool {
    attachment.host_interfaces.iter().any(|name| links.contains(&**name))
}

fn model_id(id: &protocol::AttachmentId) -> AttachmentId {
    AttachmentId { container: id.container_id.as_str().into(), interface: id.ifname.as_str().into() }
}

/// The attachment as the model has it.
fn attachment(reported: &protocol::Attachment) -> Result<Attachment, String> {
    let pod = &reported.pod;
    validate::dns_label(&pod.namespace).map_err(|error| format!("namespace of the pod: {error}"))?;
    validate::dns_subdomain(&pod.name).map_err(|error| format!("name of the pod: {error}"))?;
    let mac = reported.mac.as_deref().map(|text| {
        let octets: Result<Vec<u8>, _> = text.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect();
        let octets = octets.ok().and_then(|octets| <[u8; 6]>::try_from(octets).ok());
        octets.ok_or_else(|| format!("hardware address of the pod: {text:?} is none"))
    });
    Ok(Attachment {
        id: model_id(&reported.id),
        pod: ObjectKey::new(pod.namespace.as_str(), pod.name.as_str()),
        uid: pod.uid.as_deref().filter(|uid| !uid.is_empty()).map(Arc::from),
        host_interfaces: reported.host_interfaces.iter().map(|name| name.as_str().into()).collect(),
        mac: mac.transpose()?,
        addresses: reported.addresses.clone(),
    })
}

#[cfg(test)]
mod tests;
