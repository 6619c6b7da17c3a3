//! Labels and label selectors.

use std::{cmp::Ordering, fmt, sync::Arc};

/// The labels of one object: keys with one value each, sorted by key.
///
/// A clone is a reference: the pods of one workload can share one allocation. Labels take little more memory than
/// their text, since the owner of a pod may set tens of thousands.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Labels(Arc<Content>);

/// Keys and values concatenated, sorted by key.
#[derive(PartialEq, Eq, Hash, Default)]
struct Content {
    text: Box<str>,
    /// Where each key and each value ends in the text.
    ends: Box<[[u32; 2]]>,
}

impl Labels {
    /// The value of `key`; `Some("")` differs from `None`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let (mut from, mut to) = (0, self.0.ends.len());
        while from < to {
            let middle = from + (to - from) / 2;
            let (found, value) = self.at(middle);
            match found.cmp(key) {
                Ordering::Equal => return Some(value),
                Ordering::Less => from = middle + 1,
                Ordering::Greater => to = middle,
            }
        }
        None
    }

    /// Every key with its value, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        (0..self.0.ends.len()).map(|index| self.at(index))
    }

    /// Whether there are no labels.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.ends.is_empty()
    }

    /// The length of all keys and values together, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.text.len()
    }

    /// Whether another clone holds the same allocation.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn at(&self, index: usize) -> (&str, &str) {
        let Content { text, ends } = &*self.0;
        let end = |end: u32| usize::try_from(end).unwrap_or(usize::MAX);
        let start =
            index.checked_sub(1).and_then(|before| ends.get(before)).map_or(0, |[_, value]| end(*value));
        let Some([key, value]) = ends.get(index) else { return ("", "") };
        let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
        (part(start, end(*key)), part(end(*key), end(*value)))
    }
}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Labels {
    fn cmp(&self, other: &Self) -> Ordering {
        self.iter().cmp(other.iter())
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Collects pairs; of two pairs with the same key the later one counts. Text after the first 4 GiB is lost: an object
/// has 1.5 MiB at most.
impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut pairs: Vec<(K, V)> = pairs.into_iter().collect();
        // A stable sort, so that the last one of equal keys is the later one.
        pairs.sort_by(|(a, _), (b, _)| a.as_ref().cmp(b.as_ref()));
        let (mut text, mut ends) = (String::new(), Vec::new());
        for (at, (key, value)) in pairs.iter().enumerate() {
            let is_repeated = pairs.get(at + 1).is_some_and(|(next, _)| next.as_ref() == key.as_ref());
            if is_repeated {
                continue;
            }
            let end = [key.as_ref(), value.as_ref()].map(|part| {
                text.push_str(part);
                u32::try_from(text.len()).unwrap_or(u32::MAX)
            });
            ends.push(end);
        }
        Self(Arc::new(Content { text: text.into(), ends: ends.into() }))
    }
}

/// A label selector: all of its requirements must hold.
///
/// "A label selector is a label query over a set of resources. The result of matchLabels and matchExpressions are
/// ANDed. An empty label selector matches all objects." An absent selector is `Option::None` where it can occur; it
/// is never confused with an empty one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LabelSelector {
    /// Sorted and without repetition, so that equal meaning is equal value.
    requirements: Arc<[Requirement]>,
}

/// One condition on one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: Arc<str>,
    /// The condition on the label.
    pub operator: Operator,
}

/// The condition of a [`Requirement`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The key exists and its value is one of these.
    In(Arc<[Arc<str>]>),
    /// The key does not exist, or its value is none of these.
    NotIn(Arc<[Arc<str>]>),
    /// The key exists with any value, including an empty one.
    Exists,
    /// The key does not exist.
    DoesNotExist,
}

impl LabelSelector {
    /// A selector with these requirements; their order and repetition do not matter.
    #[must_use]
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let mut sorted: Vec<Requirement> = requirements.into_iter().map(Requirement::normalised).collect();
        sorted.sort();
        sorted.dedup();
        Self { requirements: sorted.into() }
    }

    /// The selector that matches everything.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// Whether these labels satisfy every requirement.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether nothing is required, so that everything matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The requirements, sorted.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl Requirement {
    /// `key` has exactly `value`: one entry of matchLabels.
    #[must_use]
    pub fn equals(key: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        Self { key: key.into(), operator: Operator::In([value.into()].into()) }
    }

    /// Whether these labels satisfy it.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let among = |values: &[Arc<str>]| value.is_some_and(|value| values.iter().any(|v| &**v == value));
        match &self.operator {
            Operator::In(values) => among(values),
            Operator::NotIn(values) => !among(values),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }

    fn normalised(self) -> Self {
        let sort = |values: Arc<[Arc<str>]>| -> Arc<[Arc<str>]> {
            let mut values = values.to_vec();
            values.sort();
            values.dedup();
            values.into()
        };
        let operator = match self.operator {
            Operator::In(values) => Operator::In(sort(values)),
            Operator::NotIn(values) => Operator::NotIn(sort(values)),
            other => other,
        };
        Self { key: self.key, operator }
    }
}

/// In the syntax of `kubectl get -l`: `app=web,tier in (a,b),!old`; an empty selector is `<everything>`.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("<everything>");
        }
        for (at, Requirement { key, operator }) in self.requirements.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(values) => match &**values {
                    [value] => write!(f, "{key}={value}")?,
                    values => write!(f, "{key} in ({})", values.join(","))?,
                },
                Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().copied().collect()
    }

    proptest::proptest! {
        #[test]
        fn later_of_two_equal_label_keys_wins(
            pairs in proptest::collection::vec(("[a-c]{0,3}", "[a-c]{0,3}"), 0..12),
            sought in "[a-c]{0,3}",
        ) {
            let map: std::collections::BTreeMap<String, String> = pairs.iter().cloned().collect();
            let labels: Labels = pairs.iter().cloned().collect();
            let found: Vec<(&str, &str)> = labels.iter().collect();
            let expected: Vec<(&str, &str)> = map.iter().map(|(k, v)| (&**k, &**v)).collect();
            proptest::prop_assert_eq!(&found, &expected);
            proptest::prop_assert_eq!(labels.get(&sought), map.get(&sought).map(|value| &**value));
            proptest::prop_assert_eq!(labels.is_empty(), map.is_empty());
            proptest::prop_assert_eq!(&labels, &expected.into_iter().collect::<Labels>());
        }

        #[test]
        fn labels_compare_like_their_pairs(
            a in proptest::collection::vec(("[a-b]{0,2}", "[a-b]{0,2}"), 0..3),
            b in proptest::collection::vec(("[a-b]{0,2}", "[a-b]{0,2}"), 0..3),
        ) {
            let map = |pairs: &[(String, String)]| -> std::collections::BTreeMap<String, String> {
                pairs.iter().cloned().collect()
            };
            let labels = |pairs: &[(String, String)]| pairs.iter().cloned().collect::<Labels>();
            proptest::prop_assert_eq!(labels(&a).cmp(&labels(&b)), map(&a).cmp(&map(&b)));
            proptest::prop_assert_eq!(labels(&a) == labels(&b), map(&a) == map(&b));
        }
    }

    fn requirement(key: &str, operator: Operator) -> LabelSelector {
        LabelSelector::new([Requirement { key: key.into(), operator }])
    }

    #[test]
    fn in_needs_the_key_and_one_of_its_values() {
        let selector = requirement("tier", Operator::In(["a".into(), "b".into()].into()));
        assert!(selector.matches(&labels(&[("tier", "b")])));
        assert!(!selector.matches(&labels(&[("tier", "c")])));
        assert!(!selector.matches(&labels(&[])));
    }

    #[test]
    fn not_in_matches_when_the_key_is_absent() {
        let selector = requirement("tier", Operator::NotIn(["a".into()].into()));
        assert!(selector.matches(&labels(&[])));
        assert!(selector.matches(&labels(&[("tier", "b")])));
        assert!(!selector.matches(&labels(&[("tier", "a")])));
    }

    #[test]
    fn exists_matches_an_empty_value_and_a_missing_key_is_not_empty() {
        assert!(requirement("k", Operator::Exists).matches(&labels(&[("k", "")])));
        assert!(!requirement("k", Operator::DoesNotExist).matches(&labels(&[("k", "")])));
        assert!(requirement("k", Operator::DoesNotExist).matches(&labels(&[])));
        let empty = LabelSelector::new([Requirement::equals("k", "")]);
        assert!(empty.matches(&labels(&[("k", "")])));
        assert!(!empty.matches(&labels(&[])));
    }

    #[test]
    fn equivalent_selectors_are_equal() {
        let one = LabelSelector::new([Requirement::equals("b", "2"), Requirement::equals("a", "1")]);
        let other = LabelSelector::new([
            Requirement::equals("a", "1"),
            Requirement::equals("b", "2"),
            Requirement::equals("a", "1"),
        ]);
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "a=1,b=2");
    }
}
