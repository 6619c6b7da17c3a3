//! The part of a pod that matters to policy.

use std::{fmt, net::IpAddr, sync::Arc};

use super::{
    Family, Labels, ObjectKey, Protocol,
    attachment::{Sandbox, SandboxState},
};

/// A pod, with only the fields that affect packets, and the workload by which people know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// Its labels.
    pub labels: Labels,
    /// `spec.nodeName`: the node that it is bound to, if it is bound yet.
    pub node: Option<Arc<str>>,
    /// `status.podIPs` (with `status.podIP`): its addresses, the primary one first; empty while it has none.
    pub addresses: Vec<IpAddr>,
    /// `status.hostIPs` (with `status.hostIP`): the addresses of its node.
    pub node_addresses: Vec<IpAddr>,
    /// `spec.hostNetwork`: it uses its node's own network and addresses.
    pub host_network: bool,
    /// `status.phase`.
    pub phase: Phase,
    /// `metadata.deletionTimestamp` is set: its deletion was requested, and it may still be running.
    pub terminating: bool,
    /// The ports of all containers and init containers, including sidecars.
    pub ports: Vec<ContainerPort>,
    /// `metadata.uid`; for the mirror of a static pod, the uid of that. Only kept of pods of this node.
    pub uid: Option<Arc<str>>,
    /// Its sandbox, if its network plugin reported it. The addresses are those of its attachments then.
    pub sandbox: Option<Arc<Sandbox>>,
    /// What created it, if something did. No policy depends on it.
    pub workload: Option<Arc<Workload>>,
}

/// What creates pods that are alike, such as a Deployment. It is in the namespace of its pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// Its kind, such as `Deployment`.
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// `Deployment web`.
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Phase {
    /// Accepted, but not every container runs yet.
    #[default]
    Pending,
    /// Bound to a node, at least one container runs or is about to.
    Running,
    /// All containers terminated successfully and will not be restarted.
    Succeeded,
    /// All containers terminated, at least one of them with a failure.
    Failed,
    /// The node could not be reached.
    Unknown,
}

/// A port that a container declares.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPort {
    /// Its name, if it has one.
    pub name: Option<Arc<str>>,
    /// Its protocol; TCP if none is given.
    pub protocol: Protocol,
    /// Its number, 1 to 65535.
    pub number: u16,
}

/// How many numbers one port name may have in one pod. The API requires that it has only one.
pub const NUMBERS_OF_A_NAME: usize = 16;

impl Pod {
    /// A running pod without labels, node, addresses or ports: the start of a struct update.
    #[must_use]
    pub fn new(key: ObjectKey) -> Self {
        Self {
            key,
            labels: Labels::default(),
            node: None,
            addresses: Vec::new(),
            node_addresses: Vec::new(),
            host_network: false,
            phase: Phase::Running,
            terminating: false,
            ports: Vec::new(),
            uid: None,
            sandbox: None,
            workload: None,
        }
    }

    /// Whether it has finished for good: its address may already belong to another pod.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Whether selectors select it as a peer, and its addresses are its own.
    ///
    /// The standard does not cover a pod on its node's own network, and a finished one has no packets. A terminating
    /// pod is still selected: it may be serving its last requests. One whose object is gone is not.
    #[must_use]
    pub fn is_selectable(&self) -> bool {
        let exists = self.sandbox_state().is_none_or(|state| state == SandboxState::Current);
        exists && !self.host_network && !self.is_finished()
    }

    /// Whether policies isolate it. Those that [are selected](Self::is_selectable), and all that have a sandbox,
    /// whatever their object says: processes of the pod may still run there.
    #[must_use]
    pub fn is_subject(&self) -> bool {
        !self.host_network && (self.sandbox.is_some() || self.is_selectable())
    }

    /// What is known of the pod in its sandbox, if that was reported.
    #[must_use]
    pub fn sandbox_state(&self) -> Option<SandboxState> {
        self.sandbox.as_ref().map(|sandbox| sandbox.state)
    }

    /// Its first address of `family`.
    #[must_use]
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }

    /// The numbers of its containers' ports with this name and protocol, ascending.
    ///
    /// Two containers may use one name for different numbers: the name then means all of them, up to the lowest
    /// [`NUMBERS_OF_A_NAME`]. Each is an entry in the sets of every policy that allows that name, also in other
    /// namespaces; a pod's owner must not be able to fill them.
    #[must_use]
    pub fn named_port(&self, name: &str, protocol: Protocol) -> Vec<u16> {
        let mut numbers: Vec<u16> = self
            .ports
            .iter()
            .filter(|port| port.protocol == protocol && port.name.as_deref() == Some(name))
            .map(|port| port.number)
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.truncate(NUMBERS_OF_A_NAME);
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_name_means_at_most_its_sixteen_lowest_numbers() {
        let port = |number: u16| ContainerPort { name: Some("web".into()), protocol: Protocol::Tcp, number };
        let pod = Pod { ports: (1..=1000).rev().map(port).collect(), ..Pod::new(ObjectKey::new("x", "y")) };
        assert_eq!(pod.named_port("web", Protocol::Tcp), (1..=16).collect::<Vec<u16>>());
    }
}
