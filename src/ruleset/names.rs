//! The names of our chains and sets.
//!
//! A name is a prefix for the type of the object, and either a fixed word or a digest of what the object *means*: the
//! selectors of a set of pods or named ports (not its members), the members of any other set, the ordered program of a
//! group chain, the name of a pod. Equal meaning is
//! equal name, so that policies share sets and pods share chains; a new meaning is a new object beside the old one,
//! which makes every replacement atomic.
//!
//! A name is ours if it is one of the fixed words, or one of our prefixes with exactly as many digits of a digest as we
//! use: a chain `TP-LINK` or a set `tp4-mine` belongs to another program. Names that only former versions used are ours
//! as well, so that an upgrade takes over what it finds, and a cleanup leaves nothing behind.
//!
//! To add a role of sets: a variant of [`SetRole`], its line in `ROLES`, and what the compiler then requires.

use imbl::OrdSet;

use super::{ChainName, Member, SetKind, SetName, SetRole};
use crate::{
    model::{Direction, Family, ObjectKey},
    policy::digest::{DIGITS, digest, is_digest},
};

/// The chains with fixed names. No name is ever removed from this list: the last one is of former versions.
const WORDS: [&str; 10] = [
    "TOWPATH-FORWARD",
    "TOWPATH-FORWARD-ND",
    "TOWPATH-INPUT",
    "TOWPATH-INPUT-ND",
    "TOWPATH-INGRESS",
    "TOWPATH-EGRESS",
    "TOWPATH-UNKNOWN",
    // Chains that no packet passes: rules are written into them as a trial.
    "TOWPATH-PROBE",
    "TOWPATH-TRIAL",
    "TOWPATH-MIDSTREAM",
];

/// The prefixes of chains with a digest: for a pod, a group, a branch of the dispatch tree, and a shared address.
const DIGESTED: [&str; 8] = ["TP-PI-", "TP-PE-", "TP-GI-", "TP-GE-", "TP-DI-", "TP-DE-", "TP-SI-", "TP-SE-"];

/// Every role of sets, with its word, and the number of digits of a digest that follow.
const ROLES: [(SetRole, &str, usize); 14] = [
    (SetRole::Drops, "drops", 0),
    (SetRole::LocalPods, "local-pods", 0),
    (SetRole::KnownPods, "known-pods", 0),
    (SetRole::Nodes, "nodes", 0),
    (SetRole::AllPods, "all-pods", 0),
    (SetRole::TunnelEnds, "tunnel-ends", 0),
    // More digits would not fit into 31 characters.
    (SetRole::Isolated(Direction::Ingress), "ingress-isolated", 10),
    (SetRole::Isolated(Direction::Egress), "egress-isolated", 10),
    (SetRole::Pods, "pods", DIGITS),
    (SetRole::NamedPorts, "named", DIGITS),
    (SetRole::Networks, "nets", DIGITS),
    (SetRole::Excepts, "except", DIGITS),
    (SetRole::NetworkPorts, "netports", DIGITS),
    (SetRole::Ports, "ports", DIGITS),
];

/// Whether this is a name of our chains.
pub(super) fn is_chain(name: &str) -> bool {
    WORDS.contains(&name)
        || DIGESTED.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| is_digest(rest, DIGITS)))
}

/// The family and the role of our set with this name.
pub(super) fn parse_set(name: &str) -> Option<(Family, SetRole)> {
    let (family, rest) =
        Family::BOTH.into_iter().find_map(|family| Some((family, name.strip_prefix(set_prefix(family))?)))?;
    let is_named_so = |role, word: &str, digits: usize| match (rest.strip_prefix(word), role) {
        // Former versions had one set of isolated pods for each direction, regardless of its members.
        (Some(""), SetRole::Isolated(_)) => true,
        (Some(""), _) => digits == 0,
        (Some(more), _) => more.strip_prefix('-').is_some_and(|digest| is_digest(digest, digits)),
        (None, _) => false,
    };
    let (role, ..) = ROLES.into_iter().find(|(role, word, digits)| is_named_so(*role, word, *digits))?;
    Some((family, role))
}

const fn set_prefix(family: Family) -> &'static str {
    match family {
        Family::V4 => "tp4-",
        Family::V6 => "tp6-",
    }
}

/// The kind of sets of a role. A set of another kind is not ours, whatever its name.
#[must_use]
pub const fn kind(role: SetRole) -> SetKind {
    match role {
        SetRole::Drops => SetKind::CountedAddresses,
        SetRole::LocalPods
        | SetRole::KnownPods
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
        SetRole::KnownPods | SetRole::AllPods | SetRole::TunnelEnds | SetRole::Pods | SetRole::NamedPorts => {
            false
        }
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
        | SetRole::NamedPorts => false,
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
        | SetRole::Ports => true,
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
        | SetRole::Ports => false,
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
    ChainName::new(name).expect("a chain name of ours")
}

#[expect(clippy::expect_used, reason = "every caller is above; a test makes each kind of name")]
fn set(family: Family, role: SetRole, digest: &str) -> SetName {
    let (word, digits) =
        ROLES.iter().find(|(of, ..)| *of == role).map_or(("", 0), |(_, word, digits)| (*word, *digits));
    let digest = digest.get(..digits).unwrap_or(digest);
    let dash = if digits == 0 { "" } else { "-" };
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
            "TOWPATH-",
            "TOWPATH-MINE",
            "TOWPATH-FORWARD2",
            "towpath-forward",
            "TP-LINK",
            "TP-GI",
            "TP-GI-x",
        ];
        let chains = chains.map(str::to_owned).into_iter().chain([
            format!("TP-XI-{digest}"),
            format!("TP-GX-{digest}"),
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
            format!("tp4-nodes-{digest}"),
            format!("tp4-drops{digest}"),
            format!("tp4-mine-{digest}"),
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
