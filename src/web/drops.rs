//! `/drops`: what was dropped, and why. One page of JSON, or, with `follow`, one record a line for as long as the client
//! listens.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use futures::stream;
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time,
};

use super::{Follows, Web};
use crate::drops::{Filter, Record};

/// How many clients may follow at a time. The one that has followed the longest makes room for a new one: kubelet is a
/// client like others, and the owners of pods must not keep all others out with their probes.
const FOLLOWERS: usize = 8;

/// How long a client may follow over one connection.
pub(super) const FOLLOWED_FOR: Duration = Duration::from_hours(1);

/// While there is nothing new, an empty line is sent so often: a client then knows that the daemon is there, and the
/// daemon learns that the client is gone.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);

/// The clients that follow, by when they came; each waits to be told that it has to go.
#[derive(Clone, Debug, Default)]
pub(super) struct Followers(Arc<Mutex<VecDeque<Arc<Notify>>>>);

impl Followers {
    /// A place for a client.
    fn take_place(&self) -> Place {
        let must_go = Arc::new(Notify::new());
        let mut all = self.all();
        if all.len() >= FOLLOWERS
            && let Some(oldest) = all.pop_front()
        {
            oldest.notify_one();
        }
        all.push_back(must_go.clone());
        Place { followers: self.clone(), must_go }
    }

    fn all(&self) -> MutexGuard<'_, VecDeque<Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a client among those that follow, until it is dropped.
struct Place {
    followers: Followers,
    must_go: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.followers.all().retain(|other| !Arc::ptr_eq(other, &self.must_go));
    }
}

/// What a client asks for.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Question {
    pod: Option<String>,
    namespace: Option<String>,
    since: Option<u64>,
    #[serde(default)]
    follow: Option<String>,
}

impl Question {
    /// Whether to go on: `follow`, `follow=true` or `follow=1`.
    fn follows(&self) -> bool {
        self.follow.as_deref().is_some_and(|follow| matches!(follow, "" | "1" | "true"))
    }

    fn filter(&self) -> Filter {
        Filter { pod: self.pod.clone(), namespace: self.namespace.clone(), since: self.since }
    }
}

/// 200 with a page of records, or with records as lines.
pub(super) async fn drops(
    State(web): State<Web>,
    Extension(followers): Extension<Followers>,
    Extension(follows): Extension<Follows>,
    Query(question): Query<Question>,
) -> Response {
    let filter = question.filter();
    if !question.follows() {
        return Json(web.drops.page(&web.about.node, &filter)).into_response();
    }
    let place = followers.take_place();
    follows.0.store(true, Ordering::Relaxed);
    let latest = web.drops.follow();
    let follower = Follower { web, filter, latest, is_first: true, place };
    let lines = stream::unfold(follower, |mut follower| async move {
        let lines = follower.next().await?;
        Some((Ok::<_, Infallible>(lines), follower))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// A client that follows.
struct Follower {
    web: Web,
    filter: Filter,
    latest: watch::Receiver<u64>,
    is_first: bool,
    place: Place,
}

impl Follower {
    /// The next lines; at first what there is already.
    async fn next(&mut self) -> Option<String> {
        if !self.is_first {
            tokio::select! {
                () = self.place.must_go.notified() => return None,
                changed = time::timeout(SIGN_OF_LIFE, self.latest.changed()) => match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return None,
                    Err(_) => return Some("\n".to_owned()),
                },
            }
        }
        self.is_first = false;
        self.latest.mark_unchanged();
        let page = self.web.drops.page(&self.web.about.node, &self.filter);
        self.filter.since = page.records.last().map(|record| record.cursor).or(self.filter.since);
        Some(page.records.iter().map(line).collect::<String>() + "\n")
    }
}

fn line(record: &Record) -> String {
    // A record has nothing that JSON cannot hold.
    serde_json::to_string(record).unwrap_or_default() + "\n"
}
