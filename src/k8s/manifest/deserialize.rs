//! A strict serde deserialiser over a [`YamlNode`], which knows the position of everything.
//!
//! Unknown fields are reported with their path and the names of the known fields. Values of the wrong type are reported
//! and then skipped, so that one pass finds every fault of an object and the rest of it can still be judged: a policy
//! with a fault in its rules still says which pods it selects.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashSet},
};

use serde::{
    Deserialize,
    de::{self, DeserializeSeed, IntoDeserializer, Visitor, value::StrDeserializer},
};

use super::mismatch::Error;
use crate::k8s::{
    fault::Problem,
    yaml::{
        node::{MapEntry, Value, YamlNode},
        path::{FieldPath, PathSegment},
        scalar::ScalarKind,
    },
};

/// How many type errors of one object are reported.
const WRONG_TYPES: usize = 50;

/// The reading of one object: its tree, and the faults found so far.
pub struct ObjectReader<'t> {
    root: &'t YamlNode<'t>,
    /// Entries whose values have the wrong type, by address: they are treated as absent.
    left_out: RefCell<HashSet<usize>>,
    unknown: RefCell<BTreeMap<FieldPath, &'static [&'static str]>>,
    strict: Cell<bool>,
    problems: RefCell<Vec<Problem>>,
}

/// A field that its object does not have.
#[derive(Debug)]
pub struct Unknown {
    /// Its path.
    pub path: FieldPath,
    /// The fields that the type has.
    pub known: &'static [&'static str],
}

impl<'t> ObjectReader<'t> {
    /// Begins to read `root`.
    #[must_use]
    pub fn new(root: &'t YamlNode<'t>) -> Self {
        Self {
            root,
            left_out: RefCell::default(),
            unknown: RefCell::default(),
            strict: Cell::new(false),
            problems: RefCell::default(),
        }
    }

    /// Reads it as a `T` only to find and record its faults.
    pub fn check<T: Deserialize<'t>>(&self) {
        self.strict.set(true);
        let _ = self.read::<T>();
        self.strict.set(false);
    }

    /// Reads it as a `T`; values of the wrong type are recorded and skipped. `None` if nothing is left.
    pub fn read<T: Deserialize<'t>>(&self) -> Option<T> {
        for _ in 0..WRONG_TYPES {
            let reader = Reader {
                node: self.root,
                trail: &Trail::Root,
                entry: 0,
                known: &[],
                loose: false,
                reading: self,
            };
            let error = match T::deserialize(reader) {
                Ok(value) => return Some(value),
                Err(error) => *error.0,
            };
            self.problems.borrow_mut().push(Problem::of_field(error.path, error.text));
            if error.entry == 0 || !self.left_out.borrow_mut().insert(error.entry) {
                return None;
            }
        }
        None
    }

    /// The faults found: type errors, and unknown fields.
    #[must_use]
    pub fn finish(self) -> (Vec<Problem>, Vec<Unknown>) {
        let unknown =
            self.unknown.into_inner().into_iter().map(|(path, known)| Unknown { path, known }).collect();
        (self.problems.into_inner(), unknown)
    }
}

/// The path to a node, kept on the stack.
enum Trail<'p> {
    Root,
    Key(&'p Trail<'p>, &'p str),
    Index(&'p Trail<'p>, usize),
}

impl Trail<'_> {
    fn path(&self) -> FieldPath {
        let mut steps = Vec::new();
        let mut trail = self;
        loop {
            trail = match trail {
                Self::Root => break,
                Self::Key(parent, key) => {
                    steps.push(PathSegment::Key((*key).into()));
                    parent
                }
                Self::Index(parent, index) => {
                    steps.push(PathSegment::Index(*index));
                    parent
                }
            };
        }
        steps.into_iter().rev().collect()
    }
}

/// One node that is being deserialised.
#[derive(Clone, Copy)]
struct Reader<'t, 'p> {
    node: &'t YamlNode<'t>,
    trail: &'p Trail<'p>,
    /// The innermost entry that contains this node, by address.
    entry: usize,
    /// The fields of the struct that this value is a field of.
    known: &'static [&'static str],
    /// Whether a number is accepted where text is expected.
    loose: bool,
    reading: &'p ObjectReader<'t>,
}

impl<'t> Reader<'t, '_> {
    fn place(self, mut error: Error) -> Error {
        if !error.0.placed {
            error.0.placed = true;
            error.0.path = self.trail.path();
            error.0.entry = self.entry;
        }
        error
    }

    fn must_be<T>(self, wanted: &str) -> Result<T, Error> {
        let text = match &self.node.value {
            Value::List(_) => format!("must be {wanted}, not a list: remove the dash (-)"),
            Value::Map(_) => format!("must be {wanted}, not a mapping"),
            Value::Scalar(_, ScalarKind::Null) => format!("must be {wanted}, and is empty"),
            Value::Scalar(text, ScalarKind::String) => format!("must be {wanted}, not the text {text:?}"),
            Value::Scalar(text, ScalarKind::Bool(_)) => format!("must be {wanted}, not the boolean {text}"),
            Value::Scalar(text, ScalarKind::Integer(_) | ScalarKind::Float(_)) => {
                format!("must be {wanted}, not the number {text}")
            }
        };
        Err(self.place(Error::new(text)))
    }

    fn must_be_text<T>(self) -> Result<T, Error> {
        let text = match &self.node.value {
            Value::Scalar(text, ScalarKind::Bool(value)) if matches!(&**text, "true" | "false") => {
                format!("must be text, but {text} is the boolean {value}: write \"{text}\"")
            }
            Value::Scalar(text, ScalarKind::Bool(value)) => {
                format!("must be text, but {text} is the boolean {value} in YAML 1.1: write \"{text}\"")
            }
            Value::Scalar(text, ScalarKind::Integer(_) | ScalarKind::Float(_)) => {
                format!("must be text, but {text} is a number: write \"{text}\"")
            }
            Value::Scalar(text, ScalarKind::Null) if text.is_empty() => {
                "must be text, and is empty: write \"\" for an empty text".to_owned()
            }
            Value::Scalar(text, ScalarKind::Null) => {
                format!("must be text, but {text} is null: write \"{text}\"")
            }
            _ => return self.must_be("text"),
        };
        Err(self.place(Error::new(text)))
    }

    fn number<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        let result = match &self.node.value {
            Value::Scalar(_, ScalarKind::Integer(number)) => visit_integer(*number, visitor),
            Value::Scalar(_, ScalarKind::Float(number)) => match whole(*number) {
                Some(number) => visitor.visit_i64(number),
                None => return self.must_be("a whole number"),
            },
            Value::Scalar(text, ScalarKind::String) if text.parse::<i64>().is_ok() => {
                let text = format!("must be a number, but \"{text}\" is text: write {text}");
                return Err(self.place(Error::new(text)));
            }
            _ => return self.must_be("a whole number"),
        };
        result.map_err(|error| self.place(error))
    }

    fn list<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::List(items) => visitor
                .visit_seq(Items { items: items.iter().enumerate(), reader: self })
                .map_err(|error| self.place(error)),
            Value::Map(_) => {
                let text = "must be a list, not a mapping: begin the item with a dash (-)".to_owned();
                Err(self.place(Error::new(text)))
            }
            Value::Scalar(..) => self.must_be("a list"),
        }
    }

    fn map<V: Visitor<'t>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Map(entries) => visitor
                .visit_map(Fields { entries: entries.iter(), value: None, known: fields, reader: self })
                .map_err(|error| self.place(error)),
            Value::Scalar(_, ScalarKind::Null) => self.must_be("a mapping; write {} for one without fields"),
            _ => self.must_be("a mapping"),
        }
    }
}

fn visit_integer<'t, V: Visitor<'t>>(number: i128, visitor: V) -> Result<V::Value, Error> {
    match (i64::try_from(number), u64::try_from(number)) {
        (Ok(number), _) => visitor.visit_i64(number),
        (_, Ok(number)) => visitor.visit_u64(number),
        _ => Err(Error::new(format!("{number} is too large"))),
    }
}

/// `80.0` is 80 once the API server has turned YAML into JSON.
fn whole(number: f64) -> Option<i64> {
    let exact = 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "whole, and within the 53 bits that a float holds exactly"
    )]
    (number.fract() == 0.0 && number.abs() < exact).then_some(number as i64)
}

macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
            self.number(visitor)
        }
    )*};
}

impl<'t> de::Deserializer<'t> for Reader<'t, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        let result = match &self.node.value {
            Value::Scalar(_, ScalarKind::Null) => visitor.visit_unit(),
            Value::Scalar(_, ScalarKind::Bool(value)) => visitor.visit_bool(*value),
            Value::Scalar(_, ScalarKind::Integer(number)) => visit_integer(*number, visitor),
            Value::Scalar(_, ScalarKind::Float(number)) => match whole(*number) {
                Some(number) => visitor.visit_i64(number),
                None => visitor.visit_f64(*number),
            },
            Value::Scalar(text, ScalarKind::String) => visitor.visit_borrowed_str(text),
            Value::List(_) => return self.list(visitor),
            Value::Map(_) => return self.map(&[], visitor),
        };
        result.map_err(|error| self.place(error))
    }

    fn deserialize_bool<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Scalar(_, ScalarKind::Bool(value)) => visitor.visit_bool(*value),
            _ => self.must_be("true or false"),
        }
    }

    numbers!(deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128);
    numbers!(deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128);

    fn deserialize_f32<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Scalar(_, ScalarKind::Float(number)) => visitor.visit_f64(*number),
            Value::Scalar(_, ScalarKind::Integer(number)) => {
                visit_integer(*number, visitor).map_err(|error| self.place(error))
            }
            _ => self.must_be("a number"),
        }
    }

    fn deserialize_char<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Scalar(text, ScalarKind::String) => {
                visitor.visit_borrowed_str(text).map_err(|error| self.place(error))
            }
            Value::Scalar(text, ScalarKind::Integer(_) | ScalarKind::Float(_)) if self.loose => {
                visitor.visit_borrowed_str(text)
            }
            _ => self.must_be_text(),
        }
    }

    fn deserialize_string<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.is_null() { visitor.visit_unit() } else { self.must_be("empty") }
    }

    fn deserialize_unit_struct<V: Visitor<'t>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'t>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        // The API accepts `cpu: 1` as a quantity, but the type expects text.
        let loose = name == "Quantity";
        visitor.visit_newtype_struct(Self { loose, ..self }).map_err(|error| self.place(error))
    }

    fn deserialize_seq<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.list(visitor)
    }

    fn deserialize_tuple<V: Visitor<'t>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.list(visitor)
    }

    fn deserialize_map<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.map(&[], visitor)
    }

    fn deserialize_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.map(fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'t>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Some(text) = self.node.as_str() else { return self.must_be_text() };
        let text: StrDeserializer<'_, Error> = text.into_deserializer();
        visitor.visit_enum(text).map_err(|error| self.place(error))
    }

    fn deserialize_identifier<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    /// Called only for the value of a field that the type does not have.
    fn deserialize_ignored_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.reading.strict.get() {
            self.reading.unknown.borrow_mut().insert(self.trail.path(), self.known);
        }
        visitor.visit_unit()
    }
}

struct Items<'t, 'p> {
    items: std::iter::Enumerate<std::slice::Iter<'t, YamlNode<'t>>>,
    reader: Reader<'t, 'p>,
}

impl<'t> de::SeqAccess<'t> for Items<'t, '_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let trail = Trail::Index(self.reader.trail, index);
        let reader = Reader { node, trail: &trail, ..self.reader };
        seed.deserialize(reader).map(Some).map_err(|error| reader.place(error))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Fields<'t, 'p> {
    entries: std::slice::Iter<'t, MapEntry<'t>>,
    value: Option<&'t MapEntry<'t>>,
    known: &'static [&'static str],
    reader: Reader<'t, 'p>,
}

fn address(entry: &MapEntry<'_>) -> usize {
    std::ptr::from_ref(entry).addr()
}

impl<'t> de::MapAccess<'t> for Fields<'t, '_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let left_out = self.reader.reading.left_out.borrow();
        let Some(entry) =
            self.entries.find(|entry| left_out.is_empty() || !left_out.contains(&address(entry)))
        else {
            return Ok(None);
        };
        drop(left_out);
        self.value = Some(entry);
        seed.deserialize(de::value::BorrowedStrDeserializer::new(&entry.key)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let Some(entry) = self.value.take() else {
            return Err(Error::new("a value without a key".to_owned()));
        };
        let trail = Trail::Key(self.reader.trail, &entry.key);
        let reader = Reader {
            node: &entry.value,
            trail: &trail,
            entry: address(entry),
            known: self.known,
            loose: false,
            reading: self.reader.reading,
        };
        seed.deserialize(reader).map_err(|error| reader.place(error))
    }
}
