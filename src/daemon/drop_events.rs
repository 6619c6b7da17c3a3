//! Kubernetes Events about denied packets, on the pod whose policies denied them: for its owner, who may not read the
//! node's log. Off unless wanted.
//!
//! Others cause them, so there are few: of each pod one for each sender within half an hour, and no more than five; of a
//! namespace twenty; and one per second in all. They are in the namespace of the policies, and tell neither names nor
//! labels of pods of other namespaces: only their addresses.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::{info, warn};

use crate::{
    drops::{End, Record},
    k8s::events::{EventError, EventWriter, Regarding},
};

/// How many records wait to become Events. More are not told.
const WAITING: usize = 64;

/// The shortest time between two Events.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long an Event counts. The API server keeps it for an hour.
const REPEAT: Duration = Duration::from_mins(30);

/// The most Events about one pod, and in one namespace, within [`REPEAT`].
const OF_A_POD: usize = 5;
const OF_A_NAMESPACE: usize = 20;

/// How long to wait before the next attempt if the permission to create Events is missing.
const RETRY_FORBIDDEN: Duration = Duration::from_mins(10);

/// A channel for records that become Events.
pub(super) fn waiting() -> (Sender<Record>, Receiver<Record>) {
    channel(WAITING)
}

/// Writes Events about these records.
pub(super) async fn report(mut writer: EventWriter, mut records: Receiver<Record>) {
    let mut written = Written::default();
    let mut failing = false;
    while let Some(record) = records.recv().await {
        let Some(event) = Denied::of(&record) else { continue };
        if !written.may(&event, Instant::now()) {
            continue;
        }
        let result = writer.warn(&event.regarding, "PacketsDenied", "Deny", &event.note).await;
        let had_failed = std::mem::replace(&mut failing, result.is_err());
        match result {
            Ok(()) | Err(EventError::Refused(_)) => {}
            Err(EventError::Forbidden(reason)) => {
                if !had_failed {
                    info!(reason, "no right to create Events; deploy/components/drop-events grants it");
                }
                tokio::time::sleep(RETRY_FORBIDDEN).await;
            }
            Err(error) => {
                if !had_failed {
                    warn!(%error, "cannot write an Event about denied packets");
                }
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// An Event about denied packets.
#[derive(Debug)]
struct Denied {
    regarding: Regarding,
    /// The other end.
    peer: String,
    note: String,
}

impl Denied {
    /// The Event for a record; `None` if no policy denied its packets.
    fn of(record: &Record) -> Option<Self> {
        let (subject, peer) = match (record.kind.as_str(), record.direction.as_deref()) {
            ("policy", Some("egress")) => (&record.from, &record.to),
            ("policy", Some(_)) => (&record.to, &record.from),
            _ => return None,
        };
        let (namespace, name) = subject.pod.as_deref()?.split_once('/')?;
        let is_foreign = peer.namespace().is_some_and(|other| other != namespace);
        let reason = if is_foreign {
            let direction = record.direction.as_deref().unwrap_or_default();
            format!("denied by {direction} of {namespace}/{name}: none of its policies allows it")
        } else {
            record.reason.clone()
        };
        let flow = Record {
            from: as_seen_in(namespace, &record.from),
            to: as_seen_in(namespace, &record.to),
            ..record.clone()
        };
        Some(Self {
            regarding: Regarding {
                api_version: "v1",
                kind: "Pod",
                namespace: namespace.into(),
                name: name.into(),
                uid: subject.uid.clone(),
            },
            peer: peer.pod.clone().or_else(|| peer.address.clone()).unwrap_or_default(),
            note: format!("{}: {reason}", flow.flow()),
        })
    }
}

/// An end without its workload, and without its pod and node if that is a pod of another namespace.
fn as_seen_in(namespace: &str, end: &End) -> End {
    match end.namespace() {
        Some(other) if other != namespace => End { address: end.address.clone(), ..End::default() },
        _ => End { workload: None, ..end.clone() },
    }
}

/// When which Event was written: by namespace, pod and peer.
#[derive(Debug, Default)]
struct Written(BTreeMap<(String, String, String), Instant>);

impl Written {
    /// Whether an Event may be written now; if so, it counts as written.
    fn may(&mut self, event: &Denied, now: Instant) -> bool {
        self.0.retain(|_, at| now.saturating_duration_since(*at) < REPEAT);
        let Regarding { namespace, name, .. } = &event.regarding;
        let key = (namespace.to_string(), name.to_string(), event.peer.clone());
        let of_namespace = self.0.keys().filter(|(other, ..)| *other == key.0).count();
        let of_pod = self.0.keys().filter(|(other, pod, _)| (other, pod) == (&key.0, &key.1)).count();
        if self.0.contains_key(&key) || of_namespace >= OF_A_NAMESPACE || of_pod >= OF_A_POD {
            return false;
        }
        self.0.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(from: &str, to: &str) -> Record {
        let end = |pod: &str| End {
            pod: Some(pod.to_owned()),
            workload: Some("Deployment secret".to_owned()),
            uid: Some("1234".into()),
            address: Some("10.244.1.7".to_owned()),
            node: Some("n1".to_owned()),
        };
        Record {
            kind: "policy".to_owned(),
            direction: Some("ingress".to_owned()),
            from: end(from),
            to: end(to),
            protocol: Some("TCP".to_owned()),
            port: Some(80),
            reason: format!("denied by ingress of {to}: p allows from app=api; {from} has app=web"),
            ..Record::default()
        }
    }

    #[test]
    fn event_is_on_the_pod_whose_policies_denied_and_tells_nothing_of_other_tenants() {
        let own = Denied::of(&record("shop/web", "shop/db")).unwrap();
        assert_eq!((&*own.regarding.namespace, &*own.regarding.name), ("shop", "db"));
        assert_eq!(own.regarding.uid.as_deref(), Some("1234"));
        let note = "shop/web -> shop/db:80/TCP: denied by ingress of shop/db: p allows from app=api; shop/web has app=web";
        assert_eq!(own.note, note);
        let foreign = Denied::of(&record("blog/web", "shop/db")).unwrap();
        let note =
            "10.244.1.7 -> shop/db:80/TCP: denied by ingress of shop/db: none of its policies allows it";
        assert_eq!(foreign.note, note);
        let egress = Record { direction: Some("egress".to_owned()), ..record("shop/db", "blog/web") };
        let note =
            "shop/db -> 10.244.1.7:80/TCP: denied by egress of shop/db: none of its policies allows it";
        assert_eq!(Denied::of(&egress).unwrap().note, note);
        assert!(Denied::of(&Record { kind: "tunnel".to_owned(), ..record("shop/web", "shop/db") }).is_none());
    }

    #[test]
    fn events_of_a_pod_and_of_a_namespace_are_few() {
        let (mut written, now) = (Written::default(), Instant::now());
        let mut may = |from: &str, to: &str, now| written.may(&Denied::of(&record(from, to)).unwrap(), now);
        assert!(may("a/0", "shop/db", now) && !may("a/0", "shop/db", now));
        let of_db = (1..100).filter(|n| may(&format!("a/{n}"), "shop/db", now)).count();
        assert_eq!(of_db, OF_A_POD - 1);
        let of_shop = (0..100).filter(|n| may("a/0", &format!("shop/{n}"), now)).count();
        assert_eq!(of_shop, OF_A_NAMESPACE - OF_A_POD);
        assert!(may("a/0", "blog/db", now));
        assert!(may("a/0", "shop/db", now + REPEAT));
    }
}
