//! What comes nearest to allowing a denied flow, and which part of it does not match.
//!
//! "None of its rules allows this" is true and no help: a policy may have a hundred rules. The rule with the fewest parts
//! that do not match is most likely the one that was meant to allow the flow.
//!
//! The owner of a namespace decides how many rules, peers, label values and ports there are to look at, so there is a
//! limit to how many are ([`LIMIT`]).

mod display;
mod parts;
#[cfg(test)]
mod tests;

pub(crate) use display::Short;
pub(super) use parts::meant;

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    evaluate::{Decider, Pair},
    resolved_endpoint::{Claimant, ResolvedEndpoint, families},
};
use crate::model::{
    Cluster, ContainerPort, Direction, Family, Flow, IpBlock, MemoryExcess, NetworkPolicy, ObjectKey,
    PodPeer, Port, Requirement, Standing, Transport,
};

/// How many rules, peers, requirements, label values and ports [`near_miss`] looks at altogether. What comes after them,
/// in the order of the policies' names, is not looked at.
pub const LIMIT: usize = 4096;

/// How many of the pods that report one address are looked at.
const PODS: usize = 16;

/// How many ports a [`PortMiss`] lists.
const LISTED: usize = 8;

/// What comes nearest to allowing a denied flow in one direction. Displays as one clause, without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    /// The pod whose policies deny the flow.
    pub pod: ObjectKey,
    /// The direction in which they do.
    pub direction: Direction,
    /// The other end.
    pub peer: PeerName,
    /// The protocol and port of the flow.
    pub transport: Transport,
    /// The policy that comes nearest.
    pub policy: ObjectKey,
    /// Why it allows nothing of this.
    pub miss: Miss,
    /// Whether every rule was looked at; if not, one of the others may come nearer.
    pub complete: bool,
}

/// The other end of a flow, as far as selectors are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerName {
    /// A pod that selectors can select.
    Pod(ObjectKey),
    /// A pod on its node's network, and its node: no selector selects it.
    HostNetwork(ObjectKey, Option<Arc<str>>),
    /// A pod that has finished.
    Finished(ObjectKey),
    /// A name that no pod has.
    Unknown(ObjectKey),
    /// An address of this node.
    Node(IpAddr, Arc<str>),
    /// An address outside of the cluster.
    Address(IpAddr),
}

/// Why a policy does not allow a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// It has rules, and this one comes nearest.
    Rule(Box<RuleMiss>),
    /// It could not be read, and allows nothing until it can be.
    Refused,
    /// Its rules were dropped, since the policies of the namespace take too much memory.
    TooLarge(MemoryExcess),
    /// It has no rule: a default deny.
    NoRule,
    /// It has more rules than are looked at.
    NotRead,
}

/// The parts of a rule that do not match a flow; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleMiss {
    /// The index in the policy's `ingress` or `egress`, from 0.
    pub rule: usize,
    /// Its peer that comes nearest, unless one matches.
    pub peer: Option<PeerMiss>,
    /// Its ports, unless one matches.
    pub port: Option<PortMiss>,
}

/// The peer of a rule that comes nearest to matching the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMiss {
    /// The rule has no peer that can match anything.
    Nobody,
    /// A peer by labels.
    Pods {
        /// Its index in `from` or `to`, from 0.
        item: usize,
        /// The pods that it selects.
        allowed: PodPeer,
        /// What does not match.
        fault: SelectorFault,
    },
    /// A peer by addresses.
    Block {
        /// Its index in `from` or `to`, from 0.
        item: usize,
        /// The addresses that it selects.
        block: IpBlock,
        /// What does not match.
        fault: BlockFault,
    },
}

/// Why a peer by labels does not select the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectorFault {
    /// The other end is no pod that a selector can select.
    NoPod,
    /// Labels of the pod or of its namespace do not match.
    Labels {
        /// The pod: one of those that report the address, if there are several.
        pod: ObjectKey,
        /// The requirements that its labels do not meet; empty if they meet all.
        labels: Vec<LabelMiss>,
        /// Why its namespace is none of the peer's, unless it is.
        namespace: Option<NamespaceFault>,
    },
}

/// Why the namespace of a pod is none of those of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespaceFault {
    /// The peer has no namespaceSelector: it selects only pods of the policy's namespace, which is another one.
    Other,
    /// The namespace's object is not known, so that no namespaceSelector selects it.
    Unknown,
    /// The requirements that the labels of the namespace do not meet.
    Labels(Vec<LabelMiss>),
}

/// A requirement that labels do not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMiss {
    /// The requirement.
    pub requirement: Requirement,
    /// The value of that label; `None` if there is no such label.
    pub value: Option<Arc<str>>,
    /// The label that was probably meant, if the requirement looks like a typo of it: its key and value.
    pub meant: Option<(Arc<str>, Arc<str>)>,
}

/// Why a peer by addresses does not contain the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockFault {
    /// Its address is not in the block.
    Outside(IpAddr),
    /// Its address is in the block, and this except takes it out again.
    Except(IpAddr, IpNet),
    /// The flow uses this family, and the block is of the other one.
    OtherFamily(Family),
    /// It has no address yet.
    NoAddress,
    /// Its addresses are of this family, of which the pod whose policy it is has none.
    NoSharedFamily(Family),
}

/// Why none of a rule's ports matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMiss {
    /// The first of the rule's ports, up to 8.
    pub allowed: Vec<Port>,
    /// How many more it has, as far as they were looked at.
    pub more: usize,
    /// The lowest number that each name among them has at the receiver, if it has one.
    pub numbers: Vec<(Arc<str>, u16)>,
    /// What does not match.
    pub fault: PortFault,
}

/// What does not match of a rule's ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortFault {
    /// The number is not among them.
    Number,
    /// The number is among them with this protocol, which is not that of the flow.
    Protocol(crate::model::Protocol),
    /// The receiver declares no port with this name and protocol; these are its ports, up to 8.
    NoSuchName(ObjectKey, Arc<str>, Vec<ContainerPort>),
    /// The receiver is no pod, and so has no port with this name.
    NoNames(Arc<str>),
    /// The flow's protocol has no ports: only a rule without `ports` allows it.
    WithoutPorts,
}

/// What comes nearest to allowing `flow`, which is denied, in `direction`; `None` if nothing denies it there.
///
/// The rule with the fewest parts that do not match is the nearest, where the parts are the labels of the peer, its
/// namespace and the port. Of several, one that looks like a typo comes first, then one with fewer failing
/// requirements, then the first by policy and rule. A policy that could not be read comes after rules of which one part
/// fails, a policy without rules after all others.
///
/// The cost is limited to [`LIMIT`] rules, peers, requirements, values and ports, beside that of finding the policies
/// which select the two ends: one comparison with the podSelector of each policy in their namespaces.
#[must_use]
pub fn near_miss(cluster: &Cluster, flow: &Flow, direction: Direction) -> Option<NearMiss> {
    let (from, to) = (ResolvedEndpoint::new(cluster, &flow.from), ResolvedEndpoint::new(cluster, &flow.to));
    let family = flow.family.or_else(|| families(&from, &to).first().copied());
    let pair = Pair { from: &from, to: &to, family };
    let (subject, _) = pair.ends(direction);
    let mut budget = Budget { left: LIMIT, exhausted: false };
    let mut pods = subject.subjects(family).take(PODS);
    pods.find_map(|pod| of_pod(&pair, direction, pod, flow.transport, &mut budget))
}

/// How many more parts of rules may be looked at.
struct Budget {
    left: usize,
    /// Whether something was not looked at.
    exhausted: bool,
}

impl Budget {
    /// Whether there is enough left for a part that takes `cost`.
    fn take(&mut self, cost: usize) -> bool {
        let left = self.left.checked_sub(cost);
        self.left = left.unwrap_or(0);
        self.exhausted |= left.is_none();
        left.is_some()
    }
}

/// How near a miss is: the failing parts, whether it is no typo, the failing requirements. Less is nearer.
type Distance = (usize, usize, usize);

/// A policy that could not be read is less likely to be the reason than a rule of which one part fails.
const REFUSED: Distance = (1, usize::MAX, 0);
const NOT_READ: Distance = (usize::MAX, 0, 0);
const NO_RULE: Distance = (usize::MAX, 1, 0);

fn of_pod(
    pair: &Pair<'_>,
    direction: Direction,
    subject: &Claimant<'_>,
    transport: Transport,
    budget: &mut Budget,
) -> Option<NearMiss> {
    if let Decider::Nature(_) = pair.decider(direction, subject) {
        return None;
    }
    let context = Context { pair, direction, subject, transport };
    let mut nearest: Option<(Distance, &NetworkPolicy, Miss)> = None;
    let policies = subject.isolated_by(direction);
    for (before, policy) in policies.iter().enumerate() {
        // A large policy must not hide those after it: each gets its share, and what it does not need is left to others.
        let share = budget.left / (policies.len() - before);
        let mut of_policy = Budget { left: share, exhausted: false };
        let rules = policy.rules(direction).unwrap_or_default();
        let mut consider = |distance: Distance, miss: Miss| {
            // Policies and rules come in order, so the first of several equal ones stays.
            if nearest.as_ref().is_none_or(|(best, ..)| distance < *best) {
                nearest = Some((distance, policy, miss));
            }
        };
        match policy.standing {
            Standing::Refused => {
                consider(REFUSED, Miss::Refused);
                continue;
            }
            Standing::TooLarge(excess) => {
                consider(REFUSED, Miss::TooLarge(excess));
                continue;
            }
            Standing::Accepted if rules.is_empty() => consider(NO_RULE, Miss::NoRule),
            Standing::Accepted => {}
        }
        for (at, rule) in rules.iter().enumerate() {
            match context.rule(at, rule, &mut of_policy) {
                parts::Looked::Matches => return None,
                parts::Looked::Misses(distance, miss) => consider(distance, Miss::Rule(miss)),
                parts::Looked::TooMuch => {
                    consider(NOT_READ, Miss::NotRead);
                    break;
                }
            }
        }
        budget.left -= share - of_policy.left;
        budget.exhausted |= of_policy.exhausted;
    }
    let (_, policy, miss) = nearest?;
    let (_, peer) = pair.ends(direction);
    Some(NearMiss {
        pod: subject.pod.key.clone(),
        direction,
        peer: parts::peer_name(peer),
        transport,
        policy: policy.key.clone(),
        miss,
        complete: !budget.exhausted,
    })
}

/// What a rule is compared with.
struct Context<'c, 'a> {
    pair: &'c Pair<'a>,
    direction: Direction,
    /// The pod whose policies these are.
    subject: &'c Claimant<'a>,
    transport: Transport,
}
