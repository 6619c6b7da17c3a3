//! The proving ground: what tests, benches and the demo share.

pub mod random;
pub mod sized;
