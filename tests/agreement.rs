//! The evaluator and the compiled rules agree: for random clusters and every flow in them, the verdict of [`evaluate`]
//! is what the compiled rules of the nodes on its path do with its first packet.
//!
//! `TOWPATH_SEED` sets the first seed, `TOWPATH_FLOWS` the number of flows to test (`make soak-flows`).

#![cfg(test)]

use std::net::IpAddr;

use towpath::{
    lab::random::{Generator, NODES, Shape, Stack, cluster_of, externals, transports},
    model::{
        Change, Cluster, Endpoint, Family, Flow, LabelSelector, NetworkPolicy, ObjectKey, Peers, PolicyRule,
        Ports, Protocol, Standing, Transport,
    },
    policy::{
        budget::Budgets,
        evaluate,
        resolve::{Resolved, Resolver},
    },
    ruleset::{
        ChainName, Match, Ruleset, SetKind, SetName,
        compile::{Options, compile},
        trace::{Packet, trace},
    },
};

#[path = "support/env.rs"]
mod env;
#[path = "support/packet_path.rs"]
mod packet_path;

use env::number;
use packet_path::passes;

const FLOWS_IN_CI: usize = 200_000;

/// Without budgets, which the standard does not have.
fn resolve(node: &str, cluster: &Cluster) -> Resolved {
    Resolver::of(node, cluster).with_budgets(Budgets::UNLIMITED).resolve(cluster)
}

/// How many tables have rules that match many addresses or ports at once.
#[derive(Debug, Default)]
struct Forms {
    excepts: usize,
    ports: usize,
}

impl Forms {
    fn note(&mut self, ruleset: &Ruleset) {
        for table in Family::BOTH.map(|family| ruleset.table(family)) {
            let any = |holds: &dyn Fn(&Match) -> bool| {
                let rules = table.chains.values().flat_map(|chain| &*chain.rules);
                usize::from(rules.flat_map(|rule| &rule.matches).any(holds))
            };
            let with_ports = |set: &SetName| table.sets[set].kind == SetKind::NetworkEndpoints;
            self.excepts += any(&|m| matches!(m, Match::NotInSet { .. }));
            self.ports += any(&|m| m.set().is_some_and(with_ports));
        }
    }
}

#[test]
fn evaluator_and_compiled_rules_agree_on_every_flow() {
    let (first_seed, wanted) = (number("TOWPATH_SEED", 1), number("TOWPATH_FLOWS", FLOWS_IN_CI));
    let (mut flows, mut allowed, mut clusters, mut shared) = (0, 0, 0, 0);
    let mut forms = Forms::default();
    for seed in first_seed.. {
        if flows >= wanted {
            break;
        }
        let stack = [Stack::V4, Stack::V6, Stack::Dual][seed % 3];
        let shape = Shape { stack, namespaces: 4, pods: 4, policies: 8, oddities: seed % 4 != 0 };
        let seed = u64::try_from(seed).unwrap();
        let mut generator = Generator::new(seed, shape);
        let mut cluster = cluster_of(generator.cluster());
        // Every third cluster has policies that no person would write, which are compiled differently.
        let hostile = if seed / 3 % 3 == 1 { 1 + generator.random().below(2) } else { 0 };
        for index in 0..hostile {
            let namespaces: Vec<_> = cluster.pods().map(|pod| pod.key.namespace.clone()).collect();
            let namespace = generator.random().pick(&namespaces).clone();
            cluster.apply(Change::SetPolicy(generator.hostile_policy(&namespace, 20 + index)));
        }
        clusters += 1;
        let options = Options::default();
        let rulesets: Vec<(&str, Ruleset)> =
            NODES.iter().map(|node| (*node, compile(&resolve(node, &cluster), &options))).collect();
        let is_shared = |name: &&ChainName| name.as_str().starts_with("TP-S");
        shared += rulesets
            .iter()
            .filter(|(_, ruleset)| {
                ruleset.v4.chains.keys().chain(ruleset.v6.chains.keys()).any(|n| is_shared(&n))
            })
            .count();
        for (_, ruleset) in &rulesets {
            forms.note(ruleset);
        }
        let mut ends: Vec<IpAddr> = cluster.pods().flat_map(|pod| pod.addresses.iter().copied()).collect();
        ends.extend(externals(stack));
        ends.extend(cluster.node_addresses());
        ends.sort_unstable();
        ends.dedup();
        for (from, to) in ends.iter().flat_map(|from| ends.iter().map(move |to| (*from, *to))) {
            if Family::of(from) != Family::of(to) {
                continue;
            }
            for transport in transports() {
                let flow = Flow {
                    from: Endpoint::Address(from),
                    to: Endpoint::Address(to),
                    transport,
                    family: None,
                };
                let verdict = evaluate(&cluster, &flow);
                flows += 1;
                allowed += usize::from(verdict.allowed());
                assert_eq!(
                    passes(&cluster, &rulesets, from, to, transport),
                    verdict.allowed(),
                    "seed {seed}: {from} -> {to} {transport}: {verdict:#?}\n{:#?}",
                    cluster.policies().collect::<Vec<_>>()
                );
            }
        }
    }
    println!(
        "{flows} flows of {clusters} clusters agree, {allowed} of them allowed; {shared} nodes with a shared address; \
         {forms:?}"
    );
    assert!(shared > 10, "too few addresses belong to two isolated pods of one node");
    assert!(forms.excepts > 10 && forms.ports > 10, "too few rules of each form: {forms:?}");
    assert!(allowed > flows / 20 && allowed < flows * 19 / 20, "too many or too few flows are allowed");
}

/// On a bridge pods can be reached by addresses that belong to no host. Policies do not mention them, so they must not
/// bypass one; and where no pod is isolated they do not matter.
#[test]
fn broadcast_multicast_and_link_local_do_not_bypass_isolation() {
    let shape = Shape { stack: Stack::V4, namespaces: 1, pods: 3, policies: 0, oddities: false };
    let mut changes = Generator::new(1, shape).cluster();
    let passes = |changes: &[Change], from: &str, to: &str| {
        let cluster = cluster_of(changes.to_vec());
        let ends: [IpAddr; 2] = [from, to].map(|address| address.parse().unwrap());
        let packet = Packet::new(ends[0], ends[1], Transport::Port(Protocol::Udp, 53));
        NODES.iter().all(|node| {
            let ruleset = compile(&resolve(node, &cluster), &Options::default());
            trace(ruleset.table(Family::of(ends[0])), &packet).passed
        })
    };
    let pairs = [
        ("10.244.1.9", "255.255.255.255"),
        ("10.244.1.9", "224.0.0.251"),
        ("fe80::1", "fe80::2"),
        ("fd00:10:244:1::9", "fe80::2"),
        ("fe80::1", "ff02::fb"),
    ];
    for (from, to) in pairs {
        assert!(passes(&changes, from, to), "{from} -> {to}: no pod is isolated");
    }
    changes.push(Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new("x", "deny"),
        subject: LabelSelector::everything(),
        ingress: Some(Vec::new()),
        egress: None,
        standing: Standing::Accepted,
    }));
    for (from, to) in pairs {
        assert!(!passes(&changes, from, to), "{from} -> {to}: pods are isolated");
    }
}

/// `from: []` means every peer, and is read so. A rule whose list of peers is empty must not be compiled to that.
#[test]
fn rule_with_an_empty_list_of_peers_admits_no_peer() {
    let shape = Shape { stack: Stack::Dual, namespaces: 1, pods: 4, policies: 0, oddities: false };
    let mut changes = Generator::new(3, shape).cluster();
    let rule = PolicyRule { peers: Peers::Of(Vec::new()), ports: Ports::Any };
    changes.push(Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new("x", "no-peers"),
        subject: LabelSelector::everything(),
        ingress: Some(vec![rule]),
        egress: None,
        standing: Standing::Accepted,
    }));
    let cluster = cluster_of(changes);
    let rules = |node| compile(&resolve(node, &cluster), &Options::default());
    let rulesets = NODES.map(|node| (node, rules(node)));
    let pods: Vec<IpAddr> = cluster.pods().flat_map(|pod| pod.addresses.iter().copied()).collect();
    let (from, to) = (externals(Stack::V4)[0], pods.iter().find(|address| address.is_ipv4()).unwrap());
    let transport = Transport::Port(Protocol::Tcp, 80);
    let flow = Flow { from: Endpoint::Address(from), to: Endpoint::Address(*to), transport, family: None };
    assert!(!evaluate(&cluster, &flow).allowed());
    assert!(!passes(&cluster, &rulesets, from, *to, transport));
}
