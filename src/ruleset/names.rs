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
//! set    tp4-word, tp6-word      one of the seven fixed words below; there will be no others
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
mod tests {
    use super::*;

    /// One of each role, and whether it closes, grows early, may break, and is named after its members.
    #[test]
    fn role_determines_how_a_set_is_handled() {
        let some = digest(&"x");
        let family = Family::V4;
        for (set, [closing, early, breakable, after_members]) in [
            (drops(family), [false, true, true, false]),
            (local_pods(family), [true, true, false, false]),
            (known_pods(family), [false, false, false, false]),
            (set(family, SetRole::Nodes, ""), [true, true, false, false]),
            (all_pods(family), [false, false, false, false]),
            (tunnel_ends(family), [false, false, false, false]),
            (isolated(family, Direction::Ingress, &OrdSet::new()), [true, true, false, true]),
            (pods(family, &some), [false, false, true, false]),
            (named_ports(family, &some), [false, false, true, false]),
            (networks(family, &some), [false, true, true, true]),
            (excepts(family, &some), [true, true, true, true]),
            (network_ports(family, &some), [false, true, true, true]),
            (ports(family, &some), [false, true, true, true]),
        ] {
            assert_eq!(closes(&set), closing, "{set}");
            assert_eq!(grows_early(&set), early, "{set}");
            assert_eq!(may_break(&set), breakable, "{set}");
            assert_eq!(is_named_after_members(&set), after_members, "{set}");
        }
    }

    #[test]
    fn sets_of_excepts_close_are_filled_early_and_can_break_with_their_rule() {
        let set = excepts(Family::V4, &digest(&"x"));
        assert!(closes(&set) && grows_early(&set) && may_break(&set));
        let allows = [networks(Family::V4, &digest(&"x")), network_ports(Family::V6, &digest(&"x"))];
        assert!(allows.iter().all(|set| !closes(set) && grows_early(set) && may_break(set)));
        assert!(
            closes(&local_pods(Family::V4))
                && closes(&isolated(Family::V6, Direction::Egress, &OrdSet::new()))
        );
    }

    #[test]
    fn names_fit_the_kernels_limit() {
        let long = ObjectKey::new("n".repeat(63), "p".repeat(253));
        let digest = digest(&long);
        for direction in Direction::BOTH {
            let chains = [dispatch(direction), pod(direction, &long), group(direction, &digest)];
            let branch = branch(direction, "fd00::/64".parse().unwrap());
            assert!(chains.iter().chain([&branch]).all(|name| name.as_str().len() <= 28));
            for family in Family::BOTH {
                for name in [
                    isolated(family, direction, &OrdSet::new()),
                    drops(family),
                    local_pods(family),
                    set(family, SetRole::Nodes, ""),
                    all_pods(family),
                    tunnel_ends(family),
                    pods(family, &digest),
                    named_ports(family, &digest),
                    networks(family, &digest),
                    ports(family, &digest),
                    excepts(family, &digest),
                    network_ports(family, &digest),
                ] {
                    assert!(name.as_str().len() <= 31, "{name}");
                    assert_eq!(name.family(), family);
                }
            }
        }
        assert!([forward(), input()].iter().all(|name| name.as_str().len() <= 28));
    }

    #[test]
    fn only_complete_names_are_ours() {
        let digest = "abcdefghijklm234";
        let chains = [
            "TOWPATH",
            "TOWPATH-",
            "TOWPATH--FORWARD",
            "TOWPATH-FORWARD-",
            "TOWPATH-mine",
            "TOWPATH_FORWARD",
            "MY-TOWPATH-FORWARD",
            "towpath-forward",
            "TP-LINK",
            "TP-GI",
            "TP-GI-x",
        ];
        let chains = chains.map(str::to_owned).into_iter().chain([
            format!("TP-LINK-{digest}"),
            format!("TP-G-{digest}"),
            format!("TP-gi-{digest}"),
            format!("TP-G-I-{digest}"),
            format!("TOWPATH-{}", "X".repeat(21)),
            format!("TP-GI{digest}"),
            format!("TP-GI-{digest}5"),
            format!("TP-GI-{}", &digest[1..]),
            format!("TP-GI-{}", digest.to_uppercase()),
            format!("TP-GI-{}1", &digest[1..]),
        ]);
        for name in chains {
            assert_eq!(ChainName::new(&name), None, "{name}");
        }
        let sets = [
            "tp4-",
            "tp4-mine",
            "tp4-pods",
            "tp4-pods-x",
            "tp4-nodes-",
            "tp6-nodes-old",
            "tp5-nodes",
            "xtp4-nodes",
        ];
        let sets = sets.map(str::to_owned).into_iter().chain([
            format!("tp4-drops{digest}"),
            format!("tp4-mine-{}", &digest[..10]),
            format!("tp4--{digest}"),
            format!("tp4-Mine-{digest}"),
            format!("tp4-my--set-{digest}"),
            format!("tp4-elevenlongs-{digest}"),
            format!("tp5-mine-{digest}"),
            format!("tp4-nodes-{}", &digest[..10]),
            format!("tp4-pods{digest}"),
            format!("tp4-pods-{}", &digest[1..]),
            format!("tp4-pods-{digest}a"),
            format!("tp4-pods-{}", digest.replace('2', "_")),
            format!("tp4-ingress-isolated-{digest}"),
            format!("tp4-ingress-isolated-{}", &digest[..9]),
        ]);
        for name in sets {
            assert_eq!(SetName::new(&name), None, "{name}");
        }
    }

    #[test]
    fn names_that_another_version_may_use_are_ours() {
        let digest = "abcdefghijklm234";
        let digested = ["XX", "X7", "XPI"].map(|kind| format!("TP-{kind}-{digest}"));
        let words = ["TOWPATH-FORWARD2", "TOWPATH-F", "TOWPATH-OUTPUT-7-X"].map(str::to_owned);
        for name in digested.iter().chain(&words) {
            assert!(ChainName::new(name).is_some(), "{name}");
        }
        for (family, word) in [(Family::V4, "newthing"), (Family::V6, "x"), (Family::V6, "two-words7")] {
            let name = format!("{}{word}-{digest}", set_prefix(family));
            let set = SetName::new(&name).unwrap();
            assert_eq!((set.family(), set.role()), (family, SetRole::Unknown), "{name}");
        }
    }

    #[test]
    fn set_whose_name_is_taken_gets_another_name_of_the_same_role() {
        for family in Family::BOTH {
            for (role, _, digits) in ROLES.into_iter().filter(|(.., digits)| *digits > 0) {
                let name = set(family, role, &digest(&"x"));
                let mut taken = BTreeSet::from([name.clone()]);
                for _ in 0..3 {
                    let other = instead(&name, &taken);
                    assert_eq!((other.family(), other.role()), (family, role), "{other} after {digits}");
                    assert!(taken.insert(other));
                }
            }
        }
    }

    #[test]
    fn names_of_previous_versions_are_ours() {
        for name in [
            "TOWPATH-MIDSTREAM",
            "TOWPATH-PROBE",
            "TOWPATH-TRIAL",
            "TOWPATH-INPUT-ND",
            "TP-DE-aaaabbbbccccdddd",
        ] {
            assert!(ChainName::new(name).is_some(), "{name}");
        }
        for (name, role) in [
            ("tp4-ingress-isolated", SetRole::Isolated(Direction::Ingress)),
            ("tp6-egress-isolated", SetRole::Isolated(Direction::Egress)),
            ("tp4-egress-isolated-m6v524qqet", SetRole::Isolated(Direction::Egress)),
            ("tp6-local-pods", SetRole::LocalPods),
            ("tp4-pods-ip5nb763xyfnao4z", SetRole::Pods),
        ] {
            assert_eq!(SetName::new(name).map(|name| name.role()), Some(role), "{name}");
        }
    }

    #[test]
    fn each_role_has_one_name() {
        let (some, members) = (digest(&1), OrdSet::new());
        for family in Family::BOTH {
            let made = [
                drops(family),
                local_pods(family),
                known_pods(family),
                set(family, SetRole::Nodes, ""),
                all_pods(family),
                tunnel_ends(family),
                isolated(family, Direction::Ingress, &members),
                isolated(family, Direction::Egress, &members),
                pods(family, &some),
                named_ports(family, &some),
                networks(family, &some),
                excepts(family, &some),
                network_ports(family, &some),
                ports(family, &some),
            ];
            assert_eq!(made.len(), ROLES.len(), "a role without a name");
            for ((role, ..), name) in ROLES.into_iter().zip(made) {
                assert_eq!((name.family(), name.role()), (family, role), "{name}");
                assert_eq!(SetName::new(name.as_str()), Some(name));
            }
        }
    }
}
