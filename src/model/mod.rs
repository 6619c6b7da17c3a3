//! The objects that policy refers to, as plain values.
//!
//! Nothing in here does I/O, uses a clock, logs, or names a Kubernetes API type. Values are checked in their
//! constructors, so that later stages cannot fail. The difference between "absent" and "empty", which matters so
//! often in the standard, is part of the types ([`Peers::Any`] against [`Peers::Of`], [`Ports::Any`] against
//! [`Ports::Of`], `Option<Vec<PolicyRule>>` for "does not isolate" against "isolates and allows nothing").

pub mod attachment;
pub mod cluster;
pub mod digest;
pub mod flow;
pub mod labels;
pub mod layout;
pub mod net;
pub mod network_policy;
pub mod node_pods;
pub mod pod;

pub use attachment::{Attachment, AttachmentId, KnownAttachment, Sandbox, SandboxState};
pub use cluster::{Change, Cluster, Delta, Handover, Namespace, Node};
pub use flow::{Direction, Endpoint, Flow, Transport};
pub use labels::{LabelSelector, Labels, Operator, Requirement};
pub use net::{Family, IpBlock, IpBlockError, PortRange, Protocol};
pub use network_policy::{
    MemoryExcess, NetworkPolicy, Peer, Peers, PodPeer, PolicyRule, Port, Ports, Scope, Standing,
};
pub use node_pods::NodePods;
pub use pod::{ContainerPort, Phase, Pod, Workload};

use std::{fmt, str::FromStr, sync::Arc};

/// The namespace and the name of a namespaced object: what identifies a Pod or a NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The namespace; never empty.
    pub namespace: Arc<str>,
    /// The object's name in that namespace.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The key of `namespace/name`.
    #[must_use]
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ObjectKey {
    type Err = ObjectKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::new(namespace, name))
            }
            _ => Err(ObjectKeyError(text.to_owned())),
        }
    }
}

/// A text that is not `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form namespace/name")]
pub struct ObjectKeyError(String);
