use std::{
    os::unix::fs::symlink,
    sync::mpsc::{Receiver, channel},
};

use tempfile::TempDir;

use super::*;
use crate::model::{ObjectKey, Standing};

/// Long enough for an event to be told, short enough to wait for one that must not be.
const PATIENCE: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(200);

fn pod(name: &str, app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}\n\
         spec: {{nodeName: n1, containers: []}}\nstatus: {{podIP: 10.0.0.1}}\n"
    )
}

fn policy(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  podSelector: {{}}\n{rest}"
    )
}

struct Watched {
    folder: TempDir,
    news: Receiver<SourceEvent>,
    _source: FileSource,
}

impl Watched {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let (sender, news) = channel();
        let tell = move |event| drop(sender.send(event));
        let source = FileSource::open(&[folder.path().to_owned()], tell).unwrap();
        let watched = Self { folder, news, _source: source };
        loop {
            if let SourceEvent::Synced = watched.news.recv_timeout(PATIENCE).unwrap() {
                return watched;
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn changes(&self) -> Vec<Change> {
        loop {
            if let SourceEvent::Changes(changes) =
                self.news.recv_timeout(PATIENCE).expect("something changed")
            {
                return changes;
            }
        }
    }

    fn faults(&self) -> Vec<String> {
        loop {
            if let SourceEvent::Faults(faults) = self.news.recv_timeout(PATIENCE).expect("faults changed") {
                return faults
                    .iter()
                    .filter(|fault| fault.is_error())
                    .map(|fault| fault.text.clone())
                    .collect();
            }
        }
    }

    fn nothing_changes(&self) {
        let until = Instant::now() + QUIET;
        while let Ok(event) = self.news.recv_timeout(until.saturating_duration_since(Instant::now())) {
            assert!(!matches!(event, SourceEvent::Changes(_)), "{event:?}");
        }
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn app_of(changes: &[Change]) -> Vec<(String, String)> {
    let pods = changes.iter().filter_map(|change| match change {
        Change::SetPod(pod) => Some((pod.key.name.to_string(), pod.labels.get("app")?.to_owned())),
        _ => None,
    });
    pods.collect()
}

#[test]
fn an_edited_document_is_told_alone() {
    let both = format!("{}---\n{}", pod("a", "web"), pod("b", "web"));
    let watched = Watched::new(&[("pods.yaml", &both)]);
    fs::write(watched.path("pods.yaml"), format!("{}---\n{}", pod("a", "web"), pod("b", "api"))).unwrap();
    assert_eq!(app_of(&watched.changes()), [("b".to_owned(), "api".to_owned())]);
}

#[test]
fn a_file_that_is_open_for_writing_is_not_read_until_it_is_closed() {
    use std::io::Write as _;
    let watched = Watched::new(&[("pod.yaml", &pod("a", "web"))]);
    let mut file = fs::File::create(watched.path("pod.yaml")).unwrap();
    watched.nothing_changes();
    file.write_all(pod("a", "api").as_bytes()).unwrap();
    watched.nothing_changes();
    drop(file);
    assert_eq!(app_of(&watched.changes()), [("a".to_owned(), "api".to_owned())]);
}

#[test]
fn a_file_that_is_moved_in_place_counts_at_once_and_a_removed_one_no_more() {
    let watched = Watched::new(&[("pod.yaml", &pod("a", "web"))]);
    fs::write(watched.path(".next"), pod("a", "api")).unwrap();
    watched.nothing_changes();
    fs::rename(watched.path(".next"), watched.path("pod.yaml")).unwrap();
    assert_eq!(app_of(&watched.changes()), [("a".to_owned(), "api".to_owned())]);
    fs::remove_file(watched.path("pod.yaml")).unwrap();
    assert_eq!(watched.changes(), [Change::RemovePod(key("a"))]);
}

#[test]
fn a_file_that_cannot_be_read_any_more_keeps_its_objects() {
    let watched = Watched::new(&[("pod.yaml", &pod("a", "web"))]);
    fs::write(watched.path("pod.yaml"), "apiVersion: v1\nkind: [").unwrap();
    assert_eq!(watched.faults().len(), 1);
    watched.nothing_changes();
    fs::write(watched.path("pod.yaml"), pod("b", "web")).unwrap();
    let changes = watched.changes();
    assert!(changes.contains(&Change::RemovePod(key("a"))), "{changes:?}");
}

#[test]
fn a_policy_that_becomes_wrong_keeps_its_last_version_and_a_new_wrong_one_closes() {
    let watched = Watched::new(&[("policy.yaml", &policy("p", "  ingress: [{}]\n"))]);
    fs::write(watched.path("policy.yaml"), policy("p", "  ingress: [{ports: [{port: 0}]}]\n")).unwrap();
    assert_eq!(watched.faults().len(), 1);
    watched.nothing_changes();
    fs::write(watched.path("new.yaml"), policy("q", "  ingress: [{ports: [{port: 0}]}]\n")).unwrap();
    let changes = watched.changes();
    let [Change::SetPolicy(policy)] = &*changes else { panic!("{changes:?}") };
    assert_eq!((policy.standing, policy.ingress.as_deref()), (Standing::Refused, Some(&[][..])));
}

#[test]
fn new_folders_are_read_and_watched() {
    let watched = Watched::new(&[]);
    fs::create_dir(watched.path("sub")).unwrap();
    fs::write(watched.path("sub/pod.yaml"), pod("a", "web")).unwrap();
    assert_eq!(app_of(&watched.changes()), [("a".to_owned(), "web".to_owned())]);
    fs::write(watched.path("sub/pod.yaml"), pod("a", "api")).unwrap();
    assert_eq!(app_of(&watched.changes()), [("a".to_owned(), "api".to_owned())]);
}

#[test]
fn a_mounted_config_map_changes_as_a_whole() {
    let folder = TempDir::new().unwrap();
    for (generation, app) in [("..1", "web"), ("..2", "api")] {
        fs::create_dir(folder.path().join(generation)).unwrap();
        fs::write(folder.path().join(generation).join("pod.yaml"), pod("a", app)).unwrap();
    }
    symlink("..1", folder.path().join("..data")).unwrap();
    symlink("..data/pod.yaml", folder.path().join("pod.yaml")).unwrap();
    let (sender, news) = channel();
    let source =
        FileSource::open(&[folder.path().to_owned()], move |event| drop(sender.send(event))).unwrap();
    let watched = Watched { folder, news, _source: source };
    assert_eq!(app_of(&watched.changes()), [("a".to_owned(), "web".to_owned())]);
    symlink("..2", watched.path("..data_tmp")).unwrap();
    fs::rename(watched.path("..data_tmp"), watched.path("..data")).unwrap();
    assert_eq!(app_of(&watched.changes()), [("a".to_owned(), "api".to_owned())]);
}

#[test]
fn an_object_that_moves_to_another_file_is_not_told() {
    let watched = Watched::new(&[("a.yaml", &pod("a", "web"))]);
    fs::rename(watched.path("a.yaml"), watched.path("b.yaml")).unwrap();
    watched.nothing_changes();
}

#[test]
fn a_second_definition_is_a_fault_and_the_first_stays() {
    let watched = Watched::new(&[("a.yaml", &pod("a", "web"))]);
    fs::write(watched.path("b.yaml"), pod("a", "api")).unwrap();
    assert!(watched.faults().iter().any(|text| text.contains("already defined")));
    watched.nothing_changes();
}

#[test]
fn a_path_that_is_not_there_is_an_error_that_names_it() {
    let error = FileSource::open(&["/nonexistent/objects".into()], |_| ()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/objects"), "{error}");
}
