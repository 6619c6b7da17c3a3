//! Kubernetes Events about exceeded budgets, for the owner of the namespace.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    harness::{Daemon, SOON, World, with_control_plane},
    wait::wait_until,
};

/// Applies a folder of deploy/.
fn apply(world: &World, folder: &str) {
    let applied = world.plane.kubectl(&["apply", "-k", folder], "");
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
}

/// Our Events in a namespace, as `regarding` and note.
fn events(world: &World, namespace: &str) -> Vec<(String, String)> {
    let list = world.api().list(&format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"));
    let ours = list.iter().filter(|event| event["reportingController"] == "towpath");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    ours.map(|event| {
        assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("OverBudget")), "{event}");
        assert_eq!(event["reportingInstance"], "node-1", "{event}");
        let regarding = &event["regarding"];
        (format!("{} {}", text(&regarding["kind"]), text(&regarding["name"])), text(&event["note"]))
    })
    .collect()
}

#[test]
fn event_is_written_for_a_policy_over_budget_if_permitted() {
    with_control_plane(|plane| {
        let world = World::new(plane, &[("shop/db", 0), ("shop/web", 0), ("quiet/db", 0)]);
        let name = "p".repeat(253);
        let rules: Vec<Value> = (1..200)
            .map(|port| json!({ "ports": [{ "port": port }], "from": [{ "podSelector": {} }] }))
            .collect();
        world.policy(&format!("shop/{name}"), &json!({ "podSelector": {}, "ingress": rules }));
        world.policy("quiet/small", &json!({ "podSelector": {} }));
        let start = || {
            let daemon = Daemon::start(&world, 0, world.command(0, &["--policy-budget", "200"]));
            daemon.wait_ready();
            daemon
        };

        // Without the permission to create Events, the daemon continues.
        let daemon = start();
        wait_until("the log names the component that grants the permission", SOON, || {
            daemon.log().contains("deploy/components/events")
        });
        assert!(daemon.is_ready());
        world.until("shop/web", "shop/db", false, SOON);
        assert_eq!(events(&world, "shop"), []);
        drop(daemon);

        apply(&world, "deploy/overlays/events");
        let daemon = start();
        wait_until("an Event", SOON, || !events(&world, "shop").is_empty());
        let (regarding, note) = events(&world, "shop").remove(0);
        assert_eq!(regarding, format!("NetworkPolicy {name}"));
        assert!(note.contains("over the budget of the policy (200)"), "{note}");
        drop(daemon);

        // The whole namespace over budget: the Event is in the namespace itself. Each Event is created once.
        let command = world.command(0, &["--namespace-budget", "100"]);
        let daemon = Daemon::start(&world, 0, command);
        daemon.wait_ready();
        wait_until("an Event about the namespace", SOON, || {
            events(&world, "shop").iter().any(|(regarding, _)| regarding == "Namespace shop")
        });
        // A repeated Event would be created every second.
        thread::sleep(Duration::from_millis(3500));
        assert_eq!(events(&world, "shop").len(), 2, "{:?}", events(&world, "shop"));
        assert_eq!(events(&world, "quiet"), []);
        drop(daemon);
        apply(&world, "deploy");
    });
}
