//! Tables of who reaches whom: read from the story, filled from probes, printed side by side.
//!
//! A cell has three places: `t` is TCP on the receiver's own port, `x` TCP on 8080, `u` UDP on the receiver's own port;
//! a `.` means that it does not pass. A cell with only `-` is not a pair.

use std::fmt::Write as _;

/// The result of one transport between two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// It passes.
    Open,
    /// It does not.
    Closed,
    /// It passes in one family and not in the other.
    Mixed,
}

impl Mark {
    /// The mark for answers that should agree; no answers give `Mixed`, which no table expects.
    pub(super) fn of(answers: &[bool]) -> Self {
        match answers.split_first() {
            Some((first, others)) if others.iter().all(|other| other == first) => {
                if *first {
                    Self::Open
                } else {
                    Self::Closed
                }
            }
            _ => Self::Mixed,
        }
    }
}

/// The position of a mark in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    pub(super) row: usize,
    pub(super) column: usize,
    /// 0 to 2: `t`, `x`, `u`.
    pub(super) place: usize,
}

/// A cell: not a pair, or a mark for each transport.
type Cell = Option<[Mark; 3]>;

/// The letters of the three places.
const LETTERS: [char; 3] = ['t', 'x', 'u'];

/// Rows are senders, columns receivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReachTable {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<(String, Vec<Cell>)>,
}

/// A text that is not a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of an expected table: {text:?} is not a name and a cell for each column")]
pub(super) struct TableError {
    line: usize,
    text: String,
}

impl ReachTable {
    /// Parses the notation of the story.
    pub(super) fn parse(text: &str) -> Result<Self, TableError> {
        let mut lines = text.lines().enumerate();
        let head = lines.next().map(|(_, line)| line).unwrap_or_default();
        let columns: Vec<String> = head.split_whitespace().map(str::to_owned).collect();
        let row = |(at, line): (usize, &str)| {
            let error = || TableError { line: at + 1, text: line.trim().to_owned() };
            let mut words = line.split_whitespace();
            let name = words.next().ok_or_else(error)?;
            let cells = words.map(|word| cell(word).ok_or_else(error)).collect::<Result<Vec<_>, _>>()?;
            if cells.len() != columns.len() {
                return Err(error());
            }
            Ok((name.to_owned(), cells))
        };
        let rows = lines.map(row).collect::<Result<_, _>>()?;
        Ok(Self { columns, rows })
    }

    /// Every mark of every pair.
    pub(super) fn spots(&self) -> impl Iterator<Item = Spot> {
        self.rows.iter().enumerate().flat_map(|(row, (_, cells))| {
            let pairs = cells.iter().enumerate().filter(|(_, cell)| cell.is_some());
            pairs.flat_map(move |(column, _)| [0, 1, 2].map(|place| Spot { row, column, place }))
        })
    }

    /// One mark, if there is such a pair.
    pub(super) fn mark(&self, spot: Spot) -> Option<Mark> {
        let cell = self.rows.get(spot.row)?.1.get(spot.column)?;
        cell.as_ref()?.get(spot.place).copied()
    }

    /// The same table with other marks.
    pub(super) fn filled(&self, mark: impl Fn(Spot) -> Mark) -> Self {
        let mut table = self.clone();
        for (row, (_, cells)) in table.rows.iter_mut().enumerate() {
            for (column, cell) in cells.iter_mut().enumerate() {
                *cell = cell.map(|_| [0, 1, 2].map(|place| mark(Spot { row, column, place })));
            }
        }
        table
    }

    /// Every mark in which `seen` differs.
    pub(super) fn differences(&self, seen: &Self) -> Vec<Spot> {
        self.spots().filter(|spot| self.mark(*spot) != seen.mark(*spot)).collect()
    }
}

/// Parses one cell; `None` if it is not one.
fn cell(word: &str) -> Option<Cell> {
    if word == "-" {
        return Some(None);
    }
    let mut marks = [Mark::Closed; 3];
    let mut places = word.chars().zip(LETTERS).zip(&mut marks);
    places.try_for_each(|((character, letter), mark)| {
        if character == letter {
            *mark = Mark::Open;
        }
        (character == letter || character == '.').then_some(())
    })?;
    (word.len() == LETTERS.len()).then_some(Some(marks))
}

/// How to show a piece of text on a terminal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint {
    /// Whether this is a terminal that shows colours.
    pub(super) colour: bool,
}

impl Paint {
    pub(super) fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(super) fn red(self, text: &str) -> String {
        self.with("1;31", text)
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Both tables side by side; `ports` are below the names of the columns. A mark that differs is red, and its cell is
/// followed by a `!`.
pub(super) fn side_by_side(expected: &ReachTable, seen: &ReachTable, ports: &[u16], paint: Paint) -> String {
    let name_width = expected.rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 2;
    let ports: Vec<String> = ports.iter().map(|port| format!(":{port}")).collect();
    let widths: Vec<usize> = expected
        .columns
        .iter()
        .zip(&ports)
        .map(|(column, port)| column.len().max(port.len()).max(LETTERS.len() + 1) + 2)
        .collect();
    let half: usize = widths.iter().sum();
    let line = |words: &[String]| -> String {
        words.iter().zip(&widths).map(|(word, width)| padded(word, word.len(), *width)).collect()
    };
    let mut text = String::new();
    // Writing to a String cannot fail.
    let title = "expected";
    let left = padded(&paint.bold(title), title.len(), half);
    let _infallible = writeln!(text, "  {:<name_width$}{left}  {}", "", paint.bold("seen"));
    for heads in [&expected.columns, &ports] {
        let head = line(heads);
        let _infallible = writeln!(text, "  {:<name_width$}{head}  {}", "", head.trim_end());
    }
    for (row, (name, _)) in expected.rows.iter().enumerate() {
        let half = |table: &ReachTable| -> String {
            let cells = widths.iter().enumerate();
            cells.map(|(column, width)| show(expected, table, (row, column), *width, paint)).collect()
        };
        let _infallible =
            writeln!(text, "  {name:<name_width$}{}  {}", half(expected), half(seen).trim_end());
    }
    text
}

/// One cell of `table`, padded; `expected` says what is right.
fn show(
    expected: &ReachTable,
    table: &ReachTable,
    (row, column): (usize, usize),
    width: usize,
    paint: Paint,
) -> String {
    let mut shown = String::new();
    let mut wrong = false;
    for (place, letter) in LETTERS.into_iter().enumerate() {
        let spot = Spot { row, column, place };
        let Some(mark) = table.mark(spot) else { return padded("-", 1, width) };
        let right = expected.mark(spot) == Some(mark);
        wrong |= !right;
        let character = match mark {
            Mark::Open => letter.to_string(),
            Mark::Closed => ".".to_owned(),
            Mark::Mixed => "?".to_owned(),
        };
        shown.push_str(&match mark {
            _ if !right => paint.red(&character),
            Mark::Open => paint.green(&character),
            _ => paint.dim(&character),
        });
    }
    if wrong {
        shown.push_str(&paint.red("!"));
    }
    padded(&shown, LETTERS.len() + usize::from(wrong), width)
}

/// Text of a known visible length, padded to a width.
fn padded(text: &str, length: usize, width: usize) -> String {
    text.to_owned() + &" ".repeat(width.saturating_sub(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "          web  db\n  a/web   -    t.u\n  a/db    txu  -";
    const PLAIN: Paint = Paint { colour: false };

    fn spot((row, column, place): (usize, usize, usize)) -> Spot {
        Spot { row, column, place }
    }

    #[test]
    fn table_survives_formatting_and_parsing() {
        let table = ReachTable::parse(TEXT).unwrap();
        assert_eq!(table.columns, ["web", "db"]);
        let marks: Vec<_> = table.spots().map(|spot| (spot, table.mark(spot).unwrap())).collect();
        let expected = [
            ((0, 1, 0), Mark::Open),
            ((0, 1, 1), Mark::Closed),
            ((0, 1, 2), Mark::Open),
            ((1, 0, 0), Mark::Open),
            ((1, 0, 1), Mark::Open),
            ((1, 0, 2), Mark::Open),
        ];
        assert_eq!(marks, expected.map(|(at, mark)| (spot(at), mark)));
    }

    #[test]
    fn conflicting_answers_are_neither_open_nor_closed() {
        assert_eq!(Mark::of(&[true, true]), Mark::Open);
        assert_eq!(Mark::of(&[false]), Mark::Closed);
        assert_eq!(Mark::of(&[true, false]), Mark::Mixed);
        assert_eq!(Mark::of(&[]), Mark::Mixed);
    }

    #[test]
    fn invalid_table_is_refused() {
        for bad in [
            " web\n a/web tt.",
            " web\n a/web",
            " web\n a/web t.u t.u",
            " web\n a/web t.",
            " web\n a/web t.u.",
        ] {
            assert_eq!(ReachTable::parse(bad).map_err(|error| error.line), Err(2), "{bad:?}");
        }
    }

    #[test]
    fn all_differences_are_found_and_shown() {
        let expected = ReachTable::parse(TEXT).unwrap();
        let seen = expected.filled(|at| match (at.row, at.column, at.place) {
            (0, 1, 2) => Mark::Closed,
            (1, 0, 0) => Mark::Mixed,
            _ => expected.mark(at).unwrap(),
        });
        assert_eq!(expected.differences(&seen), [(0, 1, 2), (1, 0, 0)].map(spot));
        assert_eq!(expected.differences(&expected), []);
        let text = side_by_side(&expected, &seen, &[80, 5432], PLAIN);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["web", "db", "web", "db"]);
        assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["a/web", "-", "t.u", "-", "t..!"]);
        assert_eq!(lines[4].split_whitespace().collect::<Vec<_>>(), ["a/db", "txu", "-", "?xu!", "-"]);
    }
}
