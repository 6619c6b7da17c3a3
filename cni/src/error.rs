//! Errors as a container runtime reads them.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::config::Version;

/// What kind of error it is. "Error codes 0-99 are reserved for well-known errors. Values of 100+ can be freely used for
/// plugin specific errors." (CNI specification 1.1.0, section 5)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Code {
    /// "Incompatible CNI version"
    IncompatibleVersion = 1,
    /// "Unsupported field in network configuration. The error message must contain the key and value of the unsupported
    /// field."
    UnsupportedField = 2,
    /// "Invalid necessary environment variables, like `CNI_COMMAND`, `CNI_CONTAINERID`, etc. The error message must
    /// contain the names of invalid variables."
    InvalidEnvironment = 4,
    /// "I/O failure. For example, failed to read network config bytes from stdin."
    Io = 5,
    /// "Failed to decode content. For example, failed to unmarshal network config from bytes or failed to decode version
    /// info from string."
    Decode = 6,
    /// "Invalid network config. If some validations on network configs do not pass, this error will be raised."
    InvalidConfig = 7,
    /// "Try again later. If the plugin detects some transient condition that should clear up, it can use this code to
    /// notify the runtime it should re-try the operation later."
    TryAgainLater = 11,
    /// "The plugin is not available (i.e. cannot service `ADD` requests)", the answer to `STATUS`
    NotAvailable = 50,
    /// Our own: what would be sent to the daemon is longer than [`MAX_MESSAGE`](crate::protocol::MAX_MESSAGE).
    TooLong = 100,
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(*self as u16)
    }
}

/// The "error" result of the specification: "Plugins should output a JSON object with the following keys if they
/// encounter an error".
#[derive(Debug, Serialize)]
pub(crate) struct Error {
    /// "The protocol version in use"
    #[serde(rename = "cniVersion")]
    version: &'static str,
    code: Code,
    /// "A short message characterizing the error."
    msg: String,
    /// "A longer message describing the error."
    details: String,
}

impl Error {
    pub(crate) fn new(code: Code, msg: impl Into<String>, details: impl fmt::Display) -> Self {
        Self { version: Version::NEWEST.name(), code, msg: msg.into(), details: details.to_string() }
    }

    /// The same error, in the version of the configuration.
    pub(crate) fn in_version(self, version: Version) -> Self {
        Self { version: version.name(), ..self }
    }
}
