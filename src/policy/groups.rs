//! Ends that need not be told apart in a table: those with the same verdicts in it, whatever policies they have.

use std::collections::BTreeMap;

use super::{
    classes::{ClassTable, Classes},
    reach::Reach,
};

/// With more classes than this none are merged: each is compared with others of its kind, in every row and column.
const MOST_CLASSES: usize = 2000;

/// The ends of a table in groups: between two groups, every pair of different ends has the same verdicts, unless
/// [one is the node of the other](Classes::is_own_node).
#[derive(Clone, Debug)]
pub struct Groups {
    groups: Vec<Group>,
}

#[derive(Clone, Debug)]
struct Group {
    members: Vec<usize>,
    /// Classes that have the same verdicts.
    classes: Vec<usize>,
}

impl Groups {
    /// The groups of ends with the same key, by key and first end. Nodes and pods are never in one group.
    #[must_use]
    pub fn of<K: Ord + Clone>(classes: &Classes<'_>, table: &ClassTable, key: impl Fn(usize) -> K) -> Self {
        let mut by_key: BTreeMap<(K, bool), BTreeMap<usize, Vec<usize>>> = BTreeMap::new();
        for (end, class) in classes.class_of().iter().enumerate() {
            let key = (key(end), classes.is_node(end));
            by_key.entry(key).or_default().entry(*class).or_default().push(end);
        }
        let is_many = classes.members().len() > MOST_CLASSES;
        let mut groups: Vec<Group> = Vec::new();
        for of_key in by_key.into_values() {
            let first = groups.len();
            for (class, members) in of_key {
                let known = groups.iter_mut().skip(first);
                let alike = known.filter(|_| !is_many).find(|group| {
                    group.classes.first().is_some_and(|other| are_alike(classes, table, class, *other))
                });
                match alike {
                    Some(group) => {
                        group.classes.push(class);
                        group.members.extend(members);
                    }
                    None => groups.push(Group { members, classes: vec![class] }),
                }
            }
            for group in groups.iter_mut().skip(first) {
                group.members.sort_unstable();
            }
        }
        Self { groups }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The ends of a group, ascending.
    #[must_use]
    pub fn members(&self, group: usize) -> &[usize] {
        self.groups.get(group).map_or(&[], |group| &group.members)
    }

    /// The verdicts from every end of one group to every other end of another, or of the same. `None` if there is no
    /// other.
    #[must_use]
    pub fn verdicts<'t>(&self, table: &'t ClassTable, from: usize, to: usize) -> Option<&'t [Reach]> {
        let (sender, receiver) = (self.groups.get(from)?, self.groups.get(to)?);
        if from == to && sender.members.len() < 2 {
            return None;
        }
        let first = *sender.classes.first()?;
        let other = receiver.classes.iter().copied().find(|class| *class != first).unwrap_or(first);
        Some(table.verdicts(first, other))
    }
}

/// Whether no end of one class has another verdict than one of the other class, in any row or column.
fn are_alike(classes: &Classes<'_>, table: &ClassTable, one: usize, other: usize) -> bool {
    let cell = |from, to| table.cell(from, to);
    let has_several = |class: usize| classes.members().get(class).is_some_and(|members| members.len() > 1);
    let between = cell(one, other);
    let among = [one, other]
        .into_iter()
        .filter(|class| has_several(*class))
        .all(|class| cell(class, class) == between);
    among
        && cell(other, one) == between
        && (0..classes.members().len())
            .filter(|third| *third != one && *third != other)
            .all(|third| cell(one, third) == cell(other, third) && cell(third, one) == cell(third, other))
}
