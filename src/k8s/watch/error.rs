//! What keeps a watch from running, described for the operator who has to fix it.

use std::{error::Error, fmt};

use kube::core::Status;

use super::{AccessError, Kind};

/// Why a watch ended, or could not start. Few, so that they can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The server ended it, as it does with every watch after some minutes.
    Ended,
    /// The server no longer has the changes since the last one received (410 Gone), or does not have them yet:
    /// everything is relisted.
    Gone,
    /// A running watch was silent. Perhaps nothing happened: everything is relisted to find out.
    Quiet,
    /// The server did not answer, or not to the end of its list.
    Silent,
    /// No connection, or it broke.
    Unreachable,
    /// The server does not accept our credentials (401).
    Unauthorized,
    /// The server accepts our credentials and does not permit the request (403).
    Forbidden,
    /// The server does not understand the request (400, 422).
    Unsupported,
    /// The server answered with another error.
    Refused,
    /// The server ended a running list or watch with an error: everything is relisted.
    Failed,
    /// The server sent something that cannot be parsed.
    Malformed,
    /// It is not known which server to use, or with which credentials.
    Config,
}

impl Cause {
    /// One word, for a label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Gone => "gone",
            Self::Quiet => "quiet",
            Self::Silent => "silent",
            Self::Unreachable => "unreachable",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Unsupported => "unsupported",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Malformed => "malformed",
            Self::Config => "config",
        }
    }

    /// Whether it happens to every watch now and then, and is harmless.
    #[must_use]
    pub fn is_routine(self) -> bool {
        matches!(self, Self::Ended | Self::Gone)
    }

    /// Whether resuming from the same version may fail the same way for ever, so that everything is relisted.
    pub(super) fn lists_anew(self) -> bool {
        matches!(
            self,
            Self::Gone | Self::Quiet | Self::Silent | Self::Failed | Self::Malformed | Self::Unsupported
        )
    }
}

/// What keeps a watch from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchError {
    /// Its cause.
    pub cause: Cause,
    /// What is wrong, and what to do.
    pub text: String,
}

impl fmt::Display for WatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl WatchError {
    pub(super) fn ended() -> Self {
        Self { cause: Cause::Ended, text: "the API server ended the watch".to_owned() }
    }

    /// A relist, for rules that were dropped and fit into memory now.
    pub(super) fn relist() -> Self {
        Self { cause: Cause::Ended, text: "listing again, for rules that fit into memory now".to_owned() }
    }

    /// The server closed the connection before the list was complete.
    pub(super) fn cut_short(server: &str) -> Self {
        let text = format!("the API server at {server} closed the connection before its list was complete");
        Self { cause: Cause::Unreachable, text }
    }

    pub(super) fn silent(server: &str, seconds: u64) -> Self {
        let text = format!("received nothing from the API server at {server} for {seconds} s");
        Self { cause: Cause::Silent, text }
    }

    pub(super) fn of_access(error: &AccessError) -> Self {
        Self {
            cause: Cause::Config,
            text: format!("it is not known how to reach the API server: {}", chain(error)),
        }
    }

    pub(super) fn of_request(error: &kube::Error, kind: Kind, server: &str) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status, kind, server),
            kube::Error::SerdeError(error) => {
                let text =
                    format!("the API server at {server} sent what is no event or list of {kind}: {error}");
                Self { cause: Cause::Malformed, text }
            }
            error => {
                let cause = match error {
                    kube::Error::Service(error) => chain(&**error),
                    error => chain(error),
                };
                let text = format!("the API server at {server} cannot be reached: {cause}");
                Self { cause: Cause::Unreachable, text }
            }
        }
    }

    /// The same, for a watch that had started.
    pub(super) fn of_stream(error: &kube::Error, kind: Kind, server: &str) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_error_event(status, kind, server),
            error => Self::of_request(error, kind, server),
        }
    }

    /// An error that came as an event.
    pub(super) fn of_error_event(status: &Status, kind: Kind, server: &str) -> Self {
        let error = Self::of_status(status, kind, server);
        let cause = if error.cause == Cause::Refused { Cause::Failed } else { error.cause };
        Self { cause, ..error }
    }

    pub(super) fn of_status(status: &Status, kind: Kind, server: &str) -> Self {
        let Status { code, reason, message, .. } = status;
        let says = format!("the API server at {server} says: {message}");
        let (cause, text) = match (*code, &**reason) {
            (410, _) | (_, "Expired" | "Gone") => (Cause::Gone, says),
            // A server restored from a backup is behind a version that it sent before: its current state counts.
            (504, _) if message.contains("Too large resource version") => (Cause::Gone, says),
            (401, _) => {
                let text = format!(
                    "the API server at {server} does not accept our credentials (401 {reason}): the token of the \
                     service account, or what the kubeconfig says, is wrong or has expired"
                );
                (Cause::Unauthorized, text)
            }
            (403, _) => (Cause::Forbidden, format!("{says}. {}", missing_rule(kind))),
            (400 | 422, _) => (Cause::Unsupported, format!("{says} ({code} {reason})")),
            _ => (Cause::Refused, format!("{says} ({code} {reason})")),
        };
        Self { cause, text }
    }
}

/// The rule that the ClusterRole lacks if `kind` cannot be listed or watched.
fn missing_rule(kind: Kind) -> String {
    format!(
        "The ClusterRole of deploy/rbac.yaml has the rule that is missing: apiGroups: [{:?}], resources: [{}], verbs: \
         [get, list, watch]",
        kind.group(),
        kind.resource()
    )
}

/// An error with its causes, each written once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}
