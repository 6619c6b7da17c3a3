//! The cost of policies on a node, and the budgets of one policy, of one namespace and of all of them together.
//!
//! The owner of a namespace writes its policies, and the API server admits some that no node can handle. So a node adds
//! up what the policies that select its pods would cost, before it does any of the work. What is over its budget is
//! closed: the pods stay isolated and nothing is allowed. All other namespaces are unaffected.
//!
//! Costs are computed from the objects alone. The same objects have the same costs, in whatever order they arrived.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    sync::Arc,
};

use super::{
    ports::{PortMatch, PortSet},
    program::{PeerMatch, Program, Rule},
};
use crate::model::{
    Direction, Family, IpBlock, LabelSelector, NetworkPolicy, ObjectKey, Operator, Peer, Peers, Pod, PodPeer,
    PolicyRule, Port, PortRange, Ports, Scope,
};

/// A cost: work and memory, and the number of sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// Entries of sets and rules, for both families together; other work counts as a number of them.
    pub units: u64,
    /// Sets, for both families together.
    pub sets: u64,
}

/// The limits of costs. A cost equal to its budget is within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Units of one policy, both directions together, however many pods it selects.
    pub policy: u64,
    /// Units of one namespace on this node: of each distinct list of policies that selects one of its pods.
    pub namespace: u64,
    /// Units of all namespaces on this node.
    pub node: u64,
    /// Sets of one namespace on this node.
    pub namespace_sets: u64,
    /// Sets of all namespaces on this node. The kernel has room for 65,534 in all, which other programs use as well.
    pub node_sets: u64,
    /// Addresses in all sets of pods of one namespace on this node, if the cluster is small. Selectors that must be
    /// compared with every pod may take 80 comparisons for each.
    pub namespace_members: u64,
    /// The same for all namespaces on this node.
    pub node_members: u64,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            policy: 50_000,
            namespace: 200_000,
            node: 600_000,
            namespace_sets: 4_096,
            node_sets: 8_192,
            namespace_members: 200_000,
            node_members: 400_000,
        }
    }
}

/// How often one namespace may name each address of the cluster, if that is more than its budget of members. The
/// budget must grow with the cluster, so that large clusters never reach it.
const NAMESPACE_NAMES_EACH: u64 = 8;

/// The same for a node.
const NODE_NAMES_EACH: u64 = 16;

/// How many comparisons of selectors with pods are allowed for each address of the budget of members.
const COMPARISONS_EACH: u64 = 80;

/// How often one namespace may compare each address of the cluster, if that is more.
const NAMESPACE_COMPARES_EACH: u64 = 200;

/// The same for a node.
const NODE_COMPARES_EACH: u64 = 400;

impl Budgets {
    /// No limits.
    pub const UNLIMITED: Self = Self {
        policy: u64::MAX,
        namespace: u64::MAX,
        node: u64::MAX,
        namespace_sets: u64::MAX,
        node_sets: u64::MAX,
        namespace_members: u64::MAX,
        node_members: u64::MAX,
    };

    /// The budget of members of one namespace, in a cluster with this many pod addresses.
    pub(super) fn namespace_members(&self, addresses: u64) -> u64 {
        self.namespace_members.max(addresses.saturating_mul(NAMESPACE_NAMES_EACH))
    }

    /// The budget of members of the node.
    pub(super) fn node_members(&self, addresses: u64) -> u64 {
        self.node_members.max(addresses.saturating_mul(NODE_NAMES_EACH))
    }

    /// The budget of comparisons of one namespace.
    pub(super) fn namespace_comparisons(&self, addresses: u64) -> u64 {
        let small = self.namespace_members.saturating_mul(COMPARISONS_EACH);
        small.max(addresses.saturating_mul(NAMESPACE_COMPARES_EACH))
    }

    /// The budget of comparisons of the node.
    pub(super) fn node_comparisons(&self, addresses: u64) -> u64 {
        let small = self.node_members.saturating_mul(COMPARISONS_EACH);
        small.max(addresses.saturating_mul(NODE_COMPARES_EACH))
    }
}

/// A resource that a budget limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Entries and rules.
    Units,
    /// Sets.
    Sets,
    /// Addresses in sets of pods.
    Members,
    /// Comparisons of pods with selectors that require no label, or all the same one.
    Comparisons,
    /// Memory for the policies themselves, whichever pods they select.
    Memory,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Units => "set entries and rules",
            Self::Sets => "sets",
            Self::Members => "addresses of selected pods",
            Self::Comparisons => "comparisons of pods with selectors",
            Self::Memory => "bytes of memory for its policies",
        })
    }
}

/// A closed object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closed {
    /// A policy: it isolates the pods that it selects, and allows nothing.
    Policy(ObjectKey),
    /// A namespace: each policy in it isolates the pods that it selects, and allows nothing.
    Namespace(Arc<str>),
}

impl Closed {
    /// The namespace whose pods are closed.
    #[must_use]
    pub fn namespace(&self) -> &Arc<str> {
        match self {
            Self::Policy(key) => &key.namespace,
            Self::Namespace(name) => name,
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(key) => write!(f, "policy {key}"),
            Self::Namespace(name) => write!(f, "namespace {name}"),
        }
    }
}

/// Whose budget was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scale {
    /// The budget of one policy.
    Policy,
    /// The budget of one namespace.
    Namespace,
    /// The budget of the node.
    Node,
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy => "policy",
            Self::Namespace => "namespace",
            Self::Node => "node",
        })
    }
}

/// A policy or a namespace that is closed on this node because it is over budget.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OverBudget {
    /// The closed object.
    pub closed: Closed,
    /// Whose budget was exceeded.
    pub scale: Scale,
    /// The resource that is over budget.
    pub resource: Resource,
    /// The cost of the closed object. It may be more: counting stops when the budget is exceeded.
    pub cost: u64,
    /// The budget.
    pub budget: u64,
}

impl OverBudget {
    /// The namespace whose pods are closed.
    #[must_use]
    pub fn namespace(&self) -> &Arc<str> {
        self.closed.namespace()
    }
}

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { closed, scale, resource, cost, budget } = self;
        write!(f, "{closed} needs {cost} {resource}, ")?;
        // This namespace is not over the budget by itself.
        match (resource, scale) {
            (Resource::Memory, Scale::Node) => {
                write!(f, "one of the largest while those of all namespaces need more than {budget}: ")?;
            }
            _ => write!(f, "over the budget of the {scale} ({budget}): ")?,
        }
        f.write_str("its pods stay isolated, ")?;
        match closed {
            Closed::Policy(_) => f.write_str("and this policy allows nothing"),
            Closed::Namespace(_) => f.write_str("and no policy of the namespace allows anything here"),
        }
    }
}

/// A rule in both families, including the cost of writing it.
const RULE: u64 = 4;

/// A peer by labels, which is compared with every pod that changes anywhere in the cluster.
const PEER: u64 = 8;

/// One more key that a selector requires.
const REQUIREMENT: u64 = 4;

/// This many values of one key cost a unit.
const VALUES: u64 = 4;

/// A block in a rule with a named egress port, which is compared with every pod of the cluster.
const BLOCK_OF_OWNERS: u64 = 64;

/// This many declared ports of a pod cost a unit for each name that is looked up among them.
const DECLARED_PORTS: u64 = 16;

/// The most entries that one rule becomes in a set of networks with ports.
const JOINED: u64 = 16;

/// The slots of a port match; a range of ports takes two.
const SLOTS: usize = 15;

/// The units that a policy costs in one direction, before anything is known of the pods that it selects.
#[must_use]
pub fn of_policy(policy: &NetworkPolicy, direction: Direction) -> u64 {
    let rules = policy.rules(direction).unwrap_or_default().iter();
    let rules = rules.map(|rule| of_rule(rule, direction)).fold(0, u64::saturating_add);
    rules.saturating_add(1 + of_selector(&policy.subject))
}

/// The units that a policy costs in both directions: this is compared with its own budget.
#[must_use]
pub fn of_both(policy: &NetworkPolicy) -> u64 {
    let isolating = Direction::BOTH.into_iter().filter(|direction| policy.rules(*direction).is_some());
    isolating.map(|direction| of_policy(policy, direction)).fold(0, u64::saturating_add)
}

/// The report for a policy that costs more than the budget of a policy allows; `None` if it is within.
#[must_use]
pub fn excess_of_policy(policy: &NetworkPolicy, budgets: &Budgets) -> Option<OverBudget> {
    let (cost, budget) = (of_both(policy), budgets.policy);
    (cost > budget).then(|| OverBudget {
        closed: Closed::Policy(policy.key.clone()),
        scale: Scale::Policy,
        resource: Resource::Units,
        cost,
        budget,
    })
}

/// The cost of looking up the ports that a policy names, for one pod.
pub(super) fn of_names(names: u64, subject: &Pod) -> u64 {
    names.saturating_mul(1 + count(subject.ports.len()) / DECLARED_PORTS)
}

/// How many ports of a policy's ingress rules are names, which each pod resolves for itself.
pub(super) fn names(policy: &NetworkPolicy) -> u64 {
    let ports =
        policy.rules(Direction::Ingress).unwrap_or_default().iter().flat_map(|rule| match &rule.ports {
            Ports::Any => &[],
            Ports::Of(ports) => ports.as_slice(),
        });
    count(ports.filter(|port| matches!(port, Port::Named(..))).count())
}

/// The sets that programs need, and the entries of those of ports. Merged rules may need a set of ports that none of
/// them needs alone, so this is only known of programs. A set that several of them need counts once.
pub(super) fn of_programs<'a>(programs: impl IntoIterator<Item = &'a Arc<Program>>) -> Cost {
    let (mut selections, mut blocks, mut ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    let rules = programs.into_iter().flat_map(|program| &program.tiers).flat_map(|tier| &tier.rules);
    for Rule { peers, ports: of_rule, .. } in rules {
        match peers {
            PeerMatch::Any => {}
            PeerMatch::NamedPorts(selection) => drop(selections.insert(&selection.digest)),
            PeerMatch::Of { pods, blocks: of_rule } => {
                selections.extend(pods.iter().map(|selection| &selection.digest));
                if !matches!(&**of_rule, [] | [_]) || of_rule.iter().any(|block| !block.except().is_empty()) {
                    blocks.insert(of_rule);
                }
            }
        }
        let PortMatch::Of(of_rule) = of_rule else { continue };
        for (_, ranges) in of_rule.iter() {
            let slots = |range: &PortRange| if range.first() == range.last() { 1 } else { 2 };
            if ranges.iter().map(slots).sum::<usize>() > SLOTS && ranges != [PortSet::all_of()] {
                ports.insert(ranges);
            }
        }
    }
    let families = |blocks: &Vec<IpBlock>| {
        count(blocks.iter().map(|block| Family::of_net(block.cidr())).collect::<BTreeSet<_>>().len())
    };
    // Excepts that are looked up need their own set.
    let excepting =
        |blocks: &Vec<IpBlock>| count(blocks.iter().filter(|block| !block.except().is_empty()).count());
    let entries = ports.iter().flat_map(|ranges| ranges.iter());
    let entries: u64 = entries.map(|range| u64::from(range.last() - range.first()) + 1).sum();
    Cost {
        units: entries * FAMILIES,
        sets: count(selections.len() + ports.len()) * FAMILIES
            + blocks.into_iter().map(|blocks| families(blocks) + excepting(blocks)).sum::<u64>(),
    }
}

/// What exists in both families counts twice.
const FAMILIES: u64 = 2;

fn of_rule(rule: &PolicyRule, direction: Direction) -> u64 {
    let list = match &rule.ports {
        Ports::Any => &[],
        Ports::Of(ports) => ports.as_slice(),
    };
    let names = count(list.iter().filter(|port| matches!(port, Port::Named(..))).count());
    let numbers = count(list.len()) - names;
    let protocol = |port: &Port| match port {
        Port::All(protocol) | Port::Range(protocol, _) | Port::Named(protocol, _) => *protocol,
    };
    let protocols = count(list.iter().map(protocol).collect::<BTreeSet<_>>().len()).max(1);
    let Who { peers, blocks } = who(&rule.peers);
    // One rule for the pods and one for the blocks, for each protocol.
    let ways = if peers > 0 && blocks > 0 { 2 } else { 1 };
    // A few blocks with a few ports may become an entry for each pair.
    let pairs = blocks.saturating_mul(numbers).min(JOINED);
    let merged = numbers + RULE * protocols * ways + peers.saturating_add(blocks) + pairs;
    let of_names = match direction {
        // The receiving pod has the names: they become numbers of this rule.
        Direction::Ingress => names,
        // Each name is its own rule, with a set and a copy of all peers.
        Direction::Egress => {
            let one = RULE + PEER + peers.saturating_add(blocks.saturating_mul(BLOCK_OF_OWNERS));
            one.saturating_mul(names)
        }
    };
    merged.saturating_add(of_names)
}

/// The cost of a rule's peers.
#[derive(Default)]
struct Who {
    peers: u64,
    blocks: u64,
}

fn who(peers: &Peers) -> Who {
    let mut who = Who::default();
    let Peers::Of(list) = peers else { return who };
    for peer in list {
        match peer {
            Peer::Pods(peer) => who.peers += of_peer(peer),
            Peer::Block(block) => who.blocks += of_block(block),
        }
    }
    who
}

fn of_peer(peer: &PodPeer) -> u64 {
    let scope = match &peer.scope {
        Scope::Own(_) => 0,
        Scope::Matching(selector) => of_selector(selector),
    };
    PEER + scope + of_selector(&peer.pods)
}

fn of_selector(selector: &LabelSelector) -> u64 {
    let requirement = |operator: &Operator| match operator {
        Operator::In(values) | Operator::NotIn(values) => REQUIREMENT + count(values.len()) / VALUES,
        Operator::Exists | Operator::DoesNotExist => REQUIREMENT,
    };
    selector.requirements().iter().map(|one| requirement(&one.operator)).sum()
}

/// A cover of a block with no more networks than this is used, however few excepts it has.
const SMALL_COVER: u64 = 64;

/// The entries of a block: itself, and the networks that remain around its excepts, one for each bit by which an except
/// is longer; or, if these would be many, its excepts.
fn of_block(block: &IpBlock) -> u64 {
    let around = |prefix: u8| u64::from(prefix.saturating_sub(block.cidr().prefix_len()));
    let cover = block.except().iter().map(|except| around(except.prefix_len())).sum::<u64>();
    1 + cover.min(SMALL_COVER.max(count(block.except().len())))
}

/// A length as a number of units.
pub(super) fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
