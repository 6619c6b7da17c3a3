//! Objects as the API accepts them, with what kubelet, scheduler and controllers would write into them.

use std::net::IpAddr;

use serde_json::{Value, json};

/// A namespace.
pub(crate) fn namespace(name: &str, labels: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

/// A node that is ready.
pub(crate) fn node(name: &str, addresses: &[IpAddr], pod_cidrs: &[String]) -> Value {
    let addresses: Vec<Value> =
        addresses.iter().map(|address| json!({ "type": "InternalIP", "address": address })).collect();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "spec": { "podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs },
        "status": {
            "addresses": addresses, "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// A running pod, `namespace/name`.
pub(crate) fn pod(key: &str, labels: &Value, node: &str, addresses: &[IpAddr], host: &[IpAddr]) -> Value {
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
            "phase": "Running", "hostIP": host.first(), "hostIPs": list(host),
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

/// A label selector.
pub(crate) fn labelled(labels: &Value) -> Value {
    json!({ "matchLabels": labels })
}

/// The path of a namespaced object: `pods`, `shop/web`.
pub(crate) fn path(kind: &str, key: &str) -> String {
    let (namespace, name) = key.split_once('/').unwrap();
    let root = if kind == "networkpolicies" { "/apis/networking.k8s.io/v1" } else { "/api/v1" };
    format!("{root}/namespaces/{namespace}/{kind}/{name}")
}
