//! The configuration on standard input.

use std::{collections::BTreeMap, ops::RangeInclusive, path::PathBuf, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    error::{Code, Error},
    protocol::{AttachmentId, SOCKET, is_name},
};

/// A version of the specification that this plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// All of them, the oldest first. Before 0.3.1 there were no chains of plugins with a previous result.
    pub(crate) const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    pub(crate) const NEWEST: Self = Self::V1_1_0;

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.name() == name)
    }

    pub(crate) fn names() -> [&'static str; 4] {
        Self::ALL.map(Self::name)
    }
}

/// The fields that the specification defines for the configuration that a plugin gets, and those of this plugin. "Any
/// keys starting with `cni.dev/`" are the runtime's as well.
const KNOWN_FIELDS: [&str; 16] = [
    "args",
    "capabilities",
    "cniVersion",
    "cniVersions",
    "disableCheck",
    "disableGC",
    "dns",
    "ipMasq",
    "ipam",
    "loadOnlyInlinedPlugins",
    "name",
    "prevResult",
    "runtimeConfig",
    "type",
    "socket",
    "whenAway",
];
const TIMEOUT: &str = "timeoutSeconds";

/// How many seconds `ADD` may wait. Kubelet gives up on a new pod after four minutes, unless configured otherwise.
const TIMEOUTS: RangeInclusive<u64> = 1..=240;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The length of a socket's path in bytes that the kernel accepts.
const MAX_SOCKET: usize = 107;

/// The configuration that a runtime derives for one plugin, field by field.
#[derive(Debug)]
pub(crate) struct Config<'a> {
    pub(crate) version: Version,
    fields: BTreeMap<String, &'a RawValue>,
}

/// What `ADD` does while the daemon is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WhenAway {
    /// Waits for it, and fails at the deadline.
    #[default]
    Wait,
    /// Lets the pod start.
    Open,
}

/// The fields of this plugin.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) socket: PathBuf,
    pub(crate) when_away: WhenAway,
    pub(crate) timeout: Duration,
}

impl<'a> Config<'a> {
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, Error> {
        let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(text).map_err(|error| {
            Error::new(Code::Decode, "the network configuration is no JSON object", error)
        })?;
        let name: Option<String> = match fields.get("cniVersion") {
            Some(raw) => serde_json::from_str(raw.get()).map_err(|error| decode("cniVersion", error))?,
            None => None,
        };
        // libcni reads a missing version the same way.
        let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| "0.1.0".to_owned());
        let version = Version::named(&name).ok_or_else(|| {
            let supported = Version::names().join(", ");
            Error::new(
                Code::IncompatibleVersion,
                format!("cniVersion {name} is not supported"),
                format!("towpath-cni supports {supported}; a configuration without cniVersion has 0.1.0"),
            )
        })?;
        Ok(Self { version, fields })
    }

    /// "Plugins may define additional fields that they accept and may generate an error if called with unknown fields."
    /// A misspelt `whenAway` would otherwise be its default.
    pub(crate) fn refuse_unknown_fields(&self) -> Result<(), Error> {
        let is_known =
            |key: &str| KNOWN_FIELDS.contains(&key) || key == TIMEOUT || key.starts_with("cni.dev/");
        let Some((key, value)) = self.fields.iter().find(|(key, _)| !is_known(key)) else { return Ok(()) };
        let msg = format!("unsupported field {key:?} with the value {value}");
        let details = format!("the fields of towpath-cni are socket, whenAway and {TIMEOUT}");
        Err(Error::new(Code::UnsupportedField, msg, details))
    }

    /// The network's name.
    pub(crate) fn network(&self) -> Result<String, Error> {
        match self.field::<String>("name")? {
            None => Err(Error::new(Code::InvalidConfig, "the network configuration has no name", "")),
            Some(name) if !is_name(&name) => {
                let details =
                    "it must start with a letter or digit, followed by letters, digits, `_`, `.` and `-`";
                Err(Error::new(
                    Code::InvalidConfig,
                    format!("name: {name:?} is no name of a network"),
                    details,
                ))
            }
            Some(name) => Ok(name),
        }
    }

    /// Where the daemon listens.
    pub(crate) fn socket(&self) -> Result<PathBuf, Error> {
        let Some(path) = self.field::<String>("socket")? else { return Ok(SOCKET.into()) };
        let is_path = path.starts_with('/') && !path.ends_with('/') && !path.contains('\0');
        if !is_path || path.len() > MAX_SOCKET {
            let details = format!("it must be the absolute path of a socket, of at most {MAX_SOCKET} bytes");
            return Err(Error::new(
                Code::InvalidConfig,
                format!("socket: {path:?} is no path of a socket"),
                details,
            ));
        }
        Ok(path.into())
    }

    pub(crate) fn entry(&self) -> Result<Entry, Error> {
        self.refuse_unknown_fields()?;
        let timeout = match self.field::<u64>(TIMEOUT)? {
            None => DEFAULT_TIMEOUT,
            Some(seconds) if TIMEOUTS.contains(&seconds) => Duration::from_secs(seconds),
            Some(seconds) => {
                let details = format!("it must be {} to {}", TIMEOUTS.start(), TIMEOUTS.end());
                return Err(Error::new(
                    Code::InvalidConfig,
                    format!("{TIMEOUT}: {seconds} is out of range"),
                    details,
                ));
            }
        };
        let when_away = self.field("whenAway")?.unwrap_or_default();
        Ok(Entry { socket: self.socket()?, when_away, timeout })
    }

    /// The result of the plugin before this one, as it came.
    pub(crate) fn prev_result(&self) -> Result<&'a RawValue, Error> {
        self.fields.get("prevResult").copied().filter(|raw| raw.get() != "null").ok_or_else(|| {
            Error::new(
                Code::InvalidConfig,
                "prevResult is missing: towpath-cni must be chained behind another plugin",
                "put it into the plugins of a .conflist, behind the plugin that makes the interface",
            )
        })
    }

    /// "The list of **still valid** attachments to this network". libcni writes an empty one as null.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<AttachmentId>, Error> {
        #[derive(Deserialize)]
        struct Valid {
            #[serde(rename = "containerID")]
            container_id: String,
            ifname: String,
        }
        const FIELD: &str = "cni.dev/valid-attachments";
        let Some(raw) = self.fields.get(FIELD) else {
            return Err(Error::new(Code::InvalidConfig, format!("{FIELD} is missing"), "GC needs it"));
        };
        let valid: Option<Vec<Valid>> =
            serde_json::from_str(raw.get()).map_err(|error| decode(FIELD, error))?;
        let id = |valid: Valid| {
            AttachmentId::new(valid.container_id, valid.ifname).map_err(|error| {
                Error::new(Code::InvalidConfig, format!("{FIELD}: invalid attachment"), error)
            })
        };
        valid.unwrap_or_default().into_iter().map(id).collect()
    }

    /// A field of this type, if it is there.
    fn field<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let Some(raw) = self.fields.get(name) else { return Ok(None) };
        serde_json::from_str(raw.get()).map(Some).map_err(|error| {
            let msg = format!("{name}: {raw} is not what this field takes");
            Error::new(Code::InvalidConfig, msg, error)
        })
    }
}

fn decode(field: &str, error: serde_json::Error) -> Error {
    Error::new(Code::Decode, format!("{field} cannot be read"), error)
}
