//! The parameters of a call: "Protocol parameters are passed to the plugins via OS environment variables."

use std::ffi::OsString;

use crate::{
    error::{Code, Error},
    protocol::{AttachmentId, InvalidId, PodRef},
};

const CONTAINER_ID: &str = "CNI_CONTAINERID";
const NETNS: &str = "CNI_NETNS";
const IFNAME: &str = "CNI_IFNAME";
const ARGS: &str = "CNI_ARGS";

/// The environment of the process, or that of a test.
pub(crate) type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// An operation of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Check,
    Del,
    Gc,
    Status,
    Version,
}

impl Command {
    /// The operation that `CNI_COMMAND` names; none if the variable is not set.
    pub(crate) fn of(variables: Variables<'_>) -> Result<Option<Self>, Error> {
        let Some(name) = text(variables, "CNI_COMMAND")? else { return Ok(None) };
        let command = match name.as_str() {
            "ADD" => Self::Add,
            "CHECK" => Self::Check,
            "DEL" => Self::Del,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => {
                let msg = format!("CNI_COMMAND: {name:?} is no command");
                let details = "it must be ADD, CHECK, DEL, GC, STATUS or VERSION";
                return Err(Error::new(Code::InvalidEnvironment, msg, details));
            }
        };
        Ok(Some(command))
    }
}

/// A variable; none if it is not set or empty, as libcni sets those without a value.
fn text(variables: Variables<'_>, name: &str) -> Result<Option<String>, Error> {
    let value = variables(name).unwrap_or_default().into_string().map_err(|value| {
        Error::new(Code::InvalidEnvironment, format!("{name} is not UTF-8"), value.to_string_lossy())
    })?;
    Ok(Some(value).filter(|value| !value.is_empty()))
}

/// The variables that the command requires. "The error message must contain the names of invalid variables."
fn required<const N: usize>(variables: Variables<'_>, names: [&str; N]) -> Result<[String; N], Error> {
    let mut missing = Vec::new();
    let mut values = names.map(|_| String::new());
    for (name, value) in names.into_iter().zip(&mut values) {
        match text(variables, name)? {
            Some(text) => *value = text,
            None => missing.push(name),
        }
    }
    if missing.is_empty() {
        return Ok(values);
    }
    let msg = format!("{} missing in the environment", missing.join(", "));
    Err(Error::new(Code::InvalidEnvironment, msg, "the container runtime must set it"))
}

fn id(container_id: String, ifname: String) -> Result<AttachmentId, Error> {
    AttachmentId::new(container_id, ifname).map_err(|error| {
        let name = match error {
            InvalidId::Container(_) => CONTAINER_ID,
            InvalidId::Interface(_) => IFNAME,
        };
        Error::new(Code::InvalidEnvironment, format!("{name} is invalid"), error)
    })
}

/// Which attachment `DEL` is about.
pub(crate) fn attachment_id(variables: Variables<'_>) -> Result<AttachmentId, Error> {
    let [container_id, ifname] = required(variables, [CONTAINER_ID, IFNAME])?;
    id(container_id, ifname)
}

/// Which attachment `ADD` and `CHECK` are about, and the network namespace.
pub(crate) fn attachment(variables: Variables<'_>) -> Result<(AttachmentId, String), Error> {
    let [container_id, netns, ifname] = required(variables, [CONTAINER_ID, NETNS, IFNAME])?;
    Ok((id(container_id, ifname)?, netns))
}

/// The pod, as runtimes of Kubernetes name it in `CNI_ARGS`; none if it does not name one. "Alphanumeric key-value pairs
/// separated by semicolons; for example, "FOO=BAR;ABC=123"". Of a repeated key the last value counts, as in libcni.
pub(crate) fn pod(variables: Variables<'_>) -> Result<Option<PodRef>, Error> {
    let invalid = |what: String| Error::new(Code::InvalidEnvironment, format!("{ARGS} is invalid"), what);
    let args = text(variables, ARGS)?.unwrap_or_default();
    let (mut namespace, mut name, mut uid) = (None, None, None);
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| invalid(format!("{pair:?} is no KEY=VALUE")))?;
        let value = Some(value.to_owned()).filter(|value| !value.is_empty());
        match key {
            "K8S_POD_NAMESPACE" => namespace = value,
            "K8S_POD_NAME" => name = value,
            "K8S_POD_UID" => uid = value,
            _ => {}
        }
    }
    match (namespace, name) {
        (Some(namespace), Some(name)) => Ok(Some(PodRef { namespace, name, uid })),
        (None, None) => Ok(None),
        // It may be a pod, and a pod must not start without its policies because of half a name.
        (Some(_), None) => Err(invalid("it has K8S_POD_NAMESPACE without K8S_POD_NAME".to_owned())),
        (None, Some(_)) => Err(invalid("it has K8S_POD_NAME without K8S_POD_NAMESPACE".to_owned())),
    }
}
