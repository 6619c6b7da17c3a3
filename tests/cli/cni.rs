//! `towpath cni`, which is the plugin of `cni/` in the daemon's program. What it does is tested there.

use crate::program::{finish, run, towpath};

#[test]
fn plugin_in_this_program_answers_a_container_runtime() {
    let versions = finish(towpath(&["cni"]).env("CNI_COMMAND", "VERSION"));
    assert_eq!((versions.status, versions.stderr.as_str()), (0, ""), "{versions:?}");
    assert_eq!(versions.json()["supportedVersions"], serde_json::json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));

    let failed = finish(towpath(&["cni"]).env("CNI_COMMAND", "ADD"));
    assert_eq!((failed.status, failed.stderr.as_str()), (1, ""), "{failed:?}");
    let error: serde_json::Value = serde_json::from_str(&failed.stdout).unwrap();
    assert_eq!(error["code"], 6, "there is no configuration on standard input");

    let person = run(&["cni"]);
    assert_eq!((person.status, person.stdout.as_str()), (2, ""), "{person:?}");
    assert!(person.stderr.contains("called by a container runtime"), "{person:?}");
}
