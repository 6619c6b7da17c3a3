//! What the gate adds to a pod's start: a real `towpath run` and the real CNI plugins in a network namespace.
//!
//! `make bench-gate` runs it, as root. Pods of a namespace with a default deny and ten further policies are attached by
//! bridge and host-local, one after the other and thirty at once, on a node that already has other isolated pods. It
//! prints how long each plugin took: the last one is the gate. `TOWPATH_VARIANT` names the variant of iptables.
//! docs/benchmarks.md contains results.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "whatever is missing here ends the bench with its name"
)]

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;
use towpath::{
    lab::{Families, Lab, LabOptions, Netns, Node, Topology, Variant},
    model::Family,
};

#[path = "../tests/support/cni.rs"]
mod cni;
#[path = "../tests/support/daemon_command.rs"]
mod daemon_command;
#[path = "../tests/support/http.rs"]
mod http;

use cni::{Network, NewPod};

/// How many pods start at once.
const AT_ONCE: usize = 30;

fn main() {
    let smoke = std::env::args().any(|argument| argument == "--test");
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root, to make network namespaces");
        return;
    }
    let (single, bursts, sizes): (usize, usize, &[usize]) =
        if smoke { (2, 1, &[2]) } else { (100, 5, &[10, 100]) };
    let variant = std::env::var("TOWPATH_VARIANT").unwrap_or_default();
    for variant in Variant::BOTH.into_iter().filter(|one| variant.is_empty() || one.name() == variant) {
        for others in sizes {
            measure(variant, *others, single, bursts);
        }
    }
}

fn measure(variant: Variant, others: usize, single: usize, bursts: usize) {
    // The lock of the iptables programs, and this run's files, are those of this process alone.
    let options =
        LabOptions { topology: Topology::Bridge, families: Families::V4, nodes: 1, flannel_rules: None };
    let lab = Lab::new(options).expect("a lab");
    let node = lab.node(0).expect("a node");
    let folder = TempDir::new().expect("a folder");
    let [objects, run] = ["objects", "run"].map(|name| folder.path().join(name));
    fs::create_dir(&objects).expect("a folder");
    fs::write(objects.join("objects.yaml"), fixed_objects(others)).expect("a file");
    let first = cni::bridge(&[node.pod_cidr(Family::V4).to_string()], &folder.path().join("ipam"));
    let network = Network::new(first, Some(json!({ "socket": run.join("gate.sock"), "timeoutSeconds": 60 })));
    let mut command = daemon_command::daemon_command("n1", variant, &objects, &run);
    command.args(["--unknown-local-pods", "closed", "--pod-cidr", &node.pod_cidr(Family::V4).to_string()]);
    command.stderr(fs::File::create(folder.path().join("log")).expect("a file"));
    let _daemon = node.spawn(command).expect("a daemon");
    while http::get(node.connect(http::LISTEN, Duration::from_secs(1)).expect("a thread"), "/readyz")
        .is_none_or(|(status, _)| status != 200)
    {
        thread::sleep(Duration::from_millis(20));
    }

    // The first one makes the bridge.
    let warm_up = pod(node, &objects, 119);
    network
        .add(node.netns(), &warm_up.container, &[warm_up.address(Family::V4)])
        .unwrap_or_else(|error| panic!("{}: {error}", warm_up.netns.name()));
    network.del(node.netns(), &warm_up.container).expect("a detached pod");
    let mut alone = Vec::new();
    for at in 0..single {
        alone.push(start(node, &network, &objects, at));
    }
    report(variant, others, "one after the other", &alone);
    let mut together = Vec::new();
    for burst in 0..bursts {
        let pods: Vec<NewPod> = (0..AT_ONCE).map(|at| pod(node, &objects, burst * AT_ONCE + at)).collect();
        // Their objects are known before their sandboxes are made, as in a cluster.
        thread::sleep(Duration::from_millis(300));
        let netns = node.netns();
        thread::scope(|scope| {
            let starts: Vec<_> =
                pods.iter().map(|pod| scope.spawn(|| attach(netns, &network, pod))).collect();
            together.extend(starts.into_iter().map(|start| start.join().expect("a start")));
        });
        for pod in &pods {
            network.del(netns, &pod.container).expect("a detached pod");
        }
    }
    report(variant, others, &format!("{AT_ONCE} at once"), &together);
}

/// Pods that are there already, and the policies.
fn fixed_objects(others: usize) -> String {
    let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: default-deny, namespace: shop}\n\
         spec: {podSelector: {}, policyTypes: [Ingress, Egress]}\n"
        .to_owned();
    for policy in 0..10 {
        write!(
            text,
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p-{policy}, namespace: shop}}\n\
             spec: {{podSelector: {{}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: a-{policy}}}}}}}], \
             ports: [{{port: {}}}]}}]}}\n",
            8000 + policy
        )
        .expect("a text");
    }
    for at in 0..others {
        write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: other-{at}, namespace: shop, labels: {{app: a-{}}}}}\n\
             spec: {{nodeName: n1, containers: []}}\nstatus: {{phase: Running, podIPs: [{{ip: 10.244.1.{}}}]}}\n",
            at % 10,
            10 + at
        )
        .expect("a text");
    }
    text
}

/// A pod whose object exists and has no address yet.
fn pod(node: &Node, objects: &Path, at: usize) -> NewPod {
    let name = format!("new-{at}");
    let pod = NewPod::new(node, &format!("shop/{name}"), 130 + at % 120);
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: {}, labels: {{app: a-1}}}}\n\
         spec: {{nodeName: n1, containers: []}}\nstatus: {{phase: Pending}}\n",
        pod.container.uid
    );
    let staged = objects.with_file_name(format!("{name}.yaml"));
    fs::write(&staged, text).expect("a file");
    fs::rename(staged, objects.join(format!("{name}.yaml"))).expect("a file");
    pod
}

fn start(node: &Node, network: &Network, objects: &Path, at: usize) -> Vec<Duration> {
    let pod = pod(node, objects, at);
    thread::sleep(Duration::from_millis(100));
    let times = attach(node.netns(), network, &pod);
    network.del(node.netns(), &pod.container).expect("a detached pod");
    times
}

fn attach(node: &Netns, network: &Network, pod: &NewPod) -> Vec<Duration> {
    let begin = Instant::now();
    let addresses = [pod.address(Family::V4)];
    let (_, mut times) = network.add_timed(node, &pod.container, &addresses).expect("an attached pod");
    times.push(begin.elapsed());
    times
}

fn report(variant: Variant, others: usize, how: &str, starts: &[Vec<Duration>]) {
    let column = |at: usize| {
        let mut times: Vec<Duration> = starts.iter().map(|times| times[at]).collect();
        times.sort();
        let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1000.0;
        format!("{:.1} / {:.1} / {:.1}", at(50), at(99), at(100))
    };
    println!(
        "{}, {others} other pods, {how} ({}): bridge {} ms, gate {} ms (median / p99 / most)",
        variant.name(),
        starts.len(),
        column(0),
        column(1)
    );
}
