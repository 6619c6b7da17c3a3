//! Labels and the selectors that choose by them.

use std::{fmt, sync::Arc};

/// The labels of one object: keys with one value each, sorted by key.
///
/// A clone is a reference: the pods of one workload can share one allocation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value under `key`; `Some("")` differs from `None`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| &**value)
    }

    /// Every key with its value, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (&**k, &**v))
    }

    /// Whether there is no label at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Collects pairs; of two pairs with one key the later one counts.
impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let sorted: std::collections::BTreeMap<Arc<str>, Arc<str>> =
            pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        Self(sorted.into_iter().collect())
    }
}

/// A label selector: all of its requirements must hold.
///
/// "A label selector is a label query over a set of resources. The result of matchLabels and matchExpressions are
/// ANDed. An empty label selector matches all objects." Absence of a selector is `Option::None` where it can occur;
/// it never means the same as an empty one by accident.
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
    /// What is demanded of its value.
    pub operator: Operator,
}

/// What a [`Requirement`] demands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The key exists and its value is one of these.
    In(Arc<[Arc<str>]>),
    /// The key does not exist, or its value is none of these.
    NotIn(Arc<[Arc<str>]>),
    /// The key exists, whatever its value, the empty one included.
    Exists,
    /// The key does not exist.
    DoesNotExist,
}

impl LabelSelector {
    /// A selector of these requirements; their order and repetition are of no meaning.
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

/// As `kubectl get -l` writes it: `app=web,tier in (a,b),!old`; an empty selector is `<everything>`.
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
    fn exists_takes_an_empty_value_and_a_missing_key_is_not_an_empty_value() {
        assert!(requirement("k", Operator::Exists).matches(&labels(&[("k", "")])));
        assert!(!requirement("k", Operator::DoesNotExist).matches(&labels(&[("k", "")])));
        assert!(requirement("k", Operator::DoesNotExist).matches(&labels(&[])));
        let empty = LabelSelector::new([Requirement::equals("k", "")]);
        assert!(empty.matches(&labels(&[("k", "")])));
        assert!(!empty.matches(&labels(&[])));
    }

    #[test]
    fn equal_meaning_is_equal_value() {
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
