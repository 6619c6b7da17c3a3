//! `towpath lint`: what is wrong with manifests, and what they probably do not mean.

mod report;
mod sarif;
mod services;
mod written;

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use self::report::{Item, Report};
use super::{
    ClusterArgs, Ended, json,
    objects::{no_objects, over_budget},
    print,
};
use crate::{
    k8s::{
        fault::{Fault, ObjectId, Problem, Severity},
        manifest::{Loaded, Options, assemble::Key, load, load_text, source::Source},
        watch,
        yaml::path::FieldPath,
    },
    model::{Cluster, Direction},
    policy::{
        budget::{Budgets, Closed},
        findings::{self, About, Code, Finding, Knowledge, Level, Part, Place},
    },
};

/// The annotation that silences findings about its object.
const IGNORE: &str = "towpath.dev/lint-ignore";

#[derive(Debug, Args)]
pub(super) struct LintArgs {
    /// Files, folders (every .yaml, .yml and .json below them) or - for standard input. Without it the API server is
    /// asked.
    #[arg(value_name = "PATH", conflicts_with_all = ["kubeconfig", "context"])]
    paths: Vec<PathBuf>,
    /// The same as PATH.
    #[arg(short, long = "file", value_name = "PATH", env = "TOWPATH_FILE", hide = true)]
    file: Vec<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// A kind of finding to leave out, by its code (TP101) or name; may be repeated. Errors cannot be left out.
    #[arg(long, value_name = "CODE", value_parser = ignorable, env = "TOWPATH_IGNORE", value_delimiter = ',')]
    ignore: Vec<Code>,
    /// A block of pod addresses, to find blocks in policies that cover pods; may be repeated.
    #[arg(long = "pod-cidr", value_name = "CIDR", env = "TOWPATH_POD_CIDR", value_delimiter = ',')]
    pod_cidrs: Vec<IpNet>,
    /// Exit with status 1 if there are warnings, too.
    #[arg(long, env = "TOWPATH_WARNINGS_AS_ERRORS")]
    warnings_as_errors: bool,
    /// The output format.
    #[arg(short, long, value_enum, default_value_t = Format::Text, env = "TOWPATH_OUTPUT")]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people: a line for each finding.
    Text,
    /// For scripts.
    Json,
    /// For code review tools: SARIF 2.1.0.
    Sarif,
}

fn ignorable(text: &str) -> Result<Code, String> {
    match text.parse::<Code>() {
        Ok(code) if code.level() == Level::Error => Err(format!("{code} is an error: it cannot be left out")),
        Ok(code) => Ok(code),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn lint(args: &LintArgs) -> Result<(), Ended> {
    let knowledge = Knowledge { pod_cidrs: args.pod_cidrs.clone(), ..Knowledge::default() };
    let ignored: BTreeSet<Code> = args.ignore.iter().copied().collect();
    let files = super::named_files(&args.file, &args.paths);
    let report = if files.is_empty() {
        of_cluster(&args.cluster, &knowledge, &ignored)?
    } else {
        of_files(&files, &knowledge, &ignored)?
    };
    match args.output {
        Format::Text => print(&report.text())?,
        Format::Json => print(&json(&report.json())?)?,
        Format::Sarif => print(&json(&sarif::log(&report))?)?,
    }
    let [errors, warnings, _] = report.counts();
    if errors > 0 || args.warnings_as_errors && warnings > 0 { Err(Ended::No) } else { Ok(()) }
}

/// How manifests are read for this command: strictly, and with everything that a finding needs to say where it is.
const OPTIONS: Options =
    Options { workloads: true, foreign: crate::k8s::manifest::ForeignTexts::Refuse, sources: true };

/// Checks files.
///
/// # Errors
/// A path that cannot be read, or paths without any object.
fn of_files(paths: &[PathBuf], knowledge: &Knowledge, ignored: &BTreeSet<Code>) -> Result<Report, Ended> {
    let loaded = load(paths, OPTIONS)?;
    if loaded.is_empty() {
        return Err(no_objects(paths));
    }
    Ok(of_loaded(&loaded, knowledge, ignored))
}

/// Checks one text as if it were the file `name`; the codes of what is found, each with its line.
#[must_use]
pub fn codes_of_text(name: &std::path::Path, text: &str, pod_cidrs: &[IpNet]) -> Vec<(Code, String)> {
    let loaded = load_text(name, text, OPTIONS);
    let knowledge = Knowledge { pod_cidrs: pod_cidrs.to_vec(), ..Knowledge::default() };
    let report = of_loaded(&loaded, &knowledge, &BTreeSet::new());
    report.items.iter().map(|item| (item.code, item.line())).collect()
}

fn of_loaded(loaded: &Loaded, knowledge: &Knowledge, ignored: &BTreeSet<Code>) -> Report {
    let knowledge = Knowledge {
        undeclared: loaded.undeclared.clone(),
        services: services::of(&loaded.services),
        ..knowledge.clone()
    };
    let cluster = loaded.cluster();
    let mut silenced = Silenced::of(loaded, ignored);
    let mut items: Vec<Item> =
        loaded.faults.iter().map(|fault| Item::new(code_of(fault), fault.clone())).collect();
    items.append(&mut silenced.unknown);
    for source in policies(loaded) {
        items.extend(written::findings(source).into_iter().map(|(code, fault)| Item::new(code, fault)));
    }
    let places = Places::of(loaded);
    let found = findings::find(&cluster, &knowledge);
    items.extend(found.found.iter().map(|finding| places.item(finding)));
    items.extend(budgets(&cluster, &places));
    items.retain(|item| item.fault.is_error() || !silenced.is_silenced(item));
    Report::new(items, found.omitted)
}

/// Checks the objects of a cluster: they have no lines, and their annotations are not read.
fn of_cluster(args: &ClusterArgs, knowledge: &Knowledge, ignored: &BTreeSet<Code>) -> Result<Report, Ended> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (cluster, refusals) = runtime
        .block_on(watch::snapshot(&args.access()))
        .map_err(|error| anyhow::anyhow!("no objects: {error}. For objects of files, name the files"))?;
    // Without the right to list Services, their ports are not compared.
    let services = runtime.block_on(watch::services(&args.access())).unwrap_or_else(|error| {
        eprintln!("note: checked without Services, which cannot be listed: {error}");
        Vec::new()
    });
    let knowledge = Knowledge { services: services::of(&services), ..knowledge.clone() };
    let places = Places::default();
    let refused = refusals.into_iter().map(|refusal| {
        let fault = Fault::new(PathBuf::new(), NOWHERE, &refusal.problem, refusal.object);
        Item::new(code_of(&fault), fault)
    });
    let mut items: Vec<Item> = refused.collect();
    let found = findings::find(&cluster, &knowledge);
    items.extend(found.found.iter().map(|finding| places.item(finding)));
    items.extend(budgets(&cluster, &places));
    items.retain(|item| item.fault.is_error() || !ignored.contains(&item.code));
    Ok(Report::new(items, found.omitted))
}

/// The position of what is in no file.
const NOWHERE: crate::k8s::yaml::path::Position = crate::k8s::yaml::path::Position { line: 0, column: 0 };

fn policies(loaded: &Loaded) -> impl Iterator<Item = &Source> {
    loaded.sources.iter().filter(|(key, _)| matches!(key, Key::Policy(_))).map(|(_, source)| source)
}

/// The code of what the reader of manifests found.
fn code_of(fault: &Fault) -> Code {
    let ends_with = |field: &str| fault.path.ends_with(field);
    match fault.severity {
        Severity::Error => Code::InvalidObject,
        Severity::Note => Code::UndeclaredNamespace,
        Severity::Warning if ends_with("metadata.name") => Code::SameName,
        Severity::Warning if ends_with("spec.ingress") || ends_with("spec.egress") => Code::RulesWithoutType,
        Severity::Warning => Code::HostBits,
    }
}

fn budgets(cluster: &Cluster, places: &Places<'_>) -> Vec<Item> {
    let over = over_budget(cluster, &Budgets::default());
    let item = |over: &crate::policy::budget::OverBudget| {
        let about = match &over.closed {
            Closed::Policy(key) => About::Policy(key.clone()),
            Closed::Namespace(name) => About::Namespace(name.clone()),
        };
        let text = format!("with the default budgets {over}");
        let code = Code::OverBudget;
        places.item(&Finding { code, level: code.level(), about, place: Place::Name, text })
    };
    over.iter().map(item).collect()
}

/// What is silenced: everywhere, and by an annotation on an object.
struct Silenced<'a> {
    everywhere: &'a BTreeSet<Code>,
    by_object: HashMap<Key, BTreeSet<Code>>,
    /// Annotations with codes that do not exist.
    unknown: Vec<Item>,
}

impl<'a> Silenced<'a> {
    fn of(loaded: &Loaded, everywhere: &'a BTreeSet<Code>) -> Self {
        let mut silenced = Self { everywhere, by_object: HashMap::new(), unknown: Vec::new() };
        for (key, source) in &loaded.sources {
            let Some(text) = source.written.annotation(IGNORE) else { continue };
            let codes = silenced.by_object.entry(key.clone()).or_default();
            for word in text.split([',', ' ']).filter(|word| !word.is_empty()) {
                match ignorable(word) {
                    Ok(code) => drop(codes.insert(code)),
                    Err(why) => {
                        let path = FieldPath::of(&["metadata", "annotations", IGNORE]);
                        let fault = source.fault(&Problem::warning(path, why));
                        silenced.unknown.push(Item::new(Code::UnknownCode, fault));
                    }
                }
            }
        }
        silenced
    }

    fn is_silenced(&self, item: &Item) -> bool {
        let by_object = || {
            let key = item.fault.object.as_ref().map(Key::of)?;
            self.by_object.get(&key)
        };
        self.everywhere.contains(&item.code) || by_object().is_some_and(|codes| codes.contains(&item.code))
    }
}

/// Where the objects are.
#[derive(Default)]
struct Places<'l> {
    sources: HashMap<&'l Key, &'l Source>,
    /// The first object in each namespace.
    in_namespace: HashMap<&'l str, &'l Source>,
}

impl<'l> Places<'l> {
    fn of(loaded: &'l Loaded) -> Self {
        let mut places = Self::default();
        for (key, source) in &loaded.sources {
            places.sources.insert(key, source);
            if let Some(namespace) = &source.id.namespace {
                let first = places.in_namespace.entry(namespace).or_insert(source);
                let place = |source: &'l Source| (&source.file, source.lines, source.item);
                if place(source) < place(first) {
                    *first = source;
                }
            }
        }
        places
    }

    /// A finding with its place.
    fn item(&self, finding: &Finding) -> Item {
        let severity = match finding.level {
            Level::Error => Severity::Error,
            Level::Warning => Severity::Warning,
            Level::Note => Severity::Note,
        };
        let (kind, namespace, name) = match &finding.about {
            About::Policy(key) => ("NetworkPolicy", Some(key.namespace.clone()), key.name.clone()),
            About::Namespace(name) => ("Namespace", None, name.clone()),
        };
        let id = ObjectId { kind, namespace, name };
        let problem = |path| Problem { severity, path, text: finding.text.clone() };
        let fault = if let Some(source) = self.sources.get(&Key::of(&id)) {
            source.fault(&problem(path(finding.place)))
        } else if let Some(source) = self.in_namespace.get(&*id.name) {
            // The namespace is not declared: what is in it has to do.
            let fault = source.fault(&problem(FieldPath::of(&["metadata", "namespace"])));
            Fault { object: Some(id), ..fault }
        } else {
            Fault::new(PathBuf::new(), NOWHERE, &problem(path(finding.place)), Some(id))
        };
        Item::new(finding.code, fault)
    }
}

/// The path of a place.
fn path(place: Place) -> FieldPath {
    let spec = || FieldPath::of(&["spec"]);
    let rules = |direction: Direction| spec().key(&direction.to_string());
    let peers = |direction| match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    match place {
        Place::Name => FieldPath::of(&["metadata", "name"]),
        Place::Namespace => FieldPath::of(&["metadata", "namespace"]),
        Place::Subject => spec().key("podSelector"),
        Place::Rules(direction) => rules(direction),
        Place::Rule(direction, rule) => rules(direction).index(rule),
        Place::Port(direction, rule, port) => rules(direction).index(rule).key("ports").index(port),
        Place::Peer(direction, rule, peer, part) => {
            let peer = rules(direction).index(rule).key(peers(direction)).index(peer);
            match part {
                Part::Whole => peer,
                Part::Pods => peer.key("podSelector"),
                Part::Namespaces => peer.key("namespaceSelector"),
                Part::Block => peer.key("ipBlock").key("cidr"),
                Part::Excepts => peer.key("ipBlock").key("except"),
            }
        }
    }
}

/// The page that explains a code.
fn help(code: Code) -> String {
    format!("{HOME}/blob/main/docs/lint.md#{}", code.id().to_ascii_lowercase())
}

/// The repository, whose pages explain the findings.
const HOME: &str = "https://github.com/towpath/towpath";

/// The name of an object, without its kind.
fn name_of(id: &ObjectId) -> String {
    match &id.namespace {
        Some(namespace) => format!("{namespace}/{}", id.name),
        None => id.name.to_string(),
    }
}
