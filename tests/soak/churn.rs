//! The churn: everything that changes during the soak, and what is counted.

use std::{
    sync::{
        RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use nix::sys::signal::Signal;
use towpath::lab::Variant;

use crate::{
    faults::{self, Flush, Flushed},
    flows::{Flows, connect},
    meter::Meters,
    pods::start_and_end,
    report::{Counts, Report},
    world::{Daemon, NODES, World},
    yaml_objects::{namespace, policy},
};

/// The pause after each change, in milliseconds.
const PAUSE: std::ops::Range<u64> = 5..300;

/// How many changes among 100 are ends of daemons; the others are changes of objects.
const ENDS: u8 = 10;

/// How long there is no flush after one: it waits for everything else.
const BETWEEN_FLUSHES: Duration = Duration::from_secs(20);

/// Churns for `length`. The counts begin when both daemons are ready.
pub(crate) fn run(variant: Variant, length: Duration, rng: &mut Rng) -> Report {
    let world = World::new(variant);
    let mut daemons = NODES.map(|node| Some(world.start(node, false)));
    daemons.iter().flatten().for_each(Daemon::wait_ready);
    let meters = Meters::new();
    let flows = Flows::start(&world, &meters);
    let (is_over, pause) = (AtomicBool::new(false), RwLock::new(()));
    let start = Instant::now();
    let mut counts = Counts::default();
    let mut flushed = Vec::new();
    let stopped = || is_over.load(Ordering::Relaxed);
    thread::scope(|scope| {
        let ending = OnDrop(&is_over);
        let starters = NODES.map(|node| {
            let mut rng = rng.fork();
            let (world, meters, pause) = (&world, &meters, &pause);
            scope.spawn(move || start_and_end(world, node, meters, pause, &mut rng, stopped))
        });
        let connections = scope.spawn(|| connect(&world, &meters, stopped));
        let mut next_flush = BETWEEN_FLUSHES.min(length / 2);
        while start.elapsed() < length {
            thread::sleep(Duration::from_millis(rng.u64(PAUSE)));
            if start.elapsed() > next_flush {
                flushed.push(flush(&world, &daemons, &pause, &meters, rng));
                next_flush = start.elapsed() + BETWEEN_FLUSHES;
            } else if rng.u8(..100) < ENDS {
                end_a_daemon(&world, &mut daemons, &mut counts, rng);
            } else {
                change(&world, &mut counts, rng);
            }
        }
        drop(ending);
        for starter in starters {
            let starts = starter.join().unwrap();
            counts.starts += starts.starts;
            counts.forced += starts.forced;
        }
        let connections = connections.join().unwrap();
        counts.connections = connections.tried;
        counts.messages = connections.messages;
    });
    let seconds = start.elapsed().as_secs();
    drop(flows);
    let report = Report::new(variant, seconds, counts, &flushed, &meters);
    if report.leaked + report.refused > 0 {
        println!("{:#?}", report.faults);
        daemons.iter().flatten().for_each(Daemon::print_log);
    }
    report
}

/// Ends the other threads, also if this one fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Ends a daemon, by a crash or in order, and starts the next one: at once, or after pods had to wait for it.
fn end_a_daemon<'w>(
    world: &'w World,
    daemons: &mut [Option<Daemon<'w>>; 2],
    counts: &mut Counts,
    rng: &mut Rng,
) {
    let node = rng.usize(..daemons.len());
    let is_killed = rng.bool();
    let signal = if is_killed { Signal::SIGKILL } else { Signal::SIGTERM };
    counts.hung += u64::from(daemons[node].take().unwrap().end(signal));
    if rng.bool() {
        thread::sleep(Duration::from_millis(rng.u64(..500)));
    }
    let as_other_version = rng.bool();
    daemons[node] = Some(world.start(node, as_other_version));
    *(if is_killed { &mut counts.kills } else { &mut counts.restarts }) += 1;
    counts.upgrades += u64::from(as_other_version);
}

fn flush(
    world: &World,
    daemons: &[Option<Daemon<'_>>; 2],
    pause: &RwLock<()>,
    meters: &Meters,
    rng: &mut Rng,
) -> Flushed {
    let _nothing_starts = pause.write().unwrap();
    daemons.iter().flatten().for_each(Daemon::wait_ready);
    let node = world.node(rng.usize(..NODES.len()));
    faults::flush(node, world.variant, Flush::any(rng), meters)
}

/// Changes one object, in a way that no flow of the soak depends on.
fn change(world: &World, counts: &mut Counts, rng: &mut Rng) {
    let any = rng.u8(..4);
    match rng.u8(..8) {
        0 => world.write_pod("shop/turncoat", [", role: honest", ", role: double"][rng.usize(..2)]),
        1 => {
            let friend = ["far/friend-1", "far/friend-2"][rng.usize(..2)];
            world.write_pod(friend, [", role: friend", ", role: ally"][rng.usize(..2)]);
        }
        2 => world.write_pod(["shop/fixed-1", "shop/fixed-2"][rng.usize(..2)], &format!(", colour: c{any}")),
        // Which of two pods on a node is isolated.
        3 => {
            let spec = [
                "podSelector: {matchLabels: {kind: left}}, policyTypes: [Egress], egress: [{}]",
                "podSelector: {matchLabels: {kind: right}}, ingress: [{}]",
            ][rng.usize(..2)];
            world.write("one-of-two", &[policy("shop/one-of-two", spec)]);
        }
        4 => world.write(
            "namespaces",
            &[
                namespace("shop", &format!("colour: c{any}")),
                namespace("far", &format!("team: far, colour: c{any}")),
                namespace("team", ["tier: a", "tier: b"][rng.usize(..2)]),
            ],
        ),
        // Policies that come, change and go, and that allow what nobody sends.
        5 | 6 => {
            let name = format!("extra-{any}");
            if rng.bool() {
                world.remove(&name);
            } else {
                let (port, colour) = (rng.u16(81..99), rng.u8(..4));
                let spec = format!(
                    "podSelector: {{matchExpressions: [{{key: kind, operator: In, values: [new, receiver, right]}}]}}, \
                     ingress: [{{from: [{{podSelector: {{matchLabels: {{colour: c{colour}}}}}}}, \
                                        {{ipBlock: {{cidr: 192.0.2.0/24, except: [192.0.2.{port}/32]}}}}], \
                                 ports: [{{port: {port}}}]}}]"
                );
                world.write(&name, &[policy(&format!("shop/{name}"), &spec)]);
            }
        }
        // One for the pods that start, by a label that they have for a while.
        _ => {
            let name = format!("colour-{any}");
            if rng.bool() {
                world.remove(&name);
            } else {
                let spec = format!(
                    "podSelector: {{matchLabels: {{colour: c{any}}}}}, policyTypes: [Ingress, Egress], \
                     egress: [{{to: [{{namespaceSelector: {{matchLabels: {{colour: c{any}}}}}, \
                                      podSelector: {{matchLabels: {{kind: nobody}}}}}}]}}]"
                );
                world.write(&name, &[policy(&format!("shop/{name}"), &spec)]);
            }
        }
    }
    counts.changes += 1;
}
