//! What the captures saw.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Mutex, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use towpath::lab::frame::Token;

use crate::bed::Who;

/// Where the body of an ICMPv6 message begins in a frame: after the headers of Ethernet, IPv6 and itself.
const BODY: usize = 14 + 40 + 4;

/// The lengths of solicitation and advertisement bodies: with a target and a hardware address, or only the latter.
const BODY_LENGTHS: [usize; 2] = [28, 12];

/// Which hosts saw which token, filled by the captures.
#[derive(Debug, Default)]
pub(crate) struct Sightings {
    seen: Mutex<BTreeMap<Token, BTreeSet<Who>>>,
    looked: AtomicU64,
    /// For messages without room for a token: bodies of ICMPv6 that no other frame has.
    bodies: RwLock<HashMap<Vec<u8>, Token>>,
}

impl Sightings {
    /// Records every token in what a host received.
    pub(crate) fn look(&self, who: Who, bytes: &[u8]) {
        self.looked.fetch_add(1, Ordering::Relaxed);
        for token in Token::find(bytes) {
            self.seen.lock().unwrap().entry(token).or_default().insert(who);
        }
        let bodies = self.bodies.read().unwrap();
        for length in BODY_LENGTHS {
            let body = bytes.get(BODY..BODY + length);
            if let Some(token) = body.and_then(|body| bodies.get(body)) {
                self.seen.lock().unwrap().entry(*token).or_default().insert(who);
            }
        }
    }

    /// Registers this body of a neighbour discovery message as having that token.
    pub(crate) fn recognise(&self, body: Vec<u8>, token: Token) {
        assert!(BODY_LENGTHS.contains(&body.len()), "{body:?} would not be found");
        self.bodies.write().unwrap().insert(body, token);
    }

    /// How many frames and datagrams were processed.
    pub(crate) fn looked(&self) -> u64 {
        self.looked.load(Ordering::Relaxed)
    }

    /// Which hosts have seen a token so far.
    pub(crate) fn of(&self, token: Token) -> BTreeSet<Who> {
        self.seen.lock().unwrap().get(&token).cloned().unwrap_or_default()
    }
}
