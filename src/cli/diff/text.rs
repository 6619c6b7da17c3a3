//! The difference as text.

use super::report::{Line, Report};
use crate::{
    cli::terminal::{Layout, Paint, wrapped},
    policy::difference::Kind,
};

/// The columns before a flow: two blanks, its sign and a blank.
const INDENT: usize = 4;

/// The report for a terminal.
pub(super) fn text(report: &Report<'_>, layout: Layout) -> String {
    let mut text = Text { text: String::new(), layout };
    for (word, policies) in report.policies.lists() {
        let title = if policies.len() == 1 { "Policy" } else { "Policies" };
        text.paragraph(None, &format!("{title} {word}: {}", policies.join(", ")), 2);
    }
    if report.policies.lists().next().is_some() {
        text.text.push('\n');
    }
    for kind in Kind::ALL {
        text.section(report, kind);
    }
    if report.difference.rows.is_empty() {
        text.paragraph(Some(Paint::Bold), "No flow differs.", 0);
        text.text.push('\n');
    }
    text.paragraph(Some(Paint::Dim), &report.scope(), 2);
    text.text
}

struct Text {
    text: String,
    layout: Layout,
}

impl Text {
    fn section(&mut self, report: &Report<'_>, kind: Kind) {
        let lines = report.lines(kind);
        let pods = report.only_in(kind).join(", ");
        let (sign, paint, title) = match kind {
            Kind::Opened => ('+', Paint::Green, "Opened".to_owned()),
            Kind::Closed => ('-', Paint::Red, "Closed".to_owned()),
            Kind::New => ('+', Paint::Green, format!("New pods: {pods}. Flows that pass")),
            Kind::Removed => ('-', Paint::Red, format!("Removed pods: {pods}. Flows that passed")),
        };
        let is_one_sided = matches!(kind, Kind::New | Kind::Removed);
        if lines.is_empty() && (!is_one_sided || pods.is_empty()) {
            return;
        }
        let title = if lines.is_empty() { format!("{title}: none") } else { format!("{title}:") };
        self.paragraph(Some(Paint::Bold), &title, 2);
        for line in lines {
            self.paragraph(Some(paint), &format!("  {sign} {}", words(&line)), INDENT);
        }
        self.text.push('\n');
    }

    fn paragraph(&mut self, paint: Option<Paint>, text: &str, indent: usize) {
        for line in wrapped(text, self.layout.width, indent) {
            let line = paint.map_or_else(|| line.clone(), |paint| self.layout.paint(paint, &line));
            self.text.push_str(&line);
            self.text.push('\n');
        }
    }
}

/// `shop/web -> shop/db: 5432/TCP`.
fn words(line: &Line) -> String {
    let over = line.family.map_or_else(String::new, |family| format!(" (only over {family})"));
    format!("{} -> {}: {}{over}", line.from.join(", "), line.to.join(", "), line.ports.join(", "))
}
