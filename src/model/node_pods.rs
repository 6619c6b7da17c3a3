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
        let KnownAttachment { mut attachment, object } = new;
        let mut names = BTreeSet::from([attachment.pod.clone()]);
        let id = attachment.id.clone();
        let before = self.attached.remove(&id);
        let all: Vec<AttachmentId> = self.attached.keys().cloned().collect();
        names.extend(all.iter().filter_map(|other| self.end(other, &attachment.addresses)));
        if let Some(KnownAttachment { attachment: before, .. }) = &before {
            names.insert(before.pod.clone());
            // What was learned of a runtime that reports no uid stays.
            attachment.uid = attachment.uid.or_else(|| before.uid.clone());
        }
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
        self.changed.insert(id.clone());
        self.attached.insert(id, attached);
        self.refresh_all(names)
    }

    /// An attachment is gone. Returns what changes in the cluster.
    pub fn detach(&mut self, id: &AttachmentId) -> Vec<Change> {
        let Some(gone) = self.attached.remove(id) else { return Vec::new() };
        self.changed.insert(id.clone());
        let addresses = gone.attachment.addresses.clone();
        let name = self.note_end(&gone, addresses);
        self.refresh_all([name].into())
    }

    /// Takes those of these addresses that an attachment has from it, and forgets it if it has no others. Returns the
    /// name of its pod if there were any.
    fn end(&mut self, id: &AttachmentId, addresses: &[IpAddr]) -> Option<ObjectKey> {
        let other = self.attached.get_mut(id)?;
        let is_taken = |address: &IpAddr| addresses.contains(address);
        let (taken, left): (Vec<IpAddr>, Vec<IpAddr>) =
            other.attachment.addresses.iter().copied().partition(is_taken);
        if taken.is_empty() {
            return None;
        }
        self.changed.insert(id.clone());
        let is_over = left.is_empty();
        other.attachment.addresses = left;
        let other = other.clone();
        if is_over {
            self.attached.remove(id);
        }
        Some(self.note_end(&other, taken))
    }

    /// The object of a pod may still report these addresses, which it does not have any more. Returns its name.
    fn note_end(&mut self, gone: &KnownAttachment, addresses: Vec<IpAddr>) -> ObjectKey {
        let Attachment { pod, uid, .. } = &gone.attachment;
        if self.objects.get(pod).is_some_and(|object| gone.is_of(object)) {
            let unmarked = || Ended { uid: uid.clone(), addresses: Vec::new() };
            self.ended.entry(pod.clone()).or_insert_with(unmarked).addresses.extend(addresses);
        }
        pod.clone()
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
    /// gone.
    fn without_sandbox(&self, object: &Pod) -> Pod {
        let mut pod = object.clone();
        if let Some(ended) = self.ended.get(&object.key) {
            pod.addresses.retain(|address| !ended.addresses.contains(address));
        }
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
mod tests;
