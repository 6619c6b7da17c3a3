//! How rules of policies become programs.

use super::*;
use crate::model::{LabelSelector, ObjectKey, PolicyRule, Standing};

fn block(text: &str) -> Peer {
    Peer::Block(IpBlock::new(text.parse().unwrap(), []).unwrap())
}

fn tcp(first: u16, last: u16) -> (Protocol, PortRange) {
    (Protocol::Tcp, PortRange::new(first, last).unwrap())
}

fn to_ports(peers: Peers, ports: impl IntoIterator<Item = (Protocol, PortRange)>) -> PolicyRule {
    let ports = ports.into_iter().map(|(protocol, range)| Port::Range(protocol, range));
    PolicyRule { peers, ports: Ports::Of(ports.collect()) }
}

/// The ingress program of a policy with these rules.
fn program(rules: Vec<PolicyRule>) -> Program {
    let policy = NetworkPolicy {
        key: ObjectKey::new("a", "p"),
        subject: LabelSelector::everything(),
        ingress: Some(rules),
        egress: None,
        standing: Standing::Accepted,
    };
    let subject = Pod::new(ObjectKey::new("a", "web"));
    Program::of_policies(Direction::Ingress, [&Arc::new(policy)], &subject)
}

/// The rules of a program: whether for every peer, and the ports.
fn rules(program: &Program) -> Vec<(bool, PortMatch)> {
    let rules = program.tiers.iter().flat_map(|tier| &tier.rules);
    rules.map(|rule| (rule.peers == PeerMatch::Any, rule.ports.clone())).collect()
}

#[test]
fn only_an_unrestricted_rule_or_the_default_allows_everything() {
    let everything = || PolicyRule { peers: Peers::Any, ports: Ports::Any };
    let some = || PolicyRule { peers: Peers::Of(vec![block("10.0.0.0/8")]), ports: Ports::Any };
    assert!(program(vec![everything()]).allows_everything());
    assert!(program(vec![some(), everything()]).allows_everything());
    assert!(!program(vec![]).allows_everything());
    assert!(!program(vec![some()]).allows_everything());
    assert!(!program(vec![to_ports(Peers::Any, [tcp(0, u16::MAX)])]).allows_everything());
    assert!(Program::new(vec![], Action::Allow).allows_everything());
    let denied = Rule { peers: PeerMatch::Any, ports: PortMatch::Any, action: Action::Deny };
    assert!(!Program::new(vec![Tier { rules: vec![denied] }], Action::Allow).allows_everything());
}

#[test]
fn ports_allowed_for_all_peers_are_removed_from_other_rules_within_a_limit() {
    let rules_with = |open: u16| {
        let for_all = to_ports(Peers::Any, (1..=open).map(|at| tcp(10 * at, 10 * at)));
        let for_some = to_ports(Peers::Of(vec![block("10.0.0.0/8")]), [tcp(1, 1000)]);
        rules(&program(vec![for_all, for_some]))
    };
    let pieces = |open: u16| {
        let rules = rules_with(open);
        let of_some = rules.iter().find(|(for_all, _)| !for_all).map(|(_, ports)| ports.clone()).unwrap();
        let PortMatch::Of(ports) = of_some else { panic!("every port") };
        ports.iter().map(|(_, ranges)| ranges.len()).sum::<usize>()
    };
    let most = u16::try_from(MOST_CUTS).unwrap();
    assert_eq!(pieces(1), 2);
    assert_eq!(pieces(most), MOST_CUTS + 1);
    assert_eq!(pieces(most + 1), 1);
}
