//! docs/lint.md explains every code, with an example that has the finding and one that has not.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use towpath::policy::findings::{Code, Level};

use crate::{codes, lines};

/// Findings without an example: it would be a thousand rules long.
const WITHOUT_EXAMPLE: [Code; 1] = [Code::OverBudget];

/// The page, as its text, the objects of all examples, and the sections of codes.
struct Page {
    base: String,
    sections: BTreeMap<String, String>,
}

fn page() -> Page {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/lint.md")).unwrap();
    let (_, examples) = text.split_once("\n## Examples\n").unwrap();
    let sections = examples.split("\n### ").skip(1).map(|section| {
        let (code, body) = section.split_once('\n').unwrap();
        (code.to_owned(), body.split("\n## ").next().unwrap().to_owned())
    });
    Page { base: blocks(examples).remove(0), sections: sections.collect() }
}

/// The blocks of YAML in a text.
fn blocks(text: &str) -> Vec<String> {
    text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn every_code_has_a_section_and_every_section_a_code() {
    let page = page();
    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.id()).collect();
    assert_eq!(page.sections.keys().map(String::as_str).collect::<Vec<_>>(), codes);
    for code in Code::ALL {
        let level = match code.level() {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        };
        let head = format!("\n`{}`, {level}: {}\n", code.name(), code.title());
        assert!(page.sections[code.id()].starts_with(&head), "{code}: not {head:?}");
    }
}

#[test]
fn first_example_of_a_section_has_the_finding_and_the_second_has_not() {
    let Page { base, sections } = page();
    let mut failures = String::new();
    for code in Code::ALL.iter().filter(|code| !WITHOUT_EXAMPLE.contains(code)) {
        let examples = blocks(&sections[code.id()]);
        let [bad, good] = &examples[..] else { panic!("{code} has {} examples", examples.len()) };
        let [bad, good] = [bad, good].map(|example| format!("{base}---\n{example}"));
        if !codes(&bad).contains(code) {
            writeln!(failures, "{code} is not found in its first example: {:#?}", lines(&bad)).unwrap();
        }
        if codes(&good).contains(code) {
            writeln!(failures, "{code} is found in its second example: {:#?}", lines(&good)).unwrap();
        }
        for line in lines(&good).iter().filter(|line| line.contains(": error: ")) {
            writeln!(failures, "{code}: {line}").unwrap();
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn objects_of_the_examples_have_no_finding() {
    assert_eq!(lines(&page().base), [""; 0]);
}
