//! Random texts, and lists that are split.

use proptest::prelude::*;

use super::{faults, loaded, policy_text};
use crate::{
    k8s::manifest::Loaded,
    model::{Change, Cluster},
};

/// A list that is long enough to be split, and the same objects as documents.
fn list_and_documents(items: &[String]) -> (String, String) {
    let indented: Vec<String> =
        items.iter().map(|item| format!("- {}\n", item.trim_end().replace('\n', "\n  "))).collect();
    let padding = "# padding\n".repeat(4000);
    (format!("apiVersion: v1\nkind: List\nitems:\n{padding}{}", indented.concat()), items.join("---\n"))
}

fn objects(loaded: &Loaded) -> Vec<Change> {
    let mut cluster = Cluster::new();
    loaded.changes.iter().filter(|change| cluster.apply((*change).clone()).is_some()).cloned().collect()
}

const WHOLE: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: p\n  labels: {a: b}\nspec:\n  \
    podSelector:\n    matchLabels:\n      app: &app web\n  policyTypes: [Ingress, Egress]\n  ingress:\n  - from:\n    - podSelector:\n        \
    matchLabels: {app: *app}\n    - ipBlock:\n        cidr: 10.0.0.0/8\n        except: [\"10.1.0.0/16\"]\n    ports:\n    - port: 80\n      \
    endPort: 90\n---\n{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"a\"}}\n";

proptest! {
    #[test]
    fn arbitrary_text_does_not_panic(text in any::<String>()) {
        let _ = loaded(&text);
    }

    #[test]
    fn text_of_yaml_characters_does_not_panic(text in "[-a:{}\\[\\] \n\t&*!|>'\"#%@,?.<~0]{0,60}") {
        let _ = loaded(&text);
    }

    #[test]
    fn damaged_manifest_does_not_panic(
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..6, "[-a:{}\\[\\] \n\t&*!|>'\"#0]{0,4}"), 1..6),
    ) {
        let mut text: Vec<char> = WHOLE.chars().collect();
        for (at, length, put_in) in cuts {
            let at = at.index(text.len());
            let end = (at + length).min(text.len());
            text.splice(at..end, put_in.chars());
            prop_assume!(!text.is_empty());
        }
        let text: String = text.into_iter().collect();
        let loaded = loaded(&text);
        for fault in &loaded.faults {
            prop_assert!(fault.line as usize <= text.lines().count() + 1, "{fault}\n{text}");
        }
    }

    #[test]
    fn split_list_yields_the_objects_of_its_items(
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..4, "[a: \n'\"|{]{0,3}"), 0..3),
    ) {
        let item = |name: &str| format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels:\n    app: |\n      w\n");
        let mut middle: Vec<char> = item("b").chars().collect();
        for (at, length, put_in) in cuts {
            let at = at.index(middle.len());
            let end = (at + length).min(middle.len());
            middle.splice(at..end, put_in.chars());
        }
        let middle: String = middle.into_iter().collect();
        let (list, _) = list_and_documents(&[item("a"), middle.clone(), item("c")]);
        // Too short to be split, and so parsed as a whole.
        let whole = list.replace("# padding\n", "");
        prop_assert_eq!(objects(&loaded(&list)), objects(&loaded(&whole)), "{}", whole);
    }
}

#[test]
fn long_list_yields_objects_and_positions_of_its_items() {
    let items = [
        policy_text("{ingress: [{}]}"),
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  nam: b\n".to_owned(),
    ];
    let (list, documents) = list_and_documents(&items);
    assert_eq!(objects(&loaded(&list)), objects(&loaded(&documents)));
    assert_eq!(
        faults(&list),
        ["f.yaml:4012:5: error: unknown field \"nam\": did you mean `name`? (items[1].metadata.nam)"]
    );
}
