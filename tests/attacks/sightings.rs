//! What the captures saw.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, RwLock},
};

use towpath::lab::frame::Token;

use crate::bed::Who;

/// Who saw which token, filled by the captures.
#[derive(Debug, Default)]
pub(crate) struct Sightings {
    seen: Mutex<BTreeMap<Token, BTreeSet<Who>>>,
    /// For frames without room for a token: bytes that no other frame has.
    patterns: RwLock<Vec<(Vec<u8>, Token)>>,
}

impl Sightings {
    /// Notes every token in what somebody received.
    pub(crate) fn look(&self, who: Who, bytes: &[u8]) {
        for token in Token::find(bytes) {
            self.seen.lock().unwrap().entry(token).or_default().insert(who);
        }
        for (pattern, token) in &*self.patterns.read().unwrap() {
            if bytes.windows(pattern.len()).any(|window| window == pattern) {
                self.seen.lock().unwrap().entry(*token).or_default().insert(who);
            }
        }
    }

    /// Takes these bytes for that token.
    pub(crate) fn recognise(&self, pattern: Vec<u8>, token: Token) {
        self.patterns.write().unwrap().push((pattern, token));
    }

    /// Who saw a token up to now.
    pub(crate) fn of(&self, token: Token) -> BTreeSet<Who> {
        self.seen.lock().unwrap().get(&token).cloned().unwrap_or_default()
    }
}
