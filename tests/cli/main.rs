//! The command line as users see it: the built program, run as a shell would run it.

#![cfg(test)]

mod answers;
mod daemon;
mod documents;
mod ground;
mod help;
mod refusals;
