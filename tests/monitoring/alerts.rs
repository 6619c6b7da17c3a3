//! The alert rules, with promtool and their runbook.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

use crate::{
    has,
    repository::{root, text},
    yaml::documents,
};

const RULES: &str = "deploy/components/alerts/rules.yaml";
const RUNBOOK: &str = "https://github.com/towpath/towpath/blob/main/docs/runbook.md#";

/// Every alert of the rules.
pub(crate) fn alerts() -> Vec<Value> {
    let rules = documents(&text(RULES)).remove(0);
    let groups = rules["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn name(alert: &Value) -> &str {
    alert["alert"].as_str().unwrap()
}

#[test]
fn promtool_accepts_the_rules_and_their_unit_tests() {
    if !has("promtool") {
        return;
    }
    for arguments in [["check", "rules", RULES], ["test", "rules", "tests/monitoring/alerts.yaml"]] {
        let output = Command::new("promtool").args(arguments).current_dir(root()).output().unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success() && text.concat().contains("SUCCESS"), "{}", text.concat());
    }
}

#[test]
fn unit_tests_show_when_each_alert_fires_and_when_it_does_not() {
    let tests = documents(&text("tests/monitoring/alerts.yaml")).remove(0);
    let tests = tests["tests"].as_array().unwrap();
    for alert in alerts() {
        let name = name(&alert);
        let cases = tests.iter().filter(|test| test["name"] == name);
        let checks = cases.flat_map(|test| test["promql_expr_test"].as_array().unwrap());
        let (mut fires, mut is_quiet) = (false, false);
        for check in checks {
            assert!(check["expr"].as_str().unwrap().contains(&format!("alertname=\"{name}\"")), "{name}");
            let samples = check["exp_samples"].as_array().unwrap();
            fires |= !samples.is_empty();
            is_quiet |= samples.is_empty();
        }
        assert!(fires && is_quiet, "{name}: fires {fires}, is quiet {is_quiet}");
    }
}

#[test]
fn every_alert_has_a_severity_a_text_and_a_section_of_the_runbook() {
    let runbook = text("docs/runbook.md");
    let sections: BTreeSet<&str> =
        runbook.lines().filter_map(|line| line.strip_prefix("## Towpath")).collect();
    let mut names = BTreeSet::new();
    for alert in alerts() {
        let name = name(&alert);
        let short = name.strip_prefix("Towpath").unwrap();
        assert!(names.insert(short.to_owned()), "{name} twice");
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        assert!(alert["for"].is_string(), "{name}: no `for`");
        let annotations = &alert["annotations"];
        assert!(annotations["summary"].as_str().unwrap().len() < 120, "{name}");
        assert!(annotations["description"].as_str().unwrap().ends_with('.'), "{name}");
        assert_eq!(annotations["runbook_url"], format!("{RUNBOOK}{}", name.to_lowercase()), "{name}");
        assert!(sections.contains(short), "docs/runbook.md has no section for {name}");
        let section = runbook.split(&format!("## {name}\n")).nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        assert!(section.contains(&format!("{severity}, ")), "{name}: docs/runbook.md has another severity");
        for part in ["**Packets.**", "**Confirm.**", "**Do.**"] {
            assert!(section.contains(part), "docs/runbook.md, {name}: no {part}");
        }
    }
    assert_eq!(sections.iter().map(|it| (*it).to_owned()).collect::<BTreeSet<_>>(), names);
}
