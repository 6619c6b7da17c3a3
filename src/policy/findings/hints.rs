//! What the author of a selector that matches nothing may have meant.

use std::collections::BTreeSet;

use super::{Search, index::Index};
use crate::model::{LabelSelector, Operator, Requirement, Scope};

/// The longest text that is compared with others.
const LONGEST: usize = 63 + 1 + 253;

/// The text among `known` of which `text` is a typo: two letters off at most, and not most of the word.
pub(super) fn nearest<'k>(text: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let length = text.chars().count();
    let within = length.div_ceil(3).min(2);
    known
        .into_iter()
        .filter(|other| *other != text && other.len() <= LONGEST && text.len() <= LONGEST)
        .filter(|other| other.chars().count().abs_diff(length) <= within)
        .map(|other| (strsim::osa_distance(text, other), other))
        .filter(|(distance, _)| *distance <= within)
        .min()
        .map(|(_, other)| other)
}

/// Why a selector matches no pod of a scope, and what may have been meant.
pub(super) struct Hint {
    /// The reason, as a sentence that follows a colon.
    pub(super) text: String,
    /// Whether it names what was probably meant.
    pub(super) is_guess: bool,
}

impl Search<'_> {
    /// Whether the labels may be searched once more.
    pub(super) fn may_search(&self) -> bool {
        let left = self.hints.get();
        self.hints.set(left.saturating_sub(1));
        left > 0
    }

    /// Why `pods` matches none of the pods in `scope`.
    pub(super) fn hint(&self, scope: &Scope, pods: &LabelSelector) -> Option<Hint> {
        if !self.may_search() {
            return None;
        }
        for requirement in pods.requirements() {
            let alone = LabelSelector::new([requirement.clone()]);
            if self.index.any(scope, &alone, |_| true) {
                continue;
            }
            return Some(unmet(&self.index, scope, requirement));
        }
        let text = "each of these labels is on some pod, but no pod has all of them".to_owned();
        Some(Hint { text, is_guess: false })
    }
}

/// Why no pod in `scope` satisfies a requirement.
fn unmet(index: &Index<'_>, scope: &Scope, requirement: &Requirement) -> Hint {
    let Requirement { key, operator } = requirement;
    let guess = |text: String| Hint { text, is_guess: true };
    let plain = |text: String| Hint { text, is_guess: false };
    let values = match operator {
        Operator::In(values) => values.to_vec(),
        Operator::Exists => Vec::new(),
        Operator::NotIn(_) => {
            return plain(format!("every pod has one of the values of {key} that it excludes"));
        }
        Operator::DoesNotExist => return plain(format!("every pod has the label {key}")),
    };
    let known = index.values(scope, key);
    if !known.is_empty() {
        let meant =
            values.iter().find_map(|value| Some((value, nearest(value, known.iter().map(String::as_str))?)));
        return match meant {
            Some((value, meant)) => guess(format!("no pod has {key}={value}: did you mean {key}={meant}?")),
            None => plain(format!("no pod has {key}={}; there is {}", values.join(" or "), listed(&known))),
        };
    }
    let (mut keys, mut same_value) = (BTreeSet::new(), None);
    index.labels(scope, |other, value| {
        if keys.len() < 1000 && !keys.contains(other) {
            keys.insert(other.to_owned());
        }
        if same_value.is_none() && values.iter().any(|wanted| **wanted == *value) {
            same_value = Some(format!("{other}={value}"));
        }
    });
    let named = || keys.iter().map(String::as_str);
    // `app` instead of `app.kubernetes.io/name`: the value is right.
    match (same_value, nearest(key, named())) {
        (Some(label), _) => guess(format!("no pod has the label {key}: did you mean {label}?")),
        (None, Some(meant)) => guess(format!("no pod has the label {key}: did you mean {meant}?")),
        (None, None) => plain(format!("no pod has the label {key}")),
    }
}

/// The first of some values.
pub(super) fn listed(values: &BTreeSet<String>) -> String {
    const MOST: usize = 5;
    let first: Vec<&str> = values.iter().take(MOST).map(String::as_str).collect();
    let more = if values.len() > MOST { ", ..." } else { "" };
    format!("{}{more}", first.join(", "))
}
