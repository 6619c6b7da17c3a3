//! Partitions: which of many things are alike by every criterion.

use std::{collections::HashMap, hash::Hash};

/// Things in classes, which are split until no criterion distinguishes the things of one class.
pub(super) struct Partition {
    class_of: Vec<usize>,
    classes: usize,
}

impl Partition {
    /// All in one class.
    pub(super) fn new(things: usize) -> Self {
        Self { class_of: vec![0; things], classes: 1 }
    }

    /// Splits each class into those that are in `members`, each named once, and those that are not.
    pub(super) fn split(&mut self, members: impl IntoIterator<Item = usize>) {
        let mut moved: HashMap<usize, usize> = HashMap::new();
        for member in members {
            let Some(class) = self.class_of.get_mut(member) else { continue };
            let next = &mut self.classes;
            *class = *moved.entry(*class).or_insert_with(|| {
                *next += 1;
                *next - 1
            });
        }
    }

    /// Splits each class by the keys of its members; there is one for each thing, in their order.
    pub(super) fn split_by<K: Hash + Eq>(&mut self, keys: impl IntoIterator<Item = K>) {
        let mut split: HashMap<(usize, K), usize> = HashMap::new();
        for (class, key) in self.class_of.iter_mut().zip(keys) {
            let next = split.len();
            *class = *split.entry((*class, key)).or_insert(next);
        }
        self.classes = split.len();
    }

    /// The class of each thing, and the members of each class. Classes are numbered by their first member.
    pub(super) fn finish(mut self) -> (Vec<usize>, Vec<Vec<usize>>) {
        self.split_by(std::iter::repeat(()));
        let mut members = vec![Vec::new(); self.classes];
        for (at, class) in self.class_of.iter().enumerate() {
            if let Some(members) = members.get_mut(*class) {
                members.push(at);
            }
        }
        (self.class_of, members)
    }

    /// The class of a thing.
    pub(super) fn class_of(&self, thing: usize) -> Option<usize> {
        self.class_of.get(thing).copied()
    }
}
