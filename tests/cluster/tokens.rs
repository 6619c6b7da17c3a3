//! The credentials of a daemon change while it runs.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    harness::{
        Daemon, READY, SOON, World,
        control_plane::PORT,
        objects::{labelled, path},
        with_control_plane,
    },
    wait::wait_until,
};

/// How long the API server may accept a token after its revocation: it caches its answers for ten seconds.
const TOKEN_CACHE: Duration = Duration::from_secs(15);

fn secret(name: &str) -> serde_json::Value {
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": "towpath", "name": name } })
}

#[test]
fn daemon_keeps_working_when_a_replaced_token_expires() {
    with_control_plane(|plane| {
        let world = World::new(plane, &[("shop/db", 0), ("shop/web", 1)]);
        world.api().create(&secret("first"));
        // It is valid as long as the secret to which it is bound exists.
        let first = world.api().token("towpath/towpath", Some("first"));
        World::write_token(&first);
        let daemon = world.run(0);
        let old = world.kubeconfig("old", PORT, &first);
        World::write_token(&world.api().token("towpath/towpath", None));
        world.api().delete("/api/v1/namespaces/towpath/secrets/first");
        std::thread::sleep(TOKEN_CACHE);
        // A daemon with only the old token is refused: it is no longer valid.
        let mut command = world.command(1, &["--kubeconfig"]);
        command.arg(&old);
        Daemon::start(&world, 1, command).wait_unready(READY, &["401"]);
        // Every watch is restarted, and everything else continues.
        world.cable(0).reset(&world.plane);
        world.policy("shop/db", &json!({ "podSelector": labelled(&json!({ "app": "db" })) }));
        world.until("shop/web", "shop/db", false, SOON + SOON);
        world.api().delete(&path("networkpolicies", "shop/db"));
        world.until("shop/web", "shop/db", true, SOON);
        assert!(daemon.is_ready());
    });
}

#[test]
fn kubeconfig_works_like_the_in_cluster_credentials() {
    with_control_plane(|plane| {
        let world = World::new(plane, &[("shop/db", 0), ("shop/web", 1)]);
        let token = world.api().token("towpath/towpath", None);
        let kubeconfig = world.kubeconfig("other", PORT, &token);
        let command = |more: &[&str]| {
            let mut command = world.command(0, more);
            command.env_remove("KUBERNETES_SERVICE_HOST").env_remove("KUBERNETES_SERVICE_PORT");
            command
        };
        world.policy("shop/db", &json!({ "podSelector": labelled(&json!({ "app": "db" })) }));
        let mut by_flag = command(&["--context", "test", "--kubeconfig"]);
        by_flag.arg(&kubeconfig);
        let mut by_variable = command(&[]);
        by_variable.env("TOWPATH_KUBECONFIG", &kubeconfig).env("TOWPATH_CONTEXT", "test");
        let mut as_kubectl = command(&[]);
        as_kubectl.env("KUBECONFIG", &kubeconfig);
        for command in [by_flag, by_variable, as_kubectl] {
            let daemon = Daemon::start(&world, 0, command);
            daemon.wait_ready();
            world.until("shop/web", "shop/db", false, SOON);
        }
        // A context that does not exist may be created later, so the daemon waits.
        let mut elsewhere = command(&["--context", "elsewhere", "--kubeconfig"]);
        elsewhere.arg(&kubeconfig);
        Daemon::start(&world, 0, elsewhere).wait_unready(READY, &["elsewhere"]);
    });
}

#[test]
fn exec_plugin_that_hangs_is_reported_and_run_again() {
    with_control_plane(|plane| {
        let world = World::new(plane, &[("shop/db", 0), ("shop/web", 1)]);
        let folder = tempfile::tempdir().unwrap();
        let (hangs, runs) = (folder.path().join("hangs"), folder.path().join("runs"));
        fs::write(&hangs, "").unwrap();
        let answer = json!({
            "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
            "status": { "token": world.api().token("towpath/towpath", None) },
        });
        let script = format!(
            "echo $$ >> {}; if [ -e {} ]; then sleep 600; fi; echo '{answer}'",
            runs.display(),
            hangs.display()
        );
        let user = json!({ "exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
            "command": "sh", "args": ["-c", script],
        } });
        let kubeconfig = world.kubeconfig_of("plugin", PORT, &user);
        let words = ["exec plugin sh", "has not answered for 30 s and was killed"];

        let started = Instant::now();
        let mut command = world.command(0, &["--kubeconfig"]);
        command.arg(&kubeconfig);
        let daemon = Daemon::start(&world, 0, command);
        daemon.wait_unready(Duration::from_secs(50), &words);
        println!("reported after {:?}", started.elapsed());
        let log = daemon.log();
        assert!(log.contains("exec plugin of the kubeconfig has not answered yet"), "{log}");
        let matrix = ["matrix", "--kubeconfig", kubeconfig.to_str().unwrap()];
        let error = world.node(0).succeed(env!("CARGO_BIN_EXE_towpath"), &matrix).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");

        fs::remove_file(&hangs).unwrap();
        // A run that began before then hangs to its end.
        wait_until("ready", Duration::from_secs(90), || daemon.is_ready());
        world.policy("shop/db", &json!({ "podSelector": labelled(&json!({ "app": "db" })) }));
        world.until("shop/web", "shop/db", false, SOON);
        world.node(0).succeed(env!("CARGO_BIN_EXE_towpath"), &matrix).unwrap();
        for process in fs::read_to_string(&runs).unwrap().lines() {
            assert!(!fs::exists(format!("/proc/{process}")).unwrap(), "{process} is left");
        }
    });
}
