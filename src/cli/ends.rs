//! The ends of a question: pods, workloads, Services, nodes and addresses by the names that people use for them.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use crate::{
    k8s::{
        manifest::hints::nearest,
        service::{Service, ServicePort},
    },
    model::{Cluster, ContainerPort, Endpoint, ObjectKey, Pod, Protocol, Transport, Workload},
    policy::near_miss::Short,
};

/// How many candidates a message lists.
const LISTED: usize = 10;

/// How many pods of a workload or a Service are asked about, at each end.
pub(super) const MOST_PODS: usize = 50;

/// How many names are compared with a misspelt one.
const COMPARED: usize = 20_000;

/// The kinds of workloads, each with kubectl's names for it.
const WORKLOADS: [(&str, &[&str]); 6] = [
    ("Deployment", &["deploy", "deployment", "deployments"]),
    ("StatefulSet", &["sts", "statefulset", "statefulsets"]),
    ("DaemonSet", &["ds", "daemonset", "daemonsets"]),
    ("ReplicaSet", &["rs", "replicaset", "replicasets"]),
    ("Job", &["job", "jobs"]),
    ("CronJob", &["cj", "cronjob", "cronjobs"]),
];

/// What a name is the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NamedKind {
    Pod,
    Workload(&'static str),
    Service,
    Node,
}

impl NamedKind {
    /// The kind that kubectl means by this word.
    fn of(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        match &*word {
            "po" | "pod" | "pods" => Some(Self::Pod),
            "svc" | "service" | "services" => Some(Self::Service),
            "no" | "node" | "nodes" => Some(Self::Node),
            word => WORKLOADS
                .iter()
                .find(|(_, names)| names.contains(&word))
                .map(|(kind, _)| Self::Workload(kind)),
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Workload(kind) => kind,
            Self::Service => "Service",
            Self::Node => "node",
        }
    }
}

/// One end of a question.
#[derive(Clone, Debug)]
pub(super) struct End {
    /// What was named, if it is neither a pod nor an address: `shop/Deployment/web`.
    pub(super) title: Option<String>,
    /// What it stands for: at least one pod or address.
    pub(super) endpoints: Vec<Endpoint>,
    /// The Service, if it is one.
    pub(super) service: Option<Service>,
}

/// A name that means nothing, or more than one thing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NameError(String);

/// Where names are looked up.
pub(super) struct Names<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) services: &'a [Service],
    /// The namespace of names that give none.
    pub(super) namespace: Option<&'a str>,
    /// The namespace that is preferred if such a name occurs in several.
    pub(super) preferred: Option<&'a str>,
}

/// Something that a name may mean.
struct Candidate {
    kind: NamedKind,
    namespace: Option<Arc<str>>,
    name: Arc<str>,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = (self.kind.word().to_ascii_lowercase(), Short(&self.name));
        match (&self.namespace, self.kind) {
            (Some(namespace), NamedKind::Pod) => write!(f, "{}/{name}", Short(namespace)),
            (Some(namespace), _) => write!(f, "{}/{kind}/{name}", Short(namespace)),
            (None, _) => write!(f, "{kind}/{name}"),
        }
    }
}

impl Names<'_> {
    /// What `text` means.
    pub(super) fn resolve(&self, text: &str) -> Result<End, NameError> {
        if let Ok(address) = text.strip_prefix("ip:").unwrap_or(text).parse::<IpAddr>() {
            return match self.services.iter().find(|service| service.addresses.contains(&address)) {
                Some(service) => self.service(service),
                None => Ok(End { title: None, endpoints: vec![Endpoint::Address(address)], service: None }),
            };
        }
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) || text.chars().any(char::is_whitespace) {
            return Err(unreadable(text));
        }
        match parts[..] {
            [name] if is_numeric(name) => Err(unreadable(text)),
            [name] => self.without_namespace(text, None, name),
            [first, name] => {
                let key = ObjectKey::new(first, name);
                if let Some(pod) = self.cluster.pod(&key) {
                    return Ok(of_pod(pod));
                }
                match NamedKind::of(first) {
                    Some(kind) if !self.is_namespace(first) => self.without_namespace(text, Some(kind), name),
                    _ => self.within(first, None, name),
                }
            }
            [namespace, kind, name] => {
                let Some(kind) = NamedKind::of(kind) else {
                    let words = WORKLOADS.iter().flat_map(|(_, names)| names.iter().copied());
                    let words: Vec<&str> = words.chain(["pod", "service", "svc", "node"]).collect();
                    let hint = did_you_mean(kind, words.into_iter());
                    return Err(NameError(format!("{:?} is not a kind of pods{hint}", Shown(kind))));
                };
                self.within(namespace, Some(kind), name)
            }
            _ => Err(unreadable(text)),
        }
    }

    fn is_namespace(&self, name: &str) -> bool {
        self.cluster.namespace(name).is_some() || self.cluster.pods_in(name).next().is_some()
    }

    /// Everything of this name, in one namespace or in all, and only of this kind if it is given.
    fn candidates(&self, namespace: Option<&str>, kind: Option<NamedKind>, name: &str) -> Vec<Candidate> {
        let mut found: Vec<Candidate> = Vec::new();
        let is_wanted = |one: NamedKind| kind.is_none_or(|kind| kind == one);
        let pods = || self.cluster.pods().filter(|pod| namespace.is_none_or(|n| *n == *pod.key.namespace));
        let candidate = |kind, namespace: &Arc<str>, name: &Arc<str>| Candidate {
            kind,
            namespace: Some(namespace.clone()),
            name: name.clone(),
        };
        if is_wanted(NamedKind::Pod) {
            let named = pods().filter(|pod| *pod.key.name == *name);
            found.extend(named.map(|pod| candidate(NamedKind::Pod, &pod.key.namespace, &pod.key.name)));
        }
        let mut seen = BTreeSet::new();
        for pod in pods() {
            let Some(workload) = &pod.workload else { continue };
            let is_it = |of: &&(&'static str, &[&str])| {
                is_of(workload, of.0, name) && is_wanted(NamedKind::Workload(of.0))
            };
            let Some((of, _)) = WORKLOADS.iter().find(is_it) else { continue };
            // A workload of a file is its only pod, and has its name.
            let is_pod = kind.is_none() && *pod.key.name == *name;
            if !is_pod && seen.insert((&pod.key.namespace, *of)) {
                found.push(candidate(NamedKind::Workload(of), &pod.key.namespace, &name.into()));
            }
        }
        // A Service usually has the name of its pods' workload, which is meant then.
        if is_wanted(NamedKind::Service) && (kind.is_some() || found.is_empty()) {
            let services = self.services.iter().filter(|service| *service.key.name == *name);
            let services = services.filter(|service| namespace.is_none_or(|n| *n == *service.key.namespace));
            found
                .extend(services.map(|one| candidate(NamedKind::Service, &one.key.namespace, &one.key.name)));
        }
        if is_wanted(NamedKind::Node) && (kind.is_some() || found.is_empty()) {
            let nodes = self.nodes();
            let node = nodes.into_iter().find(|node| ***node == *name).cloned();
            found.extend(node.map(|name| Candidate { kind: NamedKind::Node, namespace: None, name }));
        }
        found
    }

    fn nodes(&self) -> BTreeSet<&Arc<str>> {
        let of_pods = self.cluster.pods().filter_map(|pod| pod.node.as_ref());
        let of_addresses = self.cluster.node_addresses().flat_map(|address| self.cluster.nodes_at(address));
        of_pods.chain(of_addresses).collect()
    }

    fn without_namespace(&self, text: &str, kind: Option<NamedKind>, name: &str) -> Result<End, NameError> {
        if let (Some(namespace), true) = (self.namespace, kind != Some(NamedKind::Node)) {
            return self.within(namespace, kind, name);
        }
        let mut found = self.candidates(None, kind, name);
        if found.len() > 1
            && let Some(preferred) = self.preferred
            && found.iter().filter(|one| one.namespace.as_deref() == Some(preferred)).count() == 1
        {
            found.retain(|one| one.namespace.as_deref() == Some(preferred));
        }
        match &found[..] {
            [one] => self.end(one),
            [] => Err(self.nothing(None, kind, name)),
            several => {
                Err(NameError(format!("{:?} may be {}: name one of them", Shown(text), Either(several))))
            }
        }
    }

    fn within(&self, namespace: &str, kind: Option<NamedKind>, name: &str) -> Result<End, NameError> {
        let found = self.candidates(Some(namespace), kind, name);
        let found: Vec<&Candidate> = found.iter().filter(|one| one.namespace.is_some()).collect();
        match &found[..] {
            [one] => self.end(one),
            [] => Err(self.nothing(Some(namespace), kind, name)),
            several => {
                Err(NameError(format!("{:?} may be {}: name one of them", Shown(name), Either(several))))
            }
        }
    }

    /// The message for a name that nothing has.
    fn nothing(&self, namespace: Option<&str>, kind: Option<NamedKind>, name: &str) -> NameError {
        if let Some(namespace) = namespace.filter(|namespace| !self.is_namespace(namespace)) {
            let mut known: BTreeSet<&str> = self.cluster.namespaces().map(|known| &*known.name).collect();
            known.extend(self.cluster.pods().map(|pod| &*pod.key.namespace));
            let hint = did_you_mean(namespace, known.into_iter());
            return NameError(format!("there is no namespace {} among the objects{hint}", Short(namespace)));
        }
        let is_in = |of: &Arc<str>| namespace.is_none_or(|namespace| *namespace == **of);
        let pods = || self.cluster.pods().filter(|pod| is_in(&pod.key.namespace));
        let mut known: BTreeSet<&str> = BTreeSet::new();
        if matches!(kind, None | Some(NamedKind::Pod)) {
            known.extend(pods().map(|pod| &*pod.key.name));
        }
        if matches!(kind, None | Some(NamedKind::Workload(_))) {
            let workloads = pods().filter_map(|pod| pod.workload.as_ref());
            let of_kind = |word: &str| match kind {
                Some(NamedKind::Workload(kind)) => word == kind,
                _ => true,
            };
            known.extend(workloads.filter(|one| of_kind(&one.kind)).map(|workload| &*workload.name));
        }
        if matches!(kind, None | Some(NamedKind::Service)) {
            let services = self.services.iter().filter(|service| is_in(&service.key.namespace));
            known.extend(services.map(|service| &*service.key.name));
        }
        if kind == Some(NamedKind::Node) || (kind.is_none() && namespace.is_none()) {
            known.extend(self.nodes().into_iter().map(|node| &**node));
        }
        let hint = did_you_mean(name, known.into_iter());
        let what = kind.map_or("pod", NamedKind::word);
        let name = match namespace {
            Some(namespace) => format!("{}/{}", Short(namespace), Short(name)),
            None => Short(name).to_string(),
        };
        NameError(format!("there is no {what} {name} among the objects{hint}"))
    }

    fn end(&self, candidate: &Candidate) -> Result<End, NameError> {
        let Candidate { kind, namespace, name } = candidate;
        let key = namespace.as_ref().map(|namespace| ObjectKey::new(namespace.clone(), name.clone()));
        let gone = || NameError(format!("there is no {candidate} among the objects"));
        match (kind, key) {
            (NamedKind::Pod, Some(key)) => self.cluster.pod(&key).map(|pod| of_pod(pod)).ok_or_else(gone),
            (NamedKind::Workload(kind), Some(key)) => {
                let is_of =
                    |pod: &&Arc<Pod>| pod.workload.as_ref().is_some_and(|one| is_of(one, kind, &key.name));
                let pods = self.cluster.pods_in(&key.namespace).filter(is_of);
                // Those that have finished say nothing of those that run.
                let (finished, running): (Vec<_>, Vec<_>) = pods.partition(|pod| pod.is_finished());
                let pods = if running.is_empty() { finished } else { running };
                let endpoints: Vec<Endpoint> =
                    pods.iter().map(|pod| Endpoint::Pod(pod.key.clone())).collect();
                let title = Some(candidate.to_string());
                if endpoints.is_empty() { Err(gone()) } else { Ok(End { title, endpoints, service: None }) }
            }
            (NamedKind::Service, Some(key)) => {
                let service = self.services.iter().find(|service| service.key == key).ok_or_else(gone)?;
                self.service(service)
            }
            (NamedKind::Node, _) => {
                let has = |address: &IpAddr| self.cluster.nodes_at(*address).any(|node| node == name);
                let addresses = self.cluster.node_addresses().filter(has);
                let endpoints: Vec<Endpoint> = addresses.take(1).map(Endpoint::Address).collect();
                if endpoints.is_empty() {
                    let text = format!("no address of node {} is known: give the address", Short(name));
                    return Err(NameError(text));
                }
                Ok(End { title: Some(candidate.to_string()), endpoints, service: None })
            }
            (_, None) => Err(gone()),
        }
    }

    /// The pods that a Service leads to.
    fn service(&self, service: &Service) -> Result<End, NameError> {
        let key = Short(&service.key);
        let Some(selector) = &service.selector else {
            let text = format!(
                "the Service {key} has no selector, so its objects do not say where it leads: give the address"
            );
            return Err(NameError(text));
        };
        let pods = self.cluster.pods_in(&service.key.namespace).filter(|pod| service.selects(pod));
        let endpoints: Vec<Endpoint> = pods.map(|pod| Endpoint::Pod(pod.key.clone())).collect();
        if endpoints.is_empty() {
            let text = format!("the Service {key} leads nowhere: no pod has {}", Short(selector));
            return Err(NameError(text));
        }
        let title = format!("{}/service/{}", Short(&service.key.namespace), Short(&service.key.name));
        Ok(End { title: Some(title), endpoints, service: Some(service.clone()) })
    }
}

/// Whether this is the workload of that kind and name. The pods of a `CronJob` belong to Jobs, whose names are its own with
/// a number.
fn is_of(workload: &Workload, kind: &str, name: &str) -> bool {
    let is_number = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    let job =
        || workload.name.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')).is_some_and(is_number);
    (*workload.kind == *kind && *workload.name == *name)
        || (kind == "CronJob" && *workload.kind == *"Job" && job())
}

fn of_pod(pod: &Pod) -> End {
    End { title: None, endpoints: vec![Endpoint::Pod(pod.key.clone())], service: None }
}

/// Whether this looks like an incomplete address rather than a name.
fn is_numeric(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b':')
}

fn unreadable(text: &str) -> NameError {
    NameError(format!(
        "{:?} is neither NAMESPACE/POD nor an IP address, nor [NAMESPACE/]KIND/NAME of a workload, a Service or a node",
        Shown(text)
    ))
}

/// A text in quotes, with everything escaped that is not printable.
struct Shown<'t>(&'t str);

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut: String = self.0.chars().take(260).collect();
        write!(f, "{cut:?}")
    }
}

/// `a`, `a or b`, `a, b or c`.
struct Either<'c, T>(&'c [T]);

impl<T: fmt::Display> fmt::Display for Either<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.len().min(LISTED);
        for (at, one) in self.0.iter().take(LISTED).enumerate() {
            let is_last = at + 1 == shown && self.0.len() == shown;
            let before = match at {
                0 => "",
                _ if is_last => " or ",
                _ => ", ",
            };
            write!(f, "{before}{one}")?;
        }
        if self.0.len() > LISTED { write!(f, " or one of {} more", self.0.len() - LISTED) } else { Ok(()) }
    }
}

/// `: did you mean web?`, if a known name is similar.
fn did_you_mean<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> String {
    let known: Vec<&str> = known.take(COMPARED).collect();
    // A pod of a workload is asked for by the workload's name, or by the beginning of its own.
    let begins = || known.iter().copied().find(|one| name.len() > 2 && one.starts_with(name));
    let meant = nearest(name, &known).or_else(begins);
    meant.map_or_else(String::new, |meant| format!(": did you mean {}?", Short(meant)))
}

/// The port of a question, as it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AskedPort {
    number: Result<u16, String>,
    protocol: Option<Protocol>,
}

/// Reads `80`, `80/UDP`, `metrics` or `metrics/TCP`.
pub(super) fn asked_port(text: &str) -> Result<AskedPort, String> {
    let (port, protocol) = match text.split_once('/') {
        None => (text, None),
        Some((port, protocol)) => {
            let protocol = protocol.to_ascii_uppercase().parse();
            (port, Some(protocol.map_err(|error| format!("{error}"))?))
        }
    };
    let wrong = || {
        format!(
            "{text:?} is not a port: want a number from 1 to 65535 or a port's name, alone or with /TCP, /UDP or /SCTP"
        )
    };
    let number = match port.parse::<u16>() {
        Ok(0) => return Err(wrong()),
        Ok(number) => Ok(number),
        Err(_) => {
            let is_name = (1..=15).contains(&port.len())
                && port
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
                && port.bytes().any(|byte| byte.is_ascii_lowercase());
            if !is_name {
                return Err(wrong());
            }
            Err(port.to_owned())
        }
    };
    Ok(AskedPort { number, protocol })
}

/// A port of one receiver that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReceiverPort {
    /// The receiver.
    pub(super) to: Endpoint,
    /// Its port.
    pub(super) transport: Transport,
}

/// The ports of a question, and where they come from if nobody named one.
pub(super) struct Ports {
    pub(super) asked: Vec<ReceiverPort>,
    /// Why these ports, if none was named.
    pub(super) why: Option<String>,
}

/// How many ports are asked about if none is named.
const MOST_PORTS: usize = 16;

/// The ports of the receivers that are asked about.
pub(super) fn ports(
    cluster: &Cluster,
    to: &End,
    asked: Option<&AskedPort>,
    protocol: Option<Protocol>,
) -> Result<Ports, NameError> {
    let protocol = match (asked.and_then(|asked| asked.protocol), protocol) {
        (Some(one), Some(other)) if one != other => {
            return Err(NameError(format!(
                "--port asks for {one} and --protocol for {other}: give one of them"
            )));
        }
        (one, other) => one.or(other),
    };
    let mut found: Vec<ReceiverPort> = Vec::new();
    for receiver in to.endpoints.iter().take(MOST_PODS) {
        let pod = match receiver {
            Endpoint::Pod(key) => cluster.pod(key),
            Endpoint::Address(address) => cluster.claimants(*address).first(),
        };
        let transports: Vec<Transport> = match (&to.service, pod) {
            (Some(service), Some(pod)) => of_service(service, pod, asked, protocol)?,
            (_, pod) => of_pod_or_address(pod.map(|pod| &**pod), receiver, asked, protocol)?,
        };
        let of_end = transports.into_iter().map(|transport| ReceiverPort { to: receiver.clone(), transport });
        found.extend(of_end);
    }
    found.dedup();
    if asked.is_some() {
        return Ok(Ports { asked: found, why: None });
    }
    let title =
        to.title.clone().or_else(|| to.endpoints.first().map(ToString::to_string)).unwrap_or_default();
    if found.is_empty() {
        let transport = Transport::Port(protocol.unwrap_or_default(), 80);
        let asked = to.endpoints.iter().map(|end| ReceiverPort { to: end.clone(), transport }).collect();
        let why = match to.endpoints.first() {
            Some(Endpoint::Pod(_)) => format!("{title} declares no port, so {transport} is asked about"),
            _ => format!("without --port, {transport} is asked about"),
        };
        return Ok(Ports { asked, why: Some(why) });
    }
    let mut numbers: Vec<Transport> = found.iter().map(|one| one.transport).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let of = if to.service.is_some() { "the ports of" } else { "the ports that" };
    let verb = if to.service.is_some() { "" } else { " declares" };
    let count = numbers.len();
    let why = if count > MOST_PORTS {
        format!(
            "without --port, {MOST_PORTS} of {of} {title}{verb} are asked about; {} more",
            count - MOST_PORTS
        )
    } else if count == 1 {
        let only = if to.service.is_some() { "the port of" } else { "the only port that" };
        format!("without --port, {only} {title}{verb} is asked about")
    } else {
        format!("without --port, {of} {title}{verb} are asked about")
    };
    numbers.truncate(MOST_PORTS);
    found.retain(|one| numbers.contains(&one.transport));
    Ok(Ports { asked: found, why: Some(why) })
}

fn of_pod_or_address(
    pod: Option<&Pod>,
    end: &Endpoint,
    asked: Option<&AskedPort>,
    protocol: Option<Protocol>,
) -> Result<Vec<Transport>, NameError> {
    let of_protocol = |port: &&ContainerPort| protocol.is_none_or(|protocol| port.protocol == protocol);
    let declared = pod.map(|pod| &pod.ports[..]).unwrap_or_default();
    match asked.map(|asked| &asked.number) {
        Some(Ok(number)) => Ok(vec![Transport::Port(protocol.unwrap_or_default(), *number)]),
        Some(Err(name)) => {
            let named = declared.iter().filter(of_protocol);
            let named = named.filter(|port| port.name.as_deref() == Some(name));
            let found: Vec<Transport> =
                named.map(|port| Transport::Port(port.protocol, port.number)).collect();
            if !found.is_empty() {
                return Ok(found);
            }
            if pod.is_none() {
                return Err(NameError(format!(
                    "{end} is not a pod, and has no port named {name}: give its number"
                )));
            }
            let known = declared.iter().filter_map(|port| port.name.as_deref());
            let hint = did_you_mean(name, known.take(100));
            let ports = Declared(declared);
            Err(NameError(format!("{} has no port named {name}{hint}{ports}", Short(end))))
        }
        None => {
            let mut found: Vec<Transport> = declared
                .iter()
                .filter(of_protocol)
                .map(|port| Transport::Port(port.protocol, port.number))
                .collect();
            found.sort_unstable();
            found.dedup();
            Ok(found)
        }
    }
}

/// `; its ports are web (8080/TCP), 9090/TCP`.
struct Declared<'p>(&'p [ContainerPort]);

impl fmt::Display for Declared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("; it declares no port");
        }
        f.write_str("; its ports are ")?;
        for (at, port) in self.0.iter().take(LISTED).enumerate() {
            let ContainerPort { name, protocol, number } = port;
            let before = if at == 0 { "" } else { ", " };
            match name {
                Some(name) => write!(f, "{before}{} ({number}/{protocol})", Short(name))?,
                None => write!(f, "{before}{number}/{protocol}")?,
            }
        }
        Ok(())
    }
}

/// What the ports of a Service are at one of its pods.
fn of_service(
    service: &Service,
    pod: &Pod,
    asked: Option<&AskedPort>,
    protocol: Option<Protocol>,
) -> Result<Vec<Transport>, NameError> {
    let is_asked = |port: &&ServicePort| {
        protocol.is_none_or(|protocol| port.protocol == protocol)
            && match asked.map(|asked| &asked.number) {
                None => true,
                Some(Ok(number)) => port.number == *number,
                Some(Err(name)) => port.name.as_deref() == Some(name),
            }
    };
    let ports: Vec<&ServicePort> = service.ports.iter().filter(is_asked).collect();
    if ports.is_empty() && asked.is_some() {
        let list: Vec<String> =
            service.ports.iter().take(LISTED).map(|port| ServicePortText(port).to_string()).collect();
        let list = list.join(", ");
        let text = format!(
            "the Service {} has no such port; its ports are {list}. To ask about a port of its pods, name a pod or a \
             workload",
            Short(&service.key)
        );
        return Err(NameError(text));
    }
    let mut found = Vec::new();
    for port in ports {
        match port.at(pod) {
            Some(number) => found.push(Transport::Port(port.protocol, number)),
            None if asked.is_some() => {
                let text = format!(
                    "port {} of the Service {} leads to a port that {} does not declare{}",
                    port.number,
                    Short(&service.key),
                    Short(&pod.key),
                    Declared(&pod.ports)
                );
                return Err(NameError(text));
            }
            None => {}
        }
    }
    Ok(found)
}

/// `http (80/TCP)` or `80/TCP`.
struct ServicePortText<'p>(&'p ServicePort);

impl fmt::Display for ServicePortText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServicePort { name, protocol, number, .. } = self.0;
        match name {
            Some(name) => write!(f, "{} ({number}/{protocol})", Short(name)),
            None => write!(f, "{number}/{protocol}"),
        }
    }
}

#[cfg(test)]
mod tests;
