//! What must hold for anything that the gate reads: messages, records, and the CNI configuration of others.

use std::{fmt::Debug, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use towpath_cni::{
    fuzzing,
    protocol::{self, AttachmentId, MessageError, Request, Response},
};

use super::{
    conflist::{self, ConflistError, Entry, PLUGIN, WhenAway},
    records,
};

/// Reads `data` in each of these ways, and checks what is read.
///
/// # Panics
/// If what is read breaks a rule.
pub fn gate(data: &[u8]) {
    let line = [data, b"\n"].concat();
    if let Some(request) = message::<Request>(&line) {
        let ids = match &request {
            Request::Add(attachment) | Request::Check(attachment) => vec![&attachment.id],
            Request::Del(id) => vec![id],
            Request::Gc { valid, .. } => valid.iter().collect(),
            Request::Status => Vec::new(),
        };
        ids.into_iter().for_each(names_one_file);
    }
    message::<Response>(&line);
    record(data);
    configuration_list(data);
    fuzzing::configuration(data);
    if let Ok(text) = std::str::from_utf8(data) {
        fuzzing::environment(text);
    }
}

/// A message that is read is the same when it is written and read again.
fn message<T: DeserializeOwned + Serialize + PartialEq + Debug>(line: &[u8]) -> Option<T> {
    let message: T = protocol::read_message(line).ok()?;
    match protocol::to_line(&message) {
        Ok(again) => {
            assert!(again.len() <= protocol::MAX_MESSAGE);
            assert_eq!(protocol::read_message::<T>(&*again).ok().as_ref(), Some(&message));
        }
        // Fields that are left out may be written, and characters escaped.
        Err(error) => assert!(matches!(error, MessageError::TooLong), "{error}"),
    }
    Some(message)
}

fn names_one_file(id: &AttachmentId) {
    let name = id.file_name();
    assert_eq!(Path::new(&name).file_name().and_then(|name| name.to_str()), Some(&*name));
    assert!(name.len() < 256, "{name}");
}

/// A record that is read is the same when it is written and read again.
fn record(data: &[u8]) {
    let Ok(recorded) = records::parse(data) else { return };
    let id = &recorded.known.attachment.id;
    let id = AttachmentId::new(&*id.container, &*id.interface);
    assert!(id.is_ok(), "{id:?}");
    id.iter().for_each(names_one_file);
    let again = records::text(&recorded).and_then(|text| records::parse(&text));
    assert_eq!(again.ok(), Some(recorded));
}

/// Installing and removing the entry gives the original, and neither changes anything of other programs.
fn configuration_list(data: &[u8]) {
    let Ok(text) = conflist::text(data) else { return };
    let _ = conflist::single_type(text);
    let types = conflist::plugin_types(text);
    for when_away in [WhenAway::Wait, WhenAway::Open] {
        let entry = Entry::new("/run/towpath/gate.sock", when_away);
        let original = match conflist::without_entry(text) {
            Ok(Some(without)) => {
                assert!(without.len() < text.len());
                assert_eq!(conflist::without_entry(&without), Ok(None), "one pass removes all entries");
                assert_eq!(others(text), others(&without));
                without
            }
            Ok(None) => text.to_owned(),
            Err(error) => {
                assert_eq!(conflist::with_entry(text, &entry), Err(error));
                continue;
            }
        };
        match conflist::with_entry(text, &entry) {
            Ok(Some(with)) => {
                assert_eq!(conflist::with_entry(&with, &entry), Ok(None), "it is installed once");
                assert_eq!(conflist::without_entry(&with).as_ref(), Ok(&Some(original)));
                assert_eq!(others(text), others(&with));
                if let (Ok(before), Ok(after)) = (&types, conflist::plugin_types(&with)) {
                    let mut expected: Vec<&String> = before.iter().filter(|kind| *kind != PLUGIN).collect();
                    let plugin = PLUGIN.to_owned();
                    expected.push(&plugin);
                    assert_eq!(after.iter().collect::<Vec<_>>(), expected);
                }
            }
            Ok(None) => assert_ne!(original, text, "the entry is there"),
            Err(error) => assert!(matches!(error, ConflistError::Field(..)), "{error}"),
        }
    }
}

/// The list without entries of ours, if its values can be represented.
fn others(text: &str) -> Option<Value> {
    let mut list: Value = serde_json::from_str(text).ok()?;
    let plugins = list.get_mut("plugins")?.as_array_mut()?;
    plugins.retain(|plugin| plugin.get("type").and_then(Value::as_str) != Some(PLUGIN));
    Some(list)
}
