//! Bad conditions: a held lock, missing programs and privileges, duplicate addresses, invalid policies.

use std::{
    fs::File,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use towpath::{lab::Variant, model::Family};

use crate::{
    testbed::{Bed, Daemon, READY, for_both_variants, with_own_run},
    wait::wait_until,
    yaml_objects::{namespace, policy},
};

/// A database that only `web` may reach, and another pod on another node.
pub(crate) fn bed(variant: Variant) -> Bed {
    let bed = Bed::new(variant, &[("shop/web", 0), ("shop/db", 0), ("shop/far", 1)]);
    bed.write("namespaces.yaml", &[namespace("shop", "")]);
    for app in ["web", "db", "far"] {
        bed.write(
            &format!("pod-{app}.yaml"),
            &[bed.manifest(&format!("shop/{app}"), &format!("app: {app}"))],
        );
    }
    bed.write("db.yaml", &[db_admits("web")]);
    bed
}

pub(crate) fn db_admits(app: &str) -> String {
    let spec = "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: ";
    policy("shop/db", &format!("{spec}{app}}}}}}}]}}]"))
}

#[test]
fn held_xtables_lock_is_logged_and_waited_for() {
    with_own_run(|| {
        let bed = bed(Variant::Legacy);
        let daemon = bed.run(&[]);
        let xtables = File::options().create(true).append(true).open("/run/xtables.lock").unwrap();
        let lock = Flock::lock(xtables, FlockArg::LockExclusive).unwrap();
        let start = Instant::now();
        bed.write("web.yaml", &[policy("shop/web", "podSelector: {matchLabels: {app: web}}")]);
        thread::sleep(Duration::from_secs(3));
        assert!(daemon.log().contains("waiting for the xtables lock"), "{}", daemon.log());
        assert_eq!(bed.reaches("shop/far", "shop/web"), [true; 2]);
        assert_eq!(daemon.get("/livez").unwrap().0, 200);
        drop(lock.unlock());
        bed.wait_until_reachable("shop/far", "shop/web", false, Duration::from_secs(3));
        println!("lock held for 3 s, enforced after {:?}", start.elapsed());
        assert!(daemon.is_ready());
    });
}

#[test]
fn missing_program_or_capability_exits_with_3_and_names_the_remedy() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        // A folder with everything that it needs except ipset.
        let tools = bed.folder().join("tools");
        std::fs::create_dir(&tools).unwrap();
        for name in ["iptables", "ip6tables"] {
            for suffix in ["", "-save", "-restore"] {
                let tool = format!("{name}-{}{suffix}", variant.name());
                let file = ["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).join(&tool));
                symlink(file.iter().find(|file| file.exists()).unwrap(), tools.join(&tool)).unwrap();
            }
        }
        let mut command = bed.command(&[]);
        command.env("PATH", &tools);
        let mut daemon = Daemon::start(&bed, command);
        assert_eq!(daemon.wait_for_end(Duration::from_secs(5)).code(), Some(3));
        assert!(daemon.log().contains("install the package ipset"), "{}", daemon.log());

        let usual = bed.command(&[]);
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]);
        // The binary may be in a folder that other users cannot read.
        let binary = bed.folder().join("towpath");
        std::fs::copy(usual.get_program(), &binary).unwrap();
        std::fs::set_permissions(bed.folder(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        command.arg(binary).args(usual.get_args());
        let mut daemon = Daemon::start(&bed, command);
        assert_eq!(daemon.wait_for_end(Duration::from_secs(5)).code(), Some(3));
        assert!(daemon.log().contains("CAP_NET_ADMIN"), "{}", daemon.log());
        assert_eq!(bed.our_rules(Family::V4), "");
    });
}

#[test]
fn running_pod_owns_an_address_that_a_finished_pod_reports_too() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let daemon = bed.run(&[]);
        // A finished pod that reports the address of the pod far.
        let addresses = Family::BOTH.map(|family| bed.address("shop/far", family));
        let finished = bed.manifest_at("shop/finished", "app: web", &addresses, 1);
        bed.write("finished.yaml", &[finished.replace("phase: Running", "phase: Succeeded")]);
        thread::sleep(Duration::from_millis(400));
        assert_eq!(bed.reaches("shop/far", "shop/db"), [false; 2], "the finished pod's labels do not count");
        bed.write("db.yaml", &[db_admits("far")]);
        bed.wait_until_reachable("shop/far", "shop/db", true, Duration::from_secs(5));
        // Two running pods with one address: an object is outdated, which is reported.
        bed.write("finished.yaml", &[finished]);
        wait_until("a warning", Duration::from_secs(3), || {
            daemon.log().contains("several pods report the same address")
        });
        let log = daemon.log();
        let warning = log.lines().find(|line| line.contains("several pods")).unwrap();
        assert!(warning.contains("shop/finished") && warning.contains("shop/far"), "{warning}");
        assert!(warning.contains("WARN"), "{warning}");
    });
}

#[test]
fn invalid_policy_keeps_its_last_valid_version_or_else_isolates() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let daemon = bed.run(&[]);
        assert_eq!(bed.reaches("shop/web", "shop/db"), [true; 2]);
        assert!(daemon.metric("towpath_refused_objects") < 1.0);
        let invalid =
            db_admits("web").replace("ingress: [{from:", "ingress: [{ports: [{port: 70000}], from:");
        bed.write("db.yaml", std::slice::from_ref(&invalid));
        wait_until("the refused object is counted", Duration::from_secs(3), || {
            daemon.metric("towpath_refused_objects") >= 1.0
        });
        assert!(daemon.log().contains("70000"), "{}", daemon.log());
        thread::sleep(Duration::from_millis(200));
        assert_eq!(bed.reaches("shop/web", "shop/db"), [true; 2]);
        assert_eq!(bed.reaches("shop/far", "shop/db"), [false; 2]);
        // Not even YAML.
        bed.objects().write_text("db.yaml", "spec: [{\n");
        thread::sleep(Duration::from_millis(300));
        assert_eq!(bed.reaches("shop/web", "shop/db"), [true; 2]);
        assert_eq!(bed.reaches("shop/far", "shop/db"), [false; 2]);
        // One that was never valid isolates the pods that it selects.
        let never = invalid.replace("name: db,", "name: never,").replace("app: db", "app: web");
        assert_eq!(bed.reaches("shop/far", "shop/web"), [true; 2]);
        bed.write("never.yaml", &[never]);
        bed.wait_until_reachable("shop/far", "shop/web", false, Duration::from_secs(3));
        wait_until("both refused objects are counted", Duration::from_secs(3), || {
            daemon.metric("towpath_refused_objects") >= 2.0
        });
        bed.objects().remove("never.yaml");
        bed.wait_until_reachable("shop/far", "shop/web", true, Duration::from_secs(3));
        bed.write("db.yaml", &[db_admits("far")]);
        bed.wait_until_reachable("shop/far", "shop/db", true, Duration::from_secs(3));
        wait_until("no refused object", Duration::from_secs(3), || {
            daemon.metric("towpath_refused_objects") < 1.0
        });
    });
}

#[test]
fn bridge_netfilter_is_switched_on_again_or_the_daemon_is_not_ready() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        bed.write("db.yaml", &[db_admits("far")]);
        let daemon = bed.run(&[]);
        assert_eq!(bed.reaches("shop/web", "shop/db"), [false; 2]);
        bed.lab.set_bridge_nf_call(0, false).unwrap();
        assert_eq!(bed.reaches("shop/web", "shop/db"), [true; 2], "the switch has no effect here");
        let repaired = bed.wait_until_reachable("shop/web", "shop/db", false, Duration::from_secs(5));
        println!("{variant:?}: bridged packets are filtered again after {repaired:?}");
        assert!(daemon.metric("towpath_drift_repairs_total") >= 1.0);
        drop(daemon);

        // If the switch cannot be set, it is not ready, and reports why.
        let usual = bed.command(&[]);
        let mut command = Command::new("unshare");
        let script =
            "mount --bind -o ro /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
        command.args(["--mount", "sh", "-c", script, "sh"]);
        command.arg(usual.get_program()).args(usual.get_args());
        let daemon = Daemon::start(&bed, command);
        wait_until("ready", READY, || daemon.is_ready());
        bed.lab.set_bridge_nf_call(0, false).unwrap();
        wait_until("not ready", Duration::from_secs(5), || {
            daemon.get("/readyz").is_some_and(|(status, text)| {
                status == 503 && text.contains("net.bridge.bridge-nf-call-iptables cannot be set to 1")
            })
        });
        bed.lab.set_bridge_nf_call(0, true).unwrap();
        wait_until("ready again", Duration::from_secs(5), || daemon.is_ready());
    });
}
