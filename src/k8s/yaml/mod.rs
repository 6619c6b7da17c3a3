//! YAML with positions: from a text to trees in which every value has its line and column.
//!
//! | from | to | in |
//! |---|---|---|
//! | a text | its documents, and the items of a long list | [`pieces`], [`list`] |
//! | a document | a tree | [`node`], [`scalar`] |
//! | a value of a tree | its path and its position | [`path`] |
//!
//! JSON is YAML, and is read by the same code.

pub mod list;
pub mod node;
pub mod path;
pub mod pieces;
pub mod scalar;
