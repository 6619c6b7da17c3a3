//! Kubernetes Events about what is over budget, for the owners of the namespaces: they see neither the node's log nor
//! its metrics.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use crate::{
    agent::Status,
    k8s::events::{EventError, EventWriter, Regarding},
    policy::budget::{Closed, OverBudget},
};

/// How often to check whether something is over budget. There is at most one Event each time: a tenant cannot make a
/// node write more than that.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is still over budget is reported again after this long. The API server keeps Events for an hour.
const REPEAT: Duration = Duration::from_mins(30);

/// The most Events about one namespace within [`REPEAT`].
const OF_A_NAMESPACE: usize = 10;

/// How long to wait before a failed Event is retried, and before any is if the permission to create them is missing.
const RETRY: Duration = Duration::from_mins(1);
const RETRY_FORBIDDEN: Duration = Duration::from_mins(10);

/// Writes Events about what `status` says is over budget, for as long as the process runs.
pub(super) async fn report(mut writer: EventWriter, status: Arc<Status>) {
    let mut reported = Reported::default();
    let mut failing = false;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let over_budget = status.over_budget();
        let now = Instant::now();
        reported.forget(now);
        let Some(next) = reported.next(&over_budget) else { continue };
        let result = writer.warn(&regarding(&next.closed), "OverBudget", "Close", &next.to_string()).await;
        let had_failed = std::mem::replace(&mut failing, result.is_err());
        match result {
            Ok(()) => reported.insert(next.closed.clone(), now),
            Err(EventError::Forbidden(reason)) => {
                if !had_failed {
                    info!(
                        reason,
                        "no right to create Events; deploy/components/events grants it, --events=off ends this"
                    );
                }
                tokio::time::sleep(RETRY_FORBIDDEN).await;
            }
            Err(EventError::Refused(reason)) => {
                info!(object = %next.closed, reason, "the API server refused an Event");
                reported.insert(next.closed.clone(), now);
            }
            Err(error) => {
                if !had_failed {
                    warn!(%error, "cannot write an Event");
                }
                // It may fail only in this namespace: the others come first.
                let ago = REPEAT.saturating_sub(RETRY);
                reported.insert(next.closed.clone(), now.checked_sub(ago).unwrap_or(now));
            }
        }
    }
}

/// When each object was last reported.
#[derive(Debug, Default)]
struct Reported(BTreeMap<Closed, Instant>);

impl Reported {
    fn insert(&mut self, closed: Closed, now: Instant) {
        self.0.insert(closed, now);
    }

    /// Forgets what was reported so long ago that it is reported again.
    fn forget(&mut self, now: Instant) {
        self.0.retain(|_, at| now.saturating_duration_since(*at) < REPEAT);
    }

    /// What to report next: of the namespace that had the fewest Events.
    fn next<'a>(&self, over_budget: &'a [OverBudget]) -> Option<&'a OverBudget> {
        let mut of_namespace: BTreeMap<&str, usize> = BTreeMap::new();
        for closed in self.0.keys() {
            *of_namespace.entry(closed.namespace()).or_default() += 1;
        }
        let events = |one: &OverBudget| of_namespace.get(&**one.namespace()).copied().unwrap_or(0);
        let new = over_budget.iter().filter(|one| !self.0.contains_key(&one.closed));
        new.filter(|one| events(one) < OF_A_NAMESPACE).min_by_key(|one| events(one))
    }
}

fn regarding(closed: &Closed) -> Regarding {
    match closed {
        Closed::Policy(key) => Regarding {
            api_version: "networking.k8s.io/v1",
            kind: "NetworkPolicy",
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: None,
        },
        Closed::Namespace(name) => {
            let (namespace, name) = (name.clone(), name.clone());
            Regarding { api_version: "v1", kind: "Namespace", namespace, name, uid: None }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::ObjectKey,
        policy::budget::{Resource, Scale},
    };

    fn over_budget(namespace: &str, policy: &str) -> OverBudget {
        let closed = Closed::Policy(ObjectKey::new(namespace, policy));
        OverBudget { closed, scale: Scale::Policy, resource: Resource::Units, cost: 2, budget: 1 }
    }

    #[test]
    fn events_of_a_namespace_are_limited_and_delay_no_other() {
        let mut list: Vec<OverBudget> = (0..100).map(|n| over_budget("evil", &n.to_string())).collect();
        list.push(over_budget("shop", "big"));
        let (mut reported, now) = (Reported::default(), Instant::now());
        let mut namespaces = Vec::new();
        while let Some(next) = reported.next(&list) {
            namespaces.push(next.namespace().to_string());
            reported.insert(next.closed.clone(), now);
        }
        assert_eq!(namespaces.iter().position(|name| name == "shop"), Some(1), "{namespaces:?}");
        assert_eq!(namespaces.len(), OF_A_NAMESPACE + 1);
    }

    #[test]
    fn event_is_renewed_before_it_expires() {
        let list = [over_budget("shop", "big")];
        let (mut reported, now) = (Reported::default(), Instant::now());
        reported.insert(list[0].closed.clone(), now);
        reported.forget(now + REPEAT / 2);
        assert!(reported.next(&list).is_none());
        reported.forget(now + REPEAT);
        assert!(reported.next(&list).is_some());
    }
}
