//! What a round of the loop does, seen from the dataplane.

#![cfg(test)]

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use towpath::{
    agent::{Agent, Input, Pace, Readiness, Status},
    dataplane::{ApplyError, Dataplane, DataplaneError, Drift, fake::Fake},
    lab::random::{Generator, NODES, Shape, Stack},
    metrics::Metrics,
    model::Change,
    ruleset::{Object, Ruleset, SetName, compile::Options, observed::Observed, plan::Step},
};

/// A fake that writes down what is asked of it, and that others can look into.
#[derive(Clone, Default)]
struct Spied {
    fake: Arc<Mutex<Fake>>,
    calls: Arc<Mutex<Vec<&'static str>>>,
}

impl Spied {
    fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }

    fn ruleset(&self) -> Ruleset {
        self.fake.lock().unwrap().ruleset().clone()
    }
}

impl Dataplane for Spied {
    fn observe(&mut self) -> Result<Observed, DataplaneError> {
        self.calls.lock().unwrap().push("observe");
        self.fake.lock().unwrap().observe()
    }

    fn apply(&mut self, step: &Step) -> Result<(), ApplyError> {
        self.calls.lock().unwrap().push(match step {
            Step::Sets(_) => "sets",
            Step::Chains(..) => "chains",
            Step::Tidy(_) => "tidy",
        });
        self.fake.lock().unwrap().apply(step)
    }

    fn check(&mut self, expected: &Observed) -> Result<Drift, DataplaneError> {
        self.calls.lock().unwrap().push("check");
        self.fake.lock().unwrap().check(expected)
    }
}

/// A running loop.
struct Loop {
    inputs: Sender<Input>,
    status: Arc<Status>,
    thread: Option<JoinHandle<()>>,
}

impl Loop {
    fn start(dataplane: Spied) -> Self {
        let (inputs, inbox) = mpsc::channel();
        let status = Arc::new(Status::starting("the objects"));
        let (metrics, told) = (Arc::new(Metrics::new().unwrap()), status.clone());
        let pace = Pace {
            debounce: Duration::from_millis(1),
            tidy: Duration::from_millis(1),
            retry_first: Duration::from_mins(1),
            retry_most: Duration::from_mins(1),
            ..Pace::default()
        };
        let work = move || {
            Agent::new(NODES[0], dataplane, Options::default(), pace, metrics, told, None).run(&inbox);
        };
        Self { inputs, status, thread: Some(thread::spawn(work)) }
    }

    fn tell(&self, input: Input) {
        self.inputs.send(input).unwrap();
    }

    /// Ends it once it has done all that it was told.
    fn end(mut self) {
        thread::sleep(Duration::from_millis(50));
        self.tell(Input::Stop);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn changes() -> Vec<Change> {
    let shape = Shape { stack: Stack::V4, namespaces: 2, pods: 4, policies: 6, oddities: false };
    Generator::new(7, shape).cluster()
}

#[track_caller]
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} did not come");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn nothing_is_asked_or_written_before_everything_is_read() {
    let dataplane = Spied::default();
    let running = Loop::start(dataplane.clone());
    running.tell(Input::Changes(changes()));
    running.tell(Input::Suspicion);
    thread::sleep(Duration::from_millis(100));
    assert!(dataplane.calls().is_empty(), "{:?}", dataplane.calls());
    assert_eq!(running.status.readiness(), Readiness::Starting("the objects".to_owned()));
    running.tell(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    assert!(dataplane.calls().contains(&"chains"));
    running.end();
}

#[test]
fn nothing_changed_nothing_run() {
    let dataplane = Spied::default();
    let running = Loop::start(dataplane.clone());
    running.tell(Input::Changes(changes()));
    running.tell(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    let settled = dataplane.calls();
    running.tell(Input::Changes(changes()));
    running.end();
    assert_eq!(dataplane.calls(), settled);

    // A new process looks once. It takes over sets as they are, and writes chains anew, since it never reads rules.
    let held = dataplane.ruleset();
    let successor = Spied { fake: dataplane.fake.clone(), ..Spied::default() };
    let running = Loop::start(successor.clone());
    running.tell(Input::Changes(changes()));
    running.tell(Input::Synced);
    wait_for("readiness", || running.status.readiness() == Readiness::Ready);
    running.end();
    assert_eq!(successor.calls(), ["observe", "chains", "chains"]);
    assert_eq!(dataplane.ruleset(), held);
}

#[test]
fn what_the_kernel_refuses_is_closed_and_the_rest_is_enforced() {
    let enforced = |refused: Option<Object>| {
        let dataplane = Spied::default();
        if let Some(object) = refused {
            dataplane.fake.lock().unwrap().refuse(object);
        }
        let running = Loop::start(dataplane.clone());
        running.tell(Input::Changes(changes()));
        running.tell(Input::Synced);
        wait_for("a round", || !matches!(running.status.readiness(), Readiness::Starting(_)));
        let readiness = running.status.readiness();
        running.end();
        (dataplane.ruleset(), readiness)
    };
    let (whole, readiness) = enforced(None);
    assert_eq!(readiness, Readiness::Ready);
    let allows = |name: &&SetName| name.as_str().starts_with("tp4-pods-");
    let set = Object::Set(whole.v4.sets.keys().find(allows).unwrap().clone());
    let (closed, readiness) = enforced(Some(set.clone()));
    assert_eq!(readiness, Readiness::Degraded(format!("the kernel refused {set}")));
    assert_ne!(closed, whole);
    assert_eq!(closed, whole.without(&BTreeSet::from([set])));
}
