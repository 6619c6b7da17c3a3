//! Which policies and namespaces are closed.

use super::*;
use crate::model::{Change, Requirement, Standing};
use crate::policy::resolve::{Resolved, Resolver};

const NODE: &str = "n1";

/// A pod of the node.
fn pod(namespace: &str, name: &str, last: u8) -> Pod {
    let labels = [("app", name)].into_iter().collect();
    let addresses = vec![[10, 244, 1, last].into()];
    Pod { labels, node: Some(NODE.into()), addresses, ..Pod::new(ObjectKey::new(namespace, name)) }
}

/// A policy for all pods of its namespace that allows ingress from `peers`.
fn policy(namespace: &str, name: &str, peers: Vec<Peer>) -> NetworkPolicy {
    NetworkPolicy {
        key: ObjectKey::new(namespace, name),
        subject: LabelSelector::everything(),
        ingress: Some(vec![PolicyRule { peers: Peers::Of(peers), ports: Ports::Any }]),
        egress: None,
        standing: Standing::Accepted,
    }
}

fn blocks(how_many: u32) -> Vec<Peer> {
    let block = |at: u32| format!("10.{}.{}.0/24", at / 250, at % 250).parse().unwrap();
    (0..how_many).map(|at| Peer::Block(IpBlock::new(block(at), []).unwrap())).collect()
}

fn resolved(changes: impl IntoIterator<Item = Change>, budgets: Budgets) -> Resolved {
    let mut cluster = crate::model::Cluster::new();
    let mut resolver = Resolver::new(NODE).with_budgets(budgets);
    for change in changes {
        if let Some(delta) = cluster.apply(change) {
            resolver.update(&cluster, &delta);
        }
    }
    resolver.resolve(&cluster)
}

/// How many rules allow ingress to this pod; `None` if it is not isolated.
fn rules(resolved: &Resolved, pod: &str) -> Option<usize> {
    let pod = resolved.pods.iter().find(|one| &*one.key.name == pod).unwrap();
    pod.ingress.as_ref().map(|program| program.tiers.iter().map(|tier| tier.rules.len()).sum())
}

#[test]
fn few_excepts_cost_their_cover_and_many_cost_one_entry_each() {
    let except = |net: &str| [net.parse().unwrap()];
    let cost = |cidr: &str, net: &str| of_block(&IpBlock::new(cidr.parse().unwrap(), except(net)).unwrap());
    assert_eq!(cost("0.0.0.0/0", "10.0.0.0/8"), 9);
    assert_eq!(cost("2000::/3", "2001:db8::1/128"), 1 + SMALL_COVER);
    let excepts =
        |count: u32| (0..count).map(|at| format!("10.{}.{}.7/32", at % 200, at / 3).parse().unwrap());
    assert_eq!(of_block(&IpBlock::new("0.0.0.0/0".parse().unwrap(), excepts(500)).unwrap()), 501);
}

#[test]
fn policy_over_its_budget_allows_nothing_and_other_policies_still_allow() {
    let budgets = Budgets { policy: 100, ..Budgets::default() };
    let changes = || {
        vec![
            Change::SetPod(pod("a", "web", 1)),
            Change::SetPolicy(policy("a", "large", blocks(200))),
            Change::SetPod(pod("b", "db", 2)),
            Change::SetPolicy(policy("b", "small", blocks(20))),
        ]
    };
    let result = resolved(changes(), budgets);
    assert_eq!(rules(&result, "web"), Some(0));
    assert_eq!(rules(&result, "db"), Some(1));
    let closed: Vec<&Closed> = result.over_budget.iter().map(|over| &over.closed).collect();
    assert_eq!(closed, [&Closed::Policy(ObjectKey::new("a", "large"))]);

    let mut more = changes();
    more.push(Change::SetPolicy(policy("a", "small", blocks(1))));
    assert_eq!(rules(&resolved(more, budgets), "web"), Some(1));
    let result = resolved(changes(), Budgets::UNLIMITED);
    assert_eq!(rules(&result, "web"), Some(1));
    assert!(result.over_budget.is_empty());
}

#[test]
fn namespace_over_its_budget_is_closed_until_it_is_within() {
    let budgets = Budgets { namespace: 300, ..Budgets::default() };
    let mut changes = vec![Change::SetPod(pod("a", "web", 1)), Change::SetPod(pod("b", "db", 2))];
    changes.push(Change::SetPolicy(policy("b", "small", blocks(20))));
    changes.extend((0..20).map(|at| Change::SetPolicy(policy("a", &format!("p{at}"), blocks(20)))));
    let result = resolved(changes.clone(), budgets);
    assert_eq!((rules(&result, "web"), rules(&result, "db")), (Some(0), Some(1)));
    assert_eq!(result.over_budget.len(), 1);
    assert_eq!(result.over_budget[0].closed, Closed::Namespace("a".into()));
    // The order in which objects arrive does not matter.
    changes.reverse();
    assert_eq!(resolved(changes.clone(), budgets).over_budget, result.over_budget);
    changes.extend((0..15).map(|at| Change::RemovePolicy(ObjectKey::new("a", format!("p{at}")))));
    let result = resolved(changes, budgets);
    assert_eq!((rules(&result, "web"), result.over_budget.len()), (Some(1), 0));
}

#[test]
fn node_over_its_budget_closes_the_largest_namespaces_first() {
    let mut changes = Vec::new();
    for (at, namespace) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let last = u8::try_from(at).unwrap();
        changes.push(Change::SetPod(pod(namespace, &format!("pod-{namespace}"), last)));
        let size = if namespace == "a" { 10 } else { 100 };
        changes.push(Change::SetPolicy(policy(namespace, "p", blocks(size))));
    }
    let result = resolved(changes, Budgets { node: 260, ..Budgets::default() });
    let closed: Vec<&str> = result.over_budget.iter().map(|over| &**over.namespace()).collect();
    assert_eq!(closed, ["b"]);
    let open = |name| rules(&result, name) == Some(1);
    assert!(open("pod-a") && !open("pod-b") && open("pod-c") && open("pod-d"));
}

#[test]
fn policies_for_other_nodes_cost_nothing() {
    let elsewhere = Pod { node: Some("n2".into()), ..pod("a", "web", 1) };
    let changes = [Change::SetPod(elsewhere), Change::SetPolicy(policy("a", "large", blocks(200)))];
    assert!(resolved(changes, Budgets { policy: 100, ..Budgets::default() }).over_budget.is_empty());
}

#[test]
fn each_distinct_list_of_policies_is_counted() {
    let subject = |name: &str| LabelSelector::new([Requirement::equals("app", name)]);
    let of = |pods: u8, distinct: bool| {
        let mut changes = vec![Change::SetPolicy(policy("a", "all", blocks(100)))];
        for at in 0..pods {
            let name = format!("p{at}");
            changes.push(Change::SetPod(pod("a", &name, at)));
            if distinct {
                let own = NetworkPolicy { subject: subject(&name), ..policy("a", &name, blocks(1)) };
                changes.push(Change::SetPolicy(own));
            }
        }
        !resolved(changes, Budgets { namespace: 500, ..Budgets::default() }).over_budget.is_empty()
    };
    assert!(!of(20, false) && of(20, true));
}

#[test]
fn selectors_with_too_many_members_close_their_namespace_until_pods_are_removed() {
    let budgets = Budgets { namespace_members: 30, ..Budgets::default() };
    let match_all = |at: u32| {
        let not = Operator::NotIn([at.to_string().into()].into());
        let pods = LabelSelector::new([Requirement { key: "x".into(), operator: not }]);
        Peer::Pods(PodPeer { scope: Scope::Own("a".into()), pods })
    };
    let mut cluster = crate::model::Cluster::new();
    let mut resolver = Resolver::new(NODE).with_budgets(budgets);
    let mut over_after = |change: Change| {
        if let Some(delta) = cluster.apply(change) {
            resolver.update(&cluster, &delta);
        }
        resolver.resolve(&cluster).over_budget.len()
    };
    // Rules with different ports, so that they are not merged: ten sets of two pods.
    let rules = (0..10).map(|at| PolicyRule {
        peers: Peers::Of(vec![match_all(at)]),
        ports: Ports::Of(vec![Port::Range(
            crate::model::Protocol::Tcp,
            PortRange::single(u16::try_from(at).unwrap() + 80),
        )]),
    });
    let policy = NetworkPolicy { ingress: Some(rules.collect()), ..policy("a", "p", Vec::new()) };
    assert_eq!(over_after(Change::SetPolicy(policy)), 0);
    assert_eq!([1, 2, 3].map(|at| over_after(Change::SetPod(pod("a", &format!("p{at}"), at)))), [0, 0, 0]);
    let many = (4..=8).map(|at| over_after(Change::SetPod(pod("a", &format!("p{at}"), at))));
    assert_eq!(many.last(), Some(1), "80 members, of 64 that eight addresses allow");
    let fewer = (2..=8).map(|at| over_after(Change::RemovePod(ObjectKey::new("a", format!("p{at}")))));
    assert_eq!(fewer.last(), Some(0));
}

#[test]
fn selectors_without_a_required_label_close_their_namespace_over_the_comparison_budget() {
    let everywhere = || Scope::Matching(LabelSelector::everything());
    let peer = |at: u32| {
        let values = ["web".into(), "db".into(), format!("v{at}").into()].into();
        let pods = LabelSelector::new([Requirement { key: "app".into(), operator: Operator::NotIn(values) }]);
        Peer::Pods(PodPeer { scope: everywhere(), pods })
    };
    let own_label = |at: u32| {
        let pods = LabelSelector::new([Requirement::equals("app", format!("v{at}"))]);
        Peer::Pods(PodPeer { scope: everywhere(), pods })
    };
    // 400 comparisons.
    let budgets = Budgets { namespace_members: 5, ..Budgets::default() };
    let mut cluster = crate::model::Cluster::new();
    let mut resolver = Resolver::new(NODE).with_budgets(budgets);
    let mut apply = |change: Change| {
        if let Some(delta) = cluster.apply(change) {
            resolver.update(&cluster, &delta);
        }
        let now = resolver.resolve(&cluster);
        let from_scratch = Resolver::of(NODE, &cluster).with_budgets(budgets).resolve(&cluster);
        assert_eq!(now.over_budget, from_scratch.over_budget);
        assert_eq!(now.selections, from_scratch.selections);
        (now.over_budget.iter().map(ToString::to_string).collect::<Vec<_>>(), rules(&now, "web"))
    };
    apply(Change::SetPod(pod("a", "web", 1)));
    let selectors =
        |peer: &dyn Fn(u32) -> Peer| Change::SetPolicy(policy("a", "many", (0..300).map(peer).collect()));
    assert_eq!(apply(selectors(&peer)), (vec![], Some(1)), "one pod");
    let closed = "namespace a needs 600 comparisons of pods with selectors, over the budget of the namespace (400): its \
                  pods stay isolated, and no policy of the namespace allows anything here";
    assert_eq!(apply(Change::SetPod(pod("b", "db", 2))), (vec![closed.into()], Some(0)), "two pods");
    assert_eq!(apply(selectors(&own_label)), (vec![], Some(1)), "each requires a label");
    assert_eq!(apply(selectors(&peer)), (vec![closed.into()], Some(0)));
    assert_eq!(apply(Change::RemovePod(ObjectKey::new("b", "db"))), (vec![], Some(1)), "one pod again");
}

#[test]
fn cost_equal_to_a_budget_is_within_it() {
    let web = LabelSelector::new([Requirement::equals("app", "web")]);
    let mut peers = blocks(20);
    peers.push(Peer::Pods(PodPeer { scope: Scope::Own("a".into()), pods: web }));
    let changes = [Change::SetPod(pod("a", "web", 1)), Change::SetPolicy(policy("a", "p", peers))];
    let over = |budgets: Budgets| resolved(changes.clone(), budgets).over_budget.first().cloned();
    for (scale, resource, with) in [
        (
            Scale::Policy,
            Resource::Units,
            (|budgets, policy| Budgets { policy, ..budgets }) as fn(Budgets, u64) -> Budgets,
        ),
        (Scale::Namespace, Resource::Units, |budgets, namespace| Budgets { namespace, ..budgets }),
        (Scale::Node, Resource::Units, |budgets, node| Budgets { node, ..budgets }),
        (Scale::Namespace, Resource::Sets, |budgets, namespace_sets| Budgets { namespace_sets, ..budgets }),
        (Scale::Node, Resource::Sets, |budgets, node_sets| Budgets { node_sets, ..budgets }),
    ] {
        let of = |budget| over(with(Budgets::UNLIMITED, budget));
        // Counting stops when the budget is exceeded, so the reported cost may be less than the real one.
        let mut cost = 0;
        while let Some(excess) = of(cost) {
            assert_eq!((excess.scale, excess.resource, excess.budget), (scale, resource, cost));
            assert!(excess.cost > cost, "{excess}");
            cost = excess.cost;
        }
        let excess = of(cost - 1).unwrap();
        assert_eq!((excess.cost, excess.budget), (cost, cost - 1), "{excess}");
    }
}

#[test]
fn named_ports_cost_by_name_and_by_declared_port() {
    use crate::model::{ContainerPort, Protocol};
    let with_ports = |how_many: u16| {
        let port = |number| ContainerPort { name: None, protocol: Protocol::Tcp, number };
        Pod { ports: (1..=how_many).map(port).collect(), ..pod("a", "web", 1) }
    };
    let cost = |names: u32, pod: Pod| {
        let names = (0..names).map(|at| Port::Named(Protocol::Tcp, format!("p{at}").into()));
        let rules = Some(vec![PolicyRule { peers: Peers::Any, ports: Ports::Of(names.collect()) }]);
        let policy = NetworkPolicy { ingress: rules, ..policy("a", "p", Vec::new()) };
        let changes = [Change::SetPod(pod), Change::SetPolicy(policy)];
        let over = resolved(changes, Budgets { node: 0, ..Budgets::UNLIMITED }).over_budget;
        over.first().unwrap().cost
    };
    let names_alone = cost(8, with_ports(0));
    assert_eq!(cost(8, with_ports(15)), names_alone);
    assert_eq!(cost(8, with_ports(16)), names_alone + 8);
    assert_eq!(cost(8, with_ports(48)), names_alone + 24);
    // Each name is looked up, and becomes a number of the rule.
    assert_eq!(cost(16, with_ports(0)), names_alone + 8 * (1 + 1));
}

#[test]
fn policy_cost_is_the_sum_of_its_rules() {
    use crate::model::Protocol::{Sctp, Tcp, Udp};
    let rule = |peers, ports| PolicyRule { peers, ports };
    let requirement = |operator| Requirement { key: "k".into(), operator };
    let peer = |scope, requirements: Vec<Requirement>| {
        Peer::Pods(PodPeer { scope, pods: LabelSelector::new(requirements) })
    };
    let own = || Scope::Own("a".into());
    let labelled = || Scope::Matching(LabelSelector::new([requirement(Operator::Exists)]));
    let by_name = |name: &str| Port::Named(Tcp, name.into());
    let single = |number| Port::Range(Tcp, PortRange::single(number));
    let costs = |subject: Vec<Requirement>, rules: Vec<PolicyRule>| {
        let subject = LabelSelector::new(subject);
        let policy = NetworkPolicy {
            subject,
            egress: Some(rules.clone()),
            ingress: Some(rules),
            ..policy("a", "p", vec![])
        };
        let both = Direction::BOTH.map(|direction| of_policy(&policy, direction));
        assert_eq!(of_both(&policy), both.iter().sum::<u64>());
        let one = NetworkPolicy { egress: None, ..policy };
        assert_eq!(of_both(&one), of_policy(&one, Direction::Ingress));
        [Direction::Ingress, Direction::Egress]
            .map(|direction| both[usize::from(Direction::BOTH[0] != direction)])
    };
    let same = |cost: u64| [cost; 2];
    assert_eq!(costs(vec![], vec![]), same(1));
    // For the subject: each requirement, and every four of its values.
    let eight = Operator::NotIn((0..8).map(|n| n.to_string().into()).collect());
    assert_eq!(costs(vec![requirement(eight), requirement(Operator::Exists)], vec![]), same(1 + (4 + 2) + 4));
    // A rule in both families.
    assert_eq!(costs(vec![], vec![rule(Peers::Any, Ports::Any)]), same(1 + 2 * 2));
    assert_eq!(
        costs(vec![], vec![rule(Peers::Any, Ports::Any), rule(Peers::Any, Ports::Any)]),
        same(1 + 4 + 4)
    );
    let match_all = || Peers::Of(vec![peer(own(), vec![])]);
    assert_eq!(costs(vec![], vec![rule(match_all(), Ports::Any)]), same(1 + 4 + 8));
    // Two peers and two blocks, for three protocols with a port each.
    let mut peers = vec![
        peer(own(), vec![requirement(Operator::DoesNotExist)]),
        peer(labelled(), vec![requirement(Operator::Exists)]),
    ];
    peers.extend(blocks(2));
    let ports = Ports::Of(vec![single(80), Port::All(Sctp), Port::Range(Udp, PortRange::single(53))]);
    let (of_peers, of_rules) = ((8 + 4) + (8 + 4 + 4), 4 * 3 * 2);
    assert_eq!(
        costs(vec![], vec![rule(Peers::Of(peers), ports)]),
        same(1 + 3 + of_rules + of_peers + 2 + 2 * 3)
    );
    // Of many pairs of a block and a port, only as many count as can become entries.
    let many = rule(Peers::Of(blocks(20)), Ports::Of(vec![single(80)]));
    assert_eq!(costs(vec![], vec![many]), same(1 + 1 + 4 + 20 + 16));
    // For ingress, names become numbers. For egress, each name is a rule with a copy of all peers.
    let ports = Ports::Of(vec![by_name("http"), by_name("admin"), single(80)]);
    let mut peers = vec![peer(own(), vec![])];
    peers.extend(blocks(1));
    let merged = 1 + 4 * 2 + 8 + 1 + 1;
    assert_eq!(
        costs(vec![], vec![rule(Peers::Of(peers), ports)]),
        [1 + merged + 2, 1 + merged + 2 * (4 + 8 + 8 + 64)]
    );
}

#[test]
fn sets_are_counted_once_for_each_family_that_needs_them() {
    use crate::model::Protocol::{Tcp, Udp};
    use crate::policy::program::{Action, Chosen, Selection, Tier};
    let cost = |rules: Vec<(Option<&str>, &[&str], PortMatch)>| {
        let rule = |(pods, nets, ports): (Option<&str>, &[&str], PortMatch)| {
            let block = |net: &&str| {
                let (net, except) =
                    net.split_once(" but ").map_or((*net, None), |(net, not)| (net, Some(not)));
                let except = except.into_iter().map(|except| except.parse().unwrap());
                IpBlock::new(net.parse().unwrap(), except).unwrap()
            };
            let pods = pods.map(|app| {
                let pods = LabelSelector::new([Requirement::equals("app", app)]);
                Arc::new(Selection::new(Chosen::Pods(vec![PodPeer { scope: Scope::Own("a".into()), pods }])))
            });
            let blocks = nets.iter().map(block).collect();
            Rule { peers: PeerMatch::Of { pods, blocks }, ports, action: Action::Allow }
        };
        let tiers = vec![Tier { rules: rules.into_iter().map(rule).collect() }];
        let program = Arc::new(Program { tiers, default: Action::Deny, digest: String::new() });
        let Cost { units, sets } = of_programs([&program, &program.clone()]);
        (units, sets)
    };
    let ranges = |protocol, ranges: &[(u16, u16)]| {
        let range = |(first, last): &(u16, u16)| (protocol, PortRange::new(*first, *last).unwrap());
        PortMatch::Of(ranges.iter().map(range).collect())
    };
    let pods = |app| (Some(app), &[][..], PortMatch::Any);
    assert_eq!(cost(vec![]), (0, 0));
    assert_eq!(cost(vec![pods("x"), pods("y"), pods("x")]), (0, 2 * 2));
    // One block alone needs no set. Several need one in each of their families, and so does one with excepts, which may
    // be a set themselves.
    let nets = |nets: &'static [&'static str]| (None, nets, PortMatch::Any);
    assert_eq!(cost(vec![nets(&["10.0.0.0/8"])]), (0, 0));
    assert_eq!(cost(vec![nets(&["10.0.0.0/8", "192.0.2.0/24"])]), (0, 1));
    assert_eq!(
        cost(vec![nets(&["10.0.0.0/8", "2001:db8::/32"]), nets(&["10.0.0.0/8", "192.0.2.0/24"])]),
        (0, 2 + 1)
    );
    assert_eq!(cost(vec![nets(&["10.0.0.0/8 but 10.1.0.0/16"])]), (0, 1 + 1));
    assert_eq!(cost(vec![nets(&["10.0.0.0/8 but 10.1.0.0/16", "192.0.2.0/24"])]), (0, 1 + 1));
    // Ports become a set if a rule has no room for them: it has room for fifteen numbers, or seven ranges and a number.
    let match_all = |ports| (None, &[][..], ports);
    let singles = |count: u16| (0..count).map(|at| (10 * at, 10 * at)).collect::<Vec<_>>();
    let wide = |count: u16| (0..count).map(|at| (10 * at, 10 * at + 2)).collect::<Vec<_>>();
    assert_eq!(cost(vec![match_all(ranges(Tcp, &singles(15)))]), (0, 0));
    assert_eq!(cost(vec![match_all(ranges(Tcp, &singles(16)))]), (2 * 16, 2));
    assert_eq!(cost(vec![match_all(ranges(Tcp, &[wide(7), vec![(100, 100)]].concat()))]), (0, 0));
    assert_eq!(cost(vec![match_all(ranges(Tcp, &wide(8)))]), (2 * 8 * 3, 2));
    // Two protocols share the same set.
    let both = [match_all(ranges(Tcp, &singles(16))), match_all(ranges(Udp, &singles(16)))];
    assert_eq!(cost(both.into()), (2 * 16, 2));
}
