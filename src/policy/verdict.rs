//! The answer to "may this flow pass", and why.

use std::{fmt, net::IpAddr, sync::Arc};

use crate::model::{Direction, ObjectKey};

/// Whether a flow may pass: both ends must allow it.
///
/// "For a connection from a source pod to a destination pod to be allowed, both the egress policy on the source pod
/// and the ingress policy on the destination pod need to allow the connection."
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The verdict of the sender's policies.
    pub egress: DirectionVerdict,
    /// The verdict of the receiver's policies.
    pub ingress: DirectionVerdict,
}

/// The verdict of one end's policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectionVerdict {
    /// The policies that select this end for this direction, by name. It is isolated if there is one.
    pub isolated_by: Vec<ObjectKey>,
    /// Every rule of these policies that allows the flow, in the order of the policies.
    pub allowed_by: Vec<RuleRef>,
    /// Why this end allows or denies it.
    pub reason: Reason,
}

/// One rule of a policy; its direction follows from the context.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef {
    /// The policy.
    pub policy: ObjectKey,
    /// The index in its `ingress` or `egress`, from 0.
    pub rule: usize,
}

/// Why one end allows or denies a flow. Displays as a sentence without its full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Allowed: this end is an address that no pod owns.
    NotAPod(IpAddr),
    /// Allowed: no pod of this name is known.
    UnknownPod(ObjectKey),
    /// Allowed: the pod uses its node's own network and addresses.
    HostNetwork(ObjectKey),
    /// Allowed: the pod has finished, and sends and receives nothing.
    Finished(ObjectKey),
    /// Allowed: no policy selects the pod for this direction.
    NotIsolated(ObjectKey, Direction),
    /// Allowed: the pod connects to itself.
    Itself(ObjectKey),
    /// Allowed: the sender is the node of the receiving pod.
    FromOwnNode(ObjectKey, Arc<str>),
    /// Allowed: the receiver is the node of the sending pod.
    ToOwnNode(ObjectKey, Arc<str>),
    /// Allowed: by at least one rule of the policies that select the pod.
    AllowedBy(Vec<RuleRef>),
    /// Denied: policies select the pod for this direction, and none of their rules allows the flow.
    DeniedBy {
        /// The pod.
        pod: ObjectKey,
        /// The direction.
        direction: Direction,
        /// The policies that select it.
        policies: Vec<ObjectKey>,
        /// Those of them that could not be read, and so allow nothing.
        refused: Vec<ObjectKey>,
        /// The addresses of the flow that several pods report, with these pods: each of them must be allowed.
        shared: Vec<(IpAddr, Vec<ObjectKey>)>,
    },
}

impl Verdict {
    /// Whether both ends allow it.
    #[must_use]
    pub const fn allowed(&self) -> bool {
        self.egress.allowed() && self.ingress.allowed()
    }

    /// The verdict of one end.
    #[must_use]
    pub const fn of(&self, direction: Direction) -> &DirectionVerdict {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

impl DirectionVerdict {
    /// Whether this end allows it.
    #[must_use]
    pub const fn allowed(&self) -> bool {
        !matches!(self.reason, Reason::DeniedBy { .. })
    }

    /// Whether a policy selects this end for this direction. An isolated end may still allow the flow.
    #[must_use]
    pub const fn isolated(&self) -> bool {
        !self.isolated_by.is_empty()
    }

    /// Combines the verdicts of two pods that may both be this end: one that denies decides, else one that has rules.
    pub(super) fn and(mut self, other: Self) -> Self {
        let decides = match (&self.reason, &other.reason) {
            (Reason::DeniedBy { .. }, _) => false,
            (_, Reason::DeniedBy { .. }) => true,
            (mine, theirs) => !matches!(mine, Reason::AllowedBy(_)) && matches!(theirs, Reason::AllowedBy(_)),
        };
        if decides {
            self.reason = other.reason;
        }
        self.isolated_by.extend(other.isolated_by);
        self.isolated_by.sort();
        self.isolated_by.dedup();
        self.allowed_by.extend(other.allowed_by);
        self.allowed_by.sort();
        self.allowed_by.dedup();
        if let Reason::AllowedBy(rules) = &mut self.reason {
            rules.clone_from(&self.allowed_by);
        }
        self
    }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rule {}", self.policy, self.rule)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAPod(address) => write!(f, "{address} is not a pod, so no policy selects it"),
            Self::UnknownPod(pod) => write!(f, "no pod {pod} is known, so no policy selects it"),
            Self::HostNetwork(pod) => write!(f, "{pod} is on its node's network, so no policy selects it"),
            Self::Finished(pod) => write!(f, "{pod} has finished, so no policy selects it"),
            Self::NotIsolated(pod, direction) => write!(f, "no policy selects {pod} for {direction}"),
            Self::Itself(pod) => write!(f, "{pod} may always reach itself"),
            Self::FromOwnNode(pod, node) => {
                write!(f, "a node may always reach its own pods, and {pod} runs on {node}")
            }
            Self::ToOwnNode(pod, node) => {
                write!(f, "a pod may always reach its own node, and {pod} runs on {node}")
            }
            Self::AllowedBy(rules) => {
                write!(f, "{} {} it", Listed(rules), if rules.len() == 1 { "allows" } else { "allow" })
            }
            Self::DeniedBy { pod, direction, policies, refused, shared } => {
                let (isolate, rules) =
                    if policies.len() == 1 { ("isolates", "its") } else { ("isolate", "their") };
                write!(f, "{} {isolate} {pod} for {direction}, ", Listed(policies))?;
                write!(f, "and none of {rules} rules allows this")?;
                if !refused.is_empty() {
                    let (allows, they) =
                        if refused.len() == 1 { ("allows", "it") } else { ("allow", "they") };
                    write!(f, "; {} could not be read", Listed(refused))?;
                    write!(f, ", and {allows} nothing until {they} can be")?;
                }
                for (address, pods) in shared {
                    write!(f, "; {} report {address}, and all of them must be allowed", Listed(pods))?;
                }
                Ok(())
            }
        }
    }
}

/// `a`, `a and b`, `a, b and c`.
struct Listed<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, item) in self.0.iter().enumerate() {
            let before = match at {
                0 => "",
                _ if at + 1 == self.0.len() => " and ",
                _ => ", ",
            };
            write!(f, "{before}{item}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    #[test]
    fn reason_is_a_sentence_that_names_the_policies() {
        let denied = |policies: &[&str], refused: &[&str]| {
            Reason::DeniedBy {
                pod: key("db"),
                direction: Direction::Ingress,
                policies: policies.iter().map(|name| key(name)).collect(),
                refused: refused.iter().map(|name| key(name)).collect(),
                shared: Vec::new(),
            }
            .to_string()
        };
        assert_eq!(
            denied(&["closed"], &[]),
            "shop/closed isolates shop/db for ingress, and none of its rules allows this"
        );
        assert_eq!(
            denied(&["a", "b", "c"], &["b"]),
            "shop/a, shop/b and shop/c isolate shop/db for ingress, and none of their rules allows this; \
             shop/b could not be read, and allows nothing until it can be"
        );
        let rule = |name, rule| RuleRef { policy: key(name), rule };
        assert_eq!(
            Reason::AllowedBy(vec![rule("a", 0), rule("b", 2)]).to_string(),
            "shop/a rule 0 and shop/b rule 2 allow it"
        );
        assert_eq!(
            Reason::NotIsolated(key("web"), Direction::Ingress).to_string(),
            "no policy selects shop/web for ingress"
        );
    }

    #[test]
    fn of_two_pods_with_one_address_a_denial_decides() {
        let rule = |name| RuleRef { policy: key(name), rule: 0 };
        let of = |reason: Reason| {
            let allowed_by = match &reason {
                Reason::AllowedBy(rules) => rules.clone(),
                _ => Vec::new(),
            };
            let isolated_by = allowed_by.iter().map(|rule| rule.policy.clone()).collect();
            DirectionVerdict { isolated_by, allowed_by, reason }
        };
        let free = || of(Reason::NotIsolated(key("web"), Direction::Ingress));
        let itself = || of(Reason::Itself(key("web")));
        let allowed = |name| of(Reason::AllowedBy(vec![rule(name)]));
        let denied = || {
            let (pod, direction) = (key("db"), Direction::Ingress);
            let (policies, refused, shared) = (vec![key("p")], Vec::new(), Vec::new());
            of(Reason::DeniedBy { pod, direction, policies, refused, shared })
        };
        for other in [free(), itself(), allowed("a")] {
            assert_eq!(denied().and(other.clone()).reason, denied().reason);
            assert_eq!(other.and(denied()).reason, denied().reason);
        }
        for other in [free(), itself()] {
            assert_eq!(allowed("a").and(other.clone()).reason, allowed("a").reason);
            assert_eq!(other.and(allowed("a")).reason, allowed("a").reason);
        }
        assert_eq!(free().and(itself()).reason, free().reason, "the first, if there is nothing to choose by");
        let both = allowed("b").and(allowed("a"));
        assert_eq!(both.reason, Reason::AllowedBy(vec![rule("a"), rule("b")]));
        assert_eq!(both.isolated_by, [key("a"), key("b")]);
    }
}
