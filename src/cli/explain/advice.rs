//! What to tell beside the verdict: causes, the change that would allow the flow, and notes.

use crate::{
    k8s::service::Service,
    model::{Cluster, Endpoint, Flow, Pod, Transport},
    policy::{
        Verdict,
        cause::{Cause, CauseCode, Note, causes, names_port, notes},
        fix::{Fix, NoFix, fix, fix_all},
        near_miss::{Miss, Short},
    },
};

/// What a question is answered from.
#[derive(Clone, Copy, Debug)]
pub struct Objects<'a> {
    /// What policies depend on.
    pub cluster: &'a Cluster,
    /// The Services, as far as they could be read.
    pub services: &'a [Service],
}

/// What there is to say of a flow beside its verdict.
#[derive(Debug)]
pub struct Advice {
    /// Why each direction that denies it does.
    pub causes: Vec<Cause>,
    /// The smallest change that would allow it.
    pub fix: Result<Fix, NoFix>,
    /// What else is worth knowing, with the change that would allow the flow that a note is about.
    pub notes: Vec<Told>,
}

/// A note as it is told.
#[derive(Debug)]
pub struct Told {
    /// The kind of note: see [`NoteCode`](crate::policy::cause::NoteCode), and `service_port`.
    pub code: &'static str,
    /// The sentences.
    pub text: String,
    /// The change that would help.
    pub fix: Option<Fix>,
}

impl Advice {
    /// What there is to say of `flow`, of which `verdict` is the verdict.
    #[must_use]
    pub fn new(objects: Objects<'_>, flow: &Flow, verdict: &Verdict) -> Self {
        let Objects { cluster, services } = objects;
        let mut causes = causes(cluster, flow, verdict);
        let receiver = pod_of(cluster, &flow.to);
        if let Some(pod) = receiver {
            for cause in &mut causes {
                name_service_port(cause, services, pod);
            }
        }
        let mut told: Vec<Told> = notes(cluster, flow, verdict)
            .into_iter()
            .map(|Note { code, text, flows }| {
                let fix = fix_all(cluster, &flows).ok();
                Told { code: code.name(), text, fix }
            })
            .collect();
        told.extend(receiver.and_then(|pod| port_of_service(services, pod, flow.transport)));
        Self { causes, fix: fix(cluster, flow), notes: told }
    }
}

fn pod_of<'c>(cluster: &'c Cluster, end: &Endpoint) -> Option<&'c Pod> {
    match end {
        Endpoint::Pod(key) => cluster.pod(key).map(|pod| &**pod),
        Endpoint::Address(address) => cluster.claimants(*address).first().map(|pod| &**pod),
    }
}

/// Recognises a rule with the port of a Service where that of its pods is needed.
fn name_service_port(cause: &mut Cause, services: &[Service], pod: &Pod) {
    let Miss::Rule(rule) = &cause.miss.miss else { return };
    let (None, Some(port)) = (&rule.peer, &rule.port) else { return };
    let Transport::Port(protocol, number) = cause.miss.transport else { return };
    let of_pod = services.iter().filter(|service| service.selects(pod));
    let ports = of_pod.flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    let mut leading = ports.filter(|(_, of_service)| {
        of_service.protocol == protocol && of_service.number != number && of_service.at(pod) == Some(number)
    });
    let named =
        leading.find(|(_, of_service)| names_port(port, Transport::Port(protocol, of_service.number)));
    let Some((service, of_service)) = named else { return };
    cause.code = CauseCode::ServicePort;
    cause.hint = format!(
        "{} is the port of the Service {}, which leads to {number} of its pods: policies see the port of the pod.",
        of_service.number,
        Short(&service.key)
    );
}

/// The note for a question about the port of a Service at one of its pods.
fn port_of_service(services: &[Service], pod: &Pod, transport: Transport) -> Option<Told> {
    let Transport::Port(protocol, number) = transport else { return None };
    if pod.ports.iter().any(|port| port.number == number && port.protocol == protocol) {
        return None;
    }
    let of_pod = services.iter().filter(|service| service.selects(pod));
    let mut ports = of_pod.flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    let (service, target) = ports.find_map(|(service, port)| {
        let target = port.at(pod).filter(|target| *target != number);
        target.filter(|_| port.number == number && port.protocol == protocol).map(|target| (service, target))
    })?;
    let text = format!(
        "Port {number} of the Service {} is {target} at the pod, and {} declares no port {number}: ask with --port \
         {target}.",
        Short(&service.key),
        Short(&pod.key)
    );
    Some(Told { code: "service_port", text, fix: None })
}
