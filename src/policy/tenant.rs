//! The state of one namespace on a node: its pods there, their programs and the cost of these.
//!
//! A namespace is recomputed only when one of its own pods or policies changed, so that no namespace pays for another.
//! Before anything is merged, compiled or looked up for it, its costs are added up and compared with the budgets.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    budget::{self, Budgets, Closed, Cost, OverBudget, Resource, Scale, count},
    counts::{Counts, index},
    program::{Program, Selection},
    resolve::LocalPod,
};
use crate::model::{
    Cluster, Direction, MemoryExcess, NetworkPolicy, ObjectKey, Pod, Port, Ports, Sandbox, SandboxState,
    Standing,
};

/// A pod of this node, and the policies whose podSelector selects it, by name.
#[derive(Debug)]
pub(super) struct Subject {
    pod: Arc<Pod>,
    /// Looked up on demand: once per sync, however often the pod changed.
    policies: Option<BTreeMap<Arc<str>, Arc<NetworkPolicy>>>,
}

/// Everything that a program depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ProgramKey {
    direction: Direction,
    /// By identity: a changed policy is another value.
    policies: Vec<Identity>,
    /// The numbers of the policies' named ports in the pod, in their order; empty for egress.
    named: Vec<Vec<u16>>,
}

/// A policy, compared by identity. Holding it prevents reuse of its address for another.
#[derive(Debug, Clone)]
struct Identity(Arc<NetworkPolicy>);

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Identity {}

impl std::hash::Hash for Identity {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// The cost of one policy.
#[derive(Debug, Clone)]
struct PolicyCost {
    /// In the order of [`Direction::BOTH`].
    directions: [u64; 2],
    /// How many names its ingress rules have instead of port numbers.
    names: u64,
    over_budget: Option<OverBudget>,
}

/// The costs of policies, so that each is computed only once.
#[derive(Debug, Default)]
pub(super) struct Costs(HashMap<Identity, PolicyCost>);

impl Costs {
    fn of(&mut self, policy: &Arc<NetworkPolicy>, budgets: &Budgets) -> &PolicyCost {
        self.0.entry(Identity(policy.clone())).or_insert_with(|| PolicyCost {
            directions: Direction::BOTH.map(|direction| budget::of_policy(policy, direction)),
            names: budget::names(policy),
            over_budget: budget::excess_of_policy(policy, budgets),
        })
    }

    /// Drops policies that select no pod of this node any more.
    pub(super) fn keep_used(&mut self, tenants: &BTreeMap<Arc<str>, Tenant>) {
        let used: usize = tenants.values().map(|tenant| tenant.bound).sum();
        // Only occasionally: walking all of them costs more than holding some that are gone.
        if self.0.len() > 2 * used + 64 {
            let bound = tenants.values().flat_map(|tenant| &tenant.pods).flat_map(|pod| pod.policies.iter());
            let bound: BTreeSet<*const NetworkPolicy> = bound.map(Arc::as_ptr).collect();
            self.0.retain(|policy, _| bound.contains(&Arc::as_ptr(&policy.0)));
        }
    }
}

/// A pod of a namespace.
#[derive(Debug)]
struct TenantPod {
    key: ObjectKey,
    addresses: Vec<IpAddr>,
    /// Those of its addresses that other pods also report.
    shared: Vec<IpAddr>,
    policies: Arc<[Arc<NetworkPolicy>]>,
    sandbox: Option<Arc<Sandbox>>,
    /// For each of [`Direction::BOTH`].
    isolation: [Isolation; 2],
}

/// The effect of policies on a pod in one direction.
#[derive(Debug)]
enum Isolation {
    /// No policy isolates it.
    Open,
    /// It is isolated, and nothing is allowed: computing what would be allowed costs too much.
    Closed,
    /// It is isolated, and the program says what is allowed.
    Program(Arc<Program>),
}

/// The state of one namespace on this node.
#[derive(Debug, Default)]
pub(super) struct Tenant {
    /// Its pods of this node that have an address, by name.
    pods: Vec<TenantPod>,
    programs: HashMap<ProgramKey, Arc<Program>>,
    /// The cost of its distinct programs.
    cost: Cost,
    /// How many comparisons with each pod of the cluster the selectors of its programs take.
    comparisons: u64,
    /// Policies that are over the budget of a policy.
    over_budget: Vec<OverBudget>,
    /// How many different policies select its pods.
    bound: usize,
    /// Why the rules of its policies were dropped, if they were.
    too_large: Option<MemoryExcess>,
}

impl Subject {
    pub(super) fn new(pod: Arc<Pod>) -> Self {
        Self { pod, policies: None }
    }

    /// Applies a change of a policy of its namespace. Returns whether that may affect the pod.
    pub(super) fn policy(&mut self, name: &Arc<str>, after: Option<&Arc<NetworkPolicy>>) -> bool {
        let Some(policies) = &mut self.policies else { return true };
        let now = after.filter(|policy| policy.subject.matches(&self.pod.labels));
        let was = match now {
            Some(policy) => policies.insert(name.clone(), policy.clone()),
            None => policies.remove(name),
        };
        now.is_some() || was.is_some()
    }

    fn policies(&mut self, cluster: &Cluster) -> &BTreeMap<Arc<str>, Arc<NetworkPolicy>> {
        let Self { pod, policies } = self;
        policies.get_or_insert_with(|| {
            cluster
                .policies_in(&pod.key.namespace)
                .filter(|policy| policy.subject.matches(&pod.labels))
                .map(|policy| (policy.key.name.clone(), policy.clone()))
                .collect()
        })
    }
}

/// This many pairs of a pod and a policy that selects it cost a unit: they are visited in every sync in which the
/// namespace changed.
const PAIRS: u64 = 8;

impl Tenant {
    /// The state for the pods `subjects` of one namespace. Programs of `before` that are still needed are kept.
    pub(super) fn new<'a>(
        cluster: &Cluster,
        subjects: impl Iterator<Item = (&'a ObjectKey, &'a mut Subject)>,
        before: Option<Self>,
        costs: &mut Costs,
        budgets: &Budgets,
    ) -> Self {
        let mut before = before.unwrap_or_default().programs;
        let mut tenant = Self::default();
        let mut bodies: Vec<Arc<Pod>> = Vec::new();
        let mut pairs = 0;
        for (key, subject) in subjects {
            // A pod of another node may claim the address too: its packets go through that node, and these are ours.
            let addresses = subject.pod.addresses.clone();
            if addresses.is_empty() {
                continue;
            }
            bodies.push(subject.pod.clone());
            let is_unknown = subject.pod.sandbox_state() == Some(SandboxState::Unknown);
            let policies: Arc<[Arc<NetworkPolicy>]> = if is_unknown {
                Arc::default()
            } else {
                subject.policies(cluster).values().cloned().collect()
            };
            pairs += count(policies.len());
            let isolates = |direction: Direction| {
                is_unknown || policies.iter().any(|policy| policy.rules(direction).is_some())
            };
            let isolation = Direction::BOTH
                .map(|direction| if isolates(direction) { Isolation::Closed } else { Isolation::Open });
            let is_shared =
                |address: &IpAddr| cluster.claimants(*address).iter().any(|other| other.key != *key);
            let shared = addresses.iter().copied().filter(is_shared).collect();
            let sandbox = subject.pod.sandbox.clone();
            let key = key.clone();
            tenant.pods.push(TenantPod { key, addresses, shared, policies, sandbox, isolation });
        }
        tenant.cost.units = pairs / PAIRS;
        let mut seen: BTreeSet<*const NetworkPolicy> = BTreeSet::new();
        for policy in tenant.pods.iter().flat_map(|pod| pod.policies.iter()) {
            if seen.insert(Arc::as_ptr(policy)) {
                tenant.over_budget.extend(costs.of(policy, budgets).over_budget.clone());
                if let Standing::TooLarge(excess) = policy.standing {
                    tenant.too_large = Some(excess);
                }
            }
        }
        tenant.bound = seen.len();
        // First all costs, then the work: what is over its budget is not even merged.
        if let Some(keys) = tenant.add_up(&bodies, costs, budgets) {
            tenant.merge(keys, &bodies, &mut before);
        }
        tenant
    }

    /// Adds up the cost of all pods' programs, and returns their keys; `None` as soon as it is over the budget.
    fn add_up(
        &mut self,
        bodies: &[Arc<Pod>],
        costs: &mut Costs,
        budgets: &Budgets,
    ) -> Option<Vec<[Option<ProgramKey>; 2]>> {
        let within = |cost: Cost| (cost.units <= budgets.namespace).then_some(());
        within(self.cost)?;
        let mut keys: Vec<[Option<ProgramKey>; 2]> = Vec::new();
        let mut distinct: HashSet<ProgramKey> = HashSet::new();
        for (pod, body) in self.pods.iter().zip(bodies) {
            let mut of_pod = [None, None];
            for (at, direction) in Direction::BOTH.into_iter().enumerate() {
                if matches!(pod.isolation[at], Isolation::Open) {
                    continue;
                }
                let (mut cost, mut sought, mut policies) = (0_u64, 0, Vec::new());
                for policy in pod.policies.iter().filter(|policy| policy.rules(direction).is_some()) {
                    let of = costs.of(policy, budgets);
                    if of.over_budget.is_some() {
                        continue;
                    }
                    cost = cost.saturating_add(of.directions[at]);
                    if direction == Direction::Ingress {
                        sought += of.names;
                    }
                    policies.push(Identity(policy.clone()));
                }
                // Names are looked up in each pod.
                self.cost.units = self.cost.units.saturating_add(budget::of_names(sought, body));
                within(self.cost)?;
                let named = if sought > 0 { numbers(&policies, body) } else { Vec::new() };
                let key = ProgramKey { direction, policies, named };
                if !distinct.contains(&key) {
                    self.cost.units = self.cost.units.saturating_add(cost);
                    distinct.insert(key.clone());
                }
                within(self.cost)?;
                of_pod[at] = Some(key);
            }
            keys.push(of_pod);
        }
        Some(keys)
    }

    /// Sets the programs of the pods, and adds to the cost what is only known from these.
    fn merge(
        &mut self,
        keys: Vec<[Option<ProgramKey>; 2]>,
        bodies: &[Arc<Pod>],
        before: &mut HashMap<ProgramKey, Arc<Program>>,
    ) {
        for ((pod, of_pod), body) in self.pods.iter_mut().zip(keys).zip(bodies) {
            for (isolation, key) in pod.isolation.iter_mut().zip(of_pod) {
                let Some(key) = key else { continue };
                let program = self.programs.get(&key).cloned().unwrap_or_else(|| {
                    before.remove(&key).unwrap_or_else(|| {
                        let policies = key.policies.iter().map(|identity| &identity.0);
                        Arc::new(Program::of_policies(key.direction, policies, body))
                    })
                });
                self.programs.entry(key).or_insert_with(|| program.clone());
                *isolation = Isolation::Program(program);
            }
        }
        let more = budget::of_programs(self.programs.values());
        self.cost = Cost { units: self.cost.units.saturating_add(more.units), sets: more.sets };
        self.comparisons = index::comparisons(self.selections());
    }

    /// Whether it has no pods on this node.
    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// Its pods with their programs; if it is closed, with programs that allow nothing.
    pub(super) fn local_pods(&self, closed: bool) -> impl Iterator<Item = LocalPod> {
        let nothing = Direction::BOTH.map(|direction| {
            let none: [&Arc<NetworkPolicy>; 0] = [];
            Arc::new(Program::of_policies(direction, none, &Pod::new(ObjectKey::new("", ""))))
        });
        self.pods.iter().map(move |pod| {
            let program = |of: Direction| -> Option<Arc<Program>> {
                let at = Direction::BOTH.into_iter().position(|direction| direction == of)?;
                match pod.isolation.get(at)? {
                    Isolation::Open => None,
                    Isolation::Program(program) if !closed => {
                        Some(program.clone()).filter(|program| !program.allows_everything())
                    }
                    Isolation::Program(_) | Isolation::Closed => nothing.get(at).cloned(),
                }
            };
            LocalPod {
                key: pod.key.clone(),
                addresses: pod.addresses.clone(),
                shared: pod.shared.clone(),
                ingress: program(Direction::Ingress),
                egress: program(Direction::Egress),
                policies: pod.policies.clone(),
                sandbox: pod.sandbox.clone(),
            }
        })
    }

    fn selections(&self) -> BTreeSet<&Arc<Selection>> {
        self.programs.values().flat_map(|program| program.selections()).collect()
    }

    /// Why it is closed regardless of the cost of others, if it is.
    fn own_excess(&self, namespace: &Arc<str>, budgets: &Budgets) -> Option<OverBudget> {
        let over = |resource, cost, budget| {
            let closed = Closed::Namespace(namespace.clone());
            (cost > budget).then_some(OverBudget { closed, scale: Scale::Namespace, resource, cost, budget })
        };
        // Closed as a whole as soon as the rules of one policy are missing: which one is first depends on the order in
        // which they were received.
        let too_large = self.too_large.map(|MemoryExcess { bytes, budget, is_of_all }| OverBudget {
            closed: Closed::Namespace(namespace.clone()),
            scale: if is_of_all { Scale::Node } else { Scale::Namespace },
            resource: Resource::Memory,
            cost: bytes,
            budget,
        });
        too_large
            .or_else(|| over(Resource::Units, self.cost.units, budgets.namespace))
            .or_else(|| over(Resource::Sets, self.cost.sets, budgets.namespace_sets))
    }
}

/// The numbers of these policies' named ports in `pod`, in their order.
fn numbers(policies: &[Identity], pod: &Pod) -> Vec<Vec<u16>> {
    policies
        .iter()
        .flat_map(|Identity(policy)| policy.rules(Direction::Ingress).unwrap_or_default())
        .flat_map(|rule| match &rule.ports {
            Ports::Any => &[],
            Ports::Of(ports) => ports.as_slice(),
        })
        .filter_map(|port| match port {
            Port::Named(protocol, name) => Some(pod.named_port(name, *protocol)),
            Port::All(_) | Port::Range(..) => None,
        })
        .collect()
}

/// Decides which namespaces are closed, and returns these and everything that is over its budget.
///
/// A namespace over its own budget closes. If the others together are over the node's, the largest of them close, until
/// the rest is within; of two equally large ones the first by name.
pub(super) fn close(
    cluster: &Cluster,
    tenants: &BTreeMap<Arc<str>, Tenant>,
    counts: &mut Counts,
    budgets: &Budgets,
) -> (Vec<OverBudget>, BTreeSet<Arc<str>>) {
    let mut over: Vec<OverBudget> =
        tenants.values().flat_map(|tenant| tenant.over_budget.iter().cloned()).collect();
    let mut open: BTreeMap<&Arc<str>, &Tenant> = BTreeMap::new();
    for (namespace, tenant) in tenants {
        match tenant.own_excess(namespace, budgets) {
            Some(excess) => over.push(excess),
            None => drop(open.insert(namespace, tenant)),
        }
    }
    for (resource, budget, cost) in [
        (Resource::Units, budgets.node, (|cost: Cost| cost.units) as fn(Cost) -> u64),
        (Resource::Sets, budgets.node_sets, |cost: Cost| cost.sets),
    ] {
        let costs: BTreeMap<&Arc<str>, u64> =
            open.iter().map(|(namespace, tenant)| (*namespace, cost(tenant.cost))).collect();
        for namespace in largest(costs, budget) {
            open.remove(namespace.0);
            over.push(of_node(namespace, resource, budget));
        }
    }
    // Counting members takes the comparisons, so these come first.
    let comparisons = open.iter().map(|(namespace, tenant)| ((*namespace).clone(), tenant.comparisons));
    let comparisons = comparisons.filter(|(_, comparisons)| *comparisons != 0).collect();
    for excess in counts.over_comparisons(comparisons, budgets) {
        open.remove(excess.namespace());
        over.push(excess);
    }
    // Members are counted only for what is still open: the number of its selections is bounded by now.
    let by_namespace: BTreeMap<&Arc<str>, BTreeSet<&Arc<Selection>>> =
        open.iter().map(|(namespace, tenant)| (*namespace, tenant.selections())).collect();
    counts.keep(cluster, by_namespace.values().flatten().copied());
    let mut members: BTreeMap<&Arc<str>, u64> = BTreeMap::new();
    for (namespace, selections) in &by_namespace {
        members.insert(namespace, selections.iter().map(|selection| counts.of(selection)).sum());
    }
    let budget = budgets.namespace_members(counts.addresses);
    for (namespace, cost) in members.clone() {
        if cost > budget {
            members.remove(namespace);
            let closed = Closed::Namespace(namespace.clone());
            let resource = Resource::Members;
            over.push(OverBudget { closed, scale: Scale::Namespace, resource, cost, budget });
        }
    }
    let budget = budgets.node_members(counts.addresses);
    for namespace in largest(members, budget) {
        over.push(of_node(namespace, Resource::Members, budget));
    }
    over.sort();
    let closed = over.iter().filter_map(|over| match &over.closed {
        Closed::Namespace(name) => Some(name.clone()),
        Closed::Policy(_) => None,
    });
    let closed: BTreeSet<Arc<str>> = closed.collect();
    counts.remember(&by_namespace, &closed);
    (over, closed)
}

fn of_node((namespace, cost): (&Arc<str>, u64), resource: Resource, budget: u64) -> OverBudget {
    OverBudget { closed: Closed::Namespace(namespace.clone()), scale: Scale::Node, resource, cost, budget }
}

/// The largest ones that must be closed so that the others together are within `budget`.
pub(super) fn largest(costs: BTreeMap<&Arc<str>, u64>, budget: u64) -> Vec<(&Arc<str>, u64)> {
    let mut total: u64 = costs.values().copied().fold(0, u64::saturating_add);
    if total <= budget {
        return Vec::new();
    }
    let mut by_size: Vec<(&Arc<str>, u64)> = costs.into_iter().collect();
    by_size.sort_by(|(a, x), (b, y)| y.cmp(x).then(a.cmp(b)));
    let mut gone = Vec::new();
    for (namespace, cost) in by_size {
        if total <= budget {
            break;
        }
        total = total.saturating_sub(cost);
        gone.push((namespace, cost));
    }
    gone
}

#[cfg(test)]
mod tests;
