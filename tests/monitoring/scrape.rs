//! The text of `/metrics`, as series.

use std::collections::BTreeMap;

/// A series: its labels and their values.
pub(crate) type Labels = BTreeMap<String, String>;

/// The series of each metric. Those of a histogram are named with their suffixes.
pub(crate) fn series(text: &str) -> BTreeMap<String, Vec<Labels>> {
    let mut series: BTreeMap<String, Vec<Labels>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, labels) = match line.split_once('{') {
            Some((name, rest)) => (name, labels(rest.rsplit_once('}').unwrap().0)),
            None => (line.split(' ').next().unwrap(), Labels::new()),
        };
        series.entry(name.to_owned()).or_default().push(labels);
    }
    series
}

/// `a="b",c="d"`; no value here has a quote in it.
fn labels(text: &str) -> Labels {
    let pairs = text.split("\",").filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (label, value) = pair.split_once("=\"").unwrap();
        (label.to_owned(), value.trim_end_matches('"').to_owned())
    };
    pairs.map(pair).collect()
}

#[test]
fn series_have_their_labels() {
    let found = series("# HELP a b\n# TYPE a counter\na{b=\"c, d\",e=\"\"} 1\nf 2.5\n");
    let labels = [("b", "c, d"), ("e", "")].map(|(label, value)| (label.to_owned(), value.to_owned()));
    assert_eq!(found["a"], [Labels::from(labels)]);
    assert_eq!(found["f"], [Labels::new()]);
}
