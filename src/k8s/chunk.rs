//! A text in the pieces that can be read apart, so that a change of one need not read the others again.

use std::sync::Arc;

use super::{
    intern::Interner,
    node::{self, SyntaxError},
    object::{self, Manifest},
};

/// A piece of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'t> {
    /// How many lines of the text stand in front of it.
    pub lines: u32,
    /// The piece itself.
    pub text: &'t str,
}

/// What a piece holds. Positions in it count from its own first line.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Its objects, of the kinds that matter.
    pub manifests: Vec<Arc<Manifest>>,
    /// Objects of other kinds, by `apiVersion/kind`.
    pub skipped: Vec<String>,
    /// Why it could not be read to its end.
    pub error: Option<SyntaxError>,
}

/// Cuts `text` before every line that begins a YAML document (`---`).
///
/// Such a line begins a document wherever it stands, also inside of quotes and blocks, so that the pieces mean what
/// the whole means. What stands before the first document and is more than comments (a `%YAML` directive) stays with
/// it.
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
            pieces.push(Piece { lines: start_line, text: &text[start..at] });
            (start, start_line) = (at, line);
        }
        directive = content.starts_with('%') || (directive && !begins);
        at += content.len();
    }
    pieces.push(Piece { lines: start_line, text: &text[start..] });
    pieces
}

/// Reads a piece.
#[must_use]
pub fn read(text: &str, workloads: bool, names: &mut Interner) -> Chunk {
    let (documents, error) = node::parse(text);
    let mut chunk = Chunk { error, ..Chunk::default() };
    for document in documents {
        let Some(root) = &document.root else { continue };
        let contents = object::read(root, &document.repeated, workloads, names);
        chunk.manifests.extend(contents.manifests.into_iter().map(Arc::new));
        chunk.skipped.extend(contents.skipped);
    }
    chunk
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<(u32, &str)> {
        pieces(text).into_iter().map(|piece| (piece.lines, piece.text)).collect()
    }

    #[test]
    fn a_text_is_cut_where_its_documents_begin() {
        assert_eq!(
            cut("a: 1\n---\nb: 2\n--- # c\nc: 3"),
            [(0, "a: 1\n"), (1, "---\nb: 2\n"), (3, "--- # c\nc: 3")]
        );
        assert_eq!(cut("---\r\na: 1\r\n---\r\nb: 2\r\n"), [(0, "---\r\na: 1\r\n"), (2, "---\r\nb: 2\r\n")]);
        assert_eq!(cut("\u{feff}a: 1\n"), [(0, "a: 1\n")]);
        assert_eq!(cut(""), [(0, "")]);
    }

    #[test]
    fn dashes_inside_of_a_line_or_a_word_cut_nothing() {
        assert_eq!(cut("a: ---\n  ---\n---a\n----\n").len(), 1);
    }

    #[test]
    fn a_directive_stays_with_its_document() {
        assert_eq!(
            cut("%YAML 1.1\n---\na: 1\n---\nb: 2\n"),
            [(0, "%YAML 1.1\n---\na: 1\n"), (3, "---\nb: 2\n")]
        );
    }

    #[test]
    fn a_piece_that_breaks_off_keeps_what_was_whole_before() {
        let mut names = Interner::new();
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n...\nkind: [\n";
        let chunk = read(text, false, &mut names);
        assert_eq!(chunk.manifests.len(), 1);
        assert!(chunk.error.is_some());
    }
}
