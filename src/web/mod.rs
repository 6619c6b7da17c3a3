//! What the daemon says over HTTP: `/metrics`, `/livez`, `/readyz`.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use crate::{
    agent::{Readiness, Status},
    metrics::Metrics,
};

/// A loop that has shown nothing for so long is stuck. Longer than the longest wait for another process' xtables lock.
const STUCK_AFTER: Duration = Duration::from_mins(3);

/// What the pages speak of.
#[derive(Clone, Debug)]
pub struct Web {
    /// The daemon's metrics.
    pub metrics: Arc<Metrics>,
    /// The daemon's state.
    pub status: Arc<Status>,
}

impl Web {
    /// Answers requests until the process ends.
    ///
    /// # Errors
    /// If the listener breaks.
    pub async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .with_state(self);
        axum::serve(listener, router).await
    }
}

async fn metrics(State(web): State<Web>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], web.metrics.text())
}

/// 200 while the loop turns.
async fn livez(State(web): State<Web>) -> impl IntoResponse {
    let silence = web.status.silence();
    if silence < STUCK_AFTER {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("the loop has not turned for {} s\n", silence.as_secs()))
    }
}

/// 200 once the first full sync is in the kernel and while the last round did not fail; else 503 and the reason.
async fn readyz(State(web): State<Web>) -> impl IntoResponse {
    match web.status.readiness() {
        Readiness::Ready => (StatusCode::OK, "ok\n".to_owned()),
        Readiness::Degraded(reason) => (StatusCode::OK, format!("ok, but {reason}\n")),
        Readiness::Starting(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("starting: {reason}\n")),
        Readiness::Failing(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("failing: {reason}\n")),
    }
}
