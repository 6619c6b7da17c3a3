//! Environment variables that set how much is tested.

use std::str::FromStr;

/// The number in a variable, or `default` if it is not set.
pub(crate) fn number<T: FromStr>(variable: &str, default: T) -> T {
    std::env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}
