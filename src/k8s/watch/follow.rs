//! Lists the objects of one kind, and watches their changes.
//!
//! The list comes as a watch that begins with all existing objects ("streaming list"), served from the API server's
//! cache and one object at a time, so that neither side ever holds it whole. A server without streaming lists is asked
//! for pages. Either is as of now: a list "as of any time" could bring back a state from before a policy that is
//! already enforced.
//!
//! A watch that ends is resumed from the version of the last event or bookmark. Bookmarks come about once a minute, so
//! silence for longer than that means that the connection is dead, whatever TCP thinks of it, or that the server is
//! behind a version that it sent before, or, on some servers, only that nothing changes. After silence everything is
//! relisted.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::{StreamExt, TryStreamExt as _, stream::BoxStream};
use kube::{
    Client,
    api::{ListParams, Request, WatchEvent as ApiEvent, WatchParams},
};
use tracing::{debug, warn};

use super::{
    Connection, Shared, WatchError,
    error::Cause,
    inventory::{Inventory, Update},
    kinds::{Kind, Watched},
    received::{Page, Received},
};
use crate::model::MemoryExcess;

/// After this long without an event or a bookmark, everything is relisted. The API server sends bookmarks once a
/// minute, if they have anything new to say.
pub const SILENCE: Duration = Duration::from_secs(90);

/// How soon the server must begin to answer after a watch was quiet: that shows whether it is still there.
const ANSWER: Duration = Duration::from_secs(15);

/// After this many seconds the API server ends a watch, which is then resumed. Each watch has its own time, so that
/// nodes that reconnected together after an outage do not keep reconnecting together.
const WATCH_SECONDS: Range<u32> = 300..600;

/// Objects per page, if the server has no streaming lists. A page is held as text twice while it is parsed, and an
/// object may have 1.5 MB: with larger pages one tenant could take all memory.
const PAGE: u32 = 40;

/// The first and the longest wait after a failure; each is randomly up to twice as long, so that nodes do not come back
/// all at once. A server that has just started still refuses requests for a moment, so two of the longest waits may
/// pass before changes are received again.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(4));

/// A watch that ran for this long is unrelated to the failures before it.
const STEADY: Duration = Duration::from_secs(30);

/// A watch that ends sooner than this is not restarted at once.
const TOO_SHORT: Duration = Duration::from_secs(1);

/// The shortest time between relists because of memory, and how many seconds are added to it at random.
const RELIST_EVERY: Duration = Duration::from_mins(1);
const RELIST_SPREAD: Range<u64> = 0..30;

/// The annotation of the bookmark that ends a streaming list.
const LIST_ENDS: &str = "k8s.io/initial-events-end";

type Events<S> = BoxStream<'static, kube::Result<ApiEvent<Received<S>>>>;

/// What is known, and from where to go on.
///
/// ```text
///     a list begins, paged       it is complete, streamed
///     or as a watch
///  ┌────────┐ ──────────────▶ ┌───────┐ ──────────────────────────▶ ┌────────┐
///  │Unlisted│                 │Listing│                             │Watching│ ──┐ an event or a
///  └────────┘ ◀────────────── └───────┘ ────────┐  a watch starts   └────────┘ ◀─┘ bookmark
///    ▲    ▲     it breaks off                   │            ▲        │    │
///    │    │              it is complete, paged  ▼            │        │    │ the watch ends, and what
///    │    │   a watch cannot start, and    ┌─────────┐ ──────┘        │    │ failed needs no new list
///    │    └──────────────────────────────  │Resumable│ ◀──────────────┼────┘
///    │        a new list is needed         └─────────┘                │
///    └────────────────────────────────────────────────────────────────┘
///                     the watch ends, and a new list is needed
/// ```
#[derive(Debug)]
enum FollowState {
    /// Everything must be listed: before the first list, and when a resumed watch could miss something.
    Unlisted,
    /// A list is arriving.
    Listing,
    /// Everything up to this version was delivered. A watch starts there.
    Resumable(String),
    /// Everything up to this version was delivered. A watch is live: its events are changes.
    Watching(String),
}

impl FollowState {
    /// The version to go on from.
    fn version(&self) -> Option<&str> {
        match self {
            Self::Unlisted | Self::Listing => None,
            Self::Resumable(version) | Self::Watching(version) => Some(version),
        }
    }
}

/// Lists and watches one kind.
pub(super) struct Follower<S> {
    shared: Arc<Shared>,
    inventory: Inventory<S>,
    connection: Option<Connection>,
    state: FollowState,
    /// Whether to ask for a streaming list next, rather than for pages: what failed last is not tried next.
    streams_lists: bool,
    /// Why the last attempt failed, until one succeeds.
    failed: Option<Cause>,
    /// When the last list began, and when it was completed.
    list_began: Instant,
    listed_at: Instant,
    /// When to relist, for rules that were dropped and fit into memory now.
    relist_at: Option<Instant>,
}

impl<S: Watched> Follower<S> {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let inventory = Inventory::bounded(shared.limits, shared.node.clone());
        Self {
            shared,
            inventory,
            connection: None,
            state: FollowState::Unlisted,
            streams_lists: true,
            failed: None,
            list_began: Instant::now(),
            listed_at: Instant::now(),
            relist_at: None,
        }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self) {
        let (first, longest) = WAITS;
        let waits = || {
            let waits = ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest);
            waits.with_factor(2.0).with_jitter().without_max_times().build()
        };
        let mut backoff = waits();
        loop {
            let began = Instant::now();
            let error = self.follow().await.err().unwrap_or_else(WatchError::ended);
            let lived = began.elapsed();
            if lived >= STEADY {
                backoff = waits();
            }
            let error = self.judge(error);
            let cause = error.cause;
            debug!(kind = %S::KIND, %error, "watch ended");
            if !cause.is_routine() {
                self.failed = Some(cause);
                // The next attempt reads the token, the certificates and the kubeconfig again.
                self.connection = None;
            }
            self.shared.sink.ended(S::KIND, error);
            if cause != Cause::Ended || lived < TOO_SHORT {
                tokio::time::sleep(backoff.next().unwrap_or(longest)).await;
            }
        }
    }

    /// What the end of an attempt means for the next one.
    fn judge(&mut self, mut error: WatchError) -> WatchError {
        let version = match std::mem::replace(&mut self.state, FollowState::Unlisted) {
            FollowState::Unlisted | FollowState::Listing => None,
            FollowState::Resumable(version) => Some(version),
            FollowState::Watching(version) => {
                if error.cause == Cause::Silent {
                    error.cause = Cause::Quiet;
                }
                Some(version)
            }
        };
        if version.is_none() && error.cause == Cause::Gone {
            // A list asks for no past version: if one is gone, that is not routine.
            error.cause = Cause::Failed;
        }
        if version.is_none() && matches!(error.cause, Cause::Failed | Cause::Unsupported) {
            // Servers whose storage cannot report its progress accept streaming lists, and then fail.
            self.streams_lists = !self.streams_lists;
        }
        // A server that was restored from a backup accepts a watch from a version that it has yet to reach, and is
        // silent until then: so after silence a watch is not resumed either.
        if let Some(version) = version.filter(|_| !error.cause.lists_anew()) {
            self.state = FollowState::Resumable(version);
        }
        error
    }

    /// Lists, unless there is a version to resume from, and watches until that ends.
    async fn follow(&mut self) -> Result<(), WatchError> {
        let (client, server) = self.client().await?;
        let is_unlisted = matches!(self.state, FollowState::Unlisted);
        if is_unlisted && !self.streams_lists {
            self.list(&client, &server).await?;
        }
        let mut events = match self.watch(&client, &server).await {
            Err(error) if self.state.version().is_none() && error.cause == Cause::Unsupported => {
                debug!(kind = %S::KIND, %error, "server has no streaming lists; listing in pages");
                self.streams_lists = false;
                self.list(&client, &server).await?;
                self.watch(&client, &server).await?
            }
            events => events?,
        };
        self.starts_watching();
        loop {
            let event = tokio::select! {
                event = within(SILENCE, &server, events.try_next()) => event?,
                () = until(self.relist_at.filter(|_| !self.is_listing())) => {
                    self.state = FollowState::Unlisted;
                    return Err(WatchError::relist());
                }
            };
            let Some(event) = event.map_err(|error| WatchError::of_stream(&error, S::KIND, &server))? else {
                return if self.is_listing() { Err(WatchError::cut_short(&server)) } else { Ok(()) };
            };
            self.take(event, &server)?;
        }
    }

    /// The server accepted a watch: it goes on from the version, or begins with a list.
    fn starts_watching(&mut self) {
        match std::mem::replace(&mut self.state, FollowState::Unlisted) {
            FollowState::Unlisted | FollowState::Listing => self.begin_list(),
            FollowState::Resumable(version) | FollowState::Watching(version) => {
                self.state = FollowState::Watching(version);
                self.recovered();
            }
        }
    }

    const fn is_listing(&self) -> bool {
        matches!(self.state, FollowState::Listing)
    }

    async fn client(&mut self) -> Result<(Client, Arc<str>), WatchError> {
        let connection = match self.connection.take().filter(|connection| !connection.has_expired()) {
            Some(connection) => connection,
            None => self.shared.access.client().await.map_err(|error| WatchError::of_access(&error))?,
        };
        let Connection { client, server, .. } = self.connection.insert(connection);
        Ok((client.clone(), server.clone()))
    }

    /// Starts a watch: from the version of the state, or with all existing objects.
    async fn watch(&self, client: &Client, server: &str) -> Result<Events<S>, WatchError> {
        let params = WatchParams {
            field_selector: S::KIND.fields(&self.shared.node),
            timeout: Some(fastrand::u32(WATCH_SECONDS)),
            bookmarks: true,
            send_initial_events: self.state.version().is_none(),
            ..WatchParams::default()
        };
        // No version means: as of now.
        let version = self.state.version().unwrap_or_default();
        let request = Request::new(S::KIND.path()).watch(&params, version);
        let request = request.map_err(kube::Error::BuildRequest);
        let request = request.map_err(|error| WatchError::of_request(&error, S::KIND, server))?;
        let events = within(self.patience(), server, client.request_events(request)).await?;
        events.map(StreamExt::boxed).map_err(|error| WatchError::of_request(&error, S::KIND, server))
    }

    /// How long to wait for the first answer of an attempt.
    const fn patience(&self) -> Duration {
        if matches!(self.failed, Some(Cause::Quiet)) { ANSWER } else { SILENCE }
    }

    /// Lists page by page.
    async fn list(&mut self, client: &Client, server: &str) -> Result<(), WatchError> {
        self.begin_list();
        let patience = self.patience();
        let (inventory, shared) = (&mut self.inventory, &self.shared);
        let fields = S::KIND.fields(&shared.node);
        let version = pages(
            client,
            server,
            S::KIND.path(),
            fields,
            patience,
            |page: &mut dyn Iterator<Item = Received<S>>| {
                shared.sink.alive(S::KIND);
                for received in page {
                    inventory.set(&received);
                }
            },
        );
        let version = version.await?;
        self.listed(FollowState::Resumable(version));
        Ok(())
    }

    fn take(&mut self, event: ApiEvent<Received<S>>, server: &str) -> Result<(), WatchError> {
        if !matches!(event, ApiEvent::Error(_)) {
            self.shared.sink.alive(S::KIND);
        }
        match event {
            ApiEvent::Added(received) | ApiEvent::Modified(received) => {
                let update = self.inventory.set(&received);
                self.update(update, &received);
            }
            ApiEvent::Deleted(received) => {
                let update = self.inventory.remove(&received);
                self.update(update, &received);
            }
            ApiEvent::Bookmark(bookmark) => {
                let version = bookmark.metadata.resource_version;
                if !self.is_listing() {
                    self.state = FollowState::Watching(version);
                } else if bookmark.metadata.annotations.contains_key(LIST_ENDS) {
                    self.listed(FollowState::Watching(version));
                }
            }
            ApiEvent::Error(status) => return Err(WatchError::of_error_event(&status, S::KIND, server)),
        }
        Ok(())
    }

    fn begin_list(&mut self) {
        self.state = FollowState::Listing;
        self.list_began = Instant::now();
        self.inventory.begin_list();
    }

    /// The list is complete, and leads to this state.
    fn listed(&mut self, state: FollowState) {
        let update = self.inventory.end_list();
        (self.listed_at, self.relist_at) = (Instant::now(), None);
        self.state = state;
        if self.failed == Some(Cause::Quiet) && update.came_or_went > 0 {
            warn!(
                kind = %S::KIND,
                objects = update.came_or_went,
                "the watch missed changes although it seemed to run: its connection was dead, or something on the way \
                 holds back events"
            );
        }
        // The objects of the list have been received since it began.
        self.deliver(update, self.list_began);
        self.recovered();
        // A complete list proves that the server is there, whatever comes next.
        self.shared.sink.alive(S::KIND);
        self.complete();
    }

    /// Delivers the result of one event; the watch has now reached its version.
    fn update(&mut self, update: Update, received: &Received<S>) {
        if self.is_listing() {
            return;
        }
        if let Received::Readable(object) = received
            && let Some(version) = &object.meta().resource_version
        {
            self.state = FollowState::Watching(version.clone());
        }
        self.deliver(update, Instant::now());
        if S::KIND == Kind::Node {
            self.complete();
        }
    }

    /// All existing objects were delivered; for this node that means that its object exists.
    fn complete(&self) {
        if S::KIND == Kind::Node && self.inventory.is_empty() {
            self.shared.sink.no_such_node(&self.shared.node);
        } else {
            self.shared.listed(S::KIND);
        }
    }

    fn deliver(&mut self, Update { changes, rejected, closed, relist, .. }: Update, received: Instant) {
        for (namespace, MemoryExcess { bytes, budget, is_of_all }) in closed {
            let limit = if is_of_all { "--cluster-memory" } else { "--namespace-memory" };
            warn!(%namespace, bytes, budget, limit, "policies take too much memory; dropping their rules");
        }
        if relist && self.relist_at.is_none() {
            // At random, so that not all nodes relist at once.
            let by_chance = Duration::from_secs(fastrand::u64(RELIST_SPREAD));
            let earliest = self.listed_at + RELIST_EVERY;
            self.relist_at = Some(earliest.max(Instant::now()) + by_chance);
        } else if !relist {
            self.relist_at = None;
        }
        if !changes.is_empty() {
            self.shared.sink.changes(received, changes);
        }
        if let Some(rejected) = rejected {
            self.shared.sink.rejected(S::KIND, rejected);
        }
    }

    fn recovered(&mut self) {
        if self.failed.take().is_some() {
            self.shared.sink.recovered(S::KIND);
        }
    }
}

/// Lists the objects of a kind, as of now, page by page, and waits for the first page up to `patience`. Returns the
/// version of the list.
pub(super) async fn pages<S: Watched>(
    client: &Client,
    server: &str,
    path: String,
    fields: Option<String>,
    mut patience: Duration,
    mut page: impl FnMut(&mut dyn Iterator<Item = Received<S>>),
) -> Result<String, WatchError> {
    let mut params = ListParams { field_selector: fields, limit: Some(PAGE), ..ListParams::default() };
    loop {
        let request = Request::new(path.as_str()).list(&params).map_err(kube::Error::BuildRequest);
        let request = request.map_err(|error| WatchError::of_request(&error, S::KIND, server))?;
        let answer = within(patience, server, client.request::<Page>(request)).await?;
        patience = SILENCE;
        let mut answer = answer.map_err(|error| WatchError::of_request(&error, S::KIND, server))?;
        page(&mut answer.objects());
        if answer.metadata.next.is_empty() {
            return Ok(answer.metadata.resource_version);
        }
        params.continue_token = Some(answer.metadata.next);
    }
}

/// Completes at this time; never, if there is none.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The result of `what`, if it comes within this time.
async fn within<T>(time: Duration, server: &str, what: impl Future<Output = T>) -> Result<T, WatchError> {
    tokio::time::timeout(time, what).await.map_err(|_| WatchError::silent(server, time.as_secs()))
}
