//! The pods of this node: their objects and their sandboxes, and what both mean together.
//!
//! An object says what a pod is, and its network plugin says where it is. The two come and go at different times: a
//! pod has addresses before its object reports them, and its processes may run on after its object was deleted. So a
//! pod of this node is:
//!
//! | object | sandbox | the pod |
//! |---|---|---|
//! | exists | not reported | as the object says, its addresses included |
//! | exists | exists | as the object says, with the addresses of the sandbox; a finished one stays isolated |
//! | exists | is gone | does not have the addresses of that sandbox, although the object reports them |
//! | is gone, or has not arrived | exists | policies apply to what was last known of it; it is nobody's peer |
//! | was never known | exists | allowed nothing |
//!
//! Two pods of one name, an old one that still runs and its successor, are told apart by their uids.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{Attachment, AttachmentId, Change, KnownAttachment, ObjectKey, Pod, Sandbox, SandboxState};

/// The pods of one node.
#[derive(Clone, Debug)]
pub struct NodePods {
    node: Arc<str>,
    /// The objects of pods that have a network of their own.
    objects: BTreeMap<ObjectKey, Pod>,
    attached: BTreeMap<AttachmentId, KnownAttachment>,
    /// The addresses of sandboxes that are gone, of pods whose objects may still report them.
    ended: BTreeMap<ObjectKey, Ended>,
    /// The keys under which the pods of each name are in the cluster.
    shown: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// The attachments that changed, or whose object did, since they were last taken.
    changed: BTreeSet<AttachmentId>,
}

/// The addresses that a pod had in sandboxes that are gone.
#[derive(Clone, Debug)]
struct Ended {
    uid: Option<Arc<str>>,
    addresses: Vec<IpAddr>,
}

impl KnownAttachment {
    /// Whether this is the object of its pod. Objects of files have no uid: then the name has to do.
    fn is_of(&self, object: &Pod) -> bool {
        let is_same = |uid: &Arc<str>| object.uid.as_ref().is_none_or(|other| other == uid);
        self.attachment.pod == object.key && self.attachment.uid.as_ref().is_none_or(is_same)
    }

    /// Takes in the object of its pod. A runtime that reports no uid gets that of the first object: a later pod of the
    /// same name is another one.
    fn know(&mut self, object: &Pod) {
        if self.attachment.uid.is_none() {
            self.attachment.uid.clone_from(&object.uid);
        }
        self.object = Some(object.clone());
    }
}

impl NodePods {
    /// No pods, on `node`.
    #[must_use]
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        Self {
            node: node.into(),
            objects: BTreeMap::new(),
            attached: BTreeMap::new(),
            ended: BTreeMap::new(),
            shown: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Replaces the change of an object by what it means for the cluster. Only pods of this node differ.
    pub fn translate(&mut self, change: Change, into: &mut Vec<Change>) {
        match change {
            Change::SetPod(pod) => {
                let is_local = pod.node.as_ref() == Some(&self.node) && !pod.host_network;
                let key = pod.key.clone();
                if !is_local && !self.objects.contains_key(&key) && !self.shown.contains_key(&key) {
                    into.push(Change::SetPod(pod));
                } else if is_local {
                    for (id, attached) in
                        self.attached.iter_mut().filter(|(_, attached)| attached.is_of(&pod))
                    {
                        if attached.object.as_ref() != Some(&pod) {
                            attached.know(&pod);
                            self.changed.insert(id.clone());
                        }
                    }
                    self.objects.insert(key.clone(), pod);
                    self.refresh(&key, into);
                } else {
                    self.objects.remove(&key);
                    self.refresh(&key, into);
                    into.push(Change::SetPod(pod));
                }
            }
            Change::RemovePod(key) if self.objects.remove(&key).is_some() => self.refresh(&key, into),
            other => into.push(other),
        }
    }

    /// A pod was attached; its object is that of the source of objects, if that has one. Returns what changes in the
    /// cluster.
    ///
    /// An address is assigned once: older attachments that have one of these addresses are gone, even if nobody said
    /// so.
    pub fn attach(&mut self, new: KnownAttachment) -> Vec<Change> {
        let KnownAttachment { attachment, object } = new;
        let mut names = BTreeSet::from([attachment.pod.clone()]);
        let id = attachment.id.clone();
        let before = self.attached.remove(&id);
        let mut ended = Vec::new();
        for (id, KnownAttachment { attachment: other, .. }) in &mut self.attached {
            let count = other.addresses.len();
            other.addresses.retain(|address| !attachment.addresses.contains(address));
            if other.addresses.len() < count {
                names.insert(other.pod.clone());
                self.changed.insert(id.clone());
                ended.extend(other.addresses.is_empty().then(|| id.clone()));
            }
        }
        for id in ended {
            self.end(&id);
        }
        names.extend(before.as_ref().map(|before| before.attachment.pod.clone()));
        let mut attached = KnownAttachment { attachment, object: None };
        let current = self.objects.get(&attached.attachment.pod).filter(|object| attached.is_of(object));
        let last = before.and_then(|before| before.object).filter(|last| attached.is_of(last));
        let read = object.filter(|object| attached.is_of(object));
        if let Some(object) = current.cloned().or(read).or(last) {
            attached.know(&object);
        }
        let is_of_it = |ended: &Ended| ended.uid == attached.attachment.uid;
        if self.ended.get(&attached.attachment.pod).is_some_and(is_of_it) {
            self.ended.remove(&attached.attachment.pod);
        }
        names.extend(self.reporting(&attached.attachment.addresses));
        self.changed.insert(id.clone());
        self.attached.insert(id, attached);
        self.refresh_all(names)
    }

    /// An attachment is gone. Returns what changes in the cluster.
    pub fn detach(&mut self, id: &AttachmentId) -> Vec<Change> {
        let addresses = self.attached.get(id).map(|attached| attached.attachment.addresses.clone());
        let name = self.end(id);
        let others = self.reporting(&addresses.unwrap_or_default());
        self.refresh_all(name.into_iter().chain(others).collect())
    }

    /// The names of objects that report one of these addresses.
    fn reporting(&self, addresses: &[IpAddr]) -> Vec<ObjectKey> {
        let reports = |object: &&Pod| object.addresses.iter().any(|address| addresses.contains(address));
        self.objects.values().filter(reports).map(|object| object.key.clone()).collect()
    }

    /// Forgets an attachment. Returns the name of its pod.
    fn end(&mut self, id: &AttachmentId) -> Option<ObjectKey> {
        let gone = self.attached.remove(id)?;
        self.changed.insert(id.clone());
        let is_of_object = self.objects.get(&gone.attachment.pod).is_some_and(|object| gone.is_of(object));
        let Attachment { pod, uid, addresses, .. } = gone.attachment;
        if is_of_object {
            let ended = self.ended.entry(pod.clone()).or_insert_with(|| Ended { uid, addresses: Vec::new() });
            ended.addresses.extend(addresses);
        }
        Some(pod)
    }

    /// Whether anything is known of the pod of this attachment.
    #[must_use]
    pub fn knows_pod_of(&self, id: &AttachmentId) -> bool {
        self.attached.get(id).is_some_and(|attached| attached.object.is_some())
    }

    /// The attachments that changed since the last call, or whose object did: each with what is last known of its pod,
    /// or `None` if it is gone.
    pub fn take_changed(&mut self) -> Vec<(AttachmentId, Option<KnownAttachment>)> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.map(|id| (id.clone(), self.attached.get(&id).cloned())).collect()
    }

    /// How many attachments there are.
    #[must_use]
    pub fn attachments(&self) -> usize {
        self.attached.len()
    }

    fn refresh_all(&mut self, names: BTreeSet<ObjectKey>) -> Vec<Change> {
        let mut changes = Vec::new();
        for name in names {
            self.refresh(&name, &mut changes);
        }
        changes
    }

    /// Updates the cluster's pods of one name.
    fn refresh(&mut self, name: &ObjectKey, into: &mut Vec<Change>) {
        let is_of_it = |(object, ended): (&Pod, &Ended)| {
            ended.uid.is_none() || object.uid.is_none() || object.uid == ended.uid
        };
        if !self.objects.get(name).zip(self.ended.get(name)).is_some_and(is_of_it) {
            self.ended.remove(name);
        }
        let pods = self.pods(name);
        let now: BTreeSet<ObjectKey> = pods.iter().map(|pod| pod.key.clone()).collect();
        let before = if now.is_empty() {
            self.shown.remove(name)
        } else {
            self.shown.insert(name.clone(), now.clone())
        };
        let gone = before.into_iter().flatten().filter(|key| !now.contains(key));
        into.extend(gone.map(Change::RemovePod));
        into.extend(pods.into_iter().map(Change::SetPod));
    }

    /// The pods of one name, as the cluster should have them.
    fn pods(&self, name: &ObjectKey) -> Vec<Pod> {
        let object = self.objects.get(name);
        let mut own = Vec::new();
        let mut others: BTreeMap<String, Vec<&KnownAttachment>> = BTreeMap::new();
        for attached in self.attached.values().filter(|attached| attached.attachment.pod == *name) {
            if object.is_some_and(|object| attached.is_of(object)) {
                own.push(attached);
            } else {
                let Attachment { id, uid, .. } = &attached.attachment;
                let distinction = uid.as_ref().unwrap_or(&id.container);
                others.entry(distinction.to_string()).or_default().push(attached);
            }
        }
        let others =
            others.into_iter().map(|(distinction, attached)| self.detached(name, &distinction, &attached));
        let current = object.map(|object| match own.as_slice() {
            [] => self.without_sandbox(object),
            own => in_sandbox(object.clone(), own, SandboxState::Current),
        });
        current.into_iter().chain(others).collect()
    }

    /// A pod that was not reported, or is not any more: as its object says, but without addresses of sandboxes that are
    /// gone, and without those that another pod's sandbox has.
    fn without_sandbox(&self, object: &Pod) -> Pod {
        let mut pod = object.clone();
        let ended = self.ended.get(&object.key);
        let is_taken = |address: &IpAddr| {
            ended.is_some_and(|ended| ended.addresses.contains(address))
                || self.attached.values().any(|other| other.attachment.addresses.contains(address))
        };
        pod.addresses.retain(|address| !is_taken(address));
        pod
    }

    /// A pod without an object. No object has its name: no name of a pod contains an `@`.
    fn detached(&self, name: &ObjectKey, distinction: &str, attached: &[&KnownAttachment]) -> Pod {
        let key = ObjectKey::new(name.namespace.clone(), format!("{}@{distinction}", name.name));
        let last = attached.iter().find_map(|attached| attached.object.clone());
        let state = if last.is_some() { SandboxState::Detached } else { SandboxState::Unknown };
        let last = last.unwrap_or_else(|| Pod::new(key.clone()));
        let pod = Pod { key, node: Some(self.node.clone()), host_network: false, ..last };
        in_sandbox(pod, attached, state)
    }
}

/// The pod in a sandbox with these attachments.
fn in_sandbox(pod: Pod, attached: &[&KnownAttachment], state: SandboxState) -> Pod {
    let attachments: Vec<Attachment> = attached.iter().map(|attached| attached.attachment.clone()).collect();
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in attachments.iter().flat_map(|attachment| &attachment.addresses) {
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    Pod { addresses, sandbox: Some(Arc::new(Sandbox { attachments, state })), ..pod }
}

#[cfg(test)]
mod tests {
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
            let changes = self
                .0
                .detach(&AttachmentId { container: format!("c-{uid}").into(), interface: "eth0".into() });
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
        let others =
            [pod("x@x", Some("10.244.1.8"), "", UNKNOWN), pod("y@y", Some("10.244.1.9"), "", UNKNOWN)];
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

    #[test]
    fn stale_object_has_no_address_that_a_sandbox_of_another_pod_has() {
        let mut node = Node::new();
        node.object(Change::SetPod(object("old", "a", Some(ADDRESS))));
        node.object(Change::SetPod(object("new", "b", None))).attach(attachment("new", "b", ADDRESS));
        assert_eq!(node.pods(), [pod("new", Some("10.244.1.7"), "b", CURRENT), pod("old", None, "a", None)]);
    }

    #[test]
    fn attachment_without_a_uid_keeps_that_of_its_first_object() {
        let mut node = Node::new();
        node.attach(Attachment { uid: None, ..attachment("db", "a", ADDRESS) });
        node.object(Change::SetPod(object("db", "a", None)));
        node.object(Change::RemovePod(key("db"))).object(Change::SetPod(object("db", "b", None)));
        assert_eq!(node.pods(), [pod("db", None, "b", None), pod("db@a", Some("10.244.1.7"), "a", DETACHED)]);
    }
}
