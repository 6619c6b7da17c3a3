//! The API server is unreachable, silent, behind or restored: rules stay in force, and missed changes are enforced
//! later.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    harness::{
        Api, Daemon, Lease, READY, SOON, World,
        control_plane::PORT,
        objects::{labelled, namespace, path},
        with_control_plane,
    },
    wait::wait_until,
};

/// How long a daemon may take to detect a dead connection that was not closed, and to reconnect: it waits 90 seconds
/// for any data.
const DEAD: Duration = Duration::from_secs(150);

/// A second API server on the same etcd, which the daemon does not know.
const OTHER: u16 = PORT + 1;

/// Only pods with the label `role: client` may reach the database; two of them do. No pod may reach the shelf.
fn world(plane: Lease) -> World {
    let world = World::new(
        plane,
        &[("shop/db", 0), ("shop/shelf", 0), ("shop/first", 1), ("shop/second", 1), ("shop/gone", 1)],
    );
    world.label("shop/first", &json!({ "role": "client" }));
    world.label("shop/gone", &json!({ "role": "client" }));
    let clients: Value = json!({ "podSelector": labelled(&json!({ "role": "client" })) });
    world.policy(
        "shop/db",
        &json!({ "podSelector": labelled(&json!({ "app": "db" })), "ingress": [{ "from": [clients] }] }),
    );
    world.policy("shop/shelf", &json!({ "podSelector": labelled(&json!({ "app": "shelf" })) }));
    world
}

#[track_caller]
fn assert_initial_state(world: &World) {
    world.until("shop/first", "shop/db", true, SOON);
    world.until("shop/gone", "shop/db", true, SOON);
    world.until("shop/second", "shop/db", false, SOON);
    world.until("shop/second", "shop/shelf", false, SOON);
}

/// Changes while the daemon receives nothing: a pod and a policy are deleted, labels change, a namespace is created.
fn change_objects(api: &Api) {
    api.delete(&path("pods", "shop/gone"));
    api.delete(&path("networkpolicies", "shop/shelf"));
    api.label(&path("pods", "shop/first"), &json!({ "role": null }));
    api.label(&path("pods", "shop/second"), &json!({ "role": "client" }));
    api.create(&namespace("new", &json!({ "team": "new" })));
}

/// The effect of these changes, once they are received.
#[track_caller]
fn assert_changed_state(world: &World, at_most: Duration) {
    world.until("shop/second", "shop/db", true, at_most);
    world.until("shop/second", "shop/shelf", true, SOON);
    world.until("shop/first", "shop/db", false, SOON);
    world.until("shop/gone", "shop/db", false, SOON);
}

#[test]
fn objects_deleted_during_a_disconnection_are_removed_on_reconnection() {
    with_control_plane(|plane| {
        let world = world(plane);
        let daemon = world.run(0);
        assert_initial_state(&world);
        world.cable(0).cut(&world.plane);
        change_objects(world.api());
        thread::sleep(Duration::from_secs(2));
        assert_initial_state(&world);
        world.cable(0).reconnect(&world.plane);
        assert_changed_state(&world, DEAD);
        daemon.wait_ready();
    });
}

#[test]
fn killed_api_server_is_reconnected_and_missed_changes_are_enforced() {
    with_control_plane(|plane| {
        let world = world(plane);
        let other = world.plane.second_server(OTHER, &[]);
        let daemon = world.run(0);
        assert_initial_state(&world);
        world.plane.kill();
        change_objects(&other.api);
        assert_initial_state(&world);
        // A long absence is reported, with its duration.
        let reason = daemon.wait_unready(READY + SOON, &["no changes received for", "100.100.0.1"]);
        println!("without an API server for long: {}", reason.trim());
        let staleness = r#"towpath_watch_staleness_seconds{kind="Pod"}"#;
        assert!(daemon.metric(staleness) > 20.0, "{}", daemon.metric(staleness));
        assert_initial_state(&world);
        world.plane.restart();
        assert_changed_state(&world, READY + SOON);
        daemon.wait_ready();
        assert!(daemon.metric(staleness) < 20.0, "{}", daemon.metric(staleness));

        // Without etcd: the API server answers, but with errors.
        world.plane.kill_etcd();
        thread::sleep(Duration::from_secs(1));
        assert_changed_state(&world, SOON);
        world.plane.restart_etcd();
        world.label("shop/first", &json!({ "role": "client" }));
        world.until("shop/first", "shop/db", true, READY + SOON);
        daemon.wait_ready();
    });
}

#[test]
fn daemon_started_without_an_api_server_is_not_ready_and_keeps_the_rules() {
    with_control_plane(|plane| {
        let world = world(plane);
        let other = world.plane.second_server(OTHER, &[]);
        let first = world.run(0);
        assert_initial_state(&world);
        first.kill();
        drop(first);
        world.plane.kill();
        let second = world.start(0);
        let reason = second.wait_unready(READY, &["API server", "100.100.0.1"]);
        println!("without an API server: {}", reason.trim());
        change_objects(&other.api);
        thread::sleep(Duration::from_secs(1));
        assert_initial_state(&world);
        assert_eq!(second.get("/livez").map(|(status, _)| status), Some(200), "a waiting daemon is alive");
        drop(other);
        world.plane.restart();
        assert_changed_state(&world, READY + SOON);
        second.wait_ready();
    });
}

#[test]
fn compacted_history_leads_to_a_relist() {
    with_control_plane(|plane| {
        let world = world(plane);
        // Without a watch cache it reads from etcd for each watch, and so has no older versions than etcd.
        let uncached = ["--watch-cache=false"];
        let other = world.plane.second_server(OTHER, &uncached);
        let daemon = Daemon::start(&world, 0, world.command_at(0, OTHER, &[]));
        daemon.wait_ready();
        assert_initial_state(&world);
        drop(other);
        change_objects(world.api());
        world.plane.compact();
        thread::sleep(Duration::from_secs(1));
        assert_initial_state(&world);
        let other = world.plane.second_server(OTHER, &uncached);
        assert_changed_state(&world, READY + SOON);
        daemon.wait_ready();
        assert!(
            daemon.restarts("gone") > 0,
            "the watch did not end with an expired version: {}",
            daemon.log()
        );
        drop(other);
    });
}

#[test]
fn daemon_waits_for_its_node_object() {
    with_control_plane(|plane| {
        let world = world(plane);
        let node = world.api().get("/api/v1/nodes/node-1").unwrap();
        world.api().delete("/api/v1/nodes/node-1");
        let daemon = world.start(0);
        let reason = daemon.wait_unready(READY, &["no node", "node-1", "--node-name"]);
        println!("without its node: {}", reason.trim());
        assert_eq!(
            world.reaches("shop/second", "shop/shelf"),
            [true; 2],
            "nothing is written before the node is known"
        );
        let mut again = json!({ "apiVersion": "v1", "kind": "Node" });
        again["metadata"] = json!({ "name": "node-1" });
        again["spec"] = node["spec"].clone();
        again["status"] = node["status"].clone();
        world.api().create(&again);
        daemon.wait_ready();
        assert_initial_state(&world);

        // If it is deleted later, it is reported missing, and nothing else changes.
        world.api().delete("/api/v1/nodes/node-1");
        daemon.wait_unready(SOON, &["no node", "node-1", "any more"]);
        assert_initial_state(&world);
        change_objects(world.api());
        assert_changed_state(&world, SOON);
        world.api().create(&again);
        daemon.wait_ready();
    });
}

/// Each case takes as long as the timeout for silence, so they run in parallel.
#[test]
fn silent_connections_are_replaced_within_a_bounded_time() {
    let silences = [firewall_drops_the_connections, api_server_hangs, etcd_is_restored_from_a_backup];
    let running: Vec<_> = silences.map(|silence| thread::spawn(move || with_control_plane(silence))).into();
    let ended: Vec<_> = running.into_iter().map(thread::JoinHandle::join).collect();
    if let Some(panic) = ended.into_iter().find_map(Result::err) {
        std::panic::resume_unwind(panic);
    }
}

/// Packets of existing connections are dropped, and neither end is notified.
fn firewall_drops_the_connections(plane: Lease) {
    let world = world(plane);
    let daemon = world.run(0);
    assert_initial_state(&world);
    let dropped = world.cable(0).drop_connections(&world.plane);
    assert!(dropped > 0, "there was no connection");
    change_objects(world.api());
    thread::sleep(Duration::from_secs(2));
    assert_initial_state(&world);
    assert_changed_state(&world, DEAD);
    daemon.wait_ready();
}

/// Its kernel still accepts connections, but nothing answers on them.
fn api_server_hangs(plane: Lease) {
    let world = world(plane);
    let daemon = world.run(0);
    assert_initial_state(&world);
    world.plane.pause();
    wait_until("the watch ends after a silence", DEAD, || daemon.restarts("quiet") > 0);
    // It relists, and gets no answer.
    daemon.wait_unready(Duration::from_secs(30), &["no changes received for", "the API server"]);
    world.cable(0).drop_connections(&world.plane);
    assert_initial_state(&world);
    world.plane.resume();
    change_objects(world.api());
    assert_changed_state(&world, READY + SOON);
    daemon.wait_ready();
}

/// The server accepts watches that resume from versions that it has yet to reach, and is silent until it has.
fn etcd_is_restored_from_a_backup(plane: Lease) {
    let world = world(plane);
    world.plane.back_up();
    world.plane.wait_ready();
    let daemon = world.run(0);
    // So many versions that the restored server does not reach those of the daemon by itself: otherwise it would report
    // that they have expired, or miss the ones in between.
    for number in 0..2000 {
        world.plane.put("/filler", &json!(number));
    }
    change_objects(world.api());
    assert_changed_state(&world, SOON);
    // States that the daemon received no longer exist, and versions that it resumes from are in the future.
    world.plane.restore();
    world.until("shop/first", "shop/db", true, DEAD);
    assert_initial_state(&world);
    daemon.wait_ready();
    change_objects(world.api());
    assert_changed_state(&world, SOON);
}
