//! The dashboard's JSON.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{expression::Expression, repository::text};

/// The file.
pub(crate) fn dashboard() -> Value {
    serde_json::from_str(&text("deploy/components/grafana/towpath.json")).unwrap()
}

/// A query of a panel.
pub(crate) struct Query {
    pub(crate) panel: String,
    /// As Prometheus reads it: variables are replaced as with all values chosen.
    pub(crate) expression: String,
}

fn panels(dashboard: &Value) -> &[Value] {
    dashboard["panels"].as_array().unwrap()
}

/// Every query of every panel, and those of variables.
pub(crate) fn queries(dashboard: &Value) -> Vec<Query> {
    let mut queries = Vec::new();
    for panel in panels(dashboard) {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = replaced(target["expr"].as_str().unwrap());
            queries.push(Query { panel: title.to_owned(), expression });
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(definition) = variable["definition"].as_str() else { continue };
        let inner = definition.split_once('(').unwrap().1.strip_suffix(')').unwrap();
        let expression = match definition.split('(').next().unwrap() {
            "query_result" => inner.to_owned(),
            "label_values" => inner.rsplit_once(", ").unwrap().0.to_owned(),
            other => panic!("{other}"),
        };
        let panel = format!("${}", variable["name"].as_str().unwrap());
        queries.push(Query { panel, expression: replaced(&expression) });
    }
    queries
}

fn replaced(expression: &str) -> String {
    let expression = expression.replace("$__rate_interval", "20s");
    ["$cluster", "$instance", "$namespace"].iter().fold(expression, |text, name| text.replace(name, ".*"))
}

#[test]
fn panels_have_their_own_ids_places_titles_and_descriptions() {
    let dashboard = dashboard();
    assert!(dashboard["id"].is_null(), "an id belongs to one Grafana");
    assert_eq!(dashboard["uid"], "towpath");
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    let mut titles = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(titles.insert(title), "{title} twice");
        assert!(ids.insert(panel["id"].as_i64().unwrap()), "{title}: its id is that of another");
        let place = |field: &str| panel["gridPos"][field].as_i64().unwrap();
        assert!(place("x") + place("w") <= 24, "{title} is too wide");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(cells.insert((x, y)), "{title} covers another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().unwrap().ends_with('.'), "{title}: no description");
        let targets = panel["targets"].as_array().unwrap();
        let references: BTreeSet<_> =
            targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
        assert!(!targets.is_empty() && references.len() == targets.len(), "{title}: {references:?}");
        for source in targets.iter().chain([panel]) {
            assert_eq!(source["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
    assert!(titles.len() > 40, "{titles:?}");
}

#[test]
fn every_query_is_limited_to_the_chosen_cluster_and_legends_name_existing_labels() {
    let dashboard = dashboard();
    for panel in panels(&dashboard) {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let (title, text) = (&panel["title"], target["expr"].as_str().unwrap());
            let found = Expression::parse(text);
            for metric in &found.metrics {
                let is_limited =
                    metric.matchers.iter().any(|(label, _, value)| label == "cluster" && value == "$cluster");
                assert!(is_limited, "{title}: {}", metric.name);
            }
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            let is_grouped = text.contains(" by (");
            for label in legend.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap()) {
                assert!(
                    !is_grouped || found.labels.contains(label),
                    "{title}: {label} in the legend of {text}"
                );
            }
        }
    }
}

#[test]
fn variables_are_a_data_source_and_the_limits_of_queries() {
    let dashboard = dashboard();
    let list = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = list.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "cluster", "instance", "namespace"]);
    // Without a label cluster, everything must still match.
    assert!(list[1..].iter().all(|variable| variable["allValue"] == ".*"));
}
