//! Pods that are not isolated, cannot ask DNS, or are allowed on one side only.

use std::{rc::Rc, sync::Arc};

use super::{About, Code, Part, Place, Search, rules::allows_everything};
use crate::{
    model::{
        Direction, Endpoint, Flow, LabelSelector, NetworkPolicy, Peer, Peers, Pod, PodPeer, PolicyRule, Port,
        Ports, Protocol, Scope, Standing, Transport,
    },
    policy::evaluate,
};

/// The namespace in which DNS runs.
const DNS_NAMESPACE: &str = "kube-system";

/// How many peers of a rule are checked for both sides.
const PEERS: usize = 50;

/// How many pods stand for a peer, and for the pods of a policy.
const STAND_INS: usize = 4;

/// How many ports of a rule are checked for both sides.
const TRANSPORTS: usize = 5;

/// The policies of a namespace.
#[derive(Debug, Default)]
pub(super) struct OfNamespace {
    /// Those that isolate for ingress.
    ingress: Vec<Arc<NetworkPolicy>>,
    /// Those that isolate for egress, and what they allow of DNS.
    egress: Vec<Egress>,
    /// Those that allow everything for ingress, and for egress.
    allow_all: [Vec<Arc<NetworkPolicy>>; 2],
}

/// A policy that isolates for egress.
#[derive(Debug)]
struct Egress {
    policy: Arc<NetworkPolicy>,
    udp: bool,
    tcp: bool,
}

impl OfNamespace {
    /// The policies that allow everything in a direction.
    pub(super) fn allow_all(&self, direction: Direction) -> &[Arc<NetworkPolicy>] {
        let [ingress, egress] = &self.allow_all;
        match direction {
            Direction::Ingress => ingress,
            Direction::Egress => egress,
        }
    }

    fn isolates(&self, direction: Direction, pod: &Pod) -> bool {
        match direction {
            Direction::Ingress => self.ingress.iter().any(|policy| policy.subject.matches(&pod.labels)),
            Direction::Egress => self.egress.iter().any(|one| one.policy.subject.matches(&pod.labels)),
        }
    }
}

impl Search<'_> {
    /// The policies of a namespace.
    pub(super) fn of_namespace(&mut self, namespace: &Arc<str>) -> Rc<OfNamespace> {
        if let Some(known) = self.of_namespace.get(namespace) {
            return known.clone();
        }
        let mut of_namespace = OfNamespace::default();
        let [all_ingress, all_egress] = &mut of_namespace.allow_all;
        for policy in self.cluster.policies_in(namespace) {
            let everything = |rules: &[PolicyRule]| rules.iter().any(allows_everything);
            if let Some(rules) = policy.rules(Direction::Ingress) {
                of_namespace.ingress.push(policy.clone());
                all_ingress.extend(everything(rules).then(|| policy.clone()));
            }
            if let Some(rules) = policy.rules(Direction::Egress) {
                all_egress.extend(everything(rules).then(|| policy.clone()));
                let allows = |protocol| {
                    let rule =
                        |rule: &PolicyRule| has_dns(&rule.ports, protocol) && self.may_be_dns(&rule.peers);
                    // A refused or too large policy allows nothing, whatever it says.
                    policy.standing == Standing::Accepted && rules.iter().any(rule)
                };
                let (udp, tcp) = (allows(Protocol::Udp), allows(Protocol::Tcp));
                of_namespace.egress.push(Egress { policy: policy.clone(), udp, tcp });
            }
        }
        let of_namespace = Rc::new(of_namespace);
        self.of_namespace.insert(namespace.clone(), of_namespace.clone());
        of_namespace
    }

    /// What a policy forgets.
    pub(super) fn coverage(&mut self, policy: &NetworkPolicy) {
        self.dns(policy);
        for direction in Direction::BOTH {
            for (rule, one) in policy.rules(direction).unwrap_or_default().iter().enumerate() {
                let Peers::Of(peers) = &one.peers else { continue };
                for (at, peer) in peers.iter().enumerate().take(PEERS) {
                    if let Peer::Pods(peer) = peer {
                        let place = Place::Peer(direction, rule, at, Part::Whole);
                        self.other_side(policy, direction, peer, &one.ports, place);
                    }
                }
            }
        }
    }

    fn dns(&mut self, policy: &NetworkPolicy) {
        let rules = policy.rules(Direction::Egress).unwrap_or_default();
        if rules.is_empty() || rules.iter().any(allows_everything) {
            return;
        }
        let of_namespace = self.of_namespace(&policy.key.namespace);
        let matches = self.index.matches(&Scope::Own(policy.key.namespace.clone()), &policy.subject);
        let (mut without, mut tcp_missing) = (None, false);
        let mut check = |pod: Option<&Pod>| {
            let applies = |one: &&Egress| match pod {
                Some(pod) => one.policy.subject.matches(&pod.labels),
                None => one.policy.subject.is_everything() || one.policy.subject == policy.subject,
            };
            let (mut udp, mut tcp, mut first) = (false, false, None);
            for one in of_namespace.egress.iter().filter(applies) {
                udp |= one.udp;
                tcp |= one.tcp;
                if one.policy.rules(Direction::Egress).is_some_and(|rules| !rules.is_empty()) {
                    first.get_or_insert(&one.policy.key);
                }
            }
            // One of several policies for the same pods is enough to report.
            if !udp && first == Some(&policy.key) && without.is_none() {
                without = Some(pod.map(|pod| pod.key.to_string()));
            }
            tcp_missing |= udp && !tcp;
        };
        let is_server = |pod: &Pod| pod.ports.iter().any(|port| port.number == 53);
        if matches.sample.is_empty() {
            check(None);
        }
        for pod in matches.sample.iter().filter(|pod| !is_server(pod)) {
            check(Some(pod));
        }
        if let Some(pod) = without {
            let pods = pod.map_or_else(|| "its pods".to_owned(), |pod| format!("its pods, such as {pod},"));
            let text = format!(
                "{pods} cannot resolve names: no policy for them allows port 53 over UDP and TCP to the cluster's DNS"
            );
            return self.add(policy, Place::Rules(Direction::Egress), Code::NoDns, text);
        }
        let allows_udp =
            rules.iter().position(|rule| has_dns(&rule.ports, Protocol::Udp) && self.may_be_dns(&rule.peers));
        if let Some(rule) = allows_udp.filter(|_| tcp_missing) {
            let text = "DNS needs port 53 over TCP as well, for answers that are too large for UDP";
            self.add(policy, Place::Rule(Direction::Egress, rule), Code::DnsWithoutTcp, text);
        }
    }

    /// Whether the cluster's DNS may be among these peers.
    fn may_be_dns(&self, peers: &Peers) -> bool {
        let Peers::Of(peers) = peers else { return true };
        peers.iter().take(PEERS).any(|peer| match peer {
            // The address of a Service or of a node's cache.
            Peer::Block(_) => true,
            Peer::Pods(PodPeer { scope, pods }) => {
                let names_dns = pods.to_string().contains("dns");
                let in_its_namespace = match scope {
                    Scope::Own(own) => **own == *DNS_NAMESPACE,
                    Scope::Matching(selector) => self.index.namespaces(selector).contains(DNS_NAMESPACE),
                };
                let serves = |pod: &Pod| pod.ports.iter().any(|port| port.number == 53);
                names_dns || in_its_namespace && pods.is_everything() || self.index.any(scope, pods, serves)
            }
        })
    }

    /// Pods that a peer allows, and whose own policies do not.
    fn other_side(
        &mut self,
        policy: &NetworkPolicy,
        direction: Direction,
        peer: &PodPeer,
        ports: &Ports,
        place: Place,
    ) {
        let own = self.index.matches(&Scope::Own(policy.key.namespace.clone()), &policy.subject);
        let peers = self.index.matches(&peer.scope, &peer.pods);
        let (other, code) = match direction {
            Direction::Ingress => (Direction::Egress, Code::ClientEgress),
            Direction::Egress => (Direction::Ingress, Code::ServerIngress),
        };
        let mut denied = None;
        for theirs in peers.sample.iter().take(STAND_INS) {
            if !self.of_namespace(&theirs.key.namespace).isolates(other, theirs) {
                return;
            }
            for ours in own.sample.iter().take(STAND_INS).filter(|ours| ours.key != theirs.key) {
                let (client, server) = match direction {
                    Direction::Ingress => (theirs, ours),
                    Direction::Egress => (ours, theirs),
                };
                for transport in transports(ports, server) {
                    let Some(left) = self.flows.checked_sub(1) else { return };
                    self.flows = left;
                    let (from, to) = (Endpoint::Pod(client.key.clone()), Endpoint::Pod(server.key.clone()));
                    let verdict = evaluate(self.cluster, &Flow { from, to, transport, family: None });
                    let side = verdict.of(other);
                    if side.allowed() {
                        return;
                    }
                    denied.get_or_insert_with(|| {
                        let by = side.isolated_by.first().map(ToString::to_string).unwrap_or_default();
                        (client.key.clone(), server.key.clone(), transport, by)
                    });
                }
            }
        }
        let Some((client, server, transport, by)) = denied else { return };
        let text = match direction {
            Direction::Ingress => format!(
                "{client} is let in here, but not out there: {by} isolates it for egress, and nothing allows {transport} to \
                 {server}"
            ),
            Direction::Egress => format!(
                "{client} is let out here, but not in there: {by} isolates {server} for ingress, and nothing allows \
                 {transport} from {client}"
            ),
        };
        self.add(policy, place, code, text);
    }

    /// Namespaces with pods that no policy isolates for ingress.
    pub(super) fn default_denies(&mut self) {
        let names: Vec<Arc<str>> =
            self.cluster.namespaces().map(|namespace| namespace.name.clone()).collect();
        for name in names.iter().filter(|name| !name.starts_with("kube-")) {
            let of_namespace = self.of_namespace(name);
            if of_namespace.ingress.iter().any(|policy| policy.subject == LabelSelector::everything()) {
                continue;
            }
            let mut open = self.index.classes_in(name).filter(|class| {
                !class.pod.host_network && !of_namespace.isolates(Direction::Ingress, &class.pod)
            });
            let Some(first) = open.next() else { continue };
            let count = first.count + open.map(|class| class.count).sum::<usize>();
            let first = &first.pod.key;
            let text = match count {
                1 => format!(
                    "no policy isolates {first} for ingress: a default deny would isolate every pod of {name}"
                ),
                _ => format!(
                    "no policy isolates {count} pods for ingress, such as {first}: a default deny would isolate every pod \
                     of {name}"
                ),
            };
            let code = Code::NoDefaultDeny;
            self.add_as(code.level(), About::Namespace(name.clone()), Place::Name, code, text);
        }
    }
}

/// Whether a rule's ports include that of DNS.
fn has_dns(ports: &Ports, protocol: Protocol) -> bool {
    match ports {
        Ports::Any => true,
        Ports::Of(ports) => ports.iter().any(|port| match port {
            Port::All(of) => *of == protocol,
            Port::Range(of, range) => *of == protocol && range.contains(53),
            Port::Named(of, name) => *of == protocol && (name.contains("dns") || name.contains("domain")),
        }),
    }
}

/// What a rule allows to a pod: some of it.
fn transports(ports: &Ports, server: &Pod) -> Vec<Transport> {
    let declared = |protocol: Protocol| {
        let port = server.ports.iter().find(|port| port.protocol == protocol);
        Transport::Port(protocol, port.map_or(80, |port| port.number))
    };
    match ports {
        Ports::Any => vec![declared(Protocol::Tcp)],
        Ports::Of(ports) => {
            let of_port = |port: &Port| -> Vec<Transport> {
                match port {
                    Port::All(protocol) => vec![declared(*protocol)],
                    Port::Range(protocol, range) => vec![Transport::Port(*protocol, range.first())],
                    Port::Named(protocol, name) => {
                        let numbers = server.named_port(name, *protocol).into_iter();
                        numbers.map(|number| Transport::Port(*protocol, number)).collect()
                    }
                }
            };
            ports.iter().flat_map(of_port).take(TRANSPORTS).collect()
        }
    }
}
