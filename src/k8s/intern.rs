//! Equal strings and equal labels, stored once.

use std::{collections::HashSet, sync::Arc};

use crate::model::{Labels, Workload};

/// Hands out shared allocations. A cluster of 100,000 pods has a few hundred distinct sets of labels.
#[derive(Debug, Default)]
pub struct Interner {
    strings: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
    workloads: HashSet<Arc<Workload>>,
    sweep_at: usize,
    forget_labels_at: usize,
    forget_workloads_at: usize,
}

/// Labels that take more bytes than this are not stored: hardly two objects have the same ones.
const LARGE: usize = 4096;

/// How many are kept before unused ones are first dropped.
const FEW: usize = 1024;

impl Interner {
    /// An empty interner.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The shared copy of `text`.
    pub fn string(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.strings.get(text) {
            return shared.clone();
        }
        self.sweep();
        let shared: Arc<str> = text.into();
        self.strings.insert(shared.clone());
        shared
    }

    /// The shared copy of these labels.
    pub fn labels<'a>(&mut self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Labels {
        let labels: Labels = pairs.into_iter().collect();
        if labels.bytes() > LARGE {
            return labels;
        }
        if let Some(shared) = self.labels.get(&labels) {
            return shared.clone();
        }
        if self.labels.len() >= self.forget_labels_at.max(FEW) {
            // Labels that are in use have another owner besides this set.
            self.labels.retain(Labels::is_shared);
            self.forget_labels_at = self.labels.len() * 2;
        }
        self.labels.insert(labels.clone());
        labels
    }

    /// The shared copy of this workload.
    pub fn workload(&mut self, kind: &str, name: &str) -> Arc<Workload> {
        if self.workloads.len() >= self.forget_workloads_at.max(FEW) {
            self.workloads.retain(|workload| Arc::strong_count(workload) > 1);
            self.forget_workloads_at = self.workloads.len() * 2;
        }
        let workload = Workload { kind: self.string(kind), name: self.string(name) };
        if let Some(shared) = self.workloads.get(&workload) {
            return shared.clone();
        }
        let shared = Arc::new(workload);
        self.workloads.insert(shared.clone());
        shared
    }

    /// Drops strings that are not in use elsewhere, each time that the number of strings has doubled.
    fn sweep(&mut self) {
        if self.strings.len() < self.sweep_at.max(FEW) {
            return;
        }
        self.strings.retain(|string| Arc::strong_count(string) > 1);
        self.sweep_at = self.strings.len() * 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_and_labels_share_one_allocation() {
        let mut names = Interner::new();
        assert!(Arc::ptr_eq(&names.string("a"), &names.string("a")));
        let (one, other) = (names.labels([("app", "web")]), names.labels([("app", "web")]));
        let value = |labels: &Labels| labels.get("app").map(str::as_ptr);
        assert_eq!(value(&one), value(&other));
    }

    #[test]
    fn unused_labels_are_dropped() {
        let mut names = Interner::new();
        let kept = names.labels([("app", "kept")]);
        for n in 0..10_000 {
            names.labels([("app", &*n.to_string())]);
        }
        assert!(names.labels.len() < 2000, "{}", names.labels.len());
        assert!(names.strings.is_empty());
        let value = |labels: &Labels| labels.get("app").map(str::as_ptr);
        assert_eq!(value(&kept), value(&names.labels([("app", "kept")])));
    }

    #[test]
    fn equal_workloads_share_one_allocation_and_unused_ones_are_dropped() {
        let mut names = Interner::new();
        let kept = names.workload("Deployment", "kept");
        for n in 0..10_000 {
            names.workload("Job", &n.to_string());
        }
        assert!(names.workloads.len() < 2000, "{}", names.workloads.len());
        assert!(names.strings.len() < 4000, "{}", names.strings.len());
        assert!(Arc::ptr_eq(&kept, &names.workload("Deployment", "kept")));
    }

    #[test]
    fn unused_strings_are_dropped() {
        let mut names = Interner::new();
        let kept = names.string("kept");
        for n in 0..10_000 {
            names.string(&n.to_string());
        }
        assert!(names.strings.len() < 2000, "{}", names.strings.len());
        assert!(Arc::ptr_eq(&kept, &names.string("kept")));
    }
}
