//! An API server accepts the contents of deploy/.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::{
    harness::{ControlPlane, SOON, objects, with_control_plane},
    repository::{root, text},
    wait::wait_until,
};

/// The inputs of `kubectl apply`: the folders of deploy/ that can be applied, and the rendered file.
fn manifests() -> Vec<[String; 2]> {
    let overlays = ["deploy/overlays", "deploy/uninstall-overlays"].into_iter().flat_map(|folder| {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        entries.map(move |entry| format!("{folder}/{}", entry.unwrap().file_name().display()))
    });
    let folders = ["deploy", "deploy/uninstall"].map(str::to_owned).into_iter().chain(overlays);
    let folders = folders.map(|folder| ["-k".to_owned(), folder]);
    folders.chain([["-f".to_owned(), "deploy/towpath.yaml".to_owned()]]).collect()
}

/// The kinds of the Prometheus operator that deploy/ uses.
const OPERATOR_KINDS: [&str; 2] = ["PodMonitor", "PrometheusRule"];

/// A definition of such a kind: with its name, but without its fields.
fn definition(kind: &str) -> Value {
    let singular = kind.to_lowercase();
    let plural = format!("{singular}s");
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.monitoring.coreos.com") },
        "spec": {
            "group": "monitoring.coreos.com", "scope": "Namespaced",
            "names": { "kind": kind, "plural": plural, "singular": singular },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                } },
            }],
        },
    })
}

fn apply(plane: &ControlPlane, arguments: &[&str]) -> (bool, String) {
    let arguments = [&["apply", "--validate=strict"], arguments].concat();
    let applied = plane.kubectl(&arguments, "");
    let output =
        [&*String::from_utf8_lossy(&applied.stdout), &*String::from_utf8_lossy(&applied.stderr)].concat();
    (applied.status.success(), output)
}

/// Strict validation refuses unknown and repeated fields. The API server reports deprecated ones in a warning. Whether
/// a kubelet accepts the containers is not tested here, nor whether the Prometheus operator accepts its objects.
#[test]
fn manifests_of_deploy_are_accepted_by_an_api_server_without_warnings() {
    with_control_plane(|plane| {
        let path = |kind: &str| {
            let name = format!("{}s.monitoring.coreos.com", kind.to_lowercase());
            format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
        };
        for kind in OPERATOR_KINDS {
            plane.api().create(&definition(kind));
            let established = || plane.api().get(&path(kind)).unwrap()["status"]["conditions"].to_string();
            wait_until("the definition in use", SOON, || {
                established().contains(r#""status":"True","type":"Established""#)
            });
        }
        let all = manifests();
        assert!(all.len() >= 5, "{all:?}");
        for [how, what] in &all {
            let (applied, output) = apply(&plane, &[how, what]);
            assert!(applied, "{what}: {output}");
            assert!(!output.contains("Warning"), "{what}: {output}");
            assert!(output.contains("/towpath"), "{what}: {output}");
            // Existing objects are applied again: no field was dropped or defaulted differently.
            let (same, again) = apply(&plane, &[how, what, "--dry-run=server"]);
            assert!(same, "{what}: {again}");
            assert!(!again.contains("configured"), "{what} changes when it is applied again: {again}");
        }
        for kind in OPERATOR_KINDS {
            plane.api().delete(&path(kind));
        }
    });
}

#[test]
fn rendered_file_matches_the_applied_folder() {
    with_control_plane(|plane| {
        assert!(apply(&plane, &["-k", "deploy"]).0);
        let (applied, output) = apply(&plane, &["-f", "deploy/towpath.yaml"]);
        assert!(applied, "{output}");
        let script = root().join("scripts/manifests");
        let rendered = Command::new(script).env("KUBECTL", plane.program("kubectl")).output().unwrap();
        assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
        let is_same = text("deploy/towpath.yaml").as_bytes() == rendered.stdout;
        assert!(is_same, "deploy/towpath.yaml is not rendered from deploy/: make manifests");
        let others: Vec<&str> = output.lines().filter(|line| !line.ends_with(" unchanged")).collect();
        assert!(others.is_empty(), "deploy/towpath.yaml differs from kubectl apply -k deploy: {others:?}");
    });
}

#[test]
fn manifest_with_an_unknown_field_is_refused() {
    // Checks that the test above can fail.
    with_control_plane(|plane| {
        let mut pod = objects::pod("default/strict", &json!({}), "node", &[], &[]);
        pod["spec"]["hostNetwrok"] = true.into();
        let applied = plane.kubectl(&["apply", "--validate=strict", "-f", "-"], &pod.to_string());
        assert!(!applied.status.success());
        assert!(String::from_utf8_lossy(&applied.stderr).contains("hostNetwrok"));
    });
}
