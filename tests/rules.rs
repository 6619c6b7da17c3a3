//! Packets that no table of flows covers, in the compiled rules: replies, neighbour discovery, tunnels,
//! packets to the node itself, and moments in which a set is not what the chains expect.

#![cfg(test)]

use std::{collections::BTreeSet, net::IpAddr, path::Path, sync::Arc};

use towpath::{
    k8s::manifest::{Options as Reading, load_text},
    model::{Cluster, Family, Protocol, Transport},
    policy::resolve::Resolver,
    ruleset::{
        BuiltIn, Field, Match, Member, PORT_SLOTS, Rule, Ruleset, SetRole, Target,
        compile::{Compiler, DenyAction, Options, Tunnels, compile},
        trace::{Packet, trace},
    },
};

/// `db` is isolated in both directions, and may only be reached by `web` on port 5432 and on many others; `free` is not
/// isolated, and `far` runs on another node.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n1, containers: [{name: db, image: registry.example/db}]}
status:
  phase: Running
  podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]
  hostIPs: [{ip: 192.168.0.1}, {ip: "fd00:77::1"}]
---
apiVersion: v1
kind: Pod
metadata: {name: free, namespace: shop, labels: {app: free}}
spec: {nodeName: n1, containers: [{name: free, image: registry.example/free}]}
status:
  phase: Running
  podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]
  hostIPs: [{ip: 192.168.0.1}, {ip: "fd00:77::1"}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop}
spec: {nodeName: n2, containers: [{name: far, image: registry.example/far}]}
status:
  phase: Running
  podIPs: [{ip: 10.0.1.1}, {ip: "fd00::1:1"}]
  hostIPs: [{ip: 192.168.0.2}, {ip: "fd00:77::2"}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress:
    - ports: [{port: 5432}, {port: 1}, {port: 3}, {port: 5}, {port: 7}, {port: 9}, {port: 11}, {port: 13}, {port: 15}, {port: 17, endPort: 18}, {port: 20, endPort: 21}, {port: 23, endPort: 24}]
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{protocol: UDP, port: 53}]
"#;

const DB: [&str; 2] = ["10.0.0.1", "fd00::1"];
const FREE: [&str; 2] = ["10.0.0.2", "fd00::2"];
const FAR: [&str; 2] = ["10.0.1.1", "fd00::1:1"];
const OUTSIDE: [&str; 2] = ["203.0.113.9", "2001:db8::9"];
const OWN_NODE: [&str; 2] = ["192.168.0.1", "fd00:77::1"];
const OTHER_NODE: [&str; 2] = ["192.168.0.2", "fd00:77::2"];
const TCP_80: Transport = Transport::Port(Protocol::Tcp, 80);

fn rules(options: &Options) -> Ruleset {
    let cluster = cluster();
    compile(&Resolver::of("n1", &cluster).resolve(&cluster), options)
}

fn cluster() -> Cluster {
    let loaded = load_text(Path::new("objects.yaml"), OBJECTS, Reading::default());
    assert!(loaded.faults.is_empty(), "{:?}", loaded.faults);
    loaded.cluster()
}

/// The same packet in both families.
fn packets(from: [&str; 2], to: [&str; 2], transport: Transport) -> [Packet; 2] {
    let parse = |text: &str| -> IpAddr { text.parse().unwrap() };
    [0, 1].map(|family| Packet::new(parse(from[family]), parse(to[family]), transport))
}

#[track_caller]
fn assert_passes(rules: &Ruleset, packets: impl IntoIterator<Item = Packet>, expected: bool) {
    for packet in packets {
        let trace = trace(rules.table(Family::of(packet.source)), &packet);
        assert_eq!(trace.passed, expected, "{packet:?}: {trace:#?}");
    }
}

#[test]
fn both_built_in_chains_jump_to_ours_in_both_families() {
    let rules = rules(&Options::default());
    for table in [&rules.v4, &rules.v6] {
        for at in BuiltIn::ALL {
            assert!(table.chains.contains_key(&table.hooks[&at]), "{}", at.name());
        }
    }
}

#[test]
fn replies_and_errors_pass_isolation_and_first_packets_do_not() {
    let rules = rules(&Options { enforce_pod_to_node: true, ..Options::default() });
    for transport in [TCP_80, Transport::Other(1), Transport::Other(58)] {
        for (from, to) in [(OUTSIDE, DB), (DB, OUTSIDE), (DB, FREE)] {
            let first = packets(from, to, transport);
            assert_passes(&rules, first, false);
            assert_passes(&rules, first.map(|packet| Packet { established: true, ..packet }), true);
        }
        let to_node = packets(DB, OWN_NODE, transport).map(|packet| Packet { at: BuiltIn::Input, ..packet });
        assert_passes(&rules, to_node, false);
        assert_passes(&rules, to_node.map(|packet| Packet { established: true, ..packet }), true);
    }
}

#[test]
fn neighbour_and_router_discovery_passes_on_link_only_and_ping_obeys_policy() {
    let rules = rules(&Options { enforce_pod_to_node: true, ..Options::default() });
    let [_, packet] = packets(OUTSIDE, DB, Transport::Other(58));
    let [_, to_node] = packets(DB, OWN_NODE, Transport::Other(58));
    let to_node = Packet { at: BuiltIn::Input, ..to_node };
    let group: IpAddr = "ff02::16".parse().unwrap();
    for kind in 0..=255 {
        let (any_length, short, listener) =
            (matches!(kind, 134 | 137), matches!(kind, 133 | 135 | 136), matches!(kind, 130..=132 | 143));
        for packet in [packet, to_node] {
            let of = |hop_limit, length, destination| {
                [Packet { icmpv6_type: Some(kind), hop_limit, length, destination, ..packet }]
            };
            let there = packet.destination;
            assert_passes(&rules, of(255, 72, there), any_length || short);
            assert_passes(&rules, of(255, 1200, there), any_length);
            // A router has forwarded these, or they are not for the link.
            assert_passes(&rules, of(254, 72, there), false);
            assert_passes(&rules, of(1, 72, there), false);
            assert_passes(&rules, of(1, 72, group), listener);
        }
    }
}

#[test]
fn pods_send_tunnel_packets_only_to_pods_and_nodes_accept_them_only_from_peers() {
    let resolved = Resolver::of("n1", &cluster()).resolve(&cluster());
    let mut compiler = Compiler::new(Options::default());
    let tunnels = Tunnels {
        vxlan: [8472, 4790].into(),
        others: [6081].into(),
        protocols: [47].into(),
        ends: OUTSIDE.map(|end| end.parse().unwrap()).into(),
    };
    compiler.set_tunnels(tunnels);
    let rules = compiler.compile(&resolved);
    let udp = |port| Transport::Port(Protocol::Udp, port);
    let input = |from, to, transport| {
        packets(from, to, transport).map(|packet| Packet { at: BuiltIn::Input, ..packet })
    };
    for transport in [udp(8472), udp(4790), udp(6081), Transport::Other(47)] {
        assert_passes(&rules, packets(FREE, OUTSIDE, transport), false);
        assert_passes(&rules, packets(FREE, OTHER_NODE, transport), false);
        assert_passes(&rules, packets(FREE, FAR, transport), true);
        assert_passes(&rules, input(FREE, OWN_NODE, transport), false);
        assert_passes(&rules, input(OTHER_NODE, OWN_NODE, transport), true);
        // The node forwards to this host, so it accepts packets from there.
        assert_passes(&rules, input(OUTSIDE, OWN_NODE, transport), true);
    }
    for port in [8472, 4790] {
        assert_passes(&rules, input(FAR, OWN_NODE, udp(port)), false);
    }
    assert_passes(&rules, input(FAR, OWN_NODE, udp(6081)), true);
}

#[test]
fn pods_cannot_send_tunnel_packets_to_nodes() {
    let rules = rules(&Options { vxlan_port: 4789, ..Options::default() });
    let udp = |port| Transport::Port(Protocol::Udp, port);
    for transport in [udp(4789), Transport::Other(4), Transport::Other(41)] {
        assert_passes(&rules, packets(FREE, OTHER_NODE, transport), false);
        assert_passes(&rules, packets(OUTSIDE, OTHER_NODE, transport), true);
        let input = packets(FREE, OWN_NODE, transport).map(|packet| Packet { at: BuiltIn::Input, ..packet });
        assert_passes(&rules, input, false);
        let input =
            packets(OTHER_NODE, OWN_NODE, transport).map(|packet| Packet { at: BuiltIn::Input, ..packet });
        assert_passes(&rules, input, true);
    }
    for transport in
        [udp(4788), udp(4790), udp(8472), Transport::Port(Protocol::Tcp, 4789), Transport::Other(47)]
    {
        assert_passes(&rules, packets(FREE, OTHER_NODE, transport), true);
        let input = packets(FREE, OWN_NODE, transport).map(|packet| Packet { at: BuiltIn::Input, ..packet });
        assert_passes(&rules, input, true);
    }
}

#[test]
fn egress_policy_applies_to_the_own_node_only_with_the_option() {
    for (enforce_pod_to_node, passes) in [(false, true), (true, false)] {
        let rules = rules(&Options { enforce_pod_to_node, ..Options::default() });
        let input = packets(DB, OWN_NODE, TCP_80).map(|packet| Packet { at: BuiltIn::Input, ..packet });
        assert_passes(&rules, input, passes);
        let others = packets(FREE, OWN_NODE, TCP_80).into_iter().chain(packets(OUTSIDE, DB, TCP_80));
        assert_passes(&rules, others.map(|packet| Packet { at: BuiltIn::Input, ..packet }), true);
    }
}

#[test]
fn isolated_pod_without_a_chain_is_closed() {
    let mut rules = rules(&Options::default());
    for family in Family::BOTH {
        for (name, set) in &mut rules.table_mut(family).sets {
            if matches!(name.role(), SetRole::Isolated(_)) {
                set.members.extend(FREE.map(|address| Member::Address(address.parse().unwrap())));
            }
        }
    }
    assert_passes(&rules, packets(FREE, OUTSIDE, TCP_80), false);
    assert_passes(&rules, packets(OUTSIDE, FREE, TCP_80), false);
}

#[test]
fn denied_packets_are_denied_with_every_action_and_without_counters() {
    for deny in [DenyAction::Drop, DenyAction::Reject] {
        for log_group in [None, Some(100)] {
            let mut rules = rules(&Options { deny, log_group, ..Options::default() });
            for uncounted in [false, true] {
                for family in Family::BOTH.into_iter().filter(|_| uncounted) {
                    for (name, set) in &mut rules.table_mut(family).sets {
                        if name.role() == SetRole::Drops {
                            set.members.clear();
                        }
                    }
                }
                for transport in [TCP_80, Transport::Port(Protocol::Udp, 80), Transport::Other(47)] {
                    assert_passes(&rules, packets(OUTSIDE, DB, transport), false);
                    assert_passes(&rules, packets(DB, OUTSIDE, transport), false);
                }
            }
        }
    }
}

#[test]
fn denied_packets_are_counted_and_logged_for_the_denying_pod() {
    let rules = rules(&Options::default());
    let groups = rules.v4.chains.iter().filter(|(name, _)| name.as_str().starts_with("TP-G"));
    let mut groups_checked = 0;
    for (name, chain) in groups {
        let (own, direction) = match &name.as_str()[..6] {
            "TP-GI-" => (Field::Destination, "ingress"),
            _ => (Field::Source, "egress"),
        };
        let counts = |rule: &&Rule| {
            rule.target == Target::Drop
                && matches!(&*rule.matches, [Match::Set { set, field }] if set.role() == SetRole::Drops && *field == own)
        };
        assert_eq!(chain.rules.iter().filter(counts).count(), 1, "{name}");
        let prefix = |rule: &Rule| match &rule.target {
            Target::Log { prefix, .. } => Some(prefix.clone()),
            _ => None,
        };
        let prefixes: BTreeSet<Arc<str>> = chain.rules.iter().filter_map(prefix).collect();
        assert_eq!(prefixes, [format!("towpath {direction} {} ", &name.as_str()[6..]).into()].into());
        groups_checked += 1;
    }
    assert_eq!(groups_checked, 2);
}

#[test]
fn ports_that_exceed_one_match_are_a_set_with_the_same_meaning() {
    assert_eq!(PORT_SLOTS, 15, "the limit of the kernel's multiport match");
    let allowed = [5432, 1, 3, 5, 7, 9, 11, 13, 15, 17, 18, 20, 21, 23, 24];
    let rules = rules(&Options::default());
    for port in (1..30).chain(5430..5435) {
        for (protocol, passes) in [(Protocol::Tcp, allowed.contains(&port)), (Protocol::Sctp, false)] {
            assert_passes(&rules, packets(OUTSIDE, DB, Transport::Port(protocol, port)), passes);
        }
    }
    for rule in rules.v4.chains.values().flat_map(|chain| &*chain.rules) {
        for m in &rule.matches {
            if let Match::Ports(_, ranges) = m {
                let slots: usize =
                    ranges.iter().map(|range| 1 + usize::from(range.first() < range.last())).sum();
                assert!(slots <= 15, "{rule:?}");
            }
        }
    }
}
