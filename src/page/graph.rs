//! Who may talk to whom, by workload: the nodes and edges of the page's graph.
//!
//! Pods that policies cannot tell apart are evaluated once, whatever workload they belong to, as are ports. What is
//! between two workloads is a set of ports, with those that only some of their pods may use kept apart. That a node
//! always reaches its own pods is not shown.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use serde::Serialize;

use super::work::MOST_BYTES;
use crate::model::{Cluster, ContainerPort, Direction, Labels, ObjectKey, Pod, Workload as Owner};
use crate::policy::{
    classes::{ClassTable, Classes},
    outside::{Outside, OutsideAddress},
    port_classes::{PortClasses, TransportSet},
};

/// How many verdicts are computed, at most: pairs of classes of pods times classes of ports. A pod's owner can make
/// classes of both.
const MOST_VERDICTS: usize = 30_000_000;

/// How many pairs of workloads are shown, at most.
const MOST_PAIRS: usize = 4_000_000;

/// With more workloads than this, edges that nothing forbids are left out of the answer: who looks at the graph knows
/// them from the isolation of both ends, and they could be most of it.
const MANY: usize = 150;

/// How many networks that policies name are shown, the rest of the world included.
const MOST_NETWORKS: usize = 24;

/// How many bytes all edges may have, so that there is room for the workloads in an answer.
const MOST_EDGE_BYTES: usize = MOST_BYTES / 4 * 3;

/// The names of an edge's fields, as JSON, have about this many bytes.
const EDGE_BYTES: usize = 90;

/// How many pod names of a workload are listed.
const MOST_NAMES: usize = 200;

/// Workloads, and who may talk to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Graph {
    /// Every namespace with its labels.
    pub namespaces: Vec<NamespaceNode>,
    /// The workloads, by namespace and name; then the world outside and the blocks that policies name.
    pub workloads: Vec<Workload>,
    /// Who may talk to whom. No edge: nobody.
    pub edges: Vec<Edge>,
    /// Whether edges are left out that nothing forbids: all traffic between two workloads, the sender not isolated for
    /// egress and the receiver not for ingress.
    pub open_left_out: bool,
    /// Why the edges are missing, or some of them are.
    pub incomplete: Option<String>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamespaceNode {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether there is an object for it.
    pub declared: bool,
}

/// A node of the graph: a workload with its pods, or addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Identifies it across versions: `namespace/kind/name`.
    pub id: String,
    /// Its namespace; empty for addresses.
    pub namespace: String,
    /// `Deployment` and so on; `Pod` for a pod without owner, `Addresses` for addresses.
    pub kind: String,
    /// Its name, or the addresses.
    pub name: String,
    /// Its pods, the first 200 by name; for addresses the one that is evaluated.
    pub pods: Vec<String>,
    /// How many pods it has.
    pub count: usize,
    /// The labels that all of its pods have.
    pub labels: BTreeMap<String, String>,
    /// The ports that its pods declare.
    pub ports: Vec<PortOfPod>,
    /// Its isolation for ingress.
    pub ingress: Isolation,
    /// Its isolation for egress.
    pub egress: Isolation,
    /// Whether its pods use their nodes' network, so that no policy applies to them.
    pub host_network: bool,
}

/// Whether the pods of a workload are isolated in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Isolation {
    /// Whether all of them are.
    pub isolated: bool,
    /// Whether only some of them are.
    pub partly: bool,
    /// The policies that select any of them.
    pub policies: Vec<String>,
}

/// A port that a pod declares.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PortOfPod {
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub protocol: String,
    /// Its name, if it has one.
    pub name: Option<String>,
}

/// An edge: what may pass from one workload to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// The sender, as its position in [`Graph::workloads`].
    pub from: usize,
    /// The receiver.
    pub to: usize,
    /// Whether everything passes between all of their pods.
    pub all: bool,
    /// What passes between all of their pods, as `80/TCP`, `8000-8009/TCP` or `other`; empty if `all`.
    pub ports: Vec<String>,
    /// The same in words, in parts.
    pub words: Vec<String>,
    /// What passes between some of their pods only.
    pub partly: Vec<String>,
    /// The same in words, in parts.
    pub partly_words: Vec<String>,
    /// Whether no policy isolates either end in this direction: it passes because nothing forbids it.
    pub open: bool,
}

/// What differs between two graphs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PairChange {
    /// The sender: its id.
    pub from: String,
    /// The receiver: its id.
    pub to: String,
    /// What passes now and did not before.
    pub opened: Vec<String>,
    /// What passed before and does not now.
    pub closed: Vec<String>,
}

impl Edge {
    /// It has at least this many bytes as JSON.
    fn least_bytes(&self) -> usize {
        let texts = [&self.ports, &self.words, &self.partly, &self.partly_words];
        EDGE_BYTES + texts.into_iter().map(|texts| bytes_of(texts)).sum::<usize>()
    }
}

impl PairChange {
    /// It has at least this many bytes as JSON.
    fn least_bytes(&self) -> usize {
        self.from.len() + self.to.len() + bytes_of(&self.opened) + bytes_of(&self.closed)
    }
}

/// How many bytes of JSON these texts are, at least: each is quoted.
fn bytes_of(texts: &[String]) -> usize {
    texts.iter().map(|text| text.len() + 2).sum()
}

/// Two graphs and their differences.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The graph after the change.
    pub after: Graph,
    /// What it opens and closes, by pair of workloads.
    pub changes: Vec<PairChange>,
}

/// How many of the pairs of pods a transport passes between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Amount {
    None,
    Some,
    All,
}

/// What edges are made from.
struct Evaluated {
    workloads: Vec<Workload>,
    incomplete: Option<String>,
    ports: Arc<PortClasses>,
    /// By the positions of sender and receiver: how much passes, for each class of ports.
    pairs: BTreeMap<(usize, usize), Arc<[Amount]>>,
}

/// Ports as entries, and in words.
type Texts = (Vec<String>, Vec<String>);

/// What two clusters that are compared have in common.
struct Common {
    ports: Arc<PortClasses>,
    outside: Vec<OutsideAddress>,
}

impl Common {
    fn of(clusters: &[&Cluster]) -> Self {
        let outside = Outside::of(clusters, MOST_NETWORKS).addresses;
        Self { ports: Arc::new(PortClasses::of(clusters)), outside }
    }
}

/// The graph of a cluster.
#[must_use]
pub fn graph(cluster: &Cluster) -> Graph {
    Evaluated::new(cluster, &Common::of(&[cluster])).graph(cluster, MOST_EDGE_BYTES)
}

/// The graph of `after`, and how it differs from that of `before`.
#[must_use]
pub fn compare(before: &Cluster, after: &Cluster) -> Comparison {
    let common = Common::of(&[before, after]);
    let (old, new) = (Evaluated::new(before, &common), Evaluated::new(after, &common));
    let mut changes = Vec::new();
    let mut bytes = 0;
    let id = |at: usize| new.workloads.get(at).map(|workload| workload.id.clone()).unwrap_or_default();
    // A draft changes policies only, so both have the same workloads.
    for (&(from, to), now) in &new.pairs {
        let Some(then) = old.pairs.get(&(from, to)).filter(|then| *then != now) else { continue };
        let differs = |is: fn(Amount, Amount) -> bool| {
            let each = then.iter().zip(now.iter()).enumerate();
            let set = common.ports.union(each.filter(|(_, (a, b))| is(**a, **b)).map(|(class, _)| class));
            set.parts()
        };
        let (opened, closed) = (differs(|then, now| now > then), differs(|then, now| now < then));
        let change = PairChange { from: id(from), to: id(to), opened, closed };
        bytes += change.least_bytes();
        changes.push(change);
        if bytes > MOST_BYTES {
            // More than an answer may have: it will be refused, and needs no more memory.
            break;
        }
    }
    Comparison { after: new.graph(after, MOST_EDGE_BYTES), changes }
}

/// Identifies a workload: namespace, kind and name.
type Name = (Arc<str>, Arc<str>, Arc<str>);

fn workload_of(pod: &Pod) -> Name {
    let namespace = pod.key.namespace.clone();
    match pod.workload.as_deref() {
        Some(Owner { kind, name }) => (namespace, kind.clone(), name.clone()),
        None => (namespace, "Pod".into(), pod.key.name.clone()),
    }
}

/// The pods of one workload.
struct Members<'c> {
    name: Name,
    pods: Vec<&'c Arc<Pod>>,
}

/// The workloads of a cluster with their pods.
fn members(cluster: &Cluster) -> Vec<Members<'_>> {
    let mut groups: BTreeMap<Name, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in cluster.pods().filter(|pod| !pod.is_finished()) {
        groups.entry(workload_of(pod)).or_default().push(pod);
    }
    groups.into_iter().map(|(name, pods)| Members { name, pods }).collect()
}

impl Evaluated {
    fn new(cluster: &Cluster, common: &Common) -> Self {
        let members = members(cluster);
        let mut workloads: Vec<Workload> = members.iter().map(|group| workload(cluster, group)).collect();
        workloads.extend(common.outside.iter().map(of_addresses));
        let external: Vec<IpAddr> = common.outside.iter().map(|outside| outside.address).collect();
        let classes = Classes::new(cluster, &external);
        let transports = common.ports.transports();
        let kinds = classes.members().len();
        let mut evaluated =
            Self { workloads, incomplete: None, ports: common.ports.clone(), pairs: BTreeMap::new() };
        let verdicts = kinds.saturating_mul(kinds).saturating_mul(transports.len());
        let count = evaluated.workloads.len();
        if verdicts > MOST_VERDICTS || count.saturating_mul(count) > MOST_PAIRS {
            evaluated.incomplete = Some(format!(
                "No arrows: {count} workloads with {kinds} kinds of pods and {} kinds of ports are too many for this \
                 page. Ask about single pairs, or use towpath matrix and towpath explain.",
                transports.len()
            ));
            return evaluated;
        }
        if common.ports.omitted() > 0 {
            evaluated.incomplete = Some(format!(
                "{} kinds of ports are in no arrow: there are too many",
                common.ports.omitted()
            ));
        }
        let table = ClassTable::new(&classes, &transports);
        evaluated.pairs = pairs_of(&members, &classes, &table, external.len());
        evaluated
    }

    /// The graph, whose edges have no more than this many bytes as JSON: if they had, none of them is in it.
    fn graph(mut self, cluster: &Cluster, most_bytes: usize) -> Graph {
        let mut edges = Vec::new();
        let mut bytes = 0;
        let open_left_out = self.workloads.len() > MANY;
        // Few different texts, on many edges.
        let mut texts: HashMap<(Arc<[Amount]>, Amount), Texts> = HashMap::new();
        let mut texts_of = |amounts: &Arc<[Amount]>, wanted: Amount| {
            let words = || {
                let each = amounts.iter().enumerate().filter(|(_, amount)| **amount == wanted);
                let set: TransportSet = self.ports.union(each.map(|(class, _)| class));
                (set.entries(), set.parts())
            };
            texts.entry((amounts.clone(), wanted)).or_insert_with(words).clone()
        };
        for (&(from, to), amounts) in &self.pairs {
            if amounts.iter().all(|amount| *amount == Amount::None) {
                continue;
            }
            let all = amounts.iter().all(|amount| *amount == Amount::All);
            let is_isolated = |at: usize, direction: fn(&Workload) -> &Isolation| {
                self.workloads.get(at).is_some_and(|workload| {
                    let isolation = direction(workload);
                    isolation.isolated || isolation.partly
                })
            };
            let open = !is_isolated(from, |one| &one.egress) && !is_isolated(to, |one| &one.ingress);
            if open && open_left_out {
                continue;
            }
            let (ports, words) = if all { Default::default() } else { texts_of(amounts, Amount::All) };
            let (partly, partly_words) =
                if all { Default::default() } else { texts_of(amounts, Amount::Some) };
            let edge = Edge { from, to, all, ports, words, partly, partly_words, open };
            bytes += edge.least_bytes();
            if bytes > most_bytes {
                // Some of them would look like all of them.
                edges = Vec::new();
                self.incomplete = Some(format!(
                    "No arrows: those between {} workloads are too many for this page. Ask about single pairs, or use \
                     towpath matrix and towpath explain.",
                    self.workloads.len()
                ));
                break;
            }
            edges.push(edge);
        }
        let mut namespaces: BTreeMap<String, NamespaceNode> = BTreeMap::new();
        for namespace in cluster.namespaces() {
            let (name, labels) = (namespace.name.to_string(), pairs(&namespace.labels));
            namespaces.insert(name.clone(), NamespaceNode { name, labels, declared: true });
        }
        for workload in self.workloads.iter().filter(|workload| !workload.namespace.is_empty()) {
            let name = workload.namespace.clone();
            let bare = NamespaceNode { name: name.clone(), labels: BTreeMap::new(), declared: false };
            namespaces.entry(name).or_insert(bare);
        }
        Graph {
            namespaces: namespaces.into_values().collect(),
            workloads: self.workloads,
            edges,
            open_left_out,
            incomplete: self.incomplete,
        }
    }
}

/// How much passes between each two workloads, by class of ports. Of two addresses nothing is known.
fn pairs_of(
    members: &[Members<'_>],
    classes: &Classes<'_>,
    table: &ClassTable,
    external: usize,
) -> BTreeMap<(usize, usize), Arc<[Amount]>> {
    let place: HashMap<&ObjectKey, usize> = members
        .iter()
        .enumerate()
        .flat_map(|(at, group)| group.pods.iter().map(move |pod| (&pod.key, at)))
        .collect();
    // How many pods of each class each workload has.
    let mut kinds: Vec<BTreeMap<usize, usize>> = vec![BTreeMap::new(); members.len() + external];
    let mut next = members.len();
    for (end, class) in classes.endpoints().iter().zip(classes.class_of()) {
        let at = match end {
            crate::model::Endpoint::Pod(key) => place.get(key).copied(),
            crate::model::Endpoint::Address(_) => {
                next += 1;
                Some(next - 1)
            }
        };
        if let Some(kinds) = at.and_then(|at| kinds.get_mut(at)) {
            *kinds.entry(*class).or_default() += 1;
        }
    }
    let mut known: HashMap<Vec<Option<u32>>, Arc<[Amount]>> = HashMap::new();
    let mut pairs = BTreeMap::new();
    for (from, senders) in kinds.iter().enumerate() {
        for (to, receivers) in kinds.iter().enumerate() {
            if from >= members.len() && to >= members.len() {
                continue;
            }
            let mut cells: Vec<Option<u32>> = Vec::new();
            for (sender, many) in senders {
                // A pod alone of its kind is no pair with itself.
                let each = receivers.keys().filter(|class| from != to || *class != sender || *many > 1);
                cells.extend(each.map(|receiver| table.cell(*sender, *receiver)));
            }
            cells.sort_unstable();
            cells.dedup();
            if cells.is_empty() {
                continue;
            }
            let amounts = known.entry(cells).or_insert_with_key(|cells| amounts(cells, table)).clone();
            pairs.insert((from, to), amounts);
        }
    }
    pairs
}

/// How many of these verdicts allow each class of ports.
fn amounts(cells: &[Option<u32>], table: &ClassTable) -> Arc<[Amount]> {
    let verdicts: Vec<_> =
        cells.iter().map(|cell| cell.and_then(|cell| table.of_cell(cell)).unwrap_or_default()).collect();
    let amount = |class: usize| {
        let passes =
            |reach: &&[crate::policy::Reach]| reach.get(class).is_some_and(|reach| reach.allowed(None));
        match verdicts.iter().filter(|reach| passes(reach)).count() {
            0 => Amount::None,
            all if all == verdicts.len() => Amount::All,
            _ => Amount::Some,
        }
    };
    (0..table.transports().len()).map(amount).collect()
}

fn workload(cluster: &Cluster, members: &Members<'_>) -> Workload {
    let Members { name: (namespace, kind, name), pods } = members;
    let mut labels = pods.first().map(|pod| pairs(&pod.labels)).unwrap_or_default();
    labels.retain(|key, value| pods.iter().all(|pod| pod.labels.get(key) == Some(value)));
    let ports: BTreeSet<PortOfPod> = pods.iter().flat_map(|pod| pod.ports.iter().map(port_of_pod)).collect();
    Workload {
        id: format!("{namespace}/{kind}/{name}"),
        namespace: namespace.to_string(),
        kind: kind.to_string(),
        name: name.to_string(),
        pods: pods.iter().take(MOST_NAMES).map(|pod| pod.key.to_string()).collect(),
        count: pods.len(),
        labels,
        ports: ports.into_iter().collect(),
        ingress: isolation(cluster, pods, Direction::Ingress),
        egress: isolation(cluster, pods, Direction::Egress),
        host_network: pods.iter().all(|pod| pod.host_network),
    }
}

fn of_addresses(outside: &OutsideAddress) -> Workload {
    let name = match outside.network {
        _ if !outside.is_internet() => outside.network.to_string(),
        ipnet::IpNet::V4(_) => "other IPv4 addresses".to_owned(),
        ipnet::IpNet::V6(_) => "other IPv6 addresses".to_owned(),
    };
    Workload {
        id: format!("ip/{name}"),
        namespace: String::new(),
        kind: "Addresses".to_owned(),
        name,
        pods: vec![format!("ip:{}", outside.address)],
        count: 0,
        labels: BTreeMap::new(),
        ports: Vec::new(),
        ingress: Isolation::default(),
        egress: Isolation::default(),
        host_network: false,
    }
}

fn port_of_pod(port: &ContainerPort) -> PortOfPod {
    PortOfPod {
        port: port.number,
        protocol: port.protocol.to_string(),
        name: port.name.as_deref().map(str::to_owned),
    }
}

fn isolation(cluster: &Cluster, pods: &[&Arc<Pod>], direction: Direction) -> Isolation {
    let Some(first) = pods.first() else { return Isolation::default() };
    let policies = cluster.policies_in(&first.key.namespace).filter(|one| one.rules(direction).is_some());
    let mut isolated: BTreeSet<&ObjectKey> = BTreeSet::new();
    let mut names = Vec::new();
    for policy in policies {
        let selected = pods.iter().filter(|pod| pod.is_subject() && policy.subject.matches(&pod.labels));
        let before = isolated.len();
        isolated.extend(selected.clone().map(|pod| &pod.key));
        if isolated.len() > before || selected.count() > 0 {
            names.push(policy.key.to_string());
        }
    }
    Isolation {
        isolated: isolated.len() == pods.len(),
        partly: !isolated.is_empty() && isolated.len() < pods.len(),
        policies: names,
    }
}

/// Labels as a map.
#[must_use]
pub fn pairs(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        k8s::manifest::{Options, load_text},
        model::Change,
    };

    fn cluster(text: &str) -> Cluster {
        let loaded =
            load_text(Path::new("objects.yaml"), text, Options { workloads: true, ..Options::default() });
        assert!(!loaded.has_errors(), "{:?}", loaded.faults);
        loaded.cluster()
    }

    const PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, ports: [{containerPort: 80, name: http}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {containers: [{name: c, ports: [{containerPort: 5432}]}]}
";

    const DENY: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
";

    const FROM_WEB: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]
";

    fn edge<'g>(graph: &'g Graph, from: &str, to: &str) -> Option<&'g Edge> {
        let at = |id: &str| graph.workloads.iter().position(|one| one.id == id).unwrap();
        let (from, to) = (at(from), at(to));
        graph.edges.iter().find(|edge| edge.from == from && edge.to == to)
    }

    const WEB: &str = "shop/Pod/web";
    const DB: &str = "shop/Pod/db";
    const OUT: &str = "ip/other IPv4 addresses";

    #[test]
    fn without_policies_everything_passes_and_nothing_forbids_it() {
        let graph = graph(&cluster(PODS));
        for (from, to) in [(WEB, DB), (DB, WEB), (OUT, DB), (DB, OUT)] {
            let edge = edge(&graph, from, to).unwrap();
            assert!(edge.all && edge.open, "{from} {to}");
        }
        let web = graph.workloads.iter().find(|one| one.id == WEB).unwrap();
        assert_eq!(web.ports, [PortOfPod { port: 80, protocol: "TCP".into(), name: Some("http".into()) }]);
        assert!(!web.ingress.isolated && web.ingress.policies.is_empty());
    }

    #[test]
    fn default_deny_leaves_no_edge_and_a_rule_leaves_its_port() {
        let text = [PODS, DENY, FROM_WEB].concat();
        let graph = graph(&cluster(&text));
        assert_eq!(edge(&graph, OUT, DB), None);
        let allowed = edge(&graph, WEB, DB).unwrap();
        assert_eq!(
            (&allowed.ports[..], allowed.all, allowed.open),
            (&["5432/TCP".to_owned()][..], false, false)
        );
        let db = graph.workloads.iter().find(|one| one.id == DB).unwrap();
        assert!(db.ingress.isolated && !db.egress.isolated);
        assert_eq!(db.ingress.policies, ["shop/deny", "shop/from-web"]);
        assert!(edge(&graph, DB, WEB).unwrap().open);
    }

    #[test]
    fn port_that_only_some_pods_of_a_workload_may_use_is_kept_apart() {
        let mut cluster = cluster(&[PODS, DENY, FROM_WEB].concat());
        let workload = Arc::new(Owner { kind: "Deployment".into(), name: "all".into() });
        for name in ["web", "other"] {
            let key = ObjectKey::new("shop", name);
            let labels = [("app", name)].into_iter().collect();
            cluster.apply(Change::SetPod(Pod { labels, workload: Some(workload.clone()), ..Pod::new(key) }));
        }
        let graph = graph(&cluster);
        let edge = edge(&graph, "shop/Deployment/all", DB).unwrap();
        assert_eq!((&edge.ports[..], &edge.partly[..]), (&[][..], &["5432/TCP".to_owned()][..]));
    }

    #[test]
    fn graph_with_too_many_arrows_has_none_and_says_so() {
        let cluster = cluster(PODS);
        let within = |bytes| Evaluated::new(&cluster, &Common::of(&[&cluster])).graph(&cluster, bytes);
        let whole = within(MOST_EDGE_BYTES);
        let bytes: usize = whole.edges.iter().map(Edge::least_bytes).sum();
        assert!(bytes > 0 && bytes <= serde_json::to_vec(&whole.edges).unwrap().len(), "{bytes}");
        assert_eq!(within(bytes), whole);
        let cut = within(bytes - 1);
        assert_eq!((cut.edges.len(), cut.workloads.len()), (0, whole.workloads.len()));
        assert!(cut.incomplete.unwrap().starts_with("No arrows: "));
    }

    #[test]
    fn comparison_names_what_opens_and_what_closes() {
        let (open, denied) = (cluster(PODS), cluster(&[PODS, DENY].concat()));
        let rule = cluster(&[PODS, DENY, FROM_WEB].concat());
        let changes = compare(&open, &denied).changes;
        let every = TransportSet::everything().parts();
        let of = |from: &str| PairChange {
            from: from.to_owned(),
            to: DB.to_owned(),
            opened: Vec::new(),
            closed: every.clone(),
        };
        assert_eq!(changes, [of(WEB), of(OUT), of("ip/other IPv6 addresses")]);
        let opened = compare(&denied, &rule).changes;
        assert_eq!(opened.len(), 1);
        assert_eq!((&opened[0].from[..], &opened[0].opened[..]), (WEB, &["5432/TCP".to_owned()][..]));
        assert!(compare(&rule, &rule).changes.is_empty());
    }
}
