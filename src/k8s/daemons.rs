//! The daemons of all nodes, through the API server: their pods, and connections to them.
//!
//! A connection is forwarded by the kubelet of the node to the daemon's port on loopback, as `kubectl port-forward` does
//! it. The API server's own proxy would reach the daemon from another host, which may not read what it drops.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, Portforwarder};
use tokio::io::{AsyncRead, AsyncWrite};

use super::watch::{Access, AccessError};

/// The label of the daemon's pods, in the manifests.
const SELECTOR: &str = "app.kubernetes.io/name=towpath";

/// The name of the daemon's port, in the manifests.
const PORT_NAME: &str = "metrics";

/// The daemon's port, unless its pod says otherwise.
const PORT: u16 = 9586;

/// The daemons of a cluster.
#[derive(Clone)]
pub struct Daemons {
    pods: Api<Pod>,
}

/// The daemon of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonPod {
    /// The name of its pod.
    pub name: String,
    /// Its node.
    pub node: String,
    /// The port that it listens on.
    pub port: u16,
}

/// Why the daemons cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum DaemonsError {
    /// It is not known how to reach the API server.
    #[error("{0}")]
    Access(AccessError),
    /// The API server refuses, or cannot be reached.
    #[error("{doing}: {source}")]
    Request {
        /// What was being done, and the right that it needs.
        doing: &'static str,
        /// What the API server answered.
        source: Box<kube::Error>,
    },
    /// The connection has no stream for the daemon's port.
    #[error("the API server forwards no stream to port {0}")]
    NoStream(u16),
}

/// A connection to a daemon, which lasts as long as this value.
pub struct Forwarded<S> {
    /// What goes to the daemon and comes from it.
    pub stream: S,
    _forwarder: Portforwarder,
}

impl Daemons {
    /// Those in a namespace.
    ///
    /// # Errors
    /// If it is not known how to reach the API server.
    pub async fn new(access: &Access, namespace: &str) -> Result<Self, DaemonsError> {
        let connection = access.client().await.map_err(DaemonsError::Access)?;
        Ok(Self { pods: Api::namespaced(connection.client, namespace) })
    }

    /// Their running pods, by node.
    ///
    /// # Errors
    /// If the API server does not list them.
    pub async fn list(&self) -> Result<Vec<DaemonPod>, DaemonsError> {
        let pods = self.pods.list(&ListParams::default().labels(SELECTOR)).await.map_err(|source| {
            let doing = "listing the pods of the daemons (list on pods, in their namespace)";
            DaemonsError::Request { doing, source: Box::new(source) }
        })?;
        let mut daemons: Vec<DaemonPod> = pods.items.iter().filter_map(DaemonPod::of).collect();
        daemons.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(daemons)
    }

    /// Opens a connection to one of them.
    ///
    /// # Errors
    /// If the API server or the kubelet of its node refuses.
    pub async fn connect(
        &self,
        daemon: &DaemonPod,
    ) -> Result<Forwarded<impl AsyncRead + AsyncWrite + Unpin + use<>>, DaemonsError> {
        let ports = [daemon.port];
        let mut forwarder = self.pods.portforward(&daemon.name, &ports).await.map_err(|source| {
            let doing = "connecting to a daemon (get and create on pods/portforward, in its namespace)";
            DaemonsError::Request { doing, source: Box::new(source) }
        })?;
        let stream = forwarder.take_stream(daemon.port).ok_or(DaemonsError::NoStream(daemon.port))?;
        Ok(Forwarded { stream, _forwarder: forwarder })
    }
}

impl DaemonPod {
    /// The daemon in a pod, if it runs.
    fn of(pod: &Pod) -> Option<Self> {
        let is_running = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        let spec = pod.spec.as_ref().filter(|_| is_running)?;
        let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
        let port = ports
            .filter(|port| port.name.as_deref() == Some(PORT_NAME))
            .find_map(|port| u16::try_from(port.container_port).ok());
        Some(Self {
            name: pod.metadata.name.clone()?,
            node: spec.node_name.clone()?,
            port: port.unwrap_or(PORT),
        })
    }
}

impl std::fmt::Debug for Daemons {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemons").finish_non_exhaustive()
    }
}

impl<S> std::fmt::Debug for Forwarded<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarded").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str, ports: &str) -> Option<DaemonPod> {
        let text = format!(
            r#"{{"metadata": {{"name": "towpath-x"}}, "status": {{"phase": "{phase}"}},
                "spec": {{"nodeName": "n1", "containers": [{{"name": "towpath", "ports": {ports}}}]}}}}"#
        );
        DaemonPod::of(&serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn daemon_is_a_running_pod_and_its_port_is_that_of_its_container() {
        let daemon = |port| Some(DaemonPod { name: "towpath-x".to_owned(), node: "n1".to_owned(), port });
        assert_eq!(pod("Running", r#"[{"name": "metrics", "containerPort": 9999}]"#), daemon(9999));
        assert_eq!(pod("Running", r#"[{"name": "other", "containerPort": 1}]"#), daemon(9586));
        assert_eq!(pod("Running", "null"), daemon(9586));
        assert_eq!(pod("Pending", "[]"), None);
    }
}
