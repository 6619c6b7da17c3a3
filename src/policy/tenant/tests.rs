//! Identity of policies, dropped costs, and shared programs.

use super::*;
use crate::model::{Change, ContainerPort, LabelSelector, Peers, PolicyRule, Protocol, Standing};
use crate::policy::resolve::Resolver;

fn policy(name: &str, ports: Ports) -> NetworkPolicy {
    let rules = Some(vec![PolicyRule { peers: Peers::Any, ports }]);
    NetworkPolicy {
        key: ObjectKey::new("a", name),
        subject: LabelSelector::everything(),
        ingress: rules.clone(),
        egress: rules,
        standing: Standing::Accepted,
    }
}

fn pod(name: &str, last: u8) -> Pod {
    let addresses = vec![[10, 244, 1, last].into()];
    Pod { node: Some("n1".into()), addresses, ..Pod::new(ObjectKey::new("a", name)) }
}

#[test]
fn policy_identity_differs_between_equal_policies() {
    let [one, other] = [(); 2].map(|()| Arc::new(policy("p", Ports::Any)));
    assert_eq!(Identity(one.clone()), Identity(one.clone()));
    assert_ne!(Identity(one), Identity(other));
}

#[test]
fn costs_are_dropped_once_most_policies_select_no_pod() {
    let budgets = Budgets::default();
    let mut cluster = Cluster::new();
    let bound = 10;
    for at in 0..bound {
        cluster.apply(Change::SetPolicy(policy(&format!("p{at}"), Ports::Any)));
    }
    let mut subjects = BTreeMap::from([(ObjectKey::new("a", "web"), Subject::new(Arc::new(pod("web", 1))))]);
    let mut costs = Costs::default();
    let tenant = Tenant::new(&cluster, subjects.iter_mut(), None, &mut costs, &budgets);
    let tenants = BTreeMap::from([(Arc::from("a"), tenant)]);
    assert_eq!(costs.0.len(), bound);
    let mut add_unused = |how_many: usize| {
        for _ in 0..how_many {
            costs.of(&Arc::new(policy("unused", Ports::Any)), &budgets);
        }
        costs.keep_used(&tenants);
        costs.0.len()
    };
    let most = 2 * bound + 64;
    assert_eq!(add_unused(most - bound), most);
    assert_eq!(add_unused(1), bound);
}

#[test]
fn pods_with_different_named_ports_share_their_egress_program() {
    let named = Ports::Of(vec![Port::Named(Protocol::Tcp, "http".into())]);
    let with_port = |name: &str, number: u16| {
        let port = ContainerPort { name: Some("http".into()), protocol: Protocol::Tcp, number };
        Pod { ports: vec![port], ..pod(name, u8::try_from(number - 8000).unwrap()) }
    };
    let mut cluster = Cluster::new();
    cluster.apply(Change::SetPolicy(policy("p", named)));
    cluster.apply(Change::SetPod(with_port("one", 8001)));
    cluster.apply(Change::SetPod(with_port("two", 8002)));
    let pods = Resolver::of("n1", &cluster).resolve(&cluster).pods;
    let [one, two] = &pods[..] else { panic!("two pods") };
    let same =
        |direction: Direction| Arc::ptr_eq(one.program(direction).unwrap(), two.program(direction).unwrap());
    assert!(same(Direction::Egress));
    assert!(!same(Direction::Ingress));
}
