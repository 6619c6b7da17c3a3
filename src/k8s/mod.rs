//! The input: converts Kubernetes objects, from files or the API server, to the [model](crate::model).
//!
//! Nothing after this stage sees an optional field, an unchecked string or an API type. In the order of the data:
//!
//! | from | to | in |
//! |---|---|---|
//! | text | pieces that can be parsed separately | [`chunk`], [`list`] |
//! | a piece | a tree in which every value has its position | [`node`], [`scalar`], [`path`] |
//! | a tree | an API object, and its unknown or wrong fields | [`object`], [`deserialize`], [`hints`], [`types`] |
//! | an API object | the model, or what is wrong with it | [`convert`], [`network_policy`], [`validate`] |
//! | many files | one set of objects | [`assemble`] |
//!
//! [`manifest`] does this once, for a command; [`files`] does it for as long as the daemon runs, with [`store`].
//! [`watch`] follows the API server, whose objects are converted as they arrive. Only [`events`] writes to it.

pub mod assemble;
pub mod chunk;
pub mod convert;
pub mod deserialize;
pub mod events;
pub mod fault;
mod file_worker;
pub mod files;
pub mod folder;
pub mod hints;
pub mod intern;
pub mod list;
pub mod manifest;
mod mismatch;
pub mod network_policy;
pub mod node;
pub mod object;
pub mod path;
pub mod scalar;
pub mod store;
#[cfg(test)]
mod tests;
pub mod types;
pub mod validate;
pub mod watch;
