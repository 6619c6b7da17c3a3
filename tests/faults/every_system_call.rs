//! The daemon, or a command of its, is killed at the N-th system call of a round that isolates a pod, changes a policy,
//! removes a pod and moves members: nothing passes that both states deny, and a new daemon converges.
//!
//! `strace` kills: the daemon at each system call of its loop's thread, and a command at each one that can change the
//! kernel, in which case its daemon dies with it. `make test` takes a sample, which it prints;
//! `TOWPATH_EVERY_SYSTEM_CALL=1` takes all.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use towpath::{
    k8s::manifest::{self, load_text},
    lab::{FloodFlow, Probe, Transport, Variant},
    model::{Cluster, Endpoint, Family, Flow, Protocol},
    policy::evaluate::evaluate,
};

use crate::{
    churn_flows::assert_none_arrived,
    our_sets::our_sets,
    reach::TIMEOUT,
    testbed::{Bed, Daemon, for_both_variants},
    wait::wait_until,
    yaml_objects::{namespace, policy},
};

/// How many system calls of the loop are tried in each variant, and how many commands, unless all are.
const SAMPLE: usize = 6;

/// What passes in a state after a kill shows at once, on a machine where everything is local.
const LEAK: Duration = Duration::from_millis(250);

/// Longer than anything takes, on a machine where other tests run.
const LONG: Duration = Duration::from_mins(1);

const PODS: [(&str, usize); 7] = [
    ("shop/db", 0),
    ("shop/web", 0),
    ("shop/late", 0),
    ("shop/gone", 0),
    // It may send and is not admitted, and then it is admitted and may not send.
    ("shop/turncoat", 0),
    ("far/friend", 1),
    ("far/peer", 1),
];

const PORTS: [(Protocol, u16); 2] = [(Protocol::Tcp, 80), (Protocol::Udp, 53)];

/// The two states that a round leads from and to.
struct States {
    texts: [String; 2],
    clusters: [Cluster; 2],
}

impl States {
    fn new(bed: &Bed) -> Self {
        let texts = [false, true].map(|after| {
            let mut objects = vec![namespace("shop", "team: shop"), namespace("far", "team: far")];
            for (name, _) in PODS {
                let app = name.split_once('/').unwrap().1;
                let is_admitted = app == "friend" || app == "turncoat" && after;
                let role = if is_admitted { ", role: admitted" } else { "" };
                if app != "gone" || !after {
                    objects.push(bed.manifest(name, &format!("app: {app}{role}")));
                }
            }
            let from = |selector: &str| {
                format!("from: [{{namespaceSelector: {{}}, podSelector: {{{selector}}}}}]")
            };
            // Not one set with the other, which changes: its members move.
            let admitted = from("matchLabels: {role: admitted}");
            let db = if after { "late" } else { "web" };
            objects.push(policy(
                "shop/db",
                &format!(
                    "podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{{admitted}}}, {{{}, ports: [{{port: 80}}]}}]",
                    from(&format!("matchLabels: {{app: {db}}}"))
                ),
            ));
            objects.push(policy(
                "shop/admitted-pods-do-not-send",
                "podSelector: {matchLabels: {role: admitted}}, policyTypes: [Egress]",
            ));
            objects.push(policy(
                "shop/gone",
                "podSelector: {matchLabels: {app: gone}}, policyTypes: [Ingress, Egress]",
            ));
            objects
                .push(policy("shop/web", "podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]"));
            if after {
                objects.push(policy(
                    "shop/late",
                    "podSelector: {matchLabels: {app: late}}, policyTypes: [Ingress, Egress], \
                     egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]",
                ));
            }
            objects.join("---\n")
        });
        let clusters = texts.each_ref().map(|text| {
            let loaded = load_text(Path::new("objects.yaml"), text, manifest::Options::default());
            assert!(!loaded.has_errors());
            loaded.cluster()
        });
        Self { texts, clusters }
    }

    /// Whether each state allows a flow.
    fn allow(&self, from: IpAddr, to: IpAddr, (protocol, port): (Protocol, u16)) -> [bool; 2] {
        let flow = Flow {
            from: Endpoint::Address(from),
            to: Endpoint::Address(to),
            transport: towpath::model::Transport::Port(protocol, port),
            family: None,
        };
        self.clusters.each_ref().map(|cluster| evaluate(cluster, &flow).allowed())
    }
}

/// Probes between all pods, with what the states say about each.
fn probes(bed: &Bed, states: &States) -> Vec<(Probe, String, [bool; 2])> {
    let mut probes = Vec::new();
    for (from, _) in PODS {
        for (to, _) in PODS.into_iter().filter(|(to, _)| *to != from) {
            for family in Family::BOTH {
                for (protocol, port) in PORTS {
                    let transport = match protocol {
                        Protocol::Udp => Transport::Udp(port),
                        _ => Transport::Tcp(port),
                    };
                    let address = bed.address(to, family);
                    let allow = states.allow(bed.address(from, family), address, (protocol, port));
                    let name = format!("{from} -> {to}, {family}, {protocol:?} {port}");
                    probes.push((Probe::new(bed.end(from), address, transport), name, allow));
                }
            }
        }
    }
    probes
}

/// A bed whose daemon has enforced the first state, and what is checked in each round.
struct Rounds<'a> {
    bed: &'a Bed,
    states: States,
    probes: Vec<(Probe, String, [bool; 2])>,
    /// Our rules and sets once a state is enforced.
    settled: [String; 2],
}

/// Our rules and sets, whatever the order and the options that new ones are created with.
fn kernel(bed: &Bed) -> String {
    let chain = |line: &str| {
        let line = line.split_once(": ").map_or(line, |(_, line)| line);
        line.trim_start_matches("-A ").trim_start_matches(':').split(' ').next().unwrap().to_owned()
    };
    let mut lines: Vec<String> = Vec::new();
    for family in Family::BOTH {
        let rules = bed.our_rules(family);
        let mut rules: Vec<&str> = rules.lines().collect();
        rules.sort_by_key(|line| chain(line));
        lines.extend(rules.into_iter().map(str::to_owned));
    }
    lines.extend(
        our_sets(bed.node()).iter().map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" ")),
    );
    lines.join("\n")
}

impl<'a> Rounds<'a> {
    fn new(bed: &'a Bed) -> Self {
        let states = States::new(bed);
        let probes = probes(bed, &states);
        let mut rounds = Self { bed, states, probes, settled: [String::new(), String::new()] };
        for state in [0, 1] {
            rounds.write(state);
            let _daemon = bed.run(&[]);
            // What is not used any more is destroyed a second later.
            std::thread::sleep(Duration::from_millis(2_500));
            rounds.settled[state] = kernel(bed);
        }
        assert_ne!(rounds.settled[0], rounds.settled[1]);
        rounds
    }

    fn write(&self, state: usize) {
        self.bed.objects().write_text("objects.yaml", &self.states.texts[state]);
    }

    /// A daemon that has enforced the first state, started with `command`.
    fn before(&self, command: Command) -> Daemon<'a> {
        self.write(0);
        let daemon = Daemon::start(self.bed, command);
        wait_until("the first state", LONG, || kernel(self.bed) == self.settled[0]);
        daemon
    }

    /// Nothing passes that both states deny.
    #[track_caller]
    fn assert_closed(&self, what: &str) {
        let denied: Vec<_> = self.probes.iter().filter(|(_, _, allow)| *allow == [false; 2]).collect();
        assert!(denied.len() > 20, "{}", denied.len());
        let asked: Vec<Probe> = denied.iter().map(|(probe, ..)| *probe).collect();
        let outcomes = self.bed.lab.probe_all(&asked, LEAK).unwrap();
        let open = outcomes.iter().zip(&denied).filter(|(outcome, _)| outcome.is_open());
        let leaks: Vec<&String> = open.map(|(_, (_, name, _))| name).collect();
        assert!(leaks.is_empty(), "{what}: {leaks:?}");
    }

    /// A new daemon reaches the second state, and what both states allow passes then.
    #[track_caller]
    fn assert_converges(&self, what: &str) {
        let _daemon = self.bed.start(&[]);
        wait_until(&format!("{what}: the second state"), LONG, || kernel(self.bed) == self.settled[1]);
        let allowed: Vec<_> = self.probes.iter().filter(|(_, _, allow)| *allow == [true; 2]).collect();
        assert!(allowed.len() > 20, "{}", allowed.len());
        let asked: Vec<Probe> = allowed.iter().map(|(probe, ..)| *probe).collect();
        let outcomes = self.bed.lab.probe_all(&asked, TIMEOUT).unwrap();
        let closed = outcomes.iter().zip(&allowed).filter(|(outcome, _)| !outcome.is_open());
        let cut: Vec<&String> = closed.map(|(_, (_, name, _))| name).collect();
        assert!(cut.is_empty(), "{what}: {cut:?}");
    }
}

fn takes_all() -> bool {
    std::env::var("TOWPATH_EVERY_SYSTEM_CALL").is_ok_and(|value| value == "1")
}

/// `SAMPLE` of these, the last among them, or all.
fn sample<T: Clone>(all: &[T]) -> Vec<T> {
    if takes_all() || all.len() <= SAMPLE {
        return all.to_vec();
    }
    (1..=SAMPLE).map(|part| all[part * all.len() / SAMPLE - 1].clone()).collect()
}

/// The system calls that `strace` wrote, each with its number among those of its name: that is how it counts.
fn calls(file: &Path) -> Vec<(String, usize)> {
    let text = fs::read_to_string(file).unwrap();
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let names = text.lines().filter_map(|line| line.split_once('(')).map(|(name, _)| name);
    let names =
        names.filter(|name| name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_'));
    names
        .map(|name| {
            let number = numbers.entry(name.to_owned()).or_default();
            *number += 1;
            (name.to_owned(), *number)
        })
        .collect()
}

/// The thread of the daemon's loop.
fn loop_thread(daemon: &Daemon<'_>) -> PathBuf {
    let tasks =
        fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap().flatten().map(|task| task.path());
    let mut of_loop =
        tasks.filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "agent"));
    of_loop.next().unwrap()
}

/// Traces a thread with these arguments, once it is attached.
fn trace(thread: &Path, arguments: &[&str]) -> Child {
    let id = thread.file_name().unwrap().to_str().unwrap();
    let mut command = Command::new("strace");
    command.args(arguments).args(["-p", id]).stderr(Stdio::null());
    let strace = command.spawn().unwrap();
    let is_traced = || {
        // At the first call it may be gone already.
        let status = fs::read_to_string(thread.join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    };
    wait_until("strace is attached", LONG, is_traced);
    strace
}

fn has_ended(daemon: &Daemon<'_>) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", daemon.id())).unwrap_or_default();
    status.is_empty() || status.contains(") Z ")
}

fn bed(variant: Variant) -> Bed {
    Bed::new(variant, &PODS)
}

fn denied_flows(bed: &Bed) -> Vec<FloodFlow> {
    let pairs = [("far/peer", "shop/db"), ("far/friend", "shop/web"), ("shop/turncoat", "shop/db")];
    let flow = |(from, to): (&str, &str), family| FloodFlow {
        from: bed.end(from),
        to: bed.address(to, family),
        port: 4000,
    };
    pairs.into_iter().flat_map(|pair| Family::BOTH.map(|family| flow(pair, family))).collect()
}

#[test]
fn daemon_killed_at_any_system_call_of_a_round_leaves_a_legal_state() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let rounds = Rounds::new(&bed);
        let record = bed.folder().join("calls");
        let all = {
            let daemon = rounds.before(bed.command(&[]));
            let mut strace = trace(&loop_thread(&daemon), &["-o", record.to_str().unwrap()]);
            rounds.write(1);
            wait_until("the second state", LONG, || kernel(&bed) == rounds.settled[1]);
            strace.kill().unwrap();
            strace.wait().unwrap();
            calls(&record)
        };
        let flows = denied_flows(&bed);
        let (mut killed, mut flood) = (0, None);
        let tried = sample(&all);
        for (call, number) in &tried {
            let inject = format!("--inject={call}:signal=SIGKILL:when={number}");
            let daemon = rounds.before(bed.command(&[]));
            flood.get_or_insert_with(|| bed.lab.flood(&flows, Duration::from_millis(2)).unwrap());
            let mut strace = trace(&loop_thread(&daemon), &["-o", "/dev/null", &inject]);
            rounds.write(1);
            wait_until("killed, or done", LONG, || has_ended(&daemon) || kernel(&bed) == rounds.settled[1]);
            killed += usize::from(has_ended(&daemon));
            let what = format!("{variant:?}, killed at {call} {number}");
            rounds.assert_closed(&what);
            daemon.kill();
            strace.wait().unwrap();
            rounds.assert_converges(&what);
        }
        println!("{variant:?}: killed {killed} times, at these of {} system calls: {tried:?}", all.len());
        // The number differs a little from round to round, so that the last ones may not be reached.
        assert!(killed * 2 >= tried.len(), "{killed}");
        assert_none_arrived(flood.unwrap(), &flows, 100, &format!("{variant:?}"));
    });
}

/// The system calls by which `iptables-restore` and `ipset` change the kernel.
const WRITES: &str = "sendto,sendmsg,setsockopt";

/// Programs in front of the real ones, in a folder. The file `at` says which command is killed, counted from when it is
/// written, at which system call of which number; its daemon is killed then. If it says `all`, the calls of every
/// command are recorded.
fn killing_stand_ins(folder: &Path, programs: &[String]) {
    fs::create_dir(folder).unwrap();
    let place = folder.display();
    for program in programs {
        let real = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|folder| folder.join(program))
            .find(|file| file.is_file())
            .unwrap();
        let script = format!(
            "#!/bin/sh\n\
             case \"{program} $1\" in *-restore*|'ipset restore') ;; *) exec {real} \"$@\" ;; esac\n\
             [ -e {place}/at ] || exec {real} \"$@\"\n\
             read -r command call number < {place}/at\n\
             echo x >> {place}/commands\n\
             this=$(wc -l < {place}/commands)\n\
             [ \"$command\" != all ] || exec strace -o {place}/calls.$this --trace={WRITES} {real} \"$@\"\n\
             [ $this = \"$command\" ] || exec {real} \"$@\"\n\
             strace -o /dev/null --trace=$call --inject=$call:signal=SIGKILL:when=$number {real} \"$@\"\n\
             status=$?\n\
             [ $status = 137 ] || exit $status\n\
             kill -KILL $PPID\n",
            real = real.display()
        );
        let file = folder.join(program);
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn command_killed_with_its_daemon_at_any_write_leaves_a_legal_state() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let rounds = Rounds::new(&bed);
        let folder = bed.folder().join("killing");
        let mut programs = Family::BOTH.map(|family| variant.program(family, "-restore")).to_vec();
        programs.push("ipset".to_owned());
        killing_stand_ins(&folder, &programs);
        let (at, commands) = (folder.join("at"), folder.join("commands"));
        let flows = denied_flows(&bed);
        let round = |order: &str| {
            for file in [&at, &commands] {
                let _ = fs::remove_file(file);
            }
            let mut start = bed.command(&[]);
            start.env("PATH", format!("{}:{}", folder.display(), std::env::var("PATH").unwrap()));
            let daemon = rounds.before(start);
            fs::write(folder.join("staged"), order).unwrap();
            fs::rename(folder.join("staged"), &at).unwrap();
            rounds.write(1);
            wait_until("killed, or done", LONG, || has_ended(&daemon) || kernel(&bed) == rounds.settled[1]);
            daemon
        };
        drop(round("all\n"));
        let mut all = Vec::new();
        for command in 1.. {
            let record = folder.join(format!("calls.{command}"));
            if !record.exists() {
                break;
            }
            all.extend(calls(&record).into_iter().map(|(call, number)| (command, call, number)));
        }
        let tried = sample(&all);
        let mut killed = 0;
        let flood = bed.lab.flood(&flows, Duration::from_millis(2)).unwrap();
        for (command, call, number) in &tried {
            let daemon = round(&format!("{command} {call} {number}\n"));
            killed += usize::from(has_ended(&daemon));
            let what = format!("{variant:?}, command {command} killed at {call} {number}");
            rounds.assert_closed(&what);
            daemon.kill();
            rounds.assert_converges(&what);
        }
        println!("{variant:?}: killed {killed} times, at these of {} writes: {tried:?}", all.len());
        assert!(killed * 2 >= tried.len(), "{killed}");
        assert_none_arrived(flood, &flows, 100, &format!("{variant:?}"));
    });
}
