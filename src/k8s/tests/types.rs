//! Values of the right and of the wrong type.

use k8s_openapi::api::{core::v1::Pod, networking::v1::NetworkPolicy};

use crate::k8s::{manifest::deserialize::ObjectReader, yaml::node::parse};
use serde::Deserialize;

fn faults<T: for<'t> Deserialize<'t>>(text: &str) -> (Option<T>, Vec<String>) {
    let (documents, error) = parse(text);
    assert_eq!(error, None);
    let root = documents[0].root.as_ref().unwrap();
    let reading = ObjectReader::new(root);
    reading.check::<T>();
    let value = reading.read::<T>();
    let (problems, unknown) = reading.finish();
    let mut faults: Vec<String> = problems.iter().map(ToString::to_string).collect();
    faults.extend(unknown.iter().map(|unknown| format!("unknown {}", unknown.path)));
    (value, faults)
}

#[test]
fn unknown_fields_are_found_at_any_depth() {
    let (value, faults) = faults::<NetworkPolicy>(
        "spec:\n  podSelector:\n  matchLabels: {a: b}\n  ingress:\n  - from:\n    - matchLabels: {c: d}\n",
    );
    assert!(value.is_some());
    assert_eq!(faults, ["unknown spec.ingress[0].from[0].matchLabels", "unknown spec.matchLabels"]);
}

#[test]
fn wrong_types_are_reported_and_other_fields_are_read() {
    let (value, faults) = faults::<NetworkPolicy>(
        "metadata: {name: a, labels: {x: y, z: 1}}\nspec:\n  ingress:\n  - ports: [80]\n  egress:\n    to: []\n",
    );
    assert_eq!(
        faults,
        [
            "error: x must be text, but y is the boolean true in YAML 1.1: write \"y\" (metadata.labels.x)",
            "error: z must be text, but 1 is a number: write \"1\" (metadata.labels.z)",
            "error: ports[0] must be a mapping, not the number 80 (spec.ingress[0].ports[0])",
            "error: egress must be a list, not a mapping: begin the item with a dash (-) (spec.egress)",
        ]
    );
    assert_eq!(value.unwrap().metadata.name.as_deref(), Some("a"));
}

#[test]
fn integer_can_be_a_whole_float_and_quantity_a_number() {
    let (value, faults) = faults::<Pod>(
        "spec:\n  containers:\n  - name: a\n    ports: [{containerPort: 80.0}]\n    resources: {limits: {cpu: 1, memory: 1.5}}\n",
    );
    assert_eq!(faults, Vec::<String>::new());
    let ports = value.unwrap().spec.unwrap().containers.remove(0).ports.unwrap();
    assert_eq!(ports[0].container_port, 80);
}

#[test]
fn out_of_range_fractional_and_quoted_integers_are_refused() {
    for (port, text) in [
        ("80.5", "must be a whole number, not the number 80.5"),
        ("99999999999", "must be a 32-bit whole number, not 99999999999"),
        ("\"80\"", "must be a number, but \"80\" is text: write 80"),
        ("yes", "must be a whole number, not the boolean yes"),
    ] {
        let (_, faults) =
            faults::<Pod>(&format!("spec: {{containers: [{{ports: [{{containerPort: {port}}}]}}]}}"));
        assert_eq!(
            faults,
            [format!("error: containerPort {text} (spec.containers[0].ports[0].containerPort)")]
        );
    }
}

#[test]
fn object_must_be_a_mapping() {
    let (value, faults) = faults::<Pod>("- a\n");
    assert!(value.is_none());
    assert!(faults[0].contains("must be a mapping"), "{faults:?}");
}
