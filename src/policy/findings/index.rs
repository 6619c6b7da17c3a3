//! The pods that a selector matches, found by their labels.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, HashSet},
    ops::ControlFlow,
    rc::Rc,
    sync::Arc,
};

use crate::model::{Cluster, ContainerPort, LabelSelector, Labels, Operator, Pod, Scope};

/// How many of the pods that a selector matches are kept as examples.
const SAMPLE: usize = 16;

/// Pods of one namespace that no selector and no rule can tell apart, but for their addresses.
#[derive(Debug)]
pub(super) struct Class {
    /// The first of them.
    pub(super) pod: Arc<Pod>,
    /// How many they are.
    pub(super) count: usize,
}

/// What a selector matches.
#[derive(Clone, Debug, Default)]
pub(super) struct Matches {
    /// How many pods, without those on the network of their node.
    pub(super) pods: usize,
    /// How many pods on the network of their node: labels match, but policy does not concern them.
    pub(super) host_network: usize,
    /// Some of the pods.
    pub(super) sample: Vec<Arc<Pod>>,
    /// One of those on the network of their node.
    pub(super) on_host: Option<Arc<Pod>>,
}

impl Matches {
    /// Whether the labels match no pod at all.
    pub(super) const fn is_empty(&self) -> bool {
        self.pods == 0 && self.host_network == 0
    }
}

/// Names of namespaces.
type Names = Rc<HashSet<Arc<str>>>;

/// Every pod that has not finished, by namespace and label.
pub(super) struct Index<'c> {
    cluster: &'c Cluster,
    classes: Vec<Class>,
    of_namespace: HashMap<Arc<str>, Vec<usize>>,
    /// By key and value.
    by_label: HashMap<String, HashMap<String, Vec<usize>>>,
    /// The namespaces that a selector matches.
    scopes: RefCell<HashMap<LabelSelector, Names>>,
    matches: RefCell<HashMap<(Scope, LabelSelector), Rc<Matches>>>,
}

impl<'c> Index<'c> {
    pub(super) fn new(cluster: &'c Cluster) -> Self {
        let mut index = Self {
            cluster,
            classes: Vec::new(),
            of_namespace: HashMap::new(),
            by_label: HashMap::new(),
            scopes: RefCell::default(),
            matches: RefCell::default(),
        };
        let mut known: HashMap<(&str, &Labels, bool, &[ContainerPort]), usize> = HashMap::new();
        for pod in cluster.pods().filter(|pod| !pod.is_finished()) {
            let like = (&*pod.key.namespace, &pod.labels, pod.host_network, pod.ports.as_slice());
            if let Some(class) = known.get(&like).and_then(|id| index.classes.get_mut(*id)) {
                class.count += 1;
                continue;
            }
            let id = index.classes.len();
            known.insert(like, id);
            index.classes.push(Class { pod: pod.clone(), count: 1 });
            index.of_namespace.entry(pod.key.namespace.clone()).or_default().push(id);
            for (key, value) in pod.labels.iter() {
                let values = index.by_label.entry(key.to_owned()).or_default();
                values.entry(value.to_owned()).or_default().push(id);
            }
        }
        index
    }

    /// Whether there are no pods: then nothing can be said about selectors.
    pub(super) fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// Whether a namespace has pods.
    pub(super) fn has_pods(&self, namespace: &str) -> bool {
        self.of_namespace.contains_key(namespace)
    }

    /// The pods of a namespace.
    pub(super) fn classes_in(&self, namespace: &str) -> impl Iterator<Item = &Class> {
        let ids = self.of_namespace.get(namespace).into_iter().flatten();
        ids.filter_map(|id| self.classes.get(*id))
    }

    /// The known namespaces whose labels match.
    pub(super) fn namespaces(&self, selector: &LabelSelector) -> Names {
        if let Some(known) = self.scopes.borrow().get(selector) {
            return known.clone();
        }
        let matching = self.cluster.namespaces().filter(|namespace| selector.matches(&namespace.labels));
        let names: Names = Rc::new(matching.map(|namespace| namespace.name.clone()).collect());
        self.scopes.borrow_mut().insert(selector.clone(), names.clone());
        names
    }

    /// Whether any namespace of a scope has pods.
    pub(super) fn scope_has_pods(&self, scope: &Scope) -> bool {
        match scope {
            Scope::Own(namespace) => self.has_pods(namespace),
            Scope::Matching(selector) => {
                let names = self.namespaces(selector);
                names.iter().any(|name| self.has_pods(name))
            }
        }
    }

    /// Calls `each` for the pods that match, until it breaks.
    pub(super) fn visit(
        &self,
        scope: &Scope,
        pods: &LabelSelector,
        mut each: impl FnMut(&Class) -> ControlFlow<()>,
    ) {
        let names = match scope {
            Scope::Own(_) => None,
            Scope::Matching(selector) => Some(self.namespaces(selector)),
        };
        let in_scope = |class: &Class| match (scope, &names) {
            (Scope::Own(own), _) => *class.pod.key.namespace == **own,
            (_, Some(names)) => names.contains(&class.pod.key.namespace),
            (_, None) => false,
        };
        let within: Vec<&Vec<usize>> = match (scope, &names) {
            (Scope::Own(own), _) => self.of_namespace.get(own).into_iter().collect(),
            (_, Some(names)) => names.iter().filter_map(|name| self.of_namespace.get(name)).collect(),
            (_, None) => Vec::new(),
        };
        let length = |lists: &[&Vec<usize>]| lists.iter().map(|list| list.len()).sum::<usize>();
        // The shortest of the lists that have every pod that matches.
        let mut shortest = within;
        for requirement in pods.requirements() {
            let Operator::In(values) = &requirement.operator else { continue };
            let known = self.by_label.get(&*requirement.key);
            let lists: Vec<&Vec<usize>> = values.iter().filter_map(|value| known?.get(&**value)).collect();
            if length(&lists) < length(&shortest) {
                shortest = lists;
            }
        }
        for class in shortest.into_iter().flatten().filter_map(|id| self.classes.get(*id)) {
            if in_scope(class) && pods.matches(&class.pod.labels) && each(class).is_break() {
                return;
            }
        }
    }

    /// Whether any pod that matches, and that policy concerns, fulfils a condition.
    pub(super) fn any(&self, scope: &Scope, pods: &LabelSelector, condition: impl Fn(&Pod) -> bool) -> bool {
        let mut found = false;
        self.visit(scope, pods, |class| {
            found = !class.pod.host_network && condition(&class.pod);
            if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        found
    }

    /// What matches.
    pub(super) fn matches(&self, scope: &Scope, pods: &LabelSelector) -> Rc<Matches> {
        let key = (scope.clone(), pods.clone());
        if let Some(known) = self.matches.borrow().get(&key) {
            return known.clone();
        }
        let mut found = Matches::default();
        self.visit(scope, pods, |class| {
            if class.pod.host_network {
                found.host_network += class.count;
                found.on_host.get_or_insert_with(|| class.pod.clone());
            } else {
                found.pods += class.count;
                if found.sample.len() < SAMPLE {
                    found.sample.push(class.pod.clone());
                }
            }
            ControlFlow::Continue(())
        });
        found.sample.sort_by(|a, b| a.key.cmp(&b.key));
        let found = Rc::new(found);
        self.matches.borrow_mut().insert(key, found.clone());
        found
    }

    /// A pod of another namespace that matches.
    pub(super) fn elsewhere(&self, namespace: &str, pods: &LabelSelector) -> Option<Arc<Pod>> {
        let mut found = None;
        self.visit(&Scope::Matching(LabelSelector::everything()), pods, |class| {
            if *class.pod.key.namespace == *namespace || class.pod.host_network {
                return ControlFlow::Continue(());
            }
            found = Some(class.pod.clone());
            ControlFlow::Break(())
        });
        found
    }

    /// The labels of the pods in a scope: the values of each key.
    pub(super) fn labels(&self, scope: &Scope, mut each: impl FnMut(&str, &str)) {
        self.visit(scope, &LabelSelector::everything(), |class| {
            for (key, value) in class.pod.labels.iter() {
                each(key, value);
            }
            ControlFlow::Continue(())
        });
    }

    /// The values that pods in a scope have for a key, at most a thousand.
    pub(super) fn values(&self, scope: &Scope, key: &str) -> BTreeSet<String> {
        let mut values = BTreeSet::new();
        self.visit(scope, &LabelSelector::everything(), |class| {
            if let Some(value) = class.pod.labels.get(key)
                && !values.contains(value)
            {
                values.insert(value.to_owned());
            }
            if values.len() < 1000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        values
    }
}
