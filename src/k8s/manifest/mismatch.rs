//! A value of the wrong type, described for the author of a manifest.

use std::fmt;

use serde::de;

use crate::k8s::yaml::path::FieldPath;

/// A value of the wrong type.
#[derive(Debug)]
pub(super) struct Mismatch {
    /// What was expected, and what was found instead.
    pub(super) text: String,
    /// Its path.
    pub(super) path: FieldPath,
    /// The entry to skip, by address; 0 if it is the whole object.
    pub(super) entry: usize,
    /// Whether `path` and `entry` are set.
    pub(super) placed: bool,
}

/// Why deserialisation stopped.
#[derive(Debug)]
pub(super) struct Error(pub(super) Box<Mismatch>);

impl Error {
    /// A mismatch whose position is not known yet.
    pub(super) fn new(text: String) -> Self {
        Self(Box::new(Mismatch { text, path: FieldPath::root(), entry: 0, placed: false }))
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::new(text.to_string())
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("must be {}, not {}", plainly(expected), found_plainly(found)))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }
}

/// The name of an expected type, in words for the author of a manifest.
fn plainly(expected: &dyn de::Expected) -> String {
    match expected.to_string().as_str() {
        "IntOrString" => "a number or a name".to_owned(),
        "i32" | "a 32-bit integer" => "a 32-bit whole number".to_owned(),
        "i64" => "a 64-bit whole number".to_owned(),
        "f64" => "a number".to_owned(),
        other => other.to_owned(),
    }
}

fn found_plainly(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Bool(value) => format!("the boolean {value}"),
        de::Unexpected::Unsigned(value) => value.to_string(),
        de::Unexpected::Signed(value) => value.to_string(),
        de::Unexpected::Float(value) => value.to_string(),
        de::Unexpected::Str(value) => format!("{value:?}"),
        de::Unexpected::Unit | de::Unexpected::Option => "empty".to_owned(),
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Map => "a mapping".to_owned(),
        other => other.to_string(),
    }
}
