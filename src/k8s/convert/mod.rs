//! Converts API objects to the model: the only place that knows optional fields, defaults and the API's validation.
//!
//! Each function takes an object as the API or a file has it, and returns the model's value, or its faults by field
//! path. Nothing is guessed: what cannot be read as it was meant is refused, never widened.

pub mod network_policy;
pub mod validate;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as ApiSelector;

use crate::{
    k8s::{
        fault::Problem,
        intern::Interner,
        types::{self, Meta},
        yaml::path::FieldPath,
    },
    model::{
        ContainerPort, LabelSelector, Labels, Namespace, Node, ObjectKey, Operator, Phase, Pod, Protocol,
        Requirement, Workload,
    },
};

/// The label that every namespace has; its value is the namespace's name.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Who has validated an object before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It comes from a file and was not validated.
    Manifest,
    /// The API server, when the object was stored. Old objects that it still serves but would refuse as new ones are
    /// accepted: selectors with label values that no object can have.
    Api,
}

/// The result of a conversion.
#[derive(Clone, Debug)]
pub struct Conversion<T> {
    /// What can be read of the object.
    pub readable: Option<T>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// A Namespace, with [`NAME_LABEL`] added as the API server adds it.
pub fn namespace(object: &types::Namespace, names: &mut Interner) -> Conversion<Namespace> {
    let mut problems = Vec::new();
    let meta = &object.metadata;
    let name = name(meta, validate::dns_label, &mut problems);
    if let Some(namespace) = meta.namespace.as_deref().filter(|namespace| !namespace.is_empty()) {
        let text = format!("a Namespace is in no namespace: remove {namespace:?}");
        problems.push(Problem::error(FieldPath::of(&["metadata", "namespace"]), text));
    }
    labels(meta, &mut problems);
    let label = meta.labels.as_ref().and_then(|labels| labels.get(NAME_LABEL));
    if let (Some(name), Some(_)) = (name, label.filter(|label| Some(label.as_str()) != name)) {
        let text = format!("the API server sets this label to the namespace's name, {name}: remove it");
        problems.push(Problem::error(FieldPath::of(&["metadata", "labels", NAME_LABEL]), text));
    }
    let object = name.map(|name| synthesise_namespace(name, meta, names));
    Conversion { readable: object, problems }
}

/// The namespace `name` with only the label that every namespace has.
pub fn bare_namespace(name: &str, names: &mut Interner) -> Namespace {
    synthesise_namespace(name, &Meta::default(), names)
}

fn synthesise_namespace(name: &str, meta: &Meta, names: &mut Interner) -> Namespace {
    let pairs = meta.labels.iter().flatten().map(|(key, value)| (&**key, &**value));
    let labels = names.labels(pairs.chain([(NAME_LABEL, name)]));
    Namespace { name: names.string(name), labels }
}

/// A Pod.
pub fn pod(object: &types::Pod, names: &mut Interner) -> Conversion<Pod> {
    let mut problems = Vec::new();
    let meta = &object.metadata;
    let key = key(meta, names, &mut problems);
    let labels = pod_labels(meta, &FieldPath::root(), names, &mut problems);
    let status = object.status.as_ref();
    let phase = phase(status.and_then(|status| status.phase.as_deref()), &mut problems);
    let mut read = |one: &str, many: &str, first: Option<&String>, all: Option<&Vec<types::Address>>| {
        addresses(&FieldPath::of(&["status"]), (one, first), (many, all), &mut problems)
    };
    let pod_ips = read(
        "podIP",
        "podIPs",
        status.and_then(|status| status.pod_ip.as_ref()),
        status.and_then(|status| status.pod_ips.as_ref()),
    );
    let host_ips = read(
        "hostIP",
        "hostIPs",
        status.and_then(|status| status.host_ip.as_ref()),
        status.and_then(|status| status.host_ips.as_ref()),
    );
    let spec = object.spec.as_ref();
    let ports = spec.map(|spec| ports(spec, &FieldPath::of(&["spec"]), names, &mut problems));
    let pod = key.map(|key| Pod {
        labels,
        node: spec
            .and_then(|spec| spec.node_name.as_deref())
            .filter(|n| !n.is_empty())
            .map(|n| names.string(n)),
        addresses: pod_ips,
        node_addresses: host_ips,
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or_default(),
        phase,
        terminating: meta.deletion_timestamp.is_some(),
        ports: ports.unwrap_or_default(),
        uid: uid(meta),
        workload: controlling_workload(meta, names),
        ..Pod::new(key)
    });
    Conversion { readable: pod, problems }
}

/// The workload that controls a pod. A `ReplicaSet` that a Deployment made is called after it and the hash of its
/// template, which its pods have as a label; the Deployment is the one that people know.
///
/// The API server takes any text as the kind and the name of an owner. What cannot be one is left out.
fn controlling_workload(meta: &Meta, names: &mut Interner) -> Option<Arc<Workload>> {
    let owners = meta.owner_references.iter().flatten();
    let owner = owners.filter(|owner| owner.controller == Some(true)).find(|owner| {
        let is_kind =
            (1..=63).contains(&owner.kind.len()) && owner.kind.bytes().all(|b| b.is_ascii_alphanumeric());
        is_kind && validate::dns_subdomain(&owner.name).is_ok()
    })?;
    let hash = meta.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash
        .filter(|hash| owner.kind == "ReplicaSet" && !hash.is_empty())
        .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    Some(match deployment {
        Some(name) => names.workload("Deployment", name),
        None => names.workload(&owner.kind, &owner.name),
    })
}

/// The uid under which the network plugin knows a pod.
fn uid(meta: &Meta) -> Option<Arc<str>> {
    let mirror = meta.annotations.as_ref().and_then(|annotations| annotations.mirror.as_deref());
    mirror.or(meta.uid.as_deref()).filter(|uid| !uid.is_empty()).map(Arc::from)
}

/// A Node.
pub fn node(object: &types::Node, names: &mut Interner) -> Conversion<Node> {
    let mut problems = Vec::new();
    let name = name(&object.metadata, validate::dns_subdomain, &mut problems);
    let mut addresses = Vec::new();
    let listed = object.status.as_ref().and_then(|status| status.addresses.as_ref());
    for (index, item) in listed.into_iter().flatten().enumerate() {
        let is_address = matches!(item.kind.as_deref(), Some("InternalIP" | "ExternalIP"));
        let Some(text) = item.address.as_deref().filter(|_| is_address) else { continue };
        match validate::address(text) {
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(error) => {
                let at = FieldPath::of(&["status", "addresses"]).index(index).key("address");
                problems.push(Problem::error(at, error.to_string()));
            }
        }
    }
    let mut pod_cidrs = Vec::new();
    let spec = object.spec.as_ref();
    let first =
        spec.and_then(|spec| spec.pod_cidr.as_ref()).map(|text| (FieldPath::of(&["spec", "podCIDR"]), text));
    let all = spec.and_then(|spec| spec.pod_cidrs.as_ref()).into_iter().flatten().enumerate();
    let all = all.map(|(index, text)| (FieldPath::of(&["spec", "podCIDRs"]).index(index), text));
    for (at, text) in first.into_iter().chain(all).filter(|(_, text)| !text.is_empty()) {
        match validate::cidr(text) {
            Ok(cidr) if pod_cidrs.contains(&cidr) => {}
            Ok(cidr) => pod_cidrs.push(cidr),
            Err(error) => problems.push(Problem::error(at, error.to_string())),
        }
    }
    let node = name.map(|name| Node { name: names.string(name), addresses, pod_cidrs });
    Conversion { readable: node, problems }
}

/// A workload, as one running pod of its template, with the workload's name, no address and no node.
pub fn workload(object: &types::Workload, names: &mut Interner) -> Conversion<Pod> {
    let mut problems = Vec::new();
    let key = key(&object.metadata, names, &mut problems);
    let spec = object.spec.as_ref();
    let (template, at) = match spec.and_then(|spec| spec.job_template.as_ref()) {
        None => (spec.and_then(|spec| spec.template.as_ref()), FieldPath::of(&["spec", "template"])),
        Some(job) => {
            let template = job.spec.as_ref().and_then(|spec| spec.template.as_ref());
            (template, FieldPath::of(&["spec", "jobTemplate", "spec", "template"]))
        }
    };
    let Some(template) = template else {
        problems.push(Problem::of_field(at, "is missing: without it there is no pod"));
        return Conversion { readable: None, problems };
    };
    let meta = template.metadata.clone().unwrap_or_default();
    let labels = pod_labels(&meta, &at, names, &mut problems);
    let spec = template.spec.as_ref();
    let ports = spec.map(|spec| ports(spec, &at.key("spec"), names, &mut problems));
    let pod = key.map(|key| Pod {
        labels,
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or_default(),
        ports: ports.unwrap_or_default(),
        ..Pod::new(key)
    });
    Conversion { readable: pod, problems }
}

/// `metadata.name`, checked by `rule`.
fn name<'o>(
    meta: &'o Meta,
    rule: fn(&str) -> Result<(), validate::Invalid>,
    problems: &mut Vec<Problem>,
) -> Option<&'o str> {
    let at = FieldPath::of(&["metadata", "name"]);
    let Some(name) = meta.name.as_deref().filter(|name| !name.is_empty()) else {
        problems.push(Problem::of_field(at, "is missing: every object needs a name"));
        return None;
    };
    match rule(name) {
        Ok(()) => Some(name),
        Err(error) => {
            problems.push(Problem::error(at, error.to_string()));
            None
        }
    }
}

/// The namespace and name of a namespaced object.
pub(super) fn key(meta: &Meta, names: &mut Interner, problems: &mut Vec<Problem>) -> Option<ObjectKey> {
    let name = name(meta, validate::dns_subdomain, problems);
    let namespace = match meta.namespace.as_deref() {
        None | Some("") => DEFAULT_NAMESPACE,
        Some(namespace) => namespace,
    };
    if let Err(error) = validate::dns_label(namespace) {
        problems.push(Problem::error(FieldPath::of(&["metadata", "namespace"]), error.to_string()));
        return None;
    }
    Some(ObjectKey { namespace: names.string(namespace), name: names.string(name?) })
}

/// Checks `metadata.labels`.
pub(super) fn labels(meta: &Meta, problems: &mut Vec<Problem>) {
    check_labels(meta, &FieldPath::root(), problems);
}

fn check_labels(meta: &Meta, at: &FieldPath, problems: &mut Vec<Problem>) {
    for (key, value) in meta.labels.iter().flatten() {
        let at = || at.key("metadata").key("labels").key(key);
        for error in
            [validate::label_key(key), validate::label_value(value)].into_iter().filter_map(Result::err)
        {
            problems.push(Problem::error(at(), error.to_string()));
        }
    }
}

fn pod_labels(meta: &Meta, at: &FieldPath, names: &mut Interner, problems: &mut Vec<Problem>) -> Labels {
    check_labels(meta, at, problems);
    names.labels(meta.labels.iter().flatten().map(|(key, value)| (&**key, &**value)))
}

fn phase(text: Option<&str>, problems: &mut Vec<Problem>) -> Phase {
    match text {
        None | Some("" | "Pending") => Phase::Pending,
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some("Unknown") => Phase::Unknown,
        Some(other) => {
            let text = format!("{other:?} is no phase: Pending, Running, Succeeded, Failed or Unknown");
            problems.push(Problem::error(FieldPath::of(&["status", "phase"]), text));
            Phase::Unknown
        }
    }
}

/// The addresses of a list such as `podIPs` and of its singular field, the singular first.
fn addresses(
    at: &FieldPath,
    (one, first): (&str, Option<&String>),
    (many, all): (&str, Option<&Vec<types::Address>>),
    problems: &mut Vec<Problem>,
) -> Vec<std::net::IpAddr> {
    let mut addresses = Vec::new();
    let singular = first.map(|text| (at.key(one), Some(text.as_str())));
    let list = all.into_iter().flatten().enumerate();
    let list = list.map(|(index, item)| (at.key(many).index(index).key("ip"), item.ip.as_deref()));
    for (at, text) in singular.into_iter().chain(list) {
        match text {
            None | Some("") => {}
            Some(text) => match validate::address(text) {
                Ok(address) if addresses.contains(&address) => {}
                Ok(address) => addresses.push(address),
                Err(error) => problems.push(Problem::error(at, error.to_string())),
            },
        }
    }
    addresses
}

fn ports(
    spec: &types::PodSpec,
    at: &FieldPath,
    names: &mut Interner,
    problems: &mut Vec<Problem>,
) -> Vec<ContainerPort> {
    let mut ports = Vec::new();
    for (list, containers) in [("containers", &spec.containers), ("initContainers", &spec.init_containers)] {
        for (index, container) in containers.iter().flatten().enumerate() {
            for (port, declared) in container.ports.iter().flatten().enumerate() {
                let at = || at.key(list).index(index).key("ports").index(port);
                ports.extend(container_port(declared, at, names, problems));
            }
        }
    }
    ports
}

fn container_port(
    port: &types::ContainerPort,
    at: impl Fn() -> FieldPath,
    names: &mut Interner,
    problems: &mut Vec<Problem>,
) -> Option<ContainerPort> {
    let before = problems.len();
    let number = match port.container_port {
        None => {
            problems.push(Problem::error(at(), "containerPort is missing"));
            None
        }
        Some(number) => validate::port_number(number)
            .map_err(|error| problems.push(Problem::error(at().key("containerPort"), error.to_string())))
            .ok(),
    };
    let protocol = protocol(port.protocol.as_deref(), &at, problems);
    let name = port.name.as_deref().filter(|name| !name.is_empty());
    if let Some(Err(error)) = name.map(validate::port_name) {
        problems.push(Problem::error(at().key("name"), error.to_string()));
    }
    let number = number.filter(|_| problems.len() == before)?;
    Some(ContainerPort { name: name.map(|name| names.string(name)), protocol: protocol?, number })
}

/// `protocol`: "Supports "TCP", "UDP", and "SCTP". Defaults to "TCP"."
pub(super) fn protocol(
    text: Option<&str>,
    at: impl Fn() -> FieldPath,
    problems: &mut Vec<Problem>,
) -> Option<Protocol> {
    match text.map_or(Ok(Protocol::Tcp), str::parse) {
        Ok(protocol) => Some(protocol),
        Err(error) => {
            problems.push(Problem::error(at().key("protocol"), error.to_string()));
            None
        }
    }
}

/// A label selector; `None` if it has any error.
pub(super) fn selector(
    selector: &ApiSelector,
    origin: Origin,
    at: &FieldPath,
    names: &mut Interner,
    problems: &mut Vec<Problem>,
) -> Option<LabelSelector> {
    let before = problems.len();
    let mut requirements = Vec::new();
    let value_rule = |value: &str| match origin {
        Origin::Manifest => validate::label_value(value),
        Origin::Api => Ok(()),
    };
    let mut check = |at: FieldPath, result: Result<(), validate::Invalid>| {
        if let Err(error) = result {
            problems.push(Problem::error(at, error.to_string()));
        }
    };
    for (key, value) in selector.match_labels.iter().flatten() {
        check(at.key("matchLabels").key(key), validate::label_key(key));
        check(at.key("matchLabels").key(key), value_rule(value));
        requirements.push(Requirement::equals(names.string(key), names.string(value)));
    }
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let at = at.key("matchExpressions").index(index);
        check(at.key("key"), validate::label_key(&expression.key));
        let values = expression.values.as_deref().unwrap_or_default();
        for (index, value) in values.iter().enumerate() {
            check(at.key("values").index(index), value_rule(value));
        }
        let shared: Arc<[Arc<str>]> = values.iter().map(|value| names.string(value)).collect();
        let operator = match expression.operator.as_str() {
            "In" => Operator::In(shared),
            "NotIn" => Operator::NotIn(shared),
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            other => {
                let text = format!("{other:?} is no operator: In, NotIn, Exists or DoesNotExist");
                problems.push(Problem::error(at.key("operator"), text));
                return None;
            }
        };
        match (&operator, values.is_empty()) {
            (Operator::In(_) | Operator::NotIn(_), true) => {
                problems.push(Problem::of_field(
                    at.key("values"),
                    "is missing: In and NotIn need at least one value",
                ));
                return None;
            }
            (Operator::Exists | Operator::DoesNotExist, false) => {
                problems.push(Problem::of_field(
                    at.key("values"),
                    "must be absent: Exists and DoesNotExist take none",
                ));
                return None;
            }
            _ => requirements.push(Requirement { key: names.string(&expression.key), operator }),
        }
    }
    (problems.len() == before).then(|| LabelSelector::new(requirements))
}
