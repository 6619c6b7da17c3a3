//! Objects as the API accepts them, with what kubelet, scheduler and controllers would write into them.

use std::net::IpAddr;

use serde_json::{Value, json};

pub(crate) use crate::json_objects::{namespace, pod, policy};

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
