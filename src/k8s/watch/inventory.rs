//! Which objects of a kind exist, and what the model holds of each.
//!
//! Only names are kept: the contents of objects are in the model and nowhere else.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    marker::PhantomData,
    sync::Arc,
};

use super::{
    kinds::{Key, Kind, Watched},
    memory::{Memory, MemoryLimits},
    received::{Received, Unreadable},
};
use crate::{
    k8s::{
        convert::{Conversion, DEFAULT_NAMESPACE},
        fault::{ObjectId, Problem, Severity},
        intern::Interner,
        manifest::{Options, object},
        types::Meta,
        yaml::{node, path::FieldPath},
    },
    model::{Change, Labels, MemoryExcess, Pod, Standing},
};

/// An object that cannot be enforced as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The object, if it is known which one it is.
    pub object: Option<ObjectId>,
    /// What is wrong with it.
    pub problem: Problem,
}

/// `NetworkPolicy shop/deny-all: error: text (field path)`.
impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.object {
            Some(object) => write!(f, "{object}: {}", self.problem),
            None => write!(f, "an object without a name: {}", self.problem),
        }
    }
}

/// How many errors of one object are kept. One object may have a hundred thousand, and each is held and logged.
const ERRORS: usize = 10;

/// Objects of one kind whose errors are kept, and of one namespace: one tenant's must not hide another's. All are sent
/// together each time that one changes.
const REFUSED: usize = 1000;
const REFUSED_IN_NAMESPACE: usize = 20;

/// How many objects of the namespace of this one are rejected, counted up to the limit.
fn refused_beside(refusals: &BTreeMap<Key, Vec<Rejection>>, (namespace, _): &Key) -> usize {
    let first: Key = (namespace.clone(), Arc::from(""));
    refusals.range(first..).take_while(|((of, _), _)| of == namespace).take(REFUSED_IN_NAMESPACE).count()
}

/// The result of one event, or of one list.
#[derive(Debug, Default)]
pub(super) struct Update {
    /// The changes of the model; for a list, every object in it, whether or not it changed.
    pub(super) changes: Vec<Change>,
    /// How many objects of a list are new, or no longer there.
    pub(super) came_or_went: usize,
    /// All current refusals, if they have changed.
    pub(super) rejected: Option<Vec<Rejection>>,
    /// The namespaces whose policies take too much memory from now on.
    pub(super) closed: Vec<(Arc<str>, MemoryExcess)>,
    /// Whether to relist, for rules that were dropped and fit into memory now.
    pub(super) relist: bool,
}

/// What the model holds of an existing object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// A readable version, the current one or an earlier one.
    Good,
    /// A stand-in that isolates.
    StandIn,
    /// Nothing.
    Nothing,
}

/// The objects of one kind.
#[derive(Debug)]
pub(super) struct Inventory<S> {
    names: Interner,
    held: HashMap<Key, Held>,
    refusals: BTreeMap<Key, Vec<Rejection>>,
    listing: Option<PartialList>,
    /// `None` where everything is kept, whatever it takes.
    memory: Option<Memory>,
    /// The node whose pods are kept as they are.
    node: Option<Arc<str>>,
    kind: PhantomData<fn() -> S>,
}

/// A list that is not complete yet.
#[derive(Debug, Default)]
struct PartialList {
    held: HashMap<Key, Held>,
    /// What was removed during the list, and has not come back.
    removed: HashSet<Key>,
    refusals: BTreeMap<Key, Vec<Rejection>>,
    /// The last change of each object.
    changes: Vec<Change>,
    /// The index of each object in `changes`.
    places: HashMap<Key, usize>,
    memory: Option<Memory>,
}

impl PartialList {
    /// Adds the change of an object, in the place of an earlier one of the same object.
    fn change(&mut self, key: &Key, change: Change) {
        if let Some(before) = self.places.get(key).and_then(|place| self.changes.get_mut(*place)) {
            *before = change;
        } else {
            self.places.insert(key.clone(), self.changes.len());
            self.changes.push(change);
        }
    }
}

/// The evaluation of one object.
struct Evaluation {
    key: Key,
    held: Held,
    change: Option<Change>,
    refusals: Vec<Rejection>,
}

impl<S: Watched> Inventory<S> {
    pub(super) fn new() -> Self {
        Self {
            names: Interner::new(),
            held: HashMap::new(),
            refusals: BTreeMap::new(),
            listing: None,
            memory: None,
            node: None,
            kind: PhantomData,
        }
    }

    /// An inventory that keeps no more than enforcement on `node` needs, and no more rules than there is memory for.
    pub(super) fn bounded(limits: MemoryLimits, node: Arc<str>) -> Self {
        Self { memory: Some(Memory::new(limits)), node: Some(node), ..Self::new() }
    }

    /// Whether no object is known.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// A list begins. An unfinished one is discarded.
    pub(super) fn begin_list(&mut self) {
        let memory = self.memory.as_ref().map(Memory::for_list);
        self.listing = Some(PartialList { memory, ..PartialList::default() });
    }

    /// The list is complete: objects that are not in it are gone.
    pub(super) fn end_list(&mut self) -> Update {
        let Some(PartialList { held, removed: _, refusals, mut changes, places: _, memory }) =
            self.listing.take()
        else {
            return Update::default();
        };
        let closed = self.end_memory(memory, &mut changes);
        let before = std::mem::replace(&mut self.held, held);
        let came = self.held.keys().filter(|key| !before.contains_key(*key)).count();
        let gone: Vec<Key> = before.into_keys().filter(|key| !self.held.contains_key(key)).collect();
        let came_or_went = came + gone.len();
        changes.extend(gone.into_iter().map(S::remove));
        changes
            .extend(closed.iter().map(|(namespace, excess)| Change::DropRules(namespace.clone(), *excess)));
        let differs = self.refusals != refusals;
        self.refusals = refusals;
        Update {
            changes,
            came_or_went,
            rejected: differs.then(|| self.rejected()),
            closed,
            relist: self.relist(),
        }
    }

    /// Adds or updates an object.
    pub(super) fn set(&mut self, received: &Received<S>) -> Update {
        let Some(Evaluation { key, held, change, mut refusals }) = self.judge(received) else {
            return Update { relist: self.relist(), ..Update::default() };
        };
        let change = self.trim(&key, change);
        let known = self.listing.as_ref().map_or(&self.refusals, |listing| &listing.refusals);
        if !known.contains_key(&key)
            && (known.len() >= REFUSED || refused_beside(known, &key) >= REFUSED_IN_NAMESPACE)
        {
            refusals.clear();
        }
        if let Some(listing) = &mut self.listing {
            if let Some(change) = change {
                listing.change(&key, change);
            }
            listing.refusals.remove(&key);
            if !refusals.is_empty() {
                listing.refusals.insert(key.clone(), refusals);
            }
            listing.removed.remove(&key);
            listing.held.insert(key, held);
            return Update::default();
        }
        let before = if refusals.is_empty() {
            self.refusals.remove(&key)
        } else {
            self.refusals.insert(key.clone(), refusals)
        };
        let differs = before.as_ref() != self.refusals.get(&key);
        self.held.insert(key, held);
        let rejected = differs.then(|| self.rejected());
        self.update(change, rejected)
    }

    /// Removes an object.
    pub(super) fn remove(&mut self, received: &Received<S>) -> Update {
        let key = match received {
            Received::Readable(object) => self.key(object.meta()),
            Received::Unreadable(unreadable) => self.read_leniently(unreadable).0,
        };
        let Some(key) = key else { return Update { relist: self.relist(), ..Update::default() } };
        if let Some(listing) = &mut self.listing {
            listing.held.remove(&key);
            listing.refusals.remove(&key);
            listing.removed.insert(key.clone());
            if let Some(memory) = &mut listing.memory {
                memory.remove(&key);
            }
            // What the list said of it before does not count, and what was known of it must be removed.
            listing.change(&key, S::remove(key.clone()));
            return Update::default();
        }
        self.held.remove(&key);
        if let Some(memory) = &mut self.memory {
            memory.remove(&key);
        }
        let rejected = self.refusals.remove(&key).map(|_| self.rejected());
        self.update(Some(S::remove(key)), rejected)
    }

    /// The result of one change, outside of a list. A removal can close a namespace as well: another one than before.
    fn update(&mut self, change: Option<Change>, rejected: Option<Vec<Rejection>>) -> Update {
        let closed = self.memory.as_mut().map(Memory::take_new).unwrap_or_default();
        let dropped = closed.iter().map(|(namespace, excess)| Change::DropRules(namespace.clone(), *excess));
        let changes = dropped.chain(change).collect();
        Update { changes, rejected, closed, relist: self.relist(), ..Update::default() }
    }

    /// A change without the parts that are not kept.
    fn trim(&mut self, key: &Key, change: Option<Change>) -> Option<Change> {
        let Some(memory) = &mut self.memory else { return change };
        let policy = match change {
            Some(Change::SetPolicy(policy)) => policy,
            // A pod of another node without an address is not a peer yet, and it gets its address by a change that has
            // everything else too; what is known of a pod of this node may come before it. Of its ports only the named
            // ones are needed.
            Some(Change::SetPod(pod)) if pod.addresses.is_empty() && pod.node != self.node => {
                return Some(Change::SetPod(Pod {
                    labels: Labels::default(),
                    ports: Vec::new(),
                    uid: None,
                    workload: None,
                    ..pod
                }));
            }
            Some(Change::SetPod(mut pod)) => {
                if pod.node != self.node {
                    pod.uid = None;
                }
                pod.ports.retain(|port| port.name.is_some());
                pod.ports.shrink_to_fit();
                return Some(Change::SetPod(pod));
            }
            None if S::KIND == Kind::NetworkPolicy => {
                // The previous version stays: one from this list, or from before it.
                if let Some(listing) = &mut self.listing
                    && let Some(of_list) = &mut listing.memory
                    && !listing.removed.contains(key)
                {
                    of_list.keep(key, memory);
                }
                return None;
            }
            other => return other,
        };
        let Some(listing) = &mut self.listing else {
            return Some(Change::SetPolicy(memory.set(key, policy)));
        };
        let memory = listing.memory.as_mut()?;
        let policy = memory.set(key, policy);
        for (namespace, excess) in memory.take_new() {
            for change in &mut listing.changes {
                if let Change::SetPolicy(policy) = change
                    && policy.key.namespace == namespace
                {
                    *policy = policy.without_rules(excess);
                }
            }
        }
        Some(Change::SetPolicy(policy))
    }

    /// Takes over the memory state of a complete list. Returns the namespaces that are closed from now on.
    fn end_memory(
        &mut self,
        memory: Option<Memory>,
        changes: &mut [Change],
    ) -> Vec<(Arc<str>, MemoryExcess)> {
        let (Some(mut memory), Some(before)) = (memory, self.memory.take()) else { return Vec::new() };
        let closed = memory.end_list(&before);
        for change in changes {
            // The total was not known during the list.
            if let Change::SetPolicy(policy) = change
                && let Standing::TooLarge(excess) = &mut policy.standing
                && let Some(now) = memory.excess(&policy.key.namespace)
            {
                *excess = now;
            }
        }
        self.memory = Some(memory);
        closed
    }

    fn relist(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| !memory.is_settled())
    }

    /// What the model holds of an object, or will hold when the current list is complete.
    fn before(&self, key: &Key) -> Option<Held> {
        let listed = self.listing.as_ref().and_then(|listing| {
            if listing.removed.contains(key) { Some(None) } else { listing.held.get(key).copied().map(Some) }
        });
        let held = listed.unwrap_or_else(|| self.held.get(key).copied());
        let of_list = self.listing.as_ref().and_then(|listing| listing.memory.as_ref()?.has_rules(key));
        let has_rules = of_list.or_else(|| self.memory.as_ref()?.has_rules(key)).unwrap_or(true);
        // A version whose rules were dropped is no better than a stand-in.
        if has_rules || held != Some(Held::Good) { held } else { Some(Held::StandIn) }
    }

    fn rejected(&self) -> Vec<Rejection> {
        self.refusals.values().flatten().cloned().collect()
    }

    /// Evaluates an object. `None` if there is nothing to identify it by.
    fn judge(&mut self, received: &Received<S>) -> Option<Evaluation> {
        let object = match received {
            Received::Readable(object) => object,
            Received::Unreadable(unreadable) => return self.judge_unreadable(unreadable),
        };
        let key = self.key(object.meta())?;
        let Conversion { readable, problems } = object.convert(&mut self.names);
        let errors: Vec<Problem> =
            problems.into_iter().filter(|problem| problem.severity == Severity::Error).collect();
        if errors.is_empty() {
            return Some(Evaluation {
                key,
                held: Held::Good,
                change: readable.map(S::set),
                refusals: Vec::new(),
            });
        }
        let before = self.before(&key);
        let despite = object.despite(readable, &errors, &mut self.names).map(S::set);
        let (held, change) = match despite {
            Some(change) if S::SALVAGED_IS_CURRENT => (Held::Good, Some(change)),
            Some(change) if before != Some(Held::Good) => (Held::StandIn, Some(change)),
            _ => (before.unwrap_or(Held::Nothing), None),
        };
        let id = id::<S>(&key);
        let more = errors.len().saturating_sub(ERRORS);
        let more = (more > 0).then(|| Problem::error(FieldPath::root(), format!("and {more} more errors")));
        let refusals = errors.into_iter().take(ERRORS).chain(more);
        let refusals = refusals.map(|problem| Rejection { object: Some(id.clone()), problem }).collect();
        Some(Evaluation { key, held, change, refusals })
    }

    /// An object that does not have the form of its kind: the last good version stays, and a policy without one is
    /// treated by the same rules as one in a file.
    fn judge_unreadable(&mut self, unreadable: &Unreadable) -> Option<Evaluation> {
        let (key, stand_in) = self.read_leniently(unreadable);
        let key = key?;
        let problem = Problem::error(FieldPath::root(), unreadable.error.clone());
        let before = self.before(&key);
        let (held, change) = match stand_in {
            Some(change) if before != Some(Held::Good) => (Held::StandIn, Some(change)),
            _ => (before.unwrap_or(Held::Nothing), None),
        };
        let refusals = vec![Rejection { object: Some(id::<S>(&key)), problem }];
        Some(Evaluation { key, held, change, refusals })
    }

    /// Which object an unreadable text is about, and its stand-in.
    fn read_leniently(&mut self, unreadable: &Unreadable) -> (Option<Key>, Option<Change>) {
        let (documents, _) = node::parse(&unreadable.text);
        let Some(root) = documents.first().and_then(|document| document.root.as_ref()) else {
            return (None, None);
        };
        let item = (S::KIND.api_version(), S::KIND.name());
        let manifest = match S::KIND {
            // `object::read` does not know nodes.
            Kind::Node => None,
            _ => object::read(root, &[], Some(item), Options::default(), &mut self.names).manifests.pop(),
        };
        let Some(manifest) = manifest else { return (None, None) };
        let key = manifest.id.map(|id| (id.namespace, id.name));
        (key, manifest.stand_in.map(Change::SetPolicy))
    }

    fn key(&mut self, meta: &Meta) -> Option<Key> {
        let name = meta.name.as_deref().filter(|name| !name.is_empty())?;
        let namespace = match S::KIND {
            Kind::Namespace | Kind::Node => None,
            Kind::Pod | Kind::NetworkPolicy => Some(meta.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)),
        };
        let names = &mut self.names;
        Some((namespace.map(|namespace| names.string(namespace)), names.string(name)))
    }
}

fn id<S: Watched>(key: &Key) -> ObjectId {
    let (namespace, name): (Option<Arc<str>>, Arc<str>) = key.clone();
    ObjectId { kind: S::KIND.name(), namespace, name }
}
