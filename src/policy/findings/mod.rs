//! What valid policies probably do not mean: mistakes that can be seen in the objects alone.
//!
//! [`find`] looks at every policy together with the pods and namespaces, as far as they are known: where no pod of a
//! namespace is known, nothing is said about selectors in it.
//!
//! | finds | in |
//! |---|---|
//! | selectors that match nothing, or something else | `selectors` |
//! | ports that the pods do not have | `ports` |
//! | blocks with pods in them, excepts without effect | `blocks` |
//! | rules that add nothing, or open more than the name says | `rules` |
//! | pods without isolation, without DNS, or with one side forgotten | `coverage` |

mod blocks;
mod code;
mod coverage;
mod hints;
mod index;
mod ports;
mod rules;
mod selectors;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
    sync::Arc,
};

use ipnet::IpNet;

pub use code::{Code, CodeError, Level};

use self::index::Index;
use crate::model::{Cluster, Direction, LabelSelector, NetworkPolicy, ObjectKey, Protocol, Standing};

/// How many findings one policy may have. One with tens of thousands of rules could have one in each.
const OF_A_POLICY: usize = 100;

/// How often the labels of a namespace, or of all, are searched for what was meant.
const HINTS: u32 = 2_000;

/// How many flows are evaluated at most.
const FLOWS: u32 = 20_000;

/// What is known besides the objects.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    /// Blocks of pod addresses.
    pub pod_cidrs: Vec<IpNet>,
    /// The namespaces of which nothing is known but their names.
    pub undeclared: BTreeSet<Arc<str>>,
    /// The Services.
    pub services: Vec<Service>,
}

/// A Service, as far as ports are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// The pods behind it.
    pub pods: LabelSelector,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a [`Service`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number at the Service.
    pub port: u16,
    /// The port of the pods.
    pub target: Target,
}

/// The port of pods that a [`ServicePort`] leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This number.
    Number(u16),
    /// The port of this name.
    Name(Arc<str>),
}

/// Something that is probably not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of finding it is.
    pub code: Code,
    /// How bad it is.
    pub level: Level,
    /// The object.
    pub about: About,
    /// The field.
    pub place: Place,
    /// What was found, and what to do.
    pub text: String,
}

/// The object of a finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum About {
    /// A policy.
    Policy(ObjectKey),
    /// A namespace.
    Namespace(Arc<str>),
}

/// A field of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// `metadata.name`.
    Name,
    /// `metadata.namespace`.
    Namespace,
    /// `spec.podSelector`.
    Subject,
    /// `spec.ingress` or `spec.egress`.
    Rules(Direction),
    /// A rule of these.
    Rule(Direction, usize),
    /// A peer of a rule.
    Peer(Direction, usize, usize, Part),
    /// An item of a rule's `ports`.
    Port(Direction, usize, usize),
}

/// A part of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// All of it.
    Whole,
    /// `podSelector`.
    Pods,
    /// `namespaceSelector`.
    Namespaces,
    /// `ipBlock.cidr`.
    Block,
    /// `ipBlock.except`.
    Excepts,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The findings, by object.
    pub found: Vec<Finding>,
    /// How many more there are, of policies that have too many to list.
    pub omitted: usize,
}

/// Looks for mistakes in valid policies. Refused policies are left out: what they mean is not known.
#[must_use]
pub fn find(cluster: &Cluster, knowledge: &Knowledge) -> Findings {
    let mut search = Search::new(cluster, knowledge);
    let policies: Vec<Arc<NetworkPolicy>> = cluster.policies().cloned().collect();
    for policy in policies.iter().filter(|policy| policy.standing == Standing::Accepted) {
        search.selectors(policy);
        search.ports(policy);
        search.blocks(policy);
        search.rules(policy);
        search.coverage(policy);
    }
    search.duplicates();
    search.default_denies();
    let mut findings = search.findings;
    findings.found.sort_by(|a, b| (&a.about, a.place, a.code).cmp(&(&b.about, b.place, b.code)));
    findings
}

/// The objects, what is known of them, and what was found so far.
struct Search<'c> {
    cluster: &'c Cluster,
    knowledge: &'c Knowledge,
    index: Index<'c>,
    addresses: blocks::Addresses,
    /// The policies of each namespace that was asked about.
    of_namespace: HashMap<Arc<str>, Rc<coverage::OfNamespace>>,
    hints: Cell<u32>,
    flows: u32,
    listed: BTreeMap<About, usize>,
    findings: Findings,
}

impl<'c> Search<'c> {
    fn new(cluster: &'c Cluster, knowledge: &'c Knowledge) -> Self {
        Self {
            cluster,
            knowledge,
            index: Index::new(cluster),
            addresses: blocks::Addresses::of(cluster),
            of_namespace: HashMap::new(),
            hints: Cell::new(HINTS),
            flows: FLOWS,
            listed: BTreeMap::new(),
            findings: Findings::default(),
        }
    }

    /// Adds a finding about a policy.
    fn add(&mut self, policy: &NetworkPolicy, place: Place, code: Code, text: impl Into<String>) {
        self.add_as(code.level(), About::Policy(policy.key.clone()), place, code, text);
    }

    /// Adds a finding that is less certain than usual.
    fn note(&mut self, policy: &NetworkPolicy, place: Place, code: Code, text: impl Into<String>) {
        self.add_as(Level::Note, About::Policy(policy.key.clone()), place, code, text);
    }

    fn add_as(&mut self, level: Level, about: About, place: Place, code: Code, text: impl Into<String>) {
        let listed = self.listed.entry(about.clone()).or_default();
        *listed += 1;
        if *listed > OF_A_POLICY {
            self.findings.omitted += 1;
            return;
        }
        self.findings.found.push(Finding { code, level, about, place, text: text.into() });
    }
}
