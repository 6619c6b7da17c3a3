//! The daemon is not there.

use std::{
    fs,
    os::unix::net::{UnixListener, UnixStream},
    thread,
    time::Duration,
};

use towpath_cni::protocol::Response;

use crate::{
    call::{Call, Finished, PREV_RESULT, at_once, config},
    daemon::Daemon,
};

const WAIT: (&str, &str) = ("whenAway", r#""wait""#);
const OPEN: (&str, &str) = ("whenAway", r#""open""#);

/// A call that may wait for a second, if it is `ADD`.
fn call(command: &str, daemon: &Daemon, field: (&str, &str)) -> Call {
    let fields =
        [("prevResult", PREV_RESULT), ("cni.dev/valid-attachments", "[]"), ("timeoutSeconds", "1"), field];
    Call::new(command).input(config("1.1.0", &daemon.socket(), &fields))
}

/// A socket whose process is gone.
fn left_behind() -> Daemon {
    let daemon = Daemon::absent();
    drop(UnixListener::bind(daemon.socket()).unwrap());
    // A process that another test starts at this moment has the listener until it runs its program.
    while UnixStream::connect(daemon.socket()).is_ok() {
        thread::sleep(Duration::from_millis(1));
    }
    daemon
}

/// Asserts that the result is passed through, with a word about it on standard error.
#[track_caller]
fn passed(finished: &Finished, result: &str) {
    assert_eq!((finished.status, finished.stdout.as_str()), (Some(0), result), "{finished:?}");
    assert!(finished.stderr.contains("without waiting for"), "{finished:?}");
}

#[test]
fn add_fails_at_its_deadline_and_says_who_was_not_there() {
    for daemon in [Daemon::absent(), left_behind()] {
        let text = call("ADD", &daemon, WAIT).run().failed(11);
        let socket = daemon.socket().display().to_string();
        assert!(
            text.starts_with("the policies of pod shop/web are not in place; no answer from the daemon"),
            "{text}"
        );
        let waited = text.split_once(&format!(" at {socket} for ")).map(|(_, waited)| waited);
        let parts = waited.and_then(|waited| waited.split_once(" s (connect: "));
        let (seconds, why) = parts.unwrap_or_else(|| panic!("{text}"));
        assert!(seconds.parse::<u64>().unwrap() >= 1, "{text}");
        assert!(why.contains("os error"), "{text}");
    }
}

#[test]
fn waiting_is_the_default() {
    let daemon = Daemon::absent();
    let fields = [("prevResult", PREV_RESULT), ("timeoutSeconds", "1")];
    Call::new("ADD").input(config("0.4.0", &daemon.socket(), &fields)).run().failed_in("0.4.0", 11);
}

#[test]
fn add_waits_for_a_daemon_that_starts_later() {
    for daemon in [Daemon::absent(), left_behind()] {
        let fields = [("prevResult", PREV_RESULT)];
        let add = Call::new("ADD").input(config("1.0.0", &daemon.socket(), &fields));
        let waiting = thread::spawn(move || add.run());
        // Longer than it waits for anything but the daemon.
        thread::sleep(Duration::from_millis(1500));
        assert!(!waiting.is_finished());
        let _ = fs::remove_file(daemon.socket());
        daemon.start(Response::Done);
        assert_eq!(waiting.join().unwrap().done(), PREV_RESULT);
        assert_eq!(daemon.requests().len(), 1);
    }
}

#[test]
fn add_in_open_mode_waits_a_second_for_a_daemon_that_is_not_there() {
    for daemon in [Daemon::absent(), left_behind()] {
        let fields = [("prevResult", PREV_RESULT), OPEN, ("timeoutSeconds", "240")];
        passed(&Call::new("ADD").input(config("1.0.0", &daemon.socket(), &fields)).run(), PREV_RESULT);
    }
    let daemon = Daemon::absent();
    let add = call("ADD", &daemon, OPEN);
    let waiting = thread::spawn(move || add.run());
    thread::sleep(Duration::from_millis(100));
    daemon.start(Response::Done);
    assert_eq!(waiting.join().unwrap().done(), PREV_RESULT);
    assert_eq!(daemon.requests().len(), 1);
}

#[test]
fn add_in_open_mode_waits_longer_for_a_daemon_that_is_there() {
    let daemon = Daemon::absent();
    daemon.behave(|connection| {
        thread::sleep(Duration::from_millis(2500));
        towpath_cni::protocol::write_message(connection, &Response::Failed { reason: "late".to_owned() })
            .unwrap();
    });
    let fields = [("prevResult", PREV_RESULT), OPEN, ("timeoutSeconds", "30")];
    let text = Call::new("ADD").input(config("1.1.0", &daemon.socket(), &fields)).run().failed(11);
    assert!(text.ends_with("; late"), "{text}");
}

#[test]
fn del_removes_the_record_itself() {
    for daemon in [Daemon::absent(), left_behind()] {
        let record = daemon.record("c0ffee5d8a3b-eth0.json");
        let others = ["c0ffee5d8a3b-eth1.json", "c0ffee5d8a3-eth0.json", "other-eth0.json"]
            .map(|name| daemon.record(name));
        let del = call("DEL", &daemon, WAIT).without("CNI_NETNS").without("CNI_ARGS");
        // The second time there is none.
        for _ in 0..2 {
            let finished = del.run();
            assert_eq!((finished.status, finished.stdout.as_str()), (Some(0), ""), "{finished:?}");
            assert!(finished.stderr.contains("removed without the daemon"), "{finished:?}");
            assert!(!record.exists());
        }
        assert!(others.iter().all(|file| file.exists()));
    }
}

#[test]
fn del_succeeds_where_no_daemon_ever_ran() {
    let daemon = Daemon::absent();
    let socket = daemon.folder().join("missing/gate.sock");
    let finished = Call::new("DEL").input(config("0.3.1", &socket, &[])).run();
    assert_eq!((finished.status, finished.stdout.as_str()), (Some(0), ""), "{finished:?}");
}

#[test]
fn record_that_cannot_be_removed_is_an_io_failure() {
    let daemon = Daemon::absent();
    fs::create_dir_all(daemon.folder().join("attachments/c0ffee5d8a3b-eth0.json")).unwrap();
    let text = call("DEL", &daemon, WAIT).run().failed(5);
    assert!(text.contains("attachments/c0ffee5d8a3b-eth0.json"), "{text}");
}

#[test]
fn check_fails_in_both_modes() {
    let absent = Daemon::absent();
    for finished in at_once([WAIT, OPEN].map(|mode| call("CHECK", &absent, mode))) {
        let text = finished.failed(11);
        assert!(text.starts_with("the policies of pod shop/web are not in place"), "{text}");
    }
}

#[test]
fn gc_fails_and_leaves_the_records() {
    let daemon = Daemon::absent();
    let record = daemon.record("other-eth0.json");
    let text = call("GC", &daemon, OPEN).run().failed(11);
    assert!(text.starts_with("stale attachments are not removed"), "{text}");
    assert!(record.exists());
}

#[test]
fn status_is_not_available_unless_pods_start_without_the_daemon() {
    let absent = Daemon::absent();
    let [waiting, open] = at_once([WAIT, OPEN].map(|mode| call("STATUS", &absent, mode)));
    let text = waiting.failed(50);
    assert!(text.starts_with("new pods cannot get their policies; no answer from the daemon"), "{text}");
    passed(&open, "");
}
