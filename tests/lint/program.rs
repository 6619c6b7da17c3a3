//! The command: its formats, what silences findings, and its exit status.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use towpath::policy::findings::Code;

const TYPO: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\n---\napiVersion: \
                    networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {matchLabels: {app: \
                    wbe}}}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: default-deny}\n";

fn lint(arguments: &[&str], input: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
    command.arg("lint").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOWPATH_") {
            command.env_remove(name);
        }
    }
    command.envs(variables.iter().copied());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

const LINE: &str = "-:8:8: warning: it selects no pod of default: no pod has app=wbe: did you mean app=web? [TP101] \
                    (spec.podSelector)\n";

#[test]
fn warnings_exit_with_success_unless_they_count_as_errors() {
    let output = lint(&["-"], TYPO, &[]);
    assert_eq!((output.status.code(), text(&output)), (Some(0), LINE));
    let strict = lint(&["-", "--warnings-as-errors"], TYPO, &[]);
    assert_eq!((strict.status.code(), text(&strict)), (Some(1), LINE));
    let strict = lint(&["-"], TYPO, &[("TOWPATH_WARNINGS_AS_ERRORS", "true")]);
    assert_eq!(strict.status.code(), Some(1));
    let notes = lint(&["-", "--warnings-as-errors"], "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n", &[]);
    assert_eq!(notes.status.code(), Some(0));
    assert!(text(&notes).contains(": note: "), "{notes:?}");
}

#[test]
fn findings_are_silenced_by_flag_variable_and_annotation() {
    for arguments in [&["-", "--ignore", "TP101"][..], &["-", "--ignore", "tp304,policy-selects-no-pod"]] {
        assert_eq!(text(&lint(arguments, TYPO, &[])), "", "{arguments:?}");
    }
    assert_eq!(text(&lint(&["-"], TYPO, &[("TOWPATH_IGNORE", "TP501,TP101")])), "");
    let annotated = |value: &str| {
        let meta = format!("{{name: p, annotations: {{towpath.dev/lint-ignore: '{value}'}}}}");
        lint(&["-"], &TYPO.replace("{name: p}", &meta), &[])
    };
    assert_eq!(text(&annotated("TP304, TP101")), "");
    assert!(text(&annotated("TP102")).contains("[TP101]"));
    let unknown = annotated("TP101,TP999");
    assert!(
        text(&unknown).contains("warning: \"TP999\" is not the code of a finding, such as TP101 [TP005]"),
        "{unknown:?}"
    );
}

#[test]
fn errors_cannot_be_silenced() {
    let output = lint(&["-", "--ignore", "TP001"], TYPO, &[]);
    assert_eq!((output.status.code(), text(&output)), (Some(2), ""));
    let broken = TYPO
        .replace("{name: p}", "{name: p, annotations: {towpath.dev/lint-ignore: TP001}}")
        .replace("podSelector", "podselector");
    let output = lint(&["-"], &broken, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains(": error: unknown field"), "{output:?}");
}

#[test]
fn json_has_each_finding_with_its_place_and_page() {
    let output = lint(&["-", "-o", "json"], TYPO, &[]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!({
        "findings": [{
            "code": "TP101", "name": "policy-selects-no-pod", "severity": "warning",
            "file": "-", "line": 8, "column": 8, "kind": "NetworkPolicy", "object": "default/p",
            "field": "spec.podSelector",
            "text": "it selects no pod of default: no pod has app=wbe: did you mean app=web?",
            "help": "https://github.com/towpath/towpath/blob/main/docs/lint.md#tp101",
        }],
        "errors": 0, "warnings": 1, "notes": 0, "omitted": 0,
    });
    assert_eq!(value, expected);
}

#[test]
fn sarif_has_every_rule_and_a_region_for_each_result() {
    let output = lint(&["examples/faulty", "-o", "sarif"], "", &[]);
    assert_eq!(output.status.code(), Some(1));
    let log: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    let ids: Vec<&str> = rules.iter().map(|rule| rule["id"].as_str().unwrap()).collect();
    assert_eq!(ids, Code::ALL.iter().map(|code| code.id()).collect::<Vec<_>>());
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), text(&lint(&["examples/faulty"], "", &[])).lines().count());
    let lines =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/faulty/policy.yaml"))
            .unwrap();
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "examples/faulty/policy.yaml");
        let line = usize::try_from(place["region"]["startLine"].as_u64().unwrap()).unwrap();
        let column = usize::try_from(place["region"]["startColumn"].as_u64().unwrap()).unwrap();
        assert!(lines.lines().nth(line - 1).unwrap().chars().count() >= column, "{result}");
        assert!(["error", "warning", "note"].contains(&result["level"].as_str().unwrap()));
    }
}

#[test]
fn control_characters_of_a_manifest_do_not_reach_the_terminal() {
    let output = lint(
        &["-"],
        "apiVersion: v1\nkind: Pod\nmetadata: {name: \"a\\e[2J\", namespace: \"b\\e]0;x\\a\"}\n",
        &[],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(!output.stdout.contains(&0x1b) && !output.stdout.contains(&7), "{output:?}");
}
