//! Pods that start and end through the gate.

use std::{net::IpAddr, sync::RwLock, thread, time::Duration};

use fastrand::Rng;
use towpath::model::Family;

use crate::{
    cni::{Container, Network, NewPod},
    flows::{ALLOWED, DENIED, TO_SERVER},
    meter::{Fate, Meters, Sender},
    world::World,
};

/// The last parts of the addresses that these pods get: few, so that each has many owners.
const ADDRESSES: std::ops::Range<usize> = 40..46;

/// The pause between two datagrams of a flow of such a pod.
const BEAT: Duration = Duration::from_millis(1);

/// The starts and ends of pods on one node.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Starts {
    pub(crate) starts: u64,
    /// Pods whose object was deleted while they ran.
    pub(crate) forced: u64,
}

/// Starts and ends one pod after the other on a node, until `is_over`. While another holds `pause`, none starts.
pub(crate) fn start_and_end(
    world: &World,
    node: usize,
    meters: &Meters,
    pause: &RwLock<()>,
    rng: &mut Rng,
    is_over: impl Fn() -> bool,
) -> Starts {
    let network = world.network(node);
    let mut starts = Starts::default();
    while !is_over() {
        let may_run = pause.read().unwrap();
        let is_forced = rng.u8(..3) == 0;
        one(world, &network, node, starts.starts, meters, is_forced, rng);
        starts.starts += 1;
        starts.forced += u64::from(is_forced);
        drop(may_run);
        thread::sleep(Duration::from_millis(rng.u64(..100)));
    }
    starts
}

fn one(
    world: &World,
    network: &Network,
    node: usize,
    number: u64,
    meters: &Meters,
    is_forced: bool,
    rng: &mut Rng,
) {
    let file = format!("pod-new-{node}-{number}");
    let pod = NewPod::new(world.node(node), &format!("shop/new-{node}-{number}"), rng.usize(ADDRESSES));
    let sinks = [DENIED, ALLOWED].map(|port| meters.receive(&pod.netns, port));
    let (here, there) = (node + 1, 2 - node);
    let between = |from: &str, to: &str| format!("{from} -> {to} (start {number} on node {here})");
    let strangers = [format!("far/peer-{here}"), format!("far/peer-{there}"), format!("shop/server-{here}")];
    let mut denied: Vec<Sender> = strangers
        .iter()
        .map(|from| {
            let name = between(from, &pod.container.name);
            meters.send(Fate::Denied, &name, world.netns(from), &pod.addresses, DENIED, BEAT)
        })
        .collect();
    let peer = format!("far/peer-{there}");
    let name = between(&pod.container.name, &peer);
    denied.push(meters.send(Fate::Denied, &name, &pod.netns, world.addresses(&peer), DENIED, BEAT));

    let labels = |rng: &mut Rng| format!("kind: new, colour: c{}", rng.u8(..4));
    let object = |labels: &str, is_running: bool| {
        let addresses = if is_running { &pod.addresses[..] } else { &[] };
        manifest(&pod.container, labels, node, addresses)
    };
    let first = labels(rng);
    thread::scope(|scope| {
        let object = object(&first, false);
        if rng.u8(..4) == 0 {
            let delay = Duration::from_millis(rng.u64(..400));
            let file = &file;
            scope.spawn(move || {
                thread::sleep(delay);
                world.write(file, &[object]);
            });
        } else {
            world.write(&file, &[object]);
        }
        let result =
            network.add(world.node(node).netns(), &pod.container, &pod.addresses).unwrap().to_string();
        let has = |family| result.contains(&format!("\"{}/", pod.address(family)));
        assert!(Family::BOTH.into_iter().all(has), "{result}");
    });

    // The pod runs: what is allowed passes from its first packet on. Unlike a real pod it has sent before, and may have
    // asked for its gateway in vain: the kernel would wait for up to a second until it asks again.
    pod.netns.ip(&["neigh flush dev eth0".to_owned()]).unwrap();
    let friend = format!("far/friend-{there}");
    let server = format!("shop/server-{}", if rng.bool() { here } else { there });
    let allowed = [
        meters.send(
            Fate::Allowed,
            &between(&friend, &pod.container.name),
            world.netns(&friend),
            &pod.addresses,
            ALLOWED,
            BEAT,
        ),
        meters.send(
            Fate::Allowed,
            &between(&pod.container.name, &server),
            &pod.netns,
            world.addresses(&server),
            TO_SERVER,
            BEAT,
        ),
    ];
    for _ in 0..rng.u8(1..5) {
        thread::sleep(Duration::from_millis(rng.u64(50..400)));
        world.write(&file, &[object(&labels(rng), rng.bool())]);
    }
    drop(allowed);
    // What is in transit still arrives.
    thread::sleep(Duration::from_millis(100));
    if is_forced {
        // Nobody knows the pod any more, and it runs on.
        world.remove(&file);
        thread::sleep(Duration::from_millis(rng.u64(100..1500)));
    }
    network.del(world.node(node).netns(), &pod.container).unwrap();
    world.remove(&file);
    drop(denied);
    drop(sinks);
}

/// The object of a pod. Until it runs, it reports no address.
fn manifest(container: &Container, labels: &str, node: usize, addresses: &[IpAddr]) -> String {
    let Container { namespace, name, uid, .. } = container;
    let ips: Vec<String> = addresses.iter().map(|address| format!("{{ip: \"{address}\"}}")).collect();
    let phase = if addresses.is_empty() { "Pending" } else { "Running" };
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: {namespace}, uid: {uid}, labels: {{{labels}}}}}\n\
         spec:\n  nodeName: n{}\n  containers: [{{name: main, image: registry.example/main}}]\n\
         status: {{phase: {phase}, podIPs: [{}]}}\n",
        node + 1,
        ips.join(", ")
    )
}
