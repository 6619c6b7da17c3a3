//! A position in a text, and a path of fields in an object.

use std::fmt;

/// A position in a text. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Position {
    /// The first character of a text.
    pub const START: Self = Self { line: 1, column: 1 };

    /// The same place in a text that has more in front: `lines` lines, and `columns` characters in the line where this
    /// text begins.
    #[must_use]
    pub const fn after(self, lines: u32, columns: u32) -> Self {
        let column = if self.line == 1 { self.column + columns } else { self.column };
        Self { line: self.line + lines, column }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One step of a [`FieldPath`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathSegment {
    /// Into the value of a key.
    Key(Box<str>),
    /// Into an item of a list, counted from 0.
    Index(usize),
}

/// A path of fields, as the API server writes it in its own messages: `spec.ingress[0].from[1].podSelector`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(Vec<PathSegment>);

impl FieldPath {
    /// The object itself.
    #[must_use]
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// A path of keys only.
    #[must_use]
    pub fn of(keys: &[&str]) -> Self {
        Self(keys.iter().map(|key| PathSegment::Key((*key).into())).collect())
    }

    /// This path and then `key`.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.step(PathSegment::Key(key.into()))
    }

    /// This path and then item `index`.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.step(PathSegment::Index(index))
    }

    fn step(&self, step: PathSegment) -> Self {
        let mut steps = Vec::with_capacity(self.0.len() + 1);
        steps.extend_from_slice(&self.0);
        steps.push(step);
        Self(steps)
    }

    /// This path and then `rest`.
    #[must_use]
    pub fn join(&self, rest: &Self) -> Self {
        Self(self.0.iter().chain(&rest.0).cloned().collect())
    }

    /// Its steps, outermost first.
    #[must_use]
    pub fn steps(&self) -> &[PathSegment] {
        &self.0
    }

    /// Whether it is `keys`, or leads to something inside of it.
    #[must_use]
    pub fn is_within(&self, keys: &[&str]) -> bool {
        self.0.len() >= keys.len()
            && self.0.iter().zip(keys).all(|(step, key)| matches!(step, PathSegment::Key(k) if **k == **key))
    }

    /// Everything but its last step, and that step's key; `None` for the root and for an item of a list.
    #[must_use]
    pub fn split_key(&self) -> Option<(Self, &str)> {
        match self.0.split_last() {
            Some((PathSegment::Key(key), parent)) => Some((Self(parent.to_vec()), key)),
            _ => None,
        }
    }

    /// What a user would call the field: its last key, and the items below it, such as `from[1]`.
    #[must_use]
    pub fn last(&self) -> String {
        let key = self.0.iter().rposition(|step| matches!(step, PathSegment::Key(_)));
        let tail = &self.0[key.unwrap_or(0)..];
        let text: String = tail
            .iter()
            .map(|step| match step {
                PathSegment::Key(key) => key.to_string(),
                PathSegment::Index(index) => format!("[{index}]"),
            })
            .collect();
        if text.is_empty() { "the object".to_owned() } else { text }
    }
}

impl FromIterator<PathSegment> for FieldPath {
    fn from_iter<I: IntoIterator<Item = PathSegment>>(steps: I) -> Self {
        Self(steps.into_iter().collect())
    }
}

/// Keys that are not plain field names are in brackets: `metadata.labels[kubernetes.io/metadata.name]`.
impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                PathSegment::Index(index) => write!(f, "[{index}]")?,
                PathSegment::Key(key)
                    if key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) =>
                {
                    write!(f, "{}{key}", if at > 0 { "." } else { "" })?;
                }
                PathSegment::Key(key) => write!(f, "[{key}]")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_formatted_like_the_api_servers() {
        let path = FieldPath::of(&["spec", "ingress"]).index(0).key("from").index(1).key("podSelector");
        assert_eq!(path.to_string(), "spec.ingress[0].from[1].podSelector");
        assert_eq!(FieldPath::of(&["metadata", "labels", "a.io/b"]).to_string(), "metadata.labels[a.io/b]");
        assert_eq!((path.last(), path.index(2).last()), ("podSelector".into(), "podSelector[2]".into()));
        assert!(path.is_within(&["spec", "ingress"]));
        assert!(!path.is_within(&["spec", "egress"]));
    }
}
