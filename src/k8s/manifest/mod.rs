//! Manifests: from the text of files to objects of the model, with everything that is wrong by file, line and field.
//!
//! | from | to | in |
//! |---|---|---|
//! | a text | its documents and list items, each parsed once | [`chunk`] |
//! | a tree | an API object, and its unknown or wrong fields | [`object`], [`deserialize`], [`hints`] |
//! | many files | one set of objects | [`mod@assemble`] |
//! | files of other programs, templates, patches | notes on what was left out | [`foreign`] |
//!
//! [`load`] does this once, for a command that answers a question and exits; [`files`](super::files) does it for as
//! long as the daemon runs.

pub mod assemble;
pub mod chunk;
pub mod deserialize;
pub mod folder;
pub mod foreign;
#[cfg(feature = "lab")]
pub mod fuzzing;
pub mod hints;
mod mismatch;
pub mod object;
pub mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use self::{
    assemble::{ALWAYS, Assembly, FileContents, Finding, Key, assemble},
    chunk::{ParsedChunks, TextReader},
    folder::walk,
    foreign::Surroundings,
    source::Source,
};
use crate::{
    k8s::{
        fault::Fault,
        intern::Interner,
        service::{self, Service},
    },
    model::{Change, Cluster},
};

/// What to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether workloads (`Deployment`, `StatefulSet`, `DaemonSet`, `ReplicaSet`, `Job`, `CronJob`) stand for one pod
    /// of their template. If not, they are skipped: in a cluster, their pods are objects of their own.
    pub workloads: bool,
    /// What to do with texts that are no Kubernetes objects, templates and patches.
    pub foreign: ForeignTexts,
    /// Whether to keep what a later finding about a valid object needs: where its fields are.
    pub sources: bool,
}

/// What to do with a text that is no Kubernetes object, but a file of another program, a template of Helm, or a patch of
/// kustomize. An object of a kind that is read is never one of these, whatever is wrong with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForeignTexts {
    /// It is an error.
    #[default]
    Refuse,
    /// It is left out, with a note.
    LeaveOut,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The objects: namespaces first, then pods, then policies, each by name.
    ///
    /// A refused policy is included with [`Standing::Refused`](crate::model::Standing) if it is known which pods it
    /// selects. The namespaces that every cluster has are included whether or not a file declares them.
    pub changes: Vec<Change>,
    /// What is wrong, by file and position.
    pub faults: Vec<Fault>,
    /// How many objects of other kinds there were, by `apiVersion/kind`.
    pub skipped: BTreeMap<String, usize>,
    /// What was left out because it is no object, with [`ForeignTexts::LeaveOut`]: notes, by file and position.
    pub left_out: Vec<Fault>,
    /// The namespaces that objects name and no file declares. They are among the objects, with their name as their only
    /// label.
    pub undeclared: BTreeSet<Arc<str>>,
    /// The Services of files that were read by [`load`]. No policy depends on them, and the daemon does not read them.
    pub services: Vec<Service>,
    /// Where each object is, with [`Options::sources`].
    pub sources: BTreeMap<Key, Source>,
}

impl Loaded {
    /// The objects as a cluster.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        let mut cluster = Cluster::new();
        for change in &self.changes {
            cluster.apply(change.clone());
        }
        cluster
    }

    /// Whether no file had an object of a kind that is read.
    #[must_use]
    pub fn is_without_objects(&self) -> bool {
        let is_known = |change: &Change| match change {
            Change::SetNamespace(namespace) => !ALWAYS.contains(&&*namespace.name),
            _ => true,
        };
        !self.changes.iter().any(is_known)
    }

    /// Whether there was nothing to read: no object of any kind, and nothing that is wrong with one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.is_without_objects() && self.skipped.is_empty() && self.faults.is_empty()
    }

    /// Whether any fault is an error.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.faults.iter().any(Fault::is_error)
    }
}

/// A path that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct LoadError {
    /// The path.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Reads `paths`: files, folders (every .yaml, .yml and .json file below them), and `-` for standard input.
///
/// # Errors
/// A path that does not exist or cannot be read. What is wrong inside of a file is a [`Fault`], not an error.
pub fn load(paths: &[PathBuf], options: Options) -> Result<Loaded, LoadError> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for path in paths {
        for file in find(path)? {
            let same = fs::canonicalize(&file).unwrap_or_else(|_| file.clone());
            if seen.insert(same) {
                found.push(file);
            }
        }
    }
    let mut surroundings = (options.foreign == ForeignTexts::LeaveOut).then(|| Surroundings::of(&found));
    let mut files: Vec<(PathBuf, FileContents)> = Vec::new();
    let mut left_out = Vec::new();
    let mut services = Vec::new();
    let mut names = Interner::new();
    for file in found {
        let bytes = read_bytes(&file).map_err(|source| LoadError { path: file.clone(), source })?;
        let mut contents = read(&bytes, options, &mut names);
        if let Some(surroundings) = &mut surroundings {
            left_out.extend(surroundings.leave_out(&file, &bytes, &mut contents));
        }
        files.push((file, contents));
        services.extend(std::str::from_utf8(&bytes).into_iter().flat_map(service::in_text));
    }
    if let Some(surroundings) = surroundings {
        left_out.extend(surroundings.builds());
    }
    let files: Vec<(&PathBuf, &FileContents)> =
        files.iter().map(|(path, contents)| (path, contents)).collect();
    Ok(Loaded { left_out, services, ..assemble(&files, &mut names).into() })
}

/// Reads one text as if it were the file `name`.
#[must_use]
pub fn load_text(name: &Path, text: &str, options: Options) -> Loaded {
    let mut names = Interner::new();
    let contents = read(text.as_bytes(), options, &mut names);
    let services = service::in_text(text);
    Loaded { services, ..assemble(&[(&name.to_owned(), &contents)], &mut names).into() }
}

impl From<Assembly> for Loaded {
    fn from(assembly: Assembly) -> Self {
        let objects = assembly.findings.into_values().filter_map(|finding| match finding {
            Finding::Valid(object) => Some(object),
            Finding::Rejected(fallback) => fallback,
        });
        Self {
            changes: objects.map(|object| object.change()).collect(),
            faults: assembly.faults,
            skipped: assembly.skipped,
            left_out: Vec::new(),
            undeclared: assembly.undeclared,
            services: Vec::new(),
            sources: assembly.sources,
        }
    }
}

fn read(bytes: &[u8], options: Options, names: &mut Interner) -> FileContents {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let (chunks, _) = TextReader::new(&ParsedChunks::default(), options, names).read(text);
            FileContents { chunks, unreadable: None }
        }
        Err(error) => FileContents { chunks: Vec::new(), unreadable: Some(not_utf8(error)) },
    }
}

pub(super) fn not_utf8(error: std::str::Utf8Error) -> String {
    format!("not UTF-8 text after {} bytes: save it as UTF-8", error.valid_up_to())
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    if is_stdin(path) {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    fs::read(path)
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The files that `path` stands for, sorted.
fn find(path: &Path) -> Result<Vec<PathBuf>, LoadError> {
    if is_stdin(path) {
        return Ok(vec![path.to_owned()]);
    }
    let kind = fs::metadata(path).map_err(|source| LoadError { path: path.to_owned(), source })?;
    if !kind.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let found = walk(path, |_| {});
    match found.unreadable.into_iter().next() {
        Some((path, source)) => Err(LoadError { path, source }),
        None => Ok(found.files.into_iter().collect()),
    }
}
