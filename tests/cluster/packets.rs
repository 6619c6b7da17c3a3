//! Changes at the API server are enforced.

use std::{net::IpAddr, thread, time::Duration};

use serde_json::{Value, json};
use towpath::{
    lab::{FloodFlow, Variant},
    model::Family,
};

use crate::harness::{
    READY, SOON, World,
    objects::{self, labelled, path},
    with_control_plane,
};

/// Admits these peers on TCP port 80.
fn admits(app: &str, peer: &Value) -> Value {
    json!({
        "podSelector": labelled(&json!({ "app": app })),
        "ingress": [{ "from": [peer], "ports": [{ "port": 80 }] }],
    })
}

fn peer(labels: &Value) -> Value {
    json!({ "podSelector": labelled(labels) })
}

#[test]
fn changes_of_api_objects_are_enforced_in_both_families() {
    with_control_plane(|plane| {
        let pods = [("shop/db", 0), ("shop/api", 0), ("shop/web", 1), ("ops/cron", 1), ("shop/late", 1)];
        let world = World::new(plane, &pods);
        let daemon = world.run(0);
        for from in ["shop/api", "shop/web", "ops/cron"] {
            world.until(from, "shop/db", true, SOON);
        }

        // A policy is created, changed and deleted.
        world.policy("shop/db", &admits("db", &peer(&json!({ "app": "api" }))));
        world.until("shop/web", "shop/db", false, SOON);
        world.until("ops/cron", "shop/db", false, SOON);
        assert_eq!(world.reaches("shop/api", "shop/db"), [true; 2]);
        let key = path("networkpolicies", "shop/db");
        world.api().patch(&key, &json!({ "spec": admits("db", &peer(&json!({ "role": "client" }))) }));
        world.until("shop/api", "shop/db", false, SOON);

        // Labels of pods, here and on the other node, and of a namespace.
        world.label("shop/web", &json!({ "role": "client" }));
        world.until("shop/web", "shop/db", true, SOON);
        world.label("shop/api", &json!({ "role": "client" }));
        world.until("shop/api", "shop/db", true, SOON);
        world.label("shop/web", &json!({ "role": null }));
        world.until("shop/web", "shop/db", false, SOON);
        let team = json!({ "namespaceSelector": labelled(&json!({ "tier": "backstage" })) });
        world.policy("shop/db-from-backstage", &admits("db", &team));
        assert_eq!(world.reaches("ops/cron", "shop/db"), [false; 2]);
        world.api().label("/api/v1/namespaces/ops", &json!({ "tier": "backstage" }));
        world.until("ops/cron", "shop/db", true, SOON);
        world.api().label("/api/v1/namespaces/ops", &json!({ "tier": null }));
        world.until("ops/cron", "shop/db", false, SOON);

        // The policy's subject becomes another one.
        world.label("shop/db", &json!({ "app": "cache" }));
        world.until("shop/web", "shop/db", true, SOON);
        world.label("shop/db", &json!({ "app": "db" }));
        world.until("shop/web", "shop/db", false, SOON);

        // A pod is deleted, so its address is no longer a peer; it is recreated.
        world.label("shop/late", &json!({ "role": "client" }));
        world.until("shop/late", "shop/db", true, SOON);
        world.api().delete(&path("pods", "shop/late"));
        world.until("shop/late", "shop/db", false, SOON);
        world.api().create(&world.object("shop/late", &json!({ "role": "client" })));
        world.until("shop/late", "shop/db", true, SOON);
        world.label("shop/late", &json!({ "role": null }));
        world.until("shop/late", "shop/db", false, SOON);

        world.api().delete(&path("networkpolicies", "shop/db"));
        world.api().delete(&path("networkpolicies", "shop/db-from-backstage"));
        world.until("shop/late", "shop/db", true, SOON);
        assert!(daemon.is_ready());
    });
}

#[test]
fn pod_is_a_peer_from_its_first_address_until_its_end() {
    with_control_plane(|plane| {
        let world = World::with(plane, Variant::Legacy, &[("shop/db", 0), ("shop/job", 1), ("shop/idle", 1)]);
        world.policy("shop/db", &admits("db", &peer(&json!({ "role": "client" }))));
        let _daemon = world.run(0);
        world.until("shop/job", "shop/db", false, SOON);

        // Scheduled, but without an address: the kubelet's part follows later.
        let addresses = Family::BOTH.map(|family| world.address("shop/job", family));
        let object = |addresses: &[IpAddr]| {
            let (name, host) = (world.node(1).name(), world.node(1).addresses());
            objects::pod("shop/job", &json!({ "role": "client" }), name, addresses, host)
        };
        let (job, status) = (path("pods", "shop/job"), path("pods", "shop/job/status"));
        world.api().delete(&job);
        let mut pending = object(&[]);
        pending["status"]["phase"] = "Pending".into();
        world.api().create(&pending);
        world.label("shop/idle", &json!({ "role": "client" }));
        world.until("shop/idle", "shop/db", true, SOON);
        assert_eq!(world.reaches("shop/job", "shop/db"), [false; 2]);
        world.api().patch(&status, &json!({ "status": object(&addresses)["status"] }));
        world.until("shop/job", "shop/db", true, SOON);

        // A terminating pod is still a peer; once it has finished, its address is not, though the object still exists.
        world.api().request("DELETE", &format!("{job}?gracePeriodSeconds=600"), "", &Value::Null).unwrap();
        assert!(world.api().get(&job).unwrap()["metadata"]["deletionTimestamp"].is_string());
        world.label("shop/idle", &json!({ "role": null }));
        world.until("shop/idle", "shop/db", false, SOON);
        assert_eq!(world.reaches("shop/job", "shop/db"), [true; 2]);
        world.api().patch(&status, &json!({ "status": { "phase": "Succeeded" } }));
        world.until("shop/job", "shop/db", false, SOON);
        assert!(world.api().get(&job).is_some());
    });
}

#[test]
fn each_daemon_enforces_only_for_pods_of_its_node() {
    with_control_plane(|plane| {
        let world =
            World::new(plane, &[("shop/one", 0), ("shop/near", 0), ("shop/two", 1), ("shop/other", 1)]);
        let daemons = [world.run(0), world.run(1)];
        world.policy("shop/one", &admits("one", &peer(&json!({ "app": "two" }))));
        let egress = json!({
            "podSelector": labelled(&json!({ "app": "two" })), "policyTypes": ["Egress"],
            "egress": [{ "to": [peer(&json!({ "app": "near" }))] }],
        });
        // The receiver's node denies one, the sender's node the other.
        world.until("shop/other", "shop/one", false, SOON);
        world.until("shop/two", "shop/one", true, SOON);
        world.policy("shop/two", &egress);
        world.until("shop/two", "shop/one", false, SOON);
        world.until("shop/two", "shop/near", true, SOON);
        world.until("shop/other", "shop/two", true, SOON);

        // Both must allow it.
        let flow = |from: &str, to: &str| FloodFlow {
            from: world.end(from),
            to: world.address(to, Family::V4),
            port: 4000,
        };
        let flood = world
            .lab
            .flood(&[flow("shop/two", "shop/one"), flow("shop/other", "shop/near")], Duration::from_millis(2))
            .unwrap();
        world.label("shop/one", &json!({ "app": "near" }));
        thread::sleep(Duration::from_millis(500));
        world.label("shop/one", &json!({ "app": "one" }));
        thread::sleep(Duration::from_millis(500));
        let report = flood.stop();
        assert!(report.arrived(1) > 50, "allowed packets arrive: {report:?}");
        // The policy of `one` admits only TCP; while `one` has the label `near`, that of `two` allows sending to it.
        assert!(report.arrived(0) < report.arrived(1), "{}, {}", report.arrived(0), report.arrived(1));
        world.until("shop/two", "shop/one", false, READY);

        // Rules that one node's daemon leaves behind when it ends do not affect the other node.
        let [first, second] = daemons;
        drop(first);
        world.api().delete(&path("networkpolicies", "shop/two"));
        world.until("shop/other", "shop/one", false, SOON);
        world.until("shop/two", "shop/one", true, SOON);
        drop(second);
    });
}
