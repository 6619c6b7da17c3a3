//! Kubernetes Events: what the owner of an object sees in `kubectl get events`.

use std::{fmt, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::api::{Api, PostParams};

use super::watch::{Access, AccessError, Connection};

/// The `reportingController` of our Events.
const CONTROLLER: &str = "towpath";

/// How many bytes the API server accepts for `note` and for `reportingInstance`.
const NOTE_BYTES: usize = 1024;
const INSTANCE_BYTES: usize = 128;

/// How long the API server may take to answer.
const WITHIN: Duration = Duration::from_secs(30);

/// The object that an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Regarding {
    /// Its `apiVersion`.
    pub api_version: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace; for a Namespace its own name, so that the Event is in it, where the owner may read it.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its uid, without which `kubectl describe` does not show an Event about a pod.
    pub uid: Option<Arc<str>>,
}

/// Writes Events to the API server.
pub struct EventWriter {
    access: Access,
    node: Arc<str>,
    connection: Option<Connection>,
}

/// Why an Event was not written.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// It is not known how to reach the API server.
    #[error("{0}")]
    Access(AccessError),
    /// The API server does not permit this process to create Events.
    #[error("{0}")]
    Forbidden(String),
    /// The API server rejects this Event, as in a namespace that is being deleted or has a quota for Events.
    #[error("{0}")]
    Refused(String),
    /// The API server did not answer.
    #[error(transparent)]
    Unreachable(kube::Error),
}

impl EventError {
    fn of_request(error: kube::Error) -> Self {
        match error {
            // A full quota and a terminating namespace are 403 as well.
            kube::Error::Api(status)
                if status.code == 403 && status.message.contains("cannot create resource") =>
            {
                Self::Forbidden(status.message)
            }
            kube::Error::Api(status) if status.code == 429 || status.code >= 500 || status.code == 401 => {
                Self::Unreachable(kube::Error::Api(status))
            }
            kube::Error::Api(status) => Self::Refused(status.message),
            error => Self::Unreachable(error),
        }
    }
}

impl EventWriter {
    /// A writer for the daemon on this node.
    #[must_use]
    pub fn new(access: Access, node: Arc<str>) -> Self {
        Self { access, node, connection: None }
    }

    /// Writes a Warning about an object. `reason` and `action` are one word each, such as `OverBudget`; only the first
    /// 1,024 bytes of `note` are kept.
    ///
    /// # Errors
    /// If the API server cannot be reached or refuses. After the former, the next call reads the credentials again.
    pub async fn warn(
        &mut self,
        regarding: &Regarding,
        reason: &str,
        action: &str,
        note: &str,
    ) -> Result<(), EventError> {
        let connection = match self.connection.take().filter(|connection| !connection.has_expired()) {
            Some(connection) => connection,
            None => self.access.client().await.map_err(EventError::Access)?,
        };
        let events: Api<Event> = Api::namespaced(connection.client.clone(), &regarding.namespace);
        let event = event_of(&self.node, regarding, reason, action, note);
        let created = tokio::time::timeout(WITHIN, events.create(&PostParams::default(), &event)).await;
        let created = created.unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into())));
        let result = created.map(drop).map_err(EventError::of_request);
        let is_of_use = !matches!(result, Err(EventError::Access(_) | EventError::Unreachable(_)));
        self.connection = is_of_use.then_some(connection);
        result
    }
}

fn event_of(instance: &str, regarding: &Regarding, reason: &str, action: &str, note: &str) -> Event {
    let Regarding { api_version, kind, namespace, name, uid } = regarding;
    Event {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_string()),
            // An object's name may have the maximum length already, so the Event's name is not built from it.
            generate_name: Some(format!("{CONTROLLER}-")),
            ..ObjectMeta::default()
        },
        regarding: Some(ObjectReference {
            api_version: Some((*api_version).to_owned()),
            kind: Some((*kind).to_owned()),
            namespace: Some(namespace.to_string()),
            name: Some(name.to_string()),
            uid: uid.as_ref().map(ToString::to_string),
            ..ObjectReference::default()
        }),
        type_: Some("Warning".to_owned()),
        reason: Some(reason.to_owned()),
        action: Some(action.to_owned()),
        note: Some(prefix(note, NOTE_BYTES).to_owned()),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(prefix(instance, INSTANCE_BYTES).to_owned()),
        event_time: Some(MicroTime(Timestamp::now())),
        ..Event::default()
    }
}

/// The first bytes of a text, whole characters only.
fn prefix(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

impl fmt::Debug for EventWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventWriter").field("node", &self.node).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_with_longest_names_is_within_api_server_limits() {
        let regarding = Regarding {
            api_version: "networking.k8s.io/v1",
            kind: "NetworkPolicy",
            namespace: "n".repeat(63).into(),
            name: "p".repeat(253).into(),
            uid: None,
        };
        let event = event_of(&"n".repeat(253), &regarding, "OverBudget", "Close", &"é".repeat(1000));
        assert_eq!(event.reporting_instance.unwrap().len(), 128);
        assert_eq!(event.note.unwrap().len(), 1024);
        assert_eq!(event.metadata.generate_name.unwrap(), "towpath-");
        assert_eq!(event.metadata.namespace, event.regarding.unwrap().namespace);
    }
}
