//! Selectors that match nothing, or probably not what is meant.

use std::{collections::BTreeSet, sync::Arc};

use super::{Code, Part, Place, Search, hints::nearest};
use crate::model::{
    Direction, LabelSelector, NetworkPolicy, Operator, Peer, Peers, PodPeer, Requirement, Scope,
};

/// The label with a namespace's name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Labels that people take for it.
const LIKE_NAME: [&str; 7] = [
    "name",
    "namespace",
    "ns",
    "metadata.name",
    "kubernetes.io/name",
    "kubernetes.io/namespace",
    "k8s.io/metadata.name",
];

/// How many other peers of a rule a peer is compared with.
const SIBLINGS: usize = 50;

impl Search<'_> {
    /// The selectors of a policy.
    pub(super) fn selectors(&mut self, policy: &NetworkPolicy) {
        self.subject(policy);
        for direction in Direction::BOTH {
            for (rule, one) in policy.rules(direction).unwrap_or_default().iter().enumerate() {
                let Peers::Of(peers) = &one.peers else { continue };
                for (at, peer) in peers.iter().enumerate() {
                    if let Peer::Pods(peer) = peer {
                        let place = |part| Place::Peer(direction, rule, at, part);
                        self.peer(policy, peer, peers, place);
                    }
                }
            }
        }
    }

    fn subject(&mut self, policy: &NetworkPolicy) {
        let (namespace, pods) = (&policy.key.namespace, &policy.subject);
        let place = Place::Subject;
        if let Some(why) = contradiction(pods) {
            return self.add(policy, place, Code::Contradiction, why);
        }
        let scope = Scope::Own(namespace.clone());
        let matches = self.index.matches(&scope, pods);
        if let Some(pod) = &matches.on_host {
            let text = if matches.pods == 0 {
                format!(
                    "every pod that it selects, such as {}, is on the network of its node: no policy applies to it",
                    pod.key
                )
            } else {
                format!("it does not apply to {}, which is on the network of its node", pod.key)
            };
            return self.add(policy, place, Code::HostNetworkSubject, text);
        }
        if !matches.is_empty() {
            self.excludes_nothing(policy, &scope, pods, place);
            return self.typo(policy, &scope, pods, place);
        }
        let elsewhere = if pods.is_everything() { None } else { self.index.elsewhere(namespace, pods) };
        if self.index.has_pods(namespace) {
            let why = self.hint(&scope, pods);
            let reason = why.as_ref().map_or_else(String::new, |hint| format!(": {}", hint.text));
            let is_guess = why.is_some_and(|hint| hint.is_guess);
            let text = match &elsewhere {
                Some(pod) if !is_guess => format!(
                    "it selects no pod of {namespace}, but would select {}: a policy selects pods of its own namespace",
                    pod.key
                ),
                _ => format!("it selects no pod of {namespace}{reason}"),
            };
            self.add(policy, place, Code::SelectsNothing, text);
        } else if let Some(pod) = elsewhere {
            let text = format!(
                "it selects no pod: its namespace, {namespace}, has none here, but it would select {}: is \
                 metadata.namespace right?",
                pod.key
            );
            self.add(policy, Place::Namespace, Code::SelectsNothing, text);
        } else if !self.index.is_empty() && !pods.is_everything() {
            let text = format!("it selects no pod that is known here: there is none in {namespace}");
            self.note(policy, place, Code::SelectsNothing, text);
        }
    }

    fn peer(
        &mut self,
        policy: &NetworkPolicy,
        peer: &PodPeer,
        siblings: &[Peer],
        place: impl Fn(Part) -> Place,
    ) {
        let PodPeer { scope, pods } = peer;
        if let Some(why) = contradiction(pods) {
            return self.add(policy, place(Part::Pods), Code::Contradiction, why);
        }
        if let Scope::Matching(namespaces) = scope {
            if let Some(why) = contradiction(namespaces) {
                return self.add(policy, place(Part::Namespaces), Code::Contradiction, why);
            }
            if self.index.namespaces(namespaces).is_empty() {
                return self.no_namespace(policy, namespaces, place(Part::Namespaces));
            }
            self.unknown_labels(policy, namespaces, place(Part::Namespaces));
        }
        let matches = self.index.matches(scope, pods);
        if let Some(pod) = &matches.on_host {
            let text = format!(
                "it does not match {}, which is on the network of its node: only an ipBlock with the node's address does",
                pod.key
            );
            let everything = pods.is_everything();
            match (matches.pods, everything) {
                (0, _) => self.add(policy, place(Part::Whole), Code::HostNetworkPeer, text),
                (_, false) => self.note(policy, place(Part::Pods), Code::HostNetworkPeer, text),
                (_, true) => {}
            }
            return;
        }
        if !matches.is_empty() {
            if let Some(Peer::Pods(beside)) = only_other(siblings, peer) {
                self.two_peers(policy, peer, beside, place(Part::Pods));
            }
            self.excludes_nothing(policy, scope, pods, place(Part::Pods));
            return self.typo(policy, scope, pods, place(Part::Pods));
        }
        if self.index.scope_has_pods(scope) {
            self.no_pod(policy, peer, siblings, place);
        } else if let Scope::Matching(namespaces) = scope {
            // None of these namespaces has pods here: only the policy's own can say more.
            self.and_for_or(policy, namespaces, pods, place(Part::Whole));
        }
    }

    /// A peer with a podSelector that matches none of the pods in its scope.
    fn no_pod(
        &mut self,
        policy: &NetworkPolicy,
        peer: &PodPeer,
        siblings: &[Peer],
        place: impl Fn(Part) -> Place,
    ) {
        let PodPeer { scope, pods } = peer;
        if pods.requirements().iter().any(|requirement| &*requirement.key == NAME_LABEL) {
            let text =
                format!("pods do not have the label {NAME_LABEL}: it belongs into a namespaceSelector");
            return self.add(policy, place(Part::Pods), Code::NameLabel, text);
        }
        if let Scope::Matching(namespaces) = scope
            && self.and_for_or(policy, namespaces, pods, place(Part::Whole))
        {
            return;
        }
        if let Scope::Own(_) = scope {
            let beside = siblings.iter().take(SIBLINGS).find_map(|sibling| match sibling {
                Peer::Pods(PodPeer { scope: Scope::Matching(namespaces), pods: all })
                    if all.is_everything() =>
                {
                    let both = self.index.matches(&Scope::Matching(namespaces.clone()), pods);
                    (both.pods > 0).then(|| both.sample.first().cloned()).flatten()
                }
                _ => None,
            });
            if let Some(pod) = beside {
                let text = format!(
                    "it matches no pod of {}, but {} in the namespaces of the peer beside it: to allow only these, write \
                     both selectors in one peer (without the dash)",
                    policy.key.namespace, pod.key
                );
                return self.add(policy, place(Part::Pods), Code::OrForAnd, text);
            }
        }
        let hint = self.hint(scope, pods);
        let where_to = match scope {
            Scope::Own(namespace) => format!("of {namespace}"),
            Scope::Matching(namespaces) if namespaces.is_everything() => "of any namespace".to_owned(),
            Scope::Matching(namespaces) => format!("in namespaces {namespaces}"),
        };
        let elsewhere = match scope {
            Scope::Own(namespace) => self.index.elsewhere(namespace, pods),
            Scope::Matching(_) => None,
        };
        let text = match (elsewhere, hint) {
            (Some(pod), hint) if !hint.as_ref().is_some_and(|hint| hint.is_guess) => format!(
                "it matches no pod {where_to}; {} matches, but is in another namespace: without a namespaceSelector, a peer is in the policy's own namespace",
                pod.key
            ),
            (_, Some(hint)) => format!("it matches no pod {where_to}: {}", hint.text),
            (_, None) => format!("it matches no pod {where_to}"),
        };
        self.add(policy, place(Part::Pods), Code::PeerMatchesNothing, text);
    }

    /// A peer with a podSelector beside one with a namespaceSelector: valid, and often meant as one.
    fn two_peers(&mut self, policy: &NetworkPolicy, peer: &PodPeer, beside: &PodPeer, place: Place) {
        let (Scope::Own(own), Scope::Matching(namespaces)) = (&peer.scope, &beside.scope) else { return };
        if peer.pods.is_everything() || namespaces.is_everything() || !beside.pods.is_everything() {
            return;
        }
        let text = format!(
            "these are two peers: every pod in namespaces {namespaces}, and pods {} of {own}. For pods {} in these \
             namespaces, write both selectors in one peer (without the dash)",
            peer.pods, peer.pods
        );
        self.note(policy, place, Code::OrForAnd, text);
    }

    /// A label that pods must not have, or not with some values, and that none of them has.
    fn excludes_nothing(
        &mut self,
        policy: &NetworkPolicy,
        scope: &Scope,
        pods: &LabelSelector,
        place: Place,
    ) {
        for Requirement { key, operator } in pods.requirements() {
            let Operator::NotIn(values) = operator else { continue };
            if self.may_search() && self.index.values(scope, key).is_empty() {
                let text = format!(
                    "no pod has the label {key}, so none is excluded for {key}={}: NotIn also matches pods without the label",
                    values.join(" or ")
                );
                self.add(policy, place, Code::ExcludesNothing, text);
            }
        }
    }

    /// Both selectors match nothing together, but each of them does alone. Whether that is so.
    fn and_for_or(
        &mut self,
        policy: &NetworkPolicy,
        namespaces: &LabelSelector,
        pods: &LabelSelector,
        place: Place,
    ) -> bool {
        if pods.is_everything() || namespaces.is_everything() {
            return false;
        }
        let own = self.index.matches(&Scope::Own(policy.key.namespace.clone()), pods);
        let Some(pod) = own.sample.first() else { return false };
        let in_own = self.index.namespaces(namespaces).contains(&policy.key.namespace);
        if in_own {
            return false;
        }
        let text = format!(
            "no pod {pods} is in namespaces {namespaces}, but {} is in {}: if either is meant, make two peers of it (a \
             dash before each selector)",
            pod.key, policy.key.namespace
        );
        self.add(policy, place, Code::AndForOr, text);
        true
    }

    /// A namespaceSelector that matches no known namespace.
    fn no_namespace(&mut self, policy: &NetworkPolicy, selector: &LabelSelector, place: Place) {
        let exists = |key: &str| self.cluster.namespaces().any(|one| one.labels.get(key).is_some());
        for Requirement { key, operator } in selector.requirements() {
            let Operator::In(values) = operator else { continue };
            if LIKE_NAME.contains(&&**key) && !exists(key) {
                let known = values.iter().find(|value| self.cluster.namespace(value).is_some());
                let text = match known {
                    Some(name) => format!(
                        "the namespace {name} has no label {key}={name}: its name is in {NAME_LABEL}, which every \
                         namespace has"
                    ),
                    None => format!(
                        "no namespace has the label {key}: the name of a namespace is in {NAME_LABEL}"
                    ),
                };
                return self.add(policy, place, Code::NameLabel, text);
            }
        }
        for Requirement { key, operator } in selector.requirements() {
            let Operator::In(values) = operator else { continue };
            let is_met =
                |value: &Arc<str>| self.cluster.namespaces().any(|one| one.labels.get(key) == Some(&**value));
            if values.iter().any(is_met) || !self.may_search() {
                continue;
            }
            let known: BTreeSet<&str> =
                self.cluster.namespaces().filter_map(|one| one.labels.get(key)).collect();
            for value in values.iter() {
                if let Some(meant) = nearest(value, known.iter().copied()) {
                    let text = format!("no namespace has {key}={value}: did you mean {key}={meant}?");
                    return self.add(policy, place, Code::NoSuchNamespace, text);
                }
            }
            let keys: BTreeSet<&str> =
                self.cluster.namespaces().flat_map(|one| one.labels.iter().map(|(key, _)| key)).collect();
            if known.is_empty()
                && let Some(meant) = nearest(key, keys.iter().copied())
            {
                let text = format!("no namespace has the label {key}: did you mean {meant}?");
                return self.add(policy, place, Code::NoSuchNamespace, text);
            }
        }
        let text = format!("no namespace that is known here matches {selector}");
        self.note(policy, place, Code::NoSuchNamespace, text);
    }

    /// A selector that excludes labels matches namespaces whose labels are not known.
    fn unknown_labels(&mut self, policy: &NetworkPolicy, selector: &LabelSelector, place: Place) {
        let excludes = selector.requirements().iter().any(|requirement| {
            let negative = matches!(requirement.operator, Operator::NotIn(_) | Operator::DoesNotExist);
            negative && &*requirement.key != NAME_LABEL
        });
        if !excludes {
            return;
        }
        let names = self.index.namespaces(selector);
        let undeclared = self.knowledge.undeclared.iter().find(|name| names.contains(*name));
        if let Some(name) = undeclared {
            let text = format!(
                "it matches the namespace {name}, whose labels are not known here, as if it had none: declare it"
            );
            self.add(policy, place, Code::LabelsUnknown, text);
        }
    }

    /// One of several values that no pod has, and that is similar to one that pods have.
    fn typo(&mut self, policy: &NetworkPolicy, scope: &Scope, pods: &LabelSelector, place: Place) {
        for Requirement { key, operator } in pods.requirements() {
            let Operator::In(values) = operator else { continue };
            if values.len() < 2 || values.len() > SIBLINGS || !self.may_search() {
                continue;
            }
            let known = self.index.values(scope, key);
            let others =
                || known.iter().map(String::as_str).filter(|one| !values.iter().any(|v| **v == **one));
            for value in values.iter().filter(|value| !known.contains(&***value)) {
                if let Some(meant) = nearest(value, others()) {
                    let text = format!("no pod has {key}={value}: did you mean {key}={meant}?");
                    self.add(policy, place, Code::LabelTypo, text);
                }
            }
        }
    }
}

/// The other peer of a list of two.
fn only_other<'p>(siblings: &'p [Peer], peer: &PodPeer) -> Option<&'p Peer> {
    match siblings {
        [Peer::Pods(one), other] if one == peer => Some(other),
        [other, Peer::Pods(one)] if one == peer => Some(other),
        _ => None,
    }
}

/// Why no labels at all satisfy a selector.
fn contradiction(selector: &LabelSelector) -> Option<String> {
    let requirements = selector.requirements();
    for (at, Requirement { key, .. }) in requirements.iter().enumerate() {
        // They are sorted by key: those of one key are beside each other.
        let of_key = requirements[at..].iter().take_while(|other| other.key == *key);
        if at > 0 && requirements[at - 1].key == *key {
            continue;
        }
        let (mut allowed, mut absent, mut present): (Option<BTreeSet<&str>>, bool, bool) =
            (None, false, false);
        let mut excluded: BTreeSet<&str> = BTreeSet::new();
        for other in of_key {
            match &other.operator {
                Operator::In(values) => {
                    let values: BTreeSet<&str> = values.iter().map(|value| &**value).collect();
                    allowed = Some(match allowed {
                        Some(before) => before.intersection(&values).copied().collect(),
                        None => values,
                    });
                }
                Operator::NotIn(values) => excluded.extend(values.iter().map(|value| &**value)),
                Operator::Exists => present = true,
                Operator::DoesNotExist => absent = true,
            }
        }
        let none_left =
            allowed.as_ref().is_some_and(|allowed| allowed.iter().all(|one| excluded.contains(one)));
        if none_left || absent && (present || allowed.is_some()) {
            return Some(format!("no object can match it: its requirements on {key} exclude each other"));
        }
    }
    None
}
