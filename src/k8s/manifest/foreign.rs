//! What a repository's folders hold beside objects: files of other programs, templates of Helm, and what kustomize
//! builds from.
//!
//! The daemon and `lint` refuse such a text like any other that cannot be read. A command that only answers a question
//! leaves it out and says so. Either way an object of a kind that is read stays one, whatever is wrong with it: only a
//! text that cannot be one is left out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{assemble::FileContents, chunk::Chunk, object::KINDS};
use crate::k8s::{
    fault::{Fault, Problem},
    yaml::{
        node::{self, Value, YamlNode},
        path::{FieldPath, Position},
    },
};

/// Why a text is no object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// It says nothing of an object: the configuration of another program, or a list of changes.
    NoObject,
    /// It is a part of an object, to be merged into it.
    Patch,
}

/// The names that kustomize looks for in a folder.
const KUSTOMIZATIONS: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// Whether a document that could not be read as an object is none. `is_known` says whether a kind is read here.
///
/// An object that lost its kind, or whose `kind` is written `Kind`, is still an object.
#[must_use]
pub fn no_object(root: &YamlNode<'_>, is_known: impl Fn(&str) -> bool) -> Option<Foreign> {
    let is_part = |node: &YamlNode<'_>| {
        let has = |field: &str| node.get(field).is_some();
        let text = |field| node.get(field).and_then(YamlNode::as_str);
        let has_body = has("metadata") || has("spec") || has("items");
        let wrong_case = |field: &str| {
            node.entries().iter().any(|entry| entry.key != field && entry.key.eq_ignore_ascii_case(field))
        };
        let of_ours = |api: &str| KINDS.iter().any(|(known, ..)| *known == api);
        match (text("apiVersion"), text("kind")) {
            // Its kind or its apiVersion was recognised as a slip.
            (Some(_), Some(_)) => true,
            (Some(api), None) => wrong_case("kind") || of_ours(api) && has_body,
            (None, Some(kind)) => is_known(kind) && (has_body || wrong_case("apiVersion")),
            (None, None) => {
                has("metadata") && (has("spec") || has("items"))
                    || wrong_case("kind") && (has_body || wrong_case("apiVersion"))
            }
        }
    };
    let is_object = match &root.value {
        Value::Map(_) => is_part(root),
        // A list of objects without `kind: List`: someone means objects by it.
        Value::List(items) => items.iter().any(is_part),
        Value::Scalar(..) => false,
    };
    (!is_object).then_some(Foreign::NoObject)
}

/// Whether an object of a kind that is read is only a part of one, as kustomize merges it into the whole: it has a
/// directive of a strategic merge, or is a workload that no cluster would take, as it neither selects pods nor labels
/// them.
#[must_use]
pub fn patch(root: &YamlNode<'_>, is_workload: bool) -> Option<Foreign> {
    let spec = root.get("spec");
    let in_spec = |field: &str| spec.and_then(|spec| spec.get(field));
    let selects = in_spec("selector").is_some();
    let labels = in_spec("template").and_then(|template| template.get("metadata")?.get("labels"));
    let is_job =
        in_spec("jobTemplate").is_some() || root.get("kind").and_then(YamlNode::as_str) == Some("Job");
    let is_partial = is_workload && !is_job && !selects && labels.is_none();
    (is_partial || has_directive(root)).then_some(Foreign::Patch)
}

fn has_directive(root: &YamlNode<'_>) -> bool {
    let in_entries = |node: &YamlNode<'_>| node.entries().iter().any(|entry| entry.key == "$patch");
    in_entries(root) || root.get("spec").is_some_and(in_entries)
}

/// Whether a text may hold an object of a kind that is read, judged by its words alone: it cannot be parsed.
fn mentions_object(bytes: &[u8]) -> bool {
    // UTF-16, as PowerShell writes it, has a zero beside each letter.
    let bytes: Vec<u8> = bytes.iter().filter(|byte| **byte != 0).map(u8::to_ascii_lowercase).collect();
    let text = String::from_utf8_lossy(&bytes);
    let kinds: Vec<String> = KINDS.iter().map(|(_, kind, _)| kind.to_ascii_lowercase()).collect();
    text.match_indices("kind").any(|(at, word)| {
        let quote = ['"', '\''];
        let rest = text[at + word.len()..].trim_start_matches(quote).trim_start();
        let Some(value) = rest.strip_prefix(':') else { return false };
        let value = value.trim_start().trim_start_matches(quote);
        kinds.iter().any(|kind| value.starts_with(kind.as_str()))
    })
}

/// Whether a text that cannot be parsed is a template: a line or a value begins with `{{`, which no manifest has.
fn is_template(bytes: &[u8]) -> bool {
    String::from_utf8_lossy(bytes).lines().any(|line| {
        let line = line.trim_start();
        line.starts_with("{{") || line.contains(": {{") || line.contains("- {{")
    })
}

/// What is around the files that are read: the charts and kustomizations that they are part of.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// The files that a kustomization uses as patches, by canonical path.
    patches: BTreeSet<PathBuf>,
    /// The folders that kustomize builds from.
    kustomizations: BTreeSet<PathBuf>,
    /// The chart of each folder that was asked about.
    charts: HashMap<PathBuf, Option<PathBuf>>,
    /// The charts whose templates were left out, and how many files that were.
    templates: BTreeMap<PathBuf, usize>,
}

impl Surroundings {
    /// What is around these files.
    #[must_use]
    pub fn of(files: &[PathBuf]) -> Self {
        let mut surroundings = Self::default();
        let folders: BTreeSet<&Path> = files.iter().filter_map(|file| file.parent()).collect();
        for folder in folders {
            for name in KUSTOMIZATIONS {
                if let Ok(text) = fs::read_to_string(folder.join(name)) {
                    surroundings.read_kustomization(folder, &text);
                }
            }
        }
        surroundings
    }

    fn read_kustomization(&mut self, folder: &Path, text: &str) {
        let (documents, _) = node::parse(text);
        let Some(root) = documents.iter().find_map(|document| document.root.as_ref()) else { return };
        self.kustomizations.insert(folder.to_owned());
        for field in ["patches", "patchesStrategicMerge", "patchesJson6902"] {
            let Some(Value::List(items)) = root.get(field).map(|list| &list.value) else { continue };
            for item in items {
                // An item is a path, or names one; the text of a patch itself is no path of a file.
                let Some(path) = item.as_str().or_else(|| item.get("path")?.as_str()) else { continue };
                self.patches.extend(fs::canonicalize(folder.join(path)));
            }
        }
    }

    /// Removes from `contents` what is no object, and says what that was.
    pub fn leave_out(&mut self, file: &Path, bytes: &[u8], contents: &mut FileContents) -> Vec<Fault> {
        let note = |at: Position, text: String| {
            Fault::new(file.to_owned(), at, &Problem::note(FieldPath::root(), text), None)
        };
        let whole = |contents: &mut FileContents, why: &str| {
            *contents = FileContents::default();
            vec![note(Position::START, why.to_owned())]
        };
        if is_kustomization(file) {
            *contents = FileContents::default();
            return Vec::new();
        }
        if fs::canonicalize(file).is_ok_and(|same| self.patches.contains(&same)) {
            return whole(contents, "left out: it is a patch of a kustomization");
        }
        let broken =
            contents.unreadable.is_some() || contents.chunks.iter().any(|piece| piece.chunk.error.is_some());
        if let Some(chart) = self.chart_of(file) {
            let inside = file.strip_prefix(&chart).unwrap_or(file);
            let is_values = inside.components().count() == 1
                && inside.to_string_lossy().to_ascii_lowercase().contains("values");
            let braces = bytes.windows(2).any(|pair| pair == b"{{");
            if is_values {
                return whole(contents, "left out: it is for the templates of a Helm chart");
            }
            if inside.starts_with("templates") && braces {
                *contents = FileContents::default();
                *self.templates.entry(chart).or_default() += 1;
                return Vec::new();
            }
        }
        if broken && is_template(bytes) {
            let why = "left out: it is a template, as of Helm: render it, as in `helm template CHART`, and pipe that \
                       into this command, with - for its name";
            return whole(contents, why);
        }
        if broken && !mentions_object(bytes) {
            return whole(contents, "left out: it is not a Kubernetes object");
        }
        let mut notes = Vec::new();
        for piece in &mut contents.chunks {
            if piece.chunk.manifests.iter().all(|manifest| manifest.foreign.is_none()) {
                continue;
            }
            let (foreign, own): (Vec<_>, Vec<_>) =
                piece.chunk.manifests.iter().cloned().partition(|manifest| manifest.foreign.is_some());
            notes.extend(foreign.iter().map(|manifest| {
                let at = manifest.name_at.after(piece.lines, piece.columns);
                let text = match manifest.foreign {
                    Some(Foreign::Patch) => {
                        "left out: it is only a part of an object, as patches of kustomize are"
                    }
                    _ => "left out: it is not a Kubernetes object",
                };
                note(at, text.to_owned())
            }));
            let (skipped, error) = (piece.chunk.skipped.clone(), piece.chunk.error.clone());
            piece.chunk = Arc::new(Chunk { manifests: own, skipped, error });
        }
        notes
    }

    /// Notes on the folders whose objects are made by another program from what is read here.
    #[must_use]
    pub fn builds(self) -> Vec<Fault> {
        let note = |file: PathBuf, text: String| {
            Fault::new(file, Position::START, &Problem::note(FieldPath::root(), text), None)
        };
        let kustomizations = self.kustomizations.into_iter().map(|folder| {
            let text = format!(
                "left out: the files beside it are read as they are, without what kustomize makes of them: for that, \
                 name - and pipe `kubectl kustomize {}` into this command",
                quoted(&folder)
            );
            let names = KUSTOMIZATIONS.map(|name| folder.join(name));
            let file = names.iter().find(|name| name.is_file()).unwrap_or(&folder);
            note(file.clone(), text)
        });
        let charts = self.templates.into_iter().map(|(chart, count)| {
            let text = format!(
                "left out {count} {} of this chart: for what it renders, name - and pipe `helm template {}` into this command",
                if count == 1 { "template" } else { "templates" },
                quoted(&chart)
            );
            note(chart.join("Chart.yaml"), text)
        });
        kustomizations.chain(charts).collect()
    }

    /// The folder of the innermost Helm chart that a file is in.
    fn chart_of(&mut self, file: &Path) -> Option<PathBuf> {
        let folder = file.parent()?.to_owned();
        let find = || {
            let mut around = folder.ancestors();
            around.find(|folder| folder.join("Chart.yaml").is_file()).map(Path::to_owned)
        };
        self.charts.entry(folder.clone()).or_insert_with(find).clone()
    }
}

fn is_kustomization(file: &Path) -> bool {
    file.file_name().is_some_and(|name| KUSTOMIZATIONS.iter().any(|known| name == *known))
}

/// A folder as a shell reads it; `.` for the one that it runs in.
fn quoted(folder: &Path) -> String {
    let text = folder.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%=:,".contains(c);
    match text.as_str() {
        "" => ".".to_owned(),
        plain_text if plain_text.chars().all(plain) => text,
        _ => format!("'{}'", text.replace('\'', r"'\''")),
    }
}
