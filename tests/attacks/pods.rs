//! The pods that attack and are attacked, and the policies that select them.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::{
    bed::{Bed, Host, PodPlan, Setting, node_name},
    json_objects::{self, namespace, policy},
};

/// Denied all egress.
pub(crate) const ATTACKER: Host = Host::Pod(0);
/// No policy selects it: it may send to every peer that admits it.
pub(crate) const FREE: Host = Host::Pod(1);
/// No policy selects it.
pub(crate) const OPEN: Host = Host::Pod(2);
/// Denied all ingress.
pub(crate) const VICTIM: Host = Host::Pod(3);
/// Admits only pods with `role: friend`, and some blocks of addresses that no pod has.
pub(crate) const SHY: Host = Host::Pod(4);
/// The one that is admitted.
pub(crate) const FRIEND: Host = Host::Pod(5);
/// Admits UDP port 53 from anywhere, nothing else.
pub(crate) const GATE: Host = Host::Pod(6);
/// As [`OPEN`], on the other node, as are all that follow.
pub(crate) const FAR_OPEN: Host = Host::Pod(7);
/// As [`VICTIM`].
pub(crate) const FAR_VICTIM: Host = Host::Pod(8);
/// As [`SHY`].
pub(crate) const FAR_SHY: Host = Host::Pod(9);
/// As [`FRIEND`].
pub(crate) const FAR_FRIEND: Host = Host::Pod(10);

/// A pod without an object: it was created a moment ago, or its object is not read yet.
pub(crate) const UNLISTED: Host = Host::Pod(11);

pub(crate) const NODE: Host = Host::Node(0);
pub(crate) const OTHER_NODE: Host = Host::Node(1);
pub(crate) const GUEST: Host = Host::Guest(0);
pub(crate) const OTHER_GUEST: Host = Host::Guest(1);
pub(crate) const OUTSIDE: Host = Host::Outside;

/// Namespace, name, node and role of each pod.
const PODS: [(&str, &str, usize, &str); 12] = [
    ("red", "attacker", 0, "none"),
    ("green", "free", 0, "none"),
    ("green", "open", 0, "none"),
    ("blue", "victim", 0, "none"),
    ("blue", "shy", 0, "shy"),
    ("green", "friend", 0, "friend"),
    ("blue", "gate", 0, "gate"),
    ("green", "far-open", 1, "none"),
    ("blue", "far-victim", 1, "none"),
    ("blue", "far-shy", 1, "shy"),
    ("green", "far-friend", 1, "friend"),
    ("green", "unlisted", 0, "none"),
];

/// The test bed with these pods.
pub(crate) fn bed(setting: Setting) -> Bed {
    let plans: Vec<PodPlan> = PODS
        .iter()
        .map(|(namespace, name, node, _)| PodPlan {
            name: format!("{namespace}/{name}"),
            node: *node,
            addresses: Vec::new(),
            named: *name != "unlisted",
        })
        .collect();
    Bed::new(setting, &plans, pod, &objects())
}

fn pod(place: usize, addresses: &[IpAddr], node_addresses: &[IpAddr]) -> Value {
    let (namespace, name, node, role) = PODS[place];
    let labels = json!({ "role": role });
    json_objects::pod(&format!("{namespace}/{name}"), &labels, &node_name(node), addresses, node_addresses)
}

fn objects() -> Vec<Value> {
    let namespaces = ["red", "green", "blue"].map(|name| {
        let labels = json!({ "kubernetes.io/metadata.name": name });
        namespace(name, &labels)
    });
    let role = |role: &str| json!({ "matchLabels": { "role": role } });
    let blocks = ["203.0.113.0/24", "10.244.200.0/24", "2001:db8::/32", "fd00:10:244:200::/64"];
    let mut peers: Vec<Value> = blocks.iter().map(|cidr| json!({ "ipBlock": { "cidr": cidr } })).collect();
    peers.push(json!({ "namespaceSelector": {}, "podSelector": role("friend") }));
    let mut all = namespaces.to_vec();
    all.extend([
        policy("red/no-egress", &json!({ "podSelector": {}, "policyTypes": ["Egress"] })),
        policy("blue/no-ingress", &json!({ "podSelector": {}, "policyTypes": ["Ingress"] })),
        policy("blue/friends", &json!({ "podSelector": role("shy"), "ingress": [{ "from": peers }] })),
        policy(
            "blue/names",
            &json!({ "podSelector": role("gate"), "ingress": [{ "ports": [{ "protocol": "UDP", "port": 53 }] }] }),
        ),
    ]);
    all
}
