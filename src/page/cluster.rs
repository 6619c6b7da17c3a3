//! The cluster of a kubeconfig as the page's objects: watched, and changed with the person's own rights.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::{core, networking::v1::NetworkPolicy};
use kube::{
    api::{Api, DeleteParams, ListParams, PostParams, Preconditions},
    core::Status,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{About, Edit, Failure, NodeHealth, Objects, Snapshot, StoredPolicy, draft, key_of};
use crate::{
    k8s::watch::{Access, ApiSource, Connection, Kind, MemoryLimits, Rejection, Sink, WatchError},
    model::{Change, Cluster, ObjectKey},
};

/// As whom objects are written.
const MANAGER: &str = "towpath-ui";

/// How long a request waits for the first lists.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the API server may take to answer.
const WITHIN: Duration = Duration::from_secs(30);

/// The label of the daemons' pods, as the manifests in deploy/ set it.
const DAEMONS: &str = "app.kubernetes.io/name=towpath";

/// The annotation in which kubectl keeps a copy of the whole object.
const KUBECTLS_COPY: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A cluster. Its watches end when it is dropped.
#[derive(Debug)]
pub struct Watched {
    access: Access,
    title: String,
    writable: bool,
    /// The namespace of towpath's daemons.
    daemons: String,
    view: Arc<View>,
    _source: ApiSource,
}

/// What the watches have received.
#[derive(Debug)]
struct View {
    state: Mutex<State>,
    /// Whether the first lists are complete.
    synced: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    cluster: Cluster,
    version: u64,
    rejected: BTreeMap<Kind, Vec<Rejection>>,
    errors: BTreeMap<Kind, String>,
    /// The state as it was last asked for.
    snapshot: Option<Arc<Snapshot>>,
}

impl View {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn errors(&self) -> Option<String> {
        self.state().stale()
    }
}

impl State {
    fn stale(&self) -> Option<String> {
        let mut errors: Vec<&str> = self.errors.values().map(String::as_str).collect();
        errors.dedup();
        (!errors.is_empty()).then(|| errors.join("; "))
    }

    fn snapshot(&mut self) -> Arc<Snapshot> {
        let stale = self.stale();
        let known = self.snapshot.as_ref();
        if let Some(known) = known.filter(|known| known.version == self.version && known.stale == stale) {
            return known.clone();
        }
        let faults = self.rejected.values().flatten().map(ToString::to_string).collect();
        let (version, cluster) = (self.version, self.cluster.clone());
        let snapshot = Arc::new(Snapshot { version, cluster, faults, places: BTreeMap::new(), stale });
        self.snapshot = Some(snapshot.clone());
        snapshot
    }
}

impl Sink for View {
    fn changes(&self, _: Instant, changes: Vec<Change>) {
        let mut state = self.state();
        for change in changes {
            if let Change::DropRules(namespace, excess) = &change {
                for policy in state.cluster.without_rules(namespace, *excess) {
                    state.cluster.apply(policy);
                }
            }
            state.cluster.apply(change);
        }
        state.version += 1;
    }

    fn rejected(&self, kind: Kind, rejections: Vec<Rejection>) {
        let mut state = self.state();
        state.rejected.insert(kind, rejections);
        state.version += 1;
    }

    fn synced(&self) {
        self.synced.send_replace(true);
    }

    fn alive(&self, kind: Kind) {
        self.state().errors.remove(&kind);
    }

    fn ended(&self, kind: Kind, error: WatchError) {
        if !error.cause.is_routine() {
            self.state().errors.insert(kind, error.text);
        }
    }

    fn recovered(&self, kind: Kind) {
        self.state().errors.remove(&kind);
    }

    fn no_such_node(&self, _: &str) {}
}

impl Watched {
    /// Watches the cluster, within the current tokio runtime.
    ///
    /// # Errors
    /// If it is not known how to reach its API server.
    pub async fn start(
        access: Access,
        context: Option<&str>,
        writable: bool,
        daemons: String,
    ) -> Result<Self, Failure> {
        let connection = connect(&access).await?;
        let title = match context {
            Some(context) => format!("{context} ({})", connection.server),
            None => connection.server.to_string(),
        };
        let view = Arc::new(View { state: Mutex::default(), synced: watch::Sender::new(false) });
        let source = ApiSource::of_cluster(access.clone(), MemoryLimits::default(), view.clone());
        Ok(Self { access, title, writable, daemons, view, _source: source })
    }

    async fn read(&self) -> Result<Arc<Snapshot>, Failure> {
        let mut synced = self.view.synced.subscribe();
        let listed = tokio::time::timeout(PATIENCE, synced.wait_for(|synced| *synced)).await;
        if !matches!(listed, Ok(Ok(_))) {
            let reason = self.view.errors().unwrap_or_else(|| "the lists are not complete yet".to_owned());
            return Err(Failure::new(503, format!("no objects: {reason}")));
        }
        Ok(self.view.state().snapshot())
    }

    async fn policies(&self, namespace: &str) -> Result<Api<NetworkPolicy>, Failure> {
        Ok(Api::namespaced(connect(&self.access).await?.client, namespace))
    }

    async fn stored(&self, key: &ObjectKey) -> Result<StoredPolicy, Failure> {
        let policies = self.policies(&key.namespace).await?;
        let object = within(policies.get(&key.name)).await?.map_err(|error| refused("read", key, &error))?;
        stored(&object)
    }

    async fn edit(&self, edit: Edit) -> Result<Option<StoredPolicy>, Failure> {
        let object = edit.text.as_deref().map(draft::object).transpose()?;
        let replaced = edit.replaces.as_deref().map(key_of).transpose()?;
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match (object, replaced) {
            (None, None) => {
                Err(Failure::new(400, "there is nothing to do: neither a text nor a policy to delete"))
            }
            (Some(object), None) => {
                let key = key_of_object(&object);
                let policies = self.policies(&key.namespace).await?;
                match within(policies.create(&params, &object)).await? {
                    Ok(made) => stored(&made).map(Some),
                    Err(error) => Err(self.told("create", &key, &error).await),
                }
            }
            (Some(mut object), Some(key)) => {
                if key_of_object(&object) != key {
                    let text =
                        format!("{key} cannot be renamed: create the new policy, then delete this one");
                    return Err(Failure::new(422, text));
                }
                // Only what the person has seen is replaced: the API server refuses if it has changed since.
                object.metadata.resource_version = Some(revision(edit.revision)?);
                let policies = self.policies(&key.namespace).await?;
                match within(policies.replace(&key.name, &params, &object)).await? {
                    Ok(made) => stored(&made).map(Some),
                    Err(error) => Err(self.told("change", &key, &error).await),
                }
            }
            (None, Some(key)) => {
                let resource_version = Some(revision(edit.revision)?);
                let preconditions = Some(Preconditions { resource_version, uid: None });
                let params = DeleteParams { preconditions, ..DeleteParams::default() };
                let policies = self.policies(&key.namespace).await?;
                match within(policies.delete(&key.name, &params)).await? {
                    Ok(_) => Ok(None),
                    Err(error) => Err(self.told("delete", &key, &error).await),
                }
            }
        }
    }

    /// Why a change was refused; after a conflict with the object as it is now.
    async fn told(&self, verb: &str, key: &ObjectKey, error: &kube::Error) -> Failure {
        let failure = refused(verb, key, error);
        if failure.status != 409 {
            return failure;
        }
        match self.stored(key).await {
            Ok(current) => {
                let by = current.object.as_ref().and_then(|object| object.get("changedBy")?.as_str());
                let by = by.map_or_else(String::new, |by| format!(" by {by}"));
                let what = if verb == "create" { "exists already" } else { "was changed meanwhile" };
                let text = format!("{key} {what}{by}: nothing was written");
                Failure { current: Some(Box::new(current)), ..Failure::new(409, text) }
            }
            Err(missing) if missing.status == 404 => {
                Failure::new(409, format!("{key} was deleted meanwhile: nothing was written"))
            }
            Err(_) => failure,
        }
    }

    async fn daemons(&self) -> Result<Option<Vec<NodeHealth>>, Failure> {
        // Anybody's pod may have the label; the namespace is towpath's own.
        let client = connect(&self.access).await?.client;
        let pods: Api<core::v1::Pod> = Api::namespaced(client, &self.daemons);
        let list = within(pods.list(&ListParams::default().labels(DAEMONS))).await?;
        let list = list.map_err(|error| Failure::new(502, format!("cannot list towpath's pods: {error}")))?;
        let mut nodes: Vec<NodeHealth> = list.items.iter().map(health).collect();
        nodes.sort_by(|a, b| (&a.node, &a.pod).cmp(&(&b.node, &b.pod)));
        Ok(Some(nodes))
    }
}

async fn connect(access: &Access) -> Result<Connection, Failure> {
    access.client().await.map_err(|error| Failure::new(502, format!("cannot reach the API server: {error}")))
}

async fn within<T>(request: impl Future<Output = T>) -> Result<T, Failure> {
    let answer = tokio::time::timeout(WITHIN, request).await;
    answer.map_err(|_| {
        Failure::new(504, format!("the API server did not answer within {} s", WITHIN.as_secs()))
    })
}

fn revision(revision: Option<String>) -> Result<String, Failure> {
    revision.ok_or_else(|| Failure::new(400, "the request does not say which version was edited"))
}

fn key_of_object(object: &NetworkPolicy) -> ObjectKey {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    ObjectKey::new(text(&object.metadata.namespace), text(&object.metadata.name))
}

fn refused(verb: &str, key: &ObjectKey, error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => {
            let Status { message, code, .. } = &**status;
            Failure::new(*code, format!("the API server does not let you {verb} {key}: {message}"))
        }
        error => Failure::new(502, format!("cannot {verb} {key}: {error}")),
    }
}

/// A policy to edit: without what the API server and kubectl note in it. Who changed it last is added as `changedBy`.
fn stored(object: &NetworkPolicy) -> Result<StoredPolicy, Failure> {
    let metadata = &object.metadata;
    let latest =
        metadata.managed_fields.iter().flatten().max_by_key(|entry| entry.time.as_ref().map(|time| time.0));
    let by = latest.and_then(|entry| entry.manager.clone());
    let revision = metadata.resource_version.clone().unwrap_or_default();
    let failed = |error: serde_json::Error| Failure::new(500, error.to_string());
    let spec = serde_json::to_value(&object.spec).map_err(failed)?;
    let mut meta = json!({ "name": metadata.name, "namespace": metadata.namespace });
    let mut annotations = metadata.annotations.clone().unwrap_or_default();
    annotations.remove(KUBECTLS_COPY);
    let mut set = |field: &str, value: Value| {
        if let Some(fields) = meta.as_object_mut() {
            fields.insert(field.to_owned(), value);
        }
    };
    if let Some(labels) = metadata.labels.as_ref().filter(|labels| !labels.is_empty()) {
        set("labels", json!(labels));
    }
    if !annotations.is_empty() {
        set("annotations", json!(annotations));
    }
    if let Some(owners) = metadata.owner_references.as_ref().filter(|owners| !owners.is_empty()) {
        set("ownerReferences", json!(owners));
    }
    if let Some(finalizers) = metadata.finalizers.as_ref().filter(|finalizers| !finalizers.is_empty()) {
        set("finalizers", json!(finalizers));
    }
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec,
        "changedBy": by,
    });
    Ok(StoredPolicy { text: None, object: Some(object), revision, place: "the API server".to_owned() })
}

fn health(pod: &core::v1::Pod) -> NodeHealth {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    let waiting = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
    let waiting: Vec<String> =
        waiting.filter_map(|container| container.state.as_ref()?.waiting.as_ref()?.reason.clone()).collect();
    let phase = status.and_then(|status| status.phase.clone()).unwrap_or_default();
    let is_ready = ready.is_some_and(|ready| ready.status == "True");
    let message = ready.and_then(|ready| ready.message.clone().or_else(|| ready.reason.clone()));
    let reason = if is_ready {
        String::new()
    } else if waiting.is_empty() {
        message.unwrap_or(phase)
    } else {
        waiting.join(", ")
    };
    NodeHealth {
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        pod: pod.metadata.name.clone().unwrap_or_default(),
        ready: is_ready,
        reason,
        since: ready
            .and_then(|ready| ready.last_transition_time.as_ref())
            .map_or_else(String::new, |time| time.0.to_string()),
    }
}

/// A cluster that requests share.
#[derive(Clone, Debug)]
pub struct SharedCluster(pub Arc<Watched>);

impl Objects for SharedCluster {
    fn about(&self) -> About {
        let (title, writable) = (self.0.title.clone(), self.0.writable);
        About { mode: "cluster", title, writable, program: env!("CARGO_PKG_VERSION") }
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Arc<Snapshot>, Failure>> {
        self.0.read().boxed()
    }

    fn policy(&self, key: ObjectKey) -> BoxFuture<'_, Result<StoredPolicy, Failure>> {
        async move { self.0.stored(&key).await }.boxed()
    }

    fn apply(&self, edit: Edit) -> BoxFuture<'_, Result<Option<StoredPolicy>, Failure>> {
        self.0.edit(edit).boxed()
    }

    fn nodes(&self) -> BoxFuture<'_, Result<Option<Vec<NodeHealth>>, Failure>> {
        self.0.daemons().boxed()
    }
}
