//! The nft variant announces every transaction to its listeners: first what it changed, then the number of the
//! generation that it created.
//!
//! That number distinguishes our own transactions from those of other programs: a transaction that was the only one
//! between the beginning and the end of our own `iptables-restore` is ours. (The process id in the announcement would
//! not do: in a container it differs from the id under which we know our child.)

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, PoisonError},
};

use nix::errno::Errno;

use super::Listen;
use crate::dataplane::kernel::netlink::{Message, Netlink, messages, text};
use crate::ruleset::{BuiltIn, ChainName};

/// The multicast group of nftables' notifications.
const GROUP: u32 = 7;

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const NEW_GENERATION: u16 = SUBSYSTEM | 15;
const GET_GENERATION: u16 = SUBSYSTEM | 16;

/// In every message about a table, a chain or a rule: the name of the table.
const TABLE: u16 = 1;
/// In messages about rules: the name of the chain.
const RULE_CHAIN: u16 = 2;
/// In messages about chains: its name.
const CHAIN_NAME: u16 = 3;
const GENERATION_ID: u16 = 1;

const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// How many of our generations are remembered: more than can be pending announcement.
const REMEMBERED: usize = 1024;

/// Which generations of nftables we created ourselves.
#[derive(Debug)]
pub(in crate::dataplane::kernel) struct Journal(Mutex<Entries>);

#[derive(Debug)]
struct Entries {
    netlink: Netlink,
    ours: BTreeSet<u32>,
}

impl Journal {
    pub(in crate::dataplane::kernel) fn open() -> io::Result<Self> {
        Ok(Self(Mutex::new(Entries { netlink: Netlink::open()?, ours: BTreeSet::new() })))
    }

    /// Runs `transaction`, and records the generation that it created, if it `succeeded`: a failed one creates none,
    /// and the next may be another program's. A listener that receives it meanwhile waits for the end before it judges.
    pub(in crate::dataplane::kernel) fn record<T>(
        &self,
        transaction: impl FnOnce() -> T,
        succeeded: impl FnOnce(&T) -> bool,
    ) -> T {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = entries.generation();
        let result = transaction();
        let after = entries.generation();
        if let (Some(before), Some(after)) = (before, after)
            && after == before.wrapping_add(1)
            && succeeded(&result)
        {
            entries.ours.insert(after);
            if entries.ours.len() > REMEMBERED {
                entries.ours.pop_first();
            }
        }
        result
    }

    pub(in crate::dataplane::kernel) fn is_ours(&self, generation: u32) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ours.contains(&generation)
    }

    /// The kernel's present generation, if it can be read.
    pub(in crate::dataplane::kernel) fn generation(&self) -> Option<u32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).generation()
    }

    /// Whether all generations since `last` are ours, and which one is the latest.
    fn are_ours_since(&self, last: Option<u32>) -> (bool, Option<u32>) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = entries.generation();
        (are_all_after(&entries.ours, last, now), now)
    }
}

/// Whether all generations after `last` until `now` are among ours; if either is not known, they may not be.
fn are_all_after(ours: &BTreeSet<u32>, last: Option<u32>, now: Option<u32>) -> bool {
    let (Some(last), Some(now)) = (last, now) else { return false };
    (last.wrapping_add(1)..=now).all(|generation| ours.contains(&generation))
}

impl Entries {
    fn generation(&mut self) -> Option<u32> {
        let mut id = None;
        let answer = self.netlink.request(GET_GENERATION, 0, 0, &[], |message| id = generation(message));
        if let Err(error) = answer {
            tracing::debug!(%error, "cannot read the nftables generation");
        }
        id
    }
}

pub(in crate::dataplane::kernel) fn generation(message: &Message<'_>) -> Option<u32> {
    let id = attribute(message, GENERATION_ID)?;
    id.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn attribute<'a>(message: &Message<'a>, kind: u16) -> Option<&'a [u8]> {
    message.attributes().find(|(found, _)| *found == kind).map(|(_, payload)| payload)
}

/// Whether a message reports a change that concerns us: of our chains, of those that we hook into, or of the table.
pub(in crate::dataplane::kernel) fn concerns_us(message: &Message<'_>) -> bool {
    let is_filter = matches!(message.family, IPV4 | IPV6)
        && attribute(message, TABLE).is_some_and(|table| text(table) == "filter");
    let chain = match message.kind {
        NEW_TABLE | DELETE_TABLE => return is_filter,
        NEW_CHAIN | DELETE_CHAIN => CHAIN_NAME,
        NEW_RULE | DELETE_RULE => RULE_CHAIN,
        _ => return false,
    };
    let is_watched =
        |name: &str| BuiltIn::ALL.iter().any(|at| at.name() == name) || ChainName::new(name).is_some();
    is_filter && attribute(message, chain).is_some_and(|name| is_watched(text(name)))
}

/// Listens to notifications.
pub(super) struct Listener {
    netlink: Netlink,
    journal: Arc<Journal>,
    /// Whether the transaction that is being announced concerns us.
    concerned: bool,
    /// The latest generation that was announced.
    last: Option<u32>,
}

impl Listener {
    pub(super) fn open(journal: Arc<Journal>) -> io::Result<Self> {
        let netlink = Netlink::open()?;
        netlink.socket.set_non_blocking(true)?;
        netlink.socket.add_membership(GROUP)?;
        let (_, last) = journal.are_ours_since(None);
        Ok(Self { netlink, journal, concerned: false, last })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.socket.as_fd()
    }
}

impl Listen for Listener {
    /// Reads everything that is available. Returns whether any of it was foreign and concerns us.
    fn drain(&mut self) -> io::Result<bool> {
        let mut foreign = false;
        loop {
            match self.netlink.receive() {
                Ok(datagram) => {
                    for message in messages(datagram) {
                        if message.kind != NEW_GENERATION {
                            self.concerned |= concerns_us(&message);
                            continue;
                        }
                        let id = generation(&message);
                        self.last = self.last.max(id);
                        let is_ours = id.is_some_and(|id| self.journal.is_ours(id));
                        foreign |= std::mem::take(&mut self.concerned) && !is_ours;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(foreign),
                // More notifications came than the socket could hold: only the generations tell whose they were.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    let (ours, now) = self.journal.are_ours_since(self.last);
                    self.last = now;
                    self.concerned = false;
                    foreign |= !ours;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::kernel::netlink::{encode, put};

    fn message_with<T>(
        kind: u16,
        family: u8,
        attributes: &[(u16, &[u8])],
        read: impl Fn(&Message<'_>) -> T,
    ) -> T {
        let mut bytes = Vec::new();
        for (kind, value) in attributes {
            put(&mut bytes, *kind, value);
        }
        let bytes = encode(kind, 0, 1, family, &bytes);
        read(&messages(&bytes).next().unwrap())
    }

    #[test]
    fn changes_of_the_filter_table_our_chains_and_hooked_chains_are_relevant() {
        let concerns = |kind, family, table: &[u8], name: (u16, &[u8])| {
            message_with(kind, family, &[(TABLE, table), name], concerns_us)
        };
        let (forward, ours, other) = (&b"FORWARD\0"[..], &b"TOWPATH-FORWARD\0"[..], &b"KUBE-FORWARD\0"[..]);
        for (kinds, name) in [([NEW_CHAIN, DELETE_CHAIN], CHAIN_NAME), ([NEW_RULE, DELETE_RULE], RULE_CHAIN)]
        {
            for kind in kinds {
                for family in [IPV4, IPV6] {
                    assert!(concerns(kind, family, b"filter\0", (name, forward)));
                    assert!(concerns(kind, family, b"filter\0", (name, ours)));
                    assert!(!concerns(kind, family, b"filter\0", (name, other)));
                    assert!(!concerns(kind, family, b"nat\0", (name, forward)));
                }
                let bridge = 7;
                assert!(!concerns(kind, bridge, b"filter\0", (name, forward)));
            }
        }
        for kind in [NEW_TABLE, DELETE_TABLE] {
            assert!(message_with(kind, IPV4, &[(TABLE, b"filter\0")], concerns_us));
            assert!(!message_with(kind, IPV4, &[(TABLE, b"nat\0")], concerns_us));
        }
        let new_set = SUBSYSTEM | 9;
        assert!(!concerns(new_set, IPV4, b"filter\0", (RULE_CHAIN, forward)));
    }

    #[test]
    fn generation_number_is_parsed() {
        let of = |attributes: &[(u16, &[u8])]| message_with(NEW_GENERATION, 0, attributes, generation);
        assert_eq!(of(&[(GENERATION_ID + 1, &[0, 0, 0, 9]), (GENERATION_ID, &[0, 0, 1, 2])]), Some(258));
        assert_eq!(of(&[(GENERATION_ID + 1, &[0, 0, 0, 9])]), None);
    }

    #[test]
    fn generations_are_ours_if_each_since_the_last_known_one_is() {
        let ours = BTreeSet::from([4, 5, 6]);
        assert!(are_all_after(&ours, Some(3), Some(6)));
        assert!(are_all_after(&ours, Some(6), Some(6)), "there was none since");
        assert!(!are_all_after(&ours, Some(2), Some(6)));
        assert!(!are_all_after(&ours, Some(3), Some(7)));
        assert!(!are_all_after(&ours, None, Some(6)) && !are_all_after(&ours, Some(3), None));
    }
}
