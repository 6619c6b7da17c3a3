//! Splits a text into pieces that are parsed separately, so that a change of one does not reparse the others.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use super::{
    Options,
    object::{self, Contents, Manifest},
};
use crate::k8s::{
    intern::Interner,
    yaml::{
        list::{self, List},
        node::{self, Document, RepeatedKey, SyntaxError},
        path::{PathSegment, Position},
        pieces::{Piece, pieces},
    },
};

/// A parsed piece, with its place in the text.
#[derive(Clone, Debug)]
pub struct PlacedChunk {
    /// How many lines of the text come before it.
    pub lines: u32,
    /// How many characters of its first line come before it.
    pub columns: u32,
    /// Which item of a list it is, if it is one.
    pub item: Option<usize>,
    /// What it holds.
    pub chunk: Arc<Chunk>,
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

/// The pieces of the previous text that were parsed, by a hash of their text.
#[derive(Debug, Default)]
pub struct ParsedChunks {
    hasher: RandomState,
    chunks: HashMap<(u64, usize), Arc<Chunk>>,
}

/// Parses a text, and reuses what is known from the previous text.
pub struct TextReader<'r> {
    before: &'r ParsedChunks,
    now: ParsedChunks,
    options: Options,
    names: &'r mut Interner,
}

impl<'r> TextReader<'r> {
    /// Starts to parse a text that may share pieces with the one that `before` was read from.
    #[must_use]
    pub fn new(before: &'r ParsedChunks, options: Options, names: &'r mut Interner) -> Self {
        let now = ParsedChunks {
            hasher: before.hasher.clone(),
            chunks: HashMap::with_capacity(before.chunks.len()),
        };
        Self { before, now, options, names }
    }

    /// Parses `text`; also returns what to know when it is parsed the next time.
    #[must_use]
    pub fn read(mut self, text: &str) -> (Vec<PlacedChunk>, ParsedChunks) {
        /// A shorter list is parsed as a whole: splitting it would save nothing.
        const LONG: usize = 32 * 1024;
        let mut placed = Vec::new();
        for document in pieces(text) {
            let list = if document.text.len() < LONG { None } else { list::cut(document.text) };
            match list.and_then(|list| self.items(&list, document.lines)) {
                Some(items) => placed.extend(items),
                None => placed.push(self.document(document)),
            }
        }
        (placed, self.now)
    }

    fn document(&mut self, Piece { lines, columns, text }: Piece<'_>) -> PlacedChunk {
        let chunk = self.known(text, "", "", |text, options, names| {
            let (documents, error) = node::parse(text);
            let mut chunk = Chunk { error, ..Chunk::default() };
            for document in documents {
                let Some(root) = &document.root else { continue };
                chunk.add(object::read(root, &document.repeated, None, options, names));
            }
            chunk
        });
        PlacedChunk { lines, columns, item: None, chunk }
    }

    /// The items of a list, each parsed separately; `None` if any of them cannot be.
    fn items(&mut self, list: &List<'_>, lines_before: u32) -> Option<Vec<PlacedChunk>> {
        let kind = (!list.kind.is_empty()).then_some((list.api.as_str(), list.kind.as_str()));
        let mut placed = Vec::with_capacity(list.items.len());
        for (index, Piece { lines, columns, text }) in list.items.iter().copied().enumerate() {
            let chunk = self.known(text, &list.api, &list.kind, |text, options, names| {
                let (documents, mut error) = node::parse(text);
                let mut chunk = Chunk::default();
                let item = match &documents[..] {
                    [Document { root: Some(root), repeated }] => {
                        list::item(root, text).map(|item| (item, repeated))
                    }
                    _ => None,
                };
                match item {
                    Some((item, repeated)) => {
                        let repeated = within_item(repeated);
                        chunk.add(object::read(item, &repeated, kind, options, names));
                    }
                    None if error.is_none() => {
                        error = Some(SyntaxError { at: Position::START, text: "not one item".to_owned() });
                    }
                    None => {}
                }
                Chunk { error, ..chunk }
            });
            if chunk.error.is_some() {
                return None;
            }
            placed.push(PlacedChunk { lines: lines_before + lines, columns, item: Some(index), chunk });
        }
        Some(placed)
    }

    /// The contents of `text`, from memory if possible.
    fn known(
        &mut self,
        text: &str,
        api: &str,
        kind: &str,
        read: impl FnOnce(&str, Options, &mut Interner) -> Chunk,
    ) -> Arc<Chunk> {
        let key = (self.now.hasher.hash_one((api, kind, text)), text.len());
        let chunk = match self.before.chunks.get(&key) {
            Some(chunk) => chunk.clone(),
            None => Arc::new(read(text, self.options, self.names)),
        };
        self.now.chunks.insert(key, chunk.clone());
        chunk
    }
}

/// The same keys, with paths that begin inside of the item instead of at the list around it.
fn within_item(repeated: &[RepeatedKey]) -> Vec<RepeatedKey> {
    let inside = |key: &RepeatedKey| {
        let steps = key.path.steps().iter().cloned();
        steps.skip_while(|step| matches!(step, PathSegment::Index(_))).collect()
    };
    repeated.iter().map(|key| RepeatedKey { path: inside(key), ..key.clone() }).collect()
}

impl Chunk {
    fn add(&mut self, contents: Contents) {
        self.manifests.extend(contents.manifests.into_iter().map(Arc::new));
        self.skipped.extend(contents.skipped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_chunk_keeps_its_complete_documents() {
        let mut names = Interner::new();
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n...\nkind: [\n";
        let (placed, _) =
            TextReader::new(&ParsedChunks::default(), Options::default(), &mut names).read(text);
        assert_eq!(placed[0].chunk.manifests.len(), 1);
        assert!(placed[0].chunk.error.is_some());
    }

    /// A list of namespaces that is long enough to be split; one item has `extra`.
    fn long_list(extra: &str) -> String {
        let mut text = String::from("apiVersion: v1\nkind: NamespaceList\nitems:\n");
        for n in 0..2000 {
            let extra = if n == 1234 { extra } else { "" };
            text.push_str(&["- metadata:\n    name: n", &n.to_string(), "\n", extra].concat());
        }
        text
    }

    #[test]
    fn items_of_a_long_list_are_parsed_one_by_one_and_only_once() {
        let mut names = Interner::new();
        let (before, known) =
            TextReader::new(&ParsedChunks::default(), Options::default(), &mut names).read(&long_list(""));
        assert_eq!(before.len(), 2000);
        let extra = "    nam: a\n    name: b\n";
        let (after, _) = TextReader::new(&known, Options::default(), &mut names).read(&long_list(extra));
        let read = |n: &usize| !Arc::ptr_eq(&before[*n].chunk, &after[*n].chunk);
        assert_eq!((0..2000).filter(read).collect::<Vec<_>>(), [1234]);
        let PlacedChunk { lines, item, chunk, .. } = &after[1234];
        assert_eq!((*lines, *item), (3 + 2 * 1234, Some(1234)));
        let problems: Vec<String> =
            chunk.manifests[0].problems.iter().map(|(_, p)| p.path.to_string()).collect();
        assert_eq!(problems, ["metadata.nam", "metadata.name"]);
    }

    #[test]
    fn long_list_with_an_alias_between_items_is_parsed_as_a_whole() {
        let mut names = Interner::new();
        let text = long_list("").replacen("- metadata:", "- metadata: &m", 1) + "- metadata: *m\n";
        let (placed, _) =
            TextReader::new(&ParsedChunks::default(), Options::default(), &mut names).read(&text);
        assert_eq!(placed.len(), 1);
        assert_eq!(placed[0].chunk.manifests.len(), 2001);
    }
}
