//! A daemon that does what none should do.

use std::{
    io::{Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::net::{UnixListener, UnixStream},
    },
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use towpath_cni::protocol::{MAX_MESSAGE, Request, read_message};

use crate::{
    call::{Call, PREV_RESULT, at_once, config},
    daemon::Daemon,
};

/// Sends this after the request has arrived, and closes.
fn answer(bytes: &[u8]) -> impl Fn(UnixStream) + Send + Sync + 'static {
    let bytes = bytes.to_vec();
    move |mut connection| {
        // At its deadline the plugin may be gone.
        if read_message::<Request>(&connection).is_ok() {
            let _ = connection.write_all(&bytes);
        }
    }
}

/// Reads until the other side closes, and says nothing.
fn hang(mut connection: UnixStream) {
    let _ = connection.read_to_end(&mut Vec::new());
}

/// A byte now and then, without end.
fn drip(mut connection: UnixStream) {
    while connection.write_all(b" ").is_ok() {
        thread::sleep(Duration::from_millis(100));
    }
}

fn call(command: &str, daemon: &Daemon, when_away: &str) -> Call {
    let fields = [("prevResult", PREV_RESULT), ("timeoutSeconds", "1"), ("whenAway", when_away)];
    Call::new(command).input(config("1.1.0", &daemon.socket(), &fields))
}

/// Asserts that the plugin takes this daemon for one that is away.
#[track_caller]
fn is_away(what: &str, daemon: &Daemon) {
    let record = daemon.record("c0ffee5d8a3b-eth0.json");
    let calls = [("ADD", r#""wait""#), ("ADD", r#""open""#), ("DEL", r#""wait""#)];
    let [waited, opened, deleted] = at_once(calls.map(|(command, mode)| call(command, daemon, mode)));

    let text = waited.failed(11);
    assert!(text.contains("no answer from the daemon"), "{what}: {text}");
    assert!(text.contains(what), "{what}: {text}");
    assert_eq!((opened.status, opened.stdout.as_str()), (Some(0), PREV_RESULT), "{what}: {opened:?}");
    assert!(opened.stderr.contains(what), "{what}: {opened:?}");
    assert_eq!((deleted.status, deleted.stdout.as_str()), (Some(0), ""), "{what}: {deleted:?}");
    assert!(!record.exists(), "{what}");
}

fn behaving(with_connection: impl Fn(UnixStream) + Send + Sync + 'static) -> Daemon {
    let daemon = Daemon::absent();
    daemon.behave(with_connection);
    daemon
}

#[test]
fn daemon_that_does_not_answer_is_away() {
    is_away("answer: it took too long", &behaving(hang));
}

#[test]
fn daemon_that_sends_without_end_is_away() {
    is_away("answer: it took too long", &behaving(drip));
}

#[test]
fn daemon_that_closes_at_once_is_away() {
    is_away("answer: ", &behaving(drop));
}

#[test]
fn daemon_that_closes_without_an_answer_is_away() {
    is_away("closed before the message was complete", &behaving(answer(b"")));
    is_away("closed before the message was complete", &behaving(answer(br#"{"result":"done"}"#)));
}

#[test]
fn answer_that_cannot_be_read_is_none() {
    let junk = [&b"\n"[..], b"junk\n", b"{}\n", b"[]\n", b"{\"result\":\"maybe\"}\n", b"\xff\n"];
    thread::scope(|scope| {
        for junk in junk {
            scope.spawn(|| is_away("the message cannot be read", &behaving(answer(junk))));
        }
    });
}

#[test]
fn answer_that_is_too_long_is_none() {
    let line = |length: usize| {
        let mut line = br#"{"result":"done"}"#.to_vec();
        line.resize(length - 1, b' ');
        line.push(b'\n');
        line
    };
    is_away("longer than 65536 bytes", &behaving(answer(&line(MAX_MESSAGE + 1))));
    let longest = behaving(answer(&line(MAX_MESSAGE)));
    assert_eq!(call("ADD", &longest, r#""wait""#).run().done(), PREV_RESULT);
}

#[test]
fn daemon_that_accepts_nobody_is_away() {
    let daemon = Daemon::absent();
    let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(&daemon.socket()).unwrap()).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    // The queue is full with this one, and whoever connects next waits.
    let _first = UnixStream::connect(daemon.socket()).unwrap();
    is_away("connect: it took too long", &daemon);
}

#[test]
fn daemon_that_answers_slowly_but_in_time_is_heard() {
    let slow = behaving(|mut connection| {
        let _: Request = read_message(&connection).unwrap();
        for byte in br#"{"result":"failed","reason":"slow"}"# {
            connection.write_all(&[*byte]).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
        connection.write_all(b"\n").unwrap();
    });
    let fields = [("prevResult", PREV_RESULT)];
    let text = Call::new("ADD").input(config("1.1.0", &slow.socket(), &fields)).run().failed(11);
    assert!(text.ends_with("; slow"), "{text}");
}

#[test]
fn fields_of_a_later_daemon_are_ignored() {
    let later = behaving(answer(b"{\"result\":\"done\",\"since\":7}\nmore"));
    assert_eq!(call("ADD", &later, r#""wait""#).run().done(), PREV_RESULT);
}

#[test]
fn daemon_that_restarts_while_it_is_asked_is_asked_again() {
    let asked = AtomicUsize::new(0);
    let daemon = behaving(move |connection| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => drop(connection),
        1 => answer(b"jun")(connection),
        _ => answer(b"{\"result\":\"done\"}\n")(connection),
    });
    let fields = [("prevResult", PREV_RESULT)];
    let add = Call::new("ADD").input(config("1.1.0", &daemon.socket(), &fields));
    assert_eq!(add.run().done(), PREV_RESULT);
}

#[test]
fn reason_is_that_of_the_last_attempt() {
    let daemon = Daemon::absent();
    let add = call("ADD", &daemon, r#""wait""#);
    let waiting = thread::spawn(move || add.run());
    thread::sleep(Duration::from_millis(100));
    // A socket whose process is gone: first there is none, and then nobody listens.
    drop(UnixListener::bind(daemon.socket()).unwrap());
    let text = waiting.join().unwrap().failed(11);
    assert!(text.contains("Connection refused"), "{text}");

    let asked = AtomicUsize::new(0);
    let daemon = behaving(move |connection| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => answer(b"junk\n")(connection),
        _ => hang(connection),
    });
    let fields = [("prevResult", PREV_RESULT), ("timeoutSeconds", "3")];
    let text = Call::new("ADD").input(config("1.1.0", &daemon.socket(), &fields)).run().failed(11);
    assert!(text.contains("answer: it took too long"), "{text}");
}

#[test]
fn attempt_that_is_cut_off_soon_does_not_hide_the_reason_before() {
    let first = OnceLock::new();
    let daemon = behaving(move |connection| {
        let since = first.get_or_init(Instant::now);
        if since.elapsed() < Duration::from_millis(700) {
            answer(b"junk\n")(connection);
        } else {
            hang(connection);
        }
    });
    let text = call("ADD", &daemon, r#""wait""#).run().failed(11);
    assert!(text.contains("the message cannot be read"), "{text}");
}

#[test]
fn socket_that_is_no_socket_is_away() {
    let daemon = Daemon::absent();
    std::fs::write(daemon.socket(), "").unwrap();
    is_away("connect: ", &daemon);
}
