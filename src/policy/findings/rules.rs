//! Rules that add nothing, and policies that open more than their name says.

use std::collections::HashMap;

use super::{About, Code, Place, Search};
use crate::model::{
    Cluster, Direction, IpBlock, LabelSelector, NetworkPolicy, ObjectKey, Peer, Peers, PodPeer, PolicyRule,
    Port, Ports, Scope, Standing,
};

/// Up to this many rules of a policy are compared with each other.
const RULES: usize = 100;

/// How many pairs of peers are compared in one policy.
const PAIRS: usize = 100_000;

/// Words in a policy's name that say that it denies.
const DENIES: [&str; 8] = ["deny", "denies", "block", "isolate", "isolation", "reject", "drop", "denyall"];

/// Words that say that it allows.
const ALLOWS: [&str; 6] = ["allow", "allows", "open", "permit", "enable", "accept"];

/// Words that limit what it denies.
const LIMITS: [&str; 4] = ["from", "to", "except", "external"];

/// Whether a rule allows everything.
pub(super) fn allows_everything(rule: &PolicyRule) -> bool {
    rule.peers == Peers::Any && rule.ports == Ports::Any
}

impl Search<'_> {
    /// The rules of a policy, compared with each other and with those of others.
    pub(super) fn rules(&mut self, policy: &NetworkPolicy) {
        self.name(policy);
        for direction in Direction::BOTH {
            let Some(rules) = policy.rules(direction) else { continue };
            self.within(policy, direction, rules);
            self.by_others(policy, direction, rules);
        }
    }

    fn name(&mut self, policy: &NetworkPolicy) {
        let words = || policy.key.name.split(['-', '.']);
        let has = |list: &[&str]| words().any(|word| list.contains(&word));
        if has(&ALLOWS) && !has(&DENIES) {
            let mut sections = Direction::BOTH
                .into_iter()
                .filter_map(|direction| policy.rules(direction).map(|rules| (direction, rules.is_empty())));
            let first = sections.next();
            if let Some((direction, true)) = first.filter(|_| sections.all(|(_, is_empty)| is_empty)) {
                let text = format!(
                    "the name of the policy says that it allows, but it has no rule, and allows nothing: to allow everything, \
                     write `{direction}: [{{}}]`"
                );
                self.add(policy, Place::Rules(direction), Code::AllowDenies, text);
            }
        }
        if !has(&DENIES) || has(&ALLOWS) || has(&LIMITS) {
            return;
        }
        for direction in Direction::BOTH {
            let rules = policy.rules(direction).unwrap_or_default();
            if let Some(rule) = rules.iter().position(allows_everything) {
                let text = format!(
                    "an empty rule allows everything, though the name of the policy says that it denies: to allow nothing, \
                     write `{direction}: []`"
                );
                self.add(policy, Place::Rule(direction, rule), Code::DenyAllows, text);
            }
        }
    }

    /// Rules that another rule of the same policy covers.
    fn within(&mut self, policy: &NetworkPolicy, direction: Direction, rules: &[PolicyRule]) {
        if rules.len() < 2 {
            return;
        }
        let mut first: HashMap<&PolicyRule, usize> = HashMap::new();
        let mut pairs = PAIRS;
        for (at, rule) in rules.iter().enumerate() {
            let place = Place::Rule(direction, at);
            if let Some(before) = first.get(rule) {
                let text = format!("it is the same as rule {before}");
                self.add(policy, place, Code::Duplicate, text);
                continue;
            }
            first.insert(rule, at);
            let others =
                rules.iter().enumerate().filter(|(other, _)| *other != at && (at < RULES || *other < 10));
            for (other, wider) in others.take(RULES) {
                let count = number(&wider.peers).saturating_mul(number(&rule.peers));
                let Some(left) = pairs.checked_sub(count) else { break };
                pairs = left;
                if wider != rule && covers(self.cluster, wider, rule) && !covers(self.cluster, rule, wider) {
                    let text = format!("rule {other} of this policy allows all of it");
                    self.add(policy, place, Code::Shadowed, text);
                    break;
                }
            }
        }
    }

    /// A policy of the same pods that allows everything.
    fn by_others(&mut self, policy: &NetworkPolicy, direction: Direction, rules: &[PolicyRule]) {
        if rules.iter().any(allows_everything) {
            return;
        }
        let of_namespace = self.of_namespace(&policy.key.namespace);
        let wider = of_namespace.allow_all(direction).iter().find(|other| {
            other.key != policy.key && (other.subject.is_everything() || other.subject == policy.subject)
        });
        if let Some(other) = wider {
            let text = format!(
                "it has no effect: {} allows everything for the same pods, and what one policy allows is allowed",
                other.key
            );
            self.add(policy, Place::Rules(direction), Code::Shadowed, text);
        }
    }

    /// Policies that are the same but for their names.
    pub(super) fn duplicates(&mut self) {
        type Content<'p> = (&'p str, &'p LabelSelector, Option<&'p [PolicyRule]>, Option<&'p [PolicyRule]>);
        let mut first: HashMap<Content<'_>, &ObjectKey> = HashMap::new();
        let mut found = Vec::new();
        for policy in self.cluster.policies().filter(|policy| policy.standing == Standing::Accepted) {
            let content = (
                &*policy.key.namespace,
                &policy.subject,
                policy.rules(Direction::Ingress),
                policy.rules(Direction::Egress),
            );
            if let Some(before) = first.get(&content) {
                found.push((policy.key.clone(), format!("it says the same as {before}")));
            } else {
                first.insert(content, &policy.key);
            }
        }
        for (key, text) in found {
            let code = Code::Duplicate;
            self.add_as(code.level(), About::Policy(key), Place::Name, code, text);
        }
    }
}

fn number(peers: &Peers) -> usize {
    match peers {
        Peers::Any => 1,
        Peers::Of(peers) => peers.len().max(1),
    }
}

/// Whether `wide` surely allows everything that `narrow` allows.
fn covers(cluster: &Cluster, wide: &PolicyRule, narrow: &PolicyRule) -> bool {
    let peers = match (&wide.peers, &narrow.peers) {
        (Peers::Any, _) => true,
        (Peers::Of(_), Peers::Any) => false,
        (Peers::Of(wide), Peers::Of(narrow)) => {
            narrow.iter().all(|narrow| wide.iter().any(|wide| covers_peer(cluster, wide, narrow)))
        }
    };
    peers && covers_ports(&wide.ports, &narrow.ports)
}

fn covers_peer(cluster: &Cluster, wide: &Peer, narrow: &Peer) -> bool {
    match (wide, narrow) {
        (Peer::Block(wide), Peer::Block(narrow)) => covers_block(wide, narrow),
        (Peer::Pods(wide), Peer::Pods(narrow)) => {
            let scope = match (&wide.scope, &narrow.scope) {
                (Scope::Own(wide), Scope::Own(narrow)) => wide == narrow,
                (Scope::Own(_), Scope::Matching(_)) => false,
                (Scope::Matching(wide), Scope::Own(own)) => {
                    cluster.namespace(own).is_some_and(|namespace| wide.matches(&namespace.labels))
                }
                (Scope::Matching(wide), Scope::Matching(narrow)) => covers_labels(wide, narrow),
            };
            let PodPeer { pods, .. } = wide;
            scope && covers_labels(pods, &narrow.pods)
        }
        _ => false,
    }
}

fn covers_block(wide: &IpBlock, narrow: &IpBlock) -> bool {
    wide == narrow || wide.except().is_empty() && wide.cidr().contains(&narrow.cidr())
}

/// Fewer requirements match more.
fn covers_labels(wide: &LabelSelector, narrow: &LabelSelector) -> bool {
    wide.requirements().iter().all(|one| narrow.requirements().contains(one))
}

/// Whether `wide` has every port of `narrow`.
pub(super) fn covers_ports(wide: &Ports, narrow: &Ports) -> bool {
    match (wide, narrow) {
        (Ports::Any, _) => true,
        (Ports::Of(_), Ports::Any) => false,
        (Ports::Of(wide), Ports::Of(narrow)) => {
            narrow.len().saturating_mul(wide.len()) <= PAIRS
                && narrow.iter().all(|narrow| wide.iter().any(|wide| covers_port(wide, narrow)))
        }
    }
}

fn covers_port(wide: &Port, narrow: &Port) -> bool {
    match (wide, narrow) {
        (Port::All(wide), Port::All(narrow) | Port::Range(narrow, _) | Port::Named(narrow, _)) => {
            wide == narrow
        }
        (Port::Range(wide, outer), Port::Range(narrow, inner)) => {
            wide == narrow && outer.first() <= inner.first() && inner.last() <= outer.last()
        }
        _ => wide == narrow,
    }
}
