//! New pods of a real API server pass the gate: their objects come from the watch, or are read once.

use std::{net::IpAddr, thread, time::Duration};

use serde_json::{Value, json};
use towpath::model::Family;

use crate::{
    cni::{self, Network, NewPod},
    harness::{
        SOON, World,
        objects::{self, labelled, path},
        with_control_plane,
    },
    traffic::{Sender, Sink},
    wait::wait_until,
};

const DENIED: u16 = 4000;
const ALLOWED: u16 = 5000;

/// A cluster in which pods of `shop` are isolated, and those with `app: new` accept one port from `far/friend`.
fn world(plane: crate::harness::Lease) -> World {
    let world = World::new(plane, &[("shop/server", 0), ("far/peer", 1), ("far/friend", 1)]);
    world.policy("shop/default-deny", &json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }));
    let friend = json!({ "namespaceSelector": {}, "podSelector": labelled(&json!({ "app": "friend" })) });
    world.policy(
        "shop/friends",
        &json!({
            "podSelector": labelled(&json!({ "app": "new" })),
            "ingress": [{ "from": [friend], "ports": [{ "port": ALLOWED, "protocol": "UDP" }] }],
        }),
    );
    world
}

fn network(world: &World) -> Network {
    let blocks = Family::BOTH.map(|family| world.node(0).pod_cidr(family).to_string());
    let first = cni::bridge(&blocks, &world.run_dir().join("ipam"));
    Network::new(first, Some(json!({ "socket": world.run_dir().join("gate.sock"), "timeoutSeconds": 60 })))
}

/// Creates the object of a pod as the scheduler leaves it, without an address. The pod gets the object's uid.
fn create(world: &World, pod: &mut NewPod) {
    let key = format!("{}/{}", pod.container.namespace, pod.container.name);
    let host = world.node(0).addresses();
    let mut object = objects::pod(&key, &json!({ "app": "new" }), world.node(0).name(), &[], host);
    object["status"] = json!({ "phase": "Pending" });
    let created = world.api().create(&object);
    created["metadata"]["uid"].as_str().unwrap().clone_into(&mut pod.container.uid);
}

fn delete_by_force(world: &World, key: &str) {
    let path = format!("{}?gracePeriodSeconds=0", path("pods", key));
    world.api().request("DELETE", &path, "", &Value::Null).unwrap();
}

fn send(world: &World, from: &str, to: IpAddr, port: u16) -> Sender {
    Sender::start(world.netns(from), to, port)
}

#[test]
fn new_pod_is_isolated_before_its_object_reports_an_address() {
    with_control_plane(|plane| {
        let world = world(plane);
        let daemon = world.run_with(0, &["--unknown-local-pods", "closed"]);
        let network = network(&world);
        for at in 0..6 {
            let key = format!("shop/new-{at}");
            let mut pod = NewPod::new(world.node(0), &key, 40 + at);
            let [denied, allowed] = [DENIED, ALLOWED].map(|port| Sink::open(&pod.netns, port));
            let strangers: Vec<Sender> = Family::BOTH
                .into_iter()
                .flat_map(|family| {
                    ["shop/server", "far/peer"].map(|from| send(&world, from, pod.address(family), DENIED))
                })
                .collect();
            create(&world, &mut pod);
            network.add(world.node(0).netns(), &pod.container, &pod.addresses).unwrap();
            let friends: Vec<Sender> =
                Family::BOTH.map(|family| send(&world, "far/friend", pod.address(family), ALLOWED)).into();
            wait_until("what is allowed to arrive", SOON, || allowed.arrived() > 20);
            // Seconds later kubelet reports the addresses.
            let ips: Vec<Value> = pod.addresses.iter().map(|address| json!({ "ip": address })).collect();
            let status =
                json!({ "status": { "phase": "Running", "podIP": pod.addresses[0], "podIPs": ips } });
            world.api().patch(&path("pods", &format!("{key}/status")), &status);
            thread::sleep(Duration::from_millis(200));
            let (sent, got) = (friends.into_iter().map(Sender::stop).sum::<u64>(), allowed.arrived());
            assert_eq!(got, sent, "no allowed packet was lost");
            assert!(strangers.into_iter().map(Sender::stop).all(|sent| sent > 20));
            assert_eq!(denied.arrived(), 0, "{key}");
            delete_by_force(&world, &key);
            network.del(world.node(0).netns(), &pod.container).unwrap();
        }
        assert!(!daemon.log().contains("object of a new pod not found"));
        let done = daemon.metric("towpath_gate_requests_total{command=\"add\",outcome=\"done\"}");
        assert!((done - 6.0).abs() < 0.5, "{done}");
    });
}

#[test]
fn pod_deleted_by_force_and_its_successor_are_policed_apart() {
    with_control_plane(|plane| {
        let world = world(plane);
        let _daemon = world.run_with(0, &["--unknown-local-pods", "closed"]);
        let network = network(&world);
        let node = world.node(0).netns();
        let mut old = NewPod::new(world.node(0), "shop/db-0", 40);
        create(&world, &mut old);
        network.add(node, &old.container, &old.addresses).unwrap();
        let old_sinks = [DENIED, ALLOWED].map(|port| Sink::open(&old.netns, port));
        let friend = send(&world, "far/friend", old.address(Family::V4), ALLOWED);
        wait_until("what is allowed to arrive", SOON, || old_sinks[1].arrived() > 20);
        let stranger = send(&world, "far/peer", old.address(Family::V4), DENIED);
        delete_by_force(&world, "shop/db-0");
        let mut new = NewPod::new(world.node(0), "shop/db-0", 41);
        create(&world, &mut new);
        network.add(node, &new.container, &new.addresses).unwrap();
        let new_sinks = [DENIED, ALLOWED].map(|port| Sink::open(&new.netns, port));
        let more = [
            send(&world, "far/friend", new.address(Family::V4), ALLOWED),
            send(&world, "far/peer", new.address(Family::V4), DENIED),
        ];
        wait_until("what is allowed to arrive", SOON, || new_sinks[1].arrived() > 20);
        // The old one still runs, by the same policies as before.
        let before = old_sinks[1].arrived();
        wait_until("what is allowed to arrive at the old pod", SOON, || old_sinks[1].arrived() > before + 20);
        assert!(stranger.stop() > 20 && friend.stop() > 20);
        for sender in more {
            assert!(sender.stop() > 20);
        }
        assert_eq!([old_sinks[0].arrived(), new_sinks[0].arrived()], [0, 0]);
        network.del(node, &old.container).unwrap();
        let again = send(&world, "far/friend", new.address(Family::V4), ALLOWED);
        let before = new_sinks[1].arrived();
        wait_until("the new pod to be reached still", SOON, || new_sinks[1].arrived() > before);
        drop(again);
    });
}

#[test]
fn pod_starts_closed_while_the_api_server_is_away_and_opens_when_it_is_back() {
    with_control_plane(|plane| {
        let world = world(plane);
        let _daemon = world.run_with(0, &["--unknown-local-pods", "closed"]);
        let network = network(&world);
        let mut pod = NewPod::new(world.node(0), "shop/new", 40);
        pod.container.uid = "not known yet".to_owned();
        world.cable(0).cut(&world.plane);
        network.add(world.node(0).netns(), &pod.container, &pod.addresses).unwrap();
        let allowed = Sink::open(&pod.netns, ALLOWED);
        let friend = send(&world, "far/friend", pod.address(Family::V4), ALLOWED);
        thread::sleep(Duration::from_millis(300));
        assert!(friend.sent() > 50);
        assert_eq!(allowed.arrived(), 0);
        world.cable(0).reconnect(&world.plane);
        network.del(world.node(0).netns(), &pod.container).unwrap();
        create(&world, &mut pod);
        network.add(world.node(0).netns(), &pod.container, &pod.addresses).unwrap();
        wait_until("what is allowed to arrive", SOON, || allowed.arrived() > 20);
    });
}
