//! The command line: what each command asks, does and prints.

pub mod demo;
