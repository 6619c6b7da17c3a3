//! Splits a text into its YAML documents without parsing them.

/// A piece of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'t> {
    /// How many lines of the text come before it.
    pub lines: u32,
    /// How many characters of its first line come before it.
    pub columns: u32,
    /// The piece itself.
    pub text: &'t str,
}

/// Splits `text` before every line that begins a YAML document (`---`).
///
/// Such a line begins a document wherever it occurs, also inside of quotes and blocks, so the pieces mean the same as
/// the whole. Text before the first document stays with it if it is more than comments (a `%YAML` directive).
#[must_use]
pub fn pieces(text: &str) -> Vec<Piece<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut pieces = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 0, 0);
    let mut directive = false;
    for (line, content) in (0u32..).zip(text.split_inclusive('\n')) {
        let begins = content
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if begins && at > start && !directive {
            pieces.push(Piece { lines: start_line, columns: 0, text: &text[start..at] });
            (start, start_line) = (at, line);
        }
        directive = content.starts_with('%') || (directive && !begins);
        at += content.len();
    }
    pieces.push(Piece { lines: start_line, columns: 0, text: &text[start..] });
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<(u32, &str)> {
        pieces(text).into_iter().map(|piece| (piece.lines, piece.text)).collect()
    }

    #[test]
    fn text_is_split_at_its_documents() {
        assert_eq!(
            cut("a: 1\n---\nb: 2\n--- # c\nc: 3"),
            [(0, "a: 1\n"), (1, "---\nb: 2\n"), (3, "--- # c\nc: 3")]
        );
        assert_eq!(cut("---\r\na: 1\r\n---\r\nb: 2\r\n"), [(0, "---\r\na: 1\r\n"), (2, "---\r\nb: 2\r\n")]);
        assert_eq!(cut("\u{feff}a: 1\n"), [(0, "a: 1\n")]);
        assert_eq!(cut(""), [(0, "")]);
    }

    #[test]
    fn dashes_inside_a_line_do_not_split() {
        assert_eq!(cut("a: ---\n  ---\n---a\n----\n").len(), 1);
    }

    #[test]
    fn directive_stays_with_its_document() {
        assert_eq!(
            cut("%YAML 1.1\n---\na: 1\n---\nb: 2\n"),
            [(0, "%YAML 1.1\n---\na: 1\n"), (3, "---\nb: 2\n")]
        );
    }
}
