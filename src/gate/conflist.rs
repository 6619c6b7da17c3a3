//! Our entry in a CNI configuration list, as an edit of its text.
//!
//! The file belongs to another program. What is not our entry keeps every byte, so that this program, a person or a
//! checksum sees only the entry, and taking it out restores the file.

use std::{collections::HashMap, ops::Range};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The plugin's name: its `type` in the list, and the name of its file.
pub const PLUGIN: &str = "towpath-cni";

/// The largest file that is edited, in bytes. Usual ones have less than a thousand.
pub const LARGEST: usize = 1024 * 1024;

/// How long the plugin waits for the daemon, in seconds: well within the two minutes that kubelet gives a runtime.
pub const TIMEOUT_SECONDS: u32 = 30;

/// What the plugin does with a new pod while the daemon does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenAway {
    /// It fails, and kubelet tries again: no pod starts without its rules.
    Wait,
    /// It lets the pod start.
    Open,
}

/// Our entry, as the plugin reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Entry {
    #[serde(rename = "type")]
    plugin: String,
    socket: String,
    when_away: WhenAway,
    timeout_seconds: u32,
}

impl Entry {
    /// The entry for a daemon that listens at `socket`, a path on the node.
    #[must_use]
    pub fn new(socket: &str, when_away: WhenAway) -> Self {
        Self {
            plugin: PLUGIN.to_owned(),
            socket: socket.to_owned(),
            when_away,
            timeout_seconds: TIMEOUT_SECONDS,
        }
    }

    fn text(&self) -> String {
        let socket = serde_json::Value::from(&*self.socket);
        let when_away = match self.when_away {
            WhenAway::Wait => "wait",
            WhenAway::Open => "open",
        };
        let timeout = self.timeout_seconds;
        format!(
            r#"{{"type": "{PLUGIN}", "socket": {socket}, "whenAway": "{when_away}", "timeoutSeconds": {timeout}}}"#
        )
    }
}

/// Why a text is no list of plugins that a runtime would load.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConflistError {
    /// It is longer than [`LARGEST`].
    #[error("more than {LARGEST} bytes")]
    TooLarge,
    /// It is not encoded in UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// It is not a JSON object.
    #[error("not a JSON object: {0}")]
    NotJson(String),
    /// A required field is absent, or has another type.
    #[error("{0}: {1}")]
    Field(String, &'static str),
}

/// The text of a file.
///
/// # Errors
/// If it is too large, or not UTF-8.
pub fn text(bytes: &[u8]) -> Result<&str, ConflistError> {
    if bytes.len() > LARGEST {
        return Err(ConflistError::TooLarge);
    }
    std::str::from_utf8(bytes).map_err(|_| ConflistError::NotUtf8)
}

/// The types of the plugins of a list, in order.
///
/// # Errors
/// If a runtime would not load it: no `name`, no `plugins`, or a plugin without `type`.
pub fn plugin_types(text: &str) -> Result<Vec<String>, ConflistError> {
    let fields = fields(text)?;
    if fields.get("name").and_then(|name| string(name)).is_none() {
        return Err(ConflistError::Field("name".to_owned(), "must be a string"));
    }
    let plugins = plugins(text, &fields)?;
    if plugins.is_empty() {
        return Err(ConflistError::Field("plugins".to_owned(), "must not be empty"));
    }
    let kind = |(at, plugin): (usize, Plugin<'_>)| {
        let kind = plugin.kind.filter(|kind| !kind.is_empty());
        kind.ok_or_else(|| ConflistError::Field(format!("plugins[{at}].type"), "must be a string"))
    };
    plugins.into_iter().enumerate().map(kind).collect()
}

/// The type of a configuration of a single plugin.
///
/// # Errors
/// If a runtime would not load it.
pub fn single_type(text: &str) -> Result<String, ConflistError> {
    let fields = fields(text)?;
    let kind = fields.get("type").and_then(|kind| string(kind)).filter(|kind| !kind.is_empty());
    kind.ok_or_else(|| ConflistError::Field("type".to_owned(), "must be a string"))
}

/// The list with `entry` as its last plugin, and no other entry of ours. `None` if that is what it is.
///
/// # Errors
/// If it is not a list of at least one other plugin.
pub fn with_entry(text: &str, entry: &Entry) -> Result<Option<String>, ConflistError> {
    let plugins = plugins(text, &fields(text)?)?;
    let ours = plugins.iter().filter(|plugin| plugin.is_ours()).count();
    if let [others @ .., last] = &*plugins
        && ours == 1
        && !others.is_empty()
        && serde_json::from_str::<Entry>(last.text).is_ok_and(|there| there == *entry)
    {
        return Ok(None);
    }
    let text = cut(text, &plugins);
    let plugins = self::plugins(&text, &fields(&text)?)?;
    let Some(last) = plugins.last() else {
        return Err(ConflistError::Field("plugins".to_owned(), "must not be empty"));
    };
    let (before, after) = text.split_at(last.at.end);
    let lead = leading_space(&text, last.at.start);
    Ok(Some(format!("{before},{lead}{}{after}", entry.text())))
}

/// The list without entries of ours. `None` if it has none.
///
/// # Errors
/// If it is no list.
pub fn without_entry(text: &str) -> Result<Option<String>, ConflistError> {
    let plugins = plugins(text, &fields(text)?)?;
    Ok(plugins.iter().any(Plugin::is_ours).then(|| cut(text, &plugins)))
}

/// An element of `plugins`.
struct Plugin<'a> {
    text: &'a str,
    /// Its place in the whole text.
    at: Range<usize>,
    /// Its `type`, if that is a string.
    kind: Option<String>,
}

impl Plugin<'_> {
    fn is_ours(&self) -> bool {
        self.kind.as_deref() == Some(PLUGIN)
    }
}

/// The fields of an object. Of a repeated field the last one counts, as in the runtimes.
fn fields(text: &str) -> Result<HashMap<String, &RawValue>, ConflistError> {
    serde_json::from_str(text).map_err(|error| ConflistError::NotJson(error.to_string()))
}

fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

fn plugins<'a>(
    text: &'a str,
    fields: &HashMap<String, &'a RawValue>,
) -> Result<Vec<Plugin<'a>>, ConflistError> {
    let wrong = || ConflistError::Field("plugins".to_owned(), "must be a list");
    let list = fields.get("plugins").ok_or_else(wrong)?;
    let list: Vec<&RawValue> = serde_json::from_str(list.get()).map_err(|_| wrong())?;
    let plugin = |value: &'a RawValue| {
        let own = value.get();
        let start = own.as_ptr().addr() - text.as_ptr().addr();
        let kind = self::fields(own).ok().and_then(|fields| string(fields.get("type")?));
        Plugin { text: own, at: start..start + own.len(), kind }
    };
    Ok(list.into_iter().map(plugin).collect())
}

/// The text without our plugins, each with the comma and the space that connect it to its neighbour: in front of it,
/// where [`with_entry`] writes them, or behind those at the beginning.
fn cut(text: &str, plugins: &[Plugin<'_>]) -> String {
    let leading = plugins.iter().take_while(|plugin| plugin.is_ours()).count();
    let mut cuts: Vec<Range<usize>> = Vec::new();
    if let ([first, ..], true) = (plugins, leading > 0) {
        let end = match plugins.get(leading) {
            Some(next) => next.at.start,
            None => plugins.last().map_or(first.at.end, |last| last.at.end),
        };
        cuts.push(first.at.start..end);
    }
    let pairs = plugins.iter().zip(plugins.iter().skip(1)).skip(leading);
    cuts.extend(pairs.filter(|(_, plugin)| plugin.is_ours()).map(|(before, own)| before.at.end..own.at.end));

    let (mut kept, mut from) = (String::with_capacity(text.len()), 0);
    for cut in cuts {
        kept.push_str(text.get(from..cut.start).unwrap_or_default());
        from = cut.end;
    }
    kept.push_str(text.get(from..).unwrap_or_default());
    kept
}

/// The space between the element that begins at `start` and what is in front of it: where lines end, and how far they are
/// indented.
fn leading_space(text: &str, start: usize) -> &str {
    let before = text.get(..start).unwrap_or_default();
    let content = before.trim_end_matches([' ', '\t', '\r', '\n']).len();
    before.get(content..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn entry() -> Entry {
        Entry::new("/run/towpath/gate.sock", WhenAway::Wait)
    }

    const ENTRY: &str = r#"{"type": "towpath-cni", "socket": "/run/towpath/gate.sock", "whenAway": "wait", "timeoutSeconds": 30}"#;

    #[track_caller]
    fn installed(text: &str) -> String {
        with_entry(text, &entry()).unwrap().unwrap()
    }

    #[test]
    fn entry_follows_the_last_plugin_with_the_same_indentation() {
        let text = "{\n  \"name\": \"n\",\n  \"plugins\": [\n    {\n      \"type\": \"flannel\"\n    },\n    {\"type\": \"portmap\"}\n  ]\n}\n";
        let with = installed(text);
        let place = "    {\"type\": \"portmap\"}";
        assert_eq!(with, text.replace(place, &format!("{place},\n    {ENTRY}")));
        assert_eq!(without_entry(&with).unwrap().unwrap(), text);
        assert_eq!(with_entry(&with, &entry()).unwrap(), None);
        assert_eq!(without_entry(text).unwrap(), None);
    }

    #[test]
    fn entry_in_one_line_and_with_other_line_ends_keeps_the_form_of_the_file() {
        let line = r#"{"plugins":[{"type":"a"}],"name":"n"}"#;
        assert_eq!(installed(line), format!(r#"{{"plugins":[{{"type":"a"}},{ENTRY}],"name":"n"}}"#));
        let windows = "{\"plugins\": [\r\n\t{\"type\": \"a\"}\r\n]}";
        assert_eq!(
            installed(windows),
            format!("{{\"plugins\": [\r\n\t{{\"type\": \"a\"}},\r\n\t{ENTRY}\r\n]}}")
        );
    }

    #[test]
    fn entry_that_differs_is_misplaced_or_repeated_is_replaced() {
        let other = ENTRY.replace("wait", "open");
        let list = |plugins: &[&str]| format!("{{\"name\": \"n\", \"plugins\": [{}]}}", plugins.join(", "));
        let (a, b) = (r#"{"type": "a"}"#, r#"{"type": "b"}"#);
        let wanted = list(&[a, b, ENTRY]);
        for plugins in [
            vec![a, b, &other],
            vec![a, ENTRY, b],
            vec![ENTRY, a, b],
            vec![ENTRY, ENTRY, a, ENTRY, b, ENTRY, ENTRY],
            vec![a, b, r#"{"type": "towpath-cni"}"#],
        ] {
            assert_eq!(installed(&list(&plugins)), wanted, "{plugins:?}");
            assert_eq!(without_entry(&list(&plugins)).unwrap().unwrap(), list(&[a, b]), "{plugins:?}");
        }
        let more = ENTRY.replace("30}", "30, \"more\": 1}");
        assert_eq!(installed(&list(&[a, b, &more])), wanted);
        assert_eq!(with_entry(&wanted, &entry()).unwrap(), None);
    }

    #[test]
    fn repeated_field_counts_with_its_last_value() {
        let text = r#"{"name": "n", "plugins": [{"type": "a"}], "plugins": [{"type": "b", "type": "c"}]}"#;
        assert_eq!(plugin_types(text).unwrap(), ["c"]);
        let with = installed(text);
        assert_eq!(with, text.replace("\"c\"}", &format!("\"c\"}},{ENTRY}")));
        assert_eq!(without_entry(&with).unwrap().unwrap(), text);
    }

    #[test]
    fn text_that_is_no_list_is_an_error_that_names_the_field() {
        let error = |text: &str| with_entry(text, &entry()).unwrap_err().to_string();
        for text in
            ["", "{", "[]", "{} x", "\u{feff}{\"plugins\": [{}]}", "{\"plugins\": [{\"type\": \"a\"},]}"]
        {
            let found = error(text);
            assert!(found.starts_with("not a JSON object") || found == "plugins: must be a list", "{found}");
        }
        assert!(error("\u{feff}{\"plugins\": [{\"type\": \"a\"}]}").contains("line 1 column 1"));
        assert_eq!(error("{}"), "plugins: must be a list");
        assert_eq!(error(r#"{"plugins": {}}"#), "plugins: must be a list");
        assert_eq!(error(r#"{"plugins": []}"#), "plugins: must not be empty");
        assert_eq!(error(&format!("{{\"plugins\": [{ENTRY}]}}")), "plugins: must not be empty");
        assert_eq!(text(&vec![b' '; LARGEST + 1]).unwrap_err(), ConflistError::TooLarge);
        assert_eq!(text(b"\"\xff\"").unwrap_err(), ConflistError::NotUtf8);

        let types = |text: &str| plugin_types(text).unwrap_err().to_string();
        assert_eq!(types(r#"{"plugins": [{"type": "a"}]}"#), "name: must be a string");
        assert_eq!(types(r#"{"name": "n"}"#), "plugins: must be a list");
        assert_eq!(
            types(r#"{"name": "n", "plugins": [{"type": "a"}, {"type": 1}]}"#),
            "plugins[1].type: must be a string"
        );
        assert_eq!(single_type(r#"{"type": "bridge"}"#).unwrap(), "bridge");
        assert_eq!(single_type("{}").unwrap_err().to_string(), "type: must be a string");
    }

    #[test]
    fn many_entries_of_the_largest_file_are_removed_at_once() {
        let entries = vec![r#"{"type":"towpath-cni"}"#; LARGEST / 23 - 4].join(",");
        let text = format!(r#"{{"plugins":[{{"type":"a"}},{entries}]}}"#);
        assert!(text.len() <= LARGEST);
        assert_eq!(without_entry(&text).unwrap().unwrap(), r#"{"plugins":[{"type":"a"}]}"#);
    }

    /// Space between two tokens.
    fn space() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec![" ", "\t", "\n", "\r\n", "    "]), 0..4)
            .prop_map(|parts| parts.concat())
    }

    /// A JSON string with what a careless editor stumbles over.
    fn awkward_string() -> impl Strategy<Value = String> {
        let parts = vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\\\"",
            "\\\\",
            "\\u007b",
            "plugins",
            "towpath-cni",
            "é",
            "端",
            " ",
        ];
        prop::collection::vec(prop::sample::select(parts), 0..8)
            .prop_map(|parts| format!("\"{}\"", parts.concat()))
    }

    /// A JSON value with any space in it.
    fn value() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            awkward_string(),
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just("-1.5e3".to_owned())
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            let items = prop::collection::vec((space(), inner.clone(), space()), 0..4);
            let fields = prop::collection::vec((space(), awkward_string(), space(), inner), 0..4);
            prop_oneof![
                items.prop_map(|items| {
                    let items: Vec<_> =
                        items.into_iter().map(|(a, item, b)| format!("{a}{item}{b}")).collect();
                    format!("[{}]", items.join(","))
                }),
                fields.prop_map(|fields| {
                    let field = |(a, name, b, value)| format!("{a}{name}{b}:{value}");
                    format!("{{{}}}", fields.into_iter().map(field).collect::<Vec<_>>().join(","))
                }),
            ]
        })
    }

    /// An object with one fixed field among others.
    fn object(name: &'static str, fixed: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        let others = prop::collection::vec((space(), "[a-m]{1,3}", space(), value()), 0..3);
        (others, fixed, space(), space(), any::<prop::sample::Index>()).prop_map(
            move |(others, fixed, before, after, place)| {
                let mut fields: Vec<_> = others
                    .into_iter()
                    .map(|(a, name, b, value)| format!("{a}\"{name}\"{b}:{value}"))
                    .collect();
                fields.insert(place.index(fields.len() + 1), format!("{before}\"{name}\":{after}{fixed}"));
                format!("{{{}{after}}}", fields.join(","))
            },
        )
    }

    fn list(kinds: &'static [&'static str]) -> impl Strategy<Value = String> {
        let kind = prop::sample::select(kinds).prop_map(|kind| format!("\"{kind}\""));
        let plugin = (space(), object("type", kind), space()).prop_map(|(a, it, b)| format!("{a}{it}{b}"));
        let plugins = prop::collection::vec(plugin, 1..5).prop_map(|it| format!("[{}]", it.join(",")));
        (space(), object("plugins", plugins), space()).prop_map(|(a, it, b)| format!("{a}{it}{b}"))
    }

    proptest! {
        #[test]
        fn removing_what_was_installed_restores_every_byte(text in list(&["flannel", "portmap", "b"])) {
            let before: Value = serde_json::from_str(&text).unwrap();
            let with = installed(&text);
            let mut expected = before;
            let ours = serde_json::to_value(entry()).unwrap();
            expected["plugins"].as_array_mut().unwrap().push(ours);
            prop_assert_eq!(serde_json::from_str::<Value>(&with).unwrap(), expected);
            prop_assert_eq!(with_entry(&with, &entry()).unwrap(), None);
            prop_assert_eq!(without_entry(&with).unwrap().unwrap(), text);
        }

        #[test]
        fn lists_with_entries_of_ours_lose_exactly_these(text in list(&["flannel", "b", "towpath-cni"])) {
            let mut expected: Value = serde_json::from_str(&text).unwrap();
            let plugins = expected["plugins"].as_array_mut().unwrap();
            plugins.retain(|plugin| plugin["type"] != json!(PLUGIN));
            let is_empty = plugins.is_empty();
            let without = without_entry(&text).unwrap().unwrap_or_else(|| text.clone());
            prop_assert_eq!(serde_json::from_str::<Value>(&without).unwrap(), expected);
            match with_entry(&text, &entry()) {
                Ok(with) => prop_assert_eq!(without_entry(&with.unwrap()).unwrap().unwrap(), without),
                Err(_) => prop_assert!(is_empty),
            }
        }
    }
}
