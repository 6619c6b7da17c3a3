//! `towpath diff`.

use std::fs;

use serde_json::{Value, json};

use crate::{
    program::{finish, run, run_with_input, towpath},
    repository::{root, text},
};

const SHOP: &str = "examples/shop";
const TENANTS: &str = "examples/tenants";
const CHANGE: &str = "examples/tenants-change";

/// A folder with the shop, and one with the shop without its policy for the API.
fn shops() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for side in ["old", "new"] {
        fs::create_dir(folder.path().join(side)).unwrap();
        for name in ["namespaces.yaml", "pods.yaml", "policies.yaml"] {
            fs::copy(root().join(SHOP).join(name), folder.path().join(side).join(name)).unwrap();
        }
    }
    let policies = text(&format!("{SHOP}/policies.yaml"));
    let kept: Vec<&str> =
        policies.split("---\n").filter(|text| !text.contains("name: api-from-web")).collect();
    fs::write(folder.path().join("new/policies.yaml"), kept.join("---\n")).unwrap();
    folder
}

#[test]
fn removed_policy_closes_the_flows_that_it_allowed() {
    let folder = shops();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let (old, new) = (old.to_str().unwrap(), new.to_str().unwrap());
    let difference = run(&["diff", old, new, "-o", "json"]).json();
    let closed = json!([{"from": ["shop/web"], "to": ["shop/api"], "ports": ["8080/TCP"]}]);
    assert_eq!(difference["closed"], closed);
    assert_eq!(difference["opened"], json!([]));
    assert_eq!(difference["policies"]["removed"], json!(["shop/api-from-web"]));
    let back = run(&["diff", "--before", new, "--after", old, "-o", "json"]).json();
    assert_eq!((&back["opened"], &back["closed"]), (&closed, &json!([])));

    let table = run(&["diff", old, new, "-o", "table"]);
    assert!(table.stdout.contains("\nClosed:\n  - shop/web -> shop/api: 8080/TCP\n"), "{table:?}");
    assert_eq!(table.stdout, run(&["diff", old, new]).stdout, "table is another word for text");
    let markdown = run(&["diff", old, new, "-o", "markdown"]).stdout;
    assert!(markdown.starts_with("### NetworkPolicy: 1 closed\n"), "{markdown}");
    assert!(markdown.contains("| - | `shop/web` | `shop/api` | 8080/TCP |\n"), "{markdown}");
}

#[test]
fn exit_code_says_whether_flows_differ_and_how() {
    let folder = shops();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let (old, new) = (old.to_str().unwrap(), new.to_str().unwrap());
    let status = |arguments: &[&str]| run(&[&["diff"], arguments].concat()).status;
    assert_eq!(status(&[old, new]), 0);
    for (flag, closes, opens) in [
        ("--exit-code", 1, 1),
        ("--exit-code=any", 1, 1),
        ("--exit-code=opened", 0, 1),
        ("--exit-code=closed", 1, 0),
    ] {
        assert_eq!((status(&[old, new, flag]), status(&[new, old, flag])), (closes, opens), "{flag}");
        assert_eq!(status(&[old, old, flag]), 0, "{flag}");
    }
    let mut command = towpath(&["diff", new, old]);
    assert_eq!(finish(command.env("TOWPATH_EXIT_CODE", "opened")).status, 1);
}

#[test]
fn objects_are_applied_to_those_before() {
    let difference = run(&["diff", "--before", TENANTS, "-f", CHANGE, "-o", "json"]).json();
    assert_eq!(
        difference["opened"],
        json!([{"from": ["red/db", "red/web"], "to": ["blue/db"], "ports": ["5432/TCP"]}])
    );
    let senders = |flow: &Value| flow["from"] == json!(["blue/web"]);
    assert!(difference["closed"].as_array().unwrap().iter().all(senders), "{difference}");
    assert_eq!(difference["new"], json!({"pods": [], "flows": []}));
    assert_eq!(difference["policies"]["added"], json!(["blue/db-for-red", "blue/web-egress"]));

    let change = text(&format!("{CHANGE}/blue.yaml"));
    let piped = run_with_input(&["diff", "--before", TENANTS, "-f", "-", "-o", "json"], &change);
    assert_eq!(piped.json(), difference);
}

#[test]
fn new_pods_are_told_apart_from_opened_flows() {
    let difference = run(&["diff", TENANTS, SHOP, "-o", "json"]).json();
    assert_eq!((&difference["opened"], &difference["closed"]), (&json!([]), &json!([])));
    assert_eq!(difference["new"]["pods"], json!(["shop/api", "shop/db", "shop/web"]));
    let web_to_api = json!({"from": ["shop/web"], "to": ["shop/api"], "ports": ["8080/TCP"]});
    assert!(difference["new"]["flows"].as_array().unwrap().contains(&web_to_api), "{difference}");
    assert_eq!(run(&["diff", TENANTS, SHOP, "--exit-code=opened"]).status, 0);
    assert_eq!(run(&["diff", TENANTS, SHOP, "--exit-code"]).status, 1);
}

#[test]
fn lines_fit_into_the_width_and_colour_is_on_demand() {
    let arguments = ["diff", "--before", TENANTS, "-f", CHANGE];
    let plain = run(&arguments).stdout;
    assert!(plain.lines().all(|line| line.chars().count() <= 120) && !plain.contains('\u{1b}'), "{plain}");
    let narrow = run(&[&arguments[..], &["--width", "60"]].concat()).stdout;
    assert!(narrow.lines().all(|line| line.chars().count() <= 60), "{narrow}");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words(&narrow), words(&plain));
    let coloured = run(&[&arguments[..], &["--color", "always"]].concat()).stdout;
    assert!(coloured.contains("\u{1b}[32m  + every pod in red"), "{coloured:?}");
}

#[test]
fn wrong_use_is_refused_with_what_to_do() {
    let refused = |arguments: &[&str], says: &str| {
        let finished = run(&[&["diff"], arguments].concat());
        assert_eq!((finished.status, finished.stdout.as_str()), (2, ""), "{finished:?}");
        assert!(finished.stderr.contains(says), "{finished:?}");
    };
    refused(&[SHOP], "`towpath diff OLD examples/shop` compares two");
    refused(&[], "name OLD and NEW");
    refused(&["--before", SHOP], "name OLD and NEW");
    refused(&["-", "-"], "standard input can be read only once");
    refused(&[SHOP, SHOP, "-f", SHOP], "cannot be used with");
    refused(&["--before", SHOP, "--after", SHOP, "-f", SHOP], "cannot be used with");
    refused(&["--before", SHOP, "--after", SHOP, "--kubeconfig", "k"], "cannot be used with");
    let faulty = run(&["diff", SHOP, "examples/faulty"]);
    assert_eq!(faulty.status, 1);
    assert!(faulty.stderr.contains("examples/faulty/policy.yaml:"), "{faulty:?}");
    assert_eq!(run(&["diff", SHOP, "no/such"]).status, 3);
}
