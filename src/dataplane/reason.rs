//! Why something failed, in one word: for metrics, where the number of words must stay small.

use std::io::ErrorKind;

use super::DataplaneError;

/// The category of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Another process holds the xtables lock.
    Lock,
    /// The kernel refused a single chain or set.
    Refused,
    /// A program is not installed.
    MissingProgram,
    /// This process lacks the privilege.
    Permission,
    /// It timed out.
    Timeout,
    /// The kernel lacks something.
    Unsupported,
    /// A program ended with an error that is none of the above.
    Command,
    /// A system call failed for another reason.
    System,
}

impl Reason {
    /// The word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Refused => "refused",
            Self::MissingProgram => "missing_program",
            Self::Permission => "permission",
            Self::Timeout => "timeout",
            Self::Unsupported => "unsupported",
            Self::Command => "command",
            Self::System => "system",
        }
    }
}

impl DataplaneError {
    /// The category of this error.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Missing { .. } => Reason::MissingProgram,
            Self::NotPermitted { .. } => Reason::Permission,
            Self::Unsupported { .. } => Reason::Unsupported,
            Self::Locked { .. } => Reason::Lock,
            // The texts of EPERM and EACCES: the tools have no exit status for them.
            Self::Command { stderr, .. }
                if ["Operation not permitted", "Permission denied"]
                    .iter()
                    .any(|said| stderr.contains(said)) =>
            {
                Reason::Permission
            }
            Self::Command { .. } => Reason::Command,
            Self::System { source, .. } => match source.kind() {
                ErrorKind::PermissionDenied => Reason::Permission,
                ErrorKind::TimedOut => Reason::Timeout,
                _ => Reason::System,
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
        assert_eq!(command(refused).reason(), Reason::Permission);
        assert_eq!(command("Segmentation fault").reason(), Reason::Command);
        assert_eq!(system(ErrorKind::TimedOut).reason(), Reason::Timeout);
        assert_eq!(system(ErrorKind::NotFound).reason(), Reason::System);
        let locked = DataplaneError::Locked { command: "iptables-restore".to_owned() };
        assert_eq!(locked.reason().label(), "lock");
    }
}
