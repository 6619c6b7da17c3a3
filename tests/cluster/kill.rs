//! API server, etcd and daemon are killed in every order while objects change: no packet passes that no state allows,
//! and none is dropped that all states allow.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use fastrand::Rng;
use serde_json::{Value, json};
use towpath::lab::Variant;

use crate::{
    churn_flows::{self, NEVER, assert_none_arrived},
    harness::{
        Api, Daemon, Lease, READY, SOON, World,
        objects::{labelled, path, policy},
        with_control_plane,
    },
    reach::TIMEOUT,
    wait::wait_until,
};

fn world(plane: Lease, variant: Variant) -> World {
    let here = ["turncoat", "receiver", "left", "right", "client", "server", "free"];
    let here: Vec<String> = here.iter().map(|name| format!("shop/{name}")).collect();
    let mut pods: Vec<(&str, usize)> = here.iter().map(|name| (name.as_str(), 0)).collect();
    pods.extend([("team/nomad", 0), ("far/peer", 1), ("far/friend", 1)]);
    let world = World::with(plane, variant, &pods);
    let app = |app: &str| json!({ "podSelector": labelled(&json!({ "app": app })) });
    let role = |role: &str| labelled(&json!({ "role": role }));
    let policies = [
        ("double-dealers-do-not-send", json!({ "podSelector": role("double"), "policyTypes": ["Egress"] })),
        (
            "receiver-takes-double-dealers",
            json!({
                "podSelector": labelled(&json!({ "app": "receiver" })),
                "ingress": [{ "from": [
                    { "podSelector": role("double") },
                    { "namespaceSelector": labelled(&json!({ "tier": "taken" })) },
                ] }],
            }),
        ),
        (
            "server-takes-friends",
            json!({
                "podSelector": labelled(&json!({ "app": "server" })),
                "ingress": [
                    { "from": [app("client")] },
                    { "from": [{
                        "namespaceSelector": labelled(&json!({ "team": "far" })), "podSelector": role("friend"),
                    }] },
                    { "from": [{ "namespaceSelector": {}, "podSelector": role("ally") }] },
                ],
            }),
        ),
        (
            "client-sends-to-the-server",
            json!({
                "podSelector": labelled(&json!({ "app": "client" })), "policyTypes": ["Egress"],
                "egress": [{ "to": [app("server")] }],
            }),
        ),
    ];
    for (name, spec) in policies {
        world.policy(&format!("shop/{name}"), &spec);
    }
    for (path, states) in states() {
        let (kind, key) = path;
        match kind {
            "networkpolicies" => drop(world.api().create(&policy(key, &states[0]["spec"]))),
            _ => drop(world.api().patch(&object_path(kind, key), &states[0])),
        }
    }
    world
}

fn object_path(kind: &str, key: &str) -> String {
    if kind == "namespaces" { format!("/api/v1/namespaces/{key}") } else { path(kind, key) }
}

/// Objects, each with its changes.
fn states() -> Vec<((&'static str, &'static str), Vec<Value>)> {
    let labels = |key: &str, values: &[&str]| -> Vec<Value> {
        values.iter().map(|value| json!({ "metadata": { "labels": { key: value } } })).collect()
    };
    let one_of_two = |app: &str, kind: &str| json!({ "spec": { "podSelector": labelled(&json!({ "app": app })), "policyTypes": [kind] } });
    let extra = |peer: &str, port: u16| {
        json!({ "spec": {
            "podSelector": labelled(&json!({ "app": "server" })),
            "ingress": [{
                "from": [{ "podSelector": labelled(&json!({ "app": peer })) }], "ports": [{ "port": port }],
            }],
        } })
    };
    vec![
        (("pods", "shop/turncoat"), labels("role", &["honest", "double"])),
        (
            ("networkpolicies", "shop/one-of-two"),
            vec![one_of_two("left", "Egress"), one_of_two("right", "Ingress")],
        ),
        (("namespaces", "team"), labels("tier", &["a", "b"])),
        (("pods", "far/friend"), labels("role", &["friend", "ally"])),
        (("pods", "shop/client"), labels("colour", &["red", "blue"])),
        (("networkpolicies", "shop/extra"), vec![extra("left", 81), extra("right", 82), extra("none", 83)]),
    ]
}

/// Changes one object after the other until it is dropped.
struct Churn {
    stop: Arc<AtomicBool>,
    changes: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Churn {
    fn start(api: &Api, seed: u64) -> Self {
        let (stop, changes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (thread_stop, made, api) = (stop.clone(), changes.clone(), api.clone());
        let thread = thread::spawn(move || {
            let (states, mut rng) = (states(), Rng::with_seed(seed));
            while !thread_stop.load(Ordering::Relaxed) {
                let ((kind, key), changes) = &states[rng.usize(..states.len())];
                api.patch(&object_path(kind, key), &changes[rng.usize(..changes.len())]);
                made.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(rng.u64(..30)));
            }
        });
        Self { stop, changes, thread: Some(thread) }
    }

    fn changes(&self) -> usize {
        self.changes.load(Ordering::Relaxed)
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(thread::JoinHandle::join);
        assert!(thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the churn failed");
    }
}

/// One action of the test.
#[derive(Clone, Copy, Debug)]
enum Action {
    KillServer,
    StartServer,
    KillEtcd,
    StartEtcd,
    KillDaemon,
    StartDaemon,
}

/// Every order in which one, the other or both are killed and restarted, and once the storage is killed as well.
const SEQUENCES: [&[Action]; 7] = {
    use Action::{KillDaemon, KillEtcd, KillServer, StartDaemon, StartEtcd, StartServer};
    [
        &[KillServer, StartServer],
        &[KillDaemon, StartDaemon],
        &[KillServer, KillDaemon, StartServer, StartDaemon],
        &[KillServer, KillDaemon, StartDaemon, StartServer],
        &[KillDaemon, KillServer, StartServer, StartDaemon],
        &[KillDaemon, KillServer, StartDaemon, StartServer],
        &[KillEtcd, KillDaemon, StartDaemon, StartEtcd],
    ]
};

fn kill_in_every_order(plane: Lease, variant: Variant) {
    let world = world(plane, variant);
    for (from, to) in NEVER {
        assert_eq!(world.reaches(from, to), [true; 2], "before towpath nothing denies {from} -> {to}");
    }
    let mut daemon: Option<Daemon<'_>> = Some(world.run(0));
    let (end, address) = (|pod: &str| world.end(pod), |pod: &str, family| world.address(pod, family));
    let flows = churn_flows::flows(&NEVER, end, address);
    let always = churn_flows::allowed_probes(end, address);
    let flood = world.lab.flood(&flows, Duration::from_millis(4)).unwrap();
    let watch = world.lab.watch(&always, Duration::from_millis(50), TIMEOUT).unwrap();
    let churn = Churn::start(world.api(), 7);
    let mut rng = Rng::with_seed(20);
    thread::sleep(Duration::from_millis(500));
    for actions in SEQUENCES {
        let before = churn.changes();
        for action in actions {
            match action {
                Action::KillServer => world.plane.kill(),
                Action::StartServer => world.plane.restart(),
                Action::KillEtcd => world.plane.kill_etcd(),
                Action::StartEtcd => world.plane.restart_etcd(),
                Action::KillDaemon => drop(daemon.take().inspect(Daemon::kill)),
                Action::StartDaemon => daemon = Some(world.start(0)),
            }
            thread::sleep(Duration::from_millis(rng.u64(..700)));
        }
        world.plane.wait_ready();
        let daemon = daemon.as_ref().expect("every sequence starts it again");
        daemon.wait_ready();
        wait_until("changes continue", READY, || churn.changes() > before + 10);
        println!("{variant:?}, {actions:?}: ready again, {} changes so far", churn.changes());
    }
    let changes = churn.changes();
    drop(churn);
    assert_none_arrived(flood, &flows, 500, &format!("{variant:?}: {changes} changes"));
    let watched = watch.stop();
    println!("{variant:?}: {} allowed connections, {} failed", watched.open, watched.failures.len());
    assert!(watched.failures.is_empty() && watched.broken.is_none(), "{watched:?}");
    assert!(watched.open > 200, "{}", watched.open);
    assert_converges(&world);
    // What killed daemons left incomplete is completed: a restarted one has nothing to change.
    drop(daemon);
    let before = world.rules();
    let fresh = world.run(0);
    thread::sleep(Duration::from_millis(500));
    let after = world.rules();
    assert!(before == after, "before:\n{before}\nafter:\n{after}");
    drop(fresh);
}

/// After all that, a change is enforced as usual.
fn assert_converges(world: &World) {
    world.policy("shop/last", &json!({ "podSelector": labelled(&json!({ "app": "free" })) }));
    world.until("far/peer", "shop/free", false, SOON);
    world.api().delete(&path("networkpolicies", "shop/last"));
    world.until("far/peer", "shop/free", true, SOON);
    for (path, states) in states() {
        let (kind, key) = path;
        world.api().patch(&object_path(kind, key), &states[0]);
    }
    // Unused sets are destroyed a second later.
    thread::sleep(Duration::from_secs(2));
}

#[test]
fn kills_in_every_order_neither_leak_nor_drop_allowed_packets_with_nft() {
    with_control_plane(|plane| kill_in_every_order(plane, Variant::Nft));
}

#[test]
fn kills_in_every_order_neither_leak_nor_drop_allowed_packets_with_legacy() {
    with_control_plane(|plane| kill_in_every_order(plane, Variant::Legacy));
}
