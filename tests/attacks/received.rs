//! What the captures received.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Mutex, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use towpath::lab::frame::Token;

use crate::bed::Host;

/// Where the body of an ICMPv6 message begins in a frame: after the headers of Ethernet, IPv6 and itself.
const BODY: usize = 14 + 40 + 4;

/// The lengths of solicitation and advertisement bodies: with a target and a hardware address, or only the latter.
const BODY_LENGTHS: [usize; 2] = [28, 12];

/// Which hosts received which token, filled by the captures.
#[derive(Debug, Default)]
pub(crate) struct Received {
    hosts: Mutex<BTreeMap<Token, BTreeSet<Host>>>,
    processed: AtomicU64,
    /// For messages without room for a token: bodies of ICMPv6 that no other frame has.
    bodies: RwLock<HashMap<Vec<u8>, Token>>,
}

impl Received {
    /// Records every token in what a host received.
    pub(crate) fn record(&self, host: Host, bytes: &[u8]) {
        self.processed.fetch_add(1, Ordering::Relaxed);
        for token in Token::find(bytes) {
            self.hosts.lock().unwrap().entry(token).or_default().insert(host);
        }
        let bodies = self.bodies.read().unwrap();
        for length in BODY_LENGTHS {
            let body = bytes.get(BODY..BODY + length);
            if let Some(token) = body.and_then(|body| bodies.get(body)) {
                self.hosts.lock().unwrap().entry(*token).or_default().insert(host);
            }
        }
    }

    /// Registers this body of a neighbour discovery message as having that token.
    pub(crate) fn recognise(&self, body: Vec<u8>, token: Token) {
        assert!(BODY_LENGTHS.contains(&body.len()), "{body:?} would not be found");
        self.bodies.write().unwrap().insert(body, token);
    }

    /// How many frames and datagrams were processed.
    pub(crate) fn processed(&self) -> u64 {
        self.processed.load(Ordering::Relaxed)
    }

    /// Which hosts have received a token so far.
    pub(crate) fn receivers(&self, token: Token) -> BTreeSet<Host> {
        self.hosts.lock().unwrap().get(&token).cloned().unwrap_or_default()
    }
}
