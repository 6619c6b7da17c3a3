//! What is wrong on standard input, and how it is said.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::Path,
    process::Stdio,
};

use crate::{
    call::{Call, Finished, PREV_RESULT, config},
    daemon::Daemon,
};

/// `ADD` with these further fields; nobody listens, and nobody is asked.
fn add(fields: &[(&str, &str)]) -> Finished {
    let absent = Daemon::absent();
    let mut all = vec![("prevResult", PREV_RESULT)];
    all.extend_from_slice(fields);
    Call::new("ADD").input(config("1.1.0", &absent.socket(), &all)).run()
}

#[test]
fn wrong_value_is_an_error_that_names_the_field() {
    let long = format!(r#""/{}""#, "s".repeat(107));
    let wrong = [
        ("socket", r#""gate.sock""#),
        ("socket", r#""""#),
        ("socket", r#""/run/towpath/""#),
        ("socket", r#""/run/\u0000""#),
        ("socket", long.as_str()),
        ("socket", "7"),
        ("socket", "null"),
        ("whenAway", r#""Open""#),
        ("whenAway", r#""""#),
        ("whenAway", "true"),
        ("whenAway", "null"),
        ("timeoutSeconds", "0"),
        ("timeoutSeconds", "241"),
        ("timeoutSeconds", "-1"),
        ("timeoutSeconds", "1.5"),
        ("timeoutSeconds", r#""30""#),
        ("timeoutSeconds", "null"),
        ("name", r#""""#),
        ("name", r#""../pods""#),
        ("name", "7"),
    ];
    for (field, value) in wrong {
        let text = add(&[(field, value)]).failed(7);
        assert!(text.starts_with(&format!("{field}: ")), "{field}: {value}: {text}");
    }
}

#[test]
fn longest_path_of_a_socket_is_accepted() {
    let daemon = Daemon::done();
    let folder = daemon.folder().display().to_string();
    let longest = format!("{folder}/{}", "s".repeat(106 - folder.len()));
    assert_eq!(longest.len(), 107);
    fs::rename(daemon.socket(), &longest).unwrap();
    let fields = [("prevResult", PREV_RESULT), ("timeoutSeconds", "1")];
    let add = Call::new("ADD").input(config("1.1.0", Path::new(&longest), &fields));
    assert_eq!(add.run().done(), PREV_RESULT);
}

#[test]
fn every_command_that_may_fail_refuses_wrong_fields() {
    for command in ["CHECK", "GC", "STATUS"] {
        let fields =
            [("prevResult", PREV_RESULT), ("cni.dev/valid-attachments", "[]"), ("timeoutSeconds", "0")];
        let input = config("1.1.0", &Daemon::absent().socket(), &fields);
        assert!(Call::new(command).input(input).run().failed(7).starts_with("timeoutSeconds: "), "{command}");
        let nameless = r#"{"cniVersion":"1.1.0","prevResult":{},"cni.dev/valid-attachments":[]}"#;
        let text = Call::new(command).input(nameless).run().failed(7);
        assert!(text.contains("has no name"), "{command}: {text}");
    }
    let input = r#"{"cniVersion":"1.1.0","socket":7}"#;
    assert!(Call::new("DEL").input(input).run().failed(7).starts_with("socket: "));
}

#[test]
fn unsupported_field_is_named_with_its_value() {
    let text = add(&[("whenaway", r#""open""#)]).failed(2);
    assert!(text.contains(r#""whenaway""#) && text.contains(r#""open""#), "{text}");
}

#[test]
fn fields_of_the_specification_are_accepted() {
    let daemon = Daemon::done();
    let fields = [
        ("prevResult", PREV_RESULT),
        ("args", r#"{"cni":{}}"#),
        ("capabilities", r#"{"portMappings":true}"#),
        ("cniVersions", r#"["1.1.0"]"#),
        ("disableCheck", "true"),
        ("disableGC", "true"),
        ("loadOnlyInlinedPlugins", "true"),
        ("ipMasq", "true"),
        ("ipam", r#"{"type":"host-local"}"#),
        ("dns", "{}"),
        ("runtimeConfig", "{}"),
        ("cni.dev/later", "1"),
        ("whenAway", r#""wait""#),
        ("timeoutSeconds", "240"),
    ];
    let add = Call::new("ADD").input(config("1.1.0", &daemon.socket(), &fields));
    assert_eq!(add.run().done(), PREV_RESULT);
}

#[test]
fn other_versions_are_incompatible() {
    let absent = Daemon::absent();
    for command in ["ADD", "CHECK", "DEL", "GC", "STATUS"] {
        for version in ["0.1.0", "0.2.0", "0.3.0", "1.0.1", "1.2.0", "2.0.0", "junk", ""] {
            let text = Call::new(command).input(config(version, &absent.socket(), &[])).run().failed(1);
            assert!(text.contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{text}");
        }
        let text = Call::new(command).input(r#"{"name":"pods"}"#).run().failed(1);
        assert!(text.contains("cniVersion 0.1.0"), "{text}");
    }
}

#[test]
fn add_and_check_need_a_plugin_before_them() {
    let absent = Daemon::absent();
    for command in ["ADD", "CHECK"] {
        for fields in [&[][..], &[("prevResult", "null")]] {
            let text = Call::new(command).input(config("1.0.0", &absent.socket(), fields)).run();
            let text = text.failed_in("1.0.0", 7);
            assert!(text.contains("chained behind another plugin"), "{text}");
        }
    }
}

#[test]
fn input_that_is_no_json_object_cannot_be_decoded() {
    for input in ["", "junk", "[]", "7", "null", r#"{"cniVersion":"1.1.0""#, "{} {}"] {
        Call::new("ADD").input(input).run().failed(6);
    }
    Call::new("ADD").input(b"{\"cniVersion\":\"1.1.0\",\"name\":\"\xff\"}").run().failed(6);
    let text = Call::new("ADD").input(r#"{"cniVersion":1.1}"#).run().failed(6);
    assert!(text.contains("cniVersion"), "{text}");
}

#[test]
fn previous_result_that_cannot_be_read_is_an_error() {
    let undecodable = [
        "[]",
        "7",
        r#"{"interfaces":{}}"#,
        r#"{"interfaces":[{"mac":"00:11:22:33:44:55"}]}"#,
        r#"{"ips":[{"address":"10.0.0.300/24"}]}"#,
        r#"{"ips":[{"address":""}]}"#,
        r#"{"ips":[{"address":"10.0.0.3/24","interface":-1}]}"#,
    ];
    for prev_result in undecodable {
        let text = add_only(prev_result).failed(6);
        assert!(text.contains("prevResult"), "{prev_result}: {text}");
    }
    let beyond =
        r#"{"interfaces":[{"name":"eth0","sandbox":"/n"}],"ips":[{"address":"10.0.0.3/24","interface":1}]}"#;
    assert!(add_only(beyond).failed(7).contains("10.0.0.3/24 is for interface 1"));
}

fn add_only(prev_result: &str) -> Finished {
    let fields = [("prevResult", prev_result)];
    Call::new("ADD").input(config("1.1.0", &Daemon::absent().socket(), &fields)).run()
}

#[test]
fn input_is_bounded() {
    let mebibyte = 1 << 20;
    for length in [mebibyte, mebibyte + 1, 2 * mebibyte] {
        let finished = Call::new("ADD").input(vec![b'x'; length]).run();
        if length > mebibyte {
            assert!(finished.failed(7).contains("too long"));
        } else {
            finished.failed(6);
        }
    }
    // A writer that never ends is not waited for.
    let mut command = Call::new("ADD").command();
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let is_refused = (0..1024).any(|_| stdin.write_all(&[b' '; 4096]).is_err());
    assert!(is_refused, "it reads four times as much as it may");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn input_that_cannot_be_read_is_an_io_failure() {
    // A folder can be opened and not read.
    let child = Call::new("ADD").command().stdin(Stdio::from(File::open("/").unwrap())).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Finished { status: output.status.code(), stdout, stderr }.failed(5);
}

#[test]
fn result_that_cannot_be_written_is_a_failure() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = Call::new("VERSION").command().stdout(full).spawn().unwrap();
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("writing the result"));
}

#[test]
fn request_that_no_daemon_would_read_is_not_sent() {
    let daemon = Daemon::done();
    let valid: Vec<String> =
        (0..2000).map(|one| format!(r#"{{"containerID":"{one:064}","ifname":"eth0"}}"#)).collect();
    let fields = [("cni.dev/valid-attachments", &*format!("[{}]", valid.join(",")))];
    let text = Call::new("GC").input(config("1.1.0", &daemon.socket(), &fields)).run().failed(100);
    assert!(text.contains("65536 bytes"), "{text}");
    assert!(daemon.requests().is_empty());
}
