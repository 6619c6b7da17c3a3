//! The node's clock is changed while the daemon runs.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::harness::{
    Daemon, SOON, World,
    objects::{labelled, path},
    with_control_plane,
};

/// How long the API server may accept a token after its revocation: it caches its answers for ten seconds.
const TOKEN_CACHE: Duration = Duration::from_secs(15);

/// The library of Debian's package libfaketime that changes the wall clock of a program.
fn library() -> PathBuf {
    let found = fs::read_dir("/usr/lib").unwrap().flatten();
    let found =
        found.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    found.expect("libfaketime is not installed: apt-get install libfaketime")
}

#[test]
fn clock_jumps_stop_neither_changes_nor_token_renewal() {
    with_control_plane(|plane| {
        let world = World::new(plane, &[("shop/db", 0), ("shop/web", 1)]);
        let set = |token: &str| {
            let (namespace, name) = ("towpath", token);
            let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": namespace, "name": name } });
            world.api().create(&secret);
            World::write_token(&world.api().token("towpath/towpath", Some(name)));
        };
        let folder = tempfile::tempdir().unwrap();
        let clock = folder.path().join("clock");
        let jump = |to: &str| {
            let next = folder.path().join("next");
            fs::write(&next, to).unwrap();
            fs::rename(next, &clock).unwrap();
        };
        let toggle = |open: bool| {
            if open {
                world.api().delete(&path("networkpolicies", "shop/db"));
            } else {
                world.policy("shop/db", &json!({ "podSelector": labelled(&json!({ "app": "db" })) }));
            }
            world.until("shop/web", "shop/db", open, SOON + SOON);
        };
        set("first");
        jump("+0");
        let mut command = world.command(0, &[]);
        command
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", &clock)
            .env("FAKETIME_NO_CACHE", "1");
        // Only the wall clock can be set; the monotonic clock never jumps.
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
        let daemon = Daemon::start(&world, 0, command);
        daemon.wait_ready();
        let last_success = |daemon: &Daemon<'_>| daemon.metric("towpath_last_success_timestamp_seconds");
        let before = last_success(&daemon);
        // Packets may follow the change a moment before the metric shows it.
        let wait_for_jump = |is: &dyn Fn(f64) -> bool| {
            let until = Instant::now() + SOON;
            while !is(last_success(&daemon)) {
                assert!(Instant::now() < until, "the daemon does not use the changed clock");
                std::thread::sleep(Duration::from_millis(20));
            }
        };

        jump("+3d");
        toggle(false);
        wait_for_jump(&|now| now > before + 2.0 * 86_400.0);
        world.cable(0).reset(&world.plane);
        toggle(true);

        // Backwards: the token that was just read now appears to be valid for days.
        jump("-3d");
        toggle(false);
        wait_for_jump(&|now| now < before - 2.0 * 86_400.0);
        set("second");
        world.api().delete("/api/v1/namespaces/towpath/secrets/first");
        std::thread::sleep(TOKEN_CACHE);
        world.cable(0).reset(&world.plane);
        toggle(true);
        assert!(daemon.is_ready());
    });
}
