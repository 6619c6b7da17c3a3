//! Each command, with a daemon that answers.

use serde_json::{Value, json};

use crate::{
    call::{CONTAINER, Call, NETNS, PREV_RESULT, config},
    daemon::Daemon,
};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn call(command: &str, version: &str, daemon: &Daemon, fields: &[(&str, &str)]) -> Call {
    Call::new(command).input(config(version, &daemon.socket(), fields))
}

/// What the daemon is told about shop/web.
fn attachment(command: &str) -> Value {
    json!({
        "command": command, "container_id": CONTAINER, "ifname": "eth0", "network": "pods", "netns": NETNS,
        "pod": {"namespace": "shop", "name": "web", "uid": "6fd2a7c3"},
        "host_interfaces": ["cni0", "veth3243"], "mac": "9a:88:77:66:55:44",
        "addresses": ["10.244.1.5", "fd00:1::5"],
    })
}

#[test]
fn add_passes_the_previous_result_through_byte_for_byte_in_every_version() {
    for version in VERSIONS {
        let daemon = Daemon::done();
        let finished = call("ADD", version, &daemon, &[("prevResult", PREV_RESULT)]).run();
        assert_eq!(finished.done(), PREV_RESULT, "{version}");
        assert_eq!(daemon.requests(), [attachment("add")], "{version}");
    }
}

#[test]
fn previous_result_of_many_kilobytes_is_passed_through() {
    let daemon = Daemon::done();
    let long = format!(r#"{{"interfaces":[], "ips":[], "later": "{}"}}"#, "x".repeat(900_000));
    assert_eq!(call("ADD", "1.0.0", &daemon, &[("prevResult", &long)]).run().done(), long);
}

/// The addresses and the hardware address that the daemon is told for this previous result.
fn told(prev_result: &str) -> (Value, Value, Value) {
    let daemon = Daemon::done();
    let finished = call("ADD", "1.0.0", &daemon, &[("prevResult", prev_result)]).run();
    assert_eq!(finished.done(), prev_result);
    let request = daemon.requests().remove(0);
    (request["host_interfaces"].clone(), request["mac"].clone(), request["addresses"].clone())
}

#[test]
fn addresses_are_those_of_the_interface_that_is_added() {
    let other = r#"{"interfaces":[{"name":"eth0"},{"name":"eth1","sandbox":"/n"},{"name":"eth0","sandbox":"/n"}],
        "ips":[{"address":"10.0.0.1/24","interface":0},{"address":"10.0.0.2/24","interface":1},
               {"address":"10.0.0.3/24","interface":2},{"address":"10.0.0.4/32"}]}"#;
    assert_eq!(told(other), (json!(["eth0"]), json!(null), json!(["10.0.0.3", "10.0.0.4"])));
}

#[test]
fn previous_result_without_interfaces_or_addresses_is_accepted() {
    assert_eq!(told("{}"), (json!([]), json!(null), json!([])));
    assert_eq!(told(r#"{"interfaces":null,"ips":null}"#), (json!([]), json!(null), json!([])));
    let alone = r#"{"ips":[{"address":"10.0.0.4/32"}]}"#;
    assert_eq!(told(alone), (json!([]), json!(null), json!(["10.0.0.4"])));
    // The address belongs to an interface of the node.
    let host = r#"{"interfaces":[{"name":"cni0","mac":""}],"ips":[{"address":"10.0.0.1/24","interface":0}]}"#;
    assert_eq!(told(host), (json!(["cni0"]), json!(null), json!([])));
}

#[test]
fn add_fails_with_the_reason_that_the_daemon_gives_in_both_modes() {
    for when_away in [r#""wait""#, r#""open""#] {
        let daemon = Daemon::failed("its policies are over budget");
        let fields = [("prevResult", PREV_RESULT), ("whenAway", when_away)];
        let text = call("ADD", "0.4.0", &daemon, &fields).run().failed_in("0.4.0", 11);
        assert_eq!(text, "the policies of pod shop/web are not in place; its policies are over budget");
        assert_eq!(daemon.requests().len(), 1);
    }
}

#[test]
fn container_that_is_no_pod_starts_without_the_daemon() {
    let absent = Daemon::absent();
    for args in ["", "IgnoreUnknown=1", "K8S_POD_NAMESPACE=;K8S_POD_NAME=;"] {
        let fields = [("prevResult", PREV_RESULT), ("timeoutSeconds", "1")];
        let add = call("ADD", "1.0.0", &absent, &fields).with("CNI_ARGS", args);
        assert_eq!(add.run().done(), PREV_RESULT);
        assert_eq!(call("CHECK", "1.0.0", &absent, &fields).with("CNI_ARGS", args).run().done(), "");
    }
    let add = call("ADD", "1.0.0", &absent, &[("prevResult", PREV_RESULT)]).without("CNI_ARGS");
    assert_eq!(add.run().done(), PREV_RESULT);
    // It, too, needs a plugin that makes its interface.
    call("ADD", "1.0.0", &absent, &[]).without("CNI_ARGS").run().failed_in("1.0.0", 7);
}

#[test]
fn pod_without_uid_is_a_pod() {
    let daemon = Daemon::done();
    let add = call("ADD", "1.0.0", &daemon, &[("prevResult", PREV_RESULT)])
        .with("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web");
    assert_eq!(add.run().done(), PREV_RESULT);
    assert_eq!(daemon.requests()[0]["pod"], json!({"namespace": "shop", "name": "web", "uid": null}));
}

#[test]
fn check_asks_and_prints_nothing() {
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let daemon = Daemon::done();
        assert_eq!(call("CHECK", version, &daemon, &[("prevResult", PREV_RESULT)]).run().done(), "");
        assert_eq!(daemon.requests(), [attachment("check")]);
    }
}

#[test]
fn check_fails_with_the_reason_that_the_daemon_gives() {
    let daemon = Daemon::failed("a chain is missing");
    let fields = [("prevResult", PREV_RESULT), ("whenAway", r#""open""#)];
    let text = call("CHECK", "1.0.0", &daemon, &fields).run().failed_in("1.0.0", 11);
    assert_eq!(text, "the policies of pod shop/web are not in place; a chain is missing");
}

#[test]
fn del_asks_with_nothing_but_the_attachment() {
    for version in VERSIONS {
        let daemon = Daemon::done();
        let mut del =
            call("DEL", version, &daemon, &[]).without("CNI_NETNS").without("CNI_ARGS").without("CNI_PATH");
        assert_eq!(del.run().done(), "");
        // Everything that is there is accepted as well, and deleting again.
        del = call("DEL", version, &daemon, &[("prevResult", PREV_RESULT)]);
        assert_eq!(del.run().done(), "");
        let request = json!({"command": "del", "container_id": CONTAINER, "ifname": "eth0"});
        assert_eq!(daemon.requests(), [request.clone(), request]);
    }
}

#[test]
fn del_does_not_need_what_only_other_commands_use() {
    let daemon = Daemon::done();
    let fields = [
        ("timeoutSeconds", "-1"),
        ("whenAway", "7"),
        ("unknown", "true"),
        ("prevResult", "[]"),
        ("name", r#""a/b""#),
    ];
    assert_eq!(call("DEL", "1.0.0", &daemon, &fields).with("CNI_ARGS", "?").run().done(), "");
    assert_eq!(daemon.requests().len(), 1);
}

#[test]
fn del_that_the_daemon_refuses_fails_and_leaves_the_record() {
    let daemon = Daemon::failed("no space left");
    let record = daemon.record("c0ffee5d8a3b-eth0.json");
    let text = call("DEL", "1.1.0", &daemon, &[]).run().failed(11);
    assert_eq!(text, "c0ffee5d8a3b/eth0 is not removed; no space left");
    assert!(record.exists());
}

#[test]
fn gc_names_the_attachments_that_are_valid() {
    let daemon = Daemon::done();
    let valid = r#"[{"containerID":"a","ifname":"eth0"},{"containerID":"b.c","ifname":"net1"}]"#;
    let empty = [("cni.dev/valid-attachments", "[]")];
    // As libcni writes an empty list.
    let null = [("cni.dev/valid-attachments", "null"), ("cni.dev/attachments", "null")];
    for fields in [&[("cni.dev/valid-attachments", valid)][..], &empty, &null] {
        assert_eq!(call("GC", "1.1.0", &daemon, fields).run().done(), "");
    }
    let gc = |valid: Value| json!({"command": "gc", "network": "pods", "valid": valid});
    let both = json!([{"container_id": "a", "ifname": "eth0"}, {"container_id": "b.c", "ifname": "net1"}]);
    assert_eq!(daemon.requests(), [gc(both), gc(json!([])), gc(json!([]))]);
}

#[test]
fn gc_without_a_list_would_remove_everything_and_is_refused() {
    let daemon = Daemon::done();
    let text = call("GC", "1.1.0", &daemon, &[]).run().failed(7);
    assert!(text.contains("cni.dev/valid-attachments"), "{text}");
    let traversal = r#"[{"containerID":"../a","ifname":"eth0"}]"#;
    let text = call("GC", "1.1.0", &daemon, &[("cni.dev/valid-attachments", traversal)]).run().failed(7);
    assert!(text.contains("../a"), "{text}");
    let text = call("GC", "1.1.0", &daemon, &[("cni.dev/valid-attachments", "{}")]).run().failed(6);
    assert!(text.contains("cni.dev/valid-attachments"), "{text}");
    assert_eq!(daemon.requests(), [json!(null); 0]);
}

#[test]
fn gc_that_the_daemon_refuses_fails() {
    let daemon = Daemon::failed("no space left");
    let text = call("GC", "1.1.0", &daemon, &[("cni.dev/valid-attachments", "[]")]).run().failed(11);
    assert_eq!(text, "stale attachments are not removed; no space left");
}

#[test]
fn status_asks_the_daemon() {
    let daemon = Daemon::done();
    let status = call("STATUS", "1.1.0", &daemon, &[]);
    let status =
        status.without("CNI_CONTAINERID").without("CNI_IFNAME").without("CNI_NETNS").without("CNI_PATH");
    assert_eq!(status.run().done(), "");
    assert_eq!(daemon.requests(), [json!({"command": "status"})]);
    for when_away in [r#""wait""#, r#""open""#] {
        let daemon = Daemon::failed("the first lists are missing");
        let text = call("STATUS", "1.1.0", &daemon, &[("whenAway", when_away)]).run().failed(50);
        assert_eq!(text, "new pods cannot get their policies; the first lists are missing");
    }
}

#[test]
fn commands_of_later_versions_are_refused_in_earlier_ones() {
    let daemon = Daemon::done();
    let refused = [("CHECK", &VERSIONS[..1]), ("GC", &VERSIONS[..3]), ("STATUS", &VERSIONS[..3])];
    for (command, versions) in refused {
        for version in versions {
            let fields = [("prevResult", PREV_RESULT), ("cni.dev/valid-attachments", "[]")];
            let text = call(command, version, &daemon, &fields).run().failed_in(version, 1);
            assert!(text.contains(command) && text.contains(version), "{text}");
        }
    }
    assert_eq!(daemon.requests(), [json!(null); 0]);
}

#[test]
fn version_has_the_version_that_was_asked_and_all_that_are_supported() {
    let version = |input: &str| {
        let call = Call::new("VERSION").without("CNI_CONTAINERID").without("CNI_NETNS").without("CNI_IFNAME");
        let finished = call.without("CNI_PATH").input(input).run();
        let answer: Value = serde_json::from_str(finished.done()).unwrap();
        assert_eq!(answer["supportedVersions"], json!(VERSIONS));
        answer["cniVersion"].as_str().unwrap().to_owned()
    };
    for asked in VERSIONS {
        assert_eq!(version(&format!(r#"{{"cniVersion":"{asked}"}}"#)), asked);
    }
    for unknown in ["", "junk", "[]", r#"{"cniVersion":"0.2.0"}"#, r#"{"cniVersion":"9.9.9"}"#] {
        assert_eq!(version(unknown), "1.1.0", "{unknown:?}");
    }
}

#[test]
fn person_who_runs_it_is_told_what_it_is() {
    for call in [Call::new("").without("CNI_COMMAND"), Call::new("")] {
        let finished = call.run();
        assert_eq!((finished.status, finished.stdout.as_str()), (Some(2), ""), "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1);
        assert!(
            finished.stderr.contains("a chained CNI plugin (0.3.1, 0.4.0, 1.0.0, 1.1.0)"),
            "{finished:?}"
        );
    }
}
