//! Values in the text of `/metrics`.

/// The value of a series, which is named with its labels; 0 if the text does not have it.
pub(crate) fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}
