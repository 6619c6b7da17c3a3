//! The edge in: Kubernetes objects, from files, become the [model](crate::model).
//!
//! Nothing behind this edge sees an optional field, an unchecked string or an API type.

pub mod assemble;
pub mod chunk;
pub mod convert;
pub mod deserialize;
pub mod fault;
pub mod hints;
pub mod intern;
pub mod manifest;
pub mod network_policy;
pub mod node;
pub mod object;
pub mod path;
pub mod scalar;
pub mod types;
pub mod validate;
