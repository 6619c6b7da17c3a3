//! The cost of a cluster on a node: a real API server, `towpath run` as its ServiceAccount, real packets.
//!
//! `make bench-cluster` runs it, as root. It prints the time from an API request until packets are treated differently,
//! and the daemon's memory; docs/benchmarks.md contains results.

#![expect(clippy::unwrap_used, reason = "whatever is missing here ends the bench")]
#![expect(clippy::expect_used, reason = "as above")]
#![expect(clippy::panic, reason = "as above")]

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use towpath::{
    lab::{
        FloodFlow,
        sized::{self, Size},
    },
    model::{Change, Family},
};

#[expect(dead_code, unused_imports, reason = "the tests need more of it than the bench")]
#[path = "../tests/cluster/harness/mod.rs"]
mod harness;
#[path = "../tests/support/http.rs"]
mod http;
#[path = "../tests/support/isolated.rs"]
mod isolated;
#[path = "../tests/support/json_objects.rs"]
mod json_objects;
#[path = "../tests/support/log.rs"]
mod log;
#[path = "../tests/support/metrics.rs"]
mod metrics;
#[path = "../tests/support/model_objects.rs"]
mod model_objects;
#[path = "../tests/support/our_sets.rs"]
mod our_sets;
#[path = "../tests/support/reach.rs"]
mod reach;
#[path = "../tests/support/ready.rs"]
mod ready;
#[path = "../tests/support/root.rs"]
mod root;
#[path = "../tests/support/wait.rs"]
mod wait;

use harness::{
    Daemon, World,
    objects::{labelled, path},
    with_control_plane,
};

const CHANGES: usize = 200;

/// How many labels of pods on other nodes change per second, and for how many seconds.
const CHURN: [usize; 2] = [20, 100];
const CHURN_SECONDS: u64 = 20;
const PORT: u16 = 7777;

/// Long enough for a change to reach the kernel on an otherwise idle machine.
const PAUSE: Duration = Duration::from_millis(250);

const fn size(pods: usize, policies: usize) -> Size {
    Size { name: "", pods, policies, local: 50 }
}

const SIZES: [Size; 3] = [size(1_000, 100), size(5_000, 500), size(20_000, 2_000)];

fn main() {
    // `cargo bench -- --test` only checks that it runs.
    let smoke = std::env::args().any(|argument| argument == "--test");
    let sizes = if smoke { &[size(100, 20)][..] } else { &SIZES };
    println!(
        "{:>7} {:>9} {:>11} {:>10} {:>12} {:>12}",
        "pods", "policies", "bytes a pod", "ready", "VmRSS", "VmHWM"
    );
    for size in sizes {
        let (size, changes) = (*size, if smoke { 4 } else { CHANGES });
        with_control_plane(move |plane| {
            let world = World::new(plane, &[("bench/client", 0), ("bench/server", 0)]);
            populate(&world, size);
            latency(&world, size, changes);
            churn(&world, size, if smoke { 1 } else { CHURN_SECONDS });
            world.discard();
        });
    }
}

/// The objects of a cluster of this size, as the API returns them: pods with everything that real ones contain.
fn populate(world: &World, size: Size) {
    let (mut first, mut pods) = (Vec::new(), Vec::new());
    for change in sized::cluster(size) {
        match change {
            Change::SetNamespace(namespace) => first.push(model_objects::namespace(&namespace)),
            Change::SetPod(pod) => {
                let here = pod.node.as_deref() == Some(sized::NODE);
                let elsewhere = format!("elsewhere-{}", pod.node.as_deref().unwrap_or_default());
                let mut pod = model_objects::pod(&pod);
                // The only real node has its own name, which no other may have by chance.
                pod["spec"]["nodeName"] = if here { world.node(0).name().into() } else { elsewhere.into() };
                pods.push(with_ballast(pod));
            }
            Change::SetPolicy(policy) => first.push(model_objects::policy(&policy)),
            _ => {}
        }
    }
    let (namespaces, policies): (Vec<Value>, Vec<Value>) =
        first.into_iter().partition(|object| object["kind"] == "Namespace");
    world.api().create_all(namespaces);
    world.api().create_all(policies);
    world.api().create_all(pods);
}

/// The parts of a Deployment's pod that do not concern policy: environment, probes, volumes, conditions, image ids.
fn with_ballast(mut pod: Value) -> Value {
    let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-7d9f8b6c5", "controller": true,
        "blockOwnerDeletion": true, "uid": "2d1a8f3c-6c1e-4b57-9f0e-8f2f6f1f7a10",
    });
    pod["metadata"]["ownerReferences"] = json!([owner]);
    pod["metadata"]["annotations"] = json!({
        "prometheus.io/scrape": "true", "prometheus.io/port": "8080",
        "kubectl.kubernetes.io/restartedAt": "2026-11-02T10:11:12Z",
        "checksum/config": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    });
    let container = &mut pod["spec"]["containers"][0];
    container["env"] = (0..12)
        .map(|number| json!({ "name": format!("SETTING_{number}"), "value": format!("value-{number}.example.org") }))
        .collect();
    let probe = json!({ "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 10 });
    container["livenessProbe"] = probe.clone();
    container["readinessProbe"] = probe;
    container["resources"] = json!({
        "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "256Mi" },
    });
    container["volumeMounts"] = json!([
        { "name": "config", "mountPath": "/etc/app", "readOnly": true }, { "name": "cache", "mountPath": "/cache" },
    ]);
    pod["spec"]["volumes"] =
        json!([{ "name": "config", "configMap": { "name": "app" } }, { "name": "cache", "emptyDir": {} }]);
    let at = "2026-11-02T10:11:12Z";
    pod["status"]["conditions"] =
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
            .map(|kind| json!({ "type": kind, "status": "True", "lastTransitionTime": at }))
            .into();
    pod["status"]["containerStatuses"] = json!([{
        "name": "main", "image": "registry.example/main:1.2.3", "ready": true, "started": true, "restartCount": 0,
        "imageID": "registry.example/main@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "containerID": format!("containerd://{name}-9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15"),
        "state": { "running": { "startedAt": at } },
    }]);
    pod["status"]["startTime"] = at.into();
    pod["status"]["qosClass"] = "Burstable".into();
    pod
}

/// From the request that changes a pod's label to the first packet that passes, or the last one that does.
fn latency(world: &World, size: Size, changes: usize) {
    world.policy(
        "bench/server",
        &json!({
            "podSelector": labelled(&json!({ "app": "server" })),
            "ingress": [{ "from": [{ "podSelector": labelled(&json!({ "role": "client" })) }] }],
        }),
    );
    let pod = world.api().list("/api/v1/namespaces/ns-0/pods").swap_remove(0);
    let started = Instant::now();
    let daemon = world.run(0);
    let ready = started.elapsed();
    sleep(Duration::from_secs(2));
    println!(
        "{:>7} {:>9} {:>11} {:>7} ms {:>8} KiB {:>8} KiB",
        size.pods,
        size.policies,
        pod.to_string().len(),
        ready.as_millis(),
        daemon.memory("VmRSS"),
        daemon.memory("VmHWM"),
    );

    let flow = FloodFlow {
        from: world.end("bench/client"),
        to: world.address("bench/server", Family::V4),
        port: PORT,
    };
    let flood = world.lab.flood(&[flow], Duration::from_millis(1)).unwrap();
    let mut latencies = [Vec::new(), Vec::new()];
    let mut answers = Vec::new();
    let key = path("pods", "bench/client");
    for turn in 0..changes {
        let opens = turn % 2 == 0;
        let role = if opens { json!("client") } else { json!("other") };
        sleep(PAUSE);
        let requested = Instant::now();
        world.api().label(&key, &json!({ "role": role }));
        answers.push(requested.elapsed());
        sleep(PAUSE);
        let arrivals = flood.arrivals();
        let mut after = arrivals.iter().map(|arrival| arrival.at).filter(|at| *at > requested);
        let seen = if opens { after.next() } else { after.next_back() };
        // If packets arrive while it is closed, or none while it is open, nothing was measured.
        let is_open = arrivals.last().is_some_and(|last| last.at.elapsed() < PAUSE / 4);
        if is_open == opens {
            latencies[usize::from(opens)].push(seen.map_or(Duration::ZERO, |seen| seen - requested));
        } else {
            println!("turn {turn}: not enforced {} ms after the answer", PAUSE.as_millis());
        }
    }
    drop(flood);
    let [closes, opens] = latencies;
    let all = [&*closes, &*opens].concat();
    for (what, times) in [
        ("from a label at the API to packets: all", all),
        ("  opens", opens),
        ("  closes", closes),
        ("  until the API server has answered", answers),
    ] {
        report(what, times);
    }
}

/// The cost for the node when labels of pods on other nodes change continuously.
fn churn(world: &World, size: Size, seconds: u64) {
    const TICKS: u64 = 5;
    let daemon = world.run(0);
    let mut turn = 0;
    for per_second in CHURN {
        let spent = |daemon: &Daemon<'_>| (processor(daemon), daemon.metric("towpath_commands_total"));
        let (before, started) = (spent(&daemon), Instant::now());
        let first = turn;
        for tick in 1..=seconds * TICKS {
            let mut changes = Vec::new();
            for _ in 0..per_second / 5 {
                turn += 1;
                // Far apart from one turn to the next, and of pods that run on other nodes.
                let index = size.local + turn * 7_919 % (size.pods - size.local);
                let Change::SetPod(pod) = sized::pod(size, index) else { panic!("a pod") };
                // A different label each time that it is a pod's turn again.
                let app = (turn + turn / (size.pods - size.local)) % 10;
                let label = json!({ "metadata": { "labels": { "app": format!("app-{app}") } } });
                changes.push((path("pods", &pod.key.to_string()), label));
            }
            world.api().patch_all(changes);
            sleep(Duration::from_millis(1000 / TICKS * tick).saturating_sub(started.elapsed()));
        }
        let (after, took) = (spent(&daemon), started.elapsed());
        println!(
            "        {:.0} labels a second elsewhere: {:.1} % of a core with all commands, {:.1} commands a second",
            f64::from(u32::try_from(turn - first).unwrap()) / took.as_secs_f64(),
            100.0 * (after.0 - before.0) / took.as_secs_f64(),
            (after.1 - before.1) / took.as_secs_f64(),
        );
    }
}

/// The CPU time of a daemon and of the commands that it has waited for, in seconds.
fn processor(daemon: &Daemon<'_>) -> f64 {
    // After the name, which may contain anything: utime, stime, cutime and cstime are the fields 14 to 17, in
    // hundredths of a second.
    let stat = daemon.proc("stat");
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u32 = fields[11..15].iter().map(|ticks| ticks.parse::<u32>().unwrap()).sum();
    f64::from(ticks) / 100.0
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let ms = |index: usize| times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0);
    let (last, count) = (times.len().saturating_sub(1), times.len());
    println!(
        "        {what}: median {:.1} ms, p99 {:.1} ms, worst {:.1} ms, of {count}",
        ms(count / 2),
        ms(count * 99 / 100),
        ms(last),
    );
}
