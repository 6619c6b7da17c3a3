//! What was found, as SARIF 2.1.0: the format in which code review tools take findings.

use std::path::Path;

use serde::Serialize;

use super::{
    HOME, help, name_of,
    report::{Item, Report},
};
use crate::{
    k8s::fault::Severity,
    policy::findings::{Code, Level},
};

/// Where the format is defined.
const SCHEMA: &str =
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Log<'r> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    version: &'static str,
    runs: [Run<'r>; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Run<'r> {
    tool: Tool,
    column_kind: &'static str,
    results: Vec<Finding<'r>>,
}

#[derive(Debug, Serialize)]
struct Tool {
    driver: Driver,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Driver {
    name: &'static str,
    semantic_version: &'static str,
    information_uri: &'static str,
    rules: Vec<Rule>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    id: &'static str,
    name: &'static str,
    short_description: Message<'static>,
    help_uri: String,
    default_configuration: Configuration,
}

#[derive(Debug, Serialize)]
struct Configuration {
    level: &'static str,
}

#[derive(Debug, Serialize)]
struct Message<'r> {
    text: &'r str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding<'r> {
    rule_id: &'static str,
    rule_index: usize,
    level: &'static str,
    message: Message<'r>,
    locations: [Location; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Location {
    #[serde(skip_serializing_if = "Option::is_none")]
    physical_location: Option<Physical>,
    logical_locations: Vec<Logical>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Physical {
    artifact_location: Artifact,
    region: Region,
}

#[derive(Debug, Serialize)]
struct Artifact {
    uri: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Region {
    start_line: u32,
    start_column: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Logical {
    fully_qualified_name: String,
    kind: &'static str,
}

/// The findings as a log of one run.
pub(super) fn log(report: &Report) -> Log<'_> {
    let rules = Code::ALL.iter().map(|code| Rule {
        id: code.id(),
        name: code.name(),
        short_description: Message { text: code.title() },
        help_uri: help(*code),
        default_configuration: Configuration { level: level(code.level()) },
    });
    let driver = Driver {
        name: env!("CARGO_PKG_NAME"),
        semantic_version: env!("CARGO_PKG_VERSION"),
        information_uri: HOME,
        rules: rules.collect(),
    };
    let run = Run {
        tool: Tool { driver },
        column_kind: "unicodeCodePoints",
        results: report.items.iter().map(result).collect(),
    };
    Log { schema: SCHEMA, version: "2.1.0", runs: [run] }
}

fn result(item: &Item) -> Finding<'_> {
    let fault = &item.fault;
    let physical_location = item.file().map(|file| Physical {
        artifact_location: Artifact { uri: uri(file) },
        region: Region { start_line: fault.line, start_column: fault.column },
    });
    // The object and its field: what a line means after the file has changed.
    let object = fault.object.iter().map(|object| Logical {
        fully_qualified_name: format!("{}/{}", object.kind, name_of(object)),
        kind: "resource",
    });
    let field = (!fault.path.is_empty())
        .then(|| Logical { fully_qualified_name: fault.path.clone(), kind: "member" });
    Finding {
        rule_id: item.code.id(),
        rule_index: Code::ALL.iter().position(|code| *code == item.code).unwrap_or_default(),
        level: match fault.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        },
        message: Message { text: &fault.text },
        locations: [Location { physical_location, logical_locations: object.chain(field).collect() }],
    }
}

const fn level(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warning => "warning",
        Level::Note => "note",
    }
}

/// The path as a URI: relative to where the command was run, as review tools expect it, or absolute.
fn uri(file: &Path) -> String {
    use std::fmt::Write as _;
    let mut uri = if file.is_absolute() { "file://".to_owned() } else { String::new() };
    let file = file.strip_prefix("./").unwrap_or(file);
    for byte in file.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            // Writing to a String cannot fail.
            byte => drop(write!(uri, "%{byte:02X}")),
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_is_relative_and_escaped() {
        assert_eq!(uri(Path::new("./a b/ö.yaml")), "a%20b/%C3%B6.yaml");
        assert_eq!(uri(Path::new("/x/a:b.yaml")), "file:///x/a%3Ab.yaml");
    }
}
