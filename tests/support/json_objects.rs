//! Objects as JSON, with what kubelet, scheduler and controllers would write into them.

use std::net::IpAddr;

use serde_json::{Value, json};

/// A namespace.
pub(crate) fn namespace(name: &str, labels: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

/// A running pod, `namespace/name`.
pub(crate) fn pod(
    key: &str,
    labels: &Value,
    node: &str,
    addresses: &[IpAddr],
    node_addresses: &[IpAddr],
) -> Value {
    let (namespace, name) = key.split_once('/').unwrap();
    let list = |ips: &[IpAddr]| ips.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name, "labels": labels },
        "spec": {
            "nodeName": node,
            "containers": [{
                "name": "main", "image": "registry.example/main",
                "ports": [{ "name": "http", "containerPort": 80 }],
            }],
        },
        "status": {
            "phase": "Running", "hostIP": node_addresses.first(), "hostIPs": list(node_addresses),
            "podIP": addresses.first(), "podIPs": list(addresses),
        },
    })
}

/// A policy, `namespace/name`.
pub(crate) fn policy(key: &str, spec: &Value) -> Value {
    let (namespace, name) = key.split_once('/').unwrap();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": namespace, "name": name }, "spec": spec,
    })
}
