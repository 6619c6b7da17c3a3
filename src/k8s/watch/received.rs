//! Objects from the API server, parsed one by one, so that an unreadable one affects only itself.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

/// An object as it was received.
#[derive(Clone, Debug)]
pub(super) enum Received<S> {
    /// It could be read.
    Readable(S),
    /// It could not.
    Unreadable(Unreadable),
}

/// An object that does not have the form of its kind.
#[derive(Clone, Debug)]
pub(super) struct Unreadable {
    /// Its text.
    pub(super) text: Box<str>,
    /// What is wrong with it.
    pub(super) error: String,
}

impl<'de, S: DeserializeOwned> Deserialize<'de> for Received<S> {
    /// Takes everything as raw text first: what comes after it in the stream can then be read in any case.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::of(Box::<RawValue>::deserialize(deserializer)?))
    }
}

impl<S: DeserializeOwned> Received<S> {
    fn of(text: Box<RawValue>) -> Self {
        match serde_json::from_str(text.get()) {
            Ok(object) => Self::Readable(object),
            Err(error) => {
                let text: Box<str> = text.into();
                Self::Unreadable(Unreadable { text, error: error.to_string() })
            }
        }
    }
}

/// A page of a list. Its objects stay text until they are parsed one by one: as values they may take ten times as much.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Page {
    pub(super) metadata: PageMeta,
    /// The API server writes `null` if there are none.
    items: Option<Vec<Box<RawValue>>>,
}

impl Page {
    /// Its objects.
    pub(super) fn objects<S: DeserializeOwned>(&mut self) -> impl Iterator<Item = Received<S>> {
        self.items.take().unwrap_or_default().into_iter().map(Received::of)
    }
}

/// `metadata` of a list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PageMeta {
    /// The version of the collection at the time of the list.
    pub(super) resource_version: String,
    /// The token for the next page; empty on the last one.
    #[serde(rename = "continue")]
    pub(super) next: String,
}
