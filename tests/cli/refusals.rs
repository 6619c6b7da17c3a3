//! Commands that fail or refuse: their exit status, and one clear line.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use nix::unistd::geteuid;

use crate::program::{TOWPATH, finish, run, run_with_input, towpath};

const SHOP: &str = "examples/shop";

#[track_caller]
fn refused(arguments: &[&str], status: i32, message: &str) {
    let finished = run(arguments);
    assert_eq!(finished.status, status, "{arguments:?}: {finished:?}");
    assert!(finished.stderr.contains(message), "{arguments:?}: {finished:?}");
    assert_eq!(finished.stdout, "", "{arguments:?}");
}

#[test]
fn invalid_arguments_exit_with_2_and_an_explanation() {
    refused(&[], 2, "Usage: towpath");
    refused(&["enforce"], 2, "unrecognized subcommand 'enforce'");
    refused(&["compile"], 2, "--file <PATH>");
    refused(&["matrix", "-f", SHOP, "--kubeconfig", "k"], 2, "cannot be used with '--kubeconfig <FILE>'");
    refused(&["matrix", "-f", SHOP, "--colour"], 2, "unexpected argument '--colour'");
    refused(&["matrix", "-f", SHOP, "--port", "99999"], 2, "\"99999\" is not a port");
    refused(&["matrix", "-f", SHOP, "--port", "80/ICMP"], 2, "80/ICMP");
    refused(&["matrix", "-f", SHOP, "--external", "shop"], 2, "invalid value 'shop'");
    refused(&["explain", "-f", SHOP, "--to", "shop/db"], 2, "--from <X>");
    refused(&["compile", "-f", SHOP], 2, "--node-name <NODE>");
    refused(&["run", "-f", SHOP, "--node-name", "n", "--check-interval", "0"], 2, "0 is not in 1..=86400");
    for command in ["status", "drops", "bugreport"] {
        refused(&[command, "--addr", "foo"], 2, "\"foo\" is not an address and a port");
        refused(&[command, "--addr", "127.0.0.1:http"], 2, "is not an address and a port");
    }
}

#[test]
fn question_about_no_object_exits_with_3_whatever_there_is_instead() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let message = format!("there is no Kubernetes object in {path}");
    let flow = ["--from", "10.0.0.1", "--to", "10.0.0.2"];
    refused(&["matrix", path], 3, &message);
    refused(&[&["explain", path], &flow[..]].concat(), 3, &message);
    refused(&["lint", path], 3, &message);
    refused(&["lint", path, "-o", "json"], 3, &message);
    for command in ["matrix", "lint"] {
        let empty = run_with_input(&[command, "-"], "# nothing\n");
        assert_eq!((empty.status, empty.stdout.as_str()), (3, ""), "{empty:?}");
        assert!(empty.stderr.contains("there is no Kubernetes object in standard input"), "{empty:?}");
    }
    // Of objects that are not read, there is nothing to say.
    fs::write(folder.path().join("a.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n")
        .unwrap();
    assert_eq!(run(&["lint", path]).status, 0);
}

#[test]
fn queries_without_files_use_the_cluster_and_exit_with_3_if_it_is_unreachable() {
    refused(&["matrix", "--kubeconfig", "no/such"], 3, "it is not known how to reach the API server");
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    // Port 9 of loopback: nothing listens.
    let text = "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],\
                users: [{name: u, user: {}}], clusters: [{name: c, cluster: {server: 'https://127.0.0.1:9'}}]}";
    fs::write(&kubeconfig, text).unwrap();
    let kubeconfig = kubeconfig.to_str().unwrap();
    refused(
        &["matrix", "--kubeconfig", kubeconfig],
        3,
        "the API server at https://127.0.0.1:9 cannot be reached",
    );
    refused(&["matrix", "--kubeconfig", kubeconfig, "--context", "other"], 3, "other");
}

#[test]
fn endpoint_that_is_neither_pod_nor_address_exits_with_2() {
    let explain = |from| ["explain", "-f", SHOP, "--from", from, "--to", "shop/db"];
    refused(&explain("10.244.1"), 2, "neither NAMESPACE/POD nor an IP address");
    refused(&explain("shop/missing"), 2, "towpath: there is no pod shop/missing among the objects\n");
    refused(&explain("shop/pod/api/x"), 2, "nor [NAMESPACE/]KIND/NAME");
    refused(&explain("a b"), 2, "\"a b\" is neither NAMESPACE/POD nor an IP address");
}

#[test]
fn unreadable_file_exits_with_3_and_is_named_once() {
    let message = "towpath: cannot read examples/none: No such file or directory (os error 2)\n";
    for arguments in [
        &["matrix", "-f", "examples/none"][..],
        &["lint", "examples/none"],
        &["compile", "-f", "examples/none", "--node-name", "n"],
    ] {
        refused(arguments, 3, message);
    }
}

#[test]
fn invalid_objects_exit_with_1_and_their_errors() {
    let manifest =
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {ingres: []}}\n";
    for arguments in [
        &["matrix", "-f", "-"][..],
        &["explain", "-f", "-", "--from", "192.0.2.1", "--to", "192.0.2.2"],
        &["compile", "-f", "-", "--node-name", "n"],
    ] {
        let finished = run_with_input(arguments, manifest);
        assert_eq!((finished.status, finished.stdout.as_str()), (1, ""), "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains("error: unknown field \"ingres\""), "{finished:?}");
    }
}

/// The program as a user without the right to change the kernel's tables, copied into `folder`, which that user can
/// read; `None` if the process cannot switch to such a user.
fn unprivileged(folder: &Path, arguments: &[&str]) -> Option<Command> {
    if !geteuid().is_root() {
        return Some(towpath(arguments));
    }
    let setpriv = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
        command
    };
    let works = setpriv().arg("true").output().is_ok_and(|output| output.status.success());
    let program = folder.join("towpath");
    // Not by this process: a program that another test starts meanwhile would hold the copy open for writing, and then
    // it cannot be run.
    assert!(Command::new("cp").arg(TOWPATH).arg(&program).status().unwrap().success());
    let mut command = setpriv();
    command.arg(program).args(arguments);
    works.then_some(command)
}

#[test]
fn run_and_cleanup_report_a_missing_capability() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().to_str().unwrap();
    for arguments in [&["run", "-f", path, "--node-name", "n"][..], &["cleanup"]] {
        let Some(mut command) = unprivileged(folder.path(), arguments) else {
            println!("skipped: setpriv cannot give up root here");
            return;
        };
        let finished = finish(&mut command);
        let message = "towpath: changing the kernel's tables needs root, or at least the capability CAP_NET_ADMIN: \
                    run it as root\n";
        assert_eq!((finished.status, finished.stderr.as_str()), (3, message), "{arguments:?}");
    }
}

#[test]
fn missing_program_is_named_with_its_package_and_exits_with_3() {
    if !geteuid().is_root() {
        println!("skipped: needs root, since privileges are checked first");
        return;
    }
    let empty = tempfile::tempdir().unwrap();
    let mut command = towpath(&["run", "-f", SHOP, "--node-name", "n"]);
    let finished = finish(command.env("PATH", empty.path()));
    assert_eq!(finished.status, 3, "{finished:?}");
    assert_eq!(finished.stderr, "towpath: ipset was not found: install the package ipset\n");
}
