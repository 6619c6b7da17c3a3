//! What must hold for any object that the API server sends.

use std::path::Path;

use serde_json::{Value, value::RawValue};

use super::{
    inventory::Inventory,
    kinds::{Kind, Watched},
    received::Received,
};
use crate::{
    k8s::{
        manifest::{Loaded, Options, load_text},
        types,
    },
    model::{Change, Standing},
};

/// Reads `data` as an object of each kind, and checks what is read.
///
/// # Panics
/// If what is read breaks a rule.
pub fn convert(data: &[u8]) {
    let Ok(raw) = serde_json::from_slice::<&RawValue>(data) else { return };
    object::<types::Namespace>(raw.get());
    object::<types::Node>(raw.get());
    object::<types::Pod>(raw.get());
    object::<types::NetworkPolicy>(raw.get());
}

fn object<S: Watched>(text: &str) {
    let Some(changes) = changes::<S>(text) else { return };
    assert!(changes.len() <= 1, "{changes:?}");
    // Without repeated keys, which JSON allows and a file must not have.
    let Ok(Value::Object(mut object)) = serde_json::from_str(text) else { return };
    if S::KIND == Kind::Node {
        return;
    }
    object.insert("apiVersion".to_owned(), S::KIND.api_version().into());
    object.insert("kind".to_owned(), S::KIND.name().into());
    let text = Value::Object(object).to_string();
    let loaded = load_text(Path::new("f.json"), &text, Options::default());
    let in_file = of_kind(&loaded, S::KIND);
    let received = self::changes::<S>(&text).unwrap_or_default();
    if loaded.has_errors() || in_file.len() != 1 {
        return;
    }
    // The API server validates as strictly as a file is validated, so what a file may hold is read the same.
    match (&*received, in_file[0]) {
        // Of a pod on its node's network less is kept.
        ([Change::SetPod(a)], Change::SetPod(b)) if a.host_network && b.host_network => {
            assert_eq!(a.key, b.key);
        }
        ([received], in_file) => assert_eq!(received, in_file),
        (received, in_file) => {
            assert!(received.len() == 1, "{received:?} instead of {in_file:?}");
        }
    }
}

/// What an object changes, alone and in a list.
fn changes<S: Watched>(text: &str) -> Option<Vec<Change>> {
    let received: Received<S> = serde_json::from_str(text).ok()?;
    let mut inventory = Inventory::<S>::new();
    let update = inventory.set(&received);
    let is_rejected = update.rejected.as_ref().is_some_and(|rejected| !rejected.is_empty());
    for change in &update.changes {
        if let Change::SetPolicy(policy) = change {
            assert_eq!(policy.standing == Standing::Accepted, !is_rejected, "{policy:?}");
            let rules = policy.ingress.iter().chain(&policy.egress);
            assert!(!is_rejected || rules.clone().all(Vec::is_empty) && rules.count() > 0, "{policy:?}");
        }
    }
    if let Received::Readable(object) = &received {
        let is_named = object.meta().name.as_deref().is_some_and(|name| !name.is_empty());
        assert!(is_named || update.changes.is_empty());
        assert!(!is_named || is_rejected || update.changes.len() == 1, "read without a fault and left out");
    }
    let mut listed = Inventory::<S>::new();
    listed.begin_list();
    let _ = listed.set(&received);
    assert_eq!(listed.end_list().changes, update.changes);
    // What came can go: an update for each object that is not unnamed.
    if !update.changes.is_empty() {
        assert_eq!(inventory.remove(&received).changes.len(), 1);
        assert!(inventory.is_empty());
    }
    Some(update.changes)
}

fn of_kind(loaded: &Loaded, kind: Kind) -> Vec<&Change> {
    let is_wanted = |change: &&Change| match change {
        // Others are there without being declared.
        Change::SetNamespace(namespace) => {
            kind == Kind::Namespace
                && !["default", "kube-system", "kube-public", "kube-node-lease"].contains(&&*namespace.name)
        }
        Change::SetPod(_) => kind == Kind::Pod,
        Change::SetPolicy(_) => kind == Kind::NetworkPolicy,
        _ => false,
    };
    loaded.changes.iter().filter(is_wanted).collect()
}
