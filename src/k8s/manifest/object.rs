//! One object of a manifest: its kind, its faults, and its value in the model.

use std::sync::Arc;

use k8s_openapi::api::{apps, batch, core, networking};
use serde::de::DeserializeOwned;

use super::{Options, deserialize::ObjectReader, foreign, hints, source::Written};
use crate::{
    k8s::{
        convert::{self, Conversion, DEFAULT_NAMESPACE, Origin, network_policy},
        fault::{ObjectId, Problem, Severity},
        intern::Interner,
        types,
        yaml::{
            node::{RepeatedKey, Value, YamlNode},
            path::{FieldPath, Position},
        },
    },
    model::{Namespace, NetworkPolicy, Pod},
};

/// An object in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A pod, or one pod of a workload.
    Pod(Pod),
    /// A policy.
    Policy(NetworkPolicy),
}

/// One object that was read.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Which object it is; `None` if that is not known.
    pub id: Option<ObjectId>,
    /// Where its name is, in its document.
    pub name_at: Position,
    /// Where its namespace is, in its document.
    pub namespace_at: Position,
    /// The object, if it has no errors.
    pub object: Option<Arc<Object>>,
    /// The stand-in for it, if it is a policy with errors that still says which pods it selects.
    pub stand_in: Option<NetworkPolicy>,
    /// What is wrong with it.
    pub problems: Vec<(Position, Problem)>,
    /// Why it may be left out where files of other programs are.
    pub foreign: Option<foreign::Foreign>,
    /// Its text as a tree, with [`Options::sources`].
    pub written: Option<Arc<Written>>,
}

impl Manifest {
    /// An object that cannot be identified.
    fn unnamed(at: Position, problem: (Position, Problem)) -> Self {
        let (name_at, namespace_at) = (at, at);
        Self {
            id: None,
            name_at,
            namespace_at,
            object: None,
            stand_in: None,
            problems: vec![problem],
            foreign: None,
            written: None,
        }
    }
}

/// The contents of a document.
#[derive(Debug, Default)]
pub struct Contents {
    /// The objects of kinds that matter here.
    pub manifests: Vec<Manifest>,
    /// Objects of other kinds, by `apiVersion/kind`.
    pub skipped: Vec<String>,
}

/// A kind that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::k8s) enum ManifestKind {
    Namespace,
    Pod,
    NetworkPolicy,
    Workload,
    List,
}

/// Every kind that is read, with its apiVersion.
pub(in crate::k8s) const KINDS: [(&str, &str, ManifestKind); 10] = [
    ("v1", "Namespace", ManifestKind::Namespace),
    ("v1", "Pod", ManifestKind::Pod),
    ("networking.k8s.io/v1", "NetworkPolicy", ManifestKind::NetworkPolicy),
    ("apps/v1", "Deployment", ManifestKind::Workload),
    ("apps/v1", "StatefulSet", ManifestKind::Workload),
    ("apps/v1", "DaemonSet", ManifestKind::Workload),
    ("apps/v1", "ReplicaSet", ManifestKind::Workload),
    ("batch/v1", "Job", ManifestKind::Workload),
    ("batch/v1", "CronJob", ManifestKind::Workload),
    ("v1", "List", ManifestKind::List),
];

/// Reads the object, or list of objects, in `root`. `item` is the apiVersion and the kind for an item of a list that
/// does not state them itself.
#[must_use]
pub fn read(
    root: &YamlNode<'_>,
    repeated: &[RepeatedKey],
    item: Option<(&str, &str)>,
    options: Options,
    names: &mut Interner,
) -> Contents {
    let mut reader = Reader { repeated, options, names, contents: Contents::default() };
    reader.object(root, &FieldPath::root(), item);
    reader.contents
}

struct Reader<'r> {
    repeated: &'r [RepeatedKey],
    options: Options,
    names: &'r mut Interner,
    contents: Contents,
}

/// The kind that an object states.
enum Recognized {
    Known(&'static str, ManifestKind),
    Other(String),
    Wrong(Problem),
}

impl Reader<'_> {
    /// Reads `root`, which is at `at` in its document; `item` is the kind of its list's items.
    fn object(&mut self, root: &YamlNode<'_>, at: &FieldPath, item: Option<(&str, &str)>) {
        match report(root, item) {
            Recognized::Known(_, ManifestKind::List) => self.list(root, at),
            Recognized::Known(kind, ManifestKind::Workload) if !self.options.workloads => {
                let api = root.get("apiVersion").and_then(YamlNode::as_str).unwrap_or_default();
                self.contents.skipped.push(format!("{api}/{kind}"));
            }
            Recognized::Known(name, kind) => {
                let manifest = self.known(root, at, name, kind);
                let foreign = foreign::patch(root, kind == ManifestKind::Workload);
                let is_policy = kind == ManifestKind::NetworkPolicy;
                let written = self.options.sources.then(|| Arc::new(Written::of(root, is_policy, at)));
                self.contents.manifests.push(Manifest { foreign, written, ..manifest });
            }
            Recognized::Other(kind) => self.contents.skipped.push(kind),
            Recognized::Wrong(problem) => {
                let place = root.position(&problem.path);
                let problem = Problem { path: at.join(&problem.path), ..problem };
                let foreign =
                    foreign::no_object(root, |kind| KINDS.iter().any(|(_, known, _)| *known == kind));
                let manifest = Manifest::unnamed(root.at, (place, problem));
                self.contents.manifests.push(Manifest { foreign, ..manifest });
            }
        }
    }

    fn list(&mut self, root: &YamlNode<'_>, at: &FieldPath) {
        let text = |field| root.get(field).and_then(YamlNode::as_str).unwrap_or_default();
        // The items of a PodList need not state that they are pods.
        let item = text("kind").strip_suffix("List").filter(|kind| !kind.is_empty());
        let item = item.map(|kind| (text("apiVersion"), kind));
        let problem = match root.get("items").map(|items| &items.value) {
            Some(Value::List(items)) => {
                for (index, node) in items.iter().enumerate() {
                    self.object(node, &at.key("items").index(index), item);
                }
                return;
            }
            None => Problem::error(at.clone(), "a list without items"),
            Some(Value::Scalar(..)) if root.get("items").is_some_and(YamlNode::is_null) => return,
            Some(_) => Problem::of_field(at.key("items"), "must be a list"),
        };
        let place = root.get("items").map_or(root.at, |items| items.at);
        self.contents.manifests.push(Manifest::unnamed(root.at, (place, problem)));
    }

    fn known(
        &mut self,
        root: &YamlNode<'_>,
        at: &FieldPath,
        name: &'static str,
        kind: ManifestKind,
    ) -> Manifest {
        use apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
        match (name, kind) {
            (_, ManifestKind::Namespace) => self
                .evaluate_object::<core::v1::Namespace, types::Namespace, _>(
                    root,
                    at,
                    name,
                    convert::namespace,
                )
                .into_manifest(Object::Namespace),
            (_, ManifestKind::Pod) => self
                .evaluate_object::<core::v1::Pod, types::Pod, _>(root, at, name, convert::pod)
                .into_manifest(Object::Pod),
            (_, ManifestKind::NetworkPolicy) => self.policy(root, at, name),
            ("Deployment", _) => self.workload::<Deployment>(root, at, name),
            ("StatefulSet", _) => self.workload::<StatefulSet>(root, at, name),
            ("DaemonSet", _) => self.workload::<DaemonSet>(root, at, name),
            ("ReplicaSet", _) => self.workload::<ReplicaSet>(root, at, name),
            ("Job", _) => self.workload::<batch::v1::Job>(root, at, name),
            (_, ManifestKind::Workload | ManifestKind::List) => {
                self.workload::<batch::v1::CronJob>(root, at, name)
            }
        }
    }

    fn workload<Full: DeserializeOwned>(
        &mut self,
        root: &YamlNode<'_>,
        at: &FieldPath,
        name: &'static str,
    ) -> Manifest {
        let mut parsed = self.evaluate_object::<Full, types::Workload, _>(root, at, name, convert::workload);
        if let Some(pod) = &mut parsed.converted {
            pod.workload = Some(self.names.workload(name, &pod.key.name));
        }
        parsed.into_manifest(Object::Pod)
    }

    fn policy(&mut self, root: &YamlNode<'_>, at: &FieldPath, name: &'static str) -> Manifest {
        use networking::v1::NetworkPolicy;
        let parsed = self.evaluate_object::<NetworkPolicy, types::NetworkPolicy, _>(
            root,
            at,
            name,
            |object, names| network_policy::network_policy(object, Origin::Manifest, names),
        );
        let stand_in = match (&parsed.converted, &parsed.read) {
            (None, Some(object)) => {
                let problems: Vec<Problem> =
                    parsed.problems.iter().map(|(_, problem)| problem.clone()).collect();
                network_policy::stand_in(object, Origin::Manifest, &problems, self.names)
            }
            _ => None,
        };
        Manifest { stand_in, ..parsed.into_manifest(Object::Policy) }
    }

    /// Reads `root` twice: as the `Full` type of the API to find what that does not know, and as the `Slim` one to get
    /// the fields that are used.
    fn evaluate_object<Full: DeserializeOwned, Slim: DeserializeOwned, T>(
        &mut self,
        root: &YamlNode<'_>,
        at: &FieldPath,
        kind: &'static str,
        convert: fn(&Slim, &mut Interner) -> Conversion<T>,
    ) -> ParsedObject<Slim, T> {
        let reading = ObjectReader::new(root);
        reading.check::<Full>();
        let read = reading.read::<Slim>();
        let (problems, unknown) = reading.finish();
        let mut placed: Vec<(Position, Problem)> =
            problems.into_iter().map(|problem| (root.position(&problem.path), problem)).collect();
        let unknown = unknown.iter().filter(|unknown| !is_former_status(&unknown.path, root));
        let unknown = unknown.map(|unknown| hints::explain(unknown, root));
        placed.extend(unknown.map(|problem| (root.key_position(&problem.path), problem)));
        for repeated in self.repeated {
            let within = repeated.path.steps().strip_prefix(at.steps());
            if let (Some(steps), Some((_, key))) = (within, repeated.path.split_key()) {
                let text = format!("the key {key:?} stands twice here: first at {}", repeated.first);
                let problem = Problem::error(steps.iter().cloned().collect(), text);
                placed.push((repeated.again, problem));
            }
        }
        let (mut converted, before) = (None, placed.len());
        if let Some(read) = &read {
            let Conversion { readable, problems } = convert(read, self.names);
            converted = readable;
            for problem in problems {
                // A field that was skipped for its type is not missing.
                if !placed.iter().take(before).any(|(_, known)| known.path == problem.path) {
                    placed.push((root.position(&problem.path), problem));
                }
            }
        }
        if placed.iter().any(|(_, problem)| problem.severity == Severity::Error) {
            converted = None;
        }
        placed.sort_by_key(|(at, _)| *at);
        let position = |field| root.position(&FieldPath::of(&["metadata", field]));
        ParsedObject {
            id: self.identify(root, kind),
            name_at: position("name"),
            namespace_at: position("namespace"),
            read,
            converted,
            problems: placed,
            prefix: at.clone(),
        }
    }

    /// Which object it is, as far as that is known without trusting the rest of it.
    fn identify(&mut self, root: &YamlNode<'_>, kind: &'static str) -> Option<ObjectId> {
        let text = |field| {
            let node = root.get("metadata")?.get(field)?;
            node.as_str().filter(|text| !text.is_empty())
        };
        let name = self.names.string(text("name")?);
        let namespace: Option<Arc<str>> =
            (kind != "Namespace").then(|| self.names.string(text("namespace").unwrap_or(DEFAULT_NAMESPACE)));
        Some(ObjectId { kind, namespace, name })
    }
}

/// An object that was read, before the kinds are handled separately.
struct ParsedObject<Slim, T> {
    id: Option<ObjectId>,
    name_at: Position,
    namespace_at: Position,
    read: Option<Slim>,
    converted: Option<T>,
    problems: Vec<(Position, Problem)>,
    prefix: FieldPath,
}

impl<Slim, T> ParsedObject<Slim, T> {
    fn into_manifest(self, wrap: fn(T) -> Object) -> Manifest {
        let prefix = self.prefix;
        let placed = |(at, problem): (Position, Problem)| {
            let path = prefix.join(&problem.path);
            (at, Problem { path, ..problem })
        };
        Manifest {
            id: self.id,
            name_at: self.name_at,
            namespace_at: self.namespace_at,
            object: self.converted.map(|object| Arc::new(wrap(object))),
            stand_in: None,
            problems: self.problems.into_iter().map(placed).collect(),
            foreign: None,
            written: None,
        }
    }
}

/// Whether it is the `status` that a `NetworkPolicy` had up to Kubernetes 1.27, and that code generators still write. It
/// never said anything about packets.
fn is_former_status(path: &FieldPath, root: &YamlNode<'_>) -> bool {
    let status = root.get("status");
    *path == FieldPath::of(&["status"])
        && status.is_some_and(|status| {
            let is_mapping = matches!(status.value, Value::Map(_));
            status.is_null() || is_mapping && status.entries().iter().all(|entry| entry.key == "conditions")
        })
}

fn report(root: &YamlNode<'_>, item: Option<(&str, &str)>) -> Recognized {
    let text = |field: &str, default: Option<&str>| match root.get(field) {
        None => default.map(str::to_owned).ok_or_else(|| hints::missing(field, root)),
        Some(node) => match node.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(Problem::of_field(FieldPath::of(&[field]), "must be text")),
        },
    };
    let kind = text("kind", item.map(|(_, kind)| kind));
    let api = text("apiVersion", item.map(|(api, _)| api));
    match (api, kind) {
        (Ok(api), Ok(kind)) => classify(&api, &kind),
        (_, Err(problem)) | (Err(problem), _) => Recognized::Wrong(problem),
    }
}

/// Whether `kind` of `api` is read, is ignored here, or is a typo of one that is read.
fn classify(api: &str, kind: &str) -> Recognized {
    if let Some((_, name, known)) = KINDS.iter().find(|(a, k, _)| *a == api && *k == kind) {
        return Recognized::Known(name, *known);
    }
    // The API server returns a list of pods as a PodList.
    let item = kind.strip_suffix("List").filter(|item| !item.is_empty());
    if item.is_some_and(|item| KINDS.iter().any(|(a, k, _)| *a == api && *k == item)) {
        return Recognized::Known("List", ManifestKind::List);
    }
    let home = KINDS.iter().find(|(_, k, _)| *k == kind).map(|(home, ..)| *home);
    if let Some(home) = home.filter(|home| is_slip_of(api, home)) {
        let text = format!("no cluster serves {kind} as {api:?} (any more): write {home}");
        return Recognized::Wrong(Problem::error(FieldPath::of(&["apiVersion"]), text));
    }
    let of_api: Vec<&str> = KINDS.iter().filter(|(a, ..)| *a == api).map(|(_, k, _)| *k).collect();
    let same = |known: &&str| known.eq_ignore_ascii_case(kind) || plural(known).eq_ignore_ascii_case(kind);
    let slip = of_api.iter().copied().find(same).or_else(|| {
        // Short kinds are too similar to others: Node is two letters away from Pod.
        let long: Vec<&str> = of_api.iter().copied().filter(|known| known.len() > 6).collect();
        hints::nearest(kind, &long)
    });
    match slip {
        Some(known) => {
            let text = format!("there is no kind {kind:?} in {api}: did you mean {known}?");
            Recognized::Wrong(Problem::error(FieldPath::of(&["kind"]), text))
        }
        None => Recognized::Other(format!("{api}/{kind}")),
    }
}

fn plural(kind: &str) -> String {
    kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"))
}

/// Whether `api` is an old or a mistyped form of `home`, and not another vendor's API.
fn is_slip_of(api: &str, home: &str) -> bool {
    let group = |api: &str| api.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
    let (group, home) = (group(api), group(home));
    group == home || !group.contains('.') || hints::nearest(&group, &[&home]).is_some()
}
