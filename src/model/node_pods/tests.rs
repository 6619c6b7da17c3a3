use super::*;
use crate::model::{Cluster, Phase};

const ADDRESS: [u8; 4] = [10, 244, 1, 7];

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn object(name: &str, uid: &str, address: Option<[u8; 4]>) -> Pod {
    Pod {
        node: Some("n1".into()),
        addresses: address.into_iter().map(IpAddr::from).collect(),
        labels: [("app", uid)].into_iter().collect(),
        uid: Some(uid.into()),
        ..Pod::new(key(name))
    }
}

fn attachment(name: &str, uid: &str, address: [u8; 4]) -> Attachment {
    Attachment {
        id: AttachmentId { container: format!("c-{uid}").into(), interface: "eth0".into() },
        pod: key(name),
        uid: Some(uid.into()),
        host_interfaces: vec!["veth1".into()],
        mac: None,
        addresses: vec![address.into()],
    }
}

/// The node's pods, and the cluster with all changes applied.
struct Node(NodePods, Cluster);

impl Node {
    fn new() -> Self {
        Self(NodePods::new("n1"), Cluster::new())
    }

    fn object(&mut self, change: Change) -> &mut Self {
        let mut changes = Vec::new();
        self.0.translate(change, &mut changes);
        self.apply(changes)
    }

    fn attach(&mut self, attachment: Attachment) -> &mut Self {
        let changes = self.0.attach(KnownAttachment { attachment, object: None });
        self.apply(changes)
    }

    fn detach(&mut self, uid: &str) -> &mut Self {
        let changes =
            self.0.detach(&AttachmentId { container: format!("c-{uid}").into(), interface: "eth0".into() });
        self.apply(changes)
    }

    fn apply(&mut self, changes: Vec<Change>) -> &mut Self {
        for change in changes {
            self.1.apply(change);
        }
        self
    }

    /// Each pod: its name, addresses, `app` label, and its sandbox.
    fn pods(&self) -> Vec<(String, Vec<String>, String, Option<SandboxState>)> {
        let text = |pod: &Arc<Pod>| {
            let addresses = pod.addresses.iter().map(ToString::to_string).collect();
            let app = pod.labels.get("app").unwrap_or("").to_owned();
            (pod.key.name.to_string(), addresses, app, pod.sandbox_state())
        };
        self.1.pods().map(text).collect()
    }
}

fn pod(
    name: &str,
    address: Option<&str>,
    app: &str,
    state: Option<SandboxState>,
) -> (String, Vec<String>, String, Option<SandboxState>) {
    (name.to_owned(), address.into_iter().map(str::to_owned).collect(), app.to_owned(), state)
}

const CURRENT: Option<SandboxState> = Some(SandboxState::Current);
const DETACHED: Option<SandboxState> = Some(SandboxState::Detached);
const UNKNOWN: Option<SandboxState> = Some(SandboxState::Unknown);

#[test]
fn pod_has_the_addresses_of_its_sandbox_before_its_object_reports_them() {
    let mut node = Node::new();
    node.object(Change::SetPod(object("db", "a", None))).attach(attachment("db", "a", ADDRESS));
    assert_eq!(node.pods(), [pod("db", Some("10.244.1.7"), "a", CURRENT)]);
    node.object(Change::SetPod(object("db", "a", Some([10, 244, 1, 99]))));
    assert_eq!(node.pods(), [pod("db", Some("10.244.1.7"), "a", CURRENT)], "the sandbox counts");
}

#[test]
fn order_of_object_and_attachment_does_not_matter() {
    let (mut one, mut other) = (Node::new(), Node::new());
    one.object(Change::SetPod(object("db", "a", None))).attach(attachment("db", "a", ADDRESS));
    other.attach(attachment("db", "a", ADDRESS));
    assert_eq!(other.pods(), [pod("db@a", Some("10.244.1.7"), "", UNKNOWN)]);
    other.object(Change::SetPod(object("db", "a", None)));
    assert_eq!(one.pods(), other.pods());
    assert_eq!(one.1.pods().collect::<Vec<_>>(), other.1.pods().collect::<Vec<_>>());
}

#[test]
fn pod_whose_object_was_deleted_stays_a_subject_and_is_no_peer_until_its_sandbox_is_gone() {
    let mut node = Node::new();
    node.object(Change::SetPod(object("db", "a", Some(ADDRESS)))).attach(attachment("db", "a", ADDRESS));
    node.object(Change::RemovePod(key("db")));
    assert_eq!(node.pods(), [pod("db@a", Some("10.244.1.7"), "a", DETACHED)]);
    let left = node.1.pods().next().unwrap().clone();
    assert!(left.is_subject() && !left.is_selectable());
    assert!(node.1.claimants(ADDRESS.into()).is_empty());
    node.detach("a");
    assert_eq!(node.pods(), []);
}

#[test]
fn successor_of_the_same_name_and_its_predecessor_are_two_pods() {
    let mut node = Node::new();
    node.object(Change::SetPod(object("db", "a", Some(ADDRESS)))).attach(attachment("db", "a", ADDRESS));
    node.object(Change::SetPod(object("db", "b", None)));
    let old = pod("db@a", Some("10.244.1.7"), "a", DETACHED);
    assert_eq!(node.pods(), [pod("db", None, "b", None), old.clone()]);
    node.attach(attachment("db", "b", [10, 244, 1, 8]));
    assert_eq!(node.pods(), [pod("db", Some("10.244.1.8"), "b", CURRENT), old]);
    node.detach("a");
    assert_eq!(node.pods(), [pod("db", Some("10.244.1.8"), "b", CURRENT)]);
}

#[test]
fn pod_whose_sandbox_is_gone_has_no_address_until_it_has_another_sandbox() {
    let mut node = Node::new();
    node.object(Change::SetPod(object("db", "a", Some(ADDRESS)))).attach(attachment("db", "a", ADDRESS));
    node.detach("a");
    assert_eq!(node.pods(), [pod("db", None, "a", None)]);
    node.object(Change::SetPod(Pod { terminating: true, ..object("db", "a", Some(ADDRESS)) }));
    assert_eq!(node.pods(), [pod("db", None, "a", None)], "the object still reports the old address");
    node.attach(attachment("db", "a", [10, 244, 1, 8]));
    assert_eq!(node.pods(), [pod("db", Some("10.244.1.8"), "a", CURRENT)]);
    node.detach("a").object(Change::SetPod(object("db", "b", Some([10, 244, 1, 9]))));
    assert_eq!(node.pods(), [pod("db", Some("10.244.1.9"), "b", None)], "another pod, never reported");
}

#[test]
fn finished_pod_stays_a_subject_while_it_has_a_sandbox() {
    let finished = Pod { phase: Phase::Failed, ..object("db", "a", Some(ADDRESS)) };
    let mut node = Node::new();
    node.object(Change::SetPod(finished.clone()));
    assert!(!node.1.pods().next().unwrap().is_subject());
    node.attach(attachment("db", "a", ADDRESS));
    let pod = node.1.pods().next().unwrap();
    assert!(pod.is_subject() && !pod.is_selectable());
}

#[test]
fn address_that_is_assigned_again_leaves_its_old_attachment() {
    let mut node = Node::new();
    node.object(Change::SetPod(object("db", "a", Some(ADDRESS)))).attach(attachment("db", "a", ADDRESS));
    node.object(Change::SetPod(object("web", "b", None))).attach(attachment("web", "b", ADDRESS));
    assert_eq!(node.pods(), [pod("db", None, "a", None), pod("web", Some("10.244.1.7"), "b", CURRENT)]);
    let both = Attachment {
        addresses: vec![[10, 244, 1, 8].into(), [10, 244, 1, 9].into()],
        ..attachment("x", "x", ADDRESS)
    };
    node.attach(both).attach(attachment("y", "y", [10, 244, 1, 9]));
    let others = [pod("x@x", Some("10.244.1.8"), "", UNKNOWN), pod("y@y", Some("10.244.1.9"), "", UNKNOWN)];
    assert_eq!(node.pods()[2..], others);
}

#[test]
fn objects_of_files_have_no_uid_and_are_found_by_name() {
    let mut node = Node::new();
    let from_file = Pod { uid: None, ..object("db", "a", Some(ADDRESS)) };
    node.object(Change::SetPod(from_file)).attach(attachment("db", "a", [10, 244, 1, 8]));
    assert_eq!(node.pods(), [pod("db", Some("10.244.1.8"), "a", CURRENT)]);
}

#[test]
fn pods_of_other_nodes_and_of_the_nodes_network_pass_unchanged() {
    let mut node = Node::new();
    let remote = Pod { node: Some("n2".into()), ..object("far", "a", Some(ADDRESS)) };
    let host = Pod { host_network: true, ..object("host", "b", Some([192, 168, 0, 1])) };
    for pod in [remote, host] {
        let mut changes = Vec::new();
        node.0.translate(Change::SetPod(pod.clone()), &mut changes);
        assert_eq!(changes, [Change::SetPod(pod)]);
    }
    let mut changes = Vec::new();
    node.0.translate(Change::RemovePod(key("far")), &mut changes);
    assert_eq!(changes, [Change::RemovePod(key("far"))]);
}

#[test]
fn pod_that_moves_to_another_node_in_name_leaves_its_sandbox_policed() {
    let mut node = Node::new();
    node.object(Change::SetPod(object("db", "a", Some(ADDRESS)))).attach(attachment("db", "a", ADDRESS));
    let moved = Pod { node: Some("n2".into()), ..object("db", "b", Some([10, 244, 2, 7])) };
    node.object(Change::SetPod(moved));
    let old = pod("db@a", Some("10.244.1.7"), "a", DETACHED);
    assert_eq!(node.pods(), [pod("db", Some("10.244.2.7"), "b", None), old.clone()]);
    node.object(Change::RemovePod(key("db")));
    assert_eq!(node.pods(), [old]);
}

#[test]
fn attachments_that_changed_are_taken_once() {
    let mut node = Node::new();
    let taken = |node: &mut Node| {
        let app = |pod: Option<Pod>| pod.map(|pod| pod.labels.get("app").unwrap_or("").to_owned());
        let changed = node.0.take_changed().into_iter();
        changed
            .map(|(id, state)| (id.container.to_string(), state.map(|known| app(known.object))))
            .collect::<Vec<_>>()
    };
    node.attach(attachment("db", "a", ADDRESS));
    assert_eq!(taken(&mut node), [("c-a".to_owned(), Some(None))]);
    node.object(Change::SetPod(object("db", "a", None)));
    assert_eq!(taken(&mut node), [("c-a".to_owned(), Some(Some("a".to_owned())))]);
    node.object(Change::SetPod(object("db", "a", None)));
    node.object(Change::SetPod(object("web", "b", None))).object(Change::RemovePod(key("db")));
    assert_eq!(taken(&mut node), [], "the last object is kept");
    node.attach(attachment("web", "b", ADDRESS));
    let [gone, come] = [("c-a".to_owned(), None), ("c-b".to_owned(), Some(Some("b".to_owned())))];
    assert_eq!(taken(&mut node), [gone, come]);
}

#[test]
fn new_address_of_an_object_counts_although_its_sandbox_was_not_reported() {
    let mut node = Node::new();
    node.object(Change::SetPod(object("db", "a", Some(ADDRESS)))).attach(attachment("db", "a", ADDRESS));
    node.detach("a").object(Change::SetPod(object("db", "a", Some([10, 244, 1, 9]))));
    assert_eq!(node.pods(), [pod("db", Some("10.244.1.9"), "a", None)], "it passed the gate by");
}

#[test]
fn end_of_a_predecessor_does_not_bring_back_the_address_of_its_successor() {
    let mut node = Node::new();
    node.object(Change::SetPod(object("db", "a", None))).attach(attachment("db", "a", ADDRESS));
    node.object(Change::SetPod(object("db", "b", Some([10, 244, 1, 8]))));
    node.attach(attachment("db", "b", [10, 244, 1, 8])).detach("b").detach("a");
    assert_eq!(node.pods(), [pod("db", None, "b", None)]);
}

/// A record can be as stale as an object: with both pods at the address, only what both allow passes.
#[test]
fn address_of_a_sandbox_that_another_object_reports_too_is_of_both_pods() {
    let mut node = Node::new();
    node.object(Change::SetPod(object("old", "a", Some(ADDRESS))));
    node.object(Change::SetPod(object("new", "b", None))).attach(attachment("new", "b", ADDRESS));
    let both = [pod("new", Some("10.244.1.7"), "b", CURRENT), pod("old", Some("10.244.1.7"), "a", None)];
    assert_eq!(node.pods(), both);
}

#[test]
fn attachment_without_a_uid_keeps_that_of_its_first_object() {
    let mut node = Node::new();
    node.attach(Attachment { uid: None, ..attachment("db", "a", ADDRESS) });
    node.object(Change::SetPod(object("db", "a", None)));
    node.object(Change::RemovePod(key("db"))).object(Change::SetPod(object("db", "b", None)));
    let both = [pod("db", None, "b", None), pod("db@a", Some("10.244.1.7"), "a", DETACHED)];
    assert_eq!(node.pods(), both);
    node.attach(Attachment { uid: None, ..attachment("db", "a", ADDRESS) });
    assert_eq!(node.pods(), both, "reported again");
}
