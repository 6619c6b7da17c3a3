//! What the plugin and the daemon say to each other.
//!
//! A stream socket in the file system. One connection carries one [`Request`] and its [`Response`], each a JSON object in
//! a line of its own, of at most [`MAX_MESSAGE`] bytes with its newline. Fields that are not known are ignored, so that
//! the two need not be of the same version.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, Read, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The socket on which the daemon listens, unless the configuration of the network names another.
pub const SOCKET: &str = "/run/towpath/gate.sock";

/// The length of a message in bytes, including the newline at its end, that both sides accept.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// The length of a container's identifier in bytes that is accepted. The specification names no limit, but the identifier
/// is part of a file's name. Runtimes use 64.
pub const MAX_CONTAINER_ID: usize = 200;

/// The length of an interface's name in bytes that the kernel accepts.
const MAX_IFNAME: usize = 15;

/// What the plugin asks of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Request {
    /// A pod got an interface: answer when its policies are in place.
    Add(Attachment),
    /// Are the policies of this pod in place?
    Check(Attachment),
    /// The interface is about to go.
    Del(AttachmentId),
    /// Only these attachments of the network still exist.
    Gc {
        /// The name of the network.
        network: String,
        /// The attachments of this network that exist.
        valid: Vec<AttachmentId>,
    },
    /// Would an [`Add`](Self::Add) succeed now?
    Status,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum Response {
    /// It is so, or it is done.
    Done,
    /// It is not so, or could not be done.
    Failed {
        /// Why, for a person.
        reason: String,
    },
}

/// "The operation of a network configuration on a container is called an *attachment*. An attachment may be uniquely
/// identified by the `(CNI_CONTAINERID, CNI_IFNAME)` tuple." (CNI specification 1.1.0, section 3)
///
/// Both become part of a file's name. [`AttachmentId::new`] and deserialisation accept nothing that could name another
/// folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
#[non_exhaustive]
pub struct AttachmentId {
    /// The container runtime's identifier of the container: for a pod, of its sandbox.
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
}

/// An [`AttachmentId`] as it is read.
#[derive(Deserialize)]
struct Unchecked {
    container_id: String,
    ifname: String,
}

impl TryFrom<Unchecked> for AttachmentId {
    type Error = InvalidId;

    fn try_from(read: Unchecked) -> Result<Self, InvalidId> {
        Self::new(read.container_id, read.ifname)
    }
}

impl AttachmentId {
    /// # Errors
    ///
    /// If one of them does not follow the specification's grammar.
    pub fn new(container_id: impl Into<String>, ifname: impl Into<String>) -> Result<Self, InvalidId> {
        let (container_id, ifname) = (container_id.into(), ifname.into());
        if !is_name(&container_id) || container_id.len() > MAX_CONTAINER_ID {
            return Err(InvalidId::Container(container_id));
        }
        if !is_ifname(&ifname) {
            return Err(InvalidId::Interface(ifname));
        }
        Ok(Self { container_id, ifname })
    }

    /// The name of the file in which the daemon keeps this attachment, in the folder [`records`].
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}-{}.json", self.container_id, self.ifname)
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// "Must start with an alphanumeric character, optionally followed by any combination of one or more alphanumeric
/// characters, underscore (), dot (.) or hyphen (-)": identifiers of containers and names of networks. libcni takes this
/// as ASCII.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// The kernel's rule for names of interfaces, which libcni applies to `CNI_IFNAME`.
fn is_ifname(text: &str) -> bool {
    (1..=MAX_IFNAME).contains(&text.len())
        && ![".", ".."].contains(&text)
        && !text.contains(|one: char| one == '/' || one == ':' || one == '\0' || one.is_whitespace())
}

/// Why there is no [`AttachmentId`] of this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidId {
    /// This is no identifier of a container.
    Container(String),
    /// This is no name of an interface.
    Interface(String),
}

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(text) => write!(
                f,
                "{text:?} is no identifier of a container: it must start with a letter or digit, followed by letters, \
                 digits, `_`, `.` and `-`, at most {MAX_CONTAINER_ID} in all"
            ),
            Self::Interface(text) => write!(
                f,
                "{text:?} is no name of an interface: it must have 1 to {MAX_IFNAME} bytes without `/`, `:` and white \
                 space, and not be `.` or `..`"
            ),
        }
    }
}

impl std::error::Error for InvalidId {}

/// An interface of a pod, as the plugins before this one made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Which attachment it is.
    #[serde(flatten)]
    pub id: AttachmentId,
    /// The name of the network: `name` of the configuration list.
    pub network: String,
    /// The pod.
    pub pod: PodRef,
    /// `CNI_NETNS`: the path of the pod's network namespace.
    pub netns: String,
    /// The interfaces of the node in the previous result, in its order: for the `bridge` plugin the bridge, then the
    /// node's end of the veth.
    pub host_interfaces: Vec<String>,
    /// The hardware address of the interface in the pod, if the previous result has it.
    pub mac: Option<String>,
    /// The addresses of the interface in the pod, without those of its other interfaces.
    pub addresses: Vec<IpAddr>,
}

/// A pod, as the container runtime names it in `CNI_ARGS`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID. Older runtimes do not pass it.
    pub uid: Option<String>,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The folder in which the daemon that listens on `socket` keeps a file for each attachment.
#[must_use]
pub fn records(socket: &Path) -> PathBuf {
    socket.with_file_name("attachments")
}

/// Why a message could not be written or read.
#[derive(Debug)]
pub enum MessageError {
    /// Writing or reading failed.
    Io(io::Error),
    /// It is longer than [`MAX_MESSAGE`].
    TooLong,
    /// The other side closed the connection before the message was complete.
    Incomplete,
    /// It is not what was expected.
    Invalid(serde_json::Error),
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::TooLong => write!(f, "the message is longer than {MAX_MESSAGE} bytes"),
            Self::Incomplete => f.write_str("the connection was closed before the message was complete"),
            Self::Invalid(error) => write!(f, "the message cannot be read: {error}"),
        }
    }
}

impl std::error::Error for MessageError {}

impl From<io::Error> for MessageError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A message as a line, with its newline.
///
/// # Errors
///
/// If it is longer than [`MAX_MESSAGE`].
pub fn to_line(message: &impl Serialize) -> Result<Vec<u8>, MessageError> {
    let mut line = serde_json::to_vec(message).map_err(MessageError::Invalid)?;
    line.push(b'\n');
    if line.len() > MAX_MESSAGE { Err(MessageError::TooLong) } else { Ok(line) }
}

/// Writes a message.
///
/// # Errors
///
/// If it is longer than [`MAX_MESSAGE`], or cannot be written.
pub fn write_message(mut stream: impl Write, message: &impl Serialize) -> Result<(), MessageError> {
    stream.write_all(&to_line(message)?)?;
    Ok(stream.flush()?)
}

/// Reads a message. Never reads more than [`MAX_MESSAGE`] bytes; what follows the newline is ignored. How long this may
/// take is up to `stream`.
///
/// # Errors
///
/// If it is longer, incomplete, no message of this type, or cannot be read.
pub fn read_message<T: DeserializeOwned>(stream: impl Read) -> Result<T, MessageError> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_MESSAGE as u64)).read_until(b'\n', &mut line)?;
    match line.last() {
        Some(b'\n') => serde_json::from_slice(&line).map_err(MessageError::Invalid),
        _ if line.len() == MAX_MESSAGE => Err(MessageError::TooLong),
        _ => Err(MessageError::Incomplete),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id() -> AttachmentId {
        AttachmentId::new("c0ffee", "eth0").unwrap()
    }

    fn attachment() -> Attachment {
        Attachment {
            id: id(),
            network: "pods".to_owned(),
            pod: PodRef { namespace: "shop".to_owned(), name: "web".to_owned(), uid: None },
            netns: "/run/netns/pod".to_owned(),
            host_interfaces: vec!["cni0".to_owned()],
            mac: None,
            addresses: vec!["10.244.1.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        }
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let gc = Request::Gc { network: "pods".to_owned(), valid: vec![id()] };
        let requests = [
            Request::Add(attachment()),
            Request::Check(attachment()),
            Request::Del(id()),
            gc,
            Request::Status,
        ];
        for request in requests {
            let mut line = Vec::new();
            write_message(&mut line, &request).unwrap();
            assert_eq!(line, to_line(&request).unwrap());
            assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
            assert_eq!(read_message::<Request>(&*line).unwrap(), request);
        }
        for response in [Response::Done, Response::Failed { reason: "two\nlines".to_owned() }] {
            assert_eq!(read_message::<Response>(&*to_line(&response).unwrap()).unwrap(), response);
        }
    }

    #[test]
    fn fields_of_a_later_plugin_are_ignored() {
        let mut value = serde_json::to_value(Request::Add(attachment())).unwrap();
        value["later"] = json!(1);
        value["pod"]["later"] = json!(1);
        assert_eq!(serde_json::from_value::<Request>(value).unwrap(), Request::Add(attachment()));
    }

    #[test]
    fn identifiers_that_could_name_another_file_are_not_read() {
        let request = |container_id: &str, ifname: &str| {
            let fields = json!({"command": "del", "container_id": container_id, "ifname": ifname});
            serde_json::from_value::<Request>(fields).map_err(|error| error.to_string())
        };
        assert_eq!(request("c0ffee", "eth0"), Ok(Request::Del(id())));
        assert!(request("../c0ffee", "eth0").unwrap_err().contains("no identifier of a container"));
        assert!(request("c0ffee", "../eth0").unwrap_err().contains("no name of an interface"));
        assert!(request("c0ffee", "a\0b").unwrap_err().contains("no name of an interface"));
    }

    #[test]
    fn records_are_beside_the_socket() {
        let file = records(Path::new(SOCKET)).join(id().file_name());
        assert_eq!(file, Path::new("/run/towpath/attachments/c0ffee-eth0.json"));
    }

    #[test]
    fn no_more_is_read_than_a_message_may_have() {
        let mut endless = io::repeat(b' ');
        assert!(matches!(read_message::<Response>(&mut endless), Err(MessageError::TooLong)));
        let mut longest = vec![b' '; MAX_MESSAGE];
        longest[..17].copy_from_slice(br#"{"result":"done"}"#);
        longest[MAX_MESSAGE - 1] = b'\n';
        assert_eq!(read_message::<Response>(&*longest).unwrap(), Response::Done);
        longest.insert(17, b' ');
        assert!(matches!(read_message::<Response>(&*longest), Err(MessageError::TooLong)));
        assert!(matches!(
            read_message::<Response>(&br#"{"result":"done"}"#[..]),
            Err(MessageError::Incomplete)
        ));
    }

    #[test]
    fn no_more_is_written_than_a_message_may_have() {
        let failed = |length: usize| Response::Failed { reason: "x".repeat(length) };
        let around = to_line(&failed(0)).unwrap().len();
        assert_eq!(to_line(&failed(MAX_MESSAGE - around)).unwrap().len(), MAX_MESSAGE);
        let beyond = write_message(io::sink(), &failed(MAX_MESSAGE - around + 1));
        assert!(matches!(beyond, Err(MessageError::TooLong)));
    }
}
