//! YAML as values, without positions and with all plain scalars as `serde_json` strings.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Every document of a text.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let mut documents = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.unwrap_or_else(|error| panic!("{error}"));
        let done = match event {
            Event::Scalar(text, style, ..) => Some(scalar(&text, style)),
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                None
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(Map::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop().map(Open::close),
            Event::Alias(_) => {
                panic!("line {}: an alias, which this parser does not support", span.start.line())
            }
            _ => None,
        };
        if let Some(value) = done {
            match open.last_mut() {
                Some(Open::List(items)) => items.push(value),
                Some(Open::Map(entries, key)) => match key.take() {
                    None => *key = Some(value.as_str().unwrap().to_owned()),
                    Some(key) => assert!(entries.insert(key.clone(), value).is_none(), "{key} is repeated"),
                },
                None => documents.push(value),
            }
        }
    }
    documents
}

enum Open {
    List(Vec<Value>),
    Map(Map<String, Value>, Option<String>),
}

impl Open {
    fn close(self) -> Value {
        match self {
            Self::List(items) => items.into(),
            Self::Map(entries, _) => entries.into(),
        }
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return text.into();
    }
    match text {
        "" | "null" | "~" => Value::Null,
        "true" => true.into(),
        "false" => false.into(),
        _ => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
    }
}

#[test]
fn lists_mappings_and_plain_values_are_parsed() {
    let read = documents("a: [1, '1', true]\nb:\n  - c: ~\n    d: x y\n---\ne: \"[::]:1\"\n");
    let a = serde_json::json!({"a": [1, "1", true], "b": [{"c": null, "d": "x y"}]});
    assert_eq!(read, [a, serde_json::json!({"e": "[::]:1"})]);
}
