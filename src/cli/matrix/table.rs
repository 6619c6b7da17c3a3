//! The matrix as a table.

use std::fmt::Write as _;

use super::{
    grouped::Grouped,
    pods::{meaning, sign},
};
use crate::{
    cli::terminal::{Layout, Paint, wrapped},
    policy::Reach,
};

/// The gap between two columns.
const GAP: usize = 2;

/// More columns are hard to follow, even where they fit: a list says the same.
const MOST_COLUMNS: usize = 40;

/// A block for all ports with the same verdicts: senders are rows, receivers are columns. Ports on which all is the same
/// are only named. `None` if it does not fit.
pub(super) fn table(grouped: &Grouped<'_>, layout: Layout) -> Option<String> {
    let count = grouped.len();
    let transports = 0..grouped.transports().len();
    let is_used = |from: usize, to: usize| {
        transports.clone().any(|at| grouped.reach(from, to, at).is_some())
            || (!grouped.is_filtered() && from == to)
    };
    let rows: Vec<usize> = (0..count).filter(|from| (0..count).any(|to| is_used(*from, to))).collect();
    let columns: Vec<usize> = (0..count).filter(|to| (0..count).any(|from| is_used(from, *to))).collect();
    if rows.is_empty() {
        return Some("No flow is left after filtering.\n".to_owned());
    }
    if columns.len() > MOST_COLUMNS {
        return None;
    }
    let (everywhere, blocks) = split(grouped, &rows, &columns);
    let ports = |block: &[usize]| grouped.ports(block);
    let headings = Headings::that_fit(grouped, &rows, &columns, layout.width)?;
    let mut text = String::new();
    let mut signs: Vec<Reach> = Vec::new();
    for block in &blocks {
        let ports = ports(block);
        // In the corner, if there is room.
        let corner = if ports.chars().count() <= headings.first { ports.as_str() } else { "" };
        if corner.is_empty() {
            for line in wrapped(&ports, layout.width, 2) {
                let _ = writeln!(text, "{}", layout.paint(Paint::Bold, &line));
            }
        }
        headings.write_columns(&mut text, corner, layout);
        for row in &rows {
            headings.write_row(&mut text, *row, layout, |column| {
                let at = *block.first()?;
                let reach = match grouped.reach(*row, column, at) {
                    None if *row == column && grouped.members(column).len() == 1 => Reach::Itself,
                    reach => reach?,
                };
                if !signs.iter().any(|known| sign(*known) == sign(reach)) {
                    signs.push(reach);
                }
                Some(reach)
            });
        }
        text.push('\n');
    }
    for (words, block) in everywhere {
        for line in wrapped(&format!("{words}: {}", ports(&block)), layout.width, 2) {
            let _ = writeln!(text, "{line}");
        }
    }
    if !signs.is_empty() {
        signs.sort_by_key(|reach| sign(*reach));
        let legend: Vec<String> =
            signs.iter().map(|reach| format!("{} {}", sign(*reach), meaning(*reach))).collect();
        let _ = writeln!(text, "{}", layout.paint(Paint::Dim, &legend.join("   ")));
    }
    if grouped.has_own_nodes() {
        let note = "A pod and its own node always reach each other, whatever the table says.";
        for line in wrapped(note, layout.width, 0) {
            let _ = writeln!(text, "{}", layout.paint(Paint::Dim, &line));
        }
    }
    Some(text)
}

/// The blocks in which all verdicts are the same, with what they are, if there are others; and the others.
#[expect(clippy::type_complexity, reason = "two lists, taken apart by the caller at once")]
fn split(
    grouped: &Grouped<'_>,
    rows: &[usize],
    columns: &[usize],
) -> (Vec<(&'static str, Vec<usize>)>, Vec<Vec<usize>>) {
    let (mut everywhere, mut others) = (Vec::new(), Vec::new());
    for block in grouped.blocks(rows, columns) {
        let Some(at) = block.first().copied() else { continue };
        let groups = || 0..grouped.len();
        let verdicts =
            || groups().flat_map(|from| groups().filter_map(move |to| grouped.any_reach(from, to, at)));
        if verdicts().all(|reach| reach == Reach::Allowed) {
            everywhere.push(("Allowed between all", block));
        } else if verdicts().all(|reach| reach == Reach::Denied) {
            everywhere.push(("Denied between all", block));
        } else {
            others.push(block);
        }
    }
    // Then the table says between whom.
    if others.is_empty() {
        others = everywhere.drain(..).map(|(_, block)| block).collect();
    }
    (everywhere, others)
}

/// The headings of rows and columns.
struct Headings {
    rows: Vec<(usize, String)>,
    columns: Vec<(usize, String)>,
    first: usize,
}

impl Headings {
    /// With names if they fit, else with numbers. `None` if those do not fit either.
    fn that_fit(grouped: &Grouped<'_>, rows: &[usize], columns: &[usize], width: usize) -> Option<Self> {
        let named = |groups: &[usize]| -> Vec<(usize, String)> {
            groups.iter().map(|group| (*group, grouped.title(*group).to_owned())).collect()
        };
        let digits = grouped.len().to_string().len();
        let numbered = |groups: &[usize]| -> Vec<(usize, String)> {
            groups.iter().map(|group| (*group, (group + 1).to_string())).collect()
        };
        let with_numbers =
            |group: &usize| (*group, format!("{:>digits$} {}", group + 1, grouped.title(*group)));
        let is_same = rows == columns;
        let mut candidates = vec![Self::new(named(rows), named(columns))];
        // A number in a column refers to the row with the same number: there must be one.
        if is_same {
            candidates.push(Self::new(rows.iter().map(with_numbers).collect(), numbered(columns)));
        }
        candidates.into_iter().find(|headings| headings.width() <= width)
    }

    fn new(rows: Vec<(usize, String)>, columns: Vec<(usize, String)>) -> Self {
        let first = rows.iter().map(|(_, text)| text.chars().count()).max().unwrap_or_default();
        Self { rows, columns, first }
    }

    fn width(&self) -> usize {
        self.first + self.columns.iter().map(|(_, text)| GAP + text.chars().count()).sum::<usize>()
    }

    fn write_columns(&self, text: &mut String, corner: &str, layout: Layout) {
        text.push_str(&layout.paint(Paint::Bold, corner));
        let mut line = " ".repeat(self.first - corner.chars().count());
        for (_, column) in &self.columns {
            let _ = write!(line, "{:GAP$}{column}", "");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }

    fn write_row(
        &self,
        text: &mut String,
        row: usize,
        layout: Layout,
        mut cell: impl FnMut(usize) -> Option<Reach>,
    ) {
        let Some((_, title)) = self.rows.iter().find(|(group, _)| *group == row) else { return };
        let _ = write!(text, "{title}");
        let mut blanks = self.first - title.chars().count();
        for (column, heading) in &self.columns {
            blanks += GAP;
            let width = heading.chars().count();
            let Some(reach) = cell(*column) else {
                blanks += width;
                continue;
            };
            let paint = match reach {
                Reach::Allowed => Paint::Green,
                Reach::Denied => Paint::Red,
                Reach::Itself | Reach::Only(..) => Paint::Dim,
            };
            let _ = write!(text, "{:blanks$}{}", "", layout.paint(paint, sign(reach)));
            blanks = width.saturating_sub(1);
        }
        text.push('\n');
    }
}
