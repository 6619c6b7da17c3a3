//! Objects of one tenant do not stall another: a real daemon in a network namespace, hostile objects in its folder, and
//! packets of an honest tenant (root).

#![cfg(test)]

#[path = "../support/daemon_command.rs"]
mod daemon_command;
#[path = "../support/hostile_shapes.rs"]
mod hostile_shapes;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/isolated.rs"]
mod isolated;
#[path = "../support/log.rs"]
mod log;
#[path = "../support/ready.rs"]
mod ready;
#[path = "../support/root.rs"]
mod root;
#[path = "../support/wait.rs"]
mod wait;

use std::{
    fs::{self, File},
    net::IpAddr,
    path::Path,
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sched::CloneFlags;
use tempfile::TempDir;
use towpath::{
    lab::{
        End, Families, Lab, LabOptions, Outcome, PodId, PodSpec, Probe, Process, Topology, Transport,
        Variant,
        random::cluster_of,
        sized::{self, NODE, SIZES},
    },
    model::Protocol,
    policy::{budget::Budgets, resolve::Resolver},
};

use daemon_command::daemon_command;
use hostile_shapes::{EVIL, SHAPES, Shape, crowd_objects, honest_policy, local_pod, peak_memory, write};
use http::LISTEN;
use isolated::isolated;
use ready::is_ready;
use root::has_root;
use wait::wait_until;

/// How long a condition may take on a busy machine, in a build without optimisation.
const TIMEOUT: Duration = Duration::from_mins(2);

/// The memory limit in the manifest, in KiB.
const MEMORY: u64 = 512 * 1024;

/// Only one test runs at a time: each keeps two cores busy.
static TURN: Mutex<()> = Mutex::new(());

struct Bed {
    lab: Lab,
    folder: TempDir,
    pods: Vec<PodId>,
    daemon: Process,
}

const PODS: [&str; 4] = ["shop/client", "shop/server", "shop/other", "evil/pod"];

impl Bed {
    /// A node with the honest tenant's pods and one of the hostile tenant, and a daemon that starts with all objects.
    fn new(shape: &Shape, variant: Variant) -> Self {
        let options =
            LabOptions { topology: Topology::Bridge, families: Families::V4, nodes: 1, flannel_rules: None };
        let mut lab = Lab::new(options).unwrap();
        let specs = PODS.map(|name| PodSpec::new(name, 0).listening(&[(Protocol::Tcp, 80)]));
        let pods = lab.add_pods(&specs).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let text: String = PODS
            .iter()
            .zip(&pods)
            .map(|(name, id)| local_pod(name, lab.pod(*id).unwrap().addresses()[0]))
            .collect();
        write(folder.path(), &(shape.files)());
        write(
            folder.path(),
            &[("pods.yaml".to_owned(), text), ("shop.yaml".to_owned(), honest_policy(true))],
        );
        let mut command = daemon_command("n1", variant, folder.path(), &folder.path().join(".run"));
        command.stderr(File::create(folder.path().join(".log")).unwrap());
        let daemon = lab.node(0).unwrap().spawn(command).unwrap();
        Self { lab, folder, pods, daemon }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn address(&self, pod: usize) -> IpAddr {
        self.lab.pod(self.pods[pod]).unwrap().addresses()[0]
    }

    /// Whether one of [`PODS`] reaches another.
    fn reaches(&self, from: usize, to: usize) -> bool {
        let probe = Probe::new(End::Pod(self.pods[from]), self.address(to), Transport::Tcp(80));
        self.lab.probe_all(&[probe], Duration::from_millis(900)).unwrap()[0] == Outcome::Open
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        http::get(self.lab.node(0).unwrap().connect(LISTEN, Duration::from_secs(1)).unwrap(), path)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("--- the end of the log ---\n{}", log::tail(&self.folder().join(".log"), 30));
        }
    }
}

/// The indices of these in [`PODS`].
const CLIENT: usize = 0;
const SERVER: usize = 1;
const OTHER: usize = 2;
const HOSTILE: usize = 3;

/// Runs `test` on a thread with its own `/run`, and so its own xtables lock, while no other test runs.
fn run_alone(test: impl FnOnce() + Send + 'static) {
    if !has_root() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    isolated(CloneFlags::empty(), test);
}

/// Policies of the honest tenant are enforced in time beside a hostile one with this shape, which is closed if it
/// exceeds a budget.
fn assert_served_beside(name: &str) {
    for variant in Variant::BOTH {
        assert_served_in(variant, name);
    }
}

fn assert_served_in(variant: Variant, name: &str) {
    let shape = *SHAPES.iter().find(|shape| shape.name == name).unwrap();
    run_alone(move || {
        let start = Instant::now();
        let mut bed = Bed::new(&shape, variant);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            if shape.restless {
                let (stop, folder) = (&stop, bed.folder());
                scope.spawn(move || {
                    for turn in 0.. {
                        write(folder, &[("crowd.yaml".to_owned(), crowd_objects(50, turn % 2))]);
                        thread::sleep(Duration::from_millis(50));
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                });
            }
            let serve = || {
                wait_until("isolation after the start", TIMEOUT, || !bed.reaches(OTHER, SERVER));
                wait_until("the allow after the start", TIMEOUT, || bed.reaches(CLIENT, SERVER));
                write(bed.folder(), &[("shop.yaml".to_owned(), honest_policy(false))]);
                wait_until("a deny", TIMEOUT, || !bed.reaches(CLIENT, SERVER));
                write(bed.folder(), &[("shop.yaml".to_owned(), honest_policy(true))]);
                wait_until("an allow", TIMEOUT, || bed.reaches(CLIENT, SERVER));
                assert!(!bed.reaches(OTHER, SERVER), "a pod that is not allowed");
            };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(serve));
            stop.store(true, Ordering::Relaxed);
            if let Err(panic) = result {
                std::panic::resume_unwind(panic);
            }
        });
        wait_until("readiness", TIMEOUT, || is_ready(bed.lab.node(0).unwrap(), LISTEN));
        let metrics = bed.get("/metrics").unwrap().1;
        let series = format!("towpath_over_budget_namespace{{namespace=\"{EVIL}\"}}");
        assert_eq!(metrics.contains(&series), shape.over_budget, "{metrics}");
        if shape.over_budget {
            assert!(
                !bed.reaches(OTHER, HOSTILE) || !bed.reaches(HOSTILE, OTHER),
                "the closed namespace is open"
            );
            let status = bed.get("/status").unwrap().1;
            assert!(
                status.contains("\"over_budget\":[{\"kind\":\"N")
                    && status.contains("over the budget of the")
            );
            let log = fs::read_to_string(bed.folder().join(".log")).unwrap();
            assert!(log.contains("over budget; closed"), "{log}");
        }
        let memory = peak_memory(bed.daemon.id());
        println!("{}, {}: {} MiB, {:?}", shape.name, variant.name(), memory / 1024, start.elapsed());
        assert!(memory > 0 && memory < MEMORY, "{memory} KiB");
        bed.daemon.kill().unwrap();
    });
}

#[test]
fn twenty_policies_with_ten_thousand_excepts_each_do_not_stall_other_tenants() {
    assert_served_beside("20 policies of 10,000 IPv4 excepts");
}

#[test]
fn thirty_thousand_ipv6_excepts_do_not_stall_other_tenants() {
    assert_served_beside("1 policy of 30,000 IPv6 excepts");
}

#[test]
fn thirty_three_thousand_ports_and_selectors_do_not_stall_other_tenants() {
    assert_served_beside("3 policies of 11,000 rules, each with its own port and selector");
}

#[test]
fn ten_thousand_policies_do_not_stall_other_tenants() {
    assert_served_beside("10,000 policies");
}

#[test]
fn fifty_thousand_blocks_do_not_stall_other_tenants() {
    assert_served_beside("100 policies of 500 blocks");
}

#[test]
fn large_set_within_its_budget_does_not_stall_other_tenants() {
    assert_served_beside("1 policy of 15,000 blocks within its budget");
}

#[test]
fn hundred_thousand_ports_do_not_stall_other_tenants() {
    assert_served_beside("100 policies of 1,000 ports");
}

#[test]
fn different_selectors_that_all_match_every_pod_do_not_stall_other_tenants() {
    assert_served_beside("400 selectors that match all of 2,000 pods");
}

#[test]
fn thousand_label_changes_a_second_do_not_stall_other_tenants() {
    assert_served_beside("1,000 label changes a second");
}

#[test]
fn five_thousand_namespaces_do_not_stall_other_tenants() {
    assert_served_beside("5,000 namespaces");
}

#[test]
fn hundred_thousand_labels_and_longest_names_do_not_stall_other_tenants() {
    assert_served_beside("100,000 labels, names at their longest, 10,000 named ports");
}

#[test]
fn lint_and_explain_warn_of_policies_over_budget() {
    let folder = tempfile::tempdir().unwrap();
    let shape = SHAPES.iter().find(|shape| shape.name.starts_with("3 policies of 11,000")).unwrap();
    write(folder.path(), &(shape.files)());
    let pods = [("evil/pod", [10, 244, 1, 9]), ("shop/client", [10, 244, 1, 8])];
    let pods = pods.map(|(name, address)| local_pod(name, IpAddr::from(address))).concat();
    write(folder.path(), &[("pods.yaml".to_owned(), pods)]);
    let towpath = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
        command.args(arguments).arg(folder.path()).output().unwrap()
    };
    let lint = towpath(&["lint"]);
    let text = String::from_utf8(lint.stdout).unwrap();
    assert!(text.contains("warning: with the default budgets policy evil/p0 needs "), "{text}");
    assert_eq!(lint.status.code(), Some(0));
    let explained = towpath(&["explain", "--from", "evil/pod", "--to", "shop/client", "-f"]);
    let note = String::from_utf8(explained.stderr).unwrap();
    assert!(note.contains("note: the nodes do otherwise with the default budgets: policy evil/p"), "{note}");
}

#[test]
fn ordinary_clusters_are_far_below_the_default_budgets() {
    let default = Budgets::default();
    let budgets = Budgets {
        policy: default.policy / 10,
        namespace: default.namespace / 10,
        node: default.node / 10,
        namespace_sets: default.namespace_sets / 10,
        node_sets: default.node_sets / 4,
        ..default
    };
    for size in SIZES {
        let cluster = cluster_of(sized::cluster(size));
        let resolved = Resolver::of(NODE, &cluster).with_budgets(budgets).resolve(&cluster);
        assert!(!resolved.pods.is_empty());
        assert_eq!(resolved.over_budget.to_vec(), [], "{}", size.name);
    }
}
