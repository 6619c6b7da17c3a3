//! The input: converts Kubernetes objects, from files or the API server, to the [model](crate::model).
//!
//! Nothing after this stage sees an optional field, an unchecked string or an API type. In the order of the data:
//!
//! | from | to | in |
//! |---|---|---|
//! | text | trees in which every value has its position | [`yaml`] |
//! | trees | API objects, and their unknown or wrong fields | [`manifest`], [`types`] |
//! | an API object | the model, or what is wrong with it | [`convert`], [`fault`] |
//! | files, for as long as the daemon runs | changes | [`files`] |
//! | the API server, for as long as the daemon runs | changes | [`watch`] |
//!
//! Only [`events`] writes to the API server, and what a person confirms on the [page](crate::page). [`daemons`] connects
//! to the daemons of other nodes through it, for a person.

pub mod convert;
pub mod daemons;
pub mod events;
pub mod fault;
pub mod files;
pub mod intern;
pub mod manifest;
pub mod service;
#[cfg(test)]
mod tests;
pub mod types;
pub mod watch;
pub mod yaml;
