//! What is said to have no effect has none: without it, every flow has the same verdict.
//!
//! `TOWPATH_SEED` sets the first seed, `TOWPATH_CLUSTERS` how many random clusters are checked.

use towpath::{
    lab::random::{Generator, Shape, Stack, cluster_of, externals, transports},
    model::{Change, Cluster, Direction, NetworkPolicy, Peers, PolicyRule, Ports},
    policy::{
        Reach, Reachability,
        findings::{About, Code, Finding, Knowledge, Place, find},
    },
};

#[path = "../support/env.rs"]
mod env;

/// The verdict of every flow.
fn reaches(cluster: &Cluster, stack: Stack) -> Vec<Reach> {
    let reachability = Reachability::new(cluster, &externals(stack), &transports());
    reachability.flows().map(|(.., reach)| reach).collect()
}

fn rules(policy: &mut NetworkPolicy, direction: Direction) -> Option<&mut Vec<PolicyRule>> {
    match direction {
        Direction::Ingress => policy.ingress.as_mut(),
        Direction::Egress => policy.egress.as_mut(),
    }
}

/// The policy without what a finding says to have no effect; `None` if it says nothing of the kind.
fn without(policy: &NetworkPolicy, finding: &Finding) -> Option<NetworkPolicy> {
    let mut policy = policy.clone();
    let matches_nothing = [
        Code::PeerMatchesNothing,
        Code::NoSuchNamespace,
        Code::Contradiction,
        Code::NameLabel,
        Code::AndForOr,
        Code::EmptyBlock,
    ];
    match (finding.code, finding.place) {
        (Code::Shadowed | Code::Duplicate, Place::Rule(direction, rule)) => {
            rules(&mut policy, direction)?.remove(rule);
        }
        (code, Place::Peer(direction, rule, peer, _)) if matches_nothing.contains(&code) => {
            let PolicyRule { peers: Peers::Of(peers), .. } = rules(&mut policy, direction)?.get_mut(rule)?
            else {
                return None;
            };
            peers.remove(peer);
        }
        (Code::NoSuchPort | Code::NameForAddresses, Place::Port(direction, rule, port)) => {
            let Ports::Of(ports) = &mut rules(&mut policy, direction)?.get_mut(rule)?.ports else {
                return None;
            };
            ports.remove(port);
        }
        _ => return None,
    }
    Some(policy)
}

#[test]
fn what_is_said_to_have_no_effect_has_none() {
    let first: u64 = env::number("TOWPATH_SEED", 1);
    let count: u64 = env::number("TOWPATH_CLUSTERS", 60);
    let mut checked = std::collections::BTreeMap::<Code, usize>::new();
    for seed in first..first + count {
        let stack = [Stack::V4, Stack::V6, Stack::Dual][usize::try_from(seed % 3).unwrap()];
        let shape = Shape { stack, namespaces: 3, pods: 4, policies: 6, oddities: seed % 4 != 0 };
        let cluster = cluster_of(Generator::new(seed, shape).cluster());
        let before = reaches(&cluster, stack);
        for finding in find(&cluster, &Knowledge::default()).found {
            let About::Policy(key) = &finding.about else { continue };
            let policy = cluster.policy(key).unwrap();
            let change = match (finding.code, finding.place) {
                // The whole policy.
                (Code::SelectsNothing, _)
                | (Code::Duplicate, Place::Name)
                | (Code::Contradiction, Place::Subject) => Change::RemovePolicy(key.clone()),
                _ => match without(policy, &finding) {
                    Some(policy) => Change::SetPolicy(policy),
                    None => continue,
                },
            };
            let mut changed = cluster.clone();
            changed.apply(change);
            assert!(before == reaches(&changed, stack), "TOWPATH_SEED={seed}: {finding:?}\n{policy:?}");
            *checked.entry(finding.code).or_default() += 1;
        }
    }
    println!("{checked:?}");
    assert!(checked.len() >= 5, "{checked:?}");
}
