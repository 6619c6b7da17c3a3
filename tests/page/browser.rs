//! The page in a headless Chromium: `ui/test/scenarios.mjs` says what a person does and must see.
//!
//! Needs what `scripts/packages page` and `scripts/ui` install. Without that a test says what is missing and passes; in CI
//! it fails.

use std::process::Command;

use crate::{
    served::{STARS, Served},
    tools::{check, has_browser, play as command, ui},
};

/// Plays a scenario on the page of a folder with these files.
fn play(scenario: &str, files: &[(&str, &str)]) {
    if !has_browser() {
        return;
    }
    let served = Served::new(files, &[]);
    let mut command = command(scenario, &served.url);
    command.env("PAGE_FOLDER", served.path()).env("PAGE_PID", served.pid().to_string());
    check(command.output().unwrap());
}

const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: stars}
spec: {podSelector: {}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: client}
spec: {podSelector: {}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: backend-policy, namespace: stars} # kept
spec:
  podSelector: {matchLabels: {role: backend}}
  ingress:
  - from: [{podSelector: {matchLabels: {role: frontend}}}]
    ports: [{port: 6379}]
";

fn stars() -> Vec<(&'static str, &'static str)> {
    vec![("objects.yaml", STARS)]
}

#[test]
fn assets_are_what_their_sources_give() {
    if !has_browser() {
        return;
    }
    check(Command::new("node").arg(ui().join("build.mjs")).arg("--check").output().unwrap());
}

#[test]
fn graph_shows_who_may_talk_to_whom_and_explains_each_pair() {
    play("look", &stars());
}

#[test]
fn matrix_and_list_show_policies_and_what_they_decide() {
    play("tables", &[("objects.yaml", STARS), ("policies.yaml", POLICIES)]);
}

#[test]
fn fix_that_explain_proposes_is_a_change_in_the_editor() {
    play("fix", &[("objects.yaml", STARS), ("policies.yaml", POLICIES)]);
}

#[test]
fn policy_is_written_after_its_diff_is_confirmed_and_never_over_that_of_another() {
    play("write", &stars());
}

#[test]
fn changes_can_be_undone_until_somebody_else_changes_them() {
    play("undo", &stars());
}

#[test]
fn editor_completes_labels_namespaces_and_ports_that_exist() {
    play("complete", &stars());
}

#[test]
fn arrow_that_is_drawn_becomes_a_policy() {
    play("draw", &stars());
}

#[test]
fn everything_can_be_done_with_the_keyboard() {
    play("keyboard", &[("objects.yaml", STARS), ("policies.yaml", POLICIES)]);
}

#[test]
fn every_view_is_accessible_in_light_and_dark_wide_and_narrow() {
    play("accessible", &[("objects.yaml", STARS), ("policies.yaml", POLICIES)]);
}

#[test]
fn three_hundred_pods_in_thirty_namespaces_stay_legible() {
    if !has_browser() {
        return;
    }
    let output = Command::new("node").arg(ui().join("test/many.mjs")).output().unwrap();
    play("many", &[("objects.yaml", &String::from_utf8(output.stdout).unwrap())]);
}

#[test]
fn empty_folder_is_a_start() {
    play("empty", &[]);
}

#[test]
fn page_says_when_the_program_behind_it_has_ended() {
    play("away", &stars());
}

#[test]
fn stranger_and_other_sites_see_nothing() {
    play("stranger", &stars());
}

#[test]
fn stars_demo_opens_step_by_step() {
    play("stars", &stars());
}
