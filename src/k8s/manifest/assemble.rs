//! Merges the objects of many files: which of them count, and what faults there are between them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    chunk::PlacedChunk,
    object::{Manifest, Object},
    source::Source,
};
use crate::{
    k8s::{
        convert::{DEFAULT_NAMESPACE, bare_namespace, validate},
        fault::{Fault, ObjectId, Problem},
        intern::Interner,
        yaml::path::{FieldPath, Position},
    },
    model::{Change, NetworkPolicy, ObjectKey, Standing},
};

/// The namespaces that every cluster has.
pub const ALWAYS: [&str; 4] = [DEFAULT_NAMESPACE, "kube-system", "kube-public", "kube-node-lease"];

/// The contents of a file.
#[derive(Clone, Debug, Default)]
pub struct FileContents {
    /// Its pieces, in order.
    pub chunks: Vec<PlacedChunk>,
    /// Why it could not be read at all.
    pub unreadable: Option<String>,
}

/// What identifies an object in the model. Changes are delivered in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A namespace.
    Namespace(Arc<str>),
    /// A pod.
    Pod(ObjectKey),
    /// A policy.
    Policy(ObjectKey),
}

/// What the files record about one object.
#[derive(Clone, Debug)]
pub enum Finding {
    /// The object is valid.
    Valid(Arc<Object>),
    /// The object exists, but was refused or is defined more than once; this is what to use instead, if anything.
    Rejected(Option<Arc<Object>>),
}

/// Every object of all files.
#[derive(Debug, Default)]
pub struct Assembly {
    /// What the files record about each object.
    pub findings: BTreeMap<Key, Finding>,
    /// What is wrong, by file and position.
    pub faults: Vec<Fault>,
    /// How many objects of other kinds there were, by `apiVersion/kind`.
    pub skipped: BTreeMap<String, usize>,
    /// The namespaces that objects name and no file declares. They are taken to exist.
    pub undeclared: BTreeSet<Arc<str>>,
    /// Where each valid object is, if that was kept.
    pub sources: BTreeMap<Key, Source>,
}

impl Key {
    /// What identifies the object that a user names so.
    #[must_use]
    pub fn of(id: &ObjectId) -> Self {
        let key = |id: &ObjectId| ObjectKey {
            namespace: id.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.into()),
            name: id.name.clone(),
        };
        match id.kind {
            "Namespace" => Self::Namespace(id.name.clone()),
            "NetworkPolicy" => Self::Policy(key(id)),
            _ => Self::Pod(key(id)),
        }
    }

    /// The removal of the object.
    #[must_use]
    pub fn removal(self) -> Change {
        match self {
            Self::Namespace(name) => Change::RemoveNamespace(name),
            Self::Pod(key) => Change::RemovePod(key),
            Self::Policy(key) => Change::RemovePolicy(key),
        }
    }
}

impl Object {
    /// The change that sets this object.
    #[must_use]
    pub fn change(&self) -> Change {
        match self {
            Self::Namespace(namespace) => Change::SetNamespace(namespace.clone()),
            Self::Pod(pod) => Change::SetPod(pod.clone()),
            Self::Policy(policy) => Change::SetPolicy(policy.clone()),
        }
    }
}

/// Where an object is defined.
#[derive(Clone, Copy)]
struct Definition<'f> {
    file: &'f Path,
    piece: &'f PlacedChunk,
    manifest: &'f Manifest,
}

impl Definition<'_> {
    fn fault(self, at: Position, problem: &Problem) -> Fault {
        let at = at.after(self.piece.lines, self.piece.columns);
        let mut fault = Fault::new(self.file.to_owned(), at, problem, self.manifest.id.clone());
        if let Some(item) = self.piece.item {
            fault.path = FieldPath::of(&["items"]).index(item).join(&problem.path).to_string();
        }
        fault
    }

    /// What to use for the object when it cannot be used as written.
    fn fallback(self) -> Option<Arc<Object>> {
        let policy = match (&self.manifest.object, &self.manifest.stand_in) {
            (None, stand_in) => stand_in.clone()?,
            (Some(object), _) => match &**object {
                Object::Policy(policy) => refused(policy),
                _ => return Some(object.clone()),
            },
        };
        Some(Arc::new(Object::Policy(policy)))
    }
}

fn refused(policy: &NetworkPolicy) -> NetworkPolicy {
    NetworkPolicy {
        ingress: policy.ingress.as_ref().map(|_| Vec::new()),
        egress: policy.egress.as_ref().map(|_| Vec::new()),
        standing: Standing::Refused,
        ..policy.clone()
    }
}

/// Merges the contents of `files`, in their order.
#[must_use]
pub fn assemble(files: &[(&PathBuf, &FileContents)], names: &mut Interner) -> Assembly {
    let mut assembly = Assembly::default();
    let mut places: Vec<Definition<'_>> = Vec::new();
    for (file, contents) in files {
        assembly.take_in(file, contents);
        for piece in &contents.chunks {
            let file = file.as_path();
            places.extend(piece.chunk.manifests.iter().map(|manifest| Definition { file, piece, manifest }));
        }
    }
    let duplicates = assembly.find_duplicates(&places);
    // Pods before the workloads that stand for one: a real pod has precedence for its name.
    let is_workload = |place: &&Definition<'_>| {
        place.manifest.id.as_ref().is_some_and(|id| !["Namespace", "Pod", "NetworkPolicy"].contains(&id.kind))
    };
    for place in places.iter().filter(|place| !is_workload(place)) {
        assembly.record(*place, &duplicates, names);
    }
    for place in places.iter().filter(is_workload) {
        assembly.record(*place, &duplicates, names);
    }
    for name in ALWAYS {
        let bare = || Finding::Valid(Arc::new(Object::Namespace(bare_namespace(name, names))));
        assembly.findings.entry(Key::Namespace(name.into())).or_insert_with(bare);
    }
    assembly.add_undeclared_namespaces(&places, names);
    assembly.faults.sort_by(|a, b| {
        (&a.file, a.line, a.column, a.severity).cmp(&(&b.file, b.line, b.column, b.severity))
    });
    assembly
}

impl Assembly {
    /// Adds the faults of one file, and counts what was skipped in it.
    fn take_in(&mut self, file: &Path, contents: &FileContents) {
        if let Some(text) = &contents.unreadable {
            let problem = Problem::error(FieldPath::root(), text);
            self.faults.push(Fault::new(file.to_owned(), Position::START, &problem, None));
        }
        for piece @ PlacedChunk { lines, columns, chunk, .. } in &contents.chunks {
            for kind in &chunk.skipped {
                *self.skipped.entry(kind.clone()).or_default() += 1;
            }
            if let Some(error) = &chunk.error {
                let problem = Problem::error(FieldPath::root(), &error.text);
                self.faults.push(Fault::new(
                    file.to_owned(),
                    error.at.after(*lines, *columns),
                    &problem,
                    None,
                ));
            }
            for manifest in &chunk.manifests {
                let place = Definition { file, piece, manifest };
                self.faults.extend(manifest.problems.iter().map(|(at, problem)| place.fault(*at, problem)));
            }
        }
    }

    /// The objects that are defined in several places; each place but the first is a fault that names the first.
    fn find_duplicates<'f>(&mut self, places: &[Definition<'f>]) -> BTreeSet<&'f ObjectId> {
        let mut first: HashMap<&ObjectId, Definition<'_>> = HashMap::with_capacity(places.len());
        let mut duplicates = BTreeSet::new();
        for place in places {
            let Some(id) = &place.manifest.id else { continue };
            let Some(before) = first.get(id) else {
                first.insert(id, *place);
                continue;
            };
            let at = before.manifest.name_at.after(before.piece.lines, before.piece.columns);
            let text = format!("{id} is already defined at {}:{at}: keep one", before.file.display());
            let problem = Problem::error(FieldPath::of(&["metadata", "name"]), text);
            self.faults.push(place.fault(place.manifest.name_at, &problem));
            duplicates.insert(id);
        }
        duplicates
    }

    fn record(&mut self, place: Definition<'_>, duplicates: &BTreeSet<&ObjectId>, names: &mut Interner) {
        let Some(id) = &place.manifest.id else { return };
        let key = Key::of(id);
        if duplicates.contains(id) {
            let finding = self.findings.entry(key).or_insert(Finding::Rejected(None));
            if matches!(finding, Finding::Rejected(None)) {
                *finding = Finding::Rejected(place.fallback());
            }
            return;
        }
        let finding = match &place.manifest.object {
            Some(object) => Finding::Valid(object.clone()),
            None => Finding::Rejected(place.fallback()),
        };
        let std::collections::btree_map::Entry::Occupied(taken) = self.findings.entry(key.clone()) else {
            self.keep_source(key.clone(), place);
            self.findings.insert(key, finding);
            return;
        };
        // A Deployment and a StatefulSet with the same name become two pods with the same name here.
        let Finding::Valid(object) = finding else { return };
        if let (Key::Pod(key), Object::Pod(pod)) = (taken.key().clone(), &*object) {
            let mut pod = pod.clone();
            let name = format!("{}.{}", id.kind.to_ascii_lowercase(), id.name);
            let text =
                format!("{} stands for two objects here: this one is called {}/{name}", key, key.namespace);
            let problem = Problem::warning(FieldPath::of(&["metadata", "name"]), text);
            self.faults.push(place.fault(place.manifest.name_at, &problem));
            pod.key = ObjectKey { name: names.string(&name), ..key };
            self.keep_source(Key::Pod(pod.key.clone()), place);
            self.findings.insert(Key::Pod(pod.key.clone()), Finding::Valid(Arc::new(Object::Pod(pod))));
        }
    }

    fn keep_source(&mut self, key: Key, place: Definition<'_>) {
        if let (Some(written), Some(id)) = (&place.manifest.written, &place.manifest.id) {
            let source = Source {
                file: place.file.to_owned(),
                lines: place.piece.lines,
                columns: place.piece.columns,
                item: place.piece.item,
                id: id.clone(),
                written: written.clone(),
            };
            self.sources.insert(key, source);
        }
    }

    /// Adds each namespace that an object names and no file declares: in a cluster, it must exist. Its labels are not
    /// known, but for the one that the API server sets.
    fn add_undeclared_namespaces(&mut self, places: &[Definition<'_>], names: &mut Interner) {
        for place in places {
            let Some(namespace) = place.manifest.id.as_ref().and_then(|id| id.namespace.as_ref()) else {
                continue;
            };
            let key = Key::Namespace(namespace.clone());
            if self.findings.contains_key(&key) || validate::dns_label(namespace).is_err() {
                continue;
            }
            let bare = Arc::new(Object::Namespace(bare_namespace(namespace, names)));
            self.findings.insert(key, Finding::Valid(bare));
            self.undeclared.insert(namespace.clone());
            let text = format!(
                "the namespace {namespace} is not declared in these files: it is taken to exist, and to have no label \
                 but its name"
            );
            let problem = Problem::note(FieldPath::of(&["metadata", "namespace"]), text);
            self.faults.push(place.fault(place.manifest.namespace_at, &problem));
        }
    }
}
