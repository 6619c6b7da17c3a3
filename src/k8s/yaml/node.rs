//! YAML text as a tree in which every value has its position.
//!
//! JSON is read the same way: every JSON text is YAML.

use std::{borrow::Cow, collections::HashMap};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, StrInput, Tag};

use super::{
    path::{FieldPath, PathSegment, Position},
    scalar::{ScalarKind, resolve},
};

/// How deeply lists and mappings may nest. No Kubernetes object comes near it.
const DEPTH: usize = 100;

/// How many nodes aliases may copy in one document: otherwise a few lines of aliases of aliases could fill the memory.
const COPIES: usize = 100_000;

/// A value and its position.
#[derive(Clone, Debug, PartialEq)]
pub struct YamlNode<'t> {
    /// Where it begins.
    pub at: Position,
    /// What it is.
    pub value: Value<'t>,
}

/// What a [`YamlNode`] is.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'t> {
    /// A single value: its text, and what that means.
    Scalar(Cow<'t, str>, ScalarKind),
    /// A list.
    List(Vec<YamlNode<'t>>),
    /// A mapping, in the order of the text; every key once.
    Map(Vec<MapEntry<'t>>),
}

/// A key of a mapping with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct MapEntry<'t> {
    /// Where the key is.
    pub at: Position,
    /// The key.
    pub key: Cow<'t, str>,
    /// Its value.
    pub value: YamlNode<'t>,
}

/// One document of a text.
#[derive(Debug)]
pub struct Document<'t> {
    /// Its content; `None` if it holds nothing but blanks and comments.
    pub root: Option<YamlNode<'t>>,
    /// Keys that occur twice in one mapping. The tree has the first of each.
    pub repeated: Vec<RepeatedKey>,
}

/// A key that its mapping already had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepeatedKey {
    /// Where it occurs first.
    pub first: Position,
    /// Where it occurs again.
    pub again: Position,
    /// Its path.
    pub path: FieldPath,
}

/// A text that is not YAML.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {text}")]
pub struct SyntaxError {
    /// Where the reader stopped.
    pub at: Position,
    /// Why.
    pub text: String,
}

impl<'t> YamlNode<'t> {
    /// The value under `key`, if this is a mapping that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&YamlNode<'t>> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entry of `key`, if this is a mapping that has it.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<&MapEntry<'t>> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The entries, if this is a mapping.
    #[must_use]
    pub fn entries(&self) -> &[MapEntry<'t>] {
        if let Value::Map(entries) = &self.value { entries } else { &[] }
    }

    /// The text, if this is a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Value::Scalar(text, ScalarKind::String) = &self.value { Some(text) } else { None }
    }

    /// Whether it is null, written or left out.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Scalar(_, ScalarKind::Null))
    }

    /// The node at `path`, or the nearest one on the way to it.
    #[must_use]
    pub fn nearest(&self, path: &FieldPath) -> &YamlNode<'t> {
        self.walk(path).0
    }

    /// The position to report for a fault at `path`: the value if it is a single one, else the key that leads to it;
    /// the nearest position on the way if there is nothing at `path`.
    #[must_use]
    pub fn position(&self, path: &FieldPath) -> Position {
        let (node, at, whole) = self.walk(path);
        if whole && matches!(node.value, Value::Scalar(..)) && !node.is_null() { node.at } else { at }
    }

    /// The position of the key that leads to `path`.
    #[must_use]
    pub fn key_position(&self, path: &FieldPath) -> Position {
        self.walk(path).1
    }

    /// Follows `path` as far as it goes: the node there, the key or item that leads to it, and whether that is all.
    fn walk(&self, path: &FieldPath) -> (&YamlNode<'t>, Position, bool) {
        let (mut node, mut at) = (self, self.at);
        for step in path.steps() {
            let next = match (step, &node.value) {
                (PathSegment::Key(key), _) => node.entry(key).map(|entry| (&entry.value, entry.at)),
                (PathSegment::Index(index), Value::List(items)) => {
                    items.get(*index).map(|item| (item, item.at))
                }
                (PathSegment::Index(_), _) => None,
            };
            let Some(next) = next else { return (node, at, false) };
            (node, at) = next;
        }
        (node, at, true)
    }

    /// The same tree, with texts of its own.
    #[must_use]
    pub fn into_owned(self) -> YamlNode<'static> {
        let value = match self.value {
            Value::Scalar(text, kind) => Value::Scalar(Cow::Owned(text.into_owned()), kind),
            Value::List(items) => Value::List(items.into_iter().map(YamlNode::into_owned).collect()),
            Value::Map(entries) => {
                let owned = |MapEntry { at, key, value }: MapEntry<'t>| MapEntry {
                    at,
                    key: Cow::Owned(key.into_owned()),
                    value: value.into_owned(),
                };
                Value::Map(entries.into_iter().map(owned).collect())
            }
        };
        YamlNode { at: self.at, value }
    }

    /// The number of nodes in it, itself included.
    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Scalar(..) => 0,
            Value::List(items) => items.iter().map(YamlNode::size).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.value.size()).sum(),
        }
    }
}

/// Parses every document of `text`, up to the first syntax error, if there is one.
#[must_use]
pub fn parse(text: &str) -> (Vec<Document<'_>>, Option<SyntaxError>) {
    let mut documents = Vec::new();
    let mut parser = Parser::new_from_str(text);
    loop {
        match next_document(&mut parser) {
            Ok(Some(document)) => documents.push(document),
            Ok(None) => return (documents, None),
            Err(error) => return (documents, Some(error)),
        }
    }
}

fn next_document<'t>(parser: &mut Parser<'t, StrInput<'t>>) -> Result<Option<Document<'t>>, SyntaxError> {
    let mut builder = Builder::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| SyntaxError {
            at: position(*error.marker()),
            text: syntax_hint(error.info()),
        })?;
        let at = position(span.start);
        match event {
            Event::DocumentEnd => return Ok(Some(builder.finish())),
            Event::StreamEnd => return Ok(None),
            Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
            Event::Alias(anchor) => {
                let node = builder.alias(anchor, at)?;
                builder.put(node, 0)?;
            }
            Event::Scalar(text, style, anchor, tag) => {
                let kind = scalar_kind(&text, style, tag.as_deref(), at)?;
                builder.put(YamlNode { at, value: Value::Scalar(text, kind) }, anchor)?;
            }
            Event::SequenceStart(anchor, _) => builder.open(at, anchor, Held::List(Vec::new()))?,
            Event::MappingStart(anchor, _) => {
                builder.open(
                    at,
                    anchor,
                    Held::Map { entries: Vec::new(), key: None, merged: Vec::new(), seen: Seen::default() },
                )?;
            }
            Event::SequenceEnd | Event::MappingEnd => builder.close()?,
        }
    }
    Ok(None)
}

fn position(marker: Marker) -> Position {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Position { line: number(marker.line()).max(1), column: number(marker.col()).saturating_add(1) }
}

fn syntax_hint(info: &str) -> String {
    if info.contains("tab") {
        return format!("not valid YAML: {info}; indent with spaces");
    }
    format!("not valid YAML: {info}")
}

fn scalar_kind(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    at: Position,
) -> Result<ScalarKind, SyntaxError> {
    let Some(tag) = tag else {
        return Ok(if style == ScalarStyle::Plain { resolve(text) } else { ScalarKind::String });
    };
    if tag.is_yaml_core_schema() {
        match (tag.suffix.as_str(), resolve(text)) {
            ("str", _) => return Ok(ScalarKind::String),
            ("int", kind @ ScalarKind::Integer(_))
            | ("float", kind @ (ScalarKind::Float(_) | ScalarKind::Integer(_)))
            | ("bool", kind @ ScalarKind::Bool(_))
            | ("null", kind @ ScalarKind::Null) => return Ok(kind),
            _ => {}
        }
    } else if tag.handle.is_empty() && tag.suffix == "!" {
        return Ok(ScalarKind::String);
    }
    Err(SyntaxError { at, text: format!("the tag {tag} does not fit {text:?}: remove it") })
}

/// A document under construction: the open lists and mappings, outermost first.
#[derive(Default)]
struct Builder<'t> {
    open: Vec<Open<'t>>,
    root: Option<YamlNode<'t>>,
    anchors: HashMap<usize, YamlNode<'t>>,
    copied: usize,
    repeated: Vec<RepeatedKey>,
}

struct Open<'t> {
    at: Position,
    anchor: usize,
    held: Held<'t>,
}

enum Held<'t> {
    List(Vec<YamlNode<'t>>),
    Map {
        entries: Vec<MapEntry<'t>>,
        key: Option<(Position, Cow<'t, str>)>,
        merged: Vec<YamlNode<'t>>,
        seen: Seen<'t>,
    },
}

impl<'t> Builder<'t> {
    fn open(&mut self, at: Position, anchor: usize, held: Held<'t>) -> Result<(), SyntaxError> {
        if self.open.len() == DEPTH {
            return Err(SyntaxError { at, text: format!("nested deeper than {DEPTH} levels") });
        }
        if let Some(Open { held: Held::Map { key: None, .. }, .. }) = self.open.last() {
            return Err(SyntaxError { at, text: "a list or mapping cannot be a key".to_owned() });
        }
        self.open.push(Open { at, anchor, held });
        Ok(())
    }

    fn close(&mut self) -> Result<(), SyntaxError> {
        let Some(Open { at, anchor, held }) = self.open.pop() else { return Ok(()) };
        let value = match held {
            Held::List(items) => Value::List(items),
            Held::Map { mut entries, merged, .. } => {
                for node in &merged {
                    merge(&mut entries, node)?;
                }
                Value::Map(entries)
            }
        };
        self.put(YamlNode { at, value }, anchor)
    }

    fn put(&mut self, node: YamlNode<'t>, anchor: usize) -> Result<(), SyntaxError> {
        if anchor > 0 {
            self.count(node.size(), node.at)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.held {
            Held::List(items) => items.push(node),
            Held::Map { entries, key, merged, seen } => match key.take() {
                None => *key = Some((node.at, key_text(node)?)),
                Some((_, name)) if name == "<<" => merged.push(node),
                Some((at, name)) => match seen.add(entries, &name) {
                    None => entries.push(MapEntry { at, key: name, value: node }),
                    Some(first) => {
                        let path = self.path().key(&name);
                        self.repeated.push(RepeatedKey { first, again: at, path });
                    }
                },
            },
        }
        Ok(())
    }

    fn alias(&mut self, anchor: usize, at: Position) -> Result<YamlNode<'t>, SyntaxError> {
        let node = self.anchors.get(&anchor).cloned().ok_or_else(|| SyntaxError {
            at,
            text: "this alias stands inside of what it is an alias of".to_owned(),
        })?;
        self.count(node.size(), at)?;
        Ok(node)
    }

    fn count(&mut self, nodes: usize, at: Position) -> Result<(), SyntaxError> {
        self.copied += nodes;
        if self.copied > COPIES {
            return Err(SyntaxError {
                at,
                text: "anchors and aliases make this document too large".to_owned(),
            });
        }
        Ok(())
    }

    /// The path of the innermost open list or mapping.
    fn path(&self) -> FieldPath {
        let outer = self.open.split_last().map_or(&[][..], |(_, outer)| outer);
        outer
            .iter()
            .map(|open| match &open.held {
                Held::List(items) => PathSegment::Index(items.len()),
                Held::Map { key, .. } => PathSegment::Key(key.as_ref().map_or("", |(_, name)| name).into()),
            })
            .collect()
    }

    fn finish(self) -> Document<'t> {
        let blank = |root: &YamlNode<'_>| matches!(&root.value, Value::Scalar(text, ScalarKind::Null) if text.is_empty());
        Document { root: self.root.filter(|root| !blank(root)), repeated: self.repeated }
    }
}

/// The keys of one mapping. A few are searched, many are hashed.
#[derive(Default)]
struct Seen<'t>(HashMap<Cow<'t, str>, Position>);

impl<'t> Seen<'t> {
    /// Where `name` is in `entries`, if it is there already.
    fn add(&mut self, entries: &[MapEntry<'t>], name: &str) -> Option<Position> {
        const FEW: usize = 16;
        if entries.len() < FEW {
            return entries.iter().find(|entry| entry.key == *name).map(|entry| entry.at);
        }
        let known = self.0.len();
        self.0.extend(entries.iter().skip(known).map(|entry| (entry.key.clone(), entry.at)));
        self.0.get(name).copied()
    }
}

/// A key as it is in the JSON object: a number is written out, and what would become `true` or `null` is refused.
fn key_text(node: YamlNode<'_>) -> Result<Cow<'_, str>, SyntaxError> {
    let refuse = |text: String| Err(SyntaxError { at: node.at, text });
    match node.value {
        Value::Scalar(text, ScalarKind::String | ScalarKind::Float(_)) => Ok(text),
        Value::Scalar(_, ScalarKind::Integer(number)) => Ok(number.to_string().into()),
        Value::Scalar(text, ScalarKind::Bool(value)) => {
            refuse(format!("the key {text} is the boolean {value} in YAML 1.1: write \"{text}\""))
        }
        Value::Scalar(_, ScalarKind::Null) => refuse("a key is missing before this colon".to_owned()),
        Value::List(_) | Value::Map(_) => refuse("a list or mapping cannot be a key".to_owned()),
    }
}

/// Merges the value of `<<`: adds the entries whose keys the mapping does not have itself.
fn merge<'t>(entries: &mut Vec<MapEntry<'t>>, from: &YamlNode<'t>) -> Result<(), SyntaxError> {
    match &from.value {
        Value::Map(others) => {
            for other in others {
                if !entries.iter().any(|entry| entry.key == other.key) {
                    entries.push(other.clone());
                }
            }
            Ok(())
        }
        Value::List(items) if items.iter().all(|item| matches!(item.value, Value::Map(_))) => {
            items.iter().try_for_each(|item| merge(entries, item))
        }
        _ => Err(SyntaxError {
            at: from.at,
            text: "a merge key (<<) takes a mapping, or a list of mappings".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests;
