//! The difference as Markdown, for a comment on a pull request.

use std::fmt::Write as _;

use super::report::{Line, Report};
use crate::policy::difference::Kind;

/// GitHub refuses comments of more than 65,536 characters.
const MOST: usize = 60_000;

/// Names in one cell.
const NAMES: usize = 20;

/// The report as a comment.
pub(super) fn markdown(report: &Report<'_>) -> String {
    let mut text = format!("### NetworkPolicy: {}\n\n", title(report));
    for (word, policies) in report.policies.lists() {
        let policies: Vec<String> = policies.iter().map(|name| format!("`{}`", escaped(name))).collect();
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "Policies {word}: {}  ", shortened(&policies));
    }
    for kind in Kind::ALL {
        let (lines, pods) = (report.lines(kind), report.only_in(kind));
        let (sign, title, is_folded) = match kind {
            Kind::Opened => ("+", "Opened".to_owned(), false),
            Kind::Closed => ("-", "Closed".to_owned(), false),
            Kind::New => ("+", format!("New pods: {}", code(&pods)), true),
            Kind::Removed => ("-", format!("Removed pods: {}", code(&pods)), true),
        };
        if lines.is_empty() && pods.is_empty() {
            continue;
        }
        if is_folded {
            let title = title.replace('`', "");
            let _ = write!(text, "\n<details><summary>{title}</summary>\n\n");
        } else {
            let _ = write!(text, "\n**{title}**\n\n");
        }
        table(&mut text, sign, &lines);
        if is_folded {
            text.push_str("\n</details>\n");
        }
    }
    let _ = write!(text, "\n<sub>{}</sub>\n", report.scope());
    text
}

/// `2 opened, 1 closed`.
fn title(report: &Report<'_>) -> String {
    let words = Kind::ALL.into_iter().filter_map(|kind| {
        let count = report.lines(kind).len();
        let word = match kind {
            Kind::Opened => "opened",
            Kind::Closed => "closed",
            Kind::New => "of new pods",
            Kind::Removed => "of removed pods",
        };
        (count > 0).then(|| format!("{count} {word}"))
    });
    let words: Vec<String> = words.collect();
    if words.is_empty() { "no flow differs".to_owned() } else { words.join(", ") }
}

fn table(text: &mut String, sign: &str, lines: &[Line]) {
    if lines.is_empty() {
        text.push_str("No flow from or to them passes.\n");
        return;
    }
    text.push_str("| | from | to | ports |\n|---|---|---|---|\n");
    for (at, line) in lines.iter().enumerate() {
        if text.len() > MOST {
            let _ = writeln!(text, "\n{} more: run `towpath diff` to see them.", lines.len() - at);
            return;
        }
        let over = line.family.map_or_else(String::new, |family| format!("<br>only over {family}"));
        let ports = shortened(&line.ports.iter().map(|part| escaped(part)).collect::<Vec<_>>());
        let _ = writeln!(text, "| {sign} | {} | {} | {ports}{over} |", code(&line.from), code(&line.to));
    }
}

/// Names as code, which nothing interprets.
fn code(names: &[String]) -> String {
    shortened(&names.iter().map(|name| format!("`{}`", escaped(name))).collect::<Vec<_>>())
}

fn shortened(parts: &[String]) -> String {
    let shown: Vec<&str> = parts.iter().take(NAMES).map(String::as_str).collect();
    match parts.len().saturating_sub(NAMES) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Without what would end a cell, or the code in it. Names of objects have none of it; the text of a fault might.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            '|' | '`' | '<' | '>' | '\n' => ' ',
            other => other,
        })
        .collect()
}
