//! The watched kinds, and the particulars of each.

use std::{fmt, sync::Arc};

use serde::de::DeserializeOwned;

use crate::{
    k8s::{
        convert::{self, Conversion, Origin, network_policy},
        fault::Problem,
        intern::Interner,
        types,
    },
    model::{Change, Namespace, NetworkPolicy, Node, ObjectKey, Pod},
};

/// A watched kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Namespaces, all of them.
    Namespace,
    /// Only the daemon's own node.
    Node,
    /// Pods of all nodes that have not finished.
    Pod,
    /// NetworkPolicies of all namespaces.
    NetworkPolicy,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Namespace, Self::Node, Self::Pod, Self::NetworkPolicy];

    /// As in `kind` of an object.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    /// As in `apiVersion` of an object.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod => "v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
        }
    }

    /// Its API group, as RBAC rules name it: empty for the core group.
    #[must_use]
    pub fn group(self) -> &'static str {
        self.api_version().split_once('/').map_or("", |(group, _)| group)
    }

    /// Its resource, as RBAC rules and paths name it.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::NetworkPolicy => "networkpolicies",
        }
    }

    /// The path of the whole collection.
    pub(super) fn path(self) -> String {
        let root = if self.group().is_empty() { "api" } else { "apis" };
        format!("/{root}/{}/{}", self.api_version(), self.resource())
    }

    /// The field selector for the objects to request.
    ///
    /// A pod that finishes leaves the watch as if it were deleted. A finished pod never runs again.
    pub(super) fn fields(self, node: &str) -> Option<String> {
        match self {
            Self::Namespace | Self::NetworkPolicy => None,
            Self::Node => Some(format!("metadata.name={node}")),
            Self::Pod => Some("status.phase!=Succeeded,status.phase!=Failed".to_owned()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What identifies an object of one kind: its namespace, for those that are in one, and its name.
pub(super) type Key = (Option<Arc<str>>, Arc<str>);

/// The slim type that a kind is received as.
pub(super) trait Watched: DeserializeOwned + Clone + Send + Sync + 'static {
    /// The kind.
    const KIND: Kind;
    /// The object in the model.
    type Object;

    /// Its metadata.
    fn meta(&self) -> &types::Meta;

    /// Converts it to the model.
    fn convert(&self, names: &mut Interner) -> Conversion<Self::Object>;

    /// What can still be enforced of an object with errors, if no better version is known.
    ///
    /// The rules of a policy are never guessed. For objects that only say who a pod is, whatever can be read counts: a
    /// pod that is left out for an unreadable port would not be isolated at all.
    fn despite(
        &self,
        readable: Option<Self::Object>,
        _problems: &[Problem],
        _names: &mut Interner,
    ) -> Option<Self::Object> {
        readable
    }

    /// Whether the result of [`Self::despite`] is better than the previous version.
    const SALVAGED_IS_CURRENT: bool = true;

    /// The change that sets it.
    fn set(object: Self::Object) -> Change;

    /// The change that removes it.
    fn remove(key: Key) -> Change;
}

fn namespaced((namespace, name): Key) -> ObjectKey {
    ObjectKey { namespace: namespace.unwrap_or_else(|| convert::DEFAULT_NAMESPACE.into()), name }
}

impl Watched for types::Namespace {
    const KIND: Kind = Kind::Namespace;
    type Object = Namespace;

    fn meta(&self) -> &types::Meta {
        &self.metadata
    }

    fn convert(&self, names: &mut Interner) -> Conversion<Namespace> {
        convert::namespace(self, names)
    }

    fn set(object: Namespace) -> Change {
        Change::SetNamespace(object)
    }

    fn remove((_, name): Key) -> Change {
        Change::RemoveNamespace(name)
    }
}

impl Watched for types::Node {
    const KIND: Kind = Kind::Node;
    type Object = Node;

    fn meta(&self) -> &types::Meta {
        &self.metadata
    }

    fn convert(&self, names: &mut Interner) -> Conversion<Node> {
        convert::node(self, names)
    }

    fn set(object: Node) -> Change {
        Change::SetNode(object)
    }

    fn remove((_, name): Key) -> Change {
        Change::RemoveNode(name)
    }
}

impl Watched for types::Pod {
    const KIND: Kind = Kind::Pod;
    type Object = Pod;

    fn meta(&self) -> &types::Meta {
        &self.metadata
    }

    /// Of a pod on its node's network only the node's addresses matter, so nothing else of it is kept, and no other
    /// change of it gets past this point.
    fn convert(&self, names: &mut Interner) -> Conversion<Pod> {
        let Conversion { readable, problems } = convert::pod(self, names);
        let readable = readable.map(|pod| {
            if !pod.host_network {
                return pod;
            }
            let Pod { key, node, node_addresses, .. } = pod;
            Pod { node, node_addresses, host_network: true, ..Pod::new(key) }
        });
        Conversion { readable, problems }
    }

    fn set(object: Pod) -> Change {
        Change::SetPod(object)
    }

    fn remove(key: Key) -> Change {
        Change::RemovePod(namespaced(key))
    }
}

impl Watched for types::NetworkPolicy {
    const KIND: Kind = Kind::NetworkPolicy;
    const SALVAGED_IS_CURRENT: bool = false;
    type Object = NetworkPolicy;

    fn meta(&self) -> &types::Meta {
        &self.metadata
    }

    fn convert(&self, names: &mut Interner) -> Conversion<NetworkPolicy> {
        network_policy::network_policy(self, Origin::Api, names)
    }

    fn despite(
        &self,
        _: Option<NetworkPolicy>,
        problems: &[Problem],
        names: &mut Interner,
    ) -> Option<NetworkPolicy> {
        network_policy::stand_in(self, Origin::Api, problems, names)
    }

    fn set(object: NetworkPolicy) -> Change {
        Change::SetPolicy(object)
    }

    fn remove(key: Key) -> Change {
        Change::RemovePolicy(namespaced(key))
    }
}
