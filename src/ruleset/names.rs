//! The names of our chains and sets.
//!
//! A name is a prefix for the type of the object, and either a fixed word or a digest of what the object *means*: the
//! selectors of a set of pods or named ports (not its members), the members of any other set, the ordered program of a
//! group chain, the name of a pod. Equal meaning is
//! equal name, so that policies share sets and pods share chains; a new meaning is a new object beside the old one,
//! which makes every replacement atomic.
//!
//! Which names are ours is a contract between all versions of this program, so that each one finds, replaces and
//! removes what any other has written, also one that is newer than itself:
//!
//! ```text
//! chain  TOWPATH-WORD            upper-case letters, digits and dashes
//!        TP-KIND-digest          two or three upper-case letters or digits, 16 digits of a digest
//! set    tp4-word, tp6-word      one of the eight fixed words below; there will be no others
//!        tp4-word-digest         one of six of these words, 10 digits of a digest
//!        tp4-word-digest         at most 10 lower-case letters, digits and dashes; 16 digits of a digest
//! ```
//!
//! The name alone decides: a set with one of these names is ours whatever its type. A chain `TP-LINK` or a set
//! `tp4-mine` belongs to another program.
//!
//! To add a role of sets: a variant of [`SetRole`], its line in `ROLES`, and what the compiler then requires. The word
//! needs a digest behind it. A set with a fixed name keeps its type and its meaning forever; for another one, take
//! another name.

use std::collections::BTreeSet;

use imbl::OrdSet;

use super::{ChainName, Member, SetKind, SetName, SetRole};
use crate::{
    model::{Direction, Family, ObjectKey, layout},
    policy::digest::{DIGITS, digest, is_digest},
};

/// The longest name of a chain that iptables accepts.
const LONGEST_CHAIN: usize = 28;

/// The longest word of a set with [`DIGITS`] digits that the kernel accepts.
const LONGEST_WORD: usize = 10;

/// The digits behind words that are longer, or that also stand alone.
const FEW_DIGITS: usize = 10;

/// Every role of sets, with its word, and the number of digits of a digest that follow.
const ROLES: [(SetRole, &str, usize); 14] = [
    (SetRole::Drops, "drops", FEW_DIGITS),
    (SetRole::LocalPods, "local-pods", FEW_DIGITS),
    (SetRole::KnownPods, "known-pods", FEW_DIGITS),
    (SetRole::Nodes, "nodes", 0),
    (SetRole::AllPods, "all-pods", FEW_DIGITS),
    (SetRole::TunnelEnds, "tunnel-ends", FEW_DIGITS),
    (SetRole::Isolated(Direction::Ingress), "ingress-isolated", FEW_DIGITS),
    (SetRole::Isolated(Direction::Egress), "egress-isolated", FEW_DIGITS),
    (SetRole::Pods, "pods", DIGITS),
    (SetRole::NamedPorts, "named", DIGITS),
    (SetRole::Networks, "nets", DIGITS),
    (SetRole::Excepts, "except", DIGITS),
    (SetRole::NetworkPorts, "netports", DIGITS),
    (SetRole::Ports, "ports", DIGITS),
];

/// The words of the other layout, where they differ.
const OTHER_WORDS: [(&str, &str); 4] =
    [("pods", "peers"), ("named", "doors"), ("nets", "blocks"), ("ports", "numbers")];

/// The word of a role in the layout of this process.
fn word(usual: &'static str) -> &'static str {
    let other = OTHER_WORDS.iter().find(|(word, _)| layout::is_other() && *word == usual);
    other.map_or(usual, |(_, other)| other)
}

/// Whether this is a name of our chains.
pub(super) fn is_chain(name: &str) -> bool {
    let is_word = |text: &str| text.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9'));
    if let Some(words) = name.strip_prefix("TOWPATH-") {
        return name.len() <= LONGEST_CHAIN && words.split('-').all(|part| !part.is_empty() && is_word(part));
    }
    let digested = name.strip_prefix("TP-").and_then(|rest| rest.split_once('-'));
    digested.is_some_and(|(kind, digest)| {
        matches!(kind.len(), 2 | 3) && is_word(kind) && is_digest(digest, DIGITS)
    })
}

/// The family and the role of our set with this name.
pub(super) fn parse_set(name: &str) -> Option<(Family, SetRole)> {
    let (family, rest) =
        Family::BOTH.into_iter().find_map(|family| Some((family, name.strip_prefix(set_prefix(family))?)))?;
    let known = ROLES.into_iter().find(|(_, usual, digits)| match rest.strip_prefix(word(usual)) {
        // Fixed names. Former versions had one set of isolated pods for each direction, regardless of its members.
        Some("") => *digits != DIGITS,
        Some(more) => more.strip_prefix('-').is_some_and(|digest| is_digest(digest, *digits)),
        None => false,
    });
    if let Some((role, ..)) = known {
        return Some((family, role));
    }
    let (word, digest) = rest.rsplit_once('-')?;
    let is_part =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'));
    let is_word = word.len() <= LONGEST_WORD && word.split('-').all(is_part);
    (is_word && is_digest(digest, DIGITS)).then_some((family, SetRole::Unknown))
}

/// A name for a set of the same role as `name`, which is taken by a set of another type.
pub(super) fn instead(name: &SetName, taken: &BTreeSet<SetName>) -> SetName {
    let number = |number: usize| set(name.family(), name.role(), &digest(&(name.as_str(), number)));
    // One of so many is free.
    (0..=taken.len()).map(number).find(|other| !taken.contains(other)).unwrap_or_else(|| name.clone())
}

const fn set_prefix(family: Family) -> &'static str {
    match family {
        Family::V4 => "tp4-",
        Family::V6 => "tp6-",
    }
}

/// The kind of sets of a role. One of another kind is of another version.
#[must_use]
pub fn kind(role: SetRole) -> SetKind {
    match role {
        SetRole::Drops if layout::is_other() => SetKind::Addresses,
        SetRole::LocalPods if layout::is_other() => SetKind::Networks,
        SetRole::Drops => SetKind::CountedAddresses,
        SetRole::LocalPods
        | SetRole::KnownPods
        | SetRole::Unknown
        | SetRole::Nodes
        | SetRole::AllPods
        | SetRole::TunnelEnds
        | SetRole::Isolated(_)
        | SetRole::Pods => SetKind::Addresses,
        SetRole::NamedPorts => SetKind::Endpoints,
        SetRole::Networks | SetRole::Excepts => SetKind::Networks,
        SetRole::NetworkPorts => SetKind::NetworkEndpoints,
        SetRole::Ports => SetKind::Ports,
    }
}

/// Whether this version would create a set with this name as one of this kind.
#[must_use]
pub fn is_usual(name: &SetName, of: SetKind) -> bool {
    name.role() != SetRole::Unknown && kind(name.role()) == of
}

/// The chain that all forwarded packets pass.
#[must_use]
pub fn forward() -> ChainName {
    chain("TOWPATH-FORWARD")
}

/// The chain that packets to the node itself pass.
#[must_use]
pub fn input() -> ChainName {
    chain("TOWPATH-INPUT")
}

/// A chain that packets from the node itself pass, only in the other layout.
#[must_use]
pub(super) fn output() -> ChainName {
    chain("TOWPATH-OUTPUT")
}

/// The dispatch chain of isolated pods, by direction.
#[must_use]
pub fn dispatch(direction: Direction) -> ChainName {
    chain(match direction {
        Direction::Ingress => "TOWPATH-INGRESS",
        Direction::Egress => "TOWPATH-EGRESS",
    })
}

/// A branch of the dispatch tree: the pods whose addresses lie in `network`.
#[must_use]
pub fn branch(direction: Direction, network: ipnet::IpNet) -> ChainName {
    chain(&format!("TP-D{}-{}", letter(direction), digest(&network)))
}

/// The chain of one pod.
#[must_use]
pub fn pod(direction: Direction, pod: &ObjectKey) -> ChainName {
    chain(&format!("TP-P{}-{}", letter(direction), digest(pod)))
}

/// The chain of an address that several pods report.
#[must_use]
pub fn shared(direction: Direction, address: std::net::IpAddr) -> ChainName {
    chain(&format!("TP-S{}-{}", letter(direction), digest(&address)))
}

/// The chain of all pods with one program; `digest` is the program's.
#[must_use]
pub fn group(direction: Direction, digest: &str) -> ChainName {
    chain(&format!("TP-G{}-{digest}", letter(direction)))
}

/// The pods of this node that are isolated in `direction`, named after these members.
#[must_use]
pub fn isolated(family: Family, direction: Direction, members: &OrdSet<Member>) -> SetName {
    set(family, SetRole::Isolated(direction), &digest(members))
}

/// Whether a set may grow at any time and should shrink late: membership closes, or it is named after its members, so
/// that members are missing only if a previous process did not finish it. Every other set allows.
#[must_use]
pub const fn grows_early(name: &SetName) -> bool {
    match name.role() {
        SetRole::Drops
        | SetRole::LocalPods
        | SetRole::Nodes
        | SetRole::Isolated(_)
        | SetRole::Networks
        | SetRole::Excepts
        | SetRole::NetworkPorts
        | SetRole::Ports => true,
        SetRole::KnownPods
        | SetRole::AllPods
        | SetRole::TunnelEnds
        | SetRole::Pods
        | SetRole::NamedPorts
        | SetRole::Unknown => false,
    }
}

/// Whether the name depends on the members.
#[must_use]
pub const fn is_named_after_members(name: &SetName) -> bool {
    match name.role() {
        SetRole::Isolated(_)
        | SetRole::Networks
        | SetRole::Excepts
        | SetRole::NetworkPorts
        | SetRole::Ports => true,
        SetRole::Drops
        | SetRole::LocalPods
        | SetRole::KnownPods
        | SetRole::Nodes
        | SetRole::AllPods
        | SetRole::TunnelEnds
        | SetRole::Pods
        | SetRole::NamedPorts
        | SetRole::Unknown => false,
    }
}

/// Whether rules can do without a set, by closing what it would allow. Without one of the others something would open:
/// if it cannot be written, nothing of its sync may be.
#[must_use]
pub const fn may_break(name: &SetName) -> bool {
    match name.role() {
        SetRole::LocalPods
        | SetRole::KnownPods
        | SetRole::Nodes
        | SetRole::AllPods
        | SetRole::TunnelEnds
        | SetRole::Isolated(_) => false,
        SetRole::Drops
        | SetRole::Pods
        | SetRole::NamedPorts
        | SetRole::Networks
        | SetRole::Excepts
        | SetRole::NetworkPorts
        | SetRole::Ports
        | SetRole::Unknown => true,
    }
}

/// Whether more members of a set deny more. A set of excepts may still break, because the rule that looks it up is
/// removed with it.
#[must_use]
pub const fn closes(name: &SetName) -> bool {
    match name.role() {
        SetRole::LocalPods | SetRole::Nodes | SetRole::Isolated(_) | SetRole::Excepts => true,
        SetRole::KnownPods
        | SetRole::AllPods
        | SetRole::TunnelEnds
        | SetRole::Drops
        | SetRole::Pods
        | SetRole::NamedPorts
        | SetRole::Networks
        | SetRole::NetworkPorts
        | SetRole::Ports
        | SetRole::Unknown => false,
    }
}

/// Counts dropped packets, by isolated pod.
#[must_use]
pub fn drops(family: Family) -> SetName {
    set(family, SetRole::Drops, "")
}

/// All pods of this node.
#[must_use]
pub fn local_pods(family: Family) -> SetName {
    set(family, SetRole::LocalPods, "")
}

/// The chain that packets from and to unknown pods of this node end in.
#[must_use]
pub fn unknown() -> ChainName {
    chain("TOWPATH-UNKNOWN")
}

/// The chain that packets of isolated pods without a chain end in, if they are logged.
#[must_use]
pub fn no_chain(direction: Direction) -> ChainName {
    chain(match direction {
        Direction::Ingress => "TOWPATH-NO-INGRESS",
        Direction::Egress => "TOWPATH-NO-EGRESS",
    })
}

/// The chain that tunnel packets to be dropped end in, if they are logged.
#[must_use]
pub fn tunnel() -> ChainName {
    chain("TOWPATH-TUNNEL")
}

/// The chain that traffic past the addresses of pods ends in, if it is logged.
#[must_use]
pub fn link() -> ChainName {
    chain("TOWPATH-LINK")
}

/// All pods of this node: those of its addresses that may be used.
#[must_use]
pub fn known_pods(family: Family) -> SetName {
    set(family, SetRole::KnownPods, "")
}

/// The addresses of all pods of the cluster.
#[must_use]
pub fn all_pods(family: Family) -> SetName {
    set(family, SetRole::AllPods, "")
}

/// The hosts whose tunnel packets this node accepts.
#[must_use]
pub fn tunnel_ends(family: Family) -> SetName {
    set(family, SetRole::TunnelEnds, "")
}

/// The pods of a selection; `digest` is the selection's.
#[must_use]
pub fn pods(family: Family, digest: &str) -> SetName {
    set(family, SetRole::Pods, digest)
}

/// The named ports of a selection; `digest` is the selection's.
#[must_use]
pub fn named_ports(family: Family, digest: &str) -> SetName {
    set(family, SetRole::NamedPorts, digest)
}

/// A set of networks.
#[must_use]
pub fn networks(family: Family, digest: &str) -> SetName {
    set(family, SetRole::Networks, digest)
}

/// The excepts of blocks: networks, named after them.
#[must_use]
pub fn excepts(family: Family, digest: &str) -> SetName {
    set(family, SetRole::Excepts, digest)
}

/// Networks with protocol and port, named after them.
#[must_use]
pub fn network_ports(family: Family, digest: &str) -> SetName {
    set(family, SetRole::NetworkPorts, digest)
}

/// A set of ports.
#[must_use]
pub fn ports(family: Family, digest: &str) -> SetName {
    set(family, SetRole::Ports, digest)
}

const fn letter(direction: Direction) -> char {
    match direction {
        Direction::Ingress => 'I',
        Direction::Egress => 'E',
    }
}

#[expect(clippy::expect_used, reason = "every caller is above; a test makes each kind of name")]
fn chain(name: &str) -> ChainName {
    let other = layout::is_other().then(|| match name.strip_prefix("TP-") {
        Some(rest) => format!("TP-X{rest}"),
        None => format!("{name}2"),
    });
    ChainName::new(other.as_deref().unwrap_or(name)).expect("a chain name of ours")
}

#[expect(clippy::expect_used, reason = "every caller is above; a test makes each kind of name")]
fn set(family: Family, role: SetRole, digest: &str) -> SetName {
    let (word, digits) = ROLES
        .iter()
        .find(|(of, ..)| *of == role)
        .map_or(("", 0), |(_, usual, digits)| (word(usual), *digits));
    let digest = digest.get(..digits).unwrap_or(digest);
    let dash = if digest.is_empty() { "" } else { "-" };
    SetName::new(&format!("{}{word}{dash}{digest}", set_prefix(family))).expect("a set name of ours")
}

#[cfg(test)]
mod tests;
