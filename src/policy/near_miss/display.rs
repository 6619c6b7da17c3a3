//! A near miss in words.

use std::{
    fmt::{self, Write},
    sync::Arc,
};

use super::{
    BlockFault, LabelMiss, Miss, NamespaceFault, NearMiss, PeerMiss, PeerName, PortFault, PortMiss, RuleMiss,
    SelectorFault,
};
use crate::model::{
    ContainerPort, Direction, IpBlock, ObjectKey, Operator, Peer, PodPeer, Port, Scope, Transport,
};

/// How many characters of one selector, list of labels or list of excepts are shown.
const SHOWN: usize = 200;

/// How many failing labels are shown.
const LABELS: usize = 4;

/// What displays, cut after [`SHOWN`] characters and without control characters: whoever writes a policy or labels a pod
/// decides what they contain.
pub(crate) struct Short<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for Short<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cut = Cut { to: f, left: SHOWN, ended_early: false };
        // An error means that the rest is not shown, or that `f` failed, which the next line repeats.
        let _ = write!(cut, "{}", self.0);
        if cut.ended_early { f.write_str("...") } else { Ok(()) }
    }
}

struct Cut<'c, 'f> {
    to: &'c mut fmt::Formatter<'f>,
    left: usize,
    ended_early: bool,
}

impl Write for Cut<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let Some(left) = self.left.checked_sub(1) else {
                self.ended_early = true;
                return Err(fmt::Error);
            };
            self.left = left;
            if character.is_control() || is_invisible(character) {
                write!(self.to, "{}", character.escape_unicode())?;
            } else {
                self.to.write_char(character)?;
            }
        }
        Ok(())
    }
}

/// Characters that change the direction of text or show nothing.
const fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A list with a separator, of which the last one may be another.
fn listed<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: impl Iterator<Item = T>) -> fmt::Result {
    for (at, item) in items.enumerate() {
        write!(f, "{}{item}", if at == 0 { "" } else { ", " })?;
    }
    Ok(())
}

impl fmt::Display for NearMiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = Short(&self.policy);
        match &self.miss {
            Miss::Rule(rule) => {
                write!(f, "{policy} rule {} allows ", rule.rule)?;
                self.rule(f, rule)
            }
            Miss::Refused => write!(f, "{policy} could not be read, and allows nothing"),
            Miss::TooLarge(_) => write!(f, "{policy} is too large to be kept, and allows nothing"),
            Miss::NoRule => write!(f, "{policy} has no rule, and allows nothing"),
            Miss::NotRead => write!(f, "{policy} has more rules than are looked at here"),
        }?;
        if self.complete { Ok(()) } else { f.write_str(" (of the rules that were looked at)") }
    }
}

impl NearMiss {
    fn rule(&self, f: &mut fmt::Formatter<'_>, rule: &RuleMiss) -> fmt::Result {
        let towards = match self.direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        match (&rule.peer, &rule.port) {
            (Some(peer), port) => {
                write!(f, "{towards} {}", PeerWords { miss: peer, end: &self.peer, pod: &self.pod })?;
                if let Some(port) = port {
                    write!(f, "; and {}", PortWords { miss: port, transport: self.transport })?;
                }
                Ok(())
            }
            (None, Some(port)) => {
                write!(f, "{}, but {}", self.peer, PortWords { miss: port, transport: self.transport })
            }
            (None, None) => write!(f, "{}", self.peer),
        }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) | Self::HostNetwork(key, _) | Self::Finished(key) | Self::Unknown(key) => {
                Short(key).fmt(f)
            }
            Self::Node(address, node) => write!(f, "{address} (node {})", Short(node)),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// The peer that comes nearest, and what it lacks.
struct PeerWords<'m> {
    miss: &'m PeerMiss,
    end: &'m PeerName,
    /// The pod whose policy it is.
    pod: &'m ObjectKey,
}

impl fmt::Display for PeerWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.end;
        match self.miss {
            PeerMiss::Nobody => f.write_str("nobody"),
            PeerMiss::Pods { allowed, fault: SelectorFault::NoPod, .. } => {
                write!(f, "{}; ", PeerText(&Peer::Pods(allowed.clone())))?;
                match end {
                    PeerName::HostNetwork(..) => {
                        write!(f, "{end} is on its node's network, where no selector selects it")
                    }
                    PeerName::Finished(_) => write!(f, "{end} has finished"),
                    PeerName::Unknown(_) => write!(f, "no pod {end} is known"),
                    PeerName::Node(address, node) => {
                        write!(f, "{address} is node {}, and not a pod", Short(node))
                    }
                    PeerName::Address(address) => write!(f, "{address} is not a pod"),
                    // Does not occur: a pod has labels.
                    PeerName::Pod(_) => write!(f, "{end} is not among them"),
                }
            }
            PeerMiss::Pods { allowed, fault: SelectorFault::Labels { pod, labels, namespace }, .. } => {
                write!(f, "{}; ", PeerText(&Peer::Pods(allowed.clone())))?;
                if !labels.is_empty() {
                    write!(f, "{} {}", Short(pod), LabelWords(labels))?;
                }
                let Some(namespace) = namespace else { return Ok(()) };
                if !labels.is_empty() {
                    f.write_str(", and ")?;
                }
                let name = Short(&pod.namespace);
                match namespace {
                    NamespaceFault::Other if labels.is_empty() => write!(f, "{} is in {name}", Short(pod)),
                    NamespaceFault::Other => write!(f, "is in {name}"),
                    NamespaceFault::Unknown => write!(f, "the labels of namespace {name} are not known"),
                    NamespaceFault::Labels(misses) => write!(f, "{name} {}", LabelWords(misses)),
                }
            }
            PeerMiss::Block { block, fault, .. } => match fault {
                BlockFault::Outside(address) => {
                    write!(f, "{}; ", BlockText(block))?;
                    match end {
                        PeerName::Address(_) | PeerName::Node(..) => write!(f, "{end} is not in it"),
                        _ => write!(f, "{end} has {address}"),
                    }
                }
                BlockFault::Except(address, except) => {
                    write!(f, "{} except {except}, which contains {address}", block.cidr())?;
                    match end {
                        PeerName::Address(_) | PeerName::Node(..) => Ok(()),
                        _ => write!(f, " of {end}"),
                    }
                }
                BlockFault::OtherFamily(family) => {
                    write!(f, "{}; this is a flow over {family}", BlockText(block))
                }
                BlockFault::NoAddress => write!(f, "{}; {end} has no address yet", BlockText(block)),
                BlockFault::NoSharedFamily(family) => {
                    write!(f, "{}; {} has no {family} address", BlockText(block), Short(self.pod))
                }
            },
        }
    }
}

/// A block, and how many excepts it has if they are many.
struct BlockText<'b>(&'b IpBlock);

impl fmt::Display for BlockText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Short(self.0).fmt(f)
    }
}

/// `has app=web and no label team`.
struct LabelWords<'m>(&'m [LabelMiss]);

impl fmt::Display for LabelWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("has ")?;
        for (at, LabelMiss { requirement, value, meant }) in self.0.iter().take(LABELS).enumerate() {
            if at > 0 {
                f.write_str(" and ")?;
            }
            let key = Short(&requirement.key);
            match (value, meant) {
                (Some(value), _) if matches!(requirement.operator, Operator::DoesNotExist) => {
                    write!(f, "the label {key}={}", Short(value))?;
                }
                (Some(value), _) => write!(f, "{key}={}", Short(value))?,
                (None, None) => write!(f, "no label {key}")?,
                (None, Some((name, value))) => {
                    write!(f, "no label {key}, but {}={}", Short(name), Short(value))?;
                }
            }
        }
        match self.0.len().checked_sub(LABELS) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, " and {more} more that do not match"),
        }
    }
}

/// A peer: `app=api in shop`, `all pods in namespaces team=a`, `10.0.0.0/8`.
struct PeerText<'p>(&'p Peer);

impl fmt::Display for PeerText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PodPeer { scope, pods } = match self.0 {
            Peer::Block(block) => return BlockText(block).fmt(f),
            Peer::Pods(peer) => peer,
        };
        if pods.is_everything() {
            f.write_str("all pods")?;
        } else {
            Short(pods).fmt(f)?;
        }
        match scope {
            Scope::Own(namespace) => write!(f, " in {}", Short(namespace)),
            Scope::Matching(selector) if selector.is_everything() => f.write_str(" in all namespaces"),
            Scope::Matching(selector) => write!(f, " in namespaces {}", Short(selector)),
        }
    }
}

/// The ports of a rule, and why none of them matches.
struct PortWords<'m> {
    miss: &'m PortMiss,
    transport: Transport,
}

impl fmt::Display for PortWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = self.transport;
        match (&self.miss.fault, transport) {
            (PortFault::WithoutPorts, _) | (_, Transport::Other(_)) => {
                write!(f, "only a rule without ports allows {transport}")
            }
            (PortFault::Number, _) if self.miss.allowed.is_empty() => f.write_str("on no port"),
            (PortFault::Number, Transport::Port(sent, number)) => {
                let protocol = |port: &Port| match port {
                    Port::All(protocol) | Port::Range(protocol, _) | Port::Named(protocol, _) => *protocol,
                };
                // The protocol only says something if it is not the same for all.
                if self.miss.allowed.iter().all(|port| protocol(port) == sent) {
                    write!(f, "{number} is not among ")?;
                    listed(
                        f,
                        self.miss.allowed.iter().map(|port| PortText(port, false, &self.miss.numbers)),
                    )?;
                } else {
                    write!(f, "{transport} is not among ")?;
                    listed(f, self.miss.allowed.iter().map(|port| PortText(port, true, &self.miss.numbers)))?;
                }
                if self.miss.more > 0 { write!(f, " and {} more", self.miss.more) } else { Ok(()) }
            }
            (PortFault::Protocol(protocol), Transport::Port(_, number)) => {
                write!(f, "{number}/{protocol} is allowed, not {transport}")
            }
            (PortFault::NoSuchName(pod, name, ports), _) => {
                write!(f, "{} has no port named {}; ", Short(pod), Short(name))?;
                if ports.is_empty() {
                    return f.write_str("it declares no ports");
                }
                f.write_str(if ports.len() == 1 { "its port is " } else { "its ports are " })?;
                listed(f, ports.iter().map(Declared))
            }
            (PortFault::NoNames(name), _) => {
                write!(f, "the name {} of a port means nothing outside of pods", Short(name))
            }
        }
    }
}

/// A port of a rule, with or without its protocol, and with the number that a name has.
struct PortText<'p>(&'p Port, bool, &'p [(Arc<str>, u16)]);

impl fmt::Display for PortText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.0 {
            Port::All(protocol) => return write!(f, "every {protocol} port"),
            Port::Range(protocol, range) => {
                write!(f, "{range}")?;
                protocol
            }
            Port::Named(protocol, name) => {
                Short(name).fmt(f)?;
                if let Some((_, number)) = self.2.iter().find(|(known, _)| known == name) {
                    write!(f, " ({number})")?;
                }
                protocol
            }
        };
        if self.1 { write!(f, "/{protocol}") } else { Ok(()) }
    }
}

/// A port that a pod declares: `web (8080)`.
struct Declared<'p>(&'p ContainerPort);

impl fmt::Display for Declared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ContainerPort { name, protocol, number } = self.0;
        let protocol = if *protocol == crate::model::Protocol::Tcp { "" } else { protocol.name() };
        let slash = if protocol.is_empty() { "" } else { "/" };
        match name {
            Some(name) => write!(f, "{} ({number}{slash}{protocol})", Short(name)),
            None => write!(f, "{number}{slash}{protocol}"),
        }
    }
}
