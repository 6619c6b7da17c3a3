//! The daemon is killed repeatedly at any instant: no packet passes that no state allows, and none is dropped that all
//! states allow.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use fastrand::Rng;
use towpath::{
    lab::{FloodFlow, Probe, Topology, Variant},
    model::Family,
};

use crate::{
    churn_flows::{self, Pair, assert_none_arrived},
    reach::TIMEOUT,
    stand_in::{Hang, StandIns},
    testbed::{Bed, Daemon, Objects, READY, for_both_variants},
    wait::wait_until,
    yaml_objects::{namespace, policy},
};

/// [`churn_flows::NEVER`], and a receiver whose rules never admit the client.
pub(crate) fn never() -> Vec<Pair> {
    [&churn_flows::NEVER[..], &[("shop/client", "shop/silent")]].concat()
}

pub(crate) fn bed(variant: Variant) -> Bed {
    bed_in(variant, Topology::Bridge, &[])
}

/// The same in another topology, with more pods.
pub(crate) fn bed_in(variant: Variant, topology: Topology, more: &[(&'static str, usize)]) -> Bed {
    let here = ["turncoat", "receiver", "left", "right", "client", "silent", "server", "free"];
    let here: Vec<String> = here.iter().map(|name| format!("shop/{name}")).collect();
    let mut pods: Vec<(&str, usize)> = here.iter().map(|name| (name.as_str(), 0)).collect();
    pods.extend([("team/nomad", 0), ("far/peer", 1), ("far/friend", 1)]);
    pods.extend(more);
    let bed = Bed::in_topology(variant, topology, &pods);
    bed.write("namespaces.yaml", &[namespace("shop", "team: shop"), namespace("far", "team: far")]);
    bed.write(
        "policies.yaml",
        &[
            policy(
                "shop/double-dealers-do-not-send",
                "podSelector: {matchLabels: {role: double}}, policyTypes: [Egress]",
            ),
            policy(
                "shop/receiver-takes-double-dealers",
                "podSelector: {matchLabels: {app: receiver}}, \
                 ingress: [{from: [{podSelector: {matchLabels: {role: double}}}, \
                                   {namespaceSelector: {matchLabels: {tier: taken}}}]}]",
            ),
            policy(
                "shop/server-takes-friends",
                "podSelector: {matchLabels: {app: server}}, \
                 ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}, \
                           {from: [{namespaceSelector: {matchLabels: {team: far}}, \
                                    podSelector: {matchLabels: {role: friend}}}]}, \
                           {from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: ally}}}]}]",
            ),
            policy(
                "shop/client-sends-to-the-server",
                "podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], \
                 egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}, \
                          {to: [{podSelector: {matchLabels: {app: silent}}}]}]",
            ),
            policy("shop/silent", "podSelector: {matchLabels: {app: silent}}"),
        ],
    );
    for (name, _) in &pods {
        let app = name.split_once('/').unwrap().1;
        bed.write(&pod_file(app), &[bed.manifest(name, &format!("app: {app}"))]);
    }
    let states = Churn::new(&bed);
    states.turn.iter().for_each(|(name, states)| bed.objects().write_text(name, &states[0]));
    bed
}

pub(crate) fn pod_file(app: &str) -> String {
    format!("pod-{app}.yaml")
}

/// Files, each with its possible texts.
pub(crate) struct Churn {
    turn: Vec<(String, Vec<String>)>,
    objects: Objects,
}

impl Churn {
    pub(crate) fn new(bed: &Bed) -> Self {
        let pod = |name: &str, states: &[&str]| {
            let app = name.split_once('/').unwrap().1;
            let texts = states.iter().map(|more| bed.manifest(name, &format!("app: {app}, {more}")));
            (pod_file(app), texts.collect::<Vec<_>>())
        };
        let of_one = |app: &str, types: &str| {
            let spec = format!("podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [{types}]");
            policy("shop/one-of-two", &spec)
        };
        let extra = |peer: &str, port: u16| {
            policy(
                "shop/extra",
                &format!(
                    "podSelector: {{matchExpressions: [{{key: app, operator: In, values: [server, silent]}}]}}, \
                     ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {peer}}}}}}}], \
                                 ports: [{{port: {port}}}]}}]"
                ),
            )
        };
        Self {
            turn: vec![
                pod("shop/turncoat", &["role: honest", "role: double"]),
                ("one-of-two.yaml".to_owned(), vec![of_one("left", "Egress"), of_one("right", "Ingress")]),
                (
                    "team.yaml".to_owned(),
                    ["a", "b"].map(|it| namespace("team", &format!("tier: {it}"))).into(),
                ),
                pod("far/friend", &["role: friend", "role: ally"]),
                pod("shop/client", &["colour: red", "colour: blue"]),
                (
                    "extra.yaml".to_owned(),
                    vec![extra("left", 81), extra("right", 82), extra("none", 83), namespace("unused", "")],
                ),
            ],
            objects: bed.objects(),
        }
    }

    /// Changes one file to another state.
    pub(crate) fn step(&self, rng: &mut Rng) {
        let (name, states) = &self.turn[rng.usize(..self.turn.len())];
        self.objects.write_text(name, &states[rng.usize(..states.len())]);
    }

    /// Continues until stopped, with pauses of up to `pause` milliseconds.
    pub(crate) fn start(self, seed: u64, pause: u64) -> Churning {
        let stop = Arc::new(AtomicBool::new(false));
        let thread_stop = stop.clone();
        let thread = thread::spawn(move || {
            let mut rng = Rng::with_seed(seed);
            while !thread_stop.load(Ordering::Relaxed) {
                self.step(&mut rng);
                thread::sleep(Duration::from_millis(rng.u64(..pause)));
            }
        });
        Churning { stop, thread: Some(thread) }
    }
}

/// Stops when dropped.
pub(crate) struct Churning {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Churning {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(thread::JoinHandle::join));
    }
}

/// The flows that must never pass, in both families.
pub(crate) fn flows(bed: &Bed) -> Vec<FloodFlow> {
    churn_flows::flows(&never(), |pod| bed.end(pod), |pod, family| bed.address(pod, family))
}

/// Probes for every flow that must always pass, in both families.
pub(crate) fn always(bed: &Bed) -> Vec<Probe> {
    churn_flows::allowed_probes(|pod| bed.end(pod), |pod, family| bed.address(pod, family))
}

#[test]
fn kills_at_any_instant_neither_leak_nor_drop_allowed_packets() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        for (from, to) in never() {
            assert_eq!(bed.reaches(from, to), [true; 2], "before towpath nothing denies {from} -> {to}");
        }
        let first = bed.run(&[]);
        let flows = flows(&bed);
        let flood = bed.lab.flood(&flows, Duration::from_millis(1)).unwrap();
        let watch = bed.lab.watch(&always(&bed), Duration::from_millis(5), TIMEOUT).unwrap();
        let churning = Churn::new(&bed).start(7, 25);
        let mut rng = Rng::with_seed(20);
        thread::sleep(Duration::from_millis(300));
        first.kill();
        for _ in 0..15 {
            let daemon = bed.start(&[]);
            // Half of them are killed while they start.
            thread::sleep(Duration::from_millis(rng.u64(..700)));
            daemon.kill();
        }
        let last = bed.run(&[]);
        thread::sleep(Duration::from_millis(300));
        drop(churning);
        assert_none_arrived(flood, &flows, 100, &format!("{variant:?}, killed 16 times"));
        let watched = watch.stop();
        println!("{variant:?}: {} allowed connections, {} failed", watched.open, watched.failures.len());
        assert!(watched.failures.is_empty() && watched.broken.is_none(), "{watched:?}");
        assert!(watched.open > 500, "{}", watched.open);
        // What killed daemons left incomplete is completed: a restarted one has nothing to change.
        thread::sleep(Duration::from_millis(500));
        drop(last);
        let rules = || Family::BOTH.map(|family| bed.our_rules(family)).join("\n");
        let (before, fresh) = (rules(), bed.run(&[]));
        let after = rules();
        assert!(before == after, "before:\n{before}\nafter:\n{after}");
        drop(fresh);
    });
}

#[test]
fn new_daemon_waits_for_a_command_that_outlived_its_killed_daemon() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let restore = variant.program(Family::V4, "-restore");
        let stand_ins = StandIns::new(bed.folder(), &[&restore]);
        let mut command = bed.command(&[]);
        stand_ins.before_others(&mut command);
        let daemon = Daemon::start(&bed, command);
        daemon.wait_ready();
        wait_until("no command runs", READY, || stand_ins.left(&restore).is_empty());
        stand_ins.hang(&restore, Some(Hang::Meanwhile));
        bed.write("late.yaml", &[policy("shop/late", "podSelector: {matchLabels: {app: free}}")]);
        wait_until("a command that hangs", Duration::from_secs(5), || !stand_ins.left(&restore).is_empty());
        bed.objects().remove("late.yaml");
        daemon.kill();
        let next = bed.start(&[]);
        wait_until("the new daemon waits for the command of the killed one", Duration::from_secs(5), || {
            next.get("/readyz").is_some_and(|(_, text)| text.contains("another towpath"))
        });
        stand_ins.hang(&restore, None);
        wait_until("ready", READY, || next.is_ready());
        // Whatever the orphan wrote, it is not the desired state.
        assert_eq!(bed.reaches("far/peer", "shop/free"), [true; 2]);
    });
}
