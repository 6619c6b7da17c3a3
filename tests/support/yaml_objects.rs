//! Objects as YAML.

use std::net::IpAddr;

/// A running pod, `namespace/name`; `labels` in one line of YAML, without its braces. `node` counts from 0.
pub(crate) fn pod(
    key: &str,
    labels: &str,
    addresses: &[IpAddr],
    node: usize,
    node_addresses: &[IpAddr],
) -> String {
    let (namespace, name) = key.split_once('/').unwrap();
    let list = |addresses: &[IpAddr]| {
        addresses.iter().map(|ip| format!("{{ip: \"{ip}\"}}")).collect::<Vec<_>>().join(", ")
    };
    format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
         spec:\n  nodeName: n{}\n  containers: [{{name: main, image: registry.example/main}}]\n\
         status:\n  phase: Running\n  hostIPs: [{}]\n  podIPs: [{}]\n",
        node + 1,
        list(node_addresses),
        list(addresses),
    )
}

/// A namespace; `labels` in one line of YAML, without its braces.
pub(crate) fn namespace(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

/// A policy, `namespace/name`; `spec` in one line of YAML, without its braces.
pub(crate) fn policy(key: &str, spec: &str) -> String {
    let (namespace, name) = key.split_once('/').unwrap();
    format!(
        "apiVersion: networking.k8s.io/v1\n\
         kind: NetworkPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{{spec}}}\n"
    )
}
