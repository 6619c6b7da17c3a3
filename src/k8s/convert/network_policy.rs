//! The conversion of a NetworkPolicy: its validation, its defaults, and the stand-in for a refused one.

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Conversion, Origin, key, labels, protocol, selector, validate};
use crate::{
    k8s::{
        fault::{Problem, Severity},
        intern::Interner,
        types,
        yaml::path::{FieldPath, PathSegment},
    },
    model::{
        Direction, IpBlock, LabelSelector, NetworkPolicy, Peer, Peers, PodPeer, PolicyRule, Port, PortRange,
        Ports, Scope, Standing,
    },
};

/// A NetworkPolicy, with its defaults applied.
pub fn network_policy(
    object: &types::NetworkPolicy,
    origin: Origin,
    names: &mut Interner,
) -> Conversion<NetworkPolicy> {
    let mut problems = Vec::new();
    let key = key(&object.metadata, names, &mut problems);
    labels(&object.metadata, &mut problems);
    let absent = NetworkPolicySpec::default();
    let spec = object.spec.as_ref().unwrap_or(&absent);
    let at = FieldPath::of(&["spec"]);
    let own = key.as_ref().map_or_else(|| names.string(""), |key| key.namespace.clone());
    let mut reading = Rules { own, origin, names, problems: &mut problems };

    let subject = match &spec.pod_selector {
        None => Some(LabelSelector::everything()),
        Some(pods) => selector(pods, origin, &at.key("podSelector"), reading.names, reading.problems),
    };
    let ingress: Vec<PolicyRule> = spec
        .ingress
        .iter()
        .flatten()
        .enumerate()
        .map(|(index, rule)| {
            let at = at.key("ingress").index(index);
            reading.rule((rule.from.as_deref(), at.key("from")), (rule.ports.as_deref(), at.key("ports")))
        })
        .collect();
    let egress: Vec<PolicyRule> = spec
        .egress
        .iter()
        .flatten()
        .enumerate()
        .map(|(index, rule)| {
            let at = at.key("egress").index(index);
            reading.rule((rule.to.as_deref(), at.key("to")), (rule.ports.as_deref(), at.key("ports")))
        })
        .collect();

    let types = reading.policy_types(spec, &at);
    for (direction, field, rules) in
        [(Direction::Ingress, "ingress", &ingress), (Direction::Egress, "egress", &egress)]
    {
        if !types.isolates(direction) && !rules.is_empty() {
            let text = format!("these rules have no effect: policyTypes does not name {direction}");
            problems.push(Problem::warning(at.key(field), text));
        }
    }
    let policy = key.zip(subject).map(|(key, subject)| NetworkPolicy {
        key,
        subject,
        ingress: types.isolates(Direction::Ingress).then_some(ingress),
        egress: types.isolates(Direction::Egress).then_some(egress),
        standing: Standing::Accepted,
    });
    Conversion { readable: policy, problems }
}

/// Collects items without spare capacity: a policy may have tens of thousands of rules with one peer each.
fn exactly<T>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.shrink_to_fit();
    items
}

/// The stand-in for a policy that was refused for `problems`: it isolates the pods of its podSelector for its
/// policyTypes, and allows nothing.
///
/// If a problem leaves open which directions are meant, it isolates in both. `None` if it is not known which pods are
/// selected: the podSelector, or the name and namespace, are faulty or misplaced.
pub fn stand_in(
    object: &types::NetworkPolicy,
    origin: Origin,
    problems: &[Problem],
    names: &mut Interner,
) -> Option<NetworkPolicy> {
    let errors =
        || problems.iter().filter(|problem| problem.severity == Severity::Error).map(|problem| &problem.path);
    if errors().any(hides_subject) {
        return None;
    }
    let mut ignored = Vec::new();
    let key = key(&object.metadata, names, &mut ignored)?;
    let absent = NetworkPolicySpec::default();
    let spec = object.spec.as_ref().unwrap_or(&absent);
    let subject = match &spec.pod_selector {
        None => LabelSelector::everything(),
        Some(pods) => selector(pods, origin, &FieldPath::of(&["spec", "podSelector"]), names, &mut ignored)?,
    };
    let types = if errors().any(hides_directions) {
        Types { ingress: true, egress: true }
    } else {
        let mut types = Rules { own: key.namespace.clone(), origin, names, problems: &mut ignored }
            .policy_types(spec, &FieldPath::of(&["spec"]));
        // Rules that could not be read are still rules, and so make the policy one for egress.
        let by_default = spec.policy_types.as_deref().unwrap_or_default().is_empty();
        types.egress |= by_default && errors().any(|path| path.is_within(&["spec", "egress"]));
        types
    };
    Some(NetworkPolicy {
        key,
        subject,
        ingress: types.ingress.then(Vec::new),
        egress: types.egress.then(Vec::new),
        standing: Standing::Refused,
    })
}

/// Whether a fault at `path` makes it unknown which pods the policy selects.
fn hides_subject(path: &FieldPath) -> bool {
    let misplaced = |key: &str| {
        let key = key.to_ascii_lowercase();
        ["podselector", "matchlabels", "matchexpressions", "spec", "metadata", "namespace", "name"]
            .contains(&&*key)
    };
    match path.steps() {
        [] => true,
        [PathSegment::Key(field)] => misplaced(field),
        [PathSegment::Key(spec), PathSegment::Key(field), ..] if **spec == *"spec" => misplaced(field),
        [PathSegment::Key(metadata), PathSegment::Key(field), ..] if **metadata == *"metadata" => {
            misplaced(field)
        }
        _ => false,
    }
}

/// Whether a fault at `path` may hide an intended policyTypes, ingress or egress.
fn hides_directions(path: &FieldPath) -> bool {
    match path.steps() {
        [PathSegment::Key(_)] => true,
        [PathSegment::Key(spec), PathSegment::Key(field), rest @ ..] if **spec == *"spec" => match &**field {
            "policyTypes" => true,
            "ingress" | "egress" => false,
            _ => rest.is_empty(),
        },
        _ => false,
    }
}

/// The directions in which a policy isolates.
#[derive(Clone, Copy)]
struct Types {
    ingress: bool,
    egress: bool,
}

impl Types {
    fn isolates(self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// Reads the rules of one policy.
struct Rules<'r> {
    own: std::sync::Arc<str>,
    origin: Origin,
    names: &'r mut Interner,
    problems: &'r mut Vec<Problem>,
}

impl Rules<'_> {
    fn refuse(&mut self, at: FieldPath, text: impl Into<String>) {
        self.problems.push(Problem::error(at, text));
    }

    /// Refuses a field with a text that continues its name.
    fn refuse_field(&mut self, at: FieldPath, text: &str) {
        self.problems.push(Problem::of_field(at, text));
    }

    /// "If this field is not specified, it will default based on the existence of ingress or egress rules; policies
    /// that contain an egress section are assumed to affect egress, and all policies (whether or not they contain an
    /// ingress section) are assumed to affect ingress." An empty egress section counts as none, as the API server
    /// defaults it.
    fn policy_types(&mut self, spec: &NetworkPolicySpec, at: &FieldPath) -> Types {
        let named = spec.policy_types.as_deref().unwrap_or_default();
        if named.is_empty() {
            return Types {
                ingress: true,
                egress: spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
            };
        }
        let at = at.key("policyTypes");
        if named.len() > 2 {
            self.refuse_field(at.clone(), "has more than two items");
        }
        for (index, name) in named.iter().enumerate() {
            if !matches!(name.as_str(), "Ingress" | "Egress") {
                let text = format!("{name:?} is no policy type: Ingress or Egress, spelt like this");
                self.refuse(at.index(index), text);
            }
        }
        let has = |name: &str| named.iter().any(|named| named == name);
        Types { ingress: has("Ingress"), egress: has("Egress") }
    }

    fn rule(
        &mut self,
        (peers, peers_at): (Option<&[NetworkPolicyPeer]>, FieldPath),
        (ports, ports_at): (Option<&[NetworkPolicyPort]>, FieldPath),
    ) -> PolicyRule {
        let peers = match peers {
            None | Some([]) => Peers::Any,
            Some(peers) => {
                let peers = peers.iter().enumerate();
                Peers::Of(exactly(peers.filter_map(|(index, peer)| self.peer(peer, &peers_at.index(index)))))
            }
        };
        let ports = match ports {
            None | Some([]) => Ports::Any,
            Some(ports) => {
                let ports = ports.iter().enumerate();
                Ports::Of(exactly(ports.filter_map(|(index, port)| self.port(port, &ports_at.index(index)))))
            }
        };
        PolicyRule { peers, ports }
    }

    fn peer(&mut self, peer: &NetworkPolicyPeer, at: &FieldPath) -> Option<Peer> {
        let pods = peer.pod_selector.as_ref().map(|pods| {
            let at = at.key("podSelector");
            selector(pods, self.origin, &at, self.names, self.problems)
        });
        let namespaces = peer.namespace_selector.as_ref().map(|namespaces| {
            let at = at.key("namespaceSelector");
            selector(namespaces, self.origin, &at, self.names, self.problems)
        });
        let block = peer.ip_block.as_ref().map(|block| self.block(block, &at.key("ipBlock")));
        match (pods, namespaces, block) {
            (None, None, None) => {
                let text = "is empty: a peer needs podSelector, namespaceSelector or ipBlock; for every source or \
                            destination, leave the whole list out";
                self.refuse_field(at.clone(), text);
                None
            }
            (None, None, Some(block)) => Some(Peer::Block(block?)),
            (_, _, Some(_)) => {
                let text = "must stand alone in its peer: podSelector and namespaceSelector make a peer of their own";
                self.refuse_field(at.key("ipBlock"), text);
                None
            }
            (pods, namespaces, None) => {
                let scope = match namespaces {
                    None => Scope::Own(self.own.clone()),
                    Some(namespaces) => Scope::Matching(namespaces?),
                };
                let pods = pods.unwrap_or_else(|| Some(LabelSelector::everything()))?;
                Some(Peer::Pods(PodPeer { scope, pods }))
            }
        }
    }

    fn block(&mut self, block: &IPBlock, at: &FieldPath) -> Option<IpBlock> {
        let cidr = if block.cidr.is_empty() {
            self.refuse_field(at.key("cidr"), "is missing");
            None
        } else {
            self.cidr(&block.cidr, &at.key("cidr"))
        };
        let mut excepts = Some(Vec::new());
        for (index, except) in block.except.iter().flatten().enumerate() {
            let net = self.cidr(except, &at.key("except").index(index));
            excepts = excepts.zip(net).map(|(mut nets, net)| {
                nets.push(net);
                nets
            });
        }
        IpBlock::new(cidr?, excepts?)
            .map_err(|error| self.refuse(at.key("except").index(error.index), error.to_string()))
            .ok()
    }

    fn cidr(&mut self, text: &str, at: &FieldPath) -> Option<IpNet> {
        match validate::cidr(text) {
            Ok(net) => {
                if net.trunc() != net {
                    let text = format!("{text:?} has host bits set and means {}: write that", net.trunc());
                    self.problems.push(Problem::warning(at.clone(), text));
                }
                Some(net)
            }
            Err(error) => {
                self.refuse(at.clone(), error.to_string());
                None
            }
        }
    }

    fn port(&mut self, port: &NetworkPolicyPort, at: &FieldPath) -> Option<Port> {
        let protocol = protocol(port.protocol.as_deref(), || at.clone(), self.problems);
        match (&port.port, port.end_port) {
            (None, None) => Some(Port::All(protocol?)),
            (None, Some(_)) => {
                self.refuse_field(
                    at.key("endPort"),
                    "needs a port: it is the end of the range that port begins",
                );
                None
            }
            (Some(IntOrString::String(name)), end) => {
                if end.is_some() {
                    self.refuse_field(at.key("endPort"), "needs a port that is a number, not a name");
                }
                match validate::port_name(name) {
                    Ok(()) if end.is_none() => Some(Port::Named(protocol?, self.names.string(name))),
                    Ok(()) => None,
                    Err(error) => {
                        self.refuse(at.key("port"), error.to_string());
                        None
                    }
                }
            }
            (Some(IntOrString::Int(first)), end) => {
                let first = self.number(*first, &at.key("port"));
                let last = end.map_or(first, |last| self.number(last, &at.key("endPort")));
                let (first, last) = first.zip(last)?;
                let Some(range) = PortRange::new(first, last) else {
                    self.refuse(
                        at.key("endPort"),
                        format!("endPort {last} is less than port, which is {first}"),
                    );
                    return None;
                };
                Some(Port::Range(protocol?, range))
            }
        }
    }

    fn number(&mut self, number: i32, at: &FieldPath) -> Option<u16> {
        validate::port_number(number).map_err(|error| self.refuse(at.clone(), error.to_string())).ok()
    }
}
