//! The attacks, topic by topic: each topic is a row of SECURITY.md.

mod direct;
mod fragments;
mod guests;
mod headers;
mod neighbours;
mod sources;
mod tags;
mod tunnels;

use crate::{
    bed::Bed,
    table::{Attack, Table},
};

/// Every row, for one test bed.
pub(crate) fn all(bed: &Bed) -> Vec<Attack> {
    let mut table = Table::new(bed);
    tags::rows(&mut table);
    sources::rows(&mut table);
    direct::rows(&mut table);
    fragments::rows(&mut table);
    headers::rows(&mut table);
    tunnels::rows(&mut table);
    guests::rows(&mut table);
    neighbours::rows(&mut table);
    table.rows
}
