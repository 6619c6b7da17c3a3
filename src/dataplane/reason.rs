//! Why something failed, in one word: for metrics, where the number of words must stay small.

use std::io::ErrorKind;

use super::DataplaneError;

/// The category of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureReason {
    /// Another process holds the xtables lock.
    Lock,
    /// The kernel refused a single chain or set.
    Refused,
    /// A program is not installed.
    MissingProgram,
    /// This process lacks the privilege.
    Permission,
    /// It was not finished in time.
    Timeout,
    /// A program wrote more than expected.
    Output,
    /// The kernel lacks something.
    Unsupported,
    /// A program ended with an error that is none of the above.
    Command,
    /// A system call failed for another reason.
    System,
}

impl FailureReason {
    /// The word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Refused => "refused",
            Self::MissingProgram => "missing_program",
            Self::Permission => "permission",
            Self::Timeout => "timeout",
            Self::Output => "output",
            Self::Unsupported => "unsupported",
            Self::Command => "command",
            Self::System => "system",
        }
    }
}

impl DataplaneError {
    /// The category of this error.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Missing { .. } => FailureReason::MissingProgram,
            Self::NotPermitted { .. } => FailureReason::Permission,
            Self::Unsupported { .. } => FailureReason::Unsupported,
            Self::Locked { .. } => FailureReason::Lock,
            Self::TimedOut { .. } | Self::Unkillable { .. } => FailureReason::Timeout,
            Self::TooMuchOutput { .. } => FailureReason::Output,
            // The texts of EPERM and EACCES: the tools have no exit status for them.
            Self::Command { stderr, .. }
                if ["Operation not permitted", "Permission denied"]
                    .iter()
                    .any(|said| stderr.contains(said)) =>
            {
                FailureReason::Permission
            }
            Self::Command { .. } => FailureReason::Command,
            Self::System { source, .. } => match source.kind() {
                ErrorKind::PermissionDenied => FailureReason::Permission,
                ErrorKind::TimedOut => FailureReason::Timeout,
                _ => FailureReason::System,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn errors_are_classified_by_remedy() {
        let command = |stderr: &str| DataplaneError::Command {
            command: "ipset save".to_owned(),
            status: "exit status: 1".to_owned(),
            stderr: stderr.to_owned(),
        };
        let system = |kind: ErrorKind| DataplaneError::System {
            doing: "reading".to_owned(),
            source: io::Error::from(kind),
        };
        let refused = "ipset v7.17: Kernel error received: Operation not permitted";
        assert_eq!(command(refused).reason(), FailureReason::Permission);
        assert_eq!(command("Segmentation fault").reason(), FailureReason::Command);
        assert_eq!(system(ErrorKind::TimedOut).reason(), FailureReason::Timeout);
        assert_eq!(system(ErrorKind::PermissionDenied).reason(), FailureReason::Permission);
        assert_eq!(system(ErrorKind::NotFound).reason(), FailureReason::System);
        let locked = DataplaneError::Locked { command: "iptables-restore".to_owned() };
        assert_eq!(locked.reason().label(), "lock");
    }
}
