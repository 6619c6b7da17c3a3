//! The objects as the API sends them, with only the fields that affect packets.
//!
//! Everything that can be absent is an `Option` here, and nowhere after [`convert`](super::convert). Memory and time
//! depend on what is used: a pod has some twenty fields here, and several hundred in the API.

use std::collections::BTreeMap;

use k8s_openapi::{api::networking::v1::NetworkPolicySpec, apimachinery::pkg::apis::meta::v1::Time};
use serde::Deserialize;

/// `metadata` of an object. Most annotations, and managed fields, often most of its text, are skipped.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    /// Its name.
    pub name: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// The version of the whole collection at its last change.
    pub resource_version: Option<String>,
    /// When its deletion was requested.
    pub deletion_timestamp: Option<Time>,
    /// What tells it from a later object of the same name.
    pub uid: Option<String>,
    /// The annotations that are used.
    pub annotations: Option<Annotations>,
    /// The objects that it belongs to.
    pub owner_references: Option<Vec<OwnerReference>>,
}

/// An item of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct OwnerReference {
    /// The owner's kind.
    pub kind: String,
    /// The owner's name.
    pub name: String,
    /// Whether the owner controls the object.
    pub controller: Option<bool>,
}

/// `metadata.annotations`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Annotations {
    /// The uid that a static pod has for its kubelet and its network plugin; its mirror in the API has another one.
    #[serde(rename = "kubernetes.io/config.mirror")]
    pub mirror: Option<String>,
}

/// A Namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Its name and labels.
    pub metadata: Meta,
}

/// A NetworkPolicy. All of its fields are used.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NetworkPolicy {
    /// Its name and namespace.
    pub metadata: Meta,
    /// Its selector, rules and policy types.
    pub spec: Option<NetworkPolicySpec>,
}

/// A Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Its name, namespace, labels and times.
    pub metadata: Meta,
    /// The desired state.
    pub spec: Option<PodSpec>,
    /// The observed state.
    pub status: Option<PodStatus>,
}

/// `spec` of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// The node that it is bound to.
    pub node_name: Option<String>,
    /// Whether it shares its node's network.
    pub host_network: Option<bool>,
    /// Its containers.
    pub containers: Option<Vec<Container>>,
    /// Its init containers, sidecars among them.
    pub init_containers: Option<Vec<Container>>,
}

/// A container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Container {
    /// The ports that it declares.
    pub ports: Option<Vec<ContainerPort>>,
}

/// A port that a container declares.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// Its name.
    pub name: Option<String>,
    /// Its protocol.
    pub protocol: Option<String>,
    /// Its number.
    pub container_port: Option<i32>,
}

/// `status` of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// Its phase in the pod lifecycle.
    pub phase: Option<String>,
    /// Its first address.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// Its addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<Address>>,
    /// Its node's first address.
    #[serde(rename = "hostIP")]
    pub host_ip: Option<String>,
    /// Its node's addresses.
    #[serde(rename = "hostIPs")]
    pub host_ips: Option<Vec<Address>>,
}

/// An item of `podIPs` or `hostIPs`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Address {
    /// The address.
    pub ip: Option<String>,
}

/// A workload: creates pods from a template.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Workload {
    /// Its name and namespace.
    pub metadata: Meta,
    /// What it creates.
    pub spec: Option<WorkloadSpec>,
}

/// `spec` of a workload.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadSpec {
    /// The pods that it creates.
    pub template: Option<PodTemplate>,
    /// The jobs that a `CronJob` creates.
    pub job_template: Option<JobTemplate>,
}

/// The job template of a `CronJob`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct JobTemplate {
    /// The job.
    pub spec: Option<JobSpec>,
}

/// `spec` of a job.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct JobSpec {
    /// The pods that it creates.
    pub template: Option<PodTemplate>,
}

/// The pods of a workload.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodTemplate {
    /// Their labels.
    pub metadata: Option<Meta>,
    /// Their desired state.
    pub spec: Option<PodSpec>,
}

/// A Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Its name.
    pub metadata: Meta,
    /// The desired state.
    pub spec: Option<NodeSpec>,
    /// The observed state.
    pub status: Option<NodeStatus>,
}

/// `spec` of a node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// The network of its pods.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    /// The networks of its pods, one of each family at most.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<String>>,
}

/// `status` of a node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Its addresses, and its names.
    pub addresses: Option<Vec<NodeAddress>>,
}

/// An item of a node's `addresses`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, or a kind of name.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The address.
    pub address: Option<String>,
}
