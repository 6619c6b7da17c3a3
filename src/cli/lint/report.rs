//! What was found, as lines for people and as JSON for scripts.

use std::{fmt::Write as _, path::Path};

use serde::Serialize;

use super::{help, name_of};
use crate::{
    k8s::fault::{Fault, Severity},
    policy::findings::Code,
};

/// One finding, with its place.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) code: Code,
    pub(super) fault: Fault,
}

/// Everything that was found.
pub(super) struct Report {
    pub(super) items: Vec<Item>,
    /// How many more findings there are, of policies with too many to list.
    pub(super) omitted: usize,
}

/// What `-o json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Json<'r> {
    findings: Vec<JsonItem<'r>>,
    errors: usize,
    warnings: usize,
    notes: usize,
    /// How many more there are, of policies with too many to list.
    omitted: usize,
}

/// A finding in JSON.
#[derive(Debug, Serialize)]
struct JsonItem<'r> {
    code: &'static str,
    name: &'static str,
    severity: String,
    /// Absent if the objects come from a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,
    /// The field, such as `spec.ingress[0].from[1]`.
    field: &'r str,
    text: &'r str,
    help: String,
}

impl Item {
    pub(super) const fn new(code: Code, fault: Fault) -> Self {
        Self { code, fault }
    }

    /// The file, if it is in one.
    pub(super) fn file(&self) -> Option<&Path> {
        (self.fault.line > 0).then_some(&*self.fault.file)
    }

    /// `file:line:column: warning: text [TP101] (field path)`. What an API server would refuse has no code: there is
    /// nothing to look up or to silence.
    pub(super) fn line(&self) -> String {
        let Fault { file, line, column, severity, text, path, object } = &self.fault;
        let place = match (self.file(), object) {
            (Some(_), _) => format!("{}:{line}:{column}", file.display()),
            (None, Some(object)) => object.to_string(),
            (None, None) => "cluster".to_owned(),
        };
        let code = if self.fault.is_error() { String::new() } else { format!(" [{}]", self.code) };
        let path = if path.is_empty() { String::new() } else { format!(" ({path})") };
        printable(&format!("{place}: {severity}: {text}{code}{path}"))
    }
}

impl Report {
    pub(super) fn new(mut items: Vec<Item>, omitted: usize) -> Self {
        items.sort_by(|a, b| {
            let key = |item: &'_ Item| {
                let Fault { line, column, severity, .. } = item.fault;
                (line, column, severity, item.code)
            };
            a.fault.file.cmp(&b.fault.file).then_with(|| key(a).cmp(&key(b))).then_with(|| {
                let object = |item: &Item| item.fault.object.clone();
                object(a).cmp(&object(b)).then_with(|| a.fault.path.cmp(&b.fault.path))
            })
        });
        Self { items, omitted }
    }

    /// How many errors, warnings and notes there are.
    pub(super) fn counts(&self) -> [usize; 3] {
        [Severity::Error, Severity::Warning, Severity::Note]
            .map(|severity| self.items.iter().filter(|item| item.fault.severity == severity).count())
    }

    /// A line for each finding.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for item in &self.items {
            text.push_str(&item.line());
            text.push('\n');
        }
        if self.omitted > 0 {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} more findings, of policies with more than a hundred", self.omitted);
        }
        text
    }

    /// The same for scripts.
    pub(super) fn json(&self) -> Json<'_> {
        let [errors, warnings, notes] = self.counts();
        let findings = self.items.iter().map(|item| {
            let Fault { file, line, column, severity, text, path, object } = &item.fault;
            let is_in_file = item.file().is_some();
            JsonItem {
                code: item.code.id(),
                name: item.code.name(),
                severity: severity.to_string(),
                file: is_in_file.then(|| file.display().to_string()),
                line: is_in_file.then_some(*line),
                column: is_in_file.then_some(*column),
                kind: object.as_ref().map(|object| object.kind),
                object: object.as_ref().map(name_of),
                field: path,
                text,
                help: help(item.code),
            }
        });
        Json { findings: findings.collect(), errors, warnings, notes, omitted: self.omitted }
    }
}

/// The text without control characters: what a manifest names must not move a terminal's cursor.
fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    if text.chars().any(char::is_control) { text.chars().map(escape).collect() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(super::printable("a\u{1b}[2J\n\u{9b}é"), "a\\u{1b}[2J\\n\\u{9b}é");
    }
}
