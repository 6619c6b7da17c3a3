//! What is wrong with a manifest, and where.

use std::{fmt, path::PathBuf, sync::Arc};

use super::yaml::path::{FieldPath, Position};

/// How bad a [`Fault`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The object is refused.
    Error,
    /// The object is used, but probably does not mean what its author intended.
    Warning,
    /// The object is used as it is written. What is said of it is good to know.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// A fault in an object from any source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The field that is wrong.
    pub path: FieldPath,
    /// What is wrong with it, and what to do.
    pub text: String,
}

impl Problem {
    /// An error at `path`.
    #[must_use]
    pub fn error(path: FieldPath, text: impl Into<String>) -> Self {
        Self { severity: Severity::Error, path, text: text.into() }
    }

    /// An error at `path`; `text` continues the field's name: `must be text`.
    #[must_use]
    pub fn of_field(path: FieldPath, text: impl fmt::Display) -> Self {
        let text = format!("{} {text}", path.last());
        Self::error(path, text)
    }

    /// A warning at `path`.
    #[must_use]
    pub fn warning(path: FieldPath, text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, path, text: text.into() }
    }

    /// A note at `path`.
    #[must_use]
    pub fn note(path: FieldPath, text: impl Into<String>) -> Self {
        Self { severity: Severity::Note, path, text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.text)?;
        if self.path.steps().is_empty() { Ok(()) } else { write!(f, " ({})", self.path) }
    }
}

/// An object as a user names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// `Pod`, `Namespace`, `NetworkPolicy`, or the kind of a workload.
    pub kind: &'static str,
    /// Its namespace; `None` for a kind that has none.
    pub namespace: Option<Arc<str>>,
    /// Its name.
    pub name: Arc<str>,
}

/// `NetworkPolicy shop/deny-all`.
impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// A [`Problem`] with its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file; `-` is standard input.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: u32,
    /// The column in characters, counted from 1.
    pub column: u32,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, and what to do.
    pub text: String,
    /// The field, such as `spec.ingress[0].from[1]`; empty if the fault is in no field.
    pub path: String,
    /// The object, as far as it is known.
    pub object: Option<ObjectId>,
}

impl Fault {
    /// The fault `problem` of `object`, at `at` in `file`.
    #[must_use]
    pub fn new(file: PathBuf, at: Position, problem: &Problem, object: Option<ObjectId>) -> Self {
        Self {
            file,
            line: at.line,
            column: at.column,
            severity: problem.severity,
            text: problem.text.clone(),
            path: problem.path.to_string(),
            object,
        }
    }

    /// Whether it is an error, not a warning or a note.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// `file:line:column: error: text (field path)`.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, severity, text, path, .. } = self;
        write!(f, "{}:{line}:{column}: {severity}: {text}", file.display())?;
        if path.is_empty() { Ok(()) } else { write!(f, " ({path})") }
    }
}
