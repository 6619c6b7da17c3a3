//! Every expression of the dashboard and of the alert rules refers to what a real daemon exposes, and has a result in a
//! real Prometheus.

use std::collections::{BTreeMap, BTreeSet};

use nix::sched::CloneFlags;

use crate::{
    alerts::alerts,
    cluster::{Cluster, PATIENCE},
    dashboard::{Query, dashboard, queries},
    expression::{Expression, Selector},
    has,
    isolated::isolated,
    repository::text,
    root::has_root,
    scrape::{Labels, series},
    wait::wait_until,
};

/// Labels that Prometheus adds, or that a PodMonitor or an administrator gives to targets.
const TARGET_LABELS: [&str; 9] = [
    "cluster",
    "node",
    "instance",
    "job",
    "namespace",
    "pod",
    "exported_namespace",
    "exported_pod",
    "alertname",
];

/// Metrics of Prometheus itself, with their labels.
const OF_PROMETHEUS: [(&str, &[&str]); 2] = [("up", &[]), ("ALERTS", &["alertname", "alertstate"])];

/// Queries that may have no result in this test, and why.
const EMPTY: [(&str, &str); 1] = [("Alerts", "no alert fires within the first minute")];

/// Metrics that neither the dashboard nor an alert uses, and why.
const UNUSED: [(&str, &str); 0] = [];

fn names(expression: &Expression) -> BTreeSet<&str> {
    expression.metrics.iter().map(|metric| metric.name.as_str()).collect()
}

/// Metrics by the names in docs/metrics.md: without the suffixes of histograms.
fn family(name: &str) -> &str {
    ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

/// The expressions of all alerts, by their names, and those of the dashboard, by their panels.
fn expressions() -> Vec<(String, String)> {
    let of_alert = |alert: &serde_json::Value| {
        let [name, expression] = ["alert", "expr"].map(|field| alert[field].as_str().unwrap().to_owned());
        (name, expression)
    };
    let of_dashboard = |query: Query| (query.panel, query.expression);
    let alerts = alerts();
    alerts.iter().map(of_alert).chain(queries(&dashboard()).into_iter().map(of_dashboard)).collect()
}

/// The names in the tables of docs/metrics.md.
fn documented() -> BTreeSet<String> {
    let text = text("docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    rows.filter(|name| name.starts_with("towpath_") || name.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_documented_metric_is_used_or_listed_with_a_reason() {
    let documented = documented();
    assert!(documented.len() > 40, "{documented:?}");
    let mut used = BTreeSet::new();
    for (_, text) in expressions() {
        used.extend(names(&Expression::parse(&text)).into_iter().map(|name| family(name).to_owned()));
    }
    used.retain(|name| OF_PROMETHEUS.iter().all(|(it, _)| it != name));
    let unused: BTreeSet<&str> = UNUSED.iter().map(|(name, _)| *name).collect();
    let not_used: BTreeSet<&str> = documented.difference(&used).map(String::as_str).collect();
    assert_eq!(not_used, unused);
    let unknown: Vec<_> = used.difference(&documented).collect();
    assert!(unknown.is_empty(), "not in docs/metrics.md: {unknown:?}");
}

/// Whether what a matcher requires of a label of the daemon's occurs, in a series or at least in docs/metrics.md.
fn check(
    selector: &Selector,
    exposed: &BTreeMap<String, Vec<Labels>>,
    documented: &str,
) -> Result<(), String> {
    let own = exposed.get(&selector.name).ok_or_else(|| format!("no daemon exposes {}", selector.name))?;
    for (label, operator, value) in &selector.matchers {
        if TARGET_LABELS.contains(&label.as_str()) {
            continue;
        }
        let values: BTreeSet<&str> =
            own.iter().filter_map(|labels| Some(labels.get(label)?.as_str())).collect();
        if values.is_empty() {
            return Err(format!("{} has no label {label}", selector.name));
        }
        let alternatives = if operator == "=~" { value.split('|').collect() } else { vec![value.as_str()] };
        for alternative in alternatives {
            if !values.contains(alternative) && !documented.contains(&format!("`{alternative}`")) {
                return Err(format!("{}: {label} is never {alternative}", selector.name));
            }
        }
    }
    Ok(())
}

fn check_all(exposed: &str) {
    let (exposed, documented) = (series(exposed), text("docs/metrics.md"));
    for (place, text) in expressions() {
        let expression = Expression::parse(&text);
        let mut labels: BTreeSet<&str> = TARGET_LABELS.into();
        for selector in &expression.metrics {
            if let Some((_, more)) = OF_PROMETHEUS.iter().find(|(name, _)| *name == selector.name) {
                labels.extend(*more);
                continue;
            }
            check(selector, &exposed, &documented).unwrap_or_else(|error| panic!("{place}: {error}"));
            labels.extend(exposed[&selector.name].iter().flat_map(Labels::keys).map(String::as_str));
        }
        for label in &expression.labels {
            assert!(labels.contains(label.as_str()), "{place}: no metric of it has the label {label}");
        }
    }
}

#[test]
fn wrong_names_labels_and_values_are_detected() {
    let exposed = series("a_total{kind=\"x\"} 1\n");
    let check = |text: &str| check(&Expression::parse(text).metrics[0], &exposed, "| `y` |");
    assert_eq!(check("rate(a_total{kind=~\"x|y\", cluster=\"z\"}[1m])"), Ok(()));
    assert_eq!(check("b_total"), Err("no daemon exposes b_total".to_owned()));
    assert_eq!(check("a_total{sort=\"x\"}"), Err("a_total has no label sort".to_owned()));
    assert_eq!(check("a_total{kind=~\"x|z\"}"), Err("a_total: kind is never z".to_owned()));
}

#[test]
fn every_expression_has_a_result_in_a_prometheus_that_scrapes_real_daemons() {
    if !has_root() || !has("prometheus") {
        return;
    }
    isolated(CloneFlags::empty(), || {
        let mut cluster = Cluster::start();
        cluster.cause_everything();
        let mut missing: Vec<String> = Vec::new();
        let mut turn = 0;
        let all = queries(&dashboard());
        wait_until("results of all queries", PATIENCE, || {
            turn += 1;
            cluster.change(turn);
            std::thread::sleep(std::time::Duration::from_secs(1));
            missing.clear();
            for Query { panel, expression } in &all {
                let result = cluster.evaluate(expression);
                let samples = result.unwrap_or_else(|error| panic!("{panel}: {error}: {expression}"));
                if samples.is_empty() && EMPTY.iter().all(|(title, _)| title != panel) {
                    missing.push(format!("{panel}: {expression}"));
                }
            }
            println!("without a result: {missing:#?}");
            missing.is_empty()
        });
        check_all(&cluster.metrics());
        // With the labels of a PodMonitor and without, a namespace is that of the policies.
        for cluster_label in ["", "plain"] {
            let by_namespace =
                all.iter().find(|query| query.panel.starts_with("Denied by policy, by namespace"));
            let limited = by_namespace
                .unwrap()
                .expression
                .replace("cluster=~\".*\"", &format!("cluster=\"{cluster_label}\""));
            let samples = cluster.evaluate(&limited).unwrap();
            assert!(samples.iter().any(|sample| sample["metric"]["namespace"] == "shop"), "{samples:?}");
        }
        // One waits for its API server.
        for (node, ready) in [("n1", "1"), ("n2", "0")] {
            let samples = cluster.evaluate(&format!("towpath_ready{{node=\"{node}\"}}")).unwrap();
            assert_eq!(samples[0]["value"][1], ready, "{node}: {samples:?}");
        }
        // Prometheus itself takes the rules, and none has an error.
        let rules = cluster.prometheus("/api/v1/rules").unwrap();
        let groups = rules["data"]["groups"].as_array().unwrap();
        let rules: Vec<_> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
        assert_eq!(rules.len(), alerts().len());
        assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:#?}");
    });
}
