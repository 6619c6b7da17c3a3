//! The daemon's HTTP endpoints: `/metrics`, `/status`, `/drops`, `/livez`, `/readyz`, and the page.
//!
//! A client can delay neither the loop nor later clients: a response is built in memory from values that are locked for
//! no longer than it takes to copy them, a connection carries one request and lives for seconds, and if too many are
//! open the oldest is closed.

mod drops;
mod node_page;
mod report;

use std::{
    collections::VecDeque,
    io,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    extract::State,
    http::{StatusCode, header},
    middleware,
    response::IntoResponse,
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time,
};

pub use node_page::NodeObjects;
pub use report::{Amounts, GateReport, Isolation, OverBudgetReport, PodReport, RefusedObject, Report};

use crate::{
    agent::{Readiness, Status},
    drops::DropLog,
    gate::install::{Installation, State as GateState},
    metrics::Metrics,
    page::guard,
};

/// A loop without a heartbeat for this long is stuck. Longer than the longest wait for another process' xtables lock.
const STUCK_AFTER: Duration = Duration::from_mins(3);

/// How many connections are served at once. One more closes the oldest: responses take milliseconds, so the oldest
/// belongs to a client that does not read, or does not send a request.
const CONNECTIONS: usize = 64;

/// How long a client may take to send its request's head.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

/// How long a connection may live, including its response.
const DONE_WITHIN: Duration = Duration::from_secs(20);

/// The largest head of a request, in bytes.
const HEAD_BYTES: usize = 16 * 1024;

/// How long to wait when no connection can be accepted, for example for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What does not change while the daemon runs.
#[derive(Clone, Debug)]
pub struct About {
    /// The node for whose pods it enforces policy.
    pub node: Arc<str>,
    /// The variant of iptables that it writes to.
    pub iptables: String,
}

/// The page of a daemon.
#[derive(Clone, Debug)]
pub struct NodePage {
    /// Its routes.
    pub router: Router,
    /// Whether it is for everybody who reaches the daemon. If not, only for clients on this node's network: it shows
    /// every pod and policy of all tenants.
    pub for_all: bool,
}

/// What the endpoints report on.
#[derive(Clone, Debug)]
pub struct Web {
    /// What does not change.
    pub about: About,
    /// The daemon's metrics.
    pub metrics: Arc<Metrics>,
    /// The daemon's state.
    pub status: Arc<Status>,
    /// The state of the gate for new pods.
    pub gate: Arc<Installation>,
    /// What was dropped.
    pub drops: Arc<DropLog>,
}

/// Whether the client of a connection follows the drop log. Its connection lives longer, and there are few of them.
#[derive(Clone, Debug, Default)]
struct Follows(Arc<AtomicBool>);

impl Web {
    /// Answers requests until it is dropped.
    pub async fn serve(self, listener: TcpListener) {
        self.serve_with(listener, None).await;
    }

    /// The same, and serves this page.
    pub async fn serve_with(self, listener: TcpListener, page: Option<NodePage>) {
        let common = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(livez))
            .route("/readyz", get(readyz));
        let followers = drops::Followers::default();
        let for_the_node = Router::new()
            .route("/status", get(status))
            .route("/drops", get(drops::drops))
            .layer(Extension(followers))
            .layer(middleware::from_fn(guard::check_host));
        let mut near = common.clone().merge(for_the_node).with_state(self.clone());
        let mut far = common
            .route("/status", get(status_from_afar))
            .route("/drops", get(drops_from_afar))
            .with_state(self);
        if let Some(page) = page {
            near = near.merge(page.router.clone());
            far = if page.for_all { far.merge(page.router) } else { far.fallback(status_from_afar) };
        }
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .keep_alive(false)
            .header_read_timeout(HEAD_WITHIN)
            .max_buf_size(HEAD_BYTES);
        let mut open: VecDeque<(JoinHandle<()>, Follows)> = VecDeque::new();
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if !is_of_the_client(&error) {
                        tracing::warn!(%error, "cannot accept a connection");
                        time::sleep(ACCEPT_PAUSE).await;
                    }
                    continue;
                }
            };
            let router = if is_of_this_node(&stream) { near.clone() } else { far.clone() };
            let follows = Follows::default();
            let router = router.layer(Extension(follows.clone()));
            let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            open.retain(|(connection, _)| !connection.is_finished());
            let is_short = |(_, follows): &(_, Follows)| !follows.0.load(Ordering::Relaxed);
            if open.len() >= CONNECTIONS
                && let Some((oldest, _)) = open.iter().position(is_short).and_then(|at| open.remove(at))
            {
                oldest.abort();
            }
            let still = follows.clone();
            let serving = tokio::spawn(async move {
                let mut connection = pin!(connection);
                // A client that disconnects, or takes too long, needs no error message.
                let in_time = time::timeout(DONE_WITHIN, &mut connection).await.is_ok();
                if !in_time && still.0.load(Ordering::Relaxed) {
                    let _ = time::timeout(drops::FOLLOWED_FOR, connection).await;
                }
            });
            open.push_back((serving, follows));
        }
    }
}

/// Whether the client is on this node: a process on its network reaches one of its addresses from that same address. A
/// pod, even one of this node, has its own address.
fn is_of_this_node(stream: &TcpStream) -> bool {
    let (Ok(from), Ok(to)) = (stream.peer_addr(), stream.local_addr()) else { return false };
    is_near(from.ip(), to.ip())
}

fn is_near(from: IpAddr, to: IpAddr) -> bool {
    let (from, to) = (from.to_canonical(), to.to_canonical());
    from == to || from.is_loopback()
}

/// Whether accepting failed because the client has already gone.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

async fn metrics(State(web): State<Web>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], web.metrics.text())
}

/// 200 with a [`Report`], whatever it says.
async fn status(State(web): State<Web>) -> impl IntoResponse {
    Json(Report::of(&web))
}

/// 403: pods and strangers must not learn which pods and policies there are.
async fn status_from_afar() -> impl IntoResponse {
    (
        StatusCode::FORBIDDEN,
        "only processes on this node's network may read this: use towpath status there, or kubectl port-forward\n",
    )
}

/// 403: pods and strangers must not learn who tries to reach whom.
async fn drops_from_afar() -> impl IntoResponse {
    (StatusCode::FORBIDDEN, "only processes on this node's network may read this: use towpath drops\n")
}

/// 200 while the loop runs.
async fn livez(State(web): State<Web>) -> impl IntoResponse {
    let silence = web.status.silence();
    if silence < STUCK_AFTER {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("the sync loop has not run for {} s\n", silence.as_secs()))
    }
}

/// 200 once the first full sync is in the kernel, while the last sync did not fail, no change is pending for too long
/// and no other part of the daemon reports a condition; else 503 and the reasons. It mentions pods that are closed
/// because their interfaces are not known, and stays 200: a pod could cause that. It mentions that the gate is not
/// installed, and stays 200: what is written is enforced.
async fn readyz(State(web): State<Web>) -> impl IntoResponse {
    let others = web.status.unbound().into_iter().chain(not_gated(&web.gate.state()).map(str::to_owned));
    let reasons =
        |degraded: Option<String>| degraded.into_iter().chain(others).collect::<Vec<_>>().join("; ");
    let ok = |reasons: String| match &*reasons {
        "" => (StatusCode::OK, "ok\n".to_owned()),
        reasons => (StatusCode::OK, format!("ok, but {reasons}\n")),
    };
    match web.status.readiness() {
        Readiness::Ready => ok(reasons(None)),
        Readiness::Degraded(reason) => ok(reasons(Some(reason))),
        Readiness::Starting(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("starting: {reason}\n")),
        Readiness::Failing(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("failing: {reason}\n")),
    }
}

/// A message if the gate is wanted and not installed. Its reason, with the node's paths, is only for clients that may read
/// the whole status.
fn not_gated(gate: &GateState) -> Option<&'static str> {
    let is_missing = matches!(gate, GateState::Waiting(_) | GateState::Failed(_));
    is_missing.then_some("new pods do not wait for their rules: the gate is not installed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_is_local_on_loopback_or_at_the_servers_address() {
        let near = |from: &str, to: &str| is_near(from.parse().unwrap(), to.parse().unwrap());
        assert!(near("127.0.0.1", "127.0.0.1") && near("::1", "::1") && near("127.0.0.1", "127.0.0.2"));
        assert!(near("192.0.2.1", "192.0.2.1") && near("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!near("10.244.1.7", "192.0.2.1") && !near("192.0.2.2", "192.0.2.1"));
        assert!(!near("::ffff:10.244.1.7", "::ffff:192.0.2.1"));
    }
}
