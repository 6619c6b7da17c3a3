//! The kernel announces no change of a set. But it can be asked for the sizes of all sets, which takes it a fraction of
//! a millisecond, and what another program does by mistake is nearly always `ipset flush`: sets become empty.
//!
//! Our own edits also empty a set now and then. That costs one brief check. A set that is gone is not reported: the
//! kernel lets nobody destroy one that a rule uses.

use std::{
    collections::BTreeSet,
    io,
    ops::RangeInclusive,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

use super::Listen;
use crate::{
    dataplane::kernel::netlink::{FLAG_DUMP, Message, Netlink, attributes, put, text},
    ruleset::SetName,
};

/// The shortest and the longest time between two reads. A set that another program empties stays empty for no longer
/// than one of them and a repair.
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(5);

/// The time between two reads is at least so many times what the last one took: half a percent of one core.
const REST: u32 = 200;

/// The subsystem, and its message that lists sets.
const LIST: u16 = 6 << 8 | 7;

/// The version of the protocol that all kernels with sets speak.
const PROTOCOL: u8 = 6;

const ATTRIBUTE_PROTOCOL: u16 = 1;
const ATTRIBUTE_NAME: u16 = 2;
const ATTRIBUTE_FLAGS: u16 = 6;
const ATTRIBUTE_HEAD: u16 = 7;
/// In the head of a set.
const ATTRIBUTE_ELEMENTS: u16 = 24;

/// The number is in network byte order.
const NETWORK_ORDER: u16 = 0x4000;

/// Lists only the heads of sets, without their members.
const ONLY_HEADS: u32 = 1 << 2;

/// Netfilter's family of a message about sets of any family.
const ANY_FAMILY: u8 = 2;

pub(super) struct Listener {
    timer: TimerFd,
    netlink: Netlink,
    /// Our sets that had members when they were last read.
    filled: BTreeSet<SetName>,
}

impl Listener {
    pub(super) fn open() -> io::Result<Self> {
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let mut listener = Self { timer, netlink: Netlink::open()?, filled: BTreeSet::new() };
        listener.filled = listener.read()?.filled;
        Ok(listener)
    }

    /// Reads the sizes, and sets the timer for the next time.
    fn read(&mut self) -> io::Result<Sizes> {
        let start = Instant::now();
        let sizes = Sizes::read(&mut self.netlink)?;
        let rest = (start.elapsed() * REST).clamp(*INTERVAL.start(), *INTERVAL.end());
        self.timer.set(Expiration::OneShot(TimeSpec::from_duration(rest)), TimerSetTimeFlags::empty())?;
        Ok(sizes)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

impl Listen for Listener {
    fn drain(&mut self) -> io::Result<bool> {
        self.timer.wait()?;
        let now = self.read()?;
        let before = std::mem::replace(&mut self.filled, now.filled);
        Ok(now.empty.iter().any(|set| before.contains(set)))
    }
}

/// Our sets, by whether they have members.
#[derive(Debug, Default)]
struct Sizes {
    filled: BTreeSet<SetName>,
    empty: Vec<SetName>,
}

impl Sizes {
    fn read(netlink: &mut Netlink) -> io::Result<Self> {
        let mut request = Vec::new();
        put(&mut request, ATTRIBUTE_PROTOCOL, &[PROTOCOL]);
        put(&mut request, ATTRIBUTE_FLAGS | NETWORK_ORDER, &ONLY_HEADS.to_be_bytes());
        let mut sizes = Self::default();
        netlink.request(LIST, FLAG_DUMP, ANY_FAMILY, &request, |message| {
            let Some((name, elements)) = head(message) else { return };
            match SetName::new(name) {
                Some(name) if elements > 0 => drop(sizes.filled.insert(name)),
                Some(name) => sizes.empty.push(name),
                None => {}
            }
        })?;
        Ok(sizes)
    }
}

/// The name of a set and the number of its members.
fn head<'a>(message: &Message<'a>) -> Option<(&'a str, u32)> {
    let of = |wanted: u16| message.attributes().find(|(kind, _)| *kind == wanted).map(|(_, payload)| payload);
    let mut head = attributes(of(ATTRIBUTE_HEAD)?);
    let elements = head.find_map(|(kind, payload)| (kind == ATTRIBUTE_ELEMENTS).then_some(payload))?;
    Some((text(of(ATTRIBUTE_NAME)?), u32::from_be_bytes(*elements.first_chunk()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::kernel::netlink::{NESTED, encode, messages};

    const HASH_SIZE: u16 = 18;

    /// A set as the kernel lists it: the attributes before and after those that are read vary with its version.
    fn listed(name: &str, elements: u32) -> Vec<u8> {
        let mut head = Vec::new();
        put(&mut head, HASH_SIZE | NETWORK_ORDER, &1024_u32.to_be_bytes());
        put(&mut head, ATTRIBUTE_ELEMENTS | NETWORK_ORDER, &elements.to_be_bytes());
        let mut body = Vec::new();
        put(&mut body, ATTRIBUTE_PROTOCOL, &[7]);
        put(&mut body, ATTRIBUTE_NAME, &[name.as_bytes(), &[0]].concat());
        put(&mut body, ATTRIBUTE_HEAD | NESTED, &head);
        encode(LIST, 0, 1, 2, &body)
    }

    #[test]
    fn name_and_size_of_a_listed_set_are_read() {
        let bytes = listed("tp4-pods-0123456789abcdef", 70_000);
        let message = messages(&bytes).next().unwrap();
        assert_eq!(head(&message), Some(("tp4-pods-0123456789abcdef", 70_000)));
        let nameless = encode(LIST, 0, 1, 2, &[]);
        assert_eq!(head(&messages(&nameless).next().unwrap()), None);
    }
}
