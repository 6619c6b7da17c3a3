//! `towpath lint`: each kind of finding, with and without the mistake.

#![cfg(test)]

mod mistakes;
mod no_effect;
mod page;
mod program;

use std::{collections::BTreeSet, path::Path};

use towpath::{cli::lint::codes_of_text, policy::findings::Code};

/// What is found in a text, as lines.
pub(crate) fn lines(text: &str) -> Vec<String> {
    codes_of_text(Path::new("f.yaml"), text, &[]).into_iter().map(|(_, line)| line).collect()
}

/// The codes of what is found in a text.
pub(crate) fn codes(text: &str) -> BTreeSet<Code> {
    codes_of_text(Path::new("f.yaml"), text, &[]).into_iter().map(|(code, _)| code).collect()
}
