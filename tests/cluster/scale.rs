//! A cluster of ordinary size at the API server.

use std::time::Instant;

use serde_json::{Value, json};

use crate::{
    harness::{
        Daemon, READY, SOON, World,
        control_plane::PORT,
        objects::{self, labelled, path},
        with_control_plane,
    },
    wait::wait_until,
};

const NAMESPACES: usize = 25;
const PODS: usize = 5_000;
const CHANGES: usize = 500;

fn key(index: usize) -> String {
    format!("ns-{}/pod-{index}", index % NAMESPACES)
}

fn app(index: usize) -> String {
    format!("app-{}", index / NAMESPACES % 10)
}

fn pod(index: usize) -> Value {
    let octet = |value: usize| u8::try_from(value).unwrap();
    let address = [10, 100 + octet(index / 62_500), octet(index / 250 % 250), octet(1 + index % 250)];
    let host = [192, 168, 200, octet(1 + index % 50)];
    let labels = json!({ "app": app(index) });
    objects::pod(&key(index), &labels, &format!("far-{}", index % 50), &[address.into()], &[host.into()])
}

#[test]
fn members_and_packets_are_right_while_5000_pods_come_change_and_go() {
    with_control_plane(|plane| {
        let world = World::new(plane, &[("shop/db", 0), ("shop/web", 1)]);
        let started = Instant::now();
        let namespaces = (0..NAMESPACES).map(|index| objects::namespace(&format!("ns-{index}"), &json!({})));
        world.api().create_all(namespaces.collect());
        world.api().create_all((0..PODS).map(pod).collect());
        println!("{PODS} pods created in {:.1} s", started.elapsed().as_secs_f64());

        // One set contains a tenth of them, and the web client.
        world.policy(
            "shop/db",
            &json!({
                "podSelector": labelled(&json!({ "app": "db" })),
                "ingress": [{ "from": [{
                    "namespaceSelector": {},
                    "podSelector": { "matchExpressions": [
                        { "key": "app", "operator": "In", "values": ["app-3", "web"] },
                    ] },
                }] }],
            }),
        );
        let started = Instant::now();
        let daemon = world.run(0);
        println!("ready {:.2} s after its start", started.elapsed().as_secs_f64());
        println!("resident {} KiB, at most {} KiB", daemon.memory("VmRSS"), daemon.memory("VmHWM"));
        let apps = |of: usize| (0..PODS).filter(|index| app(*index) == format!("app-{of}")).count();
        wait_until("its members", SOON, || world.members() == apps(3) + 1);
        world.until("shop/web", "shop/db", true, SOON);

        // Many pods change, some are deleted; a change that affects packets is not delayed.
        let started = Instant::now();
        let changes = (0..CHANGES).map(|index| {
            let index = index * (PODS / CHANGES);
            (path("pods", &key(index)), json!({ "metadata": { "labels": { "app": "app-3" } } }))
        });
        world.api().patch_all(changes.collect());
        world.label("shop/web", &json!({ "app": "other" }));
        world.until("shop/web", "shop/db", false, SOON);
        println!(
            "{CHANGES} changed labels and one that affects packets: {:.2} s",
            started.elapsed().as_secs_f64()
        );
        let was_changed = |index: usize| index.is_multiple_of(PODS / CHANGES);
        let member = |index: usize| app(index) == "app-3" || was_changed(index);
        let expected = (0..PODS).filter(|index| member(*index)).count();
        wait_until("its members", SOON, || world.members() == expected);
        for namespace in 0..5 {
            world.api().delete_namespace(&format!("ns-{namespace}"));
        }
        let expected = (0..PODS).filter(|index| index % NAMESPACES >= 5 && member(*index)).count();
        wait_until("its members", READY, || world.members() == expected);
        world.label("shop/web", &json!({ "app": "web" }));
        world.until("shop/web", "shop/db", true, SOON);
        println!("resident {} KiB, at most {} KiB", daemon.memory("VmRSS"), daemon.memory("VmHWM"));
        drop(daemon);
        // The web client is a member again.
        check_pages(&world, expected + 1);
        world.discard();
    });
}

/// A server that does not stream lists is read page by page, with the same result.
fn check_pages(world: &World, members: usize) {
    const PORT_WITHOUT: u16 = PORT + 1;
    let _second_server = world.plane.second_server(PORT_WITHOUT, &["--feature-gates=WatchList=false"]);
    let daemon = Daemon::start(world, 0, world.command_at(0, PORT_WITHOUT, &[]));
    daemon.wait_ready();
    let pods = world.api().list("/api/v1/pods").len();
    assert_eq!(daemon.metric("towpath_objects{kind=\"Pod\"}").to_string(), pods.to_string());
    assert_eq!(world.members(), members);
    println!("by pages: resident {} KiB, at most {} KiB", daemon.memory("VmRSS"), daemon.memory("VmHWM"));
    world.label("shop/web", &json!({ "app": "other" }));
    world.until("shop/web", "shop/db", false, SOON);
}
