//! A pod's attachment to the network of its node, as the network plugin made it.

use std::{fmt, net::IpAddr, sync::Arc};

use super::{ObjectKey, Pod};

/// Identifies an attachment, as in the CNI specification: an interface of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId {
    /// The container, for Kubernetes the pod's sandbox.
    pub container: Arc<str>,
    /// The name of the interface in it.
    pub interface: Arc<str>,
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container, self.interface)
    }
}

/// An interface of a pod's sandbox, and the pod that it was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// What identifies it.
    pub id: AttachmentId,
    /// The pod.
    pub pod: ObjectKey,
    /// The uid of the pod, which tells it from a later one of the same name.
    pub uid: Option<Arc<str>>,
    /// The interfaces on the node that lead to it.
    pub host_interfaces: Vec<Arc<str>>,
    /// Its hardware address, if the network plugin reported it.
    pub mac: Option<[u8; 6]>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// An attachment, with what was last known of its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownAttachment {
    /// The attachment.
    pub attachment: Attachment,
    /// The last version of its pod's object, if there ever was one.
    pub object: Option<Pod>,
}

/// What is known of the pod in a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxState {
    /// Its object exists.
    Current,
    /// Its object is gone, or has not arrived. Policy applies to what was last known of it, and it is nobody's peer.
    Detached,
    /// Nothing was ever known of it. Nothing is allowed.
    Unknown,
}

/// The sandbox of a pod of this node. While it exists, processes of the pod may run in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Its attachments.
    pub attachments: Vec<Attachment>,
    /// What is known of the pod in it.
    pub state: SandboxState,
}
