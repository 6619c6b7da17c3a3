//! Blocks that cover pods, and excepts without effect.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{Code, Part, Place, Search, rules::covers_ports};
use crate::{
    model::{Cluster, Direction, Family, IpBlock, NetworkPolicy, Peer, Peers, Pod, Scope},
    policy::cidr::CidrSet,
};

/// How many addresses, excepts or other blocks one block is compared with.
const COMPARED: usize = 100;

/// The addresses of pods, ascending. Pods on the network of their node have its address, which is no pod's.
pub(super) struct Addresses(Vec<(IpAddr, Arc<Pod>)>);

impl Addresses {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let pods = cluster.pods().filter(|pod| pod.is_selectable());
        let of_pod = |pod: &Arc<Pod>| -> Vec<(IpAddr, Arc<Pod>)> {
            pod.addresses.iter().map(|address| (*address, pod.clone())).collect()
        };
        let mut all: Vec<(IpAddr, Arc<Pod>)> = pods.flat_map(of_pod).collect();
        all.sort_by_key(|(address, _)| *address);
        Self(all)
    }

    /// A pod with an address in a block.
    fn in_block(&self, block: &IpBlock) -> Option<&(IpAddr, Arc<Pod>)> {
        let first = self.0.partition_point(|(address, _)| *address < block.cidr().network());
        let within = self.0[first..].iter().take_while(|(address, _)| block.cidr().contains(address));
        within.take(COMPARED).find(|(address, _)| block.contains(*address))
    }

    /// Whether a pod with an address in a block may fulfil a condition. If there are many, it may.
    pub(super) fn may_have(&self, block: &IpBlock, condition: impl Fn(&Pod) -> bool) -> bool {
        let first = self.0.partition_point(|(address, _)| *address < block.cidr().network());
        let within = self.0[first..].iter().take_while(|(address, _)| block.cidr().contains(address));
        let mut seen = 0;
        within.take(COMPARED).inspect(|_| seen += 1).any(|(_, pod)| condition(pod)) || seen == COMPARED
    }
}

impl Search<'_> {
    /// The blocks in the rules of a policy.
    pub(super) fn blocks(&mut self, policy: &NetworkPolicy) {
        for direction in Direction::BOTH {
            self.one_family(policy, direction);
            for (rule, one) in policy.rules(direction).unwrap_or_default().iter().enumerate() {
                let Peers::Of(peers) = &one.peers else { continue };
                for (at, peer) in peers.iter().enumerate() {
                    let Peer::Block(block) = peer else { continue };
                    let place = |part| Place::Peer(direction, rule, at, part);
                    if self.excepts(policy, block, place(Part::Excepts)) {
                        self.pods_within(policy, block, place(Part::Block));
                        self.allowed_elsewhere(policy, (direction, rule, at), block);
                    }
                }
            }
        }
    }

    /// Blocks of one family, as all that a policy allows in a direction, for pods that have both.
    fn one_family(&mut self, policy: &NetworkPolicy, direction: Direction) {
        let rules = policy.rules(direction).unwrap_or_default();
        let mut found: Option<(Family, Place)> = None;
        for (rule, one) in rules.iter().enumerate() {
            let Peers::Of(peers) = &one.peers else { return };
            for (at, peer) in peers.iter().enumerate() {
                let Peer::Block(block) = peer else { return };
                let family = Family::of_net(block.cidr());
                match found {
                    Some((before, _)) if before != family => return,
                    Some(_) => {}
                    None => found = Some((family, Place::Peer(direction, rule, at, Part::Block))),
                }
            }
        }
        let Some((family, place)) = found else { return };
        let pods = self.index.matches(&Scope::Own(policy.key.namespace.clone()), &policy.subject);
        let has_other = |pod: &&Arc<Pod>| pod.addresses.iter().any(|address| Family::of(*address) != family);
        if let Some(pod) = pods.sample.iter().find(has_other) {
            let text = format!(
                "{} has addresses of the other family as well, in which the policy isolates it and allows nothing: only \
                 {family} blocks are allowed",
                pod.key
            );
            self.add(policy, place, Code::OneFamily, text);
        }
    }

    /// Whether the excepts leave anything of their block.
    fn excepts(&mut self, policy: &NetworkPolicy, block: &IpBlock, place: Place) -> bool {
        let excepts = block.except();
        if excepts.is_empty() {
            return true;
        }
        let family = Family::of_net(block.cidr());
        if CidrSet::union(family, [block]).is_empty() {
            let text = format!("the excepts leave nothing of {}: it matches no address", block.cidr());
            self.add(policy, place, Code::EmptyBlock, text);
            return false;
        }
        // They are sorted, a network before those inside of it.
        let mut around: Option<IpNet> = None;
        let mut nested = None;
        for except in excepts {
            match around {
                Some(outer) if outer.contains(except) => {
                    nested.get_or_insert((outer, *except));
                }
                _ => around = Some(*except),
            }
        }
        if let Some((outer, inner)) = nested {
            let text = format!("{inner} is within {outer}, which is excepted as well: it has no effect");
            self.add(policy, place, Code::UselessExcept, text);
        }
        true
    }

    fn pods_within(&mut self, policy: &NetworkPolicy, block: &IpBlock, place: Place) {
        let pod = self.addresses.in_block(block).map(|(address, pod)| format!("{} ({address})", pod.key));
        let family = Family::of_net(block.cidr());
        let cidr = || {
            let touches = |cidr: &&IpNet| {
                let alike = Family::of_net(**cidr) == family;
                let both = || CidrSet::of([**cidr]).intersection(&CidrSet::union(family, [block]));
                alike && !both().is_empty()
            };
            self.knowledge.pod_cidrs.iter().find(touches).map(|cidr| format!("pods, which are in {cidr}"))
        };
        let Some(covered) = pod.or_else(cidr) else { return };
        if block.cidr().prefix_len() == 0 {
            let text = format!(
                "it covers pods as well, such as {covered}: if only addresses outside of the cluster are meant, except \
                 those of pods"
            );
            return self.note(policy, place, Code::BlockCoversPods, text);
        }
        let text = format!(
            "it covers {covered}: pods change their addresses, select them with a podSelector or a namespaceSelector"
        );
        self.add(policy, place, Code::BlockCoversPods, text);
    }

    /// An except does not deny: what another peer or rule allows is allowed.
    fn allowed_elsewhere(
        &mut self,
        policy: &NetworkPolicy,
        (direction, rule, at): (Direction, usize, usize),
        block: &IpBlock,
    ) {
        let rules = policy.rules(direction).unwrap_or_default();
        let family = Family::of_net(block.cidr());
        let mut compared = 0;
        for (other, one) in rules.iter().enumerate() {
            let Peers::Of(peers) = &one.peers else { continue };
            if !rules.get(rule).is_some_and(|this| covers_ports(&one.ports, &this.ports)) {
                continue;
            }
            for (peer, sibling) in peers.iter().enumerate() {
                let Peer::Block(sibling) = sibling else { continue };
                if (other, peer) == (rule, at) || Family::of_net(sibling.cidr()) != family {
                    continue;
                }
                compared += 1;
                if compared > COMPARED {
                    return;
                }
                let allowed = CidrSet::union(family, [sibling]);
                if let Some(except) = block.except().iter().take(COMPARED).find(|net| allowed.covers(**net)) {
                    let text = format!(
                        "{except} is allowed all the same, by {} in rule {other}: an except only limits its own block",
                        sibling.cidr()
                    );
                    let place = Place::Peer(direction, rule, at, Part::Excepts);
                    return self.add(policy, place, Code::ExceptAllowed, text);
                }
            }
        }
    }
}
