//! Objects of one tenant at the API server neither delay the isolation of another one at a start, nor exceed the memory
//! limit of the manifest.

#[expect(dead_code, reason = "the tests of tenants and their bench use more of it")]
#[path = "../support/hostile_shapes.rs"]
mod hostile_shapes;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use towpath::{lab::FloodFlow, model::Family};

use crate::{
    harness::{
        Daemon, Lease, SOON, World,
        objects::{self, labelled, namespace},
        with_control_plane,
    },
    wait::wait_until,
};

use hostile_shapes::{EVIL, SHAPES};

/// The destination port of the test packets.
const PORT: u16 = 7777;

/// One packet is sent each millisecond: if none has arrived for this long, none will.
const QUIET: Duration = Duration::from_millis(300);

/// The memory limit in the manifest, in KiB.
const MEMORY: u64 = 512 * 1024;

/// Stores all objects of a shape, as its tenant. Returns their size in bytes.
fn store(world: &World, objects: Vec<Value>) -> usize {
    let bytes = objects.iter().map(|object| object.to_string().len()).sum();
    let namespace_of = |object: &Value| object["metadata"]["namespace"].as_str().map(str::to_owned);
    let declared: BTreeSet<String> = objects
        .iter()
        .filter(|object| object["kind"] == "Namespace")
        .map(|object| object["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    let named: BTreeSet<String> = objects.iter().filter_map(namespace_of).collect();
    for name in named.difference(&declared) {
        if world.api().get(&format!("/api/v1/namespaces/{name}")).is_none() {
            world.api().create(&namespace(name, &json!({})));
        }
    }
    let (namespaces, rest): (Vec<Value>, Vec<Value>) =
        objects.into_iter().partition(|object| object["kind"] == "Namespace");
    world.api().create_all(namespaces);
    world.api().create_all(rest);
    bytes
}

/// The objects of a shape, for the nodes of `world`.
fn objects_of(world: &World, name: &str) -> Vec<Value> {
    let shape = SHAPES.iter().find(|shape| shape.name == name).unwrap();
    let texts = (shape.files)();
    let documents = texts.iter().flat_map(|(_, text)| text.split("---\n")).filter(|text| !text.is_empty());
    let node = |name: &str| if name == "n1" { world.node(0).name() } else { world.node(1).name() };
    documents
        .map(|text| {
            let object: Value = serde_json::from_str(text).unwrap();
            if object["kind"] != "Pod" {
                return object;
            }
            // As the API server accepts it.
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let meta = &object["metadata"];
            let key = format!("{}/{}", text(&meta["namespace"]), text(&meta["name"]));
            let addresses = object["status"]["podIPs"].as_array().unwrap().iter();
            let addresses: Vec<_> = addresses.map(|ip| text(&ip["ip"]).parse().unwrap()).collect();
            let node = node(&text(&object["spec"]["nodeName"]));
            objects::pod(&key, &meta["labels"], node, &addresses, world.node(0).addresses())
        })
        .collect()
}

/// A daemon that starts with everything stored denies what another tenant's policy denies, and opens what it allows.
/// Returns its peak memory, in KiB, which is less than the manifest's limit, and its status.
fn start_beside(world: &World, what: &str, bytes: usize, flags: &[&str]) -> (u64, String) {
    let flow =
        FloodFlow { from: world.end("shop/web"), to: world.address("shop/db", Family::V4), port: PORT };
    let flood = world.lab.flood(&[flow], Duration::from_millis(1)).unwrap();
    wait_until("its first packet", SOON, || !flood.arrivals().is_empty());
    let started = Instant::now();
    let daemon = Daemon::start(world, 0, world.command(0, flags));
    let last = || flood.arrivals().iter().map(|arrival| arrival.at).max().unwrap();
    wait_until("the last packet", 3 * SOON, || last().elapsed() > QUIET);
    let denied = last().saturating_duration_since(started);
    daemon.wait_ready();
    let ready = started.elapsed();
    let change = Instant::now();
    world.label("shop/web", &json!({ "role": "client" }));
    let next = || flood.arrivals().iter().map(|arrival| arrival.at).find(|at| *at > change);
    wait_until("the next packet", SOON, || next().is_some());
    let changed = next().unwrap() - change;
    drop(flood);
    world.until("shop/web", "shop/db", true, SOON);
    let memory = daemon.memory("VmHWM");
    println!(
        "{what}: {} MB stored; denied {denied:.2?} after the start, ready {ready:.2?}; a change {changed:.2?}; {} MiB",
        bytes / 1_000_000,
        memory / 1024
    );
    assert!(memory < MEMORY, "{what}: {memory} KiB");
    let status = daemon.get("/status").unwrap().1;
    drop(daemon);
    world.label("shop/web", &json!({ "role": null }));
    world.node(0).succeed(env!("CARGO_BIN_EXE_towpath"), &["cleanup"]).unwrap();
    (memory, status)
}

/// Policies that select no pod of this node: they cost it memory, and nothing else.
fn excepts(count: u32) -> Vec<Value> {
    let blocks = |policy: u32| -> Vec<Value> {
        let block = |at: u32| {
            let [_, b, c, d] = (policy * 10_000 + at).to_be_bytes();
            json!(format!("{}.{b}.{c}.{d}/32", 20 + policy % 100))
        };
        (0..10_000).map(block).collect()
    };
    let policy = |at: u32| {
        let block = json!({ "cidr": "0.0.0.0/0", "except": blocks(at) });
        let spec = json!({ "podSelector": {}, "ingress": [{ "from": [{ "ipBlock": block }] }] });
        objects::policy(&format!("elsewhere/p{at}"), &spec)
    };
    (0..count).map(policy).collect()
}

/// The same in several namespaces, with rules whose text is as short as possible.
fn rules(namespaces: u32, each: u32) -> Vec<Value> {
    let rules: Vec<Value> = (0..40_000).map(|at| json!({ "ports": [{ "port": 1 + at }] })).collect();
    let spec = json!({ "podSelector": {}, "ingress": rules });
    let all = (0..namespaces).flat_map(|namespace| (0..each).map(move |policy| (namespace, policy)));
    all.map(|(namespace, policy)| objects::policy(&format!("far-{namespace}/p{policy}"), &spec)).collect()
}

/// Running pods of another node with as many labels as the API server accepts.
fn labels(world: &World, count: u8) -> Vec<Value> {
    let pod = |at: u8| {
        let labels: Value = (0..20_000)
            .map(|label| (format!("l{at}-{label}"), json!("")))
            .collect::<serde_json::Map<_, _>>()
            .into();
        objects::pod(
            &format!("far-0/pod-{at}"),
            &labels,
            world.node(1).name(),
            &[[10, 99, 2, at].into()],
            world.node(1).addresses(),
        )
    };
    (0..count).map(pod).collect()
}

/// A world with a pod of the hostile tenant on the first node, and a policy of another tenant.
fn world_of(plane: Lease) -> World {
    let world = World::new(plane, &[("shop/db", 0), ("shop/web", 0)]);
    let node = world.node(0);
    world.api().create(&namespace(EVIL, &json!({})));
    let evil = format!("{EVIL}/pod");
    let address = [10, 99, 1, 1].into();
    world.api().create(&objects::pod(&evil, &json!({}), node.name(), &[address], node.addresses()));
    let client = labelled(&json!({ "role": "client" }));
    let spec = json!({
        "podSelector": labelled(&json!({ "app": "db" })), "ingress": [{ "from": [{ "podSelector": client }] }],
    });
    world.policy("shop/db", &spec);
    world
}

#[test]
fn memory_for_policies_of_other_nodes_is_bounded() {
    with_control_plane(|plane| {
        let world = world_of(plane);
        let bytes = store(&world, rules(3, 6));
        let (free, _) = start_beside(&world, "18 policies of 40,000 rules", bytes, &[]);
        let tight = ["--namespace-memory", "8", "--cluster-memory", "8"];
        let (bounded, status) = start_beside(&world, "the same within 8 MiB", bytes, &tight);
        assert!(bounded < free * 2 / 3, "{bounded} KiB of {free}");
        assert!(!status.contains("bytes of memory"), "no pod of this node is closed: {status}");

        // One of them selects a pod of this node, which is therefore closed.
        let mut policy = rules(1, 2).remove(1);
        policy["metadata"]["namespace"] = json!(EVIL);
        let bytes = bytes + store(&world, vec![policy]);
        let tight = ["--namespace-memory", "3", "--cluster-memory", "8"];
        let (_, status) = start_beside(&world, "with one for a pod of the node, within 3 MiB", bytes, &tight);
        assert!(
            status.contains("bytes of memory for its policies, over the budget of the namespace (3145728)"),
            "{status}"
        );
        world.discard();
    });
}

/// Larger ones, for docs/benchmarks.md.
#[test]
#[ignore = "takes minutes, and is for figures"]
fn stored_objects_of_one_tenant_neither_delay_a_start_nor_exceed_memory() {
    with_control_plane(|plane| {
        let world = world_of(plane);
        start_beside(&world, "nothing", 0, &[]);
        for name in [
            "20 policies of 10,000 IPv4 excepts",
            "10,000 policies",
            "100 policies of 500 blocks",
            "13 namespaces of 45,000 blocks, within their budgets",
        ] {
            let bytes = store(&world, objects_of(&world, name));
            start_beside(&world, name, bytes, &[]);
            for namespace in (0..13).map(|at| format!("{EVIL}-{at}")) {
                world.api().delete_namespace(&namespace);
            }
            world.api().delete(&format!("/apis/networking.k8s.io/v1/namespaces/{EVIL}/networkpolicies"));
        }
        let bytes = store(&world, excepts(400));
        start_beside(&world, "400 policies of 10,000 excepts for no pod of the node", bytes, &[]);
        world.api().delete_namespace("elsewhere");
        let bytes = store(&world, rules(8, 5));
        start_beside(
            &world,
            "40 policies of 40,000 rules for no pod of the node, in 8 namespaces",
            bytes,
            &[],
        );
        for namespace in 0..8 {
            world.api().delete_namespace(&format!("far-{namespace}"));
        }
        let bytes = store(&world, labels(&world, 20));
        start_beside(&world, "20 pods with 20,000 labels of their own", bytes, &[]);
        world.discard();
    });
}
