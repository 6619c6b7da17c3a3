//! A folder of manifests as the page's objects: read again when a file changes, and written one document at a time.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use data_encoding::HEXLOWER;
use futures::{FutureExt as _, future::BoxFuture};
use sha2::{Digest as _, Sha256};

use super::{About, Edit, Failure, Objects, Snapshot, StoredPolicy, draft, key_of};
use crate::{
    k8s::{
        convert::DEFAULT_NAMESPACE,
        fault::Severity,
        manifest::{
            Options,
            folder::{Stamp, is_manifest, walk},
            load,
        },
        yaml::{
            node::{self, YamlNode},
            pieces::{Piece, pieces},
        },
    },
    model::ObjectKey,
};

/// Files and folders of manifests.
#[derive(Debug)]
pub struct Folder {
    paths: Vec<PathBuf>,
    writable: bool,
    known: Mutex<Known>,
}

/// What was last read.
#[derive(Debug, Default)]
struct Known {
    stamps: BTreeMap<PathBuf, Option<Stamp>>,
    snapshot: Option<Arc<Snapshot>>,
}

/// A policy's document in a file.
struct Place {
    file: PathBuf,
    /// The whole file.
    content: String,
    /// Where the document is in it, in bytes: with its `---`, if it has one.
    start: usize,
    end: usize,
    /// Its line, counted from 1.
    line: u32,
    /// Whether the document is this policy and nothing else.
    alone: bool,
}

impl Folder {
    /// These files and folders; `writable` if policies may be saved there.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>, writable: bool) -> Self {
        Self { paths, writable, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for path in &self.paths {
            if path.is_dir() {
                files.extend(walk(path, |_| {}).files);
            } else {
                files.push(path.clone());
            }
        }
        files.sort();
        files.dedup();
        files
    }

    /// The objects, read again if a file was written, added or removed.
    fn read(&self) -> Result<Arc<Snapshot>, Failure> {
        let mut known = self.known();
        let stamps: BTreeMap<PathBuf, Option<Stamp>> = self
            .files()
            .into_iter()
            .map(|file| (file.clone(), fs::metadata(&file).ok().map(|file| Stamp::of(&file))))
            .collect();
        if let Some(snapshot) = known.snapshot.as_ref().filter(|_| known.stamps == stamps) {
            return Ok(snapshot.clone());
        }
        let loaded = load(&self.paths, Options { workloads: true, ..Options::default() });
        let loaded = loaded.map_err(|error| Failure::new(500, error.to_string()))?;
        let mut places = BTreeMap::new();
        for file in stamps.keys() {
            let Ok(content) = fs::read_to_string(file) else { continue };
            each_policy(&content, |key, _, line, _| {
                places.entry(key).or_insert_with(|| format!("{}:{line}", file.display()));
            });
        }
        let faults = loaded.faults.iter().filter(|fault| fault.severity != Severity::Note);
        let snapshot = Arc::new(Snapshot {
            version: known.snapshot.as_ref().map_or(1, |before| before.version + 1),
            faults: faults.map(ToString::to_string).collect(),
            cluster: loaded.cluster(),
            places,
            stale: None,
        });
        *known = Known { stamps, snapshot: Some(snapshot.clone()) };
        Ok(snapshot)
    }

    fn find(&self, key: &ObjectKey) -> Result<Option<Place>, Failure> {
        for file in self.files() {
            let content = fs::read_to_string(&file).map_err(|error| unreadable(&file, &error))?;
            let mut found = None;
            each_policy(&content, |other, range, line, alone| {
                if found.is_none() && other == *key {
                    found = Some((range, line, alone));
                }
            });
            if let Some(((start, end), line, alone)) = found {
                return Ok(Some(Place { file, content, start, end, line, alone }));
            }
        }
        Ok(None)
    }

    fn stored(&self, key: &ObjectKey) -> Result<StoredPolicy, Failure> {
        let place = self.find(key)?;
        let place =
            place.ok_or_else(|| Failure::new(404, format!("no file has the policy {key} any more")))?;
        Ok(place.stored())
    }

    /// Writes, replaces or removes the document of a policy, unless it is not what the person saw.
    fn edit(&self, edit: &Edit) -> Result<Option<StoredPolicy>, Failure> {
        // One edit at a time, so that what was compared is what is replaced.
        let _one = self.known();
        let key = edit.text.as_deref().map(draft::key).transpose()?;
        let replaced = edit.replaces.as_deref().map(key_of).transpose()?;
        if let Some(key) = key.as_ref().filter(|key| replaced.as_ref() != Some(key))
            && let Some(other) = self.find(key)?
        {
            let text = format!("{key} already exists in {}", other.name());
            return Err(Failure { current: Some(Box::new(other.stored())), ..Failure::new(409, text) });
        }
        let Some(replaced) = replaced else {
            let (Some(text), Some(key)) = (&edit.text, &key) else {
                return Err(Failure::new(
                    400,
                    "there is nothing to do: neither a text nor a policy to delete",
                ));
            };
            self.create(key, text, edit.file.as_deref())?;
            return self.stored(key).map(Some);
        };
        let Some(place) = self.find(&replaced)? else {
            return Err(Failure::new(
                409,
                format!("{replaced} was deleted meanwhile: no file has it any more"),
            ));
        };
        let current = place.stored();
        if edit.revision.as_ref() != Some(&current.revision) {
            let text = format!("{replaced} was changed meanwhile in {}: nothing was written", place.name());
            return Err(Failure { current: Some(Box::new(current)), ..Failure::new(409, text) });
        }
        if !place.alone {
            let text = format!("{} has {replaced} in one document with others: edit the file", place.name());
            return Err(Failure::new(422, text));
        }
        let written = match &edit.text {
            Some(text) => {
                let marker = if place.document().starts_with("---") { "---\n" } else { "" };
                let body = text.trim_end().strip_prefix("---\n").unwrap_or_else(|| text.trim_end());
                place.write(&format!("{marker}{body}\n"))
            }
            None => place.write(""),
        };
        written.map_err(|failure| match failure.status {
            409 => Failure { current: self.stored(&replaced).ok().map(Box::new), ..failure },
            _ => failure,
        })?;
        key.map(|key| self.stored(&key)).transpose()
    }

    fn create(&self, key: &ObjectKey, text: &str, file: Option<&str>) -> Result<(), Failure> {
        let folder = self.paths.iter().find(|path| path.is_dir());
        let Some(folder) = folder else {
            return Err(Failure::new(422, "no folder to write to: start towpath ui with -f FOLDER"));
        };
        let name = file.map_or_else(|| format!("{}-{}.yaml", key.namespace, key.name), str::to_owned);
        let is_plain = Path::new(&name).file_name().is_some_and(|own| own == name.as_str());
        let path = folder.join(&name);
        if !is_plain || !is_manifest(&path) {
            let text =
                format!("{name:?} is not the name of a manifest: want NAME.yaml, in the folder itself");
            return Err(Failure::new(422, text));
        }
        let text = format!("{}\n", text.trim_end());
        // Fails if there is such a file, whatever it holds.
        let written = File::create_new(&path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                Failure::new(409, format!("{} already exists: choose another name", path.display()))
            }
            _ => Failure::new(500, format!("cannot write {}: {error}", path.display())),
        })
    }
}

impl Place {
    fn document(&self) -> &str {
        self.content.get(self.start..self.end).unwrap_or_default()
    }

    /// `file:line`.
    fn name(&self) -> String {
        format!("{}:{}", self.file.display(), self.line)
    }

    fn stored(&self) -> StoredPolicy {
        let document = self.document();
        let text = document.strip_prefix("---\n").unwrap_or(document);
        StoredPolicy {
            text: Some(text.to_owned()),
            object: None,
            revision: HEXLOWER.encode(&Sha256::digest(document.as_bytes())),
            place: self.name(),
        }
    }

    /// Replaces the document in its file, at once: a reader sees the old file or the new one. A file that is left with
    /// nothing in it is removed. If it is not what was read any more, nothing happens. That is looked at last: what is left
    /// of the time between reading and writing is that of one system call.
    fn write(&self, document: &str) -> Result<(), Failure> {
        let failed =
            |error: io::Error| Failure::new(500, format!("cannot write {}: {error}", self.file.display()));
        // Of a link the file behind it is written.
        let file = fs::canonicalize(&self.file).map_err(failed)?;
        let (before, after) = (self.content.get(..self.start), self.content.get(self.end..));
        let content = [before.unwrap_or_default(), document, after.unwrap_or_default()].concat();
        if content.trim().is_empty() {
            self.check_unchanged(&file)?;
            return fs::remove_file(&file).map_err(failed);
        }
        let (mut new, temporary) = new_beside(&file).map_err(failed)?;
        let mut complete = || -> io::Result<()> {
            new.set_permissions(fs::metadata(&file)?.permissions())?;
            new.write_all(content.as_bytes())?;
            new.sync_all()
        };
        let written = complete().map_err(failed).and_then(|()| {
            self.check_unchanged(&file)?;
            fs::rename(&temporary, &file).map_err(failed)
        });
        if written.is_err() {
            // Nothing refers to it; if it stays, no file of the folder is called like it.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Fails unless the file is still what was read.
    fn check_unchanged(&self, file: &Path) -> Result<(), Failure> {
        let same = match fs::read(file) {
            Ok(now) => now == self.content.as_bytes(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(unreadable(file, &error)),
        };
        let text = || format!("{} was changed meanwhile: nothing was written", self.file.display());
        if same { Ok(()) } else { Err(Failure::new(409, text())) }
    }
}

/// A new file next to another one, with a name that nobody takes for a manifest. Whatever has such a name already, also a
/// link, is left alone.
fn new_beside(file: &Path) -> io::Result<(File, PathBuf)> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for number in 0..100 {
        let path = file.with_file_name(format!(".{name}.{}-{number}", std::process::id()));
        match File::create_new(&path) {
            Ok(new) => return Ok((new, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Calls `found` for every policy of a text, with the bytes of its document, its line, and whether it is alone there.
fn each_policy(text: &str, mut found: impl FnMut(ObjectKey, (usize, usize), u32, bool)) {
    let bom = text.len() - text.strip_prefix('\u{feff}').unwrap_or(text).len();
    let mut start = bom;
    for Piece { lines, text: piece, .. } in pieces(text) {
        let end = start + piece.len();
        if piece.contains("NetworkPolicy") {
            let (documents, _) = node::parse(piece);
            let roots: Vec<&YamlNode<'_>> =
                documents.iter().filter_map(|document| document.root.as_ref()).collect();
            for root in &roots {
                let items = root.get("items").map(items).unwrap_or_default();
                for (node, alone) in items.iter().map(|item| (item, false)).chain([(*root, roots.len() == 1)])
                {
                    if let Some(key) = policy_key(node) {
                        found(key, (start, end), lines + node.at.line, alone);
                    }
                }
            }
        }
        start = end;
    }
}

fn items<'n, 't>(node: &'n YamlNode<'t>) -> &'n [YamlNode<'t>] {
    if let node::Value::List(items) = &node.value { items } else { &[] }
}

fn policy_key(node: &YamlNode<'_>) -> Option<ObjectKey> {
    if node.get("kind").and_then(YamlNode::as_str) != Some("NetworkPolicy") {
        return None;
    }
    let text = |field| node.get("metadata")?.get(field)?.as_str().filter(|text| !text.is_empty());
    Some(ObjectKey::new(text("namespace").unwrap_or(DEFAULT_NAMESPACE), text("name")?))
}

fn unreadable(file: &Path, error: &io::Error) -> Failure {
    Failure::new(500, format!("cannot read {}: {error}", file.display()))
}

/// Runs work on files off the threads that answer requests.
async fn off<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Failure::new(500, "reading the files failed: please report it")))
}

/// A folder that requests share.
#[derive(Clone, Debug)]
pub struct SharedFolder(pub Arc<Folder>);

impl Objects for SharedFolder {
    fn about(&self) -> About {
        let paths = self.0.paths.iter().map(|path| path.display().to_string());
        About {
            mode: "folder",
            title: paths.collect::<Vec<_>>().join(", "),
            writable: self.0.writable,
            program: env!("CARGO_PKG_VERSION"),
        }
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Arc<Snapshot>, Failure>> {
        let folder = self.0.clone();
        off(move || folder.read()).boxed()
    }

    fn policy(&self, key: ObjectKey) -> BoxFuture<'_, Result<StoredPolicy, Failure>> {
        let folder = self.0.clone();
        off(move || folder.stored(&key)).boxed()
    }

    fn apply(&self, edit: Edit) -> BoxFuture<'_, Result<Option<StoredPolicy>, Failure>> {
        let folder = self.0.clone();
        off(move || folder.edit(&edit)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        )
    }

    const DENY: &str = "{podSelector: {}}";
    const ALLOW: &str = "{podSelector: {}, ingress: [{}]}";

    fn folder(files: &[(&str, String)]) -> (tempfile::TempDir, Folder) {
        let place = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(place.path().join(name), text).unwrap();
        }
        let folder = Folder::new(vec![place.path().to_owned()], true);
        (place, folder)
    }

    fn change(folder: &Folder, name: &str, text: Option<String>) -> Edit {
        let stored = folder.stored(&ObjectKey::new("shop", name)).unwrap();
        Edit { replaces: Some(format!("shop/{name}")), revision: Some(stored.revision), text, file: None }
    }

    fn new(text: String, file: Option<&str>) -> Edit {
        Edit { replaces: None, revision: None, text: Some(text), file: file.map(str::to_owned) }
    }

    #[test]
    fn one_document_is_replaced_and_the_rest_of_the_file_stays() {
        let all =
            format!("# first\n{}---\n{}--- # c\n{}", policy("a", DENY), policy("b", DENY), policy("c", DENY));
        let (place, folder) = folder(&[("all.yaml", all)]);
        folder.edit(&change(&folder, "b", Some(policy("b", ALLOW)))).unwrap();
        let expected = format!(
            "# first\n{}---\n{}--- # c\n{}",
            policy("a", DENY),
            policy("b", ALLOW),
            policy("c", DENY)
        );
        assert_eq!(fs::read_to_string(place.path().join("all.yaml")).unwrap(), expected);
        folder.edit(&change(&folder, "b", None)).unwrap();
        let expected = format!("# first\n{}--- # c\n{}", policy("a", DENY), policy("c", DENY));
        assert_eq!(fs::read_to_string(place.path().join("all.yaml")).unwrap(), expected);
        assert!(folder.read().unwrap().places[&ObjectKey::new("shop", "c")].ends_with("all.yaml:7"));
    }

    #[test]
    fn change_of_somebody_else_is_reported_and_not_overwritten() {
        let (place, folder) = folder(&[("a.yaml", policy("a", DENY))]);
        let edit = change(&folder, "a", Some(policy("a", ALLOW)));
        let theirs = policy("a", "{podSelector: {matchLabels: {app: db}}}");
        fs::write(place.path().join("a.yaml"), &theirs).unwrap();
        let failure = folder.edit(&edit).unwrap_err();
        assert_eq!((failure.status, failure.current.unwrap().text), (409, Some(theirs.clone())));
        assert_eq!(fs::read_to_string(place.path().join("a.yaml")).unwrap(), theirs);
        fs::remove_file(place.path().join("a.yaml")).unwrap();
        assert_eq!(folder.edit(&edit).unwrap_err().status, 409);
    }

    #[test]
    fn change_after_the_file_was_read_is_not_overwritten_and_not_removed() {
        let (place, folder) = folder(&[("a.yaml", policy("a", DENY))]);
        let read = folder.find(&ObjectKey::new("shop", "a")).unwrap().unwrap();
        let theirs = policy("a", "{podSelector: {matchLabels: {app: db}}}");
        fs::write(place.path().join("a.yaml"), &theirs).unwrap();
        for document in [policy("a", ALLOW), String::new()] {
            assert_eq!(read.write(&document).unwrap_err().status, 409);
            assert_eq!(fs::read_to_string(place.path().join("a.yaml")).unwrap(), theirs);
        }
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn link_with_the_name_of_the_temporary_file_is_not_followed() {
        let (place, folder) = folder(&[("a.yaml", policy("a", DENY)), ("victim", "precious".to_owned())]);
        let at = |name: &str| place.path().join(name);
        let process = std::process::id();
        for name in [format!(".a.yaml.{process}"), format!(".a.yaml.{process}-0")] {
            std::os::unix::fs::symlink(at("victim"), at(&name)).unwrap();
        }
        folder.edit(&change(&folder, "a", Some(policy("a", ALLOW)))).unwrap();
        assert_eq!(fs::read_to_string(at("victim")).unwrap(), "precious");
        assert_eq!(fs::read_to_string(at("a.yaml")).unwrap(), policy("a", ALLOW));
        assert!(!fs::symlink_metadata(at("a.yaml")).unwrap().is_symlink());
    }

    #[test]
    fn change_of_another_document_of_the_file_is_no_conflict() {
        let both = |b: &str| format!("{}---\n{}", policy("a", DENY), policy("b", b));
        let (place, folder) = folder(&[("all.yaml", both(DENY))]);
        let edit = change(&folder, "a", Some(policy("a", ALLOW)));
        fs::write(place.path().join("all.yaml"), both(ALLOW)).unwrap();
        folder.edit(&edit).unwrap();
        let text = fs::read_to_string(place.path().join("all.yaml")).unwrap();
        assert_eq!(text, format!("{}---\n{}", policy("a", ALLOW), policy("b", ALLOW)));
    }

    #[test]
    fn new_policy_is_a_new_file_and_never_replaces_anything() {
        let (place, folder) =
            folder(&[("shop-b.yaml", "# mine\n".to_owned()), ("a.yaml", policy("a", DENY))]);
        assert_eq!(folder.edit(&new(policy("a", ALLOW), None)).unwrap_err().status, 409);
        assert_eq!(folder.edit(&new(policy("b", DENY), None)).unwrap_err().status, 409);
        for name in ["../b.yaml", "/tmp/b.yaml", "x/b.yaml", ".b.yaml", "b.txt", ".."] {
            assert_eq!(folder.edit(&new(policy("b", DENY), Some(name))).unwrap_err().status, 422, "{name}");
        }
        folder.edit(&new(policy("b", DENY), Some("b.yaml"))).unwrap();
        assert_eq!(fs::read_to_string(place.path().join("b.yaml")).unwrap(), policy("b", DENY));
        folder.edit(&change(&folder, "b", None)).unwrap();
        assert!(!place.path().join("b.yaml").exists());
        assert_eq!(fs::read_to_string(place.path().join("shop-b.yaml")).unwrap(), "# mine\n");
    }

    #[test]
    fn item_of_a_list_is_found_and_not_edited() {
        let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: networking.k8s.io/v1\n  kind: NetworkPolicy\n  \
                    metadata: {name: a, namespace: shop}\n  spec: {podSelector: {}}\n";
        let (place, folder) = folder(&[("list.yaml", list.to_owned())]);
        let failure = folder.edit(&change(&folder, "a", Some(policy("a", ALLOW)))).unwrap_err();
        assert_eq!(failure.status, 422);
        assert!(failure.error.contains("list.yaml:4"), "{}", failure.error);
        assert_eq!(fs::read_to_string(place.path().join("list.yaml")).unwrap(), list);
    }

    #[test]
    fn invalid_text_is_refused_with_its_position() {
        let (_place, folder) = folder(&[]);
        let failure = folder.edit(&new(policy("a", "{podSelektor: {}}"), None)).unwrap_err();
        assert_eq!(failure.status, 422);
        assert!(failure.error.starts_with("line 4, column 8: "), "{}", failure.error);
        assert!(folder.files().is_empty());
    }

    #[test]
    fn objects_are_read_again_when_a_file_changes() {
        let (place, folder) = folder(&[("a.yaml", policy("a", DENY))]);
        let first = folder.read().unwrap();
        assert_eq!(folder.read().unwrap().version, first.version);
        fs::write(place.path().join("b.yaml"), policy("b", DENY)).unwrap();
        let second = folder.read().unwrap();
        assert!(second.version > first.version);
        assert_eq!((first.cluster.policies().count(), second.cluster.policies().count()), (1, 2));
    }
}
