//! The requests of the page, and their answers as JSON.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, State},
    http::{HeaderMap, StatusCode, Uri},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};

use super::{
    About, Edit, Explainer, Failure, Objects, Snapshot, assets, draft, graph,
    guard::{self, Guard},
    key_of,
    work::{self, Kept, Work},
};
use crate::model::{Cluster, Direction, Endpoint, Flow, NetworkPolicy, Standing};

/// The largest request: a manifest may have 1.5 MiB in etcd, and JSON quotes it.
const MOST_BYTES: usize = 4 << 20;

/// How many pods of a policy are listed.
const MOST_PODS: usize = 1000;

/// How many bytes the names of all listed pods may have. Policies beyond are listed with the number of their pods alone.
const MOST_NAMES: usize = work::MOST_BYTES / 4;

/// What the page is served from.
#[derive(Clone)]
pub struct Page {
    objects: Arc<dyn Objects>,
    explainer: Explainer,
    /// What is computed: its cost is shared by all tabs, and while one thing is computed others wait.
    work: Work,
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Page").field("about", &self.objects.about()).finish_non_exhaustive()
    }
}

impl Page {
    /// A page about these objects.
    pub fn new(objects: Arc<dyn Objects>, explainer: Explainer) -> Self {
        Self { objects, explainer, work: Work::default() }
    }

    /// Its routes, behind the guard.
    pub fn router(self, guard: Guard) -> Router {
        Router::new()
            .route("/api/v1/about", get(about))
            .route("/api/v1/state", get(state))
            .route("/api/v1/graph", get(whole_graph))
            .route("/api/v1/explain", get(explain))
            .route("/api/v1/policies", get(policies))
            .route("/api/v1/policy", get(policy))
            .route("/api/v1/nodes", get(nodes))
            .route("/api/v1/drops", get(drops))
            .route("/api/v1/validate", post(validate))
            .route("/api/v1/diff", post(diff))
            .route("/api/v1/apply", post(apply))
            .fallback(asset)
            .layer(DefaultBodyLimit::max(MOST_BYTES))
            .layer(middleware::from_fn_with_state(guard, guard::check))
            .with_state(self)
    }

    async fn snapshot(&self) -> Result<Arc<Snapshot>, Failure> {
        self.objects.snapshot().await
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self)).into_response()
    }
}

async fn asset(uri: Uri, headers: HeaderMap) -> Response {
    assets::serve(uri.path(), &headers)
}

async fn about(State(page): State<Page>) -> Json<About> {
    Json(page.objects.about())
}

/// What is asked for every two seconds.
#[derive(Serialize)]
struct PageState {
    version: u64,
    namespaces: usize,
    pods: usize,
    policies: usize,
    faults: Vec<String>,
    stale: Option<String>,
}

async fn state(State(page): State<Page>) -> Result<Json<PageState>, Failure> {
    let snapshot = page.snapshot().await?;
    let cluster = &snapshot.cluster;
    Ok(Json(PageState {
        version: snapshot.version,
        namespaces: cluster.namespaces().count(),
        pods: cluster.pods().filter(|pod| !pod.is_finished()).count(),
        policies: cluster.policies().count(),
        faults: snapshot.faults.clone(),
        stale: snapshot.stale.clone(),
    }))
}

async fn whole_graph(State(page): State<Page>) -> Result<Response, Failure> {
    let turn = page.work.turn().await;
    let snapshot = page.snapshot().await?;
    let version = snapshot.version;
    let graph = move || work::json(&graph::graph(&snapshot.cluster));
    Ok(work::response(turn.kept(Kept::Graph, version, graph).await?))
}

#[derive(Deserialize)]
struct Question {
    from: String,
    to: String,
    port: String,
}

#[derive(Serialize)]
struct Answer {
    explanation: serde_json::Value,
    text: String,
}

async fn explain(State(page): State<Page>, Query(question): Query<Question>) -> Result<Response, Failure> {
    let turn = page.work.turn().await;
    let snapshot = page.snapshot().await?;
    let (from, to) = (end(&snapshot.cluster, &question.from)?, end(&snapshot.cluster, &question.to)?);
    let transport = question.port.parse().map_err(|error| Failure::new(400, format!("{error}")))?;
    let explainer = page.explainer;
    let answer = turn.run(move || {
        let flow = Flow { from, to, transport, family: None };
        work::json(&Answer {
            explanation: (explainer.json)(&snapshot.cluster, &flow),
            text: (explainer.text)(&snapshot.cluster, &flow),
        })
    });
    Ok(work::response(answer.await?))
}

/// Reads `ns/pod`, or `ip:ADDRESS`.
fn end(cluster: &Cluster, text: &str) -> Result<Endpoint, Failure> {
    let address = text.strip_prefix("ip:").unwrap_or(text).parse();
    if let Ok(address) = address {
        return Ok(Endpoint::Address(address));
    }
    let key = key_of(text)?;
    if cluster.pod(&key).is_none() {
        return Err(Failure::new(404, format!("there is no pod {key} any more")));
    }
    Ok(Endpoint::Pod(key))
}

/// A policy in the list.
#[derive(Serialize)]
struct PolicyRow {
    policy: String,
    namespace: String,
    name: String,
    selector: String,
    ingress: Option<usize>,
    egress: Option<usize>,
    problem: Option<&'static str>,
    place: Option<String>,
    count: usize,
    pods: Vec<String>,
}

async fn policies(State(page): State<Page>) -> Result<Response, Failure> {
    let turn = page.work.turn().await;
    let snapshot = page.snapshot().await?;
    let version = snapshot.version;
    let rows = turn.kept(Kept::Policies, version, move || work::json(&rows(&snapshot, MOST_NAMES)));
    Ok(work::response(rows.await?))
}

/// All policies, with the names of pods that have at most this many bytes together.
fn rows(snapshot: &Snapshot, most_names: usize) -> Vec<PolicyRow> {
    let mut left = most_names;
    let mut row = |policy: &NetworkPolicy| {
        let mut pods = draft::selected(&snapshot.cluster, policy);
        let count = pods.len();
        pods.truncate(MOST_PODS);
        let bytes = pods.iter().map(String::len).sum();
        match left.checked_sub(bytes) {
            Some(rest) => left = rest,
            None => pods = Vec::new(),
        }
        PolicyRow {
            policy: policy.key.to_string(),
            namespace: policy.key.namespace.to_string(),
            name: policy.key.name.to_string(),
            selector: policy.subject.to_string(),
            ingress: policy.rules(Direction::Ingress).map(<[_]>::len),
            egress: policy.rules(Direction::Egress).map(<[_]>::len),
            problem: match policy.standing {
                Standing::Accepted => None,
                Standing::Refused => Some("could not be read, and allows nothing"),
                Standing::TooLarge(_) => Some("is too large to be kept, and allows nothing"),
            },
            place: snapshot.places.get(&policy.key).cloned(),
            count,
            pods,
        }
    };
    snapshot.cluster.policies().map(|policy| row(policy)).collect()
}

#[derive(Deserialize)]
struct Named {
    policy: String,
}

async fn policy(State(page): State<Page>, Query(named): Query<Named>) -> Result<Response, Failure> {
    let key = key_of(&named.policy)?;
    Ok(Json(page.objects.policy(key).await?).into_response())
}

async fn nodes(State(page): State<Page>) -> Result<Response, Failure> {
    Ok(Json(page.objects.nodes().await?).into_response())
}

async fn drops(State(page): State<Page>) -> Result<Response, Failure> {
    Ok(Json(page.objects.drops().await?).into_response())
}

#[derive(Deserialize)]
struct Draft {
    text: String,
}

async fn validate(State(page): State<Page>, Json(draft): Json<Draft>) -> Result<Response, Failure> {
    let turn = page.work.turn().await;
    let snapshot = page.snapshot().await?;
    let validation = turn.run(move || work::json(&draft::validate(&draft.text, &snapshot)));
    Ok(work::response(validation.await?))
}

async fn diff(State(page): State<Page>, Json(edit): Json<Edit>) -> Result<Response, Failure> {
    let turn = page.work.turn().await;
    let snapshot = page.snapshot().await?;
    let comparison = turn.run(move || work::json(&draft::compare(&edit, &snapshot)?));
    Ok(work::response(comparison.await?))
}

async fn apply(State(page): State<Page>, Json(edit): Json<Edit>) -> Result<Response, Failure> {
    if !page.objects.about().writable {
        return Err(super::read_only());
    }
    Ok(Json(page.objects.apply(edit).await?).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, ObjectKey, Pod};

    #[test]
    fn names_of_selected_pods_are_bounded_over_all_policies() {
        let mut snapshot = Snapshot::default();
        for name in ["a", "b", "c"] {
            let text = format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                 metadata: {{name: {name}, namespace: shop}}\nspec: {{podSelector: {{}}}}\n"
            );
            let policy = draft::accepted(&text, &snapshot.cluster).unwrap();
            snapshot.cluster.apply(Change::SetPolicy(policy));
            snapshot.cluster.apply(Change::SetPod(Pod::new(ObjectKey::new("shop", name))));
        }
        let listed = |most: usize| -> Vec<(usize, usize)> {
            rows(&snapshot, most).iter().map(|row| (row.count, row.pods.len())).collect()
        };
        assert_eq!(listed(MOST_NAMES), [(3, 3), (3, 3), (3, 3)]);
        assert_eq!(listed(2 * 3 * "shop/a".len()), [(3, 3), (3, 3), (3, 0)]);
    }
}
