//! The prefixes of the copies of dropped packets: which of our rules dropped a packet.
//!
//! The kernel keeps 63 bytes of a prefix. Programs that read copies see them as text, so they are words:
//!
//! ```text
//! towpath ingress DIGEST        the policies of the pods that have this program, in this direction
//! towpath unknown               no known pod has the address, which is in the node's block of pods
//! towpath no-chain ingress      the pod is isolated in this direction, and has no chain yet
//! towpath tunnel                a tunnel packet of a pod, or to this node from a host that it has no tunnel with
//! towpath link                  past the addresses of pods: multicast, broadcast, link-local
//! ```
//!
//! What the interface guard drops is counted by reason, and not copied.

use std::{fmt, sync::Arc};

use crate::{
    model::Direction,
    policy::digest::{DIGITS, is_digest},
};

/// Which rule dropped a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogPrefix {
    /// The end of a group chain: the policies of the pods with this program allow it in no rule.
    Policy(Direction, Arc<str>),
    /// No known pod has the address.
    UnknownPod,
    /// The pod is isolated in this direction and has no chain yet.
    NoChain(Direction),
    /// A rule about tunnels.
    Tunnel,
    /// A rule about traffic that bypasses the addresses of pods.
    Link,
}

impl LogPrefix {
    /// The rule that a copy with this prefix comes from; `None` if it is none of ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        if words.next() != Some("towpath") {
            return None;
        }
        let direction = |word: &str| Direction::BOTH.into_iter().find(|known| known.to_string() == word);
        let words: Vec<&str> = words.collect();
        match *words.as_slice() {
            ["unknown"] => Some(Self::UnknownPod),
            ["tunnel"] => Some(Self::Tunnel),
            ["link"] => Some(Self::Link),
            ["no-chain", word] => direction(word).map(Self::NoChain),
            [word, digest] if is_digest(digest, DIGITS) => {
                direction(word).map(|direction| Self::Policy(direction, digest.into()))
            }
            _ => None,
        }
    }

    /// The direction in which the pod was isolated, if isolation is the reason.
    #[must_use]
    pub const fn direction(&self) -> Option<Direction> {
        match self {
            Self::Policy(direction, _) | Self::NoChain(direction) => Some(*direction),
            Self::UnknownPod | Self::Tunnel | Self::Link => None,
        }
    }

    /// The kind of rule, in one word.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Policy(..) => "policy",
            Self::UnknownPod => "unknown-pod",
            Self::NoChain(_) => "no-chain",
            Self::Tunnel => "tunnel",
            Self::Link => "link",
        }
    }
}

/// As the kernel copies it, with a blank at its end: what prints it prints the packet behind it.
impl fmt::Display for LogPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(direction, digest) => write!(f, "towpath {direction} {digest} "),
            Self::UnknownPod => f.write_str("towpath unknown "),
            Self::NoChain(direction) => write!(f, "towpath no-chain {direction} "),
            Self::Tunnel => f.write_str("towpath tunnel "),
            Self::Link => f.write_str("towpath link "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::digest::digest;

    /// The most bytes of a prefix that the kernel keeps.
    const LONGEST: usize = 63;

    #[test]
    fn every_prefix_is_read_back_and_fits_into_the_kernels_field() {
        let mut all = vec![LogPrefix::UnknownPod, LogPrefix::Tunnel, LogPrefix::Link];
        for direction in Direction::BOTH {
            all.push(LogPrefix::Policy(direction, digest(&"x").into()));
            all.push(LogPrefix::NoChain(direction));
        }
        for prefix in all {
            let text = prefix.to_string();
            assert!(text.len() <= LONGEST, "{text}");
            assert_eq!(LogPrefix::parse(&text).as_ref(), Some(&prefix), "{text}");
            assert_eq!(LogPrefix::parse(text.trim_end()).as_ref(), Some(&prefix), "{text}");
        }
    }

    #[test]
    fn prefixes_of_other_programs_are_not_ours() {
        for text in ["", "towpath", "kube ingress ", "towpath ingress ", "towpath sideways aaaaaaaaaaaaaaaa "]
        {
            assert_eq!(LogPrefix::parse(text), None, "{text:?}");
        }
        assert_eq!(LogPrefix::parse("towpath ingress aaaaaaaaaaaaaaa1 "), None, "no digest has a 1");
        assert_eq!(LogPrefix::parse("towpath tunnel tunnel "), None);
    }
}
