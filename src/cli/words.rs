//! How JSON represents a verdict, a transport and differences between families.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::{Family, Transport};

/// `allow` or `deny`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// It passes.
    Allow,
    /// It does not.
    Deny,
}

impl Word {
    pub(super) const fn of(allowed: bool) -> Self {
        if allowed { Self::Allow } else { Self::Deny }
    }
}

/// The verdict of each family, by the family's name.
pub type ByFamily = BTreeMap<String, Word>;

pub(super) fn by_family(verdicts: impl IntoIterator<Item = (Family, bool)>) -> ByFamily {
    verdicts.into_iter().map(|(family, allowed)| (family.to_string(), Word::of(allowed))).collect()
}

/// `port` and `protocol`: a protocol without ports has no port, and is named by its IP protocol number.
pub(super) fn port_and_protocol(transport: Transport) -> (Option<u16>, String) {
    match transport {
        Transport::Port(protocol, port) => (Some(port), protocol.to_string()),
        Transport::Other(number) => (None, number.to_string()),
    }
}
