//! Pods that are attached to the network: what the gate reports, when it is answered, and what is remembered of it.

use std::{
    sync::mpsc::{Sender, SyncSender},
    time::Instant,
};

use super::{Agent, GuardInput};
use crate::{
    dataplane::Dataplane,
    model::{AttachmentId, KnownAttachment},
    ruleset::observed::Observed,
};

/// A pod that waits for its rules.
#[derive(Debug)]
pub struct Attached {
    /// Its attachment, with its object, if that was read separately from the source of objects.
    pub known: KnownAttachment,
    /// Sent to at once: whether all its addresses are closed, so that no connection of theirs can begin before its
    /// rules are in the kernel.
    pub taken: SyncSender<bool>,
    /// Sent to once its rules are in the kernel.
    pub written: SyncSender<PodRules>,
}

/// The rules of an attached pod, once they are in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodRules {
    /// Those of the policies that apply to it.
    Policies,
    /// Nothing is known of the pod yet: nothing is allowed.
    Closed,
}

/// An attachment that has to be remembered across restarts of the daemon, or forgotten.
#[derive(Clone, Debug)]
pub enum AttachmentRecord {
    /// It exists.
    Keep(Box<KnownAttachment>),
    /// It is gone.
    Forget(AttachmentId),
}

/// An answer for the gate, due once both the rules and the interface guard are in the kernel.
#[derive(Debug)]
pub enum Answer {
    /// To a pod that was attached.
    Attached(SyncSender<PodRules>, PodRules),
    /// To attachments that are gone.
    Detached(SyncSender<()>),
}

impl Answer {
    /// Gives it. The asker may have stopped waiting.
    pub fn give(self) {
        match self {
            Self::Attached(to, rules) => drop(to.try_send(rules)),
            Self::Detached(to) => drop(to.try_send(())),
        }
    }
}

impl<D: Dataplane> Agent<D> {
    /// The same with the attachments that a former process has recorded. What changes in them is sent to `records`.
    #[must_use]
    pub fn with_attachments(
        mut self,
        known: Vec<KnownAttachment>,
        records: Option<Sender<AttachmentRecord>>,
    ) -> Self {
        let now = Instant::now();
        for known in known {
            for change in self.node_pods.attach(known) {
                self.change(change, now);
            }
        }
        self.node_pods.take_changed();
        self.metrics.attachments.set(i64::try_from(self.node_pods.attachments()).unwrap_or(i64::MAX));
        Self { records, ..self }
    }

    /// Takes in a new pod. It is answered once its rules are in the kernel.
    pub(super) fn attached(&mut self, Attached { known, taken, written }: Attached) {
        let id = known.attachment.id.clone();
        let closes = |observed: &Observed| known.attachment.addresses.iter().all(|it| observed.closes(*it));
        // The gate may have stopped waiting.
        let _ = taken.try_send(self.kernel.as_ref().is_some_and(closes));
        let changes = self.node_pods.attach(known);
        self.take_changes(changes, Instant::now());
        // Only now: a sync may have come before these changes, and does not answer for them.
        self.attaching.push((id, written));
        self.schedule.changed_urgently(Instant::now());
    }

    /// Takes in that attachments are gone.
    pub(super) fn detached(&mut self, ids: &[AttachmentId], written: SyncSender<()>) {
        let changes = ids.iter().flat_map(|id| self.node_pods.detach(id)).collect();
        self.take_changes(changes, Instant::now());
        self.detaching.push(written);
        self.schedule.changed_urgently(Instant::now());
    }

    /// Sends what changed of the attachments to where they are remembered.
    pub(super) fn record(&mut self) {
        let changed = self.node_pods.take_changed();
        if changed.is_empty() {
            return;
        }
        self.metrics.attachments.set(i64::try_from(self.node_pods.attachments()).unwrap_or(i64::MAX));
        let Some(records) = &self.records else { return };
        for (id, state) in changed {
            let record = match state {
                Some(known) => AttachmentRecord::Keep(Box::new(known)),
                None => AttachmentRecord::Forget(id),
            };
            // The receiver is gone only when the process ends.
            let _ = records.send(record);
        }
    }

    /// Answers the gate for what the last sync wrote: at once, or by the interface guard, if its tables matter too.
    pub(super) fn answer(&mut self) {
        let attached = std::mem::take(&mut self.attaching).into_iter().map(|(id, written)| {
            let is_known = self.node_pods.knows_pod_of(&id);
            Answer::Attached(written, if is_known { PodRules::Policies } else { PodRules::Closed })
        });
        let answers: Vec<Answer> =
            attached.chain(std::mem::take(&mut self.detaching).into_iter().map(Answer::Detached)).collect();
        if answers.is_empty() {
            return;
        }
        match &self.guard {
            Some(guard) => drop(guard.send(GuardInput::Answers(answers))),
            None => answers.into_iter().for_each(Answer::give),
        }
    }
}
