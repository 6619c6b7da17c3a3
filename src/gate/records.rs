//! The attachments of this node, kept across restarts of the daemon: one file for each.
//!
//! The folder is below `/run`, which the node forgets when it restarts, as it forgets its pods' interfaces. A file holds
//! the attachment and what was last known of its pod, since the pod may run on after its object was deleted.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read as _, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use towpath_cni::protocol;
use tracing::warn;

use crate::model::{Attachment, AttachmentId, ContainerPort, KnownAttachment, ObjectKey, Pod, Protocol};

/// The version of the files' contents. Files of others are ignored.
const VERSION: u32 = 1;

/// The longest file that is read, in bytes.
const MOST: u64 = 1 << 20;

/// The most that is kept of a pod, in bytes. Its owner may give it megabytes of labels, again and again, and the folder is
/// in the node's memory. A pod of which nothing is kept is closed until its object arrives.
const MOST_OF_OBJECT: usize = 64 << 10;

/// A file.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    container_id: String,
    interface: String,
    network: String,
    namespace: String,
    pod: String,
    uid: Option<String>,
    host_interfaces: Vec<String>,
    mac: Option<[u8; 6]>,
    addresses: Vec<IpAddr>,
    object: Option<Object>,
}

/// What was last known of the pod.
#[derive(Debug, Serialize, Deserialize)]
struct Object {
    uid: Option<String>,
    labels: BTreeMap<String, String>,
    ports: Vec<(Option<String>, String, u16)>,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The name of the network, for `GC`.
    pub network: String,
    /// The attachment.
    pub known: KnownAttachment,
}

/// The folder of the files.
#[derive(Clone, Debug)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    /// Makes the folder if it does not exist.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// Writes a file, or replaces it as a whole.
    ///
    /// # Errors
    /// If it cannot be written, or the attachment's identifier cannot be a file's name.
    pub fn keep(&self, recorded: &Recorded) -> io::Result<()> {
        let path = self.path(&recorded.known.attachment.id)?;
        let fresh = path.with_extension("new");
        let text = text(recorded)?;
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&text)?;
        fs::rename(&fresh, path)
    }

    /// Removes a file, if it exists.
    ///
    /// # Errors
    /// If it exists and cannot be removed.
    pub fn forget(&self, id: &AttachmentId) -> io::Result<()> {
        match fs::remove_file(self.path(id)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether there is a file of this attachment.
    #[must_use]
    pub fn has(&self, id: &AttachmentId) -> bool {
        self.path(id).is_ok_and(|path| path.exists())
    }

    /// Reads all files. What cannot be read is logged, and its pod has to be found by its object's addresses.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn read(&self) -> io::Result<Vec<Recorded>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(recorded) => all.push(recorded),
                Err(error) => {
                    warn!(path = %path.display(), %error, "cannot read the record of an attachment");
                }
            }
        }
        all.sort_by(|a, b| a.known.attachment.id.cmp(&b.known.attachment.id));
        Ok(all)
    }

    fn path(&self, id: &AttachmentId) -> io::Result<PathBuf> {
        let id = protocol::AttachmentId::new(&*id.container, &*id.interface).map_err(invalid)?;
        Ok(self.folder.join(id.file_name()))
    }
}

/// The contents of a file.
pub(super) fn text(recorded: &Recorded) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&Record::of(recorded))?)
}

fn read(path: &Path) -> io::Result<Recorded> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(MOST).read_to_end(&mut text)?;
    parse(&text)
}

pub(super) fn parse(text: &[u8]) -> io::Result<Recorded> {
    let record: Record = serde_json::from_slice(text)?;
    if record.version != VERSION {
        return Err(invalid(format!("it is of version {}, not {VERSION}", record.version)));
    }
    record.recorded()
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Record {
    fn of(recorded: &Recorded) -> Self {
        let Recorded { network, known: KnownAttachment { attachment, object } } = recorded;
        let text = |text: &Arc<str>| text.to_string();
        Self {
            version: VERSION,
            container_id: text(&attachment.id.container),
            interface: text(&attachment.id.interface),
            network: network.clone(),
            namespace: text(&attachment.pod.namespace),
            pod: text(&attachment.pod.name),
            uid: attachment.uid.as_ref().map(text),
            host_interfaces: attachment.host_interfaces.iter().map(text).collect(),
            mac: attachment.mac,
            addresses: attachment.addresses.clone(),
            object: object.as_ref().filter(|pod| length(pod) <= MOST_OF_OBJECT).map(|pod| Object {
                uid: pod.uid.as_ref().map(text),
                labels: pod.labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
                ports: pod
                    .ports
                    .iter()
                    .map(|port| (port.name.as_ref().map(text), port.protocol.to_string(), port.number))
                    .collect(),
            }),
        }
    }

    fn recorded(self) -> io::Result<Recorded> {
        let pod = ObjectKey::new(self.namespace, self.pod);
        let id = AttachmentId { container: self.container_id.into(), interface: self.interface.into() };
        protocol::AttachmentId::new(&*id.container, &*id.interface).map_err(invalid)?;
        let attachment = Attachment {
            id,
            pod: pod.clone(),
            uid: self.uid.map(Arc::from),
            host_interfaces: self.host_interfaces.into_iter().map(Arc::from).collect(),
            mac: self.mac,
            addresses: self.addresses,
        };
        let object = self.object.map(|object| object.pod(pod)).transpose()?;
        Ok(Recorded { network: self.network, known: KnownAttachment { attachment, object } })
    }
}

/// How much text is kept of a pod, in bytes.
fn length(pod: &Pod) -> usize {
    let labels: usize = pod.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    labels + pod.ports.iter().map(|port| port.name.as_ref().map_or(0, |name| name.len()) + 8).sum::<usize>()
}

impl Object {
    fn pod(self, key: ObjectKey) -> io::Result<Pod> {
        let port = |(name, protocol, number): (Option<String>, String, u16)| {
            let protocol: Protocol = protocol.parse().map_err(invalid)?;
            Ok(ContainerPort { name: name.map(Arc::from), protocol, number })
        };
        Ok(Pod {
            labels: self.labels.iter().map(|(key, value)| (&**key, &**value)).collect(),
            ports: self.ports.into_iter().map(port).collect::<io::Result<_>>()?,
            uid: self.uid.map(Arc::from),
            ..Pod::new(key)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(container: &str, object: bool) -> Recorded {
        let pod = ObjectKey::new("shop", "db");
        let port = |name: Option<&str>, protocol, number| ContainerPort {
            name: name.map(Arc::from),
            protocol,
            number,
        };
        Recorded {
            network: "cbr0".to_owned(),
            known: KnownAttachment {
                attachment: Attachment {
                    id: AttachmentId { container: container.into(), interface: "eth0".into() },
                    pod: pod.clone(),
                    uid: Some("u-1".into()),
                    host_interfaces: vec!["cni0".into(), "veth1".into()],
                    mac: Some([2, 0, 0, 0, 0, 1]),
                    addresses: vec!["10.244.1.7".parse().unwrap(), "fd00::7".parse().unwrap()],
                },
                object: object.then(|| Pod {
                    labels: [("app", "db"), ("x/y", "")].into_iter().collect(),
                    ports: vec![port(Some("sql"), Protocol::Tcp, 5432), port(None, Protocol::Sctp, 1)],
                    uid: Some("u-1".into()),
                    ..Pod::new(pod)
                }),
            },
        }
    }

    #[test]
    fn attachments_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path().join("attachments")).unwrap();
        let [a, b] = [recorded("a", true), recorded("b", false)];
        records.keep(&recorded("a", false)).unwrap();
        for one in [&b, &a] {
            records.keep(one).unwrap();
        }
        assert_eq!(records.read().unwrap(), [a.clone(), b.clone()]);
        records.forget(&a.known.attachment.id).unwrap();
        records.forget(&a.known.attachment.id).unwrap();
        assert!(!records.has(&a.known.attachment.id) && records.has(&b.known.attachment.id));
        assert_eq!(records.read().unwrap(), [b]);
    }

    #[test]
    fn faulty_files_and_those_of_another_version_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path().to_owned()).unwrap();
        records.keep(&recorded("a", true)).unwrap();
        let text = fs::read_to_string(folder.path().join("a-eth0.json")).unwrap();
        for (name, text) in [
            ("b-eth0.json", text[..text.len() / 2].to_owned()),
            ("c-eth0.json", text.replace("\"version\":1", "\"version\":2")),
            ("d-eth0.json", text.replace("\"container_id\":\"a\"", "\"container_id\":\"../a\"")),
            ("e-eth0.new", text.clone()),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        assert_eq!(records.read().unwrap(), [recorded("a", true)]);
    }

    #[test]
    fn identifier_that_names_another_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path().join("attachments")).unwrap();
        assert!(records.keep(&recorded("../a", false)).is_err());
        assert!(records.forget(&recorded("/etc/passwd", false).known.attachment.id).is_err());
    }

    #[test]
    fn object_with_megabytes_of_labels_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path().to_owned()).unwrap();
        let mut large = recorded("a", true);
        let keys: Vec<String> = (0..2000).map(|at| format!("key-{at}")).collect();
        let value = "v".repeat(63);
        let object = large.known.object.as_mut().unwrap();
        object.labels = keys.iter().map(|key| (key.as_str(), value.as_str())).collect();
        records.keep(&large).unwrap();
        assert_eq!(records.read().unwrap(), [recorded("a", false)]);
    }
}
