//! The objects of watched files: the last readable version of each file, and what that changes.
//!
//! Nothing here reads a file. The caller passes the contents of a file, or its removal, and asks for the difference.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    k8s::{
        fault::Fault,
        intern::Interner,
        manifest::{
            Options,
            assemble::{FileContents, Finding, Key, assemble},
            chunk::{Chunk, ParsedChunks, PlacedChunk, TextReader},
            not_utf8,
            object::{Manifest, Object},
        },
    },
    model::{Change, Standing},
};

/// What has changed since the last difference.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// The changes of objects: first those that are new or changed, then those that are gone. As few as possible.
    pub changes: Vec<Change>,
    /// All current faults, if they have changed.
    pub faults: Option<Vec<Fault>>,
}

/// The objects of a set of files, and the last good version of each.
#[derive(Debug, Default)]
pub struct Store {
    files: BTreeMap<PathBuf, File>,
    /// The version of each object that was sent last.
    delivered: BTreeMap<Key, Arc<Object>>,
    faults: Vec<Fault>,
    names: Interner,
    /// Whether nothing has changed since the last difference, which takes time for every object.
    settled: bool,
}

#[derive(Debug, Default)]
struct File {
    contents: FileContents,
    /// Pieces that have not changed are not parsed again.
    known: ParsedChunks,
}

impl Store {
    /// A store without files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the contents of the file at `path`. Only the documents whose text is new are parsed.
    pub fn set(&mut self, path: &Path, bytes: &[u8]) {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => return self.set_unreadable(path, not_utf8(error)),
        };
        self.settled = false;
        let file = self.files.entry(path.to_owned()).or_default();
        let (chunks, known) = TextReader::new(&file.known, Options::default(), &mut self.names).read(text);
        let mut contents = FileContents { chunks, unreadable: None };
        contents.chunks.extend(kept(&file.contents, &contents));
        *file = File { contents, known };
    }

    /// The file at `path` exists and cannot be read: it keeps its objects.
    pub fn set_unreadable(&mut self, path: &Path, why: String) {
        let unreadable = &mut self.files.entry(path.to_owned()).or_default().contents.unreadable;
        if unreadable.as_ref() != Some(&why) {
            *unreadable = Some(why);
            self.settled = false;
        }
    }

    /// The file at `path` is gone, and so are its objects.
    pub fn remove(&mut self, path: &Path) {
        self.settled &= self.files.remove(path).is_none();
    }

    /// Whether a part of the file at `path` could not be used, as of the last difference.
    #[must_use]
    pub fn has_error(&self, path: &Path) -> bool {
        self.faults.iter().any(|fault| fault.is_error() && fault.file == path)
    }

    /// Whether the file at `path` is known.
    #[must_use]
    pub fn has(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }

    /// The files that are known.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// The resulting changes. An object that is refused, or that several places define, keeps its last version.
    pub fn difference(&mut self) -> Difference {
        if std::mem::replace(&mut self.settled, true) {
            return Difference::default();
        }
        let files: Vec<_> = self.files.iter().map(|(path, file)| (path, &file.contents)).collect();
        let assembly = assemble(&files, &mut self.names);
        let mut delivered = BTreeMap::new();
        let mut changes = Vec::new();
        for (key, finding) in assembly.findings {
            let before = self.delivered.remove(&key);
            let now = match finding {
                Finding::Valid(object) => Some(object),
                Finding::Rejected(fallback) => match &before {
                    Some(before) if fallback.is_none() || !is_stand_in(before) => Some(before.clone()),
                    _ => fallback,
                },
            };
            let Some(now) = now else { continue };
            match before {
                Some(before) if Arc::ptr_eq(&before, &now) || before == now => delivered.insert(key, before),
                _ => {
                    changes.push(now.change());
                    delivered.insert(key, now)
                }
            };
        }
        changes.extend(std::mem::replace(&mut self.delivered, delivered).into_keys().map(Key::removal));
        let faults = (assembly.faults != self.faults).then(|| {
            self.faults.clone_from(&assembly.faults);
            assembly.faults
        });
        Difference { changes, faults }
    }
}

fn is_stand_in(object: &Object) -> bool {
    matches!(object, Object::Policy(policy) if policy.standing == Standing::Refused)
}

/// The objects of `before` that `now` does not mention, if `now` has parts that cannot be read: they may be in there.
fn kept(before: &FileContents, now: &FileContents) -> Option<PlacedChunk> {
    fn manifests(contents: &FileContents) -> impl Iterator<Item = &Arc<Manifest>> {
        contents.chunks.iter().flat_map(|piece| &piece.chunk.manifests)
    }
    let unclear = now.chunks.iter().any(|piece| piece.chunk.error.is_some())
        || manifests(now).any(|manifest| manifest.id.is_none());
    if !unclear {
        return None;
    }
    let spoken_of: HashSet<_> = manifests(now).filter_map(|manifest| manifest.id.as_ref()).collect();
    let silent = |manifest: &&Arc<Manifest>| manifest.id.as_ref().is_some_and(|id| !spoken_of.contains(id));
    // Their earlier faults are not current.
    let quiet =
        |manifest: &Arc<Manifest>| Arc::new(Manifest { problems: Vec::new(), ..(**manifest).clone() });
    let manifests: Vec<_> = manifests(before).filter(silent).map(quiet).collect();
    let chunk = Arc::new(Chunk { manifests, ..Chunk::default() });
    (!chunk.manifests.is_empty()).then_some(PlacedChunk { lines: 0, columns: 0, item: None, chunk })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cluster, ObjectKey};

    fn policy(name: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        )
    }

    fn pod(name: &str, app: &str) -> String {
        format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\n")
    }

    /// A store, and the cluster of its receiver.
    #[derive(Default)]
    struct Recorder {
        store: Store,
        cluster: Cluster,
    }

    impl Recorder {
        fn new() -> Self {
            let mut recorder = Self::default();
            recorder.take();
            recorder
        }

        fn set(&mut self, path: &str, text: &str) -> Vec<String> {
            self.store.set(Path::new(path), text.as_bytes());
            self.take()
        }

        fn take(&mut self) -> Vec<String> {
            let difference = self.store.difference();
            let reported = difference.changes.iter().map(|change| match change {
                Change::SetPod(pod) => {
                    format!("pod {} {}", pod.key.name, pod.labels.get("app").unwrap_or("-"))
                }
                Change::RemovePod(key) => format!("no pod {}", key.name),
                Change::SetPolicy(policy) => format!("policy {} {:?}", policy.key.name, policy.standing),
                Change::RemovePolicy(key) => format!("no policy {}", key.name),
                Change::SetNamespace(namespace) => format!("namespace {}", namespace.name),
                Change::RemoveNamespace(name) => format!("no namespace {name}"),
                Change::SetNode(_) | Change::RemoveNode(_) | Change::DropRules(..) => {
                    unreachable!("files contain no nodes, and all their rules are kept")
                }
            });
            let reported = reported.collect();
            for change in difference.changes {
                assert!(self.cluster.apply(change.clone()).is_some(), "{change:?} changes nothing");
            }
            reported
        }

        fn errors(&self) -> Vec<String> {
            self.store.faults.iter().filter(|fault| fault.is_error()).map(ToString::to_string).collect()
        }
    }

    #[test]
    fn only_differences_are_reported() {
        let mut recorder = Recorder::new();
        assert_eq!(recorder.set("a", &(pod("x", "web") + &pod("z", "db"))), ["pod x web", "pod z db"]);
        assert_eq!(
            recorder.set("a", &("# moved\n\n".to_owned() + &pod("x", "web") + &pod("z", "db"))),
            [""; 0]
        );
        assert_eq!(recorder.set("a", &(pod("x", "web") + &pod("z", "cache"))), ["pod z cache"]);
        assert_eq!(recorder.set("a", &pod("z", "cache")), ["no pod x"]);
        recorder.store.remove(Path::new("a"));
        assert_eq!(recorder.take(), ["no pod z"]);
    }

    #[test]
    fn unchanged_document_is_not_parsed_again() {
        let mut recorder = Recorder::new();
        recorder.set("a", &(pod("x", "web") + &pod("z", "db")));
        let first =
            |recorder: &Recorder| recorder.store.files[Path::new("a")].contents.chunks[0].chunk.clone();
        let before = first(&recorder);
        recorder.set("a", &(pod("x", "web") + &pod("z", "cache")));
        assert!(Arc::ptr_eq(&before, &first(&recorder)));
    }

    #[test]
    fn file_that_becomes_invalid_yaml_keeps_its_objects() {
        let mut recorder = Recorder::new();
        recorder.set("a", &(pod("x", "web") + &pod("z", "db")));
        assert_eq!(recorder.set("a", "kind: [\n"), [""; 0]);
        assert_eq!(recorder.errors().len(), 1);
        assert_eq!(recorder.set("a", &(pod("x", "cache") + "---\n a: b\n c\n")), ["pod x cache"]);
        assert_eq!(recorder.set("a", &pod("x", "cache")), ["no pod z"]);
        assert_eq!(recorder.errors(), [""; 0]);
    }

    #[test]
    fn file_that_becomes_binary_keeps_its_objects() {
        let mut recorder = Recorder::new();
        recorder.set("a", &pod("x", "web"));
        recorder.store.set(Path::new("a"), b"\xff\xfe");
        assert_eq!(recorder.take(), [""; 0]);
        assert!(recorder.errors()[0].contains("not UTF-8"), "{:?}", recorder.errors());
        assert_eq!(recorder.set("a", &pod("x", "db")), ["pod x db"]);
        assert_eq!(recorder.errors(), [""; 0]);
    }

    #[test]
    fn object_that_loses_its_kind_or_name_stays() {
        let mut recorder = Recorder::new();
        recorder.set("a", &pod("x", "web"));
        assert_eq!(recorder.set("a", &pod("x", "web").replace("kind:", "Kind:")), [""; 0]);
        assert_eq!(recorder.set("a", &pod("x", "web").replace("name:", "nam:")), [""; 0]);
    }

    #[test]
    fn refused_policy_keeps_its_last_good_version() {
        let mut recorder = Recorder::new();
        assert_eq!(recorder.set("a", &policy("p", "{ingress: [{}]}")), ["policy p Accepted"]);
        assert_eq!(recorder.set("a", &policy("p", "{ingress: [{from: [{}]}]}")), [""; 0]);
        assert_eq!(recorder.errors().len(), 1);
        let kept = recorder.cluster.policy(&ObjectKey::new("default", "p")).unwrap();
        assert_eq!(kept.ingress.as_ref().map(Vec::len), Some(1));
        assert_eq!(recorder.set("a", &policy("p", "{ingress: []}")), ["policy p Accepted"]);
    }

    #[test]
    fn policy_that_was_never_valid_isolates_and_allows_nothing() {
        let mut recorder = Recorder::new();
        assert_eq!(recorder.set("a", &policy("p", "{ingress: [{from: [{}]}]}")), ["policy p Refused"]);
        assert_eq!(recorder.set("a", &policy("p", "{egress: [{to: [{}]}]}")), ["policy p Refused"]);
        let stand_in = recorder.cluster.policy(&ObjectKey::new("default", "p")).unwrap();
        assert_eq!((&stand_in.ingress, &stand_in.egress), (&Some(Vec::new()), &Some(Vec::new())));
        // Not even the selected pods are known: the stand-in stays.
        assert_eq!(recorder.set("a", &policy("p", "{podSelector: 1}")), [""; 0]);
        assert_eq!(recorder.set("a", &policy("p", "{}")), ["policy p Accepted"]);
    }

    #[test]
    fn object_moved_between_files_in_one_step_is_not_reported() {
        let mut recorder = Recorder::new();
        recorder.set("a", &pod("x", "web"));
        recorder.store.set(Path::new("b"), pod("x", "web").as_bytes());
        recorder.store.remove(Path::new("a"));
        assert_eq!(recorder.take(), [""; 0]);
    }

    #[test]
    fn last_good_version_stays_with_two_definitions() {
        let mut recorder = Recorder::new();
        recorder.set("b", &(pod("x", "web") + &policy("p", "{}")));
        assert_eq!(recorder.set("a", &(pod("x", "db") + &policy("p", "{ingress: [{}]}"))), [""; 0]);
        let errors = recorder.errors();
        assert_eq!(errors.len(), 2);
        assert!(errors[0].starts_with("b:4:") && errors[0].contains("already defined at a:4:"), "{errors:?}");
        recorder.store.remove(Path::new("b"));
        assert_eq!(recorder.take(), ["pod x db", "policy p Accepted"]);
        assert_eq!(recorder.errors(), [""; 0]);
    }

    #[test]
    fn first_of_two_initial_definitions_wins_and_a_policy_is_refused() {
        let mut recorder = Recorder::default();
        recorder.store.set(Path::new("b"), (pod("x", "web") + &policy("p", "{}")).as_bytes());
        recorder.store.set(Path::new("a"), (pod("x", "db") + &policy("p", "{ingress: [{}]}")).as_bytes());
        let reported = recorder.take();
        assert_eq!(reported[4..], ["pod x db", "policy p Refused"]);
    }
}
