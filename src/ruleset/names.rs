//! The names of our chains and sets.
//!
//! A name is a prefix that tells what the object is, and either a fixed word or a digest of what the object *means*:
//! the selectors of a set (not its members), the ordered program of a group chain, the name of a pod. Equal meaning
//! is equal name, so that policies share sets and pods share chains; another meaning is another object beside the
//! old one, which makes every replacement atomic.

use imbl::OrdSet;

use super::{ChainName, Member, SetName};
use crate::{
    model::{Direction, Family, ObjectKey},
    policy::digest::digest,
};

/// The length of `tp4-` and `tp6-`.
const PREFIX: usize = 4;

/// What is left of 31 characters behind `tp4-ingress-isolated-`.
const ISOLATED_DIGITS: usize = 10;

/// What all forwarded packets meet.
#[must_use]
pub fn forward() -> ChainName {
    chain("TOWPATH-FORWARD")
}

/// What packets to the node itself meet.
#[must_use]
pub fn input() -> ChainName {
    chain("TOWPATH-INPUT")
}

/// Where packets of isolated pods part, by direction.
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

/// The chain of all pods with one program; `digest` is the program's.
#[must_use]
pub fn group(direction: Direction, digest: &str) -> ChainName {
    chain(&format!("TP-G{}-{digest}", letter(direction)))
}

/// The pods of this node that are isolated in `direction`, named after these members.
#[must_use]
pub fn isolated(family: Family, direction: Direction, members: &OrdSet<Member>) -> SetName {
    let digest = digest(members);
    set(family, &format!("{direction}-isolated-{}", &digest[..ISOLATED_DIGITS]))
}

/// Whether a set may grow at any time and should shrink late: being in it closes, or it is named after its members, so
/// that what it lacks is what a former process did not get to. Every other set allows.
#[must_use]
pub fn grows_early(name: &SetName) -> bool {
    let family = name.family();
    [drops, local_pods, nodes].iter().any(|closing| closing(family) == *name) || is_named_after_members(name)
}

/// Whether other members would be another name.
#[must_use]
pub fn is_named_after_members(name: &SetName) -> bool {
    let named_after_members = ["ingress-isolated-", "egress-isolated-", "nets-", "ports-"];
    named_after_members.iter().any(|kind| name.as_str()[PREFIX..].starts_with(kind))
}

/// Whether rules can do without a set, by closing what it would allow. Without one of the others something would open:
/// if it cannot be written, nothing of its round may be.
#[must_use]
pub fn may_break(name: &SetName) -> bool {
    let family = name.family();
    let closes = [local_pods, nodes].iter().any(|closing| closing(family) == *name);
    !closes && !name.as_str().contains("-isolated-")
}

/// Counts what was dropped, by isolated pod.
#[must_use]
pub fn drops(family: Family) -> SetName {
    set(family, "drops")
}

/// All pods of this node.
#[must_use]
pub fn local_pods(family: Family) -> SetName {
    set(family, "local-pods")
}

/// All addresses of nodes that are known.
#[must_use]
pub fn nodes(family: Family) -> SetName {
    set(family, "nodes")
}

/// The pods of a selection; `digest` is the selection's.
#[must_use]
pub fn pods(family: Family, digest: &str) -> SetName {
    set(family, &format!("pods-{digest}"))
}

/// The named ports of a selection; `digest` is the selection's.
#[must_use]
pub fn named_ports(family: Family, digest: &str) -> SetName {
    set(family, &format!("named-{digest}"))
}

/// A set of networks.
#[must_use]
pub fn networks(family: Family, digest: &str) -> SetName {
    set(family, &format!("nets-{digest}"))
}

/// A set of ports.
#[must_use]
pub fn ports(family: Family, digest: &str) -> SetName {
    set(family, &format!("ports-{digest}"))
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
fn set(family: Family, name: &str) -> SetName {
    let prefix = match family {
        Family::V4 => "tp4-",
        Family::V6 => "tp6-",
    };
    SetName::new(&format!("{prefix}{name}")).expect("a set name of ours")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_name_fits_the_kernel_whatever_the_object_is_called() {
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
                    nodes(family),
                    pods(family, &digest),
                    named_ports(family, &digest),
                    networks(family, &digest),
                    ports(family, &digest),
                ] {
                    assert!(name.as_str().len() <= 31, "{name}");
                    assert_eq!(name.family(), family);
                }
            }
        }
        assert!([forward(), input()].iter().all(|name| name.as_str().len() <= 28));
    }
}
