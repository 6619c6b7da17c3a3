//! Copies of denied packets, by the namespace and the pod whose policies denied them.
//!
//! Only so many have a name of their own, first come, so that nobody can make more series than that.

use std::collections::{BTreeSet, HashMap};

use super::{collector::Update, record::Record};

/// How many namespaces have a name of their own.
const NAMESPACES: usize = 100;

/// The name of all others. No namespace has it.
const OTHER: &str = "(other)";

/// Some more copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The namespace, or that of all others.
    pub namespace: String,
    /// The pod, if it has a name of its own.
    pub pod: Option<String>,
    /// `ingress` or `egress`.
    pub direction: String,
    /// How many.
    pub copies: u64,
}

/// What was counted so far.
#[derive(Debug)]
pub struct Tally {
    pods: usize,
    namespaces_shown: BTreeSet<String>,
    pods_shown: BTreeSet<(String, String)>,
    /// The records that are not complete, by id, with what was counted of them.
    open: HashMap<u64, Counted>,
}

impl Tally {
    /// A tally with names for so many pods.
    #[must_use]
    pub fn new(pods: usize) -> Self {
        Self { pods, namespaces_shown: BTreeSet::new(), pods_shown: BTreeSet::new(), open: HashMap::new() }
    }

    /// A new record. Returns what to count, unless no policy denied it.
    pub fn record(&mut self, id: u64, record: &Record) -> Option<Counted> {
        let direction = record.direction.clone()?;
        let subject = if direction == "egress" { &record.from } else { &record.to };
        let (namespace, pod) = subject.pod.as_deref()?.split_once('/')?;
        let whole = (namespace.to_owned(), pod.to_owned());
        let has_room = self.pods_shown.len() < self.pods;
        let pod = (self.pods_shown.contains(&whole) || has_room).then(|| {
            self.pods_shown.insert(whole.clone());
            whole.1.clone()
        });
        let has_room = self.namespaces_shown.len() < NAMESPACES;
        let namespace = if self.namespaces_shown.contains(&whole.0) || has_room {
            self.namespaces_shown.insert(whole.0.clone());
            whole.0
        } else {
            OTHER.to_owned()
        };
        let counted = Counted { namespace, pod, direction, copies: record.count };
        self.open.insert(id, counted.clone());
        Some(counted)
    }

    /// More copies of a record. Returns what to count.
    pub fn update(&mut self, update: &Update) -> Option<Counted> {
        let open = self.open.get_mut(&update.id)?;
        let more = update.count.saturating_sub(open.copies);
        open.copies = update.count;
        let counted = Counted { copies: more, ..open.clone() };
        if update.is_final {
            self.open.remove(&update.id);
        }
        (more > 0).then_some(counted)
    }

    /// How many records are not complete.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::drops::record::End;

    fn record(from: &str, to: &str, direction: Option<&str>, count: u64) -> Record {
        let pod = |name: &str| End { pod: Some(name.to_owned()), ..End::default() };
        let direction = direction.map(str::to_owned);
        Record { from: pod(from), to: pod(to), direction, count, ..Record::default() }
    }

    #[test]
    fn each_copy_counts_once_for_the_pod_whose_policies_denied_it() {
        let mut tally = Tally::new(1);
        let counted = tally.record(1, &record("shop/web", "blog/db", Some("ingress"), 3)).unwrap();
        let of_db = |copies| Counted {
            namespace: "blog".to_owned(),
            pod: Some("db".to_owned()),
            direction: "ingress".to_owned(),
            copies,
        };
        assert_eq!(counted, of_db(3));
        let update = |count, is_final| Update { id: 1, count, last: SystemTime::now(), is_final };
        assert_eq!(tally.update(&update(5, false)), Some(of_db(2)));
        assert_eq!(tally.update(&update(5, false)), None);
        assert_eq!(tally.update(&update(6, true)), Some(of_db(1)));
        assert_eq!(tally.update(&update(9, true)), None, "it is complete");
        // No second pod has a name of its own, and no policy has denied what has no direction.
        let egress = tally.record(2, &record("shop/web", "blog/db", Some("egress"), 1)).unwrap();
        assert_eq!((egress.namespace.as_str(), egress.pod), ("shop", None));
        assert_eq!(tally.record(3, &record("shop/web", "blog/db", None, 1)), None);
    }

    #[test]
    fn namespaces_with_a_name_are_limited() {
        let mut tally = Tally::new(0);
        for number in 0..500 {
            tally.record(number, &record("shop/web", &format!("n{number}/db"), Some("ingress"), 1));
        }
        let namespaces: BTreeSet<&str> = tally.open.values().map(|one| one.namespace.as_str()).collect();
        assert_eq!(namespaces.len(), NAMESPACES + 1);
        assert!(namespaces.contains(OTHER) && namespaces.contains("n0"));
    }
}
