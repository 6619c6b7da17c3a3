//! Manifests from text to model: one test per rule.

mod foreign;
mod garbage;
mod manifests;
mod policies;
mod types;

use std::path::Path;

use super::manifest::{ForeignTexts, Loaded, Options, load_text};
use crate::model::{NetworkPolicy, ObjectKey, Pod};

const ALL: Options = Options { workloads: true, foreign: ForeignTexts::Refuse, sources: false };

fn loaded(text: &str) -> Loaded {
    load_text(Path::new("f.yaml"), text, ALL)
}

fn faults(text: &str) -> Vec<String> {
    loaded(text).faults.iter().map(ToString::to_string).collect()
}

fn policy_text(spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n")
}

/// The policy `p` of a text, whatever is wrong with it.
fn policy_of(text: &str) -> Option<NetworkPolicy> {
    loaded(text).cluster().policy(&ObjectKey::new("default", "p")).map(|policy| (**policy).clone())
}

fn pod_of(text: &str) -> Pod {
    let loaded = loaded(text);
    assert!(!loaded.has_errors(), "{:?}", loaded.faults);
    let pod = loaded.cluster().pods().next().map(|pod| (**pod).clone());
    pod.unwrap()
}
