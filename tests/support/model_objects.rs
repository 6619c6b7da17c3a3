//! Model objects as manifests: converts a random cluster to the files that `towpath run` watches.

use serde_json::{Map, Value, json};
use towpath::model::{
    LabelSelector, Labels, Namespace, NetworkPolicy, Operator, Peer, Peers, Phase, Pod, PolicyRule, Port,
    Ports, Scope,
};

/// A Namespace.
pub(crate) fn namespace(namespace: &Namespace) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": &*namespace.name, "labels": labels(&namespace.labels) },
    })
}

/// A Pod, with its status.
pub(crate) fn pod(pod: &Pod) -> Value {
    let ips = |addresses: &[std::net::IpAddr]| -> Vec<Value> {
        addresses.iter().map(|ip| json!({ "ip": ip })).collect()
    };
    let ports: Vec<Value> = pod
        .ports
        .iter()
        .map(|port| json!({ "name": port.name, "containerPort": port.number, "protocol": port.protocol.name() }))
        .collect();
    let mut metadata = json!({
        "namespace": &*pod.key.namespace, "name": &*pod.key.name, "labels": labels(&pod.labels),
    });
    if pod.terminating {
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "nodeName": pod.node,
            "hostNetwork": pod.host_network,
            "containers": [{ "name": "main", "image": "example.org/main", "ports": ports }],
        },
        "status": {
            "phase": match pod.phase {
                Phase::Pending => "Pending",
                Phase::Running => "Running",
                Phase::Succeeded => "Succeeded",
                Phase::Failed => "Failed",
                Phase::Unknown => "Unknown",
            },
            "podIP": pod.addresses.first(), "podIPs": ips(&pod.addresses),
            "hostIP": pod.node_addresses.first(), "hostIPs": ips(&pod.node_addresses),
        },
    })
}

/// A NetworkPolicy.
pub(crate) fn policy(policy: &NetworkPolicy) -> Value {
    let mut spec = json!({ "podSelector": selector(&policy.subject) });
    let mut types = Vec::new();
    for (name, field, end, rules) in
        [("Ingress", "ingress", "from", &policy.ingress), ("Egress", "egress", "to", &policy.egress)]
    {
        if let Some(rules) = rules {
            types.push(name);
            spec[field] = rules.iter().map(|rule| self::rule(rule, end)).collect();
        }
    }
    spec["policyTypes"] = json!(types);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": &*policy.key.namespace, "name": &*policy.key.name },
        "spec": spec,
    })
}

fn rule(rule: &PolicyRule, end: &str) -> Value {
    let mut value = Map::new();
    if let Peers::Of(peers) = &rule.peers {
        value.insert(end.to_owned(), peers.iter().map(peer).collect());
    }
    if let Ports::Of(ports) = &rule.ports {
        value.insert("ports".to_owned(), ports.iter().map(port).collect());
    }
    value.into()
}

fn peer(peer: &Peer) -> Value {
    match peer {
        Peer::Block(block) => {
            let except: Vec<String> = block.except().iter().map(ToString::to_string).collect();
            json!({ "ipBlock": { "cidr": block.cidr().to_string(), "except": except } })
        }
        Peer::Pods(peer) => match &peer.scope {
            Scope::Own(_) => json!({ "podSelector": selector(&peer.pods) }),
            Scope::Matching(namespaces) => {
                json!({ "namespaceSelector": selector(namespaces), "podSelector": selector(&peer.pods) })
            }
        },
    }
}

fn port(port: &Port) -> Value {
    match port {
        Port::All(protocol) => json!({ "protocol": protocol.name() }),
        Port::Range(protocol, range) if range.first() == range.last() => {
            json!({ "protocol": protocol.name(), "port": range.first() })
        }
        Port::Range(protocol, range) => {
            json!({ "protocol": protocol.name(), "port": range.first(), "endPort": range.last() })
        }
        Port::Named(protocol, name) => json!({ "protocol": protocol.name(), "port": &**name }),
    }
}

fn selector(selector: &LabelSelector) -> Value {
    let expression = |key: &str, operator: &str, values: &[std::sync::Arc<str>]| {
        let mut expression = json!({ "key": key, "operator": operator });
        if !values.is_empty() {
            expression["values"] = json!(values);
        }
        expression
    };
    let expressions: Vec<Value> = selector
        .requirements()
        .iter()
        .map(|requirement| match &requirement.operator {
            Operator::In(values) => expression(&requirement.key, "In", values),
            Operator::NotIn(values) => expression(&requirement.key, "NotIn", values),
            Operator::Exists => expression(&requirement.key, "Exists", &[]),
            Operator::DoesNotExist => expression(&requirement.key, "DoesNotExist", &[]),
        })
        .collect();
    if expressions.is_empty() { json!({}) } else { json!({ "matchExpressions": expressions }) }
}

fn labels(labels: &Labels) -> Value {
    labels.iter().map(|(key, value)| (key.to_owned(), Value::from(value))).collect::<Map<_, _>>().into()
}
