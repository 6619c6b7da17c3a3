//! The last records of the drop log, for readers that come later and for those that follow it.
//!
//! If it is full, the namespace with the most records loses the oldest one of its pod with the most. So whoever causes
//! many of them forgets its own.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use jiff::{Timestamp, Unit};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    collector::{Untold, Update},
    record::Record,
};

/// How many records one answer has at most.
const PAGE: usize = 10_000;

/// The log.
#[derive(Debug)]
pub struct DropLog {
    state: Mutex<State>,
    /// The latest cursor.
    latest: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    capacity: usize,
    next: u64,
    /// By cursor.
    records: BTreeMap<u64, Record>,
    /// The cursor of each record that is not complete, by its id.
    open: HashMap<u64, u64>,
    /// How many records each pod has, by namespace.
    owners: BTreeMap<String, BTreeMap<String, usize>>,
    not_told: BTreeMap<String, u64>,
    off: Option<String>,
}

/// Which records a reader wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those from or to this pod, as `namespace/name`.
    pub pod: Option<String>,
    /// Those from or to a pod of this namespace.
    pub namespace: Option<String>,
    /// Those behind this cursor.
    pub since: Option<u64>,
}

impl Filter {
    fn takes(&self, record: &Record) -> bool {
        let ends = [&record.from, &record.to];
        let of_pod = |pod: &String| ends.iter().any(|end| end.pod.as_ref() == Some(pod));
        let of_namespace = |name: &String| ends.iter().any(|end| end.namespace() == Some(name));
        self.pod.as_ref().is_none_or(of_pod) && self.namespace.as_ref().is_none_or(of_namespace)
    }
}

/// The answer to a reader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Page {
    /// The node.
    pub node: String,
    /// Why nothing is recorded; null if it is.
    pub off: Option<String>,
    /// The cursor to ask for what follows.
    pub next: u64,
    /// How many copies of dropped packets were not told since the daemon started, by reason.
    pub not_told: BTreeMap<String, u64>,
    /// The records, in the order of their cursors.
    pub records: Vec<Record>,
}

impl DropLog {
    /// A log for so many records. `off` says why none will come, if so.
    #[must_use]
    pub fn new(capacity: usize, off: Option<String>) -> Self {
        // Cursors rise across restarts: a reader can go on with the one that it has.
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let next = u64::try_from(since_1970.as_millis()).unwrap_or(0).saturating_mul(1000);
        let not_told = Untold::ALL.map(|why| (why.label().to_owned(), 0)).into();
        let state = State {
            capacity: capacity.max(1),
            next,
            records: BTreeMap::new(),
            open: HashMap::new(),
            owners: BTreeMap::new(),
            not_told,
            off,
        };
        Self { state: Mutex::new(state), latest: watch::channel(next).0 }
    }

    /// Says why nothing is recorded, or that it is.
    pub fn set_off(&self, off: Option<String>) {
        self.state().off = off;
    }

    /// Adds a record. Returns its id.
    pub fn insert(&self, mut record: Record) -> u64 {
        let mut state = self.state();
        if state.records.len() >= state.capacity {
            state.forget_one();
        }
        let cursor = state.next_cursor();
        (record.cursor, record.id) = (cursor, cursor);
        let (namespace, pod) = owner(&record);
        *state.owners.entry(namespace).or_default().entry(pod).or_default() += 1;
        state.open.insert(cursor, cursor);
        state.records.insert(cursor, record);
        drop(state);
        self.latest.send_replace(cursor);
        cursor
    }

    /// Brings a record up to date, unless it is forgotten. One that is complete is told to readers again if more packets
    /// came. Returns it then.
    pub fn update(&self, update: &Update) -> Option<Record> {
        let mut state = self.state();
        let cursor = *state.open.get(&update.id)?;
        if update.is_final {
            state.open.remove(&update.id);
        }
        let record = state.records.get_mut(&cursor)?;
        record.count = update.count;
        record.last = in_words(update.last);
        record.complete = update.is_final;
        if !update.is_final || update.count == 1 {
            return None;
        }
        let mut record = state.records.remove(&cursor)?;
        record.cursor = state.next_cursor();
        let cursor = record.cursor;
        state.records.insert(cursor, record.clone());
        drop(state);
        self.latest.send_replace(cursor);
        Some(record)
    }

    /// Counts what was not told.
    pub fn not_told(&self, counts: &BTreeMap<Untold, u64>) {
        let mut state = self.state();
        for (why, count) in counts {
            *state.not_told.entry(why.label().to_owned()).or_default() += count;
        }
    }

    /// The records that a reader wants.
    #[must_use]
    pub fn page(&self, node: &str, filter: &Filter) -> Page {
        let state = self.state();
        let since = filter.since.map_or(0, |since| since.saturating_add(1));
        let wanted =
            state.records.range(since..).map(|(_, record)| record).filter(|record| filter.takes(record));
        Page {
            node: node.to_owned(),
            off: state.off.clone(),
            next: state.next.saturating_sub(1),
            not_told: state.not_told.clone(),
            records: wanted.take(PAGE).cloned().collect(),
        }
    }

    /// Tells the latest cursor, whenever it rises.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_cursor(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Forgets the oldest record of the pod with the most, in the namespace with the most.
    fn forget_one(&mut self) {
        let total = |pods: &BTreeMap<String, usize>| pods.values().sum::<usize>();
        let Some((namespace, pods)) = self.owners.iter().max_by_key(|(_, pods)| total(pods)) else { return };
        let Some((pod, _)) = pods.iter().max_by_key(|(_, count)| **count) else { return };
        let whose = (namespace.clone(), pod.clone());
        let oldest = self.records.iter().find(|(_, record)| owner(record) == whose);
        let Some((cursor, id)) = oldest.map(|(cursor, record)| (*cursor, record.id)) else { return };
        self.records.remove(&cursor);
        self.open.remove(&id);
        let (namespace, pod) = whose;
        if let Some(pods) = self.owners.get_mut(&namespace) {
            if let Some(count) = pods.get_mut(&pod) {
                *count -= 1;
                if *count == 0 {
                    pods.remove(&pod);
                }
            }
            if pods.is_empty() {
                self.owners.remove(&namespace);
            }
        }
    }
}

/// Whose record it is: the sending pod's. For senders outside of the cluster, who can have any address, it is that of
/// the outside at the receiver.
fn owner(record: &Record) -> (String, String) {
    match (record.from.namespace(), &record.from.pod, &record.to.pod) {
        (Some(namespace), Some(pod), _) => (namespace.to_owned(), pod.clone()),
        (.., to) => (String::new(), to.clone().unwrap_or_default()),
    }
}

/// `2026-11-21T12:39:28.123Z`. Empty for a time that the calendar does not have.
#[must_use]
pub fn in_words(time: SystemTime) -> String {
    Timestamp::try_from(time)
        .and_then(|time| time.round(Unit::Millisecond))
        .map_or_else(|_| String::new(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drops::record::End;

    fn record(from: Option<&str>, to: &str, port: u16) -> Record {
        let pod = |name: &str| End { pod: Some(name.to_owned()), ..End::default() };
        let from = from.map_or_else(End::default, pod);
        Record { from, to: pod(to), port: Some(port), count: 1, ..Record::default() }
    }

    fn ports(page: &Page) -> Vec<u16> {
        page.records.iter().filter_map(|record| record.port).collect()
    }

    fn all(log: &DropLog) -> Page {
        log.page("n1", &Filter::default())
    }

    #[test]
    fn reader_goes_on_where_it_was_and_gets_complete_records_again() {
        let log = DropLog::new(10, None);
        let first = log.insert(record(Some("shop/web"), "shop/db", 1));
        let page = all(&log);
        assert_eq!((ports(&page), page.next), (vec![1], first));
        log.insert(record(Some("shop/web"), "shop/db", 2));
        let since = Filter { since: Some(page.next), ..Filter::default() };
        assert_eq!(ports(&log.page("n1", &since)), [2]);
        let update = Update { id: first, count: 5, last: SystemTime::now(), is_final: false };
        assert_eq!(log.update(&update), None);
        assert_eq!(all(&log).records[0].count, 5, "who reads it now sees the count");
        assert_eq!(ports(&log.page("n1", &since)), [2], "who has read it waits for the end");
        let ended = log.update(&Update { is_final: true, count: 7, ..update }).unwrap();
        assert_eq!((ended.id, ended.count, ended.complete), (first, 7, true));
        let page = log.page("n1", &since);
        assert_eq!(ports(&page), [2, 1]);
        assert_eq!((page.records[1].id, page.records[1].count), (first, 7));
        assert!(page.next >= page.records[1].cursor);
        assert_eq!(log.update(&update), None, "it is complete");
    }

    #[test]
    fn record_without_repeats_is_told_once() {
        let log = DropLog::new(10, None);
        let id = log.insert(record(Some("shop/web"), "shop/db", 1));
        let update = Update { id, count: 1, last: SystemTime::now(), is_final: true };
        assert_eq!(log.update(&update), None);
        assert!(all(&log).records[0].complete);
        assert_eq!(all(&log).next, id);
    }

    #[test]
    fn filters_are_about_either_end() {
        let log = DropLog::new(10, None);
        log.insert(record(Some("shop/web"), "shop/db", 1));
        log.insert(record(Some("blog/web"), "shop/db", 2));
        log.insert(record(None, "blog/web", 3));
        let with = |pod: Option<&str>, namespace: Option<&str>| {
            let owned = |text: &str| text.to_owned();
            let filter = Filter { pod: pod.map(owned), namespace: namespace.map(owned), ..Filter::default() };
            ports(&log.page("n1", &filter))
        };
        assert_eq!(with(Some("blog/web"), None), [2, 3]);
        assert_eq!(with(None, Some("shop")), [1, 2]);
        assert_eq!(with(Some("blog/web"), Some("shop")), [2]);
        assert_eq!(with(Some("web"), None), [0_u16; 0]);
    }

    #[test]
    fn whoever_causes_many_records_forgets_its_own() {
        let log = DropLog::new(100, None);
        log.insert(record(Some("shop/web"), "shop/db", 1));
        log.insert(record(None, "shop/db", 2));
        for port in 1000..2000_u16 {
            let pod = format!("evil/pod-{}", port % 7);
            log.insert(record(Some(&pod), "shop/db", port));
        }
        log.insert(record(Some("blog/web"), "shop/db", 3));
        let page = all(&log);
        assert_eq!(page.records.len(), 100);
        for port in [1, 2, 3, 1999] {
            assert!(ports(&page).contains(&port), "{port}");
        }
        // And its own pods share what it has.
        let of = |n: u16| ports(&page).iter().filter(|port| **port >= 1000 && **port % 7 == n).count();
        assert!((0..7).all(|n| (13..=15).contains(&of(n))), "{:?}", (0..7).map(of).collect::<Vec<_>>());
        let state = log.state();
        assert_eq!(state.owners.values().flat_map(BTreeMap::values).sum::<usize>(), 100);
        assert!(state.open.len() == 100);
    }
}
