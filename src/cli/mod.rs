//! The commands: what they print.

pub mod explain;
pub mod matrix;
pub mod words;
