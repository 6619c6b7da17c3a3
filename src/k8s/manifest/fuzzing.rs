//! What must hold for any text that is read as a manifest.

use std::path::Path;

use super::{Loaded, Options, assemble::assemble, load_text, read};
use crate::{
    k8s::{
        intern::Interner,
        manifest::{
            assemble::FileContents,
            chunk::{ParsedChunks, TextReader},
        },
    },
    model::{Change, Standing},
};

const FILE: &str = "f.yaml";

/// Reads `data` as a file, and checks what is read.
///
/// # Panics
/// If what is read breaks a rule.
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        let contents = read(data, Options::default(), &mut Interner::new());
        assert!(contents.unreadable.is_some() && contents.chunks.is_empty());
        return;
    };
    let all = [false, true]
        .map(|workloads| load_text(Path::new(FILE), text, Options { workloads, ..Options::default() }));
    for (loaded, workloads) in all.iter().zip([false, true]) {
        faults_are_in_the_text(loaded, text);
        refused_policies_are_closed(loaded);
        // As the daemon reads a file that grew, and with what it remembers of the former text.
        let mut middle = text.len() / 2;
        while !text.is_char_boundary(middle) {
            middle -= 1;
        }
        for before in [text, &text[..middle]] {
            let again = load_after(before, text, workloads);
            assert_eq!(again.changes, loaded.changes);
            assert_eq!(again.faults, loaded.faults);
            assert_eq!(again.skipped, loaded.skipped);
        }
    }
    // Workloads add pods. They do not change what is read of policies.
    let [without, with] = all.each_ref().map(policies);
    assert_eq!(without, with);
}

fn load_after(before: &str, text: &str, workloads: bool) -> Loaded {
    let mut names = Interner::new();
    let options = Options { workloads, ..Options::default() };
    let (_, known) = TextReader::new(&ParsedChunks::default(), options, &mut names).read(before);
    let (chunks, _) = TextReader::new(&known, options, &mut names).read(text);
    let contents = FileContents { chunks, unreadable: None };
    assemble(&[(&FILE.into(), &contents)], &mut names).into()
}

fn faults_are_in_the_text(loaded: &Loaded, text: &str) {
    // YAML ends lines at a carriage return as well.
    let lines = text.split(['\n', '\r']).count();
    for fault in &loaded.faults {
        assert!(fault.line >= 1 && fault.column >= 1, "{fault}");
        assert!(fault.line as usize <= lines + 1, "{fault}");
        assert!(!fault.text.is_empty());
    }
}

/// A policy with an error isolates and allows nothing.
fn refused_policies_are_closed(loaded: &Loaded) {
    for change in &loaded.changes {
        let Change::SetPolicy(policy) = change else { continue };
        if policy.standing != Standing::Accepted {
            assert!(loaded.has_errors(), "{policy:?}");
            assert!(policy.ingress.is_some() || policy.egress.is_some(), "{policy:?}");
            assert!(policy.ingress.iter().chain(&policy.egress).all(Vec::is_empty), "{policy:?}");
        }
    }
    let _ = loaded.cluster();
}

fn policies(loaded: &Loaded) -> Vec<&Change> {
    loaded.changes.iter().filter(|change| matches!(change, Change::SetPolicy(_))).collect()
}
