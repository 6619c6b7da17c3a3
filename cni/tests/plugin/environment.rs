//! What is wrong in the environment, and how it is said.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use crate::{
    call::{Call, PREV_RESULT, config},
    daemon::Daemon,
};

fn call(command: &str, daemon: &Daemon) -> Call {
    let fields = [("prevResult", PREV_RESULT), ("timeoutSeconds", "1")];
    Call::new(command).input(config("1.1.0", &daemon.socket(), &fields))
}

#[test]
fn missing_variables_are_named() {
    let absent = Daemon::absent();
    for command in ["ADD", "CHECK"] {
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            assert!(call(command, &absent).without(name).run().failed(4).starts_with(name), "{command}");
            assert!(call(command, &absent).with(name, "").run().failed(4).starts_with(name), "{command}");
        }
    }
    let all = call("ADD", &absent).without("CNI_CONTAINERID").without("CNI_NETNS").without("CNI_IFNAME");
    assert!(all.run().failed(4).starts_with("CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME missing"));
    for name in ["CNI_CONTAINERID", "CNI_IFNAME"] {
        assert!(call("DEL", &absent).without(name).run().failed(4).starts_with(name));
    }
}

#[test]
fn unknown_commands_are_refused() {
    for command in ["add", "UPDATE", "ADD "] {
        let text = Call::new(command).run().failed(4);
        assert!(text.contains("CNI_COMMAND") && text.contains(command), "{text}");
    }
}

#[test]
fn identifiers_that_could_name_another_file_are_refused() {
    let absent = Daemon::absent();
    // What a DEL for this identifier would remove, were it not refused.
    let victim = absent.folder().join("victim-eth0.json");
    std::fs::write(&victim, "").unwrap();
    absent.record("other-eth0.json");

    let long = "a".repeat(201);
    let ids =
        ["../victim", "/victim", ".", "..", "-a", "_a", "a/../../victim", "a b", "a\n", "é", "a:b", &long];
    for command in ["ADD", "CHECK", "DEL"] {
        for id in ids {
            let text = call(command, &absent).with("CNI_CONTAINERID", id).run().failed(4);
            assert!(text.starts_with("CNI_CONTAINERID is invalid"), "{command} {id:?}: {text}");
        }
        for name in ["a/b", "../victim", ".", "..", "a:b", "a b", "a\tb", "a\u{a0}", "sixteen-bytes-16"] {
            let text = call(command, &absent).with("CNI_IFNAME", name).run().failed(4);
            assert!(text.starts_with("CNI_IFNAME is invalid"), "{command} {name:?}: {text}");
        }
    }
    assert!(victim.exists());
}

#[test]
fn identifiers_of_the_specification_are_accepted() {
    let daemon = Daemon::done();
    let longest = "a".repeat(200);
    for id in ["0", "a", "Z9_.-", "cri-o..x", &longest] {
        for name in ["e", "fifteen-bytes15", "...", "eth0.7@x"] {
            call("DEL", &daemon).with("CNI_CONTAINERID", id).with("CNI_IFNAME", name).run().done();
        }
    }
    assert_eq!(daemon.requests().len(), 20);
}

#[test]
fn variables_that_are_not_utf8_are_refused() {
    let absent = Daemon::absent();
    let junk = OsStr::from_bytes(b"a\xff");
    for name in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
        assert!(call("ADD", &absent).with(name, junk).run().failed(4).starts_with(name), "{name}");
    }
}

#[test]
fn arguments_that_may_hide_a_pod_are_refused() {
    let absent = Daemon::absent();
    let halves = ["K8S_POD_NAMESPACE=shop", "K8S_POD_NAME=web", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME="];
    for args in halves.into_iter().chain(["K8S_POD_NAMESPACE", "junk", "IgnoreUnknown=1;web"]) {
        for command in ["ADD", "CHECK"] {
            let text = call(command, &absent).with("CNI_ARGS", args).run().failed(4);
            assert!(text.starts_with("CNI_ARGS is invalid"), "{args}: {text}");
        }
    }
}

#[test]
fn last_value_of_a_repeated_argument_counts() {
    let daemon = Daemon::done();
    let args = "K8S_POD_NAMESPACE=old;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop;LATER=a=b";
    call("ADD", &daemon).with("CNI_ARGS", args).run().done();
    assert_eq!(daemon.requests()[0]["pod"]["namespace"], "shop");
}
